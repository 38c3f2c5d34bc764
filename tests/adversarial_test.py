"""Adversarial losses against quadrature, hand sums and autodiff; noised clouds against loops."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax import lax

from kernelgrad import adversarial, noise

GENERATOR_LOSSES = {
    "saturating": adversarial.saturating_loss,
    "non_saturating": adversarial.non_saturating_loss,
    "kl": adversarial.kl_loss,
}
PENALTIES = {
    "two_sided": adversarial.gradient_penalty,
    "one_sided": adversarial.one_sided_gradient_penalty,
    "zero_centred": adversarial.zero_centred_gradient_penalty,
}
# theta: JSD, d E log(1 - D*), d E[-log D*] for q = N(theta, 1), p = N(0, 1)
FROZEN = {
    0.5: (0.030311, 0.235264, 0.264736),
    1.0: (0.111421, 0.397973, 0.602027),
    2.0: (0.336831, 0.449600, 1.550400),
    4.0: (0.632720, 0.137195, 3.862805),
    6.0: (0.689298, 0.012453, 5.987547),
}


# ----------------------------------------------------------------------------- losses of the GAN


def test_losses_are_logarithms_of_probabilities(rng):
    real, fake = rng.normal(size=7), rng.normal(size=5)
    p, q = 1 / (1 + np.exp(-real)), 1 / (1 + np.exp(-fake))
    likelihood = np.mean(np.log(p)) + np.mean(np.log(1 - q))
    got = {
        "discriminator": adversarial.discriminator_loss(*_f32(real, fake)),
        "jsd": adversarial.jsd_estimate(*_f32(real, fake)),
        **{name: loss(*_f32(fake)) for name, loss in GENERATOR_LOSSES.items()},
    }
    expected = {
        "discriminator": -likelihood,
        "jsd": likelihood / 2 + math.log(2),
        "saturating": np.mean(np.log(1 - q)),
        "non_saturating": -np.mean(np.log(q)),
        "kl": np.mean(np.log((1 - q) / q)),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


@jax.jit
def _frozen(nodes, theta):
    """What the losses make of the optimal D = N(0, 1) / (N(0, 1) + N(theta, 1)), held fixed."""

    def logits(x):
        return theta**2 / 2 - theta * x

    slopes = [
        jax.grad(lambda t, f=f: f(logits(nodes + t)))(theta) for f in GENERATOR_LOSSES.values()
    ]
    real, fake = logits(nodes), logits(nodes + theta)
    bound = adversarial.kl_estimate(real + 3.0, fake + 3.0)
    return adversarial.jsd_estimate(real, fake), slopes, bound


def test_frozen_discriminator_of_two_gaussians():
    """Golden G10: the losses as means over equally likely nodes."""
    nodes = scipy.stats.norm.ppf((np.arange(400_000) + 0.5) / 400_000)
    for theta, (jsd, saturating, non_saturating) in FROZEN.items():
        with jax.enable_x64(True):
            estimate, slopes, bound = _frozen(jnp.asarray(nodes), theta)
        np.testing.assert_allclose(estimate, jsd, atol=1e-5)
        np.testing.assert_allclose(slopes, (saturating, non_saturating, theta), atol=1e-5)
        if theta <= 2:  # beyond, E_P e^-l lives outside of the nodes
            np.testing.assert_allclose(bound, theta**2 / 2, atol=2e-3)


@pytest.mark.thorough
def test_the_two_weights_add_up_to_one_float_for_float(rng):
    """Golden G11, with as many logits as a power of two, so that the mean rounds nothing."""
    logits = rng.uniform(-70, 70, size=4096).astype(np.float32)
    logits[:2048] = rng.normal(size=2048)
    logits[:5] = (0.0, 1e4, -1e4, 88.0, -104.0)
    saturating, non_saturating, kl = (
        logits.size * jax.grad(loss)(jnp.asarray(logits)) for loss in GENERATOR_LOSSES.values()
    )
    np.testing.assert_array_equal(saturating + non_saturating, kl)
    np.testing.assert_array_equal(kl, -1)
    wide = logits.astype(np.float64)
    small = np.exp(-np.abs(wide)) / (1 + np.exp(-np.abs(wide)))
    np.testing.assert_allclose(
        -np.where(wide > 0, non_saturating, saturating), small, rtol=1e-5, atol=1e-34
    )


def test_losses_are_finite_at_huge_logits():
    @jax.jit
    def evaluate(logits):
        alone = [jax.value_and_grad(loss)(logits) for loss in GENERATOR_LOSSES.values()]
        pair = (adversarial.discriminator_loss, adversarial.kl_estimate)
        return alone, [jax.value_and_grad(loss, (0, 1))(logits, logits) for loss in pair]

    for size in (1e4, -1e4):
        alone, pair = evaluate(jnp.full(3, size, jnp.float32))
        chex.assert_tree_all_finite((alone, pair))
        values = [value for value, _ in alone + pair]
        expected = (-max(size, 0.0), max(-size, 0.0), -size, abs(size), 0)
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=2e-3)


def test_losses_have_their_second_derivative(rng):
    logits = jnp.asarray([0.0, 1.5, -0.7, 60.0, -60.0], jnp.float32)
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    hessian = jax.jit(jax.hessian(adversarial.non_saturating_loss))(logits)
    np.testing.assert_allclose(hessian, np.diag(p * (1 - p) / 5), rtol=1e-5, atol=1e-20)


def test_the_non_saturating_gradient_of_a_noisy_discriminator_is_cauchy(rng):
    """Golden G15: D and its gradient perturbed by white noise around a sure discriminator."""
    size, level = 20_000, 1e-2
    d = np.abs(rng.normal(0, level, size))
    slope = rng.normal(0, level, size) / (d * (1 - d))  # of the logit
    logits = np.log(d / (1 - d))

    def gradients(loss):
        def at_zero(logit, slope):
            return jax.grad(lambda t: loss((logit + slope * t)[None]))(0.0)

        return np.asarray(jax.jit(jax.vmap(at_zero))(*_f32(logits, slope)))

    heavy = scipy.stats.kstest(gradients(adversarial.non_saturating_loss), "cauchy").statistic
    light = gradients(adversarial.saturating_loss)
    assert heavy * math.sqrt(size) < 2.5  # exceeded once in 130 000 by a Cauchy variable
    assert np.max(np.abs(light)) < 10 * level


# ------------------------------------------------------------------------ bounds on f-divergences


@pytest.mark.thorough
def test_disjoint_supports_saturate_the_jsd_alone():
    """Golden G14."""
    real, fake = jnp.full(4, 1e4), jnp.full(6, -1e4)
    np.testing.assert_allclose(adversarial.jsd_estimate(real, fake), math.log(2), rtol=1e-7)
    np.testing.assert_allclose(adversarial.kl_estimate(real, fake), 2e4, rtol=1e-6)
    assert adversarial.jsd_estimate(fake[:4], real) < 0


def test_kl_estimate_is_the_divergence_of_tables(rng):
    """On finitely many outcomes, counted: equality at log p/q + c, a bound below elsewhere."""
    p_counts, q_counts = np.array([1, 2, 5]), np.array([4, 3, 3])
    p, q = p_counts / 8, q_counts / 10
    kl, reverse = np.sum(q * np.log(q / p)), np.sum(p * np.log(p / q))
    for logits in (np.log(p / q), np.log(p / q) - 1.7):
        real, fake = _f32(np.repeat(logits, p_counts), np.repeat(logits, q_counts))
        np.testing.assert_allclose(adversarial.kl_estimate(real, fake), kl, rtol=1e-5)
        np.testing.assert_allclose(adversarial.kl_estimate(-fake, -real), reverse, rtol=1e-5)
    for _ in range(20):
        logits = np.log(p / q) + rng.normal(size=3)
        real, fake = _f32(np.repeat(logits, p_counts), np.repeat(logits, q_counts))
        assert adversarial.kl_estimate(real, fake) < kl


@functools.partial(jax.jit, static_argnums=2)
def _two_points(key, theta, size):
    """The JSD that the optimal D sees between uniform laws around 0 and theta, of width 2."""
    points = jnp.where(jnp.arange(2 * size) < size, 0, theta)
    noised = noise.bounded_noise(key, points, variance=1 / 3)
    near_real, near_fake = (jnp.abs(noised - x) <= 1 for x in (0, theta))
    logits = jnp.where(near_real & near_fake, 0, jnp.where(near_real, 1e4, -1e4))
    return adversarial.jsd_estimate(logits[:size], logits[size:])


@pytest.mark.parametrize(("theta", "bound"), [(0.5, 3.236087), (1.0, 4.686931), (3.0, 9.480247)])
def test_certificate_of_two_points_under_bounded_noise(key, theta, bound):
    """Golden G13: uniform noise on [-1, 1] around 0 and theta, where W_1 = theta."""
    jsd = min(theta / 2, 1) * math.log(2)
    got = adversarial.wasserstein_bound(jsd, 1 / 3, theta + 2)
    np.testing.assert_allclose(got, bound, rtol=1e-6)
    assert got >= theta
    size = 20_000
    estimate = _two_points(key, theta, size)
    share = 1 - jsd / math.log(2)  # of either side that the optimal D cannot tell, each worth log 2
    error = math.log(2) * math.sqrt(share * (1 - share) / (2 * size))
    assert abs(estimate - jsd) <= 5 * error + 1e-6


def test_certificate_of_a_bad_discriminator():
    for jsd in (0.0, -0.3):
        value, slope = jax.value_and_grad(adversarial.wasserstein_bound)(jsd, 4.0, 3.0)
        np.testing.assert_allclose((value, slope), (4.0, 0.0))
    assert np.isnan(adversarial.wasserstein_bound(jnp.nan, 4.0, 3.0))
    slope = jax.grad(adversarial.wasserstein_bound)(0.25, 4.0, 3.0)
    np.testing.assert_allclose(slope, 6.0, rtol=1e-6)
    assert adversarial.wasserstein_bound(0.25, 0, 3) == 3


# --------------------------------------------------------------------------- hinge and Wasserstein


def test_critic_losses_of_a_few_values():
    real, fake = jnp.array([2.0, 0.25, -1.0]), jnp.array([-3.0, 0.5])
    hinge = (0 + 0.75 + 2) / 3 + (0 + 1.5) / 2
    np.testing.assert_allclose(adversarial.hinge_discriminator_loss(real, fake), hinge, rtol=1e-6)
    critic = (-3 + 0.5) / 2 - (2 + 0.25 - 1) / 3
    np.testing.assert_allclose(adversarial.wasserstein_critic_loss(real, fake), critic, rtol=1e-6)
    np.testing.assert_allclose(adversarial.wasserstein_generator_loss(fake), 1.25)


def test_clipped_weights_are_inside():
    params = {"w": jnp.array([[-3.0, 0.005]]), "b": [jnp.array([0.5], jnp.bfloat16)]}
    clipped = jax.jit(lambda p, c: adversarial.clip_weights(p, clip=c))(params, 0.01)
    chex.assert_trees_all_equal_shapes_and_dtypes(clipped, params)
    np.testing.assert_allclose(clipped["w"], [[-0.01, 0.005]])
    np.testing.assert_allclose(np.float32(clipped["b"][0]), [0.01], rtol=1e-2)


# ------------------------------------------------------------------------------ gradient penalties


def _quadratic(scale):
    return lambda x: scale * jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)))


@jax.jit
def _penalty_and_slope(scale, points):
    return {
        name: jax.value_and_grad(lambda s, f=penalty: f(_quadratic(s), points))(scale)
        for name, penalty in PENALTIES.items()
    }


@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 2, 1)])
def test_penalties_of_a_quadratic(rng, shape):
    """f = s |x|^2 has slopes 2 s |x|, on both sides of 1."""
    x = rng.normal(size=shape) * np.linspace(0.1, 1.5, 6).reshape(-1, *[1] * (len(shape) - 1))
    scale, radii = 0.8, np.sqrt(np.sum(x.reshape(6, -1) ** 2, axis=1))
    slopes = 2 * scale * radii
    assert slopes.min() < 1 < slopes.max()
    expected = {
        "two_sided": (np.mean((slopes - 1) ** 2), np.mean(4 * (slopes - 1) * radii)),
        "one_sided": (
            np.mean(np.maximum(slopes - 1, 0) ** 2),
            np.mean(4 * np.maximum(slopes - 1, 0) * radii),
        ),
        "zero_centred": (np.mean(slopes**2), np.mean(4 * slopes * radii)),
    }
    (points,) = _f32(x)
    for name in PENALTIES:
        got = _penalty_and_slope(scale, points)[name]
        np.testing.assert_allclose(got, expected[name], rtol=1e-5, err_msg=name)


def test_penalties_where_the_critic_is_flat():
    """Trap T3: at a vanishing gradient the norm has no derivative."""
    got = _penalty_and_slope(0.8, jnp.zeros((6, 3)))
    assert got == {"two_sided": (1, 0), "one_sided": (0, 0), "zero_centred": (0, 0)}


def test_r1_of_a_linear_critic_is_its_squared_slope(rng):
    weights = jnp.asarray(rng.normal(size=3), jnp.float32)
    (points,) = _f32(rng.normal(size=(5, 3)))
    got = adversarial.zero_centred_gradient_penalty(lambda x: x @ weights, points)
    np.testing.assert_allclose(got, np.sum(np.square(weights)), rtol=1e-6)


def test_interpolates_lie_uniformly_on_their_segments(key, rng):
    size = 10_000
    real, fake = _f32(rng.normal(size=(size, 2, 3)), rng.normal(size=(size, 2, 3)))
    between = adversarial.interpolates(key, real, fake)
    assert between.shape == real.shape
    shares = np.asarray((between - real) / (fake - real), np.float64).reshape(size, -1)
    first = shares[:, 0]
    clear = np.abs(np.asarray(fake - real)).reshape(size, -1).min(axis=1) > 1e-2
    np.testing.assert_allclose(
        shares[clear], np.broadcast_to(first[clear, None], (clear.sum(), 6)), atol=2e-4
    )
    assert scipy.stats.kstest(first[clear], "uniform").statistic * math.sqrt(clear.sum()) < 2.5


# ---------------------------------------------------------------------------- transforms and errors


def test_two_devices_give_the_one_device_answer(rng):
    logits = _f32(rng.normal(0, 3, size=8), rng.normal(0, 3, size=6))
    means = (adversarial.discriminator_loss, adversarial.jsd_estimate)

    def estimates(real, fake, axis_name=None):
        each = [function(real, fake) for function in means]
        each = each if axis_name is None else [lax.pmean(value, axis_name) for value in each]
        return [adversarial.kl_estimate(real, fake, axis_name=axis_name), *each]

    halves = [a.reshape(2, -1) for a in logits]
    spread = jax.pmap(lambda *a: estimates(*a, axis_name="i"), axis_name="i")(*halves)
    for got, expected in zip(spread, estimates(*logits), strict=True):
        np.testing.assert_allclose(got, [expected, expected], rtol=1e-5)


@pytest.mark.thorough
def test_vmap_is_a_loop(key, rng):
    real, fake = _f32(rng.normal(size=(3, 5, 2)), rng.normal(size=(3, 5, 2)))
    variances = jnp.array([0.1, 0.5, 2.0])
    keys = jax.random.split(key, 3)
    cases = {
        "discriminator": (adversarial.discriminator_loss, (real[..., 0], fake[..., 0])),
        "kl": (adversarial.kl_estimate, (real[..., 0], fake[..., 0])),
        "bound": (adversarial.wasserstein_bound, (variances, variances, variances)),
        "penalty": (
            lambda s, x: adversarial.gradient_penalty(_quadratic(s), x),
            (variances, real),
        ),
        "interpolates": (adversarial.interpolates, (keys, real, fake)),
    }
    for name, (function, arguments) in cases.items():
        compiled = jax.jit(function)
        together = jax.jit(jax.vmap(function))(*arguments)
        apart = np.stack([compiled(*(a[i] for a in arguments)) for i in range(3)])
        np.testing.assert_allclose(together, apart, rtol=2e-5, atol=1e-6, err_msg=name)


def test_bad_input_is_named(key):
    logits, x = jnp.zeros(3), jnp.zeros((3, 2))
    with pytest.raises(ValueError, match=r"fake_logits: got shape \(3, 1\); expected \(n\)"):
        adversarial.discriminator_loss(logits, logits[:, None])
    with pytest.raises(ValueError, match="fake_logits: got dtype int32"):
        adversarial.kl_loss(jnp.zeros(3, int))
    with pytest.raises(ValueError, match=r"fake_logits: got shape \(0,\)"):
        adversarial.saturating_loss(logits[:0])
    with pytest.raises(ValueError, match=r"real_values: got shape \(\)"):
        adversarial.wasserstein_critic_loss(jnp.zeros(()), logits)
    with pytest.raises(ValueError, match=r"noise_variance: got -0.1; expected values in \[0, inf"):
        adversarial.wasserstein_bound(0.1, -0.1, 1.0)
    with pytest.raises(ValueError, match="diameter: got -1"):
        adversarial.wasserstein_bound(0.1, 0.1, -1.0)
    with pytest.raises(ValueError, match=r"jsd: got shape \(3,\)"):
        adversarial.wasserstein_bound(logits, 0.1, 1.0)
    for clip in (0.0, -1.0):
        with pytest.raises(ValueError, match=r"clip: got -?[01].*; expected values in \(0, inf"):
            adversarial.clip_weights({"w": x}, clip=clip)
    with pytest.raises(ValueError, match=r"params\['w'\]: got dtype int32"):
        adversarial.clip_weights({"w": jnp.zeros(2, int)}, clip=0.1)
    with pytest.raises(ValueError, match=r"fake: got shape \(2, 2\); expected \(3, 2\)"):
        adversarial.interpolates(key, x, x[:2])
    for penalty in PENALTIES.values():
        with pytest.raises(ValueError, match=r"critic_fn\(points\): got shape \(3, 2\); expected"):
            penalty(lambda p: p, x)


def _f32(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


@pytest.mark.thorough
def test_low_precision_is_computed_in_float32(rng):
    real, fake = (jnp.asarray(rng.normal(size=9), jnp.bfloat16) for _ in range(2))
    for loss in (
        adversarial.discriminator_loss,
        adversarial.jsd_estimate,
        adversarial.kl_estimate,
        adversarial.hinge_discriminator_loss,
        adversarial.wasserstein_critic_loss,
        lambda _, fake: adversarial.saturating_loss(fake),
        lambda _, fake: adversarial.non_saturating_loss(fake),
        lambda _, fake: adversarial.kl_loss(fake),
        lambda _, fake: adversarial.wasserstein_generator_loss(fake),
    ):
        got = loss(real, fake)
        assert got.dtype == jnp.float32
        assert got == loss(real.astype(jnp.float32), fake.astype(jnp.float32))
    steep = jnp.full((2, 2), 300, jnp.float16)  # a slope whose square float16 does not hold
    penalty = adversarial.zero_centred_gradient_penalty(lambda x: jnp.sum(x * steep, 1), steep)
    assert penalty == 2 * 300**2


def test_the_bound_has_slopes_at_no_noise_and_no_divergence():
    slopes = jax.grad(adversarial.wasserstein_bound, (0, 1, 2))(0.0, 0.0, 1.0)
    np.testing.assert_array_equal(slopes, 0)
