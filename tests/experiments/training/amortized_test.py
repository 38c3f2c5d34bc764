"""Amortized likelihood: directions by loops, and what a step does."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.run import fields
from experiments.targets import boltzmann
from experiments.training import amortized
from experiments.training.amortized import Config

TINY = Config(
    dataset="digits",
    directions=("svgd", "exact"),
    seeds=(0,),
    num_epochs=2,
    num_hidden=3,
    width=8,
    latent_dim=4,
    learning_rate=1e-2,
)


def directions_by_loops(x, scores):
    """Returns (attraction, repulsion) at each point, both over the sum of the kernel's row."""
    n = len(x)
    sq_dist = np.sum((x[:, None] - x[None]) ** 2, axis=2)
    median = np.median(sq_dist[np.triu_indices(n, 1)])
    square = median / (2 * np.log(n + 1))
    attraction, repulsion = np.zeros_like(x), np.zeros_like(x)
    for i in range(n):
        row = np.exp(-sq_dist[i] / (2 * square))
        for j in range(n):
            attraction[i] += row[j] * scores[j] / row.sum()
            repulsion[i] += row[j] * (x[i] - x[j]) / square / row.sum()
    return attraction, repulsion


@pytest.mark.thorough
def test_directions_are_those_of_the_loops(rng):
    x, scores = rng.normal(size=(2, 7, 3))
    attraction, repulsion = directions_by_loops(x, scores)
    expected = {"svgd": attraction + repulsion, "smoothed": attraction, "score": scores}
    for name, direction in expected.items():
        follow = amortized.DIRECTIONS[name]
        got = follow(jnp.asarray(x, jnp.float32), jnp.asarray(scores, jnp.float32))
        np.testing.assert_allclose(got, direction, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("noisy", [True, False])
def test_the_generator_draws_its_means_and_noise_of_observation(key, noisy):
    """To 6 standard errors; without the noise nothing is added."""
    config = dataclasses.replace(TINY, observation_noise=noisy)
    trainer = amortized.make_trainer(config, "svgd", (8, 8, 1))
    noise = jax.jit(lambda key, state: trainer.samples(state, key) - trainer.means(state, key))
    noise = np.asarray(noise(key, jax.jit(trainer.initial_state)(key)))
    if noisy:
        assert abs(noise.mean()) < 6 / np.sqrt(noise.size)
        assert abs(noise.var() - 1) < 6 * np.sqrt(2 / noise.size)
        assert np.abs(np.cov(noise.T) - np.eye(64)).max() < 6 * np.sqrt(2 / len(noise))
    else:
        np.testing.assert_array_equal(noise, 0)


@pytest.mark.thorough
def test_the_direction_is_taken_at_the_noisy_samples(key, monkeypatch):
    seen = []
    follow = lambda samples, scores: (seen.append(samples), scores)[1]  # noqa: E731
    monkeypatch.setitem(amortized.DIRECTIONS, "score", follow)
    trainer = amortized.make_trainer(TINY, "score", (8, 8, 1))
    trainer.step(trainer.initial_state(key), key, jnp.zeros((TINY.batch_size, 8, 8, 1), jnp.uint8))
    assert 0.9 < np.var(seen[0]) < 1.1  # the sigmoid's outputs are near 1/2 at the start


@pytest.mark.thorough
def test_generator_follows_the_direction_uphill(key):
    config = dataclasses.replace(TINY, learning_rate=1e-3)
    trainer = amortized.make_trainer(config, "score", (8, 8, 1))
    state = trainer.initial_state(key)
    frozen = state.machine
    images = jnp.zeros((config.batch_size, 8, 8, 1), jnp.uint8)

    def mean_log_density(state):
        return jnp.mean(boltzmann.unnormalised_log_density(frozen, trainer.samples(state, key)))

    before = mean_log_density(state)
    step = jax.jit(trainer.step)
    for index in range(20):
        state = step(state._replace(machine=frozen), jax.random.fold_in(key, index), images)
    assert mean_log_density(state) > before + 0.1


@pytest.mark.thorough
def test_machine_steps_to_the_data_and_away_from_the_samples(key):
    trainer = amortized.make_trainer(dataclasses.replace(TINY, weight_decay=0.0), "svgd", (8, 8, 1))
    state = trainer.initial_state(key)
    bright = jnp.full((TINY.batch_size, 8, 8, 1), 255, jnp.uint8)
    step = jax.jit(trainer.step)
    moved = step(state, key, bright).machine.visible_bias
    np.testing.assert_allclose(moved, TINY.learning_rate, rtol=1e-3)  # Adam's first step
    dark = step(state, key, jnp.zeros_like(bright)).machine.visible_bias
    np.testing.assert_allclose(dark, -TINY.learning_rate, rtol=1e-3)


@pytest.mark.parametrize("direction", ["score", "exact"])
def test_a_direction_reads_what_it_is_declared_to(key, direction):
    """The program of a step is another under another value of such a setting, else the same."""

    def program(config):
        trainer = amortized.make_trainer(config, direction, (8, 8, 1))
        state = jax.eval_shape(trainer.initial_state, key)
        images = jnp.zeros((config.batch_size, 8, 8, 1), jnp.uint8)
        return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(trainer.step)(state, key, images)))

    others = {
        "generator": "linear",
        "width": 16,
        "observation_noise": False,
        "latent_dim": 8,
        "balance_weight": 0.5,
    }
    start = program(TINY)
    rules = {name: rule for name, rule in fields.rules(Config).items() if rule.of}
    assert rules.keys() == others.keys()
    for name, rule in rules.items():
        changed = program(dataclasses.replace(TINY, **{name: others[name]}))
        assert (changed != start) == (direction in rule.of(name)), name
