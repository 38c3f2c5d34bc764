"""Weighted samples: what counts twice is what is there twice; loops; devices; errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kernelgrad import _tiles, kernels, ksd, mmd, svgd

KERNEL = kernels.imq_mixture([0.8, 2.0])


def clouds(rng):
    """Points, scores, and how often each is there."""
    x, y, s = (rng.normal(size=(n, 3)) for n in (6, 4, 6))
    return x, y + 0.5, s, np.array([1, 3, 0, 2, 1, 1]), np.array([2, 1, 1, 4])


def statistics(x, y, s, w=None, v=None):
    """Of all functions that take weights; the kernel is seen through features in the last one."""
    both = {"x_weights": w, "y_weights": v}
    deep = kernels.feature_kernel(KERNEL, lambda p, x: jnp.tanh(p * x), 0.5)
    return {
        "mmd": mmd.mmd_v_statistic(x, y, KERNEL, **both),
        "gradient": mmd.mmd_gradient(x, y, KERNEL, **both),
        "value_and_gradient": mmd.mmd_value_and_gradient(x, y, KERNEL, **both),
        "witness": mmd.witness_gradient(x[:2], x, y, KERNEL, **both),
        "ksd": ksd.ksd_v_statistic(x, s, KERNEL, weights=w),
        "svgd": svgd.svgd_direction(x, s, KERNEL, weights=w),
        "deep": svgd.svgd_direction(x, s, deep, weights=w),
    }


def mmd_of_the_loops(x, y, p, q):
    """Under KERNEL, in float64, of weights whose sum is 1."""

    def k(a, b):
        r2 = np.sum((a - b) ** 2)
        return sum(1 / np.sqrt(1 + r2 / l**2) for l in (0.8, 2.0))

    def mean(a, b, p, q):
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b))]
        return sum(p[i] * q[j] * k(a[i], b[j]) for i, j in pairs)

    return mean(x, x, p, p) + mean(y, y, q, q) - 2 * mean(x, y, p, q)


@pytest.mark.thorough
def test_what_counts_twice_is_what_is_there_twice(rng):
    x, y, s, w, v = clouds(rng)
    place = np.repeat(np.arange(6), w)
    first = np.searchsorted(place, np.arange(6))[w > 0]
    with jax.enable_x64(True):
        evaluate = jax.jit(lambda *arguments: statistics(*arguments))
        got = evaluate(x, y, s, 0.1 * w, 7.0 * v)
        expected = evaluate(x[place], np.repeat(y, v, axis=0), s[place])
        numbers = ("mmd", "ksd")
        for name in numbers:
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-10)
        values, gradient = got["value_and_gradient"]
        np.testing.assert_allclose(values, got["mmd"], rtol=1e-10)
        np.testing.assert_allclose(gradient, got["gradient"], rtol=1e-9, atol=1e-12)
        of_all = np.zeros((6, 3))
        np.add.at(of_all, place, np.asarray(expected["gradient"]))
        np.testing.assert_allclose(gradient, of_all, rtol=1e-9, atol=1e-12)
        for name in ("svgd", "deep"):
            np.testing.assert_allclose(got[name][w > 0], np.asarray(expected[name])[first])


@pytest.mark.thorough
def test_statistics_are_those_of_the_loops_and_alike_weights_are_none(rng):
    x, y, s, w, v = clouds(rng)
    w, v = w + 0.5, v + 0.5
    p, q = w / w.sum(), v / v.sum()

    expected = mmd_of_the_loops(x, y, p, q)
    with jax.enable_x64(True):
        kernel = kernels.imq_mixture([0.8, 2.0])

        @jax.jit
        def evaluate(w, v):
            weights = {"x_weights": w, "y_weights": v}
            return (
                mmd.mmd_v_statistic(x, y, kernel, **weights),
                mmd.mmd_v_statistic(x, y, kernel),
                ksd.ksd_v_statistic(x, s, kernel, weights=w),
                ksd.stein_gram(x, s, kernel),
            )

        got, plain, of_ksd, gram = evaluate(w, v)
        alike = evaluate(np.full(6, 3.0), np.full(4, 0.2))
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    np.testing.assert_allclose(of_ksd, p @ np.asarray(gram) @ p, rtol=1e-10)
    np.testing.assert_allclose(alike[0], plain, rtol=1e-12)
    np.testing.assert_allclose(alike[2], np.mean(np.asarray(gram)), rtol=1e-12)


@pytest.mark.thorough
def test_gradients_are_those_of_the_statistics(rng):
    x, y, _, w, v = clouds(rng)
    with jax.enable_x64(True):
        w, v = w + 0.5, v + 0.5
        weights = {"x_weights": w, "y_weights": v}

        @jax.jit
        def pairs(x):
            def of_ksd(x, w):
                return ksd.ksd_v_statistic(x, -x, KERNEL, weights=w)

            slopes = jax.grad(of_ksd, argnums=(0, 1))(x, w)
            return (
                mmd.mmd_gradient(x, y, KERNEL, **weights),
                jax.grad(lambda x: mmd.mmd_v_statistic(x, y, KERNEL, **weights))(x),
                mmd.witness_gradient(x, x, y, KERNEL, **weights),
                ksd.ksd_gradient(x, lambda x: -x, KERNEL, weights=w),
                *slopes,
                ksd.stein_gram(x, -x, KERNEL),
            )

        gradient, expected, witness, of_ksd, expected_of_ksd, slope, gram = pairs(x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-9)
    np.testing.assert_allclose(gradient, 2 * (w / w.sum())[:, None] * np.asarray(witness))
    np.testing.assert_allclose(of_ksd, expected_of_ksd, rtol=1e-9)
    gram, total = np.asarray(gram), w.sum()
    expected = 2 * gram @ w / total**2 - 2 * (w @ gram @ w) / total**3
    np.testing.assert_allclose(slope, expected, rtol=1e-9)


def test_a_step_moves_weighted_particles(rng):
    x, _, s, w, _ = clouds(rng)
    p = w / w.sum()
    steps = x[:, None] - x  # x_i - x_j
    decay = np.exp(-np.sum(steps**2, axis=2) / 2)
    expected = x + 0.5 * np.einsum("j,ij,ijd->id", p, decay, s[None] + steps)
    with jax.enable_x64(True):
        optimizer, kernel = optax.sgd(0.5), kernels.rbf_mixture(1.0)

        @jax.jit
        def move(x, w):
            state = svgd.init(x, optimizer)
            return svgd.step(state, lambda _: s, kernel, optimizer, weights=w)[0].particles

        got = move(x, 7.0 * w)
    np.testing.assert_allclose(got, expected, rtol=1e-10)


@pytest.mark.thorough
@pytest.mark.parametrize("ring", [False, True])
def test_two_devices_are_one(rng, monkeypatch, ring):
    """Statistics, directions, and gradients in the weights."""
    x, y, s, w, v = clouds(rng)
    arguments = [np.asarray(a, np.float32) for a in (x, y, s, w + 0.5, v)]

    def everything(x, y, s, w, v, axis_name=None):
        def value(w):
            options = {"x_weights": w, "y_weights": v, "axis_name": axis_name}
            statistic, gradient = mmd.mmd_value_and_gradient(x, y, KERNEL, **options)
            other = ksd.ksd_v_statistic(x, s, KERNEL, weights=w, axis_name=axis_name)
            return statistic + other, (statistic, other, gradient)

        slope, (of_mmd, of_ksd, gradient) = jax.grad(value, has_aux=True)(w)
        direction = svgd.svgd_direction(x, s, KERNEL, weights=w, axis_name=axis_name)
        numbers = {"mmd": of_mmd, "ksd": of_ksd}
        return {**numbers, "gradient": gradient, "svgd": direction, "slope": slope}

    one = jax.jit(everything)(*arguments)
    if ring:
        monkeypatch.setattr(_tiles, "DENSE_PAIRS", 0)
    parts = [a.reshape(2, -1, *a.shape[1:]) for a in arguments]
    two = jax.pmap(lambda *a: everything(*a, axis_name="devices"), axis_name="devices")(*parts)
    for name in ("gradient", "svgd", "slope"):
        np.testing.assert_allclose(np.concatenate(two[name]), one[name], rtol=1e-4, atol=1e-6)
    for name in ("mmd", "ksd"):
        np.testing.assert_allclose(two[name], np.full(2, one[name]), rtol=1e-4)


@pytest.mark.thorough
def test_points_and_weights_are_brought_to_the_wider(rng):
    x, y, s, w, v = clouds(rng)
    half = [jnp.asarray(a, jnp.bfloat16) for a in (x, y, s)]
    outputs = jax.eval_shape(statistics, *half, jnp.asarray(w, jnp.bfloat16))
    assert outputs["mmd"].dtype == outputs["ksd"].dtype == jnp.float32
    assert outputs["gradient"].dtype == outputs["svgd"].dtype == jnp.bfloat16
    with jax.enable_x64(True):
        narrow = [np.asarray(a, np.float32) for a in (x, y, s)]
        outputs = jax.eval_shape(statistics, *narrow, w + 0.5, np.float32(v))
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {np.dtype(np.float64)}


def test_weights_are_of_any_unit(rng):
    x, y, _, w, v = clouds(rng)
    x, w = np.tile(x, (4, 1)), np.tile(w, 4)
    expected = mmd_of_the_loops(x, y, w / w.sum(), v / v.sum())
    x, y, w, v = (np.asarray(a, np.float32) for a in (x, y, w, v))
    value = jax.jit(lambda w, v: mmd.mmd_v_statistic(x, y, KERNEL, x_weights=w, y_weights=v))
    for unit in (1e-37, 1.0, 2e37):  # the sum of the last is out of range
        np.testing.assert_allclose(value(w * np.float32(unit), v), expected, rtol=1e-4)


@pytest.mark.thorough
def test_particles_of_a_tree_have_weights(rng):
    x, _, s, w, _ = clouds(rng)
    x, s, w = (np.asarray(a, np.float32) for a in (x, s, w))
    tree = lambda a: {"a": a[:, :1], "b": a[:, 1:]}  # noqa: E731
    got = svgd.svgd_direction(tree(x), tree(s), KERNEL, weights=w)
    chex.assert_trees_all_close(got, tree(svgd.svgd_direction(x, s, KERNEL, weights=w)), rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(5), r"got shape \(5,\); expected \(6\)"),
        (np.ones((6, 1)), r"got shape \(6, 1\); expected \(6\)"),
        (-np.ones(6), r"got \[-1\..*\]; expected values in \[0, infinity\)"),
        (np.full(6, np.inf), r"got \[inf.*\]; expected values in \[0, infinity\)"),
        (np.zeros(6), "got zeros; expected at least one that is positive"),
        (np.ones(6, int), "got dtype int64; expected floating"),
    ],
)
def test_bad_weights_are_named(rng, weights, message):
    x, y, s, _, _ = clouds(rng)
    with pytest.raises(ValueError, match=f"^x_weights: {message}"):
        mmd.mmd_gradient(x, y, KERNEL, x_weights=weights)
    with pytest.raises(ValueError, match=f"^y_weights: {message}"):
        mmd.witness_gradient(x, y, x, KERNEL, y_weights=weights)
    for function in (ksd.ksd_v_statistic, svgd.svgd_direction):
        with pytest.raises(ValueError, match=f"^weights: {message}"):
            function(x, s, KERNEL, weights=weights)
