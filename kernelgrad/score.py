r"""Scores from samples: estimates of :math:`\nabla \log q` where only draws of q are at hand.

Let :math:`K_{ij} = k(x_i, x_j)`, :math:`N_i = \sum_j \nabla_{x_j} k(x_i, x_j)` and G hold the
scores in rows: Stein's identity says :math:`K G \approx -N`; :func:`stein_score` solves it under
a ridge. Other points are reached in two ways: :func:`stein_score_at` appends them to the samples
one by one, :func:`rkhs_score_at` draws the smooth function through G. Far from all samples both
decay to 0: there is no restoring force. :mod:`kernelgrad.score_peers` holds the estimators that
regularise otherwise.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import (
    _checks,
    _devices,
    _distances,
    _gram,
    _markov,
    _numeric,
    _solve,
    _tiles,
    _traits,
    kernels,
    pairwise,
    selection,
)
from kernelgrad.types import Array, Kernel, LogDensityFn, PyTree, ScoreFn

DENSE_SAMPLES = 16384  # up to here the gram is factorised, beyond it never held
QUERY_BLOCK = 256  # queries that are solved for at a time beyond DENSE_SAMPLES


def default_ridge(n: int | Array, kernel: Kernel) -> Array:
    r"""Returns the ridge :math:`0.1 \sqrt n\, k(0)`, under which the Stein estimator is consistent.

    It goes with a lengthscale near the median distance; the best ridge for a problem may be
    several times larger or smaller.

    Args:
      n: number of samples.
      kernel: k.

    Returns:
      The ridge, shape (), in units of k; a traced value where the kernel's leaves are.

    Raises:
      ValueError: a concrete n that is not positive, or a kernel without k(0) > 0.

    Example:
      >>> from kernelgrad import kernels, score
      >>> kernel = kernels.rbf_mixture(jnp.array([1.0, 2.0]))  # k(0) = 2
      >>> round(float(score.default_ridge(100, kernel)), 3)
      2.0
    """
    _checks.positive(n=n)
    _traits.check_positive(kernel)
    return 0.1 * jnp.sqrt(jnp.asarray(n, dtype=float)) * kernel.profile(jnp.zeros((), dtype=float))


class Selected(NamedTuple):
    """What a score is estimated best with.

    Attributes:
      kernel: k, at the best lengthscale.
      ridge: eta; shape ().
      losses: held-out, by factor of the lengthscale and of the ridge; shape (a, b).
    """

    kernel: Kernel
    ridge: Array
    losses: Array


def select(
    samples: Array,
    *,
    family: Callable[[Array], Kernel] = kernels.imq_mixture,
    factors: Sequence[float] = (0.5, 1.0, 2.0, 4.0),
    ridge_factors: Sequence[float] = (0.001, 0.01, 0.1, 1.0, 10.0),
    num_folds: int = 5,
) -> Selected:
    r"""Returns the lengthscale and the ridge of :func:`stein_score` with the least held-out loss.

    The loss is :func:`kernelgrad.selection.hyvarinen_loss` of :func:`stein_score_at`, fitted to all
    folds but one, on that one, averaged over folds.

    Args:
      samples: draws of q, in exchangeable order; shape (n, d), floating.
      family: lengthscale -> k.
      factors: lengthscales to try, over the median distance of the samples.
      ridge_factors: ridges to try, over :func:`default_ridge`.
      num_folds: 2 to n / 2; static.

    Returns:
      Kernel and ridge, for ``stein_score(samples, kernel, ridge=ridge)``, and all losses.

    Raises:
      ValueError: wrong rank or dtype, factors that are not positive, too many folds, or no finite
        loss.

    Warns:
      RuntimeWarning: of several lengthscales or ridges the one chosen is the least or the largest
        tried; outside of jit alone.

    Cost: num_folds times a b fits and d derivatives of each, one at a time.

    Example:
      >>> from kernelgrad import score
      >>> x = jnp.linspace(-2.0, 2.0, 6)[:, None]
      >>> best = jax.jit(lambda x: score.select(x, factors=(1.0, 2.0), num_folds=2))(x)
      >>> best.losses.shape
      (2, 5)
      >>> round(float(best.ridge / score.default_ridge(6, best.kernel)), 3) in (0.001, 0.01, 0.1, 1)
      True
    """
    (samples,) = _checks.points(samples=samples)
    samples = _numeric.wide(samples)
    _checks.positive(factors=factors, ridge_factors=ridge_factors)
    _checks.at_least("num_folds", num_folds, 2)
    _checks.at_least("number of samples", samples.shape[0], 2 * num_folds)
    folds = selection.folds(samples.shape[0], num_folds)
    scales = kernels.median_lengthscale(samples) * jnp.asarray(factors, samples.dtype)

    def at(factor: Array, size: int, kernel: Kernel) -> Array:
        return factor * _numeric.like(default_ridge(size, kernel), factor)

    def loss(lengthscale: Array, factor: Array) -> Array:
        kernel = family(lengthscale)

        def of_fold(rows: tuple[Array, Array]) -> Array:
            fitted, held = (samples[row] for row in rows)
            ridge = at(factor, fitted.shape[0], kernel)
            return selection.hyvarinen_loss(
                lambda x: stein_score_at(x, fitted, kernel, ridge=ridge), held
            )

        return jnp.mean(lax.map(of_fold, folds))

    grid = jnp.asarray(ridge_factors, samples.dtype)
    (lengthscale, factor), losses = selection.select(loss, scales, grid)
    _checks.warn_at_edge("score.select: lengthscale", lengthscale, scales)
    _checks.warn_at_edge("score.select: factor of the ridge", factor, grid)
    kernel = family(lengthscale)
    return Selected(kernel, at(factor, samples.shape[0], kernel), losses)


def score_from_log_density(log_density_fn: LogDensityFn) -> ScoreFn:
    r"""Returns the score :math:`x \mapsto \nabla_x \log p(x)` of a log density, at many points.

    Args:
      log_density_fn: maps one point, (d,) or a pytree, to log p(x) up to a constant; shape ().

    Returns:
      A function of all points, (n, d) or a pytree of arrays (n, ...), shaped like its argument: for
      :func:`kernelgrad.svgd.step`, and, called at the particles, for all that takes a score.

    Raises:
      ValueError: when called, for points that are not floating or of another form, or a log density
        that takes no point or is not a scalar.

    Cost: of a call, n gradients, all at once.

    Example:
      >>> from kernelgrad import score
      >>> score_fn = score.score_from_log_density(lambda x: -jnp.sum(x**2) / 2)
      >>> score_fn(jnp.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
      [[-1.0, -2.0], [-3.0, -4.0]]
    """

    def score_fn(points: PyTree) -> PyTree:
        (rows,) = _checks.raveled(points=points)
        points = _checks.like_points(rows, points)
        return jax.vmap(lambda point: _markov.evaluate(point, log_density_fn)[1])(points)

    return score_fn


def stein_score(
    samples: Array, kernel: Kernel, *, ridge: float | Array, axis_name: str | None = None
) -> Array:
    r"""Returns the Stein estimate of the samples' own score, at each sample.

    .. math:: G = -(K + \eta I)^{-1} N, \quad N_i = \sum_j \nabla_{x_j} k(x_i, x_j)

    It estimates :math:`\nabla \log q`: ascent on it raises the density of q.

    Args:
      samples: x_i, draws of q; shape (n, d), floating.
      kernel: k; its lengthscales are in units of samples.
      ridge: eta > 0, in units of k; see :func:`default_ridge`. Keep it above 10 n eps k(0), with
        eps the machine epsilon (1e-4 at n = 100 in float32): below, rounding decides the result.
      axis_name: if set, j runs over the union of all devices' samples.

    Returns:
      Scores G, shape (n, d), dtype of samples, in 1/units of samples. Computed in at least
      float32. Up to ``DENSE_SAMPLES`` samples, the union counted, all NaN where the Cholesky
      factorisation fails. Beyond, refined to a relative error of 1e-4, by a bound that leaves out
      the rounding of K; a coordinate whose bound stays above 1e-2 is NaN. A ridge above the floor
      rules out both for finite samples.

    Raises:
      ValueError: wrong rank or dtype, or a concrete ridge that is not positive.

    Cost: O(n^3 + n^2 d) time, O(n^2 + n d) memory, on every device; beyond ``DENSE_SAMPLES``
      O(n^2 d) time an iteration of conjugate gradients, about ten under the default ridge, and
      O(n d) memory, both shared among the devices.

    Example:
      >>> from kernelgrad import kernels, score
      >>> x = jnp.array([[-1.0], [1.0]])  # both are drawn to the middle by 2 / (2 e^2 - 1)
      >>> print(score.stein_score(x, kernels.rbf_mixture(1.0), ridge=1.0))
      [[ 0.145]
       [-0.145]]

    References:
      Li 2017 (approximate KL gradients), eq. (2).
    """
    (samples,) = _checks.points(samples=samples)
    _check_ridge(ridge)
    kernel, points, _, unit = _distances.in_own_unit(kernel, _numeric.wide(samples))
    if points.shape[0] * _devices.num_devices(axis_name) > DENSE_SAMPLES:
        solve, repulsion = _system(kernel, points, ridge, axis_name)
        return _numeric.like(-solve(repulsion) / unit, samples)
    solve, repulsion = _system(kernel, _devices.gather(points, axis_name), ridge)
    return _numeric.like(_devices.share(-solve(repulsion) / unit, axis_name), samples)


def stein_score_at(
    queries: Array,
    samples: Array,
    kernel: Kernel,
    *,
    ridge: float | Array,
    axis_name: str | None = None,
) -> Array:
    r"""Returns the Stein estimate of the samples' score, at other points.

    .. math::
        g(x) = \frac{b^\top A^{-1} (N + D) - r}{k(x, x) + \eta - b^\top A^{-1} b}, \quad
        A = K + \eta I,\; b_j = k(x, y_j),\; D_j = \nabla_x k(y_j, x),\;
        r = \sum_j \nabla_{y_j} k(x, y_j)

    This is the last row of :func:`stein_score` on the samples with x appended, each query on its
    own. So a query counts as one more sample: at a sample the value is not that of
    :func:`stein_score`, and far from all samples it tends to 0.

    Args:
      queries: points x; shape (q, d), floating.
      samples: y_j, draws of the density whose score is wanted; shape (n, d).
      kernel: k; its lengthscales are in units of samples.
      ridge: eta > 0, in units of k, with the floor of :func:`stein_score`.
      axis_name: if set, j runs over the union of all devices' samples.

    Returns:
      Scores, shape (q, d), dtype of both, in 1/units of samples. NaN in every row where the
      Cholesky factorisation fails, in each row whose own system did not converge as
      :func:`stein_score` asks, beyond ``DENSE_SAMPLES``, and in each row whose denominator, at
      least eta in exact arithmetic, is not positive.

    Raises:
      ValueError: wrong rank, dtype or dimension, or a concrete ridge that is not positive.

    Cost: O(n^3 + n^2 q + (n + q) n d) time, one factorisation; O(n (n + q + d)) memory. Beyond
      ``DENSE_SAMPLES`` one system a query is solved by iteration: O(n^2 q) time an iteration,
      O((n + q) d + n) memory, both shared among the devices, which is slow but linear.

    Example:
      >>> from kernelgrad import kernels, score
      >>> kernel, x = kernels.rbf_mixture(1.0), jnp.array([[-1.0], [1.0]])
      >>> query = jnp.array([[0.5]])
      >>> at = score.stein_score_at(query, x, kernel, ridge=1.0)
      >>> among = score.stein_score(jnp.concatenate([x, query]), kernel, ridge=1.0)
      >>> bool(jnp.allclose(at[0], among[-1], atol=1e-5))  # the query is one more sample
      True

    References:
      Li 2017 (approximate KL gradients), eq. (3), the case where k is translation invariant and
      hence r = -1^T D.
    """
    queries, samples = _checks.points(queries=queries, samples=samples)
    _check_ridge(ridge)
    kernel, points, share, unit = _distances.in_own_unit(
        kernel, _numeric.wide(queries), _numeric.wide(samples)
    )
    devices = _devices.num_devices(axis_name)
    large = samples.shape[0] * devices > DENSE_SAMPLES
    shared = axis_name if large else None  # the queries of all devices are solved for together
    nodes = _devices.gather(share, None if large else axis_name)
    solve, repulsion = _system(kernel, nodes, ridge, shared)
    floor = _gram.at_zero(kernel, nodes) + _numeric.like(ridge, nodes)

    def estimate(block: Array) -> Array:
        everyone = _devices.gather(_devices.varying(block, share), shared)
        cross, pull = _gram.pairs(kernel.profile, kernel, everyone, nodes)
        weights = solve(cross.T).T
        if _traits.is_feature_kernel(kernel):
            own = pull(weights) - pairwise.gradient_sum(kernel, everyone, nodes)
        else:
            own = pull(weights + 1)
        sums = _numeric.dot(weights, repulsion) + own, jnp.sum(weights * cross, axis=1)
        numerator, taken = _devices.scatter(sums, shared)
        schur = floor - taken
        schur = jnp.where(schur > 0, schur, jnp.nan)
        return numerator / schur[:, None] / unit

    at_once = max(1, QUERY_BLOCK // devices) if large else points.shape[0]
    if points.shape[0] <= at_once:
        return _numeric.like(estimate(points), queries)
    blocks = lax.map(jax.checkpoint(estimate), _tiles.split(points, at_once))
    return _numeric.like(blocks.reshape(-1, points.shape[1])[: points.shape[0]], queries)


def rkhs_score_at(queries: Array, samples: Array, kernel: Kernel, *, ridge: float | Array) -> Array:
    r"""Returns the Tikhonov extension of the Stein estimate, at any point.

    .. math:: s(x) = -\frac1\eta \Big( \sum_j \nabla_{y_j} k(x, y_j) + \sum_j k(x, y_j) G_j \Big)

    with G the in-sample estimate. The vector field of the RKHS that minimises the regularised
    Stein residual; unlike :func:`stein_score_at` it returns G_j exactly at y_j and lets no query
    bias its own score. The factor 1/eta amplifies: off the samples its errors are far above those
    of :func:`stein_score_at` under a small ridge, and somewhat below them under a good one.

    Args:
      queries: points x; shape (q, d), floating.
      samples: y_j, draws of the density whose score is wanted; shape (n, d).
      kernel: k; its lengthscales are in units of samples.
      ridge: eta > 0, in units of k; n times the Tikhonov parameter lambda. The floor is that of
        :func:`stein_score`.

    Returns:
      Scores, shape (q, d), dtype of both, in 1/units of samples. NaN as :func:`stein_score` is.

    Raises:
      ValueError: wrong rank, dtype or dimension, or a concrete ridge that is not positive.

    Cost: that of :func:`stein_score`, then O(q n d) time and O((n + q) d) memory.

    Example:
      >>> from kernelgrad import kernels, score
      >>> kernel, x = kernels.rbf_mixture(1.0), jnp.array([[-1.0], [1.0]])
      >>> at = score.rkhs_score_at(x, x, kernel, ridge=1.0)
      >>> bool(jnp.allclose(at, score.stein_score(x, kernel, ridge=1.0), atol=1e-5))
      True

    References:
      Zhou, Shi & Zhu 2020, Theorem 3.1, with a diagonal kernel and lambda = eta / n.
    """
    queries, samples = _checks.points(queries=queries, samples=samples)
    points, nodes = _numeric.wide(queries), _numeric.wide(samples)
    score = stein_score(nodes, kernel, ridge=ridge)
    witness = pairwise.stein_sum(kernel, points, nodes, score)
    return _numeric.like(-witness / _numeric.like(ridge, witness), queries)


def _system(
    kernel: Kernel, samples: Array, ridge: float | Array, axis_name: str | None = None
) -> tuple[_solve.Solve, Array]:
    """Returns the inverse of K + eta I as a function, and N: over devices, their shares."""
    _traits.check_positive(kernel)
    eta = _numeric.like(ridge, samples)
    if samples.shape[0] * _devices.num_devices(axis_name) > DENSE_SAMPLES:
        repulsion = pairwise.gradient_sum(kernel, samples, None, axis_name=axis_name)
        return _solve.matrix_free(kernel, samples, eta, axis_name), repulsion
    gram, repulsion = _gram.gram_and_repulsion(kernel, samples)
    return _solve.dense(gram, eta), repulsion


def _check_ridge(ridge: float | Array) -> None:
    _checks.shape("ridge", ridge, ())
    _checks.positive(ridge=ridge)
