"""SVGD: loop oracles, fixed points in closed form, symmetries, variants, optimizers, devices."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from jax.sharding import Mesh, PartitionSpec

from kernelgrad import kernels, score, svgd

FAMILIES = {
    "rbf_mixture": kernels.rbf_mixture,
    "imq_mixture": kernels.imq_mixture,
    "matern32": kernels.matern32,
    "laplace": kernels.laplace,
}
LENGTHSCALES = (0.7, 1.5)


def _lenient(optimizer):
    """Optax promotes dtypes in its own code, which the strict mode of these tests forbids."""

    def update(*args):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(*args)

    return optax.GradientTransformation(optimizer.init, update)


OPTIMIZERS = {
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adagrad": _lenient(optax.adagrad(0.5)),
    "adam": _lenient(optax.adam(0.05)),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.3)),
}
ADAM = _lenient(optax.adam(0.1))

compiled_direction = jax.jit(svgd.svgd_direction)


def _particles(rng, n=9, d=3):
    return rng.normal(size=(n, d)), rng.normal(size=(n, d))


def _loops(particles, scores, kernel, gradient):
    """Eq. (7): the mean over j of s_j k(x_j, x_i) + grad_{x_j} k(x_j, x_i)."""
    return np.array(
        [
            np.mean(
                [
                    s * kernel(y, x) + gradient(x, y)  # gradient in its second argument, y = x_j
                    for y, s in zip(particles, scores, strict=True)
                ],
                axis=0,
            )
            for x in particles
        ]
    )


def _radial_loops(family, particles, scores, lengthscales=LENGTHSCALES):
    return _loops(
        particles,
        scores,
        lambda a, b: oracles.kernel(family, a, b, lengthscales),
        lambda a, b: oracles.kernel_gradient(family, a, b, lengthscales),
    )


def _gaussian_score(mean, precision):
    return lambda x: -(x - mean[None]) @ precision


def _run(score_fn, kernel, optimizer, particles, num_steps):
    """Scans the step; returns the last state and all infos."""

    def body(state, _):
        return svgd.step(state, score_fn, kernel, optimizer)

    state = svgd.init(particles, optimizer)
    return jax.jit(lambda s: jax.lax.scan(body, s, length=num_steps))(state)


# ------------------------------------------------------------------------------- the direction


@pytest.mark.parametrize("family", FAMILIES)
def test_direction_matches_the_loops(rng, family):
    particles, scores = _particles(rng)
    with jax.enable_x64(True):
        kernel = FAMILIES[family](jnp.array(LENGTHSCALES))
        direction = compiled_direction(jnp.asarray(particles), jnp.asarray(scores), kernel)
    np.testing.assert_allclose(direction, _radial_loops(family, particles, scores), atol=1e-12)


def test_feature_kernels_repel_through_the_feature_at_x_j(rng):
    """With features the gradient at x_j is not minus the one at x_i."""
    particles, scores = _particles(rng, n=5, d=2)
    matrix = rng.normal(size=(2, 4))

    def features(x):
        return np.tanh(x @ matrix)

    def k(a, b):
        return math.exp(-np.sum((features(a) - features(b)) ** 2) / (2 * 0.8**2))

    def gradient(x, y):
        jacobian = (1 - features(y) ** 2)[:, None] * matrix.T
        return jacobian.T @ (features(x) - features(y)) / 0.8**2 * k(x, y)

    with jax.enable_x64(True):
        kernel = kernels.feature_kernel(
            kernels.rbf_mixture(0.8), lambda w, x: jnp.tanh(x @ w), jnp.asarray(matrix)
        )
        direction = compiled_direction(jnp.asarray(particles), jnp.asarray(scores), kernel)
    np.testing.assert_allclose(
        direction, _loops(particles, scores, k, gradient), rtol=1e-10, atol=1e-12
    )


@pytest.mark.thorough
def test_direction_smooths_the_difference_of_scores(rng):
    """Phi = [K S - (K + eta I) G] / n with the Stein estimate G: eq. (12) on particles."""
    particles, scores = _particles(rng, n=30, d=2)
    with jax.enable_x64(True):
        x, s = jnp.asarray(particles), jnp.asarray(scores)
        kernel = kernels.imq_mixture(jnp.array(LENGTHSCALES))
        own = score.stein_score(x, kernel, ridge=0.3)
        gram = kernels.gram(kernel, x)
        smoothed = (gram @ s - (gram + 0.3 * jnp.eye(30)) @ own) / 30
        direction = compiled_direction(x, s, kernel)
    np.testing.assert_allclose(direction, smoothed, atol=1e-10)


@pytest.mark.parametrize("weights", [None, (0.5, 2.0)])
def test_one_particle_ascends_the_log_density(rng, weights):
    x, s = _particles(rng, n=1)
    kernel = kernels.rbf_mixture(LENGTHSCALES, weights)
    direction = compiled_direction(jnp.float32(x), jnp.float32(s), kernel)
    np.testing.assert_allclose(direction, (2 if weights is None else 2.5) * s, rtol=1e-6)


def test_orthogonal_maps_shifts_and_permutations_commute_with_the_direction(rng):
    particles, scores = _particles(rng, n=20)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    order = rng.permutation(20)
    kernel = kernels.imq_mixture(LENGTHSCALES)
    base = compiled_direction(jnp.float32(particles), jnp.float32(scores), kernel)
    turned = compiled_direction(
        jnp.float32(particles @ rotation + 7), jnp.float32(scores @ rotation), kernel
    )
    np.testing.assert_allclose(turned, base @ jnp.float32(rotation), atol=1e-5)
    shuffled = compiled_direction(jnp.float32(particles[order]), jnp.float32(scores[order]), kernel)
    np.testing.assert_allclose(shuffled, base[order], atol=1e-6)


def test_stein_identity(rng):
    """Around a probe without a score of its own, each draw of p adds a term of mean zero."""
    repeats, n = 2000, 20
    probe = np.array([0.8, -0.3])
    draws = rng.normal((0.5, 0.0), 0.7, size=(repeats, n, 2))
    particles = np.concatenate([np.broadcast_to(probe, (repeats, 1, 2)), draws], axis=1)
    scores = -(particles - np.array([0.5, 0.0])) / 0.7**2
    scores[:, 0] = 0
    kernel = kernels.imq_mixture(1.0)
    many = jax.jit(jax.vmap(svgd.svgd_direction, (0, 0, None)))
    felt = np.asarray(many(jnp.float32(particles), jnp.float32(scores), kernel), np.float64)[:, 0]
    z = felt.mean(axis=0) / (felt.std(axis=0) / math.sqrt(repeats))
    assert np.all(np.abs(z) < 5)


@pytest.mark.thorough
def test_the_rate_at_which_kl_falls_is_the_squared_ksd():
    """For p = N(0, 1), q = N(1, 1) and lengthscale 1: KSD^2 = 1 / sqrt(3)."""
    n, mean = 1500, 1.0
    normal = np.array([_normal_quantile((i + 0.5) / n) for i in range(n)])
    x = normal + mean
    with jax.enable_x64(True):
        field = compiled_direction(
            jnp.asarray(x)[:, None], -jnp.asarray(x)[:, None], kernels.rbf_mixture(1.0)
        )
    field = np.asarray(field)[:, 0]
    slope = np.gradient(field, x)

    def kl(epsilon):  # of x + epsilon phi(x) from p, up to the constant E log q
        return np.mean((x + epsilon * field) ** 2 / 2 - np.log1p(epsilon * slope))

    rate = -(kl(1e-4) - kl(-1e-4)) / 2e-4
    np.testing.assert_allclose(rate, 1 / math.sqrt(3), rtol=5e-3)


def _normal_quantile(level):
    low, high = -8.0, 8.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 * math.erfc(-middle / 2**0.5) < level else (low, middle)
    return (low + high) / 2


# -------------------------------------------------------------------------------- fixed points


def test_two_particles_settle_where_the_paper_formula_says():
    """For N(0, 1) and lengthscale h: a^2 = (h^2 / 2) log(1 + 2 / h^2)."""
    for h in (1.0, 0.6):
        with jax.enable_x64(True):
            state, info = _run(
                lambda x: -x,
                kernels.rbf_mixture(h),
                optax.sgd(0.5),
                jnp.array([[0.3], [1.7]]),
                400,
            )
            particles = np.sort(np.asarray(state.particles)[:, 0])
        a = h * math.sqrt(math.log1p(2 / h**2) / 2)
        np.testing.assert_allclose(particles, [-a, a], atol=1e-9)
        rms = np.asarray(info.direction_rms)
        assert rms[-1] < 1e-9 < rms[0]
        if h == 1.0:
            np.testing.assert_allclose(a, 0.741152, atol=1e-6)


@jax.tree_util.register_pytree_node_class
class Quadratic:
    """k = c - |x - y|^2 / 2: x^T y up to terms in one argument."""

    def profile(self, sq_dist):
        return 20.0 - sq_dist / 2

    def tree_flatten(self):
        return (), None

    @classmethod
    def tree_unflatten(cls, aux, leaves):
        del aux, leaves
        return cls()


def test_second_moments_of_symmetric_particles_become_exact(rng):
    """On a set symmetric about the mean the field of c - r^2 / 2 is that of 1 + x^T y.

    The affine kernel, whose fixed points have the exact mean and covariance, is not radial itself.
    """
    mean = np.array([1.0, -2.0])
    covariance = np.array([[2.0, 0.6], [0.6, 1.0]])
    half = rng.normal(size=(5, 2))
    start = mean + np.concatenate([half, -half])
    with jax.enable_x64(True):
        score_fn = _gaussian_score(jnp.asarray(mean), jnp.asarray(np.linalg.inv(covariance)))
        state, _ = _run(score_fn, Quadratic(), optax.sgd(0.02), jnp.asarray(start), 1500)
    particles = np.asarray(state.particles)
    np.testing.assert_allclose(particles.mean(axis=0), mean, atol=1e-9)
    np.testing.assert_allclose(np.cov(particles.T, bias=True), covariance, atol=1e-9)


def test_particles_find_the_mean_of_the_reference_example(rng):
    mean = jnp.float32([-0.6871, 0.8010])
    precision = jnp.float32([[0.2260, 0.1652], [0.1652, 0.6779]])
    optimizer = _lenient(optax.rmsprop(0.01, decay=0.9, eps=1e-6, eps_in_sqrt=False))
    score_fn = _gaussian_score(mean, precision)

    def body(state, _):
        kernel = kernels.rbf_mixture(kernels.svgd_lengthscale(state.particles))
        return svgd.step(state, score_fn, kernel, optimizer)

    state = svgd.init(jnp.float32(rng.normal(size=(10, 2))), optimizer)
    state, info = jax.jit(lambda s: jax.lax.scan(body, s, length=1000))(state)
    np.testing.assert_allclose(state.particles.mean(axis=0), mean, atol=0.03)
    assert np.all(np.asarray(info.finite))


@pytest.mark.thorough(quick=3)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_raises_the_fit(rng, name):
    mean = jnp.float32([2.0, -1.0])
    start = jnp.float32(rng.normal(size=(40, 2)))
    state, _ = _run(
        _gaussian_score(mean, jnp.eye(2)), kernels.rbf_mixture(1.0), OPTIMIZERS[name], start, 400
    )
    np.testing.assert_allclose(state.particles.mean(axis=0), mean, atol=0.05)
    variance = np.var(np.asarray(state.particles), axis=0)
    assert np.all((variance > 0.6) & (variance < 1.2))


def test_a_step_is_the_optimizer_on_the_negated_direction(rng):
    particles, scores = (jnp.float32(a) for a in _particles(rng))
    kernel = kernels.rbf_mixture(LENGTHSCALES)
    state = svgd.init(particles, optax.sgd(0.25))
    moved, info = svgd.step(state, lambda x: scores, kernel, optax.sgd(0.25))
    expected = _radial_loops("rbf_mixture", np.asarray(particles), np.asarray(scores))
    np.testing.assert_allclose(moved.particles, particles + 0.25 * expected, atol=1e-6)
    rms = math.sqrt(np.mean(np.sum(expected**2, axis=1)))
    np.testing.assert_allclose(info.direction_rms, rms, rtol=1e-5)
    assert info.finite


# ------------------------------------------------------------------------------------ variants


@pytest.mark.thorough
def test_minibatch_scores_reach_the_full_posterior(key, rng):
    """Means of 200 observations with unit variance, flat prior: N(mean, 1 / 200)."""
    data = jnp.float32(rng.normal(1.5, 1.0, size=(200, 1)))
    optimizer = _lenient(optax.adam(optax.cosine_decay_schedule(0.05, 600)))
    kernel = kernels.rbf_mixture(0.05)

    def body(state, key):
        batch = jax.random.choice(key, data, (20,), replace=False)

        def score_fn(x):
            return 200 * (jnp.mean(batch, axis=0, keepdims=True) - x)

        return svgd.step(state, score_fn, kernel, optimizer)

    state = svgd.init(jnp.float32(rng.normal(size=(30, 1))), optimizer)
    state, _ = jax.lax.scan(body, state, jax.random.split(key, 600))
    scale = 1 / math.sqrt(200)
    assert abs(state.particles.mean() - data.mean()) < 0.5 * scale
    assert 0.7 * scale < state.particles.std() < 1.3 * scale


def test_annealed_scores_leave_the_repulsion_unscaled(rng):
    particles, scores = _particles(rng)
    with jax.enable_x64(True):
        x, s = jnp.asarray(particles), jnp.asarray(scores)
        kernel = kernels.rbf_mixture(1.0)

        def annealed(gamma):
            return np.asarray(compiled_direction(x, gamma * s, kernel))

        parts = [annealed(gamma) for gamma in (0.0, 0.25, 1.0)]
    repulsion = oracles.gradient_sum("rbf_mixture", particles, particles, 1.0) / 9
    np.testing.assert_allclose(parts[0], repulsion, atol=1e-12)
    np.testing.assert_allclose(parts[1], 0.75 * parts[0] + 0.25 * parts[2], atol=1e-12)


@pytest.mark.thorough
def test_annealing_by_the_optimizer_count_spreads_over_two_modes(rng):
    """From one mode's side, weak scores first let the particles cross over."""

    def score_fn(x):
        return jax.grad(lambda x: jnp.sum(jnp.logaddexp(-((x - 4) ** 2) / 2, -((x + 4) ** 2) / 2)))(
            x
        )

    start = jnp.float32(rng.normal(4.0, 0.5, size=(30, 1)))
    optimizer = _lenient(optax.adagrad(0.3))
    gammas = jnp.tanh((2 * jnp.arange(1500) / 1500) ** 5)

    def body(annealed, state, gamma):
        gamma = gamma if annealed else 1.0
        return svgd.step(state, lambda x: gamma * score_fn(x), kernels.rbf_mixture(2.0), optimizer)

    shares = []
    for annealed in (False, True):
        state, _ = jax.lax.scan(
            functools.partial(body, annealed), svgd.init(start, optimizer), gammas
        )
        shares.append(float(jnp.mean(state.particles < 0)))
    assert shares[0] == 0
    assert 0.15 < shares[1] < 0.85


