"""Latent posteriors: their closed form for linear generators, recovered by every sampler."""

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.stats

from kernelgrad import hmc, langevin, latent

CHAINS = 20_000
LATENTS = 2
MATRIX = np.array([[1.0, 0.5], [-0.3, 0.8], [0.6, -0.2]])  # the generator, (3, 2)
CURVATURE = np.array([[1.5, 0.3, 0.0], [0.3, 0.8, -0.2], [0.0, -0.2, 0.6]])
TILT = np.array([0.9, -0.4, 0.5])
BETA = 2.0
SAMPLERS = {
    "hmc": functools.partial(hmc.step, step_size=0.5, num_leapfrog_steps=2),
    "mala": functools.partial(langevin.mala_step, step_size=0.25),
    "ula": functools.partial(langevin.ula_step, step_size=0.2),
    "underdamped": functools.partial(langevin.underdamped_step, step_size=0.7, friction=1.5),
}


class _Posterior(NamedTuple):
    mean: np.ndarray
    covariance: np.ndarray
    log_normalizer: float


def _posterior(beta):
    """Golden G25: z ~ N(beta S A^T w, S), S = (I + beta A^T B A)^-1, and its constant."""
    covariance = np.linalg.inv(np.eye(LATENTS) + beta * MATRIX.T @ CURVATURE @ MATRIX)
    mean = beta * covariance @ MATRIX.T @ TILT
    constant = np.linalg.slogdet(covariance)[1] / 2
    return _Posterior(mean, covariance, constant + beta * TILT @ MATRIX @ mean / 2)


def _generator(latents):
    return latents @ jnp.asarray(MATRIX.T, latents.dtype)


def _energy(samples):
    curved = samples @ jnp.asarray(CURVATURE, samples.dtype)
    return jnp.sum(samples * curved, axis=1) / 2 - samples @ jnp.asarray(TILT, samples.dtype)


def _init(name, key, position, density):
    if name == "underdamped":
        return langevin.underdamped_init(key, position, density)
    return (hmc if name == "hmc" else langevin).init(position, density)


@functools.partial(jax.jit, static_argnames=("name", "density", "num_steps"))
def _run(key, start, name, density, num_steps):
    """Moves all chains; returns their last positions and the infos of all steps."""
    keys = jax.random.split(key, (num_steps + 1, len(start)))

    def move(states, keys):
        return jax.vmap(lambda k, s: SAMPLERS[name](k, s, density))(keys, states)

    states = jax.vmap(lambda k, z: _init(name, k, z, density))(keys[0], start)
    states, infos = jax.lax.scan(move, states, keys[1:])
    return states.position, infos


def _normal(rng, size=CHAINS):
    return jnp.asarray(rng.normal(size=(size, LATENTS)), jnp.float32)


# ------------------------------------------------------------------- golden G25, linear generators


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_density_is_the_posterior_times_its_normaliser(rng, beta):
    points = rng.normal(0, 2, size=(6, LATENTS))
    law = _posterior(beta)
    with jax.enable_x64(True):
        density = latent.latent_log_density(_generator, _energy, inverse_temperature=beta)
        values, scores = jax.jit(jax.vmap(jax.value_and_grad(density)))(jnp.asarray(points))
    exact = scipy.stats.multivariate_normal(law.mean, law.covariance).logpdf(points)
    np.testing.assert_allclose(values, exact + law.log_normalizer, rtol=1e-12)
    expected = np.linalg.solve(law.covariance, (law.mean - points).T).T
    np.testing.assert_allclose(scores, expected, rtol=1e-11)


_linear_density = latent.latent_log_density(_generator, _energy, inverse_temperature=BETA)


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "num_steps"), [("hmc", 40), ("mala", 50), ("underdamped", 30)])
def test_samplers_go_from_the_prior_to_the_posterior(key, rng, name, num_steps):
    law = _posterior(BETA)
    z, infos = _run(key, _normal(rng), name, _linear_density, num_steps)
    if name != "underdamped":
        assert 0.6 < infos.acceptance_probability[-1].mean() < 0.97
    assert np.abs(oracles.moments_z(np.asarray(z) - law.mean, law.covariance)).max() < 5
    assert np.abs(oracles.moments_z(z, np.eye(LATENTS))).max() > 30


