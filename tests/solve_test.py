"""Solves under a ridge: Cholesky and conjugate gradients against float64, failures, memory."""

import functools
import math
import os
import re
import subprocess
import sys

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
@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("n", [10, 60])
def test_a_system_over_devices_is_that_of_one(n, typed, rng, monkeypatch):
    """With its gradient; of fewer points than pivots, and of more, whose shares are fewer.

    Queries are solved for one of each device at a time.
    """
    monkeypatch.setattr(_solve, "NUM_PIVOTS", 40)
    x, weights = (jnp.asarray(rng.normal(size=(n, 3)), jnp.float32) for _ in range(2))
    kernel = kernels.imq_mixture([1.0, 2.0])

    def both(x, weights, axis_name=None):
        def scores(x, queries):
            own = score.stein_score(x, kernel, ridge=0.3, axis_name=axis_name)
            at = score.stein_score_at(queries, x, kernel, ridge=0.3, axis_name=axis_name)
            return own, at

        value, pull = jax.vjp(scores, x, weights / 2)
        return *value, *pull((weights, jnp.sin(weights)))

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("i",))
    rows = jax.sharding.PartitionSpec("i")
    spread = jax.shard_map(
        functools.partial(both, axis_name="i"),
        mesh=mesh,
        in_specs=rows,
        out_specs=rows,
        check_vma=typed,
    )
    for got, want in zip(jax.jit(spread)(x, weights), both(x, weights), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-4 * np.abs(want).max())


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


def stacked(rng, count=3, n=6):
    points = jnp.asarray(rng.normal(size=(count, n, 2)), jnp.float32)
    return jax.vmap(lambda x: kernels.gram(kernels.rbf_mixture(1.0), x))(points), points


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices solve batches at once")
def test_lapack_never_works_off_a_batch(rng):
    """Two batches at once wait for each other's threads for ever, on CPUs (jaxlib 0.10)."""
    grams, b = stacked(rng)

    def solve(gram, b):
        return _solve.dense(gram, jnp.float32(1.0))(b)

    program = jax.jit(jax.vmap(jax.grad(lambda gram, b: jnp.sum(solve(gram, b) ** 2))))
    text = program.lower(grams, b).compile().as_text()
    calls = [line for line in text.splitlines() if 'custom_call_target="lapack' in line]
    assert len(calls) >= 2
    assert not [line for line in calls if "f32[3," in line]


def test_many_solves_are_each_on_its_own(rng):
    """Whatever is mapped: the matrices, the right-hand sides, both, or both twice."""
    grams, b = stacked(rng)

    def solve(gram, b):
        return _solve.dense(gram, jnp.float32(0.5))(b)

    expected = np.stack([solve(gram, side) for gram, side in zip(grams, b, strict=True)])
    np.testing.assert_allclose(jax.vmap(solve)(grams, b), expected, rtol=1e-6)
    twice = jax.vmap(jax.vmap(solve))(grams[None], b[None])[0]
    np.testing.assert_allclose(twice, expected, rtol=1e-6)
    of_one = jax.vmap(solve, in_axes=(None, 0))(grams[1], b)
    np.testing.assert_allclose(of_one[1], expected[1], rtol=1e-6)
    by_matrix = jax.vmap(solve, in_axes=(0, None))(grams, b[1])
    np.testing.assert_allclose(by_matrix[1], expected[1], rtol=1e-6)


POPULATION = """
import functools, jax, jax.numpy as jnp
from kernelgrad import kernels, objectives
rule = functools.partial(kernels.median_mixture, kernels.imq_mixture)
def run(ridge, key, x, y):
    def body(x, key):
        direction, info = objectives.kl(rule, ridge=ridge)(key, x, y)
        return x - 0.01 * direction, info["mmd"]
    return jax.lax.scan(body, x, jax.random.split(key, 5))
key, devices = jax.random.key(0), jax.device_count()
x = jax.random.normal(key, (devices, 64 // devices, 64, 2))
ridges = jnp.linspace(1.0, 9.0, 64).reshape(devices, -1)
keys = jax.random.split(key, ridges.shape)
jax.block_until_ready(jax.pmap(jax.vmap(run))(ridges, keys, x, x + 1))
"""


@pytest.mark.thorough
@pytest.mark.parametrize("devices", [1, 2])
def test_a_population_of_kl_ends(devices):
    """In a process of its own, for what waits for ever cannot be stopped in this one."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    subprocess.run(
        [sys.executable, "-c", POPULATION],
        env={**os.environ, "XLA_FLAGS": flags, "OPENBLAS_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )


# ---------------------------------------------------------------------- a batch of points on a CPU


@pytest.mark.parametrize(("n", "columns"), [(11, 100), (100, 11), (200, 6)])
def test_a_batch_is_solved_for_by_few_columns_at_a_time(rng, x64, n, columns):
    """More than some 1000 entries OpenBLAS gives to threads that wait for those of XLA."""
    x, b = rng.normal(size=(n, 3)), rng.normal(size=(n, columns))
    gram = oracles.gram("rbf_mixture", x, x, 1.0)

    def solve(gram, b):
        return _solve.dense(gram, jnp.asarray(1e-3))(b)

    program = jax.jit(solve).lower(jnp.asarray(gram), jnp.asarray(b)).compile()
    sides = [
        math.prod(int(size) for size in shape.split(","))
        for shape in re.findall(r"f64\[([\d,]+)\]\S* custom-call\(.*trsm", program.as_text())
    ]
    assert sides
    assert max(sides) <= 1000
    expected = np.linalg.solve(gram + 1e-3 * np.eye(n), b)
    np.testing.assert_allclose(solve(jnp.asarray(gram), jnp.asarray(b)), expected, rtol=1e-8)
    np.testing.assert_allclose(program(jnp.asarray(gram), jnp.asarray(b)), expected, rtol=1e-8)
