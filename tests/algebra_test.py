"""The algebra of directions: explicit Jacobians, identities, independence of the devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from kernelgrad import critic, kernels, mmd, objectives, two_player

make_imq = functools.partial(kernels.median_mixture, kernels.imq_mixture)
MATRIX = np.array([[0.7, -0.4, 0.1], [0.2, 0.9, -0.5], [-0.3, 0.6, 0.8]])


def fixed(scale=1.3):
    return lambda *_, axis_name: kernels.rbf_mixture(scale)


def bend(x):
    """Features (n, 2) of points (n, 3)."""
    return jnp.tanh(x @ jnp.asarray(MATRIX, x.dtype))[:, :2] + jnp.square(x[:, :2])


def bend_jacobians(x):
    """By finite differences of NumPy's own features; shape (n, 2, 3)."""

    def features(x):
        return np.tanh(x @ MATRIX)[:, :2] + x[:, :2] ** 2

    steps = 1e-6 * np.eye(3)
    columns = [(features(x + step) - features(x - step)) / 2e-6 for step in steps]
    return features(x), np.stack(columns, axis=-1)


def batch(rng, n=6, m=5):
    return rng.normal(size=(n, 3)), rng.normal(0.6, 1.2, size=(m, 3))


def pushed(key, samples, data, *, axis_name=None):
    """An objective that draws: a direction of noise, and its size as an info."""
    del data, axis_name
    direction = samples + jax.random.normal(key, samples.shape, samples.dtype)
    return direction, {"first": direction[0, 0]}


def towards(factor=1.0):
    """An objective that compiles fast: the way from the data's mean, and its size as an info."""

    def objective(key, samples, data, *, axis_name=None):
        del key
        mean = jnp.mean(data, axis=0, keepdims=True)
        mean = mean if axis_name is None else jax.lax.pmean(mean, axis_name)
        return factor * (samples - mean), {"size": jnp.sum(jnp.abs(mean))}

    return objective


def critic_fn(points):
    return jnp.sum(jnp.sin(points), axis=1)


# ---------------------------------------------------------------------------------------- through


