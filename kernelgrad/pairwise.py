r"""The engine: sums over all pairs of points, in tiles, differentiable, on one device or many.

Every sum of this package has the form :math:`\sum_j f(x_i, y_j)` with a radial kernel inside.
:func:`_stream` evaluates it tile by tile, so that neither the sum nor its gradient ever holds an
(n, m) buffer, let alone (n, m, d): the tiles of the gradient are tiles of the same kind, to any
order. Below ``DENSE_PAIRS`` pairs one tile is the whole problem.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernelgrad import _checks
from kernelgrad.types import Array, Kernel, PyTree

TILE_ROWS = 512
TILE_COLS = 512
DENSE_PAIRS = 1 << 18
DIRECT_DIMENSIONS = 3  # up to here differences are as cheap as a matmul, and exact

_dot = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


class _PairSums(NamedTuple):
    """What a tile contributes: sums over its columns, over its rows and over both."""

    rows: PyTree = None
    cols: PyTree = None
    total: PyTree = None


_TileFn = Callable[[PyTree, tuple[Any, Any], PyTree, PyTree], _PairSums]


def squared_distances(x: Array, y: Array | None = None) -> Array:
    r"""Returns :math:`|x_i - y_j|^2` for all pairs.

    Points are centred first and the cross term is a full-precision matmul, so that an offset of
    the data costs no digits; negative rounding errors become 0. In at most 3 dimensions the
    differences are taken directly.

    Args:
      x: points; shape (n, d), floating.
      y: points; shape (m, d). None: x itself, with a diagonal of exact zeros.

    Returns:
      Squared distances, shape (n, m), in squared units of x; at least float32.

    Raises:
      ValueError: wrong rank, dtype or mismatched dimensions.

    Cost: O(n m d) time, O(n m) memory.
    """
    _checks.points(x=x, **({} if y is None else {"y": y}))
    rows, cols = centred(*jax.tree.map(jnp.asarray, (x, y)))
    return tile_distances((0, 0), rows, cols, diagonal=y is None)


def kernel_sum(
    kernel: Kernel,
    x: Array,
    y: Array | None,
    weights: Array,
    *,
    axis_name: str | None = None,
) -> Array:
    r"""Returns the kernel-weighted sums over y at each x.

    .. math:: S_i = \sum_j k(x_i, y_j) w_j

    Reverse-mode differentiable to any order in x, y, weights and the kernel's leaves, in linear
    memory.

    Args:
      kernel: k; its lengthscales are in units of x.
      x: points x_i; shape (n, d), floating.
      y: points y_j; shape (m, d). None: x itself, with exactly zero self-distances.
      weights: w_j; shape (m, p).
      axis_name: if set, j runs over the union of all devices' y and weights.

    Returns:
      Sums, shape (n, p), dtype of x, in units of the weights.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes.

    Cost: O(n m (d + p)) time, O((n + m) (d + p)) memory.
    """
    return _sums(kernel, x, y, weights, None, axis_name=axis_name)[0]


def gradient_sum(
    kernel: Kernel,
    x: Array,
    y: Array | None,
    weights: Array | None = None,
    *,
    axis_name: str | None = None,
) -> Array:
    r"""Returns the summed kernel gradients in the second argument, at each x.

    .. math:: N_i = \sum_j w_j \nabla_{y_j} k(x_i, y_j)

    For a radial kernel :math:`N_i = \sum_j w_j\, 2 k'(r_{ij}^2) (y_j - x_i)`, with k' the
    derivative of the profile; it points away from the y, that is, it repels x_i. With a feature
    kernel the gradient runs through the features of y.

    Args:
      kernel: k; its lengthscales are in units of x.
      x: points x_i; shape (n, d), floating.
      y: points y_j; shape (m, d). None: x itself.
      weights: w_j; shape (m,). None: all 1.
      axis_name: if set, j runs over the union of all devices' y and weights.

    Returns:
      Sums, shape (n, d), dtype of x, in 1/units of x.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes.

    Cost: O(n m d) time, O((n + m) d) memory; with features of dimension l, l backward passes and
      O(n m l d) time.

    References:
      Li 2017 (approximate KL gradients), eq. (2), where w = 1 and y = x.
    """
    if weights is None:
        weights = jnp.ones(jnp.shape(x if y is None else y)[:1], jnp.result_type(x))
    return _sums(kernel, x, y, None, weights, axis_name=axis_name)[1]


def kernel_and_gradient_sum(
    kernel: Kernel,
    x: Array,
    y: Array | None,
    weights: Array,
    gradient_weights: Array,
    *,
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    r"""Returns :func:`kernel_sum` and :func:`gradient_sum` from one pass over the pairs.

    Args:
      kernel: k; its lengthscales are in units of x.
      x: points x_i; shape (n, d), floating.
      y: points y_j; shape (m, d). None: x itself.
      weights: w_j of the kernel sum; shape (m, p).
      gradient_weights: w_j of the gradient sum; shape (m,).
      axis_name: if set, j runs over the union of all devices' y and weights.

    Returns:
      Pair of :math:`\sum_j k(x_i, y_j) w_j`, shape (n, p), and
      :math:`\sum_j w_j \nabla_{y_j} k(x_i, y_j)`, shape (n, d).

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes.

    Cost: O(n m (d + p)) time, O((n + m) (d + p)) memory.
    """
    return _sums(kernel, x, y, weights, gradient_weights, axis_name=axis_name)


# ------------------------------------------------------------------------------------- sums


def _sums(
    kernel: Kernel,
    x: Array,
    y: Array | None,
    weights: Array | None,
    gradient_weights: Array | None,
    *,
    axis_name: str | None,
) -> tuple[Array, Array]:
    """Returns the value sums and the gradient sums, an empty slot for absent weights."""
    _checks.points(x=x, **({} if y is None else {"y": y}))
    m = x.shape[0] if y is None else y.shape[0]
    if weights is not None:
        _checks.floating(weights=weights)
        _checks.shape("weights", weights, (m, "p"))
    if gradient_weights is not None:
        name = "weights" if weights is None else "gradient_weights"
        _checks.floating(**{name: gradient_weights})
        _checks.shape(name, gradient_weights, (m,))

    x, y, weights, gradient_weights = jax.tree.map(jnp.asarray, (x, y, weights, gradient_weights))
    dtype = x.dtype
    if hasattr(kernel, "features") and gradient_weights is not None:
        return _feature_sums(kernel, x, y, weights, gradient_weights, axis_name=axis_name)
    x, y = embed(kernel, x), None if y is None else embed(kernel, y)

    others = None if y is None and axis_name is None else gather(x if y is None else y, axis_name)
    rows, cols = centred(x, others)
    tile = functools.partial(_sum_tile, y is None, axis_name, x.shape[0])
    weights, gradient_weights = (
        None if w is None else gather(w.astype(rows.dtype), axis_name)
        for w in (weights, gradient_weights)
    )
    sums = _stream(tile, radial(kernel), rows, (cols, weights, gradient_weights)).rows
    return jax.tree.map(lambda s: s.astype(dtype), sums)


def _sum_tile(
    diagonal: bool,
    axis_name: str | None,
    num_local: int,
    kernel: Kernel,
    origin: tuple[Any, Any],
    rows: Array,
    columns: tuple[Array, Array | None, Array | None],
) -> _PairSums:
    """Sums k w and w grad k over one tile's columns; linear in w, so zero padding is silent."""
    cols, weights, gradient_weights = columns
    if axis_name is not None:
        origin = (origin[0] + lax.axis_index(axis_name) * num_local, origin[1])
    sq_dist = tile_distances(origin, rows, cols, diagonal=diagonal)
    if gradient_weights is None:
        return _PairSums(rows=(_dot(kernel.profile(sq_dist), weights), None))  # type: ignore[arg-type]
    value, slope = jax.jvp(kernel.profile, (sq_dist,), (jnp.ones_like(sq_dist),))
    values = None if weights is None else _dot(value, weights)
    force = gradient_weights[:, None]
    pulled = _dot(slope, jnp.concatenate([force * cols, force], axis=1))
    return _PairSums(rows=(values, 2 * (pulled[:, :-1] - rows * pulled[:, -1:])))


