r"""Scores from samples by other means than Stein's ridge: the peers of :mod:`kernelgrad.score`.

Every estimator comes as ``f_score(samples, kernel, *, ...)``, at the samples, and as
``f_score_at(queries, samples, kernel, *, ...)``, anywhere. They differ in how they regularise one
linear problem. Let :math:`K_{ij} = k(x_i, x_j)`, :math:`N_i = \sum_j \nabla_{x_j} k(x_i, x_j)` and
G hold the scores in rows: Stein's identity says :math:`K G \approx -N`.

=========== ====================================== ===========================================
estimator   at the samples                         at queries
=========== ====================================== ===========================================
spectral    :math:`-K^+ N`, largest eigenvalues    the span of the kept eigenfunctions
nu_method   a polynomial in K/n of degree T        the smooth function through these values
kde         :math:`\nabla \log \sum_j k(., x_j)`   itself; no linear problem
=========== ====================================== ===========================================

Far from all samples the estimates of the first two decay to 0: there is no restoring force.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import (
    _checks,
    _devices,
    _distances,
    _folds,
    _gram,
    _numeric,
    _tiles,
    _traits,
    pairwise,
)
from kernelgrad._distances import Bare
from kernelgrad.types import Array, Kernel

_PAIRS_AT_ONCE = 1 << 21

_Iterate = tuple[Array, Array, Array, Array]


def _compared(
    queries: Array, samples: Array, kernel: Kernel, axis_name: str | None = None
) -> tuple[Array, Array]:
    """Returns queries and samples in at least float32, none too far for the range of floats."""
    points, nodes = _numeric.wide(queries), _numeric.wide(samples)
    if _traits.is_feature_kernel(kernel):  # whose distances are those of features
        return points, nodes
    return _gram.within_reach(kernel, points, _devices.first(nodes[:1], axis_name)), nodes


# ----------------------------------------------------------------------------------- spectral


def spectral_score(samples: Array, kernel: Kernel, *, mass_fraction: float | Array) -> Array:
    r"""Returns the spectral estimate (SSGE) of the samples' own score, at each sample.

    .. math:: G = -\sum_{c \le J} \frac{1}{\lambda_c} u_c u_c^\top N

    with the eigenpairs of K by falling eigenvalue. Equal to
    :func:`kernelgrad.score.stein_score` as its ridge goes to 0 if all are kept.

    Args:
      samples: x_i, draws of q; shape (n, d), floating.
      kernel: k; its lengthscales are in units of samples.
      mass_fraction: J is the least number of eigenvalues whose sum is at least this share of all;
        in (0, 1], 0.9 to 0.99 as a rule. Eigenvalues below n eps times the largest never count.

    Returns:
      Scores, shape (n, d), dtype of samples, in 1/units of samples. Differentiable while J stays
      and the J-th eigenvalue is simple; coinciding eigenvalues within the kept do no harm.

    Raises:
      ValueError: wrong rank or dtype, or a concrete mass_fraction outside its range.

    Cost: O(n^3 + n^2 d) time, an eigendecomposition; O(n^2 + n d) memory.

    Example:
      >>> from kernelgrad import kernels, score_peers
      >>> x = jnp.array([[-1.0], [1.0]])  # 2 / (e^2 - 1): a ridge would make it less
      >>> print(score_peers.spectral_score(x, kernels.rbf_mixture(1.0), mass_fraction=1.0))
      [[ 0.313]
       [-0.313]]

    References:
      Shi, Sun & Zhu 2018 (SSGE); Zhou, Shi & Zhu 2020, Theorem 3.2 and Example 3.6.
    """
    (samples,) = _checks.points(samples=samples)
    inverse, repulsion = _spectral_parts(_numeric.wide(samples), kernel, mass_fraction)
    return _numeric.like(-_numeric.dot(inverse, repulsion), samples)


def spectral_score_at(
    queries: Array, samples: Array, kernel: Kernel, *, mass_fraction: float | Array
) -> Array:
    r"""Returns the spectral estimate (SSGE) of the samples' score, at any point.

    .. math:: s(x) = -\sum_{c \le J} \frac{1}{\lambda_c^2}\, b(x)^\top u_c u_c^\top N,
        \quad b_j(x) = k(x, y_j)

    Equal to :func:`spectral_score` at the samples.

    Args:
      queries: points x; shape (q, d), floating.
      samples: y_j, draws of the density whose score is wanted; shape (n, d).
      kernel: k; its lengthscales are in units of samples.
      mass_fraction: as in :func:`spectral_score`.

    Returns:
      Scores, shape (q, d), dtype of both, in 1/units of samples.

    Raises:
      ValueError: wrong rank, dtype or dimension, or a concrete mass_fraction outside its range.

    Cost: that of :func:`spectral_score`, then O(q n d) time and O((n + q) d) memory.

    Example:
      >>> from kernelgrad import kernels, score_peers
      >>> kernel, x = kernels.rbf_mixture(1.0), jnp.array([[-1.0], [1.0]])
      >>> at = score_peers.spectral_score_at(x, x, kernel, mass_fraction=0.95)
      >>> own = score_peers.spectral_score(x, kernel, mass_fraction=0.95)
      >>> bool(jnp.allclose(at, own, atol=1e-5))
      True

    References:
      As :func:`spectral_score`.
    """
    queries, samples = _checks.points(queries=queries, samples=samples)
    points, nodes = _compared(queries, samples, kernel)
    inverse, repulsion = _spectral_parts(nodes, kernel, mass_fraction)
    coefficients = -_numeric.dot(inverse, _numeric.dot(inverse, repulsion))
    return _numeric.like(pairwise.kernel_sum(kernel, points, nodes, coefficients), queries)


def _spectral_parts(
    samples: Array, kernel: Kernel, mass_fraction: float | Array
) -> tuple[Array, Array]:
    _checks.shape("mass_fraction", mass_fraction, ())
    _checks.in_range("mass_fraction", mass_fraction, 0.0, 1.0, closed="r")
    _traits.check_positive(kernel)
    gram, repulsion = _gram.gram_and_repulsion(kernel, samples)
    return _truncated_inverse(gram, _numeric.like(mass_fraction, gram)), repulsion


@jax.custom_jvp
def _truncated_inverse(gram: Array, mass_fraction: Array) -> Array:
    """Returns the inverse of a positive semidefinite matrix on its leading eigenvectors."""
    _, vectors, inverse = _kept_spectrum(gram, mass_fraction)
    return _numeric.dot(vectors * inverse[None, :], vectors.T)


@_truncated_inverse.defjvp
def _truncated_inverse_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Daleckii-Krein: divided differences of 1/lambda, whole where eigenvalues coincide."""
    values, vectors, inverse = _kept_spectrum(*primals)
    kept = inverse > 0
    crosses = kept[:, None] != kept[None, :]
    gap = jnp.where(crosses, jnp.abs(values[:, None] - values[None, :]), 1)
    across = (inverse[:, None] + inverse[None, :]) / gap
    within = -inverse[:, None] * inverse[None, :]
    rotated = _numeric.dot(vectors.T, _numeric.dot(tangents[0], vectors)) * jnp.where(
        crosses, across, within
    )
    return (
        _numeric.dot(vectors * inverse[None, :], vectors.T),
        _numeric.dot(vectors, _numeric.dot(rotated, vectors.T)),
    )


