r"""Scores from samples: estimates of :math:`\nabla \log q` where only draws of q are at hand.

Every estimator comes as ``f_score(samples, kernel, *, ...)``, at the samples, and as
``f_score_at(queries, samples, kernel, *, ...)``, anywhere. They differ in how they regularise one
linear problem. Let :math:`K_{ij} = k(x_i, x_j)`, :math:`N_i = \sum_j \nabla_{x_j} k(x_i, x_j)` and
G hold the scores in rows: Stein's identity says :math:`K G \approx -N`.

=========== ====================================== ===========================================
stein       :math:`-(K + \eta I)^{-1} N`           queries join the samples one by one
rkhs        the same, at samples                   the smooth function through these values
spectral    :math:`-K^+ N`, largest eigenvalues    the span of the kept eigenfunctions
nu_method   a polynomial in K/n of degree T        the smooth function through these values
kde         :math:`\nabla \log \sum_j k(., x_j)`   itself; no linear problem
=========== ====================================== ===========================================

Far from all samples the estimates of the first four decay to 0: there is no restoring force.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve

from kernelgrad import _checks, kernels, pairwise
from kernelgrad.types import Array, Kernel

_dot = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
_Iterate = tuple[Array, Array, Array, Array]


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
      ValueError: a concrete n that is not positive.
    """
    _checks.positive(n=n)
    return 0.1 * jnp.sqrt(jnp.asarray(n, dtype=float)) * kernel.profile(jnp.zeros((), dtype=float))


# -------------------------------------------------------------------------------------- Stein


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
      float32. All NaN where the Cholesky factorisation fails, which a ridge above the floor rules
      out for finite samples.

    Raises:
      ValueError: wrong rank or dtype, or a concrete ridge that is not positive.

    Cost: O(n^3 + n^2 d) time, O(n^2 + n d) memory; the union is solved on every device.

    References:
      Li 2017 (approximate KL gradients), eq. (2).
    """
    _checks.points(samples=samples)
    _check_ridge(ridge)
    gram, repulsion = _gram_and_repulsion(kernel, pairwise.gather(_wide(samples), axis_name))
    score = -cho_solve(_factor(gram, ridge), repulsion)
    if axis_name is not None:
        first = lax.axis_index(axis_name) * samples.shape[0]
        score = lax.dynamic_slice_in_dim(score, first, samples.shape[0])
    return _like(score, samples)


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
      Scores, shape (q, d), dtype of queries, in 1/units of samples. NaN in every row where the
      Cholesky factorisation fails, and in each row whose denominator, at least eta in exact
      arithmetic, is not positive.

    Raises:
      ValueError: wrong rank, dtype or dimension, or a concrete ridge that is not positive.

    Cost: O(n^3 + n^2 q + (n + q) n d) time, one factorisation; O(n (n + q + d)) memory.

    References:
      Li 2017 (approximate KL gradients), eq. (3), the case where k is translation invariant and
      hence r = -1^T D.
    """
    _checks.points(queries=queries, samples=samples)
    _check_ridge(ridge)
    points, everyone = _wide(queries), pairwise.gather(_wide(samples), axis_name)
    gram, repulsion = _gram_and_repulsion(kernel, everyone)
    cross, pull = _pairs(kernel.profile, kernel, points, everyone)
    weights = cho_solve(_factor(gram, ridge), cross.T).T
    schur = _at_zero(kernel, gram) + _like(ridge, gram) - jnp.sum(weights * cross, axis=1)
    schur = jnp.where(schur > 0, schur, jnp.nan)
    if hasattr(kernel, "features"):
        own = pull(weights) - pairwise.gradient_sum(kernel, points, everyone)
    else:
        own = pull(weights + 1)
    return _like((_dot(weights, repulsion) + own) / schur[:, None], queries)


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
      Scores, shape (q, d), dtype of queries, in 1/units of samples. All NaN where the Cholesky
      factorisation fails.

    Raises:
      ValueError: wrong rank, dtype or dimension, or a concrete ridge that is not positive.

    Cost: that of :func:`stein_score`, then O(q n d) time and O((n + q) d) memory.

    References:
      Zhou, Shi & Zhu 2020, Theorem 3.1, with a diagonal kernel and lambda = eta / n.
    """
    _checks.points(queries=queries, samples=samples)
    points, nodes = _wide(queries), _wide(samples)
    score = stein_score(nodes, kernel, ridge=ridge)
    witness = pairwise.stein_sum(kernel, points, nodes, score)
    return _like(-witness / _like(ridge, witness), queries)


# ----------------------------------------------------------------------------------- spectral


def spectral_score(samples: Array, kernel: Kernel, *, mass_fraction: float | Array) -> Array:
    r"""Returns the spectral estimate (SSGE) of the samples' own score, at each sample.

    .. math:: G = -\sum_{c \le J} \frac{1}{\lambda_c} u_c u_c^\top N

    with the eigenpairs of K by falling eigenvalue. Equal to :func:`stein_score` as its ridge goes
    to 0 if all are kept.

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

    References:
      Shi, Sun & Zhu 2018 (SSGE); Zhou, Shi & Zhu 2020, Theorem 3.2 and Example 3.6.
    """
    _checks.points(samples=samples)
    inverse, repulsion = _spectral_parts(_wide(samples), kernel, mass_fraction)
    return _like(-_dot(inverse, repulsion), samples)


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
      Scores, shape (q, d), dtype of queries, in 1/units of samples.

    Raises:
      ValueError: wrong rank, dtype or dimension, or a concrete mass_fraction outside its range.

    Cost: that of :func:`spectral_score`, then O(q n d) time and O((n + q) d) memory.

    References:
      As :func:`spectral_score`.
    """
    _checks.points(queries=queries, samples=samples)
    points, nodes = _wide(queries), _wide(samples)
    inverse, repulsion = _spectral_parts(nodes, kernel, mass_fraction)
    coefficients = -_dot(inverse, _dot(inverse, repulsion))
    return _like(pairwise.kernel_sum(kernel, points, nodes, coefficients), queries)


