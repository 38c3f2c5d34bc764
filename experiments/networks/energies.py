"""Energies of images and of points: how badly an autoencoder reconstructs them."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from experiments.networks.generators import KERNEL_INIT
from kernelgrad.types import Array


class ConvEnergy(nn.Module):
    r"""Energy of images: the distance to their reconstruction by an autoencoder.

    The encoder is the stack of :class:`experiments.networks.critics.ConvCritic` with a linear layer
    to the code, the decoder the same stack of transposed convolutions with a sigmoid at the end.

    Attributes:
      width: channels of the first convolution.
      code_dim: size of the code.
      norm: of the error, one of NORMS.

    References:
      Wang & Liu 2016 (learning to draw samples), eq. (14), whose norm is taken as Euclidean.
    """

    width: int
    code_dim: int = 32
    norm: str = "euclidean"

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, Array]:
        """Returns energies (n,) and codes (n, code_dim) of images (n, h, w, c) in [0, 1]."""
        del train
        hidden, features, channels = images, self.width, []
        while min(hidden.shape[1:3]) > 4 and hidden.shape[1] % 2 == hidden.shape[2] % 2 == 0:
            channels.append(hidden.shape[-1])
            hidden = nn.Conv(features, (4, 4), (2, 2), kernel_init=KERNEL_INIT)(hidden)
            hidden = nn.leaky_relu(hidden, 0.2)
            features *= 2
        code = nn.Dense(self.code_dim, kernel_init=KERNEL_INIT)(hidden.reshape(hidden.shape[0], -1))
        decoded = nn.Dense(math.prod(hidden.shape[1:]), kernel_init=KERNEL_INIT)(code)
        decoded = nn.relu(decoded).reshape(hidden.shape)
        for layer in reversed(range(len(channels))):
            outputs = channels[layer]
            decoded = nn.ConvTranspose(outputs, (4, 4), (2, 2), kernel_init=KERNEL_INIT)(decoded)
            decoded = nn.relu(decoded) if layer else nn.sigmoid(decoded)
        return NORMS[self.norm](images - decoded), code


class MLPEnergy(nn.Module):
    """Energy of points: the distance to their reconstruction by an autoencoder.

    Attributes:
      width: units of each hidden layer.
      code_dim: size of the code.
      depth: number of hidden layers of encoder and decoder each.
      norm: of the error, one of NORMS.
    """

    width: int
    code_dim: int = 8
    depth: int = 2
    norm: str = "euclidean"

    @nn.compact
    def __call__(self, points: Array, train: bool) -> tuple[Array, Array]:
        """Returns energies (n,) and codes (n, code_dim) of points (n, d)."""
        del train
        hidden = points
        for _ in range(self.depth):
            hidden = nn.leaky_relu(nn.Dense(self.width)(hidden), 0.2)
        code = nn.Dense(self.code_dim)(hidden)
        decoded = code
        for _ in range(self.depth):
            decoded = nn.leaky_relu(nn.Dense(self.width)(decoded), 0.2)
        return NORMS[self.norm](points - nn.Dense(points.shape[1])(decoded)), code


def _euclidean(error: Array) -> Array:
    """Returns |error| (n,)."""
    return _root(jnp.square(error))


def _root_sum(error: Array) -> Array:
    """Returns the root of the sum of absolute errors, plus the Euclidean norm (n,)."""
    return _root(jnp.abs(error)) + _root(jnp.square(error))


def _root(terms: Array) -> Array:
    """Returns the root of each example's sum (n,), with gradient 0 at 0."""
    total = jnp.sum(terms.reshape(terms.shape[0], -1), axis=1)
    return jnp.where(total > 0, jnp.sqrt(jnp.where(total > 0, total, 1)), 0)


NORMS = {"euclidean": _euclidean, "root_sum": _root_sum}


def energy_for(
    sample_shape: Sequence[int], width: int, norm: str = "euclidean"
) -> ConvEnergy | MLPEnergy:
    """Returns the autoencoder's energy for images (h, w, c) or for points (d,).

    Raises:
      ValueError: `sample_shape` has another length.
    """
    match tuple(sample_shape):
        case (_,):
            return MLPEnergy(width, norm=norm)
        case (_, _, _):
            return ConvEnergy(width, norm=norm)
    raise ValueError(f"sample_shape: got {tuple(sample_shape)}; expected (h, w, c) or (d,)")
