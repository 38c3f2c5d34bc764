"""The energy distance, over pairs and along lines: loops, ties, one constant between both."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from memory import compiled_megabytes

from kernelgrad import energy, fssd, kernels, kmm, mmd, ratio, score, score_peers, svgd

sliced = jax.jit(energy.sliced_energy_and_gradient)


def _clouds(rng, d, n=7, m=5):
    return rng.normal(size=(n, d)), rng.normal(0.6, 1.2, size=(m, d))


@pytest.mark.parametrize("exponent", [1.0, 1.5])
def test_mmd_of_the_riesz_kernel_is_the_energy_distance(rng, exponent):
    x, y = _clouds(rng, 4)
    y[0] = x[0]
    with jax.enable_x64(True):
        value, gradient = jax.jit(mmd.mmd_value_and_gradient)(x, y, kernels.riesz(exponent))
    expected, slope = oracles.energy_distance(x, y, exponent)
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-12)


def test_on_a_line_sorting_gives_the_sums_over_pairs_with_ties_averaged(rng):
    x, y = (np.round(points, 1) for points in _clouds(rng, 1))
    x[0], y[0], x[1:3], y[1] = 0.0, -0.0, 0.3, 0.3
    expected, slope = oracles.energy_distance(x, y)
    with jax.enable_x64(True):
        for line in (1.0, -1.0):
            value, gradient = energy.sliced_energy_and_gradient(x, y, np.array([[line]]))
            np.testing.assert_allclose(value, expected, rtol=1e-12)
            np.testing.assert_allclose(gradient, slope, rtol=1e-12, atol=1e-15)
    x[3], y[3] = -1e30, 1e30  # whose bits are far apart
    far = energy.sliced_energy_and_gradient(x, y, np.ones((1, 1)))
    np.testing.assert_allclose(far[1], oracles.energy_distance(x, y)[1], rtol=1e-5, atol=1e-7)


def test_over_all_lines_it_is_a_multiple_of_the_energy_distance(key, rng):
    """The mean of |theta . v| over unit vectors is |v| Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2))."""
    x, y = (jnp.asarray(points, jnp.float32) for points in _clouds(rng, 3))
    lines = energy.random_directions(key, 20_000, 3)
    value, gradient = sliced(x, y, lines)
    share = math.gamma(1.5) / (math.sqrt(math.pi) * math.gamma(2))
    expected, slope = oracles.energy_distance(np.asarray(x, np.float64), np.asarray(y, np.float64))
    np.testing.assert_allclose(value, share * expected, rtol=0.02)
    np.testing.assert_allclose(gradient, share * slope, atol=0.02 * np.abs(slope).max())


def test_the_slope_leads_away_from_the_data():
    x, y = np.array([[0.0], [0.5]], np.float32), np.array([[3.0], [4.0]], np.float32)
    assert (energy.sliced_energy_and_gradient(x, y, np.ones((1, 1), np.float32))[1] < 0).all()


def test_a_million_points_take_less_than_a_gibibyte():
    shapes = (1_000_000, 64), (1_000_000, 64), (16, 64)
    assert compiled_megabytes(energy.sliced_energy_and_gradient, *shapes) < 1024


@pytest.mark.thorough
def test_ties_of_the_permutation_test_are_measured_by_the_mean_distance(key):
    """Four points many times over: permutations tie but for rounding, more than k(0) = 0 bears."""
    points = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    x, y = points[[0, 1, 2, 3, 0, 1, 2]], points[[2, 3, 0, 3, 3]]
    pool = np.concatenate([x, y]).astype(np.float64)
    observed, _ = oracles.energy_distance(pool[:7], pool[7:])
    wins = [
        oracles.energy_distance(pool[list(first)], np.delete(pool, first, axis=0))[0]
        > observed - 1e-9
        for first in itertools.combinations(range(12), 7)
    ]
    result = mmd.two_sample_test(key, x, y, kernels.riesz(), num_permutations=4000)
    np.testing.assert_allclose(result.p_value, np.mean(wins), atol=0.02)


REFUSED = {
    "default_ridge": lambda x, kernel: score.default_ridge(5, kernel),
    "stein_score": lambda x, kernel: score.stein_score(x, kernel, ridge=1.0),
    "kde_score": lambda x, kernel: score_peers.kde_score(x, kernel),
    "nu_method_score": lambda x, kernel: score_peers.nu_method_score(x, kernel, num_steps=2),
    "kliep": lambda x, kernel: ratio.kliep(x, x, kernel),
    "lsif": lambda x, kernel: ratio.lsif(x, x, kernel, ridge=1.0),
    "test_power": lambda x, kernel: jax.jit(mmd.test_power)(x, x, kernel),
    "kernel_mean_matching": lambda x, kernel: kmm.kernel_mean_matching(
        x, x, kernel, max_weight=2.0, tolerance=0.0
    ),
    "svgd_direction": lambda x, kernel: svgd.svgd_direction(x, x, kernel),
    "fssd_u_statistic": lambda x, kernel: fssd.fssd_u_statistic(x, x, kernel, x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_ridge_or_a_density_needs_a_positive_kernel(name):
    with pytest.raises(ValueError, match=r"^kernel: got riesz, whose k\(0\) is not positive; "):
        REFUSED[name](jnp.ones((3, 2)), kernels.riesz())


@pytest.mark.parametrize("exponent", [0.0, 2.0])
def test_bad_numbers_are_named(key, exponent):
    with pytest.raises(ValueError, match=rf"^exponent: got {exponent:g}.*expected .* in \(0, 2"):
        kernels.riesz(exponent)
    with pytest.raises(ValueError, match=r"^num_projections: got 0; expected an integer >= 1"):
        energy.random_directions(key, 0, 2)
