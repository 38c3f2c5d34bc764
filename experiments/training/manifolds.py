"""Discriminators of a law without area from the same law, shifted: paper 002, Theorems 2.1 to 2.4.

The supports, a curve or segments and what a shift makes of them, meet at most in points: JSD is
log 2 and W1 the length of the shift, however short it is.
"""

from typing import cast

import jax
import jax.numpy as jnp

from experiments.data.dataset import Dataset
from experiments.run.signals import Signals
from experiments.run.workdirs import Workdir
from experiments.training import discriminators, models, settings
from experiments.training.discriminators import Frozen, Lab, Trial
from kernelgrad import noise
from kernelgrad.critic import Critic, CriticState
from kernelgrad.types import Array, Key, PyTree

_WIDTH, _BATCH = 64, 256
_RECORDS = 20  # of a discriminator


def make_lab(dataset: Dataset) -> Lab:
    """Returns discriminators, and a generator that shifts points of the data, its latents."""
    config = settings.Config(
        "gan_saturating", dataset.name, batch_size=_BATCH, latent_dim=2, width=_WIDTH, b1=0.5
    )
    model, points = models.build(config, dataset), jnp.asarray(dataset.train)

    def sample_latents(key: Key, n: int) -> Array:
        return points[jax.random.randint(key, (n,), 0, len(points))]

    def generate(shift: PyTree, _: PyTree, latents: Array) -> Array:
        return latents + shift

    def fresh_critic(key: Key) -> CriticState:
        return cast(CriticState, model.initial_state(key).critic)

    shifted = model._replace(generate=generate, sample_latents=sample_latents)
    return Lab(shifted, cast(Critic, model.objective), fresh_critic, _BATCH)


def trials(variance: float, num_iterations: int) -> tuple[Trial, Trial]:
    """Returns the trials of a discriminator: on the points, and under noise of a variance."""
    every = max(1, num_iterations // _RECORDS)
    steps = every * (num_iterations // every)
    plain = Trial("no noise", noise.instance_noise, (0.0,), steps, every)
    return plain, plain._replace(name="noise", variances=(variance,))


def examine(
    key: Key, lab: Lab, trial: Trial, dataset: Dataset, shift: float, folder: Workdir
) -> list[discriminators.Record]:
    """Trains a discriminator of the data from the data moved along the first axis.

    Args:
      key: of everything random.
      lab: of the data.
      trial: noise and length.
      dataset: points in the plane.
      shift: how far the data are moved.
      folder: of this discriminator.

    Returns:
      Records of JSD, accuracy, and the norms of the gradients in the shift.
    """
    frozen = Frozen(jnp.array([shift, 0.0]), {})
    parts = (dataset.train[:], dataset.test[:])
    with Signals() as signals:
        records, _ = discriminators.train_discriminator(
            lab, trial, frozen, parts, key, folder, signals
        )
    return records
