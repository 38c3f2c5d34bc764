r"""Do Markov chains follow their density? The Stein test of draws from any sampler.

Positions are pytrees with leading axes for draws and chains, as blackjax, numpyro and
:mod:`kernelgrad.hmc` produce them; the target is its log density at one position.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from kernelgrad import _checks, _markov, _numeric, kernels, ksd
from kernelgrad.types import Array, Kernel, Key, LogDensityFn, PyTree

_DRAWS_AT_ONCE = 256
_FEWEST_BLOCKS = 8
_FEWEST_DRAWS = 10  # of one chain: below, nothing is known of its memory
_DIMENSIONS_A_DRAW = 4  # more of them, and it is chains that were counted as coordinates


class ChainTest(NamedTuple):
    """The outcome of a test of chains against their density.

    Attributes:
      statistic: V-statistic of KSD^2 over all draws; shape (), in 1/units of positions squared.
      p_value: (1 + #{bootstrapped >= statistic}) / (1 + number of bootstraps); shape (). NaN, as
        the statistic, where a draw or a score is not finite. Both in at least float32.
      block_length: consecutive draws that shared a sign; shape (), int32.
    """

    statistic: Array
    p_value: Array
    block_length: Array


ChainTest.__test__ = False  # type: ignore[attr-defined]  # not a test case for pytest


def stein_test(
    key: Key,
    positions: PyTree,
    log_density_fn: LogDensityFn,
    kernel: Kernel | None = None,
    *,
    chain_axis: int | None = None,
    block_length: int | Array | None = None,
    num_bootstrap: int = 999,
) -> ChainTest:
    r"""Tests whether chains have the density they were made for, at every point they visited.

    Computes the scores of all draws and hands them to
    :func:`kernelgrad.ksd.goodness_of_fit_test`, whose signs are shared by blocks of draws, so that
    a chain's own memory does not count as evidence against it. The test sees a wrong density, a
    biased sampler or a burn-in. It cannot see a distant mode that no chain has visited, nor the
    weights of modes that are far apart: scores do not know them.

    Args:
      key: random key of the signs.
      positions: pytree of floating arrays. Each leaf has the draws first, (num_draws, ...), or
        draws and chains, as chain_axis says; then the shape of one position's leaf. In the space
        in which the sampler moved: unconstrained, for numpyro.
      log_density_fn: maps one position to log p(x) up to a constant; shape (). For numpyro, minus
        the potential.
      kernel: k on positions raveled to vectors, radial. None: an inverse multiquadric with the
        median lengthscale of the draws.
      chain_axis: which leading axis counts chains: 0 for (num_chains, num_draws, ...), 1 for
        (num_draws, num_chains, ...), None for one chain.
      block_length: 1 to num_draws, may be traced. None: :func:`stein_block_length` of the chains.
      num_bootstrap: >= 1, static.

    Returns:
      The statistic, its p-value and the block length.

    Raises:
      ValueError: leaves that are not floating or whose leading axes differ, a log density that is
        not a scalar, concrete draws or scores that are not finite, fewer than 10 draws of a chain,
        more than 4 dimensions a draw without chain_axis (chains taken for coordinates, as a rule),
        and what the test raises.

    Cost: one gradient a draw, and the test over n = num_chains num_draws draws: O(n^2) time, O(n)
      memory. Thin long chains first.

    Example:
      >>> from kernelgrad import chains
      >>> draws = jnp.linspace(3.0, 4.0, 16)[:, None]  # not of N(0, 1)
      >>> log_p, settings = lambda x: -jnp.sum(x**2) / 2, {"block_length": 2, "num_bootstrap": 99}
      >>> bool(chains.stein_test(jax.random.key(0), draws, log_p, **settings).p_value < 0.05)
      True

    References:
      Chwialkowski, Strathmann & Gretton 2016, section 2; Gorham & Mackey 2017 for the kernel.
    """
    _, vectors, score, num_chains = _scored(positions, log_density_fn, chain_axis)
    _checks.at_least("num_bootstrap", num_bootstrap, 1)
    if block_length is not None:
        longest = vectors.shape[0] // num_chains
        _checks.in_range("block_length", block_length, 1, longest, closed="lr")
    _check_draws(vectors.shape, num_chains, chain_axis)
    if kernel is None:
        kernel = kernels.imq_mixture(kernels.median_lengthscale(vectors))
    if block_length is None:
        block_length = stein_block_length(vectors, score, num_chains=num_chains)
    result = ksd.goodness_of_fit_test(
        key,
        vectors,
        score,
        kernel,
        num_bootstrap=num_bootstrap,
        block_length=block_length,
        num_chains=num_chains,
    )
    return ChainTest(*result, jnp.asarray(block_length, jnp.int32))


class Thinned(NamedTuple):
    """Draws that were chosen, in the order of choice; one may be chosen more than once.

    Under jit a draw that is not finite, or has no finite score, is never chosen, and does not
    change how the others are; where none is left, positions are NaN and their places -1.

    Attributes:
      positions: the draws; leaves (num_points, ...).
      chains: of which chain each is; shape (num_points,), int32.
      draws: which draw of its chain each is; shape (num_points,), int32.
    """

    positions: PyTree
    chains: Array
    draws: Array


def stein_thinning(
    positions: PyTree,
    log_density_fn: LogDensityFn,
    kernel: Kernel | None = None,
    *,
    num_points: int,
    chain_axis: int | None = None,
    unique: bool = False,
    regularized: bool = False,
    entropy_weight: float | Array | None = None,
) -> Thinned:
    r"""Returns the draws of chains that together are closest to their density.

    :func:`kernelgrad.ksd.stein_thinning` of all draws and their scores: burn-in, and what a biased
    sampler draws too often, is left out.

    Args:
      positions: pytree of floating arrays, as of :func:`stein_test`.
      log_density_fn: maps one position to log p(x) up to a constant; shape ().
      kernel: k on positions raveled to vectors, radial. None: an inverse multiquadric with the
        median lengthscale of the draws; in place of one that is not finite another counts twice.
      num_points: how many to choose, >= 1, static.
      chain_axis: which leading axis counts chains, as of :func:`stein_test`.
      unique: whether a draw is chosen at most once; static.
      regularized: whether to keep away from saddles and minima of p and from modes of low weight,
        as :func:`kernelgrad.ksd.stein_thinning` does by log p and its convexity; static.
      entropy_weight: of log p, as there; regularized alone takes it.

    Returns:
      The draws, and where they stood.

    Raises:
      ValueError: as :func:`stein_test`, and what :func:`kernelgrad.ksd.stein_thinning` raises.

    Cost: one gradient a draw, regularized one for every dimension besides, and O(n d num_points)
      time over n = num_chains num_draws draws, with the default kernel an exact median of O(n^2 d);
      O(n d) memory.

    Example:
      >>> from kernelgrad import chains
      >>> draws = jnp.concatenate([jnp.array([[9.0], [7.0]]), jnp.linspace(-2.0, 2.0, 14)[:, None]])
      >>> best = chains.stein_thinning(draws, lambda x: -jnp.sum(x**2) / 2, num_points=3)
      >>> min(best.draws.tolist()) >= 2, best.positions.shape  # the start is left out
      (True, (3, 1))

    References:
      Riabiz et al. 2022 (Optimal thinning of MCMC output), Algorithm 1; Benard, Staber & Da Veiga
      2023.
    """
    draws, vectors, score, num_chains = _scored(positions, log_density_fn, chain_axis)
    _check_draws(vectors.shape, num_chains, chain_axis)
    if kernel is None:
        kernel = kernels.imq_mixture(kernels.median_lengthscale(_finite_draws(vectors)))
    penalties = _penalties(draws, log_density_fn) if regularized else {}
    indices = ksd.stein_thinning(
        vectors,
        score,
        kernel,
        num_points=num_points,
        unique=unique,
        entropy_weight=entropy_weight,
        **penalties,
    )
    length, found = vectors.shape[0] // num_chains, indices >= 0

    def chosen(leaf: Array) -> Array:
        return jnp.where(found.reshape(-1, *[1] * (leaf.ndim - 1)), leaf[indices], jnp.nan)

    places = (jnp.where(found, place, -1) for place in (indices // length, indices % length))
    return Thinned(jax.tree.map(chosen, draws), *places)


def stein_block_length(particles: Array, score: Array, *, num_chains: int = 1) -> Array:
    r"""Returns how many consecutive draws should share a sign, from their autocorrelation.

    .. math:: b = \lceil 3 n^{1/3} [(\tau - 1/\tau) / 2]^{2/3} \rceil

    with the integrated autocorrelation time tau, in draws, of the slowest of the functions s_a and
    s_a (x_a - mean) over coordinates a: the Stein operator of p applied to polynomials of degree 0
    and 1. Independent draws have tau = 1. For AR(1) with coefficient r the bracket is
    2 r / (1 - r^2), and b some 2.6 times the length that estimates a variance best: a test wants
    longer blocks. At least eight blocks are kept, if need be at the cost of their length.

    Args:
      particles: x_i, num_chains chains of equal length, one after another; shape (n, d), floating.
      score: s_i = grad log p(x_i); shape (n, d).
      num_chains: static.

    Returns:
      Block length, shape (), int32, between 1 and n / num_chains: the longest of which eight are
      left where a traced particle or score is not finite.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes, concrete particles or scores that are not
        finite, or chains that do not divide n.

    Cost: O(n d log n) time, O(n d) memory.

    Example:
      >>> from kernelgrad import chains
      >>> slow = jnp.linspace(-2.0, 2.0, 16)[:, None]
      >>> fast = jnp.tile(jnp.array([[-1.0], [1.0]]), (8, 1))
      >>> [int(chains.stein_block_length(x, -x)) for x in (slow, fast)]  # of at most 16 / 8
      [2, 1]

    References:
      Andrews 1991, eqs. (6.2) and (6.4), Bartlett kernel; Sokal 1997, section 3, for tau.
    """
    particles, score = _checks.scored(particles, score)
    _checks.finite(particles=particles, score=score)
    particles, score = _numeric.wide(particles), _numeric.wide(score)
    n = particles.shape[0]
    _checks.at_least("num_chains", num_chains, 1)
    if n % num_chains:
        raise ValueError(f"num_chains: got {num_chains}; expected a divisor of {n} particles")
    spread = particles - jnp.mean(particles, axis=0, keepdims=True)
    functions = jnp.concatenate([score, score * spread], axis=1)
    time = jnp.max(_autocorrelation_time(functions.reshape(num_chains, n // num_chains, -1)))
    length = jnp.ceil(3 * n ** (1 / 3) * ((time - 1 / time) / 2) ** (2 / 3))
    longest = max(1, min(n // num_chains, n // _FEWEST_BLOCKS))
    return jnp.clip(jnp.where(jnp.isnan(length), longest, length), 1, longest).astype(jnp.int32)


def _scored(
    positions: PyTree, log_density_fn: LogDensityFn, chain_axis: int | None
) -> tuple[PyTree, Array, Array, int]:
    """Returns draws, chain after chain, them raveled, their scores, and the number of chains."""
    draws, num_chains = _rows(positions, chain_axis)
    vectors = jax.vmap(_vector)(draws)
    _checks.finite(positions=vectors)

    def score_of(position: PyTree) -> Array:
        return _vector(_markov.evaluate(position, log_density_fn)[1])

    try:
        scores = lax.map(score_of, draws, batch_size=_DRAWS_AT_ONCE)
    except Exception as error:
        error.add_note(f"chain_axis: {chain_axis}; it says which leading axis counts chains")
        raise
    return draws, vectors, scores, num_chains


def _penalties(draws: PyTree, log_density_fn: LogDensityFn) -> dict[str, Array]:
    """Returns log p of each draw, and the sum of what is positive of its second derivatives."""

    def of(position: PyTree) -> tuple[Array, Array]:
        vector, unravel = ravel_pytree(jax.tree.map(_numeric.wide, position))
        slope = jax.grad(lambda x: _numeric.wide(log_density_fn(unravel(x))))

        def second(unit: Array) -> Array:
            return jnp.vdot(unit, jax.jvp(slope, (vector,), (unit,))[1])

        seconds = lax.map(second, jnp.eye(vector.shape[0], dtype=vector.dtype))
        return log_density_fn(unravel(vector)), jnp.sum(jnp.maximum(seconds, 0))

    log_density, convexity = lax.map(of, draws, batch_size=_DRAWS_AT_ONCE)
    return {"log_density": log_density, "convexity": convexity}


def _finite_draws(vectors: Array) -> Array:
    """Returns the draws with finite ones, in their order again, for those that are not."""
    known = jnp.all(jnp.isfinite(vectors), axis=1)
    first = jnp.argsort(~known, stable=True)
    stand_in = (jnp.cumsum(~known) - 1) % jnp.maximum(jnp.sum(known), 1)
    return vectors[jnp.where(known, jnp.arange(known.shape[0]), first[stand_in])]


def _vector(position: PyTree) -> Array:
    """Returns the position raveled, in at least float32."""
    return ravel_pytree(jax.tree.map(_numeric.wide, position))[0]


def _check_draws(shape: tuple[int, ...], num_chains: int, chain_axis: int | None) -> None:
    """Raises ValueError for numbers of draws and dimensions that cannot be meant."""
    n, dimension = shape
    too_wide = chain_axis is None and dimension > _DIMENSIONS_A_DRAW * n
    if n // num_chains < _FEWEST_DRAWS or too_wide:
        raise ValueError(
            f"positions: got {num_chains} chain(s) of {n // num_chains} draws in {dimension} "
            f"dimensions; expected at least {_FEWEST_DRAWS} draws and a quarter of the dimensions. "
            f"Say by chain_axis, now {chain_axis}, which leading axis counts chains"
        )


def _rows(positions: PyTree, chain_axis: int | None) -> tuple[PyTree, int]:
    """Returns the draws, chain after chain, on one leading axis, and the number of chains."""
    if chain_axis not in (None, 0, 1):
        raise ValueError(f"chain_axis: got {chain_axis}; expected None, 0 or 1")
    positions = _checks.floating_leaves("positions", positions)
    axes = 1 if chain_axis is None else 2
    shapes = {leaf.shape[:axes] for leaf in jax.tree.leaves(positions)}
    if len(shapes) != 1 or len(next(iter(shapes))) != axes or 0 in next(iter(shapes)):
        raise ValueError(
            f"positions: got leading axes {sorted(shapes)}; expected one {axes}-tuple for all "
            f"leaves, no size 0, with chain_axis={chain_axis}"
        )
    if chain_axis is None:
        return positions, 1
    if chain_axis == 1:
        positions = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), positions)
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), positions)
    return flat, next(iter(shapes))[chain_axis]


def _autocorrelation_time(chains: Array) -> Array:
    """Returns 1 + 2 sum_h rho_h, at least 1, of each function; chains is (chains, draws, f)."""
    length = chains.shape[1]
    centred = chains - jnp.mean(chains, axis=1, keepdims=True)
    size = jnp.max(jnp.abs(centred), axis=(0, 1), keepdims=True)
    centred = centred / jnp.where(size > 0, size, 1)  # times have no unit, squares have a range
    spectrum = jnp.square(jnp.abs(jnp.fft.rfft(centred, 2 * length, axis=1)))
    covariance = jnp.fft.irfft(jnp.mean(spectrum, axis=0), 2 * length, axis=0)[:length]
    scale = jnp.where(covariance[:1] > 0, covariance[:1], 1)
    times = 2 * jnp.cumsum(covariance / scale, axis=0) - 1
    window = jnp.arange(length, dtype=times.dtype)[:, None]
    first = jnp.argmax(window >= 5 * times, axis=0)
    return jnp.maximum(jnp.take_along_axis(times, first[None], axis=0)[0], 1)
