r"""Kernels that are learned by the power of their two-sample test, and the test with them.

On one half of the samples a kernel ascends :func:`kernelgrad.mmd.test_power`, on the other half it
is tested: its p-value is that of a kernel that was given. What is learned is positive and moves in
logarithms. The engine sums radial kernels, functions of one distance; the deep kernel of Liu et al.
2020 has two, that of the points and that of their features. With Gaussians it is a sum of two
radial kernels, one of the points and one of points and features side by side, and the statistics of
MMD, which are linear in the kernel, are summed in as many passes.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from kernelgrad import _checks, _devices, _equality, _numeric, kernels, mmd
from kernelgrad.kernels import FeatureKernel, RadialMixture
from kernelgrad.types import Array, Kernel, Key, PyTree, TestResult

_FEATURES = "(params, x) -> features"


@_equality.by_value
@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "feature_lengthscale", "lengthscale", "share"),
    meta_fields=("apply_fn",),
)
@dataclass(frozen=True, eq=False)
class DeepKernel:
    r"""The kernel :math:`[(1 - e)\, k_0(\phi(x), \phi(y)) + e]\, k_1(x, y)`, k_0 and k_1 Gaussian.

    Build it with :func:`deep_kernel`. It is no function of one distance, and what asks for one
    refuses it; :func:`kernelgrad.mmd.test_power` and ``two_sample_test`` take it.

    Attributes:
      apply_fn: phi, called as apply_fn(params, x) -> (n, l).
      params: parameters of phi; a traced pytree.
      feature_lengthscale: of k_0, in units of the features; shape ().
      lengthscale: of k_1, in units of x; shape ().
      share: e, in (0, 1); shape ().
    """

    apply_fn: Callable[[PyTree, Array], Array]
    params: PyTree
    feature_lengthscale: Array
    lengthscale: Array
    share: Array

    @property
    def parts(self) -> tuple[Kernel, Kernel]:
        """The two kernels whose sum it is."""
        product = FeatureKernel(kernels.rbf_mixture(1.0, 1 - self.share), self, _side_by_side)
        return product, kernels.rbf_mixture(self.lengthscale, self.share)

    def profile(self, sq_dist: Array) -> Array:
        """Raises ValueError, for it is no function of one distance."""
        raise ValueError(
            "kernel: got a deep kernel of two distances; expected a function of one, such as "
            "kernels.feature_kernel"
        )


class Learned(NamedTuple):
    """A kernel and how it came about.

    Attributes:
      kernel: at the end.
      powers: the criterion before each step; shape (num_steps,).
    """

    kernel: Any
    powers: Array


class Halves(NamedTuple):
    """Samples, dealt in two.

    Attributes:
      train: x and y to learn from; shapes (n // 2, d), (m // 2, d).
      held_out: the others.
    """

    train: tuple[Array, Array]
    held_out: tuple[Array, Array]


def deep_kernel(
    apply_fn: Callable[[PyTree, Array], Array],
    params: PyTree,
    *,
    feature_lengthscale: float | Array = 1.0,
    lengthscale: float | Array = 1.0,
    share: float | Array = 0.1,
) -> DeepKernel:
    r"""Returns a deep kernel that also sees the points themselves.

    .. math:: k(x, y) = [(1 - e)\, k_0(\phi(x), \phi(y)) + e]\, k_1(x, y)

    k_0 and k_1 are Gaussian. However phi maps the points, none that k_1 tells apart are lost.

    Args:
      apply_fn: phi, called as apply_fn(params, x); maps (n, d) to (n, l), each row on its own.
      params: parameters of phi; a pytree, traced.
      feature_lengthscale: of k_0, > 0, in units of the features.
      lengthscale: of k_1, > 0, in units of x.
      share: e, in (0, 1).

    Returns:
      The kernel, a pytree whose leaves may be traced and learned.

    Raises:
      ValueError: a concrete number out of its range, or no scalar.

    Example:
      >>> from kernelgrad import kernel_learning, kernels
      >>> kernel = kernel_learning.deep_kernel(lambda params, x: x, (), share=0.1)
      >>> x = jnp.array([[0.0], [1.0]])  # off the diagonal (0.9 exp(-1/2) + 0.1) exp(-1/2)
      >>> print(sum(kernels.gram(part, x) for part in kernel.parts))
      [[1.    0.392]
       [0.392 1.   ]]

    References:
      Liu et al. 2020 (deep kernels), eq. (1).
    """
    scales = {"feature_lengthscale": feature_lengthscale, "lengthscale": lengthscale}
    for name, value in {**scales, "share": share}.items():
        _checks.shape(name, value, ())
    _checks.positive(**scales)
    _checks.in_range("share", share, 0.0, 1.0)
    numbers = [jnp.asarray(value, dtype=float) for value in (*scales.values(), share)]
    return DeepKernel(apply_fn, params, *numbers)


def halves(key: Key, x: Array, y: Array) -> Halves:
    """Returns the samples dealt at random into halves to learn from and to test on.

    Args:
      key: random key of the permutations.
      x: samples; shape (n, d), n >= 4, floating.
      y: samples; shape (m, d), m >= 4.

    Returns:
      Halves; where a number is odd, the one more is held out.

    Raises:
      ValueError: wrong rank, dtype or mismatched dimensions, or a half of fewer than two samples.

    Example:
      >>> from kernelgrad import kernel_learning
      >>> x, y = jnp.zeros((5, 1)), jnp.zeros((4, 1))
      >>> halves = kernel_learning.halves(jax.random.key(0), x, y)
      >>> [len(part) for part in (*halves.train, *halves.held_out)]
      [2, 2, 3, 2]
    """
    x, y = _checks.points(x=x, y=y)
    dealt = []
    for one, (name, points) in zip(jax.random.split(key), {"x": x, "y": y}.items(), strict=True):
        size = points.shape[0]
        if size < 4:
            raise ValueError(f"{name}: got {size} samples; expected at least 4, two in each half")
        order = jax.random.permutation(one, size)
        dealt.append((points[order[: size // 2]], points[order[size // 2 :]]))
    (x_train, x_test), (y_train, y_test) = dealt
    return Halves((x_train, y_train), (x_test, y_test))


def learn(
    key: Key,
    x: Array,
    y: Array,
    kernel: Kernel,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int | None = None,
) -> Learned:
    r"""Returns the kernel after ascent on the power of its two-sample test.

    Lengthscales, and weights where the kernel has any, move in logarithms, the share of a deep
    kernel in its logit, the parameters of features as they are; exponents stay.

    Args:
      key: random key of the batches.
      x: samples of P; shape (n, d), n >= 2, floating.
      y: samples of Q; shape of x.
      kernel: at the start: a mixture of :mod:`kernelgrad.kernels`, a sum or a product of some, one
        of these ``per_coordinate`` or on features, or a :func:`deep_kernel`.
      optimizer: any Optax optimizer, which gets the gradient of -J.
      num_steps: of the optimizer, >= 1; static.
      batch_size: samples of either kind in a step, from 2 to n; static. None: all.

    Returns:
      The kernel and its powers. Test it on other samples.

    Raises:
      ValueError: wrong rank, dtype or shapes, concrete samples or features that are not finite,
        features without a gradient in their parameters, a weight of 0, another kind of kernel, or
        a number out of its range.

    Cost: O(batch_size^2 d num_steps) time, O(n d) memory, besides phi's.

    Example:
      >>> from kernelgrad import kernel_learning, kernels
      >>> key, x = jax.random.key(0), jnp.array([[0.0], [1.0], [2.0]])
      >>> start, settings = kernels.rbf_mixture(0.3), {"num_steps": 3}
      >>> learned = kernel_learning.learn(key, x, x + 2, start, optax.sgd(0.3), **settings)
      >>> bool(learned.kernel.lengthscales[0] > 0.3), learned.powers.shape
      (True, (3,))

    References:
      Liu et al. 2020 (deep kernels), algorithm 1; Sutherland et al. 2017.
    """
    x, y = _checks.points(x=x, y=y)
    _checks.at_least("num_steps", num_steps, 1)
    size = x.shape[0] if batch_size is None else batch_size
    _checks.at_least("batch_size", size, 2)
    if size > x.shape[0]:
        raise ValueError(f"batch_size: got {size}; expected at most {x.shape[0]}, the samples of x")
    _checks.shape("y", y, x.shape)
    free = _devices.varying(_free(kernel), x, y)
    _check_inputs(x, y, kernel)

    def batch(key: Key) -> tuple[Array, Array]:
        if size == x.shape[0]:
            return x, y
        of_x, of_y = (jax.random.permutation(one, x.shape[0]) for one in jax.random.split(key))
        return x[of_x[:size]], y[of_y[:size]]

    def step(carry: tuple[PyTree, Any], key: Key) -> tuple[tuple[PyTree, Any], Array]:
        free, opt_state = carry
        u, v = batch(key)
        loss, gradient = jax.value_and_grad(
            lambda free: -mmd.test_power(u, v, _bound(kernel, free))
        )(free)
        updates, opt_state = optimizer.update(gradient, opt_state, free)
        return (optax.apply_updates(free, updates), opt_state), -loss

    start = free, optimizer.init(free)
    (free, _), powers = lax.scan(step, start, jax.random.split(key, num_steps))
    return Learned(_bound(kernel, free), powers)


def learned_test(
    key: Key,
    x: Array,
    y: Array,
    kernel: Kernel,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int | None = None,
    num_permutations: int = 999,
) -> TestResult:
    """Tests whether x and y come from one distribution, with a kernel learned on half of them.

    Args:
      key: random key of the halves, the batches and the permutations.
      x: samples; shape (n, d), n >= 4, floating.
      y: samples; shape of x.
      kernel: at the start, as in :func:`learn`. It may depend on the pooled sample.
      optimizer: as in :func:`learn`.
      num_steps: as in :func:`learn`.
      batch_size: as in :func:`learn`, at most n // 2.
      num_permutations: of the held-out half, >= 1; static.

    Returns:
      As :func:`kernelgrad.mmd.two_sample_test` of the held-out halves.

    Raises:
      ValueError: as :func:`halves`, :func:`learn` and ``two_sample_test``.

    Example:
      >>> from kernelgrad import kernel_learning, kernels
      >>> key, x = jax.random.key(0), jnp.linspace(0.0, 1.0, 12)[:, None]
      >>> start, settings = kernels.rbf_mixture(1.0), {"num_steps": 2, "num_permutations": 99}
      >>> test = kernel_learning.learned_test(key, x, x + 3, start, optax.sgd(0.1), **settings)
      >>> bool(test.p_value < 0.05)
      True

    References:
      Liu et al. 2020 (deep kernels), algorithm 1.
    """
    split_key, learn_key, test_key = jax.random.split(key, 3)
    train, held_out = halves(split_key, x, y)
    learned = learn(
        learn_key, *train, kernel, optimizer, num_steps=num_steps, batch_size=batch_size
    )
    return mmd.two_sample_test(
        test_key, *held_out, learned.kernel, num_permutations=num_permutations
    )


def _side_by_side(kernel: DeepKernel, x: Array) -> Array:
    """Returns features and points, each over its lengthscale; shape (n, l + d)."""
    features = _numeric.wide(_features(kernel.apply_fn, kernel.params, x))
    points = _numeric.like(x, features) / kernel.lengthscale.astype(features.dtype)
    scaled = features / kernel.feature_lengthscale.astype(features.dtype)
    return jnp.concatenate([scaled, points], axis=1)


def _features(apply_fn: Callable[[PyTree, Array], Array], params: PyTree, x: Array) -> Array:
    """Returns phi(x) in floating point, a row a point."""
    features = _checks.call("apply_fn", _FEATURES, apply_fn, params, x)
    return _checks.features(features, x.shape[0])


def _check_inputs(x: Array, y: Array, kernel: Any) -> None:
    """Raises ValueError for concrete points or features that nothing can be learned from."""
    _checks.finite(x=x, y=y)
    if not hasattr(kernel, "apply_fn"):
        return
    for points in (x, y):
        _features(kernel.apply_fn, kernel.params, points)
        params = _devices.varying(kernel.params, points)
        features, pull = jax.vjp(lambda p, v=points: kernel.apply_fn(p, v), params)
        slopes = jax.tree.leaves(pull(jnp.cos(features)))
        known = not any(isinstance(slope, jax.core.Tracer) for slope in slopes)
        if known and slopes and not any(jnp.any(slope != 0) for slope in slopes):
            raise ValueError(
                "kernel: got features without a gradient in their parameters; expected features "
                "that change with them. Hold still what is not learned by optax.set_to_zero"
            )


def _free(kernel: Any) -> PyTree:
    """Returns what of a kernel is learned, as numbers without a bound."""
    match kernel:
        case RadialMixture(lengthscales=lengthscales, weights=weights):
            free = {"log_lengthscales": jnp.log(lengthscales)}
            if weights is None:
                return free
            _checks.positive(**{"kernel.weights": weights})
            return {**free, "log_weights": jnp.log(weights)}
        case kernels.KernelSum(kernels=parts, weights=weights):
            each = {"kernels": [_free(part) for part in parts]}
            if weights is None:
                return each
            _checks.positive(**{"kernel.weights": weights})
            return {**each, "log_weights": jnp.log(weights)}
        case kernels.KernelProduct(kernels=parts):
            return {"kernels": [_free(part) for part in parts]}
        case FeatureKernel(
            base=RadialMixture() | kernels.KernelSum() | kernels.KernelProduct(), params=params
        ):
            return {"base": _free(kernel.base), "params": params}
        case kernels.PerCoordinate(coordinate_lengthscales=lengthscales):
            return {"base": _free(kernel.base), "log_lengthscales": jnp.log(lengthscales)}
        case DeepKernel(params=params):
            scales = jnp.stack([kernel.feature_lengthscale, kernel.lengthscale])
            logit = jnp.log(kernel.share) - jnp.log1p(-kernel.share)
            return {"log_lengthscales": jnp.log(scales), "logit": logit, "params": params}
    raise ValueError(
        f"kernel: got {type(kernel).__name__}; expected a mixture, a feature kernel or "
        "per_coordinate of one, a sum or product of some, or a deep kernel"
    )


def _bound(kernel: Any, free: PyTree) -> Any:
    """Returns the kernel with what is learned in place of its own; undoes :func:`_free`."""
    if isinstance(kernel, FeatureKernel):
        base = _bound(kernel.base, free["base"])
        return dataclasses.replace(kernel, base=base, params=free["params"])
    weights = jnp.exp(free["log_weights"]) if "log_weights" in free else None
    if isinstance(kernel, kernels.KernelSum | kernels.KernelProduct):
        parts = tuple(map(_bound, kernel.kernels, free["kernels"]))
        return (
            kernels.KernelProduct(parts)
            if isinstance(kernel, kernels.KernelProduct)
            else kernels.KernelSum(parts, weights)
        )
    scales = jnp.exp(free["log_lengthscales"])
    if isinstance(kernel, kernels.PerCoordinate):
        return kernels.PerCoordinate(_bound(kernel.base, free["base"]), scales)
    if isinstance(kernel, DeepKernel):
        share = jax.nn.sigmoid(free["logit"])
        return DeepKernel(kernel.apply_fn, free["params"], scales[0], scales[1], share)
    return dataclasses.replace(kernel, lengthscales=scales, weights=weights)
