"""Paper 001's animation: a generator follows any objective to a known density in the plane.

    python -m experiments.toy --objective=gan_kl --target=swiss_roll --workdir=runs/roll
    python -m experiments.toy --objectives=all --seeds=0,1,2 --workdir=runs/toy

The data are exact draws of --target, a density of :mod:`experiments.targets.densities`: swiss_roll,
ring, grid, mixture or banana. It is not the data set that experiments.train may know by that name,
though config.json has it as the dataset. As the density is known, KL[Q||P] and JSD of the generated
samples are measured along the way, Q by a kernel density estimate
(:mod:`experiments.reports.toys`). The settings are the preset paper001 of
:mod:`experiments.training.settings`, the same for all objectives but for the noise of noisy_jsd and
the penalty of wgan_gp; flags override them.

The first form leaves evolution.gif, samples.png, curves.png and table.md beside config.json,
metrics.jsonl and checkpoints/. The GIF shows samples at fixed latents over the density and, beside
them, the field that they follow: minus the objective's direction, on a lattice where a critic gives
each point its own, else at samples. In the second form every run lives so in
workdir/<objective>/seed<k>, and the work folder holds table.md, samples.png and comparison.png. The
data are the same for all seeds. Both forms resume. An objective of several may have settings of its
own, as in mmd:learning_rate=0.003:kernel_scales=0.1+1.
"""

import dataclasses
import functools
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import catalog
from experiments.data.dataset import Dataset
from experiments.pictures.clouds import FieldFrame
from experiments.reports import toys
from experiments.reports.toys import Record, Rows, Ruler, Runs
from experiments.run import command, fields, loop, places, store, threads, timing, unread
from experiments.run.errors import StorageError, UsageError, line
from experiments.run.loop import Schedule
from experiments.run.signals import Signals, terminated
from experiments.run.workdirs import Workdir
from experiments.targets import densities
from experiments.training import fit, models, settings
from experiments.training.models import Model
from experiments.training.objectives import OBJECTIVES
from kernelgrad import critic, train
from kernelgrad.critic import Critic, CriticState
from kernelgrad.train import TrainState
from kernelgrad.types import Array, Key, PyTree

PRESET = "paper001"

_NUM_TRAIN, _NUM_TEST = 10_000, 2_000
_NUM_DRAWN = 500
_MOST_FRAMES = 2000  # of a film, each of them a file
_LATTICE = 20  # arrows on a side
_FRAME = "frames/{:07d}.npz"
_MOST_BYTES = 2**24  # of a frame
_PICTURES = ("evolution.gif", "samples.png", "curves.png")


@dataclasses.dataclass(frozen=True)
class Settings(settings.Config):
    """Everything that decides a run, but for where it is stored."""

    dataset: str = fields.choice(
        "swiss_roll", densities.PLANE, "Density of the data.", flag="target"
    )


