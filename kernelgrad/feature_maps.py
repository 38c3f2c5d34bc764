r"""Kernels of finite rank: feature maps z with :math:`k(x, y) \approx z(x)^\top z(y)`.

============== ====================================== ==========================================
map            features                               error
============== ====================================== ==========================================
fourier_map    waves of random frequencies            unbiased; falls as 1 / sqrt(num_features)
landmark_map   k to chosen points, whitened           k(x, x') is never overestimated at x = x';
                                                      falls as the spectrum of the gram does
============== ====================================== ==========================================

Sums over n points become sums of features, in O(n r) time for a rank r: see
:mod:`kernelgrad.low_rank` and :mod:`kernelgrad.low_rank_fits`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import (
    _checks,
    _devices,
    _distances,
    _equality,
    _numeric,
    _pivots,
    _tiles,
    _traits,
    kernels,
    pairwise,
)
from kernelgrad.kernels import RadialMixture
from kernelgrad.types import Array, Kernel, Key, PyTree

_ROWS_AT_ONCE = 2048  # whose features are held


class FeatureMap(Protocol):
    """A kernel of finite rank and the kernel that it stands for."""

    @property
    def kernel(self) -> Kernel:
        """Returns k."""
        ...

    def features(self, x: Array) -> Array:
        """Returns z(x), shape (n, r), of points (n, d)."""
        ...

    def moments(
        self, x: Array, weights: Array | None, gradient_weights: Array | None = None
    ) -> Array:
        r"""Returns :math:`\sum_j [z(x_j) w_j^\top + g_j \nabla z(x_j)]`, shape (r, p).

        Weights are (n, p), gradient weights (n,); with those, p = d. What is None counts as 0.
        """
        ...

    def expand(self, x: Array, coefficients: Array) -> Array:
        """Returns z(x)^T c, shape (n, p), for coefficients c (r, p)."""
        ...


@_equality.by_value
@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("kernel", "center", "frequencies", "amplitudes"),
    meta_fields=(),
)
@dataclass(frozen=True, eq=False)
class FourierMap:
    r"""Features :math:`a_f \cos \omega_f^\top (x - c), a_f \sin \omega_f^\top (x - c)`.

    Build it with :func:`fourier_map`.

    Attributes:
      kernel: k.
      center: c, near the points, so that phases keep their digits; shape (d,).
      frequencies: omega_f, in 1/units of x; shape (f, d).
      amplitudes: a_f, in units of sqrt(k); shape (f,).
    """

    kernel: RadialMixture
    center: Array
    frequencies: Array
    amplitudes: Array

    def features(self, x: Array) -> Array:
        """Returns z(x): all cosines, then all sines; shape (n, 2 f)."""
        x = _points(x)
        center, frequencies, amplitudes = (
            _numeric.like(part, x) for part in (self.center, self.frequencies, self.amplitudes)
        )
        phases = _numeric.dot(x - center[None, :], frequencies.T)
        waves = jnp.concatenate([jnp.cos(phases), jnp.sin(phases)], axis=1)
        return waves * jnp.tile(amplitudes, 2)[None, :]

    def moments(
        self, x: Array, weights: Array | None, gradient_weights: Array | None = None
    ) -> Array:
        """Returns the sums of :meth:`FeatureMap.moments`."""
        columns = [] if weights is None else [weights]
        columns += [] if gradient_weights is None else [gradient_weights[:, None]]
        x = _points(x)
        both = jnp.concatenate([_numeric.like(column, x) for column in columns], axis=1)
        sums = _sum_over_blocks(
            lambda part: _numeric.dot(self.features(part[0]).T, part[1]), (x, both)
        )
        if gradient_weights is None:
            return sums
        if not _traits.smooth_at_zero(self.kernel):
            raise ValueError(
                "kernel: got laplace, whose waves have gradients without a mean square; expected "
                "one that is differentiable at 0. Take a landmark_map"
            )
        cosines, sines = jnp.split(sums[:, -1:], 2)
        frequencies = _numeric.like(self.frequencies, x)
        slopes = jnp.concatenate([-sines * frequencies, cosines * frequencies])
        return slopes if weights is None else sums[:, :-1] + slopes

    def expand(self, x: Array, coefficients: Array) -> Array:
        """Returns z(x)^T c, shape (n, p)."""
        return _rows_in_blocks(
            lambda part: _numeric.dot(self.features(part), coefficients), _points(x)
        )


@_equality.by_value
@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("kernel", "landmarks", "whitening"),
    meta_fields=(),
)
@dataclass(frozen=True, eq=False)
class LandmarkMap:
    r"""Features :math:`z(x) = W^\top k(Z, x)`, :math:`W W^\top = (k(Z, Z) + \delta I)^{-1}`.

    Build it with :func:`landmark_map`.

    Attributes:
      kernel: k.
      landmarks: Z; shape (r, d).
      whitening: W, upper triangular; shape (r, r).
    """

    kernel: Kernel
    landmarks: Array
    whitening: Array

    def features(self, x: Array) -> Array:
        """Returns z(x), shape (n, r)."""
        x, landmarks, whitening = self._typed(x)
        return _numeric.dot(kernels.gram(self.kernel, x, landmarks), whitening)

    def moments(
        self, x: Array, weights: Array | None, gradient_weights: Array | None = None
    ) -> Array:
        """Returns the sums of :meth:`FeatureMap.moments`."""
        x, landmarks, whitening = self._typed(x)
        if weights is None:
            sums = pairwise.gradient_sum(self.kernel, landmarks, x, gradient_weights)
        elif gradient_weights is None:
            sums = pairwise.kernel_sum(self.kernel, landmarks, x, weights)
        else:
            sums = pairwise.stein_sum(self.kernel, landmarks, x, weights, gradient_weights)
        return _numeric.dot(whitening.T, sums)

    def expand(self, x: Array, coefficients: Array) -> Array:
        """Returns z(x)^T c, shape (n, p)."""
        x, landmarks, whitening = self._typed(x)
        weights = _numeric.dot(whitening, _numeric.like(coefficients, x))
        return pairwise.kernel_sum(self.kernel, x, landmarks, weights)

    def _typed(self, x: Array) -> tuple[Array, Array, Array]:
        x = _points(x)
        return x, _numeric.like(self.landmarks, x), _numeric.like(self.whitening, x)


def fourier_map(
    key: Key,
    kernel: RadialMixture,
    x: Array,
    *,
    num_features: int,
    axis_name: str | None = None,
) -> FourierMap:
    r"""Returns random Fourier features of a kernel, with frequencies in orthogonal blocks.

    .. math:: k(x, y) = \sum_c w_c E \cos(\omega^\top (x - y)), \quad
        \omega = \frac{\sqrt{s}}{l_c}\, g, \; g \sim N(0, I)

    Every family of :mod:`kernelgrad.kernels` but riesz is a mixture of Gaussians of random scale s:
    s = 1 for rbf_mixture; :math:`2 t` with t ~ Gamma(a, 1) for :math:`(1 + u)^{-a}`, that is
    imq_mixture and rational_quadratic; :math:`2 \nu / \chi^2_{2 \nu}` for the Matern kernels,
    laplace (nu = 1/2) among them. In each block of d frequencies the directions g / abs(g) are
    orthonormal, and the estimate of k stays unbiased: over keys, its mean is k.

    Args:
      key: random key.
      kernel: k; its lengthscales are in units of x.
      x: points among which k is wanted; shape (n, d), floating. A middle of them is the center.
      num_features: rank r, even, at least 2 for each component of the mixture; static.
      axis_name: if set, x is the union over all devices, and the map the same on all; its center is
        that of the first device's points.

    Returns:
      The map. Gradients run to the kernel's lengthscales and weights, none to x.

    Raises:
      ValueError: a kernel without a spectral form here, wrong rank or dtype, or num_features that
        is odd or too small.

    Cost: O(r d^2) time, O(r d) memory.

    Example:
      >>> from kernelgrad import feature_maps, kernels
      >>> kernel, x = kernels.rbf_mixture(1.0), jnp.array([[0.0], [1.0]])
      >>> waves = feature_maps.fourier_map(jax.random.key(0), kernel, x, num_features=8)
      >>> z = waves.features(x)
      >>> z.shape, bool(jnp.allclose(jnp.sum(z**2, axis=1), 1))  # k(0), whatever the frequencies
      ((2, 8), True)

    References:
      Rahimi & Recht 2007; Yu et al. 2016 (orthogonal random features), section 3.
    """
    x = _points(x)
    law = _scale_law(kernel)
    components, dimension = kernel.lengthscales.shape[0], x.shape[1]
    _checks.at_least("num_features", num_features, 2 * components)
    if num_features % 2:
        raise ValueError(f"num_features: got {num_features}; expected an even number")
    size = num_features // 2
    component = jnp.arange(size) * components // size  # contiguous, so that blocks serve one
    share = jnp.zeros(components, x.dtype).at[component].add(1)
    weights = jnp.ones_like(share) if kernel.weights is None else _numeric.like(kernel.weights, x)
    scale_key, normal_key = jax.random.split(key)
    scales = jnp.sqrt(_numeric.like(law(kernel, scale_key, size), x))
    scales /= _numeric.like(kernel.lengthscales, x)[component]
    frequencies = scales[:, None] * _orthogonal_normals(normal_key, size, dimension, x.dtype)
    center = _devices.agreed(_distances.middle(x, axis_name)[0], axis_name)
    return FourierMap(kernel, center, frequencies, _numeric.root((weights / share)[component]))


def landmark_map(
    key: Key, kernel: Kernel, x: Array, *, num_landmarks: int, axis_name: str | None = None
) -> LandmarkMap:
    r"""Returns the Nystrom map of landmarks chosen by randomly pivoted Cholesky.

    .. math:: z(x)^\top z(y) = k(x, Z)\, (k(Z, Z) + \delta I)^{-1} k(Z, y)

    Each landmark is drawn with a probability proportional to what those before leave of k(x, x), in
    blocks with rejection, which has the law of one at a time. With all points as landmarks the gram
    is exact; :math:`\delta = (r + 16)\, \epsilon\, k(0)`, eps the machine epsilon, keeps the factor
    real.

    Args:
      key: random key.
      kernel: k, with k(0) > 0, radial or between features; its lengthscales are in units of x.
      x: points of which landmarks are drawn, the samples or, where they are many, some 20 r of
        them; shape (n, d), floating.
      num_landmarks: rank r, 1 to n; static.
      axis_name: if set, x is the union over all devices, which is gathered, and the map the same on
        all.

    Returns:
      The map. Gradients run to the kernel, none to x.

    Raises:
      ValueError: wrong rank or dtype, a kernel without k(0) > 0, or num_landmarks out of range.

    Cost: O(n r (r + d) + r^3) time, O(n r) memory.

    Example:
      >>> from kernelgrad import feature_maps, kernels
      >>> kernel, x = kernels.rbf_mixture(1.0), jnp.array([[0.0], [1.0]])
      >>> z = feature_maps.landmark_map(jax.random.key(0), kernel, x, num_landmarks=2).features(x)
      >>> bool(jnp.allclose(z @ z.T, kernels.gram(kernel, x), atol=1e-4))  # of all points
      True

    References:
      Chen, Epperly, Tropp & Webber 2023 (randomly pivoted Cholesky); Epperly, Tropp & Webber 2024
      (embrace rejection).
    """
    x = _devices.gather(lax.stop_gradient(_points(x)), axis_name)
    _traits.check_positive(kernel)
    _checks.at_least("num_landmarks", num_landmarks, 1)
    if num_landmarks > x.shape[0]:
        raise ValueError(
            f"num_landmarks: got {num_landmarks}; expected at most {x.shape[0]}, the points in x"
        )
    landmarks = x[_pivots.random_pivots(key, lax.stop_gradient(kernel), x, num_landmarks)]
    landmarks = _devices.agreed(landmarks, axis_name)
    gram = kernels.gram(kernel, landmarks)
    identity = jnp.eye(num_landmarks, dtype=gram.dtype)
    shift = (num_landmarks + 16) * jnp.finfo(gram.dtype).eps * jnp.diagonal(gram)
    factor = jnp.linalg.cholesky(gram + shift[:, None] * identity)
    whitening = jax.scipy.linalg.solve_triangular(factor, identity, lower=True).T
    return LandmarkMap(kernel, landmarks, whitening)


def second_moment(feature_map: FeatureMap, x: Array) -> Array:
    r"""Returns :math:`\sum_j z(x_j) z(x_j)^\top`.

    Args:
      feature_map: z.
      x: points; shape (n, d), floating.

    Returns:
      The sum, shape (r, r), in units of k.

    Cost: O(n r (r + d)) time, O(n d + r^2) memory.

    Example:
      >>> from kernelgrad import feature_maps, kernels
      >>> kernel, x = kernels.rbf_mixture(1.0), jnp.array([[0.0], [1.0]])
      >>> waves = feature_maps.fourier_map(jax.random.key(0), kernel, x, num_features=8)
      >>> round(float(jnp.trace(feature_maps.second_moment(waves, x))), 3)  # 2 k(0)
      2.0
    """
    x = _points(x)

    def of_block(part: tuple[Array, Array]) -> Array:
        features = feature_map.features(part[0]) * part[1][:, None]
        return _numeric.dot(features.T, features)

    return _sum_over_blocks(of_block, (x, jnp.ones_like(x[:, 0])))


def squared_norms(feature_map: FeatureMap, x: Array) -> Array:
    r"""Returns :math:`|z(x_i)|^2`, which stands for k(x_i, x_i).

    Args:
      feature_map: z.
      x: points; shape (n, d), floating.

    Returns:
      Squared norms, shape (n,), in units of k.

    Cost: O(n r (r + d)) time for landmarks, O(n r d) for waves; O(n d) memory.

    Example:
      >>> from kernelgrad import feature_maps, kernels
      >>> kernel, x = kernels.rbf_mixture(1.0), jnp.array([[0.0], [1.0]])
      >>> waves = feature_maps.fourier_map(jax.random.key(0), kernel, x, num_features=8)
      >>> print(feature_maps.squared_norms(waves, x))  # k(0)
      [1. 1.]
    """
    return _rows_in_blocks(
        lambda part: jnp.sum(jnp.square(feature_map.features(part)), axis=1), _points(x)
    )


def _points(x: Array) -> Array:
    """Returns points (n, d) in at least float32, or raises ValueError."""
    return _numeric.wide(_checks.points(x=x)[0])


# ---------------------------------------------------------------------------------- the spectrum


def _scale_law(kernel: Any) -> Callable[[RadialMixture, Key, int], Array]:
    """Returns the law of the scale s of a family's Gaussians."""
    if isinstance(kernel, RadialMixture):
        for name, law in _SCALE_LAWS.items():
            if kernels.FAMILIES[name](1.0).shape is kernel.shape:
                return law
        if kernel.exponent is not None:
            shape = -kernel.exponent
            return lambda k, key, size: 2 * jax.random.gamma(key, shape, (size,))
    raise ValueError(
        f"kernel: got {type(kernel).__name__}; expected a RadialMixture, which has a spectral "
        "form. Take a landmark_map"
    )


