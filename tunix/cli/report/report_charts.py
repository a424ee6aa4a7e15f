"""Line charts as SVG, drawn by hand: no script, no picture, nothing to fetch."""

import html
import math
from collections.abc import Mapping, Sequence

Series = tuple[Sequence[float], Sequence[float]]
"""Steps and values."""

WIDTH, HEIGHT = 460, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 10, 10, 26
COLORS = ("#2563b8", "#d9822b", "#1a7f4b", "#b3352b", "#7a4fb5", "#4a8a9a")
"""Of the lines in turn; classes ``c0`` to ``c5`` of the style sheet, which has others for dark
screens. They are attributes too, for viewers that style no pictures."""


def line_chart(title: str, series: Mapping[str, Series], *, marks: Sequence[float] = ()) -> str:
    """Return a figure with one line per series; values that are not finite are gaps.

    Args:
        title: Above the chart.
        series: Lines by name.
        marks: Steps with a vertical line: those of alarms.
    """
    points = [(x, y) for xs, ys in series.values() for x, y in zip(xs, ys, strict=True)]
    points = [point for point in points if math.isfinite(point[1])]
    if not points:
        return ""
    xs, ys = zip(*points, strict=True)
    x_range, y_range = _padded(min(xs), max(xs), 0.0), _padded(min(ys), max(ys), 0.05)
    parts = [*_axes(x_range, y_range)]
    for mark in marks:
        x = _x(mark, x_range)
        parts.append(
            f'<line class="mark" stroke="#b3352b" x1="{x:.1f}" x2="{x:.1f}" '
            f'y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
        )
    legend = []
    for number, (name, (steps, values)) in enumerate(series.items()):
        color = f"c{number % len(COLORS)}"
        paint = COLORS[number % len(COLORS)]
        for run in _finite_runs(steps, values):
            path = " ".join(f"{_x(x, x_range):.1f},{_y(y, y_range):.1f}" for x, y in run)
            parts.append(
                f'<polyline class="{color}" fill="none" stroke="{paint}" points="{path}"/>'
            )
            if len(run) == 1:
                x, y = _x(run[0][0], x_range), _y(run[0][1], y_range)
                parts.append(
                    f'<circle class="{color}" fill="{paint}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'
                )
        last = f"{values[-1]:.4g}" if len(values) else ""
        legend.append(f'<span class="{color}">{html.escape(name)} <b>{last}</b></span>')
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        f"{''.join(parts)}</svg><div class=legend>{''.join(legend)}</div></figure>"
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers between two others."""
    raw = (high - low) / max(count - 1, 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    found = []
    while first * step <= high + 1e-9 * step:
        found.append(first * step)
        first += 1
    return found


def _axes(x_range: tuple[float, float], y_range: tuple[float, float]) -> list[str]:
    parts = []
    for value in ticks(*y_range):
        y = _y(value, y_range)
        parts.append(
            f'<line class="grid" stroke="#dfe4ea" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{value:.4g}</text>'
        )
    for value in ticks(*x_range):
        if value == int(value):
            x = _x(value, x_range)
            parts.append(
                f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{value:.6g}</text>'
            )
    return parts


def _finite_runs(
    steps: Sequence[float], values: Sequence[float]
) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for point in zip(steps, values, strict=True):
        if math.isfinite(point[1]):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    if low == high:
        size = abs(low) * 0.1 or 1.0
        return low - size, high + size
    return low - share * (high - low), high + share * (high - low)


def _x(value: float, limits: tuple[float, float]) -> float:
    share = (value - limits[0]) / (limits[1] - limits[0])
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _y(value: float, limits: tuple[float, float]) -> float:
    share = (value - limits[0]) / (limits[1] - limits[0])
    return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)
