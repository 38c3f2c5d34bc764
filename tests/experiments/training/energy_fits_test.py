"""Energies on a base: what fits reach, how chains move, what looks choose."""

import dataclasses
import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.networks.critics import MLPCritic
from experiments.run import fields
from experiments.run.errors import DivergenceError
from experiments.targets import gaussian_base
from experiments.targets.gaussian_base import WeightedDraws
from experiments.training import energy_fits
from experiments.training.energy_fits import RULES, Settings
from kernelgrad import kale
from tests.experiments.targets.gaussian_base_test import Tilt

SHORT = Settings(num_steps=60, eval_every=20, batch_size=16, num_base=64)


class Quadratic(nn.Module):
    """E(x) = x^T A x + b^T x: with the base N(0, I), all Gaussians."""

    @nn.compact
    def __call__(self, points, train):
        d = points.shape[1]
        a = self.param("a", nn.initializers.zeros, (d, d))
        b = self.param("b", nn.initializers.zeros, (d,))
        return jnp.einsum("ni,ij,nj->n", points, a, points) + points @ b


def base_draws(key, d):
    """Returns two thousand draws of the base itself."""
    return WeightedDraws(jax.random.normal(key, (2000, d)), jnp.zeros(2000))


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_reads_what_it_is_declared_to(key, rule):
    """The program of an update is another under another value of such a setting, else the same."""

    def program(settings):
        state = jax.eval_shape(lambda: energy_fits.init(key, Quadratic(), 1, settings))
        update = functools.partial(
            energy_fits.advance, network=Quadratic(), rule=rule, settings=settings
        )
        return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(update)(key, state, jnp.ones((9, 1)))))

    start = program(SHORT)
    for name, declared in fields.rules(Settings).items():
        if declared.of:
            changed = program(dataclasses.replace(SHORT, **{name: 3 * getattr(SHORT, name)}))
            assert (changed != start) == (rule in declared.of(name)), name


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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
