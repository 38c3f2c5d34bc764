"""Scores from samples: the papers' formulas, exact cases, symmetries, consistency, failures."""

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads
from memory import compiled_megabytes
from scipy.special import eval_jacobi

from kernelgrad import kernels, score, score_peers

# In-sample function, out-of-sample function, hyperparameters.
ESTIMATORS = {
    "stein": (score.stein_score, score.stein_score_at, {"ridge": 0.3}),
    "rkhs": (score.stein_score, score.rkhs_score_at, {"ridge": 0.3}),
    "spectral": (score_peers.spectral_score, score_peers.spectral_score_at, {"mass_fraction": 0.9}),
    "nu_method": (score_peers.nu_method_score, score_peers.nu_method_score_at, {"num_steps": 9}),
    "kde": (score_peers.kde_score, score_peers.kde_score_at, {}),
}
every_estimator = pytest.mark.parametrize("name", ESTIMATORS)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@functools.cache
def compiled(name, num_steps):
    fn, fn_at, _ = ESTIMATORS[name]
    static = {} if num_steps is None else {"num_steps": num_steps}

    def run(x, queries, kernel, hyper):
        hyper = hyper | static
        return fn(x, kernel, **hyper), fn_at(queries, x, kernel, **hyper)

    return jax.jit(run)


def both(name, samples, queries, kernel, **changed):
    """The scores at samples and at queries, compiled."""
    hyper = ESTIMATORS[name][2] | changed
    num_steps = hyper.pop("num_steps", None)
    return compiled(name, num_steps)(samples, queries, kernel, hyper)


def gaussians(scales=(0.8, 1.9), weights=(1.0, 2.0)):
    return kernels.rbf_mixture(scales, weights)


def clouds(rng, n=14, q=3, d=4):
    return rng.normal(size=(n, d)) + 0.5, rng.normal(size=(q, d))


# ------------------------------------------------------------------------------------- formulas


class Case(NamedTuple):
    """A kernel of the package beside the same kernel as float64 loops or plain autodiff.

    gradients(x, y) is the (n, m, d) array of grad_{y_j} k(x_i, y_j).
    """

    kernel: object
    gram: object
    gradients: object


def radial_case(family, scales=(0.7, 2.0), weights=(1.5, 0.5)):
    def gradients(x, y):
        pairs = [[oracles.kernel_gradient(family, a, b, scales, weights) for b in y] for a in x]
        return np.array(pairs)

    return Case(
        getattr(kernels, family)(scales, weights),
        lambda x, y: oracles.gram(family, x, y, scales, weights),
        gradients,
    )


class RbfPlusImq(NamedTuple):
    """A kernel that is not of the package: the protocol suffices."""

    def profile(self, sq_dist):
        return jnp.exp(-sq_dist / 2) + 2 * jax.lax.rsqrt(1 + sq_dist)


def features(params, x):
    return jnp.tanh(x @ params) + 0.3 * jnp.square(x[..., :3])


def feature_case():
    matrix = np.random.default_rng(7).normal(size=(4, 3))

    def value(a, b):
        sq_dist = jnp.sum((features(matrix, a) - features(matrix, b)) ** 2)
        return jnp.exp(-sq_dist / 2) + 2 / jnp.sqrt(1 + sq_dist)

    def pairwise(fn):
        pairs = jax.jit(jax.vmap(jax.vmap(fn, (None, 0)), (0, None)))
        return lambda x, y: np.asarray(pairs(x, y))

    kernel = kernels.feature_kernel(RbfPlusImq(), features, jnp.asarray(matrix))
    return Case(kernel, pairwise(value), pairwise(jax.grad(value, argnums=1)))


@functools.cache
def make_case(name):
    return feature_case() if name == "feature" else radial_case(name)


def stein_oracle(case, x, ridge):
    """Paper 000 eq. (2), any kernel; the k = i term included."""
    repulsion = case.gradients(x, x).sum(1)
    return -np.linalg.solve(case.gram(x, x) + ridge * np.eye(len(x)), repulsion)


def stein_at_oracle(case, queries, x, ridge):
    """Paper 000 eq. (3) by its meaning: the last row of eq. (2) on x and one query."""
    rows = [stein_oracle(case, np.concatenate([x, query[None]]), ridge)[-1] for query in queries]
    return np.array(rows)


def rkhs_at_oracle(case, queries, x, ridge):
    """Zhou et al. 2020: (K + n lam I) c = H / lam, s = K_xX c - zeta(x) / lam."""
    lam = ridge / len(x)
    mean = case.gradients(x, x).mean(1)
    c = np.linalg.solve(case.gram(x, x) + len(x) * lam * np.eye(len(x)), mean / lam)
    return case.gram(queries, x) @ c - case.gradients(queries, x).mean(1) / lam


