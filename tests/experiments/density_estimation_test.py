"""Density estimation: known likelihoods and normalisers, oracles of the errors, runs, bad input."""

import dataclasses
import json
import math
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments import density_estimation
from experiments.data import catalog
from experiments.data.dataset import Dataset
from experiments.density_estimation import Config
from experiments.networks.critics import MLPCritic
from experiments.reports import likelihoods
from experiments.run.errors import DivergenceError, StorageError, UsageError
from experiments.targets import gaussian_base
from experiments.targets.gaussian_base import WeightedDraws
from experiments.training import energy_fits
from experiments.training.energy_fits import RULES, Settings
from kernelgrad import kale
from kernelgrad.kale import NormalizerEstimate

TINY = Config(
    num_steps=20,
    eval_every=10,
    batch_size=32,
    num_base=64,
    datasets=("banana",),
    methods=("kale",),
    seeds=(0, 1),
    width=8,
    depth=1,
    num_normalizer_samples=10_000,
)
SHORT = Settings(num_steps=60, eval_every=20, batch_size=16, num_base=64)


class Quadratic(nn.Module):
    """E(x) = x^T A x + b^T x: with the base N(0, I), all Gaussians."""

    @nn.compact
    def __call__(self, points, train):
        d = points.shape[1]
        a = self.param("a", nn.initializers.zeros, (d, d))
        b = self.param("b", nn.initializers.zeros, (d,))
        return jnp.einsum("ni,ij,nj->n", points, a, points) + points @ b


class Tilt(nn.Module):
    """E(x) = -s x_1, with the base's normaliser s^2 / 2."""

    slope: float

    @nn.compact
    def __call__(self, points, train):
        return -self.slope * points[:, 0]


def base_draws(key, d):
    """Returns two thousand draws of the base itself."""
    return WeightedDraws(jax.random.normal(key, (2000, d)), jnp.zeros(2000))


@pytest.fixture
def small_sets(monkeypatch):
    """Lets every data set be six hundred points of its seed, on a bent line."""

    def load(name, data_dir=None, *, seed):
        x = np.random.default_rng(seed).normal(size=(600, 2)).astype(np.float32)
        x[:, 1] = (x[:, 0] ** 2 - 1) / 2 + 0.3 * x[:, 1]
        return Dataset(name, x[:500], x[500:], None, None, 0)

    monkeypatch.setattr(catalog, "load", load)
    monkeypatch.setattr(density_estimation, "_DRAWS_OF_A_LOOK", 5000)


# ------------------------------------------------------------------------------ base and columns


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


# --------------------------------------------------------------------------------- the normaliser


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


@pytest.mark.parametrize("slope", [1.0, 6.0])
def test_defensive_draws_find_mass_that_draws_of_the_base_miss(key, slope):
    n = 20_000
    row_key, draw_key, base_key = jax.random.split(key, 3)
    rows = jax.random.normal(row_key, (500, 2)) + slope * jnp.array([1.0, 0.0])
    network = Tilt(slope)
    draws = gaussian_base.defensive_draws(draw_key, rows, n)
    found = energy_fits.normalizer(network, {}, draws)
    assert abs(found.value - slope**2 / 2) < 5 * found.standard_error
    assert found.effective_sample_size > n / 10
    plain = WeightedDraws(jax.random.normal(base_key, (n, 2)), jnp.zeros(n))
    blind = energy_fits.normalizer(network, {}, plain)
    assert (blind.value < slope**2 / 2 - 2) == (slope == 6.0)


# -------------------------------------------------------------------------------------- the fits


@pytest.mark.parametrize(
    "rule",
    [pytest.param(r, marks=() if r == "kale" else pytest.mark.slow) for r in RULES],
)
def test_quadratic_energies_reach_the_likelihood_of_the_true_gaussian(key, rng, rule):
    """G24: the gain tends to KL[P || G]; 4000 rows leave k / 2n = 0.0006 nats to estimation."""
    mean, factor = np.array([0.5, -0.4]), np.array([[0.8, 0.0], [0.3, 0.6]])
    rows = jnp.asarray(mean + rng.normal(size=(9000, 2)) @ factor.T, jnp.float32)
    train, valid, test = jnp.split(rows, [4000, 5000])
    settings = Settings(
        num_steps=300,
        eval_every=50,
        num_base=1024,
        learning_rate=0.03,
        penalty=0.0,
        num_chain_steps=5,
        chain_step_size=0.1,
    )
    draw_key, test_key, fit_key = jax.random.split(key, 3)
    draws = gaussian_base.defensive_draws(draw_key, train[:500], 20_000)
    fit = energy_fits.fit(
        fit_key, Quadratic(), rule, train, valid, draws, draws, settings, lambda look: None
    )
    c = energy_fits.normalizer(
        Quadratic(), fit.params, gaussian_base.defensive_draws(test_key, train[:500], 20_000)
    )
    energy = energy_fits.energies(Quadratic(), fit.params, test)
    found = gaussian_base.likelihood(energy, test, 0.0, c)

    covariance = factor @ factor.T
    truth = stats.multivariate_normal(mean, covariance).logpdf(np.asarray(test))
    divergence = (np.trace(covariance) + mean @ mean - 2 - np.linalg.slogdet(covariance)[1]) / 2
    assert abs(found.gain - divergence) < 5 * found.gain_error + 0.01
    model = np.asarray(gaussian_base.standard_normal(test) - energy - c.value)
    differences = model - truth
    error = math.hypot(differences.std(ddof=1) / math.sqrt(len(test)), c.standard_error)
    assert -0.02 - 5 * error < differences.mean() < 5 * error
    assert fit.best == max(fit.looks, key=lambda look: look.gain)
    assert fit.looks[0].step == 0
    assert abs(fit.looks[0].gain) < 0.05  # E = 0


