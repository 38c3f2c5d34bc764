"""Sums over some of the pairs, in linear time, as they are and under random signs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _devices, _resampling
from kernelgrad.types import Array, Key, PyTree

_SIGNS_AT_ONCE = 256


def resampled(
    key: Key,
    pairs: Callable[[PyTree, PyTree], Array],
    points: PyTree,
    num_diagonals: int,
    num_draws: int,
) -> _resampling.Resampled:
    r"""Returns :math:`\frac1{nR} \sum_{r \le R} \sum_i w_i w_{i + r} h_{i, i + r}`, all w being 1.

    And the same under random signs w. Places go round, so that each point is in 2 R pairs.

    Args:
      key: random key of the signs, the same for all h.
      pairs: (points, others) -> h of each point with the other in its row, shape (n,).
      points: pytree of arrays (n, ...).
      num_diagonals: R, from 1 to (n - 1) // 2: then all pairs, where n is odd.
      num_draws: B >= 1, static.

    Raises:
      ValueError: another number of diagonals.
    """
    leaves = jax.tree.leaves(points)
    n = leaves[0].shape[0]
    _checks.at_least("num_diagonals", num_diagonals, 1)
    if num_diagonals > (n - 1) // 2:
        raise ValueError(
            f"num_diagonals: got {num_diagonals} of {n} points; expected at most {(n - 1) // 2}, "
            "all pairs. Take fewer"
        )
    dtype = jax.eval_shape(pairs, points, points).dtype
    shifts = jnp.arange(1, num_diagonals + 1)
    batches = -(-num_draws // _SIGNS_AT_ONCE)
    width = -(-num_draws // batches)

    def sums(key: Key) -> tuple[Array, Array]:
        signs = jax.random.rademacher(key, (n, width), dtype)
        signs = jnp.concatenate([jnp.ones((n, 1), dtype), signs], axis=1)

        def add(totals: tuple[Array, Array], shift: Array) -> tuple[tuple[Array, Array], None]:
            others = jax.tree.map(lambda leaf: jnp.roll(leaf, -shift, axis=0), points)
            h = pairs(points, others) / (n * num_diagonals)
            drawn = jnp.einsum("i,ib,ib->b", h, signs, jnp.roll(signs, -shift, axis=0))
            return (totals[0] + drawn, totals[1] + jnp.sum(jnp.abs(h))), None

        nothing = jnp.zeros(width + 1, dtype), jnp.zeros((), dtype)
        start = _devices.varying(nothing, points, key)
        totals, _ = lax.scan(add, start, shifts)
        return totals

    values, sizes = lax.map(sums, jax.random.split(key, batches))
    null = values[:, 1:].ravel()[:num_draws]
    rounding = 8 * jnp.finfo(dtype).eps * sizes[0]
    valid = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
    return _resampling.Resampled(values[0, 0], null, rounding, valid)
