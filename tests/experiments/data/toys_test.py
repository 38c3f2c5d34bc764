"""Statements about the points in the plane."""

import numpy as np
import pytest

from experiments.data import catalog, toys
from tests.experiments.data.conftest import Z_BOUND


def assert_moment(values, mean):
    """The sample mean is within Z_BOUND standard errors of `mean`."""
    values = np.asarray(values, np.float64)
    z = (values.mean() - mean) / (values.std(ddof=1) / np.sqrt(len(values)))
    assert abs(z) < Z_BOUND, z


def toy(name, seed=0):
    """All points of a toy in float64, and their labels."""
    dataset = catalog.load(name, seed=seed)
    points = np.concatenate([dataset.train, dataset.test]).astype(np.float64)
    if dataset.train_labels is None:
        return points, None
    return points, np.concatenate([dataset.train_labels, dataset.test_labels])


@pytest.mark.parametrize("name", toys.TOYS)
def test_toys_have_their_shapes_and_follow_the_seed(name):
    dataset = catalog.load(name, seed=3)
    assert dataset.name == name
    assert dataset.train.shape == (10_000, 2)
    assert dataset.test.shape == (2_000, 2)
    assert dataset.train.dtype == dataset.test.dtype == np.float32
    assert (dataset.is_image, dataset.sample_shape) == (False, (2,))
    assert (dataset.train_labels is None) == (dataset.test_labels is None)
    assert (dataset.num_classes == 0) == (dataset.train_labels is None)
    np.testing.assert_array_equal(dataset.train, catalog.load(name, seed=3).train)
    assert not np.isin(dataset.train[:, 1], catalog.load(name, seed=4).train[:, 1]).mean() > 0.01
    assert not np.isin(dataset.test[:, 1], dataset.train[:, 1]).mean() > 0.01


def test_ring_radius_and_angle():
    points, _ = toy("ring")
    radius = np.hypot(*points.T)
    assert_moment(radius, 1)
    assert_moment((radius - 1) ** 2, 0.1**2)
    assert_moment((radius - 1) ** 3, 0)
    assert_moment((radius - 1) ** 4, 3 * 0.1**4)
    unit = points / radius[:, None]
    for k in (1, 2, 3, 4, 8):
        wave = (unit[:, 0] + 1j * unit[:, 1]) ** k
        assert_moment(wave.real, 0)
        assert_moment(wave.imag, 0)


GRID_CENTRES = [(x, y) for x in (-2, -1, 0, 1, 2) for y in (-2, -1, 0, 1, 2)]
RING_CENTRES = [
    (2, 0),
    (2**0.5, 2**0.5),
    (0, 2),
    (-(2**0.5), 2**0.5),
    (-2, 0),
    (-(2**0.5), -(2**0.5)),
    (0, -2),
    (2**0.5, -(2**0.5)),
]


@pytest.mark.parametrize(
    ("name", "centres", "deviation"),
    [("grid", GRID_CENTRES, 0.05), ("eight_gaussians", RING_CENTRES, 0.1)],
)
def test_mixtures_scatter_about_their_centres(name, centres, deviation):
    points, labels = toy(name)
    centres = np.array(centres, np.float64)
    assert catalog.load(name).num_classes == len(centres)
    noise = (points - centres[labels]) / deviation
    assert_moment(noise[:, 0] * noise[:, 1], 0)
    for column in noise.T:
        assert_moment(column, 0)
        assert_moment(column**2, 1)
        assert_moment(column**4, 3)
    for label in range(len(centres)):
        assert_moment(labels == label, 1 / len(centres))
        assert_moment(noise[labels == label, 0], 0)
        assert_moment(noise[labels == label, 1], 0)


def test_banana_is_a_bent_gaussian():
    points, _ = toy("banana")
    across = (points[:, 1] - (points[:, 0] ** 2 - 1) / 2) / 0.3
    for column in (points[:, 0], across):
        assert_moment(column, 0)
        assert_moment(column**2, 1)
        assert_moment(column**4, 3)
    assert_moment(points[:, 0] * across, 0)
    assert_moment(points[:, 0] ** 2 * across, 0)
    assert_moment(points[:, 1], 0)
    assert_moment(points[:, 1] ** 2, 0.5 + 0.09)


def test_swiss_roll_has_the_moments_of_its_spiral():
    points, _ = toy("swiss_roll")
    t = np.pi * (1.5 + 3 * (np.arange(200_000) + 0.5) / 200_000)
    x, y = t * np.cos(t) / 10, t * np.sin(t) / 10
    variance = 0.05**2
    assert_moment(points[:, 0], x.mean())
    assert_moment(points[:, 1], y.mean())
    assert_moment(points[:, 0] * points[:, 1], (x * y).mean())
    assert_moment(points[:, 0] ** 2, (x**2).mean() + variance)
    assert_moment(points[:, 1] ** 2, (y**2).mean() + variance)
    assert_moment(points[:, 0] ** 3, (x**3 + 3 * x * variance).mean())
    assert_moment(points[:, 1] ** 3, (y**3 + 3 * y * variance).mean())

    spiral = np.column_stack([x, y])[::200]
    sq_dist = ((points[:3000, None] - spiral) ** 2).sum(2)
    nearest = sq_dist.argmin(1)
    inside = (nearest > 50) & (nearest < len(spiral) - 50)
    assert_moment(sq_dist.min(1)[inside], variance)


def test_curve_and_segments_have_no_area():
    points, _ = toy("curve")
    assert_moment(points[:, 0], 0)
    assert_moment(points[:, 0] ** 2, 1 / 3)
    np.testing.assert_allclose(points[:, 1], np.sin(np.pi * points[:, 0]), atol=1e-6)
    points, labels = toy("segments")
    np.testing.assert_array_equal(points[:, 0], np.array([-0.5, 0.5])[labels])
    assert_moment(labels, 1 / 2)
    for label in (0, 1):
        assert_moment(points[labels == label, 1], 0)
        assert_moment(points[labels == label, 1] ** 2, 1 / 3)
