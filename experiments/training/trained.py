"""A run of experiments.train as it stands: its settings, its data, its newest checkpoint.

In a notebook, while it trains or later::

    run = trained.load("runs/digits")
    images = run.generate(jax.random.key(0), 16)
"""

import contextlib
import functools
import json
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.data import catalog
from experiments.data.dataset import Dataset
from experiments.run import configs, fields, files, places
from experiments.run.errors import StorageError, UsageError, short
from experiments.run.workdirs import Workdir, read_newest, read_verified
from experiments.training import extractors, models, settings
from experiments.training.settings import Config
from kernelgrad import train
from kernelgrad.train import TrainState
from kernelgrad.types import Key

Check = Callable[[Config, Dataset], None]

_DATA = "data.json"
_MOST_DATA_BYTES, _MOST_CLASSES = 2**20, 10_000
_BATCH = 500


class Trained(NamedTuple):
    """What a run has come to.

    Attributes:
      config: its settings.
      dataset: what it was trained on.
      model: its networks and objective, for one device.
      step: of the checkpoint.
      state: after that step; of a run with moving averages, with those as its parameters.
    """

    config: Config
    dataset: Dataset
    model: models.Model
    step: int
    state: TrainState

    def generate(self, key: Key, n: int) -> np.ndarray:
        """Returns n samples, shape (n, ...): images in [0, 1], or points.

        Args:
          key: random key of the latents; of a conditional run also of the labels, as often as in
            the data. More samples of a key begin with the fewer ones.
          n: how many, >= 0.
        """
        empty = np.zeros((0, *self.dataset.sample_shape), np.float32)
        return np.concatenate([empty, *self.batches(key, n)])

    def batches(self, key: Key, n: int) -> Iterator[np.ndarray]:
        """Yields what :meth:`generate` returns, some hundred samples at a time."""
        draw = jax.jit(self.model.generate)
        for index in range(-(-n // _BATCH)):
            latents = self.model.sample_latents(jax.random.fold_in(key, index), _BATCH)
            rows = latents[: n - index * _BATCH]
            yield jax.device_get(draw(self.state.params, self.state.batch_stats, rows))


class Kept(NamedTuple):
    """What a run has kept on its way, for who goes over its training again.

    Attributes:
      config: its settings.
      dataset: what it was trained on.
      model: its networks and objective, for one device.
      path: its folder.
    """

    config: Config
    dataset: Dataset
    model: models.Model
    path: pathlib.Path

    def states(self) -> dict[int, TrainState]:
        """Returns the states that training went on from, by step: its first, and its checkpoints.

        The run may go on meanwhile; nothing is written.

        Raises:
          UsageError: a checkpoint is of another model.
          StorageError: none verifies.
        """
        key = models.keys(self.config.seed).init
        start = functools.partial(jax.jit(self.model.initial_state), key)
        return {0: start(), **read_verified(self.path, jax.eval_shape(start))}


def note_data(folder: Workdir, dataset: Dataset) -> None:
    """Leaves in a run's folder what its networks have to know of its data."""
    counts = None
    if dataset.train_labels is not None:
        counts = np.bincount(dataset.train_labels, minlength=dataset.num_classes).tolist()
    noted = {"name": dataset.name, "sample_shape": dataset.sample_shape, "label_counts": counts}
    folder.write_bytes(_DATA, f"{json.dumps(noted)}\n".encode())


def _noted_data(path: pathlib.Path) -> Dataset:
    """Returns a data set without examples, from what :func:`note_data` has left.

    Raises:
      ValueError: it is none.
      OSError: it cannot be read.
    """
    noted = files.parse_json(files.read(path, _MOST_DATA_BYTES), _MOST_CLASSES)
    try:
        name, shape, counts = noted["name"], noted["sample_shape"], noted["label_counts"]
        sizes = [*shape, *(counts or ())]
        if {*map(type, sizes)} != {int} or min(sizes) < 0 or sum(sizes) > fields.MAX_SIZE:
            raise ValueError(f"got the sizes {fields.shown(sizes)}")
    except (TypeError, KeyError) as error:
        raise ValueError(f"got another form ({error})") from error
    examples = np.zeros((0, *shape), np.uint8 if len(shape) == 3 else np.float32)
    labels = None if counts is None else np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return Dataset(str(name), examples, examples, labels, labels, len(counts or ()))


def load(workdir: str | os.PathLike[str], data_dir: str | None = None) -> Trained:
    """Returns what a run has come to, without its data and without holding its folder.

    The run may go on meanwhile; nothing is written. Its `dataset` has the form of the data, and no
    examples. Only a run without data.json, of an earlier version, needs its data.

    Args:
      workdir: the folder of the run.
      data_dir: where the data set's files are, if they are needed.

    Raises:
      UsageError: no run of experiments.train there, or none with a checkpoint.
      DataError: the data are needed and missing.
      StorageError: no checkpoint verifies, or data.json is damaged.
    """
    config = stored_config(str(workdir))
    require_checkpoint(str(workdir))
    path = places.folder("workdir", workdir)
    try:
        dataset = _noted_data(path / _DATA)
        model, form = _model_and_form(config, dataset)
    except FileNotFoundError:
        dataset = catalog.load(
            config.dataset,
            data_dir,
            seed=config.seed,
            image_size=config.image_size,
            most_bytes=settings.resident_bytes(config),
        )
        model, form = _model_and_form(config, dataset)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f"{path / _DATA}: {reason}; expected the form of the run's data. Remove it, and run "
            "its command again"
        ) from error
    step, state = read_newest(path, form)
    return Trained(config, dataset, model, step, train.averaged(state))


def _model_and_form(config: Config, dataset: Dataset) -> tuple[models.Model, TrainState]:
    """Returns the networks of a run, and the form of its state."""
    model = models.build(config, dataset, networks={})
    return model, jax.eval_shape(model.initial_state, jax.random.key(0))


def named(runs: Sequence[str], taken: Collection[str] = ()) -> dict[str, str]:
    """Returns the folders of runs by name, from texts name=workdir.

    Args:
      runs: the texts.
      taken: names that none of them may have.

    Raises:
      UsageError: a text of another form, or a name that is taken.
    """
    found: dict[str, str] = {}
    for item in runs:
        name, separator, workdir = item.partition("=")
        if not (separator and name and workdir):
            raise UsageError(f"runs: got {fields.shown(item)}; expected name=workdir,name=workdir")
        if name in (*taken, *found):
            raise UsageError(
                f"runs: got the name {short(name)} for {workdir}; expected one not yet taken"
            )
        found[name] = workdir
    return found


def stored_config(workdir: str) -> Config:
    """Returns the config of the run in a folder.

    Raises:
      UsageError: there is no run, or not one of experiments.train.
    """
    path = places.folder("workdir", workdir) / "config.json"
    if (path.parent / "frames").exists():
        raise UsageError(
            f"workdir: got {workdir}, a run of experiments.toy, whose targets are not the data "
            "sets of their names; expected the folder of a run of experiments.train"
        )
    try:
        content = configs.stored_fields(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"workdir: got {workdir} without a readable config.json ({reason}); expected the "
            "folder of a run of experiments.train"
        ) from error
    try:
        config = fields.checked(Config, {**fields.earlier(Config), **content})
        settings.validate(config, 1)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return config


def require_checkpoint(workdir: str) -> None:
    """Raises UsageError where a run's folder has no checkpoint; nothing is written."""
    folder = places.folder("workdir", workdir)
    if not any((folder / "checkpoints").glob("[0-9]*")):
        raise UsageError(f"workdir: got {folder} without a checkpoint; train first")


@contextlib.contextmanager
def opened(
    workdir: str, data_dir: str | None = None, *, check: Check = lambda *_: None
) -> Iterator[tuple[Workdir, Trained]]:
    """Yields the folder of a run, held against others, and what it holds.

    Args:
      workdir: the folder.
      data_dir: where the data set's files are.
      check: raises for a config and a data set that are not wanted, before anything is written; it
        may get the data set's form alone, as that of :func:`experiments.data.catalog.load`.

    Raises:
      UsageError: no run of experiments.train there, or none with a checkpoint.
      DataError: the run's data are missing.
      StorageError: the folder cannot be used.
    """
    config, dataset = _config_and_data(workdir, data_dir, check)
    with Workdir(workdir, config) as folder:
        model = models.build(config, dataset)
        extractors.hold_to(folder, model.extractors)
        form = jax.eval_shape(model.initial_state, jax.random.key(0))
        restored = folder.restore(form, cut_metrics=False)
        if restored is None:
            raise UsageError(f"workdir: got {folder.path} without a checkpoint; train first")
        step, state = restored
        yield folder, Trained(config, dataset, model, step, train.averaged(state))


def kept(workdir: str, data_dir: str | None = None, *, check: Check = lambda *_: None) -> Kept:
    """Returns what a run has kept, without holding its folder; arguments and errors of `opened`.

    Nothing is compiled before its states are asked for.
    """
    config, dataset = _config_and_data(workdir, data_dir, check)
    path = places.folder("workdir", workdir)
    return Kept(config, dataset, models.build(config, dataset), path)


def _config_and_data(workdir: str, data_dir: str | None, check: Check) -> tuple[Config, Dataset]:
    """Returns settings and data of a run with a checkpoint, once `check` lets them pass."""
    config = stored_config(workdir)
    require_checkpoint(workdir)

    def check_all(dataset: Dataset) -> None:
        models.check(config, dataset)
        check(config, dataset)

    dataset = catalog.load(
        config.dataset,
        data_dir,
        seed=config.seed,
        image_size=config.image_size,
        most_bytes=settings.resident_bytes(config),
        check=check_all,
    )
    return config, dataset
