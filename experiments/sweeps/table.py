"""What a sweep has come to: a row for each combination of settings, over its seeds."""

import collections
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.pictures import grids
from experiments.run import files, tables
from experiments.sweeps import grammar
from experiments.sweeps.runs import Progress, Run, progress_of
from experiments.training import fit

SEED = "seed"
UNITS = {
    "test_mmd": "MMD^2, no unit",
    "label_entropy": "nats",
    "nearest_l1": "intensity, summed over pixels",
}


class Figure(NamedTuple):
    """A metric over the seeds of a combination of settings.

    Attributes:
      mean: over the seeds.
      error: the mean's standard error; nan of a single seed.
    """

    mean: float
    error: float

    def text(self) -> str:
        """Returns "mean ± error", the mean alone where there is no error."""
        return tables.Spread(self.mean, self.error).text()


class Row(NamedTuple):
    """A combination of settings.

    Attributes:
      values: of the settings, without the seed.
      figures: by metric, over the runs that are at their last step.
      runs: how many of them there are, and what has become of the others, in words.
    """

    values: dict[str, object]
    figures: dict[str, Figure]
    runs: str


def rows(
    runs: Sequence[Run], progress: Mapping[str, Progress], pooled: str | None = SEED
) -> list[Row]:
    """Returns a row for each combination of settings, in the order of the runs.

    Args:
      runs: of the sweep.
      progress: of each run, by its name.
      pooled: the setting over which figures are taken together; None: a row for each run.
    """
    grouped: dict[tuple[tuple[str, object], ...], list[Run]] = {}
    for run in runs:
        values = tuple((name, value) for name, value in run.values.items() if name != pooled)
        grouped.setdefault(values, []).append(run)
    return [
        Row(dict(values), _figures(of_row, progress), _account(of_row, progress))
        for values, of_row in grouped.items()
    ]


def _is_finished(run: Run, progress: Mapping[str, Progress]) -> bool:
    so_far = progress[run.name]
    return so_far.ended is None and so_far.step >= run.config.num_steps


def _figures(runs: Sequence[Run], progress: Mapping[str, Progress]) -> dict[str, Figure]:
    records = [progress[run.name].record for run in runs if _is_finished(run, progress)]
    names = [name for name in fit.METRICS if records and all(name in record for record in records)]
    figures = {}
    for name in names:
        mean, deviation = tables.spread([record[name] for record in records])
        figures[name] = Figure(mean, deviation / math.sqrt(len(records)))
    return figures


def _account(runs: Sequence[Run], progress: Mapping[str, Progress]) -> str:
    """Returns how many runs have finished, and how many have not, and why."""
    others: collections.Counter[str] = collections.Counter()
    for run in runs:
        if not _is_finished(run, progress):
            others[(progress[run.name].ended or "unfinished").partition(":")[0]] += 1
    finished = len(runs) - others.total()
    return ", ".join([str(finished), *(f"{n} {what}" for what, n in sorted(others.items()))])


def report(root: pathlib.Path, runs: Sequence[Run]) -> str:
    """Writes table.md and, once a run is at its last step, sweep.png; returns the table.

    Args:
      root: folder of the sweep.
      runs: of the sweep.
    """
    progress = {run.name: progress_of(root, run) for run in runs}
    found = rows(runs, progress)
    config, varied = runs[0].config, ", ".join(runs[0].values)
    title = f"{config.objective} on {config.dataset}" if "objective" not in varied else varied
    text = f"{len(runs)} runs over {varied}; mean ± standard error over seeds\n\n{_table(found)}\n"
    contents = {"table.md": text.encode()}
    drawn = found if found[0].values else rows(runs, progress, None)
    drawn = [row for row in drawn if row.figures]
    if drawn:
        names = [name for name in fit.METRICS if all(name in row.figures for row in drawn)]
        metrics = {name: f"{name} ({UNITS[name]})" if name in UNITS else name for name in names}
        points = [(row.values, {name: row.figures[name] for name in names}) for row in drawn]
        contents["sweep.png"] = grids.grid(points, metrics, title)
    for name, content in contents.items():
        with files.storage(str(root / name)):
            files.replace(root / name, content)
    return text


def _table(found: Sequence[Row]) -> str:
    """Returns the rows as Markdown."""
    names = [name for name in fit.METRICS if any(name in row.figures for row in found)]
    cells: dict[str, dict[str, float | str]] = {}
    for row in found:
        values = [f"{name} {grammar.shown(value)}" for name, value in row.values.items()]
        figures = {name: row.figures[name].text() for name in names if name in row.figures}
        absent = dict.fromkeys(names, "-")
        cells[", ".join(values) or "all"] = {**absent, **figures, "runs": row.runs}
    return tables.format_table(cells)