@pytest.mark.thorough
def test_ula_comes_within_its_bias(key, rng):
    """Its law is N(mean, S (I - h S^-1 / 2)^-1): that, and not the posterior."""
    law, step_size = _posterior(BETA), SAMPLERS["ula"].keywords["step_size"]
    shrink = np.eye(LATENTS) - step_size * np.linalg.inv(law.covariance) / 2
    biased = law.covariance @ np.linalg.inv(shrink)
    z, infos = _run(key, _normal(rng), "ula", _linear_density, 80)
    assert np.all(infos.finite)
    centred = np.asarray(z) - law.mean
    assert np.abs(oracles.moments_z(centred, biased)).max() < 5
    assert np.abs(oracles.moments_z(centred, law.covariance)).max() > 8


@pytest.mark.thorough
def test_samples_are_the_generators_weighted_by_the_energy(key, rng):
    """At the model's temperature: means over G(z) against importance weights on the prior."""
    density = latent.latent_log_density(_generator, _energy)
    z, _ = _run(key, _normal(rng), "hmc", density, 40)
    model, base = _generator(z), _generator(_normal(rng))
    weights = np.exp(-np.asarray(_energy(base), np.float64))
    weights *= len(weights) / weights.sum()
    for feature in (lambda x: x, jnp.square):
        chains, draws = (np.asarray(feature(x), np.float64) for x in (model, base))
        weighted = weights @ draws / CHAINS
        spread = np.var(weights[:, None] * (draws - weighted), axis=0) + np.var(chains, axis=0)
        assert np.abs((chains.mean(0) - weighted) / np.sqrt(spread / CHAINS)).max() < 5


# -------------------------------------------------------------------------------- other latents


def test_uniform_latents_are_uniform(rng):
    z = rng.normal(size=20_000)
    u = np.asarray(latent.uniform_latents(jnp.asarray(z, jnp.float32)))
    np.testing.assert_allclose(u, 2 * scipy.stats.norm.cdf(z) - 1, atol=1e-6)
    assert scipy.stats.kstest(u, "uniform", (-1, 2)).pvalue > 1e-6


def _slope_energy(samples):
    return -1.5 * jnp.sum(samples, axis=1)


@pytest.mark.slow
def test_hmc_on_a_box_sees_no_walls(key, rng):
    """Each u has the density exp(1.5 u) on [-1, 1]."""
    density = latent.latent_log_density(latent.uniform_latents, _slope_energy)
    z, infos = _run(key, _normal(rng), "hmc", density, 40)
    assert not np.any(infos.diverged)
    u = np.asarray(latent.uniform_latents(z), np.float64)
    law = scipy.stats.truncexpon(3.0, loc=-1, scale=1 / 1.5)  # of -u
    for coordinate in u.T:
        assert scipy.stats.kstest(-coordinate, law.cdf).pvalue > 1e-6


# ---------------------------------------------------------------------- transforms, dtypes, errors


def test_images_and_networks_of_batches_fit(rng):
    """A generator of images and an energy with a hidden layer: the sum over one batch of one."""
    inner, outer = rng.normal(size=(LATENTS, 12)), rng.normal(size=(12,))

    def images(latents):
        return jnp.tanh(latents @ jnp.asarray(inner, latents.dtype)).reshape(-1, 2, 2, 3)

    def energy(samples):
        flat = samples.reshape(samples.shape[0], -1)
        return jnp.square(flat @ jnp.asarray(outer, samples.dtype))

    density = latent.latent_log_density(images, energy, inverse_temperature=0.3)
    latents = _normal(rng, 4)
    together = jax.jit(jax.vmap(density))(latents)
    for z, got in zip(np.asarray(latents, np.float64), together, strict=True):
        expected = scipy.stats.norm.logpdf(z).sum() - 0.3 * (np.tanh(z @ inner) @ outer) ** 2
        np.testing.assert_allclose(got, expected, rtol=1e-5)
        np.testing.assert_allclose(density(jnp.asarray(z, jnp.float32)), got, rtol=1e-5)


def test_inverse_temperature_may_be_traced(rng):
    (z,) = _normal(rng, 1)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def value(beta):
        return latent.latent_log_density(_generator, _energy, inverse_temperature=beta)(z)

    prior = scipy.stats.norm.logpdf(z).sum()
    for beta in (0.5, 100.0):
        np.testing.assert_allclose(
            value(beta), prior - beta * _energy(_generator(z[None]))[0], rtol=1e-5
        )