def _feature_sums(
    kernel: Any,
    x: Array,
    y: Array | None,
    weights: Array | None,
    gradient_weights: Array,
    *,
    axis_name: str | None,
) -> tuple[Array, Array]:
    r"""Sums for k(phi(x), phi(y)), the gradient pulled back through phi at each y_j.

    With :math:`e_i = \phi(x_i)` and :math:`f_j = \phi(y_j)`, both centred,
    :math:`P_{ij} = 2 k'(r_{ij}^2) w_j` and the Jacobian :math:`J_j`, :math:`N_i = \sum_j P_{ij}
    J_j^\top f_j - \sum_a e_{ia} \sum_j P_{ij} J_j^\top \mathbf 1_a`: one backward pass and one
    sum a feature, never an (m, l, d) Jacobian.
    """
    targets, pull = jax.vjp(kernel.features, x if y is None else y)
    embedded = targets if y is None else kernel.features(x)
    rows, cols = centred(embedded, targets, axis_name)
    slope = _Slope(radial(kernel))

    def slope_sum(vectors: Array) -> Array:
        weighted = 2 * gradient_weights[:, None].astype(cols.dtype) * vectors.astype(cols.dtype)
        others = None if y is None else cols
        return _sums(slope, rows, others, weighted, None, axis_name=axis_name)[0]

    def add_feature(total: Array, feature: tuple[Array, Array]) -> tuple[Array, None]:
        direction, coordinate = feature
        (row,) = pull(jnp.broadcast_to(direction, targets.shape))
        return total - coordinate[:, None] * slope_sum(row), None

    (own,) = pull(cols.astype(targets.dtype))
    basis = jnp.eye(targets.shape[1], dtype=targets.dtype)
    gradient, _ = lax.scan(add_feature, slope_sum(own), (basis, rows.T))
    gradient = gradient.astype(x.dtype)
    if weights is None:
        return None, gradient  # type: ignore[return-value]
    return _sums(kernel, x, y, weights, None, axis_name=axis_name)[0], gradient


