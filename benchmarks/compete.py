"""Runs a row: each contestant alone, then those that can, against each other."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import fresh, problems, timing
from benchmarks.floors import Meter, Rates
from benchmarks.rows import OURS, Contestant, Goal, Row

_BUDGET_SECONDS = 60  # of one contestant in all rounds of a row; the slowest take part in few
_UNKNOWN = fresh.Outcome()


@dataclasses.dataclass(frozen=True)
class Entry:
    """One contestant's result.

    Attributes:
      name: the contestant's name.
      variant: the fastest of its variants, which was timed.
      reason: why there are no times, or "".
      ms: milliseconds per call, one a round; NaN where it sat out.
      ratios: its time over ours, round by round.
      alone: its outcome in a fresh process.
      megabytes: peak memory above bare JAX.
      difference: relative difference of its result from ours.
    """

    name: str
    variant: str = ""
    reason: str = ""
    ms: tuple[float, ...] = ()
    ratios: tuple[float, ...] = ()
    alone: fresh.Outcome = _UNKNOWN
    megabytes: float | None = None
    difference: float | None = None


class Verdict(NamedTuple):
    """Whether a goal is reached: whom it is measured against, the goal and the answer in words."""

    against: str
    text: str


@dataclasses.dataclass(frozen=True)
class Result:
    """A row's result.

    Attributes:
      row: its name.
      title: its task in words.
      entries: ours first.
      floor_ms: the floor in milliseconds, round by round.
      floor_ratios: our time over the floor, round by round.
      error: our result's relative distance from the truth; None where that is unknown.
      verdicts: one a goal.
    """

    row: str
    title: str
    entries: tuple[Entry, ...]
    floor_ms: tuple[float, ...] = ()
    floor_ratios: tuple[float, ...] = ()
    error: float | None = None
    verdicts: tuple[Verdict, ...] = ()


def run(
    row: Row,
    meter: Meter,
    limits: fresh.Limits,
    bare_mb: float | None,
    *,
    num_rounds: int,
    on_stage: Callable[[str], object] = lambda stage: None,
) -> Result:
    """Returns the result of a row.

    Args:
      row: the row.
      meter: the machine's rates, taken anew each round.
      limits: what a contestant may take in a fresh process.
      bare_mb: peak memory of a bare JAX process.
      num_rounds: rounds, at least 1.
      on_stage: called with what happens next, in words.
    """
    alone: dict[Contestant, fresh.Outcome] = {}
    for contestant in row.task.contestants:
        on_stage(f"{contestant.name} {contestant.variant}".strip() + " alone")
        isolated = row.task.isolated
        alone[contestant] = fresh.outcome(row, contestant, limits) if isolated else _UNKNOWN
    chosen = _fastest(alone)
    able = {name: c for name, c in chosen.items() if not alone[c].reason}
    rates: list[Rates] = []

    def on_round(index: int) -> None:
        if row.task.floor:
            rates.append(meter())
        on_stage(f"round {index + 1} of {num_rounds}")

    with row.threads():
        problem = row.problem()
        seconds, outputs = timing.interleaved(
            {name: contestant.build(problem) for name, contestant in able.items()},
            num_rounds=num_rounds,
            budget_seconds=_BUDGET_SECONDS,
            on_round=on_round,
        )
    outputs = jax.tree.map(np.asarray, outputs) if row.task.comparable else {}
    entries = tuple(
        _entry(contestant, alone[contestant], seconds, outputs, bare_mb)
        for contestant in chosen.values()
    )
    floor_seconds = np.array([])
    if row.task.floor and OURS in able:
        floor_seconds = np.array([row.task.floor(row.n, row.d, rate) for rate in rates])
    error = None
    if row.task.error and OURS in outputs and row.n <= row.task.error_limit:
        on_stage("float64")
        error = row.task.error(problem, outputs[OURS])
    jax.clear_caches()
    result = Result(
        row.name,
        f"{row.task.title} {row.n} x {row.d}" if row.n else row.task.title,
        entries,
        tuple(1e3 * floor_seconds),
        tuple(seconds[OURS] / floor_seconds) if floor_seconds.size else (),
        error,
    )
    return dataclasses.replace(result, verdicts=tuple(verdict(g, result) for g in row.goals))


def _fastest(alone: dict[Contestant, fresh.Outcome]) -> dict[str, Contestant]:
    """Returns the contestant to time by name: the fastest of those that ran, if any did."""
    chosen: dict[str, Contestant] = {}
    for contestant, outcome in alone.items():
        best = chosen.get(contestant.name)
        if best is None or (outcome.seconds or math.inf) < (alone[best].seconds or math.inf):
            chosen[contestant.name] = contestant
    return chosen


def _entry(
    contestant: Contestant,
    alone: fresh.Outcome,
    seconds: dict[str, np.ndarray],
    outputs: dict[str, Any],
    bare_mb: float | None,
) -> Entry:
    name = contestant.name
    entry = Entry(name, contestant.variant, alone.reason, alone=alone)
    if alone.peak_mb is not None and bare_mb is not None:
        entry = dataclasses.replace(entry, megabytes=alone.peak_mb - bare_mb)
    if name not in seconds:
        return entry
    entry = dataclasses.replace(entry, ms=tuple(1e3 * seconds[name]))
    if name == OURS or OURS not in seconds:
        return entry
    difference = None
    if outputs:
        leaves = zip(*(jax.tree.leaves(outputs[key]) for key in (name, OURS)), strict=True)
        difference = max(problems.relative_difference(theirs, mine) for theirs, mine in leaves)
    ratios = tuple(seconds[name] / seconds[OURS])
    return dataclasses.replace(entry, ratios=ratios, difference=difference)


def verdict(goal: Goal, result: Result) -> Verdict:
    """Returns a goal in words and "reached", "missed by .. %", or why nobody knows."""
    entries = {entry.name: entry for entry in result.entries}
    our = entries[OURS]
    ratio = median(entries[goal.peer].ratios) if goal.peer else math.nan
    wording, reached = {
        "faster": (f"{goal.bound:g}x {goal.peer}", ratio),
        "slower": (f"at most {goal.bound:g}x {goal.peer}", 1 / ratio),
        "floor": (f"at most {goal.bound:g}x floor", median(result.floor_ratios)),
        "milliseconds": (f"at most {goal.bound:g} ms", median(our.ms)),
        "megabytes": (f"at most {goal.bound:g} MB", _number(our.megabytes)),
        "error": (f"error at most {goal.bound:g}", _number(result.error)),
        "first_seconds": (f"first call at most {goal.bound:g} s", _number(our.alone.first_seconds)),
        "recompilations": ("compiles once", _number(our.alone.recompilations)),
        "completes": ("completes", 0.0 if our.ms else math.nan),
    }[goal.kind]
    against = goal.peer or ("floor" if goal.kind == "floor" else OURS)
    if math.isnan(reached):
        reasons = [entry.reason for entry in (our, entries.get(against, our)) if entry.reason]
        return Verdict(against, f"{wording}: {[*reasons, 'not measured'][0]}")
    better = reached >= goal.bound if goal.kind == "faster" else reached <= goal.bound
    if better:
        return Verdict(against, f"{wording}: reached")
    if goal.bound == 0:
        return Verdict(against, f"{wording}: missed, {reached:g}")
    miss = goal.bound / reached if goal.kind == "faster" else reached / goal.bound
    percent = 100 * (miss - 1)
    return Verdict(against, f"{wording}: missed by {percent:{'.0f' if percent >= 1 else '.1g'}} %")


def median(values: tuple[float, ...]) -> float:
    """Returns the median of the values that are there, or NaN."""
    there = [value for value in values if not math.isnan(value)]
    return float(np.median(there)) if there else math.nan


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