def test_devices_see_latents_of_their_own(rng):
    latents = _normal(rng, 6)
    both = jax.vmap(jax.value_and_grad(_linear_density))
    spread = jax.pmap(both)(latents.reshape(2, 3, LATENTS))
    expected = jax.jit(both)(latents)
    chex.assert_trees_all_close(jax.tree.map(jnp.concatenate, spread), expected, rtol=1e-6)


def test_energies_of_another_dtype_leave_that_of_the_latents():
    def half_energy(samples):
        return _energy(samples).astype(jnp.bfloat16)

    density = latent.latent_log_density(_generator, half_energy)
    value, score = jax.jit(jax.value_and_grad(density))(jnp.ones(LATENTS))
    assert value.dtype == score.dtype == jnp.float32
    exact = jax.jit(latent.latent_log_density(_generator, _energy))(jnp.ones(LATENTS))
    assert abs(value - exact) < 0.01 * abs(exact)


@pytest.mark.thorough
def test_densities_of_low_precision_latents_are_summed_in_float32():
    density = latent.latent_log_density(lambda z: z, lambda x: jnp.sum(x, axis=1))
    value, score = jax.value_and_grad(density)(jnp.full(300, 16, jnp.float16))
    assert (value.dtype, score.dtype) == (jnp.float32, jnp.float16)
    expected = -300 * (16**2 + math.log(2 * math.pi)) / 2 - 300 * 16
    np.testing.assert_allclose(value, expected, rtol=1e-5)


# ---------------------------------------------------------------------------- choosing among draws


def _chosen(key, choose, num_draws):
    """The first choice of each of many lots of draws of N(0, 1), under the energy (x - 1)^2 / 2."""

    def one(key):
        draw_key, choice_key = jax.random.split(key)
        draws = jax.random.normal(draw_key, (num_draws,))
        return draws[choose(choice_key, jnp.square(draws - 1) / 2)]

    return jax.jit(jax.vmap(one))(jax.random.split(key, 4000))


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_what_is_chosen_follows_the_model(key, beta):
    """N(0, 1) under that energy is N(beta / (1 + beta), 1 / (1 + beta)); a few of 200 are kept."""
    mean, variance = beta / (1 + beta), 1 / (1 + beta)
    for choose in (
        lambda k, e: latent.reject(k, e, num_kept=5, inverse_temperature=beta).indices[-1],
        lambda k, e: latent.resample(k, e, num_draws=1, inverse_temperature=beta)[0],
    ):
        found = np.asarray(_chosen(key, choose, 200), np.float64)
        z = (found.mean() - mean) / math.sqrt(variance / len(found))
        spread = (found.var() / variance - 1) / math.sqrt(2 / len(found))
        assert max(abs(z), abs(spread)) < 5


def test_rejection_keeps_each_draw_as_often_as_its_weight_over_the_bound_says(key):
    """Under a bound that is known: the least kept ratio, found anew from the same uniforms."""
    energy = jnp.log(jnp.array([1.0, 2.0, 4.0, 8.0, 1e3, jnp.inf, jnp.nan]))
    kept = jax.vmap(lambda k: latent.reject(k, energy, num_kept=4))(jax.random.split(key, 2000))
    assert not np.isin(kept.indices, [5, 6]).any()
    assert all(len(set(row)) == 4 for row in np.asarray(kept.indices).tolist())
    inverse = 1 / np.array([1.0, 2.0, 4.0, 8.0, 1e3])
    left_out = 10 - np.asarray(kept.indices).sum(axis=1)  # of 0, ..., 4
    exact = _left_out(inverse)
    shares = np.bincount(left_out, minlength=5) / 2000
    assert (np.abs(shares - exact) < 5 * np.sqrt(exact * (1 - exact) / 2000) + 1e-3).all()


def _left_out(weights):
    """The chance of each to have the least of w / u, u uniform: by a fine grid of the least."""
    edges = np.geomspace(weights.min(), 1e6, 200_001)  # w / u has the density w / x^2 above w
    x = np.sqrt(edges[:-1] * edges[1:])
    above = np.minimum(1, weights[:, None] / x)  # P(ratio > x)
    density = np.where(x >= weights[:, None], weights[:, None] / x**2, 0) * np.diff(edges)
    others = np.stack([np.delete(above, i, 0).prod(axis=0) for i in range(len(weights))])
    return (density * others).sum(axis=1)


