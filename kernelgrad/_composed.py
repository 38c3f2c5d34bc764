"""Kernels made of kernels: sums and products of radial ones, and a lengthscale a coordinate."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from kernelgrad import _checks, _distances, _equality, _numeric, _traits
from kernelgrad.types import Array, Kernel


@_equality.by_value
@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("kernels", "weights"), meta_fields=()
)
@dataclass(frozen=True, eq=False)
class KernelSum:
    r"""The kernel :math:`k = \sum_a w_a k_a` of radial kernels; build it with :func:`sum_of`.

    Attributes:
      kernels: k_a.
      weights: w_a; shape (a,), or None for a plain sum. A traced leaf.
    """

    kernels: tuple[Kernel, ...]
    weights: Array | None = None

    def profile(self, sq_dist: Array) -> Array:
        """Returns k at squared distances, elementwise."""
        total = jnp.zeros((), sq_dist.dtype)
        for place, kernel in enumerate(self.kernels):
            value = kernel.profile(sq_dist)
            weight = None if self.weights is None else self.weights[place].astype(value.dtype)
            total += value if weight is None else weight * value
        return total

    def log_profile(self, sq_dist: Array) -> Array | None:
        """Returns log k, by way of no k that underflows; None where that of a k_a is unknown."""
        logs = [_traits.log_profile(kernel, sq_dist) for kernel in self.kernels]
        known = [log for log in logs if log is not None]
        if len(known) < len(logs):
            return None
        weights = None
        if self.weights is not None:
            weights = self.weights.astype(sq_dist.dtype).reshape((-1,) + (1,) * sq_dist.ndim)
        return jax.nn.logsumexp(jnp.stack(known), axis=0, b=weights)

    def log_slope(self) -> Array | None:
        """Returns (log k)' where it is constant: of one Gaussian; None for any other sum."""
        return _traits.log_slope(self.kernels[0]) if len(self.kernels) == 1 else None

    @property
    def smooth_at_zero(self) -> bool:
        """Whether all k_a are differentiable where their points coincide."""
        return all(map(_traits.smooth_at_zero, self.kernels))

    @property
    def lengthscales(self) -> Array:
        """Those of all k_a that have some, and a unit, or 1; by them sums choose their unit."""
        return _lengthscales(self.kernels)

    def in_unit(self, unit: Array) -> "KernelSum":
        """Returns the kernel of points in another unit of length."""
        return dataclasses.replace(self, kernels=_in_unit(self.kernels, unit))


@_equality.by_value
@functools.partial(jax.tree_util.register_dataclass, data_fields=("kernels",), meta_fields=())
@dataclass(frozen=True, eq=False)
class KernelProduct:
    r"""The kernel :math:`k = \prod_a k_a` of radial kernels; build it with :func:`product_of`.

    Attributes:
      kernels: k_a.
    """

    kernels: tuple[Kernel, ...]

    def profile(self, sq_dist: Array) -> Array:
        """Returns k at squared distances, elementwise."""
        return math.prod(
            (kernel.profile(sq_dist) for kernel in self.kernels), start=jnp.ones((), sq_dist.dtype)
        )

    def log_profile(self, sq_dist: Array) -> Array:
        """Returns log k, where a k_a without a logarithm counts as the smallest float, or more."""
        limits = jnp.finfo(sq_dist.dtype)
        total = jnp.zeros((), sq_dist.dtype)
        for kernel in self.kernels:
            log = _traits.log_profile(kernel, sq_dist)
            if log is None:
                value = kernel.profile(jnp.minimum(sq_dist, limits.max))
                log = jnp.log(jnp.maximum(value, limits.tiny))
            total += log
        return total

    def log_slope(self) -> Array | None:
        """Returns (log k)' where it is constant, for Gaussians; None for any other product."""
        slopes = [_traits.log_slope(kernel) for kernel in self.kernels]
        known = [slope for slope in slopes if slope is not None]
        return sum(_of_one_dtype(known)) if len(known) == len(slopes) else None  # type: ignore[return-value]

    @property
    def smooth_at_zero(self) -> bool:
        """Whether all k_a are differentiable where their points coincide."""
        return all(map(_traits.smooth_at_zero, self.kernels))

    @property
    def lengthscales(self) -> Array:
        """Those of all k_a that have some, and a unit, or 1; by them sums choose their unit."""
        return _lengthscales(self.kernels)

    def in_unit(self, unit: Array) -> "KernelProduct":
        """Returns the kernel of points in another unit of length."""
        return KernelProduct(_in_unit(self.kernels, unit))


