import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.linalg
from scipy.spatial.distance import cdist

from kernelgrad import _tiles, metrics

inception_score = jax.jit(metrics.inception_score)
label_entropy = jax.jit(metrics.label_entropy, static_argnums=1)
frechet_distance = jax.jit(metrics.frechet_distance)
kernel_inception_distance = jax.jit(metrics.kernel_inception_distance)
precision_recall = jax.jit(metrics.precision_recall, static_argnames="k")
nearest_neighbors_l1 = jax.jit(metrics.nearest_neighbors_l1)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def random_probs(rng, n, c):
    probs = rng.dirichlet(np.full(c, 0.3), size=n)
    probs[:, 0] *= rng.random(n) < 0.5  # zeros
    return (probs / probs.sum(1, keepdims=True)).astype(np.float32)


def covariance(rng, d, rank=None):
    factor = rng.standard_normal((d, rank or d))
    return (factor @ factor.T / d).astype(np.float32)


def central_differences(fn, x, step=1e-4):
    x = np.asarray(x, np.float64)
    slope = np.zeros_like(x)
    for i in np.ndindex(*x.shape):
        shift = np.zeros_like(x)
        shift[i] = step
        slope[i] = (fn(x + shift) - fn(x - shift)) / (2 * step)
    return slope


# --- inception score -----------------------------------------------------------------------------


def test_inception_score_of_equal_rows_is_one():
    np.testing.assert_allclose(inception_score(jnp.full((50, 10), 0.1)), 1, rtol=1e-6)


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_inception_score_of_balanced_one_hot_rows_is_number_of_classes(num_classes):
    probs = jnp.tile(jnp.eye(num_classes), (3, 1))
    np.testing.assert_allclose(inception_score(probs), num_classes, rtol=1e-6)


def test_inception_score_ignores_a_class_that_never_occurs():
    probs = jnp.tile(jnp.eye(4)[:3], (5, 1))
    np.testing.assert_allclose(inception_score(probs), 3, rtol=1e-6)


def test_inception_score_is_unchanged_by_duplicates(rng):
    probs = random_probs(rng, 40, 10)
    once = inception_score(probs)
    np.testing.assert_allclose(inception_score(np.tile(probs, (500, 1))), once, rtol=1e-5)


def test_inception_score_equals_float64_loops(rng):
    probs = random_probs(rng, 60, 7)
    np.testing.assert_allclose(inception_score(probs), oracles.inception_score(probs), rtol=2e-6)


def test_inception_score_gradient_equals_differences_of_the_oracle(rng):
    logits = normal(rng, 6, 3)

    def oracle(logits):
        exp = np.exp(logits)
        return oracles.inception_score(exp / exp.sum(1, keepdims=True))

    slope = jax.grad(lambda x: inception_score(jax.nn.softmax(x, axis=1)))(logits)
    np.testing.assert_allclose(slope, central_differences(oracle, logits), atol=1e-5)


# --- label entropy -------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 30.0, 200.0])
def test_inception_score_has_a_gradient_at_saturated_logits(rng, scale):
    """Of logits, by the softmax in float64: p_ic (log p_ic / m_c - KL_i) score / n."""
    logits = jnp.asarray(scale * np.eye(4)[[0, 1, 2, 2, 3]] + rng.random((5, 4)), jnp.float32)
    got = jax.jit(jax.grad(lambda x: inception_score(jax.nn.softmax(x, axis=1))))(logits)
    logits = np.asarray(logits, np.float64)
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    excess = log_probs - np.log(np.exp(log_probs).mean(axis=0))
    divergences = np.sum(np.exp(log_probs) * excess, axis=1, keepdims=True)
    expected = np.exp(log_probs) * (excess - divergences) * np.exp(divergences.mean()) / 5
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_traced_input_out_of_range_gives_nan():
    assert np.isnan(jax.jit(lambda x: metrics.label_entropy(x, 2))(jnp.array([0, 5])))
    assert np.isnan(jax.jit(lambda x: metrics.label_entropy(x, 2))(jnp.array([0, -1])))
    assert np.isnan(jax.jit(inception_score)(jnp.ones((3, 2))))
    assert np.isnan(jax.jit(inception_score)(jnp.array([[1.5, -0.5], [0.5, 0.5]])))


def test_label_entropy_of_uniform_labels_is_log_number_of_classes():
    entropy = label_entropy(jnp.arange(500) % 10, 10)
    np.testing.assert_allclose(entropy, 2.302585, rtol=1e-6)


