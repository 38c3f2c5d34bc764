"""Divergences of laws for which they are known: two point masses, and two Gaussians."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from experiments.judges import certificates
from kernelgrad import kale
from kernelgrad.types import Array, Key

_DRAWS = 1000  # of the noise on a point mass


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


def linear_kale(key: Key, size: int, shift: float) -> float:
    """Returns KALE over linear energies of samples of N(shift, 1) (data) and N(0, 1) (base).

    The log-ratio of the two laws is linear, so that with infinitely many draws KALE is
    KL = shift^2 / 2.

    Args:
      key: of the draws.
      size: draws of each law.
      shift: between the means.
    """
    draws = np.asarray(jax.random.normal(key, (2, size)), np.float64)
    data, base = draws[0] + shift, draws[1]

    def loss(params: np.ndarray) -> tuple[float, np.ndarray]:
        value, slopes = _linear_value(*(jnp.asarray(a) for a in (params, data, base)))
        return float(value), np.asarray(slopes, np.float64)

    return -scipy.optimize.minimize(loss, np.zeros(2), jac=True, method="BFGS").fun


@jax.jit
def _linear_value(params: Array, data: Array, base: Array) -> tuple[Array, Array]:
    """Minus KALE of the energy a x with log-normaliser c, and its gradient in (a, c)."""
    return jax.value_and_grad(lambda p: -kale.kale(p[0] * data, p[0] * base, p[1]))(params)


def rate(sizes: np.ndarray, errors: np.ndarray) -> float:
    """Returns the slope of log error over log size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def linear_errors(key: Key, sizes: np.ndarray, shift: float, num_repeats: int) -> np.ndarray:
    """Returns root mean squared errors of :func:`linear_kale`; shape of sizes."""
    errors = []
    for size in sizes:
        keys = jax.random.split(jax.random.fold_in(key, size), num_repeats)
        values = np.array([linear_kale(one, int(size), shift) for one in keys])
        errors.append(math.sqrt(np.mean((values - shift**2 / 2) ** 2)))
    return np.array(errors)
