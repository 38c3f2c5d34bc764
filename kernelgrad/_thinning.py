"""Coresets of a sample: halving in a tree of ever fewer and larger parts, then exchange."""

import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _devices, _numeric, _traits, kernels, pairwise
from kernelgrad.types import Array, Kernel, Key

_PAIRS_AT_ONCE = 64  # of which sums over those before are taken together
_POINTS_AT_ONCE = 2**14  # of parts that are halved together


def kernel_thinning(
    key: Key, x: Array, kernel: Kernel, *, num_points: int, oversampling: int = 4
) -> Array:
    r"""Returns points that stand for all of x: a coreset whose MMD to x is small.

    Halving takes points in pairs, :math:`f_i = k(x_{2i-1}, \cdot) - k(x_{2i}, \cdot)`, and keeps
    the first (sign +) or the second of each, so that the signed sum :math:`\psi_i = \psi_{i-1} \pm
    f_i` stays short:

    .. math:: P(+) = \min\Big(1, \tfrac12 \Big(1 - \frac{\alpha_i}{a_i}\Big)_+\Big), \quad
        \alpha_i = \langle \psi_{i-1}, f_i \rangle, \quad
        a_i = \max\Big( |f_i|\, \sigma_{i-1} \sqrt{2 \log \tfrac2\delta},\; |f_i|^2 \Big)

    with :math:`\sigma_i^2 = \sigma_{i-1}^2 + |f_i|^2 (1 + (|f_i|^2 - 2 a_i)\, \sigma_{i-1}^2 /
    a_i^2)_+`; a coin then says whether the kept points stay or the others do. The halves of four
    parts of x are joined and halved again, part by part, until :math:`2^g m` candidates are left.
    These are halved g times more, and each of the m that remain is exchanged for the candidate that
    takes the MMD between both farthest down.

    The MMD to x falls as 1 / m up to logarithms, while there are enough points, that of points
    drawn at random as :math:`1 / \sqrt m`. So equal weights give means over x, of functions of
    the kernel's space; the points are not independent draws, as permutation tests suppose.

    Args:
      key: random key.
      x: points; shape (n, d), floating. Consecutive ones are pairs, so the order of a chain serves.
      kernel: k, radial or between features; its lengthscales are in units of x.
      num_points: m, 1 to n, static. Of x the :math:`2^T m` points with the greatest T take part,
        the others, if any, are left out at random.
      oversampling: g >= 0, static; more errs less. It is larger where parts could not be equal
        otherwise, for m of few factors of 2; then 4^g m^2 below is at most 2 n m.

    Returns:
      Indices of the points, shape (m,), int32, all different. Where traced points are not finite,
      pairs are decided by coins.

    Raises:
      ValueError: wrong rank or dtype, concrete points that are not finite, or num_points or
        oversampling out of range.

    Cost: O((n + 4^g m^2) d log(n / m)) time, O(n d) memory.

    Example:
      >>> from kernelgrad import kernels, mmd
      >>> x = jnp.array([[0.0], [9.0], [0.0], [9.0]])
      >>> some = mmd.kernel_thinning(jax.random.key(0), x, kernels.rbf_mixture(1.0), num_points=2)
      >>> sorted(x[some, 0].tolist())  # one of each place
      [0.0, 9.0]

    References:
      Dwivedi & Mackey 2024 (kernel thinning), KT-SPLIT, with one round a time, and KT-SWAP, of one
      coreset and for points that are not in it; Shetty, Dwivedi & Mackey 2022 (Compress++), its
      COMPRESS and COMPRESS++. Here delta is :math:`1 / (2 (2^T - 1) m)` for each pair, of which
      there are :math:`(2^T - 1) m` in all.
    """
    (x,) = _checks.points(x=x)
    _checks.finite(x=x)
    _checks.at_least("num_points", num_points, 1)
    _checks.at_least("oversampling", oversampling, 0)
    size = x.shape[0]
    if num_points > size:
        raise ValueError(f"num_points: got {num_points}; expected at most {size}, the points in x")
    x, kernel = _numeric.wide(_traits.embed(kernel, x)), _traits.radial(kernel)
    halvings = (size // num_points).bit_length() - 1
    factors_of_two = (num_points & -num_points).bit_length() - 1
    depth = max(0, min(halvings - oversampling, (halvings + factors_of_two) // 2))
    used = num_points << halvings
    threshold = 2 * math.log(4 * max(1, used - num_points))
    order_key, sign_key = jax.random.split(key)
    indices = jnp.arange(size, dtype=jnp.int32)
    if used < size:
        indices = jnp.sort(jax.random.permutation(order_key, indices)[:used])
    num_parts = [4 ** max(depth - 1 - level, 0) for level in range(halvings)]
    sizes = [parts + (used >> level + 1) for level, parts in enumerate(num_parts)]
    drawn = jax.random.uniform(sign_key, (sum(sizes),), x.dtype)  # for each pair, and a coin a part
    uniforms = jnp.split(drawn, list(itertools.accumulate(sizes))[:-1])
    parts = indices[None, :]
    for level in range(depth):
        parts = _halved(kernel, x, parts.reshape(num_parts[level], -1), uniforms[level], threshold)
    candidates = x[parts[0]]
    places = jnp.arange(candidates.shape[0], dtype=jnp.int32)[None, :]
    for level in range(depth, halvings):
        places = _halved(kernel, candidates, places, uniforms[level], threshold)
    if depth < halvings:
        places = _exchanged(kernel, candidates, places[0])[None, :]
    return parts[0, places[0]]


def _halved(kernel: Kernel, x: Array, parts: Array, uniforms: Array, threshold: float) -> Array:
    """Returns a half of each part.

    Args:
      kernel: k, radial.
      x: points; shape (n, d).
      parts: indices of the points of a part, pair after pair; shape (l, 2 p).
      uniforms: in [0, 1), for each part one a pair and then the coin; shape (l (p + 1),).
      threshold: 2 log(2 / delta).

    Returns:
      Indices, shape (l, p).
    """
    num_parts, size = parts.shape

    def halve(given: tuple[Array, Array]) -> Array:
        part, uniform = given
        first, second = part[::2], part[1::2]
        kept = _signs(kernel, x[first], x[second], uniform[:-1], threshold) > 0
        return jnp.where(kept ^ (uniform[-1] < 0.5), first, second)

    together = min(1 << max(_POINTS_AT_ONCE // size, 1).bit_length() - 1, num_parts)
    return lax.map(halve, (parts, uniforms.reshape(num_parts, -1)), batch_size=together)


def _signs(kernel: Kernel, first: Array, second: Array, uniforms: Array, threshold: float) -> Array:
    """Returns the signs of the pairs (first[i], second[i]), shape (p,)."""
    size = first.shape[0]
    width = min(size, _PAIRS_AT_ONCE)
    rest = -size % width
    uniforms = jnp.pad(uniforms, (0, rest))
    first, second = (jnp.pad(side, ((0, rest), (0, 0)), mode="edge") for side in (first, second))
    everyone = jnp.concatenate([first, second])

    def of_block(state: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], None]:
        signs, variance = state
        block = [lax.dynamic_slice_in_dim(a, start, width) for a in (first, second, uniforms)]
        gram = kernels.gram(kernel, jnp.concatenate(block[:2]), everyone)
        inner = gram[:width] - gram[width:]  # of f_i and k(x_j, .)
        inner = inner[:, : size + rest] - inner[:, size + rest :]
        alphas = _numeric.dot(inner, signs)
        inner = lax.dynamic_slice_in_dim(inner, start, width, 1)
        chosen, variance = _walk(alphas, inner, variance, block[2], threshold)
        return (lax.dynamic_update_slice_in_dim(signs, chosen, start, 0), variance), None

    start = jnp.zeros_like(uniforms), jnp.zeros((), uniforms.dtype)
    start = _devices.varying(start, first, uniforms, kernel)
    starts = jnp.arange(0, size + rest, width)
    return lax.scan(of_block, start, starts)[0][0][:size]


def _walk(
    alphas: Array, inner: Array, variance: Array, uniforms: Array, threshold: float
) -> tuple[Array, Array]:
    """Returns the signs of the pairs of a block, shape (b,), and sigma^2 behind them.

    Args:
      alphas: inner products of f_i with the signed sum before the block; shape (b,).
      inner: inner products of f_i and f_j; shape (b, b).
      variance: sigma^2 before the block.
      uniforms: in [0, 1); shape (b,).
      threshold: 2 log(2 / delta).
    """

    def step(state: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], Array]:
        alphas, variance = state
        squared = jnp.maximum(inner[i, i], 0)
        bound = jnp.maximum(jnp.sqrt(squared) * jnp.sqrt(threshold * variance), squared)
        lean = alphas[i] / jnp.where(bound > 0, bound, 1)
        lean = jnp.where(jnp.isfinite(lean) & (bound > 0), lean, 0)
        sign = jnp.where(2 * uniforms[i] < 1 - lean, 1, -1).astype(alphas.dtype)
        share = variance / jnp.where(bound > 0, bound, 1)
        growth = 1 + (squared / jnp.where(bound > 0, bound, 1) - 2) * share
        variance += squared * jnp.maximum(growth, 0)
        return (alphas + sign * inner[i], variance), sign

    (_, variance), signs = lax.scan(step, (alphas, variance), jnp.arange(alphas.shape[0]))
    return signs, variance


def _exchanged(kernel: Kernel, candidates: Array, chosen: Array) -> Array:
    r"""Returns the chosen, each in turn exchanged for a candidate: KT-SWAP.

    .. math:: \arg\min_z\; \sum_{l \ne i} k(x_l, z) - \frac{m}{c} \sum_j k(z_j, z)

    over candidates z that are not among the others, to which the MMD that an exchange leaves is
    equal up to constants, as k(z, z) is the same everywhere.

    Args:
      kernel: k, radial.
      candidates: z_j; shape (c, d).
      chosen: indices of x_l among the candidates; shape (m,).
    """
    size = candidates.shape[0]
    taken = jnp.zeros(size, bool).at[chosen].set(True)
    weights = taken.astype(candidates.dtype) - chosen.shape[0] / size
    potential = pairwise.kernel_sum(kernel, candidates, None, weights[:, None])[:, 0]

    def column(index: Array) -> Array:
        point = lax.dynamic_slice_in_dim(candidates, index, 1)
        return kernels.gram(kernel, candidates, point)[:, 0]

    def exchange(state: tuple[Array, Array], old: Array) -> tuple[tuple[Array, Array], Array]:
        potential, taken = state
        potential, taken = potential - column(old), taken.at[old].set(False)
        open_to = jnp.where(taken | ~jnp.isfinite(potential), jnp.inf, potential)
        best = jnp.argmin(open_to).astype(chosen.dtype)
        best = jnp.where(jnp.isfinite(open_to[best]), best, old)
        return (potential + column(best), taken.at[best].set(True)), best

    start = _devices.varying((potential, taken), candidates, chosen, kernel)
    return lax.scan(exchange, start, chosen)[1]