@_equality.by_value
@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("base", "coordinate_lengthscales"),
    meta_fields=(),
)
@dataclass(frozen=True, eq=False)
class PerCoordinate:
    r"""The kernel :math:`k(x, y) = k_0(x / l, y / l)`; build it with :func:`per_coordinate`.

    Attributes:
      base: k_0, radial.
      coordinate_lengthscales: l, in units of x; shape (d,). A traced leaf.
    """

    base: Kernel
    coordinate_lengthscales: Array

    def features(self, x: Array) -> Array:
        """Returns x / l, shape (n, d); at least float32."""
        _checks.shape("lengthscales", self.coordinate_lengthscales, (x.shape[1],))
        x = _numeric.wide(x)
        return x / self.coordinate_lengthscales.astype(x.dtype)[None]

    def profile(self, sq_dist: Array) -> Array:
        """Returns k_0 at squared distances between features, elementwise."""
        return self.base.profile(sq_dist)


def per_coordinate(base: Kernel, lengthscales: Sequence[float] | Array) -> PerCoordinate:
    r"""Returns a kernel with a lengthscale for each coordinate (ARD), or a diagonal preconditioner.

    .. math:: k(x, y) = k_0(x / l, y / l)

    Under the kernelized Stein discrepancy it has the plain Langevin operator, of the scores in x,
    :math:`\operatorname{tr} \nabla_x \nabla_y k = -\sum_a l_a^{-2} [2 f' + 4 f'' (x_a - y_a)^2 /
    l_a^2]` with f of :math:`|x / l - y / l|^2`. The discrepancy between the laws of x / l is
    another one, with :math:`l_a^2` times the products of the scores: that of ``x / l`` and
    ``l * score`` under k_0 itself.

    Args:
      base: k_0, radial; its lengthscales have no unit.
      lengthscales: l_a > 0, in units of the coordinate; shape (d,). Such as the deviation of each
        over the points, with a ``median_mixture`` of the points over it.

    Returns:
      The kernel, a pytree whose leaves may be traced, swept and learned. It costs what k_0 costs,
      in the Stein discrepancy two more inner products a pair.

    Raises:
      ValueError: a base between features, or a concrete lengthscale that is not positive and
        finite; where points are of another dimension.

    Example:
      >>> from kernelgrad import kernels
      >>> kernel = kernels.per_coordinate(kernels.rbf_mixture(1.0), [1.0, 10.0])
      >>> x, y = jnp.array([[0.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 10.0]])
      >>> print(kernels.gram(kernel, x, y))  # exp(-1/2), both
      [[0.607 0.607]]
    """
    if _traits.is_feature_kernel(base) or not isinstance(base, Kernel):
        raise ValueError(
            f"base: got {type(base).__name__}; expected a radial kernel, such as rbf_mixture(1.0)"
        )
    _checks.positive(lengthscales=lengthscales)
    lengthscales = jnp.asarray(lengthscales, dtype=float)
    _checks.shape("lengthscales", lengthscales, ("d",))
    return PerCoordinate(base, lengthscales)