def test_label_entropy_of_one_class_is_zero():
    assert label_entropy(jnp.full(7, 3), 10) == 0


def test_label_entropy_equals_its_formula():
    labels = np.array([0, 0, 1, 4], np.uint8)
    expected = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
    np.testing.assert_allclose(label_entropy(labels, 5), expected, rtol=1e-6)


# --- Frechet distance ----------------------------------------------------------------------------


def test_frechet_distance_in_one_dimension():
    args = [jnp.array(a) for a in ([1.0], [[4.0]], [3.5], [[0.25]])]
    np.testing.assert_allclose(frechet_distance(*args), 2.5**2 + 1.5**2, rtol=1e-6)


def test_frechet_distance_of_commuting_covariances(rng):
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    s1, s2 = rng.random((2, 6))
    mean1, mean2 = rng.standard_normal((2, 6))
    args = [mean1, basis * s1**2 @ basis.T, mean2, basis * s2**2 @ basis.T]
    expected = np.sum((mean1 - mean2) ** 2) + np.sum((s1 - s2) ** 2)
    distance = frechet_distance(*[jnp.asarray(a, jnp.float32) for a in args])
    np.testing.assert_allclose(distance, expected, rtol=1e-5)


def test_frechet_distance_equals_sqrtm(rng):
    args = normal(rng, 20), covariance(rng, 20), normal(rng, 20), covariance(rng, 20)
    np.testing.assert_allclose(frechet_distance(*args), oracles.frechet_distance(*args), rtol=1e-5)


def test_frechet_distance_is_symmetric(rng):
    args = normal(rng, 20), covariance(rng, 20, 8), normal(rng, 20), covariance(rng, 20)
    swapped = frechet_distance(*args[2:], *args[:2])
    np.testing.assert_allclose(frechet_distance(*args), swapped, rtol=1e-5)


def test_frechet_distance_of_equal_arguments_is_zero(rng):
    mean, cov = normal(rng, 30), covariance(rng, 30)
    distance = frechet_distance(mean, cov, mean, cov)
    assert 0 <= distance < 1e-5 * np.trace(cov)


def test_frechet_distance_of_singular_covariances(rng):
    """Factors of rank 3 in orthogonal subspaces: the cross term is 0."""
    basis = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    s1, s2 = 0.5 + rng.random((2, 3))
    cov1 = basis[:, :3] * s1 @ basis[:, :3].T
    cov2 = basis[:, 3:6] * s2 @ basis[:, 3:6].T
    args = [jnp.asarray(a, jnp.float32) for a in (np.zeros(40), cov1, np.zeros(40), cov2)]
    np.testing.assert_allclose(frechet_distance(*args), s1.sum() + s2.sum(), rtol=1e-3)
    half = frechet_distance(args[0], args[1], args[0], args[1] / 4)
    np.testing.assert_allclose(half, s1.sum() / 4, rtol=1e-5)


def test_frechet_distance_of_nearly_equal_decaying_covariances_does_not_cancel(rng):
    """A spectrum like that of a network's features, of which trace formulas in float32 lose all."""
    scales = np.arange(1.0, 129.0) ** -1.5
    covs = [np.cov(rng.standard_normal((5000, 128)) * scales, rowvar=False) for _ in range(2)]
    args = [jnp.asarray(a, jnp.float32) for a in (np.zeros(128), covs[0], np.zeros(128), covs[1])]
    expected = sum(np.trace(cov) for cov in covs)
    roots = [scipy.linalg.cholesky(np.asarray(cov, np.float64), lower=True) for cov in args[1::2]]
    expected -= 2 * np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    assert expected < 2e-3  # of traces of 2.4
    np.testing.assert_allclose(frechet_distance(*args), expected, rtol=0.02)


# --- kernel inception distance -------------------------------------------------------------------


def frechet_slopes(cov1, cov2):
    zeros = jnp.zeros(cov1.shape[0])
    return jax.grad(frechet_distance, (1, 3))(zeros, cov1, zeros, cov2)


def test_frechet_distance_has_the_gradient_of_commuting_covariances():
    """(sqrt a - sqrt b)^2 has the slopes 1 - sqrt(b / a) and 1 - sqrt(a / b)."""
    eye, root = np.eye(3), np.sqrt(2)
    for scale, expected in ((2, (1 - root, 1 - 1 / root)), (1, (0, 0))):
        for slope, factor in zip(frechet_slopes(eye, scale * eye), expected, strict=True):
            np.testing.assert_allclose(slope, factor * eye, atol=1e-6)