def test_noise_has_the_covariance_of_the_kernel(key):
    x = jnp.float32([[0.0, 0.0], [0.4, 0.1], [2.0, -1.0], [2.0, -1.0]])  # the last two coincide
    kernel = kernels.imq_mixture(1.0, weights=3.0)
    repeats = 40000
    draw = jax.jit(jax.vmap(lambda k: svgd.kernel_noise(k, x, kernel)))
    noise = np.asarray(draw(jax.random.split(key, repeats)), np.float64)
    gram = 3 * oracles.gram("imq_mixture", np.asarray(x), np.asarray(x), 1.0)
    expected = np.kron(gram, np.eye(2))  # rows by particle, then coordinate
    flat = noise.reshape(repeats, 8)
    covariance = flat.T @ flat / repeats
    variances = np.diagonal(expected)
    error = np.sqrt((np.outer(variances, variances) + expected**2) / repeats)
    assert np.all(np.abs(covariance - expected) < 5 * error)
    assert np.all(np.abs(flat.mean(axis=0)) < 5 * np.sqrt(variances / repeats))
    np.testing.assert_allclose(noise[:, 2], noise[:, 3], atol=0.05)


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("lengthscale", [0.01, 1.0, 1000.0])
def test_noise_is_finite_where_the_gram_is_singular(key, rng, lengthscale):
    x = np.repeat(rng.normal(size=(100, 2)), 5, axis=0)
    noise = svgd.kernel_noise(key, jnp.float32(x), kernels.rbf_mixture(lengthscale))
    assert np.all(np.isfinite(noise))


