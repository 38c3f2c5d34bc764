"""Chains: the Stein test on pytrees of draws, and the block length from the autocorrelation."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax import lax

from kernelgrad import chains, hmc, kernels, ksd

KERNEL = kernels.imq_mixture(2.0)


def autoregressive(key, coefficient, num_chains, num_draws, dimension):
    """Stationary N(0, I) chains; shape (num_chains, num_draws, dimension)."""
    start_key, noise_key = jax.random.split(key)
    start = jax.random.normal(start_key, (num_chains, dimension))
    noise = jax.random.normal(noise_key, (num_draws, num_chains, dimension))

    def step(x, xi):
        x = coefficient * x + math.sqrt(1 - coefficient**2) * xi
        return x, x

    return jnp.swapaxes(lax.scan(step, start, noise)[1], 0, 1)


def log_density(position):
    """N(0, 1) for a and N(1, 4 I) for b, of another shape each."""
    return -0.5 * position["a"] ** 2 - jnp.sum((position["b"] - 1) ** 2) / 8


def positions_of(draws):
    return {"a": draws[..., 0], "b": 1 + 2 * draws[..., 1:].reshape(*draws.shape[:-1], 2, 1)}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "chain_axis",
    [None, pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow)],
)
def test_a_pytree_is_tested_like_its_raveled_draws(key, chain_axis):
    draws = autoregressive(key, 0.5, 2, 40, 3)
    if chain_axis is None:
        draws = draws.reshape(80, 3)
    num_chains = 1 if chain_axis is None else 2
    vectors = draws.reshape(80, 3) * jnp.array([[1.0, 2.0, 2.0]]) + jnp.array([[0.0, 1.0, 1.0]])
    score = jnp.concatenate([-vectors[:, :1], (1 - vectors[:, 1:]) / 4], axis=1)
    positions = positions_of(jnp.swapaxes(draws, 0, 1) if chain_axis == 1 else draws)
    options = {"num_bootstrap": 50, "block_length": 7}
    expected = ksd.goodness_of_fit_test(
        key, vectors, score, KERNEL, num_chains=num_chains, **options
    )
    got = jax.jit(
        lambda p: chains.stein_test(key, p, log_density, KERNEL, chain_axis=chain_axis, **options)
    )(positions)
    np.testing.assert_allclose(got.statistic, expected.statistic, rtol=1e-5)
    assert got.p_value == expected.p_value
    assert got.block_length == 7


@pytest.mark.slow
def test_defaults_are_the_median_and_the_autocorrelation(key):
    x = autoregressive(key, 0.7, 2, 60, 2)
    vectors = x.reshape(120, 2)
    kernel = kernels.imq_mixture(jax.jit(kernels.median_lengthscale)(vectors))
    length = chains.stein_block_length(vectors, -vectors, num_chains=2)

    @jax.jit
    def both(x):
        def test(*kernel, **options):
            return chains.stein_test(
                key, x, lambda x: -0.5 * jnp.sum(x**2), *kernel, chain_axis=0, **options
            )

        return test(), test(kernel, block_length=length)

    got, expected = both(x)
    chex.assert_trees_all_close(got, expected, rtol=1e-6)
    assert got.block_length == length


def slow_block_length(particles, score, num_chains):
    """The rule with every autocovariance as a sum over draws, in float64."""
    particles, score = (np.asarray(array, np.float64) for array in (particles, score))
    n = len(particles)
    spread = particles - particles.mean(axis=0)
    slowest = 1.0
    for function in np.concatenate([score, score * spread], axis=1).T:
        rows = function.reshape(num_chains, -1)
        rows = rows - rows.mean(axis=1, keepdims=True)
        num_draws = rows.shape[1]
        covariance = [
            np.mean([row[: num_draws - h] @ row[h:] for row in rows]) for h in range(num_draws)
        ]
        for window in range(num_draws):
            time = 1 + 2 * sum(covariance[1 : window + 1]) / covariance[0]
            if window >= 5 * time:
                break
        slowest = max(slowest, time)
    length = math.ceil(3 * n ** (1 / 3) * ((slowest - 1 / slowest) / 2) ** (2 / 3))
    return min(max(length, 1), n // num_chains, n // 8)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.95])
def test_block_length_matches_the_sums(key, coefficient):
    x = autoregressive(key, coefficient, 3, 200, 2).reshape(600, 2)
    score = -x - 0.1 * x**3
    length = jax.jit(lambda x, s: chains.stein_block_length(x, s, num_chains=3))
    got = length(x, score)
    assert abs(int(length(1e-17 * x, 1e17 * score)) - int(got)) <= 1
    assert got.dtype == jnp.int32
    assert abs(int(got) - slow_block_length(x, score, 3)) <= 1


@pytest.mark.thorough
def test_block_length_of_a_long_chain_is_that_of_its_coefficient(key):
    coefficient, n = 0.8, 100_000
    x = autoregressive(key, coefficient, 1, n, 1)[0]
    expected = 3 * (2 * coefficient / (1 - coefficient**2)) ** (2 / 3) * n ** (1 / 3)
    assert abs(int(chains.stein_block_length(x, -x)) / expected - 1) < 0.1


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("num_draws", [1, 5])
def test_a_handful_of_draws_still_has_blocks(num_draws):
    x = jnp.ones((num_draws, 2))
    assert chains.stein_block_length(x, x) == 1


def run_hmc(key, density, num_chains, num_draws):
    """Chains that start where {"a": N(0, 1), "b": N(1, 4)} puts them; leaves (draws, chains)."""
    start_key, key = jax.random.split(key)
    start = positions_of(jax.random.normal(start_key, (num_chains, 3)))

    def step(states, key):
        keys = jax.random.split(key, num_chains)
        states, _ = jax.vmap(
            lambda k, s: hmc.step(k, s, density, step_size=0.6, num_leapfrog_steps=3)
        )(keys, states)
        return states, states.position

    states = jax.vmap(lambda p: hmc.init(p, density))(start)
    return lax.scan(step, states, jax.random.split(key, num_draws))[1]


@pytest.mark.slow
def test_hmc_is_calibrated_and_another_target_rejected(key):
    @jax.jit
    def p_values(keys, factor):
        def p_value(key):
            run_key, test_key = jax.random.split(key)
            positions = run_hmc(run_key, log_density, 2, 80)
            return chains.stein_test(
                test_key,
                positions,
                lambda x: factor * log_density(x),
                KERNEL,
                chain_axis=1,
                num_bootstrap=39,
            ).p_value

        return lax.map(p_value, keys)

    keys = jax.random.split(key, 300)
    null = np.asarray(p_values(keys, 1.0))
    assert abs(np.mean(null <= 0.05) - 0.06) < 5 * math.sqrt(0.06 * 0.94 / 300)
    assert abs(null.mean() - 0.5) < 0.1
    assert np.mean(np.asarray(p_values(keys, 3.0)) <= 0.05) > 0.8


def test_blackjax_draws_can_be_tested(key):
    """Single-chain draws of its HMC pass for their density and fail for another."""
    blackjax = pytest.importorskip("blackjax")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        inverse_mass = jnp.array([1.0, 4.0, 4.0])
        sampler = blackjax.hmc(log_density, 0.5, inverse_mass, num_integration_steps=4)
        state = sampler.init({"a": jnp.zeros(()), "b": jnp.ones((2, 1))})

        def step(state, key):
            state, _ = sampler.step(key, state)
            return state, state.position

        _, positions = lax.scan(step, state, jax.random.split(key, 500))
    right = chains.stein_test(key, positions, log_density)
    wrong = chains.stein_test(key, positions, lambda p: 2 * log_density(p))
    assert right.p_value > 1e-3
    assert wrong.p_value < 0.01
    assert right.block_length < 60


@pytest.mark.parametrize(
    ("positions", "options", "message"),
    [
        (jnp.ones(5, jnp.int32), {}, "positions: got dtype int32; expected floating"),
        ({"a": jnp.ones(5), "b": jnp.ones((4, 2))}, {}, r"leading axes \[\(4,\), \(5,\)\]"),
        (jnp.ones(5), {"chain_axis": 0}, r"leading axes \[\(5,\)\]; expected one 2-tuple"),
        (jnp.ones((0, 2)), {}, "no size 0"),
        (jnp.ones(5), {"chain_axis": 2}, "chain_axis: got 2; expected None, 0 or 1"),
        (jnp.ones((5, 2)), {"block_length": 6}, "block_length: got 6"),
        (jnp.ones((5, 2)), {"num_bootstrap": 0}, "num_bootstrap: got 0"),
        (jnp.array([[1.0], [jnp.nan]]), {}, r"positions: got 1 non-finite .* index \(1, 0\)"),
    ],
)
def test_bad_input_is_named(key, positions, options, message):
    with pytest.raises(ValueError, match=message):
        chains.stein_test(key, positions, lambda x: -jnp.sum(x**2), KERNEL, **options)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("shape", "chain_axis"),
    [
        ((4, 250, 3), None),
        ((100, 250, 3), None),
        ((9, 2), None),
        ((250, 4, 3), 0),
        ((4, 250), None),
    ],
)
def test_draws_that_cannot_be_meant_are_refused(key, shape, chain_axis):
    with pytest.raises(ValueError, match=r"positions: got .* draws in .* chain_axis"):
        chains.stein_test(
            key, jax.random.normal(key, shape), lambda x: -jnp.sum(x**2) / 2, chain_axis=chain_axis
        )


@pytest.mark.thorough
def test_draws_in_low_precision_are_tested_in_float32(key):
    x = autoregressive(key, 0.3, 2, 20, 2).astype(jnp.bfloat16)

    def test(x, **options):
        return chains.stein_test(key, x, lambda x: -jnp.sum(x**2) / 2, chain_axis=0, **options)

    got, expected = jax.jit(test)(x), jax.jit(test)(x.astype(jnp.float32))
    chex.assert_trees_all_equal(got, expected)
    assert (got.statistic.dtype, got.p_value.dtype) == (jnp.float32, jnp.float32)


@pytest.mark.thorough
def test_draws_that_are_not_finite_have_no_p_value(key):
    x = jnp.ones((12, 2)).at[3, 1].set(jnp.nan)
    got = jax.jit(lambda x: chains.stein_test(key, x, lambda x: -jnp.sum(x**2) / 2))(x)
    assert np.isnan(got.statistic)
    assert np.isnan(got.p_value)
    assert got.block_length == 1  # 12 // 8
    with pytest.raises(ValueError, match="particles: got 1 non-finite"):
        chains.stein_block_length(x, jnp.ones_like(x))
    with pytest.raises(ValueError, match="num_chains: got 5; expected a divisor of 12"):
        chains.stein_block_length(jnp.ones((12, 2)), jnp.ones((12, 2)), num_chains=5)


@pytest.mark.thorough
def test_thinning_with_the_default_kernel_leaves_out_what_is_not_finite(key):
    x = jax.random.normal(key, (30, 2)).at[4, 1].set(jnp.nan)
    thin = jax.jit(
        lambda x: chains.stein_thinning(x, lambda x: -jnp.sum(x**2) / 2, num_points=6).draws
    )
    others = np.delete(np.asarray(x), 4, axis=0)
    lengthscale = kernels.median_lengthscale(np.concatenate([others[:4], others[:1], others[4:]]))
    kernel = kernels.imq_mixture(lengthscale)
    expected = ksd.stein_thinning(others, -others, kernel, num_points=6)
    np.testing.assert_array_equal(thin(x), np.delete(np.arange(30), 4)[expected])
    assert thin(jnp.full_like(x, jnp.nan)).tolist() == [-1] * 6


@pytest.mark.thorough
def test_regularised_thinning_keeps_away_from_a_saddle_and_a_light_mode(rng):
    """Of two modes of weights 1 : 9; between them p has a minimum, where the score is 0."""

    def log_p(x):
        light, heavy = (-jnp.sum((x["a"] - mean) ** 2) / 2 for mean in (-3.0, 3.0))
        return jnp.logaddexp(light, math.log(9) + heavy)

    slope = lambda z: 3 * np.tanh(3 * z + math.log(9) / 2) - z  # noqa: E731
    minimum = scipy.optimize.brentq(slope, -2.0, 0.0)
    modes = np.concatenate([rng.normal(m, 0.8, size=(60, 1)) for m in (-3, 3)])
    draws = {"a": jnp.asarray(np.concatenate([np.full((3, 1), minimum), modes]), jnp.float32)}
    thin = functools.partial(chains.stein_thinning, num_points=40, unique=True)
    plain, regular = jax.jit(lambda d: (thin(d, log_p), thin(d, log_p, regularized=True)))(draws)
    assert min(plain.draws.tolist()) < 3 <= min(regular.draws.tolist())
    light = [np.mean(np.asarray(found.positions["a"]) < 0) for found in (plain, regular)]
    assert light[1] < 0.75 * light[0]
    vectors, scores = draws["a"], jax.vmap(jax.grad(log_p))(draws)["a"]
    second = jax.vmap(lambda x: jax.hessian(log_p)({"a": x})["a"]["a"][0, 0])(vectors)
    kernel = kernels.imq_mixture(kernels.median_lengthscale(vectors))
    penalties = {"log_density": jax.vmap(log_p)(draws), "convexity": jnp.maximum(second, 0)}
    expected = jax.jit(functools.partial(ksd.stein_thinning, num_points=40, unique=True))(
        vectors, scores, kernel, **penalties
    )
    assert regular.draws.tolist() == expected.tolist()


def test_a_log_density_of_many_is_named(key):
    with pytest.raises(ValueError, match=r"log_density_fn\(position\): got shape \(2,\)"):
        chains.stein_test(key, jnp.ones((5, 2)), lambda x: -(x**2), KERNEL)


@pytest.mark.parametrize("chain_axis", [None, 0])
def test_an_error_of_the_log_density_says_what_it_was_given(chain_axis):
    draws = {"a": jnp.zeros((4, 50)), "b": jnp.zeros((4, 50, 3))}
    of_many = jax.vmap(lambda z: z["a"] + jnp.sum(z["b"]))  # where one position is given

    def wide(z):  # a scalar and a vector, where one chain is given as a position
        return jnp.sum(z["a"] - z["b"])

    log_density_fn = wide if chain_axis is None else of_many
    with pytest.raises((ValueError, TypeError)) as caught:
        chains.stein_thinning(draws, log_density_fn, num_points=3, chain_axis=chain_axis)
    shapes = {"a": (50,), "b": (50, 3)} if chain_axis is None else {"a": (), "b": (3,)}
    notes = caught.value.__notes__
    assert f"log_density_fn: was given one position, of shape {shapes}" in notes
    assert f"chain_axis: {chain_axis}; it says which leading axis counts chains" in notes
