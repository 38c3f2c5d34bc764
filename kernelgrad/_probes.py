"""Estimates of the error of an approximation, from exact values at a few random rows."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernelgrad import _checks, _numeric
from kernelgrad.types import Array, Key, PyTree


class Approximation(NamedTuple):
    """A value and an estimate of its error, of which the function that returns it says what it is.

    Attributes:
      value: the approximation.
      error: estimated from exact values at random probes; shape ().
      standard_error: of the estimate of the error, over the draw of the probes; shape ().
    """

    value: PyTree
    error: Array
    standard_error: Array


def draw(key: Key, size: int, num_probes: int) -> Array:
    """Returns random rows, with replacement; shape (num_probes,)."""
    _checks.at_least("num_probes", num_probes, 2)
    return jax.random.randint(key, (num_probes,), 0, size, jnp.int32)


def relative(difference: Array, reference: Array) -> tuple[Array, Array]:
    r"""Returns :math:`\sqrt{\sum |\Delta_i|^2 / \sum |r_i|^2}` over rows, and its standard error.

    Args:
      difference: Delta_i; shape (q, p).
      reference: r_i; shape (q, p).

    Returns:
      Pair of scalars: 0 where all differences are, infinity where the references alone are; the
      standard error is that of the first order.
    """
    size = difference.shape[0]
    a, b = (jnp.sqrt(jnp.sum(jnp.square(_in_range(v)[0]), axis=1)) for v in (difference, reference))
    top, bottom = (_rms(v) for v in (a, b))
    error = top / jnp.where(bottom > 0, bottom, 1)
    error *= _in_range(difference)[1] / _in_range(reference)[1]
    shares = [jnp.square(v / jnp.where(rms > 0, rms, 1)) for v, rms in ((a, top), (b, bottom))]
    deviation = error / 2 * _rms(shares[0] - shares[1]) / math.sqrt(size - 1)
    endless = (bottom == 0) & (top > 0)
    return jnp.where(endless, jnp.inf, error), jnp.where(endless, jnp.inf, deviation)


def of_means(*differences: Array) -> tuple[Array, Array]:
    """Returns the sum of the means of the differences, and its standard error.

    Args:
      *differences: approximation less exact value at independent probes; each of shape (q,).
    """
    means = [jnp.mean(values) for values in differences]
    deviations = [
        _rms(values - mean) / math.sqrt(values.shape[0] - 1)
        for values, mean in zip(differences, means, strict=True)
    ]
    return sum(means, jnp.zeros_like(means[0])), math.sqrt(len(means)) * _rms(jnp.stack(deviations))


def _in_range(values: Array) -> tuple[Array, Array]:
    """Returns the values over their largest, whose squares are in range, and the largest."""
    largest = jnp.max(jnp.abs(values))
    largest = jnp.where(largest == 0, 1, largest)
    return values / largest, largest


def _rms(values: Array) -> Array:
    scaled, largest = _in_range(values)
    return largest * _numeric.root(jnp.mean(jnp.square(scaled)))
