"""The logistic posterior: float64 loops, exact unbiasedness, its rows, and absent data."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.run.errors import DataError
from experiments.targets import posteriors
from experiments.targets.posteriors import LogisticPosterior

REAL_DATA = os.environ.get("KERNELGRAD_DATA_DIR")
HEADER = (
    "fixed acidity,volatile acidity,citric acid,residual sugar,chlorides,free sulfur dioxide,"
    "total sulfur dioxide,pH,sulphates,alcohol,quality"
)


def write_wines(folder, rng):
    """Writes a table of the right shape whose quality follows two of its features."""
    features = rng.normal(size=(1599, 10)) * np.arange(1, 11) + 5
    signal = (features[:, 0] - 5) + 0.1 * (features[:, 9] - 5) + rng.normal(size=1599)
    quality = np.clip(np.rint(5.5 + signal), 3, 8)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [",".join(f"{v:.6f}" for v in row) for row in np.column_stack([features, quality])]
    (folder / "winequality-red.csv").write_text("\n".join([HEADER, *rows]) + "\n")


@pytest.fixture
def posterior(rng):
    """Twelve training and five test rows in three dimensions."""
    features = rng.normal(size=(17, 3)).astype(np.float32)
    labels = (rng.random(17) < 0.5).astype(np.float32)
    train, test = np.split(jnp.asarray(features), [12])
    return LogisticPosterior(train, jnp.asarray(labels[:12]), test, jnp.asarray(labels[12:]), 2.5)


def log_density(posterior, theta):
    """The log posterior by loops in float64."""
    total = -2.5 / 2 * sum(float(t) ** 2 for t in theta)
    for x, y in zip(np.asarray(posterior.features, np.float64), posterior.labels, strict=True):
        p = 1 / (1 + np.exp(-x @ theta))
        total += np.log(p if y == 1 else 1 - p)
    return total


def test_log_density_and_score_are_those_of_the_loops(posterior, rng):
    theta = rng.normal(size=3)
    got = posterior.log_density(jnp.asarray(theta, jnp.float32))
    np.testing.assert_allclose(got, log_density(posterior, theta), rtol=1e-5)
    slopes = [
        (log_density(posterior, theta + h) - log_density(posterior, theta - h)) / 2e-5
        for h in 1e-5 * np.eye(3)
    ]
    score = posterior.score(jnp.asarray(theta[None], jnp.float32))
    np.testing.assert_allclose(score, [slopes], rtol=1e-4, atol=1e-5)


def test_log_density_survives_extreme_logits(posterior):
    theta = jnp.full(3, 1e4)
    value, gradient = jax.value_and_grad(posterior.log_density)(theta)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


def test_minibatches_average_to_the_full_density_and_score(posterior, rng):
    theta = jnp.asarray(rng.normal(size=3), jnp.float32)
    pairs = jnp.asarray([(i, j) for i in range(12) for j in range(12)])
    value_and_score = jax.value_and_grad(posterior.minibatch_log_density)
    values, scores = jax.vmap(value_and_score, (None, 0))(theta, pairs)
    assert np.std(values) > 0.1
    np.testing.assert_allclose(np.mean(values), posterior.log_density(theta), rtol=1e-5)
    np.testing.assert_allclose(
        np.mean(scores, axis=0), posterior.score(theta[None])[0], rtol=1e-4, atol=1e-5
    )


def test_prediction_averages_probabilities_not_logits(posterior):
    thetas = np.array([[8.0, 0, 0], [-1.0, 0.5, 0], [-1.0, 0, 2.0]])
    x, y = np.asarray(posterior.test_features, np.float64), np.asarray(posterior.test_labels)
    p = np.mean([1 / (1 + np.exp(-x @ theta)) for theta in thetas], axis=0)
    got = posterior.predictive(jnp.asarray(thetas, jnp.float32))
    np.testing.assert_allclose(got.accuracy, np.mean((p > 0.5) == (y == 1)))
    np.testing.assert_allclose(
        got.log_likelihood, np.mean(np.log(np.where(y == 1, p, 1 - p))), rtol=1e-5
    )


def test_red_wine_has_four_fifths_for_training_and_an_intercept(tmp_path, rng):
    write_wines(tmp_path / "uci", rng)
    wine = posteriors.red_wine(str(tmp_path))
    assert (wine.dimension, len(wine.labels), len(wine.test_labels)) == (11, 1281, 318)
    np.testing.assert_array_equal(wine.features[:, 0], 1)
    np.testing.assert_array_equal(wine.test_features[:, 0], 1)
    np.testing.assert_allclose(np.mean(wine.features[:, 1:], axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(wine.features[:, 1:], axis=0), 1, atol=1e-5)
    assert not np.isin(wine.test_features[:, 1], wine.features[:, 1]).any()
    assert wine.features.dtype == wine.labels.dtype == np.float32
    other = posteriors.red_wine(str(tmp_path), seed=1)
    assert np.any(other.features != wine.features)
    np.testing.assert_array_equal(posteriors.red_wine(str(tmp_path)).features, wine.features)


@pytest.mark.parametrize("given", [True, False])
def test_absent_table_is_named_with_its_source(tmp_path, given):
    with pytest.raises(DataError) as caught:
        posteriors.red_wine(str(tmp_path) if given else None)
    message = str(caught.value)
    assert "winequality-red.csv" in message
    assert "UCI data set Wine Quality" in message
    assert "\n" not in message
    assert ("--data_dir" in message) is not given


@pytest.mark.skipif(not REAL_DATA, reason="KERNELGRAD_DATA_DIR is not set: no real data sets here")
def test_real_wines_are_predicted_better_than_by_their_share():
    wine = posteriors.red_wine(REAL_DATA)
    theta = jnp.zeros(wine.dimension)
    for _ in range(20):  # Newton
        hessian = jax.hessian(wine.log_density)(theta)
        theta -= jnp.linalg.solve(hessian, jax.grad(wine.log_density)(theta))
    found = wine.predictive(theta[None])
    assert found.accuracy > 0.7
    assert found.log_likelihood > -0.6
