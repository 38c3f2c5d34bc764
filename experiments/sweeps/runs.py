"""The runs of a sweep: their settings, their folders, and how far each of them has come.

Every engine leaves the same: a run is a folder of experiments.train, whoever trained it, so that
one engine goes on where another has stopped, and every binary reads it. A run that diverged, or was
stopped for good, has a file ``ended`` that says so.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.data import catalog
from experiments.data.dataset import Dataset
from experiments.data.rows import Rows
from experiments.run import fields, files, records
from experiments.run.errors import StorageError, UsageError
from experiments.sweeps import grammar, shapes
from experiments.sweeps.grammar import Grid
from experiments.training import fit, models, settings
from experiments.training.settings import Config

Datasets = dict[str, Dataset]  # by the name of a run

ENDED = "ended"
_MOST_BYTES, _MOST_VALUES = 2**26, 10**7
_LONGEST_NAME = 200  # of a folder, in bytes; file systems take 255
_STRANGE = re.compile(r"[^\w.+=,-]")


class Run(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: of its folder: the settings that the sweep varies.
      values: of these settings.
      config: all its settings.
    """

    name: str
    values: dict[str, Any]
    config: Config


class Progress(NamedTuple):
    """How far a run has come.

    Attributes:
      step: of its last record; 0 without one.
      record: that one, with the figures of the last evaluation.
      ended: why it will not come to its last step, such as "diverged: step 3 ..."; None: it may.
    """

    step: int
    record: dict[str, float]
    ended: str | None


# ---------------------------------------------------------------------------------------- settings


def expand(base: Config, grid: Grid) -> list[Run]:
    """Returns a run for every combination of a grid's values, the last setting varying fastest."""
    runs = []
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        name = ",".join(f"{key}={grammar.shown(value)}" for key, value in values.items())
        config = dataclasses.replace(base, **values)
        runs.append(Run(_STRANGE.sub("_", name), values, config))
    _check_names([run.name for run in runs])
    return runs


def _check_names(names: Sequence[str]) -> None:
    """Raises UsageError for a folder's name that is too long, or that two runs would share."""
    first: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if len(name.encode()) > _LONGEST_NAME:
            raise UsageError(
                f"sweep: run {number} would have a folder of {len(name.encode())} bytes, "
                f"{name[:40]}...; expected at most {_LONGEST_NAME}. Give shorter values"
            )
        if first.setdefault(name, number) != number:
            raise UsageError(
                f"sweep: runs {first[name]} and {number} would share the folder {name}; expected "
                "values that differ in letters and digits"
            )


