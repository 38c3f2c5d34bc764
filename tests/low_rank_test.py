"""Under a map of full rank each function is its exact namesake; its error is seen, and true."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from kernelgrad import (
    feature_maps,
    kernels,
    ksd,
    low_rank,
    low_rank_fits,
    mmd,
    pairwise,
    ratio,
    score,
    svgd,
)

N, M, D = 9, 7, 2
KERNEL = kernels.imq_mixture([1.0, 2.0])


def points(rng, size=N, shift=0.0):
    return jnp.asarray(rng.normal(size=(size, D)) + shift)


# name: (approximate of key, x, y, map and options; exact of x, y), with scores -2 x
PAIRS = {
    "mmd_v_statistic": (low_rank.mmd_v_statistic, lambda x, y: mmd.mmd_v_statistic(x, y, KERNEL)),
    "stein_score": (
        lambda key, x, y, feature_map, **options: low_rank_fits.stein_score(
            key, x, feature_map, ridge=0.3, **options
        ),
        lambda x, y: score.stein_score(x, KERNEL, ridge=0.3),
    ),
    "kernel_sum": (
        lambda key, x, y, feature_map, **options: low_rank.kernel_sum(
            key, feature_map, x, y, jnp.sin(y), **options
        ),
        lambda x, y: pairwise.kernel_sum(KERNEL, x, y, jnp.sin(y)),
    ),
    "gradient_sum": (
        lambda key, x, y, feature_map, **options: low_rank.gradient_sum(
            key, feature_map, x, y, jnp.sin(y[:, 0]), **options
        ),
        lambda x, y: pairwise.gradient_sum(KERNEL, x, y, jnp.sin(y[:, 0])),
    ),
    "svgd_direction": (
        lambda key, x, y, feature_map, **options: low_rank.svgd_direction(
            key, x, -2 * x, feature_map, **options
        ),
        lambda x, y: svgd.svgd_direction(x, -2 * x, KERNEL),
    ),
    "mmd_u_statistic": (low_rank.mmd_u_statistic, lambda x, y: mmd.mmd_u_statistic(x, y, KERNEL)),
    "mmd_gradient": (low_rank.mmd_gradient, lambda x, y: mmd.mmd_gradient(x, y, KERNEL)),
    "ksd_v_statistic": (
        lambda key, x, y, feature_map, **options: low_rank.ksd_v_statistic(
            key, x, -2 * x, feature_map, **options
        ),
        lambda x, y: ksd.ksd_v_statistic(x, -2 * x, KERNEL),
    ),
    "ksd_u_statistic": (
        lambda key, x, y, feature_map, **options: low_rank.ksd_u_statistic(
            key, x, -2 * x, feature_map, **options
        ),
        lambda x, y: ksd.ksd_u_statistic(x, -2 * x, KERNEL),
    ),
    "rkhs_score_at": (
        lambda key, x, y, feature_map, **options: low_rank_fits.rkhs_score_at(
            key, y, x, feature_map, ridge=0.3, **options
        ),
        lambda x, y: score.rkhs_score_at(y, x, KERNEL, ridge=0.3),
    ),
}
STATISTICS = [name for name in PAIRS if "statistic" in name]


def full_rank(x, y):
    """A map that is exact at all of the points, and whose gradients nearly are."""
    everyone = np.concatenate([x, y])
    steps = [1e-3 * step for step in (*np.eye(D), *-np.eye(D))]
    landmarks = np.concatenate([everyone, *(everyone + step[None] for step in steps)])
    gram = oracles.fast_gram("imq_mixture", landmarks, landmarks, [1.0, 2.0])
    factor = np.linalg.cholesky(gram + 1e-14 * np.eye(len(gram)))
    whitening = np.linalg.inv(factor).T
    return feature_maps.LandmarkMap(KERNEL, jnp.asarray(landmarks), jnp.asarray(whitening))


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("name", PAIRS)
def test_at_full_rank_it_is_the_exact_function_and_says_so(name, key, rng):
    approximate, exact = PAIRS[name]
    with jax.enable_x64(True):
        x, y = points(rng), points(rng, M, 0.5)

        @jax.jit
        def both(x, y, feature_map):
            return approximate(key, x, y, feature_map, num_probes=3), exact(x, y)

        got, want = both(x, y, full_rank(x, y))
        np.testing.assert_allclose(got.value, want, atol=1e-5 * np.abs(want).max())
        assert abs(float(got.error)) < 1e-5
        assert float(got.standard_error) < 1e-5


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", PAIRS)
def test_the_error_is_the_true_one(name, key, rng):
    """With so many probes that every point is among them, over maps of low rank."""
    approximate, exact = PAIRS[name]
    x, y = points(rng).astype(jnp.float32), points(rng, M, 0.5).astype(jnp.float32)

    @jax.jit
    def both(x, y):
        if "score" in name:
            feature_map = feature_maps.landmark_map(key, KERNEL, x, num_landmarks=4)
        else:
            feature_map = feature_maps.fourier_map(key, KERNEL, x, num_features=32)
        return approximate(key, x, y, feature_map, num_probes=2000), exact(x, y)

    got, want = both(x, y)
    difference = np.asarray(got.value - want, np.float64)
    true = difference
    if difference.ndim:
        true = math.sqrt(np.mean(difference**2) / np.mean(np.asarray(want, np.float64) ** 2))
    if "ksd" not in name:  # whose error is a small difference between large rows here
        assert float(got.standard_error) < 0.2 * abs(true)
    if "score" in name:
        assert float(got.error) > 0.5 * true  # relative to the approximation: a bound of theirs
    else:
        assert abs(float(got.error) - true) < 5 * float(got.standard_error) + 1e-6


@pytest.mark.thorough
@pytest.mark.parametrize("name", STATISTICS)
def test_gradients_are_those_of_the_exact_statistics(name, key, rng):
    approximate, exact = PAIRS[name]
    with jax.enable_x64(True):
        x, y = points(rng), points(rng, M, 0.5)
        feature_map = full_rank(x, y)
        got = jax.jit(jax.grad(lambda x: approximate(key, x, y, feature_map, num_probes=2).value))(
            x
        )
        want = jax.jit(jax.grad(lambda x: exact(x, y)))(x)
        np.testing.assert_allclose(got, want, atol=1e-3 * np.abs(want).max())


@pytest.mark.thorough
def test_ratios_are_those_of_the_dense_system(key, rng):
    """Kanamori et al.: g = K_q a + K_p b with b = 1 / (n lambda), (K_qq / m + lambda) a = ..."""
    with jax.enable_x64(True):
        p, q, ridge = points(rng), points(rng, M, 0.5), 0.2
        everyone = jnp.concatenate([p, q])
        feature_map = feature_maps.landmark_map(key, KERNEL, everyone, num_landmarks=N + M)
        fit = jax.jit(
            lambda p, q: low_rank_fits.ulsif(key, p, q, feature_map, ridge=ridge, num_probes=8)
        )(p, q)
        k_qq, k_qp = np.asarray(kernels.gram(KERNEL, q)), np.asarray(kernels.gram(KERNEL, q, p))
        mean = k_qp.mean(axis=1)
        at_q = np.linalg.solve(k_qq / M + ridge * np.eye(M), mean)
        np.testing.assert_allclose(
            ratio.density_ratio(fit.value, q), np.maximum(at_q, 0), atol=1e-8
        )
        assert float(fit.error) < 1e-8


@pytest.mark.thorough
def test_the_bound_of_the_score_is_above_its_error(key, rng):
    x = jnp.asarray(rng.normal(size=(60, D)), jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def both(rank, x):
        feature_map = feature_maps.landmark_map(key, KERNEL, x, num_landmarks=rank)
        fit = low_rank_fits.stein_score(key, x, feature_map, ridge=1.0, num_probes=2000)
        return fit, score.stein_score(x, KERNEL, ridge=1.0)

    for rank in (6, 20):
        fit, exact = both(rank, x)
        true = jnp.sqrt(jnp.sum((fit.value - exact) ** 2) / jnp.sum(fit.value**2))
        assert float(true) < float(fit.error) + 3 * float(fit.standard_error)
        assert float(fit.error) < 30 * float(true)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda key, x, m: low_rank.ksd_v_statistic(key, x, x, m(kernels.laplace(1.0))),
            "kernel: got laplace; expected one that is twice differentiable",
        ),
        (
            lambda key, x, m: low_rank.mmd_u_statistic(key, x[:1], x, m(KERNEL)),
            "number of samples in x: got 1; expected an integer >= 2",
        ),
        (
            lambda key, x, m: low_rank.mmd_v_statistic(key, x, x, m(KERNEL), num_probes=1),
            "num_probes: got 1; expected an integer >= 2",
        ),
        (
            lambda key, x, m: low_rank_fits.ulsif(key, x, x, m(KERNEL), ridge=1.0),
            "feature_map: got FourierMap; expected a LandmarkMap",
        ),
        (
            lambda key, x, m: low_rank_fits.stein_score(key, x, m(KERNEL), ridge=0.0),
            "ridge: got 0",
        ),
    ],
)
def test_errors_are_one_line(call, message, key):
    x = jnp.zeros((3, 2))

    def make(kernel):
        return feature_maps.fourier_map(key, kernel, x, num_features=8)

    with pytest.raises(ValueError, match=rf"\A{message}[^\n]*\Z"):
        call(key, x, make)
