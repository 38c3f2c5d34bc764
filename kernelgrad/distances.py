"""Squared distances between points: centred first, by one full-precision matmul, never negative."""

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax

from kernelgrad.types import Array

DIRECT_DIMENSIONS = 3  # up to here differences are as cheap as a matmul, and exact

_dot = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def centred(x: Array, y: Array | None, axis_name: str | None = None) -> tuple[Array, Array]:
    """Returns both sets in at least float32, moved so that a middle of the second is 0.

    Args:
      x: points; shape (n, d), floating.
      y: points; shape (m, d). None: x.
      axis_name: if set, all devices take the middle of the first one's y.

    Returns:
      x and y less the middle, which carries no gradient.
    """
    dtype = x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.float32
    x = x.astype(dtype)
    y = x if y is None else y.astype(dtype)
    centre = lax.stop_gradient(_middle(y))
    if axis_name is not None:
        centre = lax.all_gather(centre, axis_name)[0]
    return x - centre, y - centre


def _middle(x: Array) -> Array:
    """The median of three medians of three points in each coordinate; shape (1, d).

    No outlier moves it, as it would the mean. Its coordinates are those of points, so that a
    fused multiply-add cannot centre two copies of a point differently.
    """

    def median(a: Array, b: Array, c: Array) -> Array:
        return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))

    nine = x[np.linspace(0, x.shape[0] - 1, 9).astype(int)]
    return median(*jnp.split(median(*jnp.split(nine, 3)), 3))


def tile_distances(
    rows: Array,
    cols: Array,
    shift: int | Array | None = None,
    norms: tuple[Array, Array] | None = None,
) -> Array:
    """Returns squared distances between centred points, full precision and never negative.

    Args:
      rows: points; shape (n, d), at least float32.
      cols: points; shape (m, d).
      shift: row a and column a + shift are one point, at distance 0. None: no point is in both.
      norms: :func:`sq_norms` of both, where they are at hand; shapes (n,) and (m,).

    Returns:
      Squared distances, shape (n, m).
    """
    if rows.shape[1] <= DIRECT_DIMENSIONS:
        sq_dist = jnp.zeros((rows.shape[0], cols.shape[0]), rows.dtype)
        for a, b in zip(rows.T, cols.T, strict=True):
            sq_dist += jnp.square(_differences(a, b))
    else:
        row_norms, col_norms = (sq_norms(rows), sq_norms(cols)) if norms is None else norms
        left = [-2 * rows, row_norms[:, None], jnp.ones_like(row_norms)[:, None]]
        right = [cols, jnp.ones_like(col_norms)[:, None], col_norms[:, None]]
        # the norms inside of the matmul: a fifth less time than adding them to its result
        sq_dist = _dot(jnp.concatenate(left, axis=1), jnp.concatenate(right, axis=1).T)
        sq_dist += lax.stop_gradient(jnp.maximum(sq_dist, 0) - sq_dist)  # keeps d/dx at coincidence
    return sq_dist if shift is None else jnp.where(same_point(sq_dist, shift), 0, sq_dist)


def same_point(tile: Array, shift: int | Array) -> Array:
    """Returns where the row and the column of a tile are one point.

    Args:
      tile: of shape (n, m); only its shape counts.
      shift: row a and column a + shift are one point.

    Returns:
      Booleans, shape (n, m).
    """
    rows, cols = (lax.broadcasted_iota(jnp.int32, tile.shape, axis) for axis in (0, 1))
    return rows + shift == cols


def sq_norms(points: Array) -> Array:
    r"""Returns the squared norms :math:`|x_i|^2`.

    Args:
      points: x_i; shape (n, d).

    Returns:
      Squared norms, shape (n,), in squared units of the points.
    """
    return jnp.sum(jnp.square(points), axis=1)


def _differences(a: Array, b: Array) -> Array:
    """Returns a_i - b_j by a matmul of inner dimension 2: exact, and faster than broadcasts."""
    left, right = jnp.stack([a, jnp.ones_like(a)], axis=1), jnp.stack([jnp.ones_like(b), -b])
    return _dot(left, right)