def _kept_spectrum(gram: Array, mass_fraction: Array) -> tuple[Array, Array, Array]:
    """Returns eigenvalues, eigenvectors, and 1/eigenvalue where it is kept, 0 elsewhere."""
    values, vectors = jnp.linalg.eigh(gram)
    mass_above = jnp.cumsum(values[::-1])[::-1] - values
    floor = gram.shape[0] * jnp.finfo(gram.dtype).eps * values[-1]
    kept = (values > floor) & (mass_above < mass_fraction * jnp.sum(values))
    return values, vectors, jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)


# ---------------------------------------------------------------------------------- nu-method


def nu_method_score(
    samples: Array, kernel: Kernel, *, num_steps: int, nu: float | Array = 1.0
) -> Array:
    r"""Returns the nu-method estimate of the samples' own score, at each sample.

    Accelerated gradient descent on Stein's identity :math:`L s = -\zeta`, with
    :math:`L s = \frac1n \sum_j k(\cdot, x_j) s(x_j)` and :math:`\zeta = \frac1n \sum_j
    \nabla_{x_j} k(\cdot, x_j)`, both divided by k(0) so that :math:`\|L\| \le 1`:

    .. math:: s_t = s_{t-1} + u_t (s_{t-1} - s_{t-2}) - w_t (\zeta + L s_{t-1})

    Stopping early is the regulariser.

    Args:
      samples: x_i, draws of q; shape (n, d), floating.
      kernel: k; its lengthscales are in units of samples.
      num_steps: T >= 1, the number of iterations; static. It acts like the ridge n k(0) / T^2:
        T = 3 n^(1/4) corresponds to :func:`kernelgrad.score.default_ridge`.
      nu: qualification of the method, > 0.

    Returns:
      Scores, shape (n, d), dtype of samples, in 1/units of samples.

    Raises:
      ValueError: wrong rank or dtype, num_steps below 1, or a concrete nu that is not positive.

    Cost: O(T n^2 d) time, O(n^2 + n d) memory (T n d under reverse-mode differentiation).

    Example:
      >>> from kernelgrad import kernels, score_peers
      >>> x = jnp.array([[-1.0], [1.0]])
      >>> own = score_peers.nu_method_score(x, kernels.rbf_mixture(1.0), num_steps=100)
      >>> print(own.round(2).T)  # after many steps that of spectral_score, 2 / (e^2 - 1)
      [[ 0.31 -0.31]]

    References:
      Zhou, Shi & Zhu 2020, Example C.4; Engl, Hanke & Neubauer 1996, section 6.3 for u_t, w_t.
    """
    (samples,) = _checks.points(samples=samples)
    gram, zeta, coefficients, scale = _nu_iterate(_numeric.wide(samples), kernel, num_steps, nu)
    return _numeric.like(_numeric.dot(gram, coefficients) + scale * zeta, samples)


