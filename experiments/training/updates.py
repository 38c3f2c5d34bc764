"""From a direction in sample space to a step of the generator: eqs. (8), (9), (10) of paper 003.

Functions of the table take the settings that they read by keyword, fields of
:class:`experiments.training.settings.Config`, whose numbers may be traced.
"""

import functools
from collections.abc import Callable
from typing import Any

import optax

from experiments.run import fields
from kernelgrad import pullback
from kernelgrad.train import PullBack


def _chain_rule(axis_name: str | None) -> PullBack:
    del axis_name  # the gradients of devices are averaged by the step
    return pullback.chain_rule


def _regression(
    axis_name: str | None,
    *,
    step_size: float,
    inner_steps: int,
    inner_learning_rate: float,
) -> PullBack:
    return functools.partial(
        pullback.regression,
        optimizer=optax.sgd(inner_learning_rate, momentum=0.9, nesterov=True),
        step_size=step_size,
        num_steps=inner_steps,
        axis_name=axis_name,
    )


def _gauss_newton(axis_name: str | None, *, damping: float, cg_iterations: int) -> PullBack:
    return functools.partial(
        pullback.gauss_newton,
        damping=damping,
        max_iterations=cg_iterations,
        axis_name=axis_name,
    )


UPDATES: dict[str, Callable[..., PullBack]] = {
    "chain_rule": _chain_rule,
    "regression": _regression,
    "gauss_newton": _gauss_newton,
}


def make(config: Any, axis_name: str | None) -> PullBack:
    """Returns the pull-back of a config.

    Args:
      config: the settings.
      axis_name: mapped axis over devices.
    """
    make_one = UPDATES[config.update]
    options = {name: getattr(config, name) for name in fields.read_by(make_one)}
    return make_one(axis_name, **options)


def reading(setting: str) -> list[str]:
    """Returns the updates that read a setting."""
    return [name for name, make_one in UPDATES.items() if setting in fields.read_by(make_one)]
