r"""Two-sample tests by permutation, under one kernel or the best of several."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import (
    _checks,
    _incomplete,
    _numeric,
    _resampling,
    _tiles,
    _traits,
    kernels,
    pairwise,
)
from kernelgrad.types import Array, Kernel, Key, TestResult

_PERMUTATIONS_AT_ONCE = 128


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
      statistic MMD^2, and p_value = (1 + #{permuted >= observed}) / (1 + B), in at least float32;
      NaN, both, where a sample or a statistic is not finite.

    Raises:
      ValueError: wrong rank, dtype, mismatched dimensions, concrete samples that are not finite or
        whose statistic is not, or B < 1.

    Cost: O((n + m)^2 (d B / 128 + B)) time, O((n + m) (d + 128 + B / 32)) memory.

    Example:
      >>> from kernelgrad import kernels, mmd
      >>> key, x = jax.random.key(0), jnp.linspace(0.0, 1.0, 6)[:, None]
      >>> kernel = kernels.rbf_mixture(1.0)
      >>> bool(mmd.two_sample_test(key, x, x + 3, kernel, num_permutations=99).p_value < 0.05)
      True

    References:
      Gretton et al. 2012, section 5; Phipson & Smyth 2010 for the p-value.
    """
    x, y = _check(x, y, num_permutations)
    drawn = _drawn(key, x, y, num_permutations)
    return _resampling.result(*_resampled(drawn, x, y, kernel, num_permutations, _biased))


def aggregated_test(
    key: Key,
    x: Array,
    y: Array,
    kernels: Sequence[Kernel],
    *,
    weights: Array | None = None,
    num_permutations: int = 999,
) -> TestResult:
    r"""Tests whether x and y come from one distribution, by whichever of several kernels sees it.

    Every kernel has the p-value :math:`p_k` of :func:`two_sample_test`, for the samples as they are
    and, by its rank among all others, for each permutation of them. What is compared is

    .. math:: T = -\min_k \log \frac{p_k}{w_k}

    whose level is exact, for the observed one is a permutation like any other: no part of the
    samples is set aside to choose a kernel, and no correction for their number is paid beyond what
    their dependence asks for. Permutations of the same T, of which many kernels make many, are
    compared by the mean of their :math:`-\log p_k`.

    Args:
      key: random key of the permutations.
      x: samples; shape (n, d), floating.
      y: samples; shape (m, d), floating.
      kernels: k_1, k_2, ..., such as of lengthscales from a tenth of the median to ten times it.
        They may depend on the pooled sample but not on which point belongs to which sample.
      weights: w_k > 0, of what a kernel is thought worth, in any unit; None: all alike.
      num_permutations: B >= 1, static. No p_k is below 1 / (1 + B).

    Returns:
      statistic T, with weights of mean 1, in nats, and p_value = (1 + #{permuted >= observed}) /
      (1 + B), in at least float32; NaN, both, where a sample or a statistic is not finite.

    Raises:
      ValueError: as :func:`two_sample_test`, no kernel, or weights of another number or not
        positive.

    Cost: that of :func:`two_sample_test` for each kernel, and O(B log B). Permutations are drawn
      once, kernels that differ in numbers alone are compiled once.

    Example:
      >>> from kernelgrad import kernels, mmd
      >>> key, x = jax.random.key(0), jnp.linspace(0.0, 1.0, 6)[:, None]
      >>> several = [kernels.rbf_mixture(scale) for scale in (0.1, 1.0, 10.0)]
      >>> bool(mmd.aggregated_test(key, x, x + 3, several, num_permutations=99).p_value < 0.05)
      True

    References:
      Schrab et al. 2023 (MMDAgg), Algorithm 1, whose level is set by bisection on permutations of
      their own; here by ranks of ranks, as in Westfall & Young 1993.
    """
    x, y = _check(x, y, num_permutations)
    drawn = _drawn(key, x, y, num_permutations)
    each = _resampling.for_each(
        lambda kernel: _resampled(drawn, x, y, kernel, num_permutations, _biased), kernels
    )
    return _resampling.aggregated(each, weights)


