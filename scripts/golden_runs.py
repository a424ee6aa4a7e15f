"""Records what small runs of every trainer compute, and compares two recordings.

    python -m scripts.golden_runs record FILE [--only NAME ...]
    python -m scripts.golden_runs compare BEFORE AFTER

Before and after a change that shall change no number. The runs are jobs of the command line in
exact arithmetic on a tiny random model, so that a recording does not depend on how the library is
built inside: every logged metric that is no measurement of the machine, every completion, and the
exported weights. ``compare`` prints what differs and by how much, and exits with 1 if any does.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors.numpy
import yaml

from tests import tiny_llama, virtual_devices

ROOT = pathlib.Path(__file__).resolve().parents[1]
# What a clock or the machine says, which no two runs share.
_MEASURED = re.compile(r"second|time|per_sec|/s$|memory|bytes|mfu|flops|cpu|perf|wait|age|system")
_REWARDS = """
def ascii_share(prompts, completions, **columns):
    return [sum(c.isascii() for c in text) / max(len(text), 1) for text in completions]
"""
_CHATS = [
    [
        {"role": "user", "content": "Say " + "word " * (i % 5 + 1)},
        {"role": "assistant", "content": "Well: " + "reply " * (i * 7 % 6 + 1)},
    ]
    for i in range(16)
]

Job = tuple[str, int, Mapping[str, Any]]
"""Command, devices, settings."""

_ADAM = {"opt_type": "adamw", "learning_rate": 0.01}
_SFT = {"data_path": "chats.jsonl", "batch_size": 4, "max_target_length": 96}
_SFT |= {"num_train_epochs": 2, "optimizer_config": _ADAM}
_DPO = {"data_path": "pairs.jsonl", "batch_size": 4, "max_prompt_length": 48}
_DPO |= {"max_response_length": 64, "num_train_epochs": 2, "optimizer_config": _ADAM}
_RL: dict[str, Any] = {
    "data_path": "prompts.jsonl",
    "reward_functions": ["rewards.py"],
    "batch_size": 4,
    "num_train_epochs": 2,
    "rollout_config": {"total_generation_steps": 12, "max_prompt_length": 64, "temperature": 1.0},
    "evaluation": {"samples_per_question": 2},
    "rl_training_config": {"actor_optimizer_config": _ADAM},
}
_GRPO = {"num_generations": 4, "beta": 0.05}
_PPO = {"num_generations": 2, "num_iterations": 2, "beta": 0.0}


def _grpo(**settings: Any) -> Mapping[str, Any]:
    return _RL | {"grpo_config": _GRPO | settings}


def _ppo(**settings: Any) -> Mapping[str, Any]:
    return _RL | {"ppo_config": _PPO | settings}


def _on_mesh(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return dict(settings) | {"model_config": {"mesh": {"shape": [8], "axis_names": ["fsdp"]}}}


JOBS: Mapping[str, Job] = {
    "sft-padded": ("sft", 1, _SFT | {"data_config": {"packing": False}}),
    "sft-packed": ("sft", 1, _SFT | {"data_config": {"packing": True}}),
    "dpo": ("dpo", 1, _DPO | {"dpo_config": {"loss_type": "sigmoid", "beta": 0.1}}),
    "kto": ("dpo", 1, _DPO | {"data_path": "labelled.jsonl", "kto_config": {"beta": 0.1}}),
    "grpo": ("grpo", 1, _grpo()),
    "grpo-two-updates": ("grpo", 1, _grpo(num_iterations=2)),
    "grpo-ahead": ("grpo", 1, _grpo(off_policy_steps=1)),
    "grpo-partial": ("grpo", 1, _grpo(partial_rollout_tokens=4, off_policy_steps=1)),
    "dapo": ("grpo", 1, _grpo(beta=0.0) | {"algorithm": "dapo"}),
    "gspo": ("grpo", 1, _grpo(beta=0.0, num_iterations=2) | {"algorithm": "gspo"}),
    "ppo-separate": ("ppo", 1, _ppo()),
    "ppo-shared": ("ppo", 1, _ppo(critic_backbone="shared")),
    "sft-eight-devices": ("sft", 8, _on_mesh(_SFT | {"batch_size": 8})),
    "grpo-eight-devices": ("grpo", 8, _on_mesh(_grpo())),
}


def write_data(folder: pathlib.Path) -> None:
    """Write the model and the data of all jobs."""
    (folder / "model").mkdir()
    tiny_llama.write_model(folder / "model")
    (folder / "rewards.py").write_text(_REWARDS)
    replies = [chat[1]["content"] for chat in _CHATS]
    rows: dict[str, list[dict[str, Any]]] = {
        "chats": [{"messages": chat} for chat in _CHATS],
        "pairs": [
            {"prompt": chat[:1], "chosen": chat[1:], "rejected": [chat[1] | {"content": other}]}
            for chat, other in zip(_CHATS, reversed(replies), strict=True)
        ],
        "labelled": [
            {"prompt": chat[:1], "completion": chat[1:], "label": i % 3 > 0}
            for i, chat in enumerate(_CHATS)
        ],
        "prompts": [{"prompts": chat[:1]} for chat in _CHATS],
    }
    for name, found in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))


def run(name: str, folder: pathlib.Path) -> dict[str, Any]:
    """Return what a job computed."""
    command, devices, settings = JOBS[name]
    given = dict(settings)
    given["model_config"] = {
        "model_id": str(folder / "model"),
        "precision": "exact",
        **given.get("model_config", {}),
    }
    given["run_dir"] = str(folder / "runs" / name)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(given))
    environment = os.environ | virtual_devices.environment(devices)
    environment |= {"PYTHONPATH": str(ROOT)}
    _tunix([command, f"{name}.yaml"], folder, environment)
    weights = folder / "exported" / name
    _tunix(["export", given["run_dir"], str(weights), "--format", "hf"], folder, environment)
    directory = pathlib.Path(given["run_dir"])
    return {
        "metrics": [_numbers(row) for row in _rows(directory / "metrics.jsonl")],
        "completions": [_numbers(row) for row in _rows(directory / "completions.jsonl")],
        "weights": {
            key: np.asarray(value, np.float32).ravel().tolist()
            for key, value in safetensors.numpy.load_file(weights / "model.safetensors").items()
        },
    }


def _tunix(arguments: list[str], folder: pathlib.Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tunix.cli.main", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(
            f"tunix {' '.join(arguments)}:\n{done.stdout[-1000:]}{done.stderr[-3000:]}"
        )


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open(encoding="utf-8")] if path.exists() else []


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not _MEASURED.search(key)}


def differences(before: Any, after: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """Yield where two recordings differ, and by how much; infinitely where it is no number."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            place = f"{where}/{key}"
            if key in before and key in after:
                yield from differences(before[key], after[key], place)
            else:
                yield f"{place} only {'before' if key in before else 'after'}", float("inf")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (a, b) in enumerate(zip(before, after, strict=True)):
            yield from differences(a, b, f"{where}[{number}]")
    elif before != after:
        both_numbers = all(isinstance(x, int | float) for x in (before, after))
        yield where, abs(before - after) if both_numbers else float("inf")


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Print a line per job, and return whether all are equal bit for bit."""
    for name in sorted({*before, *after}):
        found = list(differences(before.get(name, {}), after.get(name, {})))
        worst = sorted(found, key=lambda item: -item[1])[:5]
        print(f"{name}: {'equal' if not found else f'{len(found)} values differ'}")
        for where, size in worst:
            print(f"    {where}: {size:.3g}")
    return dict(before) == dict(after)


def main() -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--only", nargs="+", default=list(JOBS), choices=list(JOBS))
    options = parser.parse_args()
    if options.action == "compare":
        before, after = (json.loads(path.read_text()) for path in options.files)
        return 0 if compare(before, after) else 1
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        write_data(folder)
        recorded = {}
        for name in options.only:
            recorded[name] = run(name, folder)
            print(f"{name}: {len(recorded[name]['metrics'])} rows of metrics", flush=True)
    options.files[0].write_text(json.dumps(recorded))
    return 0


if __name__ == "__main__":
    sys.exit(main())
