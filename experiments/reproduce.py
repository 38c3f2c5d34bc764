"""Runs what stands behind a page of results, and says claim by claim what came out.

    python -m experiments.reproduce --paper=002 --workdir=runs/paper002
    python -m experiments.reproduce --paper=000 --workdir=runs/paper000 --data_dir=data

The runs are the command lines of docs/results/paper<paper>.md, each a process of its binary in a
folder below the work folder; logs/ has what they print. --scale=smoke tries most of them on small
data of the checkout, in about three minutes for a paper, and decides nothing; cpu is what the page
says; full the papers' own sizes. Leaves report.md: the claims, with the paper's figure, ours and
the verdict that follows from the comparisons below, and the tables and pictures of the runs; and
claims.json. The same command again resumes: finished runs are not repeated.
"""

import dataclasses

from experiments.data import catalog
from experiments.papers import paper000, paper001, paper002, paper003, paper004, report, runs
from experiments.papers.runs import Step
from experiments.run import command, fields, places
from experiments.run.errors import StorageError
from experiments.run.signals import Signals, terminated
from experiments.run.workdirs import Workdir

PAPERS = {
    "000": paper000.PAPER,
    "001": paper001.PAPER,
    "002": paper002.PAPER,
    "003": paper003.PAPER,
    "004": paper004.PAPER,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    paper: str = fields.choice("000", PAPERS, "Page of results.")
    scale: str = fields.choice("cpu", runs.SCALES, "Size of its runs.")


def run(config: Config, *, workdir: str, data_dir: str | None = None) -> report.Rows:
    """Runs what has not finished, and writes the report.

    Args:
      config: the page and the scale.
      workdir: the folder of all runs.
      data_dir: where the data sets' files are; not needed at smoke.

    Returns:
      The rows of the table of claims.

    Raises:
      UsageError: a setting out of its range, or a work folder of another page or scale.
      DataError: a data set is missing; nothing has run then.
      StorageError: the work folder cannot be used, or runs failed; the others are reported.
      Terminated: a signal came; the run that was going has saved what it could.
    """
    places.workdir(workdir)
    fields.validate(config)
    paper = PAPERS[config.paper]
    steps = runs.steps(paper.runs, config.scale)
    for name in dict.fromkeys(name for step in steps for name in step.needs):
        catalog.load(name, data_dir)
    with Workdir(workdir, config) as folder, Signals() as signals:

        def look() -> None:
            if signals.stop:
                raise terminated(signals.stop, f"stopped a run of {folder.path}")

        _announce(config, steps, runs.finished(folder, steps))
        failed = runs.perform(folder, steps, data_dir, look)
        rows = report.write(folder, paper, steps, runs.finished(folder, steps), config.scale)
    if failed:
        first, said = next(iter(failed.items()))
        raise StorageError(
            f"{len(failed)} of {len(steps)} runs failed, the first with {said}: {first}"
        )
    return rows


def _announce(config: Config, steps: list[Step], finished: list[Step]) -> None:
    """Says what will run, and about how long."""
    left = [step for step in steps if step not in finished]
    minutes = sum(step.run.minutes for step in left)
    times = {"smoke": "about three minutes", "cpu": f"about {minutes:.0f} minutes on two cores"}
    took = times.get(config.scale, "a time that was not measured")
    print(f"paper {config.paper} at {config.scale}: {len(left)} of {len(steps)} runs, {took}")
    for step in steps:
        print(f"  {'to run  ' if step in left else 'finished'}  {step.command}", flush=True)


def main() -> None:
    """Parses the flags, runs and reports."""
    command.main_in_workdir(run, Config)


if __name__ == "__main__":
    main()