def test_frechet_distance_has_the_gradient_of_its_formula(rng):
    """By differences of the oracle; within its range, where the first covariance is singular."""
    with jax.enable_x64(True):
        for rank in (None, 2):
            cov1, cov2 = covariance(rng, 4, rank).astype(float), covariance(rng, 4).astype(float)
            slopes = frechet_slopes(jnp.asarray(cov1), jnp.asarray(cov2))
            inside = rng.standard_normal((4, 4))
            inside = cov1 @ (inside + inside.T) @ cov1
            values, vectors = np.linalg.eigh(cov1)
            basis = vectors[:, values > 1e-9]

            def distance(step, cov1=cov1, cov2=cov2, inside=inside, basis=basis):
                moved = basis.T @ (cov1 + step * inside) @ basis
                seen = basis.T @ cov2 @ basis  # what lies outside of the range overlaps with none
                if basis.shape[1] < 4:
                    root = scipy.linalg.sqrtm(moved)
                    cross = scipy.linalg.sqrtm(root @ seen @ root).real
                    return np.trace(moved) - 2 * np.trace(cross)
                return oracles.frechet_distance(
                    np.zeros(4), cov1 + step * inside, np.zeros(4), cov2
                )

            expected = (distance(1e-5) - distance(-1e-5)) / 2e-5
            np.testing.assert_allclose(np.sum(slopes[0] * inside), expected, rtol=1e-6)
            assert np.isfinite(slopes[1]).all()


def test_frechet_distance_of_no_variance_has_finite_slopes():
    for slope in frechet_slopes(jnp.zeros((3, 3)), jnp.eye(3)):
        np.testing.assert_allclose(slope, np.eye(3))


def test_kid_by_hand():
    """Within x k = 1, within y 27, between 1, 1, 8, 27: 1 + 27 - 2 37 / 4."""
    x, y = jnp.array([[0.0], [1.0]]), jnp.array([[1.0], [2.0]])
    np.testing.assert_allclose(kernel_inception_distance(x, y), 9.5, rtol=1e-6)


@pytest.mark.parametrize("offset", [0, 1, 100])
def test_kid_equals_float64_loops(rng, offset):
    x, y = normal(rng, 13, 4) + offset, 1.3 * normal(rng, 9, 4) + offset
    expected = oracles.kernel_inception_distance(x, y)
    np.testing.assert_allclose(kernel_inception_distance(x, y), expected, rtol=1e-4)


@pytest.mark.thorough
def test_kid_is_unbiased(key):
    """In one dimension MMD^2 = 3 (dm_1)^2 + 3 (dm_2)^2 + (dm_3)^2, of the moments m_j."""
    reps, n, m = 4000, 8, 6

    def z_score(shift, expected):
        x = jax.random.normal(jax.random.fold_in(key, 0), (reps, n, 1))
        y = shift + jax.random.normal(jax.random.fold_in(key, 1), (reps, m, 1))
        values = np.asarray(jax.jit(jax.vmap(kernel_inception_distance))(x, y))
        return (values.mean() - expected) / (values.std() / math.sqrt(reps)), values

    z, values = z_score(0.0, 0.0)
    assert abs(z) < 5
    assert values.min() < 0
    z, _ = z_score(0.5, 3 * 0.5**2 + 3 * 0.25**2 + 1.625**2)
    assert abs(z) < 5


def tile_by_tile(monkeypatch, size):
    monkeypatch.setattr(_tiles, "DENSE_PAIRS", 0)
    monkeypatch.setattr(_tiles, "TILE_ROWS", size)
    monkeypatch.setattr(_tiles, "TILE_COLS", size)


@pytest.mark.parametrize("tiled", [False, True])
def test_kid_gradient_equals_differences_of_the_oracle(rng, monkeypatch, tiled):
    if tiled:
        tile_by_tile(monkeypatch, 3)
    x, y = normal(rng, 5, 2), normal(rng, 4, 2)
    slope = jax.jit(jax.grad(lambda x, y: metrics.kernel_inception_distance(x, y)))(x, y)
    expected = central_differences(lambda x: oracles.kernel_inception_distance(x, y), x)
    np.testing.assert_allclose(slope, expected, atol=1e-4 * np.abs(expected).max())