def sum_of(
    kernels: Sequence[Kernel], weights: float | Sequence[float] | Array | None = None
) -> KernelSum:
    r"""Returns a weighted sum of radial kernels, again a radial kernel.

    .. math:: k(x, y) = \sum_a w_a k_a(x, y)

    It is positive definite, as all k_a are. MMD^2 and KSD^2 under it are the weighted sums of
    theirs. ``sum_of([k], 2.0)`` is twice a kernel. Between features it goes inside:
    ``feature_kernel(sum_of(...), ...)``, and so does it with a lengthscale for each coordinate.

    Args:
      kernels: k_a, at least one: radial, of any families and of a caller's own, with k_a(0) > 0.
        Of a Riesz kernel and others add up the statistics themselves.
      weights: w_a >= 0; shape (a,), or a scalar for one kernel. None: all 1.

    Returns:
      The kernel, a pytree whose leaves may be traced, swept and learned.

    Raises:
      ValueError: no kernel, one that is not radial or has no k(0) > 0, a negative weight, or
        weights of another number.

    Example:
      >>> from kernelgrad import kernels
      >>> kernel = kernels.sum_of([kernels.rbf_mixture(1.0), kernels.matern52(1.0)], [0.5, 2.0])
      >>> round(float(kernel.profile(jnp.array(0.0))), 3)  # 0.5 * 1 + 2 * 1
      2.5
    """
    kernels = _radial(kernels)
    if weights is None:
        return KernelSum(kernels)
    _checks.in_range("weights", weights, 0.0, math.inf, closed="l")
    weights = jnp.atleast_1d(jnp.asarray(weights, dtype=float))
    _checks.shape("weights", weights, (len(kernels),))
    return KernelSum(kernels, weights)


def product_of(kernels: Sequence[Kernel]) -> KernelProduct:
    r"""Returns the product of radial kernels, again a radial kernel.

    .. math:: k(x, y) = \prod_a k_a(x, y)

    It is positive definite, as all k_a are (Schur's product theorem): it compares as finely as the
    shortest of them, with the tail of the fastest to fall. Between features it goes inside, as
    :func:`sum_of` does.

    Args:
      kernels: k_a, at least one: radial, of any families and of a caller's own, with k_a(0) > 0. A
        Riesz kernel is no factor: the product would not be positive definite.

    Returns:
      The kernel, a pytree whose leaves may be traced, swept and learned.

    Raises:
      ValueError: no kernel, or one that is not radial or has no k(0) > 0.

    Example:
      >>> from kernelgrad import kernels
      >>> kernel = kernels.product_of([kernels.rbf_mixture(1.0), kernels.imq_mixture(1.0)])
      >>> round(float(kernel.profile(jnp.array(3.0))), 3)  # exp(-3/2) / sqrt(1 + 3)
      0.112
    """
    return KernelProduct(_radial(kernels))


def _radial(kernels: Sequence[Kernel]) -> tuple[Kernel, ...]:
    """Returns the kernels; ValueError for the first that is not radial or has no k(0) > 0."""
    if isinstance(kernels, Kernel) or not len(kernels):
        got = type(kernels).__name__ if isinstance(kernels, Kernel) else "none"
        raise ValueError(f"kernels: got {got}; expected a sequence of at least one radial kernel")
    for place, kernel in enumerate(kernels):
        name = f"kernels[{place}]"
        if _traits.is_feature_kernel(kernel) or not isinstance(kernel, Kernel):
            raise ValueError(
                f"{name}: got {type(kernel).__name__}; expected a radial kernel. One between "
                "features, or with a lengthscale for each coordinate, takes the sum or product "
                "as its base"
            )
        _traits.check_positive(kernel, name)
    return tuple(kernels)


def _in_unit(kernels: tuple[Kernel, ...], unit: Array) -> tuple[Kernel, ...]:
    return tuple(_distances.in_unit(kernel, unit) for kernel in kernels)


def _lengthscales(kernels: tuple[Kernel, ...]) -> Array:
    known = [kernel.lengthscales for kernel in kernels if hasattr(kernel, "in_unit")]  # type: ignore[attr-defined]
    return jnp.concatenate(_of_one_dtype(known)) if known else jnp.ones(1)


def _of_one_dtype(values: list[Array]) -> list[Array]:
    widest = max((_numeric.wide(value).dtype for value in values), key=lambda d: d.itemsize)
    return [value.astype(widest) for value in values]
