"""Objectives beyond the papers: fields of today, each a formula of another room as an objective.

:mod:`kernelgrad.objectives` offers them.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from kernelgrad import _checks
from kernelgrad import drift as _drift
from kernelgrad._batch import flat
from kernelgrad.types import Array, Info, Key, Objective


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
