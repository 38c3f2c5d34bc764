"""Generation by class: samples and data are points (x, y), an image and the code of its label.

A label is a one-hot vector. It ends the generator's latents and, unchanged, its samples; the critic
sees both parts. A direction moves x alone, for no parameter changes y.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments.data.catalog import Dataset
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


def labelled_points(dataset: Dataset) -> np.ndarray:
    """Returns the training examples as points (n, d + k), of the dtype they are stored in."""
    one = 255 if dataset.train.dtype == np.uint8 else 1
    codes = one * np.eye(dataset.num_classes, dtype=dataset.train.dtype)[labels_of(dataset)]
    return np.concatenate([dataset.train.reshape(len(dataset.train), -1), codes], axis=1)


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


class ConditionalCritic(nn.Module):
    """A critic of points (x, y): the label's code comes as more channels or coordinates of x.

    Attributes:
      network: critic of samples (n, ...).
      sample_shape: of x.

    References:
      Mirza & Osindero 2014, section 3.2.
    """

    network: nn.Module
    sample_shape: tuple[int, ...]

    @nn.compact
    def __call__(self, points: Array, train: bool) -> Any:
        """Returns what the network does, for points (n, d + k)."""
        samples, labels = part(points, self.sample_shape)
        planes = labels.reshape(labels.shape[0], *(1 for _ in self.sample_shape[1:]), -1)
        planes = jnp.broadcast_to(planes, (*samples.shape[:-1], labels.shape[1]))
        return self.network(jnp.concatenate([samples, planes], axis=-1), train)


class JointEnergy(nn.Module):
    r"""Energy of points (x, y): that of x, plus how badly the features of x predict y.

    .. math:: E(x, y) = E(x) + \max(m, \mathrm{crossentropy}(y, \mathrm{head}(e(x))))

    The head is a linear layer. Below the margin m nothing is left to gain from the label.

    Attributes:
      network: (samples, train) -> (energies E(x), features e(x)).
      sample_shape: of x.
      margin: m >= 0, in nats.

    References:
      Wang & Liu 2016 (learning to draw samples), eq. (15).
    """

    network: nn.Module
    sample_shape: tuple[int, ...]
    margin: float

    @nn.compact
    def __call__(self, points: Array, train: bool) -> tuple[Array, Array]:
        """Returns energies (n,) and features (n, f) for points (n, d + k)."""
        samples, labels = part(points, self.sample_shape)
        energy, features = self.network(samples, train)
        logits = nn.Dense(labels.shape[1], kernel_init=nn.initializers.normal(0.02))(features)
        crossentropy = optax.softmax_cross_entropy(logits, labels)
        return energy + jnp.maximum(self.margin, crossentropy), features
