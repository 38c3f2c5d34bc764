r"""Maximum mean discrepancy: estimates of MMD^2, its gradient in the samples, a two-sample test.

.. math:: \mathrm{MMD}^2(P, Q) = E\,k(x, x') + E\,k(y, y') - 2 E\,k(x, y)
"""

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, pairwise
from kernelgrad.types import Array, Kernel, Key, TestResult

_PERMUTATIONS_AT_ONCE = 128


def mmd_v_statistic(x: Array, y: Array, kernel: Kernel, *, axis_name: str | None = None) -> Array:
    r"""Returns the V-statistic of MMD^2, the squared RKHS distance of the two mean embeddings.

    .. math:: \frac1{n^2} \sum_{ij} k(x_i, x_j) + \frac1{m^2} \sum_{ij} k(y_i, y_j)
        - \frac2{nm} \sum_{ij} k(x_i, y_j)

    Non-negative up to rounding; biased upwards by O(1/n + 1/m).

    Args:
      x: samples; shape (n, d), floating.
      y: samples; shape (m, d), floating.
      kernel: k; its lengthscales are in units of x.
      axis_name: if set, both samples are the union over all devices.

    Returns:
      MMD^2, shape (), dtype of x.

    Raises:
      ValueError: wrong rank, dtype or mismatched dimensions.

    Cost: O((n + m)^2 d) time, O((n + m) d) memory.

    References:
      Gretton et al. 2012, eq. (5); Li 2017 (approximate KL gradients), section 3.
    """
    _checks.points(x=x, y=y)
    means = (_mean(kernel, *pair, axis_name=axis_name) for pair in ((x, None), (y, None), (x, y)))
    k_xx, k_yy, k_xy = means
    return k_xx + k_yy - 2 * k_xy


def mmd_u_statistic(x: Array, y: Array, kernel: Kernel, *, axis_name: str | None = None) -> Array:
    r"""Returns the U-statistic of MMD^2, unbiased and therefore sometimes negative.

    .. math:: \frac1{n(n-1)} \sum_{i \ne j} k(x_i, x_j) + \frac1{m(m-1)} \sum_{i \ne j} k(y_i, y_j)
        - \frac2{nm} \sum_{ij} k(x_i, y_j)

    Args:
      x: samples; shape (n, d), n >= 2 over all devices, floating.
      y: samples; shape (m, d), m >= 2 over all devices, floating.
      kernel: k; its lengthscales are in units of x.
      axis_name: if set, both samples are the union over all devices.

    Returns:
      MMD^2, shape (), dtype of x.

    Raises:
      ValueError: wrong rank, dtype, mismatched dimensions or fewer than two samples.

    Cost: O((n + m)^2 d) time, O((n + m) d) memory.

    References:
      Gretton et al. 2012, eq. (3).
    """
    _checks.points(x=x, y=y)
    within = []
    for name, points in (("x", x), ("y", y)):
        size = points.shape[0] * _num_devices(axis_name)
        _checks.at_least(f"number of samples in {name}", size, 2)
        diagonal = kernel.profile(jnp.zeros((), points.dtype))
        mean = _mean(kernel, points, None, axis_name=axis_name)
        within.append((size * mean - diagonal) / (size - 1))
    return within[0] + within[1] - 2 * _mean(kernel, x, y, axis_name=axis_name)


