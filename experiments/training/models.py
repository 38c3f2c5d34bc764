"""What a config makes of training: the generator, its objective, its critic, their optimizers."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import labelled
from experiments.data.dataset import Dataset, Index
from experiments.networks import generators
from experiments.run import memory, places
from experiments.run.errors import UsageError, short
from experiments.training import extractors, optimizers, settings
from experiments.training.extractors import Extractor
from experiments.training.objectives import OBJECTIVES
from experiments.training.settings import Config
from kernelgrad import critic, objectives, train
from kernelgrad.critic import Critic, CriticState
from kernelgrad.objectives import Objective
from kernelgrad.two_player import TwoPlayer
from kernelgrad.types import Array, Key, PyTree


def _itself(samples: Array) -> Array:
    return samples


class Keys(NamedTuple):
    """The random keys of a run: of its first state, its batches and steps, its evaluations."""

    init: Key
    train: Key
    evaluate: Key


def keys(seed: int | Array) -> Keys:
    """Returns the keys of a run with this seed."""
    return Keys(*jax.random.split(jax.random.key(seed), 3))


class Model(NamedTuple):
    """The generator and the pieces of its training that follow from the config.

    The last are the networks through which the objective looks. `values` maps the critic's state
    and points to its outputs, by the running averages of BatchNorm where it has any.
    """

    generate: Callable[[PyTree, PyTree, Array], Array]
    generator: train.Generator
    objective: Objective | Critic
    optimizer: optax.GradientTransformation
    sample_latents: Callable[[Key, int], Array]
    initial_state: Callable[[Key], train.TrainState]
    values: Callable[[CriticState, Array], PyTree] | None = None
    extractors: tuple[Extractor, ...] = ()


def load_networks(config: Config, dataset: Dataset) -> dict[str, Extractor]:
    """Returns the networks through which the objective looks, trained at first use."""
    return {
        name: extractors.train_or_load(name, dataset, places.cache())
        for name in config.features
        if name != extractors.PIXELS
    }


def build(
    config: Config,
    dataset: Dataset,
    axis_name: str | None = None,
    networks: Mapping[str, Extractor] | None = None,
) -> Model:
    """Returns the model of a config: networks, prior, objective and optimizer.

    Args:
      config: the settings, whose numbers may be traced.
      dataset: what is trained on.
      axis_name: mapped axis over devices.
      networks: through which the objective looks; None: :func:`load_networks`, which does not work
        where anything is traced.
    """
    network = generators.generator_for(dataset.sample_shape, config.width, axis_name)
    optimizer = optimizers.make(config, config.learning_rate, config.generator_steps)
    networks = load_networks(config, dataset) if networks is None else networks
    views = {name: networks.get(name, _itself) for name in config.features}
    objective, init_critic, values = _build_objective(config, dataset, views, axis_name)

    def sample_latents(key: Key, n: int) -> Array:
        prior = settings.PRIORS[config.prior]
        if not config.conditional:
            return prior(key, (n, config.latent_dim))
        latent_key, label_key = jax.random.split(key)
        latents = prior(latent_key, (n, config.latent_dim))
        return labelled.join(latents, labelled.draw_labels(label_key, n, dataset))

    def generator(params: PyTree, batch_stats: PyTree, latents: Array) -> tuple[Array, PyTree]:
        variables = {"params": params, "batch_stats": batch_stats}
        samples, updated = network.apply(variables, latents, train=True, mutable=["batch_stats"])
        if config.conditional:
            samples = labelled.join(samples, latents[:, config.latent_dim :])
        return samples, updated.get("batch_stats", {})

    def generate(params: PyTree, batch_stats: PyTree, latents: Array) -> Array:
        variables = {"params": params, "batch_stats": batch_stats}
        return network.apply(variables, latents, train=False)

    def initial_state(key: Key) -> train.TrainState:
        variables = network.init(key, sample_latents(key, 2), train=False)
        stats = variables.get("batch_stats", {})
        critic_state = init_critic(jax.random.fold_in(key, 1))
        keeps = config.ema is not None
        return train.init(variables["params"], stats, optimizer, critic_state, ema=keeps)

    return Model(
        generate,
        generator,
        objective,
        optimizer,
        sample_latents,
        initial_state,
        values,
        tuple(networks.values()),
    )


def _joined(views: Mapping[str, Callable[[Array], Array]]) -> Callable[[Array], Array]:
    """Returns one function of samples: their only view, or all views side by side, (n, l)."""
    if len(views) == 1:
        return next(iter(views.values()))

    def joined(samples: Array) -> Array:
        rows = [view(samples).reshape(samples.shape[0], -1) for view in views.values()]
        return jnp.concatenate(rows, axis=1)

    return joined


def _seen_shape(config: Config, dataset: Dataset) -> tuple[int, ...]:
    """Returns the shape of what a critic sees of a sample."""
    if not settings.sees_features(config):
        return dataset.sample_shape
    sizes = [
        math.prod(dataset.sample_shape) if name == extractors.PIXELS else extractors.NUM_FEATURES
        for name in config.features
    ]
    return (sum(sizes),)


def _seen(
    config: Config,
    objective: Objective | TwoPlayer,
    views: Mapping[str, Callable[[Array], Array]],
) -> Objective | TwoPlayer:
    """Returns the objective as the config has it see samples, its direction normalised or not."""
    unit = objectives.normalized if settings.normalizes(config) else lambda one: one
    if not settings.sees_features(config):
        return unit(objective)
    if isinstance(objective, TwoPlayer) or len(views) == 1:
        return unit(objectives.through(_joined(views), objective))
    return unit(
        objectives.weighted(
            [(1.0, unit(objectives.through(view, objective))) for view in views.values()]
        )
    )


def _build_objective(
    config: Config,
    dataset: Dataset,
    views: Mapping[str, Callable[[Array], Array]],
    axis_name: str | None,
) -> tuple[
    Objective | Critic,
    Callable[[Key], CriticState | None],
    Callable[[CriticState, Array], PyTree] | None,
]:
    """Returns the objective of a config; its critic's start and values, if it has one."""
    choice = OBJECTIVES[config.objective]
    objective = _seen(config, choice.make(config), views)
    if not isinstance(objective, TwoPlayer):
        return objective, lambda _: None, None
    shape = _seen_shape(config, dataset)
    network = choice.critic_network(config, shape, axis_name)

    def apply(
        params: PyTree, stats: PyTree, points: Array, in_training: bool = True
    ) -> tuple[Array, PyTree]:
        variables = {"params": params, "batch_stats": stats}
        values, updated = network.apply(
            variables, points, train=in_training, mutable=["batch_stats"]
        )
        return values, updated.get("batch_stats", {})

    def values(state: CriticState, points: Array) -> PyTree:
        return apply(state.params, state.stats, points, in_training=not config.batch_norm)[0]

    optimizer = choice.critic_optimizer(config)
    player = Critic(objective, apply, optimizer, settings.critic_steps(config))
    if config.conditional:
        shape = (math.prod(shape) + dataset.num_classes,)

    def initial_state(key: Key) -> CriticState:
        points = jnp.zeros((2, *shape))
        variables = network.init(key, points, train=False)
        return critic.init(variables["params"], variables.get("batch_stats", {}), player)

    return player, initial_state, values


