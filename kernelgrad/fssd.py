r"""Finite-set Stein discrepancy: a test of fit in linear time that says where the fit fails.

.. math:: \mathrm{FSSD}^2 = \frac1{d J} \sum_{j=1}^J |E_{x \sim q}\, \xi(x, v_j)|^2, \quad
    \xi(x, v) = s(x)\, k(x, v) + \nabla_x k(x, v)

It is 0 if and only if q = p, for almost all locations v and an analytic kernel such as rbf_mixture
or imq_mixture.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _devices, _numeric, _resampling, _traits
from kernelgrad.types import Array, Kernel, Key

_LEAST_DEVIATION = 0.1  # of sigma, in units of the null's: sigma itself is 0 where q = p
_FEWEST_PARTICLES = 10


class FSSDTest(NamedTuple):
    """The outcome of a test of fit at optimised locations.

    Attributes:
      statistic: unbiased FSSD^2 on the held-out particles; shape ().
      p_value: (1 + #{simulated >= statistic}) / (1 + number of simulations); shape ().
      locations: where the training particles and p were seen to disagree; shape (J, d).
    """

    statistic: Array
    p_value: Array
    locations: Array


FSSDTest.__test__ = False  # type: ignore[attr-defined]  # not a test case for pytest


def fssd_u_statistic(particles: Array, score: Array, kernel: Kernel, locations: Array) -> Array:
    r"""Returns the U-statistic of FSSD^2, unbiased and therefore sometimes negative.

    .. math:: \frac{1}{n(n-1)} \sum_{i \ne i'} \tau_i^\top \tau_{i'}, \quad
        \tau_i = (d J)^{-1/2} (\xi(x_i, v_1), \dots, \xi(x_i, v_J))

    Differentiable in all arguments.

    Args:
      particles: x_i; shape (n, d), n >= 2, floating.
      score: s_i = grad log p(x_i), in 1/units of particles; shape (n, d).
      kernel: k, radial, differentiable; its lengthscales are in units of particles.
      locations: v_j; shape (J, d). They must not depend on the particles.

    Returns:
      FSSD^2, shape (), in 1/units of particles squared; at least float32.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes, a feature kernel, or n < 2.

    Cost: O(n d J) time and memory.

    Example:
      >>> from kernelgrad import fssd, kernels
      >>> x, v = jnp.array([[1.0], [2.0]]), jnp.array([[0.0]])  # of N(0, 1): tau = -2 x k(x, 0)
      >>> statistic = fssd.fssd_u_statistic(x, -x, kernels.rbf_mixture(1.0), v)
      >>> round(float(statistic), 3)  # 2 exp(-1/2) * 4 exp(-2)
      0.657

    References:
      Jitkrittum et al. 2017, section 3.
    """
    particles, score = _checks.scored(particles, score)
    particles, locations = _checks.points(particles=particles, locations=locations)
    _checks.at_least("number of particles", particles.shape[0], 2)
    features = _stein_features(particles, score, kernel, locations)
    return _u_statistic(features)


def goodness_of_fit_test(
    key: Key,
    particles: Array,
    score: Array,
    kernel: Kernel,
    *,
    num_locations: int = 5,
    train_fraction: float = 0.2,
    num_starts: int = 10,
    num_steps: int = 100,
    step_size: float | Array = 0.1,
    num_simulations: int = 999,
) -> FSSDTest:
    r"""Tests whether independent particles come from p, in time linear in their number.

    The key splits the particles. On the training part, gradient ascent moves J locations, started
    several times at random training particles, towards the largest :math:`\mathrm{FSSD}^2 /
    \sigma`, with sigma^2 the variance of the statistic under the alternative: a proxy for the
    power. On the rest, the statistic is compared with its limit under the null hypothesis,

    .. math:: n\, \mathrm{FSSD}^2 \to \sum_i (Z_i^2 - 1)\, \omega_i, \quad Z_i \sim N(0, 1)

    with omega the eigenvalues of the sample covariance of tau. Each ascent step has a root mean
    square of step_size standard deviations of the particles over the coordinates, shrinking
    linearly to 0.

    Args:
      key: random key of the split, the start and the simulation.
      particles: x_i, independent; shape (n, d), floating.
      score: s_i = grad log p(x_i), in 1/units of particles; shape (n, d).
      kernel: k, radial, analytic; its lengthscales are in units of particles. Only the locations
        are optimised.
      num_locations: J >= 1, at most the number of training particles; static.
      train_fraction: share of the particles to train on, in (0, 1); static. At least two particles
        are left on either side.
      num_starts: of the ascent, >= 1; static. The best end is taken.
      num_steps: of each ascent, >= 0; static. 0 with one start tests at random training particles.
      step_size: > 0, in standard deviations of the training particles.
      num_simulations: B >= 1; static.

    Returns:
      The statistic on the held-out particles, its p-value and the locations, in at least float32;
      statistic and p-value NaN where a particle, a score or a statistic is not finite.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes, a feature kernel, concrete particles or
        scores that are not finite or whose statistic is not, a number out of its range, or fewer
        than 10 particles: the null distribution is that of many.

    Cost: O(n d J num_starts num_steps + (d J)^3 + B d J) time,
      O(n d J num_starts + (d J)^2 + B d J) memory.

    Example:
      >>> from kernelgrad import fssd, kernels
      >>> key, x = jax.random.key(0), jnp.linspace(3.0, 4.0, 16)[:, None]  # not of N(0, 1)
      >>> settings = {"num_locations": 1, "num_starts": 1, "num_steps": 0, "num_simulations": 99}
      >>> test = fssd.goodness_of_fit_test(key, x, -x, kernels.rbf_mixture(1.0), **settings)
      >>> bool(test.p_value < 0.05), test.locations.shape
      (True, (1, 1))

    References:
      Jitkrittum et al. 2017, Proposition 2 and Theorem 3 for the test, Proposition 4 for the power.
    """
    particles, score = _checks.scored(particles, score)
    _checks.finite(particles=particles, score=score)
    _checks.in_range("train_fraction", train_fraction, 0.0, 1.0)
    _checks.positive(step_size=step_size)
    _checks.at_least("num_starts", num_starts, 1)
    _checks.at_least("num_steps", num_steps, 0)
    _checks.at_least("num_simulations", num_simulations, 1)
    n = particles.shape[0]
    _checks.at_least("number of particles", n, _FEWEST_PARTICLES)
    num_train = min(max(round(train_fraction * n), 2), n - 2)
    _checks.at_least("num_locations", num_locations, 1)
    if num_locations > num_train:
        raise ValueError(
            f"num_locations: got {num_locations}; expected at most {num_train}, the number of "
            "training particles"
        )
    split_key, start_key, null_key = jax.random.split(key, 3)
    order = jax.random.permutation(split_key, n)
    points, score = _numeric.wide(particles), _numeric.wide(score)
    train, test = ((points[part], score[part]) for part in (order[:num_train], order[num_train:]))
    climb = functools.partial(_ascend, *train, kernel, num_steps=num_steps, step_size=step_size)

    def start(key: Key) -> Array:
        return jax.random.choice(key, train[0], (num_locations,), replace=False)

    ends, proxies = jax.vmap(lambda key: climb(start(key)))(jax.random.split(start_key, num_starts))
    locations = ends[jnp.argmax(jnp.where(jnp.isfinite(proxies), proxies, -jnp.inf))]
    features = _stein_features(*test, kernel, locations)
    valid = jnp.all(jnp.isfinite(points)) & jnp.all(jnp.isfinite(score))
    null = _simulated_null(null_key, features, num_simulations)
    return FSSDTest(*_resampling.result(_u_statistic(features), null, 0.0, valid), locations)


def _stein_features(particles: Array, score: Array, kernel: Kernel, locations: Array) -> Array:
    """Returns tau at each particle, shape (n, J d)."""
    if _traits.is_feature_kernel(kernel):
        raise ValueError(_traits.no_feature_kernel(kernel))
    _traits.check_positive(kernel)
    points, sites = _numeric.wide(particles), _numeric.wide(locations)
    steps = points[:, None, :] - sites[None, :, :]
    sq_dist = jnp.sum(jnp.square(steps), axis=2)
    value, slope = jax.jvp(kernel.profile, (sq_dist,), (jnp.ones_like(sq_dist),))
    score = score.astype(points.dtype)
    features = value[:, :, None] * score[:, None, :] + 2 * slope[:, :, None] * steps
    return features.reshape(points.shape[0], -1) / sites.size**0.5


def _u_statistic(features: Array) -> Array:
    n = features.shape[0]
    mean = jnp.mean(features, axis=0)
    own = jnp.mean(jnp.sum(jnp.square(features), axis=1))
    return (n * jnp.sum(jnp.square(mean)) - own) / (n - 1)


def _ascend(
    particles: Array,
    score: Array,
    kernel: Kernel,
    locations: Array,
    *,
    num_steps: int,
    step_size: float | Array,
) -> tuple[Array, Array]:
    """Returns the locations at which the ascent ends, and the power proxy there."""
    spread = jnp.std(particles, axis=0, keepdims=True)

    def proxy(locations: Array) -> Array:
        features = _stein_features(particles, score, kernel, locations)
        size = lax.stop_gradient(jnp.max(jnp.abs(features)))
        features = features / jnp.where(size > 0, size, 1)  # fourth powers; the proxy has no unit
        variance = 4 * jnp.var(_numeric.dot(features, jnp.mean(features, axis=0)))
        null_level = jnp.mean(jnp.sum(jnp.square(features), axis=1))
        floor = jnp.square(_LEAST_DEVIATION * null_level) + jnp.finfo(features.dtype).tiny
        return _u_statistic(features) / jnp.sqrt(variance + floor)

    def step(locations: Array, rate: Array) -> tuple[Array, None]:
        gradient = spread * jax.grad(proxy)(locations)  # per standard deviation
        size = jnp.sqrt(jnp.mean(jnp.square(gradient)))
        return locations + rate / jnp.where(size > 0, size, 1) * gradient * spread, None

    rates = jnp.linspace(1, 0, num_steps, endpoint=False, dtype=locations.dtype)
    rates *= _numeric.like(step_size, locations)
    locations = _devices.varying(locations, particles, score, kernel, rates)
    locations, _ = lax.scan(step, locations, rates)
    return locations, proxy(locations)


def _simulated_null(key: Key, features: Array, num_simulations: int) -> Array:
    """Returns draws from the limit of FSSD^2 under the null hypothesis, shape (B,)."""
    n, dtype = features.shape[0], features.dtype
    centred = features - jnp.mean(features, axis=0, keepdims=True)
    eigenvalues = jnp.linalg.eigvalsh(_numeric.dot(centred.T, centred) / n)
    normal = jax.random.normal(key, (num_simulations, eigenvalues.shape[0]), dtype)
    return _numeric.dot(jnp.square(normal) - 1, eigenvalues) / n
