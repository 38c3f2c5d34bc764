"""The train step: equality with a hand-written loop, resumption, devices, compilation."""

import functools
import itertools
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from kernelgrad import adversarial, critic, kernels, mmd, objectives, steingan, train, two_player

OPTIMIZER = optax.adam(0.01)
make_imq = functools.partial(kernels.median_mixture, kernels.imq_mixture)


def _critic_apply(params, stats, points):
    hidden = jnp.tanh(points @ params["inner"])
    return hidden @ params["outer"], {"calls": stats["calls"] + 1}


def _critic(objective, num_steps=1):
    return critic.Critic(objective, _critic_apply, optax.sgd(0.05), num_steps)


OBJECTIVES = {
    "kl": objectives.kl(make_imq),
    "mmd": objectives.mmd_v(make_imq),
    "noisy_jsd": objectives.noisy_jsd(variance=0.1),
    "ratio_ulsif": objectives.ratio_ulsif(make_imq),
    "ratio_kliep": objectives.ratio_kliep(make_imq),
    "drift": objectives.drift(),
    "conservative_drift": objectives.conservative_drift(make_imq),
    "energy_distance": objectives.energy_distance(),
    "sliced_energy": objectives.sliced_energy(4),
    "noisy_mmd": objectives.noisy_mmd(make_imq, noise_scale=0.1),
    "f_divergence": objectives.f_divergence("forward_kl", make_imq),
    "kale_flow": objectives.kale_flow(make_imq),
    "gan_saturating": _critic(two_player.gan_saturating()),
    "gan_non_saturating": _critic(two_player.gan_non_saturating()),
    "gan_kl": _critic(two_player.gan_kl(), 2),
    "wgan_clip": _critic(two_player.wgan_clip(clip=0.5), 2),
    "wgan_gp": _critic(two_player.wgan_gp(), 2),
    "hinge": _critic(two_player.hinge()),
    "through": objectives.normalized(
        objectives.through([(jnp.tanh, 1.0), (lambda x: x, 0.5)], objectives.mmd_v(make_imq))
    ),
    "gan_through": _critic(objectives.normalized(objectives.through(jnp.tanh, two_player.hinge()))),
}  # learned features: learned_features_test.py


def _generator(params, batch_stats, latents):
    samples = jnp.tanh(latents @ params["inner"]) @ params["outer"] + params["bias"]
    return samples, {"calls": batch_stats["calls"] + 1}


def _sample_latents(key, n):
    return jax.random.normal(key, (n, 3))


def _setup(rng, objective="kl", axis_name=None, noise_variance=None):
    params = {
        "inner": jnp.asarray(rng.normal(size=(3, 8)), jnp.float32),
        "outer": jnp.asarray(rng.normal(size=(8, 2)), jnp.float32),
        "bias": jnp.zeros((1, 2)),
    }
    critic_state = None
    if isinstance(OBJECTIVES[objective], critic.Critic):
        critic_params = {
            "inner": jnp.asarray(rng.normal(size=(2, 6)), jnp.float32),
            "outer": jnp.asarray(rng.normal(size=6), jnp.float32),
        }
        critic_state = critic.init(critic_params, {"calls": jnp.zeros(())}, OBJECTIVES[objective])
    state = train.init(params, {"calls": jnp.zeros(())}, OPTIMIZER, critic_state)
    step = train.make_train_step(
        _generator,
        OBJECTIVES[objective],
        OPTIMIZER,
        sample_latents=_sample_latents,
        noise_variance=noise_variance,
        axis_name=axis_name,
    )
    data = jnp.asarray(rng.normal(1.0, 0.5, size=(70, 2)), jnp.float32)
    return state, step, data


def _assert_close(a, b, tolerance):
    chex.assert_trees_all_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_updates_of_one_step_have_latents_of_their_own(key, rng):
    state, _, data = _setup(rng, "mmd")
    batch = data[:20]
    step = train.make_train_step(
        _generator, OBJECTIVES["mmd"], OPTIMIZER, sample_latents=_sample_latents, num_updates=3
    )
    new_state, _ = jax.jit(step)(state, key, batch)

    @jax.jit
    def update(params, opt_state, latents):
        def loss(params):
            x, _ = _generator(params, state.batch_stats, latents)
            return mmd.mmd_v_statistic(x, batch, jax.lax.stop_gradient(make_imq(x, batch)))

        updates, opt_state = OPTIMIZER.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    first, _ = jax.random.split(jax.random.fold_in(key, 0))
    params, opt_state = state.params, OPTIMIZER.init(state.params)
    for latent_key in (first, jax.random.fold_in(first, 1), jax.random.fold_in(first, 2)):
        params, opt_state = update(params, opt_state, _sample_latents(latent_key, 20))
    _assert_close(new_state.params, params, 1e-5)
    assert new_state.step == 1
    assert new_state.batch_stats["calls"] == 3


