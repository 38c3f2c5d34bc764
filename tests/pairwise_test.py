"""The pair engine: float64 oracles, autodiff of dense definitions, tiles, devices, memory."""

import functools
import re
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import memory
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

from kernelgrad import _distances, _tiles, kernels, pairwise

FAMILIES = {make.__name__: make for make in kernels.FAMILIES.values()}

# For derivatives of derivatives, where compiling is most of the test.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture
def small_tiles(monkeypatch):
    """Call it for small tiles of unequal sides: a small problem has many, the last ones padded."""

    def shrink(rows=16, cols=8):
        monkeypatch.setattr(_tiles, "DENSE_PAIRS", 0)
        monkeypatch.setattr(_tiles, "TILE_ROWS", rows)
        monkeypatch.setattr(_tiles, "TILE_COLS", cols)

    return shrink


def imq(params):
    return kernels.imq_mixture(params["l"], params["w"], params["e"])


def imq_params():
    return {"l": np.array([0.8, 2.0]), "w": np.array([1.3, 0.4]), "e": np.array(-0.7)}


def dense_definition(params, x, y, weights, gradient_weights):
    """sum_j k(x_i, y_j) w_j and sum_j g_j grad_{y_j} k(x_i, y_j), the gradient by autodiff."""
    same = np.eye(len(x), dtype=bool) if y is None else False
    y = x if y is None else y

    def gram(copies, x):
        """k(x_i, y_ij), with a copy of the y_j for each row to keep the gradients apart."""
        sq_dist = jnp.sum((x[:, None] - copies) ** 2, axis=2)
        sq_dist = jnp.where(same, 0, sq_dist)
        terms = zip(params["l"], params["w"], strict=True)
        return sum(w * (1 + sq_dist / l**2) ** params["e"] for l, w in terms)

    copies = jnp.broadcast_to(y, (len(x), *y.shape))
    gradients = jax.grad(lambda copies: jnp.sum(gram(copies, x)))(copies)
    return gram(copies, x) @ weights, jnp.einsum("ijk,j->ik", gradients, gradient_weights)


def two_orders(sums, projections):
    """Returns the gradients of sin(a gradient of the sums), that gradient, and the sums."""

    def projected(*arguments):
        values = sums(*arguments)
        return sum(jnp.sum(a * b) for a, b in zip(values, projections, strict=True)), values

    def bent(*arguments):
        gradients, values = jax.grad(projected, which(arguments), has_aux=True)(*arguments)
        total = sum(jnp.sum(jnp.sin(g)) for g in jax.tree.leaves(gradients))
        return total, (gradients, values)

    def which(arguments):
        return tuple(i for i, argument in enumerate(arguments) if argument is not None)

    return quick_jit(lambda *a: jax.grad(bent, which(a), has_aux=True)(*a))


def engine_sums(params, x, y, weights, gradient_weights):
    return pairwise.kernel_and_gradient_sum(imq(params), x, y, weights, gradient_weights)


# -------------------------------------------------------------------- definitions and derivatives


