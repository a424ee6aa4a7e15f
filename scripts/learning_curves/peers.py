"""Trains the same task with our GRPO, TRL's and google-tunix's: do they learn alike?

    python scripts/learning_curves/peers.py SIDE SEED --model-dir DIR [--python P] [--rollouts N]

One run of one side; appends a JSON line to FILE. The settings are those that ``matrix.py`` runs
GRPO on ``larger_number`` with. The worker of a side trains in a process of its own and asks this
one for the reward of its replies: every side gets the same questions in the same order, and rewards
from the same function. ``plot_peers.py`` draws what was measured.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import matrix
import run

from tunix.cli import config
from tunix.cli.schemas import grpo_schema, structure
from tunix.rl import tasks

FOLDER = pathlib.Path(__file__).resolve().parent
RESULTS = run.RESULTS.with_name("peers.jsonl")
TASK = "larger_number"


SIDES = {
    "tunix": "peer_tunix.py",
    "trl": "peer_trl.py",
    "google-tunix": "peer_google_tunix.py",
}
"""The workers, by the names of the sides."""


def main() -> None:
    """Run one side once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("seed", type=int)
    parser.add_argument("--model-dir", type=pathlib.Path, required=True)
    parser.add_argument("--python", default=sys.executable, help="of the side's environment")
    parser.add_argument("--rollouts", type=int, default=matrix.NUM_ROLLOUTS)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args()
    job, rows = make_job(options.seed, options.model_dir, options.rollouts)
    line = train(options.side, job, Scorer(job, rows), options.python)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with options.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))


def make_job(
    seed: int, model_dir: pathlib.Path, num_rollouts: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the settings of a run, for any side, and the rows it trains on, with answers."""
    one = matrix.Run(task=TASK, algorithm="grpo", seed=seed)
    _, file, *settings = one.command(pathlib.Path("unused"))
    arguments = [str(matrix.ROOT / file), *settings]
    recipe = structure.structure(
        grpo_schema.GrpoRun, config.load(arguments, {}, []).values, notes={}, source="matrix"
    )
    adapters = recipe.model_config.lora_config
    optimizer = recipe.rl_training_config.actor_optimizer_config
    assert adapters is not None
    train, _ = tasks.TASKS[TASK].split(seed=seed, held_out=recipe.evaluation.num_questions)
    rows = train[: num_rollouts * recipe.batch_size]
    job = {
        "seed": seed,
        "num_rollouts": num_rollouts,
        "batch_size": recipe.batch_size,
        "num_generations": recipe.grpo_config.num_generations,
        "epsilon": recipe.grpo_config.epsilon,
        "max_new_tokens": recipe.rollout_config.total_generation_steps,
        "max_prompt_length": recipe.rollout_config.max_prompt_length,
        "temperature": recipe.rollout_config.temperature,
        "lora_rank": adapters.rank,
        "lora_alpha": adapters.alpha,
        "learning_rate": optimizer.learning_rate,
        "warmup_steps": optimizer.warmup_steps,
        "b1": 0.9,
        "b2": optimizer.b2,
        "eps": 1e-8,
        "model_dir": str(model_dir.resolve()),
        "questions": [row["prompts"][0]["content"] for row in rows],
    }
    return job, rows


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class Scorer:
    """Rewards replies whose first number is right and which ended, and remembers the curve."""

    def __init__(self, job: dict[str, Any], rows: Sequence[dict[str, Any]]):
        self._rows = rows
        self._size, self._group = job["batch_size"], job["num_generations"]
        self.curve: dict[str, list[float]] = {"reward": [], "length": [], "ended": []}
        self.first_replies: list[str] = []

    def rewards(self, replies: dict[str, Any]) -> list[float]:
        """Return the rewards of the replies of one rollout.

        Raises:
            ValueError: If they do not answer the questions whose turn it is.
        """
        start = len(self.curve["reward"]) * self._size
        expected = [row for row in range(start, start + self._size) for _ in range(self._group)]
        if replies["rows"] != expected:
            raise ValueError(f"replies are to questions {replies['rows']}, expected {expected}")
        given = zip(replies["completions"], expected, replies["ended"], strict=True)
        rewards = [
            float(bool(ended) and _NUMBER.findall(text)[:1] == [str(self._rows[row]["answer"])])
            for text, row, ended in given
        ]
        for name, values in (
            ("reward", rewards),
            ("length", replies["lengths"]),
            ("ended", replies["ended"]),
        ):
            self.curve[name].append(round(sum(values) / len(values), 4))
        self.first_replies = self.first_replies or replies["completions"][: self._group]
        return rewards


def train(side: str, job: dict[str, Any], scorer: Scorer, python: str) -> dict[str, Any]:
    """Run a side's worker and return what is kept of it.

    Raises:
        SystemExit: If it fails, or does not make as many rollouts as it was asked for.
    """
    started = time.perf_counter()
    benchmarks = FOLDER.parent / "benchmarks"
    process = subprocess.Popen(
        [python, str(FOLDER / SIDES[side])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(benchmarks), "BENCH_MODEL": job["model_dir"]},
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    print(json.dumps(job), file=process.stdin, flush=True)
    facts: dict[str, Any] = {}
    for text in process.stdout:
        message = json.loads(text)
        if "completions" not in message:
            facts = message
            continue
        print(json.dumps(scorer.rewards(message)), file=process.stdin, flush=True)
        print(f"# {scorer.curve['reward']}", file=sys.stderr, flush=True)
    if process.wait() or len(scorer.curve["reward"]) != job["num_rollouts"]:
        raise SystemExit(f"{side} ended with {process.returncode} after {scorer.curve['reward']}")
    settings = {key: value for key, value in job.items() if key not in ("questions", "model_dir")}
    return {
        "side": side,
        "seed": job["seed"],
        "task": TASK,
        **{f"train_{name}": values for name, values in scorer.curve.items()},
        "first_replies": scorer.first_replies,
        "seconds": round(time.perf_counter() - started, 1),
        "settings": settings,
        **run.environment(),
        **facts,
    }


if __name__ == "__main__":
    main()
