"""Every picture of the experiments. Each function draws one figure and returns it as PNG bytes."""

import io
import math
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure


def image_grid(images: np.ndarray) -> bytes:
    """Draws images side by side, as square a grid as possible.

    Args:
      images: (n, h, w, 1 or 3) in [0, 1].

    Returns:
      PNG bytes, every pixel at least 2 x 2.
    """
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    padded = np.zeros((rows * columns, height + 1, width + 1, channels))
    padded[:n, :height, :width] = np.clip(images, 0, 1)
    grid = padded.reshape(rows, columns, height + 1, width + 1, channels)
    picture = grid.transpose(0, 2, 1, 3, 4).reshape(rows * (height + 1), -1, channels)[:-1, :-1]
    zoom = max(2, round(600 / picture.shape[1]))
    picture = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
    buffer = io.BytesIO()
    plt.imsave(buffer, picture[..., 0] if channels == 1 else picture, cmap="gray", vmin=0, vmax=1)
    return buffer.getvalue()


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


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
