r"""Density ratios :math:`r = p / q` from samples of both, without the densities.

=========== =============================================== ==============================
estimator   fits                                            model
=========== =============================================== ==============================
ulsif       p / q, least squares, closed form               :class:`LinearRatio`
rulsif      p / (alpha p + (1 - alpha) q), closed form      :class:`LinearRatio`
lsif        either, with weights that are not negative      :class:`MixtureRatio`
kliep       p / q, maximum likelihood, mean over q is 1     :class:`MixtureRatio`
logistic    p / q, log-odds of a classifier                 :class:`LogLinearRatio`
=========== =============================================== ==============================

A fitted model is a discriminator: :func:`log_ratio_gradient` points from q to p, and its negative
is the direction to descend for KL[q || p]. Everything is linear in kernels at some centers; their
number sets the cost, and a few hundred of many samples serve as well as all.
:mod:`kernelgrad.ratio_selection` chooses the hyperparameters.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import (
    _checks,
    _convex,
    _devices,
    _equality,
    _gram,
    _numeric,
    _solve,
    _traits,
    kernels,
    pairwise,
)
from kernelgrad.types import Array, Kernel


@_equality.by_value
class LinearRatio(NamedTuple):
    r"""The ratio :math:`r(x) = \max(0, g(x))`, with :math:`g(x) = \sum_c w_c k(x, z_c)`.

    Attributes:
      kernel: k.
      centers: z_c; shape (c, d).
      weights: w_c, of either sign; shape (c,).
      floor: g below which its logarithm is continued by the tangent; shape ().
    """

    kernel: Kernel
    centers: Array
    weights: Array
    floor: Array


@_equality.by_value
class MixtureRatio(NamedTuple):
    r"""The ratio :math:`r(x) = \sum_c e^{a_c} k(x, z_c)`, with k > 0.

    Attributes:
      kernel: k.
      centers: z_c; shape (c, d).
      log_weights: a_c, -infinity where the weight is 0; shape (c,).
      gap: bound of what the fit lacks to the optimum of its objective, for :func:`kliep` in nats a
        sample of p; shape ().
    """

    kernel: Kernel
    centers: Array
    log_weights: Array
    gap: Array


@_equality.by_value
class LogLinearRatio(NamedTuple):
    r"""The ratio :math:`r(x) = \exp(b + \sum_c w_c k(x, z_c))`.

    Attributes:
      kernel: k.
      centers: z_c; shape (c, d).
      weights: w_c; shape (c,).
      intercept: b; shape ().
      gap: what the objective lacked to its minimum before the last step, in nats a sample, by
        the quadratic model; shape ().
    """

    kernel: Kernel
    centers: Array
    weights: Array
    intercept: Array
    gap: Array


RatioModel = LinearRatio | MixtureRatio | LogLinearRatio


# ----------------------------------------------------------------------------------- evaluation


def density_ratio(model: RatioModel, x: Array) -> Array:
    r"""Returns the estimated ratio p / q (of a model of :func:`rulsif`, the relative one).

    Args:
      model: fitted by a function of this module.
      x: points, new or old; shape (n, d), floating.

    Returns:
      Ratios, shape (n,), dtype of x, non-negative. A ratio beyond the range of the dtype stops at
      the largest power of e in it, e^88 in float32; :func:`log_density_ratio` does not.

    Raises:
      ValueError: wrong rank, dtype or dimension.

    Cost: O(n c d) time.
    """
    x, _ = _checks.points(x=x, centers=model.centers)
    if isinstance(model, LinearRatio):
        return _numeric.like(jnp.maximum(_expansion(model, x), 0), x)
    log_ratio = log_density_ratio(model, x)
    largest = math.floor(math.log(jnp.finfo(log_ratio.dtype).max))
    return jnp.exp(jnp.minimum(log_ratio, largest))


def log_density_ratio(model: RatioModel, x: Array) -> Array:
    r"""Returns the logarithm of the estimated ratio, finite wherever x is.

    For a :class:`LinearRatio`, whose g may be 0 or less, it is :math:`\log g` for g above the floor
    f and :math:`\log f + g / f - 1` below: the tangent at f, which keeps the slope of g, where a
    clipped logarithm has none. The floor is 1/sqrt(n), the order of the sampling error of g fitted
    to n samples of p: below, g cannot be told from 0. A :class:`MixtureRatio` is summed in
    logarithms: however far x is, its gradient draws x to the nearest centers. A kernel of your own
    without a method ``log_profile`` counts as the smallest normal float where it is less. An x
    farther than 1e18 lengthscales, whose squared distance float32 does not hold, counts as that
    far.

    Args:
      model: fitted by a function of this module.
      x: points, new or old; shape (n, d), floating.

    Returns:
      Log-ratios, shape (n,), dtype of x, in nats.

    Raises:
      ValueError: wrong rank, dtype or dimension.

    Cost: O(n c d) time; O((n + c) d) memory, and O(n c) for a :class:`MixtureRatio`.
    """
    x, centers = _checks.points(x=x, centers=model.centers)
    if isinstance(model, MixtureRatio):
        logits = _log_gram(model.kernel, x, centers)
        return _numeric.like(jax.nn.logsumexp(logits + model.log_weights[None, :], axis=1), x)
    value = _expansion(model, x)
    if isinstance(model, LogLinearRatio):
        return _numeric.like(value + _numeric.like(model.intercept, value), x)
    floor = _numeric.like(model.floor, value)
    above = value > floor
    tangent = jnp.log(floor) + value / floor - 1
    return _numeric.like(jnp.where(above, jnp.log(jnp.where(above, value, 1)), tangent), x)


def log_ratio_gradient(model: RatioModel, x: Array) -> Array:
    r"""Returns :math:`\nabla_x \log r(x)`, the gradient of :func:`log_density_ratio`.

    It leads from q to p: descend its negative, :math:`\nabla \log (q / p)`, to lower KL[q || p].

    Args:
      model: fitted by a function of this module, held fixed.
      x: points, new or old; shape (n, d), floating.

    Returns:
      Gradients, shape (n, d), dtype of x, in 1/units of x; finite wherever x is.

    Raises:
      ValueError: wrong rank, dtype or dimension.

    Cost: about three times that of :func:`log_density_ratio`.

    References:
      Huszar 2016 (an alternative update rule for GANs), alternative M-step #2.
    """
    x, _ = _checks.points(x=x, centers=model.centers)
    x = _devices.varying(x, model)
    value, pull = jax.vjp(lambda points: log_density_ratio(model, points), x)
    (gradient,) = pull(jnp.ones_like(value))
    return gradient


# -------------------------------------------------------------------------------- least squares


def ulsif(
    p: Array,
    q: Array,
    kernel: Kernel,
    *,
    ridge: float | Array,
    centers: Array | None = None,
    axis_name: str | None = None,
) -> LinearRatio:
    r"""Returns the unconstrained least-squares fit (uLSIF) of p / q: :func:`rulsif` at alpha = 0.

    .. math:: w = (H + \lambda I)^{-1} h, \quad H = \frac1m \sum_j \phi(y_j) \phi(y_j)^\top, \;
        h = \frac1n \sum_i \phi(x_i), \; \phi_c(x) = k(x, z_c)

    Args:
      p: x_i, samples of the numerator; shape (n, d), floating.
      q: y_j, samples of the denominator; shape (m, d).
      kernel: k; its lengthscales are in units of p.
      ridge: lambda > 0, as in :func:`rulsif`.
      centers: z_c; shape (c, d). None: all of p.
      axis_name: if set, p, q and centers are the unions over all devices.

    Returns:
      The model, of p / q.

    Raises:
      ValueError: wrong rank, dtype or dimensions, or a concrete ridge that is not positive.

    Cost: O((n + m) c (d + c) + c^3) time, O((n + m) c) memory.

    References:
      Kanamori, Hido & Sugiyama 2009, section 3.1, with negative values of the ratio set to 0, and
      not negative weights: that spoils the fit where neighbouring weights alternate.
    """
    return rulsif(p, q, kernel, ridge=ridge, alpha=0.0, centers=centers, axis_name=axis_name)


def rulsif(
    p: Array,
    q: Array,
    kernel: Kernel,
    *,
    ridge: float | Array,
    alpha: float | Array = 0.1,
    centers: Array | None = None,
    axis_name: str | None = None,
) -> LinearRatio:
    r"""Returns the least-squares fit (RuLSIF) of the relative ratio, which is at most 1/alpha.

    .. math:: r_\alpha = \frac{p}{\alpha p + (1 - \alpha) q}, \quad w = (H + \lambda I)^{-1} h, \;
        H = \frac\alpha n \sum_i \phi(x_i) \phi(x_i)^\top
        + \frac{1 - \alpha}m \sum_j \phi(y_j) \phi(y_j)^\top, \;
        h = \frac1n \sum_i \phi(x_i), \; \phi_c(x) = k(x, z_c)

    w minimises :math:`\frac\alpha2 E_p g^2 + \frac{1 - \alpha}2 E_q g^2 - E_p g + \frac\lambda2
    |w|^2` over :math:`g = w^\top \phi`. The mean of g over p is at most 1/alpha too; single
    values of the estimate may exceed it.

    Args:
      p: x_i, samples of the numerator; shape (n, d), floating.
      q: y_j, samples of the denominator; shape (m, d).
      kernel: k; its lengthscales are in units of p.
      ridge: lambda > 0, in units of k^2, 0.01 to 1 as a rule. Keep it above 10 c eps k(0)^2, with
        eps the machine epsilon: below, rounding decides the result.
      alpha: share of p in the denominator, in [0, 1).
      centers: z_c; shape (c, d). None: all of p.
      axis_name: if set, p, q and centers are the unions over all devices.

    Returns:
      The model, of r_alpha, differentiable in everything; all NaN where the Cholesky factorisation
      fails, which a ridge above the floor rules out for finite samples.

    Raises:
      ValueError: wrong rank, dtype or dimensions, a concrete ridge that is not positive, or alpha
        outside of its range.

    Cost: O((n + m) c (d + c) + c^3) time, O((n + m) c) memory.

    References:
      Yamada et al. 2013, section 2.
    """
    centers, moment, mean = _least_squares(p, q, kernel, ridge, alpha, centers, axis_name)
    weights = _solve.dense(moment, _numeric.like(ridge, mean))(mean[:, None])[:, 0]
    size = p.shape[0] * _devices.num_devices(axis_name)
    centers, weights = _devices.agreed((centers, weights), axis_name)
    return LinearRatio(kernel, centers, weights, _numeric.like(1 / math.sqrt(size), mean))


def lsif(
    p: Array,
    q: Array,
    kernel: Kernel,
    *,
    ridge: float | Array,
    alpha: float | Array = 0.0,
    centers: Array | None = None,
    num_steps: int = 1000,
    tolerance: float | Array = 1e-4,
    axis_name: str | None = None,
) -> MixtureRatio:
    r"""Returns the least-squares fit of :func:`rulsif` over :math:`w \ge 0`: positive everywhere.

    It costs some steps of accelerated projected gradients instead of one solve. As a
    discriminator it is far better than the fit of :func:`ulsif`, whose logarithm is noise where p
    has next to no samples: there the positive mixture draws a sample to its nearest centers.

    Args:
      p: x_i, samples of the numerator; shape (n, d), floating.
      q: y_j, samples of the denominator; shape (m, d).
      kernel: k > 0; its lengthscales are in units of p.
      ridge: lambda > 0, in units of k^2.
      alpha: share of p in the denominator, in [0, 1); 0 stands for p / q.
      centers: z_c; shape (c, d). None: all of p.
      num_steps: greatest number T of steps, at least 1; static.
      tolerance: gap at which to stop before, >= 0.
      axis_name: if set, p, q and centers are the unions over all devices.

    Returns:
      The model, of r_alpha, without a gradient in what it is fitted to.

    Raises:
      ValueError: wrong rank, dtype or dimensions, a kernel without k(0) > 0, a concrete ridge that
        is not positive, alpha outside of its range, num_steps below 1, or a negative tolerance.

    Cost: O((n + m) c (d + c) + T c^2) time, O((n + m) c) memory.

    References:
      Kanamori, Hido & Sugiyama 2009, section 2.2, with the square of w as penalty for its sum.
    """
    _traits.check_positive(kernel)
    _check_loop(num_steps, tolerance)
    p, q, centers = _checks.points(p=p, q=q, centers=p if centers is None else centers)
    p, q, kernel, ridge, alpha, centers = lax.stop_gradient((p, q, kernel, ridge, alpha, centers))
    centers, moment, mean = _least_squares(p, q, kernel, ridge, alpha, centers, axis_name)
    size = _numeric.like(ridge, mean)
    weights, residual = _convex.quadratic(
        moment + size * jnp.eye(mean.shape[0], dtype=mean.dtype),
        mean,
        lambda point: jnp.maximum(point, 0),
        jnp.zeros_like(mean),
        num_steps=num_steps,
        tolerance=2 * size * _numeric.like(tolerance, mean),
    )
    fit = _devices.agreed((centers, weights, residual), axis_name)
    return MixtureRatio(kernel, fit[0], jnp.log(fit[1]), fit[2] / (2 * size))


def _least_squares(
    p: Array,
    q: Array,
    kernel: Kernel,
    ridge: float | Array,
    alpha: float | Array,
    centers: Array | None,
    axis_name: str | None,
) -> tuple[Array, Array, Array]:
    """Returns the centers, H and h."""
    _check_ridge(ridge)
    _checks.shape("alpha", alpha, ())
    _checks.in_range("alpha", alpha, 0.0, 1.0, closed="l")
    p, q, centers = _unions(p, q, p if centers is None else centers, axis_name)
    at_p, at_q = kernels.gram(kernel, p, centers), kernels.gram(kernel, q, centers)
    share = _numeric.like(alpha, at_p)
    moment = share * _second_moment(at_p) + (1 - share) * _second_moment(at_q)
    return centers, moment, jnp.mean(at_p, axis=0)


def _second_moment(features: Array) -> Array:
    return _numeric.dot(features.T, features) / features.shape[0]


# --------------------------------------------------------------------------- maximum likelihood


def kliep(
    p: Array,
    q: Array,
    kernel: Kernel,
    *,
    centers: Array | None = None,
    num_steps: int = 1000,
    tolerance: float | Array = 1e-3,
    axis_name: str | None = None,
) -> MixtureRatio:
    r"""Returns the maximum-likelihood fit (KLIEP) of p / q.

    .. math:: \max_{w \ge 0} \frac1n \sum_i \log r(x_i) \quad \text{with} \quad
        \frac1m \sum_j r(y_j) = 1, \quad r(x) = \sum_c w_c k(x, z_c)

    With :math:`b_c = \frac1m \sum_j k(y_j, z_c)` and :math:`\pi_c = b_c w_c` this is the fit of
    the proportions pi of a mixture, by expectation-maximisation: every step raises the likelihood,
    keeps the constraint, and has no step size; T steps leave a gap of at most log(c) / T nats.

    Args:
      p: x_i, samples of the numerator; shape (n, d), floating.
      q: y_j, samples of the denominator; shape (m, d).
      kernel: k > 0; its lengthscales are in units of p. They are the only regulariser.
      centers: z_c; shape (c, d). None: all of p.
      num_steps: greatest number T of steps, at least 1; static.
      tolerance: gap in nats at which to stop before, >= 0.
      axis_name: if set, p, q and centers are the unions over all devices.

    Returns:
      The model, without a gradient in what it is fitted to.

    Raises:
      ValueError: wrong rank, dtype or dimensions, num_steps below 1, or a negative tolerance.

    Cost: O((n + m) c d + T n c) time, O((n + m) c) memory.

    References:
      Sugiyama et al. 2008, section 2.2, where projected gradient ascent solves the same problem;
      Csiszar & Tusnady 1984 for the rate.
    """
    _check_loop(num_steps, tolerance)
    p, q, centers = _unions(p, q, p if centers is None else centers, axis_name)
    kernel, p, q, centers = lax.stop_gradient((kernel, p, q, centers))
    log_mean = jax.nn.logsumexp(_log_gram(kernel, q, centers), axis=0) - math.log(q.shape[0])
    log_convex = _log_gram(kernel, p, centers) - log_mean[None, :]
    log_shares, gap = _convex.mixture_shares(
        log_convex, num_steps=num_steps, tolerance=_numeric.like(tolerance, log_convex)
    )
    fit = _devices.agreed((centers, log_shares - log_mean, gap), axis_name)
    return MixtureRatio(kernel, *fit)


# ----------------------------------------------------------------------------- logistic regression


def logistic(
    p: Array,
    q: Array,
    kernel: Kernel,
    *,
    ridge: float | Array,
    centers: Array | None = None,
    num_steps: int = 50,
    tolerance: float | Array = 1e-6,
    axis_name: str | None = None,
) -> LogLinearRatio:
    r"""Returns the ratio p / q by logistic regression of which of the two a sample is from.

    .. math:: \min_{b, w} \frac1{n + m} \Big[ \sum_i \sigma_+(-f(x_i) - o) + \sum_j
        \sigma_+(f(y_j) + o) \Big] + \frac\lambda2 (b^2 + |w|^2), \quad
        f(x) = b + \sum_c w_c k(x, z_c) = \log r(x)

    with :math:`\sigma_+(t) = \log(1 + e^t)` and o = log(n / m), the odds before x is seen; by
    Newton's method with step halving. Any ridge is convex and has one solution, even for samples
    that a line separates; a large one means r = 1. The kernel need not be positive, nor a kernel:
    with the profile -u/2 of u = |x - y|^2, f is any b + a.x + c |x|^2, exact for two Gaussians of
    covariances proportional to I; with features in between, for others.

    Args:
      p: x_i, samples of the numerator; shape (n, d), floating.
      q: y_j, samples of the denominator; shape (m, d).
      kernel: k; its lengthscales are in units of p.
      ridge: lambda > 0, in units of k^2. Keep it above 10 c eps k(0)^2, with eps the machine
        epsilon: below, rounding decides the result.
      centers: z_c; shape (c, d). None: all of p and q.
      num_steps: greatest number T of steps, at least 1; static. Ten are plenty as a rule.
      tolerance: gap in nats at which to stop before, >= 0.
      axis_name: if set, p, q and centers are the unions over all devices.

    Returns:
      The model, without a gradient in what it is fitted to; all NaN where a Cholesky factorisation
      fails, which a ridge above the floor rules out for finite samples.

    Raises:
      ValueError: wrong rank, dtype or dimensions, a concrete ridge that is not positive, num_steps
        below 1, or a negative tolerance.

    Cost: O((n + m) c d + T ((n + m) c^2 + c^3)) time, O((n + m) c) memory.

    References:
      Qin 1998; Bickel, Brueckner & Scheffer 2007; Huszar 2016 (an alternative update rule).
    """
    _check_ridge(ridge)
    _check_loop(num_steps, tolerance)
    p, q = _checks.points(p=p, q=q)
    pool = jnp.concatenate([p, q]) if centers is None else centers
    p, q, centers = _unions(p, q, pool, axis_name)
    kernel, p, q, centers = lax.stop_gradient((kernel, p, q, centers))
    n, m = p.shape[0], q.shape[0]
    features = kernels.gram(kernel, jnp.concatenate([p, q]), centers)
    features = jnp.concatenate([jnp.ones_like(features[:, :1]), features], axis=1)
    signs = jnp.concatenate([jnp.ones(n, features.dtype), -jnp.ones(m, features.dtype)])
    weights, gap = _convex.classifier(
        signs[:, None] * features,
        signs * math.log(n / m),
        lax.stop_gradient(_numeric.like(ridge, features)),
        num_steps=num_steps,
        tolerance=_numeric.like(tolerance, features),
    )
    fit = _devices.agreed((centers, weights[1:], weights[0], gap), axis_name)
    return LogLinearRatio(kernel, *fit)


# -------------------------------------------------------------------------------- what they share


def _expansion(model: LinearRatio | LogLinearRatio, x: Array) -> Array:
    """Returns the weighted sum of kernels, in at least float32."""
    radial, x, centers = _compared(model.kernel, x, model.centers)
    return pairwise.kernel_sum(radial, x, centers, model.weights[:, None])[:, 0]


def _compared(kernel: Kernel, x: Array, centers: Array) -> tuple[Kernel, Array, Array]:
    """Returns the radial kernel and what it compares, none too far for the range of floats."""
    x, centers = (_numeric.wide(_traits.embed(kernel, points)) for points in (x, centers))
    x, centers = _checks.floating(x=x, centers=centers)
    radial = _traits.radial(kernel)
    return radial, _gram.within_reach(radial, x, centers), centers


def _log_gram(kernel: Kernel, x: Array, centers: Array) -> Array:
    """Returns log k, finite, however small k is."""
    _traits.check_positive(kernel)
    radial, x, centers = _compared(kernel, x, centers)
    sq_dist = pairwise.squared_distances(x, centers)
    logarithm = _traits.log_profile(radial, sq_dist)
    if logarithm is not None:
        return logarithm
    return jnp.log(jnp.maximum(radial.profile(sq_dist), jnp.finfo(sq_dist.dtype).tiny))


def _unions(
    p: Array, q: Array, centers: Array, axis_name: str | None
) -> tuple[Array, Array, Array]:
    """Returns the samples and centers of all devices, in at least float32."""
    p, q, centers = _checks.points(p=p, q=q, centers=centers)
    p, q, centers = (_devices.gather(_numeric.wide(x), axis_name) for x in (p, q, centers))
    return p, q, centers


def _check_ridge(ridge: float | Array) -> None:
    _checks.shape("ridge", ridge, ())
    _checks.positive(ridge=ridge)


def _check_loop(num_steps: int, tolerance: float | Array) -> None:
    _checks.at_least("num_steps", num_steps, 1)
    _checks.shape("tolerance", tolerance, ())
    _checks.in_range("tolerance", tolerance, 0.0, math.inf, closed="l")
