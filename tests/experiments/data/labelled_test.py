"""Labels as a part of the points: their codes and their frequencies."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import labelled
from experiments.data.dataset import Dataset

LABELS = np.array([2, 0, 2, 2, 1, 2, 0, 2])


def few(dtype):
    train = np.arange(16).reshape(8, 2).astype(dtype)
    return Dataset("few", train, train, LABELS, LABELS, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_points_end_with_the_code_of_their_label(dtype):
    """As the training step reads them: bytes in units of 255."""
    points = labelled.points(few(dtype))
    assert points.dtype == dtype
    unit = 255 if dtype == np.uint8 else 1
    np.testing.assert_array_equal(points[:, :2], np.arange(16).reshape(8, 2))
    for row, label in zip(points[:, 2:] / unit, LABELS, strict=True):
        np.testing.assert_array_equal(row, [label == 0, label == 1, label == 2])


def test_parts_are_what_was_joined(rng):
    images, codes = jnp.asarray(rng.random((5, 2, 3, 1))), jnp.eye(4)[jnp.array([0, 3, 3, 1, 2])]
    back, labels = labelled.part(labelled.join(images, codes), (2, 3, 1))
    np.testing.assert_array_equal(back, images)
    np.testing.assert_array_equal(labels, codes)


def test_labels_come_as_often_as_in_the_data(key):
    n = 20_000
    codes = labelled.draw_labels(key, n, few(np.float32))
    expected = np.array([2, 1, 5]) / 8
    assert set(np.unique(codes)) == {0.0, 1.0}
    np.testing.assert_array_equal(np.sum(codes, axis=1), 1)
    z = (np.mean(codes, axis=0) - expected) / np.sqrt(expected * (1 - expected) / n)
    assert np.abs(z).max() < 5


def test_examples_in_the_order_of_their_classes():
    codes = np.eye(3)[[1, 0, 1, 2, 1, 0]]
    np.testing.assert_array_equal(labelled.by_class(codes, 2), [1, 5, 0, 2, 3])
