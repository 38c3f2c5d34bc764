"""Trains networks to draw samples from an unnormalised density: amortized SVGD, four ways.

    python -m experiments.neural_sampler --target=ring --workdir=runs/ring
    python -m experiments.neural_sampler --target=logistic_regression --workdir=runs/wine \
        --data_dir=<the folder that holds uci>

The targets are those of :mod:`experiments.targets.densities`. The samples of a network follow a
direction in sample space, and an update rule makes that a step of the network's parameters:

=============  ===================================================================================
chain_rule     SVGD's direction, pulled back by the chain rule, then Adam: eq. (10)
regression     SVGD's direction; inner momentum steps regress the samples onto their moved
               selves, and Adam follows where they lead: eq. (8)
gauss_newton   SVGD's direction; the damped least squares step in the parameters, taken as it
               is: eq. (9)
stein_score    score of the target minus Stein estimate of the samples' own score, in place of
               SVGD's direction; chain rule and Adam: eq. (11)
=============  ===================================================================================

(Equations of Wang & Liu 2016.) All start from one network and see the same latents. The score of
the target is scaled by a factor that rises to 1 over the first part of the run, so that the samples
spread before the modes take hold of them.

The table gives the U-statistics of KSD^2, against the target's score, and of MMD^2, against exact
draws or a long Hamiltonian chain, at equal steps and at equal training time. The last row is what
fresh draws of the target reach: below its mean plus a few of its standard deviations nothing is
left to gain. Every rule lives in workdir/<rule> and resumes from its last evaluation.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments.networks import generators
from experiments.reports import sampling
from experiments.reports.sampling import Record, Rows
from experiments.run import command, fields, loop, memory, places, store, threads, timing, unread
from experiments.run.errors import line
from experiments.run.loop import Schedule
from experiments.run.signals import Signals
from experiments.run.timing import Timed
from experiments.run.workdirs import Workdir
from experiments.targets import densities
from experiments.targets.densities import Target
from experiments.training import settings
from kernelgrad import kernels, pullback, score, svgd, train
from kernelgrad.train import TrainState
from kernelgrad.types import Array, Key, PyTree

UPDATES = {  # with the settings that not all of them read
    "chain_rule": ("learning_rate",),
    "regression": ("learning_rate", "step_size", "inner_steps", "inner_learning_rate"),
    "gauss_newton": ("step_size", "damping", "cg_iterations"),
    "stein_score": ("learning_rate",),
}

_DEPTH = 3
_LAST_SHARE = 0.05  # of a learning rate or step size, at the end
_FIRST_FACTOR = 0.02  # of the target's score
_STEIN_SCALES = (0.01, 0.05, 0.25, 1.0)
_STEIN_RIDGE = 0.02  # of score.default_ridge
_NUM_DRAWN = 500
_LEAST_DIMENSION = 2  # of a target
_MOST_FRAMES = 2000  # of a film, each of them a file
_MOST_BYTES = 2**26  # of a frame
_TIMED_STEPS = 20  # of a call


def _reading(setting: str) -> list[str]:
    """Returns the update rules that read a setting."""
    return [name for name, settings_of in UPDATES.items() if setting in settings_of]


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the runs, but for where they are stored."""

    target: str = fields.choice("ring", densities.NAMES, "Density to draw from.")
    updates: tuple[str, ...] = fields.choices(
        tuple(UPDATES), UPDATES, "Update rules, or all of them.", flag="update"
    )
    num_steps: int = fields.integer(2000, 1, fields.MAX_COUNT, "Updates of each network.")
    eval_every: int = fields.integer(50, 1, fields.MAX_COUNT, "Steps between frames and records.")
    batch_size: int = fields.integer(300, 2, fields.MAX_SIZE, "Samples per step.")
    latent_dim: int | None = fields.integer(
        None, 1, fields.MAX_SIZE, "Dimension of the latents; by default twice the target's."
    )
    width: int = fields.integer(64, 1, fields.MAX_SIZE, "Units of each of the three hidden layers.")
    learning_rate: float = fields.positive(2e-3, "Adam's.", of=_reading)
    step_size: float = fields.positive(
        0.5, "epsilon, in units of the target's mean variance.", of=_reading
    )
    inner_steps: int = fields.integer(10, 1, 10**6, "Inner steps.", of=_reading)
    inner_learning_rate: float = fields.positive(
        0.005, "Rate of the inner momentum steps.", of=_reading
    )
    damping: float = fields.positive(1e-3, "lambda.", of=_reading)
    cg_iterations: int = fields.integer(20, 1, 10**6, "Most CG iterations.", of=_reading)
    annealing: float = fields.number(
        0.5, 0.0, 1.0, "Share of the steps in which the target's score grows."
    )
    seed: int = fields.seed()


# ---------------------------------------------------------------------------------- the samplers


class Sampler(NamedTuple):
    """A network and the way that it is trained."""

    initial_state: Callable[[], TrainState]
    advance: Callable[[TrainState, int], tuple[TrainState, Array]]
    samples: Callable[[TrainState], Array]