@pytest.mark.thorough
def test_stochastic_svgd_samples_without_the_bias_of_few_particles(key):
    """Two particles, which SVGD leaves at +-.741, become independent draws up to O(epsilon)."""
    chains, epsilon, kernel = 500, 0.05, kernels.rbf_mixture(1.0)

    def move(x, key):
        noise = svgd.kernel_noise(key, x, kernel)
        drift = compiled_direction(x, -x, kernel)
        x = x + epsilon * drift + jnp.sqrt(2 * epsilon / 2) * noise
        return x, x

    def chain(key):
        start_key, key = jax.random.split(key)
        start = jax.random.normal(start_key, (2, 1))
        return jax.lax.scan(move, start, jax.random.split(key, 1500))[1][300::10, :, 0]

    draws = np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(key, chains)), np.float64)
    squares = (draws**2).mean(axis=(1, 2))
    products = draws.prod(axis=2).mean(axis=1)
    assert abs(squares.mean() - 1) < 0.03 + 5 * squares.std() / math.sqrt(chains)
    assert abs(products.mean()) < epsilon + 5 * products.std() / math.sqrt(chains)


@pytest.mark.thorough
def test_a_matrix_kernel_is_a_change_of_variables(rng):
    particles, scores = _particles(rng, n=7, d=2)
    q = np.array([[2.0, 0.7], [0.7, 1.0]])
    values, vectors = np.linalg.eigh(q)
    root = vectors * np.sqrt(values) @ vectors.T
    inverse = np.linalg.inv(q)

    def k(a, b):
        return math.exp(-(a - b) @ q @ (a - b) / 2)

    expected = np.array(
        [
            np.mean(
                [
                    inverse @ s * k(y, x) + inverse @ (k(y, x) * q @ (x - y))  # div of Q^-1 k_Q
                    for y, s in zip(particles, scores, strict=True)
                ],
                axis=0,
            )
            for x in particles
        ]
    )
    with jax.enable_x64(True):
        x, s, kernel = jnp.asarray(particles), jnp.asarray(scores), kernels.rbf_mixture(1.0)
        solve = functools.partial(jnp.linalg.solve, jnp.asarray(root))
        direction = solve(svgd.svgd_direction(x @ root, solve(s.T).T, kernel).T).T
    np.testing.assert_allclose(direction, expected, atol=1e-12)


