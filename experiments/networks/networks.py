"""Small Flax networks: generators and critics for images and for points, and a classifier."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from kernelgrad.types import Array, Key

_KERNEL_INIT = nn.initializers.normal(0.02)


def _scale_init(key: Key, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> Array:
    return 1.0 + _KERNEL_INIT(key, shape, dtype)


class DCGAN(nn.Module):
    """Deep convolutional generator of images in [0, 1].

    Height and width are halved while both are even and above 4, u times, which gives the start
    size; a dense layer to width 2^(u-1) channels at that size, then u upsamplings that halve the
    channels, the last one to the image's. BatchNorm and relu in between; the sigmoid at the end
    is the paper's tanh on the range [0, 1], sigmoid(x) = (1 + tanh(x / 2)) / 2. Kernels start as
    N(0, 0.02^2), BatchNorm scales as N(1, 0.02^2).

    Attributes:
      sample_shape: (h, w, c) of an image.
      width: channels before the last upsampling.
      axis_name: mapped axis over which BatchNorm pools its statistics; None for one device.

    References:
      Radford, Metz & Chintala 2016, section 3; the generator of Li 2017, section 3.
    """

    sample_shape: tuple[int, int, int]
    width: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, latents: Array, train: bool) -> Array:
        """Returns images (n, h, w, c) for latents (n, l).

        Args:
          latents: (n, l), floating.
          train: normalise by the batch and update the collection ``batch_stats`` (pass
            ``mutable=["batch_stats"]``); otherwise by the running averages.

        Raises:
          ValueError: `sample_shape` has no upsampling: h or w is odd or at most 4.
        """
        height, width, channels = self.sample_shape
        upsamplings = 0
        while min(height, width) > 4 and height % 2 == width % 2 == 0:
            height, width, upsamplings = height // 2, width // 2, upsamplings + 1
        if upsamplings == 0:
            raise ValueError(
                f"sample_shape: got {self.sample_shape}; expected (h, w, c), h and w even and > 4"
            )

        def norm_relu(hidden: Array) -> Array:
            norm = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                scale_init=_scale_init,
                axis_name=self.axis_name,
            )
            return nn.relu(norm(hidden))

        def upsample(features: int, use_bias: bool) -> nn.ConvTranspose:
            return nn.ConvTranspose(
                features, (4, 4), (2, 2), use_bias=use_bias, kernel_init=_KERNEL_INIT
            )

        features = self.width * 2 ** (upsamplings - 1)
        hidden = nn.Dense(height * width * features, use_bias=False, kernel_init=_KERNEL_INIT)(
            latents
        )
        hidden = norm_relu(hidden.reshape(-1, height, width, features))
        for _ in range(upsamplings - 1):
            features //= 2
            hidden = norm_relu(upsample(features, use_bias=False)(hidden))
        return nn.sigmoid(upsample(channels, use_bias=True)(hidden))


class MLPGenerator(nn.Module):
    """Fully connected generator of points: `depth` relu layers, then a linear one.

    Attributes:
      sample_shape: (d,) of a point.
      width: units of each hidden layer.
      depth: number of hidden layers.
      axis_name: as in :class:`DCGAN`; unused, for no layer depends on the batch.
    """

    sample_shape: tuple[int]
    width: int
    depth: int = 3
    axis_name: str | None = None

    @nn.compact
    def __call__(self, latents: Array, train: bool) -> Array:
        """Returns points (n, d) for latents (n, l); the same whether `train` or not."""
        del train
        hidden = latents
        for _ in range(self.depth):
            hidden = nn.relu(nn.Dense(self.width)(hidden))
        return nn.Dense(*self.sample_shape)(hidden)


def generator_for(
    sample_shape: Sequence[int], width: int, axis_name: str | None = None
) -> DCGAN | MLPGenerator:
    """Returns the generator for images (h, w, c) or for points (d,).

    Raises:
      ValueError: `sample_shape` has another length.
    """
    match tuple(sample_shape):
        case (d,):
            return MLPGenerator((d,), width, axis_name=axis_name)
        case (h, w, c):
            return DCGAN((h, w, c), width, axis_name)
    raise ValueError(f"sample_shape: got {tuple(sample_shape)}; expected (h, w, c) or (d,)")


class ConvCritic(nn.Module):
    """Convolutional critic of images, without batch normalisation: each value has its own image.

    Height and width are halved while both are even and above 4, u times, by convolutions of
    stride 2 to width, 2 width, ... 2^(u-1) width channels; leaky relu of slope 0.2 after each, and
    a linear layer to one value. The mirror of :class:`DCGAN`.

    Attributes:
      width: channels of the first convolution.
      spectral_norm: divide every layer by its largest singular value, by power iteration.

    References:
      Radford, Metz & Chintala 2016, section 3; Miyato et al. 2018, section 2.
    """

    width: int
    spectral_norm: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        """Returns values (n,) for images (n, h, w, c).

        Args:
          images: (n, h, w, c), floating.
          train: make a power iteration and update the collection ``batch_stats`` (pass
            ``mutable=["batch_stats"]``); for spectral normalisation only.
        """
        hidden, features = images, self.width
        while min(hidden.shape[1:3]) > 4 and hidden.shape[1] % 2 == hidden.shape[2] % 2 == 0:
            layer = nn.Conv(features, (4, 4), (2, 2))
            hidden = nn.leaky_relu(_normed(layer, self.spectral_norm, hidden, train), 0.2)
            features *= 2
        flat = hidden.reshape(hidden.shape[0], -1)
        return _normed(nn.Dense(1), self.spectral_norm, flat, train)[:, 0]


class MLPCritic(nn.Module):
    """Fully connected critic of points: `depth` leaky relu layers, then a linear one.

    Attributes:
      width: units of each hidden layer.
      depth: number of hidden layers.
      spectral_norm: as in :class:`ConvCritic`.
    """

    width: int
    depth: int = 3
    spectral_norm: bool = False

    @nn.compact
    def __call__(self, points: Array, train: bool) -> Array:
        """Returns values (n,) for points (n, d); `train` as in :class:`ConvCritic`."""
        hidden = points
        for _ in range(self.depth):
            layer = nn.Dense(self.width)
            hidden = nn.leaky_relu(_normed(layer, self.spectral_norm, hidden, train), 0.2)
        return _normed(nn.Dense(1), self.spectral_norm, hidden, train)[:, 0]


def _normed(layer: nn.Module, spectral_norm: bool, inputs: Array, train: bool) -> Array:
    return nn.SpectralNorm(layer)(inputs, update_stats=train) if spectral_norm else layer(inputs)


def critic_for(
    sample_shape: Sequence[int], width: int, spectral_norm: bool = False
) -> ConvCritic | MLPCritic:
    """Returns the critic for images (h, w, c) or for points (d,).

    Raises:
      ValueError: `sample_shape` has another length.
    """
    match tuple(sample_shape):
        case (_,):
            return MLPCritic(width, spectral_norm=spectral_norm)
        case (_, _, _):
            return ConvCritic(width, spectral_norm)
    raise ValueError(f"sample_shape: got {tuple(sample_shape)}; expected (h, w, c) or (d,)")


class ConvEnergy(nn.Module):
    r"""Energy of images: the distance to their reconstruction by an autoencoder.

    The encoder is the stack of :class:`ConvCritic` with a linear layer to the code, the decoder
    the same stack of transposed convolutions with a sigmoid at the end.

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
            hidden = nn.Conv(features, (4, 4), (2, 2), kernel_init=_KERNEL_INIT)(hidden)
            hidden = nn.leaky_relu(hidden, 0.2)
            features *= 2
        code = nn.Dense(self.code_dim, kernel_init=_KERNEL_INIT)(
            hidden.reshape(hidden.shape[0], -1)
        )
        decoded = nn.Dense(math.prod(hidden.shape[1:]), kernel_init=_KERNEL_INIT)(code)
        decoded = nn.relu(decoded).reshape(hidden.shape)
        for layer in reversed(range(len(channels))):
            outputs = channels[layer]
            decoded = nn.ConvTranspose(outputs, (4, 4), (2, 2), kernel_init=_KERNEL_INIT)(decoded)
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


