r"""The energy distance along lines: by sorting, where all pairs would be too many.

The energy distance itself, :math:`2 E|x - y| - E|x - x'| - E|y - y'|`, is MMD^2 of the kernel
:math:`-|x - y|`: every function of :mod:`kernelgrad.mmd` takes :func:`kernelgrad.kernels.riesz`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _devices, _distances, _numeric
from kernelgrad.types import Array, Key


def random_directions(key: Key, num_projections: int, dimension: int) -> Array:
    """Returns unit vectors, drawn uniformly.

    Args:
      key: random key.
      num_projections: how many, l >= 1; static.
      dimension: d >= 1; static.

    Returns:
      Directions, shape (l, d).

    Raises:
      ValueError: num_projections or dimension below 1.

    Example:
      >>> from kernelgrad import energy
      >>> directions = energy.random_directions(jax.random.key(0), 4, 3)
      >>> print(jnp.linalg.norm(directions, axis=1))
      [1. 1. 1. 1.]
    """
    _checks.at_least("num_projections", num_projections, 1)
    _checks.at_least("dimension", dimension, 1)
    normal = jax.random.normal(key, (num_projections, dimension))
    return normal / jnp.linalg.norm(normal, axis=1, keepdims=True)


def sliced_energy_and_gradient(
    x: Array, y: Array, directions: Array, *, axis_name: str | None = None
) -> tuple[Array, Array]:
    r"""Returns the sliced energy distance and its gradient in x.

    .. math:: \frac1l \sum_\theta \Big[ \frac2{nm} \sum_{ij} |\theta^\top (x_i - y_j)|
        - \frac1{n^2} \sum_{ij} |\theta^\top (x_i - x_j)|
        - \frac1{m^2} \sum_{ij} |\theta^\top (y_i - y_j)| \Big]
        = \frac1l \sum_\theta 2 \int (F_\theta - G_\theta)^2

    with the empirical distribution functions F and G of the projections, whose integral takes one
    sort of both; and :math:`\frac4{nl} \sum_\theta [G_\theta - F_\theta](\theta^\top x_i)\,
    \theta`, where F and G count half of the points that tie. Over uniform unit vectors its mean is
    the energy distance times :math:`\Gamma(d/2) / (\sqrt\pi\, \Gamma((d + 1)/2))`. Descend the
    gradient to move x towards y.

    Args:
      x: samples x_i; shape (n, d), floating.
      y: samples y_j; shape (m, d).
      directions: theta, as a rule from :func:`random_directions`; shape (l, d). Numbers, whose
        dtype is of no account.
      axis_name: if set, both samples are the union over all devices, of which only projections are
        gathered; the rows of this device's x come back.

    Returns:
      Pair of the distance, shape (), at least float32, in units of x, and the gradient, shape
      (n, d), dtype of x, without a unit. Neither carries a gradient; NaN, all, where a point is.

    Raises:
      ValueError: wrong rank, dtype or dimensions.

    Cost: O(l (n + m) (d + log(n + m))) time, O((n + m) d + l n) memory.

    Example:
      >>> from kernelgrad import energy
      >>> x, y, line = jnp.array([[0.0]]), jnp.array([[3.0]]), jnp.array([[1.0]])
      >>> value, gradient = energy.sliced_energy_and_gradient(x, y, line)
      >>> round(float(value), 3), round(float(gradient[0, 0]), 3)  # of 2 |x - y|
      (6.0, -2.0)

    References:
      Szekely & Rizzo 2013; Hertrich et al. 2024 (generative sliced MMD flows with Riesz kernels),
      Theorem 2 and section 3.
    """
    x, y = _checks.points(x=x, y=y)
    (directions,) = _checks.floating(directions=directions)
    _checks.shape("directions", directions, ("l", x.shape[1]))
    still = lax.stop_gradient((x, y, directions))
    rows, cols = _distances.prepare(still[0], still[1], axis_name)
    lines = _devices.varying(_numeric.like(still[2], rows.raw), rows.raw)

    def along(line: Array) -> tuple[Array, Array]:
        a, b = (_devices.gather(_numeric.dot(p.centred, line), axis_name) for p in (rows, cols))
        value, slopes = _on_the_line(a, b)
        return value, _devices.share(slopes, axis_name)

    def exactly_along(line: Array) -> tuple[Array, Array]:
        sides = [_in_two_parts(points.raw, line) for points in (rows, cols)]
        gathered = [[_devices.gather(part, axis_name) for part in side] for side in sides]
        value, slopes = _in_order(*gathered)
        return value, _devices.share(slopes, axis_name)

    values, slopes = _distances.choose(
        _devices.largest(_distances.apart(rows, cols), axis_name),
        lambda: lax.map(exactly_along, lines),
        lambda: lax.map(along, lines),
    )
    values = _devices.agreed(values, axis_name)
    gradient = _numeric.dot(slopes.T, lines) / lines.shape[0]
    return jnp.mean(values), _numeric.like(gradient, x)


def _on_the_line(a: Array, b: Array) -> tuple[Array, Array]:
    """Returns the energy distance of points on a line, and its derivatives in a."""
    keys = jnp.sort(jnp.concatenate([_ordinal(a), _ordinal(b) + 1]))
    even, step = keys & ~1, jnp.diff(_of_ordinal(keys, a.dtype))
    ends = jnp.concatenate([even[1:] > even[:-1], jnp.ones(1, bool)])
    value, slopes = _counted((keys & 1).astype(jnp.int32), step, ends, a.shape[0])
    return value, slopes[jnp.searchsorted(keys, _ordinal(a))]


def _in_order(a: Sequence[Array], b: Sequence[Array]) -> tuple[Array, Array]:
    """Returns the same from points in two parts, by a sort of both."""
    n, size = a[0].shape[0], a[0].shape[0] + b[0].shape[0]
    place = jnp.arange(size, dtype=jnp.int32)
    high, low = (jnp.concatenate(parts) for parts in zip(a, b, strict=True))
    high, low, origin = lax.sort((high, low, place), num_keys=2)
    step = jnp.diff(high) + jnp.diff(low)
    ends = jnp.concatenate([step > 0, jnp.ones(1, bool)])
    value, slopes = _counted((origin >= n).astype(jnp.int32), step, ends, n)
    first = lax.cummax(jnp.where(jnp.roll(ends, 1), place, 0))
    return value, jnp.zeros(size, high.dtype).at[origin].set(slopes[first])[:n]


def _counted(is_b: Array, step: Array, ends: Array, n: int) -> tuple[Array, Array]:
    """Returns the distance, and its derivatives in points at each place.

    Args:
      is_b: whether the point at a place is one of b, in order; shape (n + m,), int32.
      step: from each place to the next; shape (n + m - 1,).
      ends: whether the next place is another point than this; shape (n + m,), bool.
      n: how many are of a.

    Of points that tie, the derivative is right at the first place.
    """
    size, dtype = is_b.shape[0], step.dtype
    place = jnp.arange(size, dtype=jnp.int32)
    count_b = jnp.cumsum(is_b)  # up to and with this place
    count_a = place + 1 - count_b
    excess = count_a.astype(dtype) / n - count_b.astype(dtype) / (size - n)
    value = 2 * jnp.sum(jnp.square(excess[:-1]) * step)
    last = lax.cummin(jnp.where(ends, place, size - 1), reverse=True)
    twice_b = count_b - is_b + count_b[last]
    twice_a = place + last + 1 - twice_b
    slopes = 2 / n * (twice_b.astype(dtype) / (size - n) - twice_a.astype(dtype) / n)
    return value, jnp.where(jnp.isfinite(value), slopes, jnp.nan)


def _in_two_parts(points: Array, line: Array) -> tuple[Array, Array]:
    """Returns projections as sums of two floats, exact to about twice the digits of one.

    Halves of the digits of a coordinate and of a direction have exact products, fused with a sum
    or not; the error of each sum is a float.
    """

    def add(sums: tuple[Array, Array], factors: tuple[Array, Array]) -> tuple[Any, None]:
        total, error = sums
        (x, rest_x), (t, rest_t) = (_halves(factor) for factor in factors)
        for term in (x * t, x * rest_t, rest_x * t, rest_x * rest_t):
            grown = total + term
            added = grown - total
            error += (total - (grown - added)) + (term - added)
            total = grown
        return (total, error), None

    zeros = jnp.zeros_like(points[:, 0])
    start = _devices.varying((zeros, zeros), points, line)
    (total, error), _ = lax.scan(add, start, (points.T, line))
    high = total + error
    return high, error - (high - total)


def _halves(x: Array) -> tuple[Array, Array]:
    """Returns the leading half of the digits of floats, and the rest."""
    kind, bits = {4: (jnp.int32, 12), 8: (jnp.int64, 27)}[x.dtype.itemsize]
    leading = lax.bitcast_convert_type(x, kind) & ~((1 << bits) - 1)
    high = lax.bitcast_convert_type(leading, x.dtype)
    return high, x - high


def _ordinal(points: Array) -> Array:
    """Returns integers in the order of the points, all even: to a unit in the last place.

    XLA sorts one array of integers seven times as fast as floats with their places.
    """
    kind = {4: jnp.int32, 8: jnp.int64}[points.dtype.itemsize]
    bits = lax.bitcast_convert_type(jnp.where(points == 0, 0, points), kind)
    return jnp.where(bits < 0, bits ^ jnp.iinfo(kind).max, bits) & ~1


def _of_ordinal(keys: Array, dtype: Any) -> Array:
    even = keys & ~1
    bits = jnp.where(even < 0, even ^ jnp.iinfo(keys.dtype).max, even)
    return lax.bitcast_convert_type(bits, dtype)
