"""Many runs in one program: pmap(vmap) over runs of the training step.

Runs of the same structure differ in numbers, and the numbers are arguments of the program. Each of
its runs is wholly on one device, and is that of experiments.train there: same seed, same batches.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from experiments.data.dataset import Dataset
from experiments.run import memory, threads
from experiments.run.errors import UsageError
from experiments.run.signals import Signals, terminated
from experiments.run.workdirs import Workdir
from experiments.sweeps import shapes
from experiments.sweeps.runs import ENDED, Datasets, Run
from experiments.training import extractors, fit, models, settings, trained
from experiments.training.extractors import Extractor
from experiments.training.settings import Config
from kernelgrad import train
from kernelgrad.types import Array, Key, PyTree

_MOST_AT_ONCE = 256  # runs of a program, each with an open folder
_MARGIN = 4.0  # memory of a program over that which its runs are known to take
_SAVE_SECONDS = 60.0  # between checkpoints of all runs


class _Member(NamedTuple):
    """What a run brings to its program; of several runs, under a leading axis of runs.

    Attributes:
      init_key: of its first state.
      train_key: of its batches and steps.
      eval_key: of its evaluations.
      numbers: its settings that other runs have otherwise, by name.
    """

    init_key: Key
    train_key: Key
    eval_key: Key
    numbers: dict[str, Array]


class _Form(NamedTuple):
    """What the runs of a program share.

    Attributes:
      config: of one of them.
      dataset: of one of them.
      networks: through which the objective looks.
      anneals: whether there is noise that falls.
    """

    config: Config
    dataset: Dataset
    networks: Mapping[str, Extractor]
    anneals: bool

    def of(self, member: _Member) -> tuple[Config, models.Model]:
        """Returns config and model of a run, whose numbers are traced."""
        numbers: dict[str, Any] = {
            name: tuple(value) if isinstance(getattr(self.config, name), tuple) else value
            for name, value in member.numbers.items()
        }
        config = dataclasses.replace(self.config, **numbers)
        return config, models.build(config, self.dataset, networks=self.networks)


def check(runs: Sequence[Run], data: Datasets) -> None:
    """Raises UsageError where the data of a run do not fit on the device, before anything."""
    for run in runs:
        size = models.size_of_rows(run.config, data[run.name])
        if size > settings.resident_bytes(run.config):
            raise UsageError(
                f"resident_gib: got {run.config.resident_gib} for {size / 2**30:.3g} GiB of "
                f"{run.config.dataset}; expected as much, for a population has its data on the "
                "device. Raise it, or pass --engine=commands"
            )


def run(
    root: pathlib.Path, unfinished: Sequence[Run], data: Datasets, devices: list[jax.Device]
) -> None:
    """Trains runs to their last step, those of one form at a time, resuming what there is.

    Args:
      root: folder of the sweep.
      unfinished: the runs.
      data: their data.
      devices: over which the runs of a program are dealt.

    Raises:
      StorageError: the folder of a run cannot be used.
      Terminated: a signal came; all runs are saved.
    """
    with Signals() as signals, threads.one_for_blas(), _Bar(root, unfinished) as bar:
        for group in _groups(unfinished, data, devices):
            _train(root, group, data, devices, signals, bar)


def _groups(runs: Sequence[Run], data: Datasets, devices: Sequence[jax.Device]) -> list[list[Run]]:
    """Returns the runs that share a program, a list each, as many as the memory is sure to hold."""
    by_form = defaultdict(list)
    for one in runs:
        config = one.config
        bound = settings.sees_features(config) or config.conditional  # what the model has of data
        dataset = data[one.name]
        by_form[shapes.structure(config), id(dataset) if bound else 0].append(one)
    memories = 1 if devices[0].platform == "cpu" else len(devices)
    groups = []
    for group in by_form.values():
        config = group[0].config
        needed = models.memory_needed(config, data[group[0].name])
        fitting = int(memories * memory.total() / (_MARGIN * needed))
        most = max(len(devices), min(_MOST_AT_ONCE, fitting))
        groups += [group[start : start + most] for start in range(0, len(group), most)]
    return groups


class _Bar(tqdm):
    """A progress bar over runs, which may move on by a part of one."""

    def __init__(self, root: pathlib.Path, runs: Sequence[Run]) -> None:
        super().__init__(total=len(runs), desc=root.name, unit="run")
        self._behind = 0.0

    def advance(self, share: float) -> None:
        """Moves on by so many runs."""
        self._behind += share
        self.update(round(self._behind, 1) - self.n)


def _train(
    root: pathlib.Path,
    group: Sequence[Run],
    data: Datasets,
    devices: list[jax.Device],
    signals: Signals,
    bar: _Bar,
) -> None:
    """Trains runs of one form, those that stand at the same step together."""
    configs = [one.config for one in group]
    datasets = [data[one.name] for one in group]
    config = configs[0]
    networks = models.load_networks(config, datasets[0])
    form = _Form(config, datasets[0], networks, settings.anneals(config))
    members = _members(configs)
    with contextlib.ExitStack() as stack:
        folders = []
        for one in group:
            free = settings.free_fields(one.config)
            folder = Workdir(root / one.name, one.config, free_fields=free)
            folders.append(stack.enter_context(folder))
            extractors.hold_to(folder, tuple(networks.values()))
            trained.note_data(folder, data[one.name])
        begun = _begin(form, members, folders)
        for step in sorted({step for step, _ in begun}):
            chosen = [index for index, (at, _) in enumerate(begun) if at == step]
            cohort = _Cohort(
                form,
                jax.tree.map(lambda leaf, chosen=chosen: leaf[np.array(chosen)], members),
                [datasets[index] for index in chosen],
                [begun[index][1] for index in chosen],
                step,
                devices,
            )
            bar.advance(len(chosen) * step / config.num_steps)
            _follow(cohort, [folders[index] for index in chosen], step, signals, bar)


def _members(configs: Sequence[Config]) -> _Member:
    """Returns what the runs bring, as arrays with a leading axis of runs."""
    seeds = jnp.asarray(np.array([config.seed for config in configs], np.uint32))
    keys = jax.vmap(models.keys)(seeds)
    numbers = {
        name: jnp.asarray([getattr(config, name) for config in configs], jnp.float32)
        for name in shapes.differing(configs)
    }
    return _Member(*keys, numbers)


def _begin(
    form: _Form, members: _Member, folders: Sequence[Workdir]
) -> list[tuple[int, train.TrainState]]:
    """Returns step and state of each run: its newest checkpoint, else its start."""

    def initial(member: _Member) -> train.TrainState:
        return form.of(member)[1].initial_state(member.init_key)

    one = jax.tree.map(lambda leaf: leaf[0], members)
    abstract = jax.eval_shape(initial, one)
    restored = [folder.restore(abstract) for folder in folders]
    if None not in restored:
        return [found for found in restored if found is not None]
    starts = _by_run(jax.jit(jax.vmap(initial))(members))
    return [found or (0, start) for found, start in zip(restored, starts, strict=True)]


def _by_run(tree: PyTree) -> list[PyTree]:
    """Returns the tree of each run, on the host."""
    tree = jax.device_get(tree)
    count = len(jax.tree.leaves(tree)[0])
    return [jax.tree.map(lambda leaf, index=index: leaf[index], tree) for index in range(count)]


class _Cohort:
    """Runs of one form that stand at one step, on their devices.

    Their number is filled up to a multiple of the devices by copies of the last one.
    """

    def __init__(
        self,
        form: _Form,
        members: _Member,
        datasets: Sequence[Dataset],
        states: Sequence[train.TrainState],
        step: int,
        devices: list[jax.Device],
    ) -> None:
        """Lays out the runs; nothing is compiled yet.

        Args:
          form: of the runs.
          members: what they bring, with a leading axis of runs.
          datasets: theirs.
          states: theirs.
          step: at which they stand.
          devices: at most so many are used as there are runs.
        """
        self.config = form.config
        self._form, self._count = form, len(states)
        devices = devices[: self._count]
        self.per_record = fit.steps_per_record(form.config, step)
        self._per_call = fit.steps_per_call(self.per_record, form.dataset, devices)
        self._in_turn = form.dataset.is_image and devices[0].platform == "cpu"
        size = -(-self._count // len(devices)) * len(devices)
        filled = [min(index, self._count - 1) for index in range(size)]
        self._members = jax.tree.map(lambda leaf: leaf[np.array(filled)], members)
        self._datasets = [datasets[index] for index in filled]
        self._shared = all(dataset is datasets[0] for dataset in datasets)
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(states[i] for i in filled))
        self._states = train.spread(stacked, devices)
        rows = [models.training_rows(form.config, dataset) for dataset in self._datasets]
        lay = train.replicate if self._shared else train.spread
        resident = lay(rows[0] if self._shared else np.stack(rows), devices)
        self._given = (train.spread(self._members, devices), resident)
        self._advance = train.pmap_train_step(self._advance_share, devices)
        self._judge = jax.jit(self._judge_all)
        self._scores = fit.image_scores(form.dataset)

    def advance(self) -> dict[str, np.ndarray]:
        """Makes the steps of a record; returns what they tell by name, (runs, steps)."""
        infos = []
        for _ in range(self.per_record // self._per_call):
            self._states, info = self._advance(self._states, None, self._given)
            infos.append(jax.device_get(jax.block_until_ready(info)))
        return {
            name: np.concatenate([self._flat(info[name]) for info in infos], axis=1)
            for name in infos[0]
        }

    def states(self) -> list[train.TrainState]:
        """Returns the state of each run, on the host."""
        return _by_run(jax.tree.map(self._flat, jax.device_get(self._states)))

    def figures(self) -> list[dict[str, float]]:
        """Returns the figures of an evaluation of each run."""
        states = jax.tree.map(self._flat, jax.device_get(self._states))
        tests = [fit.held_out(dataset) for dataset in self._datasets[: self._count]]
        test = tests[0] if self._shared else jnp.stack(tests)
        members = jax.tree.map(lambda leaf: leaf[: self._count], self._members)
        samples, test_mmd = jax.device_get(self._judge(states, members, test))
        figures = [{fit.METRICS[0]: float(value)} for value in test_mmd]
        for score in self._scores:
            for of_run, drawn in zip(figures, samples, strict=True):
                of_run |= score(drawn)
        return figures

    def _flat(self, leaf: np.ndarray) -> np.ndarray:
        """Returns what devices have of their runs as rows of runs, without the copies."""
        return leaf.reshape(-1, *leaf.shape[2:])[: self._count]

    def _advance_share(
        self, states: train.TrainState, _: None, given: tuple[_Member, Array]
    ) -> tuple[train.TrainState, dict[str, Array]]:
        """Returns a device's runs after a call; one that is no longer finite stays where it was."""
        batch = settings.rows_per_step(self._form.config)

        def one(state: train.TrainState, member: _Member, rows: Array) -> Any:
            config, model = self._form.of(member)
            step = fit.make_train_step(config, model, None, anneals=self._form.anneals)
            scan = train.scan_resident(step, batch_size=batch, num_steps=self._per_call)
            new, info = scan(state, member.train_key, rows)
            good = jnp.all(info["finite"])
            return jax.tree.map(lambda now, before: jnp.where(good, now, before), new, state), info

        return self._of_all(one)(states, *given)

    def _judge_all(
        self, states: train.TrainState, members: _Member, test: Array
    ) -> tuple[Array, Array]:
        """Returns samples of each run, and their test_mmd."""

        def one(state: train.TrainState, member: _Member, test: Array) -> tuple[Array, Array]:
            _, model = self._form.of(member)
            latents = model.sample_latents(member.eval_key, fit.EVALUATED_SAMPLES)
            return fit.make_judge(model)(state, latents, test)

        return self._of_all(one)(states, members, test)

    def _of_all(self, one: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function of many runs, from one of a state, a member and its data.

        On a CPU runs of images are made in turn: many convolutions at once, each with kernels of
        its own, take twice as long there.
        """
        if not self._in_turn:
            return jax.vmap(one, in_axes=(0, 0, None if self._shared else 0))

        def in_turn(states: PyTree, members: _Member, data: Array) -> Any:
            if self._shared:
                return lax.map(lambda run: one(*run, data), (states, members))
            return lax.map(lambda run: one(*run), (states, members, data))

        return in_turn


def _follow(
    cohort: _Cohort, folders: Sequence[Workdir], step: int, signals: Signals, bar: _Bar
) -> None:
    """Advances runs to the last step; logs and saves, of all runs at once."""
    config, count = cohort.config, len(folders)
    records: list[dict[int, dict[str, float]]] = [{} for _ in folders]
    diverged: dict[int, str] = {}
    saved = time.monotonic()
    while step < config.num_steps and len(diverged) < count:
        infos = cohort.advance()
        finite = infos.pop("finite")
        step += cohort.per_record
        for bad in map(int, np.flatnonzero(~finite.all(axis=1))):
            first = step - finite.shape[1] + int(finite[bad].argmin()) + 1
            diverged.setdefault(bad, f"diverged: step {first}: the state is not finite")
        is_last = step == config.num_steps
        is_due = step % config.eval_every == 0 or is_last
        figures: list[dict[str, float]] = cohort.figures() if is_due else [{}] * count
        for index, of_run in enumerate(figures):
            if index not in diverged:
                last = {name: float(values[index, -1]) for name, values in infos.items()}
                records[index][step] = last | of_run
        bar.advance(count * cohort.per_record / config.num_steps)
        stop, is_late = signals.stop, time.monotonic() > saved + _SAVE_SECONDS
        if is_last or stop or (is_due and is_late) or len(diverged) == count:
            _save(folders, step, cohort.states(), records, diverged)
            saved = time.monotonic()
        if stop:
            raise terminated(stop, f"saved step {step} of {count} runs in {folders[0].path.parent}")


def _save(
    folders: Sequence[Workdir],
    step: int,
    states: Sequence[train.TrainState],
    records: list[dict[int, dict[str, float]]],
    diverged: Mapping[int, str],
) -> None:
    """Stores what the runs have come to, and forgets the records."""
    for index, (folder, state) in enumerate(zip(folders, states, strict=True)):
        if records[index]:
            folder.log_all(records[index])
            records[index] = {}
        if index in diverged:
            folder.write_bytes(ENDED, f"{diverged[index]}\n".encode())
        else:
            folder.save(step, state)