def nu_method_score_at(
    queries: Array, samples: Array, kernel: Kernel, *, num_steps: int, nu: float | Array = 1.0
) -> Array:
    r"""Returns the nu-method estimate of the samples' score, at any point.

    .. math:: s(x) = \sum_j k(x, y_j) c_j + a\, \zeta(x)

    with c and a from the recursion of :func:`nu_method_score`, which it equals at the samples.

    Args:
      queries: points x; shape (q, d), floating.
      samples: y_j, draws of the density whose score is wanted; shape (n, d).
      kernel: k; its lengthscales are in units of samples.
      num_steps: as in :func:`nu_method_score`.
      nu: as in :func:`nu_method_score`.

    Returns:
      Scores, shape (q, d), dtype of both, in 1/units of samples.

    Raises:
      ValueError: wrong rank, dtype or dimension, num_steps below 1, or a concrete nu that is not
        positive.

    Cost: that of :func:`nu_method_score`, then O(q n d) time and O((n + q) d) memory.

    Example:
      >>> from kernelgrad import kernels, score_peers
      >>> kernel, x = kernels.rbf_mixture(1.0), jnp.array([[-1.0], [1.0]])
      >>> at = score_peers.nu_method_score_at(x, x, kernel, num_steps=3)
      >>> bool(jnp.allclose(at, score_peers.nu_method_score(x, kernel, num_steps=3), atol=1e-5))
      True

    References:
      Zhou, Shi & Zhu 2020, Example C.4.
    """
    queries, samples = _checks.points(queries=queries, samples=samples)
    points, nodes = _compared(queries, samples, kernel)
    gram, _, coefficients, scale = _nu_iterate(nodes, kernel, num_steps, nu)
    peak = _gram.at_zero(kernel, gram)
    weights = jnp.broadcast_to(scale / (nodes.shape[0] * peak), nodes.shape[:1])
    return _numeric.like(
        pairwise.stein_sum(kernel, points, nodes, coefficients / peak, weights), queries
    )


