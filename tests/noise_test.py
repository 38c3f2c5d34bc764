"""Noise, and the optimal discriminator of noised clouds: theorem, autodiff, far points."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import memory
import numpy as np
import pytest
import scipy.stats

from kernelgrad import _distances, adversarial, noise

# --------------------------------------------------------------------------------- instance noise


@pytest.mark.parametrize("name", ["instance_noise", "bounded_noise"])
def test_noise_has_its_mean_and_variance(key, rng, name):
    size, variance = 20_000, 0.49
    (x,) = _f32(rng.normal(size=(size, 2)))
    added = np.asarray(getattr(noise, name)(key, x, variance=variance) - x, np.float64)
    half_width = math.sqrt(3 * variance)
    law = {
        "instance_noise": scipy.stats.norm(0, math.sqrt(variance)),
        "bounded_noise": scipy.stats.uniform(-half_width, 2 * half_width),
    }[name]
    for column in added.T:
        assert scipy.stats.kstest(column, law.cdf).statistic * math.sqrt(size) < 2.5
    assert abs(np.mean(added[:, 0] * added[:, 1])) < 5 * variance / math.sqrt(size)
    if name == "bounded_noise":
        assert np.abs(added).max() <= half_width + 1e-6


@pytest.mark.thorough
@pytest.mark.parametrize("noise", [noise.instance_noise, noise.bounded_noise])
def test_annealed_noise_is_gone(key, noise):
    images = jnp.ones((2, 4, 4, 1), jnp.bfloat16)
    annealed = jax.jit(noise)(key, images, variance=0.0)
    assert annealed.dtype == images.dtype
    np.testing.assert_array_equal(annealed, images)
    slope = jax.grad(lambda v: jnp.sum(noise(key, images.astype(jnp.float32), variance=v)))(0.0)
    assert slope == 0  # of a root, infinite to either side


# ------------------------------------------------------- the optimal discriminator of noised clouds

noisy_logits = jax.jit(noise.noisy_logits)
noisy_logits_and_gradient = jax.jit(noise.noisy_logits_and_gradient)
noisy_jsd_direction = jax.jit(noise.noisy_jsd_direction)


def _clouds(rng, d, *, q=6, m=7, n=5):
    return rng.normal(size=(q, d)), rng.normal(0.5, 1.2, size=(m, d)), rng.normal(size=(n, d))


def _theorem(points, real, fake, variance):
    """log D* / (1 - D*) and the bracket of Theorem 3.2, printed term by term."""
    logits, directions = [], []
    for x in points:
        d = len(x)

        def noise(v, d=d):
            return math.exp(-(v @ v) / (2 * variance)) / (2 * math.pi * variance) ** (d / 2)

        p_real = sum(noise(x - y) for y in real) / len(real)
        p_fake = sum(noise(x - y) for y in fake) / len(fake)
        a = 1 / (2 * variance) / (p_real + p_fake)
        b = a * p_real / p_fake
        towards = sum(noise(x - y) * 2 * (x - y) for y in real) / len(real)
        away = sum(noise(x - y) * 2 * (x - y) for y in fake) / len(fake)
        logits.append(math.log(p_real / p_fake))
        directions.append(a * towards - b * away)
    return np.array(logits), np.array(directions)


def _optimal_discriminator(x, real, fake, variance):
    p_real, p_fake = (
        jnp.mean(jnp.exp(-jnp.sum(jnp.square(x[None] - cloud), axis=1) / (2 * variance)))
        for cloud in (real, fake)
    )
    return p_real / (p_real + p_fake)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("d", [2, 5])
def test_noised_clouds_follow_the_theorem(rng, d, dtype):
    points, real, fake = _clouds(rng, d, q=5)
    tolerance = 1e-10 if dtype is np.float64 else 2e-5
    for x in (points, fake):
        logits, directions = _theorem(x, real, fake, 0.6)
        with jax.enable_x64(dtype is np.float64):
            arrays = [jnp.asarray(a, dtype) for a in (x, real, fake)]
            got = noisy_logits(*arrays, variance=0.6)
            direction = noisy_jsd_direction(*arrays, variance=0.6)
        assert got.dtype == direction.dtype == dtype
        np.testing.assert_allclose(got, logits, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(direction, directions, rtol=tolerance, atol=tolerance)


def test_direction_is_autodiff_through_the_explicit_discriminator(rng):
    """Golden G12, pulled back to the parameters of a generator with the clouds of D held fixed."""
    z, real, _ = _clouds(rng, 3)

    def gradients(weights):
        def generator(w):
            return jnp.tanh(z @ w)

        samples, pull = jax.vjp(generator, weights)

        def loss(w):
            d = jax.vmap(lambda x: _optimal_discriminator(x, real, samples, 0.3))(generator(w))
            return jnp.mean(jnp.log(1 - d))

        direction = noise.noisy_jsd_direction(samples, real, samples, variance=0.3)
        (closed,) = pull(direction / 6)
        return closed, jax.grad(loss)(weights)

    with jax.enable_x64(True):
        z, real = jnp.asarray(z), jnp.asarray(real)
        closed, automatic = jax.jit(gradients)(jnp.asarray(rng.normal(size=(3, 3))))
    np.testing.assert_allclose(closed, automatic, rtol=1e-9)


@pytest.mark.thorough
def test_logits_are_differentiable_in_everything(rng):
    """Against central differences, at ties and coincidences too, and twice in the points."""
    points, real, fake = _clouds(rng, 2)
    real[1], fake[2], points[3] = real[0], points[0], (real[0] + real[2]) / 2
    steps = [rng.normal(size=a.shape) for a in (points, real, fake)]

    def along(t, which):
        arrays = [a + t * s * on for a, s, on in zip(clouds, moves, which[:3], strict=True)]
        variance = 0.4 + 0.1 * t * which[3]
        logits, gradient = noise.noisy_logits_and_gradient(*arrays, variance=variance)
        return jnp.sum(logits * jnp.arange(1.0, 7.0)), jnp.sum(gradient * moves[0])

    with jax.enable_x64(True):
        clouds, moves = ([jnp.asarray(a) for a in s] for s in ((points, real, fake), steps))
        value, slope = jax.jit(along), jax.jit(jax.jacfwd(along))
        for which in jnp.eye(4):
            up, down = value(1e-5, which), value(-1e-5, which)
            expected = [(u - d) / 2e-5 for u, d in zip(up, down, strict=True)]
            np.testing.assert_allclose(slope(0.0, which), expected, rtol=1e-6, atol=1e-6)


def test_the_mean_over_noise_is_the_gradient_of_twice_the_jsd(rng):
    real, fake, variance, grid = rng.normal(1, 1, size=4), rng.normal(size=3), 0.5, 4001
    line = np.linspace(-12, 12, grid)

    def density(cloud):
        kernels = np.exp(-((line[:, None] - cloud) ** 2) / (2 * variance))
        return np.mean(kernels, axis=1) / math.sqrt(2 * math.pi * variance)

    def jsd(cloud):
        p, q = density(real), density(cloud)
        mean = (p + q) / 2
        return np.sum(p * np.log(p / mean) + q * np.log(q / mean)) / 2 * (line[1] - line[0])

    nodes, masses = np.polynomial.hermite_e.hermegauss(60)
    masses = masses / masses.sum()
    with jax.enable_x64(True):
        for i, x in enumerate(fake):
            noised = jnp.asarray(x + math.sqrt(variance) * nodes)[:, None]
            directions = noisy_jsd_direction(
                noised, jnp.asarray(real)[:, None], jnp.asarray(fake)[:, None], variance=variance
            )
            bump = 1e-4 * np.eye(3)[i]
            expected = 2 * (jsd(fake + bump) - jsd(fake - bump)) / 2e-4
            np.testing.assert_allclose(masses @ directions[:, 0] / 3, expected, atol=1e-7)


@pytest.mark.thorough
def test_logits_of_noised_points_estimate_the_jsd(key, rng):
    """Over many noises of two points, the estimate is that of two Gaussians, golden G10."""
    size = 40_000
    real, fake = jnp.zeros((1, 1)), jnp.full((1, 1), 2.0)
    keys = jax.random.split(key)
    instance_noise = jax.jit(noise.instance_noise)
    estimate_logits = [
        noisy_logits(
            instance_noise(k, jnp.broadcast_to(cloud, (size, 1)), variance=1.0),
            real,
            fake,
            variance=1.0,
        )
        for k, cloud in zip(keys, (real, fake), strict=True)
    ]
    estimate = adversarial.jsd_estimate(*estimate_logits)
    values = [
        np.logaddexp(0, s * np.asarray(l)) for s, l in zip((-1, 1), estimate_logits, strict=True)
    ]
    error = math.sqrt(sum(v.var() for v in values) / size) / 2
    assert abs(estimate - 0.336831) < 5 * error


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("d", [1, 20])
@pytest.mark.parametrize("distance", [1e2, 1e4])
def test_logits_and_directions_survive_where_every_kernel_underflows(rng, d, distance):
    """All of exp(-|x - y|^2 / 2 sigma^2) are 0 in float32, and in float64 as well."""
    points, real, fake = _clouds(rng, d)
    points[::2, 0] -= distance
    points[1::2, 0] += distance
    points, real, fake = (a.astype(np.float32) for a in (points, real, fake))
    logits, gradient = jax.jit(noise.noisy_logits_and_gradient)(points, real, fake, variance=0.01)
    direction = noisy_jsd_direction(points, real, fake, variance=0.01)
    chex.assert_tree_all_finite((logits, gradient, direction))
    wide = [a.astype(np.float64) for a in (points, real, fake)]
    squares = [np.sum((wide[0][:, None] - cloud[None]) ** 2, axis=2) for cloud in wide[1:]]
    nearest = [s.min(axis=1) for s in squares]
    expected = (nearest[1] - nearest[0]) / 0.02
    # the mean over a cloud against its nearest point: at most log 7; and rounding of |x|^2
    rounding = 20 * np.finfo(np.float32).eps * np.max(squares[0]) / 0.02
    np.testing.assert_allclose(logits, expected, atol=2 * math.log(7) + rounding)
    if distance == 1e2:
        pulls = [cloud[s.argmin(axis=1)] for cloud, s in zip(wide[1:], squares, strict=True)]
        gaps = [np.sort(s, axis=1)[:, 1] - s.min(axis=1) for s in squares]
        clear = np.minimum(*gaps) / 0.02 > 20 + rounding
        assert clear.any()
        np.testing.assert_allclose(
            gradient[clear], ((pulls[0] - pulls[1]) / 0.01)[clear], rtol=1e-3, atol=1e-2
        )


def test_far_data_leaves_no_gradient_but_its_logit(rng):
    """Paper 002's vanishing gradients: small noise, D* sure, the saturating direction is 0."""
    _, real, fake = _f32(*_clouds(rng, 2))
    largest = []
    for variance in (0.05, 2.0, 8.0, 32.0):
        direction = noisy_jsd_direction(fake, real + 6, fake, variance=variance)
        largest.append(float(jnp.max(jnp.abs(direction))) * math.sqrt(variance))
    assert largest[0] < 1e-20
    assert largest == sorted(largest)
    assert largest[-1] > 0.1
    _, gradient = noisy_logits_and_gradient(fake, real + 6, fake, variance=0.05)
    assert np.all(np.asarray(gradient) @ np.ones(2) > 0)