class TrackedNormalizer(nn.Module):
    """A critic with a log-normaliser that outlives the batch, a parameter that starts at 0.

    Attributes:
      network: the critic.
    """

    network: nn.Module

    @nn.compact
    def __call__(self, points: Array, train: bool) -> tuple[Array, Array]:
        """Returns the critic's values (n,) and the log-normaliser ()."""
        values = self.network(points, train)
        return values, self.param("log_normalizer", nn.initializers.zeros, ())


class MLPClassifier(nn.Module):
    """Multilayer perceptron on flattened images in [0, 1].

    Attributes:
      num_classes: number of logits.
      width: units of each of the two hidden layers.
      dropout_rate: share of hidden units dropped in training, in [0, 1).
    """

    num_classes: int
    width: int = 512
    dropout_rate: float = 0.2

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, Array]:
        """Returns logits (n, num_classes) and features (n, width), the last hidden layer.

        Args:
          images: (n, h, w, c) in [0, 1].
          train: drop units; needs ``rngs={"dropout": key}``.
        """
        hidden = images.reshape(images.shape[0], -1)
        for _ in range(2):
            hidden = nn.relu(nn.Dense(self.width)(hidden))
            hidden = nn.Dropout(self.dropout_rate, deterministic=not train)(hidden)
        return nn.Dense(self.num_classes)(hidden), hidden
