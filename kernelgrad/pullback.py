r"""From a direction per sample to a gradient in the generator's parameters.

Three ways of letting :math:`x_i = f(\eta; z_i)` follow :math:`-\phi_i`, with one meaning: each
returns g such that :math:`\eta - \varepsilon g` moves the samples towards
:math:`x_i - \varepsilon \phi_i`, and Optax descends g. So each fits ``train.make_train_step`` with
any objective, hyperparameters bound by ``functools.partial``; any direction fits each of them, such
as ``-svgd.svgd_direction(x, s, kernel)`` (eqs. 7-10 of Wang & Liu 2016) or the direct KL gradient
``score.stein_score(x, kernel, ridge=ridge) - s`` (their eq. 11).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.scipy.sparse.linalg import cg

from kernelgrad import _checks, _devices, _numeric
from kernelgrad.types import Array, PyTree

GeneratorFn = Callable[[PyTree], Array]


class Residuals(NamedTuple):
    """How far a gradient is from solving the least squares problem of :func:`gauss_newton`.

    Attributes:
      misfit: share of the direction that the samples cannot follow to first order, in [0, 1] for
        an exact solution; shape ().
      normal: residual of the normal equations over that of g = 0; shape (). At most the tolerance
        where the solver converged.
    """

    misfit: Array
    normal: Array


def chain_rule(generator_fn: GeneratorFn, params: PyTree, direction: Array) -> PyTree:
    r"""Returns the mean direction, pulled back through the generator.

    .. math:: g = \frac1n \sum_i J_i^\top \phi_i, \quad J_i = \partial f(\eta; z_i) / \partial \eta

    The sign is that of the direction: where descending :math:`\phi` in sample space lowers a
    discrepancy, Optax descending g lowers it too. The mean, not the paper's sum, keeps the step
    independent of the batch size.

    Args:
      generator_fn: maps params to samples f(eta; z_i) at fixed latents; output shape (n, ...).
        Within one jit its forward pass is shared with the caller's own.
      params: eta; pytree of floating arrays.
      direction: phi_i; same shape as the samples.

    Returns:
      Gradient, a pytree like params.

    Raises:
      ValueError: direction shaped unlike the samples.

    Cost: one forward and one backward pass of the generator.

    Example:
      >>> from kernelgrad import pullback
      >>> latents, w, direction = jnp.array([[1.0], [2.0]]), jnp.array(3.0), jnp.ones((2, 1))
      >>> gradient = pullback.chain_rule(lambda w: w * latents, w, direction)
      >>> round(float(gradient), 3)  # (1 + 2) / 2
      1.5

    References:
      Li 2017 (approximate KL gradients), eq. (1); Wang & Liu 2016 (amortized SVGD), eq. (10).
    """
    params = _checks.floating_leaves("params", params)
    (direction,) = _checks.floating(direction=direction)
    params = _devices.own_point(generator_fn, _devices.varying(params, direction))
    samples, pull = jax.vjp(generator_fn, params)
    _checks.shape("direction", direction, samples.shape)
    direction = _devices.varying(
        _numeric.like(_numeric.wide(direction) / samples.shape[0], samples), samples
    )
    (gradient,) = pull(direction)
    return gradient


def regression(
    generator_fn: GeneratorFn,
    params: PyTree,
    direction: Array,
    *,
    optimizer: optax.GradientTransformation,
    step_size: float | Array,
    num_steps: int,
    axis_name: str | None = None,
) -> PyTree:
    r"""Returns the step that regresses the samples onto their moved selves, as a gradient.

    .. math:: g = (\eta - \eta^+) / \varepsilon, \quad \eta^+ \approx \arg\min_{\eta'}
        \frac1n \sum_i |f(\eta'; z_i) - (x_i - \varepsilon \phi_i)|^2

    The sign is that of the direction, to be descended: a plain gradient step of length epsilon
    lands on eta^+. One inner step of gradient descent at learning rate 1/2 is :func:`chain_rule`;
    many of them approach :func:`gauss_newton` as epsilon goes to 0.

    Args:
      generator_fn: maps params to samples f(eta; z_i) at fixed latents; output shape (n, ...).
      params: eta, where the regression starts; pytree of floating arrays.
      direction: phi_i; same shape as the samples.
      optimizer: the inner Optax optimizer, begun afresh at each call. One that diverges returns
        values that are not finite, which the train step flags.
      step_size: epsilon > 0, units of samples over units of the direction; shape ().
      num_steps: inner steps >= 1; static.
      axis_name: if set, i runs over the union of all devices' samples.

    Returns:
      Gradient, a pytree like params; the same on all devices.

    Raises:
      ValueError: direction shaped unlike the samples, or a hyperparameter out of its range.

    Cost: num_steps forward and backward passes of the generator, and one forward pass.

    Example:
      >>> from kernelgrad import pullback
      >>> latents, w, direction = jnp.array([[1.0], [2.0]]), jnp.array(3.0), jnp.ones((2, 1))
      >>> settings = {"optimizer": optax.sgd(0.5), "step_size": 1.0, "num_steps": 1}
      >>> gradient = pullback.regression(lambda w: w * latents, w, direction, **settings)
      >>> round(float(gradient), 3)  # that of chain_rule
      1.5

    References:
      Wang & Liu 2016 (amortized SVGD), eq. (8).
    """
    _checks.shape("step_size", step_size, ())
    _checks.positive(step_size=step_size)
    _checks.at_least("num_steps", num_steps, 1)
    params = _checks.floating_leaves("params", params)
    (direction,) = _checks.floating(direction=direction)
    params = _devices.own_point(generator_fn, _devices.varying(params, direction))
    samples = generator_fn(params)
    _checks.shape("direction", direction, samples.shape)
    offset = (_numeric.like(step_size, direction) * direction).astype(samples.dtype)

    def shifted(moved: PyTree) -> PyTree:
        return jax.tree.map(jnp.add, params, moved)

    def loss(moved: PyTree) -> Array:
        misses = generator_fn(shifted(moved)) - samples + offset
        return _norm2(misses) / samples.shape[0]

    def inner(_: Array, carry: tuple[PyTree, optax.OptState]) -> tuple[PyTree, optax.OptState]:
        moved, opt_state = carry
        gradient = _devices.mean(jax.grad(loss)(moved), axis_name)
        updates, opt_state = optimizer.update(gradient, opt_state, shifted(moved))
        return optax.apply_updates(moved, updates), opt_state

    start = (jax.tree.map(jnp.zeros_like, params), optimizer.init(params))
    moved, _ = lax.fori_loop(0, num_steps, inner, _devices.varying(start, params))
    moved = _devices.mean(moved, axis_name)
    return jax.tree.map(lambda m: -m / _numeric.like(step_size, m), moved)


def gauss_newton(
    generator_fn: GeneratorFn,
    params: PyTree,
    direction: Array,
    *,
    damping: float | Array,
    tolerance: float = 1e-5,
    max_iterations: int = 100,
    axis_name: str | None = None,
) -> PyTree:
    r"""Returns the parameter step whose first-order effect on the samples fits the direction best.

    .. math:: g = \arg\min_\delta \frac1n \sum_i |J_i \delta - \phi_i|^2 + \lambda |\delta|^2

    The sign is that of the direction, to be descended. Conjugate gradients on the normal equations
    :math:`(J^\top J / n + \lambda I)\, g = J^\top \phi / n` start at 0 and use products with J and
    its transpose only, so that no matrix is ever formed. Stopped early they still return a
    direction with :math:`\langle g, J^\top \phi \rangle > 0`, between :func:`chain_rule` (one
    iteration, up to a factor) and the solution; :func:`residuals` tells how close. Without damping
    the solution of least norm is approached.

    Args:
      generator_fn: maps params to samples f(eta; z_i) at fixed latents; output shape (n, ...).
      params: eta; pytree of floating arrays of one dtype.
      direction: phi_i; same shape as the samples.
      damping: lambda >= 0, in units of \|J_i\|^2; shape (). Networks have singular values over many
        orders of magnitude: without damping the small ones call for long steps, far outside of the
        reach of the linearisation.
      tolerance: residual of the normal equations, relative to that of g = 0, at which to stop.
      max_iterations: most iterations; static.
      axis_name: if set, i runs over the union of all devices' samples.

    Returns:
      Gradient, a pytree like params, in units of params over those of samples, times those of the
      direction; the same on all devices. Zero where the pulled-back direction is, NaN where that
      is not finite.

    Raises:
      ValueError: direction shaped unlike the samples, or a hyperparameter out of its range, a
        tolerance below 8 machine epsilons included: rounding then drives the iterates away.

    Cost: about one forward and one backward pass of the generator an iteration; O(P) memory.

    Example:
      >>> from kernelgrad import pullback
      >>> latents, w, direction = jnp.array([[1.0], [2.0]]), jnp.array(3.0), jnp.ones((2, 1))
      >>> gradient = pullback.gauss_newton(lambda w: w * latents, w, direction, damping=0.0)
      >>> round(float(gradient), 3)  # (1 + 2) / (1 + 4)
      0.6

    References:
      Wang & Liu 2016 (amortized SVGD), eq. (9).
    """
    _checks.shape("damping", damping, ())
    _checks.in_range("damping", damping, 0.0, float("inf"), closed="l")
    _checks.at_least("max_iterations", max_iterations, 1)
    (direction,) = _checks.floating(direction=direction)
    push, pull = _linearise(generator_fn, params, direction, axis_name, damping)
    downhill = pull(direction)
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(downhill))
    _checks.in_range("tolerance", tolerance, 8 * eps, 1.0, closed="l")

    largest = jnp.max(jnp.array([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(downhill)]))
    unit = jnp.where(largest > 0, largest, 1)  # squares of tiny or huge directions stay in range

    def normal(step: PyTree) -> PyTree:
        return _devices.varying(_add_scaled(pull(push(step)), damping, step), step)

    scaled = jax.tree.map(lambda leaf: leaf / unit, downhill)
    if axis_name is not None:  # a solve whose values are of one kind, each device's own
        scaled = _devices.varying(scaled, lax.axis_index(axis_name))
    solution, _ = cg(normal, scaled, tol=tolerance, maxiter=max_iterations)
    known = jnp.isfinite(largest)  # conjugate gradients stop at 0 where nothing is known
    gradient = jax.tree.map(lambda leaf: jnp.where(known, leaf * unit, jnp.nan), solution)
    return _devices.mean(gradient, axis_name)


def residuals(
    generator_fn: GeneratorFn,
    params: PyTree,
    direction: Array,
    gradient: PyTree,
    *,
    damping: float | Array = 0.0,
    axis_name: str | None = None,
) -> Residuals:
    r"""Returns how well a gradient makes the samples follow the direction, to first order.

    .. math:: \frac{|J g - \phi|}{|\phi|} \quad\text{and}\quad
        \frac{|J^\top (J g - \phi) / n + \lambda g|}{|J^\top \phi / n|}

    The first compares updates with one another, the second says whether :func:`gauss_newton`
    converged. Both are 0 where their denominator is.

    Args:
      generator_fn: maps params to samples f(eta; z_i) at fixed latents; output shape (n, ...).
      params: eta; pytree of floating arrays.
      direction: phi_i; same shape as the samples.
      gradient: g of any pull-back; a pytree like params.
      damping: lambda of :func:`gauss_newton`; shape ().
      axis_name: if set, i runs over the union of all devices' samples.

    Returns:
      Both residuals.

    Raises:
      ValueError: direction shaped unlike the samples.

    Cost: two forward and two backward passes of the generator.

    Example:
      >>> from kernelgrad import pullback
      >>> latents, w, direction = jnp.array([[1.0], [2.0]]), jnp.array(3.0), jnp.ones((2, 1))
      >>> best = jnp.array(0.6)  # that of gauss_newton
      >>> misfit, normal = pullback.residuals(lambda w: w * latents, w, direction, best)
      >>> round(float(misfit), 3), bool(normal < 1e-5)  # |(0.6, 1.2) - (1, 1)| / |(1, 1)|
      (0.316, True)
    """
    (direction,) = _checks.floating(direction=direction)
    gradient = _checks.floating_leaves("gradient", gradient)
    push, pull = _linearise(generator_fn, params, direction, axis_name, gradient, damping)
    followed = push(gradient)
    direction = direction.astype(followed.dtype)
    miss = followed - direction
    left = _add_scaled(pull(miss), damping, gradient)
    squares = _devices.mean((_norm2(miss), _norm2(direction)), axis_name)
    return Residuals(_root_ratio(*squares), _root_ratio(_norm2(left), _norm2(pull(direction))))


def _linearise(
    generator_fn: GeneratorFn,
    params: PyTree,
    direction: Array,
    axis_name: str | None,
    *others: PyTree,
) -> tuple[Callable[[PyTree], Array], Callable[[Array], PyTree]]:
    """Returns the products v -> J v and u -> J^T u / n over the union of all devices' samples.

    They take what varies over a mesh as params, direction and others do.
    """
    params = _checks.floating_leaves("params", params)
    params = _devices.own_point(generator_fn, _devices.varying(params, direction, others))
    samples, push = jax.linearize(generator_fn, params)
    _checks.shape("direction", direction, samples.shape)
    transpose = jax.linear_transpose(push, params)

    def pull(cotangent: Array) -> PyTree:
        cotangent = _numeric.like(_numeric.wide(cotangent) / samples.shape[0], samples)
        (gradient,) = transpose(_devices.varying(cotangent, samples))
        return _devices.mean(gradient, axis_name)

    return lambda step: push(_devices.varying(step, params)), pull


def _add_scaled(tree: PyTree, scale: float | Array, other: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: a + jnp.asarray(scale, a.dtype) * b, tree, other)


def _norm2(tree: PyTree) -> Array:
    leaves = jax.tree.leaves(tree)
    return jnp.sum(jnp.array([jnp.sum(jnp.square(_numeric.wide(leaf))) for leaf in leaves]))


def _root_ratio(numerator: Array, denominator: Array) -> Array:
    """Returns sqrt(numerator / denominator), 0 where the denominator is."""
    return _numeric.root(numerator / jnp.where(denominator == 0, jnp.inf, denominator))