@pytest.mark.thorough
@pytest.mark.parametrize(("others", "d"), [("y", 5), (None, 2)])
def test_sums_and_two_orders_of_gradients_equal_autodiff_of_the_definition(
    others, d, rng, small_tiles
):
    """In x, y, both weights, lengthscales, mixture weights and exponent, dense and tiled."""
    n, m = (37, 37) if others is None else (37, 53)
    x, y = rng.normal(size=(n, d)) + 3, rng.normal(size=(m, d)) + 3
    weights, force = rng.normal(size=(m, 2)), rng.normal(size=m)
    projections = rng.normal(size=(n, 2)), rng.normal(size=(n, d))
    with jax.enable_x64(True):
        arguments = jax.tree.map(
            jnp.asarray, (imq_params(), x, None if others is None else y, weights, force)
        )
        expected = two_orders(dense_definition, projections)(*arguments)
        dense = two_orders(engine_sums, projections)(*arguments)
        small_tiles()
        tiled = two_orders(engine_sums, projections)(*arguments)
    chex.assert_trees_all_close(dense, expected, rtol=1e-9, atol=1e-9)
    chex.assert_trees_all_close(tiled, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.thorough
@pytest.mark.parametrize("others", ["y", None])
@pytest.mark.parametrize(
    "family", ["rbf_mixture", "two rbf", pytest.param("imq_mixture", marks=pytest.mark.slow)]
)
def test_stein_sum_adds_up_what_autodiff_of_the_definition_gives(family, others, rng, small_tiles):
    """For a single Gaussian too, where one matmul does for both; and its gradients."""
    n, m, d = (37, 37, 5) if others is None else (37, 53, 5)
    x, y = rng.normal(size=(n, d)) + 3, rng.normal(size=(m, d)) + 3
    weights, force = rng.normal(size=(m, d)), rng.normal(size=m)
    projection = rng.normal(size=(n, d))
    make, lengthscales = {
        "rbf_mixture": (kernels.rbf_mixture, [1.3]),
        "two rbf": (kernels.rbf_mixture, [1.3, 0.8]),
        "imq_mixture": (kernels.imq_mixture, [1.3]),
    }[family]

    def definition(lengthscales, x, y, weights, force):
        same = np.eye(n, dtype=bool) if others is None else False
        y = x if others is None else y

        def gram(copies, x):
            sq_dist = jnp.where(same, 0, jnp.sum((x[:, None] - copies) ** 2, axis=2))
            shape = jnp.exp if "rbf" in family else lambda t: (1 - 2 * t) ** -0.5
            return sum(shape(-sq_dist / (2 * l**2)) for l in lengthscales)

        copies = jnp.broadcast_to(y, (n, *y.shape))
        gradients = jax.grad(lambda copies: jnp.sum(gram(copies, x)))(copies)
        return gram(copies, x) @ weights + jnp.einsum("ijk,j->ik", gradients, force)

    def engine(lengthscales, x, y, weights, force):
        others_ = None if others is None else y
        return pairwise.stein_sum(make(lengthscales), x, others_, weights, force)

    def value_and_gradients(fn, arguments):
        total = lambda *arguments: jnp.sum(fn(*arguments) * projection)  # noqa: E731
        return fn(*arguments), quick_jit(jax.grad(total, argnums=range(5)))(*arguments)

    with jax.enable_x64(True):
        arguments = [jnp.asarray(a) for a in (lengthscales, x, y, weights, force)]
        expected = value_and_gradients(definition, arguments)
        dense = value_and_gradients(engine, arguments)
        small_tiles()
        tiled = value_and_gradients(engine, arguments)
        ones = pairwise.stein_sum(
            make(arguments[0]), x, None if others is None else arguments[2], arguments[3]
        )
        unweighted = engine(*arguments[:4], jnp.ones(m))
    chex.assert_trees_all_close(dense, expected, rtol=1e-9, atol=1e-9)
    chex.assert_trees_all_close(tiled, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ones, unweighted, rtol=1e-12)


@pytest.mark.thorough
def test_check_grads_to_second_order_through_the_tiles(rng, small_tiles):
    """Finite differences, where the test above trusts autodiff of the definition."""
    small_tiles(4, 3)
    with jax.enable_x64(True):
        x, w = jnp.asarray(rng.normal(size=(7, 4))), jnp.asarray(rng.normal(size=(7, 1)))

        @jax.jit
        def sums(x):
            return pairwise.kernel_sum(kernels.rbf_mixture(1.2), x, None, w)

        check_grads(sums, (x,), order=2, modes=["rev"], atol=1e-6, rtol=1e-6)


class SumOfTheSingular(NamedTuple):
    """A kernel of one's own, by the protocol alone."""

    lengthscale: jax.Array

    def profile(self, sq_dist):
        laplace, matern32 = kernels.laplace(self.lengthscale), kernels.matern32(self.lengthscale)
        return laplace.profile(sq_dist) + matern32.profile(sq_dist)


@pytest.mark.thorough
def test_second_gradients_of_singular_profiles_are_finite_and_the_same_in_tiles(rng, small_tiles):
    """At copies in y, at copies of copies, and in the zeros that pad the tiles."""
    x = rng.normal(size=(19, 5)).astype(np.float32)
    copies = np.concatenate([x[:16], x[:2], np.mean(x, axis=0, keepdims=True)])
    w, g = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((19, 1), (19,)))

    def total(kernel, x, y):
        values, gradients = pairwise.kernel_and_gradient_sum(kernel, x, y, w, g)
        return jnp.sum(jnp.sin(values)) + jnp.sum(jnp.sin(gradients))

    def gradients(x, y):
        return quick_jit(jax.grad(total, argnums=(0, 1)))(SumOfTheSingular(jnp.float32(1)), x, y)

    dense = gradients(x, None)
    small_tiles()
    tiled, with_copies = gradients(x, None), gradients(x, copies)
    chex.assert_trees_all_close(tiled, dense, rtol=1e-3, atol=1e-3)
    chex.assert_tree_all_finite(with_copies)


