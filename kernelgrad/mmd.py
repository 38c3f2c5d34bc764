r"""Maximum mean discrepancy: MMD^2, its gradient in the samples, two-sample tests, coresets.

.. math:: \mathrm{MMD}^2(P, Q) = E\,k(x, x') + E\,k(y, y') - 2 E\,k(x, y)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import (
    _checks,
    _devices,
    _distances,
    _numeric,
    _tiles,
    _traits,
    _weights,
    pairwise,
)
from kernelgrad._thinning import kernel_thinning as kernel_thinning
from kernelgrad._two_sample import aggregated_test as aggregated_test
from kernelgrad._two_sample import fused_test as fused_test
from kernelgrad._two_sample import incomplete_test as incomplete_test
from kernelgrad._two_sample import two_sample_test as two_sample_test
from kernelgrad.types import Array, Kernel

_OFFSET_POINTS = 32
_LEAST_VARIANCE = 1e-8  # of test_power, in units of k(0)^2; as in the reference


def mmd_v_statistic(
    x: Array,
    y: Array,
    kernel: Kernel,
    *,
    x_weights: Array | None = None,
    y_weights: Array | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""Returns the V-statistic of MMD^2, the squared RKHS distance of the two mean embeddings.

    .. math:: \frac1{n^2} \sum_{ij} k(x_i, x_j) + \frac1{m^2} \sum_{ij} k(y_i, y_j)
        - \frac2{nm} \sum_{ij} k(x_i, y_j)

    Non-negative up to rounding; biased upwards by O(1/n + 1/m). With weights, over their sums,
    :math:`w_i` and :math:`v_j` stand in place of 1/n and 1/m.

    Args:
      x: samples; shape (n, d), floating.
      y: samples; shape (m, d), floating.
      kernel: k; its lengthscales are in units of x.
      x_weights: w_i >= 0 of x, in any unit; shape (n,). They are divided by their sum, over all
        devices. None: all count alike.
      y_weights: those of y; shape (m,).
      axis_name: if set, both samples are the union over all devices.

    Returns:
      MMD^2, shape (); at least float32.

    Raises:
      ValueError: wrong rank, dtype or mismatched dimensions, or weights that are negative or all 0.

    Cost: O((n + m)^2 d) time, O((n + m) d) memory.

    Example:
      >>> from kernelgrad import kernels, mmd
      >>> x, y = jnp.array([[0.0]]), jnp.array([[1.0]])
      >>> round(float(mmd.mmd_v_statistic(x, y, kernels.rbf_mixture(1.0))), 3)  # 2 - 2 exp(-1/2)
      0.787

    References:
      Gretton et al. 2012, eq. (5); Li 2017 (approximate KL gradients), section 3.
    """
    x, y, w, v = _weighted(x, y, x_weights, y_weights, axis_name)
    x, y, base, a, b = _samples(x, y, kernel, axis_name)
    k_xx, k_yy = (
        _mean(base, u, None, (o, o), axis_name, (p, p)) for u, o, p in ((x, a, w), (y, b, v))
    )
    return k_xx + k_yy - 2 * _mean(base, x, y, (a, b), axis_name, (w, v))


