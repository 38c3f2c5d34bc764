"""Waves are unbiased; landmarks are exact when they are all points, and drawn by their law."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from kernelgrad import _pivots, feature_maps, kernels, pairwise

FAMILIES = {
    "rbf": (kernels.rbf_mixture, "rbf_mixture"),
    "imq": (kernels.imq_mixture, "imq_mixture"),
    "rational_quadratic": (kernels.rational_quadratic, "rational_quadratic"),
    "matern32": (kernels.matern32, "matern32"),
    "matern52": (kernels.matern52, "matern52"),
    "matern72": (kernels.matern72, "matern72"),
    "laplace": (kernels.laplace, "laplace"),
}


def grams(key, kernel, x, num_features, num_maps):
    """z(x)^T z(y) of many maps."""

    @jax.jit
    def of_keys(keys):
        def gram(key):
            z = feature_maps.fourier_map(key, kernel, x, num_features=num_features).features(x)
            return z @ z.T

        return jax.vmap(gram)(keys)

    return np.asarray(of_keys(jax.random.split(key, num_maps)), np.float64)


def z_scores(values, expected):
    deviation = values.std(axis=0, ddof=1) / math.sqrt(len(values))
    return (values.mean(axis=0) - expected) / np.maximum(deviation, 1e-6)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", FAMILIES)
def test_waves_are_unbiased(name, key, rng):
    make, oracle = FAMILIES[name]
    x = rng.normal(size=(5, 3)).astype(np.float32)
    lengthscales, weights = [0.7, 2.0, 1.0], [0.5, 1.0, 2.0]
    values = grams(key, make(lengthscales, weights), x, 22, 4000)
    expected = oracles.fast_gram(oracle, x, x, lengthscales, weights)
    assert np.abs(z_scores(values, expected)).max() < 5
    assert np.abs(np.diagonal(values, axis1=1, axis2=2) - 3.5).max() < 1e-4


@pytest.mark.thorough
def test_waves_of_any_exponent_are_unbiased(key, rng):
    x = rng.normal(size=(5, 3)).astype(np.float32)
    kernel = kernels.imq_mixture(1.5, exponent=-1.3)
    expected = np.asarray(kernels.gram(kernel, x), np.float64)
    assert np.abs(z_scores(grams(key, kernel, x, 8, 4000), expected)).max() < 5


@pytest.mark.thorough
def test_the_error_of_waves_falls_as_the_root_of_their_number(key, rng):
    x = rng.normal(size=(8, 3)).astype(np.float32)
    kernel = kernels.imq_mixture(1.5)
    expected = np.asarray(kernels.gram(kernel, x), np.float64)
    errors = [
        math.sqrt(np.mean((grams(key, kernel, x, num_features, 100) - expected) ** 2))
        for num_features in (36, 36 * 16)
    ]
    assert 3.2 < errors[0] / errors[1] < 5


@pytest.mark.thorough
def test_frequencies_are_orthogonal_normals(key):
    x = jnp.zeros((1, 4))
    feature_map = feature_maps.fourier_map(key, kernels.rbf_mixture(0.5), x, num_features=8000)
    frequencies = np.asarray(feature_map.frequencies, np.float64).reshape(1000, 4, 4) / 2
    products = frequencies @ np.swapaxes(frequencies, 1, 2)
    norms = np.diagonal(products, axis1=1, axis2=2)
    off_diagonal = products - norms[:, :, None] * np.eye(4)
    assert np.abs(off_diagonal).max() < 1e-4
    assert abs(norms.mean() - 4) < 5 * math.sqrt(8 / norms.size)  # chi-squared of 4 degrees
    assert abs(norms.var() - 8) < 1
    second = np.mean(frequencies.reshape(-1, 4)[:, :, None] * frequencies.reshape(-1, 1, 4), axis=0)
    np.testing.assert_allclose(second, np.eye(4), atol=5 * math.sqrt(2 / 4000))


@pytest.mark.thorough
def test_waves_keep_their_digits_far_from_the_origin(key, rng):
    x = rng.normal(size=(6, 3)).astype(np.float32) + np.float32(1e4)
    kernel = kernels.rbf_mixture(1.0)
    there, here = (
        feature_maps.fourier_map(key, kernel, points, num_features=64).features(points)
        for points in (x, x - np.float32(1e4))
    )
    np.testing.assert_allclose(there @ there.T, here @ here.T, atol=1e-5)


# --------------------------------------------------------------------------------------- landmarks


def test_all_points_as_landmarks_are_exact(key, rng):
    with jax.enable_x64(True):
        x, y = rng.normal(size=(12, 3)), rng.normal(size=(4, 3))

        @jax.jit
        def products(x, y):
            kernel = kernels.imq_mixture([1.0, 2.0])
            feature_map = feature_maps.landmark_map(key, kernel, x, num_landmarks=12)
            z = feature_map.features(jnp.concatenate([x, y]))
            return z @ z[:12].T

        own, cross = jnp.split(products(x, y), [12])
        expected = oracles.fast_gram("imq_mixture", x, x, [1.0, 2.0])
        np.testing.assert_allclose(own, expected, atol=1e-11)
        # exact wherever one point is a landmark
        np.testing.assert_allclose(
            cross, oracles.fast_gram("imq_mixture", y, x, [1.0, 2.0]), atol=1e-11
        )


def pivot_law(gram, rank):
    """The probability of each sequence of pivots, one at a time."""
    law = {}
    for sequence in itertools.product(range(len(gram)), repeat=rank):
        probability, left = 1.0, np.array(gram, np.float64)
        for pivot in sequence:
            diagonal = np.maximum(np.diag(left), 0)
            probability *= diagonal[pivot] / diagonal.sum() if diagonal[pivot] > 1e-9 else 0
            if not probability:
                break
            left = left - np.outer(left[:, pivot], left[pivot]) / left[pivot, pivot]
        law[sequence] = probability
    return law


@pytest.mark.thorough
def test_pivots_in_blocks_have_the_law_of_one_at_a_time(key):
    x = jnp.array([[0.0], [0.4], [0.7], [3.0]])
    kernel = kernels.rbf_mixture(1.0)
    size = 20_000
    draw = jax.jit(jax.vmap(lambda k: _pivots.random_pivots(k, kernel, x, 3)))
    drawn = np.asarray(draw(jax.random.split(key, size)))
    law = pivot_law(np.asarray(kernels.gram(kernel, x)), 3)
    assert sum(law.values()) == pytest.approx(1)
    for sequence, probability in law.items():
        share = np.mean(np.all(drawn == np.array(sequence), axis=1))
        deviation = math.sqrt(probability * (1 - probability) / size)
        assert abs(share - probability) <= 5 * deviation, (sequence, share, probability)


@pytest.mark.thorough
def test_landmarks_underestimate_the_diagonal_and_near_the_best_rank(key, rng):
    x = rng.normal(size=(80, 2)).astype(np.float32)
    kernel = kernels.rbf_mixture(1.5)
    feature_map = feature_maps.landmark_map(key, kernel, x, num_landmarks=20)
    left = 1 - np.asarray(feature_maps.squared_norms(feature_map, x), np.float64)
    assert left.min() > -1e-5
    spectrum = np.linalg.eigvalsh(oracles.fast_gram("rbf_mixture", x, x, 1.5))
    assert left.sum() < 3 * spectrum[:-12].sum()


@pytest.mark.thorough
def test_copies_are_no_landmarks(key):
    """Of three distinct points all are found; what is left to choose is harmless."""
    x = jnp.repeat(jnp.array([[0.0], [1.0], [5.0]]), 20, axis=0)
    kernel = kernels.rbf_mixture(1.0)
    feature_map = feature_maps.landmark_map(key, kernel, x, num_landmarks=6)
    assert set(np.unique(feature_map.landmarks)) == {0.0, 1.0, 5.0}
    z = feature_map.features(x)
    np.testing.assert_allclose(z @ z.T, kernels.gram(kernel, x), atol=1e-4)


# ------------------------------------------------------------------------------------ what both do


@pytest.mark.thorough
@pytest.mark.parametrize("make", ["waves", "landmarks"])
def test_moments_and_expansions_are_sums_of_features(make, key, rng, monkeypatch):
    with jax.enable_x64(True):
        x = rng.normal(size=(11, 3))
        weights, slope_weights = rng.normal(size=(11, 3)), rng.normal(size=11)
        kernel = kernels.imq_mixture(1.5)
        feature_map = (
            feature_maps.fourier_map(key, kernel, x, num_features=10)
            if make == "waves"
            else feature_maps.landmark_map(key, kernel, x, num_landmarks=5)
        )
        z = feature_map.features(x)
        one = jax.vmap(jax.jacrev(lambda point: feature_map.features(point[None])[0]))
        values, slopes = z.T @ weights, jnp.einsum("nrd,n->rd", one(jnp.asarray(x)), slope_weights)
        coefficients = rng.normal(size=(z.shape[1], 2))
        for rows in (2048, 4):
            monkeypatch.setattr(feature_maps, "_ROWS_AT_ONCE", rows)
            for got, want in [
                (feature_map.moments(x, weights), values),
                (feature_map.moments(x, None, slope_weights), slopes),
                (feature_map.moments(x, weights, slope_weights), values + slopes),
                (feature_map.expand(x, coefficients), z @ coefficients),
                (feature_maps.second_moment(feature_map, x), z.T @ z),
                (feature_maps.squared_norms(feature_map, x), jnp.sum(z**2, axis=1)),
            ]:
                np.testing.assert_allclose(got, want, atol=1e-9)


@pytest.mark.thorough
def test_gradients_run_to_the_lengthscale(key, rng):
    with jax.enable_x64(True):
        x = rng.normal(size=(6, 2))

        def total(lengthscale):
            kernel = kernels.rbf_mixture(lengthscale)
            z = feature_maps.landmark_map(key, kernel, x, num_landmarks=6).features(x)
            return jnp.sum((z @ z.T) ** 2)

        expected = jax.grad(lambda l: jnp.sum(kernels.gram(kernels.rbf_mixture(l), x) ** 2))(1.3)
        assert jax.grad(total)(1.3) == pytest.approx(float(expected), rel=1e-8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda key, x: feature_maps.fourier_map(key, kernels.riesz(), x, num_features=8),
            "kernel: got Riesz; expected a RadialMixture",
        ),
        (
            lambda key, x: feature_maps.fourier_map(
                key, kernels.rbf_mixture([1.0, 2.0]), x, num_features=2
            ),
            "num_features: got 2; expected an integer >= 4",
        ),
        (
            lambda key, x: feature_maps.fourier_map(
                key, kernels.rbf_mixture(1.0), x, num_features=7
            ),
            "num_features: got 7; expected an even number",
        ),
        (
            lambda key, x: feature_maps.landmark_map(
                key, kernels.rbf_mixture(1.0), x, num_landmarks=4
            ),
            "num_landmarks: got 4; expected at most 3",
        ),
        (
            lambda key, x: feature_maps.landmark_map(key, kernels.riesz(), x, num_landmarks=2),
            "kernel: got riesz, whose k.0. is not positive",
        ),
        (
            lambda key, x: feature_maps.fourier_map(
                key, kernels.laplace(1.0), x, num_features=8
            ).moments(x, None, x[:, 0]),
            "kernel: got laplace",
        ),
    ],
)
def test_errors_are_one_line(call, message, key):
    with pytest.raises(ValueError, match=rf"\A{message}[^\n]*\Z"):
        call(key, jnp.zeros((3, 2)))


@pytest.mark.thorough
def test_deep_kernels_have_landmarks(key, rng):
    x = rng.normal(size=(7, 3)).astype(np.float32)
    kernel = kernels.feature_kernel(
        kernels.rbf_mixture(1.0), lambda w, x: jnp.tanh(w * x), jnp.float32(0.7)
    )
    feature_map = feature_maps.landmark_map(key, kernel, x, num_landmarks=7)
    slopes = feature_map.expand(x, feature_map.moments(x, None, jnp.ones(7)))
    np.testing.assert_allclose(slopes, pairwise.gradient_sum(kernel, x, None), atol=2e-3)