class Scaled(NamedTuple):
    """A kernel around another, whose attribute `base` is its own affair."""

    base: kernels.RadialMixture
    factor: jax.Array

    def profile(self, sq_dist):
        return self.factor * self.base.profile(sq_dist)


@pytest.mark.thorough
def test_a_kernel_of_ones_own_needs_nothing_but_a_profile(rng):
    x, weights = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((9, 4), (9, 2)))
    base = kernels.rbf_mixture(1.5)
    scaled = Scaled(base, jnp.float32(3))
    plain = pairwise.kernel_and_gradient_sum(base, x, None, weights, weights[:, 0])
    got = pairwise.kernel_and_gradient_sum(scaled, x, None, weights, weights[:, 0])
    chex.assert_trees_all_close(got, jax.tree.map(lambda s: 3 * s, plain), atol=1e-5)
    np.testing.assert_allclose(kernels.gram(scaled, x), 3 * kernels.gram(base, x), atol=1e-6)


# ----------------------------------------------------------------------------- float64 oracles


@functools.partial(jax.jit, static_argnames="self_sum")
def every_family(x, y, scales, mixture_weights, weights, force, self_sum=False):
    """Both sums of every family, from one compilation a shape."""
    return {
        name: pairwise.kernel_and_gradient_sum(
            family(scales, mixture_weights), x, None if self_sum else y, weights, force
        )
        for name, family in FAMILIES.items()
    }


def assert_sums_match(sums, x, y, scales, mixture_weights, weights, force, *, value, gradient):
    """Values within `value` per kernel value, gradients within `gradient` of the largest."""
    largest = np.sum(mixture_weights) * np.sum(np.abs(weights), axis=0)
    for name, family_sums in sums.items():
        values, gradients = map(np.asarray, family_sums)
        gram = oracles.fast_gram(name, x, y, scales, mixture_weights)
        expected = oracles.fast_gradient_sum(name, x, y, scales, force, mixture_weights)
        assert np.all(np.abs(values - gram @ weights) <= value * largest), name
        assert np.max(np.abs(gradients - expected)) <= gradient * np.max(np.abs(expected)), name


SHAPES = {"one tile": (17, 13, 2), "padded tiles": (35, 21, 3), "high dimension": (12, 30, 40)}


@pytest.mark.thorough
@pytest.mark.parametrize("shape", SHAPES)
def test_fuzz_against_float64(shape, rng, small_tiles):
    """100 configurations a shape for each family: offset, unit, scales, weights, tails, copies."""
    n, m, d = SHAPES[shape]
    if shape != "one tile":
        small_tiles()
    every_family.clear_cache()
    for _ in range(100):
        pool = rng.standard_t(rng.choice([3, 100]), size=(n + m, d))
        pool += rng.choice([0.0, 1.0, 10.0, 1e3]) * rng.normal(size=d)
        pool *= 10.0 ** rng.uniform(-4, 4)
        x, y = np.asarray(pool[:n], np.float32), np.asarray(pool[n:], np.float32)
        copies = rng.random() < 0.3
        if copies:
            y[:2] = x[:2]
        typical = np.sqrt(oracles.median_squared_distance(np.concatenate([x[:8], y[:8]])))
        scales = np.asarray(typical * 2.0 ** rng.uniform(-0.5, 2, size=2), np.float32)
        arguments = (
            x,
            y,
            scales,
            np.asarray(rng.uniform(0, 2, size=2), np.float32),
            np.asarray(rng.normal(size=(m, 3)), np.float32),
            np.asarray(rng.normal(size=m), np.float32),
        )
        sums = every_family(*arguments)
        if copies and d > _distances.DIRECT_DIMENSIONS:
            del sums["laplace"]  # exp(-r) sees the square root of the rounding error of r^2
        assert_sums_match(sums, *arguments, value=2e-6, gradient=1e-4)


