"""The second player of an objective: a network that learns what the generator then follows."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import optax
from jax import lax

from kernelgrad import _checks, _devices
from kernelgrad.two_player import CriticFn, TwoPlayer
from kernelgrad.types import Array, Info, Key, PyTree

_APPLY = "(params, stats, x) -> (output, stats)"
_CRITIC_LOSS = "(critic_fn, key, samples, data, *, axis_name) -> (loss, info)"


class CriticState(NamedTuple):
    """All that a critic carries from step to step.

    Attributes:
      params: its parameters.
      stats: its statistics, such as spectral norms; an empty dict without any.
      opt_state: the state of its Optax optimizer.
    """

    params: PyTree
    stats: PyTree
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class Critic:
    """A critic network, the objective that it serves, and how it learns.

    Attributes:
      objective: whose `critic_loss` the critic minimises and whose `direction` follows it.
      apply: (params, stats, x) -> (output, updated stats), the network in training mode; the
        output is what the objective asks for, values of shape (n,) for most.
      optimizer: any Optax optimizer; one that takes extra arguments gets the scalars of the
        critic's loss as ``info``.
      num_steps: steps of the critic before each step of the generator; static, >= 1.
    """

    objective: TwoPlayer
    apply: Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree]]
    optimizer: optax.GradientTransformation
    num_steps: int = 1


def init(params: PyTree, stats: PyTree, critic: Critic) -> CriticState:
    """Returns the state before the first step.

    Args:
      params: initial parameters.
      stats: initial statistics; an empty dict without any.
      critic: how it learns.

    Returns:
      State.

    Example:
      >>> from kernelgrad import critic, two_player
      >>> apply = lambda params, stats, x: (x @ params, stats)
      >>> linear = critic.Critic(two_player.hinge(), apply, optax.sgd(0.1))
      >>> state = critic.init(jnp.array([0.5]), {}, linear)
      >>> state.params.tolist(), state.stats
      ([0.5], {})
    """
    return CriticState(params, stats, critic.optimizer.init(params))


def scale_by_info(factor_fn: Callable[[Info], Array]) -> optax.GradientTransformationExtraArgs:
    """Returns an Optax transformation that scales the updates by a function of the loss's scalars.

    Args:
      factor_fn: info of the critic's loss -> factor, shape (); 0 freezes the critic.

    Returns:
      Transformation without a state; chain it behind the optimizer.

    Example:
      >>> from kernelgrad import critic
      >>> scale = critic.scale_by_info(lambda info: info["rate_factor"])
      >>> info = {"rate_factor": jnp.array(0.5)}
      >>> updates, _ = scale.update(jnp.array([2.0, 4.0]), scale.init(None), info=info)
      >>> print(updates)
      [1. 2.]
    """

    def update(
        updates: PyTree, state: optax.OptState, params: PyTree | None = None, *, info: Info
    ) -> tuple[PyTree, optax.OptState]:
        del params
        factor = factor_fn(info)
        return jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def bind(state: CriticState, critic: Critic) -> CriticFn:
    """Returns the critic as a function of points, its parameters held still.

    Args:
      state: of the critic.
      critic: its network.

    Returns:
      Function (n, ...) -> output.

    Example:
      >>> from kernelgrad import critic, two_player
      >>> apply = lambda params, stats, x: (x @ params, stats)
      >>> linear = critic.Critic(two_player.hinge(), apply, optax.sgd(0.1))
      >>> critic_fn = critic.bind(critic.init(jnp.array([0.5]), {}, linear), linear)
      >>> print(critic_fn(jnp.array([[2.0], [4.0]])))
      [1. 2.]
    """
    return lambda points: _applied(critic, state.params, state.stats, points)[0]


def step(
    key: Key,
    state: CriticState,
    critic: Critic,
    samples: Array,
    data: Array,
    *,
    axis_name: str | None = None,
) -> tuple[CriticState, Info]:
    """Returns the state after one step on the critic's loss, and the loss's scalars.

    Args:
      key: random key of the loss.
      state: of the critic.
      critic: the network, its loss and its optimizer.
      samples: generated, noised or not; shape (n, ...).
      data: shape (n, ...).
      axis_name: mapped axis over devices; the step is that of the union of their batches.

    Returns:
      (next state, info), the same on all devices.

    Raises:
      ValueError: a network or a loss that does not take or return what it should.

    Example:
      >>> from kernelgrad import critic, two_player
      >>> apply = lambda params, stats, x: (x @ params, stats)
      >>> linear = critic.Critic(two_player.wgan_clip(clip=1.0), apply, optax.sgd(0.1))
      >>> state = critic.init(jnp.array([0.0]), {}, linear)
      >>> samples, data = jnp.array([[1.0]]), jnp.array([[3.0]])
      >>> state, info = critic.step(jax.random.key(0), state, linear, samples, data)
      >>> print(state.params)  # a slope of 0.1 times (3 - 1)
      [0.2]
    """

    def loss(params: PyTree) -> tuple[Array, Info]:
        critic_fn = bind(state._replace(params=params), critic)
        args = critic_fn, key, samples, data
        form, fn = _CRITIC_LOSS, critic.objective.critic_loss
        value, info = _checks.two_returned(
            "critic_loss", form, _checks.call("critic_loss", form, fn, *args, axis_name=axis_name)
        )
        return _devices.varying(_checks.scalar("critic_loss", value), own), info

    own = _devices.varying(state.params, samples, data)  # whose gradient is this device's
    gradient, info = jax.grad(loss, has_aux=True)(own)
    _, stats = _applied(critic, state.params, state.stats, critic.objective.view(data))
    gradient, stats, info = _devices.mean((gradient, stats, info), axis_name)
    optimizer = optax.with_extra_args_support(critic.optimizer)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params, info=info)
    params = critic.objective.project(optax.apply_updates(state.params, updates))
    return CriticState(params, stats, opt_state), info


def train(
    key: Key,
    state: CriticState | None,
    critic: Critic,
    draw: Callable[[Key, Key, Array], tuple[Array, Array]],
    batches: Array,
    *,
    axis_name: str | None = None,
) -> tuple[CriticState, Info]:
    """Returns the state after a step on each batch, with fresh samples every time.

    Args:
      key: random key of latents, noise and losses.
      state: of the critic.
      critic: the network, its loss and its optimizer.
      draw: (latent key, noise key, data) -> (samples, data), both as the critic sees them.
      batches: data, shape (num_steps, n, ...).
      axis_name: as in :func:`step`.

    Returns:
      (next state, info of the last step), the same on all devices.

    Raises:
      ValueError: no state.

    Example:
      >>> from kernelgrad import critic, two_player
      >>> apply = lambda params, stats, x: (x @ params, stats)
      >>> linear = critic.Critic(two_player.wgan_clip(clip=1.0), apply, optax.sgd(0.1))
      >>> state = critic.init(jnp.array([0.0]), {}, linear)
      >>> draw = lambda latent_key, noise_key, data: (jnp.ones_like(data), data)  # samples at 1
      >>> batches = jnp.full((2, 1, 1), 3.0)  # two of one datum, at 3
      >>> state, info = critic.train(jax.random.key(0), state, linear, draw, batches)
      >>> print(state.params)  # two steps of 0.1 times (3 - 1)
      [0.4]

    References:
      Goodfellow et al. 2014, algorithm 1.
    """
    if state is None:
        raise ValueError("state.critic: got None; expected the state of critic.init")

    def body(state: CriticState, item: tuple[Key, Array]) -> tuple[CriticState, Info]:
        latent_key, noise_key, loss_key = jax.random.split(item[0], 3)
        samples, data = draw(latent_key, noise_key, item[1])
        return step(loss_key, state, critic, samples, data, axis_name=axis_name)

    items = (jax.random.split(key, len(batches)), batches)
    last, infos = lax.scan(body, state, items, unroll=True)
    return last, jax.tree.map(lambda values: values[-1], infos)


def _applied(critic: Critic, params: PyTree, stats: PyTree, points: Array) -> tuple[PyTree, PyTree]:
    """Returns the output and statistics of a critic network that keeps to its form."""
    output = _checks.call("critic.apply", _APPLY, critic.apply, params, stats, points)
    return _checks.two_returned("critic.apply", _APPLY, output)
