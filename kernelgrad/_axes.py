"""Types of loops under jax.shard_map, where a value is one on all devices or varies over them."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad.types import PyTree


def varying(tree: PyTree, *inputs: PyTree) -> PyTree:
    """Returns the tree, varying over the mesh axes over which it or any of the inputs does.

    A loop's carry keeps its type. One that starts at a constant, and to which varying values are
    added, therefore starts with this; the values stay as they are.

    Args:
      tree: pytree of arrays or numbers.
      inputs: pytrees of what enters into the loop.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    leaves = [leaf for leaf in jax.tree.leaves((tree, inputs)) if isinstance(leaf, jax.Array)]
    marks = [jnp.zeros_like(leaf, shape=(), dtype=bool) for leaf in leaves]
    mark = functools.reduce(jnp.logical_or, marks, jnp.zeros((), bool))
    return jax.tree.map(
        lambda leaf: lax.select_n(mark, leaf, leaf), jax.tree.map(jnp.asarray, tree)
    )
