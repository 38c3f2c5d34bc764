r"""The engine: sums over all pairs of points, in tiles, differentiable, on one device or many.

Every sum of this package has the form :math:`\sum_j f(x_i, y_j)` with a radial kernel inside.
``_tiles`` adds them up tile by tile, so that neither the sum nor its gradient ever
holds an (n, m) buffer, let alone (n, m, d). Where y is x itself, on one device, each pair is
visited once for both of its points.

With an axis_name the y of few pairs are gathered; of many, each device holds its share, and the
shares go round a ring: memory is that of a share, of the gradient, too.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _devices, _distances, _numeric, _tiles, _traits
from kernelgrad._distances import Bare, Points
from kernelgrad.types import Array, Kernel

_Dot = Callable[[Array, Array], Array]

_OFFSETS = ("offsets[0]", "offsets[1]")


def squared_distances(x: Array, y: Array | None = None) -> Array:
    r"""Returns :math:`|x_i - y_j|^2` for all pairs.

    Exact to about 1e-5 of each distance, whatever the offset of the data and however far their
    clusters are apart: points are centred and multiplied in full precision, and where a pair is
    too close for that, or in at most 3 dimensions, coordinates are subtracted first.

    Args:
      x: points; shape (n, d), floating.
      y: points; shape (m, d). None: x itself, with a diagonal of exact zeros.

    Returns:
      Squared distances, shape (n, m), in squared units of x; at least float32.

    Raises:
      ValueError: wrong rank, dtype or mismatched dimensions.

    Cost: O(n m d) time, some five times more where pairs are too close; O(n m) memory.

    Example:
      >>> from kernelgrad import pairwise
      >>> print(pairwise.squared_distances(jnp.array([[0.0, 0.0], [3.0, 4.0]])))
      [[ 0. 25.]
       [25.  0.]]
    """
    x, y = _checks.pair(x, y)
    rows, cols = _distances.prepare(x, y)
    return _distances.between(None, rows, cols, 0 if y is None else None)


def kernel_sum(
    kernel: Kernel,
    x: Array,
    y: Array | None,
    weights: Array,
    *,
    offsets: tuple[Array, Array] | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""Returns the kernel-weighted sums over y at each x.

    .. math:: S_i = \sum_j [k(x_i, y_j) - a_i - b_j] w_j

    Reverse-mode differentiable to any order in x, y, weights and the kernel's leaves, in linear
    memory.

    Args:
      kernel: k; its lengthscales are in units of x.
      x: points x_i; shape (n, d), floating.
      y: points y_j; shape (m, d). None: x itself, with exactly zero self-distances.
      weights: w_j; shape (m, p).
      offsets: a and b; shapes (n,) and (m,). None: 0. Where sums are to be subtracted from one
        another, offsets that bring them near 0 save the digits.
      axis_name: if set, j runs over the union of all devices' y, weights and b.

    Returns:
      Sums, shape (n, p), dtype of x, in units of the weights.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes.

    Cost: O(n m (d + p)) time, O((n + m) (d + p)) memory.

    Example:
      >>> from kernelgrad import kernels, pairwise
      >>> kernel, x = kernels.rbf_mixture(1.0), jnp.array([[0.0], [1.0]])
      >>> print(pairwise.kernel_sum(kernel, x, None, jnp.ones((2, 1))).T)  # 1 + exp(-1/2)
      [[1.607 1.607]]
    """
    x, y, given = _taken(x, y, offsets, weights=weights)
    weights = _of_rows("weights", given["weights"], x if y is None else y, "p")
    offsets = _offsets(given, x, y)
    pairs = _pairs(_traits.radial(kernel), *_embedded(kernel, x, y), axis_name)
    return pairs.sums(weights, offsets=offsets)[0].astype(jnp.result_type(x))


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

    Cost: O(n m d) time, O((n + m) d) memory; with features of dimension l, min(l, n) backward
      passes, n over all devices, and as many times O(n m d).

    Example:
      >>> from kernelgrad import kernels, pairwise
      >>> kernel, x = kernels.rbf_mixture(1.0), jnp.array([[0.0], [1.0]])
      >>> print(pairwise.gradient_sum(kernel, x, None).T)  # exp(-1/2) apart
      [[-0.607  0.607]]

    References:
      Li 2017 (approximate KL gradients), eq. (2), where w = 1 and y = x.
    """
    x, y, given = _taken(x, y, None, **({} if weights is None else {"weights": weights}))
    others = x if y is None else y
    weights = _of_rows("weights", given.get("weights"), others)
    lengthscales = _traits.coordinate_lengthscales(kernel)
    if lengthscales is not None:
        points = _embedded(kernel, x, y)
        sums = gradient_sum(_traits.radial(kernel), *points, weights, axis_name=axis_name)
        return _numeric.like(sums / _numeric.like(lengthscales, sums)[None], x)
    if _traits.is_feature_kernel(kernel):
        return _feature_gradient_sum(kernel, x, y, weights, axis_name)
    sums = _pairs(kernel, x, y, axis_name).sums(None, weights, joined=True)
    return sums.astype(jnp.result_type(x))


def kernel_and_gradient_sum(
    kernel: Kernel,
    x: Array,
    y: Array | None,
    weights: Array,
    gradient_weights: Array,
    *,
    offsets: tuple[Array, Array] | None = None,
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    r"""Returns :func:`kernel_sum` and :func:`gradient_sum` from one pass over the pairs.

    Args:
      kernel: k; its lengthscales are in units of x.
      x: points x_i; shape (n, d), floating.
      y: points y_j; shape (m, d). None: x itself.
      weights: w_j of the kernel sum; shape (m, p).
      gradient_weights: w_j of the gradient sum; shape (m,).
      offsets: a and b of :func:`kernel_sum`.
      axis_name: if set, j runs over the union of all devices' y, weights and b.

    Returns:
      Pair of :math:`\sum_j [k(x_i, y_j) - a_i - b_j] w_j`, shape (n, p), and
      :math:`\sum_j w_j \nabla_{y_j} k(x_i, y_j)`, shape (n, d).

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes.

    Cost: O(n m (d + p)) time, O((n + m) (d + p)) memory.

    Example:
      >>> from kernelgrad import kernels, pairwise
      >>> kernel, x = kernels.rbf_mixture(1.0), jnp.array([[0.0], [1.0]])
      >>> sums = pairwise.kernel_and_gradient_sum(kernel, x, None, jnp.ones((2, 1)), jnp.ones(2))
      >>> print(sums[0].T, sums[1].T)
      [[1.607 1.607]] [[-0.607  0.607]]
    """
    x, y, given = _taken(x, y, offsets, weights=weights, gradient_weights=gradient_weights)
    others = x if y is None else y
    weights = _of_rows("weights", given["weights"], others, "p")
    gradient_weights = _of_rows("gradient_weights", given["gradient_weights"], others)
    offsets = _offsets(given, x, y)
    lengthscales = _traits.coordinate_lengthscales(kernel)
    if lengthscales is not None:
        sides = (*_embedded(kernel, x, y), weights, gradient_weights)
        values, gradients = kernel_and_gradient_sum(
            _traits.radial(kernel), *sides, offsets=offsets, axis_name=axis_name
        )
        gradients = gradients / _numeric.like(lengthscales, gradients)[None]
        return _numeric.like(values, x), _numeric.like(gradients, x)
    if _traits.is_feature_kernel(kernel):
        values = kernel_sum(kernel, x, y, weights, offsets=offsets, axis_name=axis_name)
        return values, gradient_sum(kernel, x, y, gradient_weights, axis_name=axis_name)
    sums = _pairs(kernel, x, y, axis_name).sums(weights, gradient_weights, offsets=offsets)
    return jax.tree.map(lambda s: s.astype(jnp.result_type(x)), sums)


def stein_sum(
    kernel: Kernel,
    x: Array,
    y: Array | None,
    weights: Array,
    gradient_weights: Array | None = None,
    *,
    axis_name: str | None = None,
) -> Array:
    r"""Returns the sums of :func:`kernel_and_gradient_sum` added up, as Stein's method needs them.

    .. math:: S_i = \sum_j [k(x_i, y_j) w_j + g_j \nabla_{y_j} k(x_i, y_j)]

    With w_j the score of p at y_j and g = 1 it is the Langevin-Stein operator applied to k(x_i, .)
    and summed over y: the direction of SVGD, up to 1/m.

    Args:
      kernel: k; its lengthscales are in units of x.
      x: points x_i; shape (n, d), floating.
      y: points y_j; shape (m, d). None: x itself.
      weights: w_j, in 1/units of x; shape (m, d).
      gradient_weights: g_j; shape (m,). None: all 1.
      axis_name: if set, j runs over the union of all devices' y and weights.

    Returns:
      Sums, shape (n, d), dtype of x, in 1/units of x.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes.

    Cost: O(n m d) time, O((n + m) d) memory: 4 n m d operations in matmuls for a single Gaussian,
      6 n m d for any other radial kernel, and three quarters or two thirds of it where y is None;
      features as in :func:`gradient_sum`.

    Example:
      >>> from kernelgrad import kernels, pairwise, svgd
      >>> kernel, x = kernels.rbf_mixture(1.0), jnp.array([[0.0], [1.0]])
      >>> sums = pairwise.stein_sum(kernel, x, None, -x)  # with the score of N(0, 1)
      >>> bool(jnp.allclose(sums, 2 * svgd.svgd_direction(x, -x, kernel)))
      True

    References:
      Liu & Wang 2016, eq. (8); Wang & Liu 2016 (amortized SVGD), eq. (7).
    """
    forces = {} if gradient_weights is None else {"gradient_weights": gradient_weights}
    x, y, given = _taken(x, y, None, weights=weights, **forces)
    others = x if y is None else y
    weights = _of_rows("weights", given["weights"], others, x.shape[1])
    gradient_weights = _of_rows("gradient_weights", given.get("gradient_weights"), others)
    lengthscales = _traits.coordinate_lengthscales(kernel)
    if lengthscales is not None:
        points = _embedded(kernel, x, y)
        weights, scales = _numeric.wide(weights), _numeric.like(lengthscales, points[0])[None]
        sides = (*points, weights * scales, gradient_weights)
        sums = stein_sum(_traits.radial(kernel), *sides, axis_name=axis_name)
        return _numeric.like(sums / scales, x)
    if _traits.is_feature_kernel(kernel):
        values = kernel_sum(kernel, x, y, weights, axis_name=axis_name)
        return values + gradient_sum(kernel, x, y, gradient_weights, axis_name=axis_name)
    sums = _pairs(kernel, x, y, axis_name).sums(weights, gradient_weights, joined=True)
    return sums.astype(jnp.result_type(x))


def _taken(
    x: Array, y: Array | None, offsets: tuple[Array, Array] | None, /, **values: Array
) -> tuple[Array, Array | None, dict[str, Array]]:
    """Returns the points, and by name what belongs to them, all of one dtype."""
    x, y = _checks.pair(x, y)
    arrays = {"x": x, **({} if y is None else {"y": y}), **values}
    if offsets is not None:
        arrays.update(zip(_OFFSETS, offsets, strict=True))
    given = dict(zip(arrays, _checks.floating(**arrays), strict=True))
    return given.pop("x"), given.pop("y", None), given


def _embedded(kernel: Kernel, x: Array, y: Array | None) -> tuple[Array, Array | None]:
    """Returns the points between which the kernel measures distances; y None stays."""
    return _traits.embed(kernel, x), None if y is None else _traits.embed(kernel, y)


def _of_rows(name: str, values: Array | None, points: Array, *rest: int | str) -> Array:
    """Returns what belongs to points, a row each, ones for None, or raises ValueError."""
    if values is None:
        return jnp.ones(points.shape[:1], points.dtype)
    _checks.shape(name, values, (points.shape[0], *rest))
    return values


def _offsets(given: dict[str, Array], x: Array, y: Array | None) -> tuple[Array, Array] | None:
    sides = zip(_OFFSETS, (x, x if y is None else y), strict=True)
    if _OFFSETS[0] not in given:
        return None
    above, beside = (_of_rows(name, given[name], points) for name, points in sides)
    return above, beside


# ------------------------------------------------------------------------------------- sums


class _Side(NamedTuple):
    """The points on one side of the pairs, and what they weigh in the other side's sums."""

    points: Any  # Points, or Bare as they travel
    offset: Array | None = None
    weights: Any = None  # (m, p), or None
    gradient_weights: Any = None  # (m,), or None


