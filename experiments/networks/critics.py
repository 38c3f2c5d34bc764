"""Critics of images and of points: one value each, or features."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from experiments.networks.generators import batch_norm
from kernelgrad.types import Array


class ConvCritic(nn.Module):
    """Convolutional critic of images; without BatchNorm each value is of its own image alone.

    Height and width are halved while both are even and above 4, u times, by convolutions of
    stride 2 to width, 2 width, ... 2^(u-1) width channels; leaky relu of slope 0.2 after each, and
    a linear layer. The mirror of :class:`experiments.networks.generators.DCGAN`.

    Attributes:
      width: channels of the first convolution.
      spectral_norm: divide every layer by its largest singular value, by power iteration.
      num_features: of the linear layer's outputs; None: one value.
      batch_norm: whether BatchNorm follows every layer but the first and the last.
      axis_name: mapped axis over which BatchNorm pools its statistics; None for one device.

    References:
      Radford, Metz & Chintala 2016, section 3; Miyato et al. 2018, section 2.
    """

    width: int
    spectral_norm: bool = False
    num_features: int | None = None
    batch_norm: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        """Returns values (n,) or features (n, l) for images (n, h, w, c).

        Args:
          images: (n, h, w, c), floating.
          train: normalise by the batch, make a power iteration, and update the collection
            ``batch_stats`` (pass ``mutable=["batch_stats"]``); for either normalisation only.
        """
        hidden, features = images, self.width
        while min(hidden.shape[1:3]) > 4 and hidden.shape[1] % 2 == hidden.shape[2] % 2 == 0:
            layer = nn.Conv(features, (4, 4), (2, 2))
            hidden = _normed(layer, self.spectral_norm, hidden, train)
            if self.batch_norm and features > self.width:
                hidden = batch_norm(train, self.axis_name)(hidden)
            hidden = nn.leaky_relu(hidden, 0.2)
            features *= 2
        flat = hidden.reshape(hidden.shape[0], -1)
        return _outputs(self.num_features, self.spectral_norm, flat, train)


class MLPCritic(nn.Module):
    """Fully connected critic of points: `depth` leaky relu layers, then a linear one.

    Attributes:
      width: units of each hidden layer.
      depth: number of hidden layers.
      spectral_norm: as in :class:`ConvCritic`.
      num_features: as in :class:`ConvCritic`.
      batch_norm: as in :class:`ConvCritic`.
      axis_name: as in :class:`ConvCritic`.
    """

    width: int
    depth: int = 3
    spectral_norm: bool = False
    num_features: int | None = None
    batch_norm: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, points: Array, train: bool) -> Array:
        """Returns values (n,) or features (n, l) for points (n, d); `train` as in ConvCritic."""
        hidden = points
        for index in range(self.depth):
            hidden = _normed(nn.Dense(self.width), self.spectral_norm, hidden, train)
            if self.batch_norm and index:
                hidden = batch_norm(train, self.axis_name)(hidden)
            hidden = nn.leaky_relu(hidden, 0.2)
        return _outputs(self.num_features, self.spectral_norm, hidden, train)


def _outputs(num_features: int | None, spectral_norm: bool, hidden: Array, train: bool) -> Array:
    outputs = _normed(nn.Dense(num_features or 1), spectral_norm, hidden, train)
    return outputs[:, 0] if num_features is None else outputs


def _normed(layer: nn.Module, spectral_norm: bool, inputs: Array, train: bool) -> Array:
    return nn.SpectralNorm(layer)(inputs, update_stats=train) if spectral_norm else layer(inputs)


def critic_for(
    sample_shape: Sequence[int],
    width: int,
    spectral_norm: bool = False,
    num_features: int | None = None,
    **options: Any,
) -> ConvCritic | MLPCritic:
    """Returns the critic for images (h, w, c) or for points (d,).

    Args:
      sample_shape: of an image or a point.
      width: of the first layer.
      spectral_norm: of all layers.
      num_features: of the output.
      **options: further attributes of both: batch_norm, axis_name.

    Raises:
      ValueError: `sample_shape` has another length.
    """
    match tuple(sample_shape):
        case (_,):
            return MLPCritic(
                width, spectral_norm=spectral_norm, num_features=num_features, **options
            )
        case (_, _, _):
            return ConvCritic(width, spectral_norm, num_features, **options)
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