@pytest.mark.thorough
def test_descending_the_direction_mixes_the_clouds(key, rng):
    _, real, fake = _f32(*_clouds(rng, 2, m=40, n=40))
    fake = fake - 2.0

    @jax.jit
    def jsd(x):
        keys = jax.random.split(key)
        noised = [
            noise.instance_noise(k, jnp.repeat(c, 50, axis=0), variance=0.5)
            for k, c in zip(keys, (real, x), strict=True)
        ]
        return adversarial.jsd_estimate(
            *(noisy_logits(points, real, x, variance=0.5) for points in noised)
        )

    moved = fake
    for _ in range(60):
        moved = moved - 0.5 * noisy_jsd_direction(moved, real, moved, variance=0.5)
    assert jsd(fake) > 0.4
    assert jsd(moved) < 0.2


@pytest.mark.thorough
def test_blocks_of_rows_change_nothing(rng, monkeypatch):
    points, real, fake = _f32(*_clouds(rng, 4, q=23))

    def evaluate(p):
        def logits(p):
            values, gradient = noise.noisy_logits_and_gradient(p, real, fake, variance=0.7)
            return values, gradient

        values, pull, gradient = jax.vjp(logits, p, has_aux=True)
        return values, gradient, pull(values)

    whole = jax.jit(evaluate)(points)
    for pairs in (60, 23 * 12):
        monkeypatch.setattr(noise, "_PAIRS_AT_ONCE", pairs)
        blocks = jax.jit(lambda p: evaluate(p))(points)
        chex.assert_trees_all_close(blocks, whole, rtol=1e-5, atol=1e-5)