class _Pairs(NamedTuple):
    """Points between which a radial kernel is to be summed, the columns over all devices."""

    kernel: Kernel
    rows: Points | Bare
    cols: Points | Bare
    axis_name: str | None
    same: bool  # rows are (among) the columns
    unit: Array  # of length, in which kernel and points are
    centre: Array | None  # of bare points

    def sums(
        self,
        weights: Array | None,
        gradient_weights: Array | None = None,
        *,
        offsets: tuple[Array, Array] | None = None,
        joined: bool = False,
    ) -> Any:
        """Returns the sums of (k - a - b) w and of g grad k as a pair, or joined into one array."""
        above, beside = (None, None) if offsets is None else offsets
        of_gradients = self._typed(gradient_weights)
        of_gradients = None if of_gradients is None else of_gradients / self.unit
        side = _Side(self.cols, self._typed(beside), self._typed(weights), of_gradients)
        if self.same and self.centre is None:
            mirrored = _either(True, functools.partial(_mirrored_tile, joined))
            return _tiles.stream_symmetric(mirrored, self.kernel, side).rows
        here = _Side(self.rows, self._typed(above))
        tile: _tiles.TileFn = _either(self.same, functools.partial(_tile, joined))
        if self.centre is None:
            return _tiles.stream(tile, self.kernel, here, side).rows
        shared = self.kernel, self.centre
        return _tiles.stream(_tiles.viewed(tile, _dressed), shared, here, side, self.axis_name).rows

    def _typed(self, array: Array | None) -> Array | None:
        return None if array is None else jnp.asarray(array).astype(self.rows.raw.dtype)


