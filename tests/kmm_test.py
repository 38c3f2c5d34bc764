"""Kernel mean matching: the quadratic program by SciPy, its constraints, known ratios."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy.optimize import minimize

from kernelgrad import kernels, kmm


def matched(p, q, lengthscale, **options):
    fit = jax.jit(
        lambda p, q: kmm.kernel_mean_matching(p, q, kernels.imq_mixture(lengthscale), **options)
    )
    return np.asarray(fit(jnp.asarray(p), jnp.asarray(q)))


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize(("top", "slack"), [(1.5, 0.0), (4.0, 0.05), (1000.0, 0.3)])
def test_weights_are_the_minimum(rng, top, slack):
    p, q = rng.normal(1.0, 0.6, size=(9, 2)), rng.normal(size=(14, 2))
    k_qq = oracles.gram("imq_mixture", q, q, 0.5)
    k_qp = oracles.gram("imq_mixture", q, p, 0.5)

    def discrepancy(beta):
        return beta @ k_qq @ beta / 14**2 - 2 * np.mean(k_qp, axis=1) @ beta / 14

    def slope(beta):  # by differences SLSQP is 1e-5 off on some processors
        return 2 * k_qq @ beta / 14**2 - 2 * np.mean(k_qp, axis=1) / 14

    found = minimize(
        discrepancy,
        np.ones(14),
        jac=slope,
        bounds=[(0, top)] * 14,
        constraints=[
            {"type": "ineq", "fun": lambda b: np.mean(b) - 1 + slack},
            {"type": "ineq", "fun": lambda b: 1 + slack - np.mean(b)},
        ],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    assert found.success
    with jax.enable_x64(True):
        weights = matched(p, q, 0.5, max_weight=top, tolerance=slack, num_steps=3000)
    np.testing.assert_allclose(weights, found.x, atol=1e-5)
    assert discrepancy(weights) <= found.fun + 1e-12
    assert np.min(weights) >= 0
    assert np.max(weights) <= top
    assert abs(np.mean(weights) - 1) <= slack + 1e-12
    assert np.any(weights < 1e-9)


@pytest.mark.slow
def test_discrepancy_falls_as_promised(rng):
    p, q = rng.normal(0.7, 0.8, size=(60, 2)), rng.normal(size=(50, 2))
    k_qq = oracles.fast_gram("imq_mixture", q, q, 2.0)
    k_qp = oracles.fast_gram("imq_mixture", q, p, 2.0)

    def discrepancy(beta):
        return beta @ k_qq @ beta / 50**2 - 2 * np.mean(k_qp, axis=1) @ beta / 50

    with jax.enable_x64(True):
        best = matched(p, q, 2.0, max_weight=5.0, tolerance=0.1, num_steps=5000)
        for steps in (10, 100):
            weights = matched(p, q, 2.0, max_weight=5.0, tolerance=0.1, num_steps=steps)
            excess = discrepancy(weights) - discrepancy(best)
            assert -1e-12 < excess < 4 * np.mean((best - 1) ** 2) / steps**2


def test_projection_is_the_nearest_point(rng):
    """Against the shift by brute force over its breakpoints; inactive, low and high slabs."""
    for _ in range(10):
        point, top, slack = rng.normal(rng.normal(1, 2), 2, size=7), 1 + rng.uniform(), 0.2
        with jax.enable_x64(True):
            got = kmm._project(jnp.asarray(point), jnp.asarray(top), jnp.asarray(slack))
        found = minimize(
            lambda x, point=point: np.sum((x - point) ** 2),
            np.ones(7),
            jac=lambda x, point=point: 2 * (x - point),
            bounds=[(0, top)] * 7,
            constraints=[
                {"type": "ineq", "fun": lambda x: np.mean(x) - 0.8},
                {"type": "ineq", "fun": lambda x: 1.2 - np.mean(x)},
            ],
            method="SLSQP",
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(got, found.x, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("top", [20.0, 1e10, 1e30, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_no_bound_swamps_the_projection(rng, top, dtype):
    """A bound that no weight reaches changes nothing, whatever its size."""
    p, q = (rng.normal(size=(50, 4)).astype(np.float32) for _ in range(2))
    fit = jax.jit(
        lambda top: kmm.kernel_mean_matching(
            p, q, kernels.imq_mixture(1.0), max_weight=top, tolerance=0.0
        )
    )
    weights = fit(jnp.float32(top))
    assert abs(np.mean(np.asarray(weights, np.float64)) - 1) < 1e-6
    np.testing.assert_array_equal(weights, fit(jnp.float32(100.0)))
    low = kmm.kernel_mean_matching(
        p, jnp.asarray(q, dtype), kernels.imq_mixture(1.0), max_weight=top, tolerance=0.0
    )
    assert low.dtype == np.float32  # the wider of both
    assert abs(np.mean(np.asarray(low, np.float64)) - 1) < 1e-3


def test_projection_of_far_entries_has_its_mean(rng):
    """One entry far from the others: the bracket follows the entries, the mean its goal."""
    for far, top in ((1e6, jnp.inf), (-1e6, jnp.inf), (1e6, 3.0)):
        point = jnp.asarray(np.append(rng.normal(size=20), far), jnp.float32)
        got = kmm._project(point, jnp.float32(top), jnp.float32(0))
        np.testing.assert_allclose(np.mean(np.asarray(got, np.float64)), 1, rtol=1e-6)


def test_weights_of_samples_that_are_not_finite_are_nan(rng):
    x = jnp.asarray(rng.normal(size=(6, 2)), jnp.float32)
    for p, q in ((x.at[0, 0].set(jnp.nan), x), (x, x.at[0, 0].set(jnp.nan))):
        assert np.isnan(matched(p, q, 1.0, max_weight=2.0, tolerance=0.1)).all()


def test_equal_samples_keep_weight_one(rng):
    x = rng.normal(size=(30, 2)).astype(np.float32)
    weights = matched(x, x, 1.0, max_weight=10.0, tolerance=0.1)
    np.testing.assert_allclose(weights, 1, atol=1e-3)


@pytest.mark.thorough
def test_weighted_moments_are_those_of_p(rng):
    p, q = rng.normal(0.5, 0.8, size=(500, 1)), rng.normal(size=(400, 1))
    weights = matched(*(x.astype(np.float32) for x in (p, q)), 1.0, max_weight=20.0, tolerance=0.05)
    assert weights.dtype == np.float32
    for power in (1, 2):
        error = np.mean(weights * q[:, 0] ** power) - np.mean(p**power)
        assert abs(error) < 5 * np.std(weights * q[:, 0] ** power) / 20
        assert abs(np.mean(q**power) - np.mean(p**power)) > 3 * abs(error)


def test_errors_name_the_argument():
    x, kernel = jnp.ones((4, 2)), kernels.rbf_mixture(1.0)
    good = {"max_weight": 2.0, "tolerance": 0.1}
    for p, q, options, message in (
        (jnp.ones(4), x, {}, "p: got shape"),
        (x, jnp.ones((4, 3)), {}, "q: got shape"),
        (x, jnp.ones((4, 2), jnp.int32), {}, "q: got dtype int32"),
        (x, x, {"max_weight": 0.9}, r"max_weight: got 0.9; expected values in \[1, infinity\)"),
        (x, x, {"tolerance": -0.1}, "tolerance: got -0.1"),
        (x, x, {"tolerance": jnp.ones(2)}, "tolerance: got shape"),
        (x, x, {"num_steps": 0}, "num_steps: got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            kmm.kernel_mean_matching(p, q, kernel, **good | options)
