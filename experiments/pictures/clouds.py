"""Samples in the plane, and films of them, as the bytes of a PNG or GIF."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from experiments.pictures import canvas

_BINS = 60
_MARGIN = 0.15  # around the data, of their width
_LEVELS = (0.003, 0.03, 0.1, 0.25, 0.45, 0.7, 1.001)  # of a density over its maximum


class Backdrop(NamedTuple):
    """What samples in the plane are drawn over: a density on a grid, or draws of it.

    Attributes:
      bounds: ((low, high), (low, high)) of the axes.
      labels: of the two axes.
      log_density: (rows, columns), rows from low to high x_2; None where draws stand in for it.
      draws: (m, 2), or None.
      energy: (rows, columns) like the log density, drawn as contours; None: none are.
    """

    bounds: tuple[tuple[float, float], tuple[float, float]]
    labels: tuple[str, str]
    log_density: np.ndarray | None = None
    draws: np.ndarray | None = None
    energy: np.ndarray | None = None


class FieldFrame(NamedTuple):
    """Samples in the plane, and the directions of a field.

    Attributes:
      samples: (n, 2).
      points: where the field is drawn; shape (k, 2).
      arrows: the field there, in any unit; shape (k, 2).
    """

    samples: np.ndarray
    points: np.ndarray
    arrows: np.ndarray


def points(samples: np.ndarray, data: np.ndarray, title: str) -> bytes:
    """Draws generated points over real ones, in their first two coordinates.

    Args:
      samples: (n, d); of d = 1, histograms are drawn.
      data: (m, d).
      title: title of the figure.

    Returns:
      PNG bytes.
    """
    if data.shape[1] == 1:
        return on_a_line({title: samples}, data)
    figure, axes = plt.subplots(figsize=(6, 6), layout="constrained")
    axes.scatter(data[:, 0], data[:, 1], s=4, color="0.75", label="data")
    axes.scatter(samples[:, 0], samples[:, 1], s=4, color="C0", label="generated")
    x, y = bounds(data)
    axes.set(title=title, xlabel="$x_1$", ylabel="$x_2$", xlim=x, ylim=y)
    axes.legend(loc="upper right", markerscale=3)
    return canvas.png(figure)


def on_a_line(samples: Mapping[str, np.ndarray], data: np.ndarray) -> bytes:
    """Draws histograms of sets of numbers side by side, each over that of the data.

    Args:
      samples: (n, 1) by title; what lies beyond the data's bounds is not drawn.
      data: (m, 1).

    Returns:
      PNG bytes.
    """
    figure, grid = canvas.panels(1, len(samples), 4.6, 3.6)
    limits = _ends(data)
    edges = np.linspace(*limits, _BINS + 1)
    for axes, (title, points) in zip(grid.flat, samples.items(), strict=True):
        for values, label, color in ((data, "data", "0.75"), (points, "generated", "C0")):
            counts, _ = np.histogram(values, edges)
            heights = counts / (len(values) * np.diff(edges))
            axes.stairs(heights, edges, fill=label == "data", color=color, label=label)
        axes.set(title=title, xlabel="$x_1$", ylabel="density", xlim=limits)
        axes.legend(loc="upper right")
    return canvas.png(figure)


def bounds(data: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns the (low, high) of two axes that hold the first two coordinates of data (n, d)."""
    return _ends(data[:, 0]), _ends(data[:, 1])


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Returns the ends of an axis that holds values with a margin, also where they are all one."""
    low, high = float(values.min()), float(values.max())
    margin = _MARGIN * (high - low) if high > low else max(1.0, abs(high))
    return low - margin, high + margin


def sample_panels(samples: Mapping[str, np.ndarray], backdrop: Backdrop) -> bytes:
    """Draws sets of points side by side, each over the same density.

    Args:
      samples: (n, 2) by title.
      backdrop: the density.

    Returns:
      PNG bytes.
    """
    figure, _ = _panels(samples, backdrop, 3.6)
    return canvas.png(figure)


def density_panels(densities: Mapping[str, Backdrop], samples: np.ndarray) -> bytes:
    """Draws densities side by side, each under the same points.

    Args:
      densities: by title.
      samples: (n, 2).

    Returns:
      PNG bytes.
    """
    columns = min(len(densities), canvas.MAX_COLUMNS)
    rows = math.ceil(len(densities) / columns)
    figure, grid = canvas.panels(rows, columns, 3.6, 4)
    for axes in grid.flat[len(densities) :]:
        axes.set_visible(False)
    for axes, (title, backdrop) in zip(grid.flat, densities.items(), strict=False):
        _draw_backdrop(axes, backdrop)
        axes.scatter(*samples.T, s=2, color="C3", alpha=0.5, linewidths=0)
        (x, y), (xlabel, ylabel) = backdrop.bounds, backdrop.labels
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=x, ylim=y)
    return canvas.png(figure)


def evolution(frames: Mapping[str, np.ndarray], steps: Sequence[int], backdrop: Backdrop) -> bytes:
    """Draws sets of points that move, side by side, each over the same density.

    Args:
      frames: (t, n, 2) by title.
      steps: the t steps that the frames belong to.
      backdrop: the density.

    Returns:
      Bytes of a GIF that loops and rests on its last frame.
    """
    figure, clouds = _panels({name: moving[0] for name, moving in frames.items()}, backdrop, 2.6)

    def draw(index: int) -> None:
        for cloud, moving in zip(clouds, frames.values(), strict=True):
            cloud.set_offsets(moving[index])
        figure.suptitle(f"step {steps[index]}", x=0.01, horizontalalignment="left", size="medium")

    return canvas.gif(figure, draw, len(steps))


def field_evolution(
    frames: Sequence[FieldFrame], steps: Sequence[int], backdrop: Backdrop, title: str
) -> bytes:
    """Draws samples that move over a density, and beside them the field that moves them.

    Args:
      frames: equally many samples and arrows in each.
      steps: the steps that the frames belong to.
      backdrop: the density.
      title: of the samples.

    Returns:
      Bytes of a GIF as :func:`evolution`'s. In each frame, an arrow of the median length is a 25th
      of the axes long, and longer ones are cut there; the title over the field gives the root of
      the mean squared length.
    """
    figure, grid = plt.subplots(1, 2, figsize=(8.6, 4.6), sharey=True, layout="constrained")
    for axes in grid:
        _draw_backdrop(axes, backdrop)
        axes.set(xlabel=backdrop.labels[0], xlim=backdrop.bounds[0], ylim=backdrop.bounds[1])
    grid[0].set_ylabel(backdrop.labels[1])
    first = frames[0]
    cloud = grid[0].scatter(*first.samples.T, s=5, color="C3", alpha=0.7, linewidths=0)
    longest = (backdrop.bounds[0][1] - backdrop.bounds[0][0]) / 25
    field = grid[1].quiver(
        *first.points.T,
        *np.zeros_like(first.arrows.T),
        angles="xy",
        scale_units="xy",
        scale=1 / longest,
        width=0.003,
        color="C3",
    )

    def draw(index: int) -> None:
        samples, points, arrows = frames[index]
        cloud.set_offsets(samples)
        lengths = np.linalg.norm(arrows, axis=1, keepdims=True)
        unit = max(float(np.median(lengths)), float(np.finfo(np.float32).tiny))
        field.set_offsets(points)
        field.set_UVC(*(arrows / np.maximum(lengths, unit)).T)
        grid[0].set_title(f"{title}, step {steps[index]}")
        grid[1].set_title(f"field, rms {np.sqrt(np.mean(lengths**2)):.2g}")

    return canvas.gif(figure, draw, len(frames))


def _panels(
    samples: Mapping[str, np.ndarray], backdrop: Backdrop, size: float
) -> tuple[Figure, list[PathCollection]]:
    columns = min(len(samples), canvas.MAX_COLUMNS)
    rows = math.ceil(len(samples) / columns)
    figure, grid = canvas.panels(rows, columns, size, size + 0.4, sharey=True)
    for axes in grid.flat[len(samples) :]:
        axes.set_visible(False)
    clouds = []
    for axes, (title, points) in zip(grid.flat, samples.items(), strict=False):
        _draw_backdrop(axes, backdrop)
        clouds.append(
            axes.scatter(
                points[:, 0], points[:, 1], s=2 * size, color="C3", alpha=0.7, linewidths=0
            )
        )
        axes.set(
            title=canvas.heading(title),
            xlabel=backdrop.labels[0],
            xlim=backdrop.bounds[0],
            ylim=backdrop.bounds[1],
        )
    for axes in grid[:, 0]:
        axes.set_ylabel(backdrop.labels[1])
    return figure, clouds


def _draw_backdrop(axes: Axes, backdrop: Backdrop) -> None:
    if backdrop.draws is not None:
        axes.scatter(
            backdrop.draws[:, 0], backdrop.draws[:, 1], s=3, color="C0", alpha=0.3, linewidths=0
        )
    if backdrop.log_density is not None:
        relative = np.exp(backdrop.log_density - backdrop.log_density.max())
        x, y = _grid_axes(backdrop, relative)
        axes.contourf(x, y, relative, levels=_LEVELS, cmap="Blues", alpha=0.5)
    if backdrop.energy is not None:
        x, y = _grid_axes(backdrop, backdrop.energy)
        lines = axes.contour(x, y, backdrop.energy, levels=10, cmap="viridis", linewidths=0.8)
        axes.clabel(lines, fontsize=5)


def _grid_axes(backdrop: Backdrop, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the coordinates of the columns and of the rows of values on a grid."""
    (left, right), (bottom, top) = backdrop.bounds
    rows, columns = values.shape
    return np.linspace(left, right, columns), np.linspace(bottom, top, rows)
