"""Milliseconds of a step, measured in turns, so that what slows the machine slows all alike."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from tqdm import trange

from kernelgrad.types import PyTree

_TIMED_ROUNDS = 7
_TIMED_SECONDS = 0.5  # at least, of each in a round


class Timed(NamedTuple):
    """What is timed.

    Attributes:
      advance: a call, state -> the state that the next call gets.
      start: the state of the first call.
      steps: of a call.
    """

    advance: Callable[[PyTree], PyTree]
    start: PyTree
    steps: int = 1


def time_in_turns(runs: Mapping[str, Timed]) -> dict[str, float]:
    """Returns the median milliseconds per step of each run; calls that compile are not timed."""
    states, times = {}, {}
    for name, run in runs.items():  # twice: the types of a start may not be those of a state
        states[name] = jax.block_until_ready(run.advance(run.advance(run.start)))
        times[name] = np.empty(_TIMED_ROUNDS)
    for turn in trange(_TIMED_ROUNDS, desc="Timing the steps"):
        for name, run in runs.items():
            calls, start = 0, time.perf_counter()
            while calls == 0 or time.perf_counter() - start < _TIMED_SECONDS:
                states[name] = jax.block_until_ready(run.advance(states[name]))
                calls += 1
            times[name][turn] = 1000 * (time.perf_counter() - start) / (calls * run.steps)
    return {name: float(np.median(values)) for name, values in times.items()}
