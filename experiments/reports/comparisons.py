"""What runs under several objectives have come to, at equal steps and at equal training time."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.run import tables
from experiments.run.errors import UsageError

Record = Mapping[str, float]
Rows = dict[str, dict[str, float | str]]


@dataclasses.dataclass(frozen=True)
class Curves:
    """The runs of one objective: steps (t,), metrics (seeds, t) by name, milliseconds per step."""

    steps: np.ndarray
    metrics: dict[str, np.ndarray]
    ms_per_step: float

    def covers(self, seconds: float) -> bool:
        """Whether a training time is neither before the first evaluation nor after the last."""
        step = 1000 * seconds / self.ms_per_step
        return bool(self.steps[0] <= step <= self.steps[-1] * (1 + 1e-9))

    def at_time(self, seconds: float) -> dict[str, np.ndarray]:
        """Returns the metrics, one value a seed, interpolated at a training time; else nan."""
        step = 1000 * seconds / self.ms_per_step
        return {
            name: np.array([np.interp(step, self.steps, seed) for seed in values])
            if self.covers(seconds)
            else np.full(len(values), np.nan)
            for name, values in self.metrics.items()
        }


class Comparison(NamedTuple):
    """Runs that can be compared.

    Attributes:
      curves: by objective, all at the same steps and of the same metrics.
      warnings: what had to be left out, a line each.
    """

    curves: dict[str, Curves]
    warnings: list[str]


def gathered(
    histories: Mapping[str, Sequence[Sequence[Record]]],
    metrics: Sequence[str],
    ms_per_step: Mapping[str, float],
    num_steps: int,
) -> Comparison:
    """Returns what all runs have in common.

    Args:
      histories: the records of each seed, by objective.
      metrics: names of metrics in the order of a table; an evaluation has the first.
      ms_per_step: by objective.
      num_steps: up to which step the runs are compared.

    Raises:
      UsageError: there is no step at which all runs were evaluated.
    """

    def evaluations(run: Sequence[Record]) -> dict[int, Record]:
        return {int(record["step"]): record for record in run if metrics[0] in record}

    evaluated = {name: [*map(evaluations, runs)] for name, runs in histories.items()}
    runs = [run for of_objective in evaluated.values() for run in of_objective]
    steps = sorted(step for step in set(runs[0]).intersection(*runs) if step <= num_steps)
    if not steps:
        raise UsageError(
            f"workdir: got runs that were evaluated at no step in common up to {num_steps}; "
            "expected some. Use another workdir"
        )
    records = [run[step] for run in runs for step in steps]
    names = [name for name in metrics if all(name in record for record in records)]
    curves = {
        name: Curves(
            np.array(steps),
            {m: np.array([[run[step][m] for step in steps] for run in found]) for m in names},
            ms_per_step[name],
        )
        for name, found in evaluated.items()
    }
    others = sorted(set().union(*runs) - set(steps))
    odd = [name for name in metrics if name not in names and any(name in r for r in records)]
    warnings = []
    if others:
        shown = ", ".join(map(str, others[:5])) + (", ..." if len(others) > 5 else "")
        warnings.append(f"evaluations at step {shown} are left out: not every run has them")
    if odd:
        warnings.append(f"{', '.join(odd)} is left out: not every evaluation has it")
    return Comparison(curves, warnings)


def equal_time(last: Mapping[str, int], ms_per_step: Mapping[str, float]) -> float:
    """Returns the seconds that the fastest objective takes to its last step."""
    return min(step * ms_per_step[name] for name, step in last.items()) / 1000


def too_slow(ms_per_step: Mapping[str, float], num_steps: int, eval_every: int) -> list[str]:
    """Returns a warning for each objective not evaluated by the time that the fastest is done."""
    seconds = equal_time(dict.fromkeys(ms_per_step, num_steps), ms_per_step)
    first = min(num_steps, eval_every)
    return [
        f"{name}: at step {1000 * seconds / ms:.0f} of {num_steps} when the fastest objective is "
        f"done, before its first evaluation at step {first}: nothing to compare at equal time. "
        "Lower --eval_every"
        for name, ms in ms_per_step.items()
        if 1000 * seconds / ms < first
    ]


def rows(curves: Mapping[str, Curves]) -> Rows:
    """Returns a row for each objective at the last step, and at the time of the fastest one."""
    found: Rows = {}
    for name, one in curves.items():
        final = {metric: values[:, -1] for metric, values in one.metrics.items()}
        speed = {"ms per step": f"{one.ms_per_step:.1f}"}
        found[f"{name}, step {one.steps[-1]}"] = {**_texts(final), **speed}
    seconds = equal_time(
        {name: int(one.steps[-1]) for name, one in curves.items()},
        {name: one.ms_per_step for name, one in curves.items()},
    )
    for name, one in curves.items():
        texts = _texts(one.at_time(seconds)) if one.covers(seconds) else {}
        found[f"{name}, {seconds:.3g} s"] = texts
    return found


def as_json(curves: Mapping[str, Curves], reference: Mapping[str, float]) -> bytes:
    """Returns all curves, and what real samples have, as JSON; what is not finite is null."""
    found = {
        name: {
            "steps": one.steps.tolist(),
            "ms_per_step": one.ms_per_step,
            "metrics": {
                metric: [
                    [x if math.isfinite(x) else None for x in seed] for seed in values.tolist()
                ]
                for metric, values in one.metrics.items()
            },
        }
        for name, one in curves.items()
    }
    return (json.dumps({"curves": found, "reference": reference}) + "\n").encode()


def from_json(found: Any) -> dict[str, Curves]:
    """Returns the curves of what :func:`as_json` has made."""
    return {
        name: Curves(
            np.array(one["steps"]),
            {metric: np.array(values, float) for metric, values in one["metrics"].items()},
            one["ms_per_step"],
        )
        for name, one in found["curves"].items()
    }


def _texts(values: Mapping[str, np.ndarray]) -> dict[str, float | str]:
    """Returns mean and deviation over the seeds."""
    return {name: tables.spread(seeds).text() for name, seeds in values.items()}
