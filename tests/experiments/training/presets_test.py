"""Presets are what the papers state."""

import dataclasses

import pytest

from experiments import train
from experiments.run import command
from experiments.training import presets, settings
from experiments.training.settings import Config


def parsed(*arguments):
    given = command.parse(list(arguments), Config, train.Options)
    return settings.configured(given, given["preset"])


def test_preset_is_what_paper_000_states():
    config = parsed("--preset=paper000", "--learning_rate=1e-4")
    assert config == dataclasses.replace(
        Config(),
        dataset="mnist", batch_size=100, latent_dim=50, width=64, learning_rate=1e-4,
        kernel="imq", kernel_scales=(0.5, 1.0, 2.0, 4.0), normalize=False, num_steps=180_000,
        eval_every=30_000,
    )  # fmt: skip
    assert presets.PRESETS["paper000"]["learning_rate"] == 5e-5


PAPERS = {
    "paper001": Config(
        objective="gan_kl", dataset="swiss_roll", num_steps=3000, eval_every=50, batch_size=256,
        latent_dim=2, width=64, learning_rate=1e-3, b1=0.5, critic_steps=5,
        kernel_scales=(0.01, 0.05, 0.25, 1.0), normalize=False,
    ),
    "paper003": Config(
        objective="steingan", dataset="mnist", conditional=True, margin=0.2, num_steps=30_000,
        eval_every=3000, batch_size=100, latent_dim=100, prior="uniform", width=64,
        learning_rate=1e-3, critic_learning_rate=1e-4, b1=0.5, discount=0.7, freeze_threshold=0.5,
        stein_field="one_pass", feature_lengthscale="half_svgd", energy_norm="euclidean",
    ),
    "paper004": Config(
        objective="kale", dataset="mnist", num_steps=150_000, eval_every=5000, batch_size=128,
        latent_dim=100, width=64, learning_rate=1e-4, b1=0.5, critic_steps=5, spectral_norm=True,
        penalty="zero_centred", penalty_weight=1.0, log_normalizer="newton",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAPERS)
def test_preset_is_that_of_its_paper(name):
    assert parsed(f"--preset={name}") == PAPERS[name]


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_are_valid(name):
    settings.validate(Config(**presets.PRESETS[name]), 2)
