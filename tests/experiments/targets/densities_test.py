"""Densities against their formulas: values, mass, draws and scores."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from experiments.data import catalog
from experiments.run.errors import UsageError
from experiments.targets import densities

PLANE = ("ring", "banana", "mixture", "swiss_roll", "grid")


def density_by_formula(name, x):
    """Returns log p at points (n, 2), in float64, from the table of the module."""
    x = np.asarray(x, np.float64)
    if name == "ring":
        square = np.sum(x**2, axis=1)
        return stats.truncnorm(-5, np.inf, loc=1, scale=0.2).logpdf(square) - np.log(np.pi)
    if name == "banana":
        second = stats.norm((x[:, 0] ** 2 - 1) / 2, 0.3)
        return stats.norm.logpdf(x[:, 0]) + second.logpdf(x[:, 1])
    if name == "mixture":
        angle = np.pi / 4 * np.arange(8)
        centres, width = 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1), 0.25
    elif name == "grid":
        centres, width = np.array([(i, j) for i in range(-2, 3) for j in range(-2, 3)]), 0.05
    else:
        centres, width = catalog.load("swiss_roll", seed=3).train[:500].astype(np.float64), 0.07
    logs = [stats.norm(c, width).logpdf(x).sum(axis=1) for c in centres]
    return logsumexp(logs, axis=0) - np.log(len(centres))


@pytest.mark.thorough(quick=3)
@pytest.mark.parametrize("name", PLANE)
def test_log_density_is_the_formula(name, rng):
    target = densities.load(name, seed=3)
    (left, right), (bottom, top) = target.bounds
    x = rng.uniform((left, bottom), (right, top), (200, 2)).astype(np.float32)
    got = jax.vmap(target.log_density_fn)(jnp.asarray(x))
    np.testing.assert_allclose(got, density_by_formula(name, x), rtol=2e-5, atol=2e-3)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", PLANE)
def test_density_adds_up_to_1_and_draws_have_its_moments(name, key):
    """The grid's spacing is at most half the narrowest width, so its sums are exact to 1e-4."""
    target = densities.load(name, seed=3)
    (left, right), (bottom, top) = target.bounds
    x1, x2 = np.linspace(left - 1, right + 1, 220), np.linspace(bottom - 1, top + 4, 420)
    grid = np.stack(np.meshgrid(x1, x2), axis=-1).reshape(-1, 2).astype(np.float32)
    log_density = jax.jit(lambda x: jax.lax.map(target.log_density_fn, x, batch_size=2000))
    cell = (x1[1] - x1[0]) * (x2[1] - x2[0])
    weights = np.exp(np.asarray(log_density(grid), np.float64)) * cell
    np.testing.assert_allclose(weights.sum(), 1, atol=1e-3)

    draws = target.exact_samples(key, 20_000)
    assert draws.shape == (20_000, 2)

    def features(points):
        a, b = np.asarray(points, np.float64).T
        logs = np.asarray(log_density(points), np.float64)
        return np.stack([a, b, a**2, b**2, a * b, a**2 * b, logs], axis=1)

    at_grid = features(grid)
    mean = weights @ at_grid
    deviation = np.sqrt(weights @ (at_grid - mean) ** 2)
    z = (features(draws).mean(axis=0) - mean) / (deviation / math.sqrt(20_000))
    assert np.all(np.abs(z) < 5), z


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("name", PLANE)
def test_score_is_finite_at_odd_points(name):
    target = densities.load(name)
    odd = jnp.array([[0.0, 0.0], [1e3, -1e3], [2.0, 0.0], [1e-30, 0.0], [-50.0, 60.0]])
    assert jnp.all(jnp.isfinite(jax.vmap(jax.grad(target.log_density_fn))(odd)))


def test_an_unknown_target_of_the_loader_is_named():
    with pytest.raises(UsageError, match=r"^target: got 'banan'; .* Did you mean banana\?"):
        densities.load("banan")
