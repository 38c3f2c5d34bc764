"""What a run would take of the memory, before anything is allocated or compiled."""

import math
import os
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from experiments.run import fields
from experiments.run.errors import UsageError
from kernelgrad.types import Array, PyTree

_KEPT = ("dot_general", "conv_general_dilated")  # whose results a gradient needs
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def require(config: Any, names: tuple[str, ...], needed: float) -> None:
    """Refuses a config whose run cannot fit.

    Args:
      config: the settings.
      names: those that the need follows from.
      needed: bytes on one device, estimated from below.

    Raises:
      UsageError: more than there is.
    """
    there = total()
    if needed > there:
        given = ", ".join(fields.shown(getattr(config, name)) for name in names)
        raise UsageError(
            f"{', '.join(names)}: got {given}, for which a run takes {needed / 2**30:.4g} GiB of "
            f"memory or more; expected at most the {there / 2**30:.4g} GiB that the device has"
        )


def total() -> float:
    """Returns the bytes that this process may have: of the accelerator, else of the machine."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return float((device.memory_stats() or {}).get("bytes_limit", math.inf))
    return of_machine()


def of_machine() -> float:
    """Returns the bytes that this process may have outside of an accelerator."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for place in _CGROUP_LIMITS:
        try:
            sizes.append(int(pathlib.Path(place).read_text()))
        except (OSError, ValueError):  # no such limit
            continue
    return float(min(sizes))


def of(tree: PyTree) -> float:
    """Returns the bytes of arrays, or of what `jax.eval_shape` makes of them."""
    leaves = jax.tree.leaves(tree)
    return float(sum(math.prod(leaf.shape) * _itemsize(leaf.dtype) for leaf in leaves))


def of_training(network: nn.Module, *shape: int, **options: Any) -> float:
    """Returns the least bytes that Adam takes to train a network.

    These are its parameters, their gradients and Adam's two moments; the batch; and the results of
    the matrix products and convolutions, which the gradient needs.

    Args:
      network: the network.
      shape: of a batch of inputs, float32.
      options: further arguments of the network, such as train=False.
    """
    one, batch = (jax.ShapeDtypeStruct((n, *shape[1:]), jnp.float32) for n in (1, shape[0]))

    def init(inputs: Array) -> PyTree:
        return network.init(jax.random.key(0), inputs, **options)

    variables = jax.eval_shape(init, one)
    forward = jax.make_jaxpr(lambda v, inputs: network.apply(v, inputs, **options))
    return 4 * of(variables["params"]) + of(batch) + _kept(forward(variables, batch).jaxpr)


def _kept(jaxpr: Jaxpr) -> float:
    size = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name in _KEPT:
            size += of([var.aval for var in equation.outvars])
        for parameter in equation.params.values():
            if isinstance(parameter, ClosedJaxpr):
                size += _kept(parameter.jaxpr)
            elif isinstance(parameter, Jaxpr):
                size += _kept(parameter)
    return size


def _itemsize(dtype: Any) -> int:
    return 8 if jnp.issubdtype(dtype, jax.dtypes.extended) else jnp.dtype(dtype).itemsize
