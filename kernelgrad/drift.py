r"""The drifting field: doubly normalised attraction to the data, less repulsion between samples.

The kernel matrix between the samples and the union of samples and data is divided by the roots of
its row and column sums. All of it happens in logarithms, block of rows by block of rows, so that
neither an outlier nor a low temperature underflows, nor clouds that are far apart for their size;
and no matrix of all pairs is ever held.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _devices, _distances, _numeric, _tiles
from kernelgrad._distances import Points
from kernelgrad.types import Array

TEMPERATURES = (0.02, 0.05, 0.2)  # of Deng et al.

_PAIRS_AT_ONCE = 1 << 20


def drift(
    samples: Array,
    data: Array,
    temperatures: Sequence[float] | Array = TEMPERATURES,
    *,
    axis_name: str | None = None,
) -> Array:
    r"""Returns the drifting field at each sample.

    With :math:`z = (x_1, \dots, x_n, y_1, \dots, y_m)` and, at a temperature R,

    .. math:: k_{ij} = e^{-|x_i - z_j| / (R \bar d)}, \quad k_{ii} = 0, \quad
        A_{ij} = \frac{k_{ij}}{\sqrt{\sum_l k_{il} \sum_l k_{lj}}}, \\
        V_i = \sum_{j > n} \sum_{k \le n} A_{ij} A_{ik} (z_j - z_k), \quad
        V_i = V_i / \sqrt{\tfrac1{nd} \textstyle\sum_l |V_l|^2}

    and dbar the mean of :math:`|x_i - z_j|` over all pairs but a sample's with itself. A is the
    root of the product of a softmax over the rows and one over the columns. The fields of all
    temperatures are added up. Ascent direction: x + step * V moves towards the data and away from
    the other samples; negate it where a direction is descended. Samples that equal the data in law
    have V of mean 0, but its rms stays 1 a temperature.

    Args:
      samples: x_i; shape (n, d), n >= 2 over all devices, floating.
      data: y_j; shape (m, d).
      temperatures: R > 0, in units of the mean distance; shape (t,).
      axis_name: if set, both are the union over all devices; the rows of this device's samples
        come back.

    Returns:
      V, shape (n, d), dtype of samples, without a unit and without a gradient: it is held still. A
      field that is 0 at all samples stays 0.

    Raises:
      ValueError: wrong rank, dtype or dimensions, fewer than two samples, or a temperature <= 0.

    Cost: O(t n (n + m) d) time, O((n + m) (d + t)) memory; distances are computed thrice.

    Example:
      >>> from kernelgrad import drift
      >>> samples, data = jnp.array([[0.0], [1.0]]), jnp.array([[5.0], [6.0]])
      >>> field = drift.drift(samples, data, (0.5,))
      >>> bool(jnp.all(field > 0)), round(float(jnp.mean(field**2)), 3)  # to the data, of rms 1
      (True, 1.0)

    References:
      Deng et al. 2026 (generative modeling via drifting), eqs. (8) to (11), algorithm 2.
    """
    samples, data = _checks.points(samples=samples, data=data)
    scales = _temperatures(temperatures, _numeric.wide(samples))
    size = samples.shape[0] * _devices.num_devices(axis_name)
    _checks.at_least("number of samples", size, 2)
    x, y = (_numeric.wide(lax.stop_gradient(points)) for points in (samples, data))
    x, y = _in_a_unit(x, y, axis_name)
    everyone = jnp.concatenate([_devices.gather(points, axis_name) for points in (x, y)])
    pairs = _Pairs(*_distances.prepare(x, everyone, axis_name), size, axis_name)
    mean = pairs.mean_distance()
    scales = lax.stop_gradient(scales) * jnp.where(mean > 0, mean, 1)
    fields = pairs.fields(scales, pairs.log_column_sums(scales))
    units, _ = jax.vmap(lambda field: _devices.over_rms(field, axis_name))(fields)
    return _numeric.like(math.sqrt(x.shape[1]) * jnp.sum(units, axis=0), samples)


def _in_a_unit(x: Array, y: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Returns the points over a power of two near the largest of their coordinates.

    The field knows no unit, and squares of lengths near 1 stay in range, an outlier's, too.
    """
    largest = jnp.maximum(jnp.max(jnp.abs(x)), jnp.max(jnp.abs(y)))
    if axis_name is not None:
        largest = lax.pmax(largest, axis_name)
    unit = _numeric.power_of_two(largest)
    return x / unit, y / unit


class _Block(NamedTuple):
    """Some of the samples."""

    points: Points
    place: Array  # among this device's samples
    real: Array  # 1, and 0 where it pads

    @property
    def first(self) -> Array:
        return self.place[0]


