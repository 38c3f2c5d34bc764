"""Pictures of the experiments. Each function returns the bytes of one PNG or GIF."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from PIL import Image

_LEVELS = (0.003, 0.03, 0.1, 0.25, 0.45, 0.7, 1.001)  # of a density over its maximum
_MAX_COLUMNS = 4
_MOST_INSIDE = 6  # curves whose legend fits into a panel
_NUM_COLORS = 10  # of Matplotlib's cycle
_FRAME_MS, _LAST_FRAME_MS = 120, 2500


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


def image_grid(images: np.ndarray) -> bytes:
    """Draws images side by side, as square a grid as possible.

    Args:
      images: (n, h, w, 1 or 3) in [0, 1].

    Returns:
      PNG bytes, every pixel at least 2 x 2.
    """
    picture = _mosaic(images, math.ceil(math.sqrt(len(images))))
    buffer = io.BytesIO()
    gray = picture.shape[-1] == 1
    plt.imsave(buffer, picture[..., 0] if gray else picture, cmap="gray", vmin=0, vmax=1)
    return buffer.getvalue()


def image_film(frames: np.ndarray, columns: int) -> bytes:
    """Draws images that change, side by side.

    Args:
      frames: (t, n, h, w, 1 or 3) in [0, 1].
      columns: images in a row.

    Returns:
      Bytes of a GIF that loops and rests on its last frame.
    """
    pictures = []
    for images in frames:
        picture = np.round(255 * _mosaic(images, columns)).astype(np.uint8)
        pictures.append(Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture))
    return _film(pictures)


def _mosaic(images: np.ndarray, columns: int) -> np.ndarray:
    """Returns one picture of images in rows, every pixel at least 2 x 2."""
    n, height, width, channels = images.shape
    rows = math.ceil(n / columns)
    padded = np.zeros((rows * columns, height + 1, width + 1, channels))
    padded[:n, :height, :width] = np.clip(images, 0, 1)
    grid = padded.reshape(rows, columns, height + 1, width + 1, channels)
    picture = grid.transpose(0, 2, 1, 3, 4).reshape(rows * (height + 1), -1, channels)[:-1, :-1]
    zoom = max(2, round(600 / picture.shape[1]))
    return picture.repeat(zoom, axis=0).repeat(zoom, axis=1)


def points(samples: np.ndarray, data: np.ndarray, title: str) -> bytes:
    """Draws generated points over real ones, in their first two coordinates.

    Args:
      samples: (n, d), d >= 2.
      data: (m, d).
      title: title of the figure.

    Returns:
      PNG bytes.
    """
    figure, axes = plt.subplots(figsize=(6, 6), layout="constrained")
    axes.scatter(data[:, 0], data[:, 1], s=4, color="0.75", label="data")
    axes.scatter(samples[:, 0], samples[:, 1], s=4, color="C0", label="generated")
    low, high = data[:, :2].min(axis=0), data[:, :2].max(axis=0)
    margin = 0.15 * (high - low)
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
    axes.set(title=title, xlabel="$x_1$", ylabel="$x_2$")
    axes.legend(loc="upper right", markerscale=3)
    return _png(figure)


def sample_panels(samples: Mapping[str, np.ndarray], backdrop: Backdrop) -> bytes:
    """Draws sets of points side by side, each over the same density.

    Args:
      samples: (n, 2) by title.
      backdrop: the density.

    Returns:
      PNG bytes.
    """
    figure, _ = _panels(samples, backdrop, 3.6)
    return _png(figure)


def density_panels(densities: Mapping[str, Backdrop], samples: np.ndarray) -> bytes:
    """Draws densities side by side, each under the same points.

    Args:
      densities: by title.
      samples: (n, 2).

    Returns:
      PNG bytes.
    """
    columns = min(len(densities), _MAX_COLUMNS)
    rows = math.ceil(len(densities) / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 4 * rows), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(densities) :]:
        axes.set_visible(False)
    for axes, (title, backdrop) in zip(grid.flat, densities.items(), strict=False):
        _draw_backdrop(axes, backdrop)
        axes.scatter(*samples.T, s=2, color="C3", alpha=0.5, linewidths=0)
        (x, y), (xlabel, ylabel) = backdrop.bounds, backdrop.labels
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=x, ylim=y)
    return _png(figure)


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

    return _gif(figure, draw, len(steps))


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

    return _gif(figure, draw, len(frames))


def _gif(figure: Figure, draw: Callable[[int], None], num_frames: int) -> bytes:
    """Returns a film of what `draw` makes of the figure, frame by frame."""
    canvas = FigureCanvasAgg(figure)
    pictures = []
    for index in range(num_frames):
        draw(index)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        pictures.append(picture.quantize(64, dither=Image.Dither.NONE))
    plt.close(figure)
    return _film(pictures)


def _film(pictures: Sequence[Image.Image]) -> bytes:
    """Returns a GIF that loops and rests on its last frame."""
    buffer = io.BytesIO()
    durations = [_FRAME_MS] * (len(pictures) - 1) + [_LAST_FRAME_MS]
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0
    )
    return buffer.getvalue()


def _panels(
    samples: Mapping[str, np.ndarray], backdrop: Backdrop, size: float
) -> tuple[Figure, list[PathCollection]]:
    columns = min(len(samples), _MAX_COLUMNS)
    rows = math.ceil(len(samples) / columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(size * columns, (size + 0.4) * rows),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
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
            title=title, xlabel=backdrop.labels[0], xlim=backdrop.bounds[0], ylim=backdrop.bounds[1]
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


def learning_curves(history: Sequence[Mapping[str, float]]) -> bytes:
    """Draws every metric over the steps, one panel a metric.

    Args:
      history: records with a "step" and metrics by name; a record need not hold them all.

    Returns:
      PNG bytes.
    """
    names = list(dict.fromkeys(name for record in history for name in record if name != "step"))
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(4.5 * columns, 3.2 * rows), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(grid.flat, names, strict=False):
        steps, values = zip(*[(r["step"], r[name]) for r in history if name in r], strict=True)
        axes.plot(steps, values, marker="." if len(steps) < 40 else None)
        positive = [value for value in values if value > 0]
        if len(positive) == len(values) and max(positive) > 20 * min(positive):
            axes.set_yscale("log")
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
    return _png(figure)


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
    figure, grid = plt.subplots(
        2, len(curves), figsize=(4.2 * len(curves), 6.5), squeeze=False, layout="constrained"
    )
    figure.suptitle(title)
    for column, (metric, methods) in zip(grid.T, curves.items(), strict=True):
        for method, (steps, values) in methods.items():
            for axes, x in zip(column, (steps, steps * seconds_per_step[method]), strict=True):
                (line,) = axes.plot(x, values.mean(axis=0), marker=".", label=method)
                low, high = values.min(axis=0), values.max(axis=0)
                axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2)
        for axes, label in zip(column, ("step", "training time (s)"), strict=True):
            if metric in reference:
                axes.axhline(reference[metric], color="0.4", linestyle="--", label="real images")
            axes.set(title=metric, xlabel=label)
            axes.grid(alpha=0.3)
    grid[0, 0].legend()
    return _png(figure)


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
    figure, grid = plt.subplots(
        len(rows),
        len(rows[0]),
        figsize=(5.5 * len(rows[0]), 4.2 * len(rows)),
        squeeze=False,
        layout="constrained",
    )
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
    return _png(figure)


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
    figure, grid = plt.subplots(
        len(rows),
        len(rows[0]),
        figsize=(4.6 * len(rows[0]), 3.2 * len(rows)),
        squeeze=False,
        layout="constrained",
    )
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
    return _png(figure)


def image_rows(rows: Mapping[str, np.ndarray]) -> bytes:
    """Draws a labelled row of images for every name.

    Args:
      rows: images (n, h, w, c) in [0, 1] by label; values outside are clipped.

    Returns:
      PNG bytes.
    """
    figure, grid = plt.subplots(
        len(rows), 1, figsize=(9, 0.85 * len(rows)), squeeze=False, layout="constrained"
    )
    for axes, (label, images) in zip(grid[:, 0], rows.items(), strict=True):
        strip = np.concatenate(list(np.clip(images, 0, 1)), axis=1)
        axes.imshow(strip[..., 0] if strip.shape[-1] == 1 else strip, cmap="gray", vmin=0, vmax=1)
        axes.set_ylabel(label, rotation=0, horizontalalignment="right", verticalalignment="center")
        axes.set(xticks=[], yticks=[])
    return _png(figure)


def class_grids(sets: Mapping[str, np.ndarray]) -> bytes:
    """Draws sets of images side by side, a line for each class.

    Args:
      sets: images (classes, k, h, w, c) in [0, 1] by title.

    Returns:
      PNG bytes.
    """
    columns = min(len(sets), _MAX_COLUMNS)
    rows = math.ceil(len(sets) / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 3.9 * rows), squeeze=False, layout="constrained"
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (title, lines) in zip(grid.flat, sets.items(), strict=False):
        apart = np.pad(lines, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)))
        picture = np.concatenate([np.concatenate(list(line), axis=1) for line in apart])
        picture = picture[..., 0] if picture.shape[-1] == 1 else picture
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axes.set_title(title)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
