"""Generation by class: samples and data are points (x, y), an image and the code of its label.

A label is a one-hot vector. It ends the generator's latents and, unchanged, its samples; the critic
sees both parts. A direction moves x alone, for no parameter changes y.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.data.dataset import Dataset, Index
from experiments.run.errors import UsageError
from kernelgrad.types import Array, Key


def labels_of(dataset: Dataset) -> np.ndarray:
    """Returns the labels of the training examples, (n,) in 0..k - 1.

    Raises:
      UsageError: the data set has none.
    """
    if dataset.train_labels is None:
        raise UsageError(
            f"conditional: got {dataset.name}, a set without labels; expected one with them, such "
            "as digits, mnist or eight_gaussians"
        )
    return dataset.train_labels


def points(dataset: Dataset, rows: Index = slice(None)) -> np.ndarray:
    """Returns training examples as points (..., d + k), of the dtype they are stored in.

    Args:
      dataset: with labels.
      rows: a slice, or indices (...).
    """
    labels, examples = labels_of(dataset)[rows], dataset.train[rows]
    one = 255 if examples.dtype == np.uint8 else 1
    codes = one * np.eye(dataset.num_classes, dtype=examples.dtype)[labels]
    return np.concatenate([examples.reshape(*labels.shape, -1), codes], axis=-1)


def join(samples: Array, labels: Array) -> Array:
    """Returns points (n, d + k) of samples (n, ...) and the codes of their labels (n, k)."""
    return jnp.concatenate([samples.reshape(samples.shape[0], -1), labels], axis=1)


def part(points: Array, sample_shape: Sequence[int]) -> tuple[Array, Array]:
    """Returns samples (n, *sample_shape), and the codes of their labels (n, k), held still."""
    size = math.prod(sample_shape)
    return points[:, :size].reshape(-1, *sample_shape), lax.stop_gradient(points[:, size:])


def draw_labels(key: Key, n: int, dataset: Dataset) -> Array:
    """Returns codes (n, k) of labels drawn as often as the training data have them."""
    counts = np.bincount(labels_of(dataset), minlength=dataset.num_classes)
    shares = jnp.asarray(counts / counts.sum(), jnp.float32)
    return jax.nn.one_hot(jax.random.choice(key, len(shares), (n,), p=shares), len(shares))


def by_class(labels: Array, num_each: int) -> np.ndarray:
    """Returns indices of examples in the order of their classes.

    Args:
      labels: codes (n, k).
      num_each: examples of a class, fewer where there are fewer.
    """
    classes = np.asarray(labels).argmax(axis=1)
    chosen = [np.flatnonzero(classes == label)[:num_each] for label in range(labels.shape[1])]
    return np.concatenate(chosen)