def validate(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs with each value in its own type.

    Raises:
      UsageError: a setting of one of them is out of its range, or does not go with the others.
    """
    checked = []
    for number, run in enumerate(runs, start=1):
        try:
            config = fields.checked(Config, dataclasses.asdict(run.config))
            settings.validate(config, 1)
        except UsageError as error:
            raise UsageError(f"sweep: run {number} of {len(runs)}: {error}") from error
        values = {name: getattr(config, name) for name in run.values}
        checked.append(run._replace(config=config, values=values))
    return checked


def load(
    runs: Sequence[Run],
    data_dir: str | None,
    *,
    check: Callable[[Sequence[Run], Datasets], None] = lambda *_: None,
) -> Datasets:
    """Returns the data of the runs; what does not depend on their seeds, once.

    Args:
      runs: the runs.
      data_dir: where the data sets' files are.
      check: raises for a run, and its data or their form, that an engine cannot train.

    Raises:
      UsageError: one of them does not fit its run.
      DataError: one is unknown, missing or damaged.
    """
    first: dict[tuple[str, int | None], Dataset] = {}
    fitting: set[Config] = set()

    of_data: dict[tuple[str, int | None, int], list[int]] = {}
    for number, run in enumerate(runs):
        config = run.config
        of_data.setdefault((config.dataset, config.image_size, config.seed), []).append(number)

    def check_run(number: int, dataset: Dataset) -> None:
        run = runs[number]
        config, form = run.config, shapes.structure(run.config)
        if form not in fitting:
            try:
                models.check(config, dataset)
            except UsageError as error:
                raise UsageError(f"sweep: run {number + 1} of {len(runs)}: {error}") from error
            fitting.add(form)
        check([run], {run.name: dataset})

    @functools.cache
    def loaded(name: str, image_size: int | None, seed: int) -> Dataset:
        def check_all(dataset: Dataset) -> None:
            for number in of_data[name, image_size, seed]:
                check_run(number, dataset)

        numbers = of_data[name, image_size, seed]
        dataset = catalog.load(
            name,
            data_dir,
            seed=seed,
            image_size=image_size,
            most_bytes=min(settings.resident_bytes(runs[number].config) for number in numbers),
            check=check_all,
        )
        known = first.setdefault((name, image_size), dataset)
        return known if _same(known, dataset) else dataset

    configs = ((run.name, run.config) for run in runs)
    return {name: loaded(c.dataset, c.image_size, c.seed) for name, c in configs}


def _same(one: Dataset, other: Dataset) -> bool:
    return all(_equal(a, b) for a, b in zip(one[1:], other[1:], strict=True))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Rows) and isinstance(other, Rows):
        return one.is_same(other)
    if isinstance(one, Rows) or isinstance(other, Rows):
        return False
    return np.array_equal(np.asarray(one), np.asarray(other))


# ---------------------------------------------------------------------------------------- on disk


@contextlib.contextmanager
def held(root: pathlib.Path, text: str, runs: Sequence[Run]) -> Iterator[None]:
    """Keeps the folder of a sweep from other processes, and leaves sweep.json in it.

    Raises:
      StorageError: it cannot be written, or is in use.
      UsageError: it holds runs with other settings.
    """
    with files.storage(f"workdir {root}"):
        root.mkdir(parents=True, exist_ok=True)
        lock = files.lock(root)
    try:
        _hold_to(root, text, runs)
        yield
    finally:
        os.close(lock)


def _hold_to(root: pathlib.Path, text: str, runs: Sequence[Run]) -> None:
    """Writes sweep.json, unless the one that is there has other settings."""
    varied, config = runs[0].values, runs[0].config
    fixed = {name: x for name, x in dataclasses.asdict(config).items() if name not in varied}
    about = {"sweep": text, "settings": fixed, "runs": {run.name: run.values for run in runs}}
    content = json.dumps(about, indent=2) + "\n"
    path = root / "sweep.json"
    with files.storage(str(path)):
        if files.kind(path) is not None:
            stored = _stored_settings(path)
            free = {*settings.free_fields(*(run.config for run in runs)), *varied}
            wanted = json.loads(content)["settings"]
            changes = [
                f"{name} was {json.dumps(stored.get(name))}, now {json.dumps(value)}"
                for name, value in wanted.items()
                if name not in free and name in stored and stored[name] != value
            ]
            if changes:
                raise UsageError(
                    f"workdir {root} holds a sweep with other settings: {'; '.join(changes)}. Use "
                    "the same flags or another workdir"
                )
        files.replace(path, content.encode())


def _stored_settings(path: pathlib.Path) -> dict[str, Any]:
    """Returns the settings that all runs of a sweep.json have."""
    try:
        stored = files.parse_json(files.read(path, _MOST_BYTES), _MOST_VALUES)
        return dict(stored["settings"])
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{path}: got {error!r}; expected a sweep. Remove it") from error


def progress_of(root: pathlib.Path, run: Run) -> Progress:
    """Returns how far a run in the folder of its sweep has come.

    Raises:
      StorageError: its records are damaged.
    """
    folder = root / run.name
    last = {"step": 0.0, **([*evaluations(folder)] or [{}])[-1]}
    ended = None
    if files.kind(folder / ENDED) is not None:
        with files.storage(str(folder / ENDED)):
            ended = files.read(folder / ENDED, _MOST_BYTES).decode(errors="replace").strip()
    return Progress(int(last.pop("step")), last, ended)


def evaluations(folder: pathlib.Path) -> list[dict[str, float]]:
    """Returns the records of a run that hold the figures of an evaluation, oldest first.

    Raises:
      StorageError: its records are damaged.
    """
    return [one for one in records.parsed(folder / "metrics.jsonl") if fit.METRICS[0] in one]


def unfinished(root: pathlib.Path, runs: Sequence[Run]) -> list[Run]:
    """Returns the runs that have neither come to their last step nor ended before."""
    left = []
    for run in runs:
        so_far = progress_of(root, run)
        if so_far.ended is None and so_far.step < run.config.num_steps:
            left.append(run)
    return left
