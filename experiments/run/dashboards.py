"""The records of a run on dashboards, beside metrics.jsonl: TensorBoard's, Weights & Biases'."""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from experiments.run.errors import UsageError
from experiments.run.workdirs import Watch, Workdir

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # of the extra of that name
NAMES = tuple(_PACKAGES)


def require(names: Collection[str]) -> None:
    """Raises UsageError for a dashboard whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise UsageError(
                f"log: got {name} without the package {_PACKAGES[name]}; expected it installed: "
                f"pip install '.[experiments,{name}]'"
            )


@contextlib.contextmanager
def shown(names: Collection[str], folder: Workdir, config: Any, step: int) -> Iterator[None]:
    """Shows what is logged to a folder on dashboards too, while it is entered.

    Args:
      names: of the dashboards.
      folder: of the run; where another process keeps it, nothing is shown.
      config: dataclass of the run's settings.
      step: at which the run begins or goes on; of what was shown of later ones, TensorBoard takes
        the new values, and Weights & Biases keeps the first.
    """
    with contextlib.ExitStack() as stack:
        if folder.is_mine:
            opened = (_OPEN[name](folder, config, step) for name in names)
            folder.watches = [stack.enter_context(one) for one in opened]
            stack.callback(folder.watches.clear)
        yield


@contextlib.contextmanager
def _tensorboard(folder: Workdir, _: Any, step: int) -> Iterator[Watch]:
    from tensorboardX import SummaryWriter  # an extra

    with SummaryWriter(str(folder.below("tensorboard")), purge_step=step + 1) as writer:

        def watch(step: int, metrics: Mapping[str, float]) -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        yield watch


@contextlib.contextmanager
def _wandb(folder: Workdir, config: Any, _: int) -> Iterator[Watch]:
    import wandb  # an extra

    with wandb.init(
        id=folder.run_id,
        name=folder.path.name,
        dir=str(folder.path),
        config=dataclasses.asdict(config),
        resume="allow",
    ) as run:
        yield lambda step, metrics: run.log(dict(metrics), step=step)


_OPEN: dict[str, Callable[[Workdir, Any, int], contextlib.AbstractContextManager[Watch]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