class _Pairs(NamedTuple):
    """This device's samples, and what they are compared with: all samples, then all data."""

    rows: Points
    cols: Points
    size: int  # of all samples
    axis_name: str | None

    def blocks(self) -> _Block:
        """Returns the rows in blocks, which are the leading axis."""
        place = jnp.arange(self.rows.raw.shape[0], dtype=jnp.int32)
        at_once = max(1, _PAIRS_AT_ONCE // self.cols.raw.shape[0])
        return _tiles.split(_Block(self.rows, place, jnp.ones_like(self.rows.sq_norms)), at_once)

    def distances(self, block: _Block) -> tuple[Array, Array]:
        """Returns distances of a block to all columns, and whether each is between two points."""
        shift = block.first
        if self.axis_name is not None:
            shift += lax.axis_index(self.axis_name) * self.rows.raw.shape[0]
        sq_dist = _distances.between(None, block.points, self.cols, shift)
        two = jnp.broadcast_to(block.real[:, None] > 0, sq_dist.shape)
        return _numeric.root(sq_dist), _distances.at_same_point(two, shift, False)

    def mean_distance(self) -> Array:
        """Returns the mean over the pairs of all devices."""

        def of(block: _Block) -> Array:
            distance, two = self.distances(block)
            return jnp.sum(jnp.where(two, distance, 0) / self.cols.raw.shape[0])

        total = jnp.sum(lax.map(of, self.blocks())) / self.rows.raw.shape[0]
        share = self.cols.raw.shape[0] / (self.cols.raw.shape[0] - 1)
        return _devices.mean(total, self.axis_name) * share

    def log_column_sums(self, scales: Array) -> Array:
        """Returns log sum_i k_ij of all devices' samples, shape (t, columns)."""

        def add(total: Array, block: _Block) -> tuple[Array, None]:
            logits = _logits(*self.distances(block), scales)
            return jnp.logaddexp(total, jax.nn.logsumexp(logits, axis=1)), None

        nothing = jnp.full((scales.shape[0], self.cols.raw.shape[0]), -jnp.inf, scales.dtype)
        start = _devices.varying(nothing, self.rows, self.cols, scales)
        sums, _ = lax.scan(add, start, self.blocks())
        return jax.nn.logsumexp(_devices.gather(sums[None], self.axis_name), axis=0)

    def fields(self, scales: Array, log_column_sums: Array) -> Array:
        """Returns a multiple of the field of each temperature, shape (t, n, d).

        It is e^a times the field, a such that the greatest product of two shares is about 1. Of
        clusters that are apart differences of coordinates are added up, else coordinates.
        """
        fake, real = self.cols.centred[: self.size], self.cols.centred[self.size :]

        def of(exact: bool, block: _Block) -> tuple[Array, Array]:
            logits = _logits(*self.distances(block), scales)
            log_row_sums = jax.nn.logsumexp(logits, axis=2, keepdims=True)
            # of rows that pad the sum is 0
            log_row_sums = jnp.where(log_row_sums == -jnp.inf, 0, log_row_sums)
            log_shares = logits - (log_row_sums + log_column_sums[:, None]) / 2
            repel, most_repel = _over_greatest(log_shares[..., : self.size])
            attract, most_attract = _over_greatest(log_shares[..., self.size :])
            push, pull = (jnp.sum(each, axis=2, keepdims=True) for each in (repel, attract))
            if not exact:
                field = push * _numeric.dot(attract, real) - pull * _numeric.dot(repel, fake)
                return field, most_repel + most_attract
            factors = jnp.concatenate([-pull * repel, push * attract], axis=2)
            sums = functools.partial(
                _distances.difference_sums, rows=block.points, cols=self.cols, axis=1
            )
            return jax.vmap(sums)(factors), most_repel + most_attract

        def of_all(exact: bool) -> tuple[Array, Array]:
            return lax.map(functools.partial(of, exact), self.blocks())

        fields, log_sizes = _distances.choose(
            _distances.apart(self.cols), lambda: of_all(True), lambda: of_all(False)
        )
        fields, log_sizes = (
            jnp.moveaxis(each, 1, 0).reshape(scales.shape[0], -1, each.shape[-1])
            for each in (fields, log_sizes)
        )
        fields, log_sizes = (each[:, : self.rows.raw.shape[0]] for each in (fields, log_sizes))
        most = jnp.max(log_sizes, axis=1, keepdims=True)
        most = jnp.max(_devices.gather(most[None], self.axis_name), axis=0)
        return fields * jnp.exp(log_sizes - most)


def _logits(distance: Array, two: Array, scales: Array) -> Array:
    """Returns log k at each temperature, shape (t, rows, columns)."""
    return jnp.where(two[None], -distance[None] / scales[:, None, None], -jnp.inf)


def _over_greatest(log_shares: Array) -> tuple[Array, Array]:
    """Returns shares over the greatest of each row, 0 in rows that pad, and its logarithm."""
    greatest = jnp.max(log_shares, axis=2, keepdims=True)
    return jnp.exp(log_shares - jnp.where(greatest == -jnp.inf, 0, greatest)), greatest


def _temperatures(temperatures: Any, like: Array) -> Array:
    _checks.positive(temperatures=temperatures)
    scales = jnp.asarray(temperatures)
    _checks.shape("temperatures", scales, ("t",))
    return _numeric.like(scales, like)
