"""What every objective does first with a batch: flat rows, and the kernel between them."""

from kernelgrad import _checks
from kernelgrad.types import Array, Kernel, MakeKernel


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


def kernel_of(make_kernel: MakeKernel, x: Array, y: Array, axis_name: str | None) -> Kernel:
    """Returns the kernel of a batch, from a rule that keeps to its form.

    Args:
      make_kernel: the rule.
      x: samples; shape (n, d).
      y: data; shape (m, d).
      axis_name: of the devices over which both are spread.

    Raises:
      ValueError: the rule takes other arguments, or returns no kernel.
    """
    form = "(samples, data, *, axis_name) -> kernel"
    kernel = _checks.call("make_kernel", form, make_kernel, x, y, axis_name=axis_name)
    if not isinstance(kernel, Kernel):
        raise ValueError(f"make_kernel: returned {type(kernel).__name__}; expected {form}")
    return kernel