def _pairs(kernel: Kernel, x: Array, y: Array | None, axis_name: str | None) -> _Pairs:
    x = _numeric.wide(jnp.asarray(x))
    y = None if y is None else _numeric.like(jnp.asarray(y), x)
    kernel, x, y, unit = _distances.in_own_unit(kernel, x, y)
    if _devices.num_devices(axis_name) == 1:
        return _Pairs(kernel, *_distances.prepare(x, y), axis_name, y is None, unit, None)
    rows, cols = _distances.bare(x, y)
    centre = _distances.middle(cols.raw, axis_name)
    return _Pairs(kernel, rows, cols, axis_name, y is None, unit, centre)


def _dressed(shared: tuple[Kernel, Array], side: _Side) -> tuple[Kernel, _Side]:
    """Returns the kernel, and a side of a tile whose points travelled."""
    kernel, centre = shared
    return kernel, side._replace(points=_distances.moved(side.points, centre))


def _either(same: bool, tile: Callable[..., _tiles.PairSums]) -> _tiles.Either:
    """Returns the tile by differences where the matmul loses a pair, and else by products.

    Args:
      same: whether the rows are (among) the columns.
      tile: (exact, kernel, shift, rows, cols) -> sums.
    """

    def lost(kernel: Kernel, shift: Any, rows: _Side, cols: _Side) -> bool | Array:
        # in a product with moments a point pulls at itself, too, but for rounding
        own = shift if same and cols.gradient_weights is None else None
        return _distances.lost(kernel, rows.points, cols.points, own)

    def may_lose(kernel: Kernel, rows: _Side, cols: _Side) -> bool | Array:
        return _distances.may_lose(kernel, rows.points, cols.points)

    def by(exact: bool, kernel: Kernel, shift: Any, rows: _Side, cols: _Side) -> _tiles.PairSums:
        return tile(exact, kernel, shift if same else None, rows, cols)

    by_differences, by_products = (functools.partial(by, exact) for exact in (True, False))
    return _tiles.Either(may_lose, lost, by_differences, by_products)


