"""The exact median of all pairwise squared distances, without storing or sorting them."""

import functools
import operator
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _devices, _distances, _numeric, _tiles
from kernelgrad._distances import Points
from kernelgrad.types import Array

_TILE = 512
_LIMB = 20  # numbers of pairs exceed int32: counts are (high, low) with low < 2^_LIMB
_SAMPLE = 64  # points whose pairs place the first pivots
_LOW = 0.3  # share of the sampled pairs that stay below the median, whatever the sample
_RELATIVE = 1e-5  # error that a distance may have
_ROUNDING = 8  # above the error of |a|^2 + |b|^2 - 2 a.b, in units of eps (|a|^2 + |b|^2)
_AT_ONCE = 3  # pivots, whose counts over the rows of a tile share an integer,
_BITS = 10  # in so many bits each: more than 512 rows ask for

_Count = tuple[Array, Array]


def median_squared_distance(
    x: Array, y: Array | None = None, *, axis_name: str | None = None
) -> Array:
    r"""Returns the exact median of :math:`|u_i - u_j|^2` over the pairs i < j of x pooled with y.

    The order statistic is found by counting the distances below a few pivots, pass by pass. For an
    even number of pairs it is the mean of the two middle values. Carries no gradient.

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

    Cost: about 6 passes of O((n + m)^2 d / 2) time, at most 17 (32 in float64); O((n + m) d)
      memory, with axis_name that of this device's share, the pairs shared evenly. Up to 512 points
      on one device, one pass and O((n + m)^2) memory.

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
    if axis_name is None and num_points <= _TILE:
        lower, upper = _held_middle(pairs.held(), num_pairs)
    else:
        lower, upper = _next_to_each_other(pairs, num_pairs, (num_pairs + 1) // 2)
        upper = lower if num_pairs % 2 else upper
    median = lower / 2 + upper / 2
    finite = _devices.mean(jnp.all(jnp.isfinite(points.raw)).astype(median.dtype), axis_name)
    return jnp.where(finite == 1, median, jnp.nan)


class _Around(NamedTuple):
    """The number of distances <= a bound; the largest of them; the smallest others.

    Two passes compiled apart may round one distance differently: closer to the bound than that is
    `near` it, a number too, or below, and not `apart` from it.
    """

    upto: _Count
    near: _Count
    under: Array
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

    def around(self, bound: Array) -> _Around:
        """Counts the pairs at distance <= bound, and finds those next to it, over all devices."""

        def add(around: _Around, sq_dist: Array, rounding: Array) -> _Around:
            is_under = sq_dist <= bound
            over = jnp.where(is_under, jnp.inf, sq_dist)
            apart = jnp.where(sq_dist <= bound + rounding, jnp.inf, sq_dist)
            under = jnp.where(is_under, sq_dist, 0)
            upto, near = _hits(sq_dist, (bound, bound + rounding))
            return _Around(
                _carried(around.upto[0], around.upto[1] + upto),
                _carried(around.near[0], around.near[1] + near),
                jnp.maximum(around.under, jnp.max(under)),
                jnp.minimum(around.over, jnp.min(over)),
                jnp.minimum(around.apart, jnp.min(apart)),
            )

        zero, least = jnp.zeros((), jnp.int32), jnp.zeros((), self.points.raw.dtype)
        start = _Around((zero, zero), (zero, zero), least, least + jnp.inf, least + jnp.inf)
        upto, near, under, over, apart = self._fold(add, start)
        if self.axis_name is not None:
            upto, near = (_carried(*lax.psum(count, self.axis_name)) for count in (upto, near))
            under = lax.pmax(under, self.axis_name)
            over, apart = lax.pmin((over, apart), self.axis_name)
        return _Around(upto, near, under, over, apart)

    def held(self) -> Array:
        """Returns the distances of points that fit in a tile, (n, n), pairs i >= j at infinity."""
        size = self.points.raw.shape[0]
        start = jnp.zeros((size, size), self.points.raw.dtype)
        return self._fold(lambda _, sq_dist, rounding: sq_dist, start)

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
        of_rows = _tiles.split(ours, _TILE)
        of_cols = of_rows if others is None else _tiles.split(others, _TILE)
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
                    return add(carry, jnp.where(inside, sq_dist, jnp.inf), rounding)

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
    passes for any other. It ends where high is next to low, and earlier where just `rank` distances
    are up to high: unless the pass that looks for the two on both sides of it counts them
    otherwise.
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

    def divides(count: _Count) -> Array:
        return _at_least(count, rank) & ~_at_least(count, rank + 1)

    def look(state: _State) -> _State:
        def is_open(search: tuple[_Bracket, Array]) -> Array:
            return is_wide(search[0]) & ~(state.is_first & divides(search[0].upto))

        search = lax.while_loop(is_open, advance, state.search)
        around = pairs.around(_value(search[0].high))
        return _State(search, around, jnp.zeros_like(state.is_first))

    def is_unfinished(state: _State) -> Array:
        bracket = state.search[0]
        return state.is_first | (is_wide(bracket) & ~divides(state.around.upto))

    nowhere = _Around((zero, zero), (zero, zero), *(first[0],) * 3)
    start = _devices.varying(_State((bracket, first), nowhere, jnp.array(True)))
    (bracket, _), around, _ = lax.while_loop(is_unfinished, look, start)
    bound = _value(bracket.high)
    lower = jnp.where(divides(around.upto), around.under, bound)
    others = jnp.where(_at_least(around.near, rank + 1), bound, around.apart)
    above = jnp.where(divides(around.upto), around.over, others)
    return lower, jnp.where(_at_least(bracket.upto, rank + 1), bound, above)


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


def _at_least(count: _Count, rank: int) -> Array:
    high, low = rank >> _LIMB, rank % (1 << _LIMB)
    return (count[0] > high) | ((count[0] == high) & (count[1] >= low))


def _approximate(count: _Count, dtype: jnp.dtype) -> Array:
    return count[0].astype(dtype) * (1 << _LIMB) + count[1].astype(dtype)
