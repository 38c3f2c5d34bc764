"""Figures of particles beside a chain's draws, by loops in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.judges import agreement
from experiments.judges.agreement import Reference
from experiments.targets.posteriors import LogisticPosterior
from kernelgrad import kernels

SQUARE = 1.7**2  # of the kernel's lengthscale


def reference_of(draws):
    """Returns a reference with a kernel of a known lengthscale."""
    moments = draws.mean(axis=0), np.cov(draws.T)
    arrays = (jnp.asarray(a, jnp.float32) for a in (draws, *moments))
    return Reference(*arrays, kernels.imq_mixture(SQUARE**0.5))


@pytest.fixture
def posterior(rng):
    """Twenty training and five test rows in three dimensions."""
    features = jnp.asarray(rng.normal(size=(25, 3)), jnp.float32)
    labels = jnp.asarray(rng.random(25) < 0.5, jnp.float32)
    return LogisticPosterior(features[:20], labels[:20], features[20:], labels[20:], 1.0)


def scores(posterior, x):
    """Returns grad log p at each of x in float64: X^T (y - sigmoid(X theta)) - theta."""
    features, labels = (np.asarray(a, np.float64) for a in (posterior.features, posterior.labels))
    return np.stack(
        [features.T @ (labels - 1 / (1 + np.exp(-features @ theta))) - theta for theta in x]
    )


def test_figures_are_those_of_the_loops(posterior, rng):
    draws = rng.normal(size=(60, 3)) @ rng.normal(size=(3, 3)) + 1
    x = rng.normal(size=(6, 3))
    measure = jax.jit(functools.partial(agreement.measure, posterior, reference_of(draws)))
    found = measure(jnp.asarray(x, jnp.float32))

    deviations = draws.std(axis=0, ddof=1)
    errors = (x.mean(axis=0) - draws.mean(axis=0)) / deviations
    cov = np.cov(draws.T)
    chances = np.array(
        [
            np.mean([1 / (1 + np.exp(-(2 * y - 1) * (row @ theta))) for theta in x])
            for row, y in zip(posterior.test_features, posterior.test_labels, strict=True)
        ]
    )
    expected = {
        "ksd": np.sqrt(ksd2(x, scores(posterior, x))),
        "test_accuracy": np.mean(chances > 0.5),
        "test_log_likelihood": np.mean(np.log(chances)),
        "mean_error": np.sqrt(np.mean(errors**2)),
        "variance_ratio": np.mean(x.var(axis=0, ddof=1) / deviations**2),
        "covariance_error": np.linalg.norm(np.cov(x.T) - cov) / np.linalg.norm(cov),
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        expected, rel=1e-3
    )


def ksd2(x, scores):
    """KSD^2, V-statistic, under the IMQ kernel (1 + r^2 / SQUARE)^(-1/2)."""
    n, d = x.shape
    total = 0.0
    for i in range(n):
        for j in range(n):
            difference = x[i] - x[j]
            u = difference @ difference / SQUARE
            value, slope = (1 + u) ** -0.5, -((1 + u) ** -1.5) / (2 * SQUARE)
            curvature = 0.75 * (1 + u) ** -2.5 / SQUARE**2
            total += value * scores[i] @ scores[j]
            total += 2 * slope * difference @ (scores[j] - scores[i])
            total -= 4 * curvature * difference @ difference + 2 * d * slope
    return total / n**2


def test_a_reference_holds_the_moments_of_all_draws_and_the_scale_of_some(rng, monkeypatch):
    of = []
    monkeypatch.setattr(kernels, "median_lengthscale", lambda x: of.append(x) or jnp.asarray(2.5))
    draws = rng.normal((3.0, -1.0), (1.0, 2.0), size=(5040, 2)).astype(np.float32)
    reference = agreement.make_reference(draws)
    np.testing.assert_array_equal(reference.draws, draws)
    np.testing.assert_allclose(reference.mean, draws.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(reference.covariance, np.cov(draws.T.astype(np.float64)), rtol=1e-5)
    np.testing.assert_array_equal(of, [draws[:5000]])
    assert reference.kernel.profile(jnp.asarray(2.5**2)) == pytest.approx(2**-0.5)


def test_the_discrepancy_of_draws_is_the_mean_of_that_of_subsets(key, posterior, monkeypatch):
    """Where all draws are one point, every subset is; the sum of one tells their number."""
    monkeypatch.setattr(agreement, "root_ksd", lambda posterior, reference, x: jnp.sum(x))
    reference = reference_of(np.tile([0.3, -0.2, 0.5], (9, 1)))
    found = agreement.ksd_of_draws(key, posterior, reference, 4)
    assert found == pytest.approx(4 * 0.6, rel=1e-5)


@pytest.mark.slow
def test_the_discrepancy_of_draws_falls_as_their_number_grows(key, rng):
    flat = LogisticPosterior(
        jnp.zeros((1, 3)), jnp.zeros(1), jnp.zeros((1, 3)), jnp.zeros(1), 1.0
    )  # a row of zeros says nothing: the posterior is the prior, N(0, I)
    reference = agreement.make_reference(rng.normal(size=(4000, 3)).astype(np.float32))
    few, many = (agreement.ksd_of_draws(key, flat, reference, n) for n in (30, 480))
    assert 2.8 < few / many < 5.6  # the square root of 16, ten subsets each
