"""Trains a grid of runs: every combination of some values of some settings.

    python -m experiments.sweep --sweep="ridge=log:0.4..40:5; seed=0..7" --workdir=runs/sweep

`--sweep` names settings of experiments.train and their values (docs/experiments.md); the other
flags are those of all runs. Engines: population trains runs that differ in numbers as one program;
commands writes command lines, one a run, for any scheduler; ray gives each run to Ray Tune. The
work folder holds sweep.json, a folder for each run, which is one of experiments.train, table.md and
sweep.png. Run the same command again to resume: finished runs are not repeated.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from experiments.run import command, fields, places, unread
from experiments.run.errors import UsageError
from experiments.sweeps import commands, grammar, population, runs, table, tune
from experiments.sweeps.tune import Tuning
from experiments.training import settings

ENGINES = ("population", "ray", "commands")
_RAY: dict[str, Any] = {"of": lambda _: ["ray"]}


@dataclasses.dataclass(frozen=True)
class Options(command.Place):
    """What to sweep over, by which engine, and where."""

    preset: str | None = settings.preset()
    sweep: str = fields.word("seed=0..3", "Settings and their values: name=values; name=values.")
    engine: str = fields.choice("population", ENGINES, "What trains the runs.")
    max_runs: int = fields.integer(256, 1, 10**6, "A larger grid is refused.")
    num_devices: int | None = fields.integer(
        None,
        1,
        10**6,
        "Devices to use; all by default. A run is on one of them.",
        of=lambda _: ["population"],
    )
    address: str | None = fields.word(
        None, "That of a running cluster, such as auto; by default one is started here.", **_RAY
    )
    asha: str | None = fields.choice(
        None, tune.GOALS, "The metric by which ASHA stops the hopeless; by default none is.", **_RAY
    )
    cpus_per_run: int = fields.integer(1, 1, 10**4, "Processors that a run is given.", **_RAY)
    gpus_per_run: int = fields.integer(0, 0, 10**3, "Accelerators that a run is given.", **_RAY)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train: the settings of all runs, and the grid of those that vary."""

    base: settings.Config
    sweep: str


def run(
    config: Config,
    *,
    workdir: str,
    data_dir: str | None = None,
    engine: str = "population",
    max_runs: int = 256,
    num_devices: int | None = None,
    tuning: Tuning = tune.HERE,
    given: command.Given | None = None,
) -> str:
    """Trains what is missing, or writes its command lines; writes the table and the picture.

    Args:
      config: settings and grid.
      workdir: the folder of the sweep.
      data_dir: where the data sets' files are.
      engine: of ENGINES.
      max_runs: a larger grid is refused.
      num_devices: devices of a population; None: all.
      tuning: how Ray goes about it.
      given: settings that were asked for by name, beside those of the grid; None: none.

    Returns:
      The table.

    Raises:
      UsageError: no grid, a setting out of its range in one of the runs or asked for and read by
        none, or a work folder with other runs.
      DataError: a data set is unknown, missing or damaged.
      StorageError: a work folder cannot be used.
      Terminated: a signal came; all runs are saved.
    """
    root = places.workdir(workdir)
    devices = jax.local_devices()[:num_devices]
    if num_devices is not None and num_devices > len(devices):
        raise UsageError(f"num_devices: got {num_devices}; expected at most {len(devices)}")
    grid = grammar.parse(config.sweep, fields.rules(settings.Config), max_runs)
    all_runs = runs.validate(runs.expand(config.base, grid))
    unread.refuse({**(given or {}), **grid}, [one.config for one in all_runs])
    checks: dict[str, Callable[..., None]] = {
        "population": population.check,
        "ray": functools.partial(tune.check, tuning=tuning),
        "commands": lambda *_: None,
    }
    data = runs.load(all_runs, data_dir, check=checks[engine])
    with runs.held(root, config.sweep, all_runs):
        left = runs.unfinished(root, all_runs)
        try:
            if engine == "population":
                population.run(root, left, data, devices)
            elif engine == "ray":
                tune.run(root, left, data_dir, tuning)
            else:
                print("\n".join(commands.write(root, left, data_dir)))
        finally:
            text = table.report(root, all_runs)
    print(text, end="")
    return text


def _start(given: command.Given) -> None:
    """Sweeps as the flags ask.

    Raises:
      UsageError: a flag for a setting that the grid varies, or for another engine.
    """
    options = fields.pick(Options, given)
    unread.refuse(given, [options])
    base = settings.configured(given, options.preset)
    for name in grammar.names(options.sweep):
        if name in given:
            raise UsageError(f"{name}: got --{name} and {name} in --sweep; expected one of them")
    run(
        Config(base, options.sweep),
        workdir=options.workdir,
        data_dir=options.data_dir,
        engine=options.engine,
        max_runs=options.max_runs,
        num_devices=options.num_devices,
        tuning=Tuning(options.address, options.asha, options.cpus_per_run, options.gpus_per_run),
        given=given,
    )


def main() -> None:
    """Parses the flags and sweeps."""
    command.main(_start, settings.Config, Options)


if __name__ == "__main__":
    main()