def spectral_oracle(case, queries, x, mass_fraction):
    """Shi et al. 2018: psi_j by Nystrom, beta_j = -E grad psi_j, s = sum_j beta_j psi_j."""
    n = len(x)
    values, vectors = np.linalg.eigh(case.gram(x, x))
    order = np.argsort(values)[::-1]
    num_kept = 1 + int(np.sum(np.cumsum(values[order]) < mass_fraction * values.sum()))
    assert 1 < num_kept < n
    total = np.zeros_like(queries)
    for j in order[:num_kept]:
        scale = math.sqrt(n) / values[j]
        psi = scale * case.gram(queries, x) @ vectors[:, j]
        gradient = scale * np.einsum("m,mnd->nd", vectors[:, j], case.gradients(x, x))
        total += psi[:, None] * -gradient.mean(0)[None, :]
    return total


def nu_method_oracle(case, queries, x, num_steps, nu):
    """Spectral calculus: s = -g(L) zeta with 1 - t g(t) the normalised Jacobi polynomial."""
    n, peak = len(x), case.gram(x[:1], x[:1])[0, 0]

    def residual(t):
        index = (num_steps, 2 * nu - 0.5, -0.5)
        return eval_jacobi(*index, 1 - 2 * t) / eval_jacobi(*index, 1.0)

    values, vectors = np.linalg.eigh(case.gram(x, x) / (n * peak))
    values = np.maximum(values, 1e-12)
    slope_at_0 = (1 - residual(1e-7)) / 1e-7
    h = ((1 - residual(values)) / values - slope_at_0) / values
    zeta = case.gradients(x, x).mean(1) / peak
    zeta_at = case.gradients(queries, x).mean(1) / peak
    smooth = case.gram(queries, x) / (n * peak) @ (vectors * h) @ vectors.T @ zeta
    return -slope_at_0 * zeta_at - smooth


def kde_oracle(case, queries, x):
    """Sum of gradients over sum of values; k(x, y) = k(y, x)."""
    return case.gradients(x, queries).sum(0) / case.gram(queries, x).sum(1)[:, None]


@pytest.mark.thorough(quick=2)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("family", "d"),
    [
        ("rbf_mixture", 2),
        ("imq_mixture", 4),
        ("rational_quadratic", 4),
        ("matern32", 2),
        ("matern52", 4),
        ("laplace", 4),
        ("feature", 4),
    ],
)
def test_stein_equals_equations_2_and_3(family, d, rng):
    case = make_case(family)
    x, queries = clouds(rng, d=d)
    for ridge in (0.01, 2.0):
        inside, outside = both("stein", x, queries, case.kernel, ridge=ridge)
        expected = stein_oracle(case, x, ridge)
        np.testing.assert_allclose(inside, expected, rtol=1e-9, atol=1e-10)
        expected = stein_at_oracle(case, queries, x, ridge)
        np.testing.assert_allclose(outside, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.thorough
@pytest.mark.parametrize("family", ["imq_mixture", "laplace"])
def test_float32_is_close_to_float64(family, rng):
    """The Laplace kernel has a kink where x = y, so its self-distances must be exactly 0."""
    x, queries = (points.astype(np.float32) for points in clouds(rng, n=40, q=3, d=9))
    scales, ridge = [2.0, 4.0], 0.5
    kernel = getattr(kernels, family)(scales)

    def close(got, expected):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, atol=3e-5 * np.abs(expected).max())

    inside, outside = both("stein", x, queries, kernel, ridge=ridge)
    close(inside, oracles.stein_score(family, x, scales, ridge))
    at = [oracles.stein_score_at(family, query, x, scales, ridge) for query in queries]
    close(outside, np.array(at))
    inside, outside = both("kde", x, queries, kernel)
    close(inside, kde_oracle(radial_case(family, scales, [1, 1]), x, x))
    close(outside, kde_oracle(radial_case(family, scales, [1, 1]), queries, x))


def test_queries_and_samples_may_differ_in_precision(rng):
    x, y = rng.normal(size=(4, 2)), rng.normal(size=(5, 2))
    with jax.enable_x64(True):
        at = jax.jit(functools.partial(score.stein_score_at, ridge=0.3))
        expected = at(x, y, kernels.imq_mixture(1.3))
        for of_x, of_y in ((np.float32, np.float64), (np.float64, np.float32)):
            got = at(x.astype(of_x), y.astype(of_y), kernels.imq_mixture(1.3))
            assert got.dtype == np.float64  # the wider of both
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("family", ["imq_mixture", "feature"])
def test_peers_equal_their_papers(family, rng):
    case = make_case(family)
    x, queries = clouds(rng)
    queries[0] = x[3]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-8)

    inside, outside = both("rkhs", x, queries, case.kernel, ridge=0.2)
    close(inside, stein_oracle(case, x, 0.2))
    close(outside, rkhs_at_oracle(case, queries, x, 0.2))
    close(outside[0], inside[3])

    inside, outside = both("spectral", x, queries, case.kernel, mass_fraction=0.8)
    close(inside, spectral_oracle(case, x, x, 0.8))
    close(outside, spectral_oracle(case, queries, x, 0.8))

    inside, outside = both("kde", x, queries, case.kernel)
    close(inside, kde_oracle(case, x, x))
    close(outside, kde_oracle(case, queries, x))