@pytest.mark.thorough
def test_the_critic_waits_while_the_generator_goes_on(key, rng):
    state, once, data = _setup(rng, "gan_kl")
    twice = train.make_train_step(
        _generator, OBJECTIVES["gan_kl"], OPTIMIZER, sample_latents=_sample_latents, num_updates=2
    )
    rows = data[: 10 * OBJECTIVES["gan_kl"].num_steps]
    one, two = (jax.jit(step)(state, key, rows)[0] for step in (once, twice))
    chex.assert_trees_all_equal(one.critic, two.critic)
    assert not np.allclose(one.params["bias"], two.params["bias"])


@pytest.mark.thorough
@pytest.mark.parametrize("objective", ["kl", "mmd"])
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


@pytest.mark.thorough
@pytest.mark.parametrize(
    "objective",
    ["wgan_gp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("kl", "through"))],
)
def test_a_run_cut_into_calls_is_bit_identical(key, rng, objective):
    state, step, data = _setup(rng, objective)
    whole = jax.jit(train.scan_resident(step, batch_size=20, num_steps=12))
    reference, _ = whole(state, key, data)
    cut = jax.jit(train.scan_resident(step, batch_size=20, num_steps=4))
    for _ in range(3):
        state, _ = cut(state, key, data)
    chex.assert_trees_all_equal(state, reference)


_WHOLE = {"kl", "noisy_jsd", "wgan_gp"}  # the others: objectives_test.py and critic_test.py


@pytest.mark.thorough
@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(name, marks=pytest.mark.slow) if name not in _WHOLE else name
        for name in OBJECTIVES
    ],
)
def test_two_devices_make_the_one_device_update(key, rng, objective):
    schedule = optax.linear_schedule(0.2, 0.0, 4)
    state, step, data = _setup(rng, objective, noise_variance=schedule)
    alone, alone_info = jax.jit(train.scan_resident(step, batch_size=20, num_steps=5))(
        state, key, data
    )
    _, step, _ = _setup(rng, objective, axis_name=train.AXIS, noise_variance=schedule)
    run = train.scan_resident(step, batch_size=20, num_steps=5, axis_name=train.AXIS)
    devices = jax.devices()[:2]
    mapped = train.pmap_train_step(run, devices)
    spread, info = mapped(train.replicate(state, devices), key, train.replicate(data, devices))
    one = train.unreplicate(spread)
    _assert_close((one.params, one.critic), (alone.params, alone.critic), 2e-5)
    _assert_close(train.unreplicate(info), alone_info, 1e-4)
    for leaf in jax.tree.leaves(spread):
        np.testing.assert_array_equal(leaf[0], leaf[1])


@pytest.mark.thorough(quick=4)
@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(name, marks=pytest.mark.slow) if name != "gan_saturating" else name
        for name in OBJECTIVES
    ],
)
def test_shard_map_makes_the_one_device_update(key, rng, objective):
    """With its default check that what leaves as one state is one."""
    state, step, data = _setup(rng, objective)
    alone = jax.jit(step)(state, key, data[:20])
    _, step, _ = _setup(rng, objective, axis_name=train.AXIS)
    mesh = Mesh(np.array(jax.devices()[:2]), (train.AXIS,))
    specs = {"in_specs": (P(), P(), P(train.AXIS)), "out_specs": P()}
    mapped = jax.jit(jax.shard_map(step, mesh=mesh, **specs))
    _assert_close(mapped(state, key, data[:20]), alone, 1e-4)


