r"""Solves :math:`(K + \eta I) X = B` for the gram K of some points: by Cholesky, or without K.

Both ways return a function from B to X, differentiable to any order in reverse mode in all that
it depends on: the derivatives are solves again.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve
from jax.scipy.sparse.linalg import cg

from kernelgrad import _devices, _distances, _gram, _numeric, _traits, pairwise
from kernelgrad.types import Array, Kernel

NUM_PIVOTS = 256
TARGET_ERROR = 1e-4
LARGEST_ERROR = 1e-2

_CG_STEPS = 200
_CG_TOLERANCE = 1e-3

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


def matrix_free(kernel: Kernel, points: Array, ridge: Array) -> Solve:
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

    Returns:
      Function from B to X, shape (n, p). A column whose bound stays above ``LARGEST_ERROR`` is NaN.
      What the bound cannot see is the rounding of K itself, relative to eta.

    Cost: O(n^2 (d + p)) time an iteration; O(n (d + p + m)) memory, m = ``NUM_PIVOTS``.

    References:
      Harbrecht, Peters & Schneider 2012 (pivoted Cholesky); Higham 2002, chapter 12 (refinement).
    """
    points, kernel = _traits.embed(kernel, points), _traits.radial(kernel)

    precondition = _preconditioner(*jax.tree.map(lax.stop_gradient, (kernel, points, ridge)))

    def solve(b: Array) -> Array:
        (radial, nodes, eta), b = _devices.varying(((kernel, points, ridge), b))

        def apply(vectors: Array) -> Array:
            return pairwise.kernel_sum(radial, nodes, None, vectors) + eta * vectors

        held = lax.stop_gradient(eta)
        return _linear(apply, functools.partial(_refined, apply, precondition, held))(b)

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


_factor = _in_turn(lambda matrix: cho_factor(matrix, lower=True)[0])
_substitute = _in_turn(lambda factor, b: cho_solve((factor, True), b))


def _linear(apply: Solve, solve: Solve) -> Solve:
    """Returns `solve` with the derivatives of the inverse of the symmetric map `apply`."""
    return lambda b: lax.custom_linear_solve(apply, b, lambda _, c: solve(c), symmetric=True)


def _refined(apply: Solve, precondition: Solve, ridge: Array, b: Array) -> Array:
    """Returns the solution; CG squares and adds up all columns, hence their common size."""
    scale = jnp.max(jnp.abs(b), axis=0, keepdims=True)
    scale = jnp.where(scale > 0, scale, 1)
    b = b / scale

    def excess(x: Array, residual: Array) -> Array:
        size = _norms(residual)
        return jnp.where(size > 0, size / (ridge * _norms(x)), size)

    def unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
        _, _, bound, bound_before = state
        return (bound > TARGET_ERROR) & (bound <= bound_before / 2)

    def refine(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        x, residual, bound, _ = state
        change, _ = cg(apply, residual, M=precondition, tol=_CG_TOLERANCE, maxiter=_CG_STEPS)
        x += change
        residual = b - apply(x)
        return x, residual, jnp.max(excess(x, residual)), bound

    largest = jnp.finfo(b.dtype).max
    start = jnp.zeros_like(b), b, jnp.full((), largest, b.dtype), jnp.full((), jnp.inf, b.dtype)
    start = _devices.varying(start, ridge)
    x, residual, _, _ = lax.while_loop(unfinished, refine, start)
    return jnp.where(excess(x, residual) <= LARGEST_ERROR, x, jnp.nan) * scale


def _preconditioner(kernel: Kernel, points: Array, ridge: Array) -> Solve:
    """Returns the inverse of F F^T + mu I, by orthonormal eigenvectors: never indefinite."""
    factor, left = _pivoted_cholesky(kernel, points, min(NUM_PIVOTS, points.shape[0]))
    basis, corner = jnp.linalg.qr(factor.T)
    values, vectors = jnp.linalg.eigh(_numeric.dot(corner, corner.T))
    basis, shift = _numeric.dot(basis, vectors), ridge + jnp.mean(left)
    inverse = 1 / (jnp.maximum(values, 0) + shift)[:, None]

    def precondition(residual: Array) -> Array:
        inside = _numeric.dot(basis.T, residual)
        outside = residual - _numeric.dot(basis, inside)
        return outside / shift + _numeric.dot(basis, inverse * inside)

    return precondition


def _pivoted_cholesky(kernel: Kernel, points: Array, rank: int) -> tuple[Array, Array]:
    """Returns F^T, shape (rank, n), and the diagonal of K - F F^T; rows are 0 below rounding."""
    peak = _gram.at_zero(kernel, points)
    rounding = rank * jnp.finfo(points.dtype).eps * peak

    def add(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        factor, left = carry
        pivot = jnp.argmax(left)
        sq_dist = _distances.sq_norms(points - points[pivot][None])
        row = kernel.profile(sq_dist) - _numeric.dot(factor[:, pivot], factor)
        row = jnp.where(left[pivot] > rounding, row * lax.rsqrt(left[pivot]), 0)
        left = jnp.maximum(left - jnp.square(row), 0).at[pivot].set(0)
        return factor.at[index].set(row), left

    empty = jnp.zeros((rank, points.shape[0]), points.dtype)
    start = _devices.varying((empty, jnp.broadcast_to(peak, points.shape[:1])), points)
    return lax.fori_loop(0, rank, add, start)


def _norms(columns: Array) -> Array:
    return jnp.linalg.norm(columns, axis=0, keepdims=True)
