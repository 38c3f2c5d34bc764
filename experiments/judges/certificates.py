"""Bounds on the Wasserstein distance, seen through noise: paper 002's Theorem 3.3 and a sharper."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from scipy.spatial import distance
from tqdm import tqdm

from kernelgrad import adversarial, certificate, noise
from kernelgrad.types import Array, Key


class Certificate(NamedTuple):
    """Theorem 3.3 over the variances of the noise in each coordinate, arrays of shape (levels,).

    Attributes:
      variances: from large to small.
      learned_jsd: by the annealed discriminator at held-out images: on average at most the JSD.
      learned: the bound with it, an estimate from below.
      cloud_jsd: of two clouds under bounded noise, by their optimal discriminator.
      cloud: the bound with it.
      sharp: the sharper bound with it.
      gaussian_jsd: of both clouds under Gaussian noise, by their optimal discriminator.
      distance: W1 of the clouds.
      diameter: of the cube [0, 1]^d, above which a bound says nothing.
    """

    variances: np.ndarray
    learned_jsd: np.ndarray
    learned: np.ndarray
    cloud_jsd: np.ndarray
    cloud: np.ndarray
    sharp: np.ndarray
    gaussian_jsd: np.ndarray
    distance: float
    diameter: float


def certify(key: Key, learned: np.ndarray, real: Array, fake: Array) -> Certificate:
    """Returns the certificates of an annealed discriminator and of two clouds in [0, 1]^d.

    Args:
      key: of the noise on the clouds.
      learned: variances and the discriminator's estimates of the JSD; shape (levels, 2).
      real: images; shape (n, d).
      fake: as many generated ones.
    """
    variances, learned_jsd = learned.T
    keys = jax.random.split(key, len(variances))
    progress = tqdm(zip(variances, keys, strict=True), "clouds under noise", len(variances))
    pairs = [
        (bounded_jsd(one, real, fake, variance), gaussian_jsd(one, real, fake, variance))
        for variance, one in progress
    ]
    cloud_jsd, gaussian = np.array(pairs).T
    return Certificate(
        variances,
        learned_jsd,
        bounds(learned_jsd, variances, real.shape[1]),
        cloud_jsd,
        bounds(cloud_jsd, variances, real.shape[1]),
        sharp_bounds(cloud_jsd, variances, real.shape[1]),
        gaussian,
        assignment_distance(real, fake),
        math.sqrt(real.shape[1]),
    )


def bounds(jsd: np.ndarray, variances: np.ndarray, dimension: int) -> np.ndarray:
    r"""Returns Theorem 3.3's bounds for laws on [0, 1]^d under uniform noise.

    The ball around (1/2, ..., 1/2) that holds the noised images has the diameter
    :math:`C = \sqrt d + 2 \sqrt{3 V}`, where :math:`V = d \sigma^2`.

    Args:
      jsd: of the noised laws, in nats; shape (levels,).
      variances: sigma^2, of the noise in each coordinate; shape (levels,).
      dimension: d.
    """
    return _over_levels(adversarial.wasserstein_bound, jsd, variances, dimension)


def sharp_bounds(jsd: np.ndarray, variances: np.ndarray, dimension: int) -> np.ndarray:
    """Returns the bounds by total variation for the laws of :func:`bounds`."""
    return _over_levels(certificate.sharp_wasserstein_bound, jsd, variances, dimension)


def _over_levels(
    bound: Callable[..., Array], jsd: np.ndarray, variances: np.ndarray, dimension: int
) -> np.ndarray:
    total = dimension * variances
    diameters = math.sqrt(dimension) + 2 * np.sqrt(3 * total)
    return np.asarray(jax.vmap(bound)(*map(jnp.asarray, (jsd, total, diameters))))


def assignment_distance(x: np.ndarray | Array, y: np.ndarray | Array) -> float:
    """Returns W1 of two equally large clouds (n, d), exactly: the cheapest assignment's mean."""
    costs = distance.cdist(np.asarray(x), np.asarray(y))
    return float(costs[scipy.optimize.linear_sum_assignment(costs)].mean())


def gaussian_jsd(key: Key, real: Array, fake: Array, variance: float) -> float:
    """Returns the JSD of two clouds (n, d) under Gaussian noise, in nats, without a network.

    An unbiased estimate, by one draw of the noise a point.
    """
    logits = [
        noise.noisy_logits(
            noise.instance_noise(one, cloud, variance=variance), real, fake, variance=variance
        )
        for one, cloud in zip(jax.random.split(key), (real, fake), strict=True)
    ]
    return float(adversarial.jsd_estimate(*logits))


def bounded_jsd(key: Key, real: Array, fake: Array, variance: float) -> float:
    r"""Returns the JSD of two clouds (n, d) under bounded noise, in nats, without a network.

    An unbiased estimate, by one draw of the noise a point, with the optimal logits

    .. math:: \log \frac{\#\{j : |x - y_j|_\infty \le \sqrt 3 \sigma\}}
        {\#\{j : |x - \tilde x_j|_\infty \le \sqrt 3 \sigma\}}

    a ratio of the numbers of noise cubes around x.
    """
    reach = math.sqrt(3 * variance) * (1 + 1e-5)  # a point is inside its own cube, rounded or not
    logits = []
    for one, cloud in zip(jax.random.split(key), (real, fake), strict=True):
        points = noise.bounded_noise(one, cloud, variance=variance)
        with np.errstate(divide="ignore"):
            of_real, of_fake = (
                np.log(np.sum(distance.cdist(points, centres, "chebyshev") <= reach, axis=1))
                for centres in (real, fake)
            )
        logits.append(jnp.asarray(of_real - of_fake, real.dtype))
    return float(adversarial.jsd_estimate(*logits))
