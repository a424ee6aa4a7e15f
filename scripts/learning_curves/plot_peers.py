"""Draws the curves that peers.py has measured, and prints their tables in Markdown.

    python scripts/learning_curves/plot_peers.py [--results FILE] [--picture FILE]

Two panels with a curve for every side, mean and range over its seeds: the reward of sampled
replies, and how many of them end by themselves.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib.figure
import numpy as np
import peers
import plot

Line = dict[str, Any]

PICTURE = peers.RESULTS.with_suffix(".png")
UNTRAINED = 2
"""Rollouts of the policy as it was: the learning rate of the first update is 0."""
LAST = 3
"""Rollouts at the end that "at the end" is the mean of."""

PANELS = (
    ("train_reward", "reward of sampled replies"),
    ("train_ended", "share of replies that end by themselves"),
)

COLOURS = ("#2b6cb0", "#c05621", "#2f855a")


def main() -> None:
    """Draw and print."""
    plot.show(__doc__, peers.RESULTS, PICTURE, draw, table)


def by_side(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Return the runs of every side that has any, ours first."""
    found = {side: [line for line in lines if line["side"] == side] for side in peers.SIDES}
    return {side: runs for side, runs in found.items() if runs}


def untrained_counts(lines: Sequence[Line]) -> tuple[int, int]:
    """Return how many replies of the untrained policy were right, and how many there were."""
    right = total = 0
    for line in lines:
        size = line["settings"]["batch_size"] * line["settings"]["num_generations"]
        right += sum(round(reward * size) for reward in line["train_reward"][:UNTRAINED])
        total += size * len(line["train_reward"][:UNTRAINED])
    return right, total


def fisher_p(a: tuple[int, int], b: tuple[int, int]) -> float:
    """Return the two-sided p-value of Fisher's exact test of two (successes, trials).

    The sum of the probabilities of all tables with the same margins that are not likelier than
    this one (Fisher, "The logic of inductive inference", 1935).
    """
    (right_a, total_a), (right_b, total_b) = a, b
    right = right_a + right_b

    def ways(k: int) -> int:
        return math.comb(total_a, k) * math.comb(total_b, right - k)

    every = [ways(k) for k in range(max(0, right - total_b), min(right, total_a) + 1)]
    # Whole numbers, so that equally likely tables compare as equal.
    return sum(one for one in every if one <= ways(right_a)) / sum(every)


def area(line: Line) -> float:
    """Return the mean reward over all rollouts of a run: high where it is learned early."""
    return float(np.mean(line["train_reward"]))


def at_the_end(line: Line, key: str) -> float:
    """Return the mean of a curve over the last rollouts of a run."""
    return float(np.mean(line[key][-LAST:]))


def differences(ours: Sequence[Line], theirs: Sequence[Line]) -> list[float]:
    """Return by how much our area is larger, for every seed that both have run."""
    mine = {line["seed"]: area(line) for line in ours}
    return [mine[line["seed"]] - area(line) for line in theirs if line["seed"] in mine]


def table(lines: Sequence[Line]) -> str:
    """Return a Markdown table: mean over seeds, and their range."""
    sides = by_side(lines)
    ours = sides.get("tunix", [])
    rows = [
        "| side | seeds | right replies, untrained | p | reward, all rollouts | ours minus it, by "
        "seed | reward, last 3 | ended, last 3 | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for side, runs in sides.items():
        right, total = counts = untrained_counts(runs)
        # The same prompts on both sides: only the seeds that both have.
        seeds = {line["seed"] for line in runs}
        same = untrained_counts([line for line in ours if line["seed"] in seeds])
        compared = side != "tunix" and same[1] > 0
        cells = [
            side,
            ", ".join(str(line["seed"]) for line in runs),
            f"{right} of {total}",
            f"{fisher_p(same, counts):.2f}" if compared else "–",
            _with_range([area(line) for line in runs]),
            ", ".join(f"{d:+.2f}" for d in differences(ours, runs)) if compared else "–",
            _with_range([at_the_end(line, "train_reward") for line in runs]),
            _with_range([at_the_end(line, "train_ended") for line in runs]),
            f"{np.mean([line['cpu_seconds'] for line in runs]):.0f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def draw(lines: Sequence[Line], picture: pathlib.Path) -> None:
    """Write the picture: the reward, and what most of it is here, learning to stop."""
    figure = matplotlib.figure.Figure(figsize=(12, 5), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (key, title) in zip(panels, PANELS, strict=True):
        plot.style(axes)
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_xlabel("rollout")
        for (side, runs), colour in zip(by_side(lines).items(), COLOURS, strict=False):
            length = min(len(line[key]) for line in runs)
            curves = np.stack([plot.curve(line, key)[:length] for line in runs])
            steps = np.arange(1, length + 1)
            label = f"{side} ({len(runs)} seed{'s' if len(runs) > 1 else ''})"
            axes.plot(steps, curves.mean(axis=0), color=colour, linewidth=2, label=label)
            low, high = curves.min(axis=0), curves.max(axis=0)
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    panels[0].legend(frameon=False, loc="upper left")
    figure.suptitle(
        f"{peers.TASK}; points: mean of up to {plot.WINDOW} rollouts; bands: range of seeds",
        fontsize=9,
    )
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, format="png")


def _with_range(values: Sequence[float]) -> str:
    spread = f" ({min(values):.2f}–{max(values):.2f})" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


if __name__ == "__main__":
    main()
