"""Convex problems of density ratios, each by the iteration that suits it, and what that left."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _devices, _numeric, _solve
from kernelgrad.types import Array

_HALVINGS = 20  # of a Newton step, before it counts as no step

_Projected = tuple[Array, Array, Array, Array, Array]
_Mixture = tuple[Array, Array, Array]
_Newton = tuple[Array, Array, Array, Array]


def mixture_shares(
    log_likelihood: Array, *, num_steps: int, tolerance: Array, axis_name: str | None = None
) -> tuple[Array, Array]:
    r"""Returns the proportions that make a sample of a mixture the likeliest.

    .. math:: \max_\pi \frac1n \sum_i \log \sum_c \pi_c e^{l_{ic}}, \quad \pi \ge 0, \;
        \textstyle\sum_c \pi_c = 1

    by expectation-maximisation from equal shares. With the factor :math:`f_c = \frac1n \sum_i
    e^{l_{ic}} / \sum_{c'} \pi_{c'} e^{l_{ic'}}` of the next step, no pi is better by more than
    :math:`\log \max_c f_c`.

    Args:
      log_likelihood: l; shape (n, c).
      num_steps: greatest number T of steps; static.
      tolerance: gap at which to stop before.
      axis_name: if set, the rows are the union over all devices.

    Returns:
      log pi, shape (c,), and the gap left, shape (), at most log(c) / T nats a sample.

    Cost: O(T n c) time, O(n c) memory.

    References:
      Csiszar & Tusnady 1984.
    """
    # one factor a row drops out; so no row vanishes: a lone greatest entry keeps a share >= 1/n
    likelihood = jnp.exp(log_likelihood - jnp.max(log_likelihood, axis=1, keepdims=True))
    n, c = likelihood.shape

    def growth(shares: Array) -> Array:
        factor = _numeric.dot(1 / (n * _numeric.dot(likelihood, shares)), likelihood)
        return _devices.varying(_devices.mean(factor, axis_name), likelihood)

    def unfinished(state: _Mixture) -> Array:
        _, factor, step = state
        return (jnp.log(jnp.max(factor)) > tolerance) & (step < num_steps)

    def raise_likelihood(state: _Mixture) -> _Mixture:
        shares, factor, step = state
        shares = shares * factor
        shares = shares / jnp.sum(shares)
        return shares, growth(shares), step + 1

    even = jnp.full(c, 1 / c, likelihood.dtype)
    start = even, growth(even), jnp.zeros((), jnp.int32)
    start = _devices.varying(start, likelihood)
    shares, factor, _ = lax.while_loop(unfinished, raise_likelihood, start)
    gap = jnp.log(jnp.max(factor))  # NaN where the likelihood is
    return jnp.where(jnp.isnan(gap), jnp.nan, jnp.log(shares)), jnp.maximum(gap, 0)


def classifier(
    features: Array,
    offsets: Array,
    ridge: Array,
    *,
    num_steps: int,
    tolerance: Array,
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    r"""Returns the weights of a penalised logistic regression.

    .. math:: \min_w \frac1n \sum_i \log(1 + e^{-w^\top \phi_i - o_i}) + \frac\lambda2 |w|^2

    by Newton's method from 0, each step halved until it is the best of its halves, to rounding, so
    that the objective never rises. A label of -1 is a phi and an o of the other sign.

    Args:
      features: phi; shape (n, c).
      offsets: o; shape (n,).
      ridge: lambda > 0; shape ().
      num_steps: greatest number T of steps; static.
      tolerance: gap at which to stop before.
      axis_name: if set, features and offsets are the union over all devices.

    Returns:
      w, shape (c,), and half of the squared Newton decrement before the last step, shape (); NaN
      where the Cholesky factorisation fails or no length of a step has a finite objective.

    Cost: O(T (n c^2 + c^3)) time, O(n c + c^2) memory.

    References:
      Boyd & Vandenberghe 2004, section 9.5.
    """
    n, c = features.shape
    scales = _halves(features.dtype)

    def objective(margins: Array, weights: Array) -> Array:
        loss = _devices.mean(jnp.mean(jax.nn.softplus(-margins)), axis_name)
        return loss + ridge / 2 * jnp.sum(jnp.square(weights))

    def unfinished(state: _Newton) -> Array:
        _, gap, scale, step = state
        return (gap > tolerance) & (scale > 0) & (step < num_steps)

    def descend(
        state: _Newton,
    ) -> _Newton:
        weights, _, _, step = state
        margins = _numeric.dot(features, weights) + offsets
        errors = jax.nn.sigmoid(-margins)
        curvature = errors * jax.nn.sigmoid(margins) / n
        hessian = _numeric.dot(features.T, curvature[:, None] * features)
        slope, hessian = _devices.mean((_numeric.dot(errors, features) / n, hessian), axis_name)
        gradient = ridge * weights - slope
        change = -_solve.dense(hessian, ridge)(gradient[:, None])[:, 0]
        turned = _numeric.dot(features, change)
        values = jax.vmap(lambda s: objective(margins + s * turned, weights + s * change))(scales)
        scale = _best(scales, values)
        return weights + scale * change, -jnp.sum(gradient * change) / 2, scale, step + 1

    infinite, one = jnp.full((), jnp.inf, features.dtype), jnp.ones((), features.dtype)
    start = jnp.zeros(c, features.dtype), infinite, one, jnp.zeros((), jnp.int32)
    start = _devices.varying(start, features, offsets, ridge)
    weights, gap, _, _ = lax.while_loop(unfinished, descend, start)
    return weights, gap


def _halves(dtype: jnp.dtype) -> Array:
    """Returns the lengths of a Newton step that are tried, 0 the last."""
    return jnp.append(0.5 ** jnp.arange(_HALVINGS, dtype=dtype), 0)


def _best(scales: Array, values: Array) -> Array:
    """Returns the longest step of those that rounding alone tells apart from the least value.

    NaN where no value is finite. The very least would be a step of any length, often of none, long
    before the gap is as small as rounding lets it be.
    """
    known = jnp.isfinite(values)
    least = jnp.min(jnp.where(known, values, jnp.inf))
    among = known & (values <= least + 4 * jnp.finfo(values.dtype).eps * jnp.abs(least))
    return jnp.where(jnp.any(known), scales[jnp.argmax(among)], jnp.nan)


def quadratic(
    matrix: Array,
    target: Array,
    project: Callable[[Array], Array],
    start: Array,
    *,
    num_steps: int,
    tolerance: Array,
) -> tuple[Array, Array]:
    r"""Returns the minimum of a quadratic over a convex set.

    .. math:: \min_{w \in C} \tfrac12 w^\top A w - b^\top w

    by accelerated projected gradients, restarted where they overshoot. The last gradient step
    :math:`G = L (v - w)`, with L >= the largest eigenvalue of A and w the projection of v less its
    gradient over L, bounds what is left by :math:`|G|^2 / (2 \mu)` if no eigenvalue is below mu.

    Args:
      matrix: A, positive semidefinite; shape (n, n).
      target: b; shape (n,).
      project: returns the nearest point of C.
      start: a point of C; shape (n,).
      num_steps: greatest number of steps; static.
      tolerance: |G|^2 at which to stop before; shape ().

    Returns:
      w, shape (n,), and |G|^2, shape ().

    Cost: O(n^2) time a step.

    References:
      Beck & Teboulle 2009; O'Donoghue & Candes 2015 for the restart.
    """
    curvature = jnp.max(jnp.sum(jnp.abs(matrix), axis=1))

    def unfinished(state: _Projected) -> Array:
        _, _, _, residual, step = state
        return (residual > tolerance) & (step < num_steps)

    def descend(state: _Projected) -> _Projected:
        point, ahead, momentum, _, step = state
        moved = project(ahead - (_numeric.dot(matrix, ahead) - target) / curvature)
        change, back = moved - point, ahead - moved
        momentum = jnp.where(jnp.vdot(back, change) > 0, 1, momentum)
        grown = (1 + jnp.sqrt(1 + 4 * jnp.square(momentum))) / 2
        residual = jnp.sum(jnp.square(curvature * back))
        return moved, moved + (momentum - 1) / grown * change, grown, residual, step + 1

    infinite, one = jnp.full((), jnp.inf, start.dtype), jnp.ones((), start.dtype)
    first = start, start, one, infinite, jnp.zeros((), jnp.int32)
    first = _devices.varying(first, matrix, target)
    point, _, _, residual, _ = lax.while_loop(unfinished, descend, first)
    return point, residual


def divergence(a: Array, v: Array) -> Array:
    r"""Returns :math:`e^v + e^a (a - v - 1)`, which is at least 0, to its last digits near a = v.

    Args:
      a: any shape.
      v: of that shape.
    """
    c = a - v
    near = jnp.exp(v) * jnp.square(c) * (0.5 + c * (1 / 3 + c / 8))
    return jnp.where(jnp.abs(c) < 1e-2, near, jnp.exp(v) + jnp.exp(a) * (c - 1))


def exponential(
    gram: Array, target: Array, ridge: Array, *, num_steps: int, tolerance: Array
) -> tuple[Array, Array]:
    r"""Returns the best function of an RKHS under the mean of its exponential, at its nodes.

    .. math:: \min_{\alpha \ge 0} \sum_i \alpha_i (\log n \alpha_i - 1)
        + \frac1{2 \lambda} (\alpha^\top K \alpha - 2 b^\top \alpha)

    the dual of :math:`\max_h \langle h, \mu \rangle - \frac1n \sum_i e^{h(y_i)} - \frac\lambda2
    |h|^2`, where :math:`b_i = \mu(y_i)` and :math:`h = (\mu - \sum_i \alpha_i k(y_i, \cdot)) /
    \lambda`. Newton's method in :math:`a = \log n \alpha`, each step halved until it is the best
    of its halves, to rounding. The duality gap is the mean of :func:`divergence` of a and of
    v_i = h(y_i).

    Args:
      gram: K, positive semidefinite; shape (n, n).
      target: b; shape (n,).
      ridge: lambda > 0; shape ().
      num_steps: greatest number T of steps; static.
      tolerance: duality gap at which to stop before.

    Returns:
      a, shape (n,), and the duality gap, shape (); NaN where the Cholesky factorisation fails.

    Cost: O(T n^3) time, O(n^2) memory.

    References:
      Glaser, Arbel & Gretton 2021, section 2 and appendix B.
    """
    n = target.shape[0]
    scales = _halves(gram.dtype)
    one = jnp.ones((), gram.dtype)

    def witness(a: Array) -> Array:
        return (target - _numeric.dot(gram, jnp.exp(a) / n)) / ridge

    def dual(a: Array) -> Array:
        alpha = jnp.exp(a) / n
        bend = _numeric.dot(alpha, _numeric.dot(gram, alpha)) - 2 * _numeric.dot(alpha, target)
        return _numeric.dot(alpha, a - 1) + bend / (2 * ridge)

    def unfinished(state: _Newton) -> Array:
        _, gap, scale, step = state
        return (gap > tolerance) & (scale > 0) & (step < num_steps)

    def descend(state: _Newton) -> _Newton:
        a, _, _, step = state
        slope = a - witness(a)
        root = jnp.exp(a / 2) / math.sqrt(n)
        curvature = root[:, None] * gram * root[None, :] / ridge
        inner = _solve.dense(curvature, one)((-root * slope)[:, None])[:, 0]
        change = -slope - _numeric.dot(gram, root * inner) / ridge
        values = jax.vmap(lambda scale: dual(a + scale * change))(scales)
        scale = _best(scales, values)
        moved = a + scale * change
        return moved, jnp.mean(divergence(moved, witness(moved))), scale, step + 1

    start = jnp.zeros_like(target), jnp.full((), jnp.inf, gram.dtype), one, jnp.zeros((), jnp.int32)
    start = _devices.varying(start, gram, target, ridge)
    a, gap, _, _ = lax.while_loop(unfinished, descend, start)
    return a, gap
