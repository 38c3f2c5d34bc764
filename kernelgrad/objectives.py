"""The directions of the papers, packaged for the train step.

An objective maps this device's samples and data to one vector per sample, to be descended, and a
dict of scalars worth logging. Pair sums run over the union of all devices' samples.
"""

from collections.abc import Callable
from typing import Protocol

import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, mmd, pairwise, score
from kernelgrad.types import Array, Kernel, Key

Info = dict[str, Array]


class MakeKernel(Protocol):
    """Chooses the kernel of a batch, such as one around its median distance."""

    def __call__(self, samples: Array, data: Array, *, axis_name: str | None) -> Kernel:
        """Returns the kernel; arguments are (n, d) and (m, d)."""
        ...


class Objective(Protocol):
    """A direction per sample, to be descended, and scalars worth logging."""

    def __call__(
        self, key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        """Returns (direction shaped like samples, info)."""
        ...


def kl_direction(
    samples: Array,
    data: Array,
    kernel: Kernel,
    *,
    ridge: float | Array,
    axis_name: str | None = None,
) -> Array:
    r"""Returns the Stein estimate of the KL gradient at each sample.

    .. math:: \phi_i = \hat s_q(x_i) - \hat s_p(x_i) \approx \nabla_x \log \frac{q}{p}(x_i)

    Descend it: a small step against it lowers KL[q || p]. The score of the samples is the
    in-sample estimate, that of the data is evaluated out of sample at each x_i on its own.

    Args:
      samples: x_i ~ q; shape (n, d), floating.
      data: y_j ~ p; shape (m, d), floating.
      kernel: k; its lengthscales are in units of samples.
      ridge: eta > 0 of both estimators, in units of k(0).
      axis_name: if set, both samples are the union over all devices; the rows of this device's
        samples come back.

    Returns:
      Direction, shape (n, d), dtype of samples, in 1/units of samples.

    Raises:
      ValueError: wrong rank, dtype, mismatched dimensions, or ridge <= 0.

    Cost: O((n + m)^3 / 3 + (n + m)^2 d) time, O((n + m)^2) memory.

    References:
      Li 2017 (approximate KL gradients), eqs. (1), (2), (3).
    """
    score_q = score.stein_score(samples, kernel, ridge=ridge, axis_name=axis_name)
    score_p = score.stein_score_at(samples, data, kernel, ridge=ridge, axis_name=axis_name)
    return score_q - score_p


def kl(make_kernel: MakeKernel, *, ridge: float | None = None) -> Objective:
    """Returns the objective that descends the Stein estimate of KL[q || p].

    Args:
      make_kernel: chooses the kernel of a batch.
      ridge: eta of :func:`kl_direction`; None: ``score.default_ridge`` of the whole batch.

    Returns:
      Objective with info ``mmd`` (the V-statistic of MMD^2, a monitor) and ``direction_rms``.

    Raises:
      ValueError: ridge <= 0.
    """
    if ridge is not None:
        _checks.positive(ridge=ridge)

    def objective(
        key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        del key
        x, y = _flat(samples), _flat(data)
        kernel = make_kernel(x, y, axis_name=axis_name)
        size = x.shape[0] * pairwise.num_devices(axis_name)
        eta = score.default_ridge(size, kernel) if ridge is None else ridge
        direction = kl_direction(x, y, kernel, ridge=eta, axis_name=axis_name)
        value = mmd.mmd_v_statistic(x, y, kernel, axis_name=axis_name)
        return direction.reshape(samples.shape), _info(direction, value, axis_name)

    return objective


def mmd_v(make_kernel: MakeKernel) -> Objective:
    """Returns the objective that descends the V-statistic of MMD^2, with its closed-form gradient.

    The direction is n times ``mmd.mmd_gradient``: the pull-back takes a mean over samples where
    the gradient of the statistic asks for a sum.

    Args:
      make_kernel: chooses the kernel of a batch.

    Returns:
      Objective with info ``mmd`` (its value) and ``direction_rms``.
    """

    def objective(
        key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        del key
        x, y = _flat(samples), _flat(data)
        kernel = make_kernel(x, y, axis_name=axis_name)
        size = x.shape[0] * pairwise.num_devices(axis_name)
        value, gradient = mmd.mmd_value_and_gradient(x, y, kernel, axis_name=axis_name)
        direction = size * gradient
        return direction.reshape(samples.shape), _info(direction, value, axis_name)

    return objective


OBJECTIVES: dict[str, Callable[..., Objective]] = {"kl": kl, "mmd": mmd_v}


def _flat(points: Array) -> Array:
    return points.reshape(points.shape[0], -1)


def _info(direction: Array, mmd_value: Array, axis_name: str | None) -> Info:
    mean_square = jnp.mean(jnp.sum(jnp.square(direction), axis=1))
    if axis_name is not None:
        mean_square = lax.pmean(mean_square, axis_name)
    return {"mmd": mmd_value, "direction_rms": jnp.sqrt(mean_square)}
