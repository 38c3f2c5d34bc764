"""The exact median of all pairwise squared distances, without storing or sorting them."""

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _devices, _distances, _numeric, _tiles
from kernelgrad._distances import Points
from kernelgrad.types import Array, PyTree

_TILE = 512
_LIMB = 20  # numbers of pairs exceed int32: counts are (high, low) with low < 2^_LIMB
_SAMPLE = 64  # points whose pairs place the first pivots
_LOW = 0.3  # share of the sampled pairs that stay below the median, whatever the sample
_RELATIVE = 1e-5  # error that a distance may have
_ROUNDING = 8  # above the error of |a|^2 + |b|^2 - 2 a.b, in units of eps (|a|^2 + |b|^2)
_AT_ONCE = 3  # pivots, whose counts over the rows of a tile share an integer,
_BITS = 10  # in so many bits each: more than 512 rows ask for
_FEW = 256  # distances, which the last pass takes out
_GROUPS = 16  # of the rows of a tile, of which each column keeps two distances

_Count = tuple[Array, Array]


def median_squared_distance(
    x: Array, y: Array | None = None, *, axis_name: str | None = None
) -> Array:
    r"""Returns the exact median of :math:`|u_i - u_j|^2` over the pairs i < j of x pooled with y.

    The order statistic is found by counting the distances below a few pivots, pass by pass, until
    few are left. For an even number of pairs it is the mean of the two middle values. Carries no
    gradient.

    Args:
      x: points; shape (n, d), floating.
      y: points pooled with x; shape (m, d).
      axis_name: if set, the pool is the union over all devices.

    Returns:
      The median, shape (), in squared units of x; at least float32. It is 0 when more than half
      of the pairs coincide to rounding, infinity when it overflows, and NaN when a point is not
      finite.

    Raises:
      ValueError: wrong rank or dtype, or fewer than two points.

    Cost: 3 to 5 passes of O((n + m)^2 d / 2) time for most data, at most 18 (34 in float64); memory
      O((n + m) d), with axis_name that of this device's share, the pairs shared evenly. Up to 512
      points on one device, one pass and O((n + m)^2) memory.

    Example:
      >>> from kernelgrad import median
      >>> x = jnp.array([[0.0], [1.0], [3.0]])  # squared distances 1, 4, 9
      >>> float(median.median_squared_distance(x))
      4.0
    """
    x, y = _checks.pair(x, y)
    pool = lax.stop_gradient(x if y is None else jnp.concatenate([x, y]))
    pool = _numeric.wide(pool)
    centre = _distances.middle(pool, axis_name)
    points = _distances.moved(pool, centre)
    num_points = pool.shape[0] * _devices.num_devices(axis_name)
    if num_points < 2:
        raise ValueError(f"x: got {num_points} point; expected at least 2, a median needs a pair")

    stride = -(-num_points // _SAMPLE)
    some = jax.tree.map(lambda a: _devices.gather(a[::stride], axis_name), points)
    sampled = jnp.sort(_distances.direct(some, some).ravel())
    pairs = _Pairs(points, centre, axis_name, sampled)
    num_pairs = num_points * (num_points - 1) // 2
    if pairs.are_held:
        lower, upper = _held_middle(pairs.held(), num_pairs)
    else:
        lower, upper = _next_to_each_other(pairs, num_pairs, (num_pairs + 1) // 2)
        upper = lower if num_pairs % 2 else upper
    median = lower / 2 + upper / 2
    finite = _devices.mean(jnp.all(jnp.isfinite(points.raw)).astype(median.dtype), axis_name)
    return jnp.where(finite == 1, median, jnp.nan)


class _Around(NamedTuple):
    """The distances in a bracket (low, high], and next to it, as one pass rounds them.

    Two passes compiled apart may round one distance differently: closer to high than that is `near`
    it, or below, and not `apart` from it.

    Attributes:
      below: the number up to low.
      inside: the number in the bracket, above `_FEW` where not all were told; shape ().
      taken: those in the bracket, from the smallest to the largest; shape (_FEW,).
      upto: the number up to high.
      over: the smallest above high; shape ().
      near: the number up to high or near it.
      apart: the smallest of the others; shape ().
    """

    below: _Count
    inside: Array
    taken: Array
    upto: _Count
    over: Array
    near: _Count
    apart: Array


class _Kept(NamedTuple):
    """What a pass around a bracket adds up: counts up to low, high and near it, and extremes.

    Each column of a group of rows keeps the least and the most of the distances inside, and the
    smallest over high and apart from it; shape (groups, width).
    """

    counts: _Count
    least: Array
    most: Array
    over: Array
    apart: Array


@dataclass(frozen=True)
class _Pairs:
    """The pairs i < j of the points of all devices, of which each visits as many as another.

    Its own, and those with the points of the devices before it, up to half way round.
    """

    points: Points
    centre: Array  # by which they are moved
    axis_name: str | None
    sampled: Array  # distances of some pairs, from the smallest to the largest

    @property
    def are_held(self) -> bool:
        """Whether they are so few that all distances are held."""
        return self.axis_name is None and self.points.raw.shape[0] <= _TILE

    @property
    def _width(self) -> int:
        """That of a tile: of equal groups of rows, where it is to be searched."""
        size = self.points.raw.shape[0]
        count, groups = -(-size // _TILE), 1 if self.are_held else min(_GROUPS, _TILE)
        return -(-size // (count * groups)) * groups

    def quantiles(self, *shares: float) -> Array:
        """Returns those of the sampled distances."""
        return self.sampled[(jnp.array(shares) * (self.sampled.size - 1)).astype(jnp.int32)]

    def count(self, pivots: Array) -> _Count:
        """Counts the pairs at distance <= each pivot, over all devices."""

        def add(count: _Count, sq_dist: Array, rounding: Array) -> _Count:
            del rounding
            hits = _hits(sq_dist, pivots)
            return _carried(count[0], count[1] + hits)

        zero = jnp.zeros(pivots.shape, jnp.int32)
        high, low = self._fold(add, (zero, zero))
        if self.axis_name is not None:
            high, low = _carried(*lax.psum((high, low), self.axis_name))
        return high, low

    def around(self, low: Array, high: Array) -> _Around:
        """Finds the distances in a bracket (low, high] of bits, and those next to it.

        Where they are few, hardly any column of a group of rows has a third one, or two alike: all
        are told if as many are found as are counted.
        """
        dtype, groups = self.points.raw.dtype, min(_GROUPS, _TILE)
        infinite = lax.bitcast_convert_type(jnp.array(jnp.inf, dtype), low.dtype)
        bound, top = _value(high), jnp.minimum(high, infinite - 1)  # no pair is at infinity

        def add(kept: _Kept, sq_dist: Array, rounding: Array) -> _Kept:
            def extreme(reduce: Callable[..., Array], where: Array, other: float) -> Array:
                tile = jnp.where(where, sq_dist, other)
                return reduce(tile.reshape(groups, -1, tile.shape[1]), axis=1)

            bits = lax.bitcast_convert_type(sq_dist, low.dtype)
            end = bound + rounding
            hits = _hits(bits, (low, top, lax.bitcast_convert_type(end, low.dtype)))
            inside = (bits > low) & (bits <= top)
            return _Kept(
                _carried(kept.counts[0], kept.counts[1] + hits),
                jnp.minimum(kept.least, extreme(jnp.min, inside, jnp.inf)),
                jnp.maximum(kept.most, extreme(jnp.max, inside, -1)),
                jnp.minimum(kept.over, extreme(jnp.min, bits > high, jnp.inf)),
                jnp.minimum(kept.apart, extreme(jnp.min, sq_dist > end, jnp.inf)),
            )

        zero = jnp.zeros(3, jnp.int32)
        most = jnp.full((groups, self._width), -1, dtype)
        least = jnp.full_like(most, jnp.inf)
        kept: _Kept = self._fold(add, _Kept((zero, zero), least, most, least, least))
        if self.axis_name is not None:
            least, over, apart = lax.pmin((kept.least, kept.over, kept.apart), self.axis_name)
            most = lax.pmax(kept.most, self.axis_name)
            kept = _Kept(_carried(*lax.psum(kept.counts, self.axis_name)), least, most, over, apart)
        below, upto, near = zip(*kept.counts, strict=True)
        found = jnp.stack([kept.least, jnp.where(kept.most > kept.least, kept.most, jnp.inf)])
        taken = -lax.top_k(-found.ravel(), min(_FEW, found.size))[0]
        taken = jnp.pad(taken, (0, _FEW - taken.size), constant_values=jnp.inf)
        inside = _difference(upto, below)
        told = jnp.sum(found < jnp.inf, dtype=jnp.int32) == inside
        inside = jnp.where(told, inside, _FEW + 1)
        return _Around(below, inside, taken, upto, jnp.min(kept.over), near, jnp.min(kept.apart))

    def held(self) -> Array:
        """Returns the distances of points that fit in a tile, (n, n), pairs i >= j at infinity."""
        size = self.points.raw.shape[0]
        start = jnp.zeros((size, size), self.points.raw.dtype)
        return self._fold(lambda _, sq_dist, rounding: sq_dist, start)

    def _split(self, points: PyTree) -> PyTree:
        """Returns tiles, padded with zeros; shape (number of tiles, width of a tile, ...)."""

        def padded(array: Array) -> Array:
            padding = [(0, -array.shape[0] % self._width)] + [(0, 0)] * (array.ndim - 1)
            return jnp.pad(array, padding)

        return _tiles.split(jax.tree.map(padded, points), self._width)

    def _fold(self, add, start):  # type: ignore[no-untyped-def]
        """Folds `add` over tiles of distances, which between what is no pair are infinite."""
        devices = _devices.num_devices(self.axis_name)
        if self.axis_name is None or devices == 1:
            return self._fold_with(None, None, add, start)

        def meet(turn, carry):  # type: ignore[no-untyped-def]
            others, folded = carry
            folded = self._fold_with(others, turn, add, folded)
            return _devices.passed_on(others, self.axis_name), folded

        start = _devices.varying((self.points.raw, start), lax.axis_index(self.axis_name))
        return lax.fori_loop(0, devices // 2 + 1, meet, start)[1]

    def _fold_with(self, others, turn, add, start):  # type: ignore[no-untyped-def]
        """Folds `add` over this device's points and those of the one `turn` places before it."""
        num_points = self.points.raw.shape[0]
        ours = self.points if others is None else self.points.raw
        of_rows = self._split(ours)
        of_cols = of_rows if others is None else self._split(others)
        count, size = jax.tree.leaves(of_rows)[0].shape[:2]
        num_rows: int | Array = count
        if turn is not None:  # half way round two devices meet twice
            devices, place = lax.axis_size(self.axis_name), lax.axis_index(self.axis_name)
            num_rows = jnp.where((2 * turn < devices) | (2 * place < devices), count, 0)

        def first(row):  # type: ignore[no-untyped-def]
            return row if turn is None else jnp.where(turn > 0, 0, row)

        def is_pair(i, j):  # type: ignore[no-untyped-def]
            return i < j if turn is None else (i < j) | (turn > 0)

        borne = _RELATIVE * self.quantiles(_LOW)[0]
        is_direct = self.points.raw.shape[1] <= _distances.DIRECT_DIMENSIONS

        def tile(tiles, index):  # type: ignore[no-untyped-def]
            part = jax.tree.map(lambda t: lax.dynamic_index_in_dim(t, index, keepdims=False), tiles)
            if others is None:
                return part
            real = index * size + jnp.arange(size) < num_points
            return _distances.moved(_distances.Bare(part, real.astype(part.dtype)), self.centre)

        def add_row(row, carry):  # type: ignore[no-untyped-def]
            rows = tile(of_rows, row)

            def add_tile(col, carry):  # type: ignore[no-untyped-def]
                cols = tile(of_cols, col)

                def add_pairs(distances_of):  # type: ignore[no-untyped-def]
                    sq_dist, rounding = distances_of(rows, cols)
                    i = row * size + lax.broadcasted_iota(jnp.int32, sq_dist.shape, 0)
                    j = col * size + lax.broadcasted_iota(jnp.int32, sq_dist.shape, 1)
                    inside = (i < num_points) & (j < num_points) & is_pair(i, j)
                    masked = jnp.where(inside, sq_dist, jnp.inf)
                    return add(carry, lax.optimization_barrier(masked), rounding)

                return _distances.choose(
                    is_direct or _distances.far_apart(rows, cols, borne),
                    lambda: add_pairs(_exact_distances),
                    lambda: add_pairs(_rounded_distances),
                )

            return lax.fori_loop(first(row), count, add_tile, carry)

        start = _devices.varying(start, self.points, others)
        return lax.fori_loop(0, num_rows, add_row, start)


def _exact_distances(rows: Points, cols: Points) -> tuple[Array, Array]:
    """Squared distances of one tile by differences, and their rounding."""
    sq_dist = _distances.direct(rows, cols)
    return sq_dist, _ROUNDING * jnp.finfo(sq_dist.dtype).eps * sq_dist


def _rounded_distances(rows: Points, cols: Points) -> tuple[Array, Array]:
    """Squared distances of one tile, 0 where rounding may have made them, and that rounding."""
    sq_dist = _distances.products(rows, cols)
    unit = _ROUNDING * jnp.finfo(sq_dist.dtype).eps
    rounding = unit * (rows.sq_norms[:, None] + cols.sq_norms[None, :])
    return jnp.where(sq_dist <= rounding, 0, sq_dist), rounding


def _held_middle(sq_dist: Array, num_pairs: int) -> tuple[Array, Array]:
    """Returns the middle two of distances that are held, the middle one twice.

    The bits of the lower one are found by quartering: a pass that counts what is in memory is many
    times faster than one that computes distances anew.
    """
    dtype = sq_dist.dtype
    integer = _integer(dtype)
    bits = lax.bitcast_convert_type(sq_dist, integer)
    rank = (num_pairs + 1) // 2

    def quarter(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        width, places = high - low, jnp.arange(1, 4, dtype=integer)
        pivots = low + width // 4 * places + width % 4 * places // 4
        enough = _hits(bits, pivots) >= rank
        return jnp.max(jnp.where(enough, low, pivots)), jnp.min(jnp.where(enough, pivots, high))

    infinite = lax.bitcast_convert_type(jnp.array(jnp.inf, dtype), integer)
    start = _devices.varying((jnp.array(-1, integer), infinite), bits)
    _, found = lax.fori_loop(0, jnp.iinfo(integer).bits // 2, quarter, start)
    lower = lax.bitcast_convert_type(found, dtype)
    if num_pairs % 2:
        return lower, lower
    above = jnp.min(jnp.where(bits <= found, jnp.inf, sq_dist))
    return lower, jnp.where(jnp.sum(bits <= found, dtype=jnp.int32) > rank, lower, above)


class _Bracket(NamedTuple):
    """An interval (low, high] of float bits, with the counts of distances up to both ends."""

    low: Array
    high: Array
    below: _Count
    upto: _Count


class _State(NamedTuple):
    """The bracket with the next pivots, what the last look found, and whether none was."""

    search: tuple[_Bracket, Array]
    around: _Around
    is_first: Array


def _next_to_each_other(pairs: _Pairs, num_pairs: int, rank: int) -> tuple[Array, Array]:
    """Returns the `rank`-th smallest pair distance and the next, infinity if there is none.

    Non-negative floats are ordered like their bits, so the search narrows an integer interval
    (low, high] with count(low) < rank <= count(high). Pivots at interpolated values converge in a
    few passes for a smooth distribution; those at the quarters of the interval bound the number of
    passes for any other. It ends where few distances are inside, which one more pass takes out; or
    where high is next to low, if that pass counts them otherwise or cannot tell some apart.
    """
    dtype = pairs.points.raw.dtype
    integer = _integer(dtype)

    def advance(search: tuple[_Bracket, Array]) -> tuple[_Bracket, Array]:
        bracket = _narrowed(*search, pairs, rank)
        return bracket, _interpolated(bracket, rank)

    zero = jnp.int32(0)
    bracket = _Bracket(
        low=jnp.array(-1, integer),
        high=lax.bitcast_convert_type(jnp.array(jnp.inf, dtype), integer),
        below=(zero, zero),
        upto=(zero + (num_pairs >> _LIMB), zero + num_pairs % (1 << _LIMB)),
    )
    first = pairs.quantiles(_LOW, 0.45, 0.49, 0.51, 0.55, 0.7)
    first = _devices.agreed(first, pairs.axis_name)

    def is_wide(bracket: _Bracket) -> Array:
        return bracket.high - bracket.low > 1

    def place(around: _Around) -> Array:
        """Returns the rank among the distances taken out, from 1 on, or 0 where it is not there."""
        place = _difference((zero + (rank >> _LIMB), zero + rank % (1 << _LIMB)), around.below)
        is_there = (around.inside <= _FEW) & (place >= 1) & (place <= around.inside)
        return jnp.where(is_there, place, 0)

    def look(state: _State) -> _State:
        def is_open(search: tuple[_Bracket, Array]) -> Array:
            are_few = _difference(search[0].upto, search[0].below) <= _FEW
            return is_wide(search[0]) & ~(state.is_first & are_few)

        search = lax.while_loop(is_open, advance, state.search)
        around = pairs.around(search[0].low, search[0].high)
        return _State(search, around, jnp.zeros_like(state.is_first))

    def is_unfinished(state: _State) -> Array:
        return state.is_first | (is_wide(state.search[0]) & (place(state.around) == 0))

    least = first[0]
    none = zero, zero
    nowhere = _Around(none, zero, jnp.zeros(_FEW, dtype), none, least, none, least)
    start = _devices.varying(_State((bracket, first), nowhere, jnp.array(True)))
    (bracket, _), around, _ = lax.while_loop(is_unfinished, look, start)
    at, bound = place(around), _value(bracket.high)
    tied = _at_least(bracket.upto, rank + 1) | _at_least(around.near, rank + 1)
    is_last = _at_least(around.upto, rank) & ~_at_least(around.upto, rank + 1)
    lower = jnp.where(at > 0, around.taken[at - 1], bound)
    above = jnp.where(at > 0, around.taken[at], jnp.where(tied, bound, around.apart))
    return lower, jnp.where(is_last, around.over, above)


def _narrowed(bracket: _Bracket, pivots: Array, pairs: _Pairs, rank: int) -> _Bracket:
    """Returns the part of a bracket, between two pivots or quarters, in which the rank lies."""
    low, high, below, upto = bracket
    quarters = low + (high - low) // 4 * jnp.arange(1, 4, dtype=low.dtype)
    bits = jnp.concatenate([lax.bitcast_convert_type(pivots, low.dtype), quarters])
    bits = jnp.sort(jnp.clip(bits, low + 1, high - 1))
    counts = pairs.count(_value(bits))
    first = jnp.argmax(jnp.append(_at_least(counts, rank), True))
    ends = jnp.concatenate([low[None], bits, high[None]])
    high_limbs, low_limbs = (
        jnp.concatenate([a[None], c, b[None]]) for a, c, b in zip(below, counts, upto, strict=True)
    )
    return _Bracket(
        ends[first],
        ends[first + 1],
        (high_limbs[first], low_limbs[first]),
        (high_limbs[first + 1], low_limbs[first + 1]),
    )


def _interpolated(bracket: _Bracket, rank: int) -> Array:
    """Returns pivots around where the rank lies if distances are uniform in the bracket."""
    start, end = _value(bracket.low), _value(bracket.high)
    below, upto = (_approximate(count, start.dtype) for count in (bracket.below, bracket.upto))
    inside = upto - below
    offsets = jnp.array([-6.0, -2.0, -0.5, 0.5, 2.0, 6.0], start.dtype)
    fraction = (float(rank) - below) / inside + (0.002 + 1 / jnp.sqrt(inside)) * offsets
    return start + jnp.clip(fraction, 0, 1) * (end - start)


def _integer(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the type of a float's bits."""
    return jnp.dtype(jnp.int32 if dtype == jnp.float32 else jnp.int64)


def _value(bits: Array) -> Array:
    """Returns the float of the bits, 0 below it."""
    dtype = jnp.float32 if bits.dtype == jnp.int32 else jnp.float64
    return lax.bitcast_convert_type(jnp.maximum(bits, 0), dtype)


def _hits(sq_dist: Array, pivots: Array | tuple[Array, ...]) -> Array:
    """Counts the distances of a tile, or their bits, up to each pivot; one for each, int32.

    Counts of several pivots are added up over the rows as parts of one integer: a pass over the
    tile is then one of its columns, which a compiler makes vectors of, and serves them all.
    """

    def counts(some: Array | tuple[Array, ...]) -> list[Array]:
        marks = [jnp.where(sq_dist <= p, 1 << _BITS * place, 0) for place, p in enumerate(some)]
        packed = jnp.sum(functools.reduce(operator.add, marks), axis=0, dtype=jnp.int32)
        parts = (packed >> _BITS * place & (1 << _BITS) - 1 for place in range(len(marks)))
        return [jnp.sum(part, dtype=jnp.int32) for part in parts]

    starts = range(0, len(pivots), _AT_ONCE)
    return jnp.stack([hits for at in starts for hits in counts(pivots[at : at + _AT_ONCE])])


def _carried(high: Array, low: Array) -> _Count:
    return high + (low >> _LIMB), low & ((1 << _LIMB) - 1)


def _difference(count: _Count, other: _Count) -> Array:
    """Returns how much larger a count is, where that is little; else a number far from 0."""
    return (jnp.clip(count[0] - other[0], -2, 2) << _LIMB) + count[1] - other[1]


def _at_least(count: _Count, rank: int) -> Array:
    high, low = rank >> _LIMB, rank % (1 << _LIMB)
    return (count[0] > high) | ((count[0] == high) & (count[1] >= low))


def _approximate(count: _Count, dtype: jnp.dtype) -> Array:
    return count[0].astype(dtype) * (1 << _LIMB) + count[1].astype(dtype)
