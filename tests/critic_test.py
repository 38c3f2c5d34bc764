"""The critic's step: its loss by hand, statistics, extra arguments, projection, devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kernelgrad import critic, kernels, mmd, two_player


def _apply(params, stats, points):
    return points @ params["w"] + params["b"], {"seen": stats["seen"] + len(points)}


def _setup(objective, optimizer):
    params = {"w": jnp.array([0.4, -0.3]), "b": jnp.zeros(())}
    one = critic.Critic(objective, _apply, optimizer)
    return one, critic.init(params, {"seen": jnp.zeros(())}, one)


def _clouds(rng):
    return (
        jnp.asarray(rng.normal(size=(6, 2)), jnp.float32),
        jnp.asarray(rng.normal(1.0, 1.0, size=(6, 2)), jnp.float32),
    )


def test_step_descends_the_mean_difference_and_is_clipped(key, rng):
    samples, data = _clouds(rng)
    one, state = _setup(two_player.wgan_clip(clip=0.35), optax.sgd(0.1))
    new_state, info = jax.jit(critic.step, static_argnums=2)(key, state, one, samples, data)
    gradient = np.mean(samples, axis=0) - np.mean(data, axis=0)
    expected = np.clip(np.array([0.4, -0.3]) - 0.1 * gradient, -0.35, 0.35)
    np.testing.assert_allclose(new_state.params["w"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        info["critic_loss"], gradient @ np.array([0.4, -0.3]), rtol=1e-4, atol=1e-6
    )
    assert new_state.stats["seen"] == 6
    np.testing.assert_allclose(
        critic.bind(new_state, one)(data), data @ new_state.params["w"], rtol=1e-5
    )


def test_optimizer_gets_the_scalars_of_the_loss(key, rng):
    """An optimizer that stops once the loss is below a threshold."""
    stop = critic.scale_by_info(lambda info: jnp.where(info["critic_loss"] < 0, 0.0, 2.0))
    optimizer = optax.chain(optax.sgd(0.1, momentum=0.9), stop)
    samples, data = _clouds(rng)
    one, state = _setup(two_player.wgan_clip(clip=9.0), optimizer)
    for a, b in ((samples, data), (data, samples)):
        new_state, info = critic.step(key, state, one, a, b)
        gradient = np.mean(a, axis=0) - np.mean(b, axis=0)
        expected = -0.2 * gradient if info["critic_loss"] > 0 else np.zeros(2)
        moved = new_state.params["w"] - state.params["w"]
        np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-7)


def test_two_devices_make_the_one_device_step(key, rng):
    samples, data = _clouds(rng)
    one, state = _setup(two_player.wgan_gp(), optax.sgd(0.1, momentum=0.9))
    alone = critic.step(key, state, one, samples, data)
    spread = jax.pmap(
        lambda a, b: critic.step(key, state, one, a, b, axis_name="i"), axis_name="i"
    )(samples.reshape(2, 3, 2), data.reshape(2, 3, 2))
    for half in range(2):
        got = jax.tree.map(lambda leaf, half=half: leaf[half], spread)
        chex.assert_trees_all_close(
            (got[0].params, got[1]), (alone[0].params, alone[1]), rtol=1e-4, atol=1e-5
        )


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("check", [True, False])
def test_a_loss_that_is_a_statistic_of_the_union_makes_the_one_device_step(key, rng, check):
    """With types of what varies over devices, and without."""
    kernel = kernels.rbf_mixture(1.0)

    def loss(critic_fn, key, samples, data, *, axis_name=None):
        x, y = (critic_fn(points)[:, None] for points in (samples, data))
        value = -mmd.mmd_v_statistic(x, y, kernel, axis_name=axis_name)
        return two_player.of_union(value, axis_name=axis_name), {}

    samples, data = _clouds(rng)
    one, state = _setup(two_player.TwoPlayer(loss, two_player.hinge().direction), optax.sgd(1.0))
    alone, _ = jax.jit(lambda a, b: critic.step(key, state, one, a, b))(samples, data)
    spec = jax.sharding.PartitionSpec
    mapped = jax.shard_map(
        lambda a, b: critic.step(key, state, one, a, b, axis_name="i")[0].params,
        mesh=jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=spec("i"),
        out_specs=spec(),
        check_vma=check,
    )
    spread = jax.jit(mapped)(samples, data)
    assert np.abs(alone.params["w"] - state.params["w"]).max() > 0.01
    chex.assert_trees_all_close(spread, alone.params, rtol=1e-4, atol=1e-5)
