"""Sums and products of kernels, against formulas in float64."""

import copy
import pickle
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

from kernelgrad import (
    _distances,
    _tiles,
    kernel_learning,
    kernels,
    ksd,
    mmd,
    pairwise,
    ratio,
    score,
    score_peers,
    svgd,
)


class Cauchy(NamedTuple):
    """A kernel of one's own, by the protocol alone."""

    lengthscale: jax.Array

    def profile(self, sq_dist):
        return 1 / (1 + sq_dist / self.lengthscale**2)


def composed(l, w):
    """A sum of a Gaussian and of a product of three, one of a caller's own."""
    parts = [kernels.matern52(l[1]), kernels.imq_mixture(l[:2], w[:2]), Cauchy(l[2])]
    return kernels.sum_of([kernels.rbf_mixture(l[0]), kernels.product_of(parts)], w)


def formula(l, w):
    """The same, of a squared distance."""

    def profile(r2):
        imq = sum(w[c] * oracles.PROFILES["imq_mixture"](r2 / l[c] ** 2) for c in range(2))
        product = oracles.PROFILES["matern52"](r2 / l[1] ** 2) * imq / (1 + r2 / l[2] ** 2)
        return w[0] * oracles.PROFILES["rbf_mixture"](r2 / l[0] ** 2) + w[1] * product

    return profile


LEAVES = np.array([0.8, 1.7, 2.5]), np.array([0.6, 1.4])


@pytest.mark.thorough
def test_values_gradients_and_stein_kernels_are_those_of_the_formula(rng):
    x, y = rng.normal(size=(4, 2)), rng.normal(size=(3, 2))

    def engine(l, w, x, y):
        kernel = composed(l, w)
        values = kernels.gram(kernel, x, y)
        forces = pairwise.gradient_sum(kernel, x, y)
        return values, forces, ksd.stein_gram(x, -x, kernel)

    def pair_by_pair(l, w, x, y):
        def k(a, b):
            return formula(l, w)(jnp.sum((a - b) ** 2))

        def u(a, b):
            to_a, to_b = jax.grad(k)(a, b), jax.grad(k, argnums=1)(a, b)
            mixed = jnp.trace(jax.jacfwd(jax.grad(k), argnums=1)(a, b))
            return k(a, b) * (a @ b) - a @ to_b - b @ to_a + mixed

        def of_pairs(fn, y):
            return jax.vmap(lambda a: jax.vmap(lambda b: fn(a, b))(y))(x)

        forces = jnp.sum(of_pairs(jax.grad(k, argnums=1), y), axis=1)
        return of_pairs(k, y), forces, of_pairs(u, x + 1e-9)

    with jax.enable_x64(True):
        got = jax.jit(engine)(*LEAVES, x, y)
        expected = jax.jit(pair_by_pair)(*LEAVES, x, y)
    chex.assert_trees_all_close(got[:2], expected[:2], rtol=1e-10)
    np.testing.assert_allclose(got[2], expected[2], rtol=1e-5, atol=1e-5)  # 1e-9 from singular


def test_derivatives_in_the_leaves_are_those_of_the_formula():
    r2 = np.array([1e-3, 0.3, 2.0, 50.0])

    def of(make):
        return jax.jit(jax.jacfwd(lambda l, w: make(l, w)(r2), argnums=(0, 1)))(*LEAVES)

    with jax.enable_x64(True):
        got = of(lambda l, w: composed(l, w).profile)
        expected = of(formula)
    chex.assert_trees_all_close(got, expected, rtol=1e-10)


@pytest.mark.thorough
def test_a_sum_of_one_family_is_its_mixture_and_a_product_of_gaussians_is_one(rng):
    x = jnp.asarray(rng.normal(size=(7, 5)), jnp.float32)
    single = [kernels.rbf_mixture(l) for l in (0.5, 2.0)]
    mixture = kernels.rbf_mixture([0.5, 2.0], [0.3, 2.0])
    product = kernels.rbf_mixture(1 / np.sqrt(1 / 0.25 + 1 / 4))

    @jax.jit
    def direction(kernel):
        return svgd.svgd_direction(x, -x, kernel)

    pairs = ((kernels.sum_of(single, [0.3, 2.0]), mixture), (kernels.product_of(single), product))
    for kernel, plain in pairs:
        np.testing.assert_allclose(direction(kernel), direction(plain), rtol=1e-5, atol=1e-7)
    slope = kernels.product_of(single).log_slope()
    np.testing.assert_allclose(slope, product.log_slope(), rtol=1e-6)
    assert kernels.sum_of(single[:1], 2.0).log_slope() == single[0].log_slope()
    assert kernels.sum_of(single).log_slope() is None
    assert kernels.product_of([*single, kernels.imq_mixture(1.0)]).log_slope() is None


