"""The small machine: quadrature and enumeration in float64, and moments of its exact samples."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.targets import boltzmann
from experiments.targets.boltzmann import RBMParams

_HALF_WIDTH, _GRID = 12.0, 1201  # the integrand is below e^-30 of its maximum outside


def random_params(rng, dimension, num_hidden):
    weights = rng.normal(size=(dimension, num_hidden))
    return RBMParams(weights, rng.normal(size=dimension), rng.normal(size=num_hidden))


def in_float32(params):
    return RBMParams(*(jnp.asarray(leaf, jnp.float32) for leaf in params))


def log_density(params, x):
    """Returns log p(x) + log Z at points (n, d) in float64, from the product of cosh."""
    inputs = x @ params.weights + params.hidden_bias
    quadratic = x @ params.visible_bias - np.sum(x**2, axis=1) / 2
    return quadratic + np.sum(np.log(2 * np.cosh(inputs)), axis=1)


def quadrature(params):
    """Returns log Z, the mean and the second moments of a machine in the plane."""
    axis = np.linspace(-_HALF_WIDTH, _HALF_WIDTH, _GRID)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    values = log_density(params, points)
    p = np.exp(values - values.max())
    log_z = math.log(p.sum() * (axis[1] - axis[0]) ** 2) + values.max()
    p /= p.sum()
    return log_z, p @ points, (points * p[:, None]).T @ points


def test_normaliser_and_mean_are_those_of_quadrature(rng):
    params = random_params(rng, 2, 3)
    log_z, mean, _ = quadrature(params)
    machine = boltzmann.gaussian_bernoulli_rbm(in_float32(params))
    np.testing.assert_allclose(machine.log_normalizer, log_z, rtol=1e-5)
    np.testing.assert_allclose(boltzmann.model_mean(in_float32(params)), mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_normaliser_is_that_of_enumeration_even_where_exp_overflows(rng, scale):
    params = random_params(rng, 5, 3)
    params = params._replace(weights=scale * params.weights)
    terms = []
    for state in itertools.product((-1, 1), repeat=3):
        shift = params.visible_bias + params.weights @ state
        terms.append(params.hidden_bias @ state + shift @ shift / 2)
    expected = 2.5 * math.log(2 * math.pi) + np.logaddexp.reduce(terms)
    machine = boltzmann.gaussian_bernoulli_rbm(in_float32(params))
    np.testing.assert_allclose(machine.log_normalizer, expected, rtol=3e-6)


def test_density_and_score_are_those_of_the_product(rng):
    params = random_params(rng, 4, 3)
    x = rng.normal(size=(6, 4))
    exact = in_float32(params)
    machine = boltzmann.gaussian_bernoulli_rbm(exact)
    got = jax.vmap(machine.log_density_fn)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, log_density(params, x), rtol=1e-5, atol=1e-5)
    steps = 1e-5 * np.eye(4)
    slopes = [(log_density(params, x + h) - log_density(params, x - h)) / 2e-5 for h in steps]
    score = boltzmann.score(exact, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(score, np.transpose(slopes), rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
def test_samples_have_the_moments_of_the_density(key, rng):
    params = random_params(rng, 2, 3)
    _, mean, second = quadrature(params)
    n = 20_000
    machine = boltzmann.gaussian_bernoulli_rbm(in_float32(params))
    x = np.asarray(machine.sample(key, n), np.float64)
    assert x.shape == (n, 2)
    for values, expected in (
        (x, mean),
        (x[:, :, None] * x[:, None, :], second),
    ):
        z = (values.mean(axis=0) - expected) / (values.std(axis=0) / math.sqrt(n))
        assert np.all(np.abs(z) < 5), z


def test_sample_means_are_the_samples_without_their_noise(key, rng):
    params = random_params(rng, 2, 2)
    means = np.asarray(boltzmann.sample_means(key, in_float32(params), 1000))
    states = np.array(list(itertools.product((-1, 1), repeat=2)))
    allowed = params.visible_bias + states @ params.weights.T
    gaps = np.abs(means[:, None] - allowed[None]).max(axis=2).min(axis=1)
    assert gaps.max() < 1e-5


def test_likelihood_without_hidden_units_is_that_of_a_gaussian(rng):
    mean, x = rng.normal(size=3), rng.normal(size=(7, 3))
    params = RBMParams(np.zeros((3, 0)), mean, np.zeros(0))
    expected = -1.5 * math.log(2 * math.pi) - np.mean(np.sum((x - mean) ** 2, axis=1)) / 2
    got = boltzmann.mean_log_likelihood(in_float32(params), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.thorough
def test_exact_samples_give_the_gradient_of_the_likelihood(key, rng):
    params = in_float32(random_params(rng, 4, 3))
    data = jnp.asarray(rng.normal(size=(9, 4)), jnp.float32)
    exact = jax.grad(boltzmann.mean_log_likelihood)(params, data)
    samples = boltzmann.gaussian_bernoulli_rbm(params).sample(key, 5_000)
    one = jax.vmap(
        jax.grad(lambda p, x: boltzmann.unnormalised_log_density(p, x[None])[0]), (None, 0)
    )
    positive, negative = one(params, data), one(params, samples)
    for name in RBMParams._fields:
        draws = np.asarray(getattr(negative, name), np.float64)
        estimate = np.asarray(getattr(positive, name)).mean(axis=0) - draws.mean(axis=0)
        z = (estimate - getattr(exact, name)) / (draws.std(axis=0) / math.sqrt(len(draws)))
        assert np.all(np.abs(z) < 5), (name, z)


def test_start_is_uniform_on_its_interval(key):
    start = boltzmann.initial_params(key, 784, 10)
    bound = 4 * math.sqrt(6 / 794)
    weights = np.asarray(start.weights)
    assert 0.99 * bound < weights.max() <= bound
    assert -bound <= weights.min() < -0.99 * bound
    assert not start.visible_bias.any()
    assert not start.hidden_bias.any()


def test_too_many_hidden_units_are_refused():
    params = RBMParams(jnp.zeros((2, 17)), jnp.zeros(2), jnp.zeros(17))
    with pytest.raises(ValueError, match=r"num_hidden: got 17; expected at most 16"):
        boltzmann.gaussian_bernoulli_rbm(params)
