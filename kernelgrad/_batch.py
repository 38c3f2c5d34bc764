"""What every objective does first with a batch: flat rows, and the kernel between them."""

import inspect
from collections.abc import Callable
from typing import Any

from kernelgrad import _checks, _devices
from kernelgrad.types import Array, Kernel, KernelRule

_FORM = "a kernel, or a rule (samples, data) or (samples, data, *, axis_name) -> kernel"


def flat(samples: Array, data: Array) -> tuple[Array, Array]:
    """Returns samples and data as rows.

    Args:
      samples: shape (n, ...), floating.
      data: shape (m, ...).

    Returns:
      Arrays of shapes (n, d) and (m, d').

    Raises:
      ValueError: no arrays, of another dtype, or of size 0.
    """
    samples, data = _checks.batches(samples=samples, data=data)
    return samples.reshape(samples.shape[0], -1), data.reshape(data.shape[0], -1)


def kernel_of(make_kernel: KernelRule, x: Array, y: Array, axis_name: str | None) -> Kernel:
    """Returns the kernel of a batch.

    Args:
      make_kernel: the kernel, or a rule for it.
      x: samples; shape (n, d).
      y: data; shape (m, d).
      axis_name: of the devices over which both are spread.

    Raises:
      ValueError: the rule takes other arguments, or returns no kernel.
    """
    if isinstance(make_kernel, Kernel):
        return make_kernel
    kernel: Any
    if _takes_axis(make_kernel):
        kernel = _checks.call("make_kernel", _FORM, make_kernel, x, y, axis_name=axis_name)
    else:
        everyone = (_devices.gather(points, axis_name) for points in (x, y))
        kernel = _checks.call("make_kernel", _FORM, make_kernel, *everyone)
        kernel = _devices.agreed(kernel, axis_name)
    if not isinstance(kernel, Kernel):
        raise ValueError(f"make_kernel: returned {type(kernel).__name__}; expected {_FORM}")
    return kernel


def _takes_axis(rule: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(rule).parameters.values()
    except (TypeError, ValueError):  # what is no function, or does not say
        return True
    return any(one.name == "axis_name" or one.kind is one.VAR_KEYWORD for one in parameters)
