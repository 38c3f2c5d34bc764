"""Settings of a training run: ranges, and the prior."""

import dataclasses

import numpy as np
import pytest

from experiments.run.errors import UsageError
from experiments.training import settings
from experiments.training.settings import Config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_steps", 0),
        ("width", -1),
        ("learning_rate", float("nan")),
        ("ridge", 0.0),
        ("kernel_scales", (1.0, -1.0)),
        ("b1", 1.0),
        ("resident_gib", float("inf")),
        ("objective", "nothing"),
        ("optimizer", "adagrad"),
        ("schedule", "step"),
        ("ema", 1.0),
        ("momentum", -0.1),
        ("clip_norm", 0.0),
        ("warmup", 0),
        ("warmup", 2000),  # of as many steps
        ("update", "newton"),
        ("generator_steps", 0),
        ("damping", 0.0),
        ("leading_discount", 1.0),
        ("freeze", "both"),
    ],
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(UsageError, match=f"^{field}: got "):
        settings.validate(dataclasses.replace(Config(), **{field: value}), 1)


def test_the_uniform_prior_is_on_both_sides_of_0(key):
    """U[-1, 1], of mean 0 and variance 1/3."""
    latents = settings.PRIORS["uniform"](key, (10_000,))
    assert -1 <= latents.min() < -0.99
    assert 0.99 < latents.max() <= 1
    assert abs(latents.mean()) < 5 / np.sqrt(3 * latents.size)


@pytest.mark.parametrize(
    ("changes", "free"),
    [
        ({}, True),
        ({"noise_variance": 0.1}, False),
        ({"noise_variance": 0.1, "noise_steps": 50}, True),
        ({"noise_variance": 0.1, "objective": "noisy_jsd"}, True),
        ({"schedule": "cosine"}, False),
        ({"schedule": "linear", "warmup": 5}, False),
        ({"warmup": 5, "ema": 0.9, "optimizer": "sgd"}, True),
    ],
)
def test_a_run_keeps_its_length_where_something_falls_over_it(changes, free):
    config = dataclasses.replace(Config(), **changes)
    assert settings.free_fields(config) == (("num_steps",) if free else ())
