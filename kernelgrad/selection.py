r"""Held-out losses of estimators, and the hyperparameters that are best by them.

Choose by ``select(lambda l, ridge: rulsif_loo(p, q, rbf_mixture(l), ridge=ridge), ls, ridges)``,
or with any other score and as many grids as it has arguments. All scores are losses.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernelgrad import _checks, _numeric, _ratio_fits, _ratio_models, _solve, kernels
from kernelgrad.types import Array, Kernel, ScoreFn


class Selection(NamedTuple):
    """The best point of a grid.

    Attributes:
      values: one value of each grid; shapes ().
      scores: the loss all over the grid; one axis for each grid.
    """

    values: tuple[Array, ...]
    scores: Array


def select(score_fn: Callable[..., Array], *grids: Array) -> Selection:
    """Returns the values with the least score; one that is not finite never is.

    Args:
      score_fn: called with one value of each grid, scalars; returns the loss, shape ().
      *grids: values to try, such as lengthscales and ridges; shape (a,) each.

    Returns:
      The values, NaN where no score is finite, and all scores.

    Raises:
      ValueError: no grid, one that is not a floating array of one axis, or concrete scores of which
        none is finite.

    Cost: the product of the grids' sizes times that of the score, one at a time.

    Example:
      >>> from kernelgrad import selection
      >>> best = selection.select(lambda a: (a - 2.0) ** 2, jnp.array([1.0, 2.0, 4.0]))
      >>> float(best.values[0]), best.scores.tolist()
      (2.0, [1.0, 0.0, 4.0])
    """
    _checks.at_least("number of grids", len(grids), 1)
    grids = _checks.vectors(**{f"grids[{number}]": grid for number, grid in enumerate(grids)})
    points = [axis.ravel() for axis in jnp.meshgrid(*grids, indexing="ij")]
    scores = lax.map(lambda point: score_fn(*point), points)
    finite = jnp.isfinite(scores)
    found = jnp.any(finite)
    if not isinstance(found, jax.core.Tracer) and not found:
        raise ValueError(f"scores: got none of {scores.size} finite; expected one. Widen the grids")
    best = jnp.argmin(jnp.where(finite, scores, jnp.inf))
    shape = tuple(grid.shape[0] for grid in grids)
    values = tuple(jnp.where(found, axis[best], jnp.nan) for axis in points)
    return Selection(values, scores.reshape(shape))


def hyvarinen_loss(score_fn: ScoreFn, points: Array) -> Array:
    r"""Returns the loss of a score at points that it was not fitted to.

    .. math:: \frac1m \sum_j \Big[ \tfrac12 |s(x_j)|^2 + \nabla \cdot s(x_j) \Big]

    It estimates, without a bias and up to a constant of the density alone,
    :math:`\tfrac12 E |s - \nabla \log q|^2`, with no density at hand. At points of the fit it
    does not: an estimate may have any divergence there.

    Args:
      score_fn: s, maps points (m, d) to scores (m, d), each from its own point, differentiable in
        reverse mode; such as ``lambda x: score.stein_score_at(x, samples, kernel, ridge=ridge)``.
      points: x_j, draws of q; shape (m, d), floating.

    Returns:
      The loss, shape (), in 1/units of points squared, in at least float32.

    Raises:
      ValueError: wrong rank or dtype, or scores of another shape.

    Cost: that of s and of d of its transposed derivatives, of a coordinate each, one at a time.

    Example:
      >>> from kernelgrad import selection
      >>> x = jnp.array([[-1.0], [1.0]])
      >>> losses = [selection.hyvarinen_loss(lambda x: -a * x, x) for a in (0.5, 1.0, 2.0)]
      >>> [round(float(loss), 3) for loss in losses]  # a^2 / 2 - a, least for the true score
      [-0.375, -0.5, 0.0]

    References:
      Hyvarinen 2005, Theorem 1 and eq. (4).
    """
    (points,) = _checks.points(points=points)
    points = _numeric.wide(points)
    values, pull = jax.vjp(score_fn, points)
    _checks.shape("score_fn's values", values, points.shape)

    def slopes(axis: Array) -> Array:
        (gradient,) = pull(jnp.zeros_like(values).at[:, axis].set(1))
        return gradient[:, axis]

    slope = jnp.sum(lax.map(slopes, jnp.arange(points.shape[1])), axis=0)
    return jnp.mean(jnp.sum(jnp.square(values), axis=1) / 2 + slope)


def rulsif_loo(
    p: Array,
    q: Array,
    kernel: Kernel,
    *,
    ridge: float | Array,
    alpha: float | Array = 0.0,
    centers: Array | None = None,
) -> Array:
    r"""Returns the leave-one-out loss of :func:`kernelgrad.ratio.rulsif`, in closed form.

    .. math:: \frac1n \sum_i \big[\tfrac\alpha2 r_{-i}(x_i)^2 - r_{-i}(x_i)\big]
        + \frac{1 - \alpha}{2m} \sum_j r_{-j}(y_j)^2

    with r fitted, and cut off at 0, without the one sample that it is evaluated at. As one sample
    changes H by rank one, with :math:`M = \frac{\alpha n}{n - 1} E_p \phi \phi^\top + (1 - \alpha)
    E_q \phi \phi^\top + \lambda I` and :math:`u_i = \phi_i^\top M^{-1} \phi_i`

    .. math:: g_{-i}(x_i) = \frac{n\, \phi_i^\top M^{-1} h - u_i}{n - 1 - \alpha u_i}

    and likewise for the y_j. At alpha = 0 it is the loss of :func:`kernelgrad.ratio.ulsif`.

    Args:
      p: x_i, samples of the numerator; shape (n, d), n >= 2, floating.
      q: y_j, samples of the denominator; shape (m, d), m >= 2.
      kernel: k; its lengthscales are in units of p.
      ridge: lambda > 0, in units of k^2, with the floor of :func:`kernelgrad.ratio.rulsif`.
      alpha: share of p in the denominator, in [0, 1).
      centers: z_c, in every fit; shape (c, d). None: all of p.

    Returns:
      The loss, shape (): an estimate, up to a constant, of half the mean squared error of r under
      alpha p + (1 - alpha) q. NaN where the Cholesky factorisation fails.

    Raises:
      ValueError: wrong rank, dtype or dimensions, fewer than two samples, a concrete ridge that is
        not positive, or alpha outside of its range.

    Cost: O((n + m) c (d + c) + c^3) time, O((n + m) c) memory.

    Example:
      >>> from kernelgrad import kernels, selection
      >>> p, q = jnp.zeros((2, 1)), jnp.ones((2, 1))  # either of two tells of the other
      >>> kernel, center = kernels.rbf_mixture(1.0), jnp.zeros((1, 1))
      >>> loss = selection.rulsif_loo(p, q, kernel, ridge=1.0, centers=center)
      >>> round(float(loss), 3)  # w^2 / (2 e) - w with w = 1 / (1 + 1/e)
      -0.633

    References:
      Kanamori, Hido & Sugiyama 2009, section 3.3, who leave out x_i and y_i together.
    """
    p, q, centers = _checks.points(p=p, q=q, centers=p if centers is None else centers)
    _checks.shape("ridge", ridge, ())
    _checks.positive(ridge=ridge)
    _checks.shape("alpha", alpha, ())
    _checks.in_range("alpha", alpha, 0.0, 1.0, closed="l")
    for name, samples in (("p", p), ("q", q)):
        _checks.at_least(f"number of samples in {name}", samples.shape[0], 2)
    p, q, centers = (_numeric.wide(x) for x in (p, q, centers))
    at_p, at_q = kernels.gram(kernel, p, centers), kernels.gram(kernel, q, centers)
    share, ridge = (_numeric.like(number, at_p) for number in (alpha, ridge))
    mean = jnp.mean(at_p, axis=0)
    moments = [(share, at_p), (1 - share, at_q)]

    def solved(left_out: Array) -> tuple[Array, Array]:
        """Returns phi^T M^-1 h and phi^T M^-1 phi at the samples of which one is left out."""
        moment = jnp.zeros((), at_p.dtype)
        for weight, features in moments:
            size = features.shape[0] - (features is left_out)
            moment += weight * _numeric.dot(features.T, features) / size
        solutions = _solve.dense(moment, ridge)(left_out.T).T
        return _numeric.dot(solutions, mean), jnp.sum(solutions * left_out, axis=1)

    n, m = p.shape[0], q.shape[0]
    (value_p, reach_p), (value_q, reach_q) = solved(at_p), solved(at_q)
    r_p = jnp.maximum((n * value_p - reach_p) / (n - 1 - share * reach_p), 0)
    r_q = jnp.maximum(value_q / (1 - (1 - share) * reach_q / (m - 1)), 0)
    square_p, square_q = jnp.mean(jnp.square(r_p)), jnp.mean(jnp.square(r_q))
    return (share * square_p + (1 - share) * square_q) / 2 - jnp.mean(r_p)


def kliep_cv(
    p: Array,
    q: Array,
    kernel: Kernel,
    *,
    centers: Array | None = None,
    num_folds: int = 5,
    num_steps: int = 1000,
    tolerance: float | Array = 1e-3,
) -> Array:
    r"""Returns the cross-validated loss of :func:`kernelgrad.ratio.kliep`.

    .. math:: -\frac1n \sum_i \log r(x_i) + \log \frac1m \sum_j r(y_j)

    over the samples of p and q, both held out, averaged over folds: no estimate of it, in
    expectation, is below -KL[p || q]. Where only p is held out, as has been usual, a short
    lengthscale earns any score: r may be huge where the fit had no sample of q, and KLIEP turns
    far from 1 for p = q.

    Args:
      p: x_i, samples of the numerator, in exchangeable order; shape (n, d), floating.
      q: y_j, samples of the denominator, in exchangeable order; shape (m, d).
      kernel: k > 0; its lengthscales are in units of p.
      centers: z_c, in every fit; shape (c, d). None: all that is fitted there.
      num_folds: 2 to min(n, m); static. Fold f holds out every num_folds-th sample from the f-th.
      num_steps: of each fit; static.
      tolerance: of each fit, in nats.

    Returns:
      The loss, shape (), in nats.

    Raises:
      ValueError: wrong rank, dtype, dimensions or number of folds.

    Cost: num_folds times that of a fit, one at a time.

    Example:
      >>> from kernelgrad import kernels, selection
      >>> p, q = jnp.zeros((2, 1)), jnp.ones((2, 1))  # log r = 1/2 at p, 0 at q
      >>> kernel, center = kernels.rbf_mixture(1.0), jnp.zeros((1, 1))
      >>> round(float(selection.kliep_cv(p, q, kernel, centers=center, num_folds=2)), 3)
      -0.5

    References:
      Sugiyama et al. 2008, section 2.3, with the second term added.
    """

    def loss(train: _Pair, held: _Pair) -> Array:
        model = _ratio_fits.kliep(
            *train, kernel, centers=centers, num_steps=num_steps, tolerance=tolerance
        )
        log_p, log_q = (_ratio_models.log_density_ratio(model, _numeric.wide(x)) for x in held)
        return jax.nn.logsumexp(log_q) - math.log(log_q.shape[0]) - jnp.mean(log_p)

    return _cross_validated(loss, p, q, num_folds)


def logistic_cv(
    p: Array,
    q: Array,
    kernel: Kernel,
    *,
    ridge: float | Array,
    centers: Array | None = None,
    num_folds: int = 5,
    num_steps: int = 50,
    tolerance: float | Array = 1e-6,
) -> Array:
    r"""Returns the cross-validated loss of :func:`kernelgrad.ratio.logistic`.

    .. math:: \frac1{n + m} \Big[ \sum_i \log(1 + \tfrac{m}{n\, r(x_i)})
        + \sum_j \log(1 + \tfrac{n\, r(y_j)}{m}) \Big]

    over the samples held out, averaged over folds.

    Args:
      p: x_i, samples of the numerator, in exchangeable order; shape (n, d), floating.
      q: y_j, samples of the denominator, in exchangeable order; shape (m, d).
      kernel: k; its lengthscales are in units of p.
      ridge: lambda > 0, in units of k^2.
      centers: z_c, in every fit; shape (c, d). None: all that is fitted there.
      num_folds: 2 to min(n, m); static. Fold f holds out every num_folds-th sample from the f-th.
      num_steps: of each fit; static.
      tolerance: of each fit, in nats.

    Returns:
      The loss, shape (), in nats; log 2 for r = 1 and n = m.

    Raises:
      ValueError: wrong rank, dtype, dimensions or number of folds, or a concrete ridge that is not
        positive.

    Cost: num_folds times that of a fit, one at a time.

    Example:
      >>> from kernelgrad import kernels, selection
      >>> p = q = jnp.zeros((2, 1))  # not to be told apart: log 2
      >>> kernel = kernels.rbf_mixture(1.0)
      >>> round(float(selection.logistic_cv(p, q, kernel, ridge=0.1, num_folds=2)), 3)
      0.693
    """

    def loss(train: _Pair, held: _Pair) -> Array:
        model = _ratio_fits.logistic(
            *train, kernel, ridge=ridge, centers=centers, num_steps=num_steps, tolerance=tolerance
        )
        log_p, log_q = (_ratio_models.log_density_ratio(model, _numeric.wide(x)) for x in held)
        odds = math.log(p.shape[0] / q.shape[0])
        losses = jax.nn.softplus(jnp.concatenate([-log_p - odds, log_q + odds]))
        return jnp.mean(losses)

    return _cross_validated(loss, p, q, num_folds)


def folds(size: int, num_folds: int) -> tuple[Array, Array]:
    """Returns which of so many samples each fold fits and which it holds out, of one size each.

    Args:
      size: number of samples, at least num_folds.
      num_folds: at least 2. Fold f holds out every num_folds-th sample from the f-th.

    Returns:
      Indices of the fitted ones and of those held out; a row for each fold.

    Example:
      >>> from kernelgrad import selection
      >>> train, held_out = selection.folds(4, num_folds=2)
      >>> train.tolist(), held_out.tolist()
      ([[1, 3], [0, 2]], [[0, 2], [1, 3]])
    """
    everyone = np.arange(size)
    held = everyone[: size - size % num_folds].reshape(-1, num_folds).T
    train = np.stack([np.setdiff1d(everyone, some) for some in held])
    return jnp.asarray(train), jnp.asarray(held)


_Pair = tuple[Array, Array]


def _cross_validated(
    loss: Callable[[_Pair, _Pair], Array], p: Array, q: Array, num_folds: int
) -> Array:
    """Returns the mean of the loss over folds, of one size; left-over samples are always fitted."""
    p, q = _checks.points(p=p, q=q)
    _checks.at_least("num_folds", num_folds, 2)
    for name, samples in (("p", p), ("q", q)):
        _checks.at_least(f"number of samples in {name}", samples.shape[0], num_folds)

    def fold(indices: tuple[_Pair, _Pair]) -> Array:
        train, held = indices
        return loss((p[train[0]], q[train[1]]), (p[held[0]], q[held[1]]))

    (train_p, held_p), (train_q, held_q) = (folds(x.shape[0], num_folds) for x in (p, q))
    return jnp.mean(lax.map(fold, ((train_p, train_q), (held_p, held_q))))
