"""Critics and energies that see labels, as codes at the end of the points."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import optax

from experiments.data import labelled
from experiments.networks.generators import KERNEL_INIT
from kernelgrad.types import Array


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
        samples, labels = labelled.part(points, self.sample_shape)
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
        samples, labels = labelled.part(points, self.sample_shape)
        energy, features = self.network(samples, train)
        logits = nn.Dense(labels.shape[1], kernel_init=KERNEL_INIT)(features)
        crossentropy = optax.softmax_cross_entropy(logits, labels)
        return energy + jnp.maximum(self.margin, crossentropy), features
