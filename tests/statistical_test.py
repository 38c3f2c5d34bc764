"""Calibration of tests: the share of p-values <= 5 % where the density, or the law, is right.

Long, so only with KERNELGRAD_SLOW_TESTS=1; the figures are printed (pytest -s). Each setting is
repeated 2000 times and must lie in [3.2, 7.0] %, where a share of 5 % lies but once in 1e4 times.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from kernelgrad import chains, fssd, hmc, kernels, ksd, mmd

pytestmark = pytest.mark.slow

REPEATS = 2000
WINDOW = (0.032, 0.070)
RESAMPLES = 199
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the median: the lengthscales of a test under several
CONSERVATIVE = "KSD, incomplete, iid, n = 200, d = 2, 10 diagonals"  # at a tenth of the median


def normal(key, n, d, shift=0.0):
    return jax.random.normal(key, (n, d)) + shift * jnp.eye(1, d)


def independent(key, n, d, shift=0.0, kernel=None):
    """N(shift, I) against N(0, I)."""
    draw_key, test_key = jax.random.split(key)
    x = normal(draw_key, n, d, shift)
    kernel = kernels.imq_mixture(kernels.median_lengthscale(x)) if kernel is None else kernel
    return ksd.goodness_of_fit_test(test_key, x, -x, kernel, num_bootstrap=RESAMPLES).p_value


def two_modes(key, n):
    """Half N(-2, I), half N(2, I) in two dimensions, and kernels of four sizes."""
    draw_key, side_key, test_key = jax.random.split(key, 3)
    x = normal(draw_key, n, 2) + 2 * jax.random.rademacher(side_key, (n, 1), jnp.float32)
    score = 2 * jnp.tanh(2 * jnp.sum(x, axis=1, keepdims=True)) - x
    kernel = kernels.median_mixture(kernels.imq_mixture, x)
    return ksd.goodness_of_fit_test(test_key, x, score, kernel, num_bootstrap=RESAMPLES).p_value


def autoregressive(key, coefficient, num_chains, num_draws, d):
    """Stationary N(0, I) chains; shape (num_chains, num_draws, d)."""
    start_key, noise_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (num_draws, num_chains, d))

    def step(x, xi):
        x = coefficient * x + math.sqrt(1 - coefficient**2) * xi
        return x, x

    start = jax.random.normal(start_key, (num_chains, d))
    return jnp.swapaxes(lax.scan(step, start, noise)[1], 0, 1)


def chain_of_blocks(key, block_length, scale=1.0):
    """One AR(1) chain with coefficient 1/2, times `scale`, with blocks of a given length."""
    draw_key, test_key = jax.random.split(key)
    x = scale * autoregressive(draw_key, 0.5, 1, 400, 2)[0]
    return ksd.goodness_of_fit_test(
        test_key,
        x,
        -x,
        kernels.imq_mixture(2.0),
        num_bootstrap=RESAMPLES,
        block_length=block_length,
    ).p_value


def log_normal_density(x):
    return -0.5 * jnp.sum(x**2)


def chains_of_automatic_blocks(key):
    """Four AR(1) chains with coefficient 0.8."""
    draw_key, test_key = jax.random.split(key)
    x = autoregressive(draw_key, 0.8, 4, 200, 2)
    return chains.stein_test(
        test_key, x, log_normal_density, chain_axis=0, num_bootstrap=RESAMPLES
    ).p_value


def hmc_chains(key, factor=1.0):
    """Four HMC chains on a quartic density in two dimensions, `factor` times the log density."""
    run_key, start_key, test_key = jax.random.split(key, 3)

    def density(x):
        return -jnp.sum(x**4) / 4

    def step(state, key):
        state, _ = hmc.step(key, state, density, step_size=0.5, num_leapfrog_steps=3)
        return state, state.position

    def chain(key, start):
        return lax.scan(step, hmc.init(start, density), jax.random.split(key, 250))[1][50:]

    positions = jax.vmap(chain)(jax.random.split(run_key, 4), normal(start_key, 4, 2))
    return chains.stein_test(
        test_key, positions, lambda x: factor * density(x), chain_axis=0, num_bootstrap=RESAMPLES
    ).p_value


def finite_set(key, n, d, shift=0.0):
    draw_key, test_key = jax.random.split(key)
    x = normal(draw_key, n, d, shift)
    kernel = kernels.imq_mixture(math.sqrt(2 * d))
    return fssd.goodness_of_fit_test(
        test_key, x, -x, kernel, num_starts=3, num_steps=30, num_simulations=RESAMPLES
    ).p_value


def several(family, *samples, factors=FACTORS):
    """Kernels around the median distance of all points."""
    median = kernels.median_lengthscale(*samples)
    return [family(factor * median) for factor in factors]


def two_samples(key, test, n, m, d, shift=0.0, **settings):
    """N(0, I) and N(shift, I) under five Gaussians."""
    x_key, y_key, test_key = jax.random.split(key, 3)
    x, y = normal(x_key, n, d), normal(y_key, m, d, shift)
    around = several(kernels.rbf_mixture, x, y)
    return test(test_key, x, y, around, num_permutations=RESAMPLES, **settings).p_value


def least_of_several(key, n, d):
    """The least of five p-values, not corrected for their number."""
    x_key, y_key, test_key = jax.random.split(key, 3)
    x, y = normal(x_key, n, d), normal(y_key, n, d)
    return jnp.min(
        jnp.stack(
            [
                mmd.two_sample_test(test_key, x, y, kernel, num_permutations=RESAMPLES).p_value
                for kernel in several(kernels.rbf_mixture, x, y)
            ]
        )
    )


def independent_of_several(key, test, n, d, shift=0.0, factors=FACTORS, **settings):
    """N(shift, I) against N(0, I) under some IMQs."""
    draw_key, test_key = jax.random.split(key)
    x = normal(draw_key, n, d, shift)
    around = several(kernels.imq_mixture, x, factors=factors)
    return test(test_key, x, -x, around, num_bootstrap=RESAMPLES, **settings).p_value


def chain_of_several(key):
    """One AR(1) chain with coefficient 1/2 under five IMQs."""
    draw_key, test_key = jax.random.split(key)
    x = autoregressive(draw_key, 0.5, 1, 400, 2)[0]
    around = several(kernels.imq_mixture, x)
    return ksd.aggregated_test(
        test_key, x, -x, around, num_bootstrap=RESAMPLES, block_length=25
    ).p_value


CALIBRATED = {
    "KSD, iid, n = 50, d = 1, IMQ": functools.partial(
        independent, n=50, d=1, kernel=kernels.imq_mixture(1.0)
    ),
    "KSD, iid, n = 100, d = 2, IMQ, median": functools.partial(independent, n=100, d=2),
    "KSD, iid, n = 100, d = 10, RBF": functools.partial(
        independent, n=100, d=10, kernel=kernels.rbf_mixture(4.0)
    ),
    "KSD, iid, n = 200, two modes, IMQ mixture": functools.partial(two_modes, n=200),
    "KSD, AR(1) 0.5, n = 400, blocks of 25": functools.partial(chain_of_blocks, block_length=25),
    "KSD, four AR(1) 0.8 chains of 200, automatic blocks": chains_of_automatic_blocks,
    "KSD, four HMC chains of 200, automatic blocks": hmc_chains,
    "FSSD, iid, n = 500, d = 2": functools.partial(finite_set, n=500, d=2),
    "FSSD, iid, n = 1000, d = 5": functools.partial(finite_set, n=1000, d=5),
    "MMD, aggregated, n = 60, m = 40, d = 2": functools.partial(
        two_samples, test=mmd.aggregated_test, n=60, m=40, d=2
    ),
    "MMD, fused, n = 60, m = 40, d = 2": functools.partial(
        two_samples, test=mmd.fused_test, n=60, m=40, d=2
    ),
    "MMD, incomplete, n = 100, d = 2, 10 diagonals": functools.partial(
        two_samples, test=mmd.incomplete_test, n=100, m=100, d=2, num_diagonals=10
    ),
    "KSD, aggregated, iid, n = 100, d = 2": functools.partial(
        independent_of_several, test=ksd.aggregated_test, n=100, d=2
    ),
    "KSD, aggregated, AR(1) 0.5, n = 400, blocks of 25": chain_of_several,
    CONSERVATIVE: functools.partial(
        independent_of_several, test=ksd.incomplete_test, n=200, d=2, num_diagonals=10
    ),
    "KSD, incomplete, the same without the least lengthscale": functools.partial(
        independent_of_several,
        test=ksd.incomplete_test,
        n=200,
        d=2,
        factors=FACTORS[1:],
        num_diagonals=10,
    ),
}
REJECTED = {
    "KSD, shift 0.5, n = 100, d = 2": functools.partial(independent, n=100, d=2, shift=0.5),
    "KSD, AR(1) 0.5, 1.5 times too wide": functools.partial(
        chain_of_blocks, block_length=25, scale=1.5
    ),
    "KSD, HMC for twice the log density": functools.partial(hmc_chains, factor=2.0),
    "FSSD, shift 0.3, n = 500, d = 2": functools.partial(finite_set, n=500, d=2, shift=0.3),
    "MMD, aggregated, shift 1, n = 60, m = 40, d = 2": functools.partial(
        two_samples, test=mmd.aggregated_test, n=60, m=40, d=2, shift=1.0
    ),
    "MMD, fused, shift 1, n = 60, m = 40, d = 2": functools.partial(
        two_samples, test=mmd.fused_test, n=60, m=40, d=2, shift=1.0
    ),
    "KSD, aggregated, shift 0.5, n = 100, d = 2": functools.partial(
        independent_of_several, test=ksd.aggregated_test, n=100, d=2, shift=0.5
    ),
}


def share_rejected(key, p_value, repeats, name):
    p_values = jax.jit(lambda keys: lax.map(p_value, keys))(jax.random.split(key, repeats))
    share = float(np.mean(np.asarray(p_values) <= 0.05))
    print(f"\n{name}: {100 * share:.2f} % of {repeats} at a nominal 5 %")
    return share


@pytest.mark.parametrize("name", CALIBRATED)
def test_level(key, name):
    share = share_rejected(key, CALIBRATED[name], REPEATS, name)
    assert (0 if name == CONSERVATIVE else WINDOW[0]) <= share <= WINDOW[1]


@pytest.mark.parametrize("name", REJECTED)
def test_power(key, name):
    assert share_rejected(key, REJECTED[name], 200, name) >= 0.9


def test_signs_without_blocks_fail_on_a_chain(key):
    """The window sees a wrong bootstrap: independent signs for the correlated chain."""
    name = "KSD, AR(1) 0.5, n = 400, no blocks"
    wrong = functools.partial(chain_of_blocks, block_length=1)
    assert share_rejected(key, wrong, REPEATS, name) > WINDOW[1]


def test_the_least_p_value_of_several_kernels_fails(key):
    """The window sees a test that does not pay for the number of its kernels."""
    name = "MMD, least p-value of five kernels, n = 50, d = 2"
    wrong = functools.partial(least_of_several, n=50, d=2)
    assert share_rejected(key, wrong, REPEATS, name) > WINDOW[1]
