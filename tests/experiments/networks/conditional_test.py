"""Generation by class: who sees the labels, and what training makes of them."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import catalog, labelled
from experiments.networks import conditional
from experiments.run.errors import UsageError
from experiments.training import fit, models, trained
from experiments.training.objectives import OBJECTIVES
from experiments.training.settings import Config
from kernelgrad import critic

SMALL = Config(
    conditional=True, num_steps=4, eval_every=2, batch_size=20, latent_dim=4, width=4, b1=0.5
)
POINTS = dataclasses.replace(SMALL, dataset="eight_gaussians", width=8)


class Sum(nn.Module):
    """Energy and features of images: the sum of their pixels, twice."""

    def __call__(self, images, train):
        total = jnp.sum(images, axis=(1, 2, 3))
        return total, jnp.stack([total, -total], axis=1)


@pytest.mark.parametrize("margin", [0.0, 0.2, 5.0])
def test_joint_energy_is_eq_15(key, rng, margin):
    images, labels = rng.random((6, 2, 2, 1)), rng.integers(3, size=6)
    points = labelled.join(jnp.asarray(images, jnp.float32), jnp.eye(3)[labels])
    network = conditional.JointEnergy(Sum(), (2, 2, 1), margin)
    params = network.init(key, points, train=False)
    (head,) = (layer for name, layer in params["params"].items() if "Dense" in name)
    weights = rng.normal(size=(2, 3))
    params = {"params": {"Dense_0": {"kernel": jnp.asarray(weights), "bias": head["bias"]}}}
    energies, features = network.apply(params, points, train=True)
    total = images.sum(axis=(1, 2, 3))
    logits = np.stack([total, -total], axis=1) @ weights
    crossentropy = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(6), labels]
    np.testing.assert_allclose(energies, total + np.maximum(margin, crossentropy), rtol=1e-5)
    np.testing.assert_allclose(features[:, 0], total, rtol=1e-6)


class Channels(nn.Module):
    """What arrives at a critic."""

    def __call__(self, samples, train):
        return samples


@pytest.mark.parametrize("shape", [(2, 3, 1), (4,)])
def test_a_conditional_critic_gets_the_label_in_every_place(rng, shape):
    samples, labels = rng.random((5, *shape)), np.array([0, 2, 1, 1, 0])
    points = labelled.join(jnp.asarray(samples, jnp.float32), jnp.eye(3)[labels])
    seen = conditional.ConditionalCritic(Channels(), shape).apply({}, points, train=True)
    np.testing.assert_allclose(seen[..., : shape[-1]], samples, rtol=1e-6)
    assert seen.shape == (5, *shape[:-1], shape[-1] + 3)
    codes = seen[..., shape[-1] :].reshape(5, -1, 3)
    np.testing.assert_array_equal(codes.argmax(axis=2), np.tile(labels[:, None], codes.shape[1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective", [name for name, choice in OBJECTIVES.items() if choice.critic_steps]
)
def test_a_conditional_run_resumes_bit_for_bit(tmp_path, objective):
    config = dataclasses.replace(POINTS, objective=objective)
    for folder, stops in (("whole", (4,)), ("cut", (2, 4))):
        for stop in stops:
            fit.run(
                dataclasses.replace(config, num_steps=stop),
                workdir=str(tmp_path / folder),
                num_devices=1,
            )
    whole, cut = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut"))
    assert cut == whole


@pytest.mark.thorough
def test_training_learns_which_label_is_where(tmp_path):
    """Samples of a label come to lie nearer to its own Gaussian than to any other."""
    config = dataclasses.replace(
        POINTS,
        objective="gan_non_saturating",
        num_steps=600,
        eval_every=600,
        width=32,
        batch_size=100,
    )
    fit.run(config, workdir=str(tmp_path), num_devices=1)
    with trained.opened(str(tmp_path)) as (_, run):
        pass
    latents = run.model.sample_latents(jax.random.key(1), 400)
    samples = run.model.generate(run.state.params, run.state.batch_stats, latents)
    labels = np.asarray(latents[:, config.latent_dim :]).argmax(axis=1)
    angles = np.pi / 4 * np.arange(8)
    centres = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    nearest = np.linalg.norm(samples[:, None] - centres[None], axis=2).argmin(axis=1)
    assert np.mean(nearest == labels) > 0.5  # 1/8 without labels


@pytest.mark.thorough
def test_the_generator_takes_labels_as_the_data_have_them(key):
    dataset = catalog.load("digits")
    model = models.build(SMALL, dataset)
    latents = model.sample_latents(key, 6)
    assert latents.shape == (6, 14)
    state = model.initial_state(key)
    points, _ = model.generator(state.params, state.batch_stats, latents)
    np.testing.assert_array_equal(points[:, 64:], latents[:, 4:])
    assert model.generate(state.params, state.batch_stats, latents).shape == (6, 8, 8, 1)


@pytest.mark.thorough
@pytest.mark.parametrize("objective", ["gan_kl", "steingan"])
def test_a_direction_holds_the_labels_still(key, objective):
    """Exactly, though the critic's values depend on them."""
    dataset = catalog.load("eight_gaussians")
    model = models.build(dataclasses.replace(POINTS, objective=objective, margin=0.0), dataset)
    points = jnp.asarray(labelled.points(dataset)[:6])
    others = points.at[:, 2:].set(jnp.roll(points[:, 2:], 1, axis=1))

    @jax.jit
    def look(key):
        critic_fn = critic.bind(model.initial_state(key).critic, model.objective)
        values = [jax.tree.leaves(critic_fn(x))[0] for x in (points, others)]
        return values, model.objective.objective.direction(critic_fn, key, points, points)[0]

    (values, of_others), direction = look(key)
    assert np.any(values != of_others)
    assert np.any(direction[:, :2] != 0)
    np.testing.assert_array_equal(direction[:, 2:], 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "swiss_roll", "objective": "steingan"}, "conditional: got swiss_roll, a set"),
        ({"objective": "mmd"}, "conditional: got objective mmd, without a critic"),
        (
            {"objective": "gan_kl", "noise_variance": 0.1},
            "noise_variance: got 0.1 with --conditional",
        ),
    ],
)
def test_bad_input_is_named(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        fit.run(dataclasses.replace(SMALL, **changes), workdir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
