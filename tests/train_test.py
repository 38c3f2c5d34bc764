"""The train step: equality with a hand-written loop, resumption, devices, compilation."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kernelgrad import kernels, mmd, objectives, train

OPTIMIZER = optax.adam(0.01)
make_imq = functools.partial(kernels.median_mixture, kernels.imq_mixture)


def _generator(params, batch_stats, latents):
    samples = jnp.tanh(latents @ params["inner"]) @ params["outer"] + params["bias"]
    return samples, {"calls": batch_stats["calls"] + 1}


def _sample_latents(key, n):
    return jax.random.normal(key, (n, 3))


def _setup(rng, objective="kl", axis_name=None):
    params = {
        "inner": jnp.asarray(rng.normal(size=(3, 8)), jnp.float32),
        "outer": jnp.asarray(rng.normal(size=(8, 2)), jnp.float32),
        "bias": jnp.zeros((1, 2)),
    }
    state = train.init(params, {"calls": jnp.zeros(())}, OPTIMIZER)
    step = train.make_train_step(
        _generator,
        objectives.OBJECTIVES[objective](make_imq),
        OPTIMIZER,
        sample_latents=_sample_latents,
        axis_name=axis_name,
    )
    data = jnp.asarray(rng.normal(1.0, 0.5, size=(70, 2)), jnp.float32)
    return state, step, data


def _assert_close(a, b, tolerance):
    chex.assert_trees_all_close(a, b, atol=tolerance, rtol=tolerance)


def test_one_step_is_the_mmd_loss_differentiated_through_the_generator(key, rng):
    state, step, data = _setup(rng, "mmd")
    batch = data[:20]
    new_state, info = jax.jit(step)(state, key, batch)

    latent_key, _ = jax.random.split(jax.random.fold_in(key, 0))
    latents = _sample_latents(latent_key, 20)

    def loss(params):
        x, _ = _generator(params, state.batch_stats, latents)
        return mmd.mmd_v_statistic(x, batch, jax.lax.stop_gradient(make_imq(x, batch)))

    value, gradient = jax.jit(jax.value_and_grad(loss))(state.params)
    updates, _ = OPTIMIZER.update(gradient, OPTIMIZER.init(state.params), state.params)
    _assert_close(new_state.params, optax.apply_updates(state.params, updates), 1e-5)
    np.testing.assert_allclose(info["mmd"], value, rtol=1e-4)
    assert new_state.step == 1
    assert new_state.batch_stats["calls"] == 1
    assert info["finite"]


@pytest.mark.parametrize("objective", objectives.OBJECTIVES)
def test_training_fits_the_data(key, rng, objective):
    state, step, data = _setup(rng, objective)
    run = jax.jit(train.scan_resident(step, batch_size=35, num_steps=200))
    state, info = run(state, key, data)
    assert info["mmd"][-20:].mean() < 0.2 * info["mmd"][:5].mean()
    assert info["finite"].all()


def test_batches_are_distinct_examples_each_as_likely(key):
    def step(state, key, data):
        return state._replace(step=state.step + 1), {"data": data}

    state = train.TrainState(jnp.int32(0), {}, {}, ())
    run = jax.jit(train.scan_resident(step, batch_size=10, num_steps=4000))
    _, info = run(state, key, jnp.arange(43.0)[:, None])
    batches = np.asarray(info["data"][..., 0], int)
    assert all(len(set(batch)) == 10 for batch in batches)
    counts = np.bincount(batches.ravel(), minlength=43)
    stretches = np.arange(11) * 43 // 10
    for start, end in itertools.pairwise(stretches):
        expected = 4000 / (end - start)
        noise = np.sqrt(expected * (1 - 1 / (end - start)))
        assert np.abs(counts[start:end] - expected).max() < 5 * noise


def test_a_run_cut_into_calls_is_bit_identical(key, rng):
    state, step, data = _setup(rng)
    whole = jax.jit(train.scan_resident(step, batch_size=20, num_steps=12))
    reference, _ = whole(state, key, data)
    cut = jax.jit(train.scan_resident(step, batch_size=20, num_steps=4))
    for _ in range(3):
        state, _ = cut(state, key, data)
    chex.assert_trees_all_equal(state, reference)


@pytest.mark.parametrize("objective", objectives.OBJECTIVES)
def test_two_devices_make_the_one_device_update(key, rng, objective):
    state, step, data = _setup(rng, objective)
    alone, alone_info = jax.jit(train.scan_resident(step, batch_size=20, num_steps=5))(
        state, key, data
    )
    _, step, _ = _setup(rng, objective, axis_name=train.AXIS)
    run = train.scan_resident(step, batch_size=20, num_steps=5, axis_name=train.AXIS)
    devices = jax.devices()[:2]
    mapped = train.pmap_train_step(run, devices)
    spread, info = mapped(train.replicate(state, devices), key, train.replicate(data, devices))
    _assert_close(train.unreplicate(spread).params, alone.params, 1e-5)
    _assert_close(train.unreplicate(info)["mmd"], alone_info["mmd"], 1e-5)
    for leaf in jax.tree.leaves(spread):
        np.testing.assert_array_equal(leaf[0], leaf[1])


def test_pmapped_step_compiles_once_and_donates_the_state(key, rng):
    state, step, data = _setup(rng, axis_name=train.AXIS)
    run = train.scan_resident(step, batch_size=20, num_steps=2, axis_name=train.AXIS)
    mapped = train.pmap_train_step(chex.assert_max_traces(run, n=1))
    data = train.replicate(data)
    first = train.replicate(state)
    second, _ = mapped(first, key, data)
    third, _ = mapped(second, jax.random.fold_in(key, 1), data)
    assert train.unreplicate(third).step == 4
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.params))


def test_host_batches_are_the_same_step(key, rng):
    state, step, data = _setup(rng)
    batches = data[:60].reshape(3, 20, 2)
    scanned, info = jax.jit(train.scan_batches(step))(state, key, batches)
    _, step_key = jax.random.split(key)
    one_step = jax.jit(step)
    for batch in batches:
        state, _ = one_step(state, step_key, batch)
    _assert_close(scanned, state, 1e-6)
    assert info["mmd"].shape == (3,)


def test_non_finite_state_is_flagged_at_its_step(key, rng):
    state, step, data = _setup(rng)
    broken = data.at[3].set(jnp.nan)
    batches = jnp.stack([data[:20], broken[:20]])
    _, info = jax.jit(train.scan_batches(step))(state, key, batches)
    np.testing.assert_array_equal(info["finite"], [True, False])


def test_uint8_is_read_as_the_unit_interval():
    data = train.as_unit_interval(jnp.array([0, 51, 255], jnp.uint8))
    np.testing.assert_allclose(data, [0, 0.2, 1], rtol=1e-6)
    assert data.dtype == jnp.float32


@pytest.mark.parametrize("batch_size", [71, 15])
def test_bad_batch_is_named(key, rng, batch_size):
    state, step, data = _setup(rng, axis_name=train.AXIS)
    run = train.scan_resident(step, batch_size=batch_size, num_steps=1, axis_name=train.AXIS)
    with pytest.raises(ValueError, match=f"batch_size: got {batch_size}"):
        train.pmap_train_step(run)(train.replicate(state), key, train.replicate(data))
