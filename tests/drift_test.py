"""The drifting field: its algorithm in loops, four sums of the Laplace kernel, and outliers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from memory import compiled_megabytes

from kernelgrad import drift, kernels, objectives, pairwise

TEMPERATURES = (0.05, 0.2, 1.0)
field_of = jax.jit(drift.drift)


def _clouds(rng, n=7, m=5, d=3):
    return rng.normal(size=(n, d)), rng.normal(0.6, 1.2, size=(m, d))


def test_it_is_the_algorithm_of_the_paper(rng, monkeypatch):
    x, y = _clouds(rng)
    for at_once in (1 << 20, 24):  # all rows, and two of twelve columns at a time
        monkeypatch.setattr(drift, "_PAIRS_AT_ONCE", at_once)
        with jax.enable_x64(True):
            got = np.asarray(drift.drift(jnp.asarray(x), jnp.asarray(y), TEMPERATURES))
        np.testing.assert_allclose(got, oracles.drifting_field(x, y, TEMPERATURES), rtol=1e-8)


@pytest.mark.thorough
def test_it_is_four_sums_of_the_laplace_kernel(rng):
    """With weights c_j^-1/2 and 1/r_i, as A is the kernel over the roots of r_i c_j."""
    x, y = (jnp.asarray(points, jnp.float32) for points in _clouds(rng))
    np.testing.assert_allclose(field_of(x, y, (0.3,)), _four_sums(x, y, 0.3), rtol=1e-3, atol=1e-4)


@jax.jit
def _four_sums(x, y, temperature):
    n, m = len(x), len(y)
    distances = [jnp.sqrt(pairwise.squared_distances(x, points)) for points in (x, y)]
    mean = sum(map(jnp.sum, distances)) / (n * (n + m - 1))
    kernel = kernels.laplace(temperature * mean)
    of_x, of_y = jnp.ones((n, 1)), jnp.ones((m, 1))

    def sums(others, weights):
        own = weights if others is None else 0  # k(x, x) = 1 is no pair
        return pairwise.kernel_sum(kernel, x, others, weights) - own

    rows = sums(None, of_x) + sums(y, of_y)
    of_y = jax.lax.rsqrt(pairwise.kernel_sum(kernel, y, x, of_x))
    of_x = jax.lax.rsqrt(sums(None, of_x))
    push, repel = sums(None, of_x), sums(None, of_x * x)
    pull, attract = sums(y, of_y), sums(y, of_y * y)
    field = (push * attract - pull * repel) / rows
    return field / jnp.sqrt(jnp.mean(jnp.square(field)))


def test_every_temperature_adds_a_field_of_unit_rms_towards_the_data(rng):
    x, y = (jnp.asarray(points, jnp.float32) for points in _clouds(rng))
    fields = [field_of(x, y, (one,)) for one in TEMPERATURES]
    np.testing.assert_allclose([jnp.mean(jnp.square(one)) for one in fields], 1, rtol=1e-5)
    np.testing.assert_allclose(field_of(x, y, TEMPERATURES), sum(fields), atol=1e-5)
    assert np.asarray(fields[-1]).mean(axis=0) @ np.asarray(y.mean(axis=0) - x.mean(axis=0)) > 0


def test_an_outlier_underflows_in_no_softmax(rng):
    """Its kernels, e^-300 and less, are far below float32; the field is that of float64."""
    x, y = _clouds(rng)
    x[0], y[0] = 40.0, -35.0
    got = field_of(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), (0.02,))
    np.testing.assert_allclose(got, oracles.drifting_field(x, y, (0.02,)), rtol=1e-3, atol=1e-3)


def test_clouds_far_apart_for_their_size_underflow_in_no_field(rng):
    """Of many samples close together every kernel with the data is e^-280 or less."""
    x, y = rng.normal(scale=0.01, size=(60, 2)), rng.normal(2.0, 1.0, size=(3, 2))
    got = field_of(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), (0.05,))
    np.testing.assert_allclose(got, oracles.drifting_field(x, y, (0.05,)), rtol=1e-3, atol=1e-3)


def _mean_shift(x, y, weight):
    """Sums of weights times differences over sums of weights, as a drift with one softmax."""
    shift = np.zeros_like(x)
    for i, a in enumerate(x):
        w = np.array([weight(np.linalg.norm(a - b)) for b in y])
        shift[i] = w @ (y - a) / w.sum()
    return shift


def _sharp(x, y, weight, sharp):
    """Sums of w (y - x) over sums of the kernel whose gradient in x they are."""
    field = np.zeros_like(x)
    for i, a in enumerate(x):
        distance = np.array([np.linalg.norm(a - b) for b in y])
        field[i] = weight(distance) @ (y - a) / sharp(distance).sum()
    return field


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("family", ["gaussian", "laplace"])
def test_the_conservative_drift_is_a_difference_of_kde_scores(key, rng, family):
    """Of matern32(sqrt(3) tau) for exp(-r / tau); a Gaussian's drift is l^2 times it."""
    x, y = _clouds(rng)
    l = 0.7
    if family == "gaussian":
        kernel = lambda: kernels.rbf_mixture(l)  # noqa: E731
        weight = lambda r: np.exp(-(r**2) / (2 * l**2))  # noqa: E731
        expected = (_mean_shift(x, y, weight) - _mean_shift(x, x, weight)) / l**2
    else:
        kernel = lambda: kernels.matern32(np.sqrt(3) * l)  # noqa: E731
        weight = lambda r: np.exp(-r / l)  # noqa: E731
        sharp = lambda r: l**2 * (1 + r / l) * np.exp(-r / l)  # noqa: E731
        expected = _sharp(x, y, weight, sharp) - _sharp(x, x, weight, sharp)
    with jax.enable_x64(True):
        objective = objectives.conservative_drift(lambda *_, axis_name: kernel())
        direction, _ = jax.jit(objective)(key, jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(direction, -expected, rtol=1e-8, atol=1e-12)


def test_the_largest_floats_have_a_unit_too():
    """Outside of jit XLA multiplies by its inverse, which is 0 of 2^127: there was no field."""
    x = jnp.array([[3e38], [-1.1e38]])
    for points in drift._in_a_unit(x, -x, None):
        np.testing.assert_allclose(jnp.abs(points), jnp.abs(x) / 2.0**126, rtol=1e-6)


def test_points_in_one_place_have_no_field():
    np.testing.assert_array_equal(field_of(jnp.ones((7, 3)), jnp.ones((5, 3)), (0.3,)), 0)


@pytest.mark.thorough
def test_fifty_thousand_points_take_less_than_a_gibibyte():
    assert compiled_megabytes(drift.drift, (50_000, 64), (50_000, 64)) < 1024


@pytest.mark.parametrize("function", [functools.partial(drift.drift, *[jnp.ones((3, 2))] * 2)])
@pytest.mark.parametrize("make", [objectives.drift, None])
def test_bad_temperatures_are_named(function, make):
    function = make or function
    with pytest.raises(ValueError, match=r"^temperatures: got \[0.1 0. \]; expected values in \(0"):
        function((0.1, 0.0))
    with pytest.raises(ValueError, match=r"^temperatures: got shape \(0,\); expected \(t\)"):
        function(())


def test_one_sample_has_nothing_to_be_repelled_by():
    with pytest.raises(ValueError, match=r"^number of samples: got 1; expected an integer >= 2"):
        drift.drift(jnp.ones((1, 2)), jnp.ones((3, 2)))
