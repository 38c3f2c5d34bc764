"""What a PNG and a film hold, decoded, and that no figure stays open."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from experiments.pictures import canvas


def frames(encoded):
    """Returns the frames of a GIF, (t, h, w, 3), their milliseconds, and its loops."""
    film = Image.open(io.BytesIO(encoded))
    pictures, durations = [], []
    for index in range(film.n_frames):
        film.seek(index)
        pictures.append(np.asarray(film.convert("RGB")))
        durations.append(film.info["duration"])
    return np.stack(pictures), durations, film.info["loop"]


def test_every_panel_has_its_size():
    figure, grid = canvas.panels(2, 3, 1.5, 2.0, sharey=True)
    assert grid.shape == (2, 3)
    np.testing.assert_allclose(figure.get_size_inches(), (4.5, 4.0))
    assert grid[0, 0].get_shared_y_axes().joined(grid[0, 0], grid[0, 2])
    single = canvas.panels(1, 1, 2.0, 1.0)[1]
    assert single.shape == (1, 1)
    plt.close("all")


def test_a_png_is_the_figure_and_closes_it():
    figure, _ = plt.subplots(figsize=(2, 1))
    figure.set_facecolor((1.0, 0.0, 0.2))
    picture = Image.open(io.BytesIO(canvas.png(figure)))
    assert picture.format == "PNG"
    assert picture.size == (220, 110)
    assert picture.convert("RGB").getpixel((0, 0)) == (255, 0, 51)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("n", [1, 3])
def test_a_film_has_every_picture_and_rests_on_the_last(n):
    shades = [0, 100, 200][:n]
    encoded = canvas.film([Image.new("L", (4, 2), shade) for shade in shades])
    pictures, durations, loops = frames(encoded)
    np.testing.assert_array_equal(
        pictures, np.zeros((n, 2, 4, 3)) + np.reshape(shades, (n, 1, 1, 1))
    )
    assert durations == [120] * (n - 1) + [2500]
    assert loops == 0  # for ever


def test_a_figure_in_motion_is_drawn_frame_by_frame():
    figure, _ = plt.subplots(figsize=(1, 1))
    colors = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    drawn = []

    def draw(index):
        drawn.append(index)
        figure.set_facecolor(colors[index])

    pictures, durations, _ = frames(canvas.gif(figure, draw, 3))
    assert drawn == [0, 1, 2]
    np.testing.assert_array_equal(pictures[:, 0, 0] / 255, colors)
    assert len(durations) == 3
    assert plt.get_fignums() == []
