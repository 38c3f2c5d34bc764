r"""Kernelized Stein discrepancy: how far particles are from a density known by its score.

.. math:: \mathrm{KSD}^2 = E_{x, y \sim q}\, u_p(x, y), \quad u_p(x, y) = k\, s(x)^\top s(y)
    + s(x)^\top \nabla_y k + s(y)^\top \nabla_x k + \operatorname{tr} \nabla_x \nabla_y k

For a radial kernel k = f(r^2), :math:`u_p = f s^\top s' + 2 f' (x - y)^\top (s' - s) - 4 f'' r^2
- 2 d f'`. It is 0 if and only if q = p, for a kernel such as imq_mixture.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import (
    _checks,
    _devices,
    _incomplete,
    _numeric,
    _resampling,
    _stein,
    _weights,
)
from kernelgrad.types import Array, Kernel, Key, PyTree, ScoreFn, TestResult

_SIGNS_AT_ONCE = 256
_FEWEST_PARTICLES = 6  # 2^5 sign patterns, up to a common sign: p may be as low as 1/32


def stein_gram(particles: PyTree, score: PyTree, kernel: Kernel) -> Array:
    r"""Returns the Stein kernel :math:`u_p(x_i, x_j)` of all pairs.

    Args:
      particles: x_i; shape (n, d), floating, or a pytree of such
        arrays (n, ...).
      score: s_i = grad log p(x_i), in 1/units of particles; shaped like particles.
      kernel: k, radial or ``per_coordinate``, twice differentiable at 0; its lengthscales are in
        units of particles.

    Returns:
      The gram, shape (n, n), symmetric, in 1/units of particles squared; at least float32.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes, a feature kernel that is not
        ``per_coordinate``, or laplace.

    Cost: O(n^2 d) time, O(n^2) memory; the statistics below need no gram.

    Example:
      >>> from kernelgrad import kernels, ksd
      >>> x = jnp.array([[0.0], [1.0]])
      >>> print(ksd.stein_gram(x, -x, kernels.rbf_mixture(1.0)))  # of N(0, 1): s = -x
      [[ 1.    -0.607]
       [-0.607  2.   ]]

    References:
      Liu, Lee & Jordan 2016, eq. (6); Wang & Liu 2016 (amortized SVGD), eq. (6).
    """
    particles, score = _checks.scored(particles, score)
    side, kernel, unit = _stein.side_of(particles, score, kernel)
    return _stein.gram_tile(kernel, 0, side, side) / jnp.square(unit)


def ksd_v_statistic(
    particles: PyTree,
    score: PyTree,
    kernel: Kernel,
    *,
    weights: Array | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""Returns the V-statistic of KSD^2.

    .. math:: \frac1{n^2} \sum_{ij} u_p(x_i, x_j)

    Non-negative up to rounding; biased upwards by O(1/n). With weights, over their sum,
    :math:`w_i w_j` stands in place of 1 / n^2. Reverse-mode differentiable in particles, score,
    weights and the kernel's leaves, in linear memory.

    Args:
      particles: x_i; shape (n, d), floating, or a pytree of such
        arrays (n, ...).
      score: s_i = grad log p(x_i), in 1/units of particles; shaped like particles.
      kernel: k, radial or ``per_coordinate``, twice differentiable at 0; its lengthscales are in
        units of particles.
      weights: w_i >= 0 of the particles, in any unit; shape (n,). They are divided by their sum,
        over all devices. None: all count alike.
      axis_name: if set, the particles are the union over all devices.

    Returns:
      KSD^2, shape (), in 1/units of particles squared; at least float32.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes, a feature kernel that is not
        ``per_coordinate``, laplace, or weights that are negative or all 0.

    Cost: O(n^2 d) time over the upper triangle of tiles, O(n d) memory; with axis_name over all
      tiles of this device's rows, in memory of its share.

    Example:
      >>> from kernelgrad import kernels, ksd
      >>> x = jnp.array([[0.0], [1.0]])
      >>> kernel = kernels.rbf_mixture(1.0)
      >>> round(float(ksd.ksd_v_statistic(x, -x, kernel)), 3)  # the mean of stein_gram
      0.447

    References:
      Liu, Lee & Jordan 2016, eq. (6) and section 3.
    """
    particles, score = _checks.scored(particles, score)
    (particles, relative), (score, _) = _weights.relative(
        axis_name, ("weights", particles, weights), ("", score, None)
    )
    n = particles.shape[0] * _devices.num_devices(axis_name)
    shares = _stein.row_shares(particles, score, kernel, axis_name, own=True, weights=relative)
    return shares / n


