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

from kernelgrad import _checks, _devices, _distances, _folds, _numeric
from kernelgrad._distances import Bare, Points
from kernelgrad.types import Array, PyTree

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

    Cost: O(t n (n + m) d) time, O((n + m) t d) memory; distances are computed thrice. Over devices
      each holds its share, and of many pairs the shares go round a ring.

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
    centre = _distances.middle(jnp.concatenate([x, y]), axis_name)
    pairs = _Pairs(*_distances.bare(x, y), centre, axis_name)
    mean = pairs.mean_distance()
    scales = lax.stop_gradient(scales) * jnp.where(mean > 0, mean, 1)
    fields = pairs.fields(scales)
    units, _ = jax.vmap(lambda field: _devices.over_rms(field, axis_name))(fields)
    return _numeric.like(math.sqrt(x.shape[1]) * jnp.sum(units, axis=0), samples)


def _in_a_unit(x: Array, y: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Returns the points over a power of two near the largest of their coordinates.

    The field knows no unit, and squares of lengths near 1 stay in range, an outlier's, too.
    """
    largest = jnp.maximum(jnp.max(jnp.abs(x)), jnp.max(jnp.abs(y)))
    largest = _devices.largest(largest, axis_name)
    unit = _numeric.power_of_two(largest)
    return x / unit, y / unit


class _Nodes(NamedTuple):
    """Columns, and what their shares of a row are divided by."""

    points: Bare
    log_sums: Array  # log sum_i k_ij, shape (columns, t)


class _Pull(NamedTuple):
    r"""What columns do to some rows, at each temperature, with shares :math:`k_{ij} / \sqrt{c_j}`.

    The greatest share of a row is divided out, so that none underflows with all others of its row.
    """

    log_sum: Array  # of k, not of its shares; (rows, t)
    log_greatest: Array  # (rows, t)
    mass: Array  # sum of the shares over their greatest, (rows, t)
    moment: Array  # sum of shares times coordinates, or their differences to x_i; (rows, t, d)


class _Pairs(NamedTuple):
    """This device's samples and data; all samples are compared with all of both."""

    samples: Bare
    data: Bare
    centre: Array
    axis_name: str | None

    def distances(
        self, shift: Any, rows: Bare, cols: Bare, *, same: bool
    ) -> tuple[Array, Array, tuple[Points, Points]]:
        """Returns distances, whether each is between two points, and the points."""
        points = _distances.moved(rows, self.centre), _distances.moved(cols, self.centre)
        own = shift if same else None
        sq_dist = _distances.between(None, *points, own)
        two = (rows.real[:, None] > 0) & (cols.real[None, :] > 0)
        return _numeric.root(sq_dist), _distances.at_same_point(two, own, False), points

    def folded(self, fn: _folds.FoldFn, kept: PyTree, rows: PyTree, cols: PyTree) -> PyTree:
        """Returns what the columns of all devices make of what is kept at this device's rows."""
        return _folds.fold(fn, kept, rows, cols, self.axis_name, pairs_at_once=_PAIRS_AT_ONCE)

    def mean_distance(self) -> Array:
        """Returns the mean over the pairs of all devices."""
        devices = _devices.num_devices(self.axis_name)
        n, m = (devices * side.real.shape[0] for side in (self.samples, self.data))

        def sums(cols: Bare, *, same: bool) -> Array:
            def add(shift: Any, rows: Bare, total: Array, cols: Bare) -> Array:
                distance, two, _ = self.distances(shift, rows, cols, same=same)
                return total + _row_sums(jnp.where(two, distance, 0)) / (n + m)

            return self.folded(add, jnp.zeros_like(self.samples.real), self.samples, cols)

        total = sums(self.samples, same=True) + sums(self.data, same=False)
        return _devices.mean(jnp.mean(total), self.axis_name) * ((n + m) / (n + m - 1))

    def log_sums(self, scales: Array, rows: Bare, *, same: bool) -> Array:
        """Returns log sum_i k_ij over all samples, at samples or data; shape (rows, t)."""

        def add(shift: Any, rows: Bare, total: Array, cols: Bare) -> Array:
            distance, two, _ = self.distances(shift, rows, cols, same=same)
            return jnp.logaddexp(total, _log_sum(*_logits(distance, two, scales)).T)

        nothing = jnp.full((*rows.real.shape, *scales.shape), -jnp.inf, scales.dtype)
        return self.folded(add, nothing, rows, self.samples)

    def pull(self, scales: Array, apart: Array, nodes: _Nodes, *, same: bool) -> _Pull:
        """Returns what all samples or all data do to this device's samples.

        Of clusters that are apart differences of coordinates are added up, else coordinates.
        """

        def add(shift: Any, rows: Bare, kept: _Pull, nodes: _Nodes) -> _Pull:
            distance, two, points = self.distances(shift, rows, nodes.points, same=same)
            logits, peaks = _logits(distance, two, scales)
            log_shares = logits - nodes.log_sums.T[:, None] / 2
            greatest = jnp.maximum(kept.log_greatest.T, jnp.max(log_shares, axis=2))
            shares = _over(log_shares, greatest[:, :, None])
            sums = functools.partial(
                _distances.difference_sums, rows=points[0], cols=points[1], axis=1
            )
            moments = _distances.choose(
                apart,
                lambda: jax.vmap(sums)(shares),
                lambda: _numeric.dot(shares, points[1].centred),
            )
            less = _over(kept.log_greatest, greatest.T)
            return _Pull(
                jnp.logaddexp(kept.log_sum, _log_sum(logits, peaks).T),
                greatest.T,
                less * kept.mass + _row_sums(shares).T,
                less[..., None] * kept.moment + jnp.moveaxis(moments, 0, 1),
            )

        (n, d), (t,) = self.samples.raw.shape, scales.shape
        none, zeros = (jnp.full((n, t), value, scales.dtype) for value in (-jnp.inf, 0))
        nothing = _Pull(none, none, zeros, jnp.zeros((n, t, d), scales.dtype))
        return self.folded(add, nothing, self.samples, nodes)

    def fields(self, scales: Array) -> Array:
        """Returns a multiple of the field of each temperature, shape (t, n, d).

        It is e^a times the field, a such that the greatest product of two shares is about 1.
        """
        sides = ((self.samples, True), (self.data, False))
        fakes, reals = (
            _Nodes(side, self.log_sums(scales, side, same=same)) for side, same in sides
        )
        both = (_distances.moved(side, self.centre) for side in (self.samples, self.data))
        apart = _devices.largest(_distances.apart(*both), self.axis_name)
        fake = self.pull(scales, apart, fakes, same=True)
        real = self.pull(scales, apart, reals, same=False)
        fields = fake.mass[..., None] * real.moment - real.mass[..., None] * fake.moment
        log_sizes = fake.log_greatest + real.log_greatest
        log_sizes -= jnp.logaddexp(fake.log_sum, real.log_sum)
        most = _devices.largest(jnp.max(log_sizes, axis=0, keepdims=True), self.axis_name)
        return jnp.moveaxis(fields * jnp.exp(log_sizes - most)[..., None], 1, 0)


def _logits(distance: Array, two: Array, scales: Array) -> tuple[Array, Array]:
    """Returns log k at each temperature, shape (t, rows, columns), and the greatest of each row."""
    distance = jnp.where(two, distance, jnp.inf)
    peaks = -jnp.min(distance, axis=1)[None] / scales[:, None]
    return -distance[None] / scales[:, None, None], peaks


def _log_sum(logits: Array, peaks: Array) -> Array:
    """Returns the logarithm of the sum of exponentials over the columns."""
    finite = jnp.where(peaks == -jnp.inf, 0, peaks)
    return jnp.log(_row_sums(jnp.exp(logits - finite[:, :, None]))) + finite


def _row_sums(values: Array) -> Array:
    """Returns sums over the last axis by a product, which XLA for CPU does faster than a sum."""
    return _numeric.dot(values, jnp.ones(values.shape[-1], values.dtype))


def _over(log_shares: Array, log_greatest: Array) -> Array:
    """Returns shares over the greatest, 0 where there is none."""
    return jnp.exp(log_shares - jnp.where(log_greatest == -jnp.inf, 0, log_greatest))


def _temperatures(temperatures: Any, like: Array) -> Array:
    _checks.positive(temperatures=temperatures)
    scales = jnp.asarray(temperatures)
    _checks.shape("temperatures", scales, ("t",))
    return _numeric.like(scales, like)
