"""Values over devices: unions and shares, what varies over a mesh, and what is whole on it.

Under ``jax.shard_map`` JAX's types say what is one value of all devices and what each has for
itself, and a derivative counts the former once. Under ``jax.pmap`` and with ``check_vma=False``
there are no such types, and JAX differentiates the sum over the devices' copies of everything.
There :func:`statistic` is what makes a value one, and :func:`copies` what undoes it; the transposes
of both are those that the types would have chosen.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from kernelgrad.types import Array, PyTree


def num_devices(axis_name: str | None) -> int:
    """Returns over how many devices a union runs.

    Args:
      axis_name: of the devices; None: there is one.

    Returns:
      Their number, static.
    """
    return 1 if axis_name is None else lax.axis_size(axis_name)


def share(everything: Array, axis_name: str | None) -> Array:
    """Returns this device's share of rows that all devices hold; :func:`gather` undoes it.

    Args:
      everything: shape (n, ...), the same on all devices, whose number divides n.
      axis_name: of the devices; None: there is one.

    Returns:
      Rows, shape (n / devices, ...), contiguous, in device order.
    """
    if axis_name is None:
        return everything
    size = everything.shape[0] // num_devices(axis_name)
    return lax.dynamic_slice_in_dim(everything, lax.axis_index(axis_name) * size, size)


def taken(rows: Array, indices: Array, axis_name: str | None) -> Array:
    """Returns rows of the union over devices, on all of them, without a gradient.

    Args:
      rows: this device's share; shape (n, ...).
      indices: into the union, the same on all devices; shape (q,).
      axis_name: of the devices; None: there is one.

    Returns:
      Rows, shape (q, ...).
    """
    rows = lax.stop_gradient(rows)
    if axis_name is None:
        return rows[indices]
    own = indices - lax.axis_index(axis_name) * rows.shape[0]
    here = (own >= 0) & (own < rows.shape[0])
    found = rows[jnp.where(here, own, 0)]
    return lax.psum(jnp.where(here.reshape(-1, *[1] * (rows.ndim - 1)), found, 0), axis_name)


def mean(tree: PyTree, axis_name: str | None) -> PyTree:
    """Returns the mean over devices of what each of them has, for each of them to go on with.

    Args:
      tree: pytree of floating arrays.
      axis_name: of the devices; None: there is one.

    Returns:
      The means, the same on all devices, or the tree itself.
    """
    return tree if axis_name is None else lax.pmean(tree, axis_name)


def total(array: Array, axis_name: str | None) -> Array:
    """Returns the sum over devices of what each of them has.

    Args:
      array: floating.
      axis_name: of the devices; None: there is one.
    """
    return array if axis_name is None else lax.psum(array, axis_name)


def largest(value: Array, axis_name: str | None) -> Array:
    """Returns the largest of what the devices have, elementwise, on all of them.

    Args:
      value: any shape, without a gradient.
      axis_name: of the devices; None: there is one.
    """
    return value if axis_name is None else lax.pmax(value, axis_name)


def of_largest(value: Array, tree: PyTree, axis_name: str | None) -> tuple[PyTree, Array]:
    """Returns what the device with the largest value has, on all devices, and whether it is us.

    Args:
      value: shape (), without a gradient; of equal ones the first counts.
      tree: pytree of floating arrays.
      axis_name: of the devices; None: there is one.
    """
    if axis_name is None:
        return tree, jnp.ones((), bool)
    mine = jnp.argmax(lax.all_gather(value, axis_name)) == lax.axis_index(axis_name)
    return lax.psum(jax.tree.map(lambda a: jnp.where(mine, a, 0), tree), axis_name), mine


def statistic(tree: PyTree, axis_name: str | None) -> PyTree:
    """Returns the mean over devices of what each of them has, as one value of the union.

    Its cotangent counts once, on whatever mapping: what reaches a device's own points is the
    derivative of the value in them.

    Args:
      tree: pytree of floating arrays.
      axis_name: of the devices; None: there is one.

    Returns:
      The means, or the tree itself.
    """
    if axis_name is None or _typed(axis_name):
        return mean(tree, axis_name)
    size = num_devices(axis_name)
    return _linear(lambda a: lax.pmean(a, axis_name), lambda a: a / size, tree)


def copies(tree: PyTree, axis_name: str | None) -> PyTree:
    """Returns a :func:`statistic` as a value of each device's own, to be used beside its points.

    Args:
      tree: pytree of floating arrays.
      axis_name: of the devices; None: there is one.

    Returns:
      The tree; its cotangents add up over devices.
    """
    if axis_name is None:
        return tree
    if _typed(axis_name):
        return varying(tree, lax.axis_index(axis_name))
    return _linear(lambda a: a, lambda a: lax.psum(a, axis_name), tree)


def agreed(value: PyTree, axis_name: str | None) -> PyTree:
    """Returns what every device has computed alike, as one value that does not vary over them.

    Args:
      value: pytree of floating arrays, the same on all devices.
      axis_name: of the devices; None: there is one.

    Returns:
      The value; ``jax.shard_map`` lets it out through ``out_specs=P()``.
    """
    return mean(value, axis_name)


def gather(tree: PyTree, axis_name: str | None) -> Any:
    """Returns the union over devices, in device order.

    Args:
      tree: this device's share; a pytree of arrays of shape (n, ...), or None.
      axis_name: of the devices; None: the share is all there is.

    Returns:
      Pytree of arrays of shape (devices * n, ...).
    """
    return tree if axis_name is None else lax.all_gather(tree, axis_name, tiled=True)


def scatter(tree: PyTree, axis_name: str | None) -> Any:
    """Returns this device's rows of the sum over devices, the transpose of :func:`gather`.

    Args:
      tree: what each device adds to the rows of all; a pytree of arrays (devices * n, ...).
      axis_name: of the devices; None: the rows are all there are.

    Returns:
      Pytree of arrays of shape (n, ...).
    """
    return tree if axis_name is None else lax.psum_scatter(tree, axis_name, tiled=True)


def first(value: Array, axis_name: str | None) -> Array:
    """Returns what the first device has, on all devices, without a gradient.

    Args:
      value: any shape.
      axis_name: of the devices; None: there is one.
    """
    value = lax.stop_gradient(value)
    return value if axis_name is None else lax.all_gather(value, axis_name)[0]


def median(value: Array, axis_name: str) -> Array:
    """Returns the upper median over devices of what each of them has, without a gradient.

    Args:
      value: any shape.
      axis_name: of the devices.

    Returns:
      One of the values, the same on all devices, elementwise.
    """
    everyone = jnp.sort(lax.all_gather(lax.stop_gradient(value), axis_name), axis=0)
    return everyone[everyone.shape[0] // 2]


def passed_on(tree: PyTree, axis_name: str | None) -> PyTree:
    """Returns what the device before this one has; the first takes the last one's.

    Args:
      tree: pytree of arrays.
      axis_name: of the devices; None: there is one.
    """
    devices = num_devices(axis_name)
    if axis_name is None or devices == 1:
        return tree
    return lax.ppermute(tree, axis_name, [(i, (i + 1) % devices) for i in range(devices)])


def over_rms(rows: Array, axis_name: str | None) -> tuple[Array, Array]:
    r"""Returns rows over their root mean squared norm on the union of devices, and that norm.

    .. math:: r_i / s, \quad s = \sqrt{\tfrac1n \textstyle\sum_j |r_j|^2}

    Args:
      rows: r_i, this device's; shape (n, ...), at least float32.
      axis_name: of the devices; None: there is one.

    Returns:
      Rows, and s, shape (). By way of no square out of range; rows of zeros stay zeros, and a NaN
      or an infinity makes them all NaN.
    """
    peak = jnp.max(jnp.abs(rows))
    if axis_name is not None:
        peak = lax.pmax(peak, axis_name)
    unit = rows / jnp.where(peak == 0, 1, peak)
    rms = jnp.sqrt(mean(jnp.sum(jnp.square(unit)) / rows.shape[0], axis_name))
    return unit / jnp.where(peak == 0, 1, rms), peak * rms


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


def own_point(fn: Callable[[Any], Any], point: PyTree) -> PyTree:
    """Returns the point, varying over the mesh axes over which fn of it does.

    There a gradient of fn is that of this device's fn. At a point that does not vary, JAX's is the
    sum over all devices, for a function that does: such as one of a network of each device's own.

    Args:
      fn: about to be differentiated.
      point: at which; a pytree of arrays.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return point
    return varying(point, fn(point))