def test_memory_is_bounded(rng, monkeypatch):
    monkeypatch.setattr(noise, "_PAIRS_AT_ONCE", 1 << 14)
    monkeypatch.setattr(_distances, "FEW_DIFFERENCES", 0)  # which are more than these samples
    points, real, fake = (jax.ShapeDtypeStruct((n, 8), jnp.float32) for n in (3000, 1000, 1000))

    def total(p, r, f):
        return jnp.sum(noise.noisy_logits(p, r, f, variance=1.0))

    def direction(p, r, f):
        return noise.noisy_jsd_direction(p, r, f, variance=1.0)

    for function in (jax.grad(total), direction):
        assert memory.largest_buffer(function, points, real, fake) <= 3000 * 8


# ---------------------------------------------------------------------------- transforms and errors


@pytest.mark.thorough
def test_two_devices_give_the_one_device_answer(rng):
    points, real, fake = _f32(*_clouds(rng, 4, q=6, m=8, n=10))
    shards = [a.reshape(2, -1, 4) for a in (points, real, fake)]

    def noisy(points, real, fake, axis_name=None):
        options = {"variance": 0.5, "axis_name": axis_name}
        return (
            noise.noisy_logits(points, real, fake, **options),
            noise.noisy_logits_and_gradient(points, real, fake, **options),
            noise.noisy_jsd_direction(points, real, fake, **options),
        )

    alone = jax.jit(noisy)(points, real, fake)
    spread = jax.pmap(lambda *a: noisy(*a, axis_name="i"), axis_name="i")(*shards)
    whole = jax.tree.map(lambda s, a: s.reshape(a.shape), spread, alone)
    chex.assert_trees_all_close(whole, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", ["instance_noise", "bounded_noise"])
def test_two_devices_draw_the_one_device_noise(key, rng, name):
    (points,) = _f32(rng.normal(size=(6, 2, 2)))
    function = functools.partial(getattr(noise, name), variance=0.5)
    spread = jax.pmap(lambda x: function(key, x, axis_name="i"), axis_name="i")(
        points.reshape(2, 3, 2, 2)
    )
    np.testing.assert_allclose(spread.reshape(6, 2, 2), function(key, points), rtol=1e-6)


def test_one_compilation_per_shape(rng):
    points, real, fake = _f32(*_clouds(rng, 3))
    traced = jax.jit(chex.assert_max_traces(noise.noisy_jsd_direction, n=1))
    for variance in (0.5, 1.0):
        traced(points * variance, real, fake, variance=variance)


@pytest.mark.thorough
def test_vmap_is_a_loop(key, rng):
    real, fake = _f32(rng.normal(size=(3, 5, 2)), rng.normal(size=(3, 5, 2)))
    variances = jnp.array([0.1, 0.5, 2.0])
    cases = {
        "noise": (
            lambda k, x, v: noise.instance_noise(k, x, variance=v),
            (jax.random.split(key, 3), real, variances),
        ),
        "direction": (
            lambda x, y, v: noisy_jsd_direction(x, y, x, variance=v),
            (fake, real, variances),
        ),
    }
    for name, (function, arguments) in cases.items():
        compiled = jax.jit(function)
        together = jax.jit(jax.vmap(function))(*arguments)
        apart = np.stack([compiled(*(a[i] for a in arguments)) for i in range(3)])
        np.testing.assert_allclose(together, apart, rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.thorough
def test_half_precision_goes_in_and_comes_out(rng):
    points, real, fake = (a.astype(jnp.bfloat16) for a in _f32(*_clouds(rng, 6)))
    wide = [a.astype(jnp.float32) for a in (points, real, fake)]
    got = noisy_logits_and_gradient(points, real, fake, variance=0.5)
    expected = noisy_logits_and_gradient(*wide, variance=0.5)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(a), b, rtol=1e-2, atol=1e-6)


def test_bad_input_is_named(key):
    x = jnp.zeros((3, 2))
    for noised in (noise.instance_noise, noise.bounded_noise):
        with pytest.raises(ValueError, match=r"variance: got -0\.5"):
            noised(key, x, variance=-0.5)
        with pytest.raises(ValueError, match="x: got dtype int32"):
            noised(key, x.astype(int), variance=0.5)
    with pytest.raises(ValueError, match="variance: got 0"):
        noise.noisy_logits(x, x, x, variance=0)
    with pytest.raises(ValueError, match=r"fake: got shape \(3, 1\)"):
        noise.noisy_jsd_direction(x, x, x[:, :1], variance=1.0)
    with pytest.raises(ValueError, match="real: got dtype int32"):
        noise.noisy_jsd_direction(x, x.astype(int), x, variance=1.0)


def _f32(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


@pytest.mark.thorough
@pytest.mark.parametrize("d", [2, 5])
def test_logits_however_far_are_those_of_float64(rng, d):
    """Less the square of x, which both clouds share, the exponents keep their digits."""
    _, real, fake = _clouds(rng, d)
    rays = rng.normal(size=(3, d))

    def log_mean(x, cloud):
        exponents = (2 * x @ cloud.T - np.sum(cloud**2, axis=1)) / 0.2
        top = exponents.max(axis=1, keepdims=True)
        return top[:, 0] + np.log(np.mean(np.exp(exponents - top), axis=1))

    for distance in (1e2, 1e6, 3e19, 1e30):
        x, y, z = _f32(distance * rays, real, fake)
        logits, gradient = noise.noisy_logits_and_gradient(x, y, z, variance=0.1)
        exact = [np.asarray(a, np.float64) for a in (x, y, z)]
        expected = log_mean(exact[0], exact[1]) - log_mean(exact[0], exact[2])
        np.testing.assert_allclose(logits, expected, rtol=1e-5)
        slope = jax.grad(lambda x, y=y, z=z: jnp.sum(noise.noisy_logits(x, y, z, variance=0.1)))(x)
        np.testing.assert_allclose(slope, gradient, atol=1e-5 * np.abs(gradient).max())