@pytest.mark.thorough
def test_through_features_is_the_jacobian_times_the_direction_between_them(key, rng):
    x, y = batch(rng)
    e, jacobians = bend_jacobians(x)
    f, _ = bend_jacobians(y)
    lengthscales, ridge = (0.8, 1.6), 0.7
    score = oracles.stein_score("imq_mixture", e, lengthscales, ridge) - np.array(
        [oracles.stein_score_at("imq_mixture", q, f, lengthscales, ridge) for q in e]
    )
    with jax.enable_x64(True):
        kernel = kernels.imq_mixture(jnp.array(lengthscales))
        kl = objectives.kl(lambda *_, axis_name: kernel, ridge=ridge)
        objective = jax.jit(objectives.through(bend, kl))
        direction, info = objective(key, jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(direction, np.einsum("nij,ni->nj", jacobians, score), rtol=1e-7)
    np.testing.assert_allclose(info["mmd"], oracles.mmd_v("imq_mixture", e, f, lengthscales))


def test_mmd_through_features_descends_the_mmd_of_the_features(key, rng):
    """So does MMD^2 with a kernel of features: the same function of the samples."""
    x, y = batch(rng, n=4)
    f, _ = bend_jacobians(y)
    with jax.enable_x64(True):
        base = kernels.rbf_mixture(1.3)
        through = jax.jit(objectives.through(bend, objectives.mmd_v(fixed())))
        direction, _ = through(key, jnp.asarray(x), jnp.asarray(y))
        deep = kernels.feature_kernel(base, lambda _, x: bend(x), ())
        direct = jax.jit(objectives.mmd_v(lambda *_, axis_name: deep))
        of_kernel, _ = direct(key, jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(of_kernel, direction, rtol=1e-12)
    step = 1e-5
    for i, a in [(0, 0), (1, 2), (3, 1)]:
        bump = np.zeros_like(x)
        bump[i, a] = step
        up, down = (
            oracles.mmd_v("rbf_mixture", bend_jacobians(x + s * bump)[0], f, 1.3) for s in (1, -1)
        )
        np.testing.assert_allclose(direction[i, a], 4 * (up - down) / (2 * step), atol=1e-8)


def test_through_a_matrix_is_the_direction_of_mapped_points_mapped_back(key, rng):
    x, y = (jnp.asarray(points, jnp.float32) for points in batch(rng))
    matrix = jnp.asarray(MATRIX[:2], jnp.float32)
    direction, _ = objectives.through(lambda x: x @ matrix.T, towards())(key, x, y)
    mapped, _ = towards()(key, x @ matrix.T, y @ matrix.T)
    np.testing.assert_allclose(direction, mapped @ matrix, rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
def test_through_nothing_is_the_objective(key, rng):
    x, y = (jnp.asarray(points, jnp.float32) for points in batch(rng))
    for objective in (objectives.kl(make_imq), objectives.noisy_jsd(variance=0.5), pushed):
        expected, expected_info = jax.jit(objective)(key, x, y)
        direction, info = jax.jit(objectives.through(lambda x: x, objective))(key, x, y)
        np.testing.assert_allclose(direction, expected, rtol=1e-5, atol=1e-6)
        assert info.keys() == expected_info.keys()


def test_features_of_images_need_not_be_flat(key, rng):
    images, data = (jnp.asarray(rng.uniform(size=(4, 4, 4, 1)), jnp.float32) for _ in range(2))
    direction, _ = objectives.through(lambda x: 2 * x, towards())(key, images, data)
    expected, _ = towards()(key, 2 * images, 2 * data)
    np.testing.assert_allclose(direction, 2 * expected, rtol=1e-6)


def test_each_of_several_features_has_its_weight_and_its_objective(key, rng):
    x, y = (jnp.asarray(points, jnp.float32) for points in batch(rng))
    near, far = towards(), towards(3.0)
    parts = [(bend, 2.0), (lambda x: x, 0.5, far)]
    direction, info = objectives.through(parts, near)(key, x, y)
    bent, of_bent = objectives.through(bend, near)(key, x, y)
    plain, of_plain = far(key, x, y)
    np.testing.assert_allclose(direction, 2 * bent + 0.5 * plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_equal(info, {"size/0": of_bent["size"], "size/1": of_plain["size"]})


# ------------------------------------------------------------------------------------- normalized


def scaled(factor):
    def objective(key, samples, data, *, axis_name=None):
        del key, data, axis_name
        return factor * samples, {"mmd": jnp.float32(1)}

    return objective


@pytest.mark.parametrize("factor", [1e-30, 1.0, 3e30])
def test_a_normalized_direction_has_unit_rms_whatever_its_scale(key, rng, factor):
    x, y = (jnp.asarray(points, jnp.float32) for points in batch(rng))
    direction, info = objectives.normalized(scaled(jnp.float32(factor)))(key, x, y)
    rms = np.sqrt(np.mean(np.sum(np.square(x), axis=1)))
    np.testing.assert_allclose(direction, x / rms, rtol=2e-6)
    np.testing.assert_allclose(info["rms"], factor * rms, rtol=1e-5)
    assert info["mmd"] == 1


def test_no_direction_stays_none(key, rng):
    x, y = (jnp.asarray(points, jnp.float32) for points in batch(rng))
    direction, info = objectives.normalized(scaled(jnp.float32(0)))(key, x, y)
    np.testing.assert_array_equal(direction, 0)
    assert info["rms"] == 0


def test_what_is_not_finite_is_seen(key, rng):
    x, y = (jnp.asarray(points, jnp.float32) for points in batch(rng))
    for bad in (jnp.inf, jnp.nan):
        direction, _ = objectives.normalized(scaled(jnp.float32(1)))(key, x.at[0, 0].set(bad), y)
        assert np.isnan(direction).all()


# --------------------------------------------------------------------------------- weighted, loss


def test_a_sum_is_linear_and_draws_anew_for_each_part(key, rng):
    x, y = (jnp.asarray(points, jnp.float32) for points in batch(rng))
    one, other = towards(), scaled(0.3)
    direction, info = objectives.weighted([(2.0, one), (-0.5, other)])(key, x, y)
    expected = 2 * one(key, x, y)[0] - 0.5 * other(key, x, y)[0]
    np.testing.assert_allclose(direction, expected, rtol=1e-5, atol=1e-6)
    assert set(info) == {"size/0", "mmd/1"}
    difference, _ = objectives.weighted([(1.0, pushed), (-1.0, pushed)])(key, x, y)
    assert np.abs(difference).min() > 0


def test_names_of_nested_sums_do_not_collide(key, rng):
    x, y = (jnp.asarray(points, jnp.float32) for points in batch(rng))
    inner = objectives.weighted([(1.0, pushed), (1.0, scaled(1.0))])
    _, info = objectives.weighted([(1.0, pushed), (1.0, inner), (1.0, pushed)])(key, x, y)
    assert set(info) == {"first/0", "first/0/1", "mmd/1/1", "first/2"}


def test_a_loss_is_descended_as_its_closed_form_is(key, rng):
    x, y = batch(rng)
    with jax.enable_x64(True):
        x, y = jnp.asarray(x), jnp.asarray(y)
        loss = functools.partial(mmd.mmd_v_statistic, kernel=kernels.rbf_mixture(1.3))
        direction, info = jax.jit(objectives.from_loss(loss))(key, x, y)
        expected, expected_info = jax.jit(objectives.mmd_v(fixed()))(key, x, y)
    np.testing.assert_allclose(direction, expected, rtol=1e-9)
    np.testing.assert_allclose(info["loss"], expected_info["mmd"], rtol=1e-12)


# ------------------------------------------------------------------------------------- two players


def test_a_critic_sees_the_features(key, rng):
    x, y = batch(rng, n=5)
    e, jacobians = bend_jacobians(x)
    f, _ = bend_jacobians(y)
    gan = two_player.gan_kl()
    through = objectives.through(bend, gan)
    with jax.enable_x64(True):
        loss, _ = through.critic_loss(critic_fn, key, jnp.asarray(x), jnp.asarray(y))
        expected, _ = gan.critic_loss(critic_fn, key, jnp.asarray(e), jnp.asarray(f))
        direction, _ = through.direction(critic_fn, key, jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    # E log((1 - D) / D) is the mean of minus the logits
    slopes = -np.einsum("nij,ni->nj", jacobians, np.cos(e))
    np.testing.assert_allclose(direction, slopes, rtol=1e-7)


def test_a_critics_step_sees_nothing_but_features(key, rng):
    """Its loss and its statistics alike, whatever the features go through."""
    x, y = (jnp.asarray(points, jnp.float32) for points in batch(rng, n=5))

    def apply(params, stats, points):
        return points @ params, {"mean": jnp.mean(points, axis=0)}

    halved = objectives.through(lambda z: z / 2, objectives.normalized(two_player.hinge()))
    player = critic.Critic(objectives.through(bend, halved), apply, optax.sgd(0.1))
    state = critic.init(jnp.ones(2), {"mean": jnp.zeros(2)}, player)
    new, _ = critic.step(key, state, player, x, y)
    seen = bend(y) / 2
    np.testing.assert_allclose(new.stats["mean"], jnp.mean(seen, axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(player.objective.view(y), seen, rtol=1e-6)
    assert new.params.shape == (2,)


def test_a_normalized_game_keeps_its_critics_loss(key, rng):
    x, y = (jnp.asarray(points, jnp.float32) for points in batch(rng, n=5))
    gan = two_player.wgan_clip(clip=0.5)
    unit = objectives.normalized(gan)
    assert unit.critic_loss is gan.critic_loss
    assert unit.project is gan.project
    direction, _ = unit.direction(critic_fn, key, x, y)
    plain, _ = gan.direction(critic_fn, key, x, y)
    rms = np.sqrt(np.mean(np.sum(np.square(plain), axis=1)))
    np.testing.assert_allclose(direction, plain / rms, rtol=1e-5)


def test_a_critic_may_be_part_of_a_sum(key, rng):
    x, y = (jnp.asarray(points, jnp.float32) for points in batch(rng, n=5))
    gan, distance = two_player.gan_kl(), towards()
    both = objectives.weighted([(2.0, distance), (3.0, gan)])
    assert both.critic_loss is gan.critic_loss
    direction, info = both.direction(critic_fn, key, x, y)
    expected = 2 * distance(key, x, y)[0] + 3 * gan.direction(critic_fn, key, x, y)[0]
    np.testing.assert_allclose(direction, expected, rtol=1e-5, atol=1e-6)
    assert set(info) == {"size/0"}


# ----------------------------------------------------------------------------------------- devices

NESTED = objectives.normalized(
    objectives.weighted(
        [
            (1.0, objectives.normalized(objectives.through(bend, objectives.mmd_v(fixed())))),
            (0.5, objectives.from_loss(lambda x, y: jnp.mean(x - y[:1]) ** 2 + jnp.var(x))),
        ]
    )
)


def _pmapped(objective, key, x, y):
    halves = (points.reshape(2, -1, 3) for points in (x, y))
    direction, info = jax.pmap(lambda a, b: objective(key, a, b, axis_name="i"), axis_name="i")(
        *halves
    )
    return direction.reshape(-1, 3), jax.tree.map(lambda value: value[1], info)


def _sharded(objective, key, x, y):
    mesh = Mesh(np.array(jax.devices()[:2]), ("i",))
    spread = jax.shard_map(
        lambda a, b: objective(key, a, b, axis_name="i"),
        mesh=mesh,
        in_specs=(P("i"), P("i")),
        out_specs=(P("i"), P()),
    )
    return jax.jit(spread)(x, y)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("spread", [_pmapped, _sharded])
@pytest.mark.parametrize(
    "objective",
    [
        NESTED,
        functools.partial(
            objectives.normalized(objectives.through(bend, two_player.gan_kl())).direction,
            critic_fn,
        ),
    ],
    ids=["nested", "critic"],
)
def test_two_devices_give_the_direction_of_one(key, rng, objective, spread):
    x, y = (jnp.asarray(points, jnp.float32) for points in batch(rng, n=8, m=8))
    alone, alone_info = jax.jit(objective)(key, x, y)
    direction, info = spread(objective, key, x, y)
    np.testing.assert_allclose(direction, alone, rtol=1e-4, atol=1e-5)
    assert info.keys() == alone_info.keys()
    for name, value in alone_info.items():
        np.testing.assert_allclose(info[name], value, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("jit", [lambda fn: fn, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(
    "features",
    [
        jax.lax.stop_gradient,
        jax.jit(jax.lax.stop_gradient),
        jnp.round,
        lambda x: jnp.zeros((x.shape[0], 2)) + 1,
        lambda x: (x > 0).astype(x.dtype),
    ],
)
def test_features_without_a_gradient_are_refused(key, rng, features, jit):
    x, y = (jnp.asarray(points, jnp.float32) for points in batch(rng))
    objective = objectives.through(features, towards())
    with pytest.raises(ValueError, match=r"^features: got a function without a derivative"):
        jit(objective)(key, x, y)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (jnp.sum, r"features: returned shape \(\); expected \(points\) -> features, 6 rows"),
        (lambda x: x[:3], r"features: returned shape \(3, 3\); expected"),
        (lambda x: x / 0, r"features: got 18 non-finite entries, the first at index \(0, 0\)"),
        (lambda x: None, r"features: returned NoneType; expected"),
        (lambda x, y: x, r"features: got \(x, y\): missing a required argument: 'y'; expected"),
    ],
)
def test_bad_features_are_named(key, rng, features, expected):
    x, y = (jnp.asarray(points, jnp.float32) for points in batch(rng, m=6))
    with pytest.raises(ValueError, match=f"^{expected}"):
        objectives.through(features, towards())(key, x, y)


def wrong(key, samples, data, *, axis_name=None):
    return samples[:, :1], {}


BUILDS = {
    "no objective": (lambda o: objectives.through(bend), r"objective: got None; expected \(key"),
    "no entries": (lambda o: objectives.through([], o), r"parts: got none; expected a list of"),
    "an entry": (lambda o: objectives.through([bend], o), r"features\[0\]: got function; expected"),
    "a number": (lambda o: objectives.through(3, o), r"features: got int; expected a function, or"),
    "weight": (
        lambda o: objectives.weighted([(1.0, o), (jnp.inf, o)]),
        r"parts\[1\] weight: got inf; expected values in \(-inf, infinity\)",
    ),
    "weights": (
        lambda o: objectives.weighted([(jnp.ones(2), o)]),
        r"parts\[0\] weight: got shape \(2,\); expected \(\)",
    ),
    "text": (lambda o: objectives.weighted([("1", o)]), r"parts\[0\] weight: got str; expected a"),
    "pairs": (lambda o: objectives.weighted([o]), r"parts\[0\]: returned function; expected"),
    "swapped": (lambda o: objectives.weighted([(o, 1.0)]), r"parts\[0\] weight: got function; exp"),
    "no list": (lambda o: objectives.weighted(o), r"parts: got function; expected a list of"),
    "a name": (lambda o: objectives.normalized("kl"), r"objective: got str; expected \(key"),
    "critics": (
        lambda o: objectives.through([(bend, 1.0), (bend, 1.0)], two_player.hinge()),
        r"objective: got 2 with a critic; expected at most one in a sum. One critic sees several",
    ),
}


@pytest.mark.parametrize("case", BUILDS)
def test_bad_parts_are_named(case):
    build, expected = BUILDS[case]
    with pytest.raises(ValueError, match=f"^{expected}"):
        build(towards())


@pytest.mark.parametrize(
    "wrap",
    [
        objectives.normalized,
        lambda objective: objectives.weighted([(1.0, objective)]),
        lambda objective: objectives.through(lambda x: x, objective),
    ],
)
def test_a_direction_of_another_shape_is_refused(key, rng, wrap):
    x, y = (jnp.asarray(points, jnp.float32) for points in batch(rng))
    with pytest.raises(ValueError, match=r"^objective: returned shape \(6, 1\) for \(6, 3\)"):
        wrap(wrong)(key, x, y)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda x, y: x, r"loss: got shape \(6, 3\)"),
        (lambda x: 0.0, r"loss: got \(x\)"),
        (lambda x, y: None, "loss: got NoneType; expected a number"),
        *(
            (lambda x, y, of=of: of(jnp.sum(x)), f"loss: got dtype {name}; expected floating")
            for name, of in {
                "int32": lambda a: a.astype(int),
                "bool": lambda a: a > 0,
                "complex64": lambda a: a.astype(complex),
            }.items()
        ),
        (lambda x, y: 0, "loss: got dtype int64; expected floating"),
    ],
)
def test_bad_losses_are_named(key, rng, loss, expected):
    x, y = (jnp.asarray(points, jnp.float32) for points in batch(rng))
    with pytest.raises(ValueError, match=f"^{expected}"):
        objectives.from_loss(loss)(key, x, y)


def test_a_constant_loss_moves_nothing(key, rng):
    x, y = (jnp.asarray(points, jnp.float32) for points in batch(rng))
    direction, info = objectives.from_loss(lambda x, y: 0.25)(key, x, y)
    np.testing.assert_array_equal(direction, jnp.zeros_like(x))
    assert info["loss"] == 0.25


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_a_loss_of_halves_is_taken_in_full(key, rng, dtype):
    """Its gradient, 3e-7 a coordinate, is below the normal numbers of float16."""
    x, y = (jnp.asarray(points, dtype) for points in batch(rng, n=200))
    wide = [np.asarray(points, np.float64) for points in (x, y)]
    loss = objectives.from_loss(lambda x, y: 1e-4 * jnp.mean(jnp.square(x - jnp.mean(y))))
    direction, info = loss(key, x, y)
    assert (direction.dtype, info["loss"].dtype) == (dtype, jnp.float32)
    off = wide[0] - wide[1].mean()
    np.testing.assert_allclose(info["loss"], 1e-4 * np.mean(off**2), rtol=1e-5)
    expected = 2e-4 * off / 3
    np.testing.assert_allclose(
        np.asarray(direction, np.float64), expected, rtol=2 * float(jnp.finfo(dtype).eps), atol=3e-8
    )


@pytest.mark.parametrize(
    "wrap",
    [
        objectives.normalized,
        lambda objective: objectives.weighted([(1.0, objective)]),
        lambda objective: objectives.through(lambda x: x, objective),
        lambda _: objectives.from_loss(lambda x, y: jnp.sum(x)),
    ],
)
def test_lists_are_refused_by_name(key, rng, wrap):
    x, y = (np.asarray(points, np.float32) for points in batch(rng))
    objective = wrap(lambda key, samples, data, *, axis_name=None: (samples, {}))
    for arguments, name in (((x.tolist(), y), "samples"), ((x, y.tolist()), "data")):
        with pytest.raises(ValueError, match=f"^{name}: got list; expected a JAX or NumPy array$"):
            objective(key, *arguments)
    np.testing.assert_array_equal(objective(key, x, y)[0].shape, x.shape)