# ---------------------------------------------------------------------------------- transforms


def test_jit_vmap_and_scan_agree_with_plain_calls(rng):
    kernel = kernels.imq_mixture(LENGTHSCALES)
    batch = [_particles(rng) for _ in range(3)]
    x, s = (jnp.float32(np.stack(parts)) for parts in zip(*batch, strict=True))
    eager = np.stack([svgd.svgd_direction(a, b, kernel) for a, b in zip(x, s, strict=True)])
    jitted = np.stack(
        [jax.jit(svgd.svgd_direction)(a, b, kernel) for a, b in zip(x, s, strict=True)]
    )
    np.testing.assert_allclose(jitted, eager, atol=1e-6)
    mapped = jax.jit(jax.vmap(svgd.svgd_direction, (0, 0, None)))(x, s, kernel)
    np.testing.assert_allclose(mapped, eager, atol=1e-6)
    assert jitted.dtype == np.float32


def test_one_compilation_a_shape(rng):
    optimizer = ADAM

    @jax.jit
    @chex.assert_max_traces(n=2)
    def step(state, lengthscale, gamma):
        kernel = kernels.rbf_mixture(lengthscale)
        return svgd.step(state, lambda x: -gamma * x, kernel, optimizer)

    for n in (6, 8):
        state = svgd.init(jnp.float32(rng.normal(size=(n, 2))), optimizer)
        for lengthscale in (0.5, 1.0, 2.0):
            state, _ = step(state, lengthscale, 0.1 * lengthscale)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    ("kind", "spread"), [("radial", "pmap"), ("feature", "pmap"), ("radial", "shard_map")]
)
def test_two_devices_are_one(rng, kind, spread):
    particles, _ = _particles(rng, n=24)
    kernel = kernels.imq_mixture(LENGTHSCALES)
    if kind == "feature":
        matrix = jnp.float32(rng.normal(size=(3, 2)))
        kernel = kernels.feature_kernel(kernel, lambda w, x: jnp.tanh(x @ w), matrix)
    optimizer = ADAM

    def run(particles, axis_name=None):
        state = svgd.init(particles, optimizer)
        for _ in range(2):
            state, info = svgd.step(
                state, lambda x: -(x**3), kernel, optimizer, axis_name=axis_name
            )
        return state.particles, info

    particles = jnp.float32(particles)
    alone, alone_info = jax.jit(run)(particles)
    if spread == "pmap":
        mapped = jax.pmap(functools.partial(run, axis_name="i"), axis_name="i")
        together, info = mapped(particles.reshape(2, 12, 3))
    else:
        mesh = Mesh(np.asarray(jax.devices()[:2]), ("i",))
        mapped = jax.shard_map(
            functools.partial(run, axis_name="i"),
            mesh=mesh,
            in_specs=PartitionSpec("i"),
            out_specs=(PartitionSpec("i"), PartitionSpec()),
        )
        together, info = jax.jit(mapped)(particles)
    np.testing.assert_allclose(together.reshape(24, 3), alone, atol=1e-5)
    np.testing.assert_allclose(
        info.direction_rms,
        np.full(np.shape(info.direction_rms), alone_info.direction_rms),
        rtol=1e-5,
    )
    assert np.all(info.finite)


