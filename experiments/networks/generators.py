"""Generators of images and of points."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from kernelgrad.types import Array, Key

KERNEL_INIT = nn.initializers.normal(0.02)


def _scale_init(key: Key, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> Array:
    return 1.0 + KERNEL_INIT(key, shape, dtype)


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
            return nn.relu(batch_norm(train, self.axis_name)(hidden))

        def upsample(features: int, use_bias: bool) -> nn.ConvTranspose:
            return nn.ConvTranspose(
                features, (4, 4), (2, 2), use_bias=use_bias, kernel_init=KERNEL_INIT
            )

        features = self.width * 2 ** (upsamplings - 1)
        hidden = nn.Dense(height * width * features, use_bias=False, kernel_init=KERNEL_INIT)(
            latents
        )
        hidden = norm_relu(hidden.reshape(-1, height, width, features))
        for _ in range(upsamplings - 1):
            features //= 2
            hidden = norm_relu(upsample(features, use_bias=False)(hidden))
        return nn.sigmoid(upsample(channels, use_bias=True)(hidden))


def batch_norm(train: bool, axis_name: str | None) -> nn.BatchNorm:
    """Returns the layer of the guidelines, `train` and `axis_name` as in :class:`DCGAN`."""
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, scale_init=_scale_init, axis_name=axis_name
    )


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
