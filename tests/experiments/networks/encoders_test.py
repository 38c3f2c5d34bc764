"""Encoders and what trains them: losses by loops, views, slopes everywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks import encoders

ENCODER = encoders.Encoder(4, 6)


def test_vicreg_loss_is_that_of_the_loops(rng):
    one, other = rng.normal(0, [0.3, 1.0, 2.0], size=(2, 7, 3))
    total = 25 * np.mean([np.sum((a - b) ** 2) for a, b in zip(one, other, strict=True)])
    for z in (one, other):
        matrix = np.cov(z.T)
        total += 25 * np.mean([max(0, 1 - np.sqrt(matrix[j, j] + 1e-4)) for j in range(3)])
        total += sum(matrix[j, k] ** 2 for j in range(3) for k in range(3) if j != k) / 3
    loss = encoders.vicreg_loss(jnp.asarray(one), jnp.asarray(other))
    np.testing.assert_allclose(loss, total, rtol=1e-5)


def test_collapse_costs_what_its_variances_miss():
    """Equal embeddings differ nowhere, share nothing, and miss a standard deviation of 1."""
    same = jnp.ones((5, 4))
    np.testing.assert_allclose(encoders.vicreg_loss(same, same), 2 * 25 * 0.99, rtol=1e-5)


def test_shifts_are_uniform_and_fill_with_zero(key):
    image = jnp.arange(1, 13, dtype=jnp.uint8).reshape(1, 3, 4, 1)
    num = 9000
    shifted = np.asarray(encoders.shifted(key, jnp.tile(image, (num, 1, 1, 1)), 1))[..., 0]
    padded = np.pad(np.asarray(image)[0, :, :, 0], 1)
    counts = [
        np.sum((shifted == padded[i : i + 3, j : j + 4]).all((1, 2)))
        for i in range(3)
        for j in range(3)
    ]
    assert sum(counts) == num
    assert np.abs(np.array(counts) - num / 9).max() < 5 * np.sqrt(num * 8 / 81)


@pytest.mark.thorough
@pytest.mark.parametrize("name", encoders.TRAINERS)
def test_a_trainer_moves_every_layer_of_its_encoder(key, rng, name):
    trainer = encoders.TRAINERS[name](ENCODER, 3)
    images = jnp.asarray(rng.uniform(size=(6, 8, 8, 1)), jnp.float32)
    labels = jnp.arange(6) % 3
    params = jax.jit(trainer.init)({"params": key, "draw": key}, images, labels)["params"]

    @jax.jit
    def loss(params, key):
        return trainer.apply({"params": params}, images, labels, rngs={"draw": key})

    gradient = jax.grad(functools.partial(loss, key=key))(params)
    for leaf in jax.tree.leaves(gradient["encoder"]):
        assert np.isfinite(leaf).all()
        assert np.any(leaf)
    assert loss(params, key) != loss(params, jax.random.fold_in(key, 1))
    features = jax.jit(ENCODER.apply)({"params": params["encoder"]}, images)
    assert features.shape == (6, 6)
