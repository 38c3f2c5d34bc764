"""Radial families, their derivatives, and the rules for lengthscales, against float64."""

import copy
import functools
import math
import operator
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from kernelgrad import _distances, kernels, ksd, score

FAMILIES = {make.__name__: make for make in kernels.FAMILIES.values()}

# For derivatives of derivatives, where compiling is most of the test.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# f'(0), f''(0), f'''(0) by Taylor expansion; 0 stands for the derivatives that diverge.
AT_ZERO = {
    "rbf_mixture": (-1 / 2, 1 / 4, -1 / 8),
    "imq_mixture": (-1 / 2, 3 / 4, -15 / 8),
    "rational_quadratic": (-1 / 2, 1 / 2, -3 / 4),
    "matern32": (-3 / 2, 0, 0),
    "matern52": (-5 / 6, 25 / 12, 0),
    "matern72": (-7 / 10, 49 / 60, -343 / 120),
    "laplace": (0, 0, 0),
}


def offset_points(rng, n, d, offset):
    return np.asarray(rng.normal(size=(n, d)) + offset, np.float32)


@functools.partial(jax.jit, static_argnames="self_gram")
def all_grams(x, y, lengthscale, self_gram=False):
    """Every family's gram with lengthscales (l, 2 l), from one compilation a shape."""
    scales = lengthscale * jnp.array([1.0, 2.0])
    return {
        name: kernels.gram(family(scales), x, None if self_gram else y)
        for name, family in FAMILIES.items()
    }


# ------------------------------------------------------------------------------ the families


@pytest.mark.parametrize("family", FAMILIES)
def test_gram_is_the_weighted_sum_of_the_papers_formulas(family, rng):
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))
    scales, weights = [0.5, 1.3, 4.0], [0.7, 0.0, 2.5]

    @jax.jit
    def grams(x, y):
        mixture, single = FAMILIES[family](scales, weights), FAMILIES[family](1.3)
        return kernels.gram(mixture, x, y), kernels.gram(single, x, y)

    with jax.enable_x64(True):
        mixture, single = grams(x, y)
    assert mixture.dtype == np.float64
    np.testing.assert_allclose(mixture, oracles.gram(family, x, y, scales, weights), rtol=1e-12)
    np.testing.assert_allclose(single, oracles.gram(family, x, y, 1.3), rtol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fast_oracles_are_the_slow_ones(family, rng):
    x, scales, weights = rng.normal(size=(5, 3)), [0.5, 2.0], [0.3, 2.0]
    y = np.concatenate([x[:2], rng.normal(size=(4, 3))])
    force = rng.normal(size=6)
    np.testing.assert_allclose(
        oracles.fast_gram(family, x, y, scales, weights),
        oracles.gram(family, x, y, scales, weights),
        rtol=1e-14,
    )
    np.testing.assert_allclose(
        oracles.fast_gradient_sum(family, x, y, scales, force, weights),
        oracles.gradient_sum(family, x, y, scales, force, weights),
        rtol=1e-13,
        atol=1e-13,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_oracle_slope_is_the_derivative_of_the_oracle_kernel(family):
    step = 1e-5
    for r in (0.01, 0.3, 1.0, 5.0):
        up, down = (oracles.RADIAL[family](r + s, 0.7) for s in (step, -step))
        slope = oracles.RADIAL_SLOPE[family](r, 0.7)
        np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-6, atol=1e-9)


def derivatives(fn, order):
    """Returns u -> [fn(u), fn'(u), ...], compiled, for arrays u."""
    fns = [fn]
    for _ in range(order):
        fns.append(jax.grad(fns[-1]))
    return quick_jit(jax.vmap(lambda u: jnp.stack([fn(u) for fn in fns])))


@pytest.mark.thorough(quick=4)
@pytest.mark.parametrize("family", FAMILIES)
def test_three_derivatives_of_the_profile_equal_autodiff_of_the_formula(family):
    u = np.logspace(-4, 2.5, 27)
    with jax.enable_x64(True):
        got = derivatives(FAMILIES[family](1.0).profile, 3)(u)
        expected = np.array(derivatives(oracles.PROFILES[family], 3)(u))
        at_zero = derivatives(FAMILIES[family](2.0).profile, 3)(np.zeros(1))[0]
    if family == "matern72":  # terms of order u^-2.5 cancel in the formula's third derivative
        expected[u < 1e-3, 3] = got[u < 1e-3, 3]
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-60)
    scaled = [value / 4**order for order, value in enumerate((1, *AT_ZERO[family]))]
    np.testing.assert_allclose(at_zero, scaled, rtol=1e-14)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "imq_mixture"])