# --- precision, recall, density, coverage --------------------------------------------------------


def test_precision_recall_by_hand_and_swapped():
    """Radii of the real points 1, 1, 2, 4; of the fakes 4, 4, 15.5."""
    real = jnp.array([[0.0], [1.0], [3.0], [7.0]])
    fake = jnp.array([[0.5], [4.5], [20.0]])
    shares = precision_recall(real, fake, k=1)
    np.testing.assert_allclose(shares, [2 / 3, 1, 4 / 3, 1], rtol=1e-6)
    swapped = precision_recall(fake, real, k=1)
    np.testing.assert_allclose(swapped, [1, 2 / 3, 7 / 4, 1], rtol=1e-6)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("k", [1, 5])
def test_precision_recall_equals_brute_force(rng, k):
    real, fake = normal(rng, 60, 3), 0.5 * normal(rng, 45, 3) + 0.7
    np.testing.assert_allclose(
        precision_recall(real, fake, k=k), oracles.precision_recall(real, fake, k), rtol=1e-6
    )


def test_precision_recall_of_a_collapsed_model_has_precision_without_recall(rng):
    real = normal(rng, 200, 2)
    shares = precision_recall(real, 0.01 * normal(rng, 100, 2))
    assert shares.precision == 1
    assert shares.recall < 0.05
    assert shares.coverage < 0.2


def test_precision_recall_of_the_data_itself_is_one(rng):
    half = rng.permutation(40_000)[:64].reshape(32, 2) / 64  # exact in float32, mean 0
    points = jnp.asarray(np.concatenate([half, -half]), jnp.float32)
    np.testing.assert_array_equal(precision_recall(points, points), np.ones(4))


def test_precision_recall_of_disjoint_sets_is_zero(rng):
    points = normal(rng, 30, 2)
    np.testing.assert_array_equal(precision_recall(points, points + 1000), np.zeros(4))


def test_precision_recall_counts_ties(rng):
    """Every distance is 0 or 1; balls are open, so duplicates have empty ones."""
    real = jnp.array([[0.0]] * 3 + [[1.0]])
    fake = jnp.array([[0.0]] * 3 + [[1.0]])
    np.testing.assert_array_equal(
        precision_recall(real, fake, k=2), oracles.precision_recall(real, fake, 2)
    )


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_precision_recall_does_not_depend_on_the_unit(rng, unit):
    real, fake = normal(rng, 20, 4), normal(rng, 15, 4)
    got = precision_recall(unit * real, unit * fake, k=2)
    chex.assert_trees_all_equal(got, precision_recall(real, fake, k=2))


@pytest.mark.thorough
def test_metrics_of_coincident_points_have_finite_gradients():
    x = jnp.ones((6, 3))
    for metric in (
        lambda x: jnp.stack(precision_recall(x, x, k=2)),
        lambda x: metrics.kernel_inception_distance(x, x),
        lambda x: metrics.nearest_neighbors_l1(x, x)[1],
    ):
        np.testing.assert_array_equal(jax.grad(lambda x, f=metric: jnp.sum(f(x)))(x), 0)


def test_precision_recall_of_a_point_that_is_not_finite_is_nan(rng):
    real = normal(rng, 10, 2)
    fake = real.copy()
    fake[3, 1] = np.nan
    assert np.isnan(precision_recall(real, fake)).all()
    assert np.isnan(precision_recall(fake, real)).all()


# --- nearest neighbours --------------------------------------------------------------------------


def test_nearest_neighbors_l1_equals_cdist(rng):
    queries, data = normal(rng, 30, 17), normal(rng, 700, 17)
    distances = cdist(queries, data, "cityblock")
    indices, nearest = nearest_neighbors_l1(queries, data)
    np.testing.assert_array_equal(indices, distances.argmin(1))
    np.testing.assert_allclose(nearest, distances.min(1), rtol=1e-5)
    assert indices.dtype == jnp.int32


@pytest.mark.parametrize("float_queries", [False, True])
@pytest.mark.parametrize("float_data", [False, True])
def test_nearest_neighbors_l1_reads_uint8_as_intensities(rng, float_queries, float_data):
    queries, data = (rng.integers(0, 256, (n, 20), dtype=np.uint8) for n in (25, 600))
    distances = cdist(queries.astype(float), data.astype(float), "cityblock") / 255
    indices, nearest = nearest_neighbors_l1(
        (queries / 255).astype(np.float32) if float_queries else queries,
        (data / 255).astype(np.float32) if float_data else data,
    )
    np.testing.assert_allclose(nearest, distances.min(1), rtol=1e-5)
    chosen = distances[np.arange(25), indices]
    np.testing.assert_allclose(chosen, distances.min(1), rtol=1e-5)