@pytest.mark.thorough
def test_logarithms_are_those_of_the_formula_and_never_underflow():
    l, w = 0.7, np.array([0.5, 2.0])
    parts = [kernels.matern32(l), kernels.rbf_mixture(2 * l)]
    added = kernels.sum_of(parts, w)
    multiplied = kernels.product_of([*parts, kernels.imq_mixture(l)])
    values = [kernel.profile(jnp.float32(3.0)) for kernel in (*parts, kernels.imq_mixture(l))]
    for kernel, value in (
        (added, w[0] * values[0] + w[1] * values[1]),
        (multiplied, values[0] * values[1] * values[2]),
    ):
        np.testing.assert_allclose(kernel.log_profile(jnp.float32(3.0)), np.log(value), rtol=1e-5)
        far = kernel.log_profile(jnp.array([1e8, 1e30, np.inf], jnp.float32))
        assert np.all(np.isfinite(far))
        assert np.all(np.isfinite(jax.vmap(jax.grad(kernel.log_profile))(jnp.float32([0, 1e30]))))
    assert kernels.sum_of([parts[0], kernels.imq_mixture(l)]).log_profile(jnp.ones(1)) is None
    far = jnp.array([[40.0]])  # k = exp(-800)
    gaussian = kernels.product_of([kernels.rbf_mixture(1.0)])
    np.testing.assert_allclose(score_peers.kde_score_at(far, 0 * far, gaussian), -far, rtol=1e-6)


@pytest.mark.parametrize("unit", [1e-15, 1e15])
def test_a_sum_of_far_lengthscales_has_its_derivatives_in_a_unit_of_its_own(unit, rng):
    x = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    scales = np.float32([0.7, 1.5])

    @jax.jit
    def slope(x, scales):
        parts = [kernels.rbf_mixture(scales[0]), kernels.imq_mixture(scales[1])]
        kernel = kernels.sum_of([kernels.product_of(parts), parts[0]])
        return jax.grad(lambda x: jnp.sum(pairwise.gradient_sum(kernel, x, x[:3])[:, 0]))(x)

    expected = slope(x, scales)
    got = slope(x * np.float32(unit), scales * np.float32(unit))
    got = np.asarray(got, np.float64) * float(unit) ** 2
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_leaves_are_the_numbers_and_copies_are_equal():
    for kernel in (composed(*map(jnp.asarray, LEAVES)), kernels.product_of([kernels.laplace(1.0)])):
        leaves, structure = jax.tree.flatten(kernel)
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)
        for twin in (
            jax.tree.unflatten(structure, leaves),
            copy.deepcopy(kernel),
            pickle.loads(pickle.dumps(kernel)),  # noqa: S301  # our own
        ):
            assert twin == kernel
            assert hash(twin) == hash(kernel)
    assert kernels.sum_of([kernels.rbf_mixture(1.0)]) != kernels.sum_of([kernels.rbf_mixture(2.0)])
    assert not kernels.product_of([kernels.rbf_mixture(1.0), kernels.laplace(1.0)]).smooth_at_zero


