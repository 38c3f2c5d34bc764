"""Objectives beyond the papers: fields of today, each a formula of another room as an objective.

:mod:`kernelgrad.objectives` offers them.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from kernelgrad import _checks, _devices, _numeric, energy, mmd, score_peers
from kernelgrad import drift as _drift
from kernelgrad._batch import flat, kernel_of
from kernelgrad.types import Array, Info, Key, MakeKernel, Objective


def drift(temperatures: Sequence[float] = _drift.TEMPERATURES) -> Objective:
    r"""Returns the objective whose descent follows the drifting field.

    The direction is minus :func:`kernelgrad.drift.drift`, so that a step of size 1 is that of the
    loss :math:`|x - \mathrm{sg}(x + V)|^2 / 2` in its paper.

    Args:
      temperatures: R > 0, in units of the batch's mean distance.

    Returns:
      Objective without info.

    Raises:
      ValueError: a temperature <= 0, or none.

    References:
      Deng et al. 2026 (generative modeling via drifting), algorithm 2.
    """
    _checks.positive(temperatures=temperatures)
    _checks.shape("temperatures", jnp.asarray(temperatures), ("t",))

    def objective(
        key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        del key
        x, y = flat(samples, data)
        field = _drift.drift(x, y, temperatures, axis_name=axis_name)
        return -field.reshape(samples.shape), {}

    return objective


def conservative_drift(make_kernel: MakeKernel) -> Objective:
    r"""Returns the objective that descends log q / p, with both densities sums of kernels.

    .. math:: \phi_i = \nabla_x \log \frac{\sum_j k(x, x_j)}{\sum_j k(x, y_j)} \Big|_{x = x_i}

    It is minus the drifting field in the form that has a potential: where a drift weighs y - x by
    a kernel w and divides by the sum of w, this divides by the sum of the kernel k whose gradient
    is w (y - x). For a Gaussian w they are one kernel but for the factor l^2, and the drift is l^2
    times minus the direction; the k of exp(-r / tau) is ``matern32(sqrt(3) * tau)``.

    Args:
      make_kernel: chooses the kernel k of a batch; k > 0.

    Returns:
      Objective with info ``mmd`` (the V-statistic of MMD^2 under k, a monitor).

    References:
      Franz, Hoffmann et al. 2026 (drifting fields are not conservative); Balasubramanian 2026.
    """

    def objective(
        key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        del key
        x, y = flat(samples, data)
        kernel = kernel_of(make_kernel, x, y, axis_name)
        score_q = score_peers.kde_score(x, kernel, axis_name=axis_name)
        score_p = score_peers.kde_score_at(x, y, kernel, axis_name=axis_name)
        value = mmd.mmd_v_statistic(x, y, kernel, axis_name=axis_name)
        return (score_q - score_p).reshape(samples.shape), {"mmd": value}

    return objective


def sliced_energy(num_projections: int = 64) -> Objective:
    r"""Returns the objective that descends the energy distance along random lines, by sorting.

    The direction is n times the gradient of :func:`energy.sliced_energy_and_gradient` along lines
    that are drawn anew from the key at every call; its mean over them is a multiple of that of
    :func:`energy_distance`, at O(n log n) a line.

    Args:
      num_projections: lines a call, >= 1.

    Returns:
      Objective with info ``sliced_energy`` (its value).

    Raises:
      ValueError: num_projections below 1.

    References:
      Hertrich et al. 2024 (generative sliced MMD flows with Riesz kernels), section 3.
    """
    _checks.at_least("num_projections", num_projections, 1)

    def objective(
        key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        x, y = flat(samples, data)
        lines = energy.random_directions(key, num_projections, x.shape[1])
        value, gradient = energy.sliced_energy_and_gradient(
            _numeric.wide(x), y, lines, axis_name=axis_name
        )
        size = x.shape[0] * _devices.num_devices(axis_name)
        direction = _numeric.like(size * gradient, x)
        return direction.reshape(samples.shape), {"sliced_energy": value}

    return objective
