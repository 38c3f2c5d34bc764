"""Folding pairs: what is no sum, such as a greatest one, at each row, without a gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _devices, _tiles
from kernelgrad.types import Array, PyTree

FoldFn = Callable[[Any, PyTree, PyTree, PyTree], PyTree]


def fold(
    fn: FoldFn,
    kept: PyTree,
    rows: PyTree,
    cols: PyTree,
    axis_name: str | None = None,
    *,
    pairs_at_once: int,
) -> PyTree:
    """Folds all columns into what is kept at each row, some rows at a time.

    Rows, and over devices columns, may be padded with zeros. On one device `fn` sees all columns at
    once; over devices few are gathered, and many go round the ring of :func:`_tiles.go_round`.

    Args:
      fn: (shift, rows, kept, columns) -> what is kept at these rows, folded with these columns;
        the shift as in :func:`_tiles.stream`.
      kept: at first; a pytree of arrays of shape (n, ...).
      rows: what belongs to the rows; a pytree of arrays of shape (n, ...).
      cols: what belongs to the columns; a pytree of arrays of shape (m, ...).
      axis_name: if set, the columns are the union over all devices, and indices run over it.
      pairs_at_once: most pairs that one call sees, over all devices.

    Returns:
      What is kept at last, of this device's rows.

    Cost: that of `fn` on all pairs; memory of rows, columns, what is kept, and pairs at once.
    """
    devices = _devices.num_devices(axis_name)
    n, m = (jax.tree.leaves(side)[0].shape[0] for side in (rows, cols))

    def meet(first: Any, kept: PyTree, cols: PyTree) -> PyTree:
        width = jax.tree.leaves(cols)[0].shape[0]
        row_tiles, tiles = _tiles.split((rows, kept), max(1, pairs_at_once // (devices * width)))
        count, height = jax.tree.leaves(row_tiles)[0].shape[:2]

        def of(block: tuple[Array, PyTree, PyTree]) -> PyTree:
            place, some, kept = block
            return fn(first + place, some, kept, cols)

        places = jnp.arange(0, count * height, height, dtype=jnp.int32)
        return _tiles.joined(lax.map(of, (places, row_tiles, tiles)), n)

    if axis_name is None or devices == 1:
        return meet(0, kept, cols)
    first = lax.axis_index(axis_name) * n
    if n * m * devices <= _tiles.DENSE_PAIRS:
        return meet(first, kept, _devices.gather(cols, axis_name))
    kept, rows, cols = _devices.varying((kept, rows, cols), first)

    def met(first_col: Array, kept: PyTree, part: PyTree, _: None) -> tuple[PyTree, None]:
        return meet(first - first_col, kept, part), None

    return _tiles.go_round(met, kept, cols, None, axis_name)[0]
