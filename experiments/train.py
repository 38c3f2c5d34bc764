"""Trains a generator: any objective on any data set.

    python -m experiments.train --objective=kl --dataset=digits --workdir=runs/digits

The work folder holds config.json, metrics.jsonl, checkpoints/, samples/*.png and curves.png. Run
the same command again to resume: the newest intact checkpoint is taken up, and the metrics from
there on are those of an uninterrupted run.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from experiments import (
    command,
    conditional,
    feed,
    fields,
    image_metrics,
    memory,
    networks,
    places,
    plots,
    settings,
    threads,
)
from experiments import data as datasets
from experiments.data import Dataset
from experiments.errors import UsageError
from experiments.runtime import Workdir
from experiments.settings import Config
from experiments.signals import Signals, terminated
from kernelgrad import critic as critics
from kernelgrad import kernels, mmd, train
from kernelgrad.critic import Critic, CriticState
from kernelgrad.objectives import Objective
from kernelgrad.two_player import TwoPlayer
from kernelgrad.types import Array, Key, PyTree

ScoreFn = Callable[[Array], dict[str, float]]

_MAX_STEPS_PER_RECORD = 50
_EVALUATED_SAMPLES = 500


@dataclasses.dataclass(frozen=True)
class Options(command.Place):
    """How and where to run."""

    preset: str | None = settings.preset()
    num_devices: int | None = fields.integer(None, 1, 10**6, "Devices to use; all by default.")
    allow_config_change: bool = fields.switch(
        False, "Resume although settings differ from the run's config.json."
    )


class Model(NamedTuple):
    """The generator and the pieces of its training that follow from the config."""

    generate: Callable[[PyTree, PyTree, Array], Array]
    generator: train.Generator
    objective: Objective | Critic
    optimizer: optax.GradientTransformation
    sample_latents: Callable[[Key, int], Array]
    initial_state: Callable[[Key], train.TrainState]


def build(config: Config, dataset: Dataset, axis_name: str | None = None) -> Model:
    """Returns the model of a config: networks, prior, objective and optimizer."""
    network = networks.generator_for(dataset.sample_shape, config.width, axis_name)
    optimizer = optax.adam(config.learning_rate, b1=config.b1)
    objective, init_critic = _build_objective(config, dataset)

    def sample_latents(key: Key, n: int) -> Array:
        prior = settings.PRIORS[config.prior]
        if not config.conditional:
            return prior(key, (n, config.latent_dim))
        latent_key, label_key = jax.random.split(key)
        latents = prior(latent_key, (n, config.latent_dim))
        return conditional.join(latents, conditional.draw_labels(label_key, n, dataset))

    def generator(params: PyTree, batch_stats: PyTree, latents: Array) -> tuple[Array, PyTree]:
        variables = {"params": params, "batch_stats": batch_stats}
        samples, updated = network.apply(variables, latents, train=True, mutable=["batch_stats"])
        if config.conditional:
            samples = conditional.join(samples, latents[:, config.latent_dim :])
        return samples, updated.get("batch_stats", {})

    def generate(params: PyTree, batch_stats: PyTree, latents: Array) -> Array:
        variables = {"params": params, "batch_stats": batch_stats}
        return network.apply(variables, latents, train=False)

    def initial_state(key: Key) -> train.TrainState:
        variables = network.init(key, sample_latents(key, 2), train=False)
        stats = variables.get("batch_stats", {})
        critic_state = init_critic(jax.random.fold_in(key, 1))
        return train.init(variables["params"], stats, optimizer, critic_state)

    return Model(generate, generator, objective, optimizer, sample_latents, initial_state)


def _build_objective(
    config: Config, dataset: Dataset
) -> tuple[Objective | Critic, Callable[[Key], CriticState | None]]:
    """Returns the objective of a config, with its critic if it has one, and that one's start."""
    objective = settings.OBJECTIVES[config.objective].make(config)
    if not isinstance(objective, TwoPlayer):
        return objective, lambda _: None
    network = _critic_network(config, dataset)

    def apply(params: PyTree, stats: PyTree, points: Array) -> tuple[Array, PyTree]:
        variables = {"params": params, "batch_stats": stats}
        values, updated = network.apply(variables, points, train=True, mutable=["batch_stats"])
        return values, updated.get("batch_stats", {})

    critic = Critic(objective, apply, _critic_optimizer(config), settings.critic_steps(config))
    shape = dataset.sample_shape
    if config.conditional:
        shape = (math.prod(shape) + dataset.num_classes,)

    def initial_state(key: Key) -> CriticState:
        points = jnp.zeros((2, *shape))
        variables = network.init(key, points, train=False)
        return critics.init(variables["params"], variables.get("batch_stats", {}), critic)

    return critic, initial_state


