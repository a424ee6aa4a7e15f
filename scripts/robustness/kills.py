"""Kills runs at random points, lets two write to one directory, and damages checkpoints.

    python -m scripts.robustness.kills [--commands sft grpo ppo] [--kills 3] [--seed 0]

Runs of a tiny model are ended with SIGKILL and SIGTERM, while they start, train, evaluate or save,
and started again with the same command until they are done: log, completions and weights must be
those of a run that nothing happened to. A second start beside a running one must be refused and
change nothing. A damaged latest checkpoint must be one message that names it, and
``resume=newest-sound`` must lead to the same log and weights. Prints what was otherwise, and exits
with 1 if there was anything. Takes some minutes.
"""

import argparse
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import yaml

from tests import tiny_llama
from tunix.utils import json_lines

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMANDS = ("sft", "grpo", "ppo")
STEPS = 24
PATIENCE = 300.0
"""Seconds after which a run that makes no progress hangs."""

_MEASURES_THE_MACHINE = ("time", "sec", "memory", "compiles", "system", "mfu")


class Runs:
    """Runs of one kind in a folder."""

    def __init__(self, folder: pathlib.Path, command: str):
        self.folder, self.command = folder, command
        self._settings = folder / f"{command}.yaml"
        self._settings.write_text(yaml.safe_dump(_settings(folder, command)), encoding="utf-8")

    def start(self, name: str, *more: str) -> subprocess.Popen[str]:
        """Start or continue a run."""
        line = [sys.executable, "-m", "tunix.cli.main", self.command, str(self._settings)]
        return subprocess.Popen(
            [*line, f"run_dir={self.folder / name}", *more],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, name: str, *more: str) -> tuple[int, str]:
        """Run to the end and return exit code and messages."""
        process = self.start(name, *more)
        _, errors = process.communicate(timeout=PATIENCE)
        return process.returncode, errors

    def differences(self, name: str, other: str) -> Iterator[str]:
        """Yield what two finished runs do not have in common."""
        one, two = self.folder / name, self.folder / other
        for file in ("metrics.jsonl", "completions.jsonl"):
            rows, wanted = _rows(one / file), _rows(two / file)
            if rows == wanted:
                continue
            different = [pair for pair in zip(rows, wanted, strict=False) if pair[0] != pair[1]]
            first = different[0] if different else (len(rows), len(wanted))
            yield f"{file} differs in {len(different)} lines, first {first[0]} for {first[1]}"
        for root in ("checkpoints", *(["checkpoints_critic"] if self.command == "ppo" else [])):
            for part in ("params", "optimizer"):
                place = pathlib.Path(root, str(STEPS), part)
                if not _same(one / place, two / place):
                    yield f"the arrays in {place} differ"


def attack(commands: Sequence[str], *, kills: int, seed: int) -> list[str]:
    """Return a sentence for everything that was not as it must be.

    Args:
        commands: Kinds of runs, of :data:`COMMANDS`.
        kills: How often a run is killed.
        seed: Of the moments.
    """
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        (folder / "model").mkdir()
        tiny_llama.write_model(folder / "model")
        for command in commands:
            runs = Runs(folder, command)
            code, errors = runs.finish("whole")
            if code != 0:
                found.append(f"{command}: exit {code} of a run that nothing happened to: {errors}")
                continue
            generator = random.Random(f"{seed} {command}")
            found += [f"{command}, killed: {p}" for p in _killed(runs, kills, generator)]
            if command == "sft":
                found += [f"{command}, two writers: {p}" for p in _two_writers(runs)]
            found += [f"{command}, damaged: {p}" for p in _damaged(runs)]
    return found


