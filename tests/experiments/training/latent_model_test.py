"""The model that a critic makes of a generator: its energy's sign, and its prior."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import catalog
from experiments.data.dataset import Dataset
from experiments.data.rows import Rows
from experiments.training import latent_model, models, settings
from experiments.training.choices import energy_network, feature_network
from experiments.training.objectives import OBJECTIVES
from experiments.training.settings import Config
from experiments.training.trained import Trained
from kernelgrad.two_player import TwoPlayer


@pytest.mark.thorough(quick=3)
@pytest.mark.parametrize(
    "objective", [name for name, choice in OBJECTIVES.items() if choice.energy]
)
def test_learning_lowers_the_energy_of_data_against_that_of_samples(key, objective):
    config = Config(objective=objective, penalty_weight=1e-6)
    choice = OBJECTIVES[objective]
    data, samples = jnp.ones((8, 1)), -jnp.ones((8, 1))

    def critic_fn(slope, points):
        values = slope * points[:, 0]
        return (values, points) if choice.network is energy_network else values

    def loss(slope):
        critic = functools.partial(critic_fn, slope)
        return choice.make(config).critic_loss(critic, key, samples, data)[0]

    def gap(slope):
        of_data, of_samples = (choice.energy(critic_fn(slope, x)) for x in (data, samples))
        assert of_data.shape == (8,)
        return jnp.mean(of_data - of_samples)

    assert gap(0.3 - 0.1 * jax.grad(loss)(0.3)) < gap(0.3)


def test_critics_of_features_and_objectives_without_one_have_no_energy():
    for choice in OBJECTIVES.values():
        has_critic = isinstance(choice.make(Config(noise_variance=0.1)), TwoPlayer)
        assert has_critic == (choice.critic_steps > 0)
        valued = has_critic and choice.network is not feature_network
        assert valued == (choice.energy is not None)


def test_every_prior_has_normal_latents():
    assert set(latent_model.FROM_NORMAL) == set(settings.PRIORS)


@pytest.mark.thorough
def test_statistics_taken_anew_are_those_of_the_layers_inputs(key):
    """Of the first BatchNorm, whose inputs are linear in N(0, I): 0 and |w|^2 for each unit."""
    config, digits = Config(objective="mmd", width=4, latent_dim=8), catalog.load("digits")
    model = models.build(config, digits)
    run = Trained(config, digits, model, 0, model.initial_state(key))
    anew = latent_model.recalibrated(key, run)
    weights = np.asarray(run.state.params["Dense_0"]["kernel"])
    found = anew.state.batch_stats["BatchNorm_0"]
    expected = np.square(weights).sum(axis=0).reshape(-1, 4).mean(axis=0)  # by channel
    np.testing.assert_allclose(found["var"], expected, rtol=0.05)
    assert np.abs(found["mean"]).max() < 0.02 * np.sqrt(expected.max())
    assert run.state.batch_stats["BatchNorm_0"]["var"].max() == 1  # as at the start
    again = latent_model.recalibrated(jax.random.fold_in(key, 1), anew)
    for old, new in zip(
        *(jax.tree.leaves(one.state.batch_stats) for one in (anew, again)), strict=True
    ):
        np.testing.assert_allclose(new, old, rtol=0.1, atol=1e-2)


@pytest.mark.parametrize("conditional", [False, True])
def test_kale_takes_test_images_block_by_block(tmp_path, rng, monkeypatch, conditional):
    images = rng.integers(256, size=(25, 3, 2, 1), dtype=np.uint8)
    (tmp_path / "images").write_bytes(images.tobytes())
    labels, weights = rng.integers(4, size=25).astype(np.int32), rng.normal(size=10)
    points = np.concatenate([images.reshape(25, 6) / 255, np.eye(4)[labels]], axis=1)
    points, of = (points, weights) if conditional else (points[:, :6], weights[:6])
    prior, expected = rng.normal(size=30), -np.mean(points @ of)
    expected -= np.log(np.mean(np.exp(-prior)))

    def energy(points):
        return points.reshape(len(points), -1) @ jnp.asarray(of, jnp.float32)

    monkeypatch.setattr(latent_model, "generator_and_energy", lambda run, state: (None, energy))
    monkeypatch.setattr(latent_model, "_BLOCK", 10)
    draws = latent_model.Draws(None, None, jnp.asarray(prior, jnp.float32), None)
    for test in (images, Rows(tmp_path / "images", 0, images.shape)):
        dataset = Dataset("mine", test, test, labels, labels, 4)
        run = Trained(Config(conditional=conditional), dataset, None, 0, None)
        found = latent_model.kale_on_test_data(run, draws)
        np.testing.assert_allclose(found["nats"], expected, rtol=1e-5)