def _critic_network(config: Config, dataset: Dataset) -> nn.Module:
    choice, shape = settings.OBJECTIVES[config.objective], dataset.sample_shape
    network: nn.Module
    if choice.is_energy:
        network = networks.energy_for(shape, config.width, config.energy_norm)
        if config.conditional:
            network = conditional.JointEnergy(network, shape, config.margin)
        return network
    spectral_norm = choice.spectral_norm if config.spectral_norm is None else config.spectral_norm
    network = networks.critic_for(shape, config.width, spectral_norm)
    if config.conditional:
        network = conditional.ConditionalCritic(network, shape)
    if settings.tracks(config):
        network = networks.TrackedNormalizer(network)
    return network


def _critic_optimizer(config: Config) -> optax.GradientTransformation:
    choice = settings.OBJECTIVES[config.objective]
    rate = config.critic_learning_rate or choice.critic_rate * config.learning_rate
    optimizer = optax.adam(rate, b1=config.b1)
    if choice.is_energy:
        return optax.chain(optimizer, critics.scale_by_info(lambda info: info["rate_factor"]))
    if settings.tracks(config):
        return optax.partition(
            {"network": optimizer, "log_normalizer": optax.sgd(1.0)},
            lambda params: {name: name for name in params},
        )
    return optimizer


def training_rows(config: Config, dataset: Dataset) -> np.ndarray:
    """Returns the training examples, with their labels where the run is conditional."""
    return conditional.labelled_points(dataset) if config.conditional else dataset.train


def check(config: Config, dataset: Dataset, num_devices: int = 1) -> None:
    """Refuses what the data set or the memory cannot take; nothing is compiled or written.

    Raises:
      UsageError: labels are missing, a step takes more rows than there are, no network takes such
        samples, or a device has too little memory.
    """
    rows, num_rows = settings.rows_per_step(config), len(dataset.train)
    if config.conditional:
        conditional.labels_of(dataset)
    if num_rows < rows:
        raise UsageError(
            f"batch_size: got {config.batch_size}, {rows} rows a step; expected at most the "
            f"{num_rows} training examples of {config.dataset}"
        )
    classes = dataset.num_classes if config.conditional else 0
    share = config.batch_size // num_devices
    shape = (math.prod(dataset.sample_shape) + classes,) if classes else dataset.sample_shape
    try:
        generator = networks.generator_for(dataset.sample_shape, config.width)
        needed = memory.of_training(generator, share, config.latent_dim + classes, train=False)
        if settings.critic_steps(config):
            critic = _critic_network(config, dataset)
            needed += memory.of_training(critic, share, *shape, train=False)
    except ValueError as error:
        raise UsageError(f"dataset: got {config.dataset}, for which no network is: {error}") from (
            error
        )
    memory.require(config, ("width", "latent_dim", "batch_size"), needed)


