"""What the Markov steps share: a target on pytrees, Gaussian noise and the Metropolis test."""

import math
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from kernelgrad import _checks, _devices, _numeric
from kernelgrad.types import Array, Key, LogDensityFn, PyTree

_DIVERGENCE = 1000.0  # Stan's bound: a good integrator never errs by that much

State = TypeVar("State")


class MetropolisInfo(NamedTuple):
    """What one accept-or-reject step did, in at least float32.

    Attributes:
      acceptance_probability: min(1, exp(-energy_error)), never NaN; shape ().
      accepted: whether the chain moved to the proposal; shape (), bool. Never at probability 0.
      energy_error: by how much the proposal's energy exceeds the state's; shape (), in nats.
        +infinity if the proposal's energy is not finite or the difference not a number; -infinity
        from a state of density 0, which any proposal of positive density leaves.
      diverged: energy_error > 1000: the step size is too large here; shape (), bool.
    """

    acceptance_probability: Array
    accepted: Array
    energy_error: Array
    diverged: Array


def evaluate(position: PyTree, log_density_fn: LogDensityFn) -> tuple[Array, PyTree]:
    """Returns the log density and its gradient; raises ValueError if it is no floating scalar.

    What goes wrong inside of log_density_fn is left as it is, with a note on what it was given.
    """

    def fn(x: PyTree) -> Array:
        try:
            value = _checks.call("log_density_fn", "(position) -> ()", log_density_fn, x)
        except Exception as error:
            shapes = jax.tree.map(jnp.shape, x)
            error.add_note(f"log_density_fn: was given one position, of shape {shapes}")
            raise
        (log_density,) = _checks.floating(**{"log_density_fn(position)": value})
        if log_density.shape:
            raise ValueError(
                f"log_density_fn(position): got shape {log_density.shape}; expected () for the one "
                "position of one chain: vmap over chains"
            )
        return log_density

    log_density, pull = jax.vjp(fn, _devices.own_point(fn, position))
    (gradient,) = pull(jnp.ones_like(log_density))
    return log_density, gradient


def evaluate_first(position: PyTree, log_density_fn: LogDensityFn) -> tuple[Array, PyTree]:
    """Like evaluate; also raises ValueError for a concrete log density that is not finite."""
    log_density, gradient = evaluate(position, log_density_fn)
    _checks.in_range("log_density_fn(position)", log_density, -math.inf, math.inf)
    return log_density, gradient


def diagonal(inverse_mass: PyTree | None, position: PyTree) -> PyTree:
    """Returns the diagonal of M^-1, shaped and typed like the position.

    Args:
      inverse_mass: None for the identity; or a prefix of the position's tree whose leaves
        broadcast to the leaves below, each > 0.
      position: pytree of floating arrays.

    Raises:
      ValueError: another tree, a leaf that does not broadcast, or a concrete entry <= 0.
    """
    prefix = 1.0 if inverse_mass is None else inverse_mass
    for leaf in jax.tree.leaves(prefix):
        _checks.positive(inverse_mass=leaf)
    try:
        full = jax.tree.broadcast(prefix, position)
        return jax.tree.map(
            lambda m, x: jnp.broadcast_to(jnp.asarray(m, x.dtype), x.shape), full, position
        )
    except ValueError as error:
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (prefix, position)]
        raise ValueError(
            f"inverse_mass: got shapes {shapes[0]}; expected to broadcast to {shapes[1]}, "
            "the shapes of the position: a diagonal"
        ) from error


def normal_like(key: Key, tree: PyTree) -> PyTree:
    """Returns independent N(0, 1) draws, shaped and typed like the tree; drawn in >= float32."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    draws = [
        jax.random.normal(k, x.shape, _numeric.wide(x).dtype).astype(x.dtype)
        for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, draws)


def add_scaled(x: PyTree, factor: float | Array, y: PyTree) -> PyTree:
    """Returns x + factor * y in the dtypes of x."""
    return jax.tree.map(lambda a, b: a + jnp.asarray(factor, a.dtype) * b, x, y)


def select(condition: Array, new: State, old: State) -> State:
    """Returns the new tree where the condition holds, else the old one."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def metropolis(
    key: Key, energy_error: Array, proposal: State, state: State, *, finite: Array
) -> tuple[State, MetropolisInfo]:
    """Moves to the proposal with probability min(1, exp(-energy_error)).

    Args:
      key: random key.
      energy_error: energy of the proposal minus energy of the state; shape (), may be NaN.
      proposal: pytree.
      state: pytree like the proposal, kept whole (gradient included) on rejection.
      finite: whether the proposal may be accepted at all; shape (), bool.
    """
    possible = finite & (energy_error < math.inf)
    energy_error = jnp.where(possible, _numeric.wide(energy_error), math.inf)
    probability = jnp.exp(-jnp.maximum(energy_error, 0))
    dtype = probability.dtype
    threshold = jax.random.uniform(key, (), dtype) + jnp.finfo(dtype).eps  # its grid: in (0, 1]
    accepted = threshold <= probability
    info = MetropolisInfo(probability, accepted, energy_error, energy_error > _DIVERGENCE)
    return select(accepted, proposal, state), info
