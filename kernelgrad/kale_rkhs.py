r"""KALE in an RKHS: between the Kullback-Leibler divergence and MMD, with its flow.

Where :mod:`kernelgrad.kale` takes any energy, this takes the best function of an RKHS under a
penalty :math:`\frac\lambda2 |h|^2`, which a convex problem finds. As lambda goes to 0 the value
tends to KL[P || Q], as it goes to infinity to MMD^2 / 2.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _convex, _devices, _numeric, _traits, kernels, pairwise, ratio
from kernelgrad.types import Array, Kernel


class KaleFit(NamedTuple):
    """The best function, as a density ratio, and the divergence.

    Attributes:
      model: of p / q, whose logarithm is the function h.
      value: KALE, in nats; shape ().
    """

    model: ratio.LogLinearRatio
    value: Array


def fit(
    p: Array,
    q: Array,
    kernel: Kernel,
    *,
    regularization: float | Array,
    num_steps: int = 50,
    tolerance: float | Array = 1e-6,
    axis_name: str | None = None,
) -> KaleFit:
    r"""Returns KALE of two samples, and the function that attains it.

    .. math:: (1 + \lambda) \max_h \Big\{ 1 + \frac1n \sum_i h(x_i) - \frac1m \sum_j e^{h(y_j)}
        - \frac\lambda2 |h|^2 \Big\}
        = (1 + \lambda) \min_{\alpha \ge 0} \Big\{ 1 + \sum_j \alpha_j (\log m \alpha_j - 1)
        + \frac1{2 \lambda} \Big| \frac1n \sum_i k(x_i, \cdot) - \sum_j \alpha_j k(y_j, \cdot)
        \Big|^2 \Big\}

    over an RKHS; the maximum is at :math:`h = \frac1\lambda (\frac1n \sum_i k(x_i, \cdot) -
    \sum_j \alpha_j k(y_j, \cdot))`, and e^h estimates p / q.

    Args:
      p: x_i, samples of P, whose mean of h counts; shape (n, d), floating.
      q: y_j, samples of Q, whose mean of e^h counts; shape (m, d).
      kernel: k, positive definite; its lengthscales are in units of p.
      regularization: lambda > 0, in units of k. Keep it above 1e-3 k(0) in float32.
      num_steps: greatest number T of Newton steps, at least 1; static.
      tolerance: duality gap in nats at which to stop before, >= 0.
      axis_name: if set, p and q are the unions over all devices.

    Returns:
      The fit, without a gradient; model.gap is the duality gap that is left, and value the dual's,
      which is above the primal's by (1 + lambda) times as much.

    Raises:
      ValueError: wrong rank, dtype or dimensions, a kernel without k(0) > 0, a concrete
        regularization that is not positive, num_steps below 1, or a negative tolerance.

    Cost: O((n + m) m d + T m^3) time, O(m^2 + (n + m) d) memory.

    Example:
      >>> from kernelgrad import kale_rkhs, kernels
      >>> kernel, p, q = kernels.rbf_mixture(1.0), jnp.array([[0.0]]), jnp.array([[1.0]])
      >>> apart, same = (kale_rkhs.fit(p, other, kernel, regularization=0.1) for other in (q, p))
      >>> bool(apart.value > 0.1), bool(abs(same.value) < 1e-4)
      (True, True)

    References:
      Glaser, Arbel & Gretton 2021 (KALE flow), section 2; Nguyen, Wainwright & Jordan 2010.
    """
    p, q = _checks.points(p=p, q=q)
    _traits.check_positive(kernel)
    _checks.shape("regularization", regularization, ())
    _checks.positive(regularization=regularization)
    _checks.at_least("num_steps", num_steps, 1)
    _checks.shape("tolerance", tolerance, ())
    _checks.not_negative(tolerance=tolerance)
    x, y = (_devices.gather(_numeric.wide(points), axis_name) for points in (p, q))
    kernel, x, y = lax.stop_gradient((kernel, x, _numeric.like(y, x)))
    even = jnp.full((x.shape[0], 1), 1 / x.shape[0], x.dtype)
    gram = kernels.gram(kernel, y)
    size = lax.stop_gradient(_numeric.like(regularization, gram))
    target = pairwise.kernel_sum(kernel, y, x, even)[:, 0]
    log_weights, gap = _convex.exponential(
        gram, target, size, num_steps=num_steps, tolerance=_numeric.like(tolerance, gram)
    )
    alpha = jnp.exp(log_weights) / y.shape[0]
    within = jnp.mean(pairwise.kernel_sum(kernel, x, None, even))
    square = within + _numeric.dot(alpha, _numeric.dot(gram, alpha) - 2 * target)
    entropy = jnp.mean(_convex.divergence(log_weights, jnp.zeros_like(log_weights)))
    value = (1 + size) * entropy + (1 + 1 / size) * square / 2  # whatever the size, in range
    centers, weights = jnp.concatenate([x, y]), jnp.concatenate([even[:, 0], -alpha]) / size
    found = _devices.agreed((centers, weights, jnp.zeros_like(gap), gap, value), axis_name)
    return KaleFit(ratio.LogLinearRatio(kernel, *found[:4]), found[4])
