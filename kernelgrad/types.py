"""Names for the things that cross module borders: arrays, callables, kernels and objectives."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

Array = jax.Array
Key = jax.Array
PyTree = Any
Info = dict[str, Array]  # scalars worth logging, by name

LogDensityFn = Callable[[PyTree], Array]  # of one point
ScoreFn = Callable[[PyTree], PyTree]  # of all points: arrays (n, d), or pytrees of arrays (n, ...)


class ApplyFn(Protocol):
    """A network as a pure function of its parameters, such as ``module.apply``."""

    def __call__(self, params: PyTree, inputs: Array, /) -> Array:
        """Returns the outputs for a batch of inputs."""
        ...


@runtime_checkable
class Kernel(Protocol):
    """A radial kernel k(x, y) = profile(|x - y|^2), registered as a pytree.

    A kernel that also has ``features(x) -> (n, l)`` and a radial kernel ``base`` stands for
    k(x, y) = base.profile(|features(x) - features(y)|^2); where these are the coordinates over
    lengthscales (d,), it has those as ``coordinate_lengthscales``. One that is not differentiable
    where its points coincide has an attribute ``smooth_at_zero``, False; one with k(0) <= 0 has
    ``positive_at_zero``, False.
    """

    def profile(self, sq_dist: Array) -> Array:
        """Returns k at squared distances, elementwise; same shape and dtype."""
        ...


class MakeKernel(Protocol):
    """Chooses the kernel of a batch, such as one around its median distance."""

    def __call__(self, samples: Array, data: Array, *, axis_name: str | None) -> Kernel:
        """Returns the kernel; arguments are (n, d) and (m, d)."""
        ...


# A kernel, or what chooses that of a batch: a rule that sees this device's share and the axis, or
# one of samples and data alone, which sees the union over all devices.
KernelRule = Kernel | MakeKernel | Callable[[Array, Array], Kernel]


class Objective(Protocol):
    """A direction per sample, to be descended, and scalars worth logging."""

    def __call__(
        self, key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        """Returns (direction shaped like samples, info)."""
        ...


class TestResult(NamedTuple):
    """The outcome of a hypothesis test.

    Attributes:
      statistic: the test statistic; shape ().
      p_value: (1 + #{resampled >= statistic}) / (1 + number of resamples), in (0, 1]; shape ().
    """

    statistic: Array
    p_value: Array


TestResult.__test__ = False  # type: ignore[attr-defined]  # not a test case for pytest
