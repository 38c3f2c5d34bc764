"""What the runs of a grid of settings have come to, as the bytes of a PNG."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.pictures import canvas

Point = tuple[Mapping[str, Any], Mapping[str, tuple[float, float]]]

_MOST_LINES = 8  # in a panel, each with an entry of its legend
_SPAN = 20  # largest over least value, from which on an axis is logarithmic


def grid(points: Sequence[Point], labels: Mapping[str, str], title: str) -> bytes:
    """Draws a row of panels for each metric: one for each setting, and of two settings a heat map.

    A line of a panel is a combination of the other settings, its bars standard errors; of too many
    combinations a line joins the means, and a band spans the combinations.

    Args:
      points: at least one: settings by name, and mean and standard error by metric; the error is
        nan where there is none.
      labels: name and unit of each metric.
      title: of the figure.

    Returns:
      PNG bytes.
    """
    settings = list(points[0][0])
    is_map = len(settings) == 2
    figure, axes = canvas.panels(len(labels), len(settings) + is_map, 5.0, 3.8)
    figure.suptitle(title)
    for row, (metric, label) in zip(axes, labels.items(), strict=True):
        for panel, setting in zip(row, settings, strict=False):
            _curves(panel, points, metric, setting)
            panel.set(title=f"{metric} over {setting}", xlabel=setting, ylabel=label)
        if is_map:
            _heat_map(figure, row[-1], points, metric, label)
    return canvas.png(figure)


def _curves(axes: Axes, points: Sequence[Point], metric: str, setting: str) -> None:
    """Draws a metric over a setting, a line for each combination of the others."""
    values = _distinct(points, setting)
    places, is_log = _places(values)
    lines: dict[str, dict[Any, tuple[float, float]]] = {}
    for of_point, figures in points:
        others = [f"{name} {_text(x)}" for name, x in of_point.items() if name != setting]
        lines.setdefault(", ".join(others), {})[of_point[setting]] = figures[metric]
    if len(lines) <= _MOST_LINES:
        for label, line in lines.items():
            found = [(places[x], *line[x]) for x in values if x in line]
            x, mean, error = map(np.array, zip(*found, strict=True))
            bars = None if np.isnan(error).all() else np.nan_to_num(error)
            axes.errorbar(x, mean, bars, marker=".", capsize=3, label=label or metric)
        axes.legend(fontsize="small")
    else:
        means = [[line[x][0] for line in lines.values() if x in line] for x in values]
        at = [places[value] for value in values]
        axes.plot(at, [np.mean(of) for of in means], marker=".", label=f"mean of {len(lines)}")
        low, high = [min(of) for of in means], [max(of) for of in means]
        axes.fill_between(at, low, high, alpha=0.2, label="least to largest")
        axes.legend(fontsize="small")
    shown = [figures[metric][0] for _, figures in points]
    if is_log:
        axes.set_xscale("log")
    elif not _are_numbers(values):
        axes.set_xticks([places[value] for value in values], [_text(value) for value in values])
    if _spans(shown):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)


def _heat_map(figure: Figure, axes: Axes, points: Sequence[Point], metric: str, label: str) -> None:
    """Draws the means of a metric over two settings."""
    down, across = points[0][0]
    rows, columns = _distinct(points, down), _distinct(points, across)
    means = np.full((len(rows), len(columns)), math.nan)
    for values, figures in points:
        means[rows.index(values[down]), columns.index(values[across])] = figures[metric][0]
    scale = "log" if _spans(means[np.isfinite(means)]) else "linear"
    image = axes.imshow(means, norm=scale, aspect="auto", origin="lower")
    axes.set_xticks(range(len(columns)), [_text(value) for value in columns])
    axes.set_yticks(range(len(rows)), [_text(value) for value in rows])
    axes.set(title=f"{metric} (blank: no run)", xlabel=across, ylabel=down)
    figure.colorbar(image, ax=axes, label=label)


def _distinct(points: Sequence[Point], setting: str) -> list[Any]:
    """Returns the values of a setting: numbers in order, others as they come."""
    values = list(dict.fromkeys(of_point[setting] for of_point, _ in points))
    return sorted(values) if _are_numbers(values) else values


def _places(values: Sequence[Any]) -> tuple[dict[Hashable, float], bool]:
    """Returns where values stand on an axis, and whether it is logarithmic."""
    if _are_numbers(values):
        return {value: float(value) for value in values}, _spans(values)
    return {value: float(index) for index, value in enumerate(values)}, False


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)


def _spans(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > _SPAN * min(values)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower()