@pytest.mark.thorough
def test_one_step_of_two_players_is_the_hand_written_loop(key, rng):
    """Two critic steps on their own batches, noise on everything, then the generator's."""
    variance = 0.3
    state, step, data = _setup(rng, "gan_kl", noise_variance=lambda step: variance + 0.0 * step)
    rows = data[:20]
    new_state, info = jax.jit(step)(state, key, rows)

    latent_key, _, noise_key, critic_key = jax.random.split(jax.random.fold_in(key, 0), 4)

    def clouds(latent_key, noise_key, batch):
        latents = _sample_latents(latent_key, 10)
        noise = [
            np.sqrt(variance) * jax.random.normal(k, (10, 2)) for k in jax.random.split(noise_key)
        ]
        return latents, _generator(state.params, state.batch_stats, latents)[0], batch, noise

    params, optimizer = state.critic.params, optax.sgd(0.05)
    for half, half_key in enumerate(jax.random.split(critic_key, 2)):
        latent, noisy, _ = jax.random.split(half_key, 3)
        _, fake, real, noise = clouds(latent, noisy, rows[half::2])

        def critic_loss(params, fake=fake + noise[0], real=real + noise[1]):
            values = [_critic_apply(params, state.critic.stats, x)[0] for x in (real, fake)]
            return adversarial.discriminator_loss(*values)

        value, gradient = jax.value_and_grad(critic_loss)(params)
        updates, _ = optimizer.update(gradient, optimizer.init(params))
        params = optax.apply_updates(params, updates)
    latents, _, _, noise = clouds(latent_key, noise_key, rows[1::2])

    def loss(generator_params):
        fake = _generator(generator_params, state.batch_stats, latents)[0] + noise[0]
        return adversarial.kl_loss(_critic_apply(params, {"calls": 0}, fake)[0])

    updates, _ = OPTIMIZER.update(jax.grad(loss)(state.params), state.opt_state, state.params)
    _assert_close(new_state.critic.params, params, 1e-5)
    _assert_close(new_state.params, optax.apply_updates(state.params, updates), 1e-5)
    np.testing.assert_allclose(info["critic_loss"], value, rtol=1e-5)
    assert new_state.critic.stats["calls"] == 2


@pytest.mark.thorough
def test_critic_starts_from_its_state(key, rng):
    state, step, data = _setup(rng, "wgan_gp")
    with pytest.raises(ValueError, match=r"state.critic: got None"):
        step(state._replace(critic=None), key, data[:20])
    with pytest.raises(ValueError, match=r"data: got 21 rows; expected a multiple of critic"):
        step(state, key, data[:21])
    broken = state._replace(critic=jax.tree.map(lambda leaf: leaf * jnp.nan, state.critic))
    _, info = jax.jit(step)(broken, key, data[:20])
    assert not info["finite"]
    with pytest.raises(ValueError, match=r"critic.num_steps: got 0"):
        train.make_train_step(
            _generator,
            _critic(two_player.hinge(), 0),
            OPTIMIZER,
            sample_latents=_sample_latents,
        )


@pytest.mark.thorough
def test_direction_rms_is_the_root_of_the_mean_square(key, rng):
    state, _, data = _setup(rng)
    step = train.make_train_step(
        _generator,
        lambda key, x, y, axis_name: (jnp.broadcast_to(jnp.array([3.0, 4.0]), x.shape), {}),
        OPTIMIZER,
        sample_latents=_sample_latents,
    )
    np.testing.assert_allclose(step(state, key, data)[1]["direction_rms"], 5.0, rtol=1e-6)


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_non_finite_state_is_flagged_at_its_step(key, rng):
    state, step, data = _setup(rng)
    broken = data.at[3].set(jnp.nan)
    batches = jnp.stack([data[:20], broken[:20]])
    _, info = jax.jit(train.scan_batches(step))(state, key, batches)
    np.testing.assert_array_equal(info["finite"], [True, False])