def test_the_logarithm_is_that_of_the_formula_and_never_underflows(family):
    u = np.append(np.logspace(-4, 2.5, 26), 0.0)
    with jax.enable_x64(True):
        got = derivatives(FAMILIES[family](1.0).log_profile, 2)(u)
        formula = lambda u: jnp.log(oracles.PROFILES[family](u))  # noqa: E731
        expected = derivatives(formula, 2)(u[:-1])
    np.testing.assert_allclose(got[:-1], expected, rtol=1e-7, atol=1e-14)
    assert np.all(np.isfinite(got[-1]))
    far = np.array([1e8, 1e30, 3e38, np.inf], np.float32)
    of_far = np.asarray(derivatives(FAMILIES[family](0.3, [2.0]).log_profile, 1)(far))
    assert np.all(np.isfinite(of_far))
    assert np.all(np.diff(of_far[:, 0]) <= 0)
    root = np.sqrt(far[0]) / 0.3
    tail = {
        **{"rbf_mixture": -(root**2) / 2},
        **{"rational_quadratic": -np.log(root**2 / 2), "laplace": -root},
        **{"matern32": -np.sqrt(3) * root, "matern52": -np.sqrt(5) * root},
        **{"matern72": -np.sqrt(7) * root},
    }
    np.testing.assert_allclose(of_far[0, 0], tail[family] + np.log(2), rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_derivatives_in_float32_are_finite_from_zero_to_1e30_and_keep_nan(family):
    u = np.concatenate([np.zeros(1), np.logspace(-24, 30, 55)]).astype(np.float32)
    *got, at_nan = derivatives(FAMILIES[family](1.0).profile, 2)(np.append(u, np.float32(np.nan)))
    assert np.all(np.isfinite(got))
    assert np.all(np.isnan(at_nan))
    np.testing.assert_allclose(got[0], (1, *AT_ZERO[family][:2]), rtol=1e-6)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("d", [2, 5])
def test_gradient_and_hessian_where_the_points_coincide(d, rng):
    """grad = 0; the Hessian is 2 f'(0) / l^2 I, the mixed one its negative."""
    x, elsewhere = (jnp.asarray(rng.normal(size=d), jnp.float32) for _ in range(2))

    def pair(family, x, y):
        kernel = FAMILIES[family](0.8, 1.5)
        return kernels.gram(kernel, x[None], jnp.stack([elsewhere, y]))[0, 1]

    def both(family, x):
        gradient = jax.grad(functools.partial(pair, family))
        return gradient(x, x), jax.jacfwd(gradient, argnums=(0, 1))(x, x)

    everything = quick_jit(lambda x: {family: both(family, x) for family in FAMILIES})(x)
    for family, (gradient, (hessian, mixed)) in everything.items():
        curvature = 1.5 * 2 * AT_ZERO[family][0] / 0.8**2 * np.eye(d)
        np.testing.assert_allclose(gradient, np.zeros(d), atol=1e-6, err_msg=family)
        np.testing.assert_allclose(hessian, curvature, atol=2e-5, err_msg=family)
        np.testing.assert_allclose(mixed, -curvature, atol=2e-5, err_msg=family)


# ------------------------------------------------------------------------------ float32 error


@pytest.mark.thorough(quick=11)
@pytest.mark.parametrize("offset", [0, 10, 100, 1e4])
@pytest.mark.parametrize("d", [1, 3, 4, 512])
def test_float32_error_of_a_kernel_value_is_below_2e_6(offset, d, rng):
    x = offset_points(rng, 12, d, offset)
    y = np.concatenate([offset_points(rng, 9, d, offset), (x[:4] + 1e-3).astype(np.float32)])
    lengthscale = math.sqrt(oracles.median_squared_distance(np.concatenate([x, y])))
    for name, got in all_grams(x, y, lengthscale).items():
        # exp(-r) sees the square root of the rounding error of r^2
        bound = 2e-6 if name != "laplace" or d <= _distances.DIRECT_DIMENSIONS else 1e-3
        expected = oracles.fast_gram(name, x, y, [lengthscale, 2 * lengthscale])
        assert np.max(np.abs(got - expected)) <= 2 * bound, name


@pytest.mark.parametrize("d", [3, 4, 64])
def test_an_outlier_costs_the_others_no_digits(d, rng):
    """A centre of all points, such as their mean, would follow it."""
    for outlier in (0, 6, 11):
        x = offset_points(rng, 12, d, 100)
        x[outlier] += 1e6
        lengthscale = math.sqrt(d)
        others = np.arange(12) != outlier
        for name, got in all_grams(x, x, lengthscale).items():
            bound = 2e-6 if name != "laplace" or d <= _distances.DIRECT_DIMENSIONS else 1e-3
            expected = oracles.fast_gram(name, x, x, [lengthscale, 2 * lengthscale])
            error = np.abs(got - expected)
            assert np.max(error[np.ix_(others, others)]) <= 2 * bound, name


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("d", [2, 128])
def test_float32_error_for_a_cloud_of_near_duplicates(d, rng):
    x = np.asarray(rng.normal(size=d) + 1e-3 * rng.normal(size=(20, d)), np.float32)
    lengthscale = math.sqrt(oracles.median_squared_distance(x))
    for name, got in all_grams(x, x[::-1], lengthscale).items():
        if name != "laplace" or d <= _distances.DIRECT_DIMENSIONS:
            expected = oracles.fast_gram(name, x, x[::-1], [lengthscale, 2 * lengthscale])
            assert np.max(np.abs(got - expected)) <= 2 * 2e-6, name


@pytest.mark.parametrize("d", [1, 3, 4, 64])
def test_self_gram_has_exactly_k_of_0_on_its_diagonal_and_is_symmetric(d, rng):
    x = offset_points(rng, 15, d, 1e4)
    x[3] = x[7]
    for name, got in all_grams(x, None, 0.7, self_gram=True).items():
        np.testing.assert_array_equal(np.diag(got), 2.0, err_msg=name)
        np.testing.assert_allclose(got, got.T, atol=1e-6, err_msg=name)
        # 10 n eps for rounding; the square root in exp(-r) magnifies that of r^2 for the copies
        slack = 10 * 15 * np.finfo(np.float32).eps if name != "laplace" else 1e-2
        assert np.min(np.linalg.eigvalsh(np.asarray(got, np.float64))) >= -slack, name


def test_low_precision_points_are_widened_before_any_arithmetic(rng):
    x = jnp.asarray(rng.normal(size=(6, 4)) + 10, jnp.bfloat16)
    exact = np.asarray(x.astype(jnp.float32))
    for name, got in all_grams(x, x[:3], 1.0).items():
        assert got.dtype == jnp.float32
        bound = 2e-6 if name != "laplace" else 1e-3
        expected = oracles.fast_gram(name, exact, exact[:3], [1.0, 2.0])
        assert np.max(np.abs(got - expected)) <= 2 * bound, name


# ----------------------------------------------------------------------------------- factories


def test_imq_exponent(rng):
    """Any exponent, as a number or traced, the fast path of -1/2 included."""
    sq_dist = np.append(0.0, rng.gamma(2.0, size=20))

    def profile(exponent):
        return kernels.imq_mixture([0.5, 2.0], exponent=exponent).profile(sq_dist)

    with jax.enable_x64(True):
        traced = jax.jit(profile)
        for exponent in (-0.25, -0.5, -1, -2.5):
            expected = sum((1 + sq_dist / l**2) ** exponent for l in (0.5, 2.0))
            np.testing.assert_allclose(traced(exponent), expected, rtol=1e-12)
            np.testing.assert_allclose(profile(exponent), expected, rtol=1e-12)


def test_rational_quadratic_alpha(rng):
    sq_dist = np.append(0.0, rng.gamma(2.0, size=20))

    @jax.jit
    def profile(alpha):
        return kernels.rational_quadratic(0.7, alpha=alpha).profile(sq_dist)

    with jax.enable_x64(True):
        for alpha in (0.3, 1.0, 4.0):
            expected = (1 + sq_dist / (2 * alpha * 0.7**2)) ** -alpha
            np.testing.assert_allclose(profile(alpha), expected, rtol=1e-12)
        gaussian = np.exp(-sq_dist / (2 * 0.7**2))
        np.testing.assert_allclose(profile(1e8), gaussian, atol=1e-6)


BAD_ARGUMENTS = [
    ({"lengthscales": 0.0}, "lengthscales"),
    ({"lengthscales": [1.0, -1.0]}, "lengthscales"),
    ({"lengthscales": math.nan}, "lengthscales"),
    ({"lengthscales": math.inf}, "lengthscales"),
    ({"lengthscales": []}, "lengthscales"),
    ({"lengthscales": [[1.0, 2.0]]}, "lengthscales"),
    ({"lengthscales": [1.0, 2.0], "weights": [1.0]}, "weights"),
    ({"lengthscales": [1.0, 2.0], "weights": 1.0}, "weights"),
    ({"lengthscales": 1.0, "weights": -0.1}, "weights"),
    ({"lengthscales": 1.0, "weights": math.nan}, "weights"),
    ({"lengthscales": 1.0, "weights": math.inf}, "weights"),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("inside_jit", [False, True])
def test_factories_name_the_bad_argument(family, inside_jit):
    for arguments, name in BAD_ARGUMENTS:
        make = functools.partial(FAMILIES[family], **arguments)
        with pytest.raises(ValueError, match=f"^{name}: got "):
            (jax.jit(make) if inside_jit else make)()


@pytest.mark.parametrize("exponent", [0.0, 0.5, math.nan, -math.inf])
def test_bad_exponents(exponent):
    with pytest.raises(ValueError, match=r"^exponent: got "):
        kernels.imq_mixture(1.0, exponent=exponent)
    with pytest.raises(ValueError, match=r"^alpha: got "):
        kernels.rational_quadratic(1.0, alpha=-exponent)


def test_exponents_are_scalars():
    with pytest.raises(ValueError, match=r"^exponent: got shape"):
        kernels.imq_mixture([1.0, 2.0], exponent=jnp.array([-1.0, -2.0]))
    with pytest.raises(ValueError, match=r"^alpha: got shape"):
        kernels.rational_quadratic([1.0, 2.0], alpha=jnp.array([1.0, 2.0]))


def test_scales_must_be_positive(rng):
    x = jnp.asarray(rng.normal(size=(6, 2)), jnp.float32)
    for scales in ((1.0, 0.0), (-1.0,), (math.nan,)):
        with pytest.raises(ValueError, match=r"^scales: got "):
            jax.jit(lambda x, s=scales: kernels.median_mixture(kernels.matern32, x, scales=s))(x)


# ------------------------------------------------------------------------- kernels as pytrees


def test_leaves_are_the_numbers_and_nothing_else():
    assert len(jax.tree.leaves(kernels.rbf_mixture([1.0, 2.0]))) == 1
    assert len(jax.tree.leaves(kernels.rbf_mixture([1.0, 2.0], [1.0, 2.0]))) == 2
    assert len(jax.tree.leaves(kernels.imq_mixture(1.0, 2.0, exponent=-1.0))) == 3
    kernel = kernels.matern52([1.0, 2.0], [3.0, 4.0])
    leaves, structure = jax.tree.flatten(kernel)
    chex.assert_trees_all_equal(jax.tree.unflatten(structure, leaves), kernel)


def test_new_values_do_not_compile_again(rng):
    x = jnp.asarray(rng.normal(size=(6, 2)), jnp.float32)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def gram(kernel, x):
        return kernels.gram(kernel, x)

    for exponent in (-1, -0.7, jnp.float32(-2.0)):
        gram(kernels.imq_mixture([1.0, abs(exponent)], [1.0, 2.0], exponent), x)


def test_jit_is_eager_and_vmap_sweeps_lengthscales(rng):
    x = jnp.asarray(rng.normal(size=(6, 2)), jnp.float32)
    scales = jnp.array([[0.5, 1.0], [2.0, 3.0], [4.0, 5.0]])
    eager = [kernels.gram(kernels.imq_mixture(s), x) for s in scales]

    @quick_jit
    def both(scales):
        stack = jax.vmap(kernels.imq_mixture)(scales)
        return (
            jax.vmap(lambda s: kernels.gram(kernels.imq_mixture(s), x))(scales),
            jax.vmap(kernels.gram, in_axes=(0, None))(stack, x),
        )

    for swept in both(scales):
        np.testing.assert_allclose(swept, np.stack(eager), atol=1e-6)


@pytest.mark.thorough
def test_derivatives_in_lengthscales_weights_and_exponents_equal_autodiff_of_the_formula():
    u, mixed = np.array([0.0, 0.3, 2.0, 50.0]), np.array([1.0, -2.0, 0.5, 3.0])

    def imq(p):
        return kernels.imq_mixture(p["l"], p["w"], p["e"]).profile(u) @ mixed

    def quadratic(p):
        return kernels.rational_quadratic(p["l"], p["w"], alpha=-p["e"]).profile(u) @ mixed

    def formula(p):
        return sum(p["w"][c] * (1 + u / p["l"][c] ** 2) ** p["e"] for c in range(2)) @ mixed

    def rescaled_formula(p):
        return formula({**p, "l": p["l"] * jnp.sqrt(-2 * p["e"])})

    def two_orders(fn):
        return lambda p: (jax.grad(fn)(p), jax.hessian(fn)(p))

    with jax.enable_x64(True):
        params = {"l": jnp.array([0.8, 1.7]), "w": jnp.array([0.6, 1.2]), "e": jnp.array(-0.7)}
        for fn, plain in ((imq, formula), (quadratic, rescaled_formula)):
            got, expected = quick_jit(
                lambda p, f=fn, g=plain: (two_orders(f)(p), two_orders(g)(p))
            )(params)
            chex.assert_trees_all_close(got, expected, rtol=1e-10, atol=1e-12)


def test_an_integer_exponent_can_be_learned():
    kernel = kernels.imq_mixture(1.0, exponent=-1)
    slope = jax.grad(lambda kernel: kernel.profile(jnp.float32(2.0)))(kernel).exponent
    np.testing.assert_allclose(slope, math.log(3) / 3, rtol=1e-6)


# -------------------------------------------------------------------------------- feature maps


def network(params, x):
    return jnp.tanh(x @ params["weights"] + params["bias"][None])


def network_params(rng, d, l):
    return {
        "weights": jnp.asarray(rng.normal(size=(d, l)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=l), jnp.float32),
    }


def test_a_feature_kernel_is_the_base_kernel_between_features(rng):
    params = network_params(rng, 3, 5)
    x, y = (jnp.asarray(rng.normal(size=(n, 3)), jnp.float32) for n in (6, 4))
    base = kernels.rbf_mixture([0.5, 2.0], [1.0, 0.3])
    kernel = kernels.feature_kernel(base, network, params)
    features = [np.asarray(network(params, points), np.float64) for points in (x, y)]
    expected = oracles.gram("rbf_mixture", *features, [0.5, 2.0], [1.0, 0.3])
    np.testing.assert_allclose(jax.jit(kernels.gram)(kernel, x, y), expected, atol=2e-6)
    np.testing.assert_array_equal(np.diag(kernels.gram(kernel, x)), np.float32(1.3))


# ------------------------------------------------------------------------------ lengthscales


def rules(x, y, axis_name=None):
    """Every rule, on x pooled with y or on x alone."""
    return {
        "median": kernels.median_lengthscale(x, y, axis_name=axis_name),
        "svgd": kernels.svgd_lengthscale(x, axis_name=axis_name),
        "mixture": kernels.median_mixture(
            kernels.imq_mixture, x, y, axis_name=axis_name
        ).lengthscales,
    }


jitted_rules = jax.jit(rules)
median_lengthscale = jax.jit(kernels.median_lengthscale)


@pytest.mark.thorough
def test_rules_are_the_papers_multiples_of_the_median(rng):
    """svgd: l^2 = median / (2 log(n + 1)), so that k is 1 / (n + 1) at the median distance.

    Paper 000, section 3: squared bandwidths are [.5, 1, 2, 4] times the median on X u Y.
    """
    x, y = (np.asarray(rng.normal(size=(n, 3)), np.float32) for n in (14, 10))
    got = jitted_rules(x, y)
    own = oracles.median_squared_distance(x)
    pooled = oracles.median_squared_distance(np.concatenate([x, y]))
    np.testing.assert_allclose(got["median"], math.sqrt(pooled), rtol=1e-6)
    np.testing.assert_allclose(got["svgd"] ** 2, own / (2 * math.log(15)), rtol=1e-6)
    np.testing.assert_allclose(
        kernels.rbf_mixture(got["svgd"]).profile(jnp.float32(own)), 1 / 15, rtol=1e-5
    )
    squares = pooled * np.array([0.5, 1.0, 2.0, 4.0])
    np.testing.assert_allclose(got["mixture"] ** 2, squares, rtol=1e-6)


def test_median_mixture_of_any_family_and_scales(rng):
    x = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)

    @jax.jit
    def gram(x):
        return kernels.gram(kernels.median_mixture(kernels.matern32, x, scales=(3.0, 0.1)), x)

    at_median = sum((1 + s) * math.exp(-s) for s in (math.sqrt(3 / c) for c in (3.0, 0.1)))
    np.testing.assert_allclose(gram(x), [[2, at_median], [at_median, 2]], rtol=1e-5)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("d", [1, 4, 64])
def test_coinciding_points_fall_back(d, rng):
    copies = np.tile(rng.normal(size=d) + 3, (100, 1))
    x = copies.astype(np.float32)
    x[80:] += rng.normal(size=(20, d))
    sq_dist = np.sum((x[:, None].astype(np.float64) - x[None]) ** 2, axis=2)
    sq_dist = sq_dist[np.triu_indices(len(x), 1)]
    assert np.median(sq_dist) == 0
    np.testing.assert_allclose(median_lengthscale(x), math.sqrt(sq_dist.mean()), rtol=1e-5)
    for constant in (copies, 1e4 + copies, 0.1 + 0 * copies):
        assert median_lengthscale(constant.astype(np.float32)) == 1


def test_a_median_kernel_does_not_see_the_unit(rng):
    x = np.asarray(rng.normal(size=(12, 5)), np.float32)

    @jax.jit
    def gram(x):
        return kernels.gram(kernels.median_mixture(kernels.rbf_mixture, x), x)

    expected = gram(x)
    for scale in (1e-15, 1e15):
        np.testing.assert_allclose(gram(x * np.float32(scale)), expected, atol=1e-5)


def test_lengthscale_rules_carry_no_gradient(rng):
    x, y = (jnp.asarray(rng.normal(size=(n, 3)), jnp.float32) for n in (8, 7))

    def total(x, y):
        return sum(jnp.sum(rule) for rule in rules(x, y).values())

    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(x, y):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.thorough
def test_rules_over_two_devices_pool_them(rng):
    x = np.asarray(rng.normal(size=(2, 7, 3)), np.float32)
    y = np.asarray(rng.normal(size=(2, 5, 3)), np.float32)
    one = jitted_rules(x.reshape(14, 3), y.reshape(10, 3))
    two = jax.pmap(functools.partial(rules, axis_name="devices"), axis_name="devices")(x, y)
    for device in range(2):
        on_device = {name: rule[device] for name, rule in two.items()}
        chex.assert_trees_all_close(on_device, one, rtol=1e-6)


def scaled(params, x):
    return params * x


COPIES = {
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),  # noqa: S301  # our own
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "cloudpickle": lambda x: pytest.importorskip("cloudpickle").loads(
        pytest.importorskip("cloudpickle").dumps(x)
    ),
}


