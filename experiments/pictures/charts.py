"""Curves and histograms as the bytes of a PNG."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.pictures import canvas

_MOST_INSIDE = 6  # curves whose legend fits into a panel
_NUM_COLORS = 10  # of Matplotlib's cycle
_ROUNDING = 1e-5  # relative: what differs by less is drawn as constant


def learning_curves(
    history: Sequence[Mapping[str, float]], reference: Mapping[str, float] = MappingProxyType({})
) -> bytes:
    """Draws every metric over the steps, one panel a metric.

    Args:
      history: records with a "step" and metrics by name; a record need not hold them all.
      reference: values of real data by metric, drawn as a dashed line.

    Returns:
      PNG bytes.
    """
    names = list(dict.fromkeys(name for record in history for name in record if name != "step"))
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure, grid = canvas.panels(rows, columns, 4.5, 3.2)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(grid.flat, names, strict=False):
        steps, values = zip(*[(r["step"], r[name]) for r in history if name in r], strict=True)
        axes.plot(steps, values, marker="." if len(steps) < 40 else None)
        positive = [value for value in values if value > 0]
        if len(positive) == len(values) and max(positive) > 20 * min(positive):
            axes.set_yscale("log")
        largest = max(map(abs, values))
        if 0 < max(values) - min(values) < _ROUNDING * largest:  # never of infinities
            axes.set_ylim(values[0] - 0.1 * largest, values[0] + 0.1 * largest)
        _draw_floor(axes, reference.get(name))
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
    _draw_legend(figure, grid, columns)
    return canvas.png(figure)


def comparison(
    curves: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    seconds_per_step: Mapping[str, float],
    reference: Mapping[str, float],
    title: str,
) -> bytes:
    """Draws each metric of several methods, over steps above and over training time below.

    Args:
      curves: by metric and method, steps (t,) and values (seeds, t); a line joins the means and a
        band spans the seeds.
      seconds_per_step: by method.
      reference: values of real data by metric, drawn as a dashed line.
      title: title of the figure.

    Returns:
      PNG bytes.
    """
    figure, grid = canvas.panels(2, len(curves), 4.2, 3.25)
    figure.suptitle(title)
    for column, (metric, methods) in zip(grid.T, curves.items(), strict=True):
        for method, (steps, values) in methods.items():
            for axes, x in zip(column, (steps, steps * seconds_per_step[method]), strict=True):
                (line,) = axes.plot(x, values.mean(axis=0), marker=".", label=method)
                low, high = values.min(axis=0), values.max(axis=0)
                axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2)
        for axes, label in zip(column, ("step", "training time (s)"), strict=True):
            _draw_floor(axes, reference.get(metric))
            axes.set(title=metric, xlabel=label)
            axes.grid(alpha=0.3)
    _draw_legend(figure, grid, 2 * len(curves))
    return canvas.png(figure)


def _draw_floor(axes: Axes, value: float | None) -> None:
    """Draws what real samples have across a panel, where it is known."""
    if value is not None:
        axes.axhline(value, color="0.4", linestyle="--", label="real samples")


def _draw_legend(figure: Figure, grid: np.ndarray, most_columns: int) -> None:
    """Draws one legend for all panels, below them; none where nothing has a label."""
    named = [axes.get_legend_handles_labels() for axes in grid.flat]
    entries = {label: handle for panel in named for handle, label in zip(*panel, strict=True)}
    if entries:
        columns = min(len(entries), most_columns)
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)


class CurvePanel(NamedTuple):
    """One quantity of several runs.

    Attributes:
      title: what is drawn, with its unit.
      xlabel: the abscissa.
      curves: by label, abscissae (t,) and values (runs, t): a line joins the means, a band spans
        the runs.
      references: values by label, drawn as dashed lines across; in the colour of the curve of the
        same label, else in grey.
      xscale: of the abscissa.
      yscale: of the values.
    """

    title: str
    xlabel: str
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    references: Mapping[str, float]
    xscale: str = "linear"
    yscale: str = "linear"


def curve_panels(rows: Sequence[Sequence[CurvePanel]]) -> bytes:
    """Draws rows of panels.

    Args:
      rows: at least one, equally long.

    Returns:
      PNG bytes.
    """
    figure, grid = canvas.panels(len(rows), len(rows[0]), 5.5, 4.2)
    drawn = [panel for row in rows for panel in row]
    for axes, panel in zip(grid.flat, drawn, strict=True):
        colors = {}
        for index, (label, (x, values)) in enumerate(panel.curves.items()):
            style = "-" if index < _NUM_COLORS else "-."
            (line,) = axes.plot(x, values.mean(axis=0), style, marker=".", label=label)
            axes.fill_between(
                x, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2
            )
            colors[label] = line.get_color()
        for index, (label, value) in enumerate(panel.references.items()):
            style = ("--", ":", "-.")[0 if label in colors else index % 3]
            axes.axhline(
                value,
                color=colors.get(label, "0.4"),
                linestyle=style,
                label=None if label in colors else label,
            )
        axes.set(title=panel.title, xlabel=panel.xlabel, xscale=panel.xscale, yscale=panel.yscale)
        axes.grid(alpha=0.3)
        outside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
        axes.legend(fontsize="small", **(outside if len(panel.curves) > _MOST_INSIDE else {}))
    return canvas.png(figure)


def histograms(
    rows: Sequence[Mapping[str, tuple[np.ndarray, Mapping[str, Callable[..., np.ndarray]]]]],
    xlabel: str,
    limit: float,
) -> bytes:
    """Draws rows of histograms with densities over them, on a logarithmic scale.

    Args:
      rows: by title, values (k,) and densities by label, functions of x (t,); equally long.
      xlabel: the abscissa.
      limit: the abscissae run from -limit to limit; the title tells the share beyond.

    Returns:
      PNG bytes.
    """
    figure, grid = canvas.panels(len(rows), len(rows[0]), 4.6, 3.2)
    x = np.linspace(-limit, limit, 601)
    drawn = [panel for row in rows for panel in row.items()]
    for axes, (title, (values, densities)) in zip(grid.flat, drawn, strict=True):
        counts, edges = np.histogram(values, bins=121, range=(-limit, limit))
        heights = counts / (len(values) * np.diff(edges))
        axes.stairs(heights, edges, fill=True, color="0.8")
        for label, density in densities.items():
            axes.plot(x, density(x), label=label)
        lowest = heights[heights > 0].min(initial=1)
        beyond = np.mean(np.abs(values) > limit)
        axes.set(
            title=f"{title}; {beyond:.1%} beyond",
            xlabel=xlabel,
            yscale="log",
            ylim=(lowest / 3, 3 * heights.max(initial=lowest)),
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return canvas.png(figure)