def _nu_iterate(
    samples: Array, kernel: Kernel, num_steps: int, nu: float | Array
) -> tuple[Array, Array, Array, Array]:
    """Returns K / k(0), zeta / k(0) at the samples, and c, a of s = K c + a zeta."""
    _checks.at_least("num_steps", num_steps, 1)
    _checks.shape("nu", nu, ())
    _checks.positive(nu=nu)
    _traits.check_positive(kernel)
    gram, repulsion = _gram.gram_and_repulsion(kernel, samples)
    peak, size = _gram.at_zero(kernel, gram), samples.shape[0]
    gram, zeta, nu = gram / peak, repulsion / (size * peak), _numeric.like(nu, gram)

    def step(carry: _Iterate, t: Array) -> tuple[_Iterate, None]:
        c, c_before, a, a_before = carry
        below = (t + 2 * nu - 1) * (2 * t + 4 * nu - 1)
        u = (t - 1) * (2 * t - 3) * (2 * t + 2 * nu - 1) / (below * (2 * t + 2 * nu - 3))
        w = 4 * (2 * t + 2 * nu - 1) * (t + nu - 1) / below
        c_next = c + u * (c - c_before) - w / size * (_numeric.dot(gram, c) + a * zeta)
        return (c_next, c, a + u * (a - a_before) - w, a), None

    nothing = jnp.zeros_like(zeta)
    start = (nothing, nothing, -(4 * nu + 2) / (4 * nu + 1), jnp.zeros_like(nu))
    start = _devices.varying(start)
    times = jnp.arange(2, num_steps + 1, dtype=gram.dtype)
    (coefficients, _, scale, _), _ = lax.scan(step, start, times)
    return gram, zeta, coefficients, scale


# ---------------------------------------------------------------------------------------- KDE


def kde_score(samples: Array, kernel: Kernel, *, axis_name: str | None = None) -> Array:
    r"""Returns the score of the samples' kernel density estimate, at each sample.

    .. math:: s(x_i) = \nabla_x \log \sum_j k(x, x_j) \big|_{x = x_i}

    Args:
      samples: x_j; shape (n, d), floating.
      kernel: k >= 0; its lengthscales are in units of samples. It smooths: for Gaussian samples
        of variance v and an RBF of lengthscale l the limit is -x / (v + l^2).
      axis_name: if set, j runs over the union of all devices' samples.

    Returns:
      Scores, shape (n, d), dtype of samples, in 1/units of samples.

    Raises:
      ValueError: wrong rank or dtype.

    Cost: O(n^2 d) time, O(n d) memory; over devices distances are computed twice, each device
      holds its share, and of many pairs the shares go round a ring.

    Example:
      >>> from kernelgrad import kernels, score_peers
      >>> x = jnp.array([[-1.0], [1.0]])  # 2 / (e^2 + 1)
      >>> print(score_peers.kde_score(x, kernels.rbf_mixture(1.0)))
      [[ 0.238]
       [-0.238]]

    References:
      Li & Turner 2018, the plug-in estimator.
    """
    (samples,) = _checks.points(samples=samples)
    return _numeric.like(_kde(_numeric.wide(samples), None, kernel, axis_name), samples)


def kde_score_at(
    queries: Array, samples: Array, kernel: Kernel, *, axis_name: str | None = None
) -> Array:
    r"""Returns the score of the samples' kernel density estimate, at any point.

    .. math:: s(x) = \nabla_x \log \sum_j k(x, y_j)

    Kernels are summed in logarithms: however far the query, it is drawn to its nearest samples,
    with a Gaussian by (y - x) / l^2; beyond 1e18 lengthscales (in float32) as from there. A kernel
    of your own without a method ``log_profile`` must not underflow.

    Args:
      queries: points x; shape (q, d), floating.
      samples: y_j; shape (n, d).
      kernel: k >= 0; its lengthscales are in units of samples.
      axis_name: if set, j runs over the union of all devices' samples; queries stay apart.

    Returns:
      Scores, shape (q, d), dtype of both, in 1/units of samples. NaN in the rows where
      every k(x, y_j) is 0.

    Raises:
      ValueError: wrong rank, dtype or dimension.

    Cost: O(q n d) time, O((q + n) d) memory; over devices as :func:`kde_score`.

    Example:
      >>> from kernelgrad import kernels, score_peers
      >>> x, far = jnp.array([[0.0]]), jnp.array([[60.0]])  # whose kernel underflows
      >>> print(score_peers.kde_score_at(far, x, kernels.rbf_mixture(1.0)))  # (y - x) / l^2
      [[-60.]]

    References:
      Li & Turner 2018, the plug-in estimator.
    """
    queries, samples = _checks.points(queries=queries, samples=samples)
    points, nodes = _compared(queries, samples, kernel, axis_name)
    return _numeric.like(_kde(points, nodes, kernel, axis_name), queries)


