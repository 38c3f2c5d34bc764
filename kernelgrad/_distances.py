"""Squared distances between points: by a matmul where that keeps the digits, else by differences.

The matmul |a|^2 + |b|^2 - 2 a.b of centred points errs by some eps (|a|^2 + |b|^2). A pair is lost
where that is more than the kernel bears and more than a small part of the distance itself: such as
two neighbours in a cluster far from the middle. A tile with such a pair is computed from the
differences of the coordinates as they came, which are exact; and so are a few points.

A point that is not finite spoils its own pairs alone: the middle and the unit are those of the
others, and what may be lost is asked of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from kernelgrad import _devices, _numeric
from kernelgrad.types import Array, Kernel

DIRECT_DIMENSIONS = 3  # up to here differences are as cheap as a matmul
FEW_DIFFERENCES = 1 << 15  # up to here, over all pairs, they are cheaper than a choice

_BORNE = 24  # epsilons of k(0) by which rounding may move a kernel
_RELATIVE = 1e-5  # error of a squared distance that no radial kernel feels
_CHANGED = 0.3  # share of k(0) by which a kernel has changed over its own length
_LOOKED_AT = 512  # points, of which the outermost say how far apart neighbours are
_OUTERMOST = 8
_SPREAD = 255  # values whose median stands for that of all; odd, so that it is one of them
_WITHIN = np.random.default_rng(0).random(_SPREAD)  # place of each in its 255th of all values
_ROUNDED_OFF = 4  # epsilons of the largest norm by which a sum of centred coordinates may err

T = TypeVar("T")


class Bare(NamedTuple):
    """Points as they travel between devices; :func:`moved` makes of them what pairs need.

    Attributes:
      raw: as they came, in at least float32; shape (n, d).
      real: 1, and 0 in rows that pad a tile; shape (n,).
    """

    raw: Array
    real: Array


class Points(NamedTuple):
    """Points as pairs need them.

    Attributes:
      raw: as they came, in at least float32; shape (n, d).
      centred: less a middle that both sides of the pairs share; shape (n, d).
      sq_norms: squared norms of the centred ones; shape (n,).
    """

    raw: Array
    centred: Array
    sq_norms: Array

    def unit(self) -> Array:
        """Returns a power of two near the median size of a point; shape ().

        In this unit of length no product of lengths overflows, and none of them loses a digit. A
        size is the largest coordinate, whose square may leave the range.
        """
        sizes = jnp.max(jnp.abs(lax.stop_gradient(self.centred)), axis=1)
        middle = median_of_some(sizes)
        largest = jnp.max(jnp.where(jnp.isfinite(sizes), sizes, 0))
        return _numeric.power_of_two(jnp.where(middle > 0, middle, largest))


def prepare(
    x: Array, y: Array | None = None, axis_name: str | None = None
) -> tuple[Points, Points]:
    """Returns both sides of the pairs, moved so that a middle of the second is 0.

    Args:
      x: points; shape (n, d), floating.
      y: points; shape (m, d). None: x.
      axis_name: if set, all devices take the middle of the first one's y.

    Returns:
      x and y. The middle carries no gradient.
    """
    x = _numeric.wide(x)
    others = x if y is None else _numeric.like(y, x)
    centre = middle(others, axis_name)
    rows = moved(x, centre)
    return rows, rows if y is None else moved(others, centre)


def bare(x: Array, y: Array | None = None) -> tuple[Bare, Bare]:
    """Returns both sides of the pairs of :func:`prepare`, before they are moved.

    Args:
      x: points; shape (n, d), floating.
      y: points; shape (m, d). None: x.

    Returns:
      x and y.
    """
    x = _numeric.wide(x)
    rows = Bare(x, jnp.ones_like(x[:, 0]))
    if y is None:
        return rows, rows
    y = _numeric.like(y, x)
    return rows, Bare(y, jnp.ones_like(y[:, 0]))


def middle(points: Array, axis_name: str | None = None) -> Array:
    """Returns a middle of the points, of the first device's if they are of many.

    Args:
      points: shape (n, d).
      axis_name: of the devices; None: there is one.

    Returns:
      Middle, shape (1, d), without a gradient.
    """
    return _devices.first(_middle(points), axis_name)


def moved(points: Array | Bare, centre: Array) -> Points:
    """Returns the points as pairs need them.

    Args:
      points: shape (n, d), at least float32.
      centre: what is to be 0; shape (1, d).
    """
    raw = points.raw if isinstance(points, Bare) else points
    centred = raw - centre
    if isinstance(points, Bare):
        centred *= points.real[:, None]
    return Points(raw, centred, sq_norms(centred))


def median_of_some(values: Array) -> Array:
    """Returns the median of the finite ones of some values, NaN where none is, without a gradient.

    To sort thousands costs. There is one in each 255th of all, at a place drawn once: places at a
    fixed step, or at multiples of the golden ratio, may all be of one kind where kinds take turns.

    Args:
      values: shape (n,).

    Returns:
      Median, shape ().
    """
    size = values.shape[0]
    if size > _SPREAD:
        values = values[((np.arange(_SPREAD) + _WITHIN) / _SPREAD * size).astype(np.int32)]
    values = lax.stop_gradient(values)
    return jnp.nanmedian(jnp.where(jnp.isfinite(values), values, jnp.nan))


class InUnits(NamedTuple):
    """A radial kernel of points that are given in another unit of length.

    Attributes:
      kernel: of the points as they came.
      square: of the unit; shape ().
    """

    kernel: Kernel
    square: Array

    def profile(self, sq_dist: Array) -> Array:
        """Returns k at squared distances in the unit, elementwise."""
        return self.kernel.profile(sq_dist * self.square)


def in_unit(kernel: Kernel, unit: Array) -> Kernel:
    """Returns the kernel of points in another unit of length.

    Args:
      kernel: radial, with or without a method `in_unit`, under which it is one of its own kind,
        whose derivatives are of the order of 1 in a unit near its lengthscale.
      unit: shape ().
    """
    if hasattr(kernel, "in_unit"):
        return kernel.in_unit(unit)
    return InUnits(kernel, jnp.square(unit))


def in_own_unit(
    kernel: Kernel, x: Array, y: Array | None = None
) -> tuple[Kernel, Array, Array | None, Array]:
    """Returns kernel and points in a unit of length in which no derivative leaves float32.

    The derivative of a sum of gradients has k'' in it, a lengthscale to the power of -4: beyond
    2^20 or below 2^-20 the unit is a power of two near the largest lengthscale, else it is 1.

    Args:
      kernel: radial or of features; one without a method `in_unit` stays in the unit 1, as it is.
      x: points; shape (n, d), at least float32.
      y: points, likewise, or None.

    Returns:
      Kernel, x, y, and the unit, shape (), dtype of x, without a gradient.
    """
    if not hasattr(kernel, "in_unit"):
        return kernel, x, y, jnp.ones((), x.dtype)
    lengthscales: Array = kernel.lengthscales  # type: ignore[attr-defined]
    exponent = jnp.frexp(lax.stop_gradient(jnp.max(lengthscales)))[1]
    exponent = jnp.where(jnp.abs(exponent) > 20, jnp.clip(exponent, -60, 60), 0)
    unit = jnp.ldexp(jnp.ones((), x.dtype), exponent)
    return in_unit(kernel, unit), x / unit, None if y is None else y / unit, unit


def _middle(x: Array) -> Array:
    """The median of three medians of three points in each coordinate; shape (1, d).

    No outlier moves it, as it would the mean. Its coordinates are those of points, so that a
    fused multiply-add cannot centre two copies of a point differently. What is not finite counts as
    an outlier at 0; should it be most, no pair is lost by a worse middle, for those are looked at.
    """

    def median(a: Array, b: Array, c: Array) -> Array:
        return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))

    rows = np.linspace(0, x.shape[0] - 1, 9).astype(int).tolist()  # no array, for shard_map's types
    nine = jnp.stack([x[row] for row in rows])
    nine = jnp.where(jnp.isfinite(nine), nine, 0)
    return median(*jnp.split(median(*jnp.split(nine, 3)), 3))


def between(
    kernel: Kernel | None,
    rows: Points,
    cols: Points,
    shift: Any = None,
    *,
    exact: bool | Array | None = None,
) -> Array:
    """Returns squared distances that are never negative, and as exact as the kernel asks.

    Args:
      kernel: radial, what the distances are for. None: they are exact in themselves.
      rows: from :func:`prepare`; shape (n, d).
      cols: its other side; shape (m, d).
      shift: row a and column a + shift are one point, at distance 0. None: no point is in both.
      exact: from :func:`lost`, where the caller knows it; None: asked for here.

    Returns:
      Squared distances, shape (n, m), directly or by one matmul.
    """
    if rows.raw.shape[1] <= DIRECT_DIMENSIONS:
        return direct(rows, cols)
    if exact is None:
        exact = lost(kernel, rows, cols, shift)
    exactly = jax.checkpoint(direct)
    sq_dist = choose(exact, lambda: exactly(rows, cols), lambda: products(rows, cols))
    sq_dist += lax.stop_gradient(jnp.where(sq_dist < 0, -sq_dist, 0))  # keeps d/dx at coincidence
    return at_same_point(sq_dist, shift, 0)


def products(rows: Points, cols: Points) -> Array:
    """Returns squared distances by a full-precision matmul, negative where rounding makes them so.

    Args:
      rows: from :func:`prepare`; shape (n, d).
      cols: its other side; shape (m, d).

    Returns:
      Squared distances, shape (n, m).
    """
    (n, d), m = rows.centred.shape, cols.centred.shape[0]
    if n * m <= (n + m) * d:
        norms = rows.sq_norms[:, None] + cols.sq_norms[None, :]
        return norms - 2 * _numeric.dot(rows.centred, cols.centred.T)
    left = [-2 * rows.centred, rows.sq_norms[:, None], jnp.ones_like(rows.sq_norms)[:, None]]
    right = [cols.centred, jnp.ones_like(cols.sq_norms)[:, None], cols.sq_norms[:, None]]
    # of more pairs than coordinates the norms go into the matmul: a fifth less time than adding
    return _numeric.dot(jnp.concatenate(left, axis=1), jnp.concatenate(right, axis=1).T)


def difference_sums(factors: Array, rows: Points, cols: Points, *, axis: int) -> Array:
    r"""Returns the sums :math:`\sum f_{ij} (y_j - x_i)` of differences of coordinates.

    Args:
      factors: f; shape (n, m).
      rows: x_i, from :func:`prepare`; shape (n, d).
      cols: y_j, its other side; shape (m, d).
      axis: 1 for sums over j, at the rows; 0 for sums over i, at the columns.

    Returns:
      Sums, shape (n, d) or (m, d).

    Cost: O(n m d) time, O(n m) memory, its gradient's too.
    """
    if _few(rows.raw, cols.raw):
        return jnp.sum(factors[:, :, None] * (cols.raw[None, :] - rows.raw[:, None]), axis=axis)

    @jax.checkpoint
    def of(coordinate: tuple[Array, Array]) -> Array:
        x, y = coordinate
        return jnp.sum(factors * (y[None, :] - x[:, None]), axis=axis)

    return lax.map(of, (rows.raw.T, cols.raw.T)).T


def direct(rows: Points, cols: Points) -> Array:
    """Returns squared distances by differences of coordinates, exact to a few epsilons each.

    Args:
      rows: from :func:`prepare`; shape (n, d).
      cols: its other side; shape (m, d).

    Returns:
      Squared distances, shape (n, m). Between finite points far apart they may be infinite.

    Cost: O(n m d) time, some four times that of the matmul; O(n m) memory, its gradient's too.
    """
    if rows.raw.shape[1] <= DIRECT_DIMENSIONS and not _few(rows.raw, cols.raw):
        sq_dist = jnp.zeros((rows.raw.shape[0], cols.raw.shape[0]), rows.raw.dtype)
        for a, b in zip(rows.raw.T, cols.raw.T, strict=True):
            sq_dist += jnp.square(_differences(a, b))
        return sq_dist
    return over_coordinates(lambda a, b: jnp.square(a - b), rows.raw, cols.raw)


def over_coordinates(term: Callable[[Any, Any], Array], rows: Any, cols: Any) -> Array:
    """Adds up a function of one coordinate of all pairs over the coordinates, one at a time.

    Args:
      term: (of_row, of_column) -> summand, elementwise; it sees coordinates of the arrays of rows
        and cols, in shapes that broadcast.
      rows: array of shape (n, d), or a pytree of such.
      cols: likewise; shape (m, d).

    Returns:
      The sums, shape (n, m).
    """

    def of(coordinates: Any) -> Array:
        a, b = coordinates
        return term(jax.tree.map(lambda v: v[:, None], a), jax.tree.map(lambda v: v[None, :], b))

    if _few(jax.tree.leaves(rows)[0], jax.tree.leaves(cols)[0]):
        return jnp.sum(of((rows, cols)), axis=-1)

    @jax.checkpoint
    def add(total: Array, coordinates: Any) -> tuple[Array, None]:
        return total + of(coordinates), None

    coordinates = jax.tree.map(jnp.transpose, (rows, cols))
    first, others = (jax.tree.map(lambda v, s=s: v[s], coordinates) for s in (0, slice(1, None)))
    return lax.scan(add, of(first), others)[0]


def _few(rows: Array, cols: Array) -> bool:
    """Returns whether differences of all coordinates of all pairs may be held at once."""
    return rows.size * cols.shape[0] <= FEW_DIFFERENCES


def _differences(a: Array, b: Array) -> Array:
    """Returns a_i - b_j by a matmul of inner dimension 2: exact, and faster than broadcasts."""
    left, right = jnp.stack([a, jnp.ones_like(a)], axis=1), jnp.stack([jnp.ones_like(b), -b])
    return _numeric.dot(left, right)


def lost(kernel: Kernel | None, rows: Points, cols: Points, shift: Any = None) -> bool | Array:
    """Returns whether pairs are to be computed from differences, as the matmul loses one.

    Args:
      kernel: radial, what the distances are for. None: they are to be exact in themselves.
      rows: from :func:`prepare`; shape (n, d).
      cols: its other side; shape (m, d).
      shift: row a and column a + shift are one point, which is no pair. None: there is none.

    Returns:
      Whether there is a pair whose distance errs by more than 1e-5 of itself, and by more than
      moves the kernel by 24 epsilons of k(0), where that is 0 by anything; int32, shape (), 0 or 1,
      the same over a vmap. A plain True for points so few that asking costs more.

    Cost: O(n + m) where the points are within some five lengthscales of their middle, else a
      matmul.
    """
    if _few(rows.raw, cols.raw):
        return True
    rows, cols, kernel, shift = _devices.varying(lax.stop_gradient((rows, cols, kernel, shift)))

    def look() -> Array:
        unit = jnp.finfo(rows.raw.dtype).eps
        rounding = unit * (rows.sq_norms[:, None] + cols.sq_norms[None, :])
        bad = _moves(kernel, rounding) & ~(products(rows, cols) >= rounding / _RELATIVE)
        return is_set(jnp.any(at_same_point(bad, shift, False)))

    possible = may_lose(kernel, rows, cols)
    return choose(possible, look, lambda: possible)


def may_lose(kernel: Kernel | None, rows: Points, cols: Points) -> Array:
    """Returns whether :func:`lost` may be true of any tile of these points.

    Args:
      kernel: radial, what the distances are for. None: they are to be exact in themselves.
      rows: from :func:`prepare`; shape (n, d).
      cols: its other side; shape (m, d).

    Returns:
      int32, shape (), 0 or 1, the same over a vmap.

    Cost: O(n + m).
    """
    rows, cols, kernel = _devices.varying(lax.stop_gradient((rows, cols, kernel)))
    unit = jnp.finfo(rows.raw.dtype).eps
    ends = (jnp.max(jnp.where(jnp.isnan(a), 0, a)) for a in (rows.sq_norms, cols.sq_norms))
    farthest = unit * jnp.add(*ends)
    return is_set(_moves(kernel, farthest))


def _moves(kernel: Kernel | None, rounding: Array) -> Array:
    """Returns whether an error of a squared distance moves the kernel by more than it bears."""
    if kernel is None:
        return rounding > 0
    unit = jnp.finfo(rounding.dtype).eps
    peak = kernel.profile(jnp.zeros((), rounding.dtype))
    return jnp.abs(peak - kernel.profile(rounding)) > _BORNE * unit * jnp.abs(peak)


def far_apart(rows: Points, cols: Points, borne: Array) -> Array:
    """Returns whether the matmul may err by more than `borne` in some squared distance.

    Args:
      rows: from :func:`prepare`; shape (n, d).
      cols: its other side; shape (m, d).
      borne: error of a squared distance that does no harm; shape ().

    Returns:
      int32, shape (), 0 or 1, the same over a vmap.
    """
    unit = jnp.finfo(rows.raw.dtype).eps
    far = ~(unit * (jnp.max(rows.sq_norms) + jnp.max(cols.sq_norms)) < borne)
    return is_set(far)


def blurs(kernel: Kernel, rows: Points, cols: Points) -> Array:
    """Returns whether the kernel changes over lengths that are :func:`blurred`.

    Args:
      kernel: radial.
      rows: from :func:`prepare`; shape (n, d).
      cols: its other side; shape (m, d).

    Returns:
      int32, shape (), 0 or 1, the same over a vmap.
    """
    rows, cols, kernel = _devices.varying(lax.stop_gradient((rows, cols, kernel)))
    sq_norm = jnp.maximum(jnp.max(rows.sq_norms), jnp.max(cols.sq_norms))
    eps = jnp.finfo(sq_norm.dtype).eps
    peak = kernel.profile(jnp.zeros_like(sq_norm))
    there = kernel.profile(sq_norm * (_ROUNDED_OFF * eps / _RELATIVE) ** 2)
    return is_set(~(jnp.abs(peak - there) <= _CHANGED * jnp.abs(peak)))


def apart(*sides: Points, least: Array | None = None) -> Array:
    """Returns whether points are in clusters apart, for their size: neighbours are :func:`blurred`.

    Args:
      *sides: from :func:`prepare`, of one middle; shapes (n, d).
      least: length that is not blurred by neighbours that are closer; shape (). None: 0.

    Returns:
      int32, shape (), 0 or 1, the same over a vmap.

    Cost: O(n d): the distance to a nearest other is the median of those of some outermost points.
    """
    sides, least = _devices.varying(lax.stop_gradient((sides, least)))
    stride = -(-sum(side.sq_norms.shape[0] for side in sides) // _LOOKED_AT)
    some = jax.tree.map(lambda *arrays: jnp.concatenate([a[::stride] for a in arrays]), *sides)
    size, parts = some.sq_norms.shape[0], min(_OUTERMOST, some.sq_norms.shape[0])
    padded = jnp.pad(some.sq_norms, (0, -size % parts), constant_values=-1).reshape(-1, parts)
    outermost = jnp.argmax(padded, axis=0) * parts + jnp.arange(parts)  # of every parts-th
    sq_dist = products(jax.tree.map(lambda a: a[outermost], some), some)
    is_itself = outermost[:, None] == jnp.arange(size, dtype=outermost.dtype)[None]
    gap = _numeric.root(jnp.median(jnp.min(jnp.where(is_itself, jnp.inf, sq_dist), axis=1)))
    length = gap if least is None else jnp.maximum(gap, least)
    farthest = jnp.max(jnp.stack([jnp.max(side.sq_norms) for side in sides]))
    return blurred(_numeric.root(farthest), length)


def blurred(farthest: Array, length: Array) -> Array:
    """Returns whether rounded coordinates lose the digits of differences of a length.

    Args:
      farthest: the largest of the coordinates that are added up, or of their norms; shape ().
      length: of the differences; shape ().

    Returns:
      int32, shape (), 0 or 1, the same over a vmap.
    """
    farthest, length = _devices.varying(lax.stop_gradient((farthest, length)))
    rounding = _ROUNDED_OFF * jnp.finfo(farthest.dtype).eps * farthest
    return is_set(~(rounding <= _RELATIVE * length))


def choose(condition: bool | Array, if_true: Callable[[], T], if_false: Callable[[], T]) -> T:
    """Returns what one of two functions of no arguments returns; only that one runs.

    Args:
      condition: int32, shape (), 0 or 1; or plain.
      if_true: called where it is 1.
      if_false: called where it is 0.

    Returns:
      A pytree.
    """
    if isinstance(condition, bool):
        return if_true() if condition else if_false()
    return lax.cond(condition == 1, if_true, if_false)


def is_set(flag: Array) -> Array:
    """Returns a flag for :func:`choose`: under vmap one for the batch, whether any is set.

    Args:
      flag: bool, shape ().

    Returns:
      int32, shape (), 0 or 1.
    """
    return _any(lax.stop_gradient(flag).astype(jnp.int32))


@custom_vmap
def _any(flag: Array) -> Array:
    return flag


@_any.def_vmap
def _any_of_batch(axis_size: int, in_batched: list[bool], flags: Array) -> tuple[Array, bool]:
    del axis_size, in_batched
    return _any(jnp.max(flags)), False


def at_same_point(tile: Array, shift: int | Array | None, value: float | Array) -> Array:
    """Returns a tile of pairs with a value where the row and the column are one point.

    Args:
      tile: shape (n, m).
      shift: row a and column a + shift are one point. None: no point is in both.
      value: what the pair of a point with itself is; a number, or shape (n, 1).

    Returns:
      Tile, shape (n, m).
    """
    if shift is None:
        return tile
    rows, cols = (lax.broadcasted_iota(jnp.int32, tile.shape, axis) for axis in (0, 1))
    return jnp.where(rows + shift == cols, value, tile)


def sq_norms(points: Array) -> Array:
    r"""Returns the squared norms :math:`|x_i|^2`.

    Args:
      points: x_i; shape (n, d).

    Returns:
      Squared norms, shape (n,), in squared units of the points.
    """
    return jnp.sum(jnp.square(points), axis=1)