@pytest.mark.thorough(quick=2)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("family", "num_steps"), [("imq_mixture", 1), ("imq_mixture", 7), ("feature", 12)]
)
def test_nu_method_is_the_jacobi_filter(family, num_steps, rng):
    case = make_case(family)
    x, queries = clouds(rng)
    for nu in (1.0, 0.5, 2.5):
        hyper = {"num_steps": num_steps, "nu": nu}
        got = both("nu_method", x, queries, case.kernel, **hyper)
        expected = [nu_method_oracle(case, points, x, **hyper) for points in (x, queries)]
        for a, b in zip(got, expected, strict=True):  # to the oracle's difference quotient
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_default_ridge():
    kernel = kernels.imq_mixture([0.5, 1.0, 2.0], [1.0, 2.0, 4.0])
    assert float(score.default_ridge(400, kernel)) == pytest.approx(0.1 * 20 * 7)
    traced = jax.jit(lambda n, k: score.default_ridge(n, k))(jnp.int32(400), kernel)
    assert float(traced) == pytest.approx(14)
    with pytest.raises(ValueError, match=r"^n: got 0"):
        score.default_ridge(0, kernel)


# ---------------------------------------------------------------------------------- exact cases


@pytest.mark.usefixtures("x64")
def test_long_lengthscale_gives_the_score_of_the_fitted_gaussian(rng):
    """As l -> inf the RBF spans the affine functions, for which Stein's fit is the Gaussian's."""
    x = rng.normal(size=(30, 2)) @ np.array([[1.0, 0.0], [0.8, 0.6]]) + 5
    got, _ = both("stein", x, x, kernels.rbf_mixture(1e4), ridge=3e-11)
    expected = -(x - x.mean(0)) @ np.linalg.inv(np.cov(x.T, bias=True))
    np.testing.assert_allclose(got, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.usefixtures("x64")
def test_stein_tends_to_minus_repulsion_over_ridge(rng):
    x, queries = clouds(rng)
    family, scale, ridge = "rbf_mixture", 1.5, 1e9
    inside, outside = both("stein", x, queries, kernels.rbf_mixture(scale), ridge=ridge)
    repulsion = oracles.gradient_sum(family, x, x, scale)
    np.testing.assert_allclose(inside * ridge, -repulsion, rtol=1e-6, atol=1e-7)
    repulsion = oracles.gradient_sum(family, queries, x, scale)
    np.testing.assert_allclose(outside * ridge, -repulsion, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("x64")
def test_svgd_field_vanishes_at_the_estimate_without_ridge(rng):
    x, _ = clouds(rng)
    family, scale = "imq_mixture", 0.8
    got, _ = both("stein", x, x, kernels.imq_mixture(scale), ridge=1e-12)
    drift = oracles.gram(family, x, x, scale) @ got
    repulsion = oracles.gradient_sum(family, x, x, scale)
    assert np.abs(repulsion).max() > 0.1
    np.testing.assert_allclose(drift + repulsion, 0, atol=1e-9)


@pytest.mark.thorough
@pytest.mark.usefixtures("x64")
def test_spectral_with_all_eigenvalues_is_stein_without_ridge(rng):
    x, _ = clouds(rng)
    for kernel in (kernels.imq_mixture(0.8), make_case("feature").kernel):
        spectral, _ = both("spectral", x, x, kernel, mass_fraction=1.0)
        stein, _ = both("stein", x, x, kernel, ridge=1e-13)
        np.testing.assert_allclose(spectral, stein, rtol=1e-7, atol=1e-7)


@pytest.mark.usefixtures("x64")
def test_equation_3_counts_a_query_among_the_samples_twice(rng):
    """There g = (G_j - (A^-1 D)_j) / (2 - eta (A^-1)_jj), not G_j."""
    x, _ = clouds(rng)
    family, scale, ridge, j = "imq_mixture", 1.3, 0.4, 5
    inside, outside = both("stein", x, x[j : j + 1], kernels.imq_mixture(scale), ridge=ridge)
    inverse = np.linalg.inv(oracles.gram(family, x, x, scale) + ridge * np.eye(len(x)))
    pull = np.array([oracles.kernel_gradient(family, y, x[j], scale) for y in x])
    expected = (inside[j] - (inverse @ pull)[j]) / (2 - ridge * inverse[j, j])
    np.testing.assert_allclose(outside[0], expected, rtol=1e-9)
    assert np.abs(outside[0] - inside[j]).max() > 0.01


@pytest.mark.usefixtures("x64")
def test_kde_of_one_gaussian(rng):
    x, queries = clouds(rng, n=1)
    inside, outside = both("kde", x, queries, kernels.rbf_mixture(0.6))
    np.testing.assert_allclose(inside, 0)
    np.testing.assert_allclose(outside, (x - queries) / 0.36, rtol=1e-12)


def test_kde_of_normal_samples_tends_to_the_smoothed_score(key):
    """x ~ N(0, 1), RBF of lengthscale l: the limit is -x / (1 + l^2)."""
    queries = jnp.array([[-1.0], [0.5], [1.5]])
    samples = jax.random.normal(key, (32, 2000, 1))
    run = jax.jit(
        jax.vmap(lambda x: score_peers.kde_score_at(queries, x, kernels.rbf_mixture(0.8)))
    )
    got = np.asarray(run(samples), np.float64)[..., 0]
    error = got.mean(0) - np.asarray(-queries[:, 0] / 1.64)
    assert np.all(np.abs(error) < 4 * got.std(0) / math.sqrt(32) + 1e-3)


# ------------------------------------------------------------------------------------ symmetries


@pytest.mark.thorough(quick=2)
@pytest.mark.usefixtures("x64")
@every_estimator
def test_equivariance(name, rng):
    x, queries = clouds(rng)
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    order = rng.permutation(len(x))
    scales = np.array([0.8, 1.9])
    inside, outside = both(name, x, queries, gaussians(scales))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-8)

    def check(points, at, expected, expected_at, lengthscales=scales):
        got, got_at = both(name, points, at, gaussians(lengthscales))
        close(got, expected)
        close(got_at, expected_at)

    check(x + 5, queries + 5, inside, outside)
    check(x @ rotation, queries @ rotation, inside @ rotation, outside @ rotation)
    check(7 * x, 7 * queries, inside / 7, outside / 7, 7 * scales)
    check(x[order], queries[::-1], inside[order], outside[::-1])


@pytest.mark.usefixtures("x64")
@every_estimator
def test_two_equal_components_are_one_with_half_the_ridge(name, rng):
    x, queries = clouds(rng)
    ridge = {"ridge": 0.6} if name in ("stein", "rkhs") else {}
    expected = both(name, x, queries, gaussians([1.4, 9.9], [1.0, 0.0]))
    got = both(name, x, queries, gaussians([1.4, 1.4], [1.0, 1.0]), **ridge)
    chex.assert_trees_all_close(got, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.thorough(quick=2)
@every_estimator
def test_offset_costs_no_digits_in_float32(name, rng):
    x, queries = clouds(rng)
    x, queries = (np.round(points * 256).astype(np.float32) / 256 for points in (x, queries))
    expected = both(name, x, queries, gaussians())
    got = both(name, x + 4096, queries + 4096, gaussians())
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------------- consistency


MEDIAN = math.sqrt(4 * math.log(2))  # of |x - y| for x, y ~ N(0, I) in two dimensions


def normal_errors(key, estimates, *, n, draws):
    """Statistics of estimates(x, fresh x) against the score -x of N(0, I) in two dimensions.

    estimates returns {name: (points, scores there)}. The result is {name: (relative errors, mean
    cosines, slopes on -x)} with one entry a draw.
    """

    def measure(points, got):
        norms = jnp.linalg.norm(got, axis=1) * jnp.linalg.norm(points, axis=1)
        return (
            jnp.linalg.norm(got + points) / jnp.linalg.norm(points),
            jnp.mean(jnp.sum(got * -points, axis=1) / norms),
            jnp.sum(got * -points) / jnp.sum(points * points),
        )

    def draw(key):
        x, queries = jnp.split(jax.random.normal(key, (n + 256, 2)), [n])
        return {name: measure(*result) for name, result in estimates(x, queries).items()}

    return jax.tree.map(
        np.asarray, jax.jit(lambda keys: jax.lax.map(draw, keys))(jax.random.split(key, draws))
    )


def mean_and_noise(values):
    return values.mean(), values.std(ddof=1) / math.sqrt(len(values))


def default_estimates(x, queries):
    n, kernel = len(x), kernels.rbf_mixture(MEDIAN)
    ridge, num_steps = score.default_ridge(n, kernel), round(3 * n**0.25)
    return {
        "stein": (x, score.stein_score(x, kernel, ridge=ridge)),
        "stein_at": (queries, score.stein_score_at(queries, x, kernel, ridge=ridge)),
        "rkhs_at": (queries, score.rkhs_score_at(queries, x, kernel, ridge=ridge)),
        "nu_method": (x, score_peers.nu_method_score(x, kernel, num_steps=num_steps)),
    }


@pytest.mark.slow
def test_error_falls_with_the_number_of_samples(key):
    coarse, middle, fine = (
        normal_errors(key, default_estimates, n=n, draws=draws)
        for n, draws in ((100, 32), (400, 16), (1600, 6))
    )
    for name in fine:
        means, noise = zip(
            *(mean_and_noise(e[name][0]) for e in (coarse, middle, fine)), strict=True
        )
        assert means[1] + 4 * noise[1] < 0.35, name
        for i in (0, 1):
            assert means[i] - means[i + 1] > math.hypot(noise[i], noise[i + 1]), name
        for errors in (coarse, middle, fine):
            assert 0.7 < errors[name][2].mean() < 1.15, name


def smooth_estimates(x, queries):
    kernel, hyper = kernels.rbf_mixture(4 * MEDIAN), {"ridge": 0.5}
    share, steps = {"mass_fraction": 0.99}, {"num_steps": 40}
    return {
        "stein": (x, score.stein_score(x, kernel, **hyper)),
        "stein_at": (queries, score.stein_score_at(queries, x, kernel, **hyper)),
        "rkhs_at": (queries, score.rkhs_score_at(queries, x, kernel, **hyper)),
        "spectral": (x, score_peers.spectral_score(x, kernel, **share)),
        "spectral_at": (
            queries,
            score_peers.spectral_score_at(queries, x, kernel, **share),
        ),
        "nu_method": (x, score_peers.nu_method_score(x, kernel, **steps)),
        "nu_method_at": (queries, score_peers.nu_method_score_at(queries, x, kernel, **steps)),
    }


@pytest.mark.thorough
def test_normal_score_from_256_samples(key):
    for name, (errors, cosines, _) in normal_errors(key, smooth_estimates, n=256, draws=16).items():
        error, noise = mean_and_noise(errors)
        assert error + 4 * noise < 0.25, name
        cosine, noise = mean_and_noise(cosines)
        assert cosine - 4 * noise > 0.95, name


@pytest.mark.thorough
def test_kde_points_the_right_way_with_the_smoothing_bias_of_its_lengthscale(key):
    def estimate(x, queries):
        return {"kde": (queries, score_peers.kde_score_at(queries, x, kernels.rbf_mixture(0.6)))}

    _, cosines, slopes = normal_errors(key, estimate, n=256, draws=32)["kde"]
    cosine, noise = mean_and_noise(cosines)
    assert cosine - 4 * noise > 0.93
    slope, noise = mean_and_noise(slopes)
    assert abs(slope - 1 / 1.36) < 4 * noise + 0.05


# -------------------------------------------------------------------------------------- extremes


@pytest.mark.parametrize("name", ["stein", "rkhs", "spectral", "nu_method"])
def test_no_pull_far_from_all_samples(name, rng):
    x, queries = (points.astype(np.float32) for points in clouds(rng))
    _, outside = both(name, x, 1e3 + queries, gaussians())
    np.testing.assert_array_equal(outside, 0)


def test_kde_draws_a_far_query_to_its_nearest_sample():
    x = jnp.array([[0.0, 0.0], [0.0, 10.0], [0.0, -30.0]])
    queries = jnp.array([[500.0, 10.0], [0.0, -900.0]])
    expected = np.array([[-500.0, 0.0], [0.0, 870.0]])
    at = jax.jit(score_peers.kde_score_at)
    single = at(queries, x, kernels.rbf_mixture(0.5))
    np.testing.assert_allclose(single, expected / 0.25, rtol=1e-5)
    mixture = at(queries, x, kernels.rbf_mixture([0.5, 2.0, 0.1], [1.0, 1.0, 0.0]))
    np.testing.assert_allclose(mixture, expected / 4, rtol=1e-5, atol=1e-3)
    deep = kernels.feature_kernel(kernels.rbf_mixture(1.0), lambda scale, z: scale * z, 2.0)
    np.testing.assert_allclose(at(queries, x, deep), expected * 4, rtol=1e-5)


@pytest.mark.thorough
def test_kde_in_blocks_is_kde_with_its_gradient(rng, monkeypatch):
    """Three queries at a time, of eight; padded by the last one."""
    x, queries = (jnp.asarray(rng.normal(size=(size, 4)), jnp.float32) for size in (6, 8))
    kernel = kernels.imq_mixture(0.8)

    def total(x, queries):
        inside = score_peers.kde_score(queries, kernel)
        outside = score_peers.kde_score_at(queries, x, kernel)
        return jnp.sum(jnp.sin(inside)) + jnp.sum(jnp.sin(outside)), (inside, outside)

    whole = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(x, queries)
    monkeypatch.setattr(score_peers, "_PAIRS_AT_ONCE", 24)
    blocks = jax.jit(lambda *a: jax.grad(total, argnums=(0, 1), has_aux=True)(*a))(x, queries)
    for got, want in zip(jax.tree.leaves(blocks), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_kde_of_fifty_thousand_points_takes_less_than_a_gibibyte():
    def scores(x, y):
        kernel = kernels.matern32(1.0)
        return score_peers.kde_score(x, kernel) - score_peers.kde_score_at(x, y, kernel)

    assert compiled_megabytes(scores, (50_000, 64), (50_000, 64)) < 1024


@pytest.mark.thorough
def test_kde_follows_the_nearest_samples_where_every_kernel_underflows():
    x = jnp.array([[0.0], [5.0], [1e4]])
    queries = jnp.array([[2.0], [5000.0]])
    got = score_peers.kde_score_at(queries, x, kernels.laplace(1.0))
    near, far = math.exp(-2), math.exp(-3)
    ahead, behind = math.exp(-5000 + 4995), 1 + math.exp(-5)  # shares, but for a factor
    expected = [(far - near) / (far + near), (ahead - behind) / (ahead + behind)]
    np.testing.assert_allclose(got[:, 0], expected, rtol=1e-5)


class _Bump:
    """A kernel of one's own without a logarithm."""

    def profile(self, sq_dist):
        return jnp.where(sq_dist < 9, jnp.exp(-sq_dist), 0)


@pytest.mark.thorough
def test_kde_of_a_kernel_that_is_zero_is_nan_only_where_all_samples_are_lost():
    x = jnp.array([[0.0], [5.0], [1e4]])
    got = score_peers.kde_score_at(jnp.array([[1.0], [5000.0]]), x, _Bump())
    np.testing.assert_allclose(got, [[-2.0], [np.nan]], rtol=1e-5)


@every_estimator
def test_duplicates_are_finite(name, rng):
    x, queries = (points.astype(np.float32) for points in clouds(rng))
    x[:7] = x[7:]
    queries[0] = x[3]
    kernel_list = [gaussians()] if name != "stein" else [gaussians(), kernels.laplace(1.5)]
    for kernel in kernel_list:
        inside, outside = both(name, x, queries, kernel)
        assert np.all(np.isfinite(outside))
        np.testing.assert_allclose(inside[:7], inside[7:], rtol=1e-2, atol=1e-3)


def test_spectral_drops_the_null_space_of_duplicates(rng):
    scales, weights = [0.8, 1.9], [1.0, 2.0]
    for _ in range(12):
        x, queries = clouds(rng)
        x = np.tile(x[:7], (2, 1))
        gram, repulsion, cross = (
            oracles.gram("rbf_mixture", x, x, scales, weights),
            oracles.gradient_sum("rbf_mixture", x, x, scales, weights=weights),
            oracles.gram("rbf_mixture", queries, x, scales, weights),
        )
        inverse = np.linalg.pinv(gram, rcond=1e-6)
        expected = -inverse @ repulsion, -cross @ inverse @ inverse @ repulsion
        x, queries = x.astype(np.float32), queries.astype(np.float32)
        got = both("spectral", x, queries, gaussians(scales, weights), mass_fraction=1.0)
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-3, atol=1e-3)


@every_estimator
def test_samples_that_all_coincide_have_no_score(name):
    x = np.full((14, 4), 3.3, np.float32)
    inside, outside = both(name, x, x[:3], gaussians())
    np.testing.assert_allclose(inside, 0, atol=1e-5)
    np.testing.assert_allclose(outside, 0, atol=1e-5)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", ["stein", "rkhs"])
def test_a_failed_solve_is_nan_and_the_documented_floor_prevents_it(name, rng):
    x, queries = (points.astype(np.float32) for points in clouds(rng, n=400, q=50, d=2))
    queries[:25] = x[:25]
    floor = 10 * len(x) * float(jnp.finfo(jnp.float32).eps) * 3
    for result in both(name, x, queries, gaussians([3.0, 10.0]), ridge=floor):
        assert np.all(np.isfinite(result))
    for result in both(name, x, queries, gaussians([3.0, 10.0]), ridge=1e-12):
        assert np.all(np.isnan(result))


@pytest.mark.thorough
def test_kernel_that_is_not_positive_definite_is_nan_out_of_sample():
    class Growing(NamedTuple):
        def profile(self, sq_dist):
            return 1 + sq_dist

    queries, x = jnp.array([[2.0], [0.1]]), jnp.array([[0.0]])
    got = score.stein_score_at(queries, x, Growing(), ridge=0.5)
    assert np.isnan(got[0, 0])
    assert np.isfinite(got[1, 0])


# ------------------------------------------------------------------------------------ transforms


@pytest.mark.thorough
@every_estimator
def test_eager_agrees_with_jit_and_reads_numpy_float64(name, rng):
    fn, fn_at, hyper = ESTIMATORS[name]
    x, queries = clouds(rng)
    assert x.dtype == np.float64
    expected = both(name, x, queries, gaussians())
    got = fn(x, gaussians(), **hyper), fn_at(queries, x, gaussians(), **hyper)
    assert [g.dtype for g in got] == [jnp.float32, jnp.float32]
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough(quick=1)
@every_estimator
def test_vmap_agrees_with_one_by_one(name, rng):
    x, queries = (rng.normal(size=(2, n, 4)).astype(np.float32) for n in (14, 3))
    single = [both(name, *pair, gaussians()) for pair in zip(x, queries, strict=True)]
    mapped = jax.vmap(lambda a, b: both(name, a, b, gaussians()))(x, queries)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *single)
    chex.assert_trees_all_close(mapped, stacked, rtol=1e-4, atol=1e-5)


HYPER = {  # traced hyperparameters: two values each
    "stein": [{"ridge": 0.3}, {"ridge": 0.5}],
    "rkhs": [{"ridge": 0.3}, {"ridge": 0.5}],
    "spectral": [{"mass_fraction": 0.8}, {"mass_fraction": 0.95}],
    "nu_method": [{"nu": 1.0}, {"nu": 2.0}],
    "kde": [{}, {}],
}


@every_estimator
def test_new_values_do_not_compile_again(name, rng):
    fn, fn_at, fixed = ESTIMATORS[name]
    x, queries = (points.astype(np.float32) for points in clouds(rng))

    def run(x, queries, kernel, hyper):
        hyper = {key: value for key, value in fixed.items() if key not in hyper} | hyper
        return fn(x, kernel, **hyper), fn_at(queries, x, kernel, **hyper)

    chex.clear_trace_counter()
    traced_once = jax.jit(chex.assert_max_traces(run, n=1))
    first = traced_once(x, queries, gaussians([1.0, 2.0]), HYPER[name][0])
    second = traced_once(x + 1, queries, gaussians([2.0, 3.0]), HYPER[name][1])
    assert np.abs(first[0] - second[0]).max() > 1e-3


@pytest.mark.thorough
@pytest.mark.usefixtures("x64")
@every_estimator
def test_gradients(name, rng):
    fn, fn_at, fixed = ESTIMATORS[name]
    x, queries = clouds(rng, n=9)

    def total(x, queries, scales, hyper):
        hyper = {key: value for key, value in fixed.items() if key not in hyper} | hyper
        kernel = kernels.rbf_mixture(scales)
        outside = jnp.sum(jnp.sin(fn_at(queries, x, kernel, **hyper)))
        if name != "stein":
            return outside
        return outside + jnp.sum(jnp.sin(fn(x, kernel, **hyper)))

    hyper = {} if name == "spectral" else HYPER[name][0]
    args = (jnp.asarray(x), jnp.asarray(queries), jnp.array([0.9, 1.6]), hyper)
    check_grads(jax.jit(total), args, order=1, modes=("rev",), atol=1e-5, rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.usefixtures("x64")
def test_spectral_gradient_where_eigenvalues_coincide(rng):
    def total(scale, x):
        got = score_peers.spectral_score(x, kernels.rbf_mixture(scale), mass_fraction=1.0)
        return jnp.sum(jnp.square(got))

    x, _ = clouds(rng, n=5)
    twice = jnp.asarray(np.concatenate([x, x + 1000]))
    slope = functools.partial(jax.jit(total), x=twice)
    check_grads(slope, (1.0,), order=1, modes=("rev",), atol=1e-5, rtol=1e-5)
    apart = 1000.0 * jnp.eye(10, 4, dtype=float) + 1000.0 * jnp.arange(10.0)[:, None]
    assert jax.jit(jax.grad(total))(1.0, apart) == 0  # K = I to the last bit


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("deep", [False, True])
def test_two_devices_are_one(deep, rng):
    x, queries = (points.astype(np.float32) for points in clouds(rng, n=24, q=6))
    kernel = kernels.imq_mixture([1.0, 2.0])
    if deep:
        kernel = kernels.feature_kernel(kernel, lambda scale, z: jnp.tanh(scale * z), 0.7)
    expected = both("stein", x, queries, kernel)

    def device(x, queries):
        return (
            score.stein_score(x, kernel, ridge=0.3, axis_name="i"),
            score.stein_score_at(queries, x, kernel, ridge=0.3, axis_name="i"),
        )

    got = jax.pmap(device, axis_name="i")(x.reshape(2, 12, 4), queries.reshape(2, 3, 4))
    got = jax.tree.map(lambda a: a.reshape(-1, 4), got)
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------- types, errors


@every_estimator
def test_half_precision_in_and_out(name, rng):
    fn, fn_at, hyper = ESTIMATORS[name]
    x, queries = (jnp.asarray(points, jnp.bfloat16) for points in clouds(rng))
    for shape in (
        jax.eval_shape(lambda: fn(x, gaussians(), **hyper)),
        jax.eval_shape(lambda: fn_at(queries, x, gaussians(), **hyper)),
    ):
        assert shape.dtype == jnp.bfloat16
    if name in ("stein", "rkhs"):
        got = both(name, x, queries, gaussians())
        full = both(name, x.astype(jnp.float32), queries.astype(jnp.float32), gaussians())
        for a, b in zip(got, full, strict=True):
            np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=1e-2, atol=1e-6)


@every_estimator
def test_errors_name_the_points(name):
    fn, fn_at, hyper = ESTIMATORS[name]
    kernel, x = kernels.rbf_mixture(1.0), jnp.ones((4, 3))
    for wrong in (jnp.ones((0, 3)), jnp.ones(4), jnp.ones((4, 0)), jnp.ones((2, 4, 3))):
        with pytest.raises(ValueError, match=r"^samples: got shape .*; expected \(n, d\)"):
            fn(wrong, kernel, **hyper)
        with pytest.raises(ValueError, match=r"^queries: got shape .*; expected \(n, d\)"):
            fn_at(wrong, x, kernel, **hyper)
    with pytest.raises(ValueError, match=r"^samples: got shape \(4, 3\); expected \(n, 2\)"):
        fn_at(jnp.ones((5, 2)), x, kernel, **hyper)
    with pytest.raises(ValueError, match=r"^samples: got dtype int32; expected floating"):
        fn(x.astype(int), kernel, **hyper)
    with pytest.raises(ValueError, match=r"^queries: got dtype int32; expected floating"):
        fn_at(x.astype(int), x, kernel, **hyper)


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("stein", {"ridge": 0.0}, r"^ridge: got 0.*; expected values in \(0, infinity\)"),
        ("stein", {"ridge": -1}, r"^ridge: got -1; expected values in \(0, infinity\)"),
        ("stein", {"ridge": float("nan")}, "^ridge: got nan"),
        ("stein", {"ridge": np.ones(4)}, r"^ridge: got shape \(4,\); expected \(\)"),
        ("rkhs", {"ridge": 0.0}, "^ridge: got 0"),
        ("spectral", {"mass_fraction": 0.0}, r"^mass_fraction: got 0.*expected values in \(0, 1\]"),
        ("spectral", {"mass_fraction": 1.5}, "^mass_fraction: got 1.5"),
        ("nu_method", {"num_steps": 0}, "^num_steps: got 0; expected an integer >= 1"),
        ("nu_method", {"num_steps": 3, "nu": 0.0}, "^nu: got 0"),
    ],
)
def test_errors_name_the_hyperparameter(name, hyper, message):
    fn, fn_at, _ = ESTIMATORS[name]
    x, kernel = jnp.ones((4, 3)), kernels.rbf_mixture(1.0)
    with pytest.raises(ValueError, match=message):
        fn(x, kernel, **hyper)
    with pytest.raises(ValueError, match=message):
        fn_at(x, x, kernel, **hyper)