@pytest.mark.thorough
def test_float64_sums_are_exact_to_1e_12(rng, small_tiles):
    small_tiles()
    every_family.clear_cache()
    x, y = rng.normal(size=(20, 4)), rng.normal(size=(17, 4))
    weights, force = rng.normal(size=(len(y), 2)), rng.normal(size=len(y))
    with jax.enable_x64(True):
        arguments = x, y, np.array([0.5, 2.0]), np.array([0.3, 1.1]), weights, force
        sums = every_family(*arguments)
    assert_sums_match(sums, *arguments, value=1e-13, gradient=1e-12)


@pytest.mark.parametrize("d", [1, 3, 4, 512])
def test_squared_distances_off_centre(d, rng):
    """Non-negative, zero on the diagonal, and as exact as the spread of the data allows."""
    distances = jax.jit(
        lambda x, y: (pairwise.squared_distances(x, y), pairwise.squared_distances(x))
    )
    for offset in (0, 10, 100, 1e4):
        x = np.asarray(rng.normal(size=(8, d)) + offset, np.float32)
        y = np.concatenate([x[:3], (x[3:6] + 1e-3).astype(np.float32)])
        expected = np.sum((x[:, None].astype(np.float64) - y[None]) ** 2, axis=2)
        got, own = distances(x, y)
        assert got.dtype == np.float32
        assert np.min(got) >= 0
        np.testing.assert_array_equal(np.diag(own), 0)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6 * np.max(expected))
        np.testing.assert_allclose(own[:, :3], expected[:, :3], atol=1e-6 * np.max(expected))


@pytest.mark.parametrize("d", [1, 2, 3])
def test_copies_in_few_dimensions_are_at_distance_zero(d, rng):
    """Also under jit, where a fused multiply-add could centre the two copies differently."""
    x = rng.normal(size=(64, d)).astype(np.float32)
    for scale in (1.0, 0.1, 1e3):
        got = jax.jit(pairwise.squared_distances)(scale * x, scale * x)
        np.testing.assert_array_equal(np.diag(got), 0)


def test_gradient_sum_pushes_away_from_the_others():
    """One neighbour to the right: the sum of gradients at x points left."""
    x, y = np.zeros((1, 2), np.float32), np.array([[1, 0]], np.float32)
    one = np.ones(1, np.float32)
    for name, (_, step) in every_family(x, y, one, one, one[:, None], one).items():
        expected = oracles.RADIAL_SLOPE[name](1.0, 1.0)
        assert expected < 0
        np.testing.assert_allclose(step, [[expected, 0]], rtol=1e-6, err_msg=name)


@pytest.mark.thorough
def test_the_three_sums_agree(rng):
    x, y, weights, force = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((9, 4), (7, 4), (7, 2), (7,))
    )
    kernel = kernels.rbf_mixture([0.7, 2.0])

    @quick_jit
    def alone(x, y):
        return (
            pairwise.kernel_sum(kernel, x, y, weights),
            pairwise.gradient_sum(kernel, x, y, force),
            pairwise.gradient_sum(kernel, x, y),
        )

    values, gradients = pairwise.kernel_and_gradient_sum(kernel, x, y, weights, force)
    _, plain = pairwise.kernel_and_gradient_sum(kernel, x, y, weights, jnp.ones(7))
    chex.assert_trees_all_close(alone(x, y), (values, gradients, plain), atol=1e-6)


def test_y_none_is_x_itself(rng, small_tiles):
    x = jnp.asarray(rng.normal(size=(21, 4)) + 30, jnp.float32)
    weights, force = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((21, 2), (21,)))

    def sums(x, y):
        return pairwise.kernel_and_gradient_sum(kernels.matern52(2.0), x, y, weights, force)

    expected = quick_jit(sums)(x, x)
    chex.assert_trees_all_close(quick_jit(sums)(x, None), expected, atol=1e-5)
    small_tiles()
    chex.assert_trees_all_close(quick_jit(sums)(x, None), expected, atol=1e-5)