class _Slope(NamedTuple):
    """The derivative of a kernel's profile, as a profile of its own."""

    kernel: Kernel

    def profile(self, sq_dist: Array) -> Array:
        """Returns d profile / d sq_dist."""
        return jax.jvp(self.kernel.profile, (sq_dist,), (jnp.ones_like(sq_dist),))[1]


# -------------------------------------------------------------------------------- distances


def embed(kernel: Kernel, x: Array) -> Array:
    """Returns the points between which the kernel measures distances: features, or x itself."""
    return kernel.features(x) if hasattr(kernel, "features") else x


def radial(kernel: Kernel) -> Kernel:
    """Returns the kernel between embedded points."""
    return kernel.base if hasattr(kernel, "features") else kernel  # type: ignore[attr-defined]


def centred(x: Array, y: Array | None, axis_name: str | None = None) -> tuple[Array, Array]:
    """Returns both sets in at least float32, moved so that a middle of the second is 0."""
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


def tile_distances(origin: tuple[Any, Any], rows: Array, cols: Array, *, diagonal: bool) -> Array:
    """Squared distances of one tile; `diagonal` sets those with equal global index to 0."""
    if rows.shape[1] <= DIRECT_DIMENSIONS:
        sq_dist = jnp.zeros((rows.shape[0], cols.shape[0]), rows.dtype)
        for a, b in zip(rows.T, cols.T, strict=True):
            sq_dist += jnp.square(a[:, None] - b[None, :])
    else:
        row_norms = jnp.sum(jnp.square(rows), axis=1)[:, None]
        col_norms = jnp.sum(jnp.square(cols), axis=1)[None, :]
        sq_dist = row_norms + col_norms - 2 * _dot(rows, cols.T)
        sq_dist += lax.stop_gradient(jnp.maximum(sq_dist, 0) - sq_dist)  # keeps d/dx at coincidence
    if not diagonal:
        return sq_dist
    index = [lax.broadcasted_iota(jnp.int32, sq_dist.shape, axis) for axis in (0, 1)]
    same = index[0] + origin[0] == index[1] + origin[1]
    return jnp.where(same, 0, sq_dist)


def gather(array: Array | None, axis_name: str | None) -> Any:
    """Returns the union over devices, in device order."""
    if array is None or axis_name is None:
        return array
    return lax.all_gather(array, axis_name, tiled=True)


# ---------------------------------------------------------------------------------- streaming