@pytest.mark.thorough
def test_of_millions_of_equal_draws_all_are_chosen_alike(key):
    """The sum over all of them, and a uniform of 23 bits, know no single one."""
    indices = jax.jit(lambda k: latent.resample(k, jnp.zeros(2**24), num_draws=4096))(key)
    bits = np.asarray(indices)[:, None] >> np.arange(24) & 1
    assert np.all(np.abs(bits.mean(axis=0) - 0.5) < 5 * 0.5 / 64)
    kept = np.asarray(latent.reject(key, jnp.zeros(2**22), num_kept=1000).indices)
    assert abs(np.mean(np.diff(kept) > 0) - 0.5) < 0.08  # of ties the first comes first


def test_a_share_of_one_in_ten_millions_keeps_its_digits(key):
    """Draws of small weights within one of weight 1, and one of none."""
    energy = jnp.full(1000, np.log(1e7), jnp.float32).at[500].set(0).at[7].set(jnp.inf)
    indices = np.asarray(latent.resample(key, energy, num_draws=2**18))
    others = indices[indices != 500]
    expected = 2**18 * 998e-7
    assert abs(len(others) - expected) < 5 * np.sqrt(expected)
    assert not np.any(others == 7)
    assert np.all((indices >= 0) & (indices < 1000))


def test_rejection_says_how_many_weights_the_bound_cuts(key):
    few = jnp.concatenate([jnp.full(2, -20.0), jnp.zeros(98)])
    cut = latent.reject(key, few, num_kept=10)
    assert cut.num_capped == 2
    assert set(np.asarray(cut.indices[:2]).tolist()) == {0, 1}
    assert latent.reject(key, jnp.zeros(100), num_kept=10).num_capped == 0


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_temperature_is_named(bad):
    with pytest.raises(
        ValueError, match=r"^inverse_temperature: got .*; expected .* \(0, infinity"
    ):
        latent.latent_log_density(_generator, _energy, inverse_temperature=bad)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _linear_density(jnp.zeros((3, LATENTS))), r"^latent: got shape \(3, 2\)"),
        (lambda: _linear_density(jnp.zeros(LATENTS, int)), r"^latent: got dtype int32"),
        (
            lambda: latent.latent_log_density(_generator, jnp.sum)(jnp.zeros(LATENTS)),
            r"^energy_fn\(generator_fn\(latents\)\) of one latent: got shape \(\); expected \(1\)",
        ),
        (
            lambda: latent.latent_log_density(_generator, _energy, inverse_temperature=jnp.ones(2)),
            r"^inverse_temperature: got shape \(2,\)",
        ),
        (lambda: latent.uniform_latents(jnp.zeros(2, int)), r"^normal_latents: got dtype int32"),
        (
            lambda: latent.reject(jax.random.key(0), jnp.zeros(5), num_kept=5),
            r"^draws of energy_base: got 5; expected an integer >= 6",
        ),
        (
            lambda: latent.resample(jax.random.key(0), jnp.zeros(5), num_draws=0),
            r"^num_draws: got 0; expected an integer >= 1",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("nothing", [jnp.nan, jnp.inf])
def test_where_no_draw_weighs_anything_none_is_chosen(key, nothing):
    energies = jnp.full(5, nothing)
    for choose in (
        lambda e: latent.reject(key, e, num_kept=2).indices,
        lambda e: latent.resample(key, e, num_draws=3),
    ):
        with pytest.raises(ValueError, match="finite entries of energy_base: got 0"):
            choose(energies)
        assert (jax.jit(choose)(energies) == -1).all()


def test_an_offset_of_all_energies_changes_nothing(key):
    energies = jax.random.normal(key, (20,)).round(1)
    for offset in (-(2.0**24), 2.0**24):
        moved = jnp.zeros(20) + offset
        np.testing.assert_array_equal(
            latent.reject(key, moved, num_kept=5).indices,
            latent.reject(key, jnp.zeros(20), num_kept=5).indices,
        )
    assert latent.resample(key, energies, num_draws=4).max() < 20