def test_rotation_scale_and_order_of_the_points(rng):
    x, y = (rng.normal(size=(n, 5)).astype(np.float32) for n in (9, 11))
    weights, force = (rng.normal(size=s).astype(np.float32) for s in ((11, 2), (11,)))
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0].astype(np.float32)
    order = rng.permutation(11)

    @jax.jit
    def sums(scale, x, y, weights, force):
        kernel = kernels.imq_mixture(scale * jnp.array([0.7, 2.0]))
        return pairwise.kernel_and_gradient_sum(kernel, x, y, weights, force)

    values, gradients = sums(1.0, x, y, weights, force)
    rotated = sums(1.0, x @ rotation, y @ rotation, weights, force)
    chex.assert_trees_all_close(rotated, (values, gradients @ rotation), atol=1e-5)
    shuffled = sums(1.0, x, y[order], weights[order], force[order])
    chex.assert_trees_all_close(shuffled, (values, gradients), atol=1e-5)
    scaled = sums(100.0, 100 * x, 100 * y, weights, force)
    chex.assert_trees_all_close(scaled, (values, gradients / 100), atol=1e-5)


# ---------------------------------------------------------------------------------- the tiles


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (16, 8), (17, 9)])
def test_tiles_cover_every_pair_once(shape, rng, small_tiles):
    """A kernel of 1 everywhere sums the weights, whatever the padding."""
    small_tiles()
    x, y = (jnp.asarray(rng.normal(size=(n, 2)), jnp.float32) for n in shape)
    weights = jnp.asarray(rng.integers(1, 9, size=(shape[1], 1)), jnp.float32)
    got = quick_jit(pairwise.kernel_sum)(kernels.rbf_mixture(1e9), x, y, weights)
    np.testing.assert_array_equal(got, np.full((shape[0], 1), weights.sum()))


@pytest.mark.parametrize(("size", "largest"), [(1, 5), (5, 5), (6, 5), (11, 5), (53, 8)])
def test_split_tiles_pads_the_last_with_zeros(size, largest):
    array = np.arange(1, size + 1)
    (got,) = jax.tree.leaves(_tiles.split({"a": jnp.asarray(array)}, largest))
    assert got.shape[1] <= largest
    assert got.size - size < got.shape[0]  # equal tiles, less than one row of padding each
    np.testing.assert_array_equal(np.ravel(got)[:size], array)
    np.testing.assert_array_equal(np.ravel(got)[size:], 0)


@pytest.mark.thorough
def test_no_array_is_as_large_as_the_number_of_pairs():
    """At n = m = 100 000: values, gradients, and gradients of gradients."""
    n, d = 100_000, 8
    x, w, g = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (n, 1), (n,)))
    kernel = kernels.imq_mixture([1.0, 2.0], [1.0, 0.5])

    def total(kernel, x, y, w, g):
        values, gradients = pairwise.kernel_and_gradient_sum(kernel, x, y, w, g)
        return jnp.sum(jnp.sin(values)) + jnp.sum(jnp.sin(gradients))

    def bent(kernel, x, y, w, g):
        gradients = jax.grad(total, argnums=(0, 1, 2, 3, 4))(kernel, x, y, w, g)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(gradients))

    bound = 4 * n * (d + 2)
    assert bound < n**2 / 1000
    assert memory.largest_buffer(lambda x, w: kernels.gram(kernel, x) @ w, x, w) >= n**2
    for fn in (total, jax.grad(total, argnums=(0, 1, 2, 3, 4)), jax.grad(bent, argnums=1)):
        assert memory.largest_buffer(fn, kernel, x, x, w, g) <= bound


@pytest.mark.thorough
@memory.needs_proc
def test_the_gradient_at_6000_points_takes_less_than_one_gram():
    one_gram = 4 * 6000**2 / 2**20
    peak = memory.peak_megabytes("""
x, y = (jnp.asarray(rng.normal(size=(6000, 8)), jnp.float32) for _ in range(2))
arguments = x, y, x[:, :1]
kernel = kernels.rbf_mixture(2.0)
fn = jax.grad(lambda x, y, w: pairwise.kernel_sum(kernel, x, y, w).sum(), argnums=(0, 1, 2))
""")
    assert peak < one_gram / 4


@pytest.mark.thorough
def test_one_compilation_a_shape_and_jit_is_eager(rng):
    x, y = (jnp.asarray(rng.normal(size=(n, 3)), jnp.float32) for n in (9, 7))
    weights, force = jnp.ones((7, 2)), jnp.ones(7)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def sums(kernel, x, y, weights, force):
        return pairwise.kernel_and_gradient_sum(kernel, x, y, weights, force)

    for scale in (0.5, 2.0):
        arguments = kernels.imq_mixture([scale, 1.0]), scale * x, y, weights, force
        eager = pairwise.kernel_and_gradient_sum(*arguments)
        chex.assert_trees_all_close(sums(*arguments), eager, atol=1e-6)


