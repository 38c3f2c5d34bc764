"""A run of experiments.train as it stands: its settings, its data, its newest checkpoint."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from experiments.data import catalog
from experiments.data.dataset import Dataset
from experiments.run import fields, places
from experiments.run.errors import UsageError
from experiments.run.workdirs import Workdir, stored_fields
from experiments.training import extractors, models, settings
from experiments.training.settings import Config
from kernelgrad import train
from kernelgrad.train import TrainState

Check = Callable[[Config, Dataset], None]


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
        content = stored_fields(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"workdir: got {workdir} without a readable config.json ({reason}); expected the "
            "folder of a run of experiments.train"
        ) from error
    try:
        config = fields.checked(Config, content)
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
      check: raises for a config and a data set that are not wanted, before anything is written.

    Raises:
      UsageError: no run of experiments.train there, or none with a checkpoint.
      DataError: the run's data are missing.
      StorageError: the folder cannot be used.
    """
    config = stored_config(workdir)
    require_checkpoint(workdir)
    dataset = catalog.load(config.dataset, data_dir, seed=config.seed, image_size=config.image_size)
    models.check(config, dataset)
    check(config, dataset)
    with Workdir(workdir, config) as folder:
        model = models.build(config, dataset)
        extractors.hold_to(folder, model.extractors)
        form = jax.eval_shape(model.initial_state, jax.random.key(0))
        restored = folder.restore(form, cut_metrics=False)
        if restored is None:
            raise UsageError(f"workdir: got {folder.path} without a checkpoint; train first")
        step, state = restored
        yield folder, Trained(config, dataset, model, step, train.averaged(state))
