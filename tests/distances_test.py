"""Digits on any geometry: clusters far apart, outliers, units; float64 sums of NumPy as oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernelgrad import (
    _distances,
    _tiles,
    drift,
    energy,
    kernels,
    ksd,
    median,
    metrics,
    mmd,
    noise,
    objectives,
    pairwise,
    ratio,
    score,
    score_peers,
    svgd,
)

FAR = (0.0, 5.0, 10.0, 100.0, 3000.0, 1e4)  # of the clusters, in lengthscales
GEOMETRIES = ("two clusters", "line of clusters", "offset", "heavy tails")
BOUND = 1e-5  # of the largest value


def points(geometry, far, n, d, rng):
    """Unit clouds around centres some `far` lengthscales sqrt(d) apart, in random order."""
    x = rng.normal(size=(n, d))
    step = far * d**0.5
    if geometry == "two clusters":
        x[: n // 3, 0] -= step
    elif geometry == "line of clusters":
        x[:, 0] += step / 4 * rng.integers(0, 5, size=n)
    elif geometry == "offset":
        x += step
    else:
        x *= 1 + step * np.abs(rng.standard_cauchy(size=(n, 1)) > 5)
    return rng.permutation(x).astype(np.float32)


def imq(x, y, lengthscale):
    """k, k' and k'' in r^2, and the differences x_i - y_j."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    differences = x[:, None] - y[None]
    u = np.sum(differences**2, axis=2) / lengthscale**2
    k = (1 + u) ** -0.5
    return k, -0.5 * k**3 / lengthscale**2, 0.75 * k**5 / lengthscale**4, differences


def oracle(x, y, s, weights, force, lengthscale):
    k, slope, curvature, differences = imq(x, x, lengthscale)
    s = np.asarray(s, np.float64)
    pull = -2 * np.einsum("ij,j,ijd->id", slope, force, differences)
    moved = np.einsum("ijd,ijd->ij", differences, s[None] - s[:, None])
    stein = k * (s @ s.T) + 2 * slope * moved - 2 * x.shape[1] * slope
    stein -= 4 * curvature * np.sum(differences**2, axis=2)
    k_xy, k_yy = imq(x, y, lengthscale)[0], imq(y, y, lengthscale)[0]
    ridge = 0.1 * len(x) ** 0.5
    repulsion = -2 * np.einsum("ij,ijd->id", slope, differences)
    return {
        "gram": k,
        "kernel_sum": k @ weights,
        "gradient_sum": pull,
        "stein_sum": k @ weights + pull,
        "cross_sum": k_xy @ weights,
        "mmd": k.mean() + k_yy.mean() - 2 * k_xy.mean(),
        "stein_gram": stein,
        "ksd": stein.mean(),
        "score": -np.linalg.solve(k + ridge * np.eye(len(x)), repulsion),
    }


def library(x, y, s, weights, force, lengthscale):
    kernel = kernels.imq_mixture(lengthscale)
    return {
        "gram": kernels.gram(kernel, x),
        "kernel_sum": pairwise.kernel_sum(kernel, x, None, weights),
        "gradient_sum": pairwise.gradient_sum(kernel, x, None, force),
        "stein_sum": pairwise.stein_sum(kernel, x, None, weights, force),
        "cross_sum": pairwise.kernel_sum(kernel, x, y, weights),
        "mmd": mmd.mmd_v_statistic(x, y, kernel),
        "stein_gram": ksd.stein_gram(x, s, kernel),
        "ksd": ksd.ksd_v_statistic(x, s, kernel),
        "score": score.stein_score(x, kernel, ridge=0.1 * len(x) ** 0.5),
    }


@pytest.fixture
def many(monkeypatch):
    """Points too many for differences of all their pairs, as far as the library knows."""
    monkeypatch.setattr(_distances, "FEW_DIFFERENCES", 0)


@pytest.fixture(params=["few", "dense", pytest.param("tiled", marks=pytest.mark.slow)])
def layout(request, monkeypatch):
    if request.param != "few":
        request.getfixturevalue("many")
    if request.param == "tiled":
        for name, size in (("DENSE_PAIRS", 0), ("TILE_ROWS", 16), ("TILE_COLS", 8)):
            monkeypatch.setattr(_tiles, name, size)
    return request.param