def _killed(runs: Runs, kills: int, generator: random.Random) -> Iterator[str]:
    for number in range(kills):
        process = runs.start("killed")
        done = len(_rows(runs.folder / "killed" / "metrics.jsonl"))
        # A third of them while it loads and compiles, the others after some more lines.
        wanted = 0 if generator.random() < 0.33 else done + generator.randint(1, STEPS // kills)
        delay = generator.uniform(0.0, 4.0 if wanted == 0 else 0.2)
        stop = (signal.SIGKILL, signal.SIGTERM)[number % 2]
        _wait(lambda n=wanted: len(_rows(runs.folder / "killed/metrics.jsonl")) >= n, process)
        time.sleep(delay)
        process.send_signal(stop)
        _, errors = process.communicate(timeout=PATIENCE)
        if process.returncode not in (0, -stop, 128 + stop):
            yield f"exit {process.returncode} after {stop.name}: {errors}"
        if "Traceback" in errors:
            yield f"a traceback after {stop.name}: {errors}"
    code, errors = runs.finish("killed")
    if code != 0:
        yield f"exit {code} when it was continued: {errors}"
        return
    yield from runs.differences("killed", "whole")


def _two_writers(runs: Runs) -> Iterator[str]:
    first = runs.start("shared")
    _wait((runs.folder / "shared" / "run.lock").exists, first)
    code, errors = runs.finish("shared")
    if code != 2 or "is in use by process" not in errors or "Traceback" in errors:
        yield f"the second one was not refused: exit {code}, {errors}"
    _, errors = first.communicate(timeout=PATIENCE)
    if first.returncode != 0:
        yield f"the first one ended with {first.returncode}: {errors}"
        return
    yield from runs.differences("shared", "whole")


def _damaged(runs: Runs) -> Iterator[str]:
    for name, damage in DAMAGES.items():
        copy = runs.folder / "damaged"
        shutil.copytree(runs.folder / "whole", copy)
        place = copy / "checkpoints" / str(STEPS)
        damage(place)
        code, errors = runs.finish(copy.name)
        lines = errors.splitlines()
        if code != 2 or not any(f"checkpoint {place} is damaged" in line for line in lines):
            yield f"{name}: exit {code}, and no message that names it: {errors}"
        if "Traceback" in errors or "resume=newest-sound continues from step" not in errors:
            yield f"{name}: a traceback, or no way on: {errors}"
        code, errors = runs.finish(copy.name, "resume=newest-sound")
        if code != 0:
            yield f"{name}: exit {code} of resume=newest-sound: {errors}"
        else:
            yield from (f"{name}: {text}" for text in runs.differences(copy.name, "whole"))
        shutil.rmtree(copy)


def _flip(step: pathlib.Path) -> None:
    files = [path for path in (step / "params").rglob("*") if path.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _cut_unsealed(step: pathlib.Path) -> None:
    (step / "checksums.json").unlink()
    file = step / "metadata" / "metadata"
    file.write_bytes(file.read_bytes()[:10])


def _empty(step: pathlib.Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


DAMAGES: dict[str, Callable[[pathlib.Path], None]] = {
    "a flipped bit": _flip,
    "a document that was cut, without checksums": _cut_unsealed,
    "an empty directory": _empty,
    "a missing part": lambda step: shutil.rmtree(step / "params"),
}


def _settings(folder: pathlib.Path, command: str) -> dict[str, Any]:
    """Return the settings of a short run, after writing its data."""
    model = {"model_id": str(folder / "model"), "precision": "exact"}
    loop = {
        "max_steps": STEPS,
        "eval_every_n_steps": 5,
        "checkpointing_options": {"save_interval_steps": 2, "max_to_keep": 3},
        "metrics_logging_options": {"flush_every_n_steps": 1},
    }
    if command == "sft":
        train = [{"prompt": "q", "completion": "abc" * 20} for _ in range(8)]
        train += [{"prompt": "q" * (10 + i % 40), "completion": "ab" * 5} for i in range(56)]
        held_out = [{"prompt": "q" * 50, "completion": "abcab" + "c" * i} for i in range(7)]
        return {
            "model_config": model,
            "data_path": _data(folder / "train.jsonl", train),
            "eval_data_path": _data(folder / "held_out.jsonl", held_out),
            "batch_size": 4,
            "max_target_length": 64,
            "num_train_epochs": 10,
            "data_config": {"streaming_window": 16},
            "optimizer_config": {"learning_rate": 0.01},
            "training_config": loop,
        }
    reward = folder / "reward.py"
    reward.write_text(
        "def ascii(completions, **kwargs):\n"
        "    return [sum(map(str.isascii, c)) / max(len(c), 1) for c in completions]\n",
        encoding="utf-8",
    )
    prompts = [{"prompt": f"Say {letter}"} for letter in "abcdefghijkl"]
    algorithm = {"num_generations": 2, "beta": 0.0}
    return {
        "model_config": model,
        "data_path": _data(folder / "prompts.jsonl", prompts),
        "batch_size": 2,
        "reward_functions": [str(reward)],
        f"{command}_config": algorithm,
        "rollout_config": {"total_generation_steps": 4, "max_prompt_length": 8},
        "rl_training_config": loop | {"actor_optimizer_config": {"learning_rate": 0.01}},
    }


def _data(path: pathlib.Path, rows: Sequence[dict[str, str]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """Return the rows of a log without what no run repeats."""
    return [
        {k: v for k, v in row.items() if not any(t in k for t in _MEASURES_THE_MACHINE)}
        for row in json_lines.read(path)
    ]


def _same(one: pathlib.Path, two: pathlib.Path) -> bool:
    """Return whether two parts of checkpoints hold the same arrays, bit for bit."""
    a, b = _arrays(one), _arrays(two)
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


def _arrays(place: pathlib.Path) -> dict[str, np.ndarray]:
    handler = ocp.PyTreeCheckpointHandler()
    folder: Any = place
    tree = handler.metadata(folder).tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def _wait(is_so: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something is so, or the process has ended."""
    end = time.monotonic() + PATIENCE
    while not is_so() and process.poll() is None:
        if time.monotonic() > end:
            process.kill()
            raise TimeoutError(f"no progress in {PATIENCE:.0f} s")
        time.sleep(0.01)


def main() -> int:
    """Attack, print what was found, and return the exit code."""
    parser = argparse.ArgumentParser(description="Kill, share and damage runs of a tiny model.")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    parser.add_argument("--kills", type=int, default=3, help="of each run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = attack(options.commands, kills=options.kills, seed=options.seed)
    print("\n".join(found) or "all as it must be")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