# -------------------------------------------------------------------------------------- errors


def test_what_is_not_finite_is_flagged_and_never_silent(rng):
    optimizer = ADAM
    kernel = kernels.rbf_mixture(1.0)
    start = jnp.float32(rng.normal(size=(2, 4, 3)))

    def run(particles, bad, axis_name=None):
        state = svgd.init(particles, optimizer)
        state, info = svgd.step(state, lambda x: x / bad, kernel, optimizer, axis_name=axis_name)
        return info.finite

    assert jax.jit(run)(start[0], 1.0)
    assert not jax.jit(run)(start[0], 0.0)
    spread = jax.pmap(functools.partial(run, axis_name="i"), axis_name="i")
    assert not np.any(spread(start, jnp.float32([1.0, 0.0])))
    assert np.all(spread(start, jnp.float32([1.0, 1.0])))


def test_an_optimizer_that_hides_them_does_not_hide_the_flag(rng):
    optimizer = optax.chain(optax.zero_nans(), optax.sgd(0.1))
    state = svgd.init(jnp.float32(rng.normal(size=(4, 2))), optimizer)
    state, info = svgd.step(state, lambda x: x * jnp.nan, kernels.rbf_mixture(1.0), optimizer)
    assert np.all(np.isfinite(state.particles))
    assert not info.finite