def test_laplace_alone_has_a_kink_at_zero():
    assert [n for n, make in kernels.FAMILIES.items() if not make(1.0).smooth_at_zero] == [
        "laplace"
    ]
    kinked = type("Kinked", (), {"smooth_at_zero": False, "profile": lambda self, u: -jnp.sqrt(u)})
    with pytest.raises(ValueError, match="not differentiable at 0; expected matern32 or IMQ"):
        ksd.stein_gram(jnp.ones((3, 2)), jnp.ones((3, 2)), kinked())


@pytest.mark.thorough(quick=3)
@pytest.mark.parametrize("name", COPIES)
def test_copies_are_equal_and_of_their_family(name):
    again = COPIES[name]
    mixtures = [getattr(kernels, family)([1.0, 2.0]) for family in FAMILIES]
    deep = kernels.feature_kernel(mixtures[0], scaled, jnp.ones((1, 2)))
    traced = []

    @jax.jit
    def evaluate(kernel, u):
        traced.append(kernel.shape if hasattr(kernel, "shape") else kernel.apply_fn)
        return kernel.profile(u)

    for kernel in (*mixtures, deep):
        twin = again(kernel)
        assert twin == kernel
        assert not operator.ne(twin, kernel)
        assert hash(twin) == hash(kernel)
        np.testing.assert_array_equal(*(evaluate(k, jnp.ones(3)) for k in (kernel, twin)))
    assert len(traced) == len(set(traced)) == len(mixtures) + 1  # once a kernel, not once a copy
    assert again(kernels.rbf_mixture(1.0)).log_slope() is not None
    with pytest.raises(ValueError, match="kernel: got laplace"):
        ksd.stein_gram(jnp.ones((3, 2)), jnp.ones((3, 2)), again(kernels.laplace(1.0)))


