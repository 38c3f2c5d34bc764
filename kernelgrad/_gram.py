"""Grams that are held, with the sums of their gradients, and what keeps their entries finite."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _devices, _distances, _traits, pairwise
from kernelgrad.types import Array, Kernel


def pairs(
    profile: Callable[[Array], Array],
    kernel: Kernel,
    queries: Array,
    samples: Array | None,
    shift: Any = None,
) -> tuple[Array, Callable[[Array], Array]]:
    r"""Returns p(r_ij^2) for all pairs, and :math:`W \mapsto \sum_j W_{ij} \nabla_{x_i} p`.

    The gradient is in the queries alone. Samples None stands for the queries themselves, held
    still, with exactly zero self-distances; with a shift, query a is the sample a + shift.
    """
    targets = _traits.embed(kernel, queries if samples is None else samples)
    own = 0 if samples is None else shift

    def values(x: Array) -> Array:
        rows, cols = _distances.prepare(_traits.embed(kernel, x), targets)
        return profile(_distances.between(_traits.radial(kernel), rows, cols, own))

    value, pull = jax.vjp(values, _devices.own_point(values, queries))
    return value, lambda weights: pull(weights)[0]


def gram_and_repulsion(kernel: Kernel, samples: Array) -> tuple[Array, Array]:
    """Returns K and N of the samples; one distance matrix serves both where k is radial."""
    gram, pull = pairs(kernel.profile, kernel, samples, None)
    if _traits.is_feature_kernel(kernel):
        return gram, pairwise.gradient_sum(kernel, samples, None)
    return gram, -pull(jnp.ones_like(gram))


def at_zero(kernel: Kernel, other: Array) -> Array:
    """Returns k(0) in the dtype of `other`."""
    return kernel.profile(jnp.zeros((), dtype=other.dtype))


def within_reach(kernel: Kernel, x: Array, others: Array) -> Array:
    """Returns x, with points whose squared distances would overflow brought nearer.

    A point farther from the others than some 1e18 lengthscales (in float32; 1e18 where they are
    longer than 1) is moved to that distance, in its direction, with the derivative of the identity:
    what falls off with the distance keeps a finite value, and a slope that points right.
    """
    scales = getattr(_traits.radial(kernel), "lengthscales", jnp.ones(1, x.dtype))
    shortest = lax.stop_gradient(jnp.min(scales)).astype(x.dtype)
    reach = jnp.sqrt(jnp.finfo(x.dtype).max) / 16 * jnp.minimum(shortest, 1)
    centre = lax.stop_gradient(others[:1])
    offset = (lax.stop_gradient(x) - centre) / reach
    size = jnp.max(jnp.abs(offset), axis=1, keepdims=True)
    ray = offset / jnp.where(size > 0, size, 1)
    unit = ray / jnp.maximum(jnp.linalg.norm(ray, axis=1, keepdims=True), 1)
    far = size > 1
    return jnp.where(far, centre + reach * unit, x) + jnp.where(far, x - lax.stop_gradient(x), 0)