@pytest.mark.thorough
@pytest.mark.parametrize("d", [1, 4, pytest.param(50, marks=pytest.mark.slow)])
def test_far_clusters_keep_their_digits(d, rng, layout):
    n = 45
    compiled = jax.jit(library)
    for geometry in GEOMETRIES:
        for far in FAR:
            x, y = (points(geometry, far, n, d, rng) for _ in range(2))
            middle = np.round(x[:, :1] / d**0.5)  # scores of clouds of their own
            s = -(x - np.eye(1, d) * middle * d**0.5).astype(np.float32)
            weights = rng.normal(size=(n, d)).astype(np.float32)
            force = rng.normal(size=n).astype(np.float32)
            arguments = (x, y, s.astype(np.float32), weights, force, np.float32(d**0.5))
            got, expected = compiled(*arguments), oracle(*arguments)
            for name, value in expected.items():
                error = np.max(np.abs(got[name] - value)) / np.max(np.abs(value))
                assert error < BOUND, (geometry, far, name, error)


def bent_features():
    """Four of five of them the points themselves; a factory, for its numbers' dtype."""
    bent = lambda _, x: jnp.concatenate([x, jnp.sin(x[:, :1])], axis=1)  # noqa: E731
    return kernels.feature_kernel(kernels.imq_mixture(2.0), bent, ())


LINES = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0].astype(np.float32)
FIELDS = {
    "drift": drift.drift,
    "noise": lambda x, y: noise.noisy_logits_and_gradient(x, y, x, variance=4.0),
    "features": lambda x, y: pairwise.gradient_sum(bent_features(), x, y),
    "feature scores": lambda x, y: score.stein_score(x, bent_features(), ridge=1.0),
    "lines": lambda x, y: energy.sliced_energy_and_gradient(x, y, LINES),
    "balls": lambda x, y: metrics.precision_recall(x, y, k=3),
}


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_far_clusters_keep_their_digits(name, rng):
    compiled, in_full = jax.jit(FIELDS[name]), jax.jit(FIELDS[name])
    for geometry in ("two clusters", "line of clusters"):
        for far in (50.0, 1e4):
            x, y = (points(geometry, far, 40, 4, rng) for _ in range(2))
            got = jax.tree.leaves(compiled(x, y))
            with jax.enable_x64(True):
                expected = jax.tree.leaves(in_full(x.astype(float), y.astype(float)))
            for ours, exact in zip(got, map(np.asarray, expected), strict=True):
                error = np.max(np.abs(np.asarray(ours, float) - exact)) / np.max(np.abs(exact))
                assert error < BOUND, (geometry, far, error)


@pytest.mark.parametrize("d", [2, 4, 50])
def test_one_cloud_needs_no_differences_in_sums(d, rng):
    x = rng.normal(size=(400, d)).astype(np.float32)
    kernel = kernels.median_mixture(kernels.imq_mixture, x)
    rows, cols = _distances.prepare(x)
    assert _distances.blurs(kernel, rows, cols) == 0
    assert _distances.apart(rows) == 0
    assert _distances.apart(_distances.prepare(points("two clusters", 100.0, 400, d, rng))[0]) == 1


def test_a_point_that_is_not_finite_spoils_its_own_pairs_alone(rng, many):
    """At the places that choose a middle, too, and between clusters that need one."""
    x = points("two clusters", 1e4, 45, 4, rng)
    bad = [0, 22, 44]
    others = np.delete(np.arange(45), bad)
    gram = jax.jit(lambda x: kernels.gram(kernels.imq_mixture(2.0), x))
    expected = imq(x[others], x[others], 2.0)[0]
    for value in (np.nan, np.inf):
        spoilt = x.copy()
        spoilt[bad] = value
        got = np.asarray(gram(spoilt))[np.ix_(others, others)]
        assert np.max(np.abs(got - expected)) < BOUND