def _stream(fn: _TileFn, shared: PyTree, rows: PyTree, cols: PyTree) -> _PairSums:
    """Adds up fn(shared, origin, row_tile, col_tile) over all tiles.

    Tiles at the edge are padded with zeros: `fn` must give zero where all row inputs or all
    column inputs that weigh a pair are zero.
    """
    n, m = (jax.tree.leaves(side)[0].shape[0] for side in (rows, cols))
    if n * m <= DENSE_PAIRS:
        return fn(shared, (0, 0), rows, cols)
    return _stream_tiles(fn, shared, rows, cols)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stream_tiles(fn: _TileFn, shared: PyTree, rows: PyTree, cols: PyTree) -> _PairSums:
    n, m = (jax.tree.leaves(side)[0].shape[0] for side in (rows, cols))
    row_tiles, col_tiles = split_tiles(rows, TILE_ROWS), split_tiles(cols, TILE_COLS)
    size = [jax.tree.leaves(tiles)[0].shape[1] for tiles in (row_tiles, col_tiles)]

    def first_tile(tiles: PyTree) -> PyTree:
        return jax.tree.map(lambda t: t[0], tiles)

    shapes = jax.eval_shape(
        lambda s, r, c: fn(s, (0, 0), r, c), shared, first_tile(row_tiles), first_tile(col_tiles)
    )
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add_row(carry: PyTree, row_tile: PyTree) -> tuple[PyTree, PyTree]:
        row_index, col_sums, total = carry

        def add_tile(carry: PyTree, col_tile: PyTree) -> tuple[PyTree, PyTree]:
            col_index, row_sums, total = carry
            origin = (row_index * size[0], col_index * size[1])
            part = fn(shared, origin, row_tile, col_tile)
            added = _add((row_sums, total), (part.rows, part.total))
            return (col_index + 1, *added), part.cols

        start = (jnp.int32(0), zeros.rows, total)
        (_, row_sums, total), parts = lax.scan(add_tile, start, col_tiles)
        return (row_index + 1, _add(col_sums, parts), total), row_sums

    num_col_tiles = jax.tree.leaves(col_tiles)[0].shape[0]
    col_zeros = jax.tree.map(lambda z: jnp.broadcast_to(z, (num_col_tiles, *z.shape)), zeros.cols)
    start = (jnp.int32(0), col_zeros, zeros.total)
    (_, col_sums, total), row_sums = lax.scan(add_row, start, row_tiles)
    return _PairSums(_untiled(row_sums, n), _untiled(col_sums, m), total)


def _stream_forward(
    fn: _TileFn, shared: PyTree, rows: PyTree, cols: PyTree
) -> tuple[_PairSums, PyTree]:
    return _stream_tiles(fn, shared, rows, cols), (shared, rows, cols)


def _stream_backward(fn: _TileFn, residuals: PyTree, cotangent: _PairSums) -> PyTree:
    shared, rows, cols = residuals
    back = _stream_tiles(
        functools.partial(_transposed_tile, fn),
        (shared, cotangent.total),
        (rows, cotangent.rows),
        (cols, cotangent.cols),
    )
    return back.total[0], back.rows[0], back.cols[0]


def _transposed_tile(
    fn: _TileFn, shared: PyTree, origin: tuple[Any, Any], rows: PyTree, cols: PyTree
) -> _PairSums:
    """The cotangents of one tile of `fn`: again a tile, so that the gradient streams as well."""
    (shared, total_bar), (rows, rows_bar), (cols, cols_bar) = shared, rows, cols
    _, pull = jax.vjp(lambda s, r, c: fn(s, origin, r, c), shared, rows, cols)
    shared_bar, rows_bar, cols_bar = pull(_PairSums(rows_bar, cols_bar, total_bar))
    return _PairSums(rows=(rows_bar,), cols=(cols_bar,), total=(shared_bar,))


_stream_tiles.defvjp(_stream_forward, _stream_backward)


def split_tiles(tree: PyTree, largest: int) -> PyTree:
    """Splits leading axes into equal tiles of at most `largest`, padded with zeros."""
    size = jax.tree.leaves(tree)[0].shape[0]
    count = -(-size // largest)
    width = -(-size // count)

    def split(array: Array) -> Array:
        padding = [(0, count * width - size)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(count, width, *array.shape[1:])

    return jax.tree.map(split, tree)


def _untiled(tree: PyTree, size: int) -> PyTree:
    return jax.tree.map(lambda t: t.reshape(-1, *t.shape[2:])[:size], tree)


def _add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)
