"""Records and table of density_estimation."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.reports import likelihoods
from experiments.targets import gaussian_base
from kernelgrad.kale import NormalizerEstimate


def test_records_keep_the_grid_of_the_log_density(rng):
    points = rng.normal(size=(600, 2)) * np.array([3.0, 0.5]) + np.array([10.0, -4.0])
    split = gaussian_base.whitened_split(*np.split(points, [400, 500]))
    c = NormalizerEstimate(jnp.asarray(0.5), jnp.zeros(()), jnp.asarray(9.0))
    found = likelihoods.record(split, lambda x: x[:, 0], c)
    grid = np.reshape(found["log_density"], (100, 100))
    test = points[500:]
    low, high = test.min(axis=0), test.max(axis=0)
    sides = np.linspace(low - 0.15 * (high - low), high + 0.15 * (high - low), 100)
    x = np.array([sides[80, 0], sides[10, 1]])  # column 80, row 10
    train = points[:400]
    density = stats.multivariate_normal(train.mean(axis=0), np.cov(train.T, bias=True))
    energy = (x - train.mean(axis=0))[0] / train[:, 0].std()
    np.testing.assert_allclose(grid[10, 80], density.logpdf(x) - energy - 0.5, atol=2e-3)


@pytest.mark.parametrize(("fewest", "cell"), [(30.0, "30"), (29.0, "29: not to trust")])
def test_the_table_tells_which_normalizer_not_to_trust(fewest, cell):
    figures = {"value": -3.0, "standard_error": 0.1, "gain": 1.0, "gain_error": 0.1}
    records = [
        {
            "test": {**figures, "effective_draws": draws},
            "new_rows": figures,
            "best": {"step": 10},
        }
        for draws in (500.0, fewest)
    ]
    table = likelihoods.summary({}, {"ring": {"kale": records}})
    row = table.splitlines()[2].split("|")
    assert row[7].strip() == cell


def test_rows_that_also_train_are_told_from_new_ones(rng):
    train = rng.normal(size=(100, 3)).astype(np.float32)
    test = np.concatenate([train[:20], rng.normal(size=(30, 3)).astype(np.float32)])
    split = gaussian_base.whitened_split(train, test, test)
    assert split.is_new.tolist() == [False] * 20 + [True] * 30
    exact = NormalizerEstimate(jnp.zeros(()), jnp.zeros(()), jnp.asarray(jnp.inf))
    found = likelihoods.record(split, lambda x: x[:, 0], exact)
    for kind, rows in (("test", split.test), ("new_rows", split.test[20:])):
        np.testing.assert_allclose(found[kind]["gain"], -np.mean(rows[:, 0]), atol=1e-6)
    assert found["test"]["effective_draws"] is None
    assert "log_density" not in found
