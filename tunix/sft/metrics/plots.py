"""Curves of a run as a picture."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

Series = tuple[Sequence[float], Sequence[float]]
"""Steps and the values at them."""

_INK, _MUTED, _GRID = "#1f2933", "#6b7785", "#e4e7eb"
_COLORS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b7791f")


def smoothed(values: Sequence[float], *, window: int) -> Float[np.ndarray, " N"]:
    """Return a centred moving average; near the ends the window shrinks to stay centred.

    Values that are not finite count neither in the sums nor in the weights.
    """
    x = np.asarray(values, np.float64)
    finite = np.isfinite(x)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, x, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(x))
    half = np.minimum(window // 2, np.minimum(index, len(x) - 1 - index))
    low, high = index - half, index + half + 1
    weight = counts[high] - counts[low]
    return np.where(weight > 0, (sums[high] - sums[low]) / np.maximum(weight, 1), np.nan)


def save_curves(
    path: str | os.PathLike[str],
    series: Mapping[str, Series],
    *,
    title: str,
    ylabel: str,
    xlabel: str = "optimizer step",
    window: int | None = None,
) -> None:
    """Draw one curve per series, pale as measured and strong as smoothed, into a PNG.

    Args:
        path: The file.
        series: Curves by name; the names are the legend where there are several.
        title: Above the picture.
        ylabel: What the values are.
        xlabel: What the steps are.
        window: Points to average over; by default a tenth of each series.

    Raises:
        ValueError: If there is nothing to draw.
        ImportError: If ``matplotlib`` is not installed.
    """
    if not any(len(steps) for steps, _ in series.values()):
        raise ValueError(f"nothing to plot in {path}: all series are empty")
    # Imported here: it is slow, and an extra. No pyplot: it has global state.
    try:
        from matplotlib import figure as figure_lib
    except ImportError as error:
        raise ImportError(
            "drawing needs the package matplotlib: pip install 'tunix[plots]'"
        ) from error

    figure = figure_lib.Figure(figsize=(8, 4.5), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    for i, (name, (steps, values)) in enumerate(series.items()):
        color = _COLORS[i % len(_COLORS)]
        points = max(1, len(values) // 10) if window is None else window
        if len(values) < 3:  # a line would tell of what happened in between
            axes.plot(steps, values, "o", color=color, markersize=7, label=name)
            continue
        axes.plot(steps, values, color=color, alpha=0.3, linewidth=1)
        axes.plot(steps, smoothed(values, window=points), color=color, linewidth=2.2, label=name)
    axes.set_title(_plain(title), loc="left", color=_INK, fontsize=13, fontweight="bold", pad=12)
    axes.set_xlabel(xlabel, color=_MUTED)
    axes.set_ylabel(ylabel, color=_MUTED)
    axes.grid(visible=True, axis="y", color=_GRID)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, length=0)
    axes.margins(x=0.02)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    if len(series) > 1:
        axes.legend(frameon=False, labelcolor=_INK)
    figure.savefig(path, format="png")


def _plain(text: str) -> str:
    """Return text that matplotlib shows as it is; between dollar signs it would read formulas."""
    return text.replace("$", r"\$")
