r"""Langevin steps for one chain: unadjusted (ULA), Metropolis-adjusted (MALA) and underdamped.

The convention here: a step of size h discretises :math:`dx = \nabla \log \pi\,dt + \sqrt2\,dW` over
time h,

.. math:: x' = x + h M^{-1} \nabla \log \pi(x) + \sqrt{2h}\, M^{-1/2} \xi, \quad \xi \sim N(0, I)

Where a paper writes :math:`x + (\gamma/2) \nabla \log \pi + \sqrt\gamma\, \xi`, h is
:math:`\gamma / 2`. The caller vmaps over chains and scans over steps. Positions are arbitrary
pytrees of floating arrays.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from kernelgrad import _checks, _markov, _numeric
from kernelgrad._markov import MetropolisInfo
from kernelgrad.types import Array, Key, LogDensityFn, PyTree


class LangevinState(NamedTuple):
    """The position of one chain and what is known there.

    Attributes:
      position: x; pytree of floating arrays.
      log_density: log pi(x) up to a constant; shape ().
      gradient: grad log pi(x), the drift of the next step; pytree like position.
    """

    position: PyTree
    log_density: Array
    gradient: PyTree


class UnderdampedState(NamedTuple):
    """The position and velocity of one chain.

    Attributes:
      position: x; pytree of floating arrays.
      log_density: log pi(x) up to a constant; shape ().
      gradient: grad log pi(x), the first kick of the next step; pytree like position.
      velocity: v; pytree like position.
    """

    position: PyTree
    log_density: Array
    gradient: PyTree
    velocity: PyTree


_State = TypeVar("_State", LangevinState, UnderdampedState)


class LangevinInfo(NamedTuple):
    """What one unadjusted step did.

    Attributes:
      finite: False if the new position, its log density or its gradient was not finite, and the
        chain stayed where it was; shape (), bool.
    """

    finite: Array


def init(position: PyTree, log_density_fn: LogDensityFn) -> LangevinState:
    """Returns the state at a position, for :func:`ula_step` and :func:`mala_step`.

    Args:
      position: x; pytree of floating arrays, one chain.
      log_density_fn: maps x to log pi(x) up to a constant; shape ().

    Raises:
      ValueError: a leaf that is not floating, a log density that is not a scalar, or, outside of
        jit and vmap, one that is not finite.

    Cost: one gradient.

    Example:
      >>> from kernelgrad import langevin
      >>> state = langevin.init(jnp.array([2.0]), lambda x: -jnp.sum(x**2) / 2)
      >>> float(state.log_density), state.gradient.tolist()
      (-2.0, [-2.0])
    """
    position = _checks.floating_leaves("position", position)
    return LangevinState(position, *_markov.evaluate_first(position, log_density_fn))


def underdamped_init(
    key: Key, position: PyTree, log_density_fn: LogDensityFn, *, inverse_mass: PyTree | None = None
) -> UnderdampedState:
    """Returns the state at a position with a velocity from N(0, M^-1).

    Args:
      key: random key of the velocity.
      position: x; pytree of floating arrays, one chain.
      log_density_fn: maps x to log pi(x) up to a constant; shape ().
      inverse_mass: diagonal of M^-1, as in :func:`underdamped_step`.

    Raises:
      ValueError: as :func:`init`, or an inverse mass that is not positive or does not fit.

    Cost: one gradient.

    Example:
      >>> from kernelgrad import langevin
      >>> log_p = lambda x: -jnp.sum(x**2) / 2
      >>> state = langevin.underdamped_init(jax.random.key(0), jnp.array([2.0, 0.0]), log_p)
      >>> float(state.log_density), state.velocity.shape
      (-2.0, (2,))
    """
    state = init(position, log_density_fn)
    inverse = _markov.diagonal(inverse_mass, state.position)
    noise = _markov.normal_like(key, state.position)
    velocity = jax.tree.map(lambda m, xi: jnp.sqrt(m) * xi, inverse, noise)
    return UnderdampedState(*state, velocity)


def ula_step(
    key: Key,
    state: LangevinState,
    log_density_fn: LogDensityFn,
    *,
    step_size: float | Array,
    inverse_mass: PyTree | None = None,
) -> tuple[LangevinState, LangevinInfo]:
    r"""Takes an unadjusted Langevin step.

    .. math:: x' = x + h M^{-1} \nabla \log \pi(x) + \sqrt{2h}\, M^{-1/2} \xi, \quad
        \xi \sim N(0, I)

    Its stationary law is not pi but O(h) away: on N(0, 1) the variance is 1 / (1 - h / 2). If the
    log density or its gradient is not finite at x', the chain stays at x and the info says so.

    Args:
      key: random key of this step.
      state: where the chain is, from :func:`init` or an earlier step.
      log_density_fn: maps x to log pi(x) up to a constant; shape ().
      step_size: h > 0; in squared units of x when M is the identity.
      inverse_mass: diagonal of M^-1, > 0: a pytree that broadcasts to the position, best near the
        variances of pi. None is the identity.

    Returns:
      The next state, and whether the proposal was finite.

    Raises:
      ValueError: a concrete step size <= 0, or an inverse mass that is not positive or does not
        fit the position.

    Cost: one gradient.

    Example:
      >>> from kernelgrad import langevin
      >>> log_p = lambda x: -jnp.sum(x**2) / 2
      >>> key, state = jax.random.key(0), langevin.init(jnp.array([0.0]), log_p)  # no drift
      >>> a, b = (langevin.ula_step(key, state, log_p, step_size=h)[0].position for h in (0.1, 0.4))
      >>> bool(jnp.allclose(b, 2 * a))  # the noise is that of sqrt(2 h)
      True

    References:
      Roberts & Tweedie 1996, section 1.4.
    """
    _checks.positive(step_size=step_size)
    inverse = _markov.diagonal(inverse_mass, state.position)
    noise = _markov.normal_like(key, state.position)
    proposal = _propose(noise, state, log_density_fn, step_size, inverse)
    return _unless_broken(proposal, state)


def mala_step(
    key: Key,
    state: LangevinState,
    log_density_fn: LogDensityFn,
    *,
    step_size: float | Array,
    inverse_mass: PyTree | None = None,
) -> tuple[LangevinState, MetropolisInfo]:
    r"""Takes a Langevin step with a Metropolis test, which leaves pi invariant.

    .. math:: \text{energy error} = \log \frac{\pi(x)\, q(x' | x)}{\pi(x')\, q(x | x')}
        = \log \frac{\pi(x)}{\pi(x')} + \tfrac12 |\xi'|^2 - \tfrac12 |\xi|^2, \quad
        \xi' = \xi + \sqrt{h/2}\, M^{-1/2} (\nabla \log \pi(x) + \nabla \log \pi(x'))

    Here q is the proposal of :func:`ula_step` and -xi' the noise that would lead from x' back to x.
    A proposal whose energy is not finite is rejected and flagged, and the chain stays at its own
    position, log density and gradient.

    Args:
      key: random key of this step.
      state: where the chain is, from :func:`init` or an earlier step.
      log_density_fn: maps x to log pi(x) up to a constant; shape ().
      step_size: h > 0; in squared units of x when M is the identity.
      inverse_mass: diagonal of M^-1, as in :func:`ula_step`.

    Returns:
      The next state, and info with the energy error above.

    Raises:
      ValueError: as :func:`ula_step`.

    Cost: one gradient.

    Example:
      >>> from kernelgrad import langevin
      >>> log_p = lambda x: -jnp.sum(x**2) / 2
      >>> state = langevin.init(jnp.array([1.0]), log_p)
      >>> state, info = langevin.mala_step(jax.random.key(0), state, log_p, step_size=1e-3)
      >>> bool(abs(info.energy_error) < 0.01)  # short steps are accepted next to surely
      True

    References:
      Roberts & Tweedie 1996, section 1.4; Roberts & Rosenthal 1998, eq. (2).
    """
    _checks.positive(step_size=step_size)
    inverse = _markov.diagonal(inverse_mass, state.position)
    noise_key, accept_key = jax.random.split(key)
    noise = _markov.normal_like(noise_key, state.position)
    proposal = _propose(noise, state, log_density_fn, step_size, inverse)
    before, after = _numeric.wide(state.log_density), _numeric.wide(proposal.log_density)

    def noise_error(xi: Array, g0: Array, g1: Array, m: Array) -> Array:
        xi, g0, g1, m = (_numeric.wide(a) for a in (xi, g0, g1, m))
        shift = jnp.sqrt(jnp.asarray(step_size, xi.dtype) / 2 * m) * (g0 + g1)
        return jnp.sum(shift * (2 * xi + shift), dtype=before.dtype) / 2

    errors = jax.tree.map(noise_error, noise, state.gradient, proposal.gradient, inverse)
    energy_error = before - after + sum(jax.tree.leaves(errors))
    finite = jnp.isfinite(after)
    return _markov.metropolis(accept_key, energy_error, proposal, state, finite=finite)


def underdamped_step(
    key: Key,
    state: UnderdampedState,
    log_density_fn: LogDensityFn,
    *,
    step_size: float | Array,
    friction: float | Array,
    inverse_mass: PyTree | None = None,
) -> tuple[UnderdampedState, LangevinInfo]:
    r"""Takes an underdamped Langevin step by the BAOAB splitting.

    .. math:: B: v \mathrel{+}= \tfrac{h}{2} M^{-1} \nabla \log \pi(x), \quad
        A: x \mathrel{+}= \tfrac{h}{2} v, \quad
        O: v = c v + \sqrt{1 - c^2}\, M^{-1/2} \xi, \quad c = e^{-\gamma h}

    in the order B A O A B. Its stationary law is :math:`O(h^2)` away from pi(x) N(v; 0, M^-1), and
    the law of x is exact on a Gaussian: on N(0, 1), position and velocity have the variances 1 and
    1 - h^2 / 4. If the log density or its gradient is not finite at x', the chain stays at x with
    its velocity reversed, and the info says so.

    Args:
      key: random key of this step.
      state: where the chain is, from :func:`underdamped_init` or an earlier step.
      log_density_fn: maps x to log pi(x) up to a constant; shape ().
      step_size: h > 0, in units of time; in units of x when M is the identity. A standard normal
        is stable below 2.
      friction: gamma > 0, in 1/units of time. Large: v forgets itself, as in :func:`ula_step` with
        step size h^2 / 2.
      inverse_mass: diagonal of M^-1, as in :func:`ula_step`.

    Returns:
      The next state, and whether the proposal was finite.

    Raises:
      ValueError: a concrete step size or friction <= 0, or an inverse mass that is not positive or
        does not fit the position.

    Cost: one gradient.

    Example:
      >>> from kernelgrad import langevin
      >>> key, flat = jax.random.key(0), lambda x: 0 * jnp.sum(x)
      >>> state = langevin.underdamped_init(key, jnp.array([0.0]), flat)
      >>> state = state._replace(velocity=jnp.array([1.0]))
      >>> state, info = langevin.underdamped_step(key, state, flat, step_size=0.5, friction=1e-9)
      >>> print(state.position.round(2))  # next to no friction: it moves on
      [0.5]

    References:
      Leimkuhler & Matthews 2013, section 2 (BAOAB).
    """
    _checks.positive(step_size=step_size, friction=friction)
    inverse = _markov.diagonal(inverse_mass, state.position)
    noise = _markov.normal_like(key, state.position)
    half = step_size / 2
    decay = jnp.exp(-friction * step_size)
    spread = jnp.sqrt(-jnp.expm1(-2 * friction * step_size))

    def kick(v: PyTree, gradient: PyTree) -> PyTree:
        return _markov.add_scaled(v, half, jax.tree.map(jnp.multiply, inverse, gradient))

    def refresh(v: Array, xi: Array, m: Array) -> Array:
        return jnp.asarray(decay, v.dtype) * v + jnp.asarray(spread, v.dtype) * jnp.sqrt(m) * xi

    velocity = kick(state.velocity, state.gradient)
    x = _markov.add_scaled(state.position, half, velocity)
    velocity = jax.tree.map(refresh, velocity, noise, inverse)
    x = _markov.add_scaled(x, half, velocity)
    log_density, gradient = _markov.evaluate(x, log_density_fn)
    proposal = UnderdampedState(x, log_density, gradient, kick(velocity, gradient))
    reversed_velocity = jax.tree.map(jnp.negative, state.velocity)
    return _unless_broken(proposal, state._replace(velocity=reversed_velocity))


def _propose(
    noise: PyTree,
    state: LangevinState,
    log_density_fn: LogDensityFn,
    step_size: float | Array,
    inverse: PyTree,
) -> LangevinState:
    """The state at x + h M^-1 grad + sqrt(2 h) M^-1/2 noise."""

    def move(x: Array, g: Array, xi: Array, m: Array) -> Array:
        hm = jnp.asarray(step_size, x.dtype) * m
        return x + hm * g + jnp.sqrt(2 * hm) * xi

    x = jax.tree.map(move, state.position, state.gradient, noise, inverse)
    return LangevinState(x, *_markov.evaluate(x, log_density_fn))


def _unless_broken(proposal: _State, fallback: _State) -> tuple[_State, LangevinInfo]:
    """The proposal where all of it is finite, else the fallback."""
    finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(proposal)]).all()
    return _markov.select(finite, proposal, fallback), LangevinInfo(finite)
