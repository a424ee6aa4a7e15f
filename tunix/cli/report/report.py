"""What a user sees when a reinforcement learning run ends, and what ``summary.json`` holds."""

from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.table
import rich.text

from tunix.rl.monitoring import evaluation
from tunix.sft.metrics import plots

SHOWN_CHARACTERS = 120


def measurement(greedy: evaluation.Evaluation, sampled: evaluation.Evaluation) -> dict[str, Any]:
    """Return what is kept of an evaluation."""
    return {
        "accuracy_function": greedy.accuracy_function,
        "greedy_accuracy": greedy.accuracy,
        "greedy_reward": greedy.mean_reward,
        "reward": sampled.mean_reward,
        "accuracy": sampled.accuracy,
        "num_questions": len(greedy.completions),
        "num_sampled": len(sampled.completions),
        "completion_length": sampled.metrics["completion_length"],
        "truncated": sampled.metrics["truncated"],
        "greedy_replies": list(greedy.completions),
        "greedy_right": greedy.right.tolist(),
        "failed": {name: n / len(sampled.completions) for name, n in sampled.failed.items() if n},
    }


def summarize(
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    rows: Sequence[Mapping[str, Any]],
    *,
    steps: int,
    seconds: float,
) -> dict[str, Any]:
    """Return the contents of ``summary.json``.

    Args:
        before: The measurement of the untrained model, None if there is nothing to ask.
        after: The same of the trained one.
        rows: All metrics of the run.
        steps: Optimizer steps taken.
        seconds: Time of this process from its start; a run that was continued took longer.
    """
    timed = [row for row in rows if "train/tokens_per_second" in row]
    spent = sum(row["train/step_time_sec"] for row in timed)
    tokens = sum(row["train/tokens_per_second"] * row["train/step_time_sec"] for row in timed)
    return {
        "accuracy_function": None if after is None else after["accuracy_function"],
        "reward_before": None if before is None else before["reward"],
        "reward_after": None if after is None else after["reward"],
        "greedy_accuracy_before": None if before is None else before["greedy_accuracy"],
        "greedy_accuracy_after": None if after is None else after["greedy_accuracy"],
        "steps": steps,
        "seconds": round(seconds, 2),
        "training_seconds": round(spent, 2),
        "tokens_per_second": round(tokens / spent, 1) if spent else None,
        "num_questions": None if after is None else after["num_questions"],
        "num_sampled": None if after is None else after["num_sampled"],
    }


def curves(
    rows: Sequence[Mapping[str, Any]],
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
) -> dict[str, plots.Series]:
    """Return what the picture of the run shows: reward in training, and on held-out questions."""
    found = {"training, sampled": _series(rows, "train/reward")}
    if before is None or after is None:
        return found
    last_step = max((row["step"] for row in rows), default=0)
    for name, logged, measured in (
        ("held out, sampled", "eval/reward", "reward"),
        ("held out, greedy", "eval/greedy/reward", "greedy_reward"),
    ):
        steps, values = _series([row for row in rows if row["step"] < last_step], logged)
        found[name] = ([0, *steps, last_step], [before[measured], *values, after[measured]])
    return found


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> plots.Series:
    having = [row for row in rows if key in row]
    return [row["step"] for row in having], [float(row[key]) for row in having]


def print_comparison(
    console: rich.console.Console, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    """Print accuracy, reward and length on the held-out questions, before and after.

    Accuracy is that of one function, which is named; so are functions that failed.
    """
    table = rich.table.Table(title="held-out questions", title_justify="left")
    table.add_column("")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    right = f"accuracy: {after['accuracy_function']} at least {evaluation.RIGHT:g}"
    rows = (
        (f"greedy {right} ({after['num_questions']} questions)", "greedy_accuracy", "{:.3f}"),
        (f"sampled {right} ({after['num_sampled']} replies)", "accuracy", "{:.3f}"),
        ("sampled reward", "reward", "{:.3f}"),
        ("tokens of a reply", "completion_length", "{:.1f}"),
        ("replies cut off", "truncated", "{:.1%}"),
    )
    for label, key, form in rows:
        table.add_row(rich.text.Text(label), form.format(before[key]), form.format(after[key]))
    for name in before["failed"] | after["failed"]:
        shares = [f"{measured['failed'].get(name, 0.0):.1%}" for measured in (before, after)]
        table.add_row(rich.text.Text(f"{name} failed (and on_error counts)"), *shares)
    console.print(table, soft_wrap=False)


def print_replies(
    console: rich.console.Console,
    questions: Sequence[str],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    limit: int,
) -> None:
    """Print greedy replies to a few questions side by side; right ones are green."""
    if limit == 0:
        return
    # Spread out, because neighbours may be variants of one question.
    stride = max(1, len(questions) // limit + 1)
    table = rich.table.Table(title="greedy replies", title_justify="left", show_lines=True)
    for name in ("question", "before", "after"):
        table.add_column(name, overflow="fold", ratio=1)
    for i in range(0, len(questions), stride):
        cells = [_reply(m["greedy_replies"][i], m["greedy_right"][i]) for m in (before, after)]
        table.add_row(rich.text.Text(questions[i]), *cells)
    console.print(table, soft_wrap=False)


def _reply(text: str, is_right: bool) -> rich.text.Text:
    shown = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
    return rich.text.Text(shown, style="green" if is_right else "red")
