"""The certificate: the bound by hand, both JSDs of point masses, and W1 by sorting."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.judges import certificates
from kernelgrad import noise

_POINTS = 2000


def clouds(theta):
    """Returns point masses at 0 and theta, as clouds in one dimension."""
    real = jnp.zeros((_POINTS, 1))
    return real, real + theta


def test_bounds_are_theorem_3_3_for_the_noised_cube():
    found = certificates.bounds(np.array([0.1, -0.2]), np.array([0.04, 0.01]), 9)
    first = 2 * math.sqrt(9 * 0.04) + 2 * (3 + 2 * math.sqrt(27 * 0.04)) * math.sqrt(0.1)
    np.testing.assert_allclose(found, [first, 2 * math.sqrt(9 * 0.01)], rtol=1e-6)


def test_noised_cube_stays_in_the_ball_of_the_bound(key):
    corners = jnp.array(list(itertools.product((0.0, 1.0), repeat=3)))
    points = noise.bounded_noise(key, jnp.tile(corners, (500, 1)), variance=0.2)
    reach = np.linalg.norm(np.asarray(points) - 0.5, axis=1).max()
    bound = certificates.bounds(np.ones(1), np.array([0.2]), 3)[0]  # at JSD 1: 2 sqrt(V) + 2 C
    radius = (bound - 2 * math.sqrt(0.6)) / 4
    assert 0.85 * radius < reach <= radius


@pytest.mark.parametrize("theta", [0.25, 0.5, 1.0, 1.9])
def test_bounded_jsd_of_point_masses_is_the_share_that_does_not_overlap(key, theta):
    # noise on [-1, 1]: D is 0, 1/2 or 1, so a draw counts log 2 with probability theta / 2
    found = certificates.bounded_jsd(key, *clouds(theta), 1 / 3)
    share = theta / 2
    error = math.log(2) * math.sqrt(share * (1 - share) / (2 * _POINTS))
    assert abs(found - share * math.log(2)) < 5 * error


def test_bounded_jsd_is_log_2_apart_and_0_for_equal_clouds(key):
    assert certificates.bounded_jsd(key, *clouds(2.1), 1 / 3) == pytest.approx(math.log(2))
    assert certificates.bounded_jsd(key, *clouds(0.0), 1 / 3) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("theta", "expected"), [(0.5, 0.030311), (1, 0.111421), (4, 0.632720)])
def test_gaussian_jsd_of_point_masses_is_that_of_quadrature(key, theta, expected):
    x = np.linspace(-12, 12, 20001)
    p = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    terms = -np.logaddexp(0, theta * (x - theta / 2))  # log D at the data
    deviation = math.sqrt(
        np.sum(p * terms**2) * (x[1] - x[0]) - (2 * (expected - math.log(2)) / 2) ** 2
    )
    found = certificates.gaussian_jsd(key, *clouds(theta), 1.0)
    assert abs(found - expected) < 5 * deviation / math.sqrt(2 * _POINTS)


def test_assignment_distance_is_that_of_sorting_in_one_dimension(rng):
    x, y = rng.normal(size=(50, 1)), 3 * rng.normal(size=(50, 1)) + 1
    expected = np.mean(np.abs(np.sort(x[:, 0]) - np.sort(y[:, 0])))
    assert certificates.assignment_distance(x, y) == pytest.approx(expected)


def test_assignment_distance_of_shifted_and_permuted_clouds_is_the_shift(rng):
    x = rng.normal(size=(40, 3))
    shifted = rng.permutation(x) + np.array([3.0, 4.0, 0.0])
    assert certificates.assignment_distance(x, shifted) == pytest.approx(5.0)


@pytest.mark.thorough
def test_certificate_of_the_clouds_is_above_their_distance(key):
    real_key, fake_key = jax.random.split(key)
    real = jax.random.uniform(real_key, (60, 2))
    fake = 0.5 * jax.random.uniform(fake_key, (60, 2))
    levels = np.array([[0.3, 0.01], [0.03, 0.05], [0.003, 0.2]])
    found = certificates.certify(key, levels, real, fake)
    np.testing.assert_array_equal(found.variances, levels[:, 0])
    np.testing.assert_array_equal(found.learned, certificates.bounds(*levels.T[::-1], 2))
    np.testing.assert_array_equal(
        found.cloud, certificates.bounds(found.cloud_jsd, levels[:, 0], 2)
    )
    assert (found.cloud > found.distance).all()
    assert (np.diff(found.cloud_jsd) > 0).all()
    assert (np.diff(found.gaussian_jsd) > 0).all()
    assert found.diameter == pytest.approx(math.sqrt(2))
