"""Boltzmann machines trained by amortized maximum likelihood, with exact likelihoods.

    python -m experiments.rbm --workdir=runs/rbm --data_dir=<the folder that holds mnist>

The machine has 10 hidden units, so that its test likelihood is exact (see
:mod:`experiments.targets.boltzmann`). It is trained by Algorithm 2 of Wang & Liu 2016: the negative
phase comes from a generator that follows a direction at its samples by the chain rule, eq. (10).

=========  =======================================================================================
svgd       sum_j [k_ij s_j + grad_j k_ij] / sum_j k_ij: the public code's row-normalised eq. (7)
score      s_i: one particle at a time, what the public code returns beside it, "without the kernel"
smoothed   sum_j k_ij s_j / sum_j k_ij: svgd but for its repulsive term
exact      no generator: the gradient of the exact likelihood, the best that any of them can do
=========  =======================================================================================

Settings of the public code: Adam at 3e-4 with b1 = 0.5 for both players, weight decay 1e-5 of the
machine, pixels / 255, 50 000 training images, batches of 100, 20 epochs, latents U[-1, 1]^100,
pixels of the generator behind a sigmoid, and RBF with l^2 = median / (2 log(n + 1)). Every run
lives in workdir/<direction>/seed<k> and resumes from its last epoch.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from experiments.data import catalog
from experiments.data.dataset import Dataset
from experiments.networks import generators
from experiments.networks.generators import MLPGenerator
from experiments.pictures import charts, mosaics
from experiments.run import command, fields, memory, places
from experiments.run.errors import UsageError
from experiments.run.signals import Signals, terminated
from experiments.run.tables import format_table
from experiments.run.workdirs import Workdir
from experiments.targets import boltzmann
from experiments.targets.boltzmann import RBMParams
from kernelgrad import kernels, pairwise, pullback, svgd
from kernelgrad.types import Array, Key, PyTree

_NUM_TRAIN = 50_000
_NUM_SAMPLES = 1000
_NUM_SHOWN = 12
_TEST = "test_log_likelihood"
_PUBLISHED = {"svgd": -771.2, "score": -989.6}  # README of the public code; log Z by HAIS


DirectionFn = Callable[[Array, Array], Array]


# ---------------------------------------------------------------------------------- the directions


def svgd_direction(samples: Array, scores: Array) -> Array:
    """Returns the row-normalised SVGD direction, to be ascended; all shapes (n, d)."""
    kernel = kernels.rbf_mixture(kernels.svgd_lengthscale(samples))
    return len(samples) * svgd.svgd_direction(samples, scores, kernel) / _row_sums(samples, kernel)


def smoothed_score(samples: Array, scores: Array) -> Array:
    """Returns the same without its repulsive term."""
    kernel = kernels.rbf_mixture(kernels.svgd_lengthscale(samples))
    return pairwise.kernel_sum(kernel, samples, None, scores) / _row_sums(samples, kernel)


def raw_score(samples: Array, scores: Array) -> Array:
    """Returns the scores: each sample on its own climbs to a mode."""
    del samples
    return scores


def _row_sums(samples: Array, kernel: kernels.RadialMixture) -> Array:
    return pairwise.kernel_sum(kernel, samples, None, jnp.ones((len(samples), 1)))


DIRECTIONS: dict[str, DirectionFn | None] = {
    "svgd": svgd_direction,
    "score": raw_score,
    "smoothed": smoothed_score,
    "exact": None,
}


# ------------------------------------------------------------------------------------ the settings


class _SigmoidMLP(nn.Module):
    """The generator of points, put into (0, 1)."""

    size: int
    width: int

    @nn.compact
    def __call__(self, latents: Array, train: bool) -> Array:
        return nn.sigmoid(MLPGenerator((self.size,), self.width, depth=2)(latents, train))


_GENERATORS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "mlp": lambda image_shape, width: _SigmoidMLP(math.prod(image_shape), width),
    "linear": lambda image_shape, width: MLPGenerator((math.prod(image_shape),), width, 2),
    "dcgan": generators.generator_for,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the runs, but for where they are stored."""

    dataset: str = fields.word("mnist", "Images: mnist, digits, ...")
    directions: tuple[str, ...] = fields.choices(
        ("svgd", "score", "smoothed", "exact"), DIRECTIONS, "Directions to compare."
    )
    seeds: tuple[int, ...] = fields.integers(
        (0, 1, 2), 0, fields.MAX_SEED, "Seeds of each direction."
    )
    num_epochs: int = fields.integer(20, 1, 10**6, "Passes over the training images.")
    num_hidden: int = fields.integer(10, 1, boltzmann.MAX_HIDDEN, "Hidden units.")
    generator: str = fields.choice("mlp", _GENERATORS, "Its network.")
    width: int = fields.integer(512, 1, fields.MAX_SIZE, "Units (mlp) or channels (dcgan).")
    batch_size: int = fields.integer(100, 2, fields.MAX_SIZE, "Images, and samples, per step.")
    latent_dim: int = fields.integer(100, 1, fields.MAX_SIZE, "Dimension of the latents.")
    learning_rate: float = fields.positive(3e-4, "Adam's, of both players.")
    b1: float = fields.share(0.5, "Adam's decay of the first moment.")
    weight_decay: float = fields.not_negative(1e-5, "L2 decay of the machine.")
    balance_weight: float = fields.not_negative(1.0, "Weight 1 - gamma of the negative phase.")


