"""Pictures of several runs side by side. Each function returns PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure


class Panel(NamedTuple):
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


def panels(rows: Sequence[Sequence[Panel]]) -> bytes:
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
        for label, (x, values) in panel.curves.items():
            (line,) = axes.plot(x, values.mean(axis=0), marker=".", label=label)
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


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
