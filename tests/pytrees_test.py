"""Particles as pytrees: what flat arrays give, in the form that the particles came in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kernelgrad import _checks, chains, kernels, ksd, score, svgd

KERNEL = kernels.imq_mixture(1.5)


def log_density(position):
    """N(0, 1) for a, and N(1, 4 I) for b."""
    return -0.5 * position["a"] ** 2 - jnp.sum((position["b"] - 1) ** 2) / 8


SCORE_FN = score.score_from_log_density(log_density)


@pytest.fixture
def particles(key):
    a, b = jax.random.normal(key, (12,)), jax.random.normal(jax.random.fold_in(key, 1), (12, 2, 2))
    return {"a": a, "b": 2 * b + 1}


def flat(tree):
    """By hand: a, then the four entries of b."""
    return jnp.concatenate([tree["a"][:, None], tree["b"].reshape(-1, 4)], axis=1)


def flat_score(x):
    return jnp.concatenate([-x[:, :1], (1 - x[:, 1:]) / 4], axis=1)


def assert_trees_match(got, expected, **tolerance):
    assert got["a"].shape == (len(expected),)
    assert got["b"].shape == (len(expected), 2, 2)
    np.testing.assert_allclose(flat(got), expected, **(tolerance or {"rtol": 1e-6}))


def test_the_score_of_a_log_density_has_the_form_of_the_points(particles):
    assert_trees_match(SCORE_FN(particles), flat_score(flat(particles)))


@pytest.mark.parametrize(
    "fn",
    [
        ksd.stein_gram,
        ksd.ksd_v_statistic,
        ksd.ksd_u_statistic,
        functools.partial(ksd.stein_thinning, num_points=5),
        functools.partial(ksd.goodness_of_fit_test, jax.random.key(3), num_bootstrap=19),
    ],
    ids=["gram", "v", "u", "thinning", "test"],
)
def test_statistics_are_those_of_raveled_particles(particles, fn):
    x = flat(particles)
    expected = fn(x, flat_score(x), kernel=KERNEL)
    got = jax.jit(functools.partial(fn, kernel=KERNEL))(particles, SCORE_FN(particles))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


def test_directions_come_in_the_form_of_the_particles(particles, key):
    x = flat(particles)
    s = flat_score(x)
    got = svgd.svgd_direction(particles, SCORE_FN(particles), KERNEL)
    assert_trees_match(got, svgd.svgd_direction(x, s, KERNEL))
    got = ksd.ksd_gradient(particles, SCORE_FN, KERNEL)
    assert_trees_match(got, ksd.ksd_gradient(x, flat_score, KERNEL), rtol=1e-4, atol=1e-7)
    assert_trees_match(svgd.kernel_noise(key, particles, KERNEL), svgd.kernel_noise(key, x, KERNEL))


def test_steps_move_trees_as_they_move_arrays(particles):
    sgd = optax.sgd(0.1, momentum=0.9)
    trees, arrays = svgd.init(particles, sgd), svgd.init(flat(particles), sgd)
    kernel_of = lambda p: kernels.rbf_mixture(kernels.svgd_lengthscale(p))  # noqa: E731
    step = jax.jit(lambda s, fn, p: svgd.step(s, fn, kernel_of(p), sgd), static_argnums=1)
    for _ in range(3):
        trees, info = step(trees, SCORE_FN, trees.particles)
        arrays, expected = step(arrays, flat_score, arrays.particles)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), info, expected)
    assert_trees_match(trees.particles, arrays.particles, rtol=1e-4, atol=1e-5)


def test_lengthscales_and_mixtures_see_raveled_points(particles):
    x = flat(particles)
    half = jax.tree.map(lambda leaf: leaf[:5], particles)
    np.testing.assert_allclose(
        kernels.median_lengthscale(particles, half), kernels.median_lengthscale(x, x[:5])
    )
    mixture = functools.partial(kernels.median_mixture, kernels.rbf_mixture)
    np.testing.assert_allclose(mixture(particles).lengthscales, mixture(x).lengthscales)


def test_an_array_costs_nothing_more():
    x = jnp.ones((6, 3))
    assert _checks.raveled(x=x)[0] is x
    assert _checks.like_points(x, x) is x


def test_numpy_leaves_of_any_byte_order_are_taken(particles):
    strange = jax.tree.map(lambda leaf: np.asarray(leaf).astype(">f4"), particles)
    expected = svgd.svgd_direction(particles, SCORE_FN(particles), KERNEL)
    assert_trees_match(svgd.svgd_direction(strange, SCORE_FN(strange), KERNEL), flat(expected))


@pytest.mark.parametrize("points", [jnp.ones((2, 2), int), [1.0], None, {"a": jnp.zeros(())}])
def test_scores_are_of_points_alone(points):
    with pytest.raises(ValueError, match=r"\Apoints[^\n]*: got [^\n]*; expected [^\n]*\Z"):
        score.score_from_log_density(lambda x: 0.0)(points)


def test_dtypes_of_leaves_are_kept(particles):
    mixed = {"a": particles["a"].astype(jnp.bfloat16), "b": particles["b"]}
    got = svgd.svgd_direction(mixed, jax.tree.map(jnp.negative, mixed), KERNEL)
    assert {name: leaf.dtype for name, leaf in got.items()} == {"a": jnp.bfloat16, "b": jnp.float32}


@pytest.mark.parametrize(
    ("particles", "scores", "message"),
    [
        ({"a": jnp.zeros(3), "b": jnp.zeros((4, 2))}, None, r"\['b'\]: got shape \(4, 2\)"),
        ({"a": jnp.zeros(3, int)}, None, r"\['a'\]: got dtype int32"),
        ({"a": jnp.zeros(())}, None, r"\['a'\]: got shape \(\)"),
        ({"a": jnp.zeros(3)}, {"b": jnp.zeros(3)}, "score: got PyTreeDef.*'b'"),
        ({"a": jnp.zeros(3)}, {"a": jnp.zeros((3, 2))}, r"score: got shape \(3, 2\)"),
        ([jnp.zeros(3), jnp.zeros(3)], None, "particles: got list; expected a JAX or NumPy array"),
        ({"a": 1.0}, None, "particles: got dict; expected a JAX or NumPy array"),
    ],
)
def test_what_is_no_tree_of_points_is_refused_in_one_line(particles, scores, message):
    with pytest.raises(ValueError, match=message) as error:
        ksd.ksd_v_statistic(particles, particles if scores is None else scores, KERNEL)
    assert "\n" not in str(error.value)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("chain_axis", [None, 0, 1])
def test_chains_are_thinned_like_their_raveled_draws(key, chain_axis):
    draws = jax.random.normal(key, (2, 30, 5)) * 1.5
    tree = {"a": draws[..., 0], "b": draws[..., 1:].reshape(2, 30, 2, 2)}
    x = flat(jax.tree.map(lambda leaf: leaf.reshape(60, *leaf.shape[2:]), tree))
    given = tree
    if chain_axis is None:
        given = jax.tree.map(lambda leaf: leaf.reshape(60, *leaf.shape[2:]), tree)
    elif chain_axis == 1:
        given = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), tree)
    expected = ksd.stein_thinning(x, flat_score(x), KERNEL, num_points=7)
    got = chains.stein_thinning(given, log_density, KERNEL, num_points=7, chain_axis=chain_axis)
    length = 60 if chain_axis is None else 30
    np.testing.assert_array_equal(got.chains * length + got.draws, expected)
    assert_trees_match(got.positions, x[expected])
