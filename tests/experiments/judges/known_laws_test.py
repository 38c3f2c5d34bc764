"""KALE of known laws, against programs that maximise it by brute force."""

import math

import jax
import numpy as np
import pytest
from scipy.optimize import minimize

from experiments.judges import known_laws


def _largest_kale(points, p, g, lipschitz):
    """KALE of laws on a line over energies of bounded slope: E and c together are one function."""
    gaps = lipschitz * np.diff(points)

    def loss(h):  # minus 1 - E_P h - E_G exp(-h)
        return -(1 - p @ h - g @ np.exp(-h)), p - g * np.exp(-h)

    slopes = [{"type": "ineq", "fun": lambda h, s=sign: gaps - s * np.diff(h)} for sign in (-1, 1)]
    start = np.zeros(len(points))
    return -minimize(loss, start, jac=True, constraints=slopes, options={"maxiter": 500}).fun


@pytest.mark.parametrize("lipschitz", [0.5, 2.0])
def test_kale_of_point_masses_is_the_largest_of_bounded_slope(lipschitz):
    distances = np.array([0.0, 0.3, 1.0, 2.5])
    found = known_laws.lipschitz_kale(distances, lipschitz)
    np.testing.assert_allclose(found, lipschitz * distances, atol=1e-6)
    for theta, value in zip(distances[1:], found[1:], strict=True):
        best = _largest_kale(
            np.array([0, theta]), np.array([1.0, 0]), np.array([0, 1.0]), lipschitz
        )
        assert value == pytest.approx(best, rel=1e-4)


def test_kale_of_bounded_slope_is_at_most_w1_and_kl(rng):
    """KALE_L <= min(L W1, KL), on laws on a line, where W1 is between distribution functions."""
    tight = []
    for _ in range(10):
        points = np.sort(rng.uniform(0, 2, size=5))
        p, g = rng.dirichlet(np.ones(5), size=2)
        for lipschitz in (0.1, 1.0, 30.0):
            w1 = np.sum(np.abs(np.cumsum(p - g))[:-1] * np.diff(points))
            kl = np.sum(p * np.log(p / g))
            value = _largest_kale(points, p, g, lipschitz)
            least = min(lipschitz * w1, kl)
            assert value <= least + 1e-6
            tight.append(value / least)
    assert max(tight) > 0.95


@pytest.mark.thorough
def test_jsd_under_noise_starts_at_0_and_ends_at_log_2(key):
    found = known_laws.noised_jsd(key, np.array([0.0, 0.5, 8.0]), 0.25)
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[2] == pytest.approx(math.log(2), abs=1e-4)
    assert found[1] == pytest.approx(0.111421, abs=0.02)  # a shift of one deviation, by quadrature


def test_kale_over_linear_energies_nears_kl(key):
    law = known_laws.gaussian_shift(1.0)
    values = [known_laws.linear_kale(k, 4000, law) for k in jax.random.split(key, 3)]
    np.testing.assert_allclose(values, 0.5, atol=5 * 1.3 / math.sqrt(4000))


@pytest.mark.parametrize("law", [known_laws.gaussian_shift(0.7), known_laws.two_bumps()])
def test_laws_on_a_line_are_densities_with_their_draws(key, law):
    x = np.linspace(-9, 9, 20_001)
    mass = np.exp(-(x**2) / 2 + law.log_ratio(x)) * (x[1] - x[0]) / math.sqrt(2 * math.pi)
    assert mass.sum() == pytest.approx(1, abs=1e-4)
    assert mass @ law.log_ratio(x) == pytest.approx(law.kl, abs=1e-4)
    data, base = law.draw(key, 10_000)
    for draws, weights in ((data, mass), (base, np.exp(-(x**2) / 2) / np.exp(-(x**2) / 2).sum())):
        for power in (1, 2, 3):
            mean, square = weights @ x**power, weights @ x ** (2 * power)
            error = math.sqrt((square - mean**2) / 10_000)
            assert abs(np.mean(draws**power) - mean) < 5 * error + 1e-3


def _kale_of_laws(law, regularization):
    """KALE over the RKHS of the laws themselves, by sums over a grid in float64."""
    x = np.linspace(-5, 6, 121)
    base = np.exp(-(x**2) / 2)
    base /= base.sum()
    data = base * np.exp(law.log_ratio(x))
    data /= data.sum()
    root = np.linalg.cholesky(np.exp(-((x[:, None] - x) ** 2) / 2) + 1e-9 * np.eye(len(x)))

    def loss(w):
        h = root @ w
        mass = base * np.exp(h)
        value = 1 + data @ h - mass.sum() - regularization / 2 * w @ w
        return -value, regularization * w - root.T @ (data - mass)

    options = {"maxiter": 5000, "maxfun": 5000}
    found = minimize(loss, np.zeros(len(x)), jac=True, method="L-BFGS-B", options=options)
    return -(1 + regularization) * found.fun


@pytest.mark.thorough
@pytest.mark.parametrize("law", [known_laws.two_bumps(), known_laws.gaussian_shift(1.0)])
def test_kale_over_an_rkhs_misses_kl_by_what_its_penalty_takes(key, law):
    sizes = 4 ** np.arange(2, 6)
    bias = np.array([law.kl - _kale_of_laws(law, 0.5 / math.sqrt(n)) for n in sizes])
    print(np.round(bias, 3), "of", law.kl, "slope", known_laws.rate(sizes, bias))
    assert (np.diff(bias) < 0).all()
    values = [known_laws.rkhs_kale(one, 256, law) for one in jax.random.split(key, 8)]
    z = (np.mean(values) - law.kl + bias[2]) / (np.std(values, ddof=1) / math.sqrt(8))
    assert abs(z) < 5
    assert np.std(values) < 1.2 * bias[2]


def test_rate_is_the_exponent():
    sizes = np.array([10, 100, 1000])
    assert known_laws.rate(sizes, 3 * sizes**-0.5) == pytest.approx(-0.5)