def _matern(degrees: int) -> Callable[[RadialMixture, Key, int], Array]:
    """Returns the law of the Matern kernel of smoothness nu = degrees / 2."""
    return lambda k, key, size: (
        degrees / jax.random.chisquare(key, degrees, (size,), k.lengthscales.dtype)
    )


_SCALE_LAWS: dict[str, Callable[[RadialMixture, Key, int], Array]] = {
    "rbf": lambda k, key, size: jnp.ones(size, k.lengthscales.dtype),
    "imq": lambda k, key, size: jnp.square(jax.random.normal(key, (size,), k.lengthscales.dtype)),
    "matern32": _matern(3),
    "matern52": _matern(5),
    "matern72": _matern(7),
    "laplace": _matern(1),
}


def _orthogonal_normals(key: Key, size: int, dimension: int, dtype: Any) -> Array:
    """Returns standard normals (size, d), orthogonal to one another within each block of d."""
    direction_key, norm_key = jax.random.split(key)
    blocks = -(-size // dimension)
    normals = jax.random.normal(direction_key, (blocks, dimension, dimension), dtype)

    def directions(block: Array) -> Array:
        columns, upper = jnp.linalg.qr(block)
        return (columns * jnp.where(jnp.diagonal(upper) < 0, -1, 1).astype(dtype)[None]).T

    rows = lax.map(directions, normals).reshape(-1, dimension)[:size]
    norms = jnp.linalg.norm(jax.random.normal(norm_key, (size, dimension), dtype), axis=1)
    return norms[:, None] * rows


# -------------------------------------------------------------------------------- blocks of rows


def _sum_over_blocks(function: Callable[[PyTree], Array], rows: PyTree) -> Array:
    """Returns the sum of function(block); rows of 0 in the last block must add nothing."""
    if jax.tree.leaves(rows)[0].shape[0] <= _ROWS_AT_ONCE:
        return function(rows)
    blocks = _tiles.split(rows, _ROWS_AT_ONCE)
    first = jax.eval_shape(function, jax.tree.map(lambda a: a[0], blocks))
    add = jax.checkpoint(lambda total, block: total + function(block))
    total, _ = lax.scan(lambda t, b: (add(t, b), None), jnp.zeros(first.shape, first.dtype), blocks)
    return total


def _rows_in_blocks(function: Callable[[Array], Array], x: Array) -> Array:
    """Returns function(x), one block of rows after the other."""
    if x.shape[0] <= _ROWS_AT_ONCE:
        return function(x)
    values = lax.map(jax.checkpoint(function), _tiles.split(x, _ROWS_AT_ONCE))
    return values.reshape(-1, *values.shape[2:])[: x.shape[0]]
