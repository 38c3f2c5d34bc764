"""How a direction becomes a step of the generator, by the settings of a run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.data import catalog
from experiments.training import fit, models, updates
from experiments.training.settings import Config
from kernelgrad import pullback

CONFIG = Config(
    objective="mmd",
    dataset="eight_gaussians",
    batch_size=8,
    latent_dim=2,
    width=8,
    optimizer="sgd",
    generator_steps=2,
    step_size=0.3,
    inner_steps=3,
    inner_learning_rate=0.02,
    damping=0.1,
    cg_iterations=4,
)
EXPECTED = {
    "chain_rule": pullback.chain_rule,
    "regression": lambda *args: pullback.regression(
        *args, optimizer=optax.sgd(0.02, momentum=0.9, nesterov=True), step_size=0.3, num_steps=3
    ),
    "gauss_newton": lambda *args: pullback.gauss_newton(*args, damping=0.1, max_iterations=4),
}


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", updates.UPDATES)
def test_settings_reach_the_update(rng, name):
    latents, direction = (jnp.asarray(rng.normal(size=(5, d)), jnp.float32) for d in (3, 2))
    params = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)
    pull_back = updates.make(dataclasses.replace(CONFIG, update=name), None)
    got, expected = (
        jax.jit(lambda w, follow=follow: follow(lambda w: jnp.tanh(latents @ w), w, direction))(
            params
        )
        for follow in (pull_back, EXPECTED[name])
    )
    np.testing.assert_array_equal(got, expected)


def test_who_reads_a_setting():
    assert updates.reading("damping") == ["gauss_newton"]
    assert updates.reading("inner_steps") == ["regression"]


@pytest.mark.thorough
@pytest.mark.parametrize("name", updates.UPDATES)
def test_two_devices_make_the_updates_of_one(key, name):
    """A step of two updates each, in which samples of all devices meet."""
    config = dataclasses.replace(CONFIG, update=name)
    dataset = catalog.load(config.dataset)
    data = jnp.asarray(dataset.train[:8])

    def played(axis_name):
        model = models.build(config, dataset, axis_name)
        return model, fit.make_train_step(config, model, axis_name, anneals=False)

    model, step = played(None)
    start = jax.jit(model.initial_state)(key)
    alone, _ = jax.jit(step)(start, key, data)
    _, step = played("i")
    spread, info = jax.pmap(step, "i", in_axes=(None, None, 0))(start, key, data.reshape(2, 4, 2))
    assert info["finite"].all()
    for got, wanted in zip(*map(jax.tree.leaves, (spread.params, alone.params)), strict=True):
        np.testing.assert_allclose(got[0], wanted, rtol=1e-3, atol=1e-5)
    moved = jax.tree.leaves(
        jax.tree.map(lambda a, b: jnp.abs(a - b).max(), start.params, alone.params)
    )
    assert max(moved) > 1e-4