@pytest.mark.thorough
def test_vmap_is_a_loop(rng, small_tiles):
    small_tiles(4, 3)
    x, y, weights = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 9, 4), (3, 7, 4), (3, 7, 2))
    )
    kernel = kernels.imq_mixture(1.5)

    def gradient(x, y, weights):
        return jax.grad(lambda x: jnp.sum(jnp.sin(pairwise.kernel_sum(kernel, x, y, weights))))(x)

    batched = jax.jit(jax.vmap(gradient))(x, y, weights)
    one_by_one = [jax.jit(gradient)(*arguments) for arguments in zip(x, y, weights, strict=True)]
    np.testing.assert_allclose(batched, np.stack(one_by_one), atol=1e-6)


# --------------------------------------------------------------------------------- two devices


def network(params, x):
    return jnp.tanh(x @ params["weights"]) + params["bias"][None]


def deep_kernel(rng, d, l, bias=0.0, dtype=np.float32):
    params = {
        "weights": jnp.asarray(rng.normal(size=(d, l)), dtype),
        "bias": jnp.full(l, bias, dtype),
    }
    return kernels.feature_kernel(kernels.imq_mixture([0.7, 2.0]), network, params)


def on_two_devices(fn, replicated, *shards):
    """pmap of fn(replicated, *shards, axis_name), each shard given whole."""
    halves = jax.tree.map(lambda t: t.reshape(2, len(t) // 2, *t.shape[1:]), shards)
    return jax.pmap(
        functools.partial(fn, axis_name="devices"),
        axis_name="devices",
        in_axes=(None, *[0] * len(shards)),
    )(replicated, *halves)


def joined(tree):
    return jax.tree.map(lambda t: t.reshape(-1, *t.shape[2:]), tree)


@pytest.mark.thorough
@pytest.mark.parametrize("others", ["y", None])
def test_two_devices_are_their_union(others, rng, small_tiles):
    """Values and gradients; those in the leaves add up over devices."""
    small_tiles()
    n, m, d = 18, 18 if others is None else 14, 4
    x, y, weights, force, a, b = (
        jnp.asarray(rng.normal(size=s), jnp.float32)
        for s in ((n, d), (m, d), (m, 2), (m,), (n, 2), (n, d))
    )

    def outcome(kernel, x, y, weights, force, a, b, axis_name=None):
        def total(kernel, x, y, weights, force):
            values, gradients = pairwise.kernel_and_gradient_sum(
                kernel, x, None if others is None else y, weights, force, axis_name=axis_name
            )
            return jnp.sum(a * values) + jnp.sum(b * gradients), (values, gradients)

        (leaves, *points), sums = jax.grad(total, (0, 1, 2, 3, 4), has_aux=True)(
            kernel, x, y, weights, force
        )
        return leaves if axis_name is None else jax.lax.psum(leaves, axis_name), points, sums

    arguments = kernels.rational_quadratic([1.0, 2.0]), x, y, weights, force, a, b
    expected = quick_jit(outcome)(*arguments)
    leaves, points, sums = on_two_devices(outcome, *arguments)
    got = jax.tree.map(lambda t: t[0], leaves), joined(points), joined(sums)
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("features", [3, 20])
@pytest.mark.parametrize("others", ["y", None])
def test_feature_sums_of_two_devices_are_those_of_their_union(others, features, rng, small_tiles):
    """The features are centred by the mean over both; they are fewer than points, or more."""
    small_tiles()
    x, y, weights, force = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((18, 4), (18, 4), (18, 2), (18,))
    )

    def sums(kernel, x, y, weights, force, axis_name=None):
        y = None if others is None else y
        return pairwise.kernel_and_gradient_sum(kernel, x, y, weights, force, axis_name=axis_name)

    arguments = deep_kernel(rng, 4, features), x, y, weights, force
    got = joined(on_two_devices(sums, *arguments))
    chex.assert_trees_all_close(got, quick_jit(sums)(*arguments), rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------- feature maps


@pytest.mark.thorough
@pytest.mark.parametrize("features", [5, 9])
@pytest.mark.parametrize("others", ["y", None])
def test_feature_gradients_equal_the_jacobian_by_brute_force(others, features, rng, small_tiles):
    """w_j grad_{y_j} k(phi(x_i), phi(y_j)) for every pair, and the derivatives of their sum.

    With fewer features than points, and with more.
    """
    small_tiles(4, 3)

    def pair(kernel, x, y):
        step = kernel.features(x[None]) - kernel.features(y[None])
        return jnp.sum((1 + jnp.sum(step**2) / jnp.array([0.7, 2.0]) ** 2) ** -0.5)

    def brute(kernel, x, y, force):
        rows = jax.vmap(jax.grad(pair, argnums=2), (None, None, 0))
        gradients = jax.vmap(rows, (None, 0, None))(kernel, x, x if y is None else y)
        return jnp.einsum("ijk,j->ik", gradients, force)

    def with_derivatives(fn):
        def total(kernel, x, y, force):
            sums = fn(kernel, x, y, force)
            return jnp.sum(jnp.sin(sums) * project), sums

        which = (0, 1, 3) if others is None else (0, 1, 2, 3)
        return quick_jit(jax.grad(total, which, has_aux=True))

    with jax.enable_x64(True):
        kernel = deep_kernel(rng, 3, features, dtype=np.float64)
        x, y = jnp.asarray(rng.normal(size=(6, 3))), jnp.asarray(rng.normal(size=(7, 3)))
        project = rng.normal(size=(6, 3))
        force = jnp.asarray(rng.normal(size=6 if others is None else 7))
        arguments = kernel, x, None if others is None else y, force
        (expected, *expected_rest), sums = with_derivatives(brute)(*arguments)
        (got, *rest), engine = with_derivatives(pairwise.gradient_sum)(*arguments)
    np.testing.assert_allclose(engine, sums, rtol=1e-10, atol=1e-12)
    chex.assert_trees_all_close(got.params, expected.params, rtol=1e-9, atol=1e-10)
    chex.assert_trees_all_close(rest, expected_rest, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("features", "passes"), [(3, 3), (40, 6)])
def test_no_more_backward_passes_than_features_or_points(features, passes, rng):
    kernel = deep_kernel(rng, 3, features)
    x = jnp.zeros((6, 3))
    program = jax.make_jaxpr(functools.partial(pairwise.gradient_sum, kernel))(x, None).jaxpr
    choices = [one.params["branches"] for one in program.eqns if one.primitive.name == "cond"]
    if choices:  # the rare branch, of features far apart, has a pass a point
        (usual, _), *_ = choices
        program = usual.jaxpr
    loops = [one for one in program.eqns if one.primitive.name == "scan"]
    assert max(one.params["length"] for one in loops) == passes
    assert bool(choices) == (features < len(x))


@pytest.mark.parametrize("others", ["y", None])
def test_the_identity_as_feature_map_changes_nothing(others, rng):
    """Far from the origin too: the features are centred like the points."""
    x, y, weights, force = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((7, 5), (7, 5), (7, 2), (7,))
    )
    base = kernels.matern32([0.8, 2.0])
    identity = kernels.feature_kernel(base, lambda _, x: x, ())

    @quick_jit
    def both(x, y):
        y = None if others is None else y
        return tuple(
            pairwise.kernel_and_gradient_sum(kernel, x, y, weights, force)
            for kernel in (identity, base)
        )

    for offset in (0, 1e4):
        got, expected = both(x + offset, y + offset)
        chex.assert_trees_all_close(got, expected, atol=1e-5)


def test_feature_parameters_need_not_be_floating(rng, small_tiles):
    params = {"columns": jnp.arange(2), "scale": jnp.float32(2)}
    kernel = kernels.feature_kernel(
        kernels.rbf_mixture(1.0), lambda p, x: p["scale"] * x[:, p["columns"]], params
    )
    x = jnp.asarray(rng.normal(size=(9, 4)), jnp.float32)

    def total(kernel, x):
        return jnp.sum(pairwise.kernel_sum(kernel, x, None, x))

    gradient = jax.grad(total, argnums=(0, 1), allow_int=True)
    expected = quick_jit(gradient)(kernel, x)
    small_tiles(4, 3)
    got = quick_jit(gradient)(kernel, x)
    np.testing.assert_allclose(got[1], expected[1], atol=1e-5)
    np.testing.assert_allclose(got[0].params["scale"], expected[0].params["scale"], rtol=1e-5)


# ------------------------------------------------------------------------------ dtypes and errors


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_float32_inside(dtype, rng):
    x, y, weights, force = (
        jnp.asarray(rng.normal(size=s), dtype) for s in ((6, 4), (5, 4), (5, 2), (5,))
    )
    kernel = kernels.imq_mixture([0.7, 2.0])
    wide = tuple(t.astype(jnp.float32) for t in (x, y, weights, force))
    expected = quick_jit(pairwise.kernel_and_gradient_sum)(kernel, *wide)
    expected = jax.tree.map(lambda t: t.astype(dtype), expected)
    got = quick_jit(pairwise.kernel_and_gradient_sum)(kernel, x, y, weights, force)
    chex.assert_trees_all_equal(got, expected)
    chex.assert_trees_all_equal_dtypes(got, expected)
    widen = kernels.feature_kernel(kernel, lambda _, x: x.astype(jnp.float32), ())
    narrow = kernels.feature_kernel(kernel, lambda _, x: x.astype(dtype), ())
    for deep, arguments in ((widen, (x, y, weights, force)), (narrow, wide)):
        outputs = jax.eval_shape(pairwise.kernel_and_gradient_sum, deep, *arguments)
        assert {output.dtype for output in outputs} == {arguments[0].dtype}
    assert jax.eval_shape(pairwise.gradient_sum, kernel, x, y).dtype == dtype


def test_numpy_arrays_of_float64_are_taken_in_float32(rng):
    x, weights = rng.normal(size=(6, 4)), rng.normal(size=(6, 2))
    got = pairwise.kernel_sum(kernels.imq_mixture(1.0), x, None, weights)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, oracles.gram("imq_mixture", x, x, 1.0) @ weights, atol=1e-5)
    assert jax.eval_shape(pairwise.squared_distances, x, x[:2]).dtype == np.float32


