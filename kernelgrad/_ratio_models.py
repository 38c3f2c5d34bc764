r"""What is fitted to a density ratio, and its values: see :mod:`kernelgrad.ratio`."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernelgrad import (
    _checks,
    _devices,
    _equality,
    _gram,
    _numeric,
    _traits,
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

    Example:
      >>> from kernelgrad import kernels, ratio
      >>> p, q = jnp.array([[0.0]]), jnp.array([[1.0]])
      >>> model = ratio.kliep(p, q, kernels.rbf_mixture(1.0))  # r(x) = exp((1 - x^2) / 2)
      >>> print(ratio.density_ratio(model, jnp.array([[1.0], [2.0]])))
      [1.    0.223]
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

    Example:
      >>> from kernelgrad import kernels, ratio
      >>> p, q = jnp.array([[0.0]]), jnp.array([[1.0]])
      >>> model = ratio.kliep(p, q, kernels.rbf_mixture(1.0))  # r(x) = exp((1 - x^2) / 2)
      >>> print(ratio.log_density_ratio(model, jnp.array([[0.0], [9.0]])))
      [  0.5 -40. ]
    """
    x, centers = _checks.points(x=x, centers=model.centers)
    if isinstance(model, MixtureRatio):
        logits = log_gram(model.kernel, x, centers)
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

    Example:
      >>> from kernelgrad import kernels, ratio
      >>> p, q = jnp.array([[0.0]]), jnp.array([[1.0]])
      >>> model = ratio.kliep(p, q, kernels.rbf_mixture(1.0))  # r(x) = exp((1 - x^2) / 2)
      >>> print(ratio.log_ratio_gradient(model, jnp.array([[1.0], [2.0]])))
      [[-1.]
       [-2.]]

    References:
      Huszar 2016 (an alternative update rule for GANs), alternative M-step #2.
    """
    x, _ = _checks.points(x=x, centers=model.centers)
    x = _devices.varying(x, model)
    value, pull = jax.vjp(lambda points: log_density_ratio(model, points), x)
    (gradient,) = pull(jnp.ones_like(value))
    return gradient


def kl_divergence(model: RatioModel, p: Array) -> Array:
    r"""Returns the estimate :math:`\frac1n \sum_i \log r(x_i)` of KL[p || q].

    Args:
      model: of p / q, fitted by a function of :mod:`kernelgrad.ratio` but rulsif.
      p: x_i, samples of the numerator, other than the fitted ones or, at the price of optimism,
        the same; shape (n, d), floating.

    Returns:
      The estimate, shape (), in nats; of either sign.

    Raises:
      ValueError: wrong rank, dtype or dimension.

    Cost: that of :func:`log_density_ratio`.

    Example:
      >>> from kernelgrad import kernels, ratio
      >>> p, q = jnp.array([[0.0]]), jnp.array([[1.0]])
      >>> model = ratio.kliep(p, q, kernels.rbf_mixture(1.0))  # r(x) = exp((1 - x^2) / 2)
      >>> round(float(ratio.kl_divergence(model, p)), 3)
      0.5

    References:
      Sugiyama et al. 2008, section 2.2.
    """
    return jnp.mean(_numeric.wide(log_density_ratio(model, p)))


def pearson_divergence(
    model: RatioModel, p: Array, q: Array, *, alpha: float | Array = 0.0
) -> Array:
    r"""Returns an estimate of the relative Pearson divergence.

    .. math:: \mathrm{PE}_\alpha = \frac12 E_{\alpha p + (1 - \alpha) q} (r_\alpha - 1)^2 \approx
        \frac1n \sum_i r(x_i) - \frac{\alpha}{2n} \sum_i r(x_i)^2
        - \frac{1 - \alpha}{2m} \sum_j r(y_j)^2 - \frac12

    Whatever r is, the estimate is not above the divergence in expectation over other samples than
    the fitted ones.

    Args:
      model: of r_alpha, by rulsif or lsif of the same alpha; at 0 any of p / q.
      p: x_i, samples of the numerator; shape (n, d), floating.
      q: y_j, samples of the denominator; shape (m, d).
      alpha: share of p in the denominator, in [0, 1); of rulsif by default 0.1.

    Returns:
      The estimate, shape (); of either sign. At alpha = 0 half of the chi^2 divergence.

    Raises:
      ValueError: wrong rank, dtype or dimension, or alpha outside of its range.

    Cost: that of :func:`density_ratio` at both.

    Example:
      >>> from kernelgrad import kernels, ratio
      >>> p, q = jnp.array([[0.0]]), jnp.array([[1.0]])
      >>> model = ratio.kliep(p, q, kernels.rbf_mixture(1.0))  # r(x) = exp((1 - x^2) / 2)
      >>> round(float(ratio.pearson_divergence(model, p, q)), 3)  # r(p) - r(q)^2 / 2 - 1/2
      0.649

    References:
      Yamada et al. 2013.
    """
    _checks.shape("alpha", alpha, ())
    _checks.in_range("alpha", alpha, 0.0, 1.0, closed="l")
    p, q = _checks.points(p=p, q=q)
    at_p, at_q = (_numeric.wide(density_ratio(model, points)) for points in (p, q))
    share = _numeric.like(alpha, at_p)
    squares = share * jnp.mean(jnp.square(at_p)) + (1 - share) * jnp.mean(jnp.square(at_q))
    return jnp.mean(at_p) - (squares + 1) / 2


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


def log_gram(kernel: Kernel, x: Array, centers: Array) -> Array:
    """Returns log k, finite, however small k is."""
    _traits.check_positive(kernel)
    radial, x, centers = _compared(kernel, x, centers)
    sq_dist = pairwise.squared_distances(x, centers)
    logarithm = _traits.log_profile(radial, sq_dist)
    if logarithm is not None:
        return logarithm
    return jnp.log(jnp.maximum(radial.profile(sq_dist), jnp.finfo(sq_dist.dtype).tiny))
