"""The report of a run as one HTML page that needs nothing else: no network, no other file."""

import collections
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tunix.cli.report import report_assets, report_charts, report_prompts

Row = Mapping[str, Any]

COMPLETION: Mapping[str, type] = {"prompt": str, "completion": str, "reward": float}
"""What every row of completions must have; whatever else a run has logged is shown."""
ALARM: Mapping[str, type] = {"alarm": str, "message": str}

CHARTS: Mapping[str, Sequence[str]] = {
    "Reward": ("train/reward", "eval/reward", "eval/greedy/reward"),
    "Spread of the reward": ("train/reward_std",),
    "Loss": ("train/loss", "eval/loss"),
    "Gradient norm": ("train/grad_norm",),
    "Tokens of a completion": (
        "train/completion_length",
        "train/completion_length_min",
        "train/completion_length_max",
        "eval/completion_length",
    ),
    "Share cut off": ("train/truncated", "eval/truncated"),
    "Groups without a signal": ("train/dead_groups", "train/all_right", "train/all_wrong"),
    "Entropy, nats a token": ("train/entropy",),
    "KL to the reference": ("train/kl",),
    "Sampler and trainer: KL": ("train/mismatch_kl",),
    "Policy and an older one that sampled: KL": ("train/off_policy_kl",),
    "Share of tokens clipped": (
        "train/clip_fraction",
        "train/clip_fraction_low",
        "train/clip_fraction_high",
    ),
    "Critic: squared error of values": ("train/critic/value_error",),
    "Critic: values and returns": ("train/critic/value_mean", "train/critic/return_mean"),
    "Learning rate": ("train/learning_rate",),
}
"""Metrics by the title of their chart; what a run does not have is left out."""

_FAMILIES = {"train/reward/": "Reward functions", "train/time/": "Seconds of a step, by part"}
_EXTREMES = 5
_LONG_TEXT = 40
"""Characters above which a cell gets a width of its own, and scrolls."""


def render(
    *,
    title: str,
    metrics: Sequence[Row],
    completions: Sequence[Row],
    alarms: Sequence[Row],
    summary: Row,
    config: str,
    max_rows: int,
) -> str:
    """Return the page.

    Args:
        title: Name of the run.
        metrics: Rows of ``metrics.jsonl``.
        completions: Rows of ``completions.jsonl``.
        alarms: Rows of ``alarms.jsonl``.
        summary: What ``summary.json`` holds.
        config: The settings as YAML.
        max_rows: Completions in the table, the last ones.
    """
    begin, end = report_prompts.shared_lines({row["prompt"] for row in completions})
    completions = [
        {**row, "prompt": row["prompt"][len(begin) : len(row["prompt"]) - len(end)]}
        for row in completions
    ]
    body = [
        f"<h1>{html.escape(title)}</h1>",
        _cards(metrics, completions, summary),
        _held_out(summary),
        _alarms(alarms),
        _charts(metrics, [row["step"] for row in alarms]),
        _shared_lines(begin, end),
        _extremes(completions),
        _completions(completions, max_rows),
        _prompts(completions, max_rows),
    ]
    if config:
        body.append(
            f"<details><summary>Settings</summary><pre>{html.escape(config)}</pre></details>"
        )
    # The policy lets the page load nothing at all, whatever a completion says.
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{report_assets.STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main><script>{report_assets.SCRIPT}</script></body></html>\n"
    )


def _cards(metrics: Sequence[Row], completions: Sequence[Row], summary: Row) -> str:
    facts: dict[str, Any] = {"steps": max((row["step"] for row in metrics), default=0)}
    if completions:
        facts["completions"] = len(completions)
    of = f" of {summary['accuracy_function']}" if "accuracy_function" in summary else ""
    facts |= {
        name + (of if "accuracy" in name else ""): value
        for name, value in summary.items()
        if _is_number(value)
    }
    cards = (
        f"<div class=card><b>{_shown(value)}</b>"
        f"<span>{html.escape(name.replace('_', ' '))}</span></div>"
        for name, value in facts.items()
    )
    note = "" if summary else "<p>Not finished: this is what the run has logged until now.</p>"
    return f"{note}<div class=cards>{''.join(cards)}</div>"