def ksd_u_statistic(
    particles: PyTree, score: PyTree, kernel: Kernel, *, axis_name: str | None = None
) -> Array:
    r"""Returns the U-statistic of KSD^2, unbiased and therefore sometimes negative.

    .. math:: \frac1{n(n-1)} \sum_{i \ne j} u_p(x_i, x_j)

    Args:
      particles: x_i; shape (n, d), n >= 2 over all devices, floating, or a pytree of such
        arrays (n, ...).
      score: s_i = grad log p(x_i), in 1/units of particles; shaped like particles.
      kernel: k, radial or ``per_coordinate``, twice differentiable at 0; its lengthscales are in
        units of particles.
      axis_name: if set, the particles are the union over all devices.

    Returns:
      KSD^2, shape (), in 1/units of particles squared; at least float32.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes, a feature kernel that is not
        ``per_coordinate``, laplace, or fewer than two particles.

    Cost: that of :func:`ksd_v_statistic`.

    Example:
      >>> from kernelgrad import kernels, ksd
      >>> x = jnp.array([[0.0], [1.0]])
      >>> kernel = kernels.rbf_mixture(1.0)
      >>> round(float(ksd.ksd_u_statistic(x, -x, kernel)), 3)  # stein_gram off its diagonal
      -0.607

    References:
      Liu, Lee & Jordan 2016, eq. (14).
    """
    particles, score = _checks.scored(particles, score)
    n = particles.shape[0] * _devices.num_devices(axis_name)
    _checks.at_least("number of particles", n, 2)
    shares = _stein.row_shares(particles, score, kernel, axis_name, own=False)
    return shares / (n - 1)


def ksd_gradient(
    particles: PyTree, score_fn: ScoreFn, kernel: Kernel, *, weights: Array | None = None
) -> PyTree:
    r"""Returns the gradient of :func:`ksd_v_statistic` in the particles, whose scores move along.

    .. math:: \nabla_{x_i} \frac1{n^2} \sum_{jk} u_p(x_j, x_k)
        = \frac2{n^2} \sum_j \nabla_2 u_p(x_j, x_i)

    Descend it: KSD descent. Each particle's step in that paper is n / 2 times this gradient. With
    scores held fixed, take ``jax.grad(ksd_v_statistic)`` instead.

    Args:
      particles: x_i; shape (n, d), floating, or a pytree of such
        arrays (n, ...).
      score_fn: maps all particles to grad log p at each of them, shaped like them; differentiable,
        such as :func:`kernelgrad.score.score_from_log_density`.
      kernel: k, radial or ``per_coordinate``, three times differentiable (four for a gradient of
        this gradient); its lengthscales are in units of particles and held fixed.
      weights: those of :func:`ksd_v_statistic`, held fixed.

    Returns:
      Gradient, shaped and typed like particles, in 1/units of particles cubed.

    Raises:
      ValueError: as :func:`ksd_v_statistic`.

    Cost: about three statistics, one call of score_fn and one of its transpose; O(n d) memory.

    Example:
      >>> from kernelgrad import kernels, ksd
      >>> x = jnp.array([[3.0]])  # of a single particle KSD^2 is 1 + x^2
      >>> print(ksd.ksd_gradient(x, lambda x: -x, kernels.rbf_mixture(1.0)))
      [[6.]]

    References:
      Korba, Aubin-Frankowski, Majewski & Ablin 2021, section 3.
    """
    (rows,) = _checks.raveled(particles=particles)
    particles = _checks.like_points(rows, particles)

    def value(x: PyTree) -> Array:
        score = _checks.call("score_fn", "(particles) -> scores", score_fn, x)
        return ksd_v_statistic(x, score, kernel, weights=weights)

    return jax.grad(value)(_devices.own_point(value, particles))


