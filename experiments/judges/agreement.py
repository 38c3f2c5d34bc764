"""How well particles agree with a long chain: discrepancy, moments and predictions."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.targets.posteriors import LogisticPosterior
from kernelgrad import kernels, ksd
from kernelgrad.types import Array, Kernel, Key

_SUBSETS = 10  # of the chain's draws, behind each of its discrepancies
Scalars = dict[str, Array]


class Reference(NamedTuple):
    """What a set of particles is compared with.

    Attributes:
      draws: of the chain; shape (m, d).
      mean: of the draws; shape (d,).
      covariance: of the draws; shape (d, d).
      kernel: of the discrepancy: IMQ, its lengthscale the median distance of 5000 draws.
    """

    draws: Array
    mean: Array
    covariance: Array
    kernel: Kernel


def make_reference(draws: np.ndarray) -> Reference:
    """Returns what draws (m, d) of a chain say about its density."""
    kernel = kernels.imq_mixture(kernels.median_lengthscale(jnp.asarray(draws[:5000])))
    covariance = np.cov(draws.astype(np.float64), rowvar=False)
    return Reference(
        jnp.asarray(draws),
        jnp.asarray(draws.mean(axis=0, dtype=np.float64), jnp.float32),
        jnp.asarray(covariance, jnp.float32),
        kernel,
    )


def measure(posterior: LogisticPosterior, reference: Reference, particles: Array) -> Scalars:
    """Returns the figures of particles (n, d), n >= 2, by name; each of shape ()."""
    predictive = posterior.predictive(particles)
    variances = jnp.diagonal(reference.covariance)
    covariance = jnp.cov(particles.T)
    errors = (jnp.mean(particles, axis=0) - reference.mean) / jnp.sqrt(variances)
    miss = jnp.linalg.norm(covariance - reference.covariance)
    return {
        "ksd": root_ksd(posterior, reference, particles),
        "test_accuracy": predictive.accuracy,
        "test_log_likelihood": predictive.log_likelihood,
        "mean_error": jnp.sqrt(jnp.mean(jnp.square(errors))),
        "variance_ratio": jnp.mean(jnp.diagonal(covariance) / variances),
        "covariance_error": miss / jnp.linalg.norm(reference.covariance),
    }


def root_ksd(posterior: LogisticPosterior, reference: Reference, particles: Array) -> Array:
    """Returns the root of the V-statistic of KSD^2 of particles (n, d)."""
    square = ksd.ksd_v_statistic(particles, posterior.score(particles), reference.kernel)
    return jnp.sqrt(jnp.maximum(square, 0))


def ksd_of_draws(key: Key, posterior: LogisticPosterior, reference: Reference, n: int) -> float:
    """Returns the KSD of n draws of the chain, the mean over ten subsets."""
    of_subset = jax.jit(functools.partial(root_ksd, posterior, reference))
    subsets = (jax.random.choice(k, reference.draws, (n,)) for k in jax.random.split(key, _SUBSETS))
    return float(np.mean([of_subset(subset) for subset in subsets]))
