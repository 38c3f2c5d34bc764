"""MMD: loop oracles, closed forms, gradient against autodiff, calibration of the test."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from kernelgrad import _tiles, _two_sample, kernels, mmd

FAMILIES = {make.__name__: make for make in kernels.FAMILIES.values()}
LENGTHSCALES = (0.7, 1.5)


def _samples(rng, n=9, m=7, d=3):
    return rng.normal(size=(n, d)), rng.normal(0.4, 1.3, size=(m, d))


def _gaussian_mmd(variance_1, variance_2, shift, dim=1):
    """MMD^2 of N(0, v1 I) and N(D, v2 I) under exp(-r^2 / 2), by Gaussian integrals."""

    def mean_kernel(a, b, distance):
        total = 1 + a + b
        return (1 / total) ** (dim / 2) * math.exp(-(distance**2) / (2 * total))

    return (
        mean_kernel(variance_1, variance_1, 0)
        + mean_kernel(variance_2, variance_2, 0)
        - 2 * mean_kernel(variance_1, variance_2, shift)
    )


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_match_the_loops(rng, family):
    x, y = _samples(rng)
    with jax.enable_x64(True):
        kernel = FAMILIES[family](jnp.array(LENGTHSCALES))
        v = mmd.mmd_v_statistic(jnp.asarray(x), jnp.asarray(y), kernel)
        u = mmd.mmd_u_statistic(jnp.asarray(x), jnp.asarray(y), kernel)
    np.testing.assert_allclose(v, oracles.mmd_v(family, x, y, LENGTHSCALES), rtol=1e-11)
    np.testing.assert_allclose(u, oracles.mmd_u(family, x, y, LENGTHSCALES), rtol=1e-11)


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_is_the_finite_difference_of_the_loops(rng, family):
    x, y = _samples(rng, n=5, m=4, d=2)
    with jax.enable_x64(True):
        kernel = FAMILIES[family](jnp.array(LENGTHSCALES))
        gradient = mmd.mmd_gradient(jnp.asarray(x), jnp.asarray(y), kernel)
    step = 1e-5
    for i in range(5):
        for a in range(2):
            bump = np.zeros_like(x)
            bump[i, a] = step
            up = oracles.mmd_v(family, x + bump, y, LENGTHSCALES)
            down = oracles.mmd_v(family, x - bump, y, LENGTHSCALES)
            np.testing.assert_allclose(gradient[i, a], (up - down) / (2 * step), atol=1e-8)


@pytest.mark.thorough
@pytest.mark.parametrize("tiled", [False, True])
def test_gradient_is_autodiff_of_the_statistic(rng, monkeypatch, tiled):
    if tiled:
        monkeypatch.setattr(_tiles, "DENSE_PAIRS", 0)
        monkeypatch.setattr(_tiles, "TILE_ROWS", 16)
        monkeypatch.setattr(_tiles, "TILE_COLS", 8)
    x, y = (jnp.asarray(s, jnp.float32) for s in _samples(rng, n=37, m=29, d=5))
    kernel = kernels.median_mixture(kernels.imq_mixture, x, y)
    closed = jax.jit(mmd.mmd_gradient)(x, y, kernel)
    value, with_value = jax.jit(mmd.mmd_value_and_gradient)(x, y, kernel)
    expected, automatic = jax.jit(jax.value_and_grad(mmd.mmd_v_statistic))(x, y, kernel)
    for gradient in (closed, with_value):
        np.testing.assert_allclose(gradient, automatic, atol=2e-6 * float(jnp.abs(automatic).max()))
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("shift", [0.0, 0.2])
@pytest.mark.parametrize(
    "shape", [(1000, 700, 50), pytest.param((2000, 1500, 5), marks=pytest.mark.slow)]
)
def test_float32_value_keeps_its_digits(rng, shift, shape):
    """The three means agree in their first two to five digits; few of the others are lost."""
    n, m, d = shape
    x, y = rng.normal(size=(n, d)), rng.normal(shift, 1, size=(m, d))
    x, y = (points.astype(np.float32) for points in (x, y))
    lengthscales = np.sqrt(d) * np.array([1.0, 1.4, 2.0, 2.8])
    kernel = kernels.imq_mixture(lengthscales)
    got = (
        jax.jit(mmd.mmd_v_statistic)(x, y, kernel),
        jax.jit(mmd.mmd_value_and_gradient)(x, y, kernel)[0],
    )
    squares = np.square(lengthscales.astype(np.float32).astype(np.float64))

    def mean(a, b):
        norms = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1)[None, :]
        sq_dist = np.maximum(norms - 2 * a @ b.T, 0)
        return np.mean(sum((1 + sq_dist / square) ** -0.5 for square in squares))

    x, y = x.astype(np.float64), y.astype(np.float64)
    expected = mean(x, x) + mean(y, y) - 2 * mean(x, y)
    np.testing.assert_allclose(got, (expected, expected), rtol=1e-6 if shift else 2e-5)


def test_linear_and_quadratic_kernels_compare_moments(rng):
    """What docs/library.md has in place of kernels of the inner product."""
    x, y, c = rng.normal(size=(5, 2)), rng.normal(size=(4, 2)) + 0.5, 0.5

    def mmd_of(k):
        def mean(a, b):
            return np.mean([[k(p @ q) for q in b] for p in a])

        return mean(x, x) + mean(y, y) - 2 * mean(x, y)

    first = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
    second = np.sum((x.T @ x / 5 - y.T @ y / 4) ** 2)
    np.testing.assert_allclose(mmd_of(lambda p: p), first, rtol=1e-12)
    np.testing.assert_allclose(mmd_of(lambda p: (p + c) ** 2), second + 2 * c * first, rtol=1e-12)


@pytest.mark.slow
def test_gradient_runs_through_a_feature_map(rng):
    x, y = _samples(rng)
    with jax.enable_x64(True):
        params = jnp.asarray(rng.normal(size=(3, 4)))
        kernel = kernels.feature_kernel(
            kernels.imq_mixture(1.0), lambda w, points: jnp.tanh(points @ w), params
        )
        closed = mmd.mmd_gradient(jnp.asarray(x), jnp.asarray(y), kernel)
        both = mmd.mmd_value_and_gradient(jnp.asarray(x), jnp.asarray(y), kernel)
        automatic = jax.value_and_grad(mmd.mmd_v_statistic)(jnp.asarray(x), jnp.asarray(y), kernel)
    np.testing.assert_allclose(closed, automatic[1], rtol=1e-9)
    chex.assert_trees_all_close(both, automatic, rtol=1e-9)


# ------------------------------------------------------------------------------------ test power


def _power_oracle(x, y, lengthscales, weights=None, family="imq_mixture"):
    kernel_fn = functools.partial(
        oracles.kernel, family, lengthscales=lengthscales, weights=weights
    )
    return oracles.test_power(lambda a, b: kernel_fn(a, b), x, y)[0]


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_power_is_the_papers(rng, family):
    """MMD^2 over its own deviation, in whatever unit the kernel is."""
    x, y = _samples(rng, n=8, m=8)
    expected = _power_oracle(x, y, LENGTHSCALES, (0.3, 2.0), family)
    with jax.enable_x64(True):
        kernel = FAMILIES[family](jnp.array(LENGTHSCALES), jnp.array([0.3, 2.0]))
        big = FAMILIES[family](jnp.array(LENGTHSCALES), 1e9 * jnp.array([0.3, 2.0]))
        for same in (kernel, big):
            got = mmd.test_power(jnp.asarray(x), jnp.asarray(y), same)
            np.testing.assert_allclose(got, expected, rtol=1e-11)
    kernel = FAMILIES[family](LENGTHSCALES, (0.3, 2.0))
    narrow = mmd.test_power(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), kernel)
    np.testing.assert_allclose(narrow, expected, rtol=2e-5)


@pytest.mark.thorough
def test_power_has_gradients_in_scales_weights_and_features(rng):
    """Against differences of the loops; features are a matrix of weights times the points."""
    x, y = _samples(rng, n=6, m=6, d=2)
    values = {"lengthscales": np.array(LENGTHSCALES), "weights": np.array([0.3, 2.0])}
    values["features"] = rng.normal(size=(2, 2))

    def loops(v):
        return _power_oracle(x @ v["features"], y @ v["features"], v["lengthscales"], v["weights"])

    @jax.jit
    def power(v):
        base = kernels.imq_mixture(v["lengthscales"], v["weights"])
        kernel = kernels.feature_kernel(base, lambda w, points: points @ w, v["features"])
        return mmd.test_power(jnp.asarray(x), jnp.asarray(y), kernel)

    with jax.enable_x64(True):
        gradient = jax.grad(power)(jax.tree.map(jnp.asarray, values))
    for name, value in values.items():
        for entry in np.ndindex(value.shape):
            bump = np.zeros_like(value)
            bump[entry] = 1e-5
            up, down = (loops({**values, name: value + s * bump}) for s in (1, -1))
            np.testing.assert_allclose(gradient[name][entry], (up - down) / 2e-5, rtol=1e-5)


@pytest.mark.thorough
def test_power_in_tiles_and_over_devices_is_that_of_one_matrix(rng, monkeypatch):
    x, y = (jnp.asarray(s, jnp.float32) for s in _samples(rng, n=24, m=24, d=4))
    kernel = kernels.imq_mixture(jnp.array([1.0, 2.0]))
    alone = mmd.test_power(x, y, kernel)
    monkeypatch.setattr(_tiles, "DENSE_PAIRS", 0)
    monkeypatch.setattr(_tiles, "TILE_ROWS", 8)
    monkeypatch.setattr(_tiles, "TILE_COLS", 8)
    power = functools.partial(mmd.test_power, kernel=kernel)
    spread = jax.pmap(lambda a, b: power(a, b, axis_name="i"), axis_name="i")(
        x.reshape(2, 12, 4), y.reshape(2, 12, 4)
    )
    np.testing.assert_allclose([power(x, y), *spread], 3 * [alone], rtol=2e-5)


def test_power_does_not_change_with_the_unit_of_the_kernel(rng):
    x, y = (jnp.asarray(rng.normal(size=(5, 2)), jnp.float32) for _ in range(2))
    power = jax.jit(lambda weight: mmd.test_power(x, y, kernels.rbf_mixture(1.0, weight)))
    one, *others = (power(weight) for weight in (1.0, 1e-20, 1e20))
    np.testing.assert_allclose(others, one, rtol=1e-5)


@pytest.mark.thorough
def test_power_of_equal_clouds_is_zero_and_of_unequal_sizes_refused(rng):
    x = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    value, gradient = jax.value_and_grad(mmd.test_power)(x, x, kernels.rbf_mixture(1.0))
    assert abs(float(value)) < 1e-2
    assert np.all(np.isfinite(gradient))
    with pytest.raises(ValueError, match="y: got 4 samples; expected 5, as many as in x"):
        mmd.test_power(x, x[:4], kernels.rbf_mixture(1.0))
    with pytest.raises(ValueError, match=r"k\(0\) of kernel: got 0.*; expected values in \(0, inf"):
        mmd.test_power(x, x, kernels.rbf_mixture(1.0, 0.0))
    with pytest.raises(ValueError, match="number of samples in x: got 1"):
        mmd.test_power(x[:1], x[:1], kernels.rbf_mixture(1.0))


@pytest.mark.thorough
def test_identical_samples_have_no_discrepancy(rng):
    x = jnp.asarray(rng.normal(size=(40, 6)), jnp.float32)
    kernel = kernels.rbf_mixture(2.0)
    assert abs(float(mmd.mmd_v_statistic(x, x, kernel))) < 5e-7
    assert float(mmd.mmd_u_statistic(x, x, kernel)) < 0
    np.testing.assert_allclose(mmd.mmd_gradient(x, x, kernel), 0, atol=1e-8)


@pytest.mark.parametrize(
    ("variance", "shift", "expected"), [(1.0, 1.0, 0.177267635), (4.0, 0.0, 0.094187022)]
)
def test_expectations_of_gaussians(rng, variance, shift, expected):
    np.testing.assert_allclose(_gaussian_mmd(1.0, variance, shift), expected, atol=1e-9)
    n, repeats = 60, 400
    x = jnp.asarray(rng.normal(size=(repeats, n, 1)), jnp.float32)
    y = jnp.asarray(rng.normal(shift, math.sqrt(variance), size=(repeats, n, 1)), jnp.float32)
    kernel = kernels.rbf_mixture(1.0)
    within_1, within_2 = (1 + 2 * 1.0) ** -0.5, (1 + 2 * variance) ** -0.5
    bias = (1 - within_1) / n + (1 - within_2) / n
    for statistic, mean in (
        (mmd.mmd_u_statistic, expected),
        (mmd.mmd_v_statistic, expected + bias),
    ):
        values = np.asarray(jax.jit(jax.vmap(statistic, (0, 0, None)))(x, y, kernel), np.float64)
        error = (values.mean() - mean) / (values.std() / math.sqrt(repeats))
        assert abs(error) < 5


@pytest.mark.thorough
def test_descending_the_gradient_meets_the_data(rng):
    x, y = (jnp.asarray(s, jnp.float32) for s in _samples(rng, n=50, m=50, d=2))
    kernel = kernels.median_mixture(kernels.imq_mixture, x, y)
    start = mmd.mmd_v_statistic(x, y, kernel)
    moved = x - 50 * mmd.mmd_gradient(x, y, kernel)
    assert mmd.mmd_v_statistic(moved, y, kernel) < 0.7 * start


@pytest.mark.thorough
def test_two_devices_give_the_one_device_answer(rng):
    x, y = (jnp.asarray(s, jnp.float32) for s in _samples(rng, n=24, m=16, d=4))
    kernel = kernels.imq_mixture(jnp.array([1.0, 2.0]))
    shards = [points.reshape(2, -1, 4) for points in (x, y)]
    for function in (mmd.mmd_v_statistic, mmd.mmd_u_statistic, mmd.mmd_gradient):
        alone = function(x, y, kernel)
        spread = jax.pmap(lambda a, b, f=function: f(a, b, kernel, axis_name="i"), axis_name="i")(
            *shards
        )
        whole = spread.reshape(alone.shape) if alone.ndim else spread[0]
        np.testing.assert_allclose(whole, alone, rtol=1e-5, atol=2e-7)


@pytest.mark.thorough
def test_p_values_are_uniform_under_the_null_and_small_under_a_shift(key):
    sizes, repeats = (12, 8), 2000

    def p_value(key, shift):
        x_key, y_key, test_key = jax.random.split(key, 3)
        x = jax.random.normal(x_key, (sizes[0], 2))
        y = jax.random.normal(y_key, (sizes[1], 2)) + shift
        kernel = kernels.median_mixture(kernels.rbf_mixture, x, y)
        return mmd.two_sample_test(test_key, x, y, kernel, num_permutations=99).p_value

    keys = jax.random.split(key, repeats)
    null = np.asarray(jax.jit(jax.vmap(lambda k: p_value(k, 0.0)))(keys))
    rejected = np.mean(null <= 0.05)
    assert 0.032 < rejected < 0.070
    assert abs(null.mean() - 0.505) < 5 * math.sqrt(1 / 12 / repeats)
    shifted = np.asarray(jax.jit(jax.vmap(lambda k: p_value(k, 2.0)))(keys[:200]))
    assert np.mean(shifted <= 0.05) > 0.9


def test_permutations_are_subsets_of_one_size_all_as_likely(key, monkeypatch):
    draws = np.concatenate([_two_sample._subsets(k, 2, 5) for k in jax.random.split(key, 40)])
    assert np.all(draws.sum(axis=1) == 2)
    _, counts = np.unique(draws, axis=0, return_counts=True)
    assert len(counts) == math.comb(5, 2)
    np.testing.assert_allclose(counts, len(draws) / 10, atol=110)  # five standard deviations
    ties = jnp.tile(jnp.array([7, 3, 7, 7, 3], jnp.uint32), (128, 1))
    monkeypatch.setattr(jax.random, "bits", lambda *_: ties)
    np.testing.assert_array_equal(
        _two_sample._subsets(key, 3, 5)[0], [True, True, False, False, True]
    )


@pytest.mark.thorough
def test_p_value_counts_every_permutation(key):
    x, y = jnp.zeros((4, 1)), jnp.zeros((3, 1))
    result = mmd.two_sample_test(key, x, y, kernels.rbf_mixture(1.0), num_permutations=150)
    assert result.p_value == 1.0  # all ties
    far = mmd.two_sample_test(key, x + jnp.arange(4.0)[:, None], y + 50, kernels.rbf_mixture(1.0))
    assert 1 / 1000 <= float(far.p_value) < 0.1  # one labelling in 35 ties with the observed one


def test_compiles_once_per_shape(rng):
    x, y = (jnp.asarray(s, jnp.float32) for s in _samples(rng))
    traced = jax.jit(chex.assert_max_traces(mmd.mmd_v_statistic, n=1))
    for lengthscale in (1.0, 2.0):
        traced(x * lengthscale, y, kernels.imq_mixture(lengthscale))


@pytest.mark.thorough
def test_bad_input_is_named(key):
    kernel = kernels.rbf_mixture(1.0)
    x, y = jnp.zeros((3, 2)), jnp.zeros((4, 3))
    with pytest.raises(ValueError, match=r"y: got shape \(4, 3\)"):
        mmd.mmd_v_statistic(x, y, kernel)
    with pytest.raises(ValueError, match="x: got dtype int32"):
        mmd.mmd_gradient(x.astype(jnp.int32), x, kernel)
    with pytest.raises(ValueError, match="number of samples in x: got 1"):
        mmd.mmd_u_statistic(x[:1], x, kernel)
    with pytest.raises(ValueError, match="num_permutations: got 0"):
        mmd.two_sample_test(key, x, x, kernel, num_permutations=0)


@pytest.mark.thorough
def test_samples_that_are_not_finite_have_no_p_value(key, rng):
    x, y = (jnp.asarray(s, jnp.float32) for s in _samples(rng, d=4))
    kernel = kernels.imq_mixture(1.0)
    test = jax.jit(lambda x, y: mmd.two_sample_test(key, x, y, kernel, num_permutations=9))
    for bad, got in ((jnp.nan, "nan"), (jnp.inf, "inf")):
        for result in (test(x.at[0, 0].set(bad), y), test(x, y.at[3, 1].set(bad))):
            assert np.isnan(result.statistic), got
            assert np.isnan(result.p_value), got
    with pytest.raises(ValueError, match=r"x: got 1 non-finite entries, the first at .*\(0, 0\)"):
        mmd.two_sample_test(key, x.at[0, 0].set(jnp.nan), y, kernel)
    with pytest.raises(ValueError, match="y: got 1 non-finite"):
        mmd.two_sample_test(key, x, y.at[3, 1].set(jnp.inf), kernel)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_low_precision_counts_and_sums_in_float32(key, rng, dtype):
    x, y = (jnp.asarray(s, dtype) for s in _samples(rng, n=12, m=10))
    wide = [s.astype(jnp.float32) for s in (x, y)]
    kernel = kernels.imq_mixture(1.0)
    test = jax.jit(lambda x, y: mmd.two_sample_test(key, x, y, kernel, num_permutations=66_000))
    got, expected = test(x, y), test(*wide)
    chex.assert_trees_all_equal(got, expected)
    assert got.p_value.dtype == jnp.float32
    for statistic in (mmd.mmd_v_statistic, mmd.mmd_u_statistic):
        chex.assert_trees_all_equal(statistic(x, y, kernel), statistic(*wide, kernel))
    gradient = mmd.mmd_gradient(x, y, kernel)
    assert gradient.dtype == dtype
    chex.assert_trees_all_equal(gradient, mmd.mmd_gradient(*wide, kernel).astype(dtype))
    value, slope = mmd.mmd_value_and_gradient(x, y, kernel)
    assert (value.dtype, slope.dtype) == (jnp.float32, dtype)


def test_samples_of_two_dtypes_are_pooled_in_the_wider(rng):
    """Under strict promotion, which the samples of a network and the data need not know of."""
    x = jnp.asarray(rng.normal(size=(6, 2)), jnp.float32)
    kernel = kernels.imq_mixture(1.0)
    test = functools.partial(mmd.two_sample_test, jax.random.key(0), kernel=kernel)
    for one, other in ((x, x.astype(jnp.bfloat16)), (x.astype(jnp.float16), x)):
        assert jax.eval_shape(test, one, other).p_value.dtype == jnp.float32
        assert jax.eval_shape(kernels.median_lengthscale, one, other).dtype == jnp.float32