def _tile(
    joined: bool, exact: bool, kernel: Kernel, shift: Any, rows: _Side, cols: _Side
) -> _tiles.PairSums:
    """The sums at the rows."""
    at_rows, _ = _sums(joined, exact, kernel, shift, rows, cols)
    return _tiles.PairSums(rows=at_rows())


def _mirrored_tile(
    joined: bool, exact: bool, kernel: Kernel, shift: Any, rows: _Side, cols: _Side
) -> _tiles.PairSums:
    """The sums at the rows, and, unless they are the columns, at the columns."""
    at_rows, at_cols = _sums(joined, exact, kernel, shift, rows, cols)
    sums = at_rows()
    mirrored = at_cols() if shift is None else jax.tree.map(jnp.zeros_like, sums)
    return _tiles.PairSums(rows=sums, cols=mirrored)


def _sums(
    joined: bool, exact: bool, kernel: Kernel, shift: Any, rows: _Side, cols: _Side
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    r"""The sums of one tile, at its rows and at its columns.

    :math:`\sum_j g_j \nabla_{y_j} k = 2 \sum_j k'_{ij} g_j y_j - 2 x_i \sum_j k'_{ij} g_j` is a
    product of k' with moments known beforehand, unless that would lose a pair. A single Gaussian
    has k' = rate k, so that one product serves the joined sums.
    """
    rate = _traits.log_slope(kernel) if joined else None
    sq_dist = _distances.between(kernel, rows.points, cols.points, shift, exact=exact)
    if cols.gradient_weights is None or rate is not None:
        value = slope = kernel.profile(sq_dist)
    else:
        value, slope = jax.jvp(kernel.profile, (sq_dist,), (jnp.ones_like(sq_dist),))
    less = value
    if rows.offset is not None and cols.offset is not None:
        less = value - (rows.offset[:, None] + cols.offset[None, :])

    def gradients(
        here: _Side, others: _Side, with_them: Array | None, dot: _Dot, axis: int
    ) -> Array:
        force = 2 * others.gradient_weights[:, None]
        if rate is not None:
            force = rate.astype(force.dtype) * force

        def by_products() -> Array:
            moments = jnp.concatenate([force * others.points.centred, force], axis=1)
            if with_them is not None:
                moments = moments.at[:, :-1].add(with_them)
            sums = dot(slope, moments)
            return sums[:, :-1] - here.points.centred * sums[:, -1:]

        def by_differences() -> Array:
            factors = slope * (force.T if axis == 1 else -force)
            sums = _distances.difference_sums(factors, rows.points, cols.points, axis=axis)
            return sums if with_them is None else sums + dot(slope, with_them)

        return _distances.choose(exact, by_differences, by_products)

    def at(here: _Side, others: _Side, dot: _Dot, axis: int) -> Any:
        weights = others.weights
        if others.gradient_weights is None:
            return dot(less, weights), None
        if rate is not None:
            return gradients(here, others, weights, dot, axis)
        values = None if weights is None else dot(less, weights)
        of_gradients = gradients(here, others, None, dot, axis)
        if not joined:
            return values, of_gradients
        return of_gradients if values is None else values + of_gradients

    return lambda: at(rows, cols, _numeric.dot, 1), lambda: at(cols, rows, _transposed_dot, 0)


def _transposed_dot(matrix: Array, vectors: Array) -> Array:
    """Returns matrix^T vectors; without the barriers, XLA for CPU takes four times as long."""
    rows = lax.optimization_barrier(vectors.T)
    return lax.optimization_barrier(_numeric.dot(rows, matrix)).T


def _feature_gradient_sum(
    kernel: Any, x: Array, y: Array | None, weights: Array, axis_name: str | None
) -> Array:
    r"""Gradient sums for k(phi(x), phi(y)), the gradient pulled back through phi at each y_j.

    With :math:`e_i = \phi(x_i)` and :math:`f_j = \phi(y_j)`, both centred,
    :math:`P_{ij} = 2 k'(r_{ij}^2) w_j` and the Jacobian :math:`J_j`, :math:`N_i = \sum_j P_{ij}
    J_j^\top f_j - \sum_a e_{ia} \sum_j P_{ij} J_j^\top u_a` with the l unit vectors u: one
    backward pass and one sum for each of them, never an (m, l, d) Jacobian. Or each i has a pass of
    its own, for the :math:`P_{ij} (f_j - e_i)`: where those are fewer, or features are so many
    lengthscales apart that their products lose the differences. No fewer passes do in general: the
    :math:`J_j` differ, and each is to be multiplied by as many vectors as the :math:`f_j - e_i`
    span over i.
    """
    x, y, weights = jax.tree.map(jnp.asarray, (x, y, weights))
    points = _devices.own_point(kernel.features, x if y is None else y)
    targets, pull = jax.vjp(kernel.features, points)
    embedded = targets if y is None else kernel.features(x)
    here, there = _distances.prepare(embedded, targets, axis_name)
    rows, cols = here.centred, there.centred
    slope = _Slope(_traits.radial(kernel))
    pairs = _pairs(slope, embedded, None if y is None else targets, axis_name)
    weights = weights.astype(cols.dtype)

    def slope_sum(vectors: Array) -> Array:
        return pairs.sums(2 * weights[:, None] * vectors.astype(cols.dtype))[0]

    def add_feature(total: Array, feature: tuple[Array, Array]) -> tuple[Array, None]:
        vector, coordinate = feature
        (row,) = pull(jnp.broadcast_to(vector, targets.shape))
        return total - coordinate[:, None] * slope_sum(row), None

    def by_products() -> Array:
        (own,) = pull(cols.astype(targets.dtype))
        units = jnp.eye(rows.shape[1], dtype=targets.dtype)
        units, coordinates = _devices.varying((units, rows.T), targets)
        return lax.scan(add_feature, slope_sum(own), (units, coordinates))[0]

    @jax.checkpoint
    def at(row: Array) -> Array:
        gaps = there.raw - row[None]
        factors = 2 * weights * slope.profile(_distances.sq_norms(gaps))
        (pulled,) = pull((factors[:, None] * gaps).astype(targets.dtype))
        return jnp.sum(pulled, axis=0)

    def by_differences() -> Array:
        everyone = lax.map(at, _devices.gather(here.raw, axis_name)).astype(cols.dtype)
        return _devices.share(_devices.total(everyone, axis_name), axis_name)

    if rows.shape[0] * _devices.num_devices(axis_name) <= rows.shape[1]:
        return by_differences().astype(x.dtype)
    exact = _devices.largest(_distances.blurs(kernel, here, there), axis_name)
    return _distances.choose(exact, by_differences, by_products).astype(x.dtype)


class _Slope(NamedTuple):
    """The derivative of a kernel's profile, as a profile of its own."""

    kernel: Kernel

    def profile(self, sq_dist: Array) -> Array:
        """Returns d profile / d sq_dist."""
        return jax.jvp(self.kernel.profile, (sq_dist,), (jnp.ones_like(sq_dist),))[1]
