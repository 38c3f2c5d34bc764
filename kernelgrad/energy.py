r"""The energy distance along lines: by sorting, where all pairs would be too many.

The energy distance itself, :math:`2 E|x - y| - E|x - x'| - E|y - y'|`, is MMD^2 of the kernel
:math:`-|x - y|`: every function of :mod:`kernelgrad.mmd` takes :func:`kernelgrad.kernels.riesz`.
"""

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
      directions: theta, as a rule from :func:`random_directions`; shape (l, d).
      axis_name: if set, both samples are the union over all devices, of which only projections are
        gathered; the rows of this device's x come back.

    Returns:
      Pair of the distance, shape (), at least float32, in units of x, and the gradient, shape
      (n, d), dtype of x, without a unit. Neither carries a gradient; NaN, all, where a point is.

    Raises:
      ValueError: wrong rank, dtype or dimensions.

    Cost: O(l (n + m) (d + log(n + m))) time, O((n + m) d + l n) memory.

    References:
      Szekely & Rizzo 2013; Hertrich et al. 2024 (generative sliced MMD flows with Riesz kernels),
      Theorem 2 and section 3.
    """
    x, y, directions = _checks.points(x=x, y=y, directions=directions)
    still = lax.stop_gradient((x, y, directions))
    rows, cols = _distances.prepare(still[0], still[1], axis_name)
    lines = _devices.varying(_numeric.like(still[2], rows.raw), rows.raw)

    def along(line: Array) -> tuple[Array, Array]:
        a, b = (_devices.gather(_numeric.dot(p.centred, line), axis_name) for p in (rows, cols))
        value, slopes = _on_the_line(a, b)
        return _devices.agreed(value, axis_name), _devices.share(slopes, axis_name)

    values, slopes = lax.map(along, lines)
    gradient = _numeric.dot(slopes.T, lines) / lines.shape[0]
    return jnp.mean(values), _numeric.like(gradient, x)


def _on_the_line(a: Array, b: Array) -> tuple[Array, Array]:
    """Returns the energy distance of points on a line, and its derivatives in a."""
    n, m = a.shape[0], b.shape[0]
    place = jnp.arange(n + m, dtype=jnp.int32)
    keys = jnp.sort(jnp.concatenate([_ordinal(a), _ordinal(b) + 1]))
    count_b = jnp.cumsum((keys & 1).astype(jnp.int32))  # up to and with this place
    count_a = place + 1 - count_b
    excess = count_a.astype(a.dtype) / n - count_b.astype(a.dtype) / m
    step = jnp.diff(_of_ordinal(keys, a.dtype))
    value = 2 * jnp.sum(jnp.square(excess[:-1]) * step)
    # the first place of points that tie, where the search below ends, knows the last
    even = keys & ~1
    ends = jnp.concatenate([even[1:] > even[:-1], jnp.ones(1, bool)])
    last = lax.cummin(jnp.where(ends, place, n + m - 1), reverse=True)
    twice_b = count_b - (keys & 1).astype(jnp.int32) + count_b[last]
    twice_a = place + last + 1 - twice_b
    slopes = 2 / n * (twice_b.astype(a.dtype) / m - twice_a.astype(a.dtype) / n)
    slopes = jnp.where(jnp.isfinite(value), slopes, jnp.nan)
    return value, slopes[jnp.searchsorted(keys, _ordinal(a))]


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