def _spectral_parts(
    samples: Array, kernel: Kernel, mass_fraction: float | Array
) -> tuple[Array, Array]:
    _checks.shape("mass_fraction", mass_fraction, ())
    _checks.in_range("mass_fraction", mass_fraction, 0.0, 1.0, closed="r")
    gram, repulsion = _gram_and_repulsion(kernel, samples)
    return _truncated_inverse(gram, _like(mass_fraction, gram)), repulsion


@jax.custom_jvp
def _truncated_inverse(gram: Array, mass_fraction: Array) -> Array:
    """Returns the inverse of a positive semidefinite matrix on its leading eigenvectors."""
    _, vectors, inverse = _kept_spectrum(gram, mass_fraction)
    return _dot(vectors * inverse[None, :], vectors.T)


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
    rotated = _dot(vectors.T, _dot(tangents[0], vectors)) * jnp.where(crosses, across, within)
    return (
        _dot(vectors * inverse[None, :], vectors.T),
        _dot(vectors, _dot(rotated, vectors.T)),
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
        T = 3 n^(1/4) corresponds to :func:`default_ridge`.
      nu: qualification of the method, > 0.

    Returns:
      Scores, shape (n, d), dtype of samples, in 1/units of samples.

    Raises:
      ValueError: wrong rank or dtype, num_steps below 1, or a concrete nu that is not positive.

    Cost: O(T n^2 d) time, O(n^2 + n d) memory (T n d under reverse-mode differentiation).

    References:
      Zhou, Shi & Zhu 2020, Example C.4; Engl, Hanke & Neubauer 1996, section 6.3 for u_t, w_t.
    """
    _checks.points(samples=samples)
    gram, zeta, coefficients, scale = _nu_iterate(_wide(samples), kernel, num_steps, nu)
    return _like(_dot(gram, coefficients) + scale * zeta, samples)


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
      Scores, shape (q, d), dtype of queries, in 1/units of samples.

    Raises:
      ValueError: wrong rank, dtype or dimension, num_steps below 1, or a concrete nu that is not
        positive.

    Cost: that of :func:`nu_method_score`, then O(q n d) time and O((n + q) d) memory.

    References:
      Zhou, Shi & Zhu 2020, Example C.4.
    """
    _checks.points(queries=queries, samples=samples)
    points, nodes = _wide(queries), _wide(samples)
    gram, _, coefficients, scale = _nu_iterate(nodes, kernel, num_steps, nu)
    peak = _at_zero(kernel, gram)
    weights = jnp.broadcast_to(scale / (nodes.shape[0] * peak), nodes.shape[:1])
    return _like(pairwise.stein_sum(kernel, points, nodes, coefficients / peak, weights), queries)


def _nu_iterate(
    samples: Array, kernel: Kernel, num_steps: int, nu: float | Array
) -> tuple[Array, Array, Array, Array]:
    """Returns K / k(0), zeta / k(0) at the samples, and c, a of s = K c + a zeta."""
    _checks.at_least("num_steps", num_steps, 1)
    _checks.shape("nu", nu, ())
    _checks.positive(nu=nu)
    gram, repulsion = _gram_and_repulsion(kernel, samples)
    peak, size = _at_zero(kernel, gram), samples.shape[0]
    gram, zeta, nu = gram / peak, repulsion / (size * peak), _like(nu, gram)

    def step(carry: _Iterate, t: Array) -> tuple[_Iterate, None]:
        c, c_before, a, a_before = carry
        below = (t + 2 * nu - 1) * (2 * t + 4 * nu - 1)
        u = (t - 1) * (2 * t - 3) * (2 * t + 2 * nu - 1) / (below * (2 * t + 2 * nu - 3))
        w = 4 * (2 * t + 2 * nu - 1) * (t + nu - 1) / below
        c_next = c + u * (c - c_before) - w / size * (_dot(gram, c) + a * zeta)
        return (c_next, c, a + u * (a - a_before) - w, a), None

    nothing = jnp.zeros_like(zeta)
    start = (nothing, nothing, -(4 * nu + 2) / (4 * nu + 1), jnp.zeros_like(nu))
    times = jnp.arange(2, num_steps + 1, dtype=gram.dtype)
    (coefficients, _, scale, _), _ = lax.scan(step, start, times)
    return gram, zeta, coefficients, scale


# ---------------------------------------------------------------------------------------- KDE


def kde_score(samples: Array, kernel: Kernel) -> Array:
    r"""Returns the score of the samples' kernel density estimate, at each sample.

    .. math:: s(x_i) = \nabla_x \log \sum_j k(x, x_j) \big|_{x = x_i}

    Args:
      samples: x_j; shape (n, d), floating.
      kernel: k >= 0; its lengthscales are in units of samples. It smooths: for Gaussian samples
        of variance v and an RBF of lengthscale l the limit is -x / (v + l^2).

    Returns:
      Scores, shape (n, d), dtype of samples, in 1/units of samples.

    Raises:
      ValueError: wrong rank or dtype.

    Cost: O(n^2 d) time, O(n^2) memory.

    References:
      Li & Turner 2018, the plug-in estimator.
    """
    _checks.points(samples=samples)
    return _like(_kde(_wide(samples), None, kernel), samples)


def kde_score_at(queries: Array, samples: Array, kernel: Kernel) -> Array:
    r"""Returns the score of the samples' kernel density estimate, at any point.

    .. math:: s(x) = \nabla_x \log \sum_j k(x, y_j)

    Gaussian mixtures are summed in logarithms: however far the query, it is drawn to its nearest
    samples by (y - x) / l^2. Other kernels must not underflow: the Laplace and Matern kernels do
    so beyond 50 to 90 lengthscales in float32, the inverse multiquadric never does.

    Args:
      queries: points x; shape (q, d), floating.
      samples: y_j; shape (n, d).
      kernel: k >= 0; its lengthscales are in units of samples.

    Returns:
      Scores, shape (q, d), dtype of queries, in 1/units of samples. NaN in the rows where
      every k(x, y_j) underflows.

    Raises:
      ValueError: wrong rank, dtype or dimension.

    Cost: O(q n d) time, O(q n) memory.

    References:
      Li & Turner 2018, the plug-in estimator.
    """
    _checks.points(queries=queries, samples=samples)
    return _like(_kde(_wide(queries), _wide(samples), kernel), queries)


def _kde(queries: Array, samples: Array | None, kernel: Kernel) -> Array:
    logits, pull = _pairs(functools.partial(_log_profile, kernel), kernel, queries, samples)
    lost = jnp.max(logits, axis=1, keepdims=True) == -jnp.inf
    return jnp.where(lost, jnp.nan, pull(jax.nn.softmax(logits, axis=1)))


def _log_profile(kernel: Kernel, sq_dist: Array) -> Array:
    """Returns log k; for a Gaussian mixture without the detour through k, which underflows."""
    radial = pairwise.radial(kernel)
    if isinstance(radial, kernels.RadialMixture) and radial.shape is kernels._rbf:
        lengthscales = _like(radial.lengthscales, sq_dist)
        weights = jnp.ones_like(lengthscales) if radial.weights is None else radial.weights
        exponents = -sq_dist[None] / (2 * jnp.square(lengthscales)[:, None, None])
        return jax.nn.logsumexp(exponents, axis=0, b=_like(weights, sq_dist)[:, None, None])
    value = kernel.profile(sq_dist)
    return jnp.where(value > 0, jnp.log(jnp.where(value > 0, value, 1)), -jnp.inf)


# ------------------------------------------------------------------------------------- shared


def _pairs(
    profile: Callable[[Array], Array], kernel: Kernel, queries: Array, samples: Array | None
) -> tuple[Array, Callable[[Array], Array]]:
    r"""Returns p(r_ij^2) for all pairs, and :math:`W \mapsto \sum_j W_{ij} \nabla_{x_i} p`.

    The gradient is in the queries alone. Samples None stands for the queries themselves, held
    still, with exactly zero self-distances.
    """
    targets = pairwise.embed(kernel, queries if samples is None else samples)

    def values(x: Array) -> Array:
        rows, cols = pairwise.centred(pairwise.embed(kernel, x), targets)
        return profile(pairwise.tile_distances(rows, cols, 0 if samples is None else None))

    value, pull = jax.vjp(values, queries)
    return value, lambda weights: pull(weights)[0]


def _gram_and_repulsion(kernel: Kernel, samples: Array) -> tuple[Array, Array]:
    """Returns K and N of the samples; one distance matrix serves both where k is radial."""
    gram, pull = _pairs(kernel.profile, kernel, samples, None)
    if hasattr(kernel, "features"):
        return gram, pairwise.gradient_sum(kernel, samples, None)
    return gram, -pull(jnp.ones_like(gram))


def _factor(gram: Array, ridge: float | Array) -> tuple[Array, bool]:
    identity = jnp.eye(gram.shape[0], dtype=gram.dtype)
    return cho_factor(gram + _like(ridge, gram) * identity, lower=True)


def _wide(x: Array) -> Array:
    """Returns x in at least float32."""
    x = jnp.asarray(x)
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def _at_zero(kernel: Kernel, like: Array) -> Array:
    return kernel.profile(jnp.zeros((), dtype=like.dtype))


def _like(value: float | Array, like: Array) -> Array:
    return jnp.asarray(value).astype(jnp.result_type(like))


def _check_ridge(ridge: float | Array) -> None:
    _checks.shape("ridge", ridge, ())
    _checks.positive(ridge=ridge)