def _held_out(summary: Row) -> str:
    """Return what was measured on held-out data, before and after, as a table."""
    measured = {
        name: values
        for name, values in (
            ("before", summary.get("eval_before")),
            ("after", summary.get("eval_after")),
            ("of the average", summary.get("eval_of_average")),
        )
        if isinstance(values, Mapping)
    }
    names = dict.fromkeys(name for values in measured.values() for name in values)
    rows = [
        {"": name, **{column: values.get(name) for column, values in measured.items()}}
        for name in names
    ]
    return f"<h2>Held-out data</h2>{_table(rows, ['', *measured])}" if rows else ""


def _alarms(alarms: Sequence[Row]) -> str:
    if not alarms:
        return "<h2>Alarms</h2><p>None.</p>"
    items = (
        f"<div class=alarm><b>step {row['step']}: {html.escape(row['alarm'])}</b><br>"
        f"{html.escape(row['message'])}</div>"
        for row in alarms
    )
    return f"<h2>Alarms</h2>{''.join(items)}"


def _charts(metrics: Sequence[Row], marks: Sequence[int]) -> str:
    series = _series(metrics)
    charts = []
    used: set[str] = set()
    groups = {title: list(names) for title, names in CHARTS.items()}
    for prefix, title in _FAMILIES.items():
        groups[title] = [name for name in series if name.startswith(prefix)]
    for title, names in groups.items():
        found = {name: series[name] for name in names if name in series}
        used |= set(found)
        charts.append(report_charts.line_chart(title, _shortened(found), marks=marks))
    rest = [
        report_charts.line_chart(name, {name: series[name]}, marks=marks)
        for name in sorted(series)
        if name not in used
    ]
    more = f"<details><summary>All other metrics ({len(rest)})</summary><div class=charts>"
    dashed = "<p>Dashed lines: alarms.</p>" if marks else ""
    return f"<h2>Learning curves</h2>{dashed}<div class=charts>{''.join(charts)}</div>" + (
        f"{more}{''.join(rest)}</div></details>" if rest else ""
    )


def _series(metrics: Sequence[Row]) -> dict[str, report_charts.Series]:
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in metrics:
        for name, value in row.items():
            if name != "step":
                steps, values = found.setdefault(name, ([], []))
                steps.append(row["step"])
                try:
                    values.append(float(value))  # "nan" and "inf" are written as text
                except (TypeError, ValueError, OverflowError) as error:
                    raise ValueError(
                        f"metrics.jsonl, step {row['step']}: {name} is {value!r:.40}, expected a "
                        "number; mend or delete that line"
                    ) from error
    return dict(found)


def _shortened(series: Mapping[str, report_charts.Series]) -> dict[str, report_charts.Series]:
    """Return lines with names as short as they can be: without what all of them begin with."""
    prefixes = {name.rpartition("/")[0] for name in series}
    if len(series) > 1 and len(prefixes) == 1:
        return {name.rpartition("/")[2]: value for name, value in series.items()}
    return dict(series)


def _shared_lines(begin: str, end: str) -> str:
    if not begin and not end:
        return ""
    return (
        "<details><summary>What every prompt begins and ends with, left out below</summary>"
        f"<pre>{html.escape(begin)}…{html.escape(end)}</pre></details>"
    )


def _extremes(completions: Sequence[Row]) -> str:
    """Return the completions that stand out in the last rollout with a signal."""
    if not completions:
        return ""
    completions = [row for row in completions if _is_number(row.get("advantage"))]
    if not completions:
        return ""  # of another program, or from before advantages were logged
    step = next((row["step"] for row in reversed(completions) if row["advantage"] != 0.0), None)
    if step is None:
        return "<h2>What was taught</h2><p>Nothing: every advantage is 0.</p>"
    ranked = sorted(
        (row for row in completions if row["step"] == step), key=lambda row: -row["advantage"]
    )
    best = [row for row in ranked[:_EXTREMES] if row["advantage"] > 0.0]
    worst = [row for row in ranked[::-1][:_EXTREMES] if row["advantage"] < 0.0]
    columns = _columns(completions)
    parts = [f"<h2>What was taught last, at step {step}</h2>"]
    for name, rows in (("Highest advantage", best), ("Lowest advantage", worst)):
        parts.append(f"<h3>{name}</h3>")
        parts.append(_table(rows, columns) if rows else "<p>No completion stands out.</p>")
    return "".join(parts)