# -------------------------------------------------------------------------------------- training


class State(NamedTuple):
    """Both players and their optimizers."""

    machine: RBMParams
    machine_opt: optax.OptState
    generator: PyTree
    batch_stats: PyTree
    generator_opt: optax.OptState


class Trainer(NamedTuple):
    """What a config, a direction and the images' shape make of training."""

    initial_state: Callable[[Key], State]
    step: Callable[[State, Key, Array], State]
    samples: Callable[[State, Key], Array]


def make_trainer(config: Config, direction: str, image_shape: tuple[int, ...]) -> Trainer:
    """Returns start, step and sampler for one direction; images come as uint8 (n, h, w, c)."""
    size = math.prod(image_shape)
    network = _GENERATORS[config.generator](image_shape, config.width)
    direction_fn = DIRECTIONS[direction]
    adam = optax.adam(config.learning_rate, b1=config.b1)
    decayed_adam = optax.chain(optax.add_decayed_weights(config.weight_decay), adam)

    def sample_latents(key: Key, n: int) -> Array:
        return jax.random.uniform(key, (n, config.latent_dim), minval=-1.0, maxval=1.0)

    def initial_state(key: Key) -> State:
        machine_key, generator_key = jax.random.split(key)
        machine = boltzmann.initial_params(machine_key, size, config.num_hidden)
        params, stats = {}, {}
        if direction_fn is not None:
            variables = network.init(generator_key, sample_latents(key, 2), train=False)
            params, stats = variables["params"], variables.get("batch_stats", {})
        return State(machine, decayed_adam.init(machine), params, stats, adam.init(params))

    def generator(params: PyTree, stats: PyTree, latents: Array) -> tuple[Array, PyTree]:
        variables = {"params": params, "batch_stats": stats}
        images, updated = network.apply(variables, latents, train=True, mutable=["batch_stats"])
        return images.reshape(len(latents), size), updated.get("batch_stats", {})

    def negative_phase(follow: DirectionFn, state: State, key: Key) -> tuple[Array, State]:
        """Returns the generator's samples, and the state after it followed the direction there."""
        latents = sample_latents(key, config.batch_size)
        samples, stats = generator(state.generator, state.batch_stats, latents)
        ascent = follow(samples, boltzmann.score(state.machine, samples))
        gradient = pullback.chain_rule(
            lambda params: generator(params, state.batch_stats, latents)[0],
            state.generator,
            -ascent,
        )
        updates, opt = adam.update(gradient, state.generator_opt)
        params = optax.apply_updates(state.generator, updates)
        return samples, state._replace(generator=params, batch_stats=stats, generator_opt=opt)

    def step(state: State, key: Key, images: Array) -> State:
        data = as_points(images)
        if direction_fn is None:
            gradient = jax.grad(lambda p: -boltzmann.mean_log_likelihood(p, data))(state.machine)
        else:
            samples, state = negative_phase(direction_fn, state, key)
            gradient = jax.grad(_contrast)(state.machine, data, samples, config.balance_weight)
        updates, opt = decayed_adam.update(gradient, state.machine_opt, state.machine)
        return state._replace(machine=optax.apply_updates(state.machine, updates), machine_opt=opt)

    def samples(state: State, key: Key) -> Array:
        if direction_fn is None:
            return boltzmann.sample_means(key, state.machine, _NUM_SAMPLES)
        variables = {"params": state.generator, "batch_stats": state.batch_stats}
        images = network.apply(variables, sample_latents(key, _NUM_SAMPLES), train=False)
        return images.reshape(_NUM_SAMPLES, size)

    return Trainer(initial_state, step, samples)