def test_nearest_neighbors_l1_of_ties_is_the_first(rng):
    """Values 0..2 in two coordinates: each nearest point occurs in every block of the data."""
    queries = rng.integers(0, 3, (40, 2), dtype=np.uint8)
    data = rng.integers(0, 3, (900, 2), dtype=np.uint8)
    data[:30] = 200
    distances = cdist(queries.astype(float), data.astype(float), "cityblock")
    indices, nearest = nearest_neighbors_l1(queries, data)
    np.testing.assert_array_equal(indices, distances.argmin(1))
    np.testing.assert_array_equal(nearest, 0)


def test_nearest_neighbors_l1_has_no_slope_where_coordinates_coincide(rng):
    data = normal(rng, 5, 3)
    queries = data[:2].copy()
    queries[1, 2] += 0.5
    gradient = jax.grad(lambda q: jnp.sum(metrics.nearest_neighbors_l1(q, data)[1]))(queries)
    np.testing.assert_array_equal(gradient, [[0, 0, 0], [0, 0, 1]])


def test_nearest_neighbors_l1_shows_points_that_are_not_finite(rng):
    queries, data = normal(rng, 4, 3), normal(rng, 9, 3)
    queries[1, 2] = np.inf
    _, distances = nearest_neighbors_l1(queries, data)
    np.testing.assert_array_equal(np.isnan(distances), [False, True, False, False])
    data[5, 0] = np.nan
    _, distances = nearest_neighbors_l1(queries, data)
    assert np.isnan(distances).all()


# --- all of them ---------------------------------------------------------------------------------

CASES = {
    "inception_score": lambda rng: (metrics.inception_score, [random_probs(rng, 30, 5)]),
    "label_entropy": lambda rng: (
        lambda labels: metrics.label_entropy(labels, 5),
        [rng.integers(0, 5, 30)],
    ),
    "frechet_distance": lambda rng: (
        metrics.frechet_distance,
        [normal(rng, 5), covariance(rng, 5), normal(rng, 5), covariance(rng, 5)],
    ),
    "kernel_inception_distance": lambda rng: (
        metrics.kernel_inception_distance,
        [normal(rng, 30, 5), normal(rng, 20, 5)],
    ),
    "precision_recall": lambda rng: (
        metrics.precision_recall,
        [normal(rng, 30, 5), normal(rng, 20, 5)],
    ),
    "nearest_neighbors_l1": lambda rng: (
        metrics.nearest_neighbors_l1,
        [normal(rng, 30, 5), normal(rng, 20, 5)],
    ),
}


def assert_close(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, expected)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", CASES)
def test_jit_and_vmap_change_nothing(rng, name):
    fn, args = CASES[name](rng)
    other_args = CASES[name](rng)[1]
    expected = [jax.jit(fn)(*args), jax.jit(fn)(*other_args)]
    assert_close(fn(*args), expected[0])
    stacked = [np.stack(pair) for pair in zip(args, other_args, strict=True)]
    mapped = jax.jit(jax.vmap(fn))(*stacked)
    assert_close(mapped, jax.tree.map(lambda *pair: np.stack(pair), *expected))


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("block_rows", [7, 20])
@pytest.mark.parametrize(
    "name", ["kernel_inception_distance", "precision_recall", "nearest_neighbors_l1"]
)
def test_block_size_changes_nothing(rng, monkeypatch, name, block_rows):
    fn, args = CASES[name](rng)
    expected = jax.jit(fn)(*args)
    monkeypatch.setattr(metrics, "_BLOCK_ROWS", block_rows)
    tile_by_tile(monkeypatch, block_rows)
    assert_close(jax.jit(lambda *args: fn(*args))(*args), expected)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    "name", ["kernel_inception_distance", "precision_recall", "nearest_neighbors_l1"]
)
def test_memory_is_linear(name):
    n, d = 16_000, 16
    points = jax.ShapeDtypeStruct((n, d), jnp.float32)
    compiled = jax.jit(getattr(metrics, name)).lower(points, points).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < n * n  # a quarter of an (n, n) buffer


