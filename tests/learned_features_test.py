"""Learned features: losses and directions against float64 loops, devices, training, errors.

The critic's features are phi(x) = tanh(x W), of three coordinates.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

from kernelgrad import critic, mmd, objectives, two_player
from kernelgrad.types import Kernel

SCALES = np.sqrt([0.5, 1.0, 2.0, 4.0])
W = np.array([[0.7, -1.2, 0.4], [0.3, 0.9, -0.8]])
N = 5


def phi(w, points):
    return jnp.tanh(points @ w)


def critic_fn(points):
    return jnp.tanh(points @ W)


def _features(points):
    return np.tanh(points @ W)


def _clouds(rng, n=N):
    return 0.8 * rng.normal(size=(n, 2)), rng.normal(0.5, 1.3, size=(n, 2))


def _pulled(points, directions):
    """J^T d, with J = diag(1 - phi^2) W^T."""
    return ((1 - _features(points) ** 2) * directions) @ W.T


OBJECTIVES = {
    "mmd_gan": two_player.mmd_gan,
    "mmd_power": two_player.mmd_power,
    "kl_adversarial": functools.partial(two_player.kl_adversarial, ridge=0.3),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_direction_is_that_of_the_features_pulled_back(key, rng, name):
    """n times the difference quotients of MMD^2 in the samples; and KL's, by its own loops."""
    samples, data = _clouds(rng)
    with jax.enable_x64(True):
        direction, info = jax.jit(functools.partial(OBJECTIVES[name]().direction, critic_fn))(
            key, jnp.asarray(samples), jnp.asarray(data)
        )
    x, y = _features(samples), _features(data)
    discrepancy = functools.partial(oracles.mmd_v, "imq_mixture", lengthscales=SCALES)
    np.testing.assert_allclose(info["mmd"], discrepancy(x, y), rtol=1e-10)
    if name == "kl_adversarial":
        score_q = oracles.stein_score("imq_mixture", x, SCALES, 0.3)
        score_p = [oracles.stein_score_at("imq_mixture", one, y, SCALES, 0.3) for one in x]
        expected = _pulled(samples, score_q - np.array(score_p))
    else:
        expected = np.zeros_like(samples)
        for entry in np.ndindex(samples.shape):
            bump = np.zeros_like(samples)
            bump[entry] = 1e-5
            up, down = (discrepancy(_features(samples + s * bump), y) for s in (1, -1))
            expected[entry] = N * (up - down) / 2e-5
    np.testing.assert_allclose(direction, expected, rtol=1e-6, atol=1e-9)


