"""Exponential moving averages of trees over the steps of training."""

import jax
import jax.numpy as jnp

from kernelgrad import _numeric
from kernelgrad.types import Array, PyTree


def start(tree: PyTree) -> PyTree:
    """Returns the average before the first step: a copy, in at least float32."""
    return jax.tree.map(lambda leaf: jnp.array(_wide(leaf), copy=True), tree)


def step(average: PyTree, tree: PyTree, *, decay: float | Array, count: Array) -> PyTree:
    r"""Returns the average after one more tree, in which the start has no weight.

    .. math:: a_t = \frac{\sum_{s=1}^t d^{t-s} x_s}{\sum_{s=1}^t d^{t-s}}
        = a_{t-1} + \frac{1 - d}{1 - d^t} (x_t - a_{t-1})

    Args:
      average: a_{t-1}, of :func:`start` or of this function.
      tree: x_t; leaves that are not floating, such as counts, are taken as they are.
      decay: d in [0, 1).
      count: t >= 1; shape ().
    """
    d, t = jnp.asarray(decay, jnp.float32), jnp.asarray(count, jnp.float32)
    rate = (1 - d) / -jnp.expm1(t * jnp.log(d))

    def moved(a: Array, x: Array) -> Array:
        x = _wide(x)
        return a + _numeric.like(rate, a) * (x - a) if _floating(x) else x

    return jax.tree.map(moved, average, tree)


def like(average: PyTree, tree: PyTree) -> PyTree:
    """Returns the average in the dtypes of a tree."""
    return jax.tree.map(lambda a, x: a.astype(x.dtype), average, tree)


def _floating(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _wide(leaf: Array) -> Array:
    return _numeric.wide(leaf) if _floating(leaf) else leaf
