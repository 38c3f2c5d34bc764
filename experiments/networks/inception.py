"""The Inception-v3 network of 2015, in whose features published FIDs and KIDs are taken.

It is the one of TensorFlow's frozen graph of that year, which differs from later ones: its average
pools count no padding, its last block pools by maxima, and it has 1008 classes. Modules and
parameters bear the names of the public PyTorch checkpoint, so that one reads like the other.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from kernelgrad.types import Array

SIDE = 299  # of the images it takes
NUM_FEATURES, NUM_CLASSES = 2048, 1008

_EPSILON = 1e-3
_ROW, _COLUMN = (1, 7), (7, 1)


class Inception(nn.Module):
    """The network, for judging alone: it is never trained here.

    Published inception scores are those of logits without their bias.

    References:
      Szegedy et al. 2016 (rethinking the Inception architecture).
    """

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        """Returns features (n, 2048) and logits (n, 1008), which leave their bias out.

        Args:
          images: (n, h, w, 3) in [0, 255], of any size from 75 on; published scores take 299.
        """
        x = (images - 128) / 128
        x = _chain(x, ("Conv2d_1a_3x3", 32, 3, 2))
        x = _Conv(32, (3, 3), padding="VALID", name="Conv2d_2a_3x3")(x)
        x = _smaller(_chain(x, ("Conv2d_2b_3x3", 64, 3)))
        x = _chain(x, ("Conv2d_3b_1x1", 80, 1))
        x = _smaller(_Conv(192, (3, 3), padding="VALID", name="Conv2d_4a_3x3")(x))
        for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = _BlockA(pooled, name=name)(x)
        x = _BlockB(name="Mixed_6a")(x)
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160)):
            x = _BlockC(width, name=name)(x)
        x = _BlockC(192, name="Mixed_6e")(x)
        x = _BlockD(name="Mixed_7a")(x)
        x = _BlockE(name="Mixed_7b")(x, _mean(x))
        x = _BlockE(name="Mixed_7c")(x, nn.max_pool(x, (3, 3), padding="SAME"))
        features = jnp.mean(x, axis=(1, 2))
        classes = nn.Dense(NUM_CLASSES, use_bias=False, precision=lax.Precision.HIGHEST, name="fc")
        return features, classes(features)


class _Conv(nn.Module):
    """A convolution without a bias, BatchNorm by its running averages, and relu."""

    features: int
    size: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Conv(
            self.features,
            self.size,
            self.stride,
            padding=self.padding,
            use_bias=False,
            precision=lax.Precision.HIGHEST,
            name="conv",
        )(x)
        return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=_EPSILON, name="bn")(x))


class _BlockA(nn.Module):
    pooled: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _joined(
            _chain(x, ("branch1x1", 64, 1)),
            _chain(x, ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
            _chain(x, *_doubled(64, 96)),
            _chain(_mean(x), ("branch_pool", self.pooled, 1)),
        )


class _BlockB(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _joined(
            _chain(x, ("branch3x3", 384, 3, 2)),
            _chain(x, *_doubled(64, 96, 2)),
            _smaller(x),
        )


class _BlockC(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = self.width
        return _joined(
            _chain(x, ("branch1x1", 192, 1)),
            _chain(
                x,
                ("branch7x7_1", width, 1),
                ("branch7x7_2", width, _ROW),
                ("branch7x7_3", 192, _COLUMN),
            ),
            _chain(
                x,
                ("branch7x7dbl_1", width, 1),
                ("branch7x7dbl_2", width, _COLUMN),
                ("branch7x7dbl_3", width, _ROW),
                ("branch7x7dbl_4", width, _COLUMN),
                ("branch7x7dbl_5", 192, _ROW),
            ),
            _chain(_mean(x), ("branch_pool", 192, 1)),
        )


class _BlockD(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _joined(
            _chain(x, ("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)),
            _chain(
                x,
                ("branch7x7x3_1", 192, 1),
                ("branch7x7x3_2", 192, _ROW),
                ("branch7x7x3_3", 192, _COLUMN),
                ("branch7x7x3_4", 192, 3, 2),
            ),
            _smaller(x),
        )


class _BlockE(nn.Module):
    @nn.compact
    def __call__(self, x: Array, pooled: Array) -> Array:
        once = _chain(x, ("branch3x3_1", 384, 1))
        twice = _chain(x, ("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))
        return _joined(
            _chain(x, ("branch1x1", 320, 1)),
            _chain(once, ("branch3x3_2a", 384, (1, 3))),
            _chain(once, ("branch3x3_2b", 384, (3, 1))),
            _chain(twice, ("branch3x3dbl_3a", 384, (1, 3))),
            _chain(twice, ("branch3x3dbl_3b", 384, (3, 1))),
            _chain(pooled, ("branch_pool", 192, 1)),
        )


_Layer = tuple[Any, ...]


def _chain(x: Array, *layers: _Layer) -> Array:
    """Returns x after convolutions (name, features, size), and those of stride 2.

    The latter, (name, features, size, 2), see no padding. A size is (h, w), or one for both.
    """
    for name, features, size, *stride in layers:
        sides = (size, size) if isinstance(size, int) else size
        x = _Conv(features, sides, *(stride or [1]), "VALID" if stride else "SAME", name=name)(x)
    return x


def _doubled(first: int, features: int, *stride: int) -> tuple[_Layer, ...]:
    return (
        ("branch3x3dbl_1", first, 1),
        ("branch3x3dbl_2", features, 3),
        ("branch3x3dbl_3", features, 3, *stride),
    )


def _joined(*branches: Array) -> Array:
    return jnp.concatenate(branches, axis=-1)


def _mean(x: Array) -> Array:
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _smaller(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (2, 2))
