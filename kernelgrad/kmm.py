r"""Kernel mean matching: weights that move the mean embedding of one sample onto another's."""

import math

import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _convex, _numeric, _traits, kernels, pairwise
from kernelgrad.types import Array, Kernel


def kernel_mean_matching(
    p: Array,
    q: Array,
    kernel: Kernel,
    *,
    max_weight: float | Array,
    tolerance: float | Array,
    num_steps: int = 1000,
) -> Array:
    r"""Returns weights of q under which it looks like p: the ratio p / q at the samples of q.

    .. math:: \min_\beta \Big\| \frac1m \sum_j \beta_j k(\cdot, y_j) - \frac1n \sum_i
        k(\cdot, x_i) \Big\|^2 \quad \text{with} \quad 0 \le \beta_j \le B, \;
        \Big| \frac1m \sum_j \beta_j - 1 \Big| \le \epsilon

    by accelerated projected gradients. The constraints hold up to
    rounding; after T steps the squared norm, an MMD^2, is within about :math:`4 k(0) |\beta -
    \beta_0|^2 / (m T^2)` of its minimum, where beta_0 = 1 is the start. The weights themselves are
    determined less well: many of them have nearly one embedding.

    Args:
      p: x_i, samples to look like; shape (n, d), floating.
      q: y_j, samples to weigh; shape (m, d).
      kernel: k; its lengthscales are in units of p.
      max_weight: B >= 1, infinity for no bound; a lower one lowers the variance of weighted means.
      tolerance: epsilon >= 0, (sqrt(m) - 1) / sqrt(m) in the paper; at 0 the mean is 1.
      num_steps: T >= 1; static.

    Returns:
      beta, shape (m,), dtype of q, without a gradient in what it is made from; all NaN where a
      sample is not finite.

    Raises:
      ValueError: wrong rank, dtype or dimensions, a kernel without k(0) > 0, a concrete max_weight
        or tolerance outside of its range, or num_steps below 1.

    Cost: O(m (n + m) d + T m^2) time, O(m^2) memory.

    Example:
      >>> from kernelgrad import kernels, kmm
      >>> p, q = jnp.array([[0.0]]), jnp.array([[0.0], [9.0]])  # of q the first alone looks like p
      >>> settings = {"max_weight": 5.0, "tolerance": 0.0, "num_steps": 50}
      >>> print(kmm.kernel_mean_matching(p, q, kernels.rbf_mixture(1.0), **settings))
      [2. 0.]

    References:
      Huang et al. 2007, section 3; Gretton et al. 2009.
    """
    p, q = _checks.points(p=p, q=q)
    _traits.check_positive(kernel)
    _checks.shape("max_weight", max_weight, ())
    _checks.in_range("max_weight", max_weight, 1.0, math.inf, closed="lr")
    _checks.shape("tolerance", tolerance, ())
    _checks.not_negative(tolerance=tolerance)
    _checks.at_least("num_steps", num_steps, 1)
    kernel, p, weighed = lax.stop_gradient((kernel, _numeric.wide(p), _numeric.wide(q)))
    n, m = p.shape[0], weighed.shape[0]
    gram = kernels.gram(kernel, weighed) / m
    target = pairwise.kernel_sum(kernel, weighed, p, jnp.full((n, 1), 1 / n, p.dtype))[:, 0]
    top, slack = _numeric.like(max_weight, gram), _numeric.like(tolerance, gram)
    weights, _ = _convex.quadratic(
        gram,
        target,
        lambda point: _project(point, top, slack),
        jnp.ones(m, gram.dtype),
        num_steps=num_steps,
        tolerance=jnp.zeros((), gram.dtype),
    )
    return _numeric.like(weights, q)


def _project(point: Array, top: Array, slack: Array) -> Array:
    """Returns the nearest point in [0, top]^m whose mean is within slack of 1, by bisection.

    It is clip(point - shift) for one shift, in which the mean falls. The shift lies between those
    that take the least and the greatest entry to the mean: the entries bracket it, not the bounds.
    """

    def clipped(shift: Array) -> Array:
        return jnp.clip(point - shift, 0, top)

    here = jnp.mean(clipped(jnp.zeros((), point.dtype)))
    goal = jnp.clip(here, 1 - slack, 1 + slack)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) / 2
        above = jnp.mean(clipped(middle)) > goal
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    ends = jnp.min(point) - goal, jnp.max(point) - goal
    low, high = lax.fori_loop(0, jnp.finfo(point.dtype).nmant + 8, halve, ends)
    near = clipped(low + (high - low) / 2)
    free = (near > 0) & (near < top)  # to rounding: what is left is shared by those
    rest = point.size * (goal - jnp.mean(near)) / jnp.maximum(jnp.sum(free), 1).astype(point.dtype)
    near = jnp.clip(near + jnp.where(free, rest, 0), 0, top)
    return jnp.where(here == goal, clipped(jnp.zeros_like(low)), near)
