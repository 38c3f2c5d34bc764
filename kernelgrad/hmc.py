r"""Hamiltonian Monte Carlo: leapfrog trajectories with a Metropolis test, for one chain.

.. math:: H(x, p) = -\log \pi(x) + \tfrac12 p^\top M^{-1} p

The caller vmaps over chains and scans over steps. Positions are arbitrary pytrees of floating
arrays.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _devices, _markov, _numeric
from kernelgrad._markov import MetropolisInfo
from kernelgrad.types import Array, Key, LogDensityFn, PyTree


class HMCState(NamedTuple):
    """The position of one chain and what is known there.

    Attributes:
      position: x; pytree of floating arrays.
      log_density: log pi(x) up to a constant; shape ().
      gradient: grad log pi(x), the first half-step of the next trajectory; pytree like position.
    """

    position: PyTree
    log_density: Array
    gradient: PyTree


def init(position: PyTree, log_density_fn: LogDensityFn) -> HMCState:
    """Returns the state at a position.

    Args:
      position: x; pytree of floating arrays, one chain.
      log_density_fn: maps x to log pi(x) up to a constant; shape ().

    Raises:
      ValueError: a leaf that is not floating, a log density that is not a scalar, or, outside of
        jit and vmap, one that is not finite.

    Cost: one gradient.

    Example:
      >>> from kernelgrad import hmc
      >>> state = hmc.init(jnp.array([2.0]), lambda x: -jnp.sum(x**2) / 2)
      >>> float(state.log_density), state.gradient.tolist()
      (-2.0, [-2.0])
    """
    position = _checks.floating_leaves("position", position)
    return HMCState(position, *_markov.evaluate_first(position, log_density_fn))


def step(
    key: Key,
    state: HMCState,
    log_density_fn: LogDensityFn,
    *,
    step_size: float | Array,
    num_leapfrog_steps: int | Array,
    inverse_mass: PyTree | None = None,
) -> tuple[HMCState, MetropolisInfo]:
    r"""Draws a momentum, follows it by leapfrog, and accepts or rejects where that ends.

    .. math:: p \sim N(0, M), \quad (x, p) \to (x', p') \text{ by leapfrog}, \quad
        x' \text{ accepted with probability } \min(1, e^{H(x, p) - H(x', p')})

    Leaves pi invariant at every step size. A trajectory whose energy is not finite is rejected and
    flagged, and the chain stays at its own position, log density and gradient.

    Args:
      key: random key of this step.
      state: where the chain is, from :func:`init` or an earlier step.
      log_density_fn: maps x to log pi(x) up to a constant; shape ().
      step_size: > 0; in units of x when M is the identity. A standard normal is stable below 2.
      num_leapfrog_steps: >= 1; a traced one is allowed and costs reverse-mode differentiation.
      inverse_mass: diagonal of M^-1, > 0: a pytree that broadcasts to the position, best near the
        variances of pi. None is the identity.

    Returns:
      The next state, and info with energy_error = H(x', p') - H(x, p).

    Raises:
      ValueError: a concrete step size <= 0, fewer than one leapfrog step, or an inverse mass that
        is not positive or does not fit the position.

    Cost: num_leapfrog_steps gradients.

    Example:
      >>> from kernelgrad import hmc
      >>> log_p = lambda x: -jnp.sum(x**2) / 2
      >>> key, state = jax.random.key(0), hmc.init(jnp.array([1.0]), log_p)
      >>> state, info = hmc.step(key, state, log_p, step_size=0.1, num_leapfrog_steps=3)
      >>> bool(abs(info.energy_error) < 0.05)  # next to conserved, and so accepted next to surely
      True

    References:
      Duane et al. 1987; Neal 2011 (MCMC using Hamiltonian dynamics), section 3.2.
    """
    inverse = _markov.diagonal(inverse_mass, state.position)
    momentum_key, accept_key = jax.random.split(key)
    noise = _markov.normal_like(momentum_key, state.position)
    momentum = jax.tree.map(lambda xi, m: xi / jnp.sqrt(m), noise, inverse)
    proposal, end = leapfrog(
        state,
        momentum,
        log_density_fn,
        step_size=step_size,
        num_leapfrog_steps=num_leapfrog_steps,
        inverse_mass=inverse_mass,
    )
    before, after = _numeric.wide(state.log_density), _numeric.wide(proposal.log_density)

    def kinetic_error(p0: Array, p1: Array, m: Array) -> Array:
        p0, p1, m = (_numeric.wide(a) for a in (p0, p1, m))
        return jnp.sum(m * (p1 - p0) * (p1 + p0), dtype=before.dtype) / 2

    errors = jax.tree.map(kinetic_error, momentum, end, inverse)
    energy_error = before - after + sum(jax.tree.leaves(errors))
    finite = jnp.isfinite(after)
    return _markov.metropolis(accept_key, energy_error, proposal, state, finite=finite)


def leapfrog(
    state: HMCState,
    momentum: PyTree,
    log_density_fn: LogDensityFn,
    *,
    step_size: float | Array,
    num_leapfrog_steps: int | Array,
    inverse_mass: PyTree | None = None,
) -> tuple[HMCState, PyTree]:
    r"""Integrates Hamilton's equations by kick, drift, kick.

    .. math:: p \mathrel{+}= \tfrac{h}{2} \nabla \log \pi(x), \quad x \mathrel{+}= h M^{-1} p,
        \quad p \mathrel{+}= \tfrac{h}{2} \nabla \log \pi(x)

    Preserves volume; started again at (x', -p') it returns to (x, -p).

    Args:
      state: x with its log density and gradient.
      momentum: p; pytree like the position.
      log_density_fn: maps x to log pi(x) up to a constant; shape ().
      step_size: h > 0.
      num_leapfrog_steps: >= 1, static or traced.
      inverse_mass: diagonal of M^-1, as in :func:`step`.

    Returns:
      The state at x', and p', not reversed.

    Raises:
      ValueError: as :func:`step`.

    Cost: num_leapfrog_steps gradients: the last one is carried in the state.

    Example:
      >>> from kernelgrad import hmc
      >>> log_p = lambda x: -jnp.sum(x**2) / 2
      >>> x, p = hmc.init(jnp.array([1.0]), log_p), jnp.array([0.0])
      >>> x, p = hmc.leapfrog(x, p, log_p, step_size=1.0, num_leapfrog_steps=1)
      >>> x.position.tolist(), p.tolist()  # kick to -1/2, drift, kick by -1/4
      ([0.5], [-0.75])

    References:
      Neal 2011 (MCMC using Hamiltonian dynamics), eqs. (2.28)-(2.30).
    """
    _checks.positive(step_size=step_size)
    _checks.in_range("num_leapfrog_steps", num_leapfrog_steps, 1, math.inf, closed="l")
    inverse = _markov.diagonal(inverse_mass, state.position)
    momentum = _checks.floating_leaves("momentum", momentum)
    momentum = jax.tree.map(_numeric.like, momentum, state.position)

    def kick_drift_kick(_: Array, carry: tuple[HMCState, PyTree]) -> tuple[HMCState, PyTree]:
        state, p = carry
        p = _markov.add_scaled(p, step_size / 2, state.gradient)
        velocity = jax.tree.map(jnp.multiply, inverse, p)
        x = _markov.add_scaled(state.position, step_size, velocity)
        state = HMCState(x, *_markov.evaluate(x, log_density_fn))
        return state, _markov.add_scaled(p, step_size / 2, state.gradient)

    start = _devices.varying((state, momentum), step_size, inverse)
    return lax.fori_loop(0, num_leapfrog_steps, kick_drift_kick, start)