def test_bad_arguments_are_named(rng):
    kernel, optimizer = kernels.rbf_mixture(1.0), optax.sgd(0.1)
    x = jnp.float32(rng.normal(size=(5, 2)))
    with pytest.raises(ValueError, match=r"score: got shape \(4, 2\); expected \(5, 2\)"):
        svgd.svgd_direction(x, x[:4], kernel)
    with pytest.raises(ValueError, match=r"score: got shape \(\); expected \(5, 2\)"):
        svgd.step(svgd.init(x, optimizer), lambda x: jnp.sum(x), kernel, optimizer)
    with pytest.raises(ValueError, match=r"score: got dtype int32; expected floating"):
        svgd.svgd_direction(x, x.astype(jnp.int32), kernel)
    with pytest.raises(ValueError, match=r"particles: got shape \(5,\); expected \(n, d\)"):
        svgd.svgd_direction(x[:, 0], x[:, 0], kernel)
    with pytest.raises(ValueError, match=r"particles: got shape \(0, 2\)"):
        svgd.init(x[:0], optimizer)
    with pytest.raises(ValueError, match=r"particles: got shape \(5,\)"):
        svgd.kernel_noise(jax.random.key(0), x[:, 0], kernel)


def test_particles_that_are_not_finite_are_counted(rng):
    x = rng.normal(size=(5, 2)).astype(np.float32)
    x[3, 1], x[4, 0] = np.nan, -np.inf
    message = r"particles: got 2 non-finite entries, the first at index \(3, 1\); expected finite"
    for particles in (x, jnp.asarray(x), jnp.asarray(x, jnp.bfloat16)):
        with pytest.raises(ValueError, match=message):
            svgd.init(particles, ADAM)
    with pytest.raises(ValueError, match=r"got 1 non-finite entries, the first at index \(4, 0\)"):
        svgd.init(np.nan_to_num(x, neginf=-np.inf), ADAM)
    jax.jit(lambda x: svgd.init(x, ADAM))(x)


