"""Solves under a ridge: Cholesky and conjugate gradients against float64, failures, memory."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import memory
import numpy as np
import oracles
import pytest

from kernelgrad import _solve, kernels, pairwise, score


@pytest.fixture
def without_gram(monkeypatch):
    """The Stein estimators as they are beyond DENSE_SAMPLES."""
    monkeypatch.setattr(score, "DENSE_SAMPLES", 0)
    monkeypatch.setattr(score, "QUERY_BLOCK", 3)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@jax.jit
def both_ways(kernel, x, ridge, b):
    by_factor = _solve.dense(kernels.gram(kernel, x), ridge)(b)
    return by_factor, _solve.matrix_free(kernel, x, ridge)(b)


def relative_errors(got, expected):
    """By column."""
    difference = np.linalg.norm(np.asarray(got, np.float64) - expected, axis=0)
    return difference / np.linalg.norm(expected, axis=0)


def clouds(rng, n=40, q=7, d=3):
    return rng.normal(size=(n, d)) + 0.5, rng.normal(size=(q, d))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("family", "d", "ridge", "limit"),
    [
        ("imq_mixture", 50, 2.5, 1e-4),
        ("imq_mixture", 50, 5e-3, 1e-3),
        ("imq_mixture", 2, 2.5, 1e-4),
        ("imq_mixture", 2, 5e-3, 1e-2),
        ("rbf_mixture", 2, 5e-3, 2e-2),
    ],
)
def test_stein_without_gram_is_near_float64_and_no_worse_than_cholesky(
    family, d, ridge, limit, rng
):
    """The first ridge is the default at n = 600, the second seven times the documented floor."""
    x, scale = rng.normal(size=(600, d)).astype(np.float32), math.sqrt(2 * d)
    b = oracles.fast_gradient_sum(family, x, x, scale)
    gram = oracles.fast_gram(family, x, x, scale)
    expected = np.linalg.solve(gram + ridge * np.eye(len(x)), b)
    kernel = getattr(kernels, family)(scale)
    repulsion = pairwise.gradient_sum(kernel, jnp.asarray(x), None)
    by_factor, got = both_ways(kernel, x, jnp.float32(ridge), repulsion)
    errors = relative_errors(got, expected)
    assert np.all(errors < limit)
    assert np.all(errors < np.maximum(1e-4, 2 * relative_errors(by_factor, expected)))


@pytest.mark.thorough
def test_columns_keep_their_accuracy_whatever_their_size(rng):
    """The squares of the first underflow, those of the last overflow."""
    x = rng.normal(size=(300, 4)).astype(np.float32)
    b = rng.normal(size=(300, 4)) * np.array([1e-25, 0.0, 1.0, 1e25])
    gram = oracles.fast_gram("imq_mixture", x, x, 2.0)
    expected = np.linalg.solve(gram + 0.1 * np.eye(300), b)
    _, got = both_ways(kernels.imq_mixture(2.0), x, jnp.float32(0.1), b.astype(np.float32))
    np.testing.assert_array_equal(got[:, 1], 0)
    kept = np.array([0, 2, 3])
    assert np.all(relative_errors(got[:, kept], expected[:, kept]) < 1e-4)


@pytest.mark.thorough
def test_coinciding_points_are_solved_for(rng):
    x = np.repeat(rng.normal(size=(20, 3)), 10, axis=0).astype(np.float32)
    b = rng.normal(size=(200, 2)).astype(np.float32)
    gram = oracles.fast_gram("rbf_mixture", x, x, 1.0)
    expected = np.linalg.solve(gram + 0.01 * np.eye(200), b)
    _, got = both_ways(kernels.rbf_mixture(1.0), x, jnp.float32(0.01), b)
    assert np.all(relative_errors(got, expected) < 1e-3)


@pytest.mark.thorough
def test_what_did_not_converge_is_nan(rng, monkeypatch):
    """Columns stand alone: the second is solved, being 0."""
    monkeypatch.setattr(_solve, "NUM_PIVOTS", 1)
    monkeypatch.setattr(_solve, "_CG_STEPS", 2)
    x = rng.normal(size=(300, 2)).astype(np.float32)
    b = rng.normal(size=(300, 3)).astype(np.float32)
    b[:, 1] = 0
    got = _solve.matrix_free(kernels.imq_mixture(2.0), jnp.asarray(x), jnp.float32(1e-3))(b)
    assert np.all(np.isnan(got[:, [0, 2]]))
    np.testing.assert_array_equal(got[:, 1], 0)


@pytest.mark.thorough
@pytest.mark.usefixtures("without_gram")
def test_a_sample_that_is_nan_makes_all_scores_nan(rng):
    x, _ = clouds(rng)
    x[3, 0] = np.nan
    got = jax.jit(lambda x: score.stein_score(x, kernels.imq_mixture(2.0), ridge=0.5))(x)
    assert np.all(np.isnan(got))


@pytest.mark.thorough
@pytest.mark.parametrize("solver", ["dense", "matrix_free"])
def test_no_points_are_too_alike_for_twice_the_documented_floor(solver, rng):
    """A lengthscale of 300 standard deviations: K is all ones but for the last digits."""
    x = rng.normal(size=(600, 2)).astype(np.float32)
    b = rng.normal(size=(600, 1)).astype(np.float32)
    ridge = jnp.float32(20 * 600 * float(jnp.finfo(jnp.float32).eps))
    kernel = kernels.rbf_mixture(300.0)
    got = both_ways(kernel, x, ridge, b)[solver == "matrix_free"]
    assert np.all(np.isfinite(got))


# ------------------------------------------------------------------------------- through the front


def scores(x, queries, kernel, ridge):
    inside = score.stein_score(x, kernel, ridge=ridge)
    outside = score.stein_score_at(queries, x, kernel, ridge=ridge)
    return inside, outside, score.rkhs_score_at(queries, x, kernel, ridge=ridge)


def deep_kernel():
    return kernels.feature_kernel(
        kernels.imq_mixture([1.0, 2.0]), lambda scale, z: jnp.tanh(scale * z), 0.7
    )


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("deep", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_estimators_and_their_gradients_do_not_depend_on_the_way(deep, rng, monkeypatch):
    x, queries = map(jnp.asarray, clouds(rng))
    kernel = deep_kernel() if deep else kernels.rbf_mixture([0.9, 1.6], [1.0, 2.0])

    def total(*arguments):
        return sum(jnp.sum(jnp.sin(part)) for part in scores(*arguments))

    def outcome():
        arguments = (x, queries, kernel, jnp.asarray(0.3))
        gradient = jax.grad(total, argnums=(0, 1, 2, 3))
        return jax.jit(lambda *a: (scores(*a), gradient(*a)))(*arguments)

    expected = outcome()
    monkeypatch.setattr(score, "DENSE_SAMPLES", 0)
    monkeypatch.setattr(score, "QUERY_BLOCK", 3)
    monkeypatch.setattr(_solve, "TARGET_ERROR", 1e-10)
    chex.assert_trees_all_close(outcome(), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.thorough
@pytest.mark.usefixtures("without_gram")
def test_two_devices_are_one(rng):
    x, queries = (points.astype(np.float32) for points in clouds(rng, n=24, q=6))
    kernel = kernels.imq_mixture([1.0, 2.0])
    expected = (
        score.stein_score(x, kernel, ridge=0.3),
        score.stein_score_at(queries, x, kernel, ridge=0.3),
    )

    def device(x, queries):
        return (
            score.stein_score(x, kernel, ridge=0.3, axis_name="i"),
            score.stein_score_at(queries, x, kernel, ridge=0.3, axis_name="i"),
        )

    got = jax.pmap(device, axis_name="i")(x.reshape(2, 12, 3), queries.reshape(2, 3, 3))
    got = jax.tree.map(lambda a: a.reshape(-1, 3), got)
    chex.assert_trees_all_close(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.thorough
@pytest.mark.usefixtures("without_gram")
def test_nothing_made_has_a_size_of_all_pairs():
    x, queries = jnp.ones((5000, 2)), jnp.ones((4000, 2))
    kernel = kernels.imq_mixture([1.0, 2.0])
    of_samples = functools.partial(score.stein_score, kernel=kernel, ridge=1.0)
    at = functools.partial(score.stein_score_at, kernel=kernel, ridge=1.0)
    linear = 5000 * _solve.NUM_PIVOTS
    assert memory.largest_buffer(of_samples, x) <= linear
    assert memory.largest_buffer(jax.grad(lambda x: jnp.sum(of_samples(x))), x) <= linear
    assert memory.largest_buffer(at, queries, x) <= linear
    slope = jax.grad(lambda q, x: jnp.sum(at(q, x)), argnums=(0, 1))
    assert memory.largest_buffer(slope, queries, x) <= linear
