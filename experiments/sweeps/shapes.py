"""Which runs share a program: those that differ in numbers alone."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.training.settings import Config

# Settings whose number is an argument of the compiled step, not a part of it.
TRACED = (
    "learning_rate",
    "b1",
    "b2",
    "momentum",
    "weight_decay",
    "warmup",
    "clip_norm",
    "ema",
    "step_size",
    "inner_learning_rate",
    "damping",
    "kernel_scales",
    "ridge",
    "alpha",
    "temperatures",
    "epsilon",
    "noise_scale",
    "regularization",
    "critic_learning_rate",
    "clip",
    "penalty_weight",
    "noise_variance",
    "discount",
    "leading_discount",
    "freeze_threshold",
    "log_normalizer_rate",
    "margin",
)


def structure(config: Config) -> Config:
    """Returns what decides the program of a run: its config without the numbers that do not.

    Of those only the form is left: whether one is set, how many there are in a list, and whether
    there is noise at all. The seed decides nothing.
    """
    forms = {name: _form(getattr(config, name)) for name in TRACED}
    forms["noise_variance"] = float(config.noise_variance > 0)
    return dataclasses.replace(config, seed=0, **forms)


def differing(configs: Sequence[Config]) -> list[str]:
    """Returns the traced settings that are not the same in all configs."""
    return [name for name in TRACED if len({getattr(one, name) for one in configs}) > 1]


def _form(value: Any) -> Any:
    if isinstance(value, tuple):
        return (0.0,) * len(value)
    return None if value is None else 0.0