def test_kernels_are_equal_by_value():
    one = kernels.imq_mixture([1.0, 2.0])
    others = [
        kernels.imq_mixture([1.0, 3.0]),
        kernels.imq_mixture([1.0, 2.0, 2.0]),
        kernels.imq_mixture([1.0, 2.0], [1.0, 1.0]),
        kernels.rbf_mixture([1.0, 2.0]),
        kernels.imq_mixture([1.0, 2.0], exponent=-0.7),
        None,
        1.0,
    ]
    assert one == kernels.imq_mixture(jnp.array([1.0, 2.0]))
    for other in others:
        assert one != other
        assert not operator.eq(one, other)
    jax.jit(lambda k: chex.assert_equal(k == k, True))(one)  # traced: the same as itself


def test_scales_of_a_median_mixture_may_be_traced(rng):
    x, scales = jnp.asarray(rng.normal(size=(9, 2)), jnp.float32), (0.5, 3.0)

    @jax.jit
    def lengthscales(scales):
        return kernels.median_mixture(kernels.imq_mixture, x, scales=scales).lengthscales

    expected = kernels.median_mixture(kernels.imq_mixture, x, scales=scales).lengthscales
    np.testing.assert_allclose(lengthscales(scales), expected, rtol=1e-6)


@pytest.mark.parametrize("n", [100, 400])
def test_svgds_lengthscale_is_too_short_for_scores(key, n):
    """Of N(0, I) in the plane, whose score at x is -x: the errors that its docstring names."""
    x = jax.random.normal(key, (n, 2))

    def error(lengthscale):
        kernel = kernels.rbf_mixture(lengthscale)
        found = score.stein_score(x, kernel, ridge=score.default_ridge(n, kernel))
        return float(jnp.linalg.norm(found + x) / jnp.linalg.norm(x))

    short, median = error(kernels.svgd_lengthscale(x)), error(kernels.median_lengthscale(x))
    assert 0.5 < short < 1.1
    assert 0.1 < median < 0.6
    assert short > 1.5 * median
