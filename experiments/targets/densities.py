r"""Densities to draw from: 2-D ones that come with exact draws, and a posterior that has none.

===================  ==============================================================================
ring                 |x|^2 is N(1, 0.2^2) cut at 0, the angle uniform: a ring about 0.1 wide
banana               x_1 ~ N(0, 1), x_2 ~ N((x_1^2 - 1) / 2, 0.3^2)
mixture              8 equal Gaussians of standard deviation 0.25 on a circle of radius 2
swiss_roll           kernel density estimate of 500 points of the roll, bandwidth 0.07
grid                 25 equal Gaussians of standard deviation 0.05 at (i, j); i, j = -2, ..., 2
logistic_regression  posterior of :mod:`experiments.targets.posteriors`, red wine, quality >= 6
===================  ==============================================================================

All but the posterior are normalised.
"""

import difflib
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm

from experiments.data import catalog
from experiments.run.errors import UsageError
from experiments.targets import posteriors
from kernelgrad.types import Array, Key, LogDensityFn

_RING_WIDTH = 0.1
_BANANA_WIDTH = 0.3
_NUM_MODES, _MODE_RADIUS, _MODE_WIDTH = 8, 2.0, 0.25
_NUM_ROLL_POINTS, _ROLL_BANDWIDTH = 500, 0.07
_GRID_WIDTH = 0.05

Bounds = tuple[tuple[float, float], tuple[float, float]]


class Modes(NamedTuple):
    """Equal round Gaussians that hardly overlap.

    Attributes:
      centres: (m, d).
      width: their standard deviation.
    """

    centres: np.ndarray
    width: float


class Target(NamedTuple):
    """A density to draw from.

    Attributes:
      name: the name it was asked by.
      log_density_fn: log p at one point (d,), up to a constant; shape ().
      dimension: d.
      exact_samples: (key, n) -> (n, d), independent draws of p; None where nobody has them.
      bounds: ((low, high), (low, high)) of a picture of p; None unless d = 2.
      modes: what p consists of; None for anything but separate Gaussians.
    """

    name: str
    log_density_fn: LogDensityFn
    dimension: int
    exact_samples: Callable[[Key, int], Array] | None
    bounds: Bounds | None
    modes: Modes | None = None


def load(name: str, data_dir: str | None = None, *, seed: int = 0) -> Target:
    """Returns the target `name`.

    Args:
      name: one of NAMES.
      data_dir: folder with uci/winequality-red.csv; for logistic_regression only.
      seed: of the points of the Swiss roll, and of the split of the wines.

    Raises:
      UsageError: an unknown name.
      DataError: the wines are missing or damaged.
    """
    if name in _PLANE:
        return _PLANE[name](seed)
    if name == "logistic_regression":
        posterior = posteriors.red_wine(data_dir, seed=seed)
        return Target(name, posterior.log_density, posterior.dimension, None, None)
    nearest = difflib.get_close_matches(name, NAMES, n=1, cutoff=0)[0]
    raise UsageError(
        f"target: got {name!r}; expected one of {', '.join(NAMES)}. Did you mean {nearest}?"
    )


def _ring(_: int) -> Target:
    mass = math.pi * norm.cdf(1 / (2 * _RING_WIDTH))  # of the plane is pi d|x|^2

    def log_density(x: Array) -> Array:
        return norm.logpdf(jnp.sum(jnp.square(x)), 1, 2 * _RING_WIDTH) - jnp.log(mass)

    def exact_samples(key: Key, n: int) -> Array:
        radius_key, angle_key = jax.random.split(key)
        low = -1 / (2 * _RING_WIDTH)
        normal = jax.random.truncated_normal(radius_key, low, jnp.inf, (n, 1))
        angle = jax.random.uniform(angle_key, (n, 1), maxval=2 * jnp.pi)
        circle = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)
        return jnp.sqrt(1 + 2 * _RING_WIDTH * normal) * circle

    return Target("ring", log_density, 2, exact_samples, ((-1.6, 1.6), (-1.6, 1.6)))


def _banana(_: int) -> Target:
    def log_density(x: Array) -> Array:
        return norm.logpdf(x[0]) + norm.logpdf(x[1], (x[0] ** 2 - 1) / 2, _BANANA_WIDTH)

    def exact_samples(key: Key, n: int) -> Array:
        first, second = jax.random.normal(key, (2, n))
        return jnp.stack([first, (first**2 - 1) / 2 + _BANANA_WIDTH * second], axis=1)

    return Target("banana", log_density, 2, exact_samples, ((-3.5, 3.5), (-2.0, 5.0)))


def _mixture(_: int) -> Target:
    angle = 2 * np.pi * np.arange(_NUM_MODES) / _NUM_MODES
    centres = _MODE_RADIUS * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return _separate("mixture", Modes(centres, _MODE_WIDTH), 3.0)


def _swiss_roll(seed: int) -> Target:
    points = catalog.load("swiss_roll", seed=seed).train[:_NUM_ROLL_POINTS]
    return _gaussians("swiss_roll", points, _ROLL_BANDWIDTH, ((-1.8, 1.8), (-1.8, 1.8)))


def _grid(_: int) -> Target:
    side = np.arange(-2.0, 3.0)
    centres = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    return _separate("grid", Modes(centres, _GRID_WIDTH), 2.6)


def _separate(name: str, modes: Modes, reach: float) -> Target:
    target = _gaussians(name, modes.centres, modes.width, ((-reach, reach), (-reach, reach)))
    return target._replace(modes=modes)


def _gaussians(name: str, centres: np.ndarray, width: float, bounds: Bounds) -> Target:
    """Returns equal round Gaussians around centres (m, 2), added up in logs."""
    means = jnp.asarray(centres, jnp.float32)

    def log_density(x: Array) -> Array:
        components = jnp.sum(norm.logpdf(x, means, width), axis=1)
        return logsumexp(components) - math.log(len(means))

    def exact_samples(key: Key, n: int) -> Array:
        choice_key, noise_key = jax.random.split(key)
        chosen = jax.random.choice(choice_key, means, (n,))
        return chosen + width * jax.random.normal(noise_key, chosen.shape)

    return Target(name, log_density, 2, exact_samples, bounds)


_PLANE: dict[str, Callable[[int], Target]] = {
    "ring": _ring,
    "banana": _banana,
    "mixture": _mixture,
    "swiss_roll": _swiss_roll,
    "grid": _grid,
}
PLANE = tuple(_PLANE)
NAMES = (*PLANE, "logistic_regression")
