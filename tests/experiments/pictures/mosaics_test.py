"""Where every pixel of an image lands in a mosaic, read from the files and from the artists."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from experiments.pictures import mosaics


def opened(encoded):
    picture = Image.open(io.BytesIO(encoded))
    assert picture.format == "PNG"
    return np.asarray(picture.convert("RGB")) / 255


def tiles(picture, height, width, columns, rows):
    """Returns the images of a mosaic (h, w, 3) row by row, and checks what stands between them."""
    zoom = (picture.shape[0]) // (rows * (height + 1) - 1)
    assert picture.shape[:2] == (
        zoom * (rows * (height + 1) - 1),
        zoom * (columns * (width + 1) - 1),
    )
    small = picture[::zoom, ::zoom]
    np.testing.assert_array_equal(small.repeat(zoom, axis=0).repeat(zoom, axis=1), picture)
    assert zoom >= 2
    assert not small[height :: height + 1].any()
    assert not small[:, width :: width + 1].any()
    return [
        small[i * (height + 1) :, j * (width + 1) :][:height, :width]
        for i, j in itertools.product(range(rows), range(columns))
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_side_by_side_in_a_square(rng, channels):
    images = np.round(255 * rng.random((5, 3, 4, channels))) / 255
    found = tiles(opened(mosaics.image_grid(images)), 3, 4, columns=3, rows=2)
    for got, image in zip(found, images, strict=False):
        np.testing.assert_allclose(got, np.broadcast_to(image, (3, 4, 3)), atol=1 / 255)
    assert not found[5].any()
    again = mosaics.tiles(mosaics.image_grid(images), (3, 4, channels), 3)
    np.testing.assert_allclose(again[:5], images, atol=1 / 255)
    assert again.shape == (6, 3, 4, channels)
    assert not again[5].any()


def test_large_images_are_still_doubled():
    assert opened(mosaics.image_grid(np.ones((1, 700, 700, 1)))).shape == (1400, 1400, 3)


def test_intensities_out_of_range_are_clipped():
    picture = opened(mosaics.image_grid(np.array([-3.0, 0.5, 7.0]).reshape(3, 1, 1, 1)))
    values = [tile[0, 0, 0] for tile in tiles(picture, 1, 1, columns=2, rows=2)]
    np.testing.assert_allclose(values, [0, 0.5, 1, 0], atol=1 / 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_film_has_a_mosaic_a_frame(channels):
    shades = np.array([[-0.3, 0.4, 1.7], [0.2, 0.6, 0.8]])
    frames = np.broadcast_to(shades[:, :, None, None, None], (2, 3, 2, 2, channels))
    film = Image.open(io.BytesIO(mosaics.image_film(frames, 3)))
    assert film.n_frames == 2
    for index in range(2):
        film.seek(index)
        found = tiles(np.asarray(film.convert("RGB")) / 255, 2, 2, columns=3, rows=1)
        expected = np.clip(shades[index], 0, 1)
        np.testing.assert_allclose([tile.mean() for tile in found], expected, atol=1 / 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_of_images_have_their_labels(figures, rng, channels):
    rows = {
        "data": 3 * rng.random((4, 2, 3, channels)) - 1,
        "svgd": rng.random((2, 2, 3, channels)),
    }
    mosaics.image_rows(rows)
    (figure,) = figures
    assert [axes.get_ylabel() for axes in figure.axes] == ["data", "svgd"]
    for axes, images in zip(figure.axes, rows.values(), strict=True):
        (shown,) = axes.images
        strip = np.asarray(shown.get_array()).reshape(2, -1, channels)
        for index, image in enumerate(images):
            np.testing.assert_array_equal(strip[:, 3 * index :][:, :3], np.clip(image, 0, 1))
        assert strip.shape[1] == 3 * len(images)
        assert shown.get_clim() == (0, 1)
        assert len(axes.get_xticks()) == len(axes.get_yticks()) == 0


@pytest.mark.parametrize("num", [1, 5])
def test_sets_by_class_have_their_titles_and_a_line_a_class(figures, rng, num):
    sets = {f"set {i}": rng.random((3, 2, 4, 5, 1)) for i in range(num)}
    mosaics.class_grids(sets)
    (figure,) = figures
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == list(sets)
    assert not any(axes.axison for axes in figure.axes)
    for axes, lines in zip(shown, sets.values(), strict=True):
        picture = np.asarray(axes.images[0].get_array())
        assert picture.shape == (3 * 5, 2 * 6)
        for label, k in itertools.product(range(3), range(2)):
            tile = picture[5 * label :, 6 * k :][:5, :6]
            np.testing.assert_array_equal(tile[:4, :5], lines[label, k, :, :, 0])
            assert not tile[4].any()
            assert not tile[:, 5].any()
