"""What the settings of a run reach: the objective, the critic's network and its optimizer."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import catalog, labelled
from experiments.networks import energies
from experiments.training import models
from experiments.training.settings import Config
from kernelgrad import adversarial, critic, kale, steingan, two_player

POINTS = Config(dataset="eight_gaussians", batch_size=8, latent_dim=2, width=8, b1=0.5)
STEINGAN = dataclasses.replace(POINTS, objective="steingan")
TIED = {"objective": "steingan", "tied_weights": True}
KALE = dataclasses.replace(POINTS, objective="kale")
WEIGHTS = np.array([[0.7, -0.4, 0.2], [0.3, 0.9, -0.5]], np.float32)

step = jax.jit(critic.step, static_argnums=2)


def build(config, key):
    """Returns the critic of a config and its state at the start."""
    model = models.build(config, catalog.load(config.dataset))
    return model.objective, jax.jit(model.initial_state)(key).critic


def clouds(rng):
    return (jnp.asarray(rng.normal(m, 1, size=(8, 2)), jnp.float32) for m in (0, 1))


# ---------------------------------------------------------------------------------- the objective


def energy_fn(points):
    """Slopes on both sides of 1."""
    return jnp.sum(points**4, axis=1) / 4 + points[:, 0] / 2


def energy_and_features(points):
    return energy_fn(points), jnp.tanh(points @ WEIGHTS)


REACHED = [
    ("steingan", {}, steingan.steingan()),
    ("steingan", {"discount": 0.2}, steingan.steingan(discount=0.2)),
    ("steingan", {"leading_discount": 0.2}, steingan.steingan(leading_discount=0.2)),
    ("steingan", {"freeze": "two_sided"}, steingan.steingan(two_sided=True)),
    (
        "steingan",
        {"stein_field": "one_pass"},
        steingan.steingan(field=steingan.one_pass_direction),
    ),
    (
        "steingan",
        {"stein_field": "row_normalized"},
        steingan.steingan(field=steingan.row_normalized_direction),
    ),
    (
        "steingan",
        {"stein_field": "nearest"},
        steingan.steingan(field=steingan.nearest_direction),
    ),
    (
        "steingan",
        {"feature_lengthscale": "half_svgd"},
        steingan.steingan(lengthscale=steingan.half_svgd),
    ),
    ("kale", {}, two_player.kale()),
    ("kale", {"penalty_weight": 3.0}, two_player.kale(penalty_weight=3.0)),
    (
        "kale",
        {"penalty": "one_sided"},
        two_player.kale(penalty=adversarial.one_sided_gradient_penalty),
    ),
    ("wgan_gp", {}, two_player.wgan_gp()),
    ("wgan_gp", {"penalty_weight": 3.0}, two_player.wgan_gp(weight=3.0)),
    (
        "wgan_gp",
        {"penalty": "zero_centred"},
        two_player.wgan_gp(penalty=adversarial.zero_centred_gradient_penalty),
    ),
    ("wgan_clip", {"clip": 0.3}, two_player.wgan_clip(clip=0.3)),
]


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(("name", "changes", "expected"), REACHED)
def test_settings_reach_the_objective(key, rng, name, changes, expected):
    config = dataclasses.replace(POINTS, objective=name, **changes)
    built = models.build(config, catalog.load(config.dataset)).objective.objective
    samples, data = clouds(rng)
    critic_fn = energy_and_features if name == "steingan" else energy_fn

    @functools.partial(jax.jit, static_argnums=0)
    def play(objective):
        loss = objective.critic_loss(critic_fn, key, samples, data)
        direction = objective.direction(critic_fn, key, samples, data)
        return loss, direction, objective.project(data)

    for got, wanted in zip(*(jax.tree.leaves(play(one)) for one in (built, expected)), strict=True):
        np.testing.assert_array_equal(got, wanted)


# ------------------------------------------------------------------------------------- the critic


@pytest.mark.thorough
@pytest.mark.parametrize("norm", ["euclidean", "root_sum"])
def test_the_norm_reaches_the_energy(key, rng, norm):
    one, state = build(dataclasses.replace(STEINGAN, energy_norm=norm), key)
    points, _ = clouds(rng)
    network = energies.MLPEnergy(8, norm=norm)
    expected = network.apply({"params": state.params}, points, train=False)
    np.testing.assert_allclose(critic.bind(state, one)(points)[0], expected[0], rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "gan_non_saturating"},
        {**TIED, "stein_field": "one_pass"},
        *(
            pytest.param({**TIED, "stein_field": field}, marks=pytest.mark.slow)
            for field in ("svgd", "nearest")
        ),
    ],
    ids=lambda changes: changes.get("stein_field", "gan"),
)
def test_batch_norm_pools_over_devices(key, rng, changes):
    config = dataclasses.replace(POINTS, batch_norm=True, optimizer="sgd", **changes)
    one, start = build(config, key)
    many = models.build(config, catalog.load(config.dataset), "i").objective

    def play(player, axis_name, samples, data):
        state, info = critic.step(key, start, player, samples, data, axis_name=axis_name)
        critic_fn = critic.bind(start, player)
        direction = player.objective.direction(critic_fn, key, samples, data, axis_name=axis_name)
        return state, info, direction

    both = tuple(clouds(rng))
    alone = jax.jit(functools.partial(play, one, None))(*both)
    shares = (cloud.reshape(2, 4, 2) for cloud in both)
    state, info, (direction, of_field) = jax.pmap(functools.partial(play, many, "i"), "i")(*shares)
    first = jax.tree.map(lambda leaf: leaf[0], (state, info, of_field))
    for got, wanted in zip(
        jax.tree.leaves((first, direction.reshape(8, 2))),
        jax.tree.leaves(((alone[0], alone[1], alone[2][1]), alone[2][0])),
        strict=True,
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("objective", ["steingan", "gan_non_saturating"])
def test_a_critic_in_use_goes_by_running_averages(key, rng, objective):
    config = dataclasses.replace(POINTS, objective=objective, batch_norm=True)
    model = models.build(config, catalog.load(config.dataset))
    state = jax.jit(model.initial_state)(key).critic
    points, _ = clouds(rng)
    whole, half = (jax.tree.leaves(model.values(state, some))[0] for some in (points, points[:3]))
    np.testing.assert_allclose(half, whole[:3], rtol=1e-5)


@pytest.mark.thorough
def test_the_margin_reaches_the_joint_energy(key, rng):
    """Beyond any cross entropy, energies differ as the margins do."""
    samples, _ = clouds(rng)
    points = labelled.join(samples, jnp.eye(8))
    config = dataclasses.replace(STEINGAN, conditional=True, margin=50.0)
    low, state = build(config, key)
    high, _ = build(dataclasses.replace(config, margin=53.0), key)
    gap = critic.bind(state, high)(points)[0] - critic.bind(state, low)(points)[0]
    np.testing.assert_allclose(gap, 3, rtol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("threshold", [1e-3, math.inf])
def test_steingans_controller_scales_what_adam_returns(key, rng, threshold):
    """A first step of Adam is its learning rate; the second one has momentum to be held back."""
    config = dataclasses.replace(STEINGAN, learning_rate=1e-2, freeze_threshold=threshold)
    one, start = build(config, key)
    near, _ = clouds(rng)
    far = 100 * near
    first, info = step(key, start, one, near, far)
    assert info["rate_factor"] == 5
    moved = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), first.params, start.params)
    np.testing.assert_allclose(max(jax.tree.leaves(moved)), 5 * 1e-3, rtol=1e-3)
    second, info = step(key, first, one, far, near)
    assert info["rate_factor"] == (threshold == math.inf)
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), second.params, first.params)
    assert set(jax.tree.leaves(same)) == {threshold != math.inf}


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "track"), [("ema", kale.ema_step), ("newton", kale.newton_step)])
def test_a_step_takes_the_log_normalizer_to_its_next_value(key, rng, name, track):
    config = dataclasses.replace(KALE, log_normalizer=name, log_normalizer_rate=0.3)
    one, state = build(config, key)
    samples, data = clouds(rng)
    for _ in range(2):
        before = state.params["log_normalizer"]
        energies, _ = critic.bind(state, one)(samples)
        state, info = step(key, state, one, samples, data)
        assert info["log_normalizer"] == before
        following = track(before, energies, rate=0.3)
        np.testing.assert_allclose(state.params["log_normalizer"], following, rtol=1e-5, atol=1e-6)
        assert abs(following - before) > 1e-3


@pytest.mark.parametrize("name", ["digits", "eight_gaussians"])
@pytest.mark.parametrize("conditional", [False, True])
def test_the_size_of_rows_is_that_of_the_rows(name, conditional):
    dataset = catalog.load(name)
    config = Config(dataset=name, conditional=conditional)
    rows = models.training_rows(config, dataset)
    assert models.size_of_rows(config, dataset) == rows.nbytes
