r"""Sums over pairs in O(n r): a map of :mod:`kernelgrad.feature_maps` stands in for the kernel.

Each function is its namesake of :mod:`kernelgrad.pairwise`, :mod:`kernelgrad.mmd`,
:mod:`kernelgrad.ksd` or :mod:`kernelgrad.svgd` under :math:`\hat k(x, y) = z(x)^\top z(y)`, and
returns an :class:`Approximation`: beside the value an estimate of its error under k itself, from
exact sums at a few random points. Under jit an error that is not used costs nothing. Values are
differentiable where their namesakes are, in reverse mode; errors carry no gradient.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _devices, _numeric, _probes, _traits, feature_maps, mmd, pairwise
from kernelgrad._probes import Approximation
from kernelgrad.feature_maps import FeatureMap
from kernelgrad.types import Array, Kernel, Key, PyTree

_NUM_PROBES = 256


# -------------------------------------------------------------------------------------------- sums


def kernel_sum(
    key: Key,
    feature_map: FeatureMap,
    x: Array,
    y: Array | None,
    weights: Array,
    *,
    num_probes: int = _NUM_PROBES,
    axis_name: str | None = None,
) -> Approximation:
    r"""Returns the kernel-weighted sums over y at each x.

    .. math:: S_i = z(x_i)^\top \sum_j z(y_j) w_j^\top \approx \sum_j k(x_i, y_j) w_j

    Args:
      key: random key of the probes.
      feature_map: z.
      x: points x_i; shape (n, d), floating.
      y: points y_j; shape (m, d). None: x itself.
      weights: w_j; shape (m, p).
      num_probes: rows of which exact sums are taken, at least 2; static.
      axis_name: if set, j runs over the union of all devices' y and weights, and probes are rows of
        all devices' x.

    Returns:
      Sums, shape (n, p), at least float32. The error is relative, in root mean square over rows.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes.

    Cost: O((n + m) r (d + p)) time, O((n + m) (d + p)) memory; the probes O(m d num_probes) time.

    Example:
      >>> from kernelgrad import feature_maps, kernels, low_rank
      >>> key, kernel, x = jax.random.key(0), kernels.rbf_mixture(1.0), jnp.array([[0.0], [1.0]])
      >>> landmarks = feature_maps.landmark_map(key, kernel, x, num_landmarks=2)  # all points
      >>> sums = low_rank.kernel_sum(key, landmarks, x, None, jnp.ones((2, 1)))
      >>> print(sums.value.T, bool(sums.error < 1e-3))  # 1 + exp(-1/2)
      [[1.607 1.607]] True

    References:
      Rahimi & Recht 2007; Williams & Seeger 2001 (Nystrom).
    """
    x, y = _checks.pair(x, y)
    others = x if y is None else y
    x, others, weights = _wide(*_checks.floating(x=x, y=others, weights=weights))
    _checks.shape("weights", weights, (others.shape[0], "p"))
    moments = _devices.total(feature_map.moments(others, weights), axis_name)
    value = feature_map.expand(x, moments)
    exact = functools.partial(pairwise.kernel_sum, feature_map.kernel)
    return _rows(key, exact, x, (others, weights), value, num_probes, axis_name)


def gradient_sum(
    key: Key,
    feature_map: FeatureMap,
    x: Array,
    y: Array | None,
    weights: Array | None = None,
    *,
    num_probes: int = _NUM_PROBES,
    axis_name: str | None = None,
) -> Approximation:
    r"""Returns the summed kernel gradients in the second argument, at each x.

    .. math:: N_i = z(x_i)^\top \sum_j w_j \nabla z(y_j) \approx \sum_j w_j \nabla_{y_j} k(x_i, y_j)

    Args:
      key: random key of the probes.
      feature_map: z, of a kernel that is differentiable at 0.
      x: points x_i; shape (n, d), floating.
      y: points y_j; shape (m, d). None: x itself.
      weights: w_j; shape (m,). None: all 1.
      num_probes: rows of which exact sums are taken, at least 2; static.
      axis_name: if set, j runs over the union of all devices' y and weights, and probes are rows of
        all devices' x.

    Returns:
      Sums, shape (n, d), at least float32, in 1/units of x. The error is relative, in root mean
      square over rows.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes, or a fourier_map of laplace.

    Cost: that of :func:`kernel_sum` with p = d.

    Example:
      >>> from kernelgrad import feature_maps, kernels, low_rank
      >>> key, kernel, x = jax.random.key(0), kernels.rbf_mixture(1.0), jnp.array([[0.0], [1.0]])
      >>> landmarks = feature_maps.landmark_map(key, kernel, x, num_landmarks=2)  # all points
      >>> sums = low_rank.gradient_sum(key, landmarks, x, None)
      >>> print(sums.value.T, bool(sums.error < 1e-3))  # exp(-1/2) apart
      [[-0.607  0.607]] True

    References:
      Li 2017 (approximate KL gradients), eq. (2), with features.
    """
    x, y = _checks.pair(x, y)
    others = x if y is None else y
    if weights is None:
        weights = jnp.ones(others.shape[:1], x.dtype)
    x, others, weights = _wide(*_checks.floating(x=x, y=others, weights=weights))
    _checks.shape("weights", weights, others.shape[:1])
    moments = _devices.total(feature_map.moments(others, None, weights), axis_name)
    value = feature_map.expand(x, moments)
    exact = functools.partial(pairwise.gradient_sum, feature_map.kernel)
    return _rows(key, exact, x, (others, weights), value, num_probes, axis_name)


def svgd_direction(
    key: Key,
    particles: PyTree,
    score: PyTree,
    feature_map: FeatureMap,
    *,
    num_probes: int = _NUM_PROBES,
    axis_name: str | None = None,
) -> Approximation:
    r"""Returns the SVGD direction at each particle.

    .. math:: \phi(x_i) = \frac1n z(x_i)^\top M, \quad
        M = \sum_j [ z(x_j) s_j^\top + \nabla z(x_j) ]

    Ascent direction, as of :func:`kernelgrad.svgd.svgd_direction`. A lengthscale so short that each
    particle sees few others leaves the kernel no finite rank: the error says so.

    Args:
      key: random key of the probes.
      particles: x_i; shape (n, d), floating, or a pytree of floating arrays (n, ...).
      score: s_j = grad log p(x_j), in 1/units of particles; shaped like particles.
      feature_map: z, of a kernel that is differentiable at 0, of particles raveled to vectors.
      num_probes: particles of which exact directions are taken, at least 2; static.
      axis_name: if set, j and the probes run over the union of all devices' particles.

    Returns:
      Directions, shaped like particles, in 1/units of particles. The error is relative, in root
      mean square over particles.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes, or a fourier_map of laplace.

    Cost: O(n r d) time, O(n d) memory; the probes O(n d num_probes) time.

    Example:
      >>> from kernelgrad import feature_maps, kernels, low_rank, svgd
      >>> key, kernel, x = jax.random.key(0), kernels.rbf_mixture(1.0), jnp.array([[0.0], [1.0]])
      >>> landmarks = feature_maps.landmark_map(key, kernel, x, num_landmarks=2)  # all points
      >>> direction = low_rank.svgd_direction(key, x, -x, landmarks)
      >>> bool(jnp.allclose(direction.value, svgd.svgd_direction(x, -x, kernel), atol=1e-3))
      True

    References:
      Wang & Liu 2016, eq. (7), with features.
    """
    rows, score = _wide(*_checks.scored(particles, score))
    value = feature_map.expand(
        rows, _devices.mean(_stein_moments(feature_map, rows, score), axis_name)
    )

    size = rows.shape[0] * _devices.num_devices(axis_name)

    def exact(probes: Array, everyone: Array, scores: Array) -> Array:
        return pairwise.stein_sum(feature_map.kernel, probes, everyone, scores) / size

    directions, *error = _rows(key, exact, rows, (rows, score), value, num_probes, axis_name)
    return Approximation(_checks.like_points(directions, particles), *error)


# --------------------------------------------------------------------------------------------- MMD


def mmd_v_statistic(
    key: Key,
    x: Array,
    y: Array,
    feature_map: FeatureMap,
    *,
    num_probes: int = _NUM_PROBES,
    axis_name: str | None = None,
) -> Approximation:
    r"""Returns the V-statistic of MMD^2.

    .. math:: |\mu|^2, \quad \mu = \frac1n \sum_i z(x_i) - \frac1m \sum_j z(y_j)

    Args:
      key: random key of the probes.
      x: samples; shape (n, d), floating.
      y: samples; shape (m, d), floating.
      feature_map: z.
      num_probes: points of each sample of which exact sums are taken, at least 2; static.
      axis_name: if set, both samples are the union over all devices.

    Returns:
      MMD^2, shape (), at least float32. The error is value less exact, an unbiased estimate of it:
      value - error is an unbiased estimate of the exact statistic with that standard error.

    Raises:
      ValueError: wrong rank, dtype or mismatched dimensions.

    Cost: O((n + m) r d) time, O((n + m) d) memory; the probes O((n + m) d num_probes) time.

    Example:
      >>> from kernelgrad import feature_maps, kernels, low_rank
      >>> key, kernel, x = jax.random.key(0), kernels.rbf_mixture(1.0), jnp.array([[0.0], [1.0]])
      >>> landmarks = feature_maps.landmark_map(key, kernel, x, num_landmarks=2)  # all points
      >>> estimate = low_rank.mmd_v_statistic(key, x, jnp.zeros((2, 1)), landmarks)
      >>> round(float(estimate.value), 3), bool(abs(estimate.error) < 1e-3)  # (1 - exp(-1/2)) / 2
      (0.197, True)

    References:
      Gretton et al. 2012, eq. (5); Zhao & Meng 2015 (FastMMD).
    """
    x, y = _checks.points(x=x, y=y)
    pool = _pool(x, y)
    means = _devices.statistic(feature_map.moments(*pool), axis_name)
    value = jnp.sum(jnp.square(means[:, 0] - means[:, 1]))
    error = _mmd_error(key, feature_map, x.shape[0], pool, means, num_probes, axis_name, own=False)
    return Approximation(value, *error)


def mmd_u_statistic(
    key: Key,
    x: Array,
    y: Array,
    feature_map: FeatureMap,
    *,
    num_probes: int = _NUM_PROBES,
    axis_name: str | None = None,
) -> Approximation:
    r"""Returns the U-statistic of MMD^2: the within-sample means leave out i = j.

    .. math:: |\mu|^2 + \frac1{n - 1} \Big( |\mu_x|^2 - \frac1n \sum_i |z(x_i)|^2 \Big)
        + \frac1{m - 1} \Big( |\mu_y|^2 - \frac1m \sum_j |z(y_j)|^2 \Big)

    with the mean features of each sample and their difference. Sometimes negative.

    Args:
      key: random key of the probes.
      x: samples; shape (n, d), n >= 2, floating.
      y: samples; shape (m, d), m >= 2, floating.
      feature_map: z.
      num_probes: points of each sample of which exact sums are taken, at least 2; static.
      axis_name: if set, both samples are the union over all devices.

    Returns:
      MMD^2, shape (), at least float32, with the error of :func:`mmd_v_statistic`.

    Raises:
      ValueError: wrong rank, dtype, mismatched dimensions or fewer than two samples.

    Cost: that of :func:`mmd_v_statistic`, and with landmarks O((n + m) r^2) time.

    Example:
      >>> from kernelgrad import feature_maps, kernels, low_rank
      >>> key, kernel, x = jax.random.key(0), kernels.rbf_mixture(1.0), jnp.array([[0.0], [1.0]])
      >>> landmarks = feature_maps.landmark_map(key, kernel, x, num_landmarks=2)  # all points
      >>> estimate = low_rank.mmd_u_statistic(key, x, x, landmarks)
      >>> round(float(estimate.value), 3)  # exp(-1/2) - 1: negative, for equal samples
      -0.393

    References:
      Gretton et al. 2012, eq. (3).
    """
    x, y = _checks.points(x=x, y=y)
    pool, devices = _pool(x, y), _devices.num_devices(axis_name)
    sizes = (x.shape[0] * devices, y.shape[0] * devices)
    for name, size in zip("xy", sizes, strict=True):
        _checks.at_least(f"number of samples in {name}", size, 2)
    means = _devices.statistic(feature_map.moments(*pool), axis_name)
    own = _numeric.dot(feature_maps.squared_norms(feature_map, pool[0]), pool[1])
    own = _devices.statistic(own, axis_name)
    within = jnp.sum(jnp.square(means), axis=0) - own
    value = jnp.sum(jnp.square(means[:, 0] - means[:, 1]))
    value += within[0] / (sizes[0] - 1) + within[1] / (sizes[1] - 1)
    error = _mmd_error(key, feature_map, x.shape[0], pool, means, num_probes, axis_name, own=True)
    return Approximation(value, *error)


def mmd_gradient(
    key: Key,
    x: Array,
    y: Array,
    feature_map: FeatureMap,
    *,
    num_probes: int = _NUM_PROBES,
    axis_name: str | None = None,
) -> Approximation:
    r"""Returns the gradient of :func:`mmd_v_statistic` in x.

    .. math:: \frac2n \nabla_{x_i} z(x_i)^\top \mu

    Descend it to move x towards y.

    Args:
      key: random key of the probes.
      x: samples x_i; shape (n, d), floating.
      y: samples y_j; shape (m, d), floating.
      feature_map: z, held fixed.
      num_probes: points of x of which exact gradients are taken, at least 2; static.
      axis_name: if set, both samples are the union over all devices; the rows of this device's x
        are returned.

    Returns:
      Gradient, shape (n, d), at least float32, in 1/units of x. The error is relative, in root mean
      square over rows.

    Raises:
      ValueError: wrong rank, dtype or mismatched dimensions.

    Cost: that of :func:`mmd_v_statistic`.

    Example:
      >>> from kernelgrad import feature_maps, kernels, low_rank
      >>> key, kernel, x = jax.random.key(0), kernels.rbf_mixture(1.0), jnp.array([[0.0], [1.0]])
      >>> landmarks = feature_maps.landmark_map(key, kernel, x, num_landmarks=2)  # all points
      >>> gradient = low_rank.mmd_gradient(key, x, jnp.zeros((2, 1)), landmarks)
      >>> print(gradient.value.T)  # exp(-1/2) / 2
      [[0.303 0.303]]

    References:
      Li 2017 (approximate KL gradients), footnote 2, with features.
    """
    x, y = _wide(*_checks.points(x=x, y=y))
    means = _devices.mean(feature_map.moments(*_pool(x, y)), axis_name)
    devices = _devices.num_devices(axis_name)
    scale = 2 / (x.shape[0] * devices)
    value = scale * _slopes(feature_map, x, means[:, :1] - means[:, 1:])

    def exact(probes: Array, x: Array, y: Array) -> Array:
        return scale / devices * mmd.witness_gradient(probes, x, y, feature_map.kernel)

    return _rows(key, exact, x, (x, y), value, num_probes, axis_name)


def _pool(x: Array, y: Array) -> tuple[Array, Array]:
    """Returns both samples, and weights in two columns whose sums are the means over either."""
    x, y = _wide(x, y)
    weights = [
        jnp.zeros((points.shape[0], 2), x.dtype).at[:, column].set(1 / points.shape[0])
        for column, points in enumerate((x, y))
    ]
    return jnp.concatenate([x, y]), jnp.concatenate(weights)


def _mmd_error(
    key: Key,
    feature_map: FeatureMap,
    size: int,
    pool: tuple[Array, Array],
    means: Array,
    num_probes: int,
    axis_name: str | None,
    *,
    own: bool,
) -> tuple[Array, Array]:
    """Returns the error of MMD^2 and its standard error; `own`: of the U-statistic.

    The first `size` points of the pool are this device's x.
    """
    feature_map, pool, means = lax.stop_gradient((feature_map, pool, means))
    samples = pool[0][:size], pool[0][size:]
    sizes = [points.shape[0] * _devices.num_devices(axis_name) for points in samples]
    drawn = [
        _devices.taken(points, _probes.draw(probe_key, size, num_probes), axis_name)
        for probe_key, points, size in zip(jax.random.split(key), samples, sizes, strict=True)
    ]
    probes = jnp.concatenate(drawn)
    exact = _devices.mean(pairwise.kernel_sum(feature_map.kernel, probes, *pool), axis_name)
    error = feature_map.expand(probes, means) - exact
    at_x, at_y = jnp.split(error[:, 0] - error[:, 1], 2)
    if own:
        at_zero = feature_map.kernel.profile(jnp.zeros((), probes.dtype))
        itself = feature_maps.squared_norms(feature_map, probes) - at_zero
        at_x += (error[:num_probes, 0] - itself[:num_probes]) / (sizes[0] - 1)
        at_y -= (error[num_probes:, 1] - itself[num_probes:]) / (sizes[1] - 1)
    return _probes.of_means(at_x, -at_y)


# --------------------------------------------------------------------------------------------- KSD


def ksd_v_statistic(
    key: Key,
    particles: PyTree,
    score: PyTree,
    feature_map: FeatureMap,
    *,
    num_probes: int = _NUM_PROBES,
    axis_name: str | None = None,
) -> Approximation:
    r"""Returns the V-statistic of KSD^2.

    .. math:: \frac1{n^2} |M|^2, \quad M = \sum_j [ z(x_j) s_j^\top + \nabla z(x_j) ]

    for :math:`u_p(x, y) = \sum_a \xi_a(x)^\top \xi_a(y)` with :math:`\xi_a = s z_a + \nabla z_a`.

    Args:
      key: random key of the probes.
      particles: x_i; shape (n, d), floating, or a pytree of such arrays (n, ...).
      score: s_i = grad log p(x_i), in 1/units of particles; shaped like particles.
      feature_map: z, of a kernel k, radial, twice differentiable at 0.
      num_probes: particles of which exact sums are taken, at least 2; static.
      axis_name: if set, particles are the union over all devices.

    Returns:
      KSD^2, shape (), at least float32, in 1/units of particles squared. The error is value less
      exact, an unbiased estimate of it.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes, a feature kernel, or laplace.

    Cost: O(n r d) time, O(n d) memory; the probes O(n d num_probes) time.

    Example:
      >>> from kernelgrad import feature_maps, kernels, low_rank
      >>> key, kernel, x = jax.random.key(0), kernels.rbf_mixture(1.0), jnp.array([[0.0], [1.0]])
      >>> waves = feature_maps.fourier_map(key, kernel, x, num_features=8)
      >>> estimate = low_rank.ksd_v_statistic(key, x, -x, waves)
      >>> bool(estimate.value >= 0), estimate.error.shape  # a square, whatever the features
      (True, ())

    References:
      Liu, Lee & Jordan 2016, eq. (6); Kalinke, Szabo & Sriperumbudur 2025 (Nystrom KSD).
    """
    return _ksd(key, *_checks.scored(particles, score), feature_map, num_probes, axis_name)


def ksd_u_statistic(
    key: Key,
    particles: PyTree,
    score: PyTree,
    feature_map: FeatureMap,
    *,
    num_probes: int = _NUM_PROBES,
    axis_name: str | None = None,
) -> Approximation:
    r"""Returns the U-statistic of KSD^2, from the V-statistic and the exact diagonal.

    .. math:: \frac1{n(n-1)} \Big( |M|^2 - \sum_i u_p(x_i, x_i) \Big)

    Args:
      key: random key of the probes.
      particles: x_i; shape (n, d), n >= 2, floating, or a pytree of such arrays (n, ...).
      score: s_i = grad log p(x_i), in 1/units of particles; shaped like particles.
      feature_map: z, of a kernel k, radial, twice differentiable at 0.
      num_probes: particles of which exact sums are taken, at least 2; static.
      axis_name: if set, particles are the union over all devices.

    Returns:
      KSD^2, shape (), with the unit and the error of :func:`ksd_v_statistic`.

    Raises:
      ValueError: as :func:`ksd_v_statistic`, or fewer than two particles.

    Cost: that of :func:`ksd_v_statistic`.

    Example:
      >>> from kernelgrad import feature_maps, kernels, low_rank
      >>> key, kernel, x = jax.random.key(0), kernels.rbf_mixture(1.0), jnp.array([[0.0], [1.0]])
      >>> waves = feature_maps.fourier_map(key, kernel, x, num_features=8)
      >>> v = low_rank.ksd_v_statistic(key, x, -x, waves).value
      >>> u = low_rank.ksd_u_statistic(key, x, -x, waves).value
      >>> round(float(4 * v - 2 * u), 3)  # the diagonal of u_p, 1 + 2, is exact
      3.0

    References:
      Liu, Lee & Jordan 2016, eq. (14).
    """
    rows, score = _wide(*_checks.scored(particles, score))
    size, kernel = rows.shape[0] * _devices.num_devices(axis_name), feature_map.kernel
    _checks.at_least("number of particles", size, 2)
    value, error, standard_error = _ksd(key, rows, score, feature_map, num_probes, axis_name)
    at_zero, slope = jax.value_and_grad(kernel.profile)(jnp.zeros((), rows.dtype))
    squared = _devices.statistic(jnp.mean(jnp.sum(jnp.square(score), axis=1)), axis_name)
    own = at_zero * squared - 2 * rows.shape[1] * slope
    factor = size / (size - 1)
    return Approximation(factor * value - own / (size - 1), factor * error, factor * standard_error)


def _ksd(
    key: Key,
    rows: Array,
    score: Array,
    feature_map: FeatureMap,
    num_probes: int,
    axis_name: str | None,
) -> Approximation:
    if _traits.is_feature_kernel(feature_map.kernel):
        raise ValueError(_traits.no_feature_kernel(feature_map.kernel))
    if not _traits.smooth_at_zero(feature_map.kernel):
        raise ValueError(
            "kernel: got laplace; expected one that is twice differentiable at 0, such as matern32"
        )
    rows, score = _wide(rows, score)
    mean = _devices.statistic(_stein_moments(feature_map, rows, score), axis_name)
    value = jnp.sum(jnp.square(mean))
    feature_map, rows, score, mean = lax.stop_gradient((feature_map, rows, score, mean))
    size = rows.shape[0] * _devices.num_devices(axis_name)
    chosen = _probes.draw(key, size, num_probes)
    probes, scores = (_devices.taken(own, chosen, axis_name) for own in (rows, score))
    exact = _stein_means(feature_map.kernel, probes, scores, rows, score)
    exact = _devices.mean(exact, axis_name)
    columns = jnp.arange(rows.shape[1])
    divergence = lax.map(lambda c: _slopes(feature_map, probes, mean[:, c, None])[:, c], columns)
    approximate = jnp.sum(scores * feature_map.expand(probes, mean), axis=1)
    approximate += jnp.sum(divergence, axis=0)
    return Approximation(value, *_probes.of_means(approximate - exact))


def _stein_moments(feature_map: FeatureMap, rows: Array, score: Array) -> Array:
    return feature_map.moments(rows, score, jnp.ones_like(rows[:, 0])) / rows.shape[0]


def _stein_means(
    kernel: Kernel, probes: Array, probe_scores: Array, rows: Array, score: Array
) -> Array:
    """Returns the means of u_p between each probe and all particles, by their differences."""
    spread = jnp.max(jnp.abs(rows - rows[:1]))
    unit = jnp.where(spread > 0, spread, 1)

    def mean(probe: tuple[Array, Array]) -> Array:
        steps, scores = (probe[0][None, :] - rows) / unit, score * unit
        own = probe[1] * unit
        sq_dist = jnp.sum(jnp.square(steps), axis=1)

        def profile(r: Array) -> Array:
            return kernel.profile(r * jnp.square(unit))

        ones = jnp.ones_like(sq_dist)
        slope, curvature = jax.jvp(
            lambda r: jax.jvp(profile, (r,), (ones,))[1], (sq_dist,), (ones,)
        )
        mixed = jnp.sum(steps * (scores - own[None, :]), axis=1) - rows.shape[1]
        inner = _numeric.dot(scores, own)
        return jnp.mean(profile(sq_dist) * inner + 2 * slope * mixed - 4 * curvature * sq_dist)

    return lax.map(mean, (probes, probe_scores)) / jnp.square(unit)


# ------------------------------------------------------------------------------- what they share


def _wide(*arrays: Array) -> tuple[Array, ...]:
    return tuple(_numeric.wide(array) for array in arrays)


def _slopes(feature_map: FeatureMap, x: Array, coefficients: Array) -> Array:
    """Returns the gradients of z(x)^T c in x, for one column of coefficients."""
    value, pull = jax.vjp(lambda points: feature_map.expand(points, coefficients), x)
    return pull(jnp.ones_like(value))[0]


def _rows(
    key: Key,
    exact: Callable[..., Array],
    x: Array,
    others: tuple[Array, ...],
    value: Array,
    num_probes: int,
    axis_name: str | None,
) -> Approximation:
    """Returns rows beside their relative error at some; exact(x_i, *others) is a device's share."""
    chosen = _probes.draw(key, x.shape[0] * _devices.num_devices(axis_name), num_probes)
    probes, approximate = (_devices.taken(rows, chosen, axis_name) for rows in (x, value))
    expected = lax.stop_gradient(exact(probes, *lax.stop_gradient(others)))
    expected = _devices.total(expected, axis_name)
    return Approximation(value, *_probes.relative(approximate - expected, expected))