def goodness_of_fit_test(
    key: Key,
    particles: PyTree,
    score: PyTree,
    kernel: Kernel,
    *,
    num_bootstrap: int = 999,
    block_length: int | Array = 1,
    num_chains: int = 1,
) -> TestResult:
    r"""Tests whether the particles come from p, by a wild bootstrap of the V-statistic.

    .. math:: B = \frac1{n^2} \sum_{ij} w_i w_j\, u_p(x_i, x_j)

    with signs w of mean 0. The statistic itself is B with all signs +1. Under the null hypothesis
    both have the same limit: independent signs if the particles are independent, and one sign for
    a whole block of consecutive particles if they are the states of a Markov chain, with blocks
    much longer than the chain remembers and some ten of them or more. A bootstrapped statistic
    that equals the observed one up to rounding counts as a tie.

    Args:
      key: random key of the signs.
      particles: x_i; shape (n, d), floating, or a pytree of such
        arrays (n, ...), in the order of the chain.
      score: s_i = grad log p(x_i), in 1/units of particles; shaped like particles.
      kernel: k, radial or ``per_coordinate``, twice differentiable at 0; its lengthscales are in
        units of particles.
      num_bootstrap: B >= 1, static.
      block_length: consecutive particles that share a sign, 1 to n / num_chains; may be traced.
        See :func:`kernelgrad.chains.stein_test` for one that follows the autocorrelation.
      num_chains: chains of equal length, one after another; static. No block spans two of them.

    Returns:
      statistic KSD^2, and p_value = (1 + #{bootstrapped >= observed}) / (1 + B), in at least
      float32; NaN, both, where a particle, a score or a statistic is not finite.

    Raises:
      ValueError: as :func:`ksd_v_statistic`, concrete particles or scores that are not finite or
        whose statistic is not, B < 1, chains that do not divide n, blocks longer than a chain, or
        fewer than 6 particles, whose signs have too few patterns for a p-value below 0.05.

    Cost: O(n^2 (d B / 256 + B)) time over the upper triangle of tiles, O(n (d + 256)) memory.

    Example:
      >>> from kernelgrad import kernels, ksd
      >>> key, x = jax.random.key(0), jnp.linspace(3.0, 4.0, 16)[:, None]  # not of N(0, 1)
      >>> kernel = kernels.imq_mixture(1.0)
      >>> bool(ksd.goodness_of_fit_test(key, x, -x, kernel, num_bootstrap=99).p_value < 0.05)
      True

    References:
      Chwialkowski, Strathmann & Gretton 2016, section 2, with block signs for its Markov chain of
      signs; Phipson & Smyth 2010 for the p-value.
    """
    particles, score = _checks.scored(particles, score)
    _check_test(particles, score, num_bootstrap)
    blocks = _blocks(particles.shape[0], num_chains, block_length)
    keys, draw = _signs(key, blocks, num_bootstrap)
    found, unit = _resampled(keys, draw, particles, score, kernel, num_bootstrap)
    statistic, p_value = _resampling.result(*found)
    return TestResult(statistic / jnp.square(unit), p_value)


