"""KSD: the Stein kernel by autodiff in float64, closed forms, tiles, transforms, errors."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernelgrad import kernels, ksd, tiles

DEFINITIONS = {
    "rbf_mixture": lambda r2, l: jnp.exp(-r2 / (2 * l**2)),
    "imq_mixture": lambda r2, l: (1 + r2 / l**2) ** -0.5,
    "matern52": lambda r2, l: (
        (1 + jnp.sqrt(5 * r2) / l + 5 * r2 / (3 * l**2)) * jnp.exp(-jnp.sqrt(5 * r2) / l)
    ),
}
LENGTHSCALES = (0.8, 1.7)


def stein_kernel_by_autodiff(family, particles, score):
    """u_p(x_i, x_j), i != j, from the derivatives of k(x, y) itself; 0 for i = j."""

    def k(x, y):
        return sum(DEFINITIONS[family](jnp.sum((x - y) ** 2), l) for l in LENGTHSCALES)

    def u(x, y, s, t):
        cross = jax.jacfwd(jax.grad(k, argnums=1), argnums=0)(x, y)
        gradients = jax.grad(k, argnums=0)(x, y), jax.grad(k, argnums=1)(x, y)
        return k(x, y) * s @ t + s @ gradients[1] + t @ gradients[0] + jnp.trace(cross)

    rows = jax.vmap(u, (None, 0, None, 0))
    everything = jax.vmap(rows, (0, None, 0, None))(particles, particles + 0.0, score, score)
    return jnp.where(jnp.eye(len(particles), dtype=bool), 0, everything)


def problem(rng, n=23, d=3):
    particles = rng.normal(2.0, 1.3, size=(n, d))
    return jnp.asarray(particles), jnp.asarray(-particles + rng.normal(size=(n, d)))


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("d", [2, 5])
@pytest.mark.parametrize("family", DEFINITIONS)
def test_statistics_match_autodiff_of_the_kernel(rng, monkeypatch, family, d, tiled):
    if tiled:
        monkeypatch.setattr(tiles, "DENSE_PAIRS", 0)
        monkeypatch.setattr(tiles, "TILE_ROWS", 8)
    n = 23
    with jax.enable_x64(True):
        particles, score = problem(rng, n, d)
        kernel = getattr(kernels, family)(jnp.array(LENGTHSCALES))
        expected = stein_kernel_by_autodiff(family, particles, score)
        slope = {"rbf_mixture": -0.5, "imq_mixture": -0.5, "matern52": -5 / 6}[family]
        trace = -2 * d * slope * sum(l**-2 for l in LENGTHSCALES)
        diagonal = len(LENGTHSCALES) * np.sum(np.square(np.asarray(score)), axis=1) + trace
        gram = ksd.stein_gram(particles, score, kernel)
        v = jax.jit(ksd.ksd_v_statistic)(particles, score, kernel)
        u = jax.jit(ksd.ksd_u_statistic)(particles, score, kernel)
    expected = np.asarray(expected)
    np.testing.assert_allclose(gram, expected + np.diag(diagonal), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(v, (np.sum(expected) + np.sum(diagonal)) / n**2, rtol=1e-9)
    np.testing.assert_allclose(u, np.sum(expected) / (n * (n - 1)), rtol=1e-9)


def test_gradient_in_particles_score_and_lengthscale_is_the_same_in_tiles(rng, monkeypatch):
    with jax.enable_x64(True):
        arguments = (*problem(rng), jnp.array(LENGTHSCALES))

        def dense(particles, score, scales):
            return jnp.mean(ksd.stein_gram(particles, score, kernels.imq_mixture(scales)))

        def statistic(particles, score, scales):
            return ksd.ksd_v_statistic(particles, score, kernels.imq_mixture(scales))

        expected = jax.grad(dense, argnums=(0, 1, 2))(*arguments)
        monkeypatch.setattr(tiles, "DENSE_PAIRS", 0)
        monkeypatch.setattr(tiles, "TILE_ROWS", 8)
        got = jax.jit(jax.grad(statistic, argnums=(0, 1, 2)))(*arguments)
    chex.assert_trees_all_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("mean", "variance", "expected"), [(1.0, 1.0, 1 / math.sqrt(3)), (0.0, 2.0, 0.0894427)]
)
def test_unbiased_for_gaussians(rng, mean, variance, expected):
    """Target N(0, 1), samples N(mean, variance), k = exp(-r^2 / 2)."""
    x = rng.normal(mean, math.sqrt(variance), size=(400, 60, 1)).astype(np.float32)
    kernel = kernels.rbf_mixture(1.0)
    values = jax.jit(jax.vmap(lambda x: ksd.ksd_u_statistic(x, -x, kernel)))(x)
    values = np.asarray(values, np.float64)
    assert abs(values.mean() - expected) < 5 * values.std() / math.sqrt(len(values))


def test_float32_at_the_benchmarked_size(rng):
    x = rng.normal(size=(1000, 50)).astype(np.float32)
    scale = 7.0
    got = jax.jit(ksd.ksd_v_statistic)(x, -x, kernels.imq_mixture(scale))
    x = x.astype(np.float64)
    r2 = np.sum(x**2, 1)[:, None] + np.sum(x**2, 1)[None] - 2 * x @ x.T
    base = 1 + np.maximum(r2, 0) / scale**2
    slope, curvature = -0.5 / scale**2 * base**-1.5, 0.75 / scale**4 * base**-2.5
    gram = base**-0.5 * (x @ x.T) + 2 * slope * r2 - 4 * curvature * r2 - 100 * slope
    np.testing.assert_allclose(got, np.mean(gram), rtol=1e-5)


def test_bad_input_is_named(rng):
    x = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)
    kernel = kernels.imq_mixture(1.0)
    with pytest.raises(ValueError, match=r"score: got shape \(4, 1\); expected \(4, 2\)"):
        ksd.ksd_v_statistic(x, x[:, :1], kernel)
    with pytest.raises(ValueError, match="number of particles: got 1"):
        ksd.ksd_u_statistic(x[:1], x[:1], kernel)
    with pytest.raises(ValueError, match="laplace"):
        ksd.stein_gram(x, x, kernels.laplace(1.0))
    with pytest.raises(ValueError, match="feature kernel"):
        ksd.stein_gram(x, x, kernels.feature_kernel(kernel, lambda p, z: z * p, jnp.float32(1)))
