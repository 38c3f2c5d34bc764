"""KSD: the Stein kernel by autodiff in float64, closed forms, tiles, transforms, errors."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import memory
import numpy as np
import pytest

from kernelgrad import _distances, _tiles, kernels, ksd

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


@pytest.mark.thorough
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("d", [2, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", DEFINITIONS)
def test_statistics_match_autodiff_of_the_kernel(rng, monkeypatch, family, d, tiled):
    if tiled:
        monkeypatch.setattr(_tiles, "DENSE_PAIRS", 0)
        monkeypatch.setattr(_tiles, "TILE_ROWS", 8)
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


@pytest.mark.slow
def test_gradient_in_particles_score_and_lengthscale_is_the_same_in_tiles(rng, monkeypatch):
    with jax.enable_x64(True):
        arguments = (*problem(rng), jnp.array(LENGTHSCALES))

        def dense(particles, score, scales):
            return jnp.mean(ksd.stein_gram(particles, score, kernels.imq_mixture(scales)))

        def statistic(particles, score, scales):
            return ksd.ksd_v_statistic(particles, score, kernels.imq_mixture(scales))

        expected = jax.grad(dense, argnums=(0, 1, 2))(*arguments)
        monkeypatch.setattr(_tiles, "DENSE_PAIRS", 0)
        monkeypatch.setattr(_tiles, "TILE_ROWS", 8)
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


@pytest.mark.thorough
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


def dense_v_statistic(particles, score_fn):
    """The V-statistic of an IMQ mixture in its own formula, pair by pair."""
    score, d = score_fn(particles), particles.shape[1]

    def u(x, y, s, t):
        r2, total = jnp.sum((x - y) ** 2), 0.0
        for l in LENGTHSCALES:
            base = 1 + r2 / l**2
            slope, curvature = -0.5 / l**2 * base**-1.5, 0.75 / l**4 * base**-2.5
            total += base**-0.5 * s @ t + 2 * slope * ((x - y) @ (t - s) - d) - 4 * curvature * r2
        return total

    rows = jax.vmap(u, (None, 0, None, 0))
    return jnp.mean(jax.vmap(rows, (0, None, 0, None))(particles, particles, score, score))


def curved_score(x):
    return -x - 0.7 * jnp.roll(x, 1, axis=1) * jnp.cos(x)


@pytest.mark.thorough
@pytest.mark.parametrize("tiled", [False, True])
def test_gradient_is_the_finite_difference_with_the_scores_moving_along(rng, monkeypatch, tiled):
    if tiled:
        monkeypatch.setattr(_tiles, "DENSE_PAIRS", 0)
        monkeypatch.setattr(_tiles, "TILE_ROWS", 8)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(0.5, 1.3, size=(11, 2)))
        kernel = kernels.imq_mixture(jnp.array(LENGTHSCALES))
        gradient = np.asarray(jax.jit(lambda x: ksd.ksd_gradient(x, curved_score, kernel))(x))
        step, expected = 1e-5, np.zeros(x.shape)
        statistic = jax.jit(lambda x: dense_v_statistic(x, curved_score))
        for index in np.ndindex(*x.shape):
            up, down = (statistic(x.at[index].add(sign * step)) for sign in (1, -1))
            expected[index] = (up - down) / (2 * step)
    np.testing.assert_allclose(gradient, expected, atol=2e-9)


@pytest.mark.slow
def test_descending_the_gradient_reaches_the_target(rng):
    """KSD descent on N(0, I) from a shifted start: mean 0, and a lower discrepancy."""
    x = jnp.asarray(rng.normal(2.0, 0.5, size=(30, 2)), jnp.float32)
    kernel = kernels.imq_mixture(1.5)

    def step(x, _):
        return x - 0.5 * len(x) * ksd.ksd_gradient(x, jnp.negative, kernel), None

    moved, _ = jax.jit(lambda x: jax.lax.scan(step, x, length=300))(x)
    before, after = (ksd.ksd_v_statistic(p, -p, kernel) for p in (x, moved))
    assert after < 0.02 * before
    np.testing.assert_allclose(jnp.mean(moved, axis=0), 0, atol=0.05)
    assert 0.6 < float(jnp.var(moved)) < 1.2


@pytest.mark.thorough
@pytest.mark.parametrize("tiled", [pytest.param(False, marks=pytest.mark.slow), True])
def test_two_devices_give_the_one_device_answer(rng, monkeypatch, tiled):
    x, score = (array.astype(jnp.float32) for array in problem(rng, n=22))
    kernel = kernels.imq_mixture(jnp.array(LENGTHSCALES))
    alone = [f(x, score, kernel) for f in (ksd.ksd_v_statistic, ksd.ksd_u_statistic)]
    if tiled:
        for name, value in (("DENSE_PAIRS", 0), ("TILE_ROWS", 4), ("TILE_COLS", 3)):
            monkeypatch.setattr(_tiles, name, value)
    shards = x.reshape(2, -1, 3), score.reshape(2, -1, 3)
    for function, expected in zip((ksd.ksd_v_statistic, ksd.ksd_u_statistic), alone, strict=True):
        spread = jax.pmap(lambda x, s, f=function: f(x, s, kernel, axis_name="i"), axis_name="i")
        np.testing.assert_allclose(spread(*shards), [expected] * 2, rtol=1e-5)


# The test of fit.


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("num_chains", "block_length", "blocks", "tiled"),
    [
        (1, 2, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5], False),
        (1, 2, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5], True),
        (2, 4, [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3], False),
        (3, 4, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], True),
    ],
)
def test_p_value_is_the_share_of_all_sign_patterns(
    key, rng, monkeypatch, num_chains, block_length, blocks, tiled
):
    if tiled:
        monkeypatch.setattr(_tiles, "DENSE_PAIRS", 0)
        monkeypatch.setattr(_tiles, "TILE_ROWS", 5)
    particles = jnp.asarray(rng.normal(0.4, 1, size=(12, 2)), jnp.float32)
    kernel = kernels.imq_mixture(1.0)
    gram = np.asarray(ksd.stein_gram(particles, -particles, kernel), np.float64)
    patterns = np.array(list(itertools.product([1, -1], repeat=blocks[-1] + 1)))[:, blocks]
    forms = np.einsum("pi,ij,pj->p", patterns, gram, patterns) / len(gram) ** 2
    share = np.mean(forms >= forms[0] * (1 - 1e-5))
    num_bootstrap = 4000
    got = jax.jit(
        lambda b: ksd.goodness_of_fit_test(
            key,
            particles,
            -particles,
            kernel,
            num_bootstrap=num_bootstrap,
            block_length=b,
            num_chains=num_chains,
        )
    )(block_length)
    np.testing.assert_allclose(got.statistic, forms[0], rtol=1e-5)
    error = abs(float(got.p_value) - share) / math.sqrt(share * (1 - share) / num_bootstrap)
    assert error < 5


@pytest.mark.thorough
@pytest.mark.parametrize("num_bootstrap", [1, 301])
def test_p_value_counts_every_bootstrap_and_ties(key, rng, num_bootstrap):
    x = jnp.asarray(rng.normal(3.0, 1, size=(40, 2)), jnp.float32)
    kernel, options = kernels.imq_mixture(1.0), {"num_bootstrap": num_bootstrap}
    far = ksd.goodness_of_fit_test(key, x, -x, kernel, **options)
    np.testing.assert_allclose(far.p_value, 1 / (1 + num_bootstrap), rtol=1e-6)
    tied = ksd.goodness_of_fit_test(key, x, -x, kernel, block_length=40, **options)
    assert tied.p_value == 1.0


@pytest.mark.thorough
def test_p_values_are_uniform_for_the_right_density_and_small_for_another(key):
    repeats, kernel = 600, kernels.imq_mixture(1.5)

    def p_value(key, shift):
        particle_key, test_key = jax.random.split(key)
        x = jax.random.normal(particle_key, (40, 2)) + shift * jnp.array([[1.0, 0.0]])
        return ksd.goodness_of_fit_test(test_key, x, -x, kernel, num_bootstrap=99).p_value

    p_values = jax.jit(jax.vmap(p_value, (0, None)))
    null = np.asarray(p_values(jax.random.split(key, repeats), 0.0))
    assert abs(np.mean(null <= 0.05) - 0.05) < 5 * math.sqrt(0.05 * 0.95 / repeats)
    assert abs(null.mean() - 0.505) < 5 * math.sqrt(1 / 12 / repeats)
    assert np.mean(np.asarray(p_values(jax.random.split(key, repeats), 0.8)) <= 0.05) > 0.9


@pytest.mark.thorough
def test_a_traced_score_that_is_not_finite_gives_nan(key, rng):
    x = jnp.asarray(rng.normal(size=(20, 2)), jnp.float32)
    kernel = kernels.imq_mixture(1.0)
    got = jax.jit(lambda s: ksd.goodness_of_fit_test(key, x, s, kernel))(x.at[3, 1].set(jnp.nan))
    assert np.isnan(got.statistic)
    assert np.isnan(got.p_value)


@pytest.mark.thorough
def test_a_statistic_that_overflows_has_no_p_value(key, rng):
    x = jnp.asarray(rng.normal(size=(8, 2)), jnp.float32)
    kernel, huge = kernels.imq_mixture(1.0), jnp.full_like(x, 1e30)
    test = jax.jit(lambda s: ksd.goodness_of_fit_test(key, x, s, kernel, num_bootstrap=9))
    assert np.isnan(test(huge).p_value)
    with pytest.raises(ValueError, match=r"statistic: got (nan|inf); expected a finite number"):
        ksd.goodness_of_fit_test(key, x, huge, kernel, num_bootstrap=9)
    with pytest.raises(ValueError, match="number of particles: got 5; expected an integer >= 6"):
        ksd.goodness_of_fit_test(key, x[:5], x[:5], kernel)


@pytest.mark.thorough
def test_low_precision_is_tested_in_float32(key, rng):
    x = jnp.asarray(rng.normal(0.3, 1, size=(30, 2)), jnp.bfloat16)
    kernel = kernels.imq_mixture(1.0)
    wide = x.astype(jnp.float32)
    for function in (
        lambda x: ksd.goodness_of_fit_test(key, x, -x, kernel, num_bootstrap=99),
        lambda x: ksd.ksd_v_statistic(x, -x, kernel),
        lambda x: ksd.ksd_u_statistic(x, -x, kernel),
    ):
        chex.assert_trees_all_equal(function(x), function(wide))


# Stein thinning.


@pytest.mark.thorough
def test_thinning_is_greedy(rng):
    """Each choice minimises the V-statistic of all chosen points, by trying every particle."""
    with jax.enable_x64(True):
        particles, score = problem(rng, n=15)
        kernel = kernels.imq_mixture(LENGTHSCALES)
        gram = np.asarray(jax.jit(ksd.stein_gram)(particles, score, kernel))
        thin = jax.jit(lambda x, s: ksd.stein_thinning(x, s, kernel, num_points=25))
        got = thin(particles, score)
    chosen = []
    for _ in range(25):
        sets = [[*chosen, i] for i in range(15)]
        chosen = min(sets, key=lambda chosen: gram[np.ix_(chosen, chosen)].sum())
    assert got.tolist() == chosen
    assert got.dtype == jnp.int32
    assert len(set(chosen)) < 25


@pytest.mark.thorough
@pytest.mark.parametrize("unique", [False, True])
def test_regularised_thinning_is_greedy(rng, unique):
    """By trying every particle; the entropy counts once for each that is chosen."""
    with jax.enable_x64(True):
        particles, score = problem(rng, n=15)
        log_p, bent = jnp.asarray(rng.normal(size=15)), jnp.asarray(rng.gamma(1.0, size=15))
        kernel = kernels.imq_mixture(LENGTHSCALES)
        gram = np.asarray(jax.jit(ksd.stein_gram)(particles, score, kernel))

        @jax.jit
        def thin(weight, log_density, convexity):
            return ksd.stein_thinning(
                particles,
                score,
                kernel,
                num_points=12,
                unique=unique,
                log_density=log_density,
                convexity=convexity,
                entropy_weight=weight,
            )

        found = thin(0.7, log_p, bent), thin(None, log_p, 0 * bent), thin(0.0, log_p, 3 * bent)
    log_p, bent = np.asarray(log_p), np.asarray(bent)
    for got, weight, factor in zip(found, (0.7, 1 / 12, 0.0), (1, 0, 3), strict=True):
        chosen = []
        for m in range(1, 13):
            potential = np.diag(gram) / 2 + factor * bent / 2 - weight * m * log_p / 2
            potential = potential + gram[chosen].sum(axis=0)
            if unique:
                potential[chosen] = np.inf
            chosen.append(int(np.argmin(potential)))
        assert got.tolist() == chosen
        assert len(set(chosen)) == 12 or not unique


def test_unique_thinning_of_as_many_as_there_are_is_an_order_of_them(rng):
    x = jnp.asarray(rng.normal(size=(6, 2)), jnp.float32)
    thin = functools.partial(ksd.stein_thinning, x, -x, kernels.imq_mixture(1.0))
    found = jax.jit(lambda: thin(num_points=6, unique=True))()
    assert sorted(found.tolist()) == list(range(6))
    for options, message in (
        ({"num_points": 7, "unique": True}, "num_points: got 7; expected at most 6"),
        ({"num_points": 2, "entropy_weight": 0.1}, "entropy_weight: got one without log_density"),
        ({"num_points": 2, "log_density": jnp.ones(5)}, r"log_density: got shape \(5,\)"),
        ({"num_points": 2, "convexity": jnp.ones((6, 2))}, r"convexity: got shape \(6, 2\)"),
        ({"num_points": 2, "convexity": -jnp.ones(6)}, r"convexity: got \[-1"),
        (
            {"num_points": 2, "log_density": jnp.ones(6), "entropy_weight": -1.0},
            "entropy_weight: got -1",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            jax.eval_shape(functools.partial(thin, **options))


@pytest.mark.thorough
def test_thinning_leaves_burn_in_out(rng):
    chain = np.concatenate([np.linspace(20, 4, 60)[:, None], rng.normal(size=(300, 1))])
    x = jnp.asarray(chain, jnp.float32)
    kernel = kernels.imq_mixture(1.0)
    thin = jax.jit(lambda x: ksd.stein_thinning(x, -x, kernel, num_points=20))
    chosen = x[thin(x)]
    assert float(jnp.max(jnp.abs(chosen))) < 4
    middle = x[60:][:: 300 // 20][:20]
    assert ksd.ksd_v_statistic(chosen, -chosen, kernel) < 0.2 * ksd.ksd_v_statistic(
        middle, -middle, kernel
    )


@pytest.mark.thorough
def test_thinning_never_chooses_what_is_not_finite(rng):
    x = jnp.asarray(rng.normal(size=(12, 2)), jnp.float32)
    thin = jax.jit(lambda x, s: ksd.stein_thinning(x, s, kernels.imq_mixture(1.0), num_points=4))
    chosen = thin(x, -x.at[2, 0].set(jnp.nan))
    assert 2 not in chosen.tolist()
    assert thin(x, jnp.full_like(x, jnp.nan)).tolist() == [-1] * 4
    with pytest.raises(ValueError, match="indices of finite potentials: got"):
        ksd.stein_thinning(x, jnp.full_like(x, 1e30), kernels.imq_mixture(1.0), num_points=2)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("rows", [[0, 5, 39], list(range(0, 40, 2))])
def test_thinning_of_the_others_knows_nothing_of_what_is_not_finite(rows, rng, monkeypatch):
    """Not by the middle, the unit or the balance, nor by the digits of two clusters."""
    monkeypatch.setattr(_distances, "FEW_DIFFERENCES", 0)
    x = rng.normal(size=(40, 5)).astype(np.float32)
    x[::3] += 1e4
    kernel = kernels.imq_mixture(1.0)
    thin = jax.jit(lambda x, s: ksd.stein_thinning(x, s, kernel, num_points=5))
    others = np.delete(np.arange(40), rows)
    expected = others[thin(x[others], np.cos(x[others]))]
    for value in (np.nan, np.inf):
        bad = x.copy()
        bad[rows] = value
        np.testing.assert_array_equal(thin(bad, np.cos(x)), expected)


def test_memory_is_linear(key):
    n, kernel = 3000, kernels.imq_mixture(1.0)
    x = jnp.zeros((n, 4))
    functions = (
        lambda x: ksd.goodness_of_fit_test(key, x, x, kernel).p_value,
        lambda x: ksd.ksd_gradient(x, jnp.negative, kernel),
        lambda x: ksd.stein_thinning(x, x, kernel, num_points=50),
    )
    assert memory.largest_buffer(lambda x: ksd.stein_gram(x, x, kernel), x) >= n**2
    for function in functions:
        assert memory.largest_buffer(function, x) < n**2 / 8


BAD_TESTS = {
    "num_bootstrap: got 0": {"num_bootstrap": 0},
    "block_length: got 0": {"block_length": 0},
    r"block_length: got 4; expected values in \[1, 3\]": {"block_length": 4, "num_chains": 2},
    "num_chains: got 4; expected a divisor of 6 particles": {"num_chains": 4},
    "num_chains: got 0": {"num_chains": 0},
}


@pytest.mark.parametrize("message", BAD_TESTS)
def test_a_bad_test_is_named(key, message):
    x, kernel = jnp.ones((6, 2)), kernels.imq_mixture(1.0)
    with pytest.raises(ValueError, match=message):
        ksd.goodness_of_fit_test(key, x, x, kernel, **BAD_TESTS[message])


def test_bad_particles_and_numbers_of_points_are_named(key):
    x, kernel = jnp.ones((6, 2)), kernels.imq_mixture(1.0)
    broken = x.at[2, 1].set(jnp.inf).at[4, 0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"particles: got 2 non-finite .* index \(2, 1\)"):
        ksd.goodness_of_fit_test(key, broken, x, kernel)
    with pytest.raises(ValueError, match=r"score: got 2 non-finite .* index \(2, 1\)"):
        ksd.stein_thinning(x, broken, kernel, num_points=2)
    with pytest.raises(ValueError, match="num_points: got 0"):
        ksd.stein_thinning(x, x, kernel, num_points=0)
    with pytest.raises(ValueError, match="feature kernel"):
        ksd.goodness_of_fit_test(
            key, x, x, kernels.feature_kernel(kernel, lambda p, z: z * p, jnp.float32(1))
        )
    with pytest.raises(ValueError, match=r"score: got shape \(6, 1\); expected \(6, 2\)"):
        ksd.ksd_gradient(x, lambda x: x[:, :1], kernel)


@pytest.mark.thorough
@pytest.mark.parametrize("unit", [2.0**-90, 2.0**90])
def test_a_test_of_fit_knows_no_unit(unit, key, rng):
    """Nor is the gram NaN where its values, 1 over a length squared, leave float32."""
    x = jnp.asarray(rng.normal(1.0, 1.0, size=(8, 2)), jnp.float32)

    def p_value(unit):
        kernel = kernels.imq_mixture(unit)
        result = ksd.goodness_of_fit_test(key, x * unit, -x / unit, kernel, num_bootstrap=99)
        return result.p_value

    assert p_value(unit) == p_value(1.0) < 0.5
    gram = ksd.stein_gram(x * unit, -x / unit, kernels.imq_mixture(unit))
    assert not jnp.isnan(gram).any()


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("size", [1e-25, 1e-19, 1e-36, 0.0])
def test_particles_that_are_one_to_the_kernel_have_its_value_there(size, rng):
    """k = 1 and -2 k' = 1 at distance 0: s_i . s_j + d."""
    x, score = size * rng.normal(size=(8, 3)), rng.normal(size=(8, 3))
    given = (jnp.asarray(a, jnp.float32) for a in (x, score))
    got = ksd.stein_gram(*given, kernels.imq_mixture(1.0))
    np.testing.assert_allclose(got, score @ score.T + 3, rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("unit", "size", "far"), [(1.0, 100, 100), (1e3, 100, 100), (1.0, 512, 4), (1.0, 699, 3)]
)
def test_an_outlier_with_a_bounded_score_costs_no_digits(unit, size, far, rng):
    """Particles and scores are mixed on one scale, which must not be that of the outliers.

    They are the first of every `far` particles, as of a chain that left the others.
    """
    x = rng.normal(size=(size, 20))
    x[::far] *= 1e4
    x = (unit * x).astype(np.float32)
    z = x.astype(np.float64) / unit
    score = (-z / (1 + np.sum(z**2, axis=1, keepdims=True) / 20) / unit).astype(np.float32)
    kernel = kernels.imq_mixture(4 * unit)
    steps = z[:, None] - z[None]
    sq_dist, s = np.sum(steps**2, axis=2), unit * score.astype(np.float64)
    root = 1 / np.sqrt(1 + sq_dist / 16)
    mixed = np.einsum("ijd,ijd->ij", steps, s[None] - s[:, None]) - 20
    expected = root * (s @ s.T) - root**3 / 16 * mixed - 3 * root**5 / 256 * sq_dist
    gram = unit**2 * ksd.stein_gram(x, score, kernel)
    np.testing.assert_allclose(gram, expected, atol=2e-6 * np.abs(expected).max())
