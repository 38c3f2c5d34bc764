"""What the score estimators share: the gram of the samples, the sums of its gradients, dtypes."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _axes, distances, pairwise
from kernelgrad.types import Array, Kernel

dot = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def pairs(
    profile: Callable[[Array], Array], kernel: Kernel, queries: Array, samples: Array | None
) -> tuple[Array, Callable[[Array], Array]]:
    r"""Returns p(r_ij^2) for all pairs, and :math:`W \mapsto \sum_j W_{ij} \nabla_{x_i} p`.

    The gradient is in the queries alone. Samples None stands for the queries themselves, held
    still, with exactly zero self-distances.
    """
    targets = pairwise.embed(kernel, queries if samples is None else samples)

    def values(x: Array) -> Array:
        rows, cols = distances.prepare(pairwise.embed(kernel, x), targets)
        return profile(
            distances.between(pairwise.radial(kernel), rows, cols, 0 if samples is None else None)
        )

    value, pull = jax.vjp(values, _axes.own_point(values, queries))
    return value, lambda weights: pull(weights)[0]


def gram_and_repulsion(kernel: Kernel, samples: Array) -> tuple[Array, Array]:
    """Returns K and N of the samples; one distance matrix serves both where k is radial."""
    gram, pull = pairs(kernel.profile, kernel, samples, None)
    if hasattr(kernel, "features"):
        return gram, pairwise.gradient_sum(kernel, samples, None)
    return gram, -pull(jnp.ones_like(gram))


def at_zero(kernel: Kernel, other: Array) -> Array:
    """Returns k(0) in the dtype of `other`."""
    return kernel.profile(jnp.zeros((), dtype=other.dtype))


def wide(x: Array) -> Array:
    """Returns x in at least float32."""
    x = jnp.asarray(x)
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def like(value: float | Array, other: Array) -> Array:
    """Returns the value in the dtype of `other`."""
    return jnp.asarray(value).astype(jnp.result_type(other))


def root(x: Array) -> Array:
    """Returns the square root, with derivative 0 at 0, and 0 below."""
    return jnp.where(x <= 0, 0, jnp.sqrt(jnp.where(x <= 0, 1, x)))


def within_reach(kernel: Kernel, x: Array, others: Array) -> Array:
    """Returns x, with points whose squared distances would overflow brought nearer.

    A point farther from the others than some 1e18 lengthscales (in float32; 1e18 where they are
    longer than 1) is moved to that distance, in its direction, with the derivative of the identity:
    what falls off with the distance keeps a finite value, and a slope that points right.
    """
    scales = getattr(pairwise.radial(kernel), "lengthscales", jnp.ones(1, x.dtype))
    shortest = lax.stop_gradient(jnp.min(scales)).astype(x.dtype)
    reach = jnp.sqrt(jnp.finfo(x.dtype).max) / 16 * jnp.minimum(shortest, 1)
    centre = lax.stop_gradient(others[:1])
    offset = (lax.stop_gradient(x) - centre) / reach
    size = jnp.max(jnp.abs(offset), axis=1, keepdims=True)
    ray = offset / jnp.where(size > 0, size, 1)
    unit = ray / jnp.maximum(jnp.linalg.norm(ray, axis=1, keepdims=True), 1)
    far = size > 1
    return jnp.where(far, centre + reach * unit, x) + jnp.where(far, x - lax.stop_gradient(x), 0)
