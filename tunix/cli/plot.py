"""The picture of a run: rewards and replies over its steps."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

WINDOW = 5
"""Steps of the running mean that is drawn over the noisy single steps."""


def plot_run(
    path: pathlib.Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
) -> None:
    """Write a PNG.

    Args:
        path: Where to.
        rows: Metrics of every step, see ``report.read_metrics``.
        title: Above the picture.
        before: Measurement of the untrained model; its sampled reward is drawn at step 0.
        after: The same of the trained model, at the last step.
    """
    # Without pyplot: it would pick a window system, and keep figures for ever.
    from matplotlib.backends import backend_agg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    backend_agg.FigureCanvasAgg(figure)
    panels = figure.subplots(3, 1, sharex=True, height_ratios=[2, 1, 1])
    steps = np.array([row["step"] for row in rows])
    names = {
        "train/reward": "reward",
        "train/completion_length": "tokens of a reply",
        "train/truncated": "replies cut off",
    }
    for axes, (key, label) in zip(panels, names.items(), strict=True):
        values = np.array([float(row[key]) for row in rows])
        axes.plot(steps, values, color="tab:blue", alpha=0.35, linewidth=1)
        axes.plot(steps, running_mean(values, WINDOW), color="tab:blue", label=f"mean of {WINDOW}")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    if before is not None and after is not None:
        ends = ([0, steps[-1]], [before["reward"], after["reward"]])
        panels[0].plot(*ends, "o", color="tab:orange", label="held out, sampled")
        ends = ([0, steps[-1]], [before["greedy_accuracy"], after["greedy_accuracy"]])
        panels[0].plot(*ends, "s", color="tab:green", label="held out, greedy accuracy")
    panels[0].legend(loc="best")
    panels[0].set_title(title)
    panels[-1].set_xlabel("step")
    figure.savefig(path, dpi=120)


def running_mean(values: Float[np.ndarray, " T"], window: int) -> Float[np.ndarray, " T"]:
    """Return the mean of each value and up to ``window - 1`` before it."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