def mmd_u_statistic(x: Array, y: Array, kernel: Kernel, *, axis_name: str | None = None) -> Array:
    r"""Returns the U-statistic of MMD^2, unbiased and therefore sometimes negative.

    .. math:: \frac1{n(n-1)} \sum_{i \ne j} k(x_i, x_j) + \frac1{m(m-1)} \sum_{i \ne j} k(y_i, y_j)
        - \frac2{nm} \sum_{ij} k(x_i, y_j)

    It takes no weights: over their sum, which is random as they are, it would not be unbiased.

    Args:
      x: samples; shape (n, d), n >= 2 over all devices, floating.
      y: samples; shape (m, d), m >= 2 over all devices, floating.
      kernel: k; its lengthscales are in units of x.
      axis_name: if set, both samples are the union over all devices.

    Returns:
      MMD^2, shape (); at least float32.

    Raises:
      ValueError: wrong rank, dtype, mismatched dimensions or fewer than two samples.

    Cost: O((n + m)^2 d) time, O((n + m) d) memory.

    Example:
      >>> from kernelgrad import kernels, mmd
      >>> x = jnp.array([[-1.0], [1.0]])
      >>> kernel = kernels.rbf_mixture(1.0)
      >>> round(float(mmd.mmd_u_statistic(x, x, kernel)), 3)  # exp(-2) - 1; the V-statistic is 0
      -0.865

    References:
      Gretton et al. 2012, eq. (3).
    """
    x, y = _checks.points(x=x, y=y)
    x, y, base, a, b = _samples(x, y, kernel, axis_name)
    within = []
    for name, points, offset in (("x", x, a), ("y", y, b)):
        size = points.shape[0] * _devices.num_devices(axis_name)
        _checks.at_least(f"number of samples in {name}", size, 2)
        diagonal = base.profile(jnp.zeros((), points.dtype))
        diagonal -= 2 * _devices.statistic(jnp.mean(offset), axis_name)
        mean = _mean(base, points, None, (offset, offset), axis_name)
        within.append((size * mean - diagonal) / (size - 1))
    return within[0] + within[1] - 2 * _mean(base, x, y, (a, b), axis_name)