def _kde(queries: Array, samples: Array | None, kernel: Kernel, axis_name: str | None) -> Array:
    """Returns the scores; samples None stands for the queries."""
    kernel, queries, samples, unit = _distances.in_own_unit(kernel, queries, samples)
    features = functools.partial(_traits.embed, kernel)
    embedded, pull = jax.vjp(features, _devices.own_point(features, queries))
    rows, cols = _distances.bare(embedded, None if samples is None else features(samples))
    of_embedded = _by_blocks if _devices.num_devices(axis_name) == 1 else _over_devices
    scores = of_embedded(_traits.radial(kernel), rows, cols, samples is None, axis_name)
    return pull(_numeric.like(scores, embedded))[0] / unit


def _pairs(
    own: bool, kernel: Kernel, shift: Any, queries: Array, samples: Array
) -> tuple[Array, Callable[[Array], Array]]:
    """Returns log k of all pairs, and what pulls weights of them back to the queries."""
    profile = functools.partial(_log_profile, kernel)
    return _gram.pairs(profile, kernel, queries, samples, shift if own else None)


def _by_blocks(kernel: Kernel, rows: Bare, cols: Bare, own: bool, axis_name: str | None) -> Array:
    """Returns the scores on one device, block by block of the queries."""
    del axis_name
    queries, nodes = rows.raw, cols.raw
    count = queries.shape[0]

    def at(first: int | Array, points: Array) -> Array:
        logits, pull = _pairs(own, kernel, first, points, nodes)
        lost = jnp.max(logits, axis=1, keepdims=True) == -jnp.inf
        return jnp.where(lost, jnp.nan, pull(jax.nn.softmax(logits, axis=1)))

    at_once = max(1, _PAIRS_AT_ONCE // nodes.shape[0])
    if count <= at_once:
        return at(0, queries)
    starts = jnp.arange(0, count, at_once)
    # the last query pads the last block: of points that come twice no sum is NaN
    places = jnp.minimum(starts[:, None] + jnp.arange(at_once)[None, :], count - 1)
    blocks = lax.map(jax.checkpoint(lambda block: at(*block)), (starts, queries[places]))
    return blocks.reshape(-1, queries.shape[1])[:count]


def _over_devices(
    kernel: Kernel, rows: Bare, cols: Bare, own: bool, axis_name: str | None
) -> Array:
    """Returns the scores by two passes: the greatest log k of each query, then sums over it."""
    fixed = lax.stop_gradient(kernel)

    def greater(shift: Any, some: Bare, most: Array, nodes: Bare) -> Array:
        logits, _ = _pairs(own, fixed, shift, some.raw, nodes.raw)
        logits = jnp.where(nodes.real[None, :] > 0, logits, -jnp.inf)
        return jnp.maximum(most, jnp.max(logits, axis=1))

    nothing = jnp.full_like(rows.real, -jnp.inf)
    sides = lax.stop_gradient((rows, cols))
    most = _folds.fold(greater, nothing, *sides, axis_name, pairs_at_once=_PAIRS_AT_ONCE)
    queries = rows, jnp.where(most == -jnp.inf, 0, most)
    mass, pull = _tiles.stream(functools.partial(_tile, own), kernel, queries, cols, axis_name).rows
    lost = mass[:, None] == 0
    return jnp.where(lost, jnp.nan, pull / jnp.where(lost, 1, mass[:, None]))


def _tile(
    own: bool, kernel: Kernel, shift: Any, rows: tuple[Bare, Array], cols: Bare
) -> _tiles.PairSums:
    """Sums of k over its greatest, and of its gradients."""
    points, most = rows
    logits, pull = _pairs(own, kernel, shift, points.raw, cols.raw)
    # of columns that pad, k might overflow
    logits = jnp.where(cols.real[None, :] > 0, logits, most[:, None])
    weights = jnp.exp(_numeric.below(logits, most[:, None])) * cols.real[None, :]
    return _tiles.PairSums(rows=(jnp.sum(weights, axis=1), pull(weights)))


def _log_profile(kernel: Kernel, sq_dist: Array) -> Array:
    _traits.check_positive(kernel)
    logarithm = _traits.log_profile(_traits.radial(kernel), sq_dist)
    if logarithm is not None:
        return logarithm
    value = kernel.profile(sq_dist)
    return jnp.where(value > 0, jnp.log(jnp.where(value > 0, value, 1)), -jnp.inf)
