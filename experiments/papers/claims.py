"""What a paper claims, and the rules by which figures decide it.

A claim has parts, each a comparison of figures, one figure a seed; its verdict follows from how
many of them are so. A figure that is not finite decides nothing in favour of a claim.
"""

import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.papers.runs import Run
from experiments.reports import comparisons
from experiments.reports.comparisons import Curves
from experiments.run import files, records, tables
from experiments.run.errors import StorageError

_MOST_BYTES, _MOST_VALUES = 2**26, 10**7
UNDECIDED, NOT_RUN = "not decided at this scale", "not run"
OURS = "not in the paper"
_HIGHER = ("label_entropy", "inception_score")  # the higher the better

Figures = Sequence[float] | np.ndarray


class Part(NamedTuple):
    """One comparison behind a claim.

    Attributes:
      rule: what should be so, in words.
      ours: the figures.
      holds: whether it is so.
      seeds: behind a figure.
    """

    rule: str
    ours: str
    holds: bool
    seeds: int


class Claim(NamedTuple):
    """One claim of a page.

    Attributes:
      says: in words.
      paper: the paper's figure or statement.
      of: folders of the runs without which there is nothing to say.
      look: the folder of all runs -> parts.
    """

    says: str
    paper: str
    of: tuple[str, ...]
    look: Callable[[pathlib.Path], Sequence[Part]]


class Paper(NamedTuple):
    """A page of results: its title, what it runs, and what it claims."""

    title: str
    runs: Sequence[Run]
    claims: Sequence[Claim]


def verdict(parts: Sequence[Part]) -> str:
    """Returns holds where all parts do, does not hold here where none does, else holds in part."""
    held = sum(part.holds for part in parts)
    word = "holds" if held == len(parts) else "holds in part" if held else "does not hold here"
    return f"{word} (one seed)" if max(part.seeds for part in parts) == 1 else word


# -------------------------------------------------------------------------------------- the rules


def lower(name: str, one: Figures, other: Figures) -> Part:
    """Seed by seed one lies below the other, in the mean by more than that mean's standard error.

    Of a single seed the sign decides.
    """
    return _apart(f"{name}: lower", one, other, -1)


def higher(name: str, one: Figures, other: Figures) -> Part:
    """As :func:`lower`, the other way."""
    return _apart(f"{name}: higher", one, other, 1)


def _apart(rule: str, one: Figures, other: Figures, sign: int) -> Part:
    gap = tables.spread(sign * (np.asarray(one) - np.asarray(other)))
    error = 0.0 if len(one) == 1 else gap.deviation / math.sqrt(len(one))
    ours = f"{tables.spread(one).text()} against {tables.spread(other).text()}"
    return Part(rule, ours, gap.mean > error, len(one))


def at_most(name: str, values: Figures, limit: float) -> Part:
    """Each of the figures is at most the limit."""
    holds = bool(np.all(np.asarray(values) <= limit))
    return Part(f"{name}: at most {limit:g}", tables.spread(values).text(), holds, len(values))


def at_least(name: str, values: Figures, limit: float) -> Part:
    """Each of the figures is at least the limit."""
    holds = bool(np.all(np.asarray(values) >= limit))
    return Part(f"{name}: at least {limit:g}", tables.spread(values).text(), holds, len(values))


def rising(name: str, along: Iterable[Figures]) -> Part:
    """The means over the seeds rise from one to the next."""
    spreads, seeds = [], 1
    for values in along:
        spreads.append(tables.spread(values))
        seeds = len(values)
    holds = bool(np.all(np.diff([one.mean for one in spreads]) > 0))
    return Part(f"{name}: rises", ", ".join(one.text() for one in spreads), holds, seeds)


# ------------------------------------------------------------------------------------- the figures


def results(path: pathlib.Path) -> Any:
    """Returns the JSON values that a run has left.

    Raises:
      StorageError: it is missing or damaged.
    """
    try:
        with files.storage(str(path)):
            return files.parse_json(files.read(path, _MOST_BYTES), _MOST_VALUES)
    except ValueError as error:
        raise StorageError(f"{path}: got {error}; expected what a run leaves. Remove it") from error


def histories(folder: pathlib.Path) -> list[list[dict[str, float]]]:
    """Returns the records of the runs seed0, seed1, ... in a folder.

    Raises:
      StorageError: there are none, or damaged ones.
    """
    found = sorted(folder.glob("seed[0-9]*"), key=lambda path: int(path.name[4:]))
    all_records = [list(records.parsed(path / "metrics.jsonl")) for path in found]
    if not all_records or not all(all_records):
        raise StorageError(f"{folder}: got no records of seeds; expected those of a run")
    return all_records


def last(folder: pathlib.Path) -> dict[str, float]:
    """Returns the last record of a run.

    Raises:
      StorageError: there is none, or a damaged one.
    """
    found = list(records.parsed(folder / "metrics.jsonl"))
    if not found:
        raise StorageError(f"{folder}: got no records; expected those of a run")
    return found[-1]


def of_seeds(root: pathlib.Path, name: str, file: str) -> list[Any]:
    """Returns the results of a run and of the same under other seeds: name, name_seed1, ..."""
    others = sorted(root.glob(f"{name}_seed[0-9]"))
    return [results(folder / file) for folder in (root / name, *others)]


def compared(folder: pathlib.Path) -> dict[str, Curves]:
    """Returns the curves of a comparison by objective."""
    return comparisons.from_json(results(folder / "comparison.json"))


def ahead(one: Mapping[str, Figures], other: Mapping[str, Figures], say: str = "") -> list[Part]:
    """Returns a part for each metric that both have: one is better in it."""
    return [
        (higher if metric in _HIGHER else lower)(f"{metric}{say}", one[metric], other[metric])
        for metric in one
        if metric in other
    ]


def ends(curves: Mapping[str, Curves], objective: str) -> dict[str, np.ndarray]:
    """Returns all metrics of an objective at the last step, by name."""
    return {metric: values[:, -1] for metric, values in curves[objective].metrics.items()}


def early(curves: Mapping[str, Curves], objective: str, step: int) -> dict[str, np.ndarray]:
    """Returns all metrics of an objective at the last evaluation up to a step, or the first."""
    one = curves[objective]
    index = max(int(np.searchsorted(one.steps, step, side="right")) - 1, 0)
    return {metric: values[:, index] for metric, values in one.metrics.items()}