def as_points(images: Array) -> Array:
    """Returns uint8 images as points of float32 pixels in [0, 1], shape (n, h w c)."""
    return images.reshape(len(images), -1).astype(jnp.float32) / 255


def _contrast(params: RBMParams, data: Array, samples: Array, balance_weight: float) -> Array:
    """Energy of the data minus that of the samples, eqs. (13) and (16); to be descended."""
    positive = jnp.mean(boltzmann.unnormalised_log_density(params, data))
    negative = jnp.mean(boltzmann.unnormalised_log_density(params, samples))
    return balance_weight * negative - positive


# ------------------------------------------------------------------------------------------- runs


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
    dataset = catalog.load(config.dataset, data_dir)
    if not dataset.is_image:
        raise UsageError(f"dataset: got {config.dataset}; expected images, such as mnist or digits")
    if len(dataset.train) < config.batch_size:
        raise UsageError(
            f"batch_size: got {config.batch_size}; expected at most the {len(dataset.train)} "
            f"training images of {config.dataset}"
        )
    histories: dict[str, list[list[dict[str, float]]]] = {name: [] for name in config.directions}
    pictures: dict[str, dict[str, np.ndarray]] = {}
    shape, size = dataset.sample_shape, (config.batch_size, config.latent_dim)
    needed = memory.of_training(
        _GENERATORS[config.generator](shape, config.width), *size, train=False
    )
    memory.require(config, ("width", "latent_dim", "batch_size"), needed)
    with Workdir(root, config, free_fields=("directions", "seeds", "num_epochs")) as folder:
        for seed in config.seeds:
            for name in config.directions:
                one = dataclasses.replace(config, directions=(name,), seeds=(seed,))
                place = folder.below(f"{name}/seed{seed}")
                with Workdir(place, one, free_fields=("num_epochs",)) as own, Signals() as signals:
                    history, images = _train(one, dataset, own, signals)
                histories[name].append(history)
                pictures.setdefault(name, images)
            _report(folder, config, dataset, histories, pictures)
    return {name: [run[-1][_TEST] for run in runs] for name, runs in histories.items()}


def _train(
    config: Config, dataset: Dataset, folder: Workdir, signals: Signals
) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """Returns the records of one run, one direction and seed, and images of its end by name."""
    (direction,), (seed,) = config.directions, config.seeds
    trainer = make_trainer(config, direction, dataset.sample_shape)
    init_key, split_key, train_key, eval_key = jax.random.split(jax.random.key(seed), 4)
    split = np.asarray(jax.random.permutation(split_key, len(dataset.train)))
    train = jnp.asarray(dataset.train[split[:_NUM_TRAIN]])
    evaluate = _make_evaluate(trainer, train, jnp.asarray(dataset.test), eval_key)
    restored = folder.restore(jax.eval_shape(trainer.initial_state, init_key))
    epoch, state = restored or (0, trainer.initial_state(init_key))
    if not restored:
        folder.log(0, evaluate(state))

    @jax.jit
    def step(state: State, key: Key, order: Array, images: Array, index: Array) -> State:
        rows = jax.lax.dynamic_slice_in_dim(order, index * config.batch_size, config.batch_size)
        return trainer.step(state, jax.random.fold_in(key, index), images[rows])

    num_steps = len(train) // config.batch_size
    description = f"{direction}, seed {seed}"
    total = config.num_epochs * num_steps
    with tqdm(total=total, initial=epoch * num_steps, desc=description, unit="step") as bar:
        while epoch < config.num_epochs:
            order_key, step_key = jax.random.split(jax.random.fold_in(train_key, epoch))
            order = jax.random.permutation(order_key, len(train))
            for index in range(num_steps):
                state = step(state, step_key, order, train, index)
                if index % 10 == 0:
                    jax.block_until_ready(state.machine)
                bar.update()
            epoch += 1
            record = evaluate(state)
            bar.set_postfix({"test": f"{record[_TEST]:.1f}"})
            if not math.isfinite(record[_TEST]):
                raise folder.divergence(epoch, "the likelihood is not finite")
            folder.log(epoch, record)
            folder.save(epoch, state)
            if stop := signals.stop:
                raise terminated(stop, f"saved epoch {epoch} in {folder.path}")
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
            _TEST: boltzmann.mean_log_likelihood(machine, held_out),
            "train_log_likelihood": boltzmann.mean_log_likelihood(machine, as_points(train)),
            "log_normalizer": boltzmann.gaussian_bernoulli_rbm(machine).log_normalizer,
        }
        if state.generator:
            samples = trainer.samples(state, key)
            bias = jnp.mean(samples, axis=0) - boltzmann.model_mean(machine)
            record["sample_variance"] = jnp.sum(jnp.var(samples, axis=0))
            record["sample_mean_error"] = jnp.linalg.norm(bias)
            record["energy_gap"] = -_contrast(machine, held_out, samples, 1.0)
        return record

    sub_train = train[: len(test)]
    return lambda state: {
        name: float(value) for name, value in measure(state, sub_train, test).items()
    }


