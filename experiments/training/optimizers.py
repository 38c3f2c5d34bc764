"""The optimizers of both players: what a step is made of, and how its rate rises and falls.

Functions of the table take the settings that they read by keyword, fields of
:class:`experiments.training.settings.Config`, whose numbers may be traced.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from experiments.run import fields
from kernelgrad.types import Array

Rate = float | Array | Callable[[Array], Array]


def _adam(rate: Rate, *, b1: float, b2: float) -> optax.GradientTransformation:
    return optax.adam(rate, b1=b1, b2=b2)


def _adamw(
    rate: Rate, *, b1: float, b2: float, weight_decay: float
) -> optax.GradientTransformation:
    return optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay)


def _sgd(rate: Rate, *, momentum: float | None) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=momentum)


def _rmsprop(rate: Rate, *, momentum: float | None) -> optax.GradientTransformation:
    return optax.rmsprop(rate, momentum=momentum)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": _adam,
    "adamw": _adamw,
    "sgd": _sgd,
    "rmsprop": _rmsprop,
}

SCHEDULES: dict[str, Callable[[Array], Array]] = {  # by the share of the steps that is behind
    "constant": jnp.ones_like,
    "cosine": lambda share: (1 + jnp.cos(jnp.pi * share)) / 2,
    "linear": lambda share: 1 - share,
}


def make(
    config: Any, rate: float | Array, steps_per_update: int = 1
) -> optax.GradientTransformation:
    """Returns the optimizer of a player.

    Args:
      config: the settings.
      rate: the largest learning rate.
      steps_per_update: the player's steps in one of the generator, in which a schedule counts.
    """
    make_one = OPTIMIZERS[config.optimizer]
    options = {name: getattr(config, name) for name in fields.read_by(make_one)}
    optimizer = make_one(_scheduled(config, rate, steps_per_update), **options)
    if config.clip_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def reading(setting: str) -> list[str]:
    """Returns the optimizers that read a setting."""
    return [name for name, make_one in OPTIMIZERS.items() if setting in fields.read_by(make_one)]


def _scheduled(config: Any, peak: float | Array, steps_per_update: int) -> Rate:
    """Returns the learning rate, by step of the player where it changes.

    It rises in equal parts over the warm-up, from peak / (warmup + 1), and falls from its end on.
    """
    if config.schedule == "constant" and config.warmup is None:
        return peak
    warmup = 0 if config.warmup is None else config.warmup

    def schedule(count: Array) -> Array:
        step = jnp.asarray(count // steps_per_update, jnp.float32)
        share = jnp.clip((step - warmup) / (config.num_steps - warmup), 0, 1)
        rise = jnp.minimum(1, (step + 1) / (warmup + 1))
        return peak * rise * SCHEDULES[config.schedule](share)

    return schedule