@pytest.mark.thorough
def test_a_state_with_typed_keys_is_replicated(key, rng):
    """Optax's noise keeps a key in its state: replicated, stepped under pmap, and taken back."""
    optimizer = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.sgd(0.1))
    params = {"shift": jnp.zeros((1, 2))}
    state = train.init(params, {}, optimizer)

    def make(axis_name):
        return train.make_train_step(
            lambda params, stats, latents: (latents + params["shift"], stats),
            lambda key, x, y, *, axis_name=None: (x - jnp.mean(y), {}),
            optimizer,
            sample_latents=lambda key, n: jax.random.normal(key, (n, 2)),
            axis_name=axis_name,
        )

    data = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)
    expected, _ = jax.jit(make(None))(state, key, data)
    run = train.pmap_train_step(make(train.AXIS), jax.devices()[:1])
    spread = train.replicate(state, jax.devices()[:1])
    copied = train.unreplicate(spread)
    chex.assert_trees_all_equal(*(_key_data(tree) for tree in (copied, state)))
    got = train.unreplicate(run(spread, key, data[None])[0])
    assert jax.tree.map(lambda leaf: leaf.dtype, got) == jax.tree.map(lambda a: a.dtype, expected)
    chex.assert_trees_all_close(_key_data(got), _key_data(expected), rtol=1e-6)
    both = train.replicate(state)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(both)} == {jax.device_count()}


def test_states_that_are_spread_are_runs_of_their_own(key):
    """pmap(vmap) over four runs on two devices: each is its separate run, compiled once."""
    params = {"shift": jnp.arange(4.0)[:, None, None] * jnp.ones((1, 2))}
    states = jax.vmap(lambda p: train.init(p, {}, optax.sgd(0.1)))(params)
    step = train.make_train_step(
        lambda params, stats, latents: (latents + params["shift"], stats),
        lambda key, x, y, *, axis_name=None: (x - jnp.mean(y), {}),
        optax.sgd(0.1),
        sample_latents=lambda key, n: jax.random.normal(key, (n, 2)),
    )
    keys, data = jax.random.split(key, 4), jnp.ones((3, 2))
    devices = jax.devices()[:2]

    def share(states, _, given):
        return jax.vmap(step, in_axes=(0, 0, None))(states, *given)

    run = train.pmap_train_step(chex.assert_max_traces(share, 1), devices)
    given = train.spread(keys, devices), train.replicate(data, devices)
    spread, _ = run(train.spread(states, devices), None, given)
    spread, _ = run(spread, None, given)
    got = jax.tree.map(lambda leaf: np.concatenate(leaf), spread)
    for index in range(4):
        state = jax.tree.map(lambda leaf, index=index: leaf[index], states)
        for _ in range(2):
            state, _ = step(state, keys[index], data)
        of_run = jax.tree.map(lambda leaf, index=index: leaf[index], got)
        chex.assert_trees_all_close(of_run, state, rtol=1e-6)


def _key_data(tree):
    def data(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(data, tree)


@pytest.mark.thorough
def test_what_a_worker_is_sent_comes_back_the_same(key, rng):
    """States by pickle; objectives and steps, closures like Optax's own, by cloudpickle (Ray)."""
    cloudpickle = pytest.importorskip("cloudpickle")
    optimizer = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.sgd(0.1))
    state = train.init({"w": jnp.ones((1, 3))}, {}, optimizer)
    chex.assert_trees_all_equal(
        _key_data(pickle.loads(pickle.dumps(state))),  # noqa: S301  # our own
        _key_data(state),
    )
    for objective in (*OBJECTIVES.values(), steingan.steingan(), two_player.kale()):
        assert type(cloudpickle.loads(cloudpickle.dumps(objective))) is type(objective)
    state, step, data = _setup(rng, "mmd")
    twin = cloudpickle.loads(cloudpickle.dumps(step))
    chex.assert_trees_all_equal(jax.jit(twin)(state, key, data), jax.jit(step)(state, key, data))


def _latents(key, n):
    return jnp.ones((n, 3))


def _descend(key, samples, data, *, axis_name=None):
    return samples, {}


