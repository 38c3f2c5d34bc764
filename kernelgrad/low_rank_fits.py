r"""Regularised fits in O(n r^2): a map of :mod:`kernelgrad.feature_maps` stands in for the kernel.

With the features of n points in the rows of Z, :math:`(Z Z^\top + \eta I)^{-1} Z = Z (Z^\top Z +
\eta I)^{-1}`: systems of n unknowns become systems of r. Each fit comes beside a bound of its error
under the kernel itself. If f is the exact fit, T its operator, positive semidefinite, and
:math:`\rho = (T + \eta) \hat f - b` the residual of the approximation, then
:math:`|\hat f - f| \le |\rho| / \eta`, of which exact rows at a few random points give an estimate.
It is near where landmarks leave eigenvalues far below eta; under random waves it is large.
"""

import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _devices, _numeric, _probes, _solve, feature_maps, pairwise
from kernelgrad._probes import Approximation
from kernelgrad.feature_maps import FeatureMap, LandmarkMap
from kernelgrad.ratio import LinearRatio
from kernelgrad.types import Array, Key

_NUM_PROBES = 256


def stein_score(
    key: Key,
    samples: Array,
    feature_map: FeatureMap,
    *,
    ridge: float | Array,
    num_probes: int = _NUM_PROBES,
    axis_name: str | None = None,
) -> Approximation:
    r"""Returns the Stein estimate of the samples' own score, at each sample.

    .. math:: G = -Z (Z^\top Z + \eta I)^{-1} S, \quad S = \sum_j \nabla z(x_j)

    It is that of :func:`kernelgrad.score.stein_score` with :math:`K \approx Z Z^\top`.

    Args:
      key: random key of the probes.
      samples: x_i, draws of q; shape (n, d), floating.
      feature_map: z.
      ridge: eta > 0, in units of k; see :func:`kernelgrad.score.default_ridge`.
      num_probes: samples of which exact rows of the system are taken, at least 2; static.
      axis_name: if set, samples are the union over all devices.

    Returns:
      Scores G, shape (n, d), at least float32, in 1/units of samples; all NaN where the
      factorisation fails. The error is an upper bound of the relative one,
      :math:`|(K + \eta I) G + N| / (\eta |G|)` in root mean square over samples.

    Raises:
      ValueError: wrong rank or dtype, or a concrete ridge that is not positive.

    Cost: O(n r (r + d) + r^3) time, O(n d + r^2) memory; the probes O(n d num_probes) time.

    Example:
      >>> from kernelgrad import feature_maps, kernels, low_rank_fits
      >>> key, kernel, x = jax.random.key(0), kernels.rbf_mixture(1.0), jnp.array([[-1.0], [1.0]])
      >>> landmarks = feature_maps.landmark_map(key, kernel, x, num_landmarks=2)  # all points
      >>> estimate = low_rank_fits.stein_score(key, x, landmarks, ridge=1.0)
      >>> print(estimate.value.T)  # that of score.stein_score, 2 / (2 e^2 - 1)
      [[ 0.145 -0.145]]

    References:
      Li 2017 (approximate KL gradients), eq. (2), with features.
    """
    samples, eta = _prepare(samples, ridge)
    coefficients = _score_coefficients(feature_map, samples, eta, axis_name)
    value = feature_map.expand(samples, coefficients)
    error = _score_error(key, feature_map, samples, value, eta, num_probes, axis_name)
    return Approximation(value, *error)


def rkhs_score_at(
    key: Key,
    queries: Array,
    samples: Array,
    feature_map: FeatureMap,
    *,
    ridge: float | Array,
    num_probes: int = _NUM_PROBES,
    axis_name: str | None = None,
) -> Approximation:
    r"""Returns the Tikhonov extension of the Stein estimate, at any point.

    .. math:: s(x) = -z(x)^\top (Z^\top Z + \eta I)^{-1} S

    It is that of :func:`kernelgrad.score.rkhs_score_at` with features: there the factor 1/eta of
    the difference of two sums is gone, and at the samples it is :func:`stein_score`.

    Args:
      key: random key of the probes.
      queries: points x; shape (q, d), floating.
      samples: y_j, draws of the density whose score is wanted; shape (n, d).
      feature_map: z.
      ridge: eta > 0, in units of k; n times the Tikhonov parameter lambda.
      num_probes: samples of which exact rows of the system are taken, at least 2; static.
      axis_name: if set, samples are the union over all devices; queries stay apart.

    Returns:
      Scores, shape (q, d), at least float32, in 1/units of samples. The error is that of
      :func:`stein_score`, at the samples.

    Raises:
      ValueError: wrong rank, dtype or dimension, or a concrete ridge that is not positive.

    Cost: that of :func:`stein_score`, and O(q r d) time.

    Example:
      >>> from kernelgrad import feature_maps, kernels, low_rank_fits
      >>> key, kernel, x = jax.random.key(0), kernels.rbf_mixture(1.0), jnp.array([[-1.0], [1.0]])
      >>> landmarks = feature_maps.landmark_map(key, kernel, x, num_landmarks=2)  # all points
      >>> estimate = low_rank_fits.rkhs_score_at(key, x, x, landmarks, ridge=1.0)
      >>> print(estimate.value.T)  # at the samples that of stein_score
      [[ 0.145 -0.145]]

    References:
      Zhou, Shi & Zhu 2020, Theorem 3.1, with features.
    """
    queries, samples = _checks.points(queries=queries, samples=samples)
    samples, eta = _prepare(samples, ridge)
    coefficients = _score_coefficients(feature_map, samples, eta, axis_name)
    value = feature_map.expand(_numeric.like(queries, samples), coefficients)
    own = feature_map.expand(samples, coefficients)
    error = _score_error(key, feature_map, samples, own, eta, num_probes, axis_name)
    return Approximation(value, *error)


