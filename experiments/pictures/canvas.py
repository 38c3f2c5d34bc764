"""A figure, or what moves in it, as the bytes of a PNG or GIF."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

MAX_COLUMNS = 4
_MOST_LETTERS = 34  # of a line over a panel
_FRAME_MS, _LAST_FRAME_MS = 120, 2500


def panels(
    rows: int, columns: int, width: float, height: float, **options: Any
) -> tuple[Figure, np.ndarray]:
    """Returns a figure and its axes (rows, columns), each panel of a size in inches."""
    size = (width * columns, height * rows)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)


def heading(name: str) -> str:
    """Returns a name in lines that a panel has room for, parted after its colons."""
    lines = [""]
    for part in re.findall(r"[^:]*:?", name):
        if lines[-1] and len(lines[-1] + part) > _MOST_LETTERS:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def gif(figure: Figure, draw: Callable[[int], None], num_frames: int) -> bytes:
    """Returns a film of what `draw` makes of a figure, frame by frame, and closes the figure."""
    canvas = FigureCanvasAgg(figure)
    pictures = []
    for index in range(num_frames):
        draw(index)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        pictures.append(picture.quantize(64, dither=Image.Dither.NONE))
    plt.close(figure)
    return film(pictures)


def film(pictures: Sequence[Image.Image]) -> bytes:
    """Returns a GIF that loops and rests on its last frame."""
    buffer = io.BytesIO()
    durations = [_FRAME_MS] * (len(pictures) - 1) + [_LAST_FRAME_MS]
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0
    )
    return buffer.getvalue()


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG, and closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
