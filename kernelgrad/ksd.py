r"""Kernelized Stein discrepancy: how far particles are from a density known by its score.

.. math:: \mathrm{KSD}^2 = E_{x, y \sim q}\, u_p(x, y), \quad u_p(x, y) = k\, s(x)^\top s(y)
    + s(x)^\top \nabla_y k + s(y)^\top \nabla_x k + \operatorname{tr} \nabla_x \nabla_y k

For a radial kernel k = f(r^2), :math:`u_p = f s^\top s' + 2 f' (x - y)^\top (s' - s) - 4 f'' r^2
- 2 d f'`. It is 0 if and only if q = p, for a kernel such as imq_mixture.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, kernels, pairwise, tiles
from kernelgrad.types import Array, Kernel

_dot = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def stein_gram(particles: Array, score: Array, kernel: Kernel) -> Array:
    r"""Returns the Stein kernel :math:`u_p(x_i, x_j)` of all pairs.

    Args:
      particles: x_i; shape (n, d), floating.
      score: s_i = grad log p(x_i), in 1/units of particles; shape (n, d).
      kernel: k, radial, twice differentiable at 0; its lengthscales are in units of particles.

    Returns:
      The gram, shape (n, n), symmetric, in 1/units of particles squared; at least float32.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes, a feature kernel, or laplace.

    Cost: O(n^2 d) time, O(n^2) memory; the statistics below need no gram.

    References:
      Liu, Lee & Jordan 2016, eq. (6); Wang & Liu 2016 (amortized SVGD), eq. (6).
    """
    side = _side(particles, score, kernel)
    return _stein_tile(kernel, 0, side, side)


def ksd_v_statistic(particles: Array, score: Array, kernel: Kernel) -> Array:
    r"""Returns the V-statistic of KSD^2.

    .. math:: \frac1{n^2} \sum_{ij} u_p(x_i, x_j)

    Non-negative up to rounding; biased upwards by O(1/n). Reverse-mode differentiable in
    particles, score and the kernel's leaves, in linear memory.

    Args:
      particles: x_i; shape (n, d), floating.
      score: s_i = grad log p(x_i), in 1/units of particles; shape (n, d).
      kernel: k, radial, twice differentiable at 0; its lengthscales are in units of particles.

    Returns:
      KSD^2, shape (), dtype of particles, in 1/units of particles squared.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes, a feature kernel, or laplace.

    Cost: O(n^2 d) time over the upper triangle of tiles, O(n d) memory.

    References:
      Liu, Lee & Jordan 2016, eq. (6) and section 3.
    """
    n = jnp.shape(particles)[0]
    return (_row_shares(particles, score, kernel, own=True) / n).astype(jnp.result_type(particles))


def ksd_u_statistic(particles: Array, score: Array, kernel: Kernel) -> Array:
    r"""Returns the U-statistic of KSD^2, unbiased and therefore sometimes negative.

    .. math:: \frac1{n(n-1)} \sum_{i \ne j} u_p(x_i, x_j)

    Args:
      particles: x_i; shape (n, d), n >= 2, floating.
      score: s_i = grad log p(x_i), in 1/units of particles; shape (n, d).
      kernel: k, radial, twice differentiable at 0; its lengthscales are in units of particles.

    Returns:
      KSD^2, shape (), dtype of particles, in 1/units of particles squared.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes, a feature kernel, laplace, or fewer than
        two particles.

    Cost: that of :func:`ksd_v_statistic`.

    References:
      Liu, Lee & Jordan 2016, eq. (14).
    """
    n = jnp.shape(particles)[0]
    _checks.at_least("number of particles", n, 2)
    shares = _row_shares(particles, score, kernel, own=False)
    return (shares / (n - 1)).astype(jnp.result_type(particles))


class _Side(NamedTuple):
    """The particles on one side of the pairs, and what their pairs need of each."""

    points: Array
    sq_norms: Array
    score: Array
    inner: Array
    weight: Array


def _side(particles: Array, score: Array, kernel: Kernel) -> _Side:
    _checks.points(particles=particles)
    _checks.floating(score=score)
    _checks.shape("score", score, jnp.shape(particles))
    if hasattr(kernel, "features"):
        raise ValueError("kernel: got a feature kernel; expected a radial kernel of the particles")
    if isinstance(kernel, kernels.RadialMixture) and kernel.shape is kernels._laplace:
        raise ValueError("kernel: got laplace, not differentiable at 0; expected matern32 or IMQ")
    points, _ = pairwise.centred(jnp.asarray(particles), None)
    score = jnp.asarray(score).astype(points.dtype)
    inner = jnp.sum(points * score, axis=1)
    return _Side(points, pairwise.sq_norms(points), score, inner, jnp.ones_like(inner))


def _row_shares(particles: Array, score: Array, kernel: Kernel, *, own: bool) -> Array:
    """Mean over i of sums over j, in which a pair counts for both of its points."""
    side = _side(particles, score, kernel)
    tile = functools.partial(_share_tile, own)
    return jnp.mean(tiles.stream_symmetric(tile, kernel, side).rows)


def _share_tile(
    own: bool, kernel: Kernel, shift: int | None, rows: _Side, cols: _Side
) -> tiles.PairSums:
    gram = _stein_tile(kernel, shift, rows, cols)
    if shift is not None and not own:
        gram *= 1 - jnp.eye(gram.shape[0], dtype=gram.dtype)
    shares = jnp.sum(gram * cols.weight[None, :], axis=1) * rows.weight
    shares *= 2 if shift is None else 1
    return tiles.PairSums(rows=shares, cols=jnp.zeros_like(shares))


def _stein_tile(kernel: Kernel, shift: int | None, rows: _Side, cols: _Side) -> Array:
    norms = (rows.sq_norms, cols.sq_norms)
    sq_dist = pairwise.tile_distances(rows.points, cols.points, shift, norms)
    ones = jnp.ones_like(sq_dist)
    value = kernel.profile(sq_dist)
    slope, curvature = jax.jvp(
        lambda r: jax.jvp(kernel.profile, (r,), (ones,))[1], (sq_dist,), (ones,)
    )
    left = jnp.concatenate([rows.points, rows.score], axis=1)
    right = jnp.concatenate([cols.score, cols.points], axis=1)
    # (x - y).(s' - s) = x.s' + s.y - x.s - y.s'
    across = _dot(left, right.T) - rows.inner[:, None] - cols.inner[None, :]
    dimension = rows.points.shape[1]
    drift = value * _dot(rows.score, cols.score.T)
    return drift + 2 * slope * (across - dimension) - 4 * curvature * sq_dist