@pytest.mark.slow
def test_the_penalty_flattens_the_energy(key, rng):
    rows = jnp.asarray(1 + 0.3 * rng.normal(size=(500, 1)), jnp.float32)
    draws = base_draws(key, 1)
    slopes = []
    for penalty in (0.0, 1.0):
        settings = Settings(num_steps=100, eval_every=100, learning_rate=0.03, penalty=penalty)
        fit = energy_fits.fit(
            key, Quadratic(), "dv", rows, rows, draws, draws, settings, lambda look: None
        )
        slopes.append(float(jnp.abs(fit.params["params"]["b"][0])))
    assert slopes[1] < slopes[0] / 3


def test_chains_leave_the_model_invariant_and_pcd_alone_keeps_them(key):
    settings = Settings(num_chain_steps=20, chain_step_size=0.05)
    start_key, run_key = jax.random.split(key)
    starts = 0.5 + 0.5 * jax.random.normal(start_key, (4000, 1))
    state = energy_fits.init(key, Quadratic(), 1, settings)._replace(chains=starts)
    batch = energy_fits.Batch(run_key, jnp.full((8, 1), 3.0), starts)

    def energy_fn(points):  # with the base: N(1/2, 1/4)
        return 1.5 * jnp.square(points[:, 0]) - 2 * points[:, 0]

    (_, _, ends), (_, _, kept) = (
        jax.jit(RULES[rule], static_argnums=(0, 3))(energy_fn, batch, state, settings)
        for rule in ("pcd", "cd")
    )
    np.testing.assert_array_equal(kept, starts)
    for power, expected, deviation in ((1, 0.0, 1.0), (2, 1.0, math.sqrt(2))):
        z = (np.mean((2 * ends - 1) ** power) - expected) / deviation * math.sqrt(4000)
        assert abs(z) < 5
    assert np.corrcoef(starts[:, 0], ends[:, 0])[0, 1] < 0.5


def test_looks_on_few_effective_draws_choose_nothing(key, monkeypatch):
    """The last look is the likeliest, then the one before it."""
    rows = jax.random.normal(key, (50, 1)) + 1
    draws, more_draws = base_draws(key, 1), base_draws(key, 1)
    estimate = energy_fits.normalizer
    arguments = (key, Quadratic(), "kale", rows, rows, draws, more_draws, SHORT, lambda look: None)

    def fit(sizes, more_sizes):
        left, more_left = iter(sizes), iter(more_sizes)

        def normalizer(network, params, of):
            found = estimate(network, params, of)
            size = next(left if of is draws else more_left)
            return found._replace(effective_sample_size=jnp.asarray(size))

        monkeypatch.setattr(energy_fits, "normalizer", normalizer)
        return energy_fits.fit(*arguments)

    whole = fit([500.0] * 4, [500.0])
    assert [look.step for look in whole.looks] == [0, 20, 40, 60]
    gains = [look.gain for look in whole.looks]
    assert gains == sorted(gains)
    assert whole.best == whole.looks[3]
    assert fit([500.0, 500.0, 500.0, 29.0], [500.0]).best.step == 40
    found = fit([500.0] * 4, [29.0, 29.0, 30.0])
    assert found.best.step == 20
    mean = -jnp.mean(energy_fits.energies(Quadratic(), found.params, rows))
    c = estimate(Quadratic(), found.params, draws).value
    np.testing.assert_allclose(mean - c, found.best.gain, rtol=1e-5)
    with pytest.raises(DivergenceError, match="kale: got no normaliser of 30 effective draws"):
        fit([500.0] * 4, [29.0] * 4)


def test_a_likelihood_that_is_not_finite_ends_the_fit(key):
    valid, draws = jnp.ones((50, 1)), base_draws(key, 1)
    arguments = (
        key,
        Quadratic(),
        "kale",
        valid * jnp.nan,
        valid,
        draws,
        draws,
        SHORT,
        lambda look: None,
    )
    with pytest.raises(DivergenceError, match="kale, step 20: the likelihood is not finite"):
        energy_fits.fit(*arguments)


# -------------------------------------------------------------------------------------- the runs


