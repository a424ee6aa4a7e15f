"""Runs that end badly, started again with the same command."""

import json
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tunix.cli import main

STEPS = 40


@pytest.fixture
def commands(tmp_path, tiny_model):
    """Return a function from a command and a run directory to the command's line."""
    (tmp_path / "rewards.py").write_text(
        "def ascii(prompts, completions):\n"
        "    return [sum(map(str.isascii, text)) / max(len(text), 1) for text in completions]\n"
    )
    rows = [{"prompt": f"Say {c}", "completion": c * 3} for c in "abcdefghijkl"]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    loop = {
        "max_steps": STEPS,
        "checkpointing_options": {"save_interval_steps": 3},
        "metrics_logging_options": {"flush_every_n_steps": 1},
    }
    shared = {
        "model_config": {"model_id": tiny_model, "precision": "exact"},
        "data_path": str(tmp_path / "rows.jsonl"),
        "batch_size": 2,
    }
    optimizer = {"learning_rate": 0.01}
    settings = {
        "sft": shared
        | {
            "num_train_epochs": 10,
            "training_config": loop,
            "optimizer_config": optimizer,
        },
        "grpo": shared
        | {
            "reward_functions": [str(tmp_path / "rewards.py")],
            "grpo_config": {"num_generations": 4, "beta": 0.0},
            "rollout_config": {"total_generation_steps": 4, "max_prompt_length": 8},
            "rl_training_config": loop | {"actor_optimizer_config": optimizer},
        },
    }
    settings["ppo"] = dict(settings["grpo"])
    settings["ppo"]["ppo_config"] = settings["ppo"].pop("grpo_config") | {"num_iterations": 2}
    pairs = [{"prompt": f"Say {c}", "chosen": c * 3, "rejected": "z"} for c in "abcdefgh"]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    for command in ("dpo", "reward"):
        settings[command] = settings["sft"] | {"data_path": str(tmp_path / "pairs.jsonl")}
    # A column named completion would hide what the policy wrote.
    grpo_rows = [{"prompt": row["prompt"]} for row in rows]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, grpo_rows)))
    for command in ("grpo", "ppo"):
        settings[command]["data_path"] = str(tmp_path / "prompts.jsonl")

    def line(command, name):
        path = tmp_path / f"{command}.yaml"
        path.write_text(yaml.safe_dump(settings[command]))
        directory = tmp_path / name
        return [
            *(sys.executable, "-m", "tunix.cli.main", command, str(path)),
            f"run_dir={directory}",
        ], directory

    return line


@pytest.mark.parametrize(
    "command", ["sft", "dpo", "reward", "grpo", pytest.param("ppo", marks=pytest.mark.slow)]
)
def test_a_finished_run_that_is_started_again_stays_as_it_is(commands, command, capsys):
    line, directory = commands(command, "run")
    loop = "rl_training_config" if command in ("grpo", "ppo") else "training_config"
    rate = "rl_training_config.actor_optimizer_config" if "rl_" in loop else "optimizer_config"
    again = [*line[3:], f"{loop}.max_steps=2"]
    assert main.main(again) == 0
    (directory / "text.json").write_text('{"date": null, "uses_chat_template": true}')
    files = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main.main([*again, f"{rate}.learning_rate=0.5"]) == 0
    out = capsys.readouterr().out
    assert "already finished (2 of 2 steps); nothing was trained" in out
    assert "continuing" not in out and "2 steps in" not in out
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == files

    assert main.main([*again, f"{loop}.max_steps=4"]) == 0
    assert "continuing from step 2" in capsys.readouterr().out
    assert json.loads((directory / "summary.json").read_text())["steps"] == 4


def log_of(directory):
    """Return every metric of every step but times and the machine's state, which none repeats."""
    path = directory / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    rows = [json.loads(text) for text in lines if text.endswith("}")]
    measured = ("time", "seconds", "tokens_per_second", "system/")
    return [{k: v for k, v in row.items() if not any(m in k for m in measured)} for row in rows]


def stop_after(line, directory, steps, stop):
    """Start a run and end it with a signal once it has logged so many steps."""
    process = subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 180
    while len(log_of(directory)) < steps:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.02)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sft", "grpo", "ppo"])
def test_a_run_that_was_killed_and_interrupted_equals_one_that_was_not(commands, command):
    line, whole = commands(command, "whole")
    subprocess.run(line, check=True, capture_output=True)

    line, parts = commands(command, "parts")
    code, _ = stop_after(line, parts, 7, signal.SIGKILL)
    assert code == -signal.SIGKILL
    code, errors = stop_after(line, parts, 15, signal.SIGINT)
    assert code == 130
    assert "run the same command again to continue" in errors
    assert "Traceback" not in errors
    subprocess.run(line, check=True, capture_output=True)

    steps = [row["step"] for row in log_of(whole)]
    assert steps[-1] == STEPS and len(steps) == STEPS // (2 if command == "ppo" else 1)
    assert log_of(parts) == log_of(whole)
