"""Settings of a training run: ranges, and the prior."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.run import unread
from experiments.run.errors import UsageError
from experiments.run.workdirs import Workdir
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
    assert ("num_steps" in settings.free_fields(config)) == free


KL, MMD, NOISY, STEINGAN = (
    Config(objective=name) for name in ("kl", "mmd", "noisy_jsd", "steingan")
)


@pytest.mark.parametrize(
    ("configs", "change", "message"),
    [
        (
            [MMD],
            {"ridge": 3.0},
            "ridge: got 3.0, which nothing reads with objective mmd; .*with kl",
        ),
        ([MMD, STEINGAN], {"ridge": 3.0}, "with objective mmd, steingan; expected it with kl, kl_"),
        ([MMD, KL], {"ridge": 3.0}, None),
        ([KL], {"b2": 0.9}, None),
        ([KL], {"optimizer": "rmsprop", "b2": 0.9}, "with optimizer rmsprop; .*with adam, adamw$"),
        ([KL], {"inner_steps": 3}, "with update chain_rule; expected it with regression$"),
        ([KL], {"update": "regression", "inner_steps": 3}, None),
        ([KL], {"width": 3, "features": ("vicreg",), "normalize": False}, None),
        ([STEINGAN], {"margin": 0.3}, "margin: .* with conditional=false; .* another conditional$"),
        ([STEINGAN], {"margin": 0.3, "conditional": True}, None),
        ([KL], {"margin": 0.3, "conditional": True}, "with objective kl; expected it with gan_sat"),
        ([KL], {"noise_steps": 3, "noise_variance": 0.1}, None),
        ([NOISY], {"noise_steps": 3, "noise_variance": 0.1}, "objective=noisy_jsd; .* another o"),
        ([NOISY, KL], {"noise_steps": 3, "noise_variance": 0.1}, None),
        ([STEINGAN], {"freeze": "two_sided", "freeze_threshold": np.inf}, "freeze_threshold=inf; "),
        ([STEINGAN], {"freeze": "two_sided", "freeze_threshold": 0.3}, None),
        ([Config(objective="kale")], {"log_normalizer_rate": 0.3}, "with log_normalizer=batch"),
        ([MMD], {"critic_steps": 3}, "with objective mmd; expected it with gan_saturating, "),
    ],
)
def test_what_nothing_reads_is_refused_where_it_is_given(configs, change, message):
    """Not where a preset has it, so that one can be taken for another objective."""
    configs = [dataclasses.replace(config, **change) for config in configs]
    unread.refuse({}, configs)
    unread.refuse({"workdir": "w", "objective": "kl"}, configs)
    if message is None:
        unread.refuse({"workdir": "w", **change}, configs)
    else:
        with pytest.raises(UsageError, match=message):
            unread.refuse({"workdir": "w", **change}, configs)


def test_a_run_resumes_without_what_it_does_not_read(tmp_path):
    """As one whose command is refused today, which was not when it began."""
    for ridge in (3.0, None):
        config = dataclasses.replace(MMD, ridge=ridge)
        with Workdir(tmp_path, config, free_fields=settings.free_fields(config)):
            assert json.loads((tmp_path / "config.json").read_text())["ridge"] == ridge
    config = dataclasses.replace(MMD, width=8)
    with pytest.raises(UsageError, match="width was 32, now 8"):
        Workdir(tmp_path, config, free_fields=settings.free_fields(config))
    assert "ridge" not in settings.free_fields(MMD, KL)
