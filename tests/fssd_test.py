"""FSSD: loops, a closed form, the null distribution, the split, power and errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from kernelgrad import fssd, kernels

LENGTHSCALES = (0.8, 1.7)


def stein_features(family, particles, score, locations):
    """tau at each particle, with xi = s k + grad_x k from the oracles."""
    d = particles.shape[1]
    return [
        np.concatenate(
            [
                s * oracles.kernel(family, x, v, LENGTHSCALES)
                + oracles.kernel_gradient(family, v, x, LENGTHSCALES)
                for v in locations
            ]
        )
        / math.sqrt(d * len(locations))
        for x, s in zip(particles, score, strict=True)
    ]


def loops(family, particles, score, locations):
    """The double sum over i != i' of tau_i . tau_i'."""
    n, tau = len(particles), stein_features(family, particles, score, locations)
    total = sum(tau[i] @ tau[j] for i in range(n) for j in range(n) if i != j)
    return total / (n * (n - 1))


@pytest.mark.parametrize("family", ["rbf_mixture", "imq_mixture", "matern52"])
@pytest.mark.parametrize("d", [2, 5])
def test_statistic_matches_the_loops(rng, family, d):
    particles, score = rng.normal(30, 1.0, size=(9, d)), rng.normal(size=(9, d))
    locations = rng.normal(30, 1.0, size=(4, d))
    with jax.enable_x64(True):
        kernel = getattr(kernels, family)(jnp.array(LENGTHSCALES))
        got = jax.jit(fssd.fssd_u_statistic)(particles, score, kernel, locations)
    np.testing.assert_allclose(got, loops(family, particles, score, locations), rtol=1e-9)


@pytest.mark.thorough
def test_power_proxy_is_the_statistic_in_deviations_of_the_alternative(rng):
    """Jitkrittum et al. 2017, Propositions 2 and 4: sigma^2 = 4 mu^T cov(tau) mu."""
    particles, score = rng.normal(size=(12, 2)), rng.normal(2.0, 1.0, size=(12, 2))
    locations = rng.normal(size=(3, 2))
    tau = np.array(stein_features("rbf_mixture", particles, score, locations))
    mean = tau.mean(axis=0)
    sigma2 = 4 * mean @ np.cov(tau.T, bias=True) @ mean
    floor = 0.1 * np.mean(np.sum(tau**2, axis=1))
    assert floor**2 < 0.2 * sigma2
    with jax.enable_x64(True):
        kernel = kernels.rbf_mixture(jnp.array(LENGTHSCALES))
        ends, proxy = fssd._ascend(
            *map(jnp.asarray, (particles, score)),
            kernel,
            jnp.asarray(locations),
            num_steps=0,
            step_size=1.0,
        )
    np.testing.assert_array_equal(ends, locations)
    expected = loops("rbf_mixture", particles, score, locations) / np.sqrt(sigma2 + floor**2)
    np.testing.assert_allclose(proxy, expected, rtol=1e-9)


def test_unbiased_for_a_shifted_gaussian(rng):
    """p = N(0, 1), q = N(m, 1), k = exp(-r^2 / 2): E xi(x, v) = -m E k(x, v), a Gaussian."""
    shift, locations = 0.7, np.array([[-0.5], [1.2]])
    mean = -shift * np.exp(-((locations - shift) ** 2) / 4) / math.sqrt(2)
    x = rng.normal(shift, 1, size=(2000, 20, 1)).astype(np.float32)
    kernel = kernels.rbf_mixture(1.0)
    values = jax.jit(
        jax.vmap(lambda x: fssd.fssd_u_statistic(x, -x, kernel, jnp.asarray(locations, x.dtype)))
    )(x)
    values = np.asarray(values, np.float64)
    assert abs(values.mean() - np.mean(mean**2)) < 5 * values.std() / math.sqrt(len(values))


@pytest.mark.thorough
def test_null_of_one_feature_is_a_shifted_chi_square(key, rng):
    """With J = d = 1, P((Z^2 - 1) omega / n >= t) = erfc(sqrt((1 + n t / omega) / 2))."""
    features = jnp.asarray(rng.normal(0.1, 2.0, size=(50, 1)), jnp.float32)
    omega, num_simulations = float(jnp.var(features)), 20_000
    for quantile in (0.5, 2.0, 6.0):
        statistic = jnp.float32((quantile - 1) * omega / 50)
        got = jnp.mean(fssd._simulated_null(key, features, num_simulations) >= statistic)
        expected = math.erfc(math.sqrt(quantile / 2))
        error = math.sqrt(expected * (1 - expected) / num_simulations)
        assert abs(float(got) - expected) < 5 * error


def share_rejected(key, draw, score_fn, kernel, repeats, **options):
    def p_value(key):
        draw_key, test_key = jax.random.split(key)
        x = draw(draw_key)
        return fssd.goodness_of_fit_test(
            test_key, x, score_fn(x), kernel, num_simulations=199, **options
        ).p_value

    p_values = jax.jit(lambda keys: jax.lax.map(p_value, keys))(jax.random.split(key, repeats))
    return np.mean(np.asarray(p_values) <= 0.05)


@pytest.mark.thorough
def test_the_level_is_kept_however_hard_the_locations_are_trained(key):
    share = share_rejected(
        key,
        lambda key: jax.random.normal(key, (300, 2)),
        jnp.negative,
        kernels.imq_mixture(1.0),
        800,
        num_locations=1,
        train_fraction=0.5,
        num_starts=2,
        num_steps=30,
        step_size=0.3,
    )
    assert abs(share - 0.05) < 5 * math.sqrt(0.05 * 0.95 / 800)


def bumped(key):
    """N(0, 1), but a tenth of the particles are at 2.5."""
    bump_key, key = jax.random.split(key)
    x = jax.random.normal(key, (500, 1))
    return jnp.where(jax.random.bernoulli(bump_key, 0.1, x.shape), 2.5 + 0.1 * x, x)


@pytest.mark.slow
def test_training_the_locations_adds_power(key):
    kernel = kernels.rbf_mixture(0.5)
    shares = [
        share_rejected(
            key, bumped, jnp.negative, kernel, 200, num_locations=1, num_starts=m, num_steps=n
        )
        for m, n in ((1, 0), (5, 40))
    ]
    assert shares[1] > shares[0] + 0.2
    assert shares[1] > 0.45


@pytest.mark.thorough
def test_the_location_shows_where_the_fit_fails(key):
    def location(key):
        draw_key, test_key = jax.random.split(key)
        x = bumped(draw_key)
        result = fssd.goodness_of_fit_test(
            test_key, x, -x, kernels.rbf_mixture(0.5), num_locations=1, num_simulations=1
        )
        return result.locations[0, 0]

    locations = jax.jit(lambda keys: jax.lax.map(location, keys))(jax.random.split(key, 50))
    assert 2.0 < np.median(locations) < 2.8


@pytest.mark.thorough
def test_a_traced_score_that_is_not_finite_gives_nan(key):
    x, kernel = jax.random.normal(key, (30, 2)), kernels.imq_mixture(1.0)
    test = jax.jit(
        lambda s: fssd.goodness_of_fit_test(key, x, s, kernel, num_starts=1, num_steps=2)
    )
    assert np.isnan(test(jnp.full_like(x, jnp.nan)).p_value)


@pytest.mark.thorough
def test_one_bad_start_or_particle(key, rng):
    """An ascent that ends nowhere is not the best one; a bad particle leaves no p-value."""
    x = jnp.asarray(rng.normal(size=(12, 2)), jnp.bfloat16)
    kernel = kernels.imq_mixture(1.0)
    options = {"num_locations": 1, "num_starts": 2, "num_steps": 1, "num_simulations": 9}
    test = jax.jit(lambda x: fssd.goodness_of_fit_test(key, x, -x, kernel, **options))
    got, wide = test(x), test(x.astype(jnp.float32))
    np.testing.assert_array_equal(got.locations, wide.locations)
    assert (got.statistic, got.p_value) == (wide.statistic, wide.p_value)
    for row in range(12):  # in the training part or in the other
        broken = test(x.at[row, 0].set(jnp.inf))
        assert np.isnan(broken.statistic)
        assert np.isnan(broken.p_value)
    with pytest.raises(ValueError, match="statistic: got"):
        fssd.goodness_of_fit_test(key, x, jnp.full((12, 2), 1e30), kernel, **options)


@pytest.mark.thorough
@pytest.mark.parametrize("unit", [1e-15, 1e15])
def test_the_test_does_not_depend_on_the_unit(key, rng, unit):
    x = jnp.asarray(rng.normal(0.5, 1, size=(30, 2)), jnp.float32)
    options = {"num_locations": 1, "num_starts": 2, "num_steps": 3, "num_simulations": 99}

    @jax.jit
    def test(unit):
        kernel = kernels.rbf_mixture(unit)
        return fssd.goodness_of_fit_test(key, unit * x, -x / unit, kernel, **options)

    got, expected = test(jnp.float32(unit)), test(jnp.float32(1))
    np.testing.assert_allclose(got.locations / unit, expected.locations, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(got.statistic * unit * unit, expected.statistic, rtol=2e-3)
    np.testing.assert_allclose(got.p_value, expected.p_value, atol=0.011)


BAD_TESTS = {
    "num_locations: got 0": {"num_locations": 0},
    "num_locations: got 3; expected at most 2": {"num_locations": 3},
    "train_fraction: got 1": {"train_fraction": 1.0},
    "num_starts: got 0": {"num_starts": 0},
    "num_steps: got -1": {"num_steps": -1},
    "step_size: got 0": {"step_size": 0.0},
    "num_simulations: got 0": {"num_simulations": 0},
}


@pytest.mark.parametrize("message", BAD_TESTS)
def test_a_bad_test_is_named(key, message):
    x = jnp.ones((10, 2))
    with pytest.raises(ValueError, match=message):
        fssd.goodness_of_fit_test(key, x, x, kernels.imq_mixture(1.0), **BAD_TESTS[message])


def test_bad_input_is_named(key):
    x, kernel = jnp.ones((6, 2)), kernels.imq_mixture(1.0)
    with pytest.raises(ValueError, match=r"score: got shape \(6, 1\); expected \(6, 2\)"):
        fssd.goodness_of_fit_test(key, x, x[:, :1], kernel)
    with pytest.raises(ValueError, match="number of particles: got 3"):
        fssd.goodness_of_fit_test(key, x[:3], x[:3], kernel)
    with pytest.raises(ValueError, match="particles: got 1 non-finite"):
        fssd.goodness_of_fit_test(key, x.at[0, 0].set(jnp.nan), x, kernel)
    with pytest.raises(ValueError, match=r"locations: got shape \(6, 1\)"):
        fssd.fssd_u_statistic(x, x, kernel, x[:, :1])
    with pytest.raises(ValueError, match="number of particles: got 1"):
        fssd.fssd_u_statistic(x[:1], x[:1], kernel, x)
    deep = kernels.feature_kernel(kernel, lambda p, z: z * p, jnp.float32(1))
    with pytest.raises(ValueError, match="feature kernel"):
        fssd.fssd_u_statistic(x, x, deep, x)
    own = kernels.per_coordinate(kernel, jnp.ones(2))
    with pytest.raises(ValueError, match=r"got a per_coordinate kernel; .* scores \* lengthscales"):
        fssd.fssd_u_statistic(x, x, own, x)