@pytest.mark.thorough
@pytest.mark.parametrize("d", [2, 5])
def test_queries_however_far_have_scores(rng, d):
    """A Gaussian draws them home, all else has decayed to 0; nothing overflows."""
    samples, rays = (jnp.asarray(rng.normal(size=(n, d)), jnp.float32) for n in (7, 3))
    queries = 3e19 * rays / jnp.max(jnp.abs(rays))
    home = score_peers.kde_score_at(queries, samples, kernels.rbf_mixture([0.5, 2.0]))
    home, out = (np.asarray(a, np.float64) for a in (home, rays))
    cosines = np.sum(home * out, axis=1) / np.linalg.norm(home, axis=1)
    np.testing.assert_allclose(cosines / np.linalg.norm(out, axis=1), -1, rtol=1e-5)
    imq = kernels.imq_mixture(1.0)
    for score_at in (
        score_peers.kde_score_at,
        functools.partial(score_peers.spectral_score_at, mass_fraction=0.9),
        functools.partial(score_peers.nu_method_score_at, num_steps=2),
    ):
        np.testing.assert_allclose(score_at(queries, samples, imq), 0, atol=1e-6)


class _OwnGaussian:
    """A kernel of a caller's own, which knows its logarithm and no unit."""

    lengthscales = np.ones(1, np.float32)

    def profile(self, sq_dist):
        return jnp.exp(-sq_dist / 2)

    def log_profile(self, sq_dist):
        return -sq_dist / 2


def test_a_kernel_of_ones_own_keeps_its_logarithm_far_away(rng):
    x = jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)
    got, want = (
        score_peers.kde_score_at(x + 60, x, kernel)
        for kernel in (_OwnGaussian(), kernels.rbf_mixture(1.0))
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)
