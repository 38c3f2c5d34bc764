"""Trains a generator: any objective on any data set.

    python -m experiments.train --objective=kl --dataset=digits --workdir=runs/digits

The work folder holds config.json, metrics.jsonl, checkpoints/, samples/*.png and curves.png. Run
the same command again to resume: the newest intact checkpoint is taken up, and the metrics from
there on are those of an uninterrupted run. Over many processes each gets the same command, and
which of them it is:

    python -m experiments.train ... --coordinator=host:port --num_processes=2 --process_id=0
"""

import dataclasses

from experiments.run import cluster, command, dashboards, fields, unread
from experiments.training import settings
from experiments.training.fit import run
from experiments.training.settings import Config


@dataclasses.dataclass(frozen=True)
class Options(command.Place):
    """How and where to run."""

    preset: str | None = settings.preset()
    num_devices: int | None = fields.integer(
        None, 1, 10**6, "Devices to use, of each process; all by default."
    )
    allow_config_change: bool = fields.switch(
        False, "Resume although settings differ from the run's config.json."
    )
    log: tuple[str, ...] = fields.choices(
        (),
        dashboards.NAMES,
        "Dashboards that show the metrics, besides metrics.jsonl: files for TensorBoard in the "
        "work folder (the extra tensorboard), Weights & Biases (the extra wandb).",
    )


def _start(given: command.Given) -> None:
    options = fields.pick(Options, given)
    config = settings.configured(given, options.preset)
    unread.refuse(given, [config])
    run(
        config,
        workdir=options.workdir,
        data_dir=options.data_dir,
        num_devices=options.num_devices,
        allow_config_change=options.allow_config_change,
        log=options.log,
    )


def main() -> None:
    """Parses the flags and trains."""
    command.main(_start, Config, Options, cluster.Layout)


if __name__ == "__main__":
    main()