CRITERIA = {
    "mmd_gan": lambda x, y: oracles.mmd_u("imq_mixture", x, y, SCALES),
    "mmd_power": lambda x, y: oracles.test_power(
        lambda a, b: oracles.kernel("imq_mixture", a, b, SCALES), x, y
    )[0],
    "kl_adversarial": lambda x, y: oracles.mmd_u("imq_mixture", x, y, SCALES),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_critic_loss_is_the_criterion_and_the_slope_of_the_witness(key, rng, name, monkeypatch):
    """The penalty by difference quotients of the witness's loops, at points known to the test."""
    samples, data = _clouds(rng)
    points = (samples + 2 * data) / 3
    monkeypatch.setattr(
        two_player.adversarial, "interpolates", lambda *_, **__: jnp.asarray(points)
    )
    with jax.enable_x64(True):
        objective = OBJECTIVES[name](penalty_weight=0.7)
        loss, info = jax.jit(functools.partial(objective.critic_loss, critic_fn))(
            key, jnp.asarray(samples), jnp.asarray(data)
        )
    x, y = _features(samples), _features(data)

    def witness(point):
        at = _features(point[None])
        sums = (oracles.gram("imq_mixture", at, v, SCALES).mean() for v in (x, y))
        return next(sums) - next(sums)

    slopes = [[(witness(p + s) - witness(p - s)) / 2e-5 for s in 1e-5 * np.eye(2)] for p in points]
    penalty = np.mean((np.linalg.norm(slopes, axis=1) - 1) ** 2)
    np.testing.assert_allclose(info["penalty"], penalty, rtol=1e-7)
    np.testing.assert_allclose(info["critic_loss"], -CRITERIA[name](x, y), rtol=1e-9)
    np.testing.assert_allclose(loss, float(info["critic_loss"]) + 0.7 * penalty, rtol=1e-7)


@pytest.mark.thorough
def test_any_kernel_objective_and_any_criterion_make_one(key, rng):
    """The rule for the kernel sees features, and both get what it returns."""
    samples, data = (jnp.asarray(points, jnp.float32) for points in _clouds(rng))
    seen = []

    def make_kernel(x, y, *, axis_name):
        seen.append((x.shape, y.shape, axis_name))
        return _Constant()

    def criterion(x, y, kernel, *, axis_name=None):
        assert isinstance(kernel, _Constant)
        return jnp.sum(x) - jnp.sum(y)

    def make_objective(rule):
        return lambda key, x, y, *, axis_name: (
            jnp.ones_like(x),
            {"one": rule(x, y, axis_name=None)},
        )

    made = two_player.adversarial_kernel(make_objective, criterion, make_kernel=make_kernel)
    direction, _ = made.direction(critic_fn, key, samples, data)
    np.testing.assert_allclose(direction, _pulled(samples, np.ones((N, 3))), rtol=1e-5)
    _, info = made.critic_loss(critic_fn, key, samples, data)
    expected = np.sum(_features(data)) - np.sum(_features(samples))
    np.testing.assert_allclose(info["critic_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(info["penalty"], 1.0)  # a flat witness
    assert set(seen) == {((N, 3), (N, 3), None)}


class _Constant(Kernel):
    def profile(self, sq_dist):
        return jnp.ones_like(sq_dist)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_devices_learn_and_point_like_one(key, rng, name, kind):
    """The critic's step too, whose loss is a statistic of the union."""
    x, y = (jnp.asarray(points, jnp.float32) for points in _clouds(rng, 8))
    player = critic.Critic(
        OBJECTIVES[name](), lambda w, stats, v: (phi(w, v), stats), optax.sgd(1.0)
    )
    state = critic.init(jnp.asarray(W, jnp.float32), {}, player)

    def learn(x, y, axis_name=None):
        after, info = critic.step(key, state, player, x, y, axis_name=axis_name)
        args = critic.bind(state, player), key, x, y
        direction, _ = player.objective.direction(*args, axis_name=axis_name)
        return direction, after.params, info

    alone = jax.jit(learn)(x, y)
    assert np.abs(alone[1] - W).max() > 0.01
    on_devices = functools.partial(learn, axis_name="i")
    if kind == "pmap":
        spread = jax.pmap(on_devices, axis_name="i")(x.reshape(2, 4, 2), y.reshape(2, 4, 2))
        spread = spread[0].reshape(8, 2), *jax.tree.map(lambda leaf: leaf[0], spread[1:])
    else:
        spec = jax.sharding.PartitionSpec
        mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
        outs = spec("i"), spec(), spec()
        mapped = jax.shard_map(on_devices, mesh=mesh, in_specs=spec("i"), out_specs=outs)
        spread = jax.jit(mapped)(x, y)
    for got, expected in zip(jax.tree.leaves(spread), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_steps_of_the_critic_raise_the_criterion(key, rng):
    x, y = (jnp.asarray(points, jnp.float32) for points in _clouds(rng, 8))
    player = critic.Critic(
        two_player.mmd_power(penalty_weight=0.0),
        lambda w, stats, v: (phi(w, v), stats),
        optax.sgd(0.3),
    )
    state = critic.init(jnp.asarray(W, jnp.float32), {}, player)
    step = jax.jit(lambda state: critic.step(key, state, player, x, y))
    losses = []
    for _ in range(20):
        state, info = step(state)
        losses.append(float(info["critic_loss"]))
    assert losses[-1] < losses[0] - 0.1


def test_bad_input_is_named(key):
    x = jnp.ones((4, 2))
    objective = two_player.mmd_gan()
    for output, message in (
        (lambda v: v[:, 0], r"features: got shape \(4,\); expected \(4, l\)"),
        (lambda v: v.astype(jnp.int32), "features: got dtype int32; expected floating"),
        (lambda v: v.at[0, 0].set(jnp.nan), "features: got 1 non-finite entries"),
    ):
        with pytest.raises(ValueError, match=message):
            objective.critic_loss(output, key, x, x)
        with pytest.raises(ValueError, match=message):
            objective.direction(output, key, x.at[0, 0].set(1.0), x)
    with pytest.raises(ValueError, match="penalty_weight: got -1"):
        two_player.mmd_gan(penalty_weight=-1.0)
    with pytest.raises(ValueError, match="ridge: got 0"):
        two_player.kl_adversarial(ridge=0.0)
    bare = two_player.adversarial_kernel(objectives.mmd_v, lambda x, y: 0.0)
    with pytest.raises(ValueError, match=r"criterion: got .*; expected \(features, features of"):
        bare.critic_loss(lambda v: v, key, x, x)
    for_each = two_player.adversarial_kernel(objectives.mmd_v, lambda x, *_, axis_name: x[:, 0])
    with pytest.raises(ValueError, match=r"criterion: got shape \(4,\); expected \(\)"):
        for_each.critic_loss(lambda v: v, key, x, x)
    with pytest.raises(ValueError, match="make_kernel: "):
        two_player.mmd_gan(make_kernel=mmd.mmd_gradient).critic_loss(lambda v: v, key, x, x)
