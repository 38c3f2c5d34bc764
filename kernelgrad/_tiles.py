r"""Adding up tiles of pairs: memory linear in the points, differentiable to any order.

A tile function sees some rows and some columns and returns what their pairs contribute. All
traversals below carry a custom VJP: the cotangents of a tile are again a tile, so that a gradient
streams like the sum it belongs to. At most ``DENSE_PAIRS`` pairs are one tile, in plain JAX.

Over devices the columns go round a ring, a part of every share at a time: each device adds up the
tiles of its rows and of the columns that it holds at the time, and passes these on together with
what was added up at them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _devices, _distances
from kernelgrad.types import Array, PyTree

TILE_ROWS = 512
TILE_COLS = 512
DENSE_PAIRS = 1 << 18
RING_PARTS = 4  # of a share, of which one at a time travels

T = TypeVar("T")


class PairSums(NamedTuple):
    """What a tile contributes: sums over its columns, over its rows and over both."""

    rows: PyTree = None
    cols: PyTree = None
    total: PyTree = None


# fn(shared, shift, rows, cols): row a is the point of column a + shift, none if shift is None
TileFn = Callable[[PyTree, Any, PyTree, PyTree], PairSums]


@dataclasses.dataclass(frozen=True)
class Either:
    """A tile function that is one of two, and whose transpose is one of their transposes.

    Attributes:
      possible: whether the condition may hold in any tile, of (shared, rows, columns), all of them;
        for :func:`_distances.choose`. Where it may not, no tile is asked.
      condition: what tells them apart, of the arguments of both; likewise.
      if_true: the rare one; what it computes is computed again for a gradient.
      if_false: the other.
    """

    possible: Callable[[PyTree, PyTree, PyTree], bool | Array]
    condition: Callable[[PyTree, Any, PyTree, PyTree], bool | Array]
    if_true: TileFn
    if_false: TileFn

    def __call__(self, shared: PyTree, shift: Any, rows: PyTree, cols: PyTree, /) -> PairSums:
        """Returns what the one that the tile asks for returns."""
        tile = (shared, shift, rows, cols)
        condition, if_true = self.condition(*tile), self.if_true
        if not isinstance(condition, bool):  # both would keep what a gradient of the other needs
            if_true = jax.checkpoint(if_true)
        return _distances.choose(condition, lambda: if_true(*tile), lambda: self.if_false(*tile))


def viewed(fn: TileFn, view: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]) -> TileFn:
    """Returns a tile function of what makes, for each tile, the arguments of another.

    Args:
      fn: the other tile function.
      view: (shared, side of a tile) -> (shared, side) as `fn` takes them.

    Returns:
      Tile function, one of two where `fn` is.
    """

    def through(part: Callable[..., T]) -> Callable[..., T]:
        def seen(shared: PyTree, shift: Any, rows: PyTree, cols: PyTree) -> T:
            own, seen_rows = view(shared, rows)
            return part(own, shift, seen_rows, view(shared, cols)[1])

        return seen

    if not isinstance(fn, Either):
        return through(fn)
    either = fn

    def possible(shared: PyTree, rows: PyTree, cols: PyTree) -> bool | Array:
        own, seen_rows = view(shared, rows)
        return either.possible(own, seen_rows, view(shared, cols)[1])

    return Either(possible, *map(through, (fn.condition, fn.if_true, fn.if_false)))  # type: ignore[arg-type]


def stream(
    fn: TileFn, shared: PyTree, rows: PyTree, cols: PyTree, axis_name: str | None = None
) -> PairSums:
    """Adds up `fn` over all tiles of rows x columns.

    Tiles at the edge are padded with zeros: `fn` must give zero where all row inputs or all
    column inputs that weigh a pair are zero.

    Args:
      fn: the tile function; a pure function of arrays alone. Its shift is the index of a tile's
        first row minus that of its first column.
      shared: what every tile needs, such as a kernel; a pytree.
      rows: what belongs to the rows; a pytree of arrays of shape (n, ...).
      cols: what belongs to the columns; a pytree of arrays of shape (m, ...).
      axis_name: if set, the columns are the union over all devices, and indices run over it.

    Returns:
      Row sums of shape (n, ...), column sums of shape (m, ...) and totals; over devices the first
      alone, of this device's rows.

    Cost: that of `fn` on all pairs, thrice for a gradient; memory of rows, columns, sums and some
      tiles. Over devices few columns are gathered, and of many each device holds its share.
    """
    n, m, devices = _size(rows), _size(cols), _devices.num_devices(axis_name)
    if axis_name is not None and devices > 1:
        place = lax.axis_index(axis_name)
        if n * m * devices <= DENSE_PAIRS:
            part = fn(shared, place * n, rows, _devices.gather(cols, axis_name))
        else:
            part = _ring(fn, axis_name, *_devices.varying((shared, rows, cols), place))
        return PairSums(rows=part.rows)
    if n * m <= DENSE_PAIRS:
        return fn(shared, 0, rows, cols)
    shared, rows, cols = _devices.varying((shared, rows, cols))
    return _stream(fn, shared, rows, cols)


def stream_symmetric(fn: TileFn, shared: PyTree, points: PyTree) -> PairSums:
    """Adds up `fn` over the tiles on and above the diagonal of points x points.

    A tile of a set with itself (shift 0) must return in its rows, and not in its columns, what its
    pairs contribute; any other (shift None) stands for its mirror image too.

    Args:
      fn: the tile function; see :func:`stream` for padding. Its row and column sums have one shape.
      shared: what every tile needs; a pytree.
      points: what belongs to the points; a pytree of arrays of shape (n, ...).

    Returns:
      Row sums of shape (n, ...), in which the column sums are included, and totals.

    Cost: about half of :func:`stream`'s.
    """
    if _size(points) ** 2 <= DENSE_PAIRS:
        part = fn(shared, 0, points, points)
        return PairSums(rows=_add(part.rows, part.cols), total=part.total)
    shared, points = _devices.varying((shared, points))
    return _stream_symmetric(fn, shared, points)


def go_round(
    meet: Callable[[Array, PyTree, PyTree, PyTree], tuple[PyTree, PyTree]],
    kept: PyTree,
    cols: PyTree,
    start: PyTree,
    axis_name: str,
) -> tuple[PyTree, PyTree]:
    """Sends columns past all devices, a part of every share at a time.

    Args:
      meet: (index of the first column, kept, columns, what travels with them) -> what is kept, and
        what travels on; columns that pad are zeros.
      kept: what stays on the device, varying over the axis.
      cols: this device's share; a pytree of arrays of shape (m, ...), likewise.
      start: what travels with the columns of a part, at first.
      axis_name: of the devices.

    Returns:
      What is kept at last, and what came back with this device's columns; shape (m, ...).
    """
    m, devices, place = _size(cols), _devices.num_devices(axis_name), lax.axis_index(axis_name)

    def send(carry: PyTree, part: PyTree) -> tuple[PyTree, PyTree]:
        first_col, kept = carry

        def pass_by(turn: Array, carry: PyTree) -> PyTree:
            kept, part, beside = carry
            kept, beside = meet((place - turn) % devices * m + first_col, kept, part, beside)
            return kept, *_devices.passed_on((part, beside), axis_name)

        kept, _, beside = lax.fori_loop(0, devices, pass_by, (kept, part, start))
        return (first_col + _size(part), kept), beside

    (_, kept), beside = lax.scan(send, (jnp.int32(0), kept), _parts(cols))
    return kept, joined(beside, m)


def split(tree: PyTree, largest: int) -> PyTree:
    """Splits leading axes into equal tiles of at most `largest`, padded with zeros.

    Args:
      tree: pytree of arrays of shape (n, ...).
      largest: most entries of a tile.

    Returns:
      Pytree of arrays of shape (number of tiles, size of a tile, ...).
    """
    size = _size(tree)
    count = -(-size // largest)
    width = -(-size // count)

    def split_array(array: Array) -> Array:
        padding = [(0, count * width - size)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(count, width, *array.shape[1:])

    return jax.tree.map(split_array, tree)


def joined(tree: PyTree, size: int) -> PyTree:
    """Joins tiles; undoes :func:`split`.

    Args:
      tree: pytree of arrays of shape (number of tiles, size of a tile, ...).
      size: n.

    Returns:
      Pytree of arrays of shape (n, ...).
    """
    return jax.tree.map(lambda t: t.reshape(-1, *t.shape[2:])[:size], tree)


# -------------------------------------------------------------------------------- rows x columns


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stream(fn: TileFn, shared: PyTree, rows: PyTree, cols: PyTree) -> PairSums:
    return _swept(fn, jnp.int32(0), shared, rows, cols)


def _swept(fn: TileFn, first: Array, shared: PyTree, rows: PyTree, cols: PyTree) -> PairSums:
    """Adds up the tiles; `first` is the index of the first row minus that of the first column."""
    return _asked(fn, lambda one: _tile_by_tile(one, first, shared, rows, cols), shared, rows, cols)


def _tile_by_tile(fn: TileFn, first: Array, shared: PyTree, rows: PyTree, cols: PyTree) -> PairSums:
    n, m = _size(rows), _size(cols)
    row_tiles, col_tiles = split(rows, TILE_ROWS), split(cols, TILE_COLS)
    height, width = (jax.tree.leaves(tiles)[0].shape[1] for tiles in (row_tiles, col_tiles))
    zeros = _zero_sums(fn, shared, row_tiles, col_tiles)

    def add_row(carry: PyTree, row_tile: PyTree) -> tuple[PyTree, PyTree]:
        first_row, col_sums, total = carry

        def add_tile(carry: PyTree, col_tile: PyTree) -> tuple[PyTree, PyTree]:
            first_col, row_sums, total = carry
            part = fn(shared, first_row - first_col, row_tile, col_tile)
            added = _add((row_sums, total), (part.rows, part.total))
            return (first_col + width, *added), part.cols

        start = (jnp.int32(0), zeros.rows, total)
        (_, row_sums, total), parts = lax.scan(add_tile, start, col_tiles)
        return (first_row + height, _add(col_sums, parts), total), row_sums

    num_col_tiles = jax.tree.leaves(col_tiles)[0].shape[0]
    col_zeros = jax.tree.map(lambda z: jnp.broadcast_to(z, (num_col_tiles, *z.shape)), zeros.cols)
    start = (first, col_zeros, zeros.total)
    (_, col_sums, total), row_sums = lax.scan(add_row, start, row_tiles)
    return PairSums(joined(row_sums, n), joined(col_sums, m), total)


def _stream_forward(
    fn: TileFn, shared: PyTree, rows: PyTree, cols: PyTree
) -> tuple[PairSums, PyTree]:
    return _stream(fn, shared, rows, cols), (shared, rows, cols)


def _stream_backward(fn: TileFn, residuals: PyTree, cotangent: PairSums) -> PyTree:
    back = _stream(_transposed(fn), *_with_cotangents(residuals, cotangent))
    return back.total[0], back.rows[0], back.cols[0]


_stream.defvjp(_stream_forward, _stream_backward)


# ----------------------------------------------------------------- rows x columns of many devices


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ring(fn: TileFn, axis_name: str, shared: PyTree, rows: PyTree, cols: PyTree) -> PairSums:
    first = lax.axis_index(axis_name) * _size(rows)
    part = jax.tree.map(lambda t: t[0], _parts(cols))
    shapes = jax.eval_shape(functools.partial(_swept, fn), first, shared, rows, part)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    zeros = _devices.varying(zeros, shared, rows, cols)

    def meet(
        first_col: Array, kept: PyTree, part: PyTree, at_cols: PyTree
    ) -> tuple[PyTree, PyTree]:
        sums = _add(
            PairSums(kept.rows, at_cols, kept.total),
            _swept(fn, first - first_col, shared, rows, part),
        )
        return sums._replace(cols=None), sums.cols

    kept, at_cols = go_round(meet, zeros._replace(cols=None), cols, zeros.cols, axis_name)
    return kept._replace(cols=at_cols)


def _parts(cols: PyTree) -> PyTree:
    """Returns the parts of a share, as they travel, on a leading axis."""
    return split(cols, max(TILE_COLS, -(-_size(cols) // RING_PARTS)))


def _ring_forward(
    fn: TileFn, axis_name: str, shared: PyTree, rows: PyTree, cols: PyTree
) -> tuple[PairSums, PyTree]:
    return _ring(fn, axis_name, shared, rows, cols), (shared, rows, cols)


def _ring_backward(fn: TileFn, axis_name: str, residuals: PyTree, cotangent: PairSums) -> PyTree:
    back = _ring(_transposed(fn), axis_name, *_with_cotangents(residuals, cotangent))
    return back.total[0], back.rows[0], back.cols[0]


_ring.defvjp(_ring_forward, _ring_backward)


# ------------------------------------------------------------------------------- points x points


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stream_symmetric(fn: TileFn, shared: PyTree, points: PyTree) -> PairSums:
    return _asked(fn, lambda one: _symmetric_tiles(one, shared, points), shared, points, points)


def _symmetric_tiles(fn: TileFn, shared: PyTree, points: PyTree) -> PairSums:
    tiles = split(points, TILE_ROWS)
    num_tiles = jax.tree.leaves(tiles)[0].shape[0]
    zeros = _zero_sums(fn, shared, tiles, tiles)

    def tile(index: Array) -> PyTree:
        return jax.tree.map(lambda t: lax.dynamic_index_in_dim(t, index, keepdims=False), tiles)

    def add_row(i: Array, carry: PyTree) -> PyTree:
        rows = tile(i)

        def add_tile(j: Array, carry: PyTree) -> PyTree:
            sums, row_sums, total = carry
            part = fn(shared, None, rows, tile(j))
            return _add_at(sums, j, part.cols), *_add((row_sums, total), (part.rows, part.total))

        sums, total = carry
        own = fn(shared, 0, rows, rows)
        start = (sums, _add(own.rows, own.cols), _add(total, own.total))
        sums, row_sums, total = lax.fori_loop(i + 1, num_tiles, add_tile, start)
        return _add_at(sums, i, row_sums), total

    start = jax.tree.map(lambda z: jnp.broadcast_to(z, (num_tiles, *z.shape)), zeros.rows)
    sums, total = lax.fori_loop(0, num_tiles, add_row, (start, zeros.total))
    return PairSums(rows=joined(sums, _size(points)), total=total)


def _symmetric_forward(fn: TileFn, shared: PyTree, points: PyTree) -> tuple[PairSums, PyTree]:
    return _stream_symmetric(fn, shared, points), (shared, points)


def _symmetric_backward(fn: TileFn, residuals: PyTree, cotangent: PairSums) -> PyTree:
    shared, points = residuals
    tile, shared = _transposed(fn), (shared, cotangent.total)
    back = _stream_symmetric(tile, shared, (points, cotangent.rows))
    return back.total[0], back.rows[0]


_stream_symmetric.defvjp(_symmetric_forward, _symmetric_backward)


# ----------------------------------------------------------------------------------------- both


def _asked(
    fn: TileFn, of: Callable[[TileFn], PairSums], shared: PyTree, rows: PyTree, cols: PyTree
) -> PairSums:
    """Returns `of` a tile function, which is the other of two at once where the rare one is not."""
    if not isinstance(fn, Either):
        return of(fn)
    either = fn
    possible = either.possible(shared, rows, cols)
    return _distances.choose(possible, lambda: of(either), lambda: of(either.if_false))


def _transposed(fn: TileFn) -> TileFn:
    """The cotangents of one tile of `fn`: again a tile, so that the gradient streams as well."""
    if isinstance(fn, Either):
        either = fn

        def condition(shared: PyTree, shift: Any, rows: PyTree, cols: PyTree) -> bool | Array:
            return either.condition(shared[0], shift, rows[0], cols[0])

        def possible(shared: PyTree, rows: PyTree, cols: PyTree) -> bool | Array:
            return either.possible(shared[0], rows[0], cols[0])

        if_true, if_false = _transposed(fn.if_true), _transposed(fn.if_false)
        return Either(possible, condition, if_true, if_false)

    def transposed(shared: PyTree, shift: Any, rows: PyTree, cols: PyTree) -> PairSums:
        (shared, total_bar), (rows, rows_bar), (cols, cols_bar) = shared, rows, cols
        _, pull = jax.vjp(lambda s, r, c: fn(s, shift, r, c), shared, rows, cols)
        shared_bar, rows_bar, cols_bar = pull(PairSums(rows_bar, cols_bar, total_bar))
        return PairSums(rows=(rows_bar,), cols=(cols_bar,), total=(shared_bar,))

    return transposed


def _with_cotangents(residuals: PyTree, cotangent: PairSums) -> PyTree:
    """The arguments of the transposed tile function."""
    shared, rows, cols = residuals
    return (shared, cotangent.total), (rows, cotangent.rows), (cols, cotangent.cols)


def _zero_sums(fn: TileFn, shared: PyTree, row_tiles: PyTree, col_tiles: PyTree) -> PairSums:
    """Zeros shaped like what `fn` returns for one tile."""
    rows, cols = jax.tree.map(lambda t: t[0], (row_tiles, col_tiles))
    shapes = jax.eval_shape(lambda s, r, c: fn(s, 0, r, c), shared, rows, cols)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return _devices.varying(zeros, shared, rows, cols)


def _size(tree: PyTree) -> int:
    return jax.tree.leaves(tree)[0].shape[0]


def _add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


def _add_at(stack: PyTree, index: Array, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda s, t: s.at[index].add(t), stack, tree)
