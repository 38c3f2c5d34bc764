"""Energies of images and of points: how badly an autoencoder reconstructs them."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from experiments.networks.generators import KERNEL_INIT, batch_norm
from kernelgrad.types import Array


class ConvEnergy(nn.Module):
    r"""Energy of images: the distance to their reconstruction by an autoencoder.

    The encoder is the stack of :class:`experiments.networks.critics.ConvCritic` with a linear layer
    to the code, the decoder the same stack of transposed convolutions with a sigmoid at the end.

    Attributes:
      width: channels of the first convolution.
      code_dim: size of the code.
      norm: of the error, one of NORMS.
      batch_norm: whether BatchNorm follows every layer but the first and the last.
      tied: whether the decoder's layers are the transposes of the encoder's.
      axis_name: mapped axis over which BatchNorm pools its statistics; None for one device.

    References:
      Wang & Liu 2016 (learning to draw samples), eq. (14), whose norm is taken as Euclidean;
      Radford, Metz & Chintala 2016, section 3.
    """

    width: int
    code_dim: int = 32
    norm: str = "euclidean"
    batch_norm: bool = False
    tied: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, Array]:
        """Returns energies (n,) and codes (n, code_dim) of images (n, h, w, c) in [0, 1].

        Args:
          images: (n, h, w, c), floating.
          train: normalise by the statistics of the batch, with BatchNorm.
        """
        normed = functools.partial(_normed, self.batch_norm, train, self.axis_name)
        hidden, features, layers = images, self.width, []
        while min(hidden.shape[1:3]) > 4 and hidden.shape[1] % 2 == hidden.shape[2] % 2 == 0:
            layer = nn.Conv(features, (4, 4), (2, 2), kernel_init=KERNEL_INIT)
            layers.append((layer, hidden.shape[-1]))
            hidden = layer(hidden)
            hidden = nn.leaky_relu(normed(hidden) if layers[1:] else hidden, 0.2)
            features *= 2
        flat = hidden.reshape(hidden.shape[0], -1)
        encode = nn.Dense(self.code_dim, kernel_init=KERNEL_INIT)
        code = normed(encode(flat))
        decode = nn.Dense(flat.shape[1], kernel_init=KERNEL_INIT)
        decoded = nn.relu(normed(_mirrored(self.tied, encode, decode, code))).reshape(hidden.shape)
        for index, (layer, outputs) in reversed(list(enumerate(layers))):
            mirror = nn.ConvTranspose(outputs, (4, 4), (2, 2), kernel_init=KERNEL_INIT)
            decoded = _mirrored(self.tied, layer, mirror, decoded)
            decoded = nn.relu(normed(decoded)) if index else nn.sigmoid(decoded)
        return NORMS[self.norm](images - decoded), code


class MLPEnergy(nn.Module):
    """Energy of points: the distance to their reconstruction by an autoencoder.

    Attributes:
      width: units of each hidden layer.
      code_dim: size of the code.
      depth: number of hidden layers of encoder and decoder each.
      norm: of the error, one of NORMS.
      batch_norm: as in :class:`ConvEnergy`.
      tied: as in :class:`ConvEnergy`.
      axis_name: as in :class:`ConvEnergy`.
    """

    width: int
    code_dim: int = 8
    depth: int = 2
    norm: str = "euclidean"
    batch_norm: bool = False
    tied: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, points: Array, train: bool) -> tuple[Array, Array]:
        """Returns energies (n,) and codes (n, code_dim) of points (n, d).

        `train` is that of :class:`ConvEnergy`.
        """
        normed = functools.partial(_normed, self.batch_norm, train, self.axis_name)
        hidden, layers = points, []
        for index in range(self.depth):
            layers.append((nn.Dense(self.width), hidden.shape[1]))
            hidden = layers[-1][0](hidden)
            hidden = nn.leaky_relu(normed(hidden) if index else hidden, 0.2)
        layers.append((nn.Dense(self.code_dim), hidden.shape[1]))
        code = decoded = normed(layers[-1][0](hidden))
        for index, (layer, outputs) in reversed(list(enumerate(layers))):
            decoded = _mirrored(self.tied, layer, nn.Dense(outputs), decoded)
            decoded = nn.leaky_relu(normed(decoded), 0.2) if index else decoded
        return NORMS[self.norm](points - decoded), code


class _Transposed(nn.Module):
    """The transpose of a dense layer, or of a convolution of stride 2, and a bias of its own."""

    features: int

    @nn.compact
    def __call__(self, inputs: Array, kernel: Array) -> Array:
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        if kernel.ndim == 2:
            return inputs @ kernel.T + bias
        return lax.conv_transpose(inputs, kernel, (2, 2), "SAME", transpose_kernel=True) + bias


def _mirrored(
    tied: bool, layer: nn.Dense | nn.Conv, mirror: nn.Dense | nn.ConvTranspose, inputs: Array
) -> Array:
    """Returns inputs through the transpose of a layer of the encoder, or through its mirror."""
    if not tied:
        return mirror(inputs)
    return _Transposed(mirror.features)(inputs, layer.variables["params"]["kernel"])


def _normed(enabled: bool, train: bool, axis_name: str | None, hidden: Array) -> Array:
    return batch_norm(train, axis_name)(hidden) if enabled else hidden


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
    sample_shape: Sequence[int], width: int, norm: str = "euclidean", **options: Any
) -> ConvEnergy | MLPEnergy:
    """Returns the autoencoder's energy for images (h, w, c) or for points (d,).

    Args:
      sample_shape: of an image or a point.
      width: of the first layer.
      norm: of the error.
      **options: further attributes of both: batch_norm, tied, axis_name.

    Raises:
      ValueError: `sample_shape` has another length.
    """
    match tuple(sample_shape):
        case (_,):
            return MLPEnergy(width, norm=norm, **options)
        case (_, _, _):
            return ConvEnergy(width, norm=norm, **options)
    raise ValueError(f"sample_shape: got {tuple(sample_shape)}; expected (h, w, c) or (d,)")
