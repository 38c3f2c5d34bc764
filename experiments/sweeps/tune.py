"""Sweeps by Ray Tune, over machines that share a file system.

A trial is a process of experiments.train in the folder of its run. It goes on from its newest
checkpoint wherever it is started, so that of a node that is lost nothing is but the steps since
then: Tune starts its trials elsewhere.
"""

import contextlib
import importlib.util
import logging
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from experiments.run import files
from experiments.run.errors import StorageError, UsageError
from experiments.sweeps import children, commands, runs
from experiments.sweeps.runs import ENDED, Datasets, Run
from experiments.training import fit

GOALS = {"test_mmd": "min", "label_entropy": "max", "nearest_l1": "min"}  # of stopping early

_MOST_FAILURES = 8  # of a trial: nodes lost, processes killed
_REDUCTION = 4  # of the trials at a rung, the share that goes on is one in so many
_DIVERGED = 3  # exit code


class Tuning(NamedTuple):
    """How Tune goes about it.

    Attributes:
      address: of a running cluster, such as auto; None: one is started here.
      asha: the metric by which hopeless trials are stopped; None: none is.
      cpus: of a trial.
      gpus: of a trial.
    """

    address: str | None = None
    asha: str | None = None
    cpus: int = 1
    gpus: int = 0


HERE = Tuning()  # no early stopping, on a cluster of one machine


def check(all_runs: Sequence[Run], data: Datasets, tuning: Tuning) -> None:
    """Raises UsageError where Ray is missing, or a run has not the metric to be stopped by."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError(
            "engine: got ray, which is not installed; expected the extra sweep: pip install "
            "'.[sweep]'"
        )
    if tuning.asha in (None, fit.METRICS[0]):
        return
    for one in all_runs:
        dataset = data[one.name]
        if not fit.has_neighbours(dataset):
            raise UsageError(
                f"asha: got {tuning.asha} on {dataset.name}, whose runs have {fit.METRICS[0]} "
                "alone; expected that one"
            )


def run(
    root: pathlib.Path, unfinished: Sequence[Run], data_dir: str | None, tuning: Tuning
) -> None:
    """Trains runs, each in a process of its own, wherever the cluster has room.

    Args:
      root: folder of the sweep.
      unfinished: the runs.
      data_dir: where the data sets' files are.
      tuning: how.

    Raises:
      UsageError: there is no cluster at the address.
      StorageError: a run has failed more often than is borne.
    """
    if not unfinished:
        return
    from ray import tune

    _connect(tuning.address)
    trials = [
        {
            "folder": str(root / one.name),
            "arguments": commands.arguments(one, root / one.name, data_dir),
            "num_steps": one.config.num_steps,
            "here": os.getcwd(),
        }
        for one in unfinished
    ]
    with _bar(tune, root, len(trials)) as callback:
        results = tune.Tuner(
            tune.with_resources(_trial, {"cpu": tuning.cpus, "gpu": tuning.gpus}),
            param_space={"trial": tune.grid_search(trials)},
            tune_config=tune.TuneConfig(
                scheduler=_scheduler(unfinished, tuning),
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=time.strftime("%Y%m%d-%H%M%S"),
                storage_path=str(root / "ray"),
                verbose=0,
                callbacks=[callback],
                failure_config=tune.FailureConfig(max_failures=_MOST_FAILURES),
            ),
        ).fit()
    for result in results:
        if result.error is None:
            _note_if_stopped(result.config["trial"])
    if results.errors:
        lines = str(results.errors[0]).strip().splitlines()
        raise StorageError(f"{root}: {len(results.errors)} runs failed, the first with {lines[-1]}")


def _connect(address: str | None) -> None:
    """Joins a cluster, or starts one here, whose workers import from this checkout."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the bar speaks for all of it
    if ray.is_initialized():
        return
    options = {} if address else {"include_dashboard": False}
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": {"PYTHONPATH": children.paths()}},
            log_to_driver=False,
            logging_level=logging.ERROR,
            **options,
        )
    except (ConnectionError, ValueError) as error:
        raise UsageError(
            f"address: got {address} ({error}); expected that of a running cluster"
        ) from error


def _scheduler(unfinished: Sequence[Run], tuning: Tuning) -> Any:
    """Returns ASHA on the steps of evaluations, if asked for."""
    from ray.tune.schedulers import ASHAScheduler

    if tuning.asha is None:
        return None
    return ASHAScheduler(
        time_attr="step",
        metric=tuning.asha,
        mode=GOALS[tuning.asha],
        max_t=1 + max(one.config.num_steps for one in unfinished),  # who is there, has to save yet
        grace_period=max(one.config.eval_every for one in unfinished),
        reduction_factor=_REDUCTION,
    )


@contextlib.contextmanager
def _bar(tune: Any, root: pathlib.Path, count: int) -> Any:
    """Yields what moves a progress bar over runs."""
    with tqdm(total=count, desc=root.name, unit="run") as bar:

        class Callback(tune.Callback):
            def __init__(self, bar: tqdm) -> None:
                self.bar = bar

            def __getstate__(self) -> dict[str, Any]:  # Tune stores callbacks; a bar has a file
                return {}

            def on_trial_complete(self, *_: Any, **__: Any) -> None:
                self.bar.update()

        yield Callback(bar)


def _note_if_stopped(trial: dict[str, Any]) -> None:
    """Says in the folder of a run that it was stopped, if it neither came to its end nor failed."""
    folder = pathlib.Path(trial["folder"])
    found, ended = runs.evaluations(folder), folder / ENDED
    step = int(found[-1]["step"]) if found else 0
    if step < trial["num_steps"] and files.kind(ended) is None:
        with files.storage(str(ended)):
            files.replace(ended, f"stopped: step {step} of {trial['num_steps']}\n".encode())


def _trial(config: dict[str, Any]) -> None:
    """The trainable of Tune."""
    from ray import tune

    trial = config["trial"]
    folder = pathlib.Path(trial["folder"])
    follow(trial["arguments"], folder, trial["num_steps"], tune.report, here=trial["here"])


def follow(
    arguments: Sequence[str],
    folder: pathlib.Path,
    num_steps: int,
    report: Callable[[dict[str, float]], Any],
    *,
    here: str | None = None,
) -> None:
    """Runs experiments.train to its end, and reports its evaluations; dies with its parent.

    Args:
      arguments: flags of the run.
      folder: of the run.
      num_steps: of the run, whose last evaluation is reported once it is saved.
      report: gets each evaluation of the run, from its first step on.
      here: folder from which relative paths of the flags start; None: the present one.

    Raises:
      RuntimeError: the process failed, otherwise than by diverging, of which a note is left.
    """
    reported = 0

    def look() -> None:
        nonlocal reported
        found = [r for r in runs.evaluations(folder) if r["step"] < num_steps]
        for record in found[reported:]:
            report(record)
        reported = max(reported, len(found))

    code, said = children.run("train", arguments, look, here=here)
    if code == _DIVERGED:
        with files.storage(str(folder / ENDED)):
            files.replace(folder / ENDED, f"diverged: {said}\n".encode())
    elif code:
        raise RuntimeError(f"exit code {code}: {said}")
    for record in runs.evaluations(folder)[reported:]:
        report(record)