def test_one_particle_has_no_median(rng):
    with pytest.raises(ValueError, match=r"2"):
        kernels.svgd_lengthscale(jnp.float32(rng.normal(size=(1, 2))))


def test_low_precision_particles_keep_their_dtype(rng):
    particles, scores = (jnp.asarray(a, jnp.bfloat16) for a in _particles(rng))
    direction = svgd.svgd_direction(particles, scores, kernels.rbf_mixture(1.0))
    exact = _radial_loops(
        "rbf_mixture", np.asarray(particles, np.float64), np.asarray(scores, np.float64), (1.0,)
    )
    assert direction.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(direction, np.float64), exact, atol=0.01)


@pytest.mark.thorough
def test_sums_of_many_halves_do_not_overflow():
    """The sum over particles exceeds what float16 holds, their mean does not."""
    particles = jnp.linspace(0, 1, 200, dtype=jnp.float16)[:, None]
    score = jnp.full_like(particles, 600)
    kernel = kernels.rbf_mixture(100.0)
    got = svgd.svgd_direction(particles, score, kernel)
    wide = svgd.svgd_direction(*(a.astype(jnp.float32) for a in (particles, score)), kernel)
    assert got.dtype == jnp.float16
    np.testing.assert_array_equal(got, wide.astype(jnp.float16))
