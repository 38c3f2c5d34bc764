"""Milliseconds of a step, measured in turns, so that what slows the machine slows all alike."""

import time
from collections.abc import Callable

import jax
import numpy as np
from tqdm import trange

from kernelgrad.types import Key, PyTree

_TIMED_ROUNDS = 7
_TIMED_STEPS = 50

Timed = tuple[Callable[[PyTree, Key], tuple[PyTree, PyTree]], PyTree, int]


def time_in_turns(runs: dict[str, Timed], key: Key) -> dict[str, float]:
    """Returns the median milliseconds per step of each run.

    Args:
      runs: compiled functions (state, key) -> (state, info), a state, and the steps of a call.
      key: random key of the steps.

    Returns:
      Milliseconds by name.
    """
    states = {name: state for name, (_, state, _) in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in trange(_TIMED_ROUNDS, desc="Timing the steps"):
        for name, (advance, _, per_call) in runs.items():
            start = time.perf_counter()
            calls = max(1, _TIMED_STEPS // per_call)
            for _ in range(calls):
                states[name], _ = jax.block_until_ready(advance(states[name], key))
            times[name].append(1000 * (time.perf_counter() - start) / (calls * per_call))
    return {name: float(np.median(values)) for name, values in times.items()}
