"""What an objective of two players is made of."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from kernelgrad import _checks, _devices
from kernelgrad.types import Array, Info, Key, PyTree

CriticFn = Callable[[Array], Any]


class PlayerFn(Protocol):
    """What one player follows, given the critic as a function of points.

    The critic's is a loss to minimise: on each device a mean over its samples and data, in which a
    statistic of the union is a term by way of :func:`of_union`; the mean of the devices' gradients
    is then that of one device. The generator's is a direction per sample to descend, with the
    critic held still.
    """

    def __call__(
        self,
        critic_fn: CriticFn,
        key: Key,
        samples: Array,
        data: Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[Array, Info]:
        """Returns (this device's loss, or direction shaped like samples; info)."""
        ...


def _unchanged(value: PyTree) -> PyTree:
    return value


@dataclasses.dataclass(frozen=True)
class TwoPlayer:
    """An objective whose direction follows a critic that learns beside the generator.

    Attributes:
      critic_loss: minimised by the critic.
      direction: descended by the generator.
      project: applied to the critic's parameters after each of its steps.
      view: what the critic takes of samples and data, such as features of them.
    """

    critic_loss: PlayerFn
    direction: PlayerFn
    project: Callable[[PyTree], PyTree] = _unchanged
    view: Callable[[Array], Array] = _unchanged


def of_union(statistic: Array, *, axis_name: str | None = None) -> Array:
    """Returns a statistic of the union of devices as a term of the loss that each has of its own.

    A statistic's own derivative counts once, wherever its points are. In a loss that is averaged
    over devices, as a critic's is, it stands once on each of them.

    Args:
      statistic: of this library, with the same axis_name; shape ().
      axis_name: mapped axis over devices.

    Returns:
      The statistic.

    Example:
      >>> from kernelgrad import two_player
      >>> float(two_player.of_union(jnp.array(2.0)))  # on one device it is what it was
      2.0
    """
    return _devices.copies(statistic, axis_name)


def on_batches(player_fn: PlayerFn) -> PlayerFn:
    """Returns the function with samples and data taken as arrays first, or refused by name.

    Args:
      player_fn: of JAX arrays.

    Returns:
      Function of JAX or NumPy arrays; raises ValueError for anything else.

    Example:
      >>> from kernelgrad import two_player
      >>> @two_player.on_batches
      ... def critic_loss(critic_fn, key, samples, data, *, axis_name=None):
      ...     return jnp.mean(critic_fn(samples)) - jnp.mean(critic_fn(data)), {}
      >>> samples, data = jax.device_get((jnp.ones((2, 1)), jnp.zeros((2, 1))))  # NumPy's
      >>> loss, info = critic_loss(lambda x: 3.0 * x[:, 0], jax.random.key(0), samples, data)
      >>> float(loss)
      3.0
    """

    def taken(
        critic_fn: CriticFn,
        key: Key,
        samples: Array,
        data: Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[Array, Info]:
        samples, data = _checks.batches(samples=samples, data=data)
        return player_fn(critic_fn, key, samples, data, axis_name=axis_name)

    return taken