def incomplete_test(
    key: Key,
    x: Array,
    y: Array,
    kernels: Sequence[Kernel],
    *,
    num_diagonals: int = 100,
    weights: Array | None = None,
    num_permutations: int = 999,
) -> TestResult:
    r"""Tests whether x and y come from one distribution in linear time, from some of the pairs.

    .. math:: \frac1{n R} \sum_{r = 1}^R \sum_{i = 1}^n h_{i, i + r}, \quad
        h_{ij} = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)

    with places that go round: every sample is in 2 R pairs, and R = (n - 1) / 2 takes all. Under
    the null hypothesis nothing changes where x_i and y_i change places, which turns the sign of
    all :math:`h_{ij}` of i; the p-values :math:`p_k` are those among such draws, the same for all
    kernels, and

    .. math:: T = -\min_k \log \frac{p_k}{w_k}

    has an exact level, as that of :func:`aggregated_test`. One kernel is a list of one. Of all
    pairs the latter sees more: this is for many samples.

    Args:
      key: random key of the draws.
      x: samples; shape (n, d), n >= 3, floating.
      y: samples; shape (n, d): as many, in an order that says nothing of x.
      kernels: k_1, k_2, ..., such as of lengthscales from a tenth of the median to ten times it.
        They may depend on the pooled sample but not on which point belongs to which sample.
      num_diagonals: R, from 1 to (n - 1) / 2, static.
      weights: w_k > 0, of what a kernel is thought worth, in any unit; None: all alike.
      num_permutations: B >= 1, static. No p_k is below 1 / (1 + B).

    Returns:
      statistic T, with weights of mean 1, in nats, and p_value = (1 + #{drawn >= observed}) /
      (1 + B), in at least float32; NaN, both, where a sample or a statistic is not finite.

    Raises:
      ValueError: as :func:`aggregated_test`, another number in y than in x, or R out of its range.

    Cost: O(n R (d + B)) time for each kernel, O(n (d + 256)) memory.

    Example:
      >>> from kernelgrad import kernels, mmd
      >>> key, x = jax.random.key(0), jnp.linspace(0.0, 1.0, 9)[:, None]
      >>> one = [kernels.rbf_mixture(1.0)]
      >>> result = mmd.incomplete_test(key, x, x + 3, one, num_diagonals=2, num_permutations=99)
      >>> bool(result.p_value < 0.05)
      True

    References:
      Schrab, Kim, Guedj & Gretton 2022, MMDAggInc; there places do not go round, and the
      level is set by bisection, as that of MMDAgg.
    """
    x, y = _check(x, y, num_permutations)
    n = x.shape[0]
    _checks.shape("y", y, (n, x.shape[1]))
    each = _resampling.for_each(
        lambda kernel: _some_pairs(key, x, y, kernel, num_diagonals, num_permutations), kernels
    )
    return _resampling.aggregated(each, weights)


_Pairs = list[tuple[Array, Array]]  # x and y, as each part of a kernel sees them


def _some_pairs(
    key: Key, x: Array, y: Array, kernel: Kernel, num_diagonals: int, num_draws: int
) -> _resampling.Resampled:
    """Returns the statistic of :func:`incomplete_test` under a kernel, and draws of it."""
    parts = _traits.parts(kernel)
    points = [
        (_numeric.wide(_traits.embed(part, x)), _numeric.wide(_traits.embed(part, y)))
        for part in parts
    ]

    def h(part: Kernel, at: tuple[Array, Array], to: tuple[Array, Array]) -> Array:
        def k(a: Array, b: Array) -> Array:
            return _traits.radial(part).profile(jnp.sum(jnp.square(a - b), axis=1))

        return k(at[0], to[0]) + k(at[1], to[1]) - k(at[0], to[1]) - k(to[0], at[1])

    def pairs(points: _Pairs, others: _Pairs) -> Array:
        each = zip(parts, points, others, strict=True)
        return functools.reduce(operator.add, (h(part, at, to) for part, at, to in each))

    return _incomplete.resampled(key, pairs, points, num_diagonals, num_draws)