def test_a_nan_in_one_point_is_seen_by_every_sum_over_it():
    x = np.array([[0, 1], [np.nan, 1], [2, 2]], np.float32)
    one = np.ones(3, np.float32)
    for sums in every_family(x, x, one[:1], one[:1], one[:, None], one, self_sum=True).values():
        assert all(np.all(np.isnan(of_family)) for of_family in sums)


X, W = np.zeros((3, 2), np.float32), np.zeros((3, 1), np.float32)
BAD_CALLS = {
    "x: got shape (3,); expected (n, d)": lambda k: pairwise.gradient_sum(k, X[:, 0], None),
    "x: got shape (); expected (n, d)": lambda k: pairwise.gradient_sum(k, X[0, 0], None),
    "x: got dtype int32; expected floating": lambda k: pairwise.gradient_sum(
        k, X.astype(np.int32), None
    ),
    "x: got shape (0, 2); expected (n, d)": lambda k: pairwise.kernel_sum(k, X[:0], None, W[:0]),
    "x: got shape (3, 0); expected (n, d)": lambda k: pairwise.squared_distances(X[:, :0]),
    "x: got shape (1, 3, 2); expected (n, d)": lambda k: pairwise.squared_distances(X[None]),
    "y: got shape (3, 1); expected (n, 2) like x": lambda k: pairwise.squared_distances(X, W),
    "y: got shape (2,); expected (n, d)": lambda k: pairwise.gradient_sum(k, X, X[0]),
    "y: got dtype int8; expected floating": lambda k: pairwise.squared_distances(
        X, X.astype(np.int8)
    ),
    "weights: got shape (3,); expected (3, p)": lambda k: pairwise.kernel_sum(k, X, None, W[:, 0]),
    "weights: got shape (3, 1); expected (2, p)": lambda k: pairwise.kernel_sum(k, X, X[:2], W),
    "weights: got dtype bool; expected floating": lambda k: pairwise.kernel_sum(k, X, None, W > 0),
    "weights: got shape (3, 1); expected (3)": lambda k: pairwise.gradient_sum(k, X, None, W),
    "gradient_weights: got shape (2,); expected (3)": lambda k: pairwise.kernel_and_gradient_sum(
        k, X, None, W, W[:2, 0]
    ),
}


@pytest.mark.parametrize("message", BAD_CALLS)
def test_errors_name_the_argument_what_was_got_and_what_was_expected(message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}[^\n]*$"):
        BAD_CALLS[message](kernels.rbf_mixture(1.0))
