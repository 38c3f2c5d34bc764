"""Which runs share a program, and that what they differ in is an argument of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

from experiments.data.dataset import Dataset
from experiments.run import fields
from experiments.sweeps import shapes
from experiments.training import fit, models
from experiments.training.objectives import OBJECTIVES
from experiments.training.settings import Config

BASE = Config(batch_size=10, latent_dim=2, width=4, kernel_scales=(0.5, 1.0, 2.0, 4.0))
POINTS = Dataset(
    "points", np.zeros((80, 2), np.float32), np.zeros((9, 2), np.float32), None, None, 0
)


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({"learning_rate": 1e-2, "seed": 3, "kernel_scales": (1.0, 2.0, 3.0, 4.0)}, True),
        ({"ridge": 1.0}, False),
        ({"kernel_scales": (1.0,)}, False),
        ({"noise_variance": 0.1}, False),
        ({"ema": 0.9}, False),
        ({"warmup": 3}, False),
        ({"schedule": "cosine"}, False),
        ({"width": 8}, False),
        ({"num_steps": 3}, False),
        ({"objective": "mmd"}, False),
    ],
)
def test_numbers_make_no_other_program(changes, is_same):
    other = dataclasses.replace(BASE, **changes)
    assert (shapes.structure(other) == shapes.structure(BASE)) is is_same


def test_numbers_of_what_is_on_make_no_other_program():
    on = {"ema": 0.9, "warmup": 3, "clip_norm": 1.0, "momentum": 0.5}
    more = {"ema": 0.99, "warmup": 9, "clip_norm": 2.0, "momentum": 0.9}
    one, other = (dataclasses.replace(BASE, optimizer="sgd", **each) for each in (on, more))
    assert shapes.structure(one) == shapes.structure(other) != shapes.structure(BASE)
    assert shapes.differing([one, other]) == ["momentum", "warmup", "clip_norm", "ema"]


def test_what_differs_is_named():
    configs = [BASE, dataclasses.replace(BASE, seed=1, b1=0.5), dataclasses.replace(BASE, b1=0.1)]
    assert shapes.differing(configs) == ["b1"]


def test_traced_settings_are_numbers():
    rules = fields.rules(Config)
    assert {name for name in shapes.TRACED if rules[name].kind is not float} == {"warmup"}
    left = {name for name, rule in rules.items() if rule.kind is float} - set(shapes.TRACED)
    assert left == {"resident_gib"}  # which decides where the data are


def _numbers(config):
    """Every traced setting as an array, those that are not set at some number."""
    values = {name: getattr(config, name) for name in shapes.TRACED}
    return {name: jnp.asarray(0.5 if x is None else x) for name, x in values.items()}


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_number_that_an_objective_reads_is_an_argument(objective, key):
    choice = OBJECTIVES[objective]
    config = dataclasses.replace(
        BASE,
        objective=objective,
        penalty_weight=1.0,
        noise_variance=0.1,
        log_normalizer="ema",
        warmup=3,
        clip_norm=1.0,
        ema=0.9,
    )
    state = jax.eval_shape(models.build(config, POINTS).initial_state, key)

    def step(numbers, state, data):
        values = {
            name: tuple(x) if isinstance(getattr(config, name), tuple) else x
            for name, x in numbers.items()
        }
        traced = dataclasses.replace(config, **values)
        model = models.build(traced, POINTS)
        anneals = not choice.has_own_noise
        return fit.make_train_step(traced, model, None, anneals=anneals)(state, key, data)[0]

    rows = jnp.zeros((10 * max(1, choice.critic_steps), 2))
    program = jax.make_jaxpr(step)(_numbers(config), state, rows)
    _, used = partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.out_avals))
    arguments = dict(zip(sorted(shapes.TRACED), used, strict=False))
    of_all = {"learning_rate", "b1", "b2", "warmup", "clip_norm", "ema", "noise_variance"}
    read = (choice.settings | of_all) & set(shapes.TRACED)
    read -= {"kernel_scales"} if "kernel" not in choice.settings else set()
    assert {name for name in read if not arguments[name]} - {"margin"} == set()