def fused_test(
    key: Key, x: Array, y: Array, kernels: Sequence[Kernel], *, num_permutations: int = 999
) -> TestResult:
    r"""Tests whether x and y come from one distribution, by a soft maximum over several kernels.

    .. math:: \widehat{\mathrm{FUSE}} = \frac1\lambda \log \frac1K \sum_k \exp \Big( \lambda
        \frac{\widehat{\mathrm{MMD}}^2_k}{\sqrt{N_k}} \Big), \quad
        N_k = \frac{1}{n (n - 1)} \sum_{i \neq j} k(z_i, z_j)^2

    with the U-statistic of each kernel, z the pooled sample, :math:`\lambda = \sqrt{n (n - 1)}`,
    and n <= m the sizes of the samples. The authors' program multiplies the exponent by another
    :math:`\sqrt{n (n - 1)}`: it is closer to the largest of the kernels' statistics.

    Args:
      key: random key of the permutations.
      x: samples; shape (n, d), n >= 2, floating.
      y: samples; shape (m, d), m >= 2, floating.
      kernels: k_1, k_2, ..., such as of lengthscales from a tenth of the median to ten times it.
        They may depend on the pooled sample but not on which point belongs to which sample.
      num_permutations: B >= 1, static.

    Returns:
      statistic FUSE, which may be negative, and p_value = (1 + #{permuted >= observed}) / (1 + B),
      in at least float32; NaN, both, where a sample or a statistic is not finite.

    Raises:
      ValueError: as :func:`two_sample_test`, no kernel, or fewer than two samples.

    Cost: that of :func:`two_sample_test` for each kernel. Permutations are drawn once, kernels that
      differ in numbers alone are compiled once.

    Example:
      >>> from kernelgrad import kernels, mmd
      >>> key, x = jax.random.key(0), jnp.linspace(0.0, 1.0, 6)[:, None]
      >>> several = [kernels.rbf_mixture(scale) for scale in (0.1, 1.0, 10.0)]
      >>> bool(mmd.fused_test(key, x, x + 3, several, num_permutations=99).p_value < 0.05)
      True

    References:
      Biggs, Schrab & Gretton 2023 (MMD-FUSE), with uniform weights.
    """
    x, y = _check(x, y, num_permutations)
    few = min(x.shape[0], y.shape[0])
    _checks.at_least("number of samples in x and y", few, 2)
    drawn = _drawn(key, x, y, num_permutations)
    each = _resampling.for_each(
        lambda kernel: _resampled(drawn, x, y, kernel, num_permutations, _standardized), kernels
    )
    temperature = (few * (few - 1)) ** 0.5

    def fused(values: Array) -> Array:
        mean = jax.nn.logsumexp(temperature * values, axis=0) - jnp.log(float(values.shape[0]))
        return mean / temperature

    return _resampling.result(
        fused(each.observed), fused(each.null), jnp.max(each.rounding), jnp.all(each.valid)
    )


# -------------------------------------------------------------------------------- the permutations


class _Pool(NamedTuple):
    """The radial kernels whose sum it is, each with all points between which it is one."""

    parts: list[tuple[Kernel, Array]]
    sizes: tuple[int, int]

    def sums(self, weights: Array) -> Array:
        """Returns sum_j k(z_i, z_j) w_jp; shape (n + m, p)."""
        each = (pairwise.kernel_sum(base, points, None, weights) for base, points in self.parts)
        return functools.reduce(operator.add, each)

    @property
    def dtype(self) -> jnp.dtype:
        """That of all sums."""
        return self.parts[0][1].dtype


_Statistics = Callable[[Array], Array]  # signed weights (n + m, p) -> (p,)