def aggregated_test(
    key: Key,
    particles: PyTree,
    score: PyTree,
    kernels: Sequence[Kernel],
    *,
    weights: Array | None = None,
    num_bootstrap: int = 999,
    block_length: int | Array = 1,
    num_chains: int = 1,
) -> TestResult:
    r"""Tests whether the particles come from p, by whichever of several kernels sees it.

    Every kernel has the p-value :math:`p_k` of :func:`goodness_of_fit_test`, for the particles and,
    by its rank among all others, for each draw of signs, the same for all kernels. What is compared
    is

    .. math:: T = -\min_k \log \frac{p_k}{w_k}

    and, where T is the same, the mean of :math:`-\log p_k`.

    Args:
      key: random key of the signs.
      particles: as of :func:`goodness_of_fit_test`.
      score: s_i = grad log p(x_i), in 1/units of particles; shaped like particles.
      kernels: k_1, k_2, ..., such as of lengthscales from a tenth of the median to ten times it.
      weights: w_k > 0, of what a kernel is thought worth, in any unit; None: all alike.
      num_bootstrap: B >= 1, static. No p_k is below 1 / (1 + B).
      block_length: as of :func:`goodness_of_fit_test`.
      num_chains: as of :func:`goodness_of_fit_test`.

    Returns:
      statistic T, with weights of mean 1, in nats, and p_value = (1 + #{bootstrapped >= observed})
      / (1 + B), in at least float32; NaN, both, where a particle, a score or a statistic is not
      finite. The level is that of the wild bootstrap, right for many particles.

    Raises:
      ValueError: as :func:`goodness_of_fit_test`, no kernel, or weights of another number or not
        positive.

    Cost: that of :func:`goodness_of_fit_test` for each kernel, O(B log B) time, and n B bytes, for
      signs are drawn once. Kernels that differ in numbers alone are compiled once.

    Example:
      >>> from kernelgrad import kernels, ksd
      >>> key, x = jax.random.key(0), jnp.linspace(3.0, 4.0, 16)[:, None]  # not of N(0, 1)
      >>> several = [kernels.imq_mixture(scale) for scale in (0.3, 1.0, 3.0)]
      >>> bool(ksd.aggregated_test(key, x, -x, several, num_bootstrap=99).p_value < 0.05)
      True

    References:
      Schrab et al. 2022 (KSDAgg), Algorithm 1, whose level is set by bisection on draws of their
      own; here by ranks of ranks, as in Westfall & Young 1993.
    """
    particles, score = _checks.scored(particles, score)
    _check_test(particles, score, num_bootstrap)
    blocks = _blocks(particles.shape[0], num_chains, block_length)
    keys, draw = _signs(key, blocks, num_bootstrap)
    drawn = lax.map(draw, keys)

    def of(kernel: Kernel) -> _resampling.Resampled:
        return _resampled(drawn, lambda signs: signs, particles, score, kernel, num_bootstrap)[0]

    each = _resampling.for_each(of, kernels)
    return _resampling.aggregated(each, weights)


def incomplete_test(
    key: Key,
    particles: PyTree,
    score: PyTree,
    kernels: Sequence[Kernel],
    *,
    num_diagonals: int = 100,
    weights: Array | None = None,
    num_bootstrap: int = 999,
) -> TestResult:
    r"""Tests whether the particles come from p in linear time, from some of the pairs.

    .. math:: \frac1{n R} \sum_{r = 1}^R \sum_{i = 1}^n w_i w_{i + r}\, u_p(x_i, x_{i + r})

    with places that go round and signs w: every particle is in 2 R pairs, and R = (n - 1) / 2 takes
    all. The p-values :math:`p_k` of the kernels are those of all signs +1 among independent draws,
    the same for all kernels, and the statistic is :math:`T = -\min_k \log (p_k / w_k)`, as that of
    :func:`aggregated_test`, which sees all pairs: this is for many particles. One kernel is a list
    of one.

    Args:
      key: random key of the signs.
      particles: x_i; shape (n, d), floating, or a pytree of such arrays (n, ...); independent.
      score: s_i = grad log p(x_i), in 1/units of particles; shaped like particles.
      kernels: k_1, k_2, ..., such as of lengthscales from a tenth of the median to ten times it.
      num_diagonals: R, from 1 to (n - 1) / 2, static.
      weights: w_k > 0, of what a kernel is thought worth, in any unit; None: all alike.
      num_bootstrap: B >= 1, static. No p_k is below 1 / (1 + B).

    Returns:
      statistic T, with weights of mean 1, in nats, and p_value = (1 + #{drawn >= observed}) /
      (1 + B), in at least float32; NaN, both, where a particle, a score or a statistic is not
      finite. The level is that of the wild bootstrap, right for many particles.

    Raises:
      ValueError: as :func:`aggregated_test`, or R out of its range.

    Cost: O(n R (d + B)) time for each kernel, O(n (d + 256)) memory.

    Example:
      >>> from kernelgrad import kernels, ksd
      >>> key, x = jax.random.key(0), jnp.linspace(3.0, 4.0, 16)[:, None]  # not of N(0, 1)
      >>> one = [kernels.imq_mixture(1.0)]
      >>> result = ksd.incomplete_test(key, x, -x, one, num_diagonals=4, num_bootstrap=99)
      >>> bool(result.p_value < 0.05)
      True

    References:
      Schrab, Kim, Guedj & Gretton 2022, KSDAggInc; there places do not go round.
    """
    particles, score = _checks.scored(particles, score)
    _check_test(particles, score, num_bootstrap)

    def of(kernel: Kernel) -> _resampling.Resampled:
        pairs, rows = _stein.of_rows(particles, score, kernel)
        return _incomplete.resampled(key, pairs, rows, num_diagonals, num_bootstrap)

    return _resampling.aggregated(_resampling.for_each(of, kernels), weights)


