"""The reference chain: a Gaussian's moments, and diagnostics that notice what is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.targets import long_chains

MEAN, DEVIATIONS = np.array([1.0, -2.0, 30.0]), np.array([0.1, 1.0, 10.0])


def log_density(x):
    return -jnp.sum(jnp.square((x - MEAN) / DEVIATIONS)) / 2


@pytest.mark.slow
def test_chains_have_the_moments_of_a_badly_scaled_gaussian(key):
    chains = long_chains.run(
        key, 20 * jax.random.normal(key, (16, 3)), log_density, num_warmup=400, num_draws=300
    )
    assert chains.draws.shape == (16, 300, 3)
    assert chains.pooled.shape == (4800, 3)
    np.testing.assert_array_equal(chains.pooled[:16], chains.draws[:, 0])
    assert chains.num_divergences == 0
    assert 0.7 < chains.acceptance < 0.9
    assert chains.r_hat < 1.05
    assert chains.effective_draws > 300
    scaled = (chains.draws.astype(np.float64) - MEAN) / DEVIATIONS
    for power, expected in ((1, 0.0), (2, 1.0)):
        of_chain = (scaled**power).mean(axis=1)
        z = (of_chain.mean(axis=0) - expected) / (of_chain.std(axis=0, ddof=1) / np.sqrt(16))
        assert np.all(np.abs(z) < 6), z  # t with 15 degrees of freedom


@pytest.mark.parametrize(
    "spoil",
    [
        lambda draws: draws + np.arange(8)[:, None, None],  # chains at different places
        lambda draws: draws + np.linspace(-2, 2, 200)[None, :, None],  # all of them on the move
        lambda draws: draws + 5 * (np.arange(3) == 1) * (np.arange(8)[:, None, None] == 0),
    ],
)
def test_r_hat_notices_chains_that_disagree(rng, spoil):
    draws = rng.normal(size=(8, 200, 3))
    assert long_chains.split_r_hat(draws) < 1.03
    assert long_chains.split_r_hat(spoil(draws)) > 1.1


def test_effective_draws_count_the_independent_ones(rng):
    independent = rng.normal(size=(400, 50, 1))
    assert 400 * 50 / 1.5 < long_chains.effective_draws(independent) < 400 * 50 * 1.5
    repeated = np.repeat(independent, 10, axis=1)
    assert 400 * 50 / 1.5 < long_chains.effective_draws(repeated) < 400 * 50 * 1.5
