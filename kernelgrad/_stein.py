"""The Stein kernel of pairs of particles, a tile at a time, and its sums."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _devices, _distances, _numeric, _tiles, _traits
from kernelgrad._distances import Bare, Points
from kernelgrad.types import Array, Kernel

_SHORTEST = 2.0**-40  # unit of points, in lengthscales

Rows = tuple[Array, Array]  # particles and scores, a row each


class Coordinates(NamedTuple):
    """What a lengthscale l for each coordinate adds; q is the shortest of them over each of them.

    Attributes:
      steps: q x / l, whose squared distances are those that the curvature of k meets.
      force: q t, the score whose products the slope of k meets.
      trace: the sum of q^2, one number for all.
    """

    steps: Points
    force: Array
    trace: Array


class Side(NamedTuple):
    r"""The particles on one side of the pairs, and what their pairs need of each.

    With :math:`t = s / \sqrt c` and :math:`p = \sqrt c\, x + t`, the mixed term is a difference of
    squared distances, :math:`2 (x - y)^\top (s' - s) = c r^2 + |t - t'|^2 - |p - p'|^2`. So a pair
    costs three inner products of length d, and the c that balances x and s keeps their digits.

    With a lengthscale for each coordinate x is over them, :math:`k = f(r^2)` of it, and with the q
    of :class:`Coordinates` the pair is :math:`f s^\top s' + 2 f' (x - y)^\top (q s' - q s)
    - 4 f'' |q x - q y|^2 - 2 f' \sum_a q_a^2`: q t stands for t in p and in the products of the
    mixed term.
    """

    points: Points
    score: Array  # t
    left: Array  # (2 p, |t|^2 - |p|^2 - d, 1), whose product with
    right: Array  # (p, 1, |t|^2 - |p|^2 - d) is |t - t'|^2 - |p - p'|^2 + 2 t.t' - 2 d
    scale: Array  # c, one number for all
    weight: Array
    coordinates: Coordinates | None = None  # None: q = 1


class _Bare(NamedTuple):
    """Particles in their unit of length, as they travel between devices."""

    points: Bare
    score: Array
    weight: Array | None


def _check(kernel: Kernel) -> None:
    if _traits.is_feature_kernel(kernel) and _traits.coordinate_lengthscales(kernel) is None:
        raise ValueError(
            "kernel: got a feature kernel; expected a radial kernel of the particles, or "
            "per_coordinate of one"
        )
    if not _traits.smooth_at_zero(_traits.radial(kernel)):
        raise ValueError(
            "kernel: got laplace or another that is not differentiable at 0; "
            "expected matern32 or IMQ"
        )


def side_of(
    particles: Array, score: Array, kernel: Kernel, weights: Array | None = None
) -> tuple[Side, Kernel, Array]:
    """Returns the particles, and the radial kernel, in a unit of length of their own, and a length.

    The Stein kernel of the side is that of the particles, times the square of the length.
    """
    _check(kernel)
    as_given, _ = _distances.prepare(_traits.embed(kernel, particles))
    unit = _unit(kernel, as_given)
    length, shares = _lengths(kernel, unit)
    points, _ = _distances.prepare(as_given.raw / unit)
    score = score.astype(unit.dtype) * length
    root = _balance(points.sq_norms, _distances.sq_norms(_forces(score, shares)))
    side = _balanced(points, score, root, shares)
    if weights is not None:
        side = side._replace(weight=weights.astype(unit.dtype))
    return side, _distances.in_unit(_traits.radial(kernel), unit), length


def _unit(kernel: Kernel, points: Points) -> Array:
    """Returns the unit of the points, or a longer one, where squares of lengthscales stay in range.

    For points that are as good as one to the kernel.
    """
    unit, radial = points.unit(), _traits.radial(kernel)
    if not hasattr(radial, "lengthscales"):
        return unit
    longest = _numeric.power_of_two(lax.stop_gradient(jnp.max(radial.lengthscales)))
    return jnp.maximum(unit, _numeric.like(longest, unit) * _SHORTEST)


def _lengths(kernel: Kernel, unit: Array) -> tuple[Array, Array | None]:
    """Returns the unit of the scores, and q, shape (d,), of a lengthscale for each coordinate."""
    lengthscales = _traits.coordinate_lengthscales(kernel)
    if lengthscales is None:
        return unit, None
    lengthscales = lengthscales.astype(unit.dtype) * unit
    shortest = lax.stop_gradient(_numeric.power_of_two(jnp.min(lengthscales)))
    return shortest, shortest / lengthscales


def _forces(score: Array, shares: Array | None) -> Array:
    return score if shares is None else score * shares[None]


def _balanced(points: Points, score: Array, root: Array, shares: Array | None) -> Side:
    score = score / root
    force = _forces(score, shares)
    mixed = root * points.centred + force
    trace = score.shape[1] if shares is None else jnp.sum(jnp.square(shares))
    excess = _distances.sq_norms(force) - _distances.sq_norms(mixed) - trace
    ones = jnp.ones_like(excess)
    left = jnp.concatenate([2 * mixed, excess[:, None], ones[:, None]], axis=1)
    right = jnp.concatenate([mixed, ones[:, None], excess[:, None]], axis=1)
    coordinates = None
    if shares is not None:
        centred = points.centred * shares[None]
        steps = Points(points.raw * shares[None], centred, _distances.sq_norms(centred))
        coordinates = Coordinates(steps, force, trace * ones)
    return Side(points, score, left, right, root**2 * ones, ones, coordinates)


def _balance(point_norms: Array, score_norms: Array) -> Array:
    """Returns sqrt(c) = (median |s|^2 / median |x|^2)^(1/4), which no bad row or outlier moves."""
    points, scores = map(_distances.median_of_some, (point_norms, score_norms))
    known = (points > 0) & (scores > 0)
    return jnp.where(known, scores, 1) ** 0.25 / jnp.where(known, points, 1) ** 0.25


def row_shares(
    particles: Array,
    score: Array,
    kernel: Kernel,
    axis_name: str | None,
    *,
    own: bool,
    weights: Array | None = None,
) -> Array:
    """Mean over i of sums over j, in which a pair counts for both of its points.

    Args:
      particles: x_i; shape (n, d).
      score: s_i; shape (n, d).
      kernel: radial, or with a lengthscale for each coordinate.
      axis_name: if set, the particles are the union over all devices.
      own: whether a particle is a pair with itself.
      weights: by which a pair counts, a product of two, of mean 1; shape (n,). None: 1.
    """
    if axis_name is None or _devices.num_devices(axis_name) == 1:
        side, kernel, length = side_of(particles, score, kernel, weights)
        mean = jnp.mean(_symmetric(functools.partial(_share_tile, own), kernel, side).rows)
        return _devices.statistic(mean / jnp.square(length), axis_name)
    _check(kernel)
    as_given, _ = _distances.prepare(_traits.embed(kernel, particles))
    unit = _devices.median(_unit(kernel, as_given), axis_name)
    length, shares = _lengths(kernel, unit)
    points, _ = _distances.bare(as_given.raw / unit)
    score = score.astype(unit.dtype) * length
    centre = _distances.middle(points.raw, axis_name)
    norms = _distances.moved(points, centre).sq_norms
    force_norms = _distances.sq_norms(_forces(score, shares))
    root = _devices.median(_balance(norms, force_norms), axis_name)
    shared = _distances.in_unit(_traits.radial(kernel), unit), centre, root, shares
    travelling = _tiles.viewed(_either(functools.partial(_row_tile, own)), _dressed)
    here = _Bare(points, score, None if weights is None else weights.astype(unit.dtype))
    rows = _tiles.stream(travelling, shared, here, here, axis_name).rows
    return _devices.statistic(jnp.mean(rows) / jnp.square(length), axis_name)


def _dressed(shared: tuple[Kernel, Array, Array, Array | None], bare: _Bare) -> tuple[Kernel, Side]:
    """Returns the kernel, and what its pairs need of particles that travelled."""
    kernel, centre, root, shares = shared
    side = _balanced(_distances.moved(bare.points, centre), bare.score, root, shares)
    weight = bare.points.real if bare.weight is None else bare.weight
    return kernel, side._replace(weight=weight)


def forms(side: Side, kernel: Kernel, weights: Array) -> Array:
    """Returns the sums of w_i w_j u(x_i, x_j) of each column of weights; shape (n, b) to (b,)."""
    return _symmetric(_form_tile, kernel, side._replace(weight=weights)).total


def _symmetric(tile: Callable[..., _tiles.PairSums], kernel: Kernel, side: Side) -> _tiles.PairSums:
    return _tiles.stream_symmetric(_either(tile), kernel, side)


def _either(tile: Callable[..., _tiles.PairSums]) -> _tiles.Either:
    """Returns the tile by differences where products lose a pair, and else by products.

    Args:
      tile: (exact, kernel, shift, rows, cols) -> sums.
    """

    def lost(kernel: Kernel, shift: Any, rows: Side, cols: Side) -> bool | Array:
        return _distances.lost(kernel, rows.points, cols.points, shift)

    def may_lose(kernel: Kernel, rows: Side, cols: Side) -> Array:
        return _distances.may_lose(kernel, rows.points, cols.points)

    by_differences, by_products = (functools.partial(tile, exact) for exact in (True, False))
    return _tiles.Either(may_lose, lost, by_differences, by_products)


def _row_tile(
    own: bool, exact: bool, kernel: Kernel, shift: Array, rows: Side, cols: Side
) -> _tiles.PairSums:
    gram = gram_tile(kernel, shift, rows, cols, exact)
    if not own:
        gram = _distances.at_same_point(gram, shift, 0)
    return _tiles.PairSums(rows=_numeric.dot(gram, cols.weight) * rows.weight)


def _share_tile(
    own: bool, exact: bool, kernel: Kernel, shift: Any, rows: Side, cols: Side
) -> _tiles.PairSums:
    gram = gram_tile(kernel, shift, rows, cols, exact)
    if not own:
        gram = _distances.at_same_point(gram, shift, 0)
    shares = _numeric.dot(gram, cols.weight) * rows.weight
    shares *= 2 if shift is None else 1
    return _tiles.PairSums(rows=shares, cols=jnp.zeros_like(shares))


def _form_tile(exact: bool, kernel: Kernel, shift: Any, rows: Side, cols: Side) -> _tiles.PairSums:
    gram = gram_tile(kernel, shift, rows, cols, exact)
    sums = jnp.sum(rows.weight * _numeric.dot(gram, cols.weight), axis=0)
    return _tiles.PairSums(total=sums * (2 if shift is None else 1))


def gram_tile(
    kernel: Kernel, shift: Any, rows: Side, cols: Side, exact: bool | Array | None = None
) -> Array:
    """Returns the Stein kernel of a tile; exact is :func:`_distances.lost`, None: asked for."""
    if exact is None:
        exact = _distances.lost(kernel, rows.points, cols.points, shift)
    sq_dist = _distances.between(kernel, rows.points, cols.points, shift, exact=exact)
    value, slope, curvature = _derivatives(kernel, sq_dist)
    scale, inner = rows.scale[:, None], _numeric.dot(rows.score, cols.score.T)
    forces, products, bent = (rows.score, cols.score), inner, sq_dist
    trace: int | Array = rows.score.shape[1]
    if rows.coordinates is not None and cols.coordinates is not None:
        forces = rows.coordinates.force, cols.coordinates.force
        trace = rows.coordinates.trace[:, None]
        products = _numeric.dot(forces[0], forces[1].T)
        steps = rows.coordinates.steps, cols.coordinates.steps
        bent = _distances.between(kernel, *steps, shift, exact=exact)

    def by_differences() -> Array:
        moved = _distances.over_coordinates(
            lambda a, b: (a[0] - b[0]) * (b[1] - a[1]),
            (rows.points.raw, forces[0]),
            (cols.points.raw, forces[1]),
        )
        return 2 * jnp.sqrt(scale) * moved - 2 * trace

    polar = _distances.choose(
        exact, jax.checkpoint(by_differences), lambda: _numeric.dot(rows.left, cols.right.T)
    )
    mixed = polar + jnp.where(exact == 1, 0, scale * sq_dist - 2 * products)
    mixed = _distances.at_same_point(mixed, shift, -2 * trace)
    return scale * value * inner + slope * mixed - 4 * curvature * bent


def of_rows(
    particles: Array, score: Array, kernel: Kernel
) -> tuple[Callable[[Rows, Rows], Array], Rows]:
    """Returns the Stein kernel of particles with others, row by row, and all particles.

    They are in a unit of length of their own: the kernel is that of the particles times its square.
    """
    _check(kernel)
    as_given, _ = _distances.prepare(_traits.embed(kernel, particles))
    unit = _unit(kernel, as_given)
    length, shares = _lengths(kernel, unit)
    base = _distances.in_unit(_traits.radial(kernel), unit)
    q = (jnp.ones(score.shape[1], unit.dtype) if shares is None else shares)[None]

    def pairs(rows: Rows, others: Rows) -> Array:
        steps = rows[0] - others[0]
        sq_dist = jnp.sum(jnp.square(steps), axis=1)
        value, slope, curvature = _derivatives(base, sq_dist)
        inner = jnp.sum(rows[1] * others[1], axis=1)
        moved = jnp.sum(q * steps * (others[1] - rows[1]), axis=1) - jnp.sum(jnp.square(q))
        bent = jnp.sum(jnp.square(q * steps), axis=1)
        return value * inner + 2 * slope * moved - 4 * curvature * bent

    return pairs, (as_given.raw / unit, score.astype(unit.dtype) * length)


def _derivatives(kernel: Kernel, sq_dist: Array) -> tuple[Array, Array, Array]:
    """Returns a radial kernel at squared distances, and its two derivatives in them."""
    ones = jnp.ones_like(sq_dist)
    slope, curvature = jax.jvp(
        lambda r: jax.jvp(kernel.profile, (r,), (ones,))[1], (sq_dist,), (ones,)
    )
    return kernel.profile(sq_dist), slope, curvature
