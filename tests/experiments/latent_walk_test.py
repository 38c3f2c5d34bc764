"""The walk: how far it goes, what it leaves alone, what it leaves behind."""

import jax
import numpy as np
import pytest

from experiments import latent_walk
from experiments.data import catalog
from experiments.run.errors import UsageError
from experiments.run.workdirs import Workdir
from experiments.training import models
from experiments.training.settings import Config
from experiments.training.trained import Trained
from kernelgrad.train import TrainState

CONFIG = Config(objective="gan_kl", conditional=True, latent_dim=4, width=4)


def start(workdir, config):
    """Leaves a run before its first step."""
    model = models.build(config, catalog.load(config.dataset))
    with Workdir(workdir, config) as folder:
        folder.save(0, jax.jit(model.initial_state)(jax.random.key(0)))


class Mirror:
    """A generator whose images are its latents."""

    @staticmethod
    def generate(params, batch_stats, latents):
        return latents

    @staticmethod
    def sample_latents(key, n):
        return jax.random.normal(key, (n, 14))


@pytest.mark.thorough
def test_latents_take_uniform_steps_and_keep_their_labels():
    dataset = catalog.load("digits")
    found = Trained(CONFIG, dataset, Mirror(), 0, TrainState(0, {}, {}, ()))
    walk = latent_walk.Config(num_frames=40, steps_per_frame=25, step_size=0.02)
    frames = latent_walk._walk(walk, found)
    assert frames.shape == (40, 80, 14)
    labels = np.eye(10).repeat(8, axis=0)
    np.testing.assert_array_equal(frames[..., 4:], np.broadcast_to(labels, (40, 80, 10)))
    steps = np.diff(frames[..., :4], axis=0)
    variance = 25 * 0.02**2 / 3  # of a sum of 25 uniform steps
    z = (np.mean(steps**2) / variance - 1) / np.sqrt(2 / steps.size)
    assert abs(z) < 5
    assert abs(np.mean(steps)) < 5 * np.sqrt(variance / steps.size)
    assert np.abs(np.corrcoef(steps[0].ravel(), steps[1].ravel())[0, 1]) < 5 / np.sqrt(320)


@pytest.mark.thorough
def test_a_walk_leaves_a_film_and_stills(tmp_path):
    start(tmp_path, CONFIG)
    frames = latent_walk.run(
        latent_walk.Config(num_frames=3, steps_per_frame=2), workdir=str(tmp_path)
    )
    assert frames.shape == (3, 80, 8, 8, 1)
    assert (tmp_path / "latent_walk.gif").read_bytes().startswith(b"GIF89a")
    assert (tmp_path / "latent_walk.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 0}, "num_frames: got 0"),
        ({"steps_per_frame": -1}, "steps_per_frame: got -1"),
        ({"step_size": 0.0}, "step_size: got 0.0"),
        ({}, "got /nowhere without a readable config.json"),
    ],
)
def test_bad_requests_are_usage_errors(changes, message):
    with pytest.raises(UsageError, match=message):
        latent_walk.run(latent_walk.Config(**changes), workdir="/nowhere")


@pytest.mark.thorough
def test_points_cannot_be_filmed(tmp_path):
    start(tmp_path, Config(objective="gan_kl", dataset="ring", latent_dim=2, width=4))
    with pytest.raises(UsageError, match="a run on ring, which are points"):
        latent_walk.run(latent_walk.Config(), workdir=str(tmp_path))
