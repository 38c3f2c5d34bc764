"""The one loop of everything that trains: what a kill cuts off goes on bit for bit.

A loop differs from others in two functions: one advances the state by some steps, one evaluates it.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from tqdm import tqdm

from experiments.run import cluster
from experiments.run.signals import Signals, terminated
from experiments.run.workdirs import Workdir
from kernelgrad import train
from kernelgrad.types import PyTree

Record = dict[str, float]

_SHOWN = 4  # figures beside the progress bar


class Advance(Protocol):
    """Some steps of training."""

    def __call__(
        self, state: PyTree, step: int, count: int, tick: Callable[[int], Any], /
    ) -> tuple[PyTree, Mapping[str, Any]]:
        """Returns the state `count` steps later, and scalars.

        Args:
          state: after `step` steps.
          step: how many are behind it.
          count: how many to make.
          tick: moves the progress bar on, by ticks.

        Returns:
          The state; and what the steps tell by name, each a scalar or one value a step. "finite"
          among them says whether the state was.
        """
        ...


class Schedule(NamedTuple):
    """How many steps, and how many between what is done along the way.

    What happens every so many steps happens at multiples of them, and at the last step.

    Attributes:
      num_steps: in all.
      eval_every: between two evaluations, each of which is logged.
      stride: of a call of `advance`, after which a signal is heard; divides eval_every.
      save_every: between two checkpoints; a multiple of eval_every. None: eval_every.
      logs_calls: whether every call leaves a record, and the start none; else evaluations do, of
        the start too.
      ticks: of the progress bar in a step.
    """

    num_steps: int
    eval_every: int = 1
    stride: int = 1
    save_every: int | None = None
    logs_calls: bool = False
    ticks: int = 1


def begin(folder: Workdir, start: Callable[[], PyTree]) -> tuple[int, PyTree]:
    """Returns step and state of the newest checkpoint, else 0 and the start; cuts the metrics.

    Of several processes all get those of process 0.

    Raises:
      UsageError: the checkpoint is of another model.
      StorageError: no checkpoint verifies, or not with these metrics.
    """
    form = jax.eval_shape(start)

    def of_folder() -> tuple[np.ndarray, PyTree]:
        step, state = folder.restore(form) or (0, start())
        return np.array(step), state

    step, state = cluster.of_first(of_folder, (np.array(0), form))
    return int(step), state


def run(
    folder: Workdir,
    signals: Signals,
    begun: tuple[int, PyTree],
    advance: Advance,
    evaluate: Callable[[int, PyTree], Mapping[str, Any]],
    schedule: Schedule,
    *,
    name: str,
    devices: Sequence[jax.Device] | None = None,
    curves: Callable[[Sequence[Record]], bytes] | None = None,
) -> PyTree:
    """Advances a state to the last step, and shows, logs and saves on the way.

    A record is the last of the scalars since the one before, and the figures of an evaluation; it
    is logged before the state of its step is saved. Of several processes the first evaluates, logs
    and saves; a signal to one of them stops all, after the same call.

    Args:
      folder: of the run.
      signals: where a request to stop arrives.
      begun: from :func:`begin`.
      advance: makes steps.
      evaluate: (step, state) -> figures by name.
      schedule: when.
      name: on the progress bar.
      devices: this process's; `advance` gets the state on each of them
        (`kernelgrad.train.replicate`); None: as it is. Evaluated and saved is the state without
        the axis of devices.
      curves: all records -> PNG bytes of curves.png, drawn at every evaluation.

    Returns:
      The state after the last step, without the axis of devices.

    Raises:
      DivergenceError: a state was not finite.
      StorageError: a record or a checkpoint could not be written.
      Terminated: a signal came; the state is saved.
    """
    num_steps, eval_every, stride, save_every, logs_calls, ticks = schedule
    save_every = save_every or eval_every
    step, start = begun
    if step == 0 and not logs_calls and folder.is_mine:
        folder.log(0, evaluate(0, start))
    state = start if devices is None else train.replicate(start, devices)

    def whole(state: PyTree) -> PyTree:
        return state if devices is None else train.unreplicate(state)

    bar = tqdm(
        total=ticks * num_steps,
        initial=ticks * step,
        desc=name,
        unit="step",
        disable=not folder.is_mine,
    )
    with bar:
        while step < num_steps:
            count = min(stride - step % stride, num_steps - step)
            state, scalars = advance(state, step, count, bar.update)
            record = _checked(folder, step, count, scalars)
            step += count
            is_last = step == num_steps
            is_due = step % eval_every == 0 or is_last
            if is_due and folder.is_mine:
                record |= evaluate(step, whole(state))
            if is_due or logs_calls:
                shown = itertools.islice(record.items(), _SHOWN)
                bar.set_postfix({key: f"{value:.3g}" for key, value in shown})
                folder.log(step, record)
            if is_due and curves is not None and folder.is_mine:
                folder.write_bytes("curves.png", curves(folder.history()))
            stop = cluster.largest(signals.stop or 0)
            if step % save_every == 0 or is_last or stop:
                folder.save(step, whole(state))
            if is_last or stop:
                cluster.largest(0)  # until it is saved
            if stop:
                raise terminated(stop, f"saved step {step} in {folder.path}")
    return whole(state)


def _checked(folder: Workdir, step: int, count: int, scalars: Mapping[str, Any]) -> Record:
    """Returns the last of each scalar, once all steps were finite."""
    values = {key: np.ravel(value) for key, value in scalars.items()}
    finite = values.pop("finite", np.array([True]))
    if not finite.all():
        first = step + count - len(finite) + int(finite.argmin()) + 1
        raise folder.divergence(first, "the state is not finite")
    return {key: float(of_steps[-1]) for key, of_steps in values.items()}