GENERATOR = r"expected \(params, batch_stats, latents\) -> \(samples, batch_stats\)"
WRONG = {
    "a generator of two": (
        {"generator": lambda p, z: (z, {})},
        rf"generator: got \(p, z\).*{GENERATOR}",
    ),
    "bare samples": ({"generator": lambda p, s, z: z}, rf"generator: returned .*{GENERATOR}"),
    "one sample": (
        {"generator": lambda p, s, z: (z[0], s)},
        r"samples of generator: returned shape",
    ),
    "no latents": ({"sample_latents": lambda key: 0}, r"sample_latents: got \(key\).*\(key, n\)"),
    "few latents": (
        {"sample_latents": lambda key, n: jnp.ones(3)},
        "sample_latents: returned shape",
    ),
    "an objective of two": (
        {"objective": lambda x, y: x},
        r"objective: got \(x, y\).*\(key, samples, data, \*, axis_name\)",
    ),
    "a bare direction": (
        {"objective": lambda key, x, y, *, axis_name=None: x},
        r"objective: returned .*direction like samples, info",
    ),
    "a loss": (
        {"objective": lambda key, x, y, *, axis_name=None: (jnp.mean(x), {})},
        r"objective: returned shape \(\) and dict",
    ),
    "a rule of one": (
        {"objective": objectives.mmd_v(lambda x: kernels.imq_mixture(1.0))},
        r"make_kernel: got \(x\).*\(samples, data\) or \(samples, data, \*, axis_name\) -> kernel",
    ),
    "a lengthscale": (
        {"objective": objectives.kl(lambda x, y, *, axis_name: 1.0)},
        "make_kernel: returned float",
    ),
    "a pull-back of two": (
        {"pull_back": lambda fn, params: params},
        r"pull_back: got \(fn, params\).*\(generator_fn, params, direction\)",
    ),
    "another tree": (
        {"pull_back": lambda fn, params, phi: phi},
        "pull_back: returned another tree",
    ),
    "a network of two": (
        {"objective": critic.Critic(two_player.hinge(), lambda p, x: x, OPTIMIZER)},
        r"critic.apply: got \(p, x\).*\(params, stats, x\) -> \(output, stats\)",
    ),
    "bare values": (
        {"objective": critic.Critic(two_player.hinge(), lambda p, s, x: x[:, 0], OPTIMIZER)},
        r"critic.apply: returned .*\(output, stats\)",
    ),
    "no function": ({"generator": 3}, f"generator: got int; {GENERATOR}"),
}


def _step_of(**functions):
    functions = {
        "generator": lambda params, stats, latents: (latents * params["w"], stats),
        "objective": _descend,
        "sample_latents": _latents,
    } | functions
    state = train.init({"w": jnp.ones((1, 3))}, {}, OPTIMIZER)
    if isinstance(functions["objective"], critic.Critic):
        state = state._replace(critic=critic.init({}, {}, functions["objective"]))
    generator, objective = functions.pop("generator"), functions.pop("objective")
    step = train.make_train_step(generator, objective, OPTIMIZER, **functions)
    return lambda key: jax.eval_shape(step, state, key, jnp.ones((4, 3)))


@pytest.mark.parametrize("name", WRONG)
def test_a_function_of_another_form_is_named_with_the_right_one(key, name):
    functions, message = WRONG[name]
    with pytest.raises(ValueError, match=message) as error:
        _step_of(**functions)(key)
    assert "\n" not in str(error.value)


def test_errors_of_the_callers_own_are_left_as_they_are(key):
    def generator(params, batch_stats, latents):
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine"):
        _step_of(generator=generator)(key)


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


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
@pytest.mark.parametrize("feed", ["step", "resident", "batches"])
def test_a_key_that_was_replicated_is_named(rng, make_key, feed):
    devices, key = jax.devices()[:1], make_key(0)
    state, step, data = _setup(rng, axis_name=train.AXIS)
    run, rows = {
        "step": (step, data),
        "resident": (
            train.scan_resident(step, batch_size=10, num_steps=1, axis_name=train.AXIS),
            data,
        ),
        "batches": (train.scan_batches(step), data[None]),
    }[feed]
    mapped = train.pmap_train_step(run, devices)
    state, rows, keys = (train.replicate(tree, devices) for tree in (state, rows, key))
    message = r"^key: got keys of shape \(1,.*\); expected one, .* Do not replicate it"
    with pytest.raises(ValueError, match=message):
        mapped(state, keys, rows)
    jax.eval_shape(mapped, state, key, rows)


def test_a_step_on_weakly_typed_parameters_is_traced_once():
    """Their types, and those of Adam's moments, would else turn strong one step after another."""
    params = {"shift": jnp.full(2, 0.5), "scale": 1.0}
    assert params["shift"].weak_type

    def generator(params, batch_stats, latents):
        return params["shift"] + params["scale"] * latents, batch_stats

    def to_zero(key, samples, data, *, axis_name=None):
        return samples, {}

    step = train.make_train_step(
        generator, to_zero, OPTIMIZER, sample_latents=lambda _, n: jnp.zeros((n, 2))
    )
    advance = jax.jit(chex.assert_max_traces(step, n=1))
    state, data = train.init(params, {}, OPTIMIZER), jnp.zeros((4, 2))
    for _ in range(3):
        state, _ = advance(state, jax.random.key(0), data)
    np.testing.assert_allclose(state.params["shift"], 0.47, rtol=1e-3)