def make_sampler(
    key: Key, config: Config, update: str, target: Target, *, variance: float
) -> Sampler:
    """Returns start, training and samples (n, d), the same latents every time, of one rule.

    `variance` is the target's, a mean over coordinates: the unit of the step size.
    `advance` makes n steps and also returns whether all of them were finite. What is random in
    step t is a function of (key, t).
    """
    init_key, train_key, latent_key = jax.random.split(key, 3)
    latent_dim = config.latent_dim or 2 * target.dimension
    network = generators.MLPGenerator((target.dimension,), config.width, _DEPTH)
    optimizer, pull_back = _rule(config, update, config.step_size * variance)
    direction = make_direction(config, update, target)

    def sample_latents(key: Key, n: int) -> Array:
        return jax.random.normal(key, (n, latent_dim))

    def generate(params: PyTree, latents: Array) -> Array:
        return network.apply({"params": params}, latents, train=True)

    @jax.jit
    def initial_state() -> TrainState:
        params = network.init(init_key, jnp.zeros((1, latent_dim)), train=False)["params"]
        return train.init(params, {}, optimizer)

    def step(state: TrainState) -> tuple[TrainState, Array]:
        key = jax.random.fold_in(train_key, state.step)
        generator_fn = functools.partial(generate, latents=sample_latents(key, config.batch_size))
        descent = direction(state.step, generator_fn(state.params))
        gradient = pull_back(generator_fn, state.params, descent)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        finite = jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)])
        return TrainState(state.step + 1, params, {}, opt_state), jnp.all(finite)

    @jax.jit
    def advance(state: TrainState, num_steps: int) -> tuple[TrainState, Array]:
        def body(_: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
            state, finite = step(carry[0])
            return state, carry[1] & finite

        return lax.fori_loop(0, num_steps, body, (state, jnp.array(True)))

    latents = sample_latents(latent_key, sampling.NUM_EVALUATED)
    return Sampler(initial_state, advance, jax.jit(lambda state: generate(state.params, latents)))


def make_direction(config: Config, update: str, target: Target) -> Callable[[Array, Array], Array]:
    """Returns (step, samples) -> direction to descend, both (n, d)."""
    score_fn = jax.vmap(jax.grad(target.log_density_fn))
    ramp = max(1.0, config.annealing * config.num_steps)

    def annealed_score(step: Array, samples: Array) -> Array:
        return jnp.clip(step / ramp, _FIRST_FACTOR, 1.0) * score_fn(samples)

    def smoothed(step: Array, samples: Array) -> Array:
        kernel = kernels.rbf_mixture(kernels.svgd_lengthscale(samples))
        return -svgd.svgd_direction(samples, annealed_score(step, samples), kernel)

    def direct(step: Array, samples: Array) -> Array:
        kernel = kernels.median_mixture(kernels.imq_mixture, samples, scales=_STEIN_SCALES)
        ridge = _STEIN_RIDGE * score.default_ridge(len(samples), kernel)
        own = score.stein_score(samples, kernel, ridge=ridge)
        return own - annealed_score(step, samples)

    return direct if update == "stein_score" else smoothed


def _rule(
    config: Config, update: str, step_size: float
) -> tuple[optax.GradientTransformation, Callable[..., PyTree]]:
    """Returns the outer optimizer and the pull-back of a rule."""
    adam, sgd = (
        make(optax.cosine_decay_schedule(first, config.num_steps, _LAST_SHARE))
        for make, first in ((optax.adam, config.learning_rate), (optax.sgd, step_size))
    )
    if update == "gauss_newton":
        return sgd, functools.partial(
            pullback.gauss_newton, damping=config.damping, max_iterations=config.cg_iterations
        )
    if update == "regression":
        return adam, functools.partial(
            pullback.regression,
            optimizer=optax.sgd(config.inner_learning_rate, momentum=0.9, nesterov=True),
            step_size=step_size,
            num_steps=config.inner_steps,
        )
    return adam, pullback.chain_rule


# -------------------------------------------------------------------------------------- training


def run(config: Config, *, workdir: str, data_dir: str | None = None) -> Rows:
    """Trains a sampler by each update rule, and compares them; resumes what is there.

    Args:
      config: the settings.
      workdir: the folder of all runs, and of table and pictures.
      data_dir: where the files of a target with data are.

    Returns:
      The rows of the table.

    Raises:
      UsageError: a setting out of its range, or a work folder with another run.
      DataError: a file is missing or damaged.
      StorageError: the work folder cannot be used.
      DivergenceError: a network is not finite.
      Terminated: a signal came; the state is saved.
    """
    places.workdir(workdir)
    fields.validate(config)
    settings.limit_pictures(config, _MOST_FRAMES)
    _check_memory(config)
    target = densities.load(config.target, data_dir, seed=config.seed)
    key, reference_key = jax.random.split(jax.random.key(config.seed))
    with (
        Workdir(workdir, config, free_fields=("updates", *unread.among([config]))) as folder,
        threads.one_for_blas(),
    ):
        reference = sampling.make_reference(reference_key, target)
        measure = sampling.make_measure(target, reference)
        variance = float(jnp.mean(jnp.var(reference.draws, axis=0)))
        samplers = {
            name: make_sampler(key, config, name, target, variance=variance)
            for name in config.updates
        }
        histories: dict[str, list[Record]] = {}
        frames: dict[str, np.ndarray] = {}
        for name, sampler in samplers.items():
            one = dataclasses.replace(config, updates=(name,))
            place, free = folder.below(name), unread.among([one])
            with Workdir(place, one, free_fields=free) as own, Signals() as signals:
                histories[name] = _train(one, sampler, measure, own, signals)
                frames[name] = _frames(own, sampler, histories[name])
        times = time_steps(samplers)
        summary = sampling.Summary(
            config.num_steps, histories, times, sampling.spread(reference, measure)
        )
        rows = sampling.table(summary, reference.kind)
        sampling.draw(folder, target, reference, histories, frames)
        sampling.write(folder, config.target, rows, summary)
    return rows


def _check_memory(config: Config) -> None:
    latent_dim = config.latent_dim or 2 * _LEAST_DIMENSION
    network = generators.MLPGenerator((_LEAST_DIMENSION,), config.width, _DEPTH)
    rows = max(config.batch_size, sampling.NUM_EVALUATED)
    needed = memory.of_training(network, rows, latent_dim, train=False)
    memory.require(config, ("width", "latent_dim", "batch_size"), needed)


def _train(
    config: Config,
    sampler: Sampler,
    measure: Callable[[Array], dict[str, Array]],
    folder: Workdir,
    signals: Signals,
) -> list[Record]:
    """Trains to num_steps from what the folder holds, and returns all records."""
    (rule,) = config.updates

    def advance(
        state: TrainState, step: int, count: int, tick: Callable[[int], Any]
    ) -> tuple[TrainState, Record]:
        state, finite = sampler.advance(state, count)
        if not finite:
            raise folder.divergence(step + count, f"{rule}: the network is not finite")
        tick(count)
        return state, {}

    def evaluate(step: int, state: TrainState) -> Record:
        samples = sampler.samples(state)
        _store_frame(folder, step, samples)
        return {name: float(value) for name, value in measure(samples).items()}

    schedule = Schedule(config.num_steps, config.eval_every, config.eval_every)
    begun = loop.begin(folder, sampler.initial_state)
    loop.run(folder, signals, begun, advance, evaluate, schedule, name=rule)
    return folder.history()


def _frame_name(step: int) -> str:
    return f"frames/{step:07d}.npz"


def _store_frame(folder: Workdir, step: int, samples: Array) -> None:
    folder.write_bytes(_frame_name(step), store.packed({"samples": samples[:_NUM_DRAWN]}))


def _frames(folder: Workdir, sampler: Sampler, history: list[Record]) -> np.ndarray:
    """Returns the frames; those that are missing or damaged by training once more up to them."""
    like = jax.eval_shape(sampler.samples, jax.eval_shape(sampler.initial_state))
    state, at, frames = None, 0, []
    for step in (int(record["step"]) for record in history):
        frame = _stored_frame(folder.path / _frame_name(step), like)
        if frame is None:
            message = f"{folder.path / _frame_name(step)} is damaged; the frame is drawn anew"
            print(line("warning", message), file=sys.stderr)
            state, _ = sampler.advance(state or sampler.initial_state(), step - at)
            at, samples = step, sampler.samples(state)
            _store_frame(folder, step, samples)
            frame = np.asarray(samples[:_NUM_DRAWN])
        frames.append(frame)
    return np.stack(frames)


def _stored_frame(file: pathlib.Path, like: jax.ShapeDtypeStruct) -> np.ndarray | None:
    """Returns a frame as it is stored; None where it is missing or damaged."""
    try:
        frame = store.read(file, _MOST_BYTES).get("samples")
    except ValueError:
        return None
    expected = (min(_NUM_DRAWN, like.shape[0]), *like.shape[1:])
    sound = frame is not None and (frame.dtype, frame.shape) == (like.dtype, expected)
    return frame if sound else None


def time_steps(samplers: dict[str, Sampler]) -> dict[str, float]:
    """Returns the median milliseconds of a training step of each rule, timed in turns."""

    def timed(sampler: Sampler) -> Timed:
        def advance(state: TrainState) -> TrainState:
            return sampler.advance(state, _TIMED_STEPS)[0]

        return Timed(advance, sampler.initial_state(), _TIMED_STEPS)

    return timing.time_in_turns({name: timed(sampler) for name, sampler in samplers.items()})


# ------------------------------------------------------------------------------------- the binary


def main() -> None:
    """Parses the flags, trains and compares."""
    command.main_in_workdir(run, Config)


if __name__ == "__main__":
    main()
