"""Draws the curves that run.py has measured, and prints their table in Markdown.

    python scripts/learning_curves/plot.py [--results FILE] [--picture FILE]

Every panel is one algorithm on one task: the reward of sampled replies in training, mean and
range over seeds, and on held-out questions before and after.
"""

import argparse
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.axes
import matplotlib.figure
import matrix
import numpy as np
import run

Line = dict[str, Any]

PICTURE = run.RESULTS.with_name("curves.png")
WINDOW = 3
"""Rollouts that a point of a curve is the mean of: one has 48 replies and is noisy."""

_INK, _MUTED, _GRID = "#1f2933", "#6b7785", "#e4e7eb"
_TRAIN, _HELD_OUT = "#2b6cb0", "#c05621"


def main() -> None:
    """Draw and print."""
    show(__doc__, run.RESULTS, PICTURE, draw, table)


def show(
    doc: str | None,
    results: pathlib.Path,
    picture: pathlib.Path,
    draw: Callable[[Sequence[Line], pathlib.Path], None],
    table: Callable[[Sequence[Line]], str],
) -> None:
    """Draw the lines of a file and print their table; both paths may be given as arguments."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--results", type=pathlib.Path, default=results)
    parser.add_argument("--picture", type=pathlib.Path, default=picture)
    options = parser.parse_args()
    text = options.results.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    draw(lines, options.picture)
    print(table(lines))


def draw(lines: Sequence[Line], picture: pathlib.Path) -> None:
    """Write the picture, a row of panels per task."""
    figure = matplotlib.figure.Figure(figsize=(15, 7.5), dpi=110, layout="constrained")
    panels = figure.subplots(
        len(matrix.TASKS), len(matrix.ALGORITHMS), sharex=True, sharey=True, squeeze=False
    )
    for row, task in zip(panels, matrix.TASKS, strict=True):
        for axes, algorithm in zip(row, matrix.ALGORITHMS, strict=True):
            _panel(axes, of(lines, task, algorithm))
        row[0].set_ylabel(f"{task}\nreward", color=_INK)
    for axes, algorithm in zip(panels[0], matrix.ALGORITHMS, strict=True):
        axes.set_title(algorithm, loc="left", color=_INK, fontweight="bold")
    for axes in panels[-1]:
        axes.set_xlabel("rollout", color=_MUTED)
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3,
        frameon=False, labelcolor=_INK,
    )  # fmt: skip
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, format="png")


def of(lines: Sequence[Line], task: str, algorithm: str) -> list[Line]:
    """Return the runs of one panel, one per seed."""
    return [line for line in lines if (line["task"], line["algorithm"]) == (task, algorithm)]


def curve(line: Line, key: str = "train_reward") -> np.ndarray:
    """Return the reward in training, averaged over ``WINDOW`` rollouts, fewer at the start."""
    values = np.asarray(line[key], np.float64)
    return np.asarray([values[max(0, i + 1 - WINDOW) : i + 1].mean() for i in range(len(values))])


def table(lines: Sequence[Line]) -> str:
    """Return a Markdown table: mean over seeds, and their range."""
    rows = [
        "| task | algorithm | seeds | sampled reward before | after | times | greedy before "
        "| after | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task in matrix.TASKS:
        for algorithm in matrix.ALGORITHMS:
            mine = of(lines, task, algorithm)
            if not mine:
                continue
            before, after = (_mean(mine, f"reward_{name}") for name in ("before", "after"))
            cells = [
                *(task, algorithm, str(len(mine))),
                _with_range(mine, "reward_before"),
                _with_range(mine, "reward_after"),
                f"{after / before:.1f}" if before else "–",
                f"{_mean(mine, 'greedy_before'):.2f}",
                f"{_mean(mine, 'greedy_after'):.2f}",
                f"{_mean(mine, 'cpu_seconds'):.0f}",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def style(axes: matplotlib.axes.Axes) -> None:
    """Make a panel look like all of them; rewards lie between 0 and 1."""
    axes.grid(visible=True, axis="y", color=_GRID)
    axes.set_axisbelow(True)
    axes.set_ylim(-0.03, 1.03)
    axes.tick_params(colors=_MUTED, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)


def _panel(axes: matplotlib.axes.Axes, lines: Sequence[Line]) -> None:
    style(axes)
    if not lines:
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", color=_MUTED)
        return
    curves = np.stack([curve(line) for line in lines])
    steps = np.arange(1, curves.shape[1] + 1)
    axes.plot(
        steps,
        curves.mean(axis=0),
        color=_TRAIN,
        linewidth=2,
        label="training, sampled: mean and range of seeds",
    )
    axes.fill_between(
        steps, curves.min(axis=0), curves.max(axis=0), color=_TRAIN, alpha=0.2, linewidth=0
    )
    ends = np.asarray([0, steps[-1]])
    held_out = np.asarray([[line["reward_before"], line["reward_after"]] for line in lines])
    mean = held_out.mean(axis=0)
    bars = np.stack([mean - held_out.min(axis=0), held_out.max(axis=0) - mean])
    axes.errorbar(
        ends,
        mean,
        yerr=bars,
        fmt="o",
        color=_HELD_OUT,
        capsize=3,
        label="held out, sampled, before and after",
    )
    count = f"{len(lines)} seed{'s' if len(lines) > 1 else ''}"
    axes.text(0.03, 0.97, count, transform=axes.transAxes, va="top", color=_MUTED, fontsize=8)


def _mean(lines: Sequence[Line], key: str) -> float:
    return float(np.mean([line[key] for line in lines]))


def _with_range(lines: Sequence[Line], key: str) -> str:
    values = [line[key] for line in lines]
    spread = f" ({min(values):.2f}–{max(values):.2f})" if len(values) > 1 else ""
    return f"{_mean(lines, key):.2f}{spread}"


if __name__ == "__main__":
    main()