def _drawn(key: Key, x: Array, y: Array, num_permutations: int) -> Array:
    """Draws the permutations for all kernels, eight a byte; shape (batches, bytes, n + m)."""
    count, size = x.shape[0], x.shape[0] + y.shape[0]
    keys = jax.random.split(key, -(-num_permutations // _PERMUTATIONS_AT_ONCE))
    return lax.map(lambda key: jnp.packbits(_subsets(key, count, size), axis=0), keys)


def _resampled(
    drawn: Array,
    x: Array,
    y: Array,
    kernel: Kernel,
    num_permutations: int,
    make: Callable[[_Pool], tuple[_Statistics, Array]],
) -> _resampling.Resampled:
    """Returns a kernel's statistic of the samples, and of as many permutations of them."""
    n, m = x.shape[0], y.shape[0]
    points = jnp.concatenate([x, y])
    parts = [
        (_traits.radial(part), _numeric.wide(_traits.embed(part, points)))
        for part in _traits.parts(kernel)
    ]
    pool = _Pool(parts, (n, m))
    signed = jnp.concatenate([jnp.full(n, 1 / n, pool.dtype), jnp.full(m, -1 / m, pool.dtype)])
    statistics, unit = make(pool)

    def permuted(subsets: Array) -> Array:
        inside = jnp.unpackbits(subsets, axis=0) == 1
        return statistics(jnp.where(inside, signed[0], signed[-1]).T)

    null = lax.map(permuted, drawn).ravel()[:num_permutations]
    observed = statistics(signed[:, None])[0]
    size = functools.reduce(operator.add, (_size(base, points) for base, points in parts))
    rounding = 32 * jnp.finfo(pool.dtype).eps * size * (1 / n + 1 / m) / unit
    valid = functools.reduce(operator.and_, (jnp.all(jnp.isfinite(points)) for _, points in parts))
    return _resampling.Resampled(observed, null, rounding, valid)


def _subsets(key: Key, count: int, size: int) -> Array:
    """Draws subsets of `count` of `size` points; shape (permutations at once, size), bool.

    The points of the smallest of as many random integers, which takes a sort of these alone. One
    draw in 2^32 / size ties at the border, where the first places are taken.
    """
    bits = jax.random.bits(key, (_PERMUTATIONS_AT_ONCE, size), jnp.uint32)
    border = jnp.sort(bits, axis=1)[:, count - 1 : count]
    inside, tied = bits < border, bits == border
    room = count - jnp.sum(inside, axis=1, keepdims=True, dtype=jnp.int32)
    return inside | (tied & (jnp.cumsum(tied, axis=1, dtype=jnp.int32) <= room))


def _biased(pool: _Pool) -> tuple[_Statistics, Array]:
    """Returns weights -> V-statistics, and their unit, 1."""
    return lambda a: jnp.sum(a * pool.sums(a), axis=0), jnp.ones((), pool.dtype)


def _standardized(pool: _Pool) -> tuple[_Statistics, Array]:
    r"""Returns weights -> U-statistics over :math:`\sqrt{N_k}`, and that.

    With the sums r of all pairs' rows, and :math:`V = a^\top K a`, the pairs within x, whose
    weights are :math:`u = (m a + 1) / (n + m)`, add up to
    :math:`u^\top K u = (m^2 V + 2 m\, a^\top r + 1^\top r) / (n + m)^2`, and likewise within y.
    """
    n, m = pool.sizes
    total = n + m
    rows = pool.sums(jnp.ones((total, 1), pool.dtype))
    peak = functools.reduce(
        operator.add, (base.profile(jnp.zeros((), pool.dtype)) for base, _ in pool.parts)
    )
    few = min(n, m)
    unit = jnp.sqrt(_sum_of_squares(pool) / (few * (few - 1)))

    def statistics(a: Array) -> Array:
        biased = jnp.sum(a * pool.sums(a), axis=0)
        across, everything = jnp.sum(a * rows, axis=0), jnp.sum(rows)
        within_x = (m**2 * biased + 2 * m * across + everything) / total**2
        within_y = (n**2 * biased - 2 * n * across + everything) / total**2
        unbiased = biased + (within_x - peak) / (n - 1) + (within_y - peak) / (m - 1)
        return jnp.where(unit > 0, unbiased / unit, 0)

    return statistics, jnp.where(unit > 0, unit, 1)


def _sum_of_squares(pool: _Pool) -> Array:
    """Returns the sum of k^2 over all ordered pairs of different points."""
    numbers = jnp.arange(sum(pool.sizes))

    def of_rows(block: tuple[list[Array], Array]) -> Array:
        rows, own = block
        grams = (
            kernels.gram(base, part, points)
            for part, (base, points) in zip(rows, pool.parts, strict=True)
        )
        gram = functools.reduce(operator.add, grams)
        return jnp.sum(jnp.where(own[:, None] == numbers[None], 0, jnp.square(gram)), axis=1)

    blocks = _tiles.split(([points for _, points in pool.parts], numbers), _tiles.TILE_ROWS)
    return jnp.sum(lax.map(of_rows, blocks).ravel()[: numbers.size])


def _check(x: Array, y: Array, num_permutations: int) -> tuple[Array, Array]:
    x, y = _checks.points(x=x, y=y)
    _checks.finite(x=x, y=y)
    _checks.at_least("num_permutations", num_permutations, 1)
    return x, y


def _size(kernel: Kernel, points: Array) -> Array:
    """Returns a size of k between the points: k(0), or where that is 0 the mean of |k|."""
    if _traits.positive_at_zero(kernel):
        return kernel.profile(jnp.zeros((), points.dtype))
    weights = jnp.full((points.shape[0], 1), 1 / points.shape[0], points.dtype)
    return jnp.abs(jnp.mean(pairwise.kernel_sum(kernel, points, None, weights)))
