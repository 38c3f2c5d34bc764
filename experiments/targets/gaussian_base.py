"""The Gaussian that an energy stands on, weighted draws for its normaliser, and likelihoods."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernelgrad import kernels, pairwise
from kernelgrad.kale import NormalizerEstimate
from kernelgrad.types import Array, Key

_MOST_CORRELATED = 0.98
_BLURS = (0.25, 0.5, 1.0)  # in whitened units
_MOST_CENTRES = 5000


def distinct_columns(tables: Sequence[np.ndarray]) -> list[int]:
    """Returns the columns that in no table nearly repeat one kept before them.

    Args:
      tables: at least one, of the same d columns; shapes (n, d). The splits of a set are judged
        together, so that their likelihoods are of the same quantity.

    Returns:
      Indices, ascending: the largest |correlation| of two of them is at most 0.98.

    References:
      Wenliang et al. 2019 (learning deep kernels for densities), the UCI tables.
    """
    correlations = [np.atleast_2d(np.corrcoef(table.astype(np.float64).T)) for table in tables]
    largest = np.max(np.abs(correlations), axis=0)
    kept: list[int] = []
    for column in range(len(largest)):
        if np.max(largest[column, kept], initial=0) <= _MOST_CORRELATED:
            kept.append(column)
    return kept


class Base(NamedTuple):
    """The Gaussian of the rows it was fitted to, in float64.

    Attributes:
      mean: shape (d,).
      factor: lower Cholesky factor of the covariance; shape (d, d).
    """

    mean: np.ndarray
    factor: np.ndarray

    def whiten(self, points: np.ndarray) -> np.ndarray:
        """Returns factor^-1 (x - mean), float32, for points x (n, d)."""
        shifted = points.astype(np.float64) - self.mean
        return np.linalg.solve(self.factor, shifted.T).T.astype(np.float32)

    @property
    def log_volume(self) -> float:
        """Log |det factor|: the log-density in whitened coordinates minus that in those of x."""
        return float(np.sum(np.log(np.diagonal(self.factor))))


def fit_base(rows: np.ndarray) -> Base:
    """Returns the likeliest Gaussian of rows (n, d), n > d."""
    rows = rows.astype(np.float64)
    covariance = np.atleast_2d(np.cov(rows, rowvar=False, bias=True))
    return Base(rows.mean(axis=0), np.linalg.cholesky(covariance))


class Split(NamedTuple):
    """One split of a data set, whitened.

    Attributes:
      base: the Gaussian of the training rows.
      train: shape (n, d).
      valid: shape (k, d).
      test: shape (m, d).
      is_new: which test rows do not occur among the training rows; shape (m,), bool.
    """

    base: Base
    train: Array
    valid: Array
    test: Array
    is_new: np.ndarray


def whitened_split(train: np.ndarray, valid: np.ndarray, test: np.ndarray) -> Split:
    """Returns rows (n, d), (k, d) and (m, d) in coordinates where the training rows are white."""
    base = fit_base(train)
    seen = {row.tobytes() for row in train}
    is_new = np.array([row.tobytes() not in seen for row in test])
    white = [jnp.asarray(base.whiten(rows)) for rows in (train, valid, test)]
    return Split(base, white[0], white[1], white[2], is_new)


@jax.jit
def standard_normal(points: Array) -> Array:
    """Returns log N(x; 0, I) at points (n, d); shape (n,)."""
    squares = jnp.sum(jnp.square(points), axis=1)
    return -(squares + points.shape[1] * math.log(2 * math.pi)) / 2


# ------------------------------------------------------------------------------- weighted draws


class WeightedDraws(NamedTuple):
    """Draws of another density m that stand in for draws of the base g = N(0, I).

    Attributes:
      points: shape (n, d).
      log_weights: log g / m; shape (n,).
    """

    points: Array
    log_weights: Array


@functools.partial(jax.jit, static_argnums=2)
def defensive_draws(key: Key, rows: Array, n: int) -> WeightedDraws:
    r"""Returns draws of the mixture m = (g + b) / 2, where b are the rows blurred by Gaussians.

    .. math:: E_g\, e^{-E} = E_m\, e^{-(E - \log g / m)}, \quad g / m \le 2

    Rows lie where g never draws. An energy may put much of its mass there, unseen by a sample of
    g, which then has the log-normaliser too low and every density too high.

    Args:
      key: random key.
      rows: whitened training rows; shape (m, d). The first 5000 count.
      n: number of draws.

    References:
      Hesterberg 1995, weighted average importance sampling and defensive mixture distributions.
    """
    rows = rows[:_MOST_CENTRES]
    side_key, row_key, blur_key, noise_key = jax.random.split(key, 4)
    noise = jax.random.normal(noise_key, (n, rows.shape[1]), rows.dtype)
    blurs = jax.random.choice(blur_key, jnp.asarray(_BLURS, rows.dtype), (n, 1))
    centres = rows[jax.random.randint(row_key, (n,), 0, rows.shape[0])]
    of_base = jax.random.bernoulli(side_key, 0.5, (n, 1))
    points = jnp.where(of_base, noise, centres + blurs * noise)
    return WeightedDraws(points, defensive_log_weights(points, rows))


@jax.jit
def defensive_log_weights(points: Array, rows: Array) -> Array:
    """Returns log g / m of :func:`defensive_draws` at points (n, d); shape (n,)."""
    base = standard_normal(points)
    mixture = jnp.logaddexp(base, _blurred(rows[:_MOST_CENTRES])(points)) - math.log(2)
    return base - mixture


def _blurred(rows: Array) -> Callable[[Array], Array]:
    """Returns the log-density of rows (m, d) plus noise of three equally likely scales."""
    scales = jnp.asarray(_BLURS, rows.dtype)
    peaks = (scales * math.sqrt(2 * math.pi)) ** -rows.shape[1] / scales.size
    kernel = kernels.rbf_mixture(scales, peaks)
    shares = jnp.full((rows.shape[0], 1), 1 / rows.shape[0], rows.dtype)
    return lambda points: jnp.log(pairwise.kernel_sum(kernel, points, rows, shares)[:, 0])


# ---------------------------------------------------------------------------------- likelihoods


class Likelihood(NamedTuple):
    """The mean log-likelihood of rows, in nats, and how far to trust it.

    Attributes:
      value: mean of log q, a density in the coordinates of the rows before they were whitened.
      standard_error: of the value; the rows' and the normaliser's combined.
      gain: by how much the value exceeds that of the base.
      gain_error: standard error of the gain, row by row, and of the normaliser.
      effective_draws: effective sample size behind the normaliser.
    """

    value: float
    standard_error: float
    gain: float
    gain_error: float
    effective_draws: float


def likelihood(
    energy: Array, whitened: Array, log_volume: float, normalizer: NormalizerEstimate
) -> Likelihood:
    r"""Returns the mean of log q = log g - E - c over rows, with its standard error.

    .. math:: \mathrm{se}^2 = \tfrac1n \mathrm{var}_i [\log g(x_i) - E(x_i)] + \mathrm{se}_c^2

    Args:
      energy: E at the rows; shape (n,), n >= 2.
      whitened: the rows in whitened coordinates; shape (n, d).
      log_volume: of the base.
      normalizer: c, from draws that are independent of the rows.
    """
    c, c_error, effective_draws = (float(value) for value in normalizer)
    gains = -np.asarray(energy, np.float64) - c
    values = gains + np.asarray(standard_normal(whitened), np.float64) - log_volume

    def error(terms: np.ndarray) -> float:
        return math.hypot(float(terms.std(ddof=1)) / math.sqrt(len(terms)), c_error)

    return Likelihood(
        float(values.mean()), error(values), float(gains.mean()), error(gains), effective_draws
    )