@pytest.mark.thorough
def test_the_engine_and_the_rest_take_them(rng):
    """MMD^2 of a sum is the sum of both; a ratio under a product has a gradient."""
    x, y = (jnp.asarray(rng.normal(size=(6, 2)), jnp.float32) for _ in range(2))
    parts = [kernels.rbf_mixture(1.0), kernels.laplace(2.0)]
    whole = mmd.mmd_v_statistic(x, y, kernels.sum_of(parts, [0.5, 2.0]))
    apart = [mmd.mmd_v_statistic(x, y, part) for part in parts]
    np.testing.assert_allclose(whole, 0.5 * apart[0] + 2 * apart[1], rtol=1e-4)
    product = kernels.product_of([kernels.rbf_mixture(1.0), kernels.imq_mixture(2.0)])
    model = ratio.rulsif(x, y, product, ridge=0.1)
    assert np.all(np.isfinite(ratio.log_ratio_gradient(model, x)))
    with pytest.raises(ValueError, match="not differentiable at 0"):
        ksd.stein_gram(x, -x, kernels.sum_of(parts))


# ------------------------------------------------------------------ a lengthscale a coordinate

SCALES = np.array([0.5, 3.0, 1.0, 8.0])


def per_coordinate(l, scales, make=kernels.imq_mixture):
    return kernels.per_coordinate(make(l), scales)


def network(scales, x):
    return x / scales[None]


def stein_gram_of_the_formula(l, scales, x, score):
    """u_p of all pairs of different particles, from derivatives of k(x, y) in x and in y."""

    def k(a, b):
        return sum(1 / jnp.sqrt(1 + jnp.sum(((a - b) / scales) ** 2) / c**2) for c in l)

    def u(a, b, s, t):
        to_a, to_b = jax.grad(k)(a, b), jax.grad(k, argnums=1)(a, b)
        mixed = jnp.trace(jax.jacfwd(jax.grad(k), argnums=1)(a, b))
        return k(a, b) * (s @ t) + s @ to_b + t @ to_a + mixed

    rows = jax.vmap(u, (None, 0, None, 0))
    return jax.vmap(rows, (0, None, 0, None))(x, x, score, score)


def scaled_points(rng, n):
    x = rng.normal(2.0, 1.3, size=(n, 4)) * SCALES
    return x, (-x + rng.normal(size=(n, 4))) / SCALES