def mmd_gradient(
    x: Array,
    y: Array,
    kernel: Kernel,
    *,
    x_weights: Array | None = None,
    y_weights: Array | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""Returns the gradient of :func:`mmd_v_statistic` in x, in closed form.

    .. math:: \frac{2}{n^2} \sum_j \nabla_{x_i} k(x_i, x_j) - \frac{2}{nm} \sum_j
        \nabla_{x_i} k(x_i, y_j)

    Descend it to move x towards y.

    Args:
      x: samples x_i; shape (n, d), floating.
      y: samples y_j; shape (m, d), floating.
      kernel: k, held fixed: no gradient through its lengthscales.
      x_weights: w_i >= 0 of x, in any unit; shape (n,). They are divided by their sum, over all
        devices. None: all count alike.
      y_weights: those of y; shape (m,).
      axis_name: if set, both samples are the union over all devices; the rows of this device's x
        come back.

    Returns:
      Gradient, shape (n, d), dtype of x, in 1/units of x.

    Raises:
      ValueError: wrong rank, dtype or mismatched dimensions.

    Cost: O(n (n + m) d) time, O((n + m) d) memory.

    Example:
      >>> from kernelgrad import kernels, mmd
      >>> x, y = jnp.array([[0.0]]), jnp.array([[1.0]])
      >>> print(mmd.mmd_gradient(x, y, kernels.rbf_mixture(1.0)))  # -2 exp(-1/2)
      [[-1.213]]

    References:
      Li 2017 (approximate KL gradients), footnote 2.
    """
    x, y, w, v = _weighted(x, y, x_weights, y_weights, axis_name)
    base = _traits.radial(kernel)
    x = _devices.varying(x, y, kernel)
    embedded, pull = jax.vjp(lambda points: _embed(kernel, points), x)
    targets = _embed(kernel, y)
    n, m = (points.shape[0] * _devices.num_devices(axis_name) for points in (x, y))
    within = pairwise.gradient_sum(base, embedded, None, w, axis_name=axis_name)
    between = pairwise.gradient_sum(base, embedded, targets, v, axis_name=axis_name)
    (gradient,) = pull(_each(w, -2 / n * (within / n - between / m)))
    return gradient


def witness_gradient(
    queries: Array,
    x: Array,
    y: Array,
    kernel: Kernel,
    *,
    x_weights: Array | None = None,
    y_weights: Array | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""Returns the gradient of the witness function of MMD at any point.

    .. math:: \nabla f(z), \quad f(z) = \frac1n \sum_j k(z, x_j) - \frac1m \sum_j k(z, y_j)

    At x_i it is n/2, or 1 / (2 w_i) of its weight, times :func:`mmd_gradient`. Descend it to move
    queries from x towards y.

    Args:
      queries: points z; shape (q, d), floating.
      x: samples x_j; shape (n, d), floating.
      y: samples y_j; shape (m, d), floating.
      kernel: k, held fixed: no gradient through its lengthscales.
      x_weights: w_i >= 0 of x, in any unit; shape (n,). They are divided by their sum, over all
        devices. None: all count alike.
      y_weights: those of y; shape (m,).
      axis_name: if set, both samples are the union over all devices; queries stay apart.

    Returns:
      Gradient, shape (q, d), dtype of both, in 1/units of x; 0 at a query from where the dtype
      cannot tell x from y.

    Raises:
      ValueError: wrong rank, dtype or mismatched dimensions.

    Cost: O(q (n + m) d) time, O((q + n + m) d) memory.

    Example:
      >>> from kernelgrad import kernels, mmd
      >>> x, y = jnp.array([[0.0]]), jnp.array([[1.0]])
      >>> kernel = kernels.rbf_mixture(1.0)
      >>> print(mmd.witness_gradient(x, x, y, kernel))  # n / 2 times mmd_gradient
      [[-0.607]]

    References:
      Arbel et al. 2019, section 2.
    """
    queries, x, y = _checks.points(queries=queries, x=x, y=y)
    (queries, _), (x, w), (y, v) = _weights.relative(
        axis_name, ("", queries, None), ("x_weights", x, x_weights), ("y_weights", y, y_weights)
    )
    queries = _devices.varying(queries, x, y, kernel)
    base = _traits.radial(kernel)
    embedded, pull = jax.vjp(lambda points: _embed(kernel, points), queries)
    gradients = []
    for points, weights in ((x, w), (y, v)):
        size = points.shape[0] * _devices.num_devices(axis_name)
        others = _embed(kernel, points)
        sums = pairwise.gradient_sum(base, embedded, others, weights, axis_name=axis_name)
        gradients.append(sums / size)
    (gradient,) = pull(gradients[1] - gradients[0])  # radial: minus the gradient in the other
    return gradient


def mmd_value_and_gradient(
    x: Array,
    y: Array,
    kernel: Kernel,
    *,
    x_weights: Array | None = None,
    y_weights: Array | None = None,
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    r"""Returns :func:`mmd_v_statistic` and :func:`mmd_gradient` from one pass over the pairs.

    Args:
      x: samples x_i; shape (n, d), floating.
      y: samples y_j; shape (m, d), floating.
      kernel: k, held fixed: no gradient through its lengthscales.
      x_weights: w_i >= 0 of x, in any unit; shape (n,). They are divided by their sum, over all
        devices. None: all count alike.
      y_weights: those of y; shape (m,).
      axis_name: if set, both samples are the union over all devices; the rows of this device's x
        come back.

    Returns:
      Pair of MMD^2, shape (), at least float32, and its gradient in x, shape (n, d), dtype of x.

    Raises:
      ValueError: wrong rank, dtype or mismatched dimensions.

    Cost: O((n + m)^2 d) time, O((n + m) d) memory; about half of what differentiating the
      statistic takes.

    Example:
      >>> from kernelgrad import kernels, mmd
      >>> x, y = jnp.array([[0.0]]), jnp.array([[1.0]])
      >>> value, gradient = mmd.mmd_value_and_gradient(x, y, kernels.rbf_mixture(1.0))
      >>> round(float(value), 3), round(float(gradient[0, 0]), 3)
      (0.787, -1.213)

    References:
      As :func:`mmd_v_statistic` and :func:`mmd_gradient`.
    """
    x, y, w, v = _weighted(x, y, x_weights, y_weights, axis_name)
    x = _devices.varying(x, y, kernel)
    embedded, pull = jax.vjp(lambda points: _embed(kernel, points), x)
    _, targets, base, a, b = _samples(x, y, kernel, axis_name)
    n, m = (points.shape[0] * _devices.num_devices(axis_name) for points in (x, y))

    def means(
        others: Array | None, offset: Array, size: int, relative: Array | None
    ) -> tuple[Array, Array]:
        weights = _each(relative, jnp.full(offset.shape, 1 / size, embedded.dtype))
        values, gradients = pairwise.kernel_and_gradient_sum(
            base,
            embedded,
            others,
            weights[:, None],
            weights,
            offsets=(a, offset),
            axis_name=axis_name,
        )
        return _devices.statistic(jnp.mean(_each(w, values)), axis_name), gradients

    (k_xx, within), (k_xy, between) = means(None, a, n, w), means(targets, b, m, v)
    (gradient,) = pull(_each(w, -2 / n * (within - between)))
    return k_xx + _mean(base, targets, None, (b, b), axis_name, (v, v)) - 2 * k_xy, gradient


def test_power(x: Array, y: Array, kernel: Kernel, *, axis_name: str | None = None) -> Array:
    r"""Returns the power criterion of the two-sample test: MMD^2 in units of its own deviation.

    .. math:: J = \frac{\widehat{\mathrm{MMD}}{}^2}{\hat\sigma}, \quad
        \widehat{\mathrm{MMD}}{}^2 = \frac1{n(n-1)} \sum_{i \ne j} H_{ij}, \quad
        \hat\sigma^2 = \frac4{n^3} \sum_i \Big(\sum_j H_{ij}\Big)^2
        - \frac4{n^4} \Big(\sum_{ij} H_{ij}\Big)^2 + 10^{-8} k(0)^2

    with :math:`H_{ij} = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)`. Ascend it: where
    P and Q differ, the test's power grows with sqrt(n) J. It does not change with the unit of k.

    Args:
      x: samples x_i; shape (n, d), n >= 2 over all devices, floating.
      y: samples y_i; shape of x.
      kernel: k, with k(0) > 0; gradients run to its lengthscales, weights and features.
      axis_name: if set, both samples are the union over all devices.

    Returns:
      J, shape (); at least float32.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes, fewer than two samples, a kernel without
        k(0) > 0, or a concrete k(0) <= 0.

    Cost: O(n^2 d) time, O(n d) memory.

    Example:
      >>> from kernelgrad import kernels, mmd
      >>> x = jnp.array([[0.0], [1.0], [2.0]])
      >>> weak, strong = (mmd.test_power(x, x + by, kernels.rbf_mixture(1.0)) for by in (0.1, 2.0))
      >>> bool(weak < 0 < strong)
      True

    References:
      Liu et al. 2020 (deep kernels), eqs. (4) and (5); Sutherland et al. 2017.
    """
    x, y = _checks.points(x=x, y=y)
    if y.shape[0] != x.shape[0]:
        raise ValueError(
            f"y: got {y.shape[0]} samples; expected {x.shape[0]}, as many as in x. Leave some out"
        )
    size = x.shape[0] * _devices.num_devices(axis_name)
    _checks.at_least("number of samples in x", size, 2)
    for part in _traits.parts(kernel):
        _traits.check_positive(part)
    parts = [_differences(x, y, part, axis_name) for part in _traits.parts(kernel)]
    rows, diagonal, peak = (sum(terms) for terms in zip(*parts, strict=True))
    _checks.positive(**{"k(0) of kernel": peak})
    rows, diagonal = rows / peak, diagonal / peak  # whose squares are in range
    mean, mean_diagonal = _devices.statistic((jnp.mean(rows), jnp.mean(diagonal)), axis_name)
    squares = jnp.square(rows - _devices.copies(mean, axis_name))
    variance = 4 * _devices.statistic(jnp.mean(squares), axis_name)
    deviation = jnp.sqrt(variance + _LEAST_VARIANCE)
    return (size * mean - mean_diagonal) / (size - 1) / deviation


def _weighted(
    x: Array,
    y: Array,
    x_weights: Array | None,
    y_weights: Array | None,
    axis_name: str | None,
) -> tuple[Array, Array, Array | None, Array | None]:
    """Returns the samples, checked, and their weights, of mean 1, or None."""
    x, y = _checks.points(x=x, y=y)
    (x, w), (y, v) = _weights.relative(
        axis_name, ("x_weights", x, x_weights), ("y_weights", y, y_weights)
    )
    return x, y, w, v


def _each(weights: Array | None, rows: Array) -> Array:
    """Returns rows (n, ...) times their weights (n,)."""
    if weights is None:
        return rows
    return rows * weights.astype(rows.dtype).reshape((-1,) + (1,) * (rows.ndim - 1))


class _Samples(NamedTuple):
    """What the kernel compares, the radial kernel between it, and offsets for its sums."""

    x: Array
    y: Array
    kernel: Kernel
    x_offset: Array
    y_offset: Array


def _samples(x: Array, y: Array, kernel: Kernel, axis_name: str | None) -> _Samples:
    r"""Prepares sums of k(u, v) - a(u) - a(v), which have the same MMD as k for any function a.

    The weights of MMD add up to 0, so a drops out. With :math:`a(u) = E_z k(u, z) - E k(z, z') / 2`
    over some points z, what remains is small, and the three means do not cancel each other's
    digits.
    """
    base = _traits.radial(kernel)
    x, y = _embed(kernel, x), _embed(kernel, y)
    devices = _devices.num_devices(axis_name)
    few = [points[:: -(-points.shape[0] * devices // _OFFSET_POINTS)] for points in (x, y)]
    some = lax.stop_gradient(_devices.gather(jnp.concatenate(few), axis_name))
    base = lax.stop_gradient(base)

    # in the unit and from the middle of the pairs of x and y, which are then moved but once
    own, ours, _, unit = _distances.in_own_unit(base, lax.stop_gradient(x))
    theirs = lax.stop_gradient(y) / unit
    centre = _distances.middle(theirs, axis_name)
    cols = _distances.moved(some / unit, centre)

    def mean(points: Array) -> Array:  # any function does, so that lost digits do no harm
        sq_dist = _distances.products(_distances.moved(points, centre), cols)
        return jnp.mean(own.profile(jnp.where(sq_dist > 0, sq_dist, 0)), axis=1)

    def means(points: Array) -> Array:
        if devices == 1:
            return mean(points)
        tiles = lax.map(mean, _tiles.split(points, _tiles.TILE_ROWS))  # a share of memory, too
        return tiles.reshape(-1)[: points.shape[0]]

    level = jnp.mean(mean(some / unit)) / 2
    return _Samples(x, y, _traits.radial(kernel), means(ours) - level, means(theirs) - level)


def _embed(kernel: Kernel, points: Array) -> Array:
    return _numeric.wide(_traits.embed(kernel, points))


def _mean(
    kernel: Kernel,
    x: Array,
    y: Array | None,
    offsets: tuple[Array, Array],
    axis_name: str | None,
    relative: tuple[Array | None, Array | None] = (None, None),
) -> Array:
    """Mean of a radial k, less offsets, over all pairs of x and y, or of x with itself.

    A pair counts by the product of the relative weights of its two points.
    """
    size = x.shape[0] if y is None else y.shape[0]
    weights = jnp.full((size, 1), 1 / (size * _devices.num_devices(axis_name)), x.dtype)
    weights = _each(relative[1], weights)
    sums = pairwise.kernel_sum(kernel, x, y, weights, offsets=offsets, axis_name=axis_name)
    return _devices.statistic(jnp.mean(_each(relative[0], sums)), axis_name)


def _differences(
    x: Array, y: Array, kernel: Kernel, axis_name: str | None
) -> tuple[Array, Array, Array]:
    """Row means and diagonal of H at this device's rows, shapes (n,), and k(0)."""
    x, y, base, a, b = _samples(x, y, kernel, axis_name)
    size = x.shape[0] * _devices.num_devices(axis_name)
    weights = jnp.full((x.shape[0], 1), 1 / size, x.dtype)

    def means(u: Array, v: Array | None, offsets: tuple[Array, Array]) -> Array:
        sums = pairwise.kernel_sum(base, u, v, weights, offsets=offsets, axis_name=axis_name)
        return sums[:, 0]

    within = means(x, None, (a, a)) + means(y, None, (b, b))
    rows = within - means(x, y, (a, b)) - means(y, x, (b, a))
    peak = base.profile(jnp.zeros((), x.dtype))
    own = base.profile(jnp.sum(jnp.square(x - y), axis=1))
    return rows, 2 * (peak - own), peak
