"""Images side by side, and films of them, as the bytes of a PNG or GIF."""

import io
import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from experiments.pictures import canvas


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


def tiles(picture: bytes, shape: tuple[int, ...], columns: int) -> np.ndarray:
    """Returns the images that :func:`image_grid` drew, and black ones to fill its last row.

    Args:
      picture: PNG bytes that it returned.
      shape: (h, w, 1 or 3) of an image.
      columns: images in a row.

    Returns:
      (n, h, w, c) in [0, 1], to 8 bits.
    """
    height, width, channels = shape
    drawn = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))[..., :channels] / 255
    zoom = drawn.shape[1] // (columns * (width + 1) - 1)
    small = np.pad(drawn[::zoom, ::zoom], ((0, 1), (0, 1), (0, 0)))
    cut = small.reshape(-1, height + 1, columns, width + 1, channels)
    return cut.transpose(0, 2, 1, 3, 4)[:, :, :-1, :-1].reshape(-1, *shape)


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
    return canvas.film(pictures)


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


def image_rows(rows: Mapping[str, np.ndarray]) -> bytes:
    """Draws a labelled row of images for every name.

    Args:
      rows: images (n, h, w, c) in [0, 1] by label; values outside are clipped.

    Returns:
      PNG bytes.
    """
    figure, grid = canvas.panels(len(rows), 1, 9, 0.85)
    for axes, (label, images) in zip(grid[:, 0], rows.items(), strict=True):
        strip = np.concatenate(list(np.clip(images, 0, 1)), axis=1)
        axes.imshow(strip[..., 0] if strip.shape[-1] == 1 else strip, cmap="gray", vmin=0, vmax=1)
        axes.set_ylabel(
            canvas.heading(label),
            rotation=0,
            horizontalalignment="right",
            verticalalignment="center",
        )
        axes.set(xticks=[], yticks=[])
    return canvas.png(figure)


def class_grids(sets: Mapping[str, np.ndarray]) -> bytes:
    """Draws sets of images side by side, a line for each class.

    Args:
      sets: images (classes, k, h, w, c) in [0, 1] by title.

    Returns:
      PNG bytes.
    """
    columns = min(len(sets), canvas.MAX_COLUMNS)
    rows = math.ceil(len(sets) / columns)
    figure, grid = canvas.panels(rows, columns, 3.6, 3.9)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (title, lines) in zip(grid.flat, sets.items(), strict=False):
        apart = np.pad(lines, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)))
        picture = np.concatenate([np.concatenate(list(line), axis=1) for line in apart])
        picture = picture[..., 0] if picture.shape[-1] == 1 else picture
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axes.set_title(title)
    return canvas.png(figure)