def _shown_images(
    trainer: Trainer, state: State, key: Key, image_shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Returns what the machine expects given its hidden units, and what the generator draws."""
    shown = {"machine": boltzmann.sample_means(key, state.machine, 100)}
    if state.generator:
        shown["generator"] = trainer.samples(state, key)[:100]
    return {name: np.asarray(x).reshape(-1, *image_shape) for name, x in shown.items()}


# ------------------------------------------------------------------------------------ the summary


def anchors(dataset: Dataset) -> dict[str, float]:
    """Returns the exact test log-likelihoods of the machines without hidden units.

    Args:
      dataset: images.

    Returns:
      That of N(0, I), and that of N(mean of the training images, I).
    """
    train, test = as_points(jnp.asarray(dataset.train)), as_points(jnp.asarray(dataset.test))
    zero = jnp.zeros(train.shape[1])
    none = jnp.zeros((train.shape[1], 0))
    machines = {"N(0, I)": zero, "N(mean, I)": jnp.mean(train, axis=0)}
    return {
        name: float(boltzmann.mean_log_likelihood(RBMParams(none, mean, jnp.zeros(0)), test))
        for name, mean in machines.items()
    }


def _report(
    folder: Workdir,
    config: Config,
    dataset: Dataset,
    histories: dict[str, list[list[dict[str, float]]]],
    pictures: dict[str, dict[str, np.ndarray]],
) -> None:
    """Writes table and pictures of the seeds that are done."""
    references = anchors(dataset)
    rows: dict[str, dict[str, float | str]] = {}
    for name, runs in histories.items():
        finals = [run[-1] for run in runs]
        rows[name] = {
            f"seed {seed}": f"{final[_TEST]:.1f}"
            for seed, final in zip(config.seeds, finals, strict=False)
        }
        rows[name]["mean"] = f"{np.mean([final[_TEST] for final in finals]):.1f}"
        for key in ("train_log_likelihood", "sample_variance", "sample_mean_error"):
            if key in finals[0]:
                rows[name][key] = f"{np.mean([final[key] for final in finals]):.1f}"
        if config.dataset == "mnist" and name in _PUBLISHED:
            rows[name]["published"] = f"{_PUBLISHED[name]:.1f}"
    rows |= {name: {"mean": f"{value:.1f}"} for name, value in references.items()}
    table = format_table(rows)
    panel = charts.CurvePanel(
        "exact test log-likelihood (nats)",
        "epoch",
        {
            name: (
                np.array([record["step"] for record in runs[0]]),
                np.array([[record[_TEST] for record in run] for run in runs]),
            )
            for name, runs in histories.items()
        },
        references,
    )
    folder.write_bytes("table.md", (table + "\n").encode())
    folder.write_bytes("results.json", (json.dumps(rows, indent=2) + "\n").encode())
    folder.write_bytes("curves.png", charts.curve_panels([[panel]]))
    folder.write_bytes(
        "samples.png",
        mosaics.image_rows(
            {"data": dataset.test[:_NUM_SHOWN] / 255.0}
            | {
                f"{name}: {kind}": images[:_NUM_SHOWN]
                for name, kinds in pictures.items()
                for kind, images in kinds.items()
            }
        ),
    )
    print(table)
    print(f"written to {folder.path}/table.md, curves.png and samples.png")


# -------------------------------------------------------------------------------------- the binary


def main() -> None:
    """Parses the flags and trains."""
    command.main_in_workdir(run, Config)


if __name__ == "__main__":
    main()
