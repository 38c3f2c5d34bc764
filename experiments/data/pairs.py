"""Pairs of laws for a two-sample test to tell apart, drawn under a key."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.dataset import Dataset
from experiments.run.errors import UsageError
from kernelgrad.types import Array, Key

_SIDE = 3  # blobs along an edge of the grid
NUM_BLOBS = _SIDE**2
_SPACING = 10.0  # between their centres, in standard deviations of one
_RATIO = 6.0  # of the variances along the two axes of a blob of Q
_SHIFT_BLUR, _SHIFT_LOSS = 0.5, 0.05  # of sharpness and of light, at a shift of size 1


class Pair(NamedTuple):
    """Two laws, P and Q.

    Attributes:
      draw: (key, n) -> samples of P and of Q, shape (n, d) each.
      null: (key, n) -> two samples of P that share nothing.
      most: n is at most this; None: any n.
    """

    draw: Callable[[Key, int], tuple[Array, Array]]
    null: Callable[[Key, int], tuple[Array, Array]]
    most: int | None = None


def blobs() -> Pair:
    """Returns two grids of 9 Gaussians: round ones, and ones drawn out along a diagonal.

    References:
      Gretton et al. 2012 (optimal kernel choice), section 4; Sutherland et al. 2017.
    """
    slope = (_RATIO - 1) / (_RATIO + 1)
    root = np.linalg.cholesky([[1.0, slope], [slope, 1.0]]).astype(np.float32)
    round_root = np.eye(2, dtype=np.float32)

    def cloud(key: Key, n: int, root: np.ndarray) -> Array:
        cell_key, noise_key = jax.random.split(key)
        cells = jax.random.randint(cell_key, (n,), 0, NUM_BLOBS)
        centres = _SPACING * jnp.stack([cells // _SIDE, cells % _SIDE], axis=1)
        return centres + jax.random.normal(noise_key, (n, 2)) @ root.T

    def pair(*roots: np.ndarray) -> Callable[[Key, int], tuple[Array, Array]]:
        def draw(key: Key, n: int) -> tuple[Array, Array]:
            one, other = jax.random.split(key)
            return cloud(one, n, roots[0]), cloud(other, n, roots[1])

        return draw

    return Pair(pair(round_root, root), pair(round_root, round_root))


def threes_and_eights(dataset: Dataset) -> Pair:
    """Returns the images of a 3 against those of an 8, each drawn without replacement.

    Raises:
      UsageError: the set has no images with ten labels.
    """
    if not dataset.is_image or dataset.train_labels is None or dataset.num_classes != 10:
        raise UsageError(
            f"dataset: got {dataset.name} for digits_3_8; expected images of ten digits with "
            "labels, such as digits or mnist"
        )
    threes, eights = (_flat(dataset.train[dataset.train_labels == digit]) for digit in (3, 8))

    def draw(key: Key, n: int) -> tuple[Array, Array]:
        one, other = jax.random.split(key)
        return _chosen(one, threes, n), _chosen(other, eights, n)

    return Pair(draw, _halved(threes), min(len(threes) // 2, len(eights)))


def shifted_images(dataset: Dataset, size: float = 1.0) -> Pair:
    """Returns the images of a set against others of it, a little blurred and darkened.

    A shift that leaves what is seen as it is, as between two collections by one recipe. Half of an
    image is replaced by the mean over the pixels around, and a twentieth of the light is taken, at
    size 1; at others in proportion.

    Raises:
      UsageError: the set has no images.
    """
    if not dataset.is_image:
        raise UsageError(f"dataset: got {dataset.name} for shift; expected images, such as digits")
    images = _flat(dataset.train[:])

    def shifted(flat: Array) -> Array:
        square = flat.reshape(-1, *dataset.sample_shape)
        edges = jnp.pad(square, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        height, width = dataset.sample_shape[:2]
        near = [edges[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        blur = _SHIFT_BLUR * size
        blurred = (1 - blur) * square + blur * sum(near) / 9
        return (1 - _SHIFT_LOSS * size) * blurred.reshape(flat.shape)

    def draw(key: Key, n: int) -> tuple[Array, Array]:
        x, y = _halved(images)(key, n)
        return x, shifted(y)

    return Pair(draw, _halved(images), len(images) // 2)


def _flat(images: np.ndarray) -> np.ndarray:
    """Returns the bytes, a row an image."""
    return images.reshape(len(images), -1)


def _chosen(key: Key, images: np.ndarray, n: int) -> Array:
    rows = np.asarray(jax.random.permutation(key, len(images))[:n])
    return jnp.asarray(images[rows], jnp.float32) / 255


def _halved(images: np.ndarray) -> Callable[[Key, int], tuple[Array, Array]]:
    def draw(key: Key, n: int) -> tuple[Array, Array]:
        both = _chosen(key, images, 2 * n)
        return both[:n], both[n:]

    return draw
