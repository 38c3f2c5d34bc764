"""Divergences of laws for which they are known: two point masses, and densities on a line."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from experiments.judges import certificates
from kernelgrad import kale, kale_rkhs, kernels
from kernelgrad.types import Array, Key

_DRAWS = 1000  # of the noise on a point mass
_GRID = np.linspace(-8, 8, 4001)  # on which a density is summed and inverted
_LENGTHSCALE = 1.0  # of the Gaussian kernel
_BUMP = 2.0  # of the log-ratio that is in its RKHS
_PENALTY = 0.5  # lambda at one draw


class Ratio(NamedTuple):
    """A density on a line over that of N(0, 1), the base.

    Attributes:
      log_ratio: of the two at points (n,), in float64.
      kl: KL[data || base] in nats.
    """

    log_ratio: Callable[[np.ndarray], np.ndarray]
    kl: float

    def draw(self, key: Key, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns draws of the data, by the inverse of their distribution, and of the base."""
        data_key, base_key = jax.random.split(key)
        mass = np.cumsum(_base_mass() * np.exp(self.log_ratio(_GRID)))
        uniform = np.asarray(jax.random.uniform(data_key, (size,)), np.float64)
        base = np.asarray(jax.random.normal(base_key, (size,)), np.float64)
        return np.interp(uniform * mass[-1], mass, _GRID), base


def gaussian_shift(shift: float) -> Ratio:
    """Returns N(shift, 1): its log-ratio is linear, and in no RKHS of a Gaussian kernel."""
    return Ratio(lambda x: shift * x - shift**2 / 2, shift**2 / 2)


def two_bumps() -> Ratio:
    r"""Returns the law whose log-ratio is a k(x, 1) - b k(x, -1), in the RKHS of k.

    a is 2, and b such that the ratio has the mean 1 without a constant, which the RKHS has not.
    """
    up, down = (np.exp(-((_GRID - c) ** 2) / (2 * _LENGTHSCALE**2)) for c in (1, -1))
    mass = _base_mass()
    excess = lambda b: mass @ np.exp(_BUMP * up - b * down) - 1  # noqa: E731
    b = scipy.optimize.brentq(excess, 0, 20 * _BUMP)
    values = _BUMP * up - b * down
    return Ratio(lambda x: np.interp(x, _GRID, values), float(mass @ (np.exp(values) * values)))


def _base_mass() -> np.ndarray:
    mass = np.exp(-(_GRID**2) / 2)
    return mass / mass.sum()


def lipschitz_kale(distances: np.ndarray, lipschitz: float) -> np.ndarray:
    """Returns KALE of point masses at 0 (data) and theta (base) over energies of bounded slope.

    The best energy falls as steeply as it may from the base to the data: E(x) = L |x|, with the
    log-normaliser that is best for it. The supremum is L theta, L times W1 (a test tries others).

    Args:
      distances: theta; shape (t,).
      lipschitz: L, the largest slope.
    """

    def of(theta: Array) -> Array:
        energy_data, energy_base = jnp.zeros(1), lipschitz * theta[None]
        best = kale.optimal_log_normalizer(energy_base)
        return kale.kale(energy_data, energy_base, best)

    return np.asarray(jax.vmap(of)(jnp.asarray(distances, jnp.float32)))


def noised_jsd(key: Key, distances: np.ndarray, variance: float) -> np.ndarray:
    """Returns the JSD of point masses at 0 and theta under Gaussian noise, in nats.

    Args:
      key: of the noise; an estimate by 1000 draws on each side.
      distances: theta; shape (t,).
      variance: of the noise.
    """
    at_0 = jnp.zeros((_DRAWS, 1))
    values = [certificates.gaussian_jsd(key, at_0, at_0 + theta, variance) for theta in distances]
    return np.array(values)


def linear_kale(key: Key, size: int, law: Ratio) -> float:
    """Returns KALE over linear energies, of samples of a law (data) and of N(0, 1) (base).

    Where the log-ratio of the two is linear, it is KL with infinitely many draws.

    Args:
      key: of the draws.
      size: draws of each law.
      law: of the data.
    """
    data, base = law.draw(key, size)

    def loss(params: np.ndarray) -> tuple[float, np.ndarray]:
        value, slopes = _linear_value(*(jnp.asarray(a) for a in (params, data, base)))
        return float(value), np.asarray(slopes, np.float64)

    return -scipy.optimize.minimize(loss, np.zeros(2), jac=True, method="BFGS").fun


@jax.jit
def _linear_value(params: Array, data: Array, base: Array) -> tuple[Array, Array]:
    """Minus KALE of the energy a x with log-normaliser c, and its gradient in (a, c)."""
    return jax.value_and_grad(lambda p: -kale.kale(p[0] * data, p[0] * base, p[1]))(params)


def rkhs_kale(key: Key, size: int, law: Ratio) -> float:
    """Returns KALE over the RKHS of a Gaussian kernel, under a penalty that falls as 1 / sqrt(n).

    Arguments as of :func:`linear_kale`.
    """
    data, base = (jnp.asarray(draws, jnp.float32)[:, None] for draws in law.draw(key, size))
    return float(_rkhs_value(data, base, _PENALTY / math.sqrt(size)))


@jax.jit
def _rkhs_value(data: Array, base: Array, regularization: Array) -> Array:
    kernel = kernels.rbf_mixture(_LENGTHSCALE)
    return kale_rkhs.fit(data, base, kernel, regularization=regularization).value


def rate(sizes: np.ndarray, errors: np.ndarray) -> float:
    """Returns the slope of log error over log size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def errors(
    key: Key,
    estimate: Callable[[Key, int, Ratio], float],
    law: Ratio,
    sizes: np.ndarray,
    num_repeats: int,
) -> np.ndarray:
    """Returns root mean squared errors of an estimate of KL.

    Args:
      key: of all draws.
      estimate: (key, draws of each law, law of the data) -> nats.
      law: of the data.
      sizes: numbers of draws; shape (s,).
      num_repeats: samples behind an error.

    Returns:
      Nats, shape (s,).
    """
    found = []
    for size in sizes:
        keys = jax.random.split(jax.random.fold_in(key, size), num_repeats)
        values = np.array([estimate(one, int(size), law) for one in keys])
        found.append(math.sqrt(np.mean((values - law.kl) ** 2)))
    return np.array(found)
