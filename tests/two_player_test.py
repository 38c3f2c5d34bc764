"""Objectives of two players: losses and directions against float64 loops, weights and projections.

The critic is f(x) = a . x + |x|^2 / 2, whose gradient at x is a + x.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernelgrad import adversarial, kale, two_player

SLOPE = np.array([0.7, -1.2])


def critic_fn(points):
    return points @ SLOPE + jnp.sum(jnp.square(points), axis=1) / 2


def _clouds(rng, n=7):
    return rng.normal(size=(n, 2)), rng.normal(0.5, 1.3, size=(n, 2))


def _logits(points):
    return np.array([SLOPE @ x + x @ x / 2 for x in points])


def _sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


# the weight of the critic's gradient, dloss/dl, at each logit l
WEIGHTS = {
    "gan_saturating": (two_player.gan_saturating(), lambda l: -_sigmoid(l)),
    "gan_non_saturating": (two_player.gan_non_saturating(), lambda l: -(1 - _sigmoid(l))),
    "gan_kl": (two_player.gan_kl(), lambda l: -np.ones_like(l)),
    "wgan_clip": (two_player.wgan_clip(), lambda l: -np.ones_like(l)),
    "wgan_gp": (two_player.wgan_gp(), lambda l: -np.ones_like(l)),
    "hinge": (two_player.hinge(), lambda l: -np.ones_like(l)),
}


@pytest.mark.thorough(quick=3)
@pytest.mark.parametrize("name", WEIGHTS)
def test_direction_is_the_weighted_gradient_of_the_critic(key, rng, name):
    objective, weight = WEIGHTS[name]
    samples, data = _clouds(rng)
    with jax.enable_x64(True):
        direction, _ = objective.direction(critic_fn, key, jnp.asarray(samples), jnp.asarray(data))
    expected = weight(_logits(samples))[:, None] * (SLOPE + samples)
    np.testing.assert_allclose(direction, expected, rtol=1e-12)


def _log_loss(real, fake):
    return -np.mean(np.log(_sigmoid(real))) - np.mean(np.log(1 - _sigmoid(fake)))


CRITIC_LOSSES = {
    "gan_saturating": _log_loss,
    "gan_non_saturating": _log_loss,
    "gan_kl": _log_loss,
    "wgan_clip": lambda real, fake: np.mean(fake) - np.mean(real),
    "hinge": lambda real, fake: np.mean(np.maximum(0, 1 - real)) + np.mean(np.maximum(0, 1 + fake)),
}


@pytest.mark.parametrize("name", CRITIC_LOSSES)
def test_critic_loss_is_the_papers(key, rng, name):
    samples, data = _clouds(rng)
    with jax.enable_x64(True):
        loss, info = WEIGHTS[name][0].critic_loss(
            critic_fn, key, jnp.asarray(samples), jnp.asarray(data)
        )
    expected = CRITIC_LOSSES[name](_logits(data), _logits(samples))
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(info["critic_loss"], expected, rtol=1e-12)
    if name.startswith("gan"):
        np.testing.assert_allclose(info["jsd"], np.log(2) - expected / 2, rtol=1e-12)


PENALISED = {
    "wgan_gp": two_player.wgan_gp,
    "kale": lambda weight, penalty: two_player.kale(penalty_weight=weight, penalty=penalty),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", PENALISED)
def test_penalty_is_added_with_its_weight_between_the_clouds(key, name):
    """|grad f| = |a + x| between data and samples: with both clouds in one point it is known."""
    point = np.array([0.3, 0.4])
    cloud = jnp.asarray(np.tile(point, (5, 1)), jnp.float32)
    norm = np.linalg.norm(SLOPE + point)
    for penalty, expected in (
        (adversarial.gradient_penalty, (norm - 1) ** 2),
        (adversarial.zero_centred_gradient_penalty, norm**2),
    ):
        objective = PENALISED[name](weight=3.0, penalty=penalty)
        loss, info = objective.critic_loss(critic_fn, key, cloud, cloud)
        np.testing.assert_allclose(loss, 3 * expected, rtol=1e-5)
        np.testing.assert_allclose(info["penalty"], expected, rtol=1e-5)
        np.testing.assert_allclose(info["critic_loss"], 0, atol=1e-6)
    _, info = objective.critic_loss(critic_fn, key, cloud, cloud + 100)
    end = np.linalg.norm(SLOPE + point + 100)
    assert 1.01 * norm**2 < info["penalty"] < 0.99 * end**2


def test_clipping_follows_every_step_and_no_other_objective_projects():
    params = {"w": jnp.array([-3.0, 0.005, 2.0])}
    clipped = two_player.wgan_clip(clip=0.01).project(params)
    np.testing.assert_allclose(clipped["w"], [-0.01, 0.005, 0.01])
    assert two_player.wgan_gp().project(params) is params


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf])
def test_bad_input_is_named(bad):
    with pytest.raises(ValueError, match=r"clip: got"):
        two_player.wgan_clip(clip=bad)
    with pytest.raises(ValueError, match=r"weight: got"):
        two_player.wgan_gp(weight=bad)


# --------------------------------------------------------------------------------- energies by KALE


def energy_fn(points):
    return jnp.sum(points**4, axis=1) / 4 + points[:, 0]


@pytest.mark.thorough
def test_kale_loss_and_direction_are_the_papers(key, rng):
    """-DV and softmax weights times n, with grad E = x^3 + e_1."""
    samples, data = 0.5 * rng.normal(size=(5, 2)), rng.normal(1.0, 0.5, size=(5, 2))
    with jax.enable_x64(True):
        objective = two_player.kale(penalty_weight=0.0)
        loss, info = objective.critic_loss(energy_fn, key, jnp.asarray(samples), jnp.asarray(data))
        direction, _ = objective.direction(energy_fn, key, jnp.asarray(samples), jnp.asarray(data))
    of_data, of_samples = (np.sum(x**4, axis=1) / 4 + x[:, 0] for x in (data, samples))
    bound = -np.mean(of_data) - np.log(np.mean(np.exp(-of_samples)))
    np.testing.assert_allclose(loss, -bound, rtol=1e-12)
    np.testing.assert_allclose(info["log_normalizer"], np.log(np.mean(np.exp(-of_samples))))
    weights = np.exp(-of_samples) / np.mean(np.exp(-of_samples))
    expected = weights[:, None] * (samples**3 + np.array([1.0, 0.0]))
    np.testing.assert_allclose(direction, expected, rtol=1e-10)


def test_kale_direction_is_the_gradient_of_the_bound(key, rng):
    """n times the gradient of Donsker-Varadhan in the samples, by autodiff."""
    samples, data = rng.normal(size=(5, 2)), rng.normal(1.0, 0.5, size=(5, 2))
    with jax.enable_x64(True):
        x, y = jnp.asarray(samples), jnp.asarray(data)

        def bound(x):
            return -jnp.mean(energy_fn(y)) - jnp.log(jnp.mean(jnp.exp(-energy_fn(x))))

        expected = 5 * jax.grad(bound)(x)
        direction, _ = two_player.kale().direction(energy_fn, key, x, y)
    np.testing.assert_allclose(direction, expected, rtol=1e-10)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("step", [None, kale.ema_step, kale.newton_step])
def test_kale_on_two_devices_is_that_of_one(key, rng, step):
    """A tracked log-normaliser too, whose slope is no mean over samples."""
    x, y = (jnp.asarray(rng.normal(size=(8, 2)), jnp.float32) for _ in range(2))
    track = step and functools.partial(step, rate=0.3)
    objective = two_player.kale(penalty_weight=0.3, track=track)

    def bind(params):
        scale, c = params
        if track is None:
            return lambda points: scale * energy_fn(points)
        return lambda points: (scale * energy_fn(points), c)

    def learn(x, y, axis_name=None):
        params = jnp.float32(0.7), jnp.float32(0.2)
        (_, info), slope = jax.value_and_grad(
            lambda p: objective.critic_loss(bind(p), key, x, y, axis_name=axis_name), has_aux=True
        )(params)
        direction, _ = objective.direction(bind(params), key, x, y, axis_name=axis_name)
        if axis_name is not None:
            slope, info = jax.lax.pmean((slope, info), axis_name)
        return direction, slope, info

    alone = jax.jit(learn)(x, y)
    spread = jax.pmap(functools.partial(learn, axis_name="i"), axis_name="i")(
        x.reshape(2, 4, 2), y.reshape(2, 4, 2)
    )
    np.testing.assert_allclose(spread[0].reshape(8, 2), alone[0], rtol=1e-4, atol=1e-5)
    for got, expected in zip(jax.tree.leaves(spread[1:]), jax.tree.leaves(alone[1:]), strict=True):
        np.testing.assert_allclose(got, np.full(2, expected), rtol=1e-4)


TRACKS = {
    "ema": lambda c, best: np.log(0.9 * np.exp(c) + 0.1 * np.exp(best)),
    "newton": lambda c, best: c + 0.1 * max(1 - np.exp(c - best), -1),
}


@pytest.mark.parametrize("name", TRACKS)
def test_a_tracked_log_normalizer_descends_to_its_next_value(key, rng, name):
    """Loss and weights at c, and the loss's slope in c is c minus the next one."""
    samples, data = 0.5 * rng.normal(size=(5, 2)), rng.normal(1.0, 0.5, size=(5, 2))
    track = {"ema": kale.ema_step, "newton": kale.newton_step}[name]
    objective = two_player.kale(penalty_weight=0.0, track=functools.partial(track, rate=0.1))
    before = 0.3

    def loss(c):
        return objective.critic_loss(
            lambda points: (energy_fn(points), c), key, jnp.asarray(samples), jnp.asarray(data)
        )

    with jax.enable_x64(True):
        (value, info), slope = jax.value_and_grad(loss, has_aux=True)(jnp.float64(before))
        direction, _ = objective.direction(
            lambda points: (energy_fn(points), jnp.float64(0.3)), key, samples, data
        )
    of_data, of_samples = (np.sum(x**4, axis=1) / 4 + x[:, 0] for x in (data, samples))
    weights = np.exp(-of_samples - before)
    np.testing.assert_allclose(value, np.mean(of_data) + before + np.mean(weights) - 1, rtol=1e-12)
    np.testing.assert_allclose(info["log_normalizer"], before)
    following = TRACKS[name](before, np.log(np.mean(np.exp(-of_samples))))
    np.testing.assert_allclose(before - float(slope), following, rtol=1e-12)
    expected = weights[:, None] * (samples**3 + np.array([1.0, 0.0]))
    np.testing.assert_allclose(direction, expected, rtol=1e-10)


def test_a_negative_penalty_weight_is_named():
    with pytest.raises(ValueError, match="penalty_weight: got -1"):
        two_player.kale(penalty_weight=-1.0)
