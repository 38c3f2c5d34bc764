"""Times functions against each other in one process: in rounds, each in turn, in rotating order."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

_SAMPLE_SECONDS = 0.02  # a sample repeats the call until it lasts this long
_PAUSE_SECONDS = 0.03  # worker threads of the last contestant stop spinning meanwhile

Call = Callable[[], Any]


def seconds_per_call(call: Call, repeats: int = 1) -> float:
    """Returns the mean duration of `repeats` calls, each waited for."""
    start = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(call())
    return (time.perf_counter() - start) / repeats


def interleaved(
    calls: Mapping[str, Call],
    *,
    num_rounds: int,
    budget_seconds: float,
    on_round: Callable[[int], None] = lambda index: None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Times all calls in turns.

    Every call runs once to compile and once to choose its repeats. A round then takes one sample
    of each, starting from another one every time.

    Args:
      calls: functions by name.
      num_rounds: samples of each, at least 1.
      budget_seconds: a call takes part in the first few rounds only, at least 1, where all of them
        would take longer than this.
      on_round: called after each round with its index; may measure something else in turn.

    Returns:
      Seconds per call by name, shape (num_rounds,), NaN where a call sat out; and what each
      returned.
    """
    outputs = {name: jax.block_until_ready(call()) for name, call in calls.items()}
    estimates = {name: seconds_per_call(call) for name, call in calls.items()}
    seconds = {name: np.full(num_rounds, math.nan) for name in calls}
    names = list(calls)
    for index in range(num_rounds if calls else 0):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            if index and estimates[name] * (index + 1) > budget_seconds:
                continue
            repeats = max(1, math.ceil(_SAMPLE_SECONDS / estimates[name]))
            time.sleep(_PAUSE_SECONDS)
            seconds[name][index] = seconds_per_call(calls[name], repeats)
        time.sleep(_PAUSE_SECONDS)
        on_round(index)
    return seconds, outputs