@pytest.mark.parametrize("name", [name for name in CASES if name != "label_entropy"])
def test_half_precision_is_computed_in_single(rng, name):
    fn, args = CASES[name](rng)
    fn = jax.jit(fn)
    halves = [jnp.asarray(a, jnp.bfloat16) for a in args]
    values = fn(*halves)
    assert_close(values, fn(*[a.astype(jnp.float32) for a in halves]))
    assert {leaf.dtype for leaf in jax.tree.leaves(values)} <= {jnp.dtype("f4"), jnp.dtype("i4")}


@pytest.mark.parametrize("name", ["inception", "frechet", "kid"])
def test_double_precision_stays_double(rng, name):
    oracle, fn, args = {
        "inception": lambda: (
            oracles.inception_score,
            inception_score,
            [rng.dirichlet(np.ones(4), 9)],
        ),
        "frechet": lambda: (
            oracles.frechet_distance,
            frechet_distance,
            [np.zeros(5), covariance(rng, 5).astype(float), np.ones(5), np.eye(5)],
        ),
        "kid": lambda: (
            oracles.kernel_inception_distance,
            kernel_inception_distance,
            rng.standard_normal((2, 6, 3)),
        ),
    }[name]()
    with jax.enable_x64(True):
        value = fn(*args)
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, oracle(*args), rtol=1e-10)


@pytest.mark.parametrize(
    ("fn", "args", "message"),
    [
        (metrics.inception_score, [jnp.ones(3)], r"probs: got shape \(3,\)"),
        (metrics.inception_score, [jnp.ones((3, 2), int)], "probs: got dtype int32"),
        (metrics.inception_score, [jnp.ones((3, 2))], r"probs \(sums of rows\): got \[2. 2.\]"),
        (metrics.label_entropy, [jnp.ones(3), 2], "labels: got dtype float32"),
        (metrics.label_entropy, [jnp.ones((3, 1), int), 2], "labels: got shape"),
        (metrics.label_entropy, [jnp.array([0, 2]), 2], r"labels: got \[0 2\]"),
        (metrics.label_entropy, [jnp.array([-1, 0]), 2], r"labels: got \[-1 0\]"),
        (metrics.label_entropy, [jnp.array([0]), 0], "num_classes: got 0"),
        (
            metrics.frechet_distance,
            [jnp.ones(2), jnp.eye(2), jnp.ones(3), jnp.eye(2)],
            r"mean2: got shape \(3,\); expected \(2\)",
        ),
        (
            metrics.frechet_distance,
            [jnp.ones(2), jnp.ones(2), jnp.ones(2), jnp.eye(2)],
            r"cov1: got shape \(2,\); expected \(2, 2\)",
        ),
        (
            metrics.frechet_distance,
            [jnp.ones(2), jnp.eye(2), jnp.ones(2), jnp.eye(3)],
            r"cov2: got shape \(3, 3\); expected \(2, 2\)",
        ),
        (
            metrics.kernel_inception_distance,
            [jnp.ones((3, 2)), jnp.ones((3, 1))],
            r"features2: got shape \(3, 1\); expected \(n, 2\)",
        ),
        (
            metrics.kernel_inception_distance,
            [jnp.ones((1, 2)), jnp.ones((3, 2))],
            "features1: got 1 row; expected at least 2",
        ),
        (
            metrics.precision_recall,
            [jnp.ones((6, 2)), jnp.ones((5, 2))],
            "fake: got 5 points; expected more than k = 5",
        ),
        (
            lambda *args: metrics.precision_recall(*args, k=0),
            [jnp.ones((6, 2)), jnp.ones((5, 2))],
            "k: got 0",
        ),
        (
            metrics.nearest_neighbors_l1,
            [jnp.ones((6, 2)), jnp.ones((5, 3))],
            r"data: got shape \(5, 3\); expected \(m, 2\)",
        ),
        (
            metrics.nearest_neighbors_l1,
            [jnp.ones((6, 2), int), jnp.ones((5, 2))],
            "queries: got dtype int32; expected floating or uint8",
        ),
    ],
)
def test_errors_name_the_argument(fn, args, message):
    with pytest.raises(ValueError, match=message):
        fn(*args)


@pytest.mark.thorough
def test_labels_of_a_narrow_dtype_take_any_number_of_classes():
    labels = jnp.arange(100, dtype=jnp.int8)
    np.testing.assert_allclose(metrics.label_entropy(labels, 200), np.log(100), rtol=1e-6)