@pytest.mark.thorough
def test_neighbours_far_from_the_middle():
    """Two pairs of neighbours two thousand lengthscales apart, and on a line."""
    x = np.array(
        [[1000.3, 0.3, 0, 0], [1001.1, -0.2, 0, 0], [-1000.2, 0.1, 0, 0], [-1000.9, 0.5, 0, 0]],
        np.float32,
    )
    for dimensions in (4, 1):
        cut = x[:, :dimensions]
        expected = np.exp(-np.sum((cut[2].astype(float) - cut[3]) ** 2) / 2)
        gram = kernels.gram(kernels.rbf_mixture(1.0), cut)
        np.testing.assert_allclose(gram[2, 3], expected, rtol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("loss", ["mmd", "ksd"])
def test_gradients_of_far_clusters(loss, rng, many):
    def value(x, y, lengthscale):
        kernel = kernels.imq_mixture(lengthscale)
        if loss == "mmd":
            return mmd.mmd_v_statistic(x, y, kernel)
        return ksd.ksd_v_statistic(x, y, kernel)

    x, y = (points("two clusters", 1e3, 24, 4, rng) for _ in range(2))
    y = y if loss == "mmd" else rng.normal(size=y.shape).astype(np.float32)
    got = jax.jit(jax.grad(value, argnums=(0, 1, 2)))(x, y, jnp.float32(2))
    with jax.enable_x64(True):
        expected = jax.grad(value, argnums=(0, 1, 2))(*jax.tree.map(np.float64, (x, y, 2.0)))
    for ours, exact in zip(got, expected, strict=True):
        difference = np.asarray(ours, np.float64) - np.asarray(exact)
        assert np.max(np.abs(difference)) < BOUND * np.max(np.abs(exact))


def test_only_lost_pairs_are_looked_at_again(rng, many):
    """One cloud, and outliers alone far out, stay with the matmul; two of them together do not."""
    kernel = kernels.imq_mixture(2.0)
    lost = jax.jit(lambda x: _distances.lost(kernel, *_distances.prepare(x), 0))
    cloud = rng.normal(size=(64, 4)).astype(np.float32)
    outlier = cloud.copy()
    outlier[7] *= 1e3
    outliers = outlier.copy()
    outliers[9] = outliers[7] + 0.1
    assert [int(lost(x)) for x in (cloud, 1e4 + cloud, outlier, outliers)] == [0, 0, 0, 1]


def test_one_choice_for_a_batch(rng, many):
    """Under vmap a conditional on a batch would become a select, and run both ways."""
    kernel = kernels.imq_mixture(2.0)
    x = np.stack([points("two clusters", far, 20, 4, rng) for far in (0.0, 1e4)])
    gram = jax.jit(jax.vmap(lambda x: kernels.gram(kernel, x)))
    assert "cond[" in str(jax.make_jaxpr(gram)(x))
    for of_batch, each in zip(gram(x), x, strict=True):
        np.testing.assert_allclose(of_batch, imq(each, each, 2.0)[0], atol=1e-6)
    nested = jax.jit(jax.vmap(jax.vmap(lambda x: kernels.gram(kernel, x))))
    np.testing.assert_array_equal(nested(x[None])[0], gram(x))


@pytest.mark.thorough
@pytest.mark.parametrize("share", [0.6, 0.9])
def test_median_within_far_clusters(share, rng):
    """Most pairs are within a cluster: the median is a distance between neighbours."""
    x = rng.normal(size=(50, 6)).astype(np.float32)
    x[: int(share * 50), 0] += 1e4
    x = rng.permutation(x)
    exact = np.sum((x[:, None].astype(float) - x[None]) ** 2, axis=2)[np.triu_indices(50, 1)]
    np.testing.assert_allclose(median.median_squared_distance(x), np.median(exact), rtol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("multiple", [1, 5])
def test_solves_hold_above_the_documented_ridge(multiple, rng):
    """50 of 200 points 100 lengthscales away, at the floor of 10 n eps k(0) and above it."""
    x = rng.normal(size=(200, 10)).astype(np.float32)
    x[:50, 0] += 100 * 10**0.5
    ridge = multiple * 10 * len(x) * float(np.finfo(np.float32).eps)
    k, slope, _, differences = imq(x, x, 10**0.5)
    repulsion = -2 * np.einsum("ij,ijd->id", slope, differences)
    expected = -np.linalg.solve(k + ridge * np.eye(len(x)), repulsion)
    got = score.stein_score(x, kernels.imq_mixture(10**0.5), ridge=ridge)
    assert np.max(np.abs(got - expected)) < 1e-2 * np.max(np.abs(expected))


@pytest.mark.thorough
@pytest.mark.parametrize("family", [kernels.rbf_mixture, kernels.imq_mixture])
def test_kernel_noise_is_finite_on_far_clusters(family, key, rng):
    draw = jax.jit(lambda x: svgd.kernel_noise(key, x, family(10**0.5)))
    for n_far in (3.0, 5.0, 10.0, 100.0, 1e4):
        x = points("two clusters", n_far, 60, 10, rng)
        assert np.isfinite(draw(x)).all(), n_far


@pytest.mark.thorough
@pytest.mark.parametrize("unit", [1e-15, 1e-10, 1e10, 1e15])
def test_stein_kernels_know_no_unit(unit, rng):
    x = rng.normal(size=(20, 3))

    def statistics(length):
        points, s = (length * x).astype(np.float32), (-x / length).astype(np.float32)
        kernel = kernels.median_mixture(kernels.imq_mixture, points)
        values = ksd.ksd_v_statistic(points, s, kernel), ksd.ksd_u_statistic(points, s, kernel)
        return np.array(values) * length**2, ksd.stein_thinning(points, s, kernel, num_points=7)

    (expected, indices), (got, others) = statistics(1.0), statistics(unit)
    np.testing.assert_allclose(got, expected, atol=1e-6 * expected[0])
    np.testing.assert_array_equal(others, indices)


@pytest.mark.thorough
@pytest.mark.parametrize("family", kernels.FAMILIES)
def test_points_whose_squares_overflow_are_far(family, rng):
    """Squared distances of 1e39 are infinite in float32; no kernel, sum or score is NaN there."""
    kernel = kernels.FAMILIES[family](1.0)
    x, queries = rng.normal(size=(5, 4)).astype(np.float32), np.full((2, 4), 3e19, np.float32)
    for values in (
        kernels.gram(kernel, queries, x),
        pairwise.gradient_sum(kernel, queries, x),
        score.stein_score_at(queries, x, kernel, ridge=1.0),
        score.rkhs_score_at(queries, x, kernel, ridge=1.0),
    ):
        np.testing.assert_array_equal(values, np.zeros_like(values))


KERNEL = kernels.rbf_mixture(1.0)
WITH_FAR_SAMPLES = {
    "drift": lambda x, y: drift.drift(x, y),
    "kde_score": lambda x, y: score_peers.kde_score(x, KERNEL),
    "kde_score_at": lambda x, y: score_peers.kde_score_at(y, x, KERNEL),
    "conservative_drift": lambda x, y: objectives.conservative_drift(KERNEL)(None, y, x)[0],
    "noisy": lambda x, y: noise.noisy_logits_and_gradient(y, x, y + 1, variance=1.0),
    "kliep": lambda x, y: ratio.log_ratio_gradient(ratio.kliep(x, y, KERNEL), y),
}


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", WITH_FAR_SAMPLES)
def test_one_sample_whose_square_overflows_is_far(name, rng):
    x, y = (rng.normal(size=(8, 4)).astype(np.float32) for _ in range(2))
    compiled, in_full = jax.jit(WITH_FAR_SAMPLES[name]), jax.jit(WITH_FAR_SAMPLES[name])
    for far in (3e19, 1e30):
        x[3] = far
        got = jax.tree.leaves(compiled(x, y))
        with jax.enable_x64(True):
            expected = jax.tree.leaves(in_full(x.astype(float), y.astype(float)))
        for ours, exact in zip(got, map(np.asarray, expected), strict=True):
            assert np.all(np.isfinite(ours))
            if name != "kliep":  # whose centers tell points apart by distances with no digits left
                np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-5 * np.max(np.abs(exact)))


@pytest.mark.thorough
@pytest.mark.parametrize("family", kernels.FAMILIES)
def test_densities_of_clouds_a_hundred_lengthscales_apart_have_a_score(family, rng):
    x, y = (rng.normal(size=(6, 2)).astype(np.float32) for _ in range(2))
    objective = objectives.conservative_drift(kernels.FAMILIES[family](0.01))
    direction, _ = jax.jit(objective)(jax.random.key(0), x, y)
    assert np.all(np.isfinite(direction))


@pytest.mark.parametrize(
    ("size", "period"), [(1024, 2), (1024, 8), (1024, 13), (699, 3), (1220, 2), (2440, 4)]
)
def test_the_median_of_some_values_is_of_all_their_places(size, period):
    """Values that repeat are seen as often as they are, and what is not finite is not.

    The last sizes are the period by a Fibonacci number: the golden ratio sees every period-th.
    """
    values = np.where(np.arange(size) % period, np.arange(float(size)), np.inf)
    got = float(_distances.median_of_some(jnp.asarray(values, jnp.float32)))
    assert abs(got - size / 2) < size / 16
    few = jnp.asarray([jnp.nan, 3.0, 1.0, jnp.inf, 2.0])
    assert float(_distances.median_of_some(few)) == 2
    assert jnp.isnan(_distances.median_of_some(jnp.full(200, jnp.nan)))
    halves = jnp.where(jnp.arange(size) < size // 2, 1.0, 1e8)
    assert float(_distances.median_of_some(halves)) in (1, 1e8)