def run(
    config: Config,
    *,
    workdir: str,
    data_dir: str | None = None,
    num_devices: int | None = None,
    allow_config_change: bool = False,
    extra_scores: Sequence[ScoreFn] = (),
) -> dict[str, float]:
    """Trains to num_steps, resuming what the work folder holds.

    Args:
      config: the settings.
      workdir: the folder of the run.
      data_dir: where the data set's files are.
      num_devices: devices to use; None: all.
      allow_config_change: resume although settings differ.
      extra_scores: functions of generated samples to metrics, added at every evaluation.

    Returns:
      The last record of the metrics.

    Raises:
      UsageError: a setting out of its range, or a work folder with another run.
      DataError: the data set is unknown, missing or damaged.
      StorageError: the work folder cannot be used.
      DivergenceError: a state is not finite.
      Terminated: a signal came; the state is saved.
    """
    places.workdir(workdir)
    devices = jax.local_devices()[:num_devices]
    if num_devices is not None and num_devices > len(devices):
        raise UsageError(f"num_devices: got {num_devices}; expected at most {len(devices)}")
    settings.validate(config, len(devices))
    dataset = datasets.load(config.dataset, data_dir, seed=config.seed)
    check(config, dataset, len(devices))
    with (
        Workdir(
            workdir,
            config,
            free_fields=("num_steps",),
            allow_config_change=allow_config_change,
        ) as folder,
        threads.one_for_blas(),
    ):
        return _train(config, dataset, folder, devices, extra_scores)


