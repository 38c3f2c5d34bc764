"""Long Hamiltonian chains as the reference for everything that has no exact samples."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from kernelgrad import hmc
from kernelgrad.hmc import HMCState, MetropolisInfo
from kernelgrad.types import Array, Key, LogDensityFn

_TARGET_ACCEPTANCE = 0.8
_ADAPTATION_RATE = 0.1
_SCALED_STEP = 0.3  # first guess where the mass makes all scales 1
_MOST_STEPS_PER_CALL = 50


class Chains(NamedTuple):
    """Draws of many chains after warm-up, and whether to trust them.

    Attributes:
      draws: shape (num_chains, num_draws, d).
      acceptance: mean acceptance probability.
      num_divergences: trajectories whose energy error exceeded 1000.
      r_hat: split R-hat, the largest of all coordinates; 1 at convergence, below 1.01 is good.
      effective_draws: number of independent draws that would know the mean as well, the smallest
        of all coordinates.
      step_size: that of the adapted integrator.
    """

    draws: np.ndarray
    acceptance: float
    num_divergences: int
    r_hat: float
    effective_draws: float
    step_size: float

    @property
    def pooled(self) -> np.ndarray:
        """All draws, time by time: (num_draws * num_chains, d), neighbours of different chains."""
        return self.draws.swapaxes(0, 1).reshape(-1, self.draws.shape[2])


class _Ensemble(NamedTuple):
    """All chains and what they share."""

    state: HMCState
    log_step: Array
    inverse_mass: Array


def run(
    key: Key,
    starts: Array,
    log_density_fn: LogDensityFn,
    *,
    num_warmup: int,
    num_draws: int,
    max_leapfrog_steps: int = 10,
    step_size: float = 0.01,
) -> Chains:
    """Runs chains side by side, shows their progress, and returns their draws.

    The warm-up moves the step size towards an acceptance of 0.8; its second half has the variances
    over all chains, as the first half ends, as inverse mass. Trajectories have 1 to
    max_leapfrog_steps steps, uniformly, so that none of them comes back to its start for ever.

    Args:
      key: random key.
      starts: positions of the chains, spread wider than the target; shape (c, d), c >= 2.
      log_density_fn: maps one position (d,) to its log density up to a constant.
      num_warmup: steps thrown away; at least 2.
      num_draws: steps kept; at least 4.
      max_leapfrog_steps: gradients per step, at most.
      step_size: the first guess.

    Returns:
      The chains.
    """
    advance = jax.jit(_make_advance(log_density_fn, max_leapfrog_steps), static_argnums=2)
    state = jax.jit(jax.vmap(lambda start: hmc.init(start, log_density_fn)))(starts)
    ensemble = _Ensemble(state, _log(step_size, starts), jnp.ones(starts.shape[1]))
    positions, infos = [], []
    stages = (num_warmup // 2, num_warmup - num_warmup // 2, num_draws)
    count = max(n for n in range(1, _MOST_STEPS_PER_CALL + 1) if math.gcd(*stages) % n == 0)
    with tqdm(total=sum(stages), desc=f"HMC, {len(starts)} chains", unit="step") as bar:
        for stage, length in enumerate(stages):
            for _ in range(length // count):
                key, call_key = jax.random.split(key)
                ensemble, (visited, info) = advance(call_key, ensemble, count, stage < 2)
                if stage == 2:
                    positions.append(np.asarray(visited))
                    infos.append(jax.device_get(info))
                bar.update(count)
            if stage == 0:
                ensemble = ensemble._replace(
                    log_step=_log(_SCALED_STEP, starts),
                    inverse_mass=jnp.var(ensemble.state.position, axis=0),
                )
    draws = np.concatenate(positions).swapaxes(0, 1)
    return Chains(
        draws,
        float(np.mean([np.mean(info.acceptance_probability) for info in infos])),
        int(np.sum([np.sum(info.diverged) for info in infos])),
        split_r_hat(draws),
        effective_draws(draws),
        float(jnp.exp(ensemble.log_step)),
    )


def split_r_hat(draws: np.ndarray) -> float:
    """Returns the largest split R-hat over coordinates of draws (c, t, d), t >= 4.

    References:
      Gelman et al., Bayesian Data Analysis (3rd ed.), section 11.4.
    """
    half = draws.shape[1] // 2
    halves = np.concatenate([draws[:, :half], draws[:, -half:]]).astype(np.float64)
    within = halves.var(axis=1, ddof=1).mean(axis=0)
    between = halves.mean(axis=1).var(axis=0, ddof=1)
    return float(np.sqrt((half - 1) / half + between / within).max())


def effective_draws(draws: np.ndarray) -> float:
    """Returns c var(draws) / var(means of chains), the smallest over coordinates of (c, t, d)."""
    draws = draws.astype(np.float64)
    variance = draws.reshape(-1, draws.shape[2]).var(axis=0)
    return float((len(draws) * variance / draws.mean(axis=1).var(axis=0, ddof=1)).min())


def _log(step_size: float, like: Array) -> Array:
    return jnp.asarray(math.log(step_size), like.dtype)


_Advance = Callable[[Key, _Ensemble, int, bool], tuple[_Ensemble, tuple[Array, MetropolisInfo]]]


def _make_advance(log_density_fn: LogDensityFn, max_leapfrog_steps: int) -> _Advance:
    """Returns (key, ensemble, count, adapt) -> (ensemble, (positions (count, c, d), infos))."""

    def advance(
        key: Key, ensemble: _Ensemble, count: int, adapt: bool
    ) -> tuple[_Ensemble, tuple[Array, MetropolisInfo]]:
        def step(ensemble: _Ensemble, key: Key) -> tuple[_Ensemble, tuple[Array, MetropolisInfo]]:
            length_key, move_key = jax.random.split(key)
            length = jax.random.randint(length_key, (), 1, max_leapfrog_steps + 1)

            def move(key: Key, state: HMCState) -> tuple[HMCState, MetropolisInfo]:
                return hmc.step(
                    key,
                    state,
                    log_density_fn,
                    step_size=jnp.exp(ensemble.log_step),
                    num_leapfrog_steps=length,
                    inverse_mass=ensemble.inverse_mass,
                )

            keys = jax.random.split(move_key, num_chains)
            state, info = jax.vmap(move)(keys, ensemble.state)
            miss = jnp.mean(info.acceptance_probability) - _TARGET_ACCEPTANCE
            log_step = ensemble.log_step + _ADAPTATION_RATE * miss * adapt
            return _Ensemble(state, log_step, ensemble.inverse_mass), (state.position, info)

        num_chains = ensemble.state.position.shape[0]
        return lax.scan(step, ensemble, jax.random.split(key, count))

    return advance