def mmd_gradient(x: Array, y: Array, kernel: Kernel, *, axis_name: str | None = None) -> Array:
    r"""Returns the gradient of :func:`mmd_v_statistic` in x, in closed form.

    .. math:: \frac{2}{n^2} \sum_j \nabla_{x_i} k(x_i, x_j) - \frac{2}{nm} \sum_j
        \nabla_{x_i} k(x_i, y_j)

    Descend it to move x towards y.

    Args:
      x: samples x_i; shape (n, d), floating.
      y: samples y_j; shape (m, d), floating.
      kernel: k, held fixed: no gradient through its lengthscales.
      axis_name: if set, both samples are the union over all devices; the rows of this device's x
        come back.

    Returns:
      Gradient, shape (n, d), dtype of x, in 1/units of x.

    Raises:
      ValueError: wrong rank, dtype or mismatched dimensions.

    Cost: O(n (n + m) d) time, O((n + m) d) memory.

    References:
      Li 2017 (approximate KL gradients), footnote 2.
    """
    _checks.points(x=x, y=y)
    base = pairwise.radial(kernel)
    embedded, pull = jax.vjp(lambda points: pairwise.embed(kernel, points), x)
    targets = pairwise.embed(kernel, y)
    n, m = (points.shape[0] * _num_devices(axis_name) for points in (x, y))
    within = pairwise.gradient_sum(base, embedded, None, axis_name=axis_name)
    between = pairwise.gradient_sum(base, embedded, targets, axis_name=axis_name)
    (gradient,) = pull(-2 / n * (within / n - between / m))
    return gradient


def two_sample_test(
    key: Key, x: Array, y: Array, kernel: Kernel, *, num_permutations: int = 999
) -> TestResult:
    r"""Tests whether x and y come from one distribution, by permuting the pooled sample.

    The statistic is the V-statistic of MMD^2. With signed weights :math:`a = 1/n` on x and
    :math:`-1/m` on y it is :math:`a^\top K a`, and a permutation only reorders a: many are summed
    against the same tiles of K, which is never stored. A permuted statistic that equals the
    observed one up to rounding counts as a tie, so that the level is exact.

    Args:
      key: random key of the permutations.
      x: samples; shape (n, d), floating.
      y: samples; shape (m, d), floating.
      kernel: k. It may depend on the pooled sample (a median lengthscale) but not on which point
        belongs to which sample, or the p-value loses its meaning.
      num_permutations: B >= 1, static.

    Returns:
      statistic MMD^2, and p_value = (1 + #{permuted >= observed}) / (1 + B).

    Raises:
      ValueError: wrong rank, dtype, mismatched dimensions, or B < 1.

    Cost: O((n + m)^2 (d B / 128 + B)) time, O((n + m) (d + 128)) memory.

    References:
      Gretton et al. 2012, section 5; Phipson & Smyth 2010 for the p-value.
    """
    _checks.points(x=x, y=y)
    _checks.at_least("num_permutations", num_permutations, 1)
    n, m = x.shape[0], y.shape[0]
    pool = pairwise.embed(kernel, jnp.concatenate([x, y]))
    base = pairwise.radial(kernel)
    signed = jnp.concatenate([jnp.full(n, 1 / n, pool.dtype), jnp.full(m, -1 / m, pool.dtype)])

    def statistics(weights: Array) -> Array:
        return jnp.sum(weights * pairwise.kernel_sum(base, pool, None, weights), axis=0)

    def permuted(key: Key) -> Array:
        keys = jax.random.split(key, _PERMUTATIONS_AT_ONCE)
        shuffled = jax.vmap(lambda k: jax.random.permutation(k, signed))(keys)
        return statistics(shuffled.T)

    batches = -(-num_permutations // _PERMUTATIONS_AT_ONCE)
    null = lax.map(permuted, jax.random.split(key, batches)).ravel()[:num_permutations]
    observed = statistics(signed[:, None])[0]
    rounding = 32 * jnp.finfo(pool.dtype).eps * base.profile(jnp.zeros((), pool.dtype))
    exceeded = jnp.sum(null >= observed - rounding * (1 / n + 1 / m))
    p_value = (1 + exceeded).astype(pool.dtype) / (1 + num_permutations)
    return TestResult(observed, p_value)


def _mean(kernel: Kernel, x: Array, y: Array | None, *, axis_name: str | None) -> Array:
    """Mean of k over all pairs of x and y, or of x with itself."""
    size = x.shape[0] if y is None else y.shape[0]
    weights = jnp.full((size, 1), 1 / (size * _num_devices(axis_name)), x.dtype)
    mean = jnp.mean(pairwise.kernel_sum(kernel, x, y, weights, axis_name=axis_name))
    return mean if axis_name is None else lax.pmean(mean, axis_name)


def _num_devices(axis_name: str | None) -> int:
    return 1 if axis_name is None else lax.axis_size(axis_name)
