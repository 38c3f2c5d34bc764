"""KALE in an RKHS: both of its problems, its limits KL and MMD, and the direction of its flow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy.optimize import minimize

from kernelgrad import kale_rkhs, kernels, mmd, objectives, ratio

fit = jax.jit(kale_rkhs.fit)


def _clouds(rng, n=6, m=8, d=2):
    return rng.normal(size=(n, d)), rng.normal(0.5, 1.2, size=(m, d))


def _primal(x, y, regularization):
    """The maximum over functions in the span of all points, by a quasi-Newton method."""
    points, n = np.concatenate([x, y]), len(x)
    gram = oracles.gram("rbf_mixture", points, points, 1.0)

    def loss(c):
        h = gram @ c
        value = 1 + h[:n].mean() - np.exp(h[n:]).mean() - regularization / 2 * c @ h
        weights = np.concatenate([np.full(n, 1 / n), -np.exp(h[n:]) / len(y)])
        return -value, -gram @ (weights - regularization * c)

    options = {"maxiter": 20_000, "ftol": 1e-15, "gtol": 1e-10}
    best = minimize(loss, np.zeros(len(points)), jac=True, method="L-BFGS-B", options=options)
    return -(1 + regularization) * best.fun, gram @ best.x


@pytest.mark.thorough
@pytest.mark.parametrize("regularization", [0.01, 0.3])
def test_the_dual_reaches_the_maximum_of_the_primal(rng, regularization):
    x, y = _clouds(rng)
    with jax.enable_x64(True):
        kernel = kernels.rbf_mixture(1.0)
        found = fit(x, y, kernel, regularization=regularization, tolerance=1e-12)
        h = np.asarray(ratio.log_density_ratio(found.model, np.concatenate([x, y])))
        found = jax.tree.map(np.asarray, found)
    value, function = _primal(x, y, regularization)
    np.testing.assert_allclose(found.value, value, rtol=1e-8)
    np.testing.assert_allclose(h, function, atol=1e-4)
    assert 0 <= found.model.gap < 1e-12


@pytest.mark.thorough
def test_its_limits_are_kl_and_half_of_mmd():
    """KL of two laws on three points, where every function is in the RKHS."""
    places = np.array([[0.0, 0.0], [1.0, 0.5], [-0.5, 2.0]])
    x, y = np.repeat(places, [5, 3, 2], axis=0), np.repeat(places, [2, 3, 5], axis=0)
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    with jax.enable_x64(True):
        kernel = kernels.rbf_mixture(1.0)
        small = fit(x, y, kernel, regularization=1e-6, tolerance=1e-12)
        large = fit(x, y, kernel, regularization=1e6, tolerance=1e-12)
        assert max(small.model.gap, large.model.gap) <= 1e-12
        r = np.asarray(ratio.density_ratio(small.model, places))
        half = np.asarray(mmd.mmd_v_statistic(x, y, kernel) / 2)
        small, large = np.asarray(small.value), np.asarray(large.value)
    np.testing.assert_allclose(small, np.sum(p * np.log(p / q)), rtol=1e-4)
    np.testing.assert_allclose(r, p / q, rtol=1e-4)
    np.testing.assert_allclose(large, half, rtol=1e-5)
    single = fit(jnp.float32(x), jnp.float32(y), kernels.rbf_mixture(1.0), regularization=1e4)
    np.testing.assert_allclose(single.value, half, rtol=1e-3)


@pytest.mark.thorough
def test_the_flow_descends_kale_and_with_much_regularization_half_of_mmd(key, rng):
    x, y = _clouds(rng)
    with jax.enable_x64(True):
        kernel = kernels.rbf_mixture(1.0)
        make = lambda *_, axis_name: kernel  # noqa: E731
        direction, info = jax.jit(objectives.kale_flow(make, regularization=0.1))(key, x, y)
        bump = np.zeros_like(x)
        bump[2, 1] = 1e-4
        up, down = (
            float(fit(x + sign * bump, y, kernel, regularization=0.1, tolerance=1e-12).value)
            for sign in (1, -1)
        )
        calm, _ = jax.jit(objectives.kale_flow(make, regularization=1e6))(key, x, y)
        descent, _ = jax.jit(objectives.mmd_v(make))(key, x, y)
        direction, calm, descent = map(np.asarray, (direction, calm, descent))
    np.testing.assert_allclose(direction[2, 1], len(x) * (up - down) / 2e-4, rtol=2e-3)
    np.testing.assert_allclose(info["kale"], (up + down) / 2, rtol=1e-4)
    np.testing.assert_allclose(calm, descent / 2, rtol=1e-4)


@pytest.mark.thorough
def test_a_penalty_near_the_end_of_the_range_leaves_half_of_mmd(rng):
    x, y = (jnp.asarray(points, jnp.float32) for points in _clouds(rng))
    kernel = kernels.rbf_mixture(1.0)
    half = mmd.mmd_v_statistic(x, y, kernel) / 2
    for size in (1e6, 1e37):
        found = jax.jit(lambda x, s: fit(x, y, kernel, regularization=s).value)(x, size)
        np.testing.assert_allclose(found, half, rtol=1e-4)


@pytest.mark.thorough
def test_two_clouds_far_apart_stop_with_the_gap_they_say(rng):
    x, y = (jnp.asarray(points, jnp.float32) for points in _clouds(rng))
    found = fit(x + 30, y, kernels.rbf_mixture(1.0), regularization=1e-3)
    assert jnp.isfinite(found.value)
    assert found.model.gap < 1e-4


def test_bad_numbers_are_named():
    call = functools.partial(kale_rkhs.fit, np.ones((3, 2)), np.ones((3, 2)))
    kernel = kernels.rbf_mixture(1.0)
    with pytest.raises(ValueError, match=r"^regularization: got 0[.]; expected values in \(0, inf"):
        call(kernel, regularization=0.0)
    with pytest.raises(ValueError, match=r"^regularization: got -1[.]; expected values in \(0"):
        objectives.kale_flow(lambda *_, axis_name: kernel, regularization=-1.0)
    with pytest.raises(ValueError, match=r"^num_steps: got 0; expected an integer >= 1"):
        call(kernel, regularization=1.0, num_steps=0)
    with pytest.raises(ValueError, match=r"^kernel: got riesz, whose k\(0\) is not positive"):
        call(kernels.riesz(), regularization=1.0)