def training_rows(config: Config, dataset: Dataset, rows: Index = slice(None)) -> np.ndarray:
    """Returns training examples, all or some, with their labels where the run is conditional."""
    return labelled.points(dataset, rows) if config.conditional else dataset.train[rows]


def size_of_rows(config: Config, dataset: Dataset) -> int:
    """Returns the bytes of the :func:`training_rows`, which it does not make."""
    codes = dataset.num_classes if config.conditional else 0
    return dataset.train.nbytes + len(dataset.train) * codes * dataset.train.dtype.itemsize


def check(config: Config, dataset: Dataset, num_devices: int = 1) -> None:
    """Refuses what the data set or the memory cannot take; nothing is compiled or written.

    Raises:
      UsageError: labels are missing, a step takes more rows than there are, no network takes such
        samples, or a device has too little memory.
    """
    extractors.check(config.features, dataset)
    rows, num_rows = settings.rows_per_step(config), len(dataset.train)
    if config.conditional:
        labelled.labels_of(dataset)
    if num_rows < rows:
        raise UsageError(
            f"batch_size: got {config.batch_size}, {rows} rows a step; expected at most the "
            f"{num_rows} training examples of {short(config.dataset)}"
        )
    names = ("width", "latent_dim", "batch_size", *(("image_size",) if config.image_size else ()))
    memory.require(config, names, memory_needed(config, dataset, num_devices))


def memory_needed(config: Config, dataset: Dataset, num_devices: int = 1) -> float:
    """Returns the bytes that training takes of a device, estimated from below.

    Raises:
      UsageError: no network takes such samples.
    """
    classes = dataset.num_classes if config.conditional else 0
    share = config.batch_size // num_devices
    shape = (math.prod(dataset.sample_shape) + classes,) if classes else dataset.sample_shape
    try:
        generator = generators.generator_for(dataset.sample_shape, config.width)
        needed = memory.of_training(generator, share, config.latent_dim + classes, train=False)
        if settings.critic_steps(config):
            choice = OBJECTIVES[config.objective]
            seen = _seen_shape(config, dataset)
            network, shape = choice.critic_network(config, seen), shape if classes else seen
            needed += memory.of_training(network, share, *shape, train=False)
    except ValueError as error:
        name = short(config.dataset)
        raise UsageError(f"dataset: got {name}, for which no network is: {error}") from error
    return needed