@pytest.mark.thorough
@pytest.mark.parametrize("few", [0, 1 << 15])
def test_stein_kernel_with_a_lengthscale_a_coordinate_is_that_of_the_formula(few, rng, monkeypatch):
    """And its derivatives; by the matmul, by differences, in tiles."""
    monkeypatch.setattr(_distances, "FEW_DIFFERENCES", few)
    x, score = scaled_points(rng, 11)
    mix = rng.normal(size=(11, 11))
    l = np.array([0.9, 2.0])

    def of(gram):
        def total(l, scales, x, score):
            return jnp.sum(jnp.sin(mix * gram(l, scales, x, score)))

        return jax.value_and_grad(total, argnums=(0, 1, 2, 3))

    def engine(l, scales, x, score):
        return ksd.stein_gram(x, score, per_coordinate(l, scales))

    def statistic(l, scales, x, score):
        return ksd.ksd_v_statistic(x, score, per_coordinate(l, scales))

    with jax.enable_x64(True):
        arguments = (l, SCALES, x, score)
        got, expected = (jax.jit(of(g))(*arguments) for g in (engine, stein_gram_of_the_formula))
        gram = jax.jit(stein_gram_of_the_formula)(*arguments)
        monkeypatch.setattr(_tiles, "DENSE_PAIRS", 0)
        monkeypatch.setattr(_tiles, "TILE_ROWS", 4)
        in_tiles = jax.jit(statistic)(*arguments)
    chex.assert_trees_all_close(got, expected, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(in_tiles, np.asarray(gram).mean(), rtol=1e-9)


@pytest.mark.thorough
def test_a_lengthscale_a_coordinate_is_a_network_that_divides(rng):
    """All sums, MMD, SVGD and scores, in value; at the cost of a radial kernel."""
    x, y = (rng.normal(size=(n, 4)) * SCALES for n in (6, 5))
    w, g, offsets = rng.normal(size=(5, 4)), rng.normal(size=5), (np.ones(6), rng.normal(size=5))

    @jax.jit
    def everything(kernel):
        return (
            kernels.gram(kernel, x, y),
            pairwise.kernel_sum(kernel, x, y, w),
            pairwise.gradient_sum(kernel, x, None),
            pairwise.kernel_and_gradient_sum(kernel, x, y, w, g, offsets=offsets),
            pairwise.stein_sum(kernel, x, y, w, g),
            mmd.mmd_value_and_gradient(x, y, kernel),
            svgd.svgd_direction(x, -x, kernel),
            score.stein_score(x, kernel, ridge=0.1),
            score.stein_score_at(y, x, kernel, ridge=0.1),
        )

    with jax.enable_x64(True):
        deep = kernels.feature_kernel(kernels.imq_mixture([0.9, 2.0]), network, SCALES)
        got = everything(per_coordinate([0.9, 2.0], SCALES))
        chex.assert_trees_all_close(got, everything(deep), rtol=1e-9, atol=1e-11)

    def passes(kernel):
        return str(jax.make_jaxpr(lambda: pairwise.stein_sum(kernel, x, None, x))()).count("scan")

    assert passes(per_coordinate(1.0, SCALES)) == passes(kernels.imq_mixture(1.0))


def test_closed_form_in_any_unit(rng):
    """That of the inverse multiquadric, with the metric once in r^2 and twice in the curvature."""
    x, score = scaled_points(rng, 5)
    metric, gap, change = SCALES**-2, x[:, None] - x[None], score[None] - score[:, None]
    base = 1 + np.sum(metric * gap**2, axis=2)
    expected = base**-0.5 * (score @ score.T) - 3 * base**-2.5 * np.sum((metric * gap) ** 2, axis=2)
    expected -= base**-1.5 * (np.sum(metric * gap * change, axis=2) - metric.sum())

    @jax.jit
    def gram(x, score, scales):
        return ksd.stein_gram(x, score, per_coordinate(1.0, scales))

    for unit in (1e-12, 1.0, 1e12):
        of_unit = (np.asarray(a, np.float32) for a in (x * unit, score / unit, SCALES * unit))
        got = np.asarray(gram(*of_unit), np.float64) * unit**2
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
def test_a_full_matrix_is_a_rotation_of_a_lengthscale_a_coordinate(rng):
    """As docs/library.md has it: u_p of k(A x, A y), A = U diag(a) V^T, by autodiff."""
    matrix, (x, score) = rng.normal(size=(4, 4)), scaled_points(rng, 5)

    def k(a, b):
        return 1 / jnp.sqrt(1 + jnp.sum((matrix @ (a - b)) ** 2))

    def u(a, b, s, t):
        mixed = jnp.trace(jax.jacfwd(jax.grad(k), argnums=1)(a, b))
        return k(a, b) * (s @ t) + s @ jax.grad(k, argnums=1)(a, b) + t @ jax.grad(k)(a, b) + mixed

    _, sizes, turn = np.linalg.svd(matrix)
    with jax.enable_x64(True):
        rows = jax.vmap(u, (None, 0, None, 0))
        expected = jax.vmap(rows, (0, None, 0, None))(x, x, score, score)
        kernel = kernels.per_coordinate(kernels.imq_mixture(1.0), 1 / sizes)
        got = ksd.stein_gram(x @ turn.T, score @ turn.T, kernel)
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.thorough
def test_two_devices_give_the_statistic_of_one(rng, monkeypatch):
    x, score = (jnp.asarray(a, jnp.float32) for a in scaled_points(rng, 12))
    kernel = per_coordinate([0.9, 2.0], SCALES)
    expected = ksd.ksd_v_statistic(x, score, kernel)
    monkeypatch.setattr(_tiles, "DENSE_PAIRS", 0)
    parts = (a.reshape(2, 6, 4) for a in (x, score))
    spread = jax.pmap(
        lambda x, s: ksd.ksd_v_statistic(x, s, kernel, axis_name="devices"), axis_name="devices"
    )
    np.testing.assert_allclose(spread(*parts), np.full(2, expected), rtol=1e-5)


@pytest.mark.thorough
def test_lengthscales_of_coordinates_are_learned(key, rng):
    """Samples that differ in one coordinate, beside one that is ten times as wide."""
    x, y = (rng.normal(size=(40, 2)) * [1, 10] for _ in range(2))
    start = kernels.per_coordinate(kernels.rbf_mixture(1.0), [2.0, 2.0])
    x, y = np.asarray(x, np.float32), np.asarray(y + np.array([1.0, 0.0]), np.float32)
    learned = kernel_learning.learn(key, x, y, start, optax.sgd(1.0), num_steps=30)
    narrow, wide = learned.kernel.coordinate_lengthscales
    assert wide > 2.5 * narrow
    assert learned.powers[-1] > 1.5 * learned.powers[0]


@pytest.mark.thorough
def test_sums_and_products_are_learned_as_the_mixture_that_they_are(key, rng):
    x, y = (np.asarray(rng.normal(size=(30, 2)) + mean, np.float32) for mean in (0, 1))
    parts = [kernels.product_of([kernels.rbf_mixture(0.3)]), kernels.rbf_mixture(1.0)]
    starts = kernels.sum_of(parts, [1.0, 0.5]), kernels.rbf_mixture([0.3, 1.0], [1.0, 0.5])
    got, expected = (
        kernel_learning.learn(key, x, y, start, optax.sgd(0.3), num_steps=5) for start in starts
    )
    assert jax.tree.structure(got.kernel) == jax.tree.structure(starts[0])
    np.testing.assert_allclose(got.powers, expected.powers, rtol=1e-4)
    np.testing.assert_allclose(got.kernel.weights, expected.kernel.weights, rtol=1e-4)
    np.testing.assert_allclose(got.kernel.lengthscales, expected.kernel.lengthscales, rtol=1e-4)
    assert got.powers[-1] > got.powers[0]


def test_kernels_with_a_lengthscale_a_coordinate_are_checked(rng):
    x = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    kernel = kernels.per_coordinate(kernels.rbf_mixture(1.0), [1.0, 2.0])
    assert pickle.loads(pickle.dumps(kernel)) == kernel  # noqa: S301  # our own
    assert len(jax.tree.leaves(kernel)) == 2
    for call in (
        lambda: kernels.gram(kernel, x),
        lambda: svgd.svgd_direction(x, -x, kernel),
        lambda: ksd.ksd_v_statistic(x, -x, kernel),
    ):
        with pytest.raises(ValueError, match=r"^lengthscales: got shape \(2,\); expected \(3\)"):
            call()
    with pytest.raises(ValueError, match=r"^base: got FeatureKernel; expected a radial kernel"):
        kernels.per_coordinate(DEEP, [1.0])
    for bad in ([1.0, 0.0], [1.0, np.inf], 1.0, [[1.0]]):
        with pytest.raises(ValueError, match=r"^lengthscales: got "):
            kernels.per_coordinate(kernels.rbf_mixture(1.0), bad)
    with pytest.raises(ValueError, match=r"feature kernel; expected .* or per_coordinate of one"):
        ksd.stein_gram(x, -x, DEEP)
    with pytest.raises(ValueError, match="not differentiable at 0"):
        ksd.stein_gram(x, -x, kernels.per_coordinate(kernels.laplace(1.0), [1.0, 2.0, 3.0]))


DEEP = kernels.feature_kernel(kernels.rbf_mixture(1.0), lambda p, x: p * x, jnp.float32(1.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "kernels: got none; expected a sequence of at least one"),
        ((kernels.rbf_mixture(1.0),), "kernels: got RadialMixture; expected a sequence"),
        (
            ([kernels.rbf_mixture(1.0), DEEP],),
            r"kernels\[1\]: got FeatureKernel; expected a radial",
        ),
        (([kernels.riesz()],), r"kernels\[0\]: got riesz, whose k\(0\) is not positive"),
        (([3.0],), r"kernels\[0\]: got float; expected a radial kernel"),
    ],
)
def test_what_is_not_radial_is_refused(arguments, message):
    for make in (kernels.sum_of, kernels.product_of):
        with pytest.raises(ValueError, match=f"^{message}"):
            make(*arguments)


@pytest.mark.parametrize("weights", [[1.0, -1.0], [1.0], 1.0, [np.nan, 1.0]])
def test_bad_weights_are_named(weights):
    with pytest.raises(ValueError, match=r"^weights: got "):
        kernels.sum_of([kernels.rbf_mixture(1.0), kernels.laplace(1.0)], weights)