def _completions(completions: Sequence[Row], max_rows: int) -> str:
    if not completions:
        return ""
    shown = completions[-max_rows:]
    note = f"{len(shown):,} of {len(completions):,}" if len(shown) < len(completions) else "All"
    return (
        f"<h2>Completions</h2><p>{note}, the latest first; a click on a head sorts.</p>"
        '<input data-for="completions" placeholder="only rows with this text">'
        + _table(shown[::-1], _columns(completions), identity="completions")
    )


def _columns(completions: Sequence[Row]) -> list[str]:
    """Return the columns of a table of completions.

    Rewards of one function are ``reward/NAME``, what the data says of the prompt ``column/NAME``.
    """
    names = dict.fromkeys(name for row in completions for name in _part(row, "rewards"))
    given = dict.fromkeys(name for row in completions for name in _part(row, "columns"))
    columns = ["step", *COMPLETION]
    columns += _logged(completions, "advantage", "log_ratio")
    # Many functions make a table wider than the page: what they add up to stays in sight.
    columns += [f"reward/{name}" for name in names]
    columns += _logged(completions, "num_tokens", "finish_reason", "policy_version")
    return [*columns, *(f"column/{name}" for name in given)]


def _part(row: Row, name: str) -> Row:
    """Return the rewards or the columns of a completion; none if there are none."""
    found = row.get(name)
    return found if isinstance(found, Mapping) else {}


def _logged(completions: Sequence[Row], *names: str) -> list[str]:
    return [name for name in names if any(row.get(name) is not None for row in completions)]


def _prompts(completions: Sequence[Row], max_rows: int) -> str:
    """Return what every prompt has earned over the run."""
    by_prompt: dict[str, list[Row]] = collections.defaultdict(list)
    for row in completions:
        by_prompt[row["prompt"]].append(row)
    if not by_prompt:
        return ""
    rows = [
        {
            "prompt": prompt,
            "completions": len(mine),
            "mean reward": float(np.mean([row["reward"] for row in mine])),
            "first reward": float(
                np.mean([row["reward"] for row in mine if row["step"] == mine[0]["step"]])
            ),
            "last reward": float(
                np.mean([row["reward"] for row in mine if row["step"] == mine[-1]["step"]])
            ),
            "mean tokens": _mean([row.get("num_tokens") for row in mine]),
        }
        for prompt, mine in by_prompt.items()
    ]
    rows.sort(key=lambda row: row["last reward"])
    note = f"{min(max_rows, len(rows)):,} of {len(rows):,} prompts, the hardest first."
    return f"<h2>Prompts</h2><p>{note}</p>{_table(rows[:max_rows], list(rows[0]))}"


def _mean(values: Iterable[Any]) -> float | None:
    numbers = [value for value in values if _is_number(value)]
    return float(np.mean(numbers)) if numbers else None


def _table(rows: Iterable[Row], columns: Sequence[str], identity: str | None = None) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    lines = ("<tr>" + "".join(_cell(row, name) for name in columns) + "</tr>" for row in rows)
    name = "" if identity is None else f' id="{identity}"'
    return (
        f'<div class=scroll><table class="sortable"{name}><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(row: Row, column: str) -> str:
    if column.startswith("reward/"):
        value = _part(row, "rewards").get(column.removeprefix("reward/"))
    elif column.startswith("column/"):
        value = _part(row, "columns").get(column.removeprefix("column/"))
    else:
        value = row.get(column)
    if value is None:
        return "<td class=n>–</td>"
    if not _is_number(value):
        text = html.escape(str(value))
        is_long = column in ("prompt", "completion") or len(text) > _LONG_TEXT
        return f"<td class=t><div>{text}</div></td>" if is_long else f"<td>{text}</td>"
    color = ""
    if column == "advantage" and value != 0.0:
        color = " up" if value > 0.0 else " down"
    return f'<td class="n{color}" data-v="{value}">{_shown(value)}</td>'


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: float) -> str:
    if isinstance(value, int) or (math.isfinite(value) and value == int(value)):
        return f"{int(value):,}"
    return f"{value:,.4g}"