def _of_average(decay, dtype=jnp.float32):
    """A step that raises the parameter by 1 and its statistics by 2, and its state."""
    optimizer = optax.sgd(1.0)
    step = train.make_train_step(
        lambda x, stats, latents: (x + latents, jax.tree.map(lambda one: one + 2, stats)),
        lambda key, samples, data, *, axis_name=None: (-jnp.ones_like(samples), {}),
        optimizer,
        sample_latents=lambda key, n: jnp.zeros((n, 1), dtype),
        ema_decay=decay,
    )
    stats = {"calls": jnp.int32(0), "mean": jnp.zeros(())}
    return jax.jit(step), train.init(jnp.ones((), dtype), stats, optimizer, ema=decay is not None)


@pytest.mark.parametrize("decay", [0.0, 0.75, 0.999])
def test_the_average_is_the_weighted_mean_of_the_steps(key, decay):
    """The start, which no step has made, has no weight."""
    step, state = _of_average(jnp.float32(decay))
    seen = []
    for _ in range(4):
        state, _ = step(state, key, jnp.zeros((1, 1)))
        seen.append(float(state.params))
    weights = float(decay) ** np.arange(3.0, -1.0, -1.0)
    found = train.averaged(state)
    np.testing.assert_allclose(found.params, np.average(seen, weights=weights), rtol=1e-5)
    np.testing.assert_array_equal(np.diff(seen), 1)
    assert train.averaged(found._replace(ema=None)) == found._replace(ema=None)


def test_averages_of_statistics_and_of_narrow_parameters(key):
    """Counts are no means; bfloat16 would lose small steps."""
    step, state = _of_average(0.5, jnp.bfloat16)
    assert state.ema[0].dtype == jnp.float32
    for _ in range(2):
        state, _ = step(state, key, jnp.zeros((1, 1), jnp.bfloat16))
    found = train.averaged(state)
    assert found.params.dtype == jnp.bfloat16
    assert found.batch_stats["calls"] == 4
    np.testing.assert_allclose(found.batch_stats["mean"], (2 + 2 * 4) / 3, rtol=1e-6)


def test_averages_change_nothing_but_themselves(key):
    """Nor is there a leaf more without them."""
    (step, state), (plain_step, plain) = (_of_average(decay) for decay in (0.9, None))
    assert len(jax.tree.leaves(plain)) == 4
    for _ in range(2):
        (state, info), (plain, other) = (
            advance(one, key, jnp.zeros((1, 1)))
            for advance, one in ((step, state), (plain_step, plain))
        )
    chex.assert_trees_all_equal((state._replace(ema=None), info), (plain, other))


@pytest.mark.parametrize("decay", [None, 0.5])
def test_averages_and_their_decay_go_together(key, decay):
    step = train.make_train_step(
        lambda params, stats, latents: (latents * params["w"], stats),
        _descend,
        OPTIMIZER,
        sample_latents=_latents,
        ema_decay=decay,
    )
    state = train.init({"w": jnp.ones((1, 3))}, optimizer=OPTIMIZER, ema=decay is None)
    with pytest.raises(ValueError, match=r"state.ema: got .*averages.* expected init\(") as error:
        jax.eval_shape(step, state, key, jnp.ones((4, 3)))
    assert "\n" not in str(error.value)


def test_a_decay_out_of_its_range_is_named():
    with pytest.raises(ValueError, match=r"ema_decay: got 1.; expected values in \[0, 1\)"):
        train.make_train_step(
            _generator, _descend, OPTIMIZER, sample_latents=_latents, ema_decay=1.0
        )


def test_batch_statistics_are_empty_where_none_are_given():
    params = {"w": jnp.ones(2)}
    chex.assert_trees_all_equal(
        train.init(params, optimizer=OPTIMIZER), train.init(params, {}, OPTIMIZER)
    )
    with pytest.raises(ValueError, match=r"optimizer: got NoneType; expected .*optimizer=optim"):
        train.init(params, OPTIMIZER)
