"""The optimizers of both players are Optax's, under rates that rise and fall as they should."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.training import optimizers
from experiments.training.objectives import OBJECTIVES
from experiments.training.settings import Config

PARAMS = {"w": np.array([0.5, -2.0], np.float32), "b": np.array(3.0, np.float32)}
CONFIG = Config(num_steps=8, b1=0.6, b2=0.8, momentum=0.3, weight_decay=0.1)
SGD = dataclasses.replace(CONFIG, optimizer="sgd", momentum=None)
EXPECTED = {
    "adam": optax.adam(0.1, b1=0.6, b2=0.8),
    "adamw": optax.adamw(0.1, b1=0.6, b2=0.8, weight_decay=0.1),
    "sgd": optax.sgd(0.1, momentum=0.3),
    "rmsprop": optax.rmsprop(0.1, momentum=0.3),
}


def followed(optimizer, num_steps=3):
    """The updates of some steps, on gradients that are the step's number times the parameters."""
    state, updates = optimizer.init(PARAMS), []
    for step in range(num_steps):
        gradient = jax.tree.map(lambda x, t=step: (t + 1) * x, PARAMS)
        update, state = optimizer.update(gradient, state, PARAMS)
        updates.append(update)
    return updates, state


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_each_is_that_of_its_name(name):
    """State and all, so that runs of before there was a choice resume."""
    config = dataclasses.replace(CONFIG, optimizer=name)
    chex.assert_trees_all_equal(followed(optimizers.make(config, 0.1)), followed(EXPECTED[name]))


def rates(config, num_steps, steps_per_update=1):
    """The rates of gradient descent by step."""
    updates, _ = followed(optimizers.make(config, 0.1, steps_per_update), num_steps)
    return [-float(update["b"]) / 3 / (step + 1) for step, update in enumerate(updates)]


@pytest.mark.parametrize("warmup", [None, 3])
def test_schedules_are_those_of_optax(warmup):
    start, warm = (0.1, 0) if warmup is None else (0.1 / 4, warmup)
    rise = optax.linear_schedule(start, 0.1, warm) if warmup else optax.constant_schedule(0.1)
    falls = {
        "constant": optax.constant_schedule(0.1),
        "cosine": optax.cosine_decay_schedule(0.1, 8 - warm),
        "linear": optax.linear_schedule(0.1, 0.0, 8 - warm),
    }
    for name, fall in falls.items():
        expected = optax.join_schedules([rise, fall], [warm])
        found = rates(dataclasses.replace(SGD, schedule=name, warmup=warmup), 9)
        np.testing.assert_allclose(found, [expected(t) for t in range(9)], rtol=1e-5, atol=1e-9)


def test_a_critic_counts_in_steps_of_the_generator():
    config = dataclasses.replace(SGD, schedule="linear", warmup=2)
    np.testing.assert_allclose(rates(config, 8, 2), np.repeat(rates(config, 4), 2), rtol=1e-6)
    critics = OBJECTIVES["wgan_clip"].critic_optimizer(
        dataclasses.replace(config, critic_steps=2, critic_learning_rate=0.1)
    )
    chex.assert_trees_all_equal(followed(critics), followed(optimizers.make(config, 0.1, 2)))


def test_gradients_are_clipped_by_the_norm_of_all_of_them():
    norm = np.sqrt(0.5**2 + 2**2 + 3**2)
    updates, _ = followed(optimizers.make(dataclasses.replace(SGD, clip_norm=1.5 * norm), 1.0))
    for update, factor in zip(updates, (1, 1.5, 1.5), strict=True):
        chex.assert_trees_all_close(
            update, jax.tree.map(lambda x, f=factor: -f * x, PARAMS), rtol=1e-6
        )


def test_numbers_may_be_traced():
    """As a population of runs traces them."""
    config = dataclasses.replace(
        CONFIG, optimizer="adamw", schedule="cosine", warmup=2, clip_norm=1.0
    )
    names = ("b1", "b2", "weight_decay", "warmup", "clip_norm")
    numbers = {name: jnp.float32(getattr(config, name)) for name in names}

    @jax.jit
    def traced(numbers, rate):
        return followed(optimizers.make(dataclasses.replace(config, **numbers), rate))

    expected = followed(optimizers.make(config, 0.1))
    chex.assert_trees_all_close(traced(numbers, jnp.float32(0.1)), expected, rtol=1e-5)
