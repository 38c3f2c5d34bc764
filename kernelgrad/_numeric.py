"""Arithmetic in floating point: full precision, at least single width, roots without NaN."""

import functools
import math

import jax.numpy as jnp
from jax import lax

from kernelgrad.types import Array

dot = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def wide(x: Array) -> Array:
    """Returns x in at least float32."""
    x = jnp.asarray(x)
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def like(value: float | Array, other: Array) -> Array:
    """Returns the value in the dtype of `other`."""
    return jnp.asarray(value).astype(jnp.result_type(other))


def power_of_two(size: Array) -> Array:
    """Returns the greatest power of two up to a size, 1 where it is not positive and finite.

    Neither it nor its inverse is subnormal, which may be flushed to 0, the inverse in a division
    that a compiler makes a product: the very largest is a half of itself, a subnormal one the least
    that is none.
    """
    limits = jnp.finfo(size.dtype)
    exponent = jnp.clip(jnp.frexp(size)[1] - 1, limits.minexp, limits.maxexp - 2)
    unit = jnp.ldexp(jnp.ones_like(size), exponent)
    return jnp.where((size > 0) & jnp.isfinite(size), unit, 1)


def root(x: Array) -> Array:
    """Returns the square root, with derivative 0 at 0, and 0 below."""
    return jnp.where(x <= 0, 0, jnp.sqrt(jnp.where(x <= 0, 1, x)))


def root_of(number: float | Array) -> float | Array:
    """Returns the square root of a hyperparameter: in Python's precision, unless it is traced."""
    return math.sqrt(number) if isinstance(number, int | float) else jnp.sqrt(number)


def below(values: Array, greatest: Array) -> Array:
    """Returns values less their greatest, 0 where they are it but for rounding.

    XLA may round a value here otherwise than in its maximum, and of large ones exp bears no
    difference. The derivative is that of the values; none goes to the greatest.
    """
    less = values - lax.stop_gradient(greatest)
    rounding = 4 * jnp.finfo(values.dtype).eps * jnp.abs(greatest)
    return less - lax.stop_gradient(jnp.where(less >= -rounding, less, 0))
