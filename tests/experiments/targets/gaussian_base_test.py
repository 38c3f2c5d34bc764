"""The Gaussian base: columns, likelihoods, errors and weights."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments.targets import gaussian_base
from kernelgrad.kale import NormalizerEstimate


class Tilt(nn.Module):
    """E(x) = -s x_1, with the base's normaliser s^2 / 2."""

    slope: float

    @nn.compact
    def __call__(self, points, train):
        return -self.slope * points[:, 0]


def test_columns_that_repeat_an_earlier_one_in_any_table_are_dropped(rng):
    first, second = rng.normal(size=(2, 500, 5))
    for table in (first, second):
        table[:, 2] = -3 * table[:, 0] + 1e-3 * table[:, 2]
        table[:, 3] = table[:, 1] + 0.5 * table[:, 3]  # correlation 0.89: kept
    assert gaussian_base.distinct_columns([first, second]) == [0, 1, 3, 4]
    second[:, 4] = second[:, 1] + 1e-3 * second[:, 4]
    assert gaussian_base.distinct_columns([first]) == [0, 1, 3, 4]
    assert gaussian_base.distinct_columns([first, second]) == [0, 1, 3]


def test_likelihood_of_the_base_is_that_of_the_fitted_gaussian(rng):
    mix = rng.normal(size=(3, 3))
    train, test = 50 + rng.normal(size=(400, 3)) @ mix, 50 + rng.normal(size=(90, 3)) @ mix
    split = gaussian_base.whitened_split(train, test, test)
    np.testing.assert_allclose(np.cov(split.train.T, bias=True), np.eye(3), atol=1e-5)
    exact = NormalizerEstimate(jnp.zeros(()), jnp.zeros(()), jnp.asarray(jnp.inf))
    found = gaussian_base.likelihood(jnp.zeros(90), split.test, split.base.log_volume, exact)
    density = stats.multivariate_normal(train.mean(axis=0), np.cov(train.T, bias=True))
    terms = density.logpdf(test)
    np.testing.assert_allclose(found.value, terms.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.standard_error, terms.std(ddof=1) / math.sqrt(90), rtol=1e-4)
    assert found.gain == found.gain_error == 0


def test_errors_of_rows_and_normalizer_add_in_squares(rng):
    x, energy = rng.normal(size=(7, 2)), rng.normal(size=7)
    c = NormalizerEstimate(jnp.asarray(0.7), jnp.asarray(0.2), jnp.asarray(40.0))
    found = gaussian_base.likelihood(jnp.asarray(energy), jnp.asarray(x), 1.5, c)
    values, gains = [], []
    for e, row in zip(energy, x, strict=True):
        gains.append(-e - 0.7)
        values.append(gains[-1] - row @ row / 2 - math.log(2 * math.pi) - 1.5)
    for mean, error, terms in (
        (found.value, found.standard_error, values),
        (found.gain, found.gain_error, gains),
    ):
        average = sum(terms) / 7
        variance = sum((term - average) ** 2 for term in terms) / 6
        np.testing.assert_allclose(mean, average, rtol=1e-5)
        np.testing.assert_allclose(error, math.sqrt(variance / 7 + 0.04), rtol=1e-5)
    assert found.effective_draws == 40


def test_weights_of_the_draws_are_those_of_the_loops(rng):
    rows, points = rng.normal(size=(6, 2)), 2 * rng.normal(size=(5, 2))
    found = gaussian_base.defensive_log_weights(
        jnp.asarray(points, jnp.float32), jnp.asarray(rows, jnp.float32)
    )
    for x, log_weight in zip(points, found, strict=True):
        base = math.exp(-x @ x / 2) / (2 * math.pi)
        blurred = 0.0
        for row in rows:
            for scale in (0.25, 0.5, 1.0):
                peak = 1 / (2 * math.pi * scale**2) / 18
                blurred += peak * math.exp(-(x - row) @ (x - row) / (2 * scale**2))
        np.testing.assert_allclose(log_weight, math.log(2 * base / (base + blurred)), atol=2e-5)
