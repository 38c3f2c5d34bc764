r"""Solves :math:`(K + \eta I) X = B` for the gram K of some points: by Cholesky, or without K.

Both ways return a function from B to X, differentiable to any order in reverse mode in all that
it depends on: the derivatives are solves again.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve, solve_triangular

from kernelgrad import _devices, _distances, _gram, _numeric, _traits, pairwise
from kernelgrad.types import Array, Kernel

NUM_PIVOTS = 256
TARGET_ERROR = 1e-4
LARGEST_ERROR = 1e-2

_CG_STEPS = 200
_CG_TOLERANCE = 1e-3
_BATCH = 200  # points up to which OpenBLAS factorises on one thread
_ON_ONE_THREAD = 1000  # entries of a right-hand side that it solves for on one thread

Solve = Callable[[Array], Array]


def dense(gram: Array, ridge: Array) -> Solve:
    r"""Returns the solver that factorises :math:`K + \eta I`.

    Args:
      gram: K, positive semidefinite; shape (n, n).
      ridge: eta > 0; shape (), dtype of gram.

    Returns:
      Function from B to X, shape (n, p). All NaN where the Cholesky factorisation fails.

    Cost: O(n^3) time once and O(n^2 p) a call, O(n^2) memory.
    """
    matrix = gram + ridge * jnp.eye(gram.shape[0], dtype=gram.dtype)
    factor = _factor(lax.stop_gradient(matrix))

    def solve(b: Array) -> Array:
        ours, held, b = _devices.varying((matrix, factor, b))
        return _linear(lambda x: _numeric.dot(ours, x), lambda c: _substitute(held, c))(b)

    return solve


def matrix_free(kernel: Kernel, points: Array, ridge: Array, axis_name: str | None = None) -> Solve:
    r"""Returns the solver that never holds K: conjugate gradients, refined and checked.

    The preconditioner is :math:`F F^\top + \mu I`, F the first columns of a Cholesky factorisation
    of K with the greatest pivots first, and :math:`\mu - \eta` the mean of what they leave of the
    diagonal. Solves are repeated on the true residual R until, in every column, :math:`|R| / (\eta
    |X|)`, a bound of the relative error as no eigenvalue of :math:`K + \eta I` is below eta, meets
    ``TARGET_ERROR`` or halves no more, for rounding sets in.

    Args:
      kernel: k, positive definite; its lengthscales are in units of points.
      points: x_i; shape (n, d), at least float32.
      ridge: eta > 0; shape (), dtype of points.
      axis_name: if set, points are this device's share of all, and so are the rows of B and X.

    Returns:
      Function from B to X, shape (n, p). A column whose bound stays above ``LARGEST_ERROR`` is NaN.
      What the bound cannot see is the rounding of K itself, relative to eta.

    Cost: O(n^2 (d + p)) time an iteration; O(n (d + p + m)) memory, m = ``NUM_PIVOTS``. Both are
      shared among the devices, between which an iteration sends points and columns once round.

    References:
      Harbrecht, Peters & Schneider 2012 (pivoted Cholesky); Higham 2002, chapter 12 (refinement).
    """
    points, kernel = _traits.embed(kernel, points), _traits.radial(kernel)

    precondition = _preconditioner(kernel, points, ridge, axis_name)

    def solve(b: Array) -> Array:
        (radial, nodes, eta), b = _devices.varying(((kernel, points, ridge), b))

        def apply(vectors: Array) -> Array:
            sums = pairwise.kernel_sum(radial, nodes, None, vectors, axis_name=axis_name)
            return sums + eta * vectors

        held = lax.stop_gradient(eta)
        solver = functools.partial(_refined, apply, precondition, held, axis_name)
        return _linear(apply, solver)(b)

    return solve


def _in_turn(fn: Callable[..., Array]) -> Callable[..., Array]:
    """Returns a function of arrays that vmap, on CPUs, makes a loop of.

    Two batches that LAPACK works off at the same time, in one program or on two devices of one
    process, wait there for each other's threads for ever, and in turn they are as fast.
    """
    mapped = jax.custom_batching.custom_vmap(fn)

    @mapped.def_vmap
    def rule(size: int, is_batched: Sequence[bool], *args: Array) -> tuple[Array, bool]:
        del size
        axes = tuple(0 if batched else None for batched in is_batched)

        def loop(*args: Array) -> Array:
            varying = [x for x, axis in zip(args, axes, strict=True) if axis is not None]

            def body(items: list[Array]) -> Array:
                rest = iter(items)
                pairs = zip(args, axes, strict=True)
                return mapped(*(x if axis is None else next(rest) for x, axis in pairs))

            return lax.map(body, varying)

        return lax.platform_dependent(*args, cpu=loop, default=jax.vmap(fn, axes)), True

    return mapped


def _substituted(factor: Array, b: Array) -> Array:
    """Returns the X of L L^T X = B; by one thread of LAPACK where a batch is solved for on a CPU.

    Its threads and those of XLA wait for each other: beside other work 100 points in R^64 took 15
    to 30 times as long with two of them.
    """
    if len(factor) > _BATCH or b.size <= _ON_ONE_THREAD:
        return cho_solve((factor, True), b)
    return lax.platform_dependent(
        factor, b, cpu=_by_the_inverse, default=lambda factor, b: cho_solve((factor, True), b)
    )


def _by_the_inverse(factor: Array, b: Array) -> Array:
    """Solves for a few columns of L^-1 at a time; the rest is products, which are XLA's."""
    n = len(factor)
    width = max(1, _ON_ONE_THREAD // n)
    num_parts = -(-n // width)
    unit = jnp.eye(n, num_parts * width, dtype=factor.dtype).reshape(n, num_parts, width)
    parts = lax.map(lambda c: solve_triangular(factor, c, lower=True), unit.swapaxes(0, 1))
    inverse = parts.swapaxes(0, 1).reshape(n, num_parts * width)[:, :n]
    return _numeric.dot(inverse.T, _numeric.dot(inverse, b))


_factor = _in_turn(lambda matrix: cho_factor(matrix, lower=True)[0])
_substitute = _in_turn(_substituted)


def _linear(apply: Solve, solve: Solve) -> Solve:
    """Returns `solve` with the derivatives of the inverse of the symmetric map `apply`."""
    return lambda b: lax.custom_linear_solve(apply, b, lambda _, c: solve(c), symmetric=True)


def _refined(
    apply: Solve, precondition: Solve, ridge: Array, axis_name: str | None, b: Array
) -> Array:
    """Returns the solution; CG squares and adds up all columns, hence their common size."""
    scale = _devices.largest(jnp.max(jnp.abs(b), axis=0, keepdims=True), axis_name)
    scale = jnp.where(scale > 0, scale, 1)
    b = b / scale

    def norms(columns: Array) -> Array:
        squares = jnp.sum(jnp.square(columns), axis=0, keepdims=True)
        return jnp.sqrt(_devices.total(squares, axis_name))

    def excess(x: Array, residual: Array) -> Array:
        size = norms(residual)
        return jnp.where(size > 0, size / (ridge * norms(x)), size)

    def unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
        _, _, bound, bound_before = state
        return (bound > TARGET_ERROR) & (bound <= bound_before / 2)

    def refine(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        x, residual, bound, _ = state
        x += _conjugate_gradients(apply, precondition, residual, axis_name)
        residual = b - apply(x)
        return x, residual, _devices.varying(jnp.max(excess(x, residual)), b, ridge), bound

    largest = jnp.finfo(b.dtype).max
    start = jnp.zeros_like(b), b, jnp.full((), largest, b.dtype), jnp.full((), jnp.inf, b.dtype)
    start = _devices.varying(start, b, ridge)
    x, residual, _, _ = lax.while_loop(unfinished, refine, start)
    return jnp.where(excess(x, residual) <= LARGEST_ERROR, x, jnp.nan) * scale


class _Search(NamedTuple):
    """Where conjugate gradients are: |R|^2 over all columns, and R against what M makes of it."""

    x: Array
    residual: Array
    direction: Array
    product: Array
    size: Array
    steps: Array


def _conjugate_gradients(
    apply: Solve, precondition: Solve, b: Array, axis_name: str | None
) -> Array:
    """Returns X with A X near B, the columns as one vector; JAX's own adds up on one device alone.

    It ends where |B - A X| is ``_CG_TOLERANCE`` of |B|, or after ``_CG_STEPS`` steps.
    """

    def dot(u: Array, v: Array) -> Array:
        return _devices.varying(_devices.total(jnp.sum(u * v), axis_name), b)

    goal = _CG_TOLERANCE**2 * dot(b, b)

    def unfinished(at: _Search) -> Array:
        return (at.size > goal) & (at.steps < _CG_STEPS)

    def step(at: _Search) -> _Search:
        moved = apply(at.direction)
        length = at.product / dot(at.direction, moved)
        residual = at.residual - length * moved
        steepest = precondition(residual)
        product = dot(residual, steepest)
        direction = steepest + product / at.product * at.direction
        x = at.x + length * at.direction
        return _Search(x, residual, direction, product, dot(residual, residual), at.steps + 1)

    first = precondition(b)
    steps = _devices.varying(jnp.zeros((), jnp.int32), b)
    start = _Search(jnp.zeros_like(b), b, first, dot(b, first), dot(b, b), steps)
    return lax.while_loop(unfinished, step, start).x


def _preconditioner(kernel: Kernel, points: Array, ridge: Array, axis_name: str | None) -> Solve:
    """Returns the inverse of F F^T + mu I, by orthonormal eigenvectors: never indefinite."""
    kernel, points, ridge = lax.stop_gradient((kernel, points, ridge))
    size = points.shape[0] * _devices.num_devices(axis_name)
    factor, left = _pivoted_cholesky(kernel, points, min(NUM_PIVOTS, size), axis_name)
    basis, corner = _orthonormal(factor.T, axis_name)
    values, vectors = jnp.linalg.eigh(_numeric.dot(corner, corner.T))
    basis = _numeric.dot(basis, vectors)
    shift = ridge + _devices.mean(jnp.mean(left), axis_name)
    inverse = 1 / (jnp.maximum(values, 0) + shift)[:, None]

    def precondition(residual: Array) -> Array:
        inside = _devices.total(_numeric.dot(basis.T, residual), axis_name)
        outside = residual - _numeric.dot(basis, inside)
        return outside / shift + _numeric.dot(basis, inverse * inside)

    return precondition


def _orthonormal(columns: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Returns this device's rows of Q, and R, of the union's rows: that of all devices' R first."""
    basis, corner = jnp.linalg.qr(columns)
    if axis_name is None:
        return basis, corner
    of_corners, corner = jnp.linalg.qr(_devices.gather(corner, axis_name))
    return _numeric.dot(basis, _devices.share(of_corners, axis_name)), corner


def _pivoted_cholesky(
    kernel: Kernel, points: Array, rank: int, axis_name: str | None
) -> tuple[Array, Array]:
    """Returns F^T, shape (rank, n), and the diagonal of K - F F^T; rows are 0 below rounding."""
    peak = _gram.at_zero(kernel, points)
    rounding = rank * jnp.finfo(points.dtype).eps * peak

    def add(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        factor, left = carry
        best = jnp.argmax(left)
        (pivot, column, most), mine = _devices.of_largest(
            left[best], (points[best], factor[:, best], left[best]), axis_name
        )
        row = kernel.profile(_distances.sq_norms(points - pivot[None])) - _numeric.dot(
            column, factor
        )
        row = jnp.where(most > rounding, row * lax.rsqrt(most), 0)
        left = jnp.maximum(left - jnp.square(row), 0)
        return factor.at[index].set(row), left.at[best].set(jnp.where(mine, 0, left[best]))

    empty = jnp.zeros((rank, points.shape[0]), points.dtype)
    start = _devices.varying((empty, jnp.broadcast_to(peak, points.shape[:1])), points)
    return lax.fori_loop(0, rank, add, start)