def ulsif(
    key: Key,
    p: Array,
    q: Array,
    feature_map: LandmarkMap,
    *,
    ridge: float | Array,
    num_probes: int = _NUM_PROBES,
    axis_name: str | None = None,
) -> Approximation:
    r"""Returns the kernel least-squares fit (KuLSIF) of p / q.

    .. math:: g = z^\top \Big( \frac1m \sum_j z(y_j) z(y_j)^\top + \lambda I \Big)^{-1}
        \frac1n \sum_i z(x_i)

    g minimises :math:`\frac12 E_q g^2 - E_p g + \frac\lambda2 |g|^2` with the norm of the RKHS,
    where :func:`kernelgrad.ratio.ulsif` penalises weights.

    Args:
      key: random key of the probes.
      p: x_i, samples of the numerator; shape (n, d), floating.
      q: y_j, samples of the denominator; shape (m, d).
      feature_map: z, with landmarks.
      ridge: lambda > 0, in units of k.
      num_probes: samples of q of which exact rows of the system are taken, at least 2; static.
      axis_name: if set, both samples are the union over all devices.

    Returns:
      The model, a :class:`kernelgrad.ratio.LinearRatio` for the functions of that module, of
      weights at the landmarks. The error is an upper bound of the relative one of g over q in root
      mean square.

    Raises:
      ValueError: wrong rank, dtype or dimensions, a concrete ridge that is not positive, or a map
        without landmarks.

    Cost: O(m r (r + d) + n r d + r^3) time, O((n + m) d + r^2) memory; the probes O((n + m) d
      num_probes) time.

    Example:
      >>> from kernelgrad import feature_maps, kernels, low_rank_fits, ratio
      >>> key, kernel, x = jax.random.key(0), kernels.rbf_mixture(1.0), jnp.array([[0.0]])
      >>> landmark = feature_maps.landmark_map(key, kernel, x, num_landmarks=1)
      >>> fit = low_rank_fits.ulsif(key, x, x, landmark, ridge=1.0)
      >>> print(ratio.density_ratio(fit.value, x))  # p = q, shrunk by the ridge: 1 / (1 + 1)
      [0.5]

    References:
      Kanamori, Suzuki & Sugiyama 2012 (kernel-based least squares).
    """
    p, q = _checks.points(p=p, q=q)
    if not isinstance(feature_map, LandmarkMap):
        raise ValueError(
            f"feature_map: got {type(feature_map).__name__}; expected a LandmarkMap, at whose "
            "landmarks the model has its weights. Take a landmark_map"
        )
    q, eta = _prepare(q, ridge)
    p = _numeric.like(p, q)
    moment = _devices.mean(feature_maps.second_moment(feature_map, q) / q.shape[0], axis_name)
    mean = _devices.mean(feature_map.moments(p, _shares(p)), axis_name)
    coefficients = _solve.dense(moment, eta)(mean)
    weights = _numeric.dot(_numeric.like(feature_map.whitening, q), coefficients)[:, 0]
    devices = _devices.num_devices(axis_name)
    floor = _numeric.like((p.shape[0] * devices) ** -0.5, q)
    landmarks = _numeric.like(feature_map.landmarks, q)
    model = LinearRatio(feature_map.kernel, landmarks, weights, floor)

    kernel, p, q, weights, eta = lax.stop_gradient((model.kernel, p, q, weights, eta))
    values = pairwise.kernel_sum(kernel, q, lax.stop_gradient(landmarks), weights[:, None])
    chosen = _probes.draw(key, q.shape[0] * devices, num_probes)
    probes, scaled = (_devices.taken(rows, chosen, axis_name) for rows in (q, eta * values))
    left = pairwise.kernel_sum(kernel, probes, q, values / q.shape[0])
    left -= pairwise.kernel_sum(kernel, probes, p, _shares(p))
    residual = _devices.mean(left, axis_name) + scaled
    return Approximation(model, *_probes.relative(residual, scaled))


def _prepare(samples: Array, ridge: float | Array) -> tuple[Array, Array]:
    (samples,) = _checks.points(samples=samples)
    _checks.shape("ridge", ridge, ())
    _checks.positive(ridge=ridge)
    samples = _numeric.wide(samples)
    return samples, _numeric.like(ridge, samples)


def _shares(points: Array) -> Array:
    return jnp.full((points.shape[0], 1), 1 / points.shape[0], points.dtype)


def _score_coefficients(
    feature_map: FeatureMap, samples: Array, eta: Array, axis_name: str | None
) -> Array:
    moment = _devices.total(feature_maps.second_moment(feature_map, samples), axis_name)
    slopes = feature_map.moments(samples, None, jnp.ones_like(samples[:, 0]))
    return -_solve.dense(moment, eta)(_devices.total(slopes, axis_name))


def _score_error(
    key: Key,
    feature_map: FeatureMap,
    samples: Array,
    score: Array,
    eta: Array,
    num_probes: int,
    axis_name: str | None,
) -> tuple[Array, Array]:
    kernel, samples, score, eta = lax.stop_gradient((feature_map.kernel, samples, score, eta))
    chosen = _probes.draw(key, samples.shape[0] * _devices.num_devices(axis_name), num_probes)
    probes, scaled = (_devices.taken(rows, chosen, axis_name) for rows in (samples, eta * score))
    witness = _devices.total(pairwise.stein_sum(kernel, probes, samples, score), axis_name)
    return _probes.relative(witness + scaled, scaled)