def _train(
    config: Config,
    dataset: Dataset,
    folder: Workdir,
    devices: list[jax.Device],
    extra_scores: Sequence[ScoreFn],
) -> dict[str, float]:
    model = build(config, dataset, train.AXIS)
    init_key, train_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)
    restored = folder.restore(jax.eval_shape(model.initial_state, init_key))
    step, host_state = restored or (0, jax.jit(model.initial_state)(init_key))
    if step >= config.num_steps:
        print(f"{folder.path}: already at step {step} of {config.num_steps}, nothing to do")
        return folder.history()[-1]

    per_record = steps_per_record(config, step)
    per_call = steps_per_call(per_record, dataset, devices)
    advance = make_advance(config, dataset, model, per_call, step, devices)
    evaluate = _make_evaluate(model, dataset, folder, eval_key, config, extra_scores)
    state = train.replicate(host_state, devices)
    description = f"{config.objective} on {config.dataset}"
    bar = tqdm(total=config.num_steps, initial=step, desc=description, unit="step")
    with Signals() as signals, bar:
        while step < config.num_steps:
            infos = []
            for _ in range(per_record // per_call):
                state, info = advance(state, train_key)
                infos.append(train.unreplicate(jax.block_until_ready(info)))
                bar.update(per_call)
            scalars = {name: np.concatenate([info[name] for info in infos]) for name in infos[0]}
            finite = scalars.pop("finite")
            if not finite.all():
                raise folder.divergence(step + int(finite.argmin()) + 1, "the state is not finite")
            step += per_record
            record = {name: float(values[-1]) for name, values in scalars.items()}
            bar.set_postfix({name: f"{value:.3g}" for name, value in record.items()})
            host_state = None
            if step % config.eval_every == 0 or step >= config.num_steps:
                host_state = train.unreplicate(state)
                record |= evaluate(step, host_state)
            folder.log(step, record)
            if host_state is not None:
                folder.write_bytes("curves.png", plots.learning_curves(folder.history()))
            stop = signals.stop
            if host_state is not None or stop:
                folder.save(step, host_state or train.unreplicate(state))
            if stop:
                raise terminated(stop, f"saved step {step} in {folder.path}")
    return {"step": step, **record}


def steps_per_record(config: Config, start: int = 0) -> int:
    """Returns the largest number of steps between records that meets every evaluation exactly."""
    common = math.gcd(config.num_steps, config.eval_every, start)
    return max(n for n in range(1, _MAX_STEPS_PER_RECORD + 1) if common % n == 0)


def steps_per_call(per_record: int, dataset: Dataset, devices: list[jax.Device]) -> int:
    """Returns the steps of one call: 1 for images on a CPU, where loops slow convolutions."""
    return 1 if dataset.is_image and devices[0].platform == "cpu" else per_record


def make_advance(
    config: Config,
    dataset: Dataset,
    model: Model,
    per_call: int,
    start: int,
    devices: list[jax.Device],
) -> Callable[[PyTree, Key], tuple[PyTree, PyTree]]:
    """Returns (state, key) -> (state, info), `per_call` steps on all devices."""
    variance, fall = config.noise_variance, config.noise_steps or config.num_steps
    anneals = variance > 0 and config.objective != "noisy_jsd"
    train_step = train.make_train_step(
        model.generator,
        model.objective,
        model.optimizer,
        sample_latents=model.sample_latents,
        noise_variance=optax.linear_schedule(variance, 0.0, fall) if anneals else None,
        axis_name=train.AXIS,
    )
    batch, examples = settings.rows_per_step(config), training_rows(config, dataset)
    if examples.nbytes <= config.resident_gib * 2**30:
        scan = train.scan_resident(
            train_step, batch_size=batch, num_steps=per_call, axis_name=train.AXIS
        )
        mapped = train.pmap_train_step(scan, devices)
        resident = train.replicate(examples, devices)
        return lambda state, key: mapped(state, key, resident)

    mapped = train.pmap_train_step(train.scan_batches(train_step), devices)
    batches = feed.prefetched(
        feed.host_batches(examples, config.seed, batch, per_call, start, len(devices))
    )
    return lambda state, key: mapped(state, key, next(batches))


def _make_evaluate(
    model: Model,
    dataset: Dataset,
    folder: Workdir,
    key: Key,
    config: Config,
    extra_scores: Sequence[ScoreFn],
) -> Callable[[int, train.TrainState], dict[str, float]]:
    """Returns a function that draws samples, writes their picture and returns their metrics."""
    scores = list(extra_scores)
    if dataset.is_image and dataset.train_labels is not None:
        scores.insert(0, image_metrics.neighbours(dataset))
    latents = model.sample_latents(key, _EVALUATED_SAMPLES)
    shown = np.arange(100)
    if config.conditional:
        shown = conditional.by_class(latents[:, config.latent_dim :], 10)
    held_out = np.asarray(train.as_unit_interval(jnp.asarray(dataset.test[:_EVALUATED_SAMPLES])))
    test = jnp.asarray(held_out.reshape(len(held_out), -1))

    @jax.jit
    def generate(state: train.TrainState, latents: Array, test: Array) -> tuple[Array, Array]:
        samples = model.generate(state.params, state.batch_stats, latents)
        flat = samples.reshape(samples.shape[0], -1)
        kernel = kernels.median_mixture(kernels.imq_mixture, test, scales=config.kernel_scales)
        return samples, mmd.mmd_u_statistic(flat, test, kernel)

    def evaluate(step: int, state: train.TrainState) -> dict[str, float]:
        samples, test_mmd = jax.device_get(generate(state, latents, test))
        record = {"test_mmd": float(test_mmd)}
        for score in scores:
            record |= score(samples)
        if dataset.is_image:
            picture = plots.image_grid(samples[shown])
        else:
            title = f"{config.objective} on {config.dataset}, step {step}"
            picture = plots.points(samples, dataset.test, title)
        folder.write_bytes(f"samples/{step:07d}.png", picture)
        return record

    return evaluate


def _start(given: command.Given) -> None:
    options = fields.pick(Options, given)
    run(
        settings.configured(given, options.preset),
        workdir=options.workdir,
        data_dir=options.data_dir,
        num_devices=options.num_devices,
        allow_config_change=options.allow_config_change,
    )


def main() -> None:
    """Parses the flags and trains."""
    command.main(_start, Config, Options)


if __name__ == "__main__":
    main()