def whole(array: Array) -> Array:
    """Returns the array, gathered to every device where explicit axes of a mesh shard it.

    Pairs of points have no sharding of their own in JAX's types. Every device then computes on all
    points; to share the work, call a function with its axis_name inside of jax.shard_map.

    Args:
      array: any.
    """
    sharding = jax.typeof(array).sharding
    if all(axis is None for axis in sharding.spec):
        return array
    mesh = sharding.mesh if isinstance(array, jax.core.Tracer) else array.sharding.mesh  # type: ignore[attr-defined]
    return jax.sharding.reshard(array, NamedSharding(mesh, PartitionSpec()))


def _typed(axis_name: str) -> bool:
    """Returns whether types say what varies over the axis."""
    index = lax.axis_index(axis_name)
    return bool(jax.typeof(index) != jax.typeof(jnp.zeros((), index.dtype)))


def _linear(fn: Callable[[Array], Array], transpose: Callable[[Array], Array], tree: PyTree) -> Any:
    """Returns a linear map of each leaf whose transpose is given, and has `fn` for its own.

    A linear solve is what JAX lets have both, under jvp, vmap and gradients of any order.
    """

    def of(leaf: Array) -> Array:
        return lax.custom_linear_solve(
            lambda x: x, leaf, lambda _, b: fn(b), lambda _, b: transpose(b)
        )

    return jax.tree.map(of, tree)