def test_a_run_leaves_its_files_and_does_no_fit_twice(tmp_path, small_sets, monkeypatch, capsys):
    before = energy_fits.advance._cache_size()
    results = density_estimation.run(TINY, workdir=str(tmp_path))
    assert energy_fits.advance._cache_size() == before + 1  # for both seeds
    for name in ("config.json", "curves.png", "banana.png"):
        assert (tmp_path / name).stat().st_size > 0
    assert json.loads((tmp_path / "results.json").read_text()) == results
    table = (tmp_path / "density_estimation.md").read_text()
    assert "banana: dimension 2; 450 training, 50 validation and 100 test rows, 100%" in table
    assert table in capsys.readouterr().out
    of_method = results["banana"]
    assert list(of_method) == ["gaussian", "kernel mixture", "kale"]
    for method, (first, second) in of_method.items():
        assert first["test"]["value"] != second["test"]["value"]
        values = [first["test"]["value"], second["test"]["value"]]
        spread = f"{np.mean(values):.3f} ± {abs(values[0] - values[1]) / math.sqrt(2):.3f}"
        (line,) = (line for line in table.splitlines() if f"banana, {method} " in line)
        assert line.split("|")[2].strip() == spread
        gain = first["test"]["value"] - of_method["gaussian"][0]["test"]["value"]
        np.testing.assert_allclose(first["test"]["gain"], gain, atol=1e-5)

    one = dataclasses.replace(TINY, seeds=(1,))
    alone = density_estimation.run(one, workdir=str(tmp_path / "alone"))
    assert alone["banana"]["kale"] == of_method["kale"][1:]

    def forbidden(*_):
        raise AssertionError("fitted again")

    monkeypatch.setattr(energy_fits, "fit", forbidden)
    (tmp_path / "fits/banana_seed1_kale.json").write_text("{")
    with pytest.raises(StorageError, match=r"banana_seed1_kale.json: got .*; expected JSON"):
        density_estimation.run(TINY, workdir=str(tmp_path))


def test_densities_in_the_plane_integrate_to_one(key, rng):
    x, y = rng.normal(size=(2, 3000))
    points = np.stack([3 * x, x**2 / 2 + 0.3 * y], axis=1)
    split = gaussian_base.whitened_split(*np.split(points, [500, 2500]))
    network, draws = MLPCritic(32, 1), gaussian_base.defensive_draws(key, split.train, 20_000)
    params = jax.tree.map(lambda leaf: 2 * leaf, network.init(key, split.train, False))
    c = energy_fits.normalizer(network, params, draws)
    assert abs(c.value) > 20 * c.standard_error
    side = np.linspace(-20, 20, 300)
    grid = np.stack(np.meshgrid(side, side / 2), axis=-1).reshape(-1, 2)
    white = jnp.asarray(split.base.whiten(grid))
    energy = energy_fits.energies(network, params, white)
    mixture = gaussian_base.defensive_log_weights(white, split.train)
    base = gaussian_base.standard_normal(white) - split.base.log_volume
    cell = (side[1] - side[0]) ** 2 / 2
    model = kale.log_density(energy, base, c.value)
    assert abs(np.sum(np.exp(model)) * cell - 1) < 5 * c.standard_error
    np.testing.assert_allclose(np.sum(np.exp(base - mixture)) * cell, 1, atol=1e-3)


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


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datasets": ("digits",)}, "datasets: got 'digits'; expected distinct ones of swiss_roll"),
        ({"datasets": ()}, "datasets: got \[\]; expected distinct ones of"),
        ({"methods": ("kale", "ml")}, "methods: got 'ml'; expected distinct ones of kale, "),
        ({"methods": ("dv", "dv")}, "methods: got \['dv', 'dv'\]; expected distinct ones"),
        ({"seeds": (-1,)}, r"seeds: got -1; expected distinct integers in"),
        ({"seeds": (1, 1)}, r"seeds: got \[1, 1\]; expected distinct integers in"),
        ({"num_steps": 0}, "num_steps: got 0; expected an integer in"),
        ({"num_steps": 25}, "num_steps: got 25; expected a multiple of eval_every, 10"),
        ({"num_base": 31}, "num_base: got 31; expected at least batch_size, 32"),
        ({"num_normalizer_samples": 10}, "num_normalizer_samples: got 10; expected an integer in"),
        ({"learning_rate": 0.0}, "learning_rate: got 0.0; expected a number in"),
        ({"chain_step_size": math.nan}, "chain_step_size: got nan; expected a number in"),
        ({"penalty": -1.0}, "penalty: got -1.0; expected a number in"),
        ({"normalizer_rate": 1.5}, r"normalizer_rate: got 1.5; expected a number in"),
    ],
)
def test_bad_settings_are_named(tmp_path, change, message):
    config = dataclasses.replace(TINY, **change)
    with pytest.raises(UsageError, match=message):
        density_estimation.run(config, workdir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_binary_names_the_absent_table(tmp_path):
    command = [sys.executable, "-m", "experiments.density_estimation", f"--workdir={tmp_path}/run"]
    done = subprocess.run(
        [*command, f"--data_dir={tmp_path}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("kernelgrad: error: red_wine: ")
    assert "winequality-red.csv" in line
