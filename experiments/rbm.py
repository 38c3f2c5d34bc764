"""Boltzmann machines trained by amortized maximum likelihood, with exact likelihoods.

    python -m experiments.rbm --workdir=runs/rbm --data_dir=<the folder that holds mnist>

The machine has 10 hidden units, so that its test likelihood is exact (see
:mod:`experiments.targets.boltzmann`). It is trained by Algorithm 2 of Wang & Liu 2016: the negative
phase comes from a generator that follows a direction at its samples by the chain rule, eq. (10).
The experiment is that of the authors' repository, mnist/rbm_adv.py; the paper has no such machine.

The machine's samples are N(b + B h, I), of variance 784 at least on 28 x 28 pixels. The generator
is x = network(xi_1) + Phi^-1(xi_2): noise of its own, and still a function of the noise that goes
in. That of the authors' code is the network alone (--observation_noise=false).

=========  =======================================================================================
svgd       sum_j [k_ij s_j + grad_j k_ij] / sum_j k_ij: the public code's row-normalised eq. (7)
score      s_i: one particle at a time, what the public code returns beside it, "without the kernel"
smoothed   sum_j k_ij s_j / sum_j k_ij: svgd but for its repulsive term
exact      no generator: the gradient of the exact likelihood, which the others estimate
=========  =======================================================================================

Settings of the public code: Adam at 3e-4 with b1 = 0.5 for both players, weight decay 1e-5 of the
machine, pixels / 255, 50 000 training images, batches of 100, 20 epochs, latents U[-1, 1]^100,
pixels of the generator behind a sigmoid, and RBF with l^2 = median / (2 log(n + 1)). Every run
lives in workdir/<direction>/seed<k> and resumes from its last epoch.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import catalog
from experiments.data.dataset import Dataset
from experiments.pictures import charts, mosaics
from experiments.reports import machines
from experiments.run import command, fields, loop, memory, places, unread
from experiments.run.errors import UsageError
from experiments.run.loop import Record, Schedule
from experiments.run.signals import Signals
from experiments.run.workdirs import Workdir
from experiments.targets import boltzmann
from experiments.training import amortized
from experiments.training.amortized import Config, State, Trainer, as_points
from kernelgrad.types import Array, Key

_NUM_TRAIN = 50_000


def run(config: Config, *, workdir: str, data_dir: str | None = None) -> dict[str, list[float]]:
    """Trains every direction with every seed, resuming what the work folder holds.

    Args:
      config: the settings.
      workdir: the folder of all runs, and of table and pictures.
      data_dir: where the images are.

    Returns:
      Exact test log-likelihoods in nats by direction, one a seed.

    Raises:
      UsageError: a setting out of its range, or a work folder with another run.
      DataError: the images are missing or damaged.
      StorageError: the work folder cannot be used.
      DivergenceError: a likelihood is not finite.
      Terminated: a signal came; the epoch was ended and saved.
    """
    root = places.workdir(workdir)
    fields.validate(config)
    dataset = catalog.load(
        config.dataset,
        data_dir,
        image_size=config.image_size,
        check=lambda dataset: _check(config, dataset),
    )
    histories: dict[str, list[list[dict[str, float]]]] = {name: [] for name in config.directions}
    pictures: dict[str, dict[str, np.ndarray]] = {}
    free = ("directions", "seeds", "num_epochs", *unread.among([config]))
    with Workdir(root, config, free_fields=free) as folder:
        for seed in config.seeds:
            for name in config.directions:
                one = dataclasses.replace(config, directions=(name,), seeds=(seed,))
                place = folder.below(f"{name}/seed{seed}")
                free = ("num_epochs", *unread.among([one]))
                with Workdir(place, one, free_fields=free) as own, Signals() as signals:
                    history, images = _train(one, dataset, own, signals)
                histories[name].append(history)
                pictures.setdefault(name, images)
            machines.write(folder, config, dataset, histories, pictures)
    return {name: [run[-1][machines.TEST] for run in runs] for name, runs in histories.items()}


def _check(config: Config, dataset: Dataset) -> None:
    """Raises for a data set that the config does not fit, or too little memory."""
    if not dataset.is_image:
        raise UsageError(f"dataset: got {dataset.name}; expected images, such as mnist or digits")
    num_train = min(len(dataset.train), _NUM_TRAIN)
    if num_train < config.batch_size:
        raise UsageError(
            f"batch_size: got {config.batch_size}; expected at most the {num_train} training "
            f"images of {dataset.name}"
        )
    generator = amortized.GENERATORS[config.generator](dataset.sample_shape, config.width)
    size = config.batch_size, config.latent_dim
    try:
        needed = memory.of_training(generator, *size, train=False)
    except ValueError as error:
        raise UsageError(
            f"generator: got {config.generator} for {dataset.name}: {error}"
        ) from error
    memory.require(config, ("width", "latent_dim", "batch_size"), needed)


def _train(
    config: Config, dataset: Dataset, folder: Workdir, signals: Signals
) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """Returns the records of one run, one direction and seed, and images of its end by name."""
    (direction,), (seed,) = config.directions, config.seeds
    trainer = amortized.make_trainer(config, direction, dataset.sample_shape)
    init_key, split_key, train_key, eval_key = jax.random.split(jax.random.key(seed), 4)
    split = np.asarray(jax.random.permutation(split_key, len(dataset.train)))
    train = jnp.asarray(dataset.train[split[:_NUM_TRAIN]])
    measure = _make_evaluate(trainer, train, jnp.asarray(dataset.test), eval_key)
    begun = loop.begin(folder, functools.partial(trainer.initial_state, init_key))

    @jax.jit
    def step(state: State, key: Key, order: Array, images: Array, index: Array) -> State:
        rows = jax.lax.dynamic_slice_in_dim(order, index * config.batch_size, config.batch_size)
        return trainer.step(state, jax.random.fold_in(key, index), images[rows])

    num_steps = len(train) // config.batch_size

    def advance(
        state: State, epoch: int, count: int, tick: Callable[[int], Any]
    ) -> tuple[State, Record]:
        """Makes the steps of one epoch."""
        order_key, step_key = jax.random.split(jax.random.fold_in(train_key, epoch))
        order = jax.random.permutation(order_key, len(train))
        for index in range(num_steps):
            state = step(state, step_key, order, train, index)
            if index % 10 == 0:
                jax.block_until_ready(state.machine)
            tick(1)
        return state, {}

    def evaluate(epoch: int, state: State) -> Record:
        record = measure(state)
        if not math.isfinite(record[machines.TEST]):
            raise folder.divergence(epoch, "the likelihood is not finite")
        return record

    schedule = Schedule(config.num_epochs, ticks=num_steps)
    name = f"{direction}, seed {seed}"
    state = loop.run(folder, signals, begun, advance, evaluate, schedule, name=name)
    folder.write_bytes("curves.png", charts.learning_curves(folder.history()))
    shown = _shown_images(trainer, state, eval_key, dataset.sample_shape)
    for name, images in shown.items():
        folder.write_bytes(f"samples/{name}.png", mosaics.image_grid(images))
    return folder.history(), shown


def _make_evaluate(
    trainer: Trainer, train: Array, test: Array, key: Key
) -> Callable[[State], dict[str, float]]:
    """Returns a function from a state to its metrics; all likelihoods are exact."""

    @jax.jit
    def measure(state: State, train: Array, test: Array) -> dict[str, Array]:
        machine, held_out = state.machine, as_points(test)
        record = {
            machines.TEST: boltzmann.mean_log_likelihood(machine, held_out),
            "train_log_likelihood": boltzmann.mean_log_likelihood(machine, as_points(train)),
            "log_normalizer": boltzmann.gaussian_bernoulli_rbm(machine).log_normalizer,
        }
        if state.generator:
            samples = trainer.samples(state, key)
            bias = jnp.mean(samples, axis=0) - boltzmann.model_mean(machine)
            record["sample_variance"] = jnp.sum(jnp.var(samples, axis=0))
            record["sample_mean_error"] = jnp.linalg.norm(bias)
            record["energy_gap"] = -amortized.contrast(machine, held_out, samples, 1.0)
        return record

    sub_train = train[: len(test)]
    return lambda state: {
        name: float(value) for name, value in measure(state, sub_train, test).items()
    }


def _shown_images(
    trainer: Trainer, state: State, key: Key, image_shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Returns what machine and generator draw, without the noise of observation."""
    shown = {"machine": boltzmann.sample_means(key, state.machine, 100)}
    if state.generator:
        shown["generator"] = trainer.means(state, key)[:100]
    return {name: np.asarray(x).reshape(-1, *image_shape) for name, x in shown.items()}


def main() -> None:
    """Parses the flags and trains."""
    command.main_in_workdir(run, Config)


if __name__ == "__main__":
    main()