def _check_test(particles: Array, score: Array, num_bootstrap: int) -> None:
    _checks.finite(particles=particles, score=score)
    _checks.at_least("num_bootstrap", num_bootstrap, 1)
    _checks.at_least("number of particles", particles.shape[0], _FEWEST_PARTICLES)


def _signs(key: Key, blocks: Array, num_bootstrap: int) -> tuple[Array, Callable[[Array], Array]]:
    """Returns a key for each batch of signs, and what draws it: key -> (n, draws), int8."""
    batches = -(-num_bootstrap // _SIGNS_AT_ONCE)
    shape = blocks.shape[0], -(-num_bootstrap // batches)

    def draw(key: Key) -> Array:
        return jax.random.rademacher(key, shape, jnp.int8)[blocks]

    return jax.random.split(key, batches), draw


def _resampled(
    batches: Array,
    signs: Callable[[Array], Array],
    particles: Array,
    score: Array,
    kernel: Kernel,
    num_bootstrap: int,
) -> tuple[_resampling.Resampled, Array]:
    """Returns KSD^2 u^2, as is and under the signs of the batches, and u, a unit of length."""
    side, kernel, unit = _stein.side_of(particles, score, kernel)
    n, dtype = side.score.shape[0], side.score.dtype

    def forms(batch: Array) -> Array:
        drawn = signs(batch).astype(dtype)
        weights = jnp.concatenate([jnp.ones((n, 1), dtype), drawn], axis=1) / n
        return _stein.forms(side, kernel, weights)

    values = lax.map(forms, batches)
    observed, null = values[0, 0], values[:, 1:].ravel()[:num_bootstrap]
    rounding = 32 * jnp.finfo(dtype).eps * jnp.max(jnp.abs(values))
    valid = jnp.all(jnp.isfinite(particles)) & jnp.all(jnp.isfinite(score))
    return _resampling.Resampled(observed, null, rounding, valid), unit


def stein_thinning(
    particles: PyTree,
    score: PyTree,
    kernel: Kernel,
    *,
    num_points: int,
    unique: bool = False,
    log_density: Array | None = None,
    convexity: Array | None = None,
    entropy_weight: float | Array | None = None,
) -> Array:
    r"""Returns the particles that greedily keep the KSD of those chosen so far smallest.

    .. math:: \pi_m = \arg\min_i\; \tfrac12 u_p(x_i, x_i)
        + \sum_{l < m} u_p(x_{\pi_l}, x_i)

    Burn-in, duplicates and the bias of an approximate sampler are left out to the extent that the
    kernel sees them. A particle may be chosen again, unless unique; the first of equally good ones
    is taken. Regularised, by a log density and its convexity, it is

    .. math:: \pi_m = \arg\min_i\; \tfrac12 \Big[ u_p(x_i, x_i)
        + \sum_a \max\Big(\frac{\partial^2 \log p}{\partial x_a^2}(x_i), 0\Big)
        - \lambda m \log p(x_i) \Big] + \sum_{l < m} u_p(x_{\pi_l}, x_i)

    of which the former keeps away from saddles and minima of p, where scores are as small as at its
    modes, and the latter from modes of low weight, which scores do not know.

    Args:
      particles: x_i, for example all states of a chain; shape (n, d), floating, or a pytree of such
        arrays (n, ...).
      score: s_i = grad log p(x_i), in 1/units of particles; shaped like particles.
      kernel: k, radial or ``per_coordinate``, twice differentiable at 0; its lengthscales are in
        units of particles.
      num_points: how many to choose, >= 1, static; it may exceed n unless unique.
      unique: whether a particle is chosen at most once; static.
      log_density: log p(x_i) up to a constant; shape (n,). None: no term of it.
      convexity: :math:`\sum_a \max(\partial_a^2 \log p(x_i), 0)`, in 1/units of particles squared;
        shape (n,). None: no term of it. ``chains.stein_thinning`` computes both.
      entropy_weight: lambda >= 0, in 1/units of particles squared. None: 1 / num_points.

    Returns:
      Indices into the particles in the order of choice, shape (num_points,), int32; -1 where no
      particle's potential is finite.

    Raises:
      ValueError: as :func:`ksd_v_statistic`, concrete particles or scores that are not finite or
        whose potentials are not, num_points < 1 or, if unique, > n, a log density or convexity of
        another shape, a negative convexity or entropy_weight, or the latter without a log density.

    Cost: O(n d num_points) time, O(n d) memory: one column of the gram a choice.

    Example:
      >>> from kernelgrad import kernels, ksd
      >>> x = jnp.array([[5.0], [0.0], [1.0]])  # a start far out in N(0, 1)
      >>> ksd.stein_thinning(x, -x, kernels.rbf_mixture(1.0), num_points=2).tolist()
      [1, 2]

    References:
      Riabiz et al. 2022 (Optimal thinning of MCMC output), Algorithm 1; Benard, Staber & Da Veiga
      2023 for the regularised one, as their package kernax has it.
    """
    particles, score = _checks.scored(particles, score)
    side, kernel, length = _stein.side_of(particles, score, kernel)
    _checks.finite(particles=particles, score=score)
    _checks.at_least("num_points", num_points, 1)
    size = particles.shape[0]
    if unique and num_points > size:
        raise ValueError(f"num_points: got {num_points}; expected at most {size}, all particles")
    weight = 1 / num_points if entropy_weight is None else entropy_weight
    if log_density is None and entropy_weight is not None:
        raise ValueError("entropy_weight: got one without log_density; expected both or neither")
    at_first, at_each = _penalties(size, log_density, convexity, weight, length)

    def choose(potential: Array, _: None) -> tuple[Array, Array]:
        known = jnp.where(jnp.isfinite(potential), potential, jnp.inf)
        index = jnp.argmin(known).astype(jnp.int32)
        chosen = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, index, 1), side)
        found = jnp.where(jnp.isfinite(known[index]), index, -1)
        potential = potential + _stein.gram_tile(kernel, -index, side, chosen)[:, 0]
        potential = potential if at_each is None else potential + at_each
        return potential.at[index].set(jnp.inf) if unique else potential, found

    alone = jax.tree.map(lambda a: a[:, None], side)
    own = jax.vmap(lambda one: _stein.gram_tile(kernel, 0, one, one))(alone)[:, 0, 0]
    start = own / 2 if at_first is None else own / 2 + at_first
    indices = lax.scan(choose, start, None, length=num_points)[1]
    _checks.in_range("indices of finite potentials", indices, 0, math.inf, closed="l")
    return indices


