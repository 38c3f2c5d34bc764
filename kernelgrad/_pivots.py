"""Landmarks of a gram by randomly pivoted Cholesky, in blocks with rejection."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _devices, _numeric, kernels
from kernelgrad.types import Array, Kernel, Key

_PROPOSALS = 128  # of a block
_NOISE = 32  # machine epsilons of k(0): what is left below it is rounding


class _State(NamedTuple):
    key: Key
    num_chosen: Array
    pivots: Array  # (r,), the first `num_chosen` of which are chosen
    factor: Array  # (n, r), K ~ F F^T
    residual: Array  # (n,), what F leaves of the diagonal of K
    round: Array


def random_pivots(key: Key, kernel: Kernel, x: Array, num_pivots: int) -> Array:
    r"""Returns pivots, each drawn with the probability of its share of what is left of tr K.

    A block of proposals follows the shares at its start; one is accepted with the ratio of what is
    left of its diagonal entry to that at the start, which gives the law of one at a time.

    Args:
      key: random key.
      kernel: k, with k(0) > 0.
      x: points; shape (n, d), at least float32.
      num_pivots: r, 1 to n; static.

    Returns:
      Indices, shape (r,), int32. Where K is of lower rank up to rounding, index 0 fills the rest.

    Cost: O(n r (r + d)) time, O(n r) memory.
    """
    size, width = x.shape[0], min(num_pivots, _PROPOSALS)
    diagonal = jnp.broadcast_to(kernel.profile(jnp.zeros((), x.dtype)), (size,))
    noise = _NOISE * jnp.finfo(x.dtype).eps * diagonal[0]

    def unfinished(state: _State) -> Array:
        some_left = jnp.any(state.residual > noise)
        return (state.num_chosen < num_pivots) & some_left & (state.round < 2 * num_pivots)

    def extend(state: _State) -> _State:
        key, proposal_key, uniform_key = jax.random.split(state.key, 3)
        proposals = _draw(proposal_key, state.residual, width)
        factor, residual = state.factor, state.residual
        columns = kernels.gram(kernel, x, x[proposals])
        columns -= _numeric.dot(factor, factor[proposals].T)
        thresholds = residual[proposals] * jax.random.uniform(uniform_key, (width,), x.dtype)
        lower, accepted = _accept(
            columns[proposals], jnp.maximum(thresholds, noise), num_pivots - state.num_chosen
        )
        place = jnp.where(
            accepted, state.num_chosen + jnp.cumsum(accepted, dtype=jnp.int32) - 1, num_pivots
        )
        new = jnp.where(accepted[None, :], columns, 0)
        new = jax.scipy.linalg.solve_triangular(lower, new.T, lower=True).T
        left = jnp.maximum(residual - jnp.sum(jnp.square(new), axis=1), 0)
        chosen = jnp.where(accepted, proposals, size)
        return _State(
            key,
            state.num_chosen + jnp.sum(accepted, dtype=jnp.int32),
            state.pivots.at[place].set(proposals, mode="drop"),
            factor.at[:, place].set(new, mode="drop"),
            left.at[chosen].set(0, mode="drop"),
            state.round + 1,
        )

    zero = jnp.zeros((), jnp.int32)
    pivots = jnp.zeros(num_pivots, jnp.int32)
    factor = jnp.zeros((size, num_pivots), x.dtype)
    inputs = (x, kernel, jax.random.key_data(key))
    start = _devices.varying((zero, pivots, factor, diagonal, zero), *inputs)
    return lax.while_loop(unfinished, extend, _State(key, *start)).pivots


def _draw(key: Key, shares: Array, size: int) -> Array:
    """Returns indices with probabilities proportional to the shares."""
    cumulated = jnp.cumsum(shares)
    points = cumulated[-1] * jax.random.uniform(key, (size,), shares.dtype)
    indices = jnp.searchsorted(cumulated, points, side="right").astype(jnp.int32)
    return jnp.minimum(indices, shares.shape[0] - 1)


def _accept(gram: Array, thresholds: Array, most: Array) -> tuple[Array, Array]:
    """Returns the Cholesky factor of the accepted proposals, and which they are.

    A proposal is accepted if those before leave more of its diagonal entry than its threshold. The
    rows and columns of the others are those of the identity.
    """
    width = gram.shape[0]

    def step(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        left, lower, accepted = state
        pivot = left[i, i]
        accept = (pivot > thresholds[i]) & (jnp.sum(accepted, dtype=jnp.int32) < most)
        column = jnp.where(accept, left[:, i] / jnp.sqrt(jnp.where(accept, pivot, 1)), 0)
        column = jnp.where(jnp.arange(width) < i, 0, column)
        left -= column[:, None] * column[None, :]
        return left, lower.at[:, i].set(column), accepted.at[i].set(accept)

    start = _devices.varying((gram, jnp.zeros_like(gram), jnp.zeros(width, bool)), thresholds)
    _, lower, accepted = lax.fori_loop(0, width, step, start)
    both = accepted[:, None] & accepted[None, :]
    return jnp.where(both, lower, jnp.eye(width, dtype=gram.dtype)), accepted