@dataclasses.dataclass(frozen=True)
class Options(command.Place):
    """What to compare, in place of --objective and --seed, and where."""

    preset: str | None = settings.preset(PRESET)
    objectives: tuple[str, ...] = settings.variants(())
    seeds: tuple[int, ...] = fields.integers(
        (), 0, fields.MAX_SEED, "Seeds to compare, in place of --seed."
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train: the settings of a run, or of one for each pair of an objective and a seed."""

    base: settings.Config
    objectives: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


class Lab(NamedTuple):
    """An objective and what is compiled for it once, for all seeds.

    Attributes:
      config: the settings; those of a run but for its seed.
      model: networks and objective.
      advance: steps in a call -> (state, key) -> (state, info).
      look: state -> figures of its samples at fixed latents, and the fields of a frame.
      ruler: what the samples are measured with.
    """

    config: settings.Config
    model: Model
    advance: Callable[[int], Callable[[PyTree, Key], tuple[PyTree, PyTree]]]
    look: Callable[[TrainState], tuple[dict[str, Array], dict[str, Array]]]
    ruler: Ruler


def run(config: Config, *, workdir: str, data_dir: str | None = None) -> Rows:
    """Trains what is missing, and writes table and pictures.

    Args:
      config: the settings, and the objectives and seeds to compare, if any.
      workdir: the folder of the run, or of all runs.
      data_dir: where the files of a target are; those in the plane have none.

    Returns:
      The rows of the table.

    Raises:
      UsageError: a setting out of its range, or a work folder with another run.
      StorageError: the work folder cannot be used.
      DivergenceError: a state is not finite.
      Terminated: a signal came; the state is saved.
    """
    places.workdir(workdir)
    base = for_objective(config.base, config.base.objective)
    seeds = config.seeds or (base.seed,)
    configs = _variants(config)
    for one in configs.values():
        _validate(one)
    fields.validate(Options(workdir, objectives=config.objectives, seeds=config.seeds))
    compares = bool(config.objectives or config.seeds)
    free = settings.free_fields(base, *configs.values())
    with (
        Workdir(workdir, base, free_fields=free) as folder,
        threads.one_for_blas(),
    ):
        key, ruler_key = jax.random.split(jax.random.key(0))
        ruler = toys.make_ruler(ruler_key, densities.load(base.dataset, data_dir))
        labs = {name: make_lab(key, one, ruler) for name, one in configs.items()}
        trained = {}
        for name, lab in labs.items():
            if compares:
                trained[name] = _train_seeds(lab, name, seeds, folder)
            else:
                with Signals() as signals:
                    trained[name] = {folder.path: train_one(lab, base.seed, folder, signals)}
        runs, times = {}, time_steps(labs)
        for name, histories in trained.items():
            path, history = next(iter(histories.items()))
            frame = read_frame(path, history[-1])
            runs[name] = Runs(list(histories.values()), frame, times[name])
        rows = toys.table(runs, ruler)
        title = f"{base.dataset}, {base.num_steps} steps, seed {', '.join(map(str, seeds))}"
        toys.write(folder, title, rows)
        if compares:
            toys.draw_comparison(folder, runs, ruler)
        print(f"written to {folder.path}")
    return rows


def _variants(config: Config) -> dict[str, settings.Config]:
    """Returns the settings of each objective by its name, one or those to compare."""
    names = config.objectives or (config.base.objective,)
    return {name: for_objective(config.base, name) for name in names}


def for_objective(base: settings.Config, compared: str) -> settings.Config:
    """Returns the settings of a variant, and what only its objective needs where not given."""
    needs = OBJECTIVES[settings.variant(base, compared).objective].needs
    usual = settings.Config()
    missing = {k: v for k, v in needs.items() if getattr(base, k) == getattr(usual, k)}
    return settings.variant(dataclasses.replace(base, **missing), compared)


def make_lab(key: Key, config: settings.Config, ruler: Ruler) -> Lab:
    """Returns the lab of a config; data and latents that are looked at follow from the key."""
    data_key, look_key = jax.random.split(key)
    draws = np.asarray(ruler.draw(data_key, _NUM_TRAIN + _NUM_TEST))
    dataset = Dataset(config.dataset, draws[:_NUM_TRAIN], draws[_NUM_TRAIN:], None, None, 0)
    model = models.build(config, dataset, train.AXIS)
    data = jnp.asarray(dataset.train[: config.batch_size])

    @functools.cache
    def advance(per_call: int) -> Callable[[PyTree, Key], tuple[PyTree, PyTree]]:
        return fit.make_advance(config, dataset, model, per_call, 0, _device())

    return Lab(config, model, advance, _make_look(look_key, config, model, data, ruler), ruler)


def _make_look(
    key: Key, config: settings.Config, model: Model, data: Array, ruler: Ruler
) -> Callable[[TrainState], tuple[dict[str, Array], dict[str, Array]]]:
    latent_key, field_key = jax.random.split(key)
    latents = model.sample_latents(latent_key, toys.NUM_EVALUATED)
    sides = [np.linspace(*side, _LATTICE + 2)[1:-1] for side in ruler.backdrop.bounds]
    lattice = jnp.stack(jnp.meshgrid(*sides), axis=-1).reshape(-1, 2)
    objective = model.objective
    batchwise = config.batch_norm or OBJECTIVES[config.objective].batchwise
    at_lattice = isinstance(objective, Critic) and not batchwise

    def look(state: TrainState) -> tuple[dict[str, Array], dict[str, Array]]:
        state = train.averaged(state)
        samples = model.generate(state.params, state.batch_stats, latents)
        points = lattice if at_lattice else samples[: len(data)]
        if isinstance(objective, Critic):
            critic_fn = critic.bind(cast(CriticState, state.critic), objective)
            descend, _ = objective.objective.direction(critic_fn, field_key, points, data)
        else:
            descend, _ = objective(field_key, points, data)
        frame = {"samples": samples[:_NUM_DRAWN], "points": points, "arrows": -descend}
        return ruler.measure(samples), frame

    return jax.jit(look)


def time_steps(labs: Mapping[str, Lab]) -> dict[str, float]:
    """Returns the median milliseconds per step of each lab, timed in turns."""
    key = jax.random.key(0)
    timed = {}
    for name, lab in labs.items():
        per_call = fit.steps_per_record(lab.config)
        start = train.replicate(jax.jit(lab.model.initial_state)(key), _device())
        timed[name] = fit.timed(lab.advance(per_call), start, per_call)
    return timing.time_in_turns(timed)


def _device() -> list[jax.Device]:
    return jax.local_devices()[:1]


# -------------------------------------------------------------------------------------- training


def _train_seeds(
    lab: Lab, name: str, seeds: tuple[int, ...], root: Workdir
) -> dict[pathlib.Path, list[Record]]:
    """Trains under each seed in a folder of its own, and returns the records by folder."""
    trained = {}
    for seed in seeds:
        path, config = root.below(f"{name}/seed{seed}"), dataclasses.replace(lab.config, seed=seed)
        with (
            Workdir(path, config, free_fields=settings.free_fields(config)) as folder,
            Signals() as signals,
        ):
            trained[path] = train_one(lab, seed, folder, signals)
    return trained


def train_one(lab: Lab, seed: int, folder: Workdir, signals: Signals) -> list[Record]:
    """Trains to num_steps from what the folder holds, draws it, and returns all records."""
    config, model = lab.config, lab.model
    init_key, train_key = jax.random.split(jax.random.key(seed))
    step, start = loop.begin(folder, functools.partial(jax.jit(model.initial_state), init_key))
    if step >= config.num_steps and all((folder.path / name).exists() for name in _PICTURES):
        history = folder.history()
        _mend_frames(lab, seed, folder, history, signals)
        return history

    def evaluate(step: int, state: TrainState) -> Record:
        figures, frame = jax.device_get(lab.look(state))
        _store_frame(folder, step, frame)
        return figures

    per_call = fit.steps_per_record(config, step)
    loop.run(
        folder,
        signals,
        (step, start),
        fit.make_calls(lab.advance(per_call), train_key, per_call),
        evaluate,
        Schedule(config.num_steps, config.eval_every, per_call),
        name=config.objective,
        devices=_device(),
    )
    history = folder.history()
    _mend_frames(lab, seed, folder, history, signals)
    frames = [read_frame(folder.path, record) for record in history]
    toys.draw_run(folder, config.objective, history, frames, lab.ruler)
    return history


def _store_frame(folder: Workdir, step: int, frame: Mapping[str, np.ndarray]) -> None:
    folder.write_bytes(_FRAME.format(step), store.packed(frame))


def _mend_frames(
    lab: Lab, seed: int, folder: Workdir, history: Sequence[Record], signals: Signals
) -> None:
    """Draws frames anew that are missing or damaged, by training once more up to them."""
    damaged = []
    for record in history:
        try:
            read_frame(folder.path, record)
        except StorageError as error:
            damaged.append(int(record["step"]))
            print(line("warning", f"{error}; the frame is drawn anew"), file=sys.stderr)
    if not damaged:
        return
    init_key, train_key = jax.random.split(jax.random.key(seed))
    per_call = fit.steps_per_record(lab.config, math.gcd(*damaged))
    state, step = train.replicate(jax.jit(lab.model.initial_state)(init_key), _device()), 0
    while damaged:
        if step == damaged[0]:
            _store_frame(folder, step, jax.device_get(lab.look(train.unreplicate(state)))[1])
            damaged.pop(0)
        else:
            state, _ = lab.advance(per_call)(state, train_key)
            step += per_call
        if signals.stop:
            raise terminated(signals.stop, "stopped")


def read_frame(run: pathlib.Path, record: Record) -> FieldFrame:
    """Returns the frame that belongs to a record of the run in a folder.

    Raises:
      StorageError: there is none, or a damaged one.
    """
    file = run / _FRAME.format(int(record["step"]))
    try:
        frame = FieldFrame(**store.read(file, _MOST_BYTES))
    except (ValueError, TypeError) as error:
        raise StorageError(f"{file}: {error}") from error
    forms = [(part.dtype.kind, part.ndim, *part.shape[1:]) for part in frame]
    if forms != 3 * [("f", 2, 2)] or len(frame.points) != len(frame.arrows):
        raise StorageError(f"{file}: got {forms}; expected points in the plane")
    return frame


# ------------------------------------------------------------------------------------- the binary


def _validate(config: settings.Config) -> None:
    settings.validate(config, 1)
    fields.rules(Settings)["dataset"].check("dataset", config.dataset)
    catalog.check_size(config.dataset, config.image_size)
    settings.limit_pictures(config, _MOST_FRAMES)
    rows = np.zeros((_NUM_TRAIN, 2), np.float32)
    models.check(config, Dataset(config.dataset, rows, rows, None, None, 0))


def configured(given: command.Given, options: Options) -> Config:
    """Returns what the flags ask for.

    Raises:
      UsageError: a flag beside its plural.
    """
    for name in ("objective", "seed"):
        if name in given and f"{name}s" in given:
            raise UsageError(f"{name}: got --{name} and --{name}s; expected one of them")
    base = settings.configured(given, options.preset)
    return Config(base, options.objectives, options.seeds)


def _start(given: command.Given) -> None:
    options = fields.pick(Options, given)
    config = configured(given, options)
    unread.refuse(given, _variants(config).values())
    run(config, workdir=options.workdir, data_dir=options.data_dir)


def main() -> None:
    """Parses the flags, trains and compares."""
    command.main(_start, Settings, Options)


if __name__ == "__main__":
    main()