def _penalties(
    size: int,
    log_density: Array | None,
    convexity: Array | None,
    weight: float | Array,
    length: Array,
) -> tuple[Array | None, Array | None]:
    """Returns what regularises the potentials before the first choice, and after each, or None."""
    _checks.not_negative(entropy_weight=weight)
    at_first = at_each = None
    if log_density is not None:
        (log_density,) = _checks.vectors(log_density=log_density)
        _checks.shape("log_density", log_density, (size,))
        scale = _numeric.like(weight, length) * jnp.square(length) / 2
        at_first = at_each = -scale * log_density.astype(length.dtype)
    if convexity is not None:
        (convexity,) = _checks.vectors(convexity=convexity)
        _checks.shape("convexity", convexity, (size,))
        _checks.not_negative(convexity=convexity)
        bent = jnp.square(length) / 2 * convexity.astype(length.dtype)
        at_first = bent if at_first is None else at_first + bent
    return at_first, at_each


def _blocks(n: int, num_chains: int, block_length: int | Array) -> Array:
    """Returns which sign each particle has; shape (n,)."""
    _checks.at_least("num_chains", num_chains, 1)
    if n % num_chains:
        raise ValueError(f"num_chains: got {num_chains}; expected a divisor of {n} particles")
    _checks.in_range("block_length", block_length, 1, n // num_chains, closed="lr")
    chain, step = jnp.divmod(jnp.arange(n), n // num_chains)
    return chain * (n // num_chains) + step // jnp.asarray(block_length, step.dtype)
