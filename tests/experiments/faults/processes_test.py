"""A run over two processes, of which one is killed at a random moment: in the end nothing is lost.

`make test-faults` counts to 20 kills and prints the figures.
"""

import collections
import contextlib
import os
import signal
import time

import pytest

from experiments.run import cluster
from tests.experiments.processes import PATIENCE, Fleet

_KILLS, _KILLS_OF_A_RUN = 20, 5
_FLAGS = (
    "--objective=mmd", "--dataset=swiss_roll", "--num_steps=20", "--eval_every=2",
    "--batch_size=20", "--latent_dim=2", "--width=4",
)  # fmt: skip
_LOST = "kernelgrad: error: another process of the run is gone; run the same commands to resume"


def _kill_one(fleet, workdir, rng):
    """Kills one process at a random moment of a run that has begun.

    Returns which of them, and after how many seconds the other had ended; None, if all came to
    their end before.
    """
    victim, lock = int(rng.integers(2)), workdir / "lock"
    owner = f"pid {fleet.processes[0].pid} "
    deadline = time.monotonic() + PATIENCE
    while not (lock.exists() and lock.read_text().startswith(owner)):
        assert time.monotonic() < deadline
        time.sleep(0.003)
    if rng.random() < 0.75:  # when it has come further than it had, at whatever moment then
        metrics = workdir / "metrics.jsonl"
        before = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        fleet.await_records(metrics, before + 1)
        time.sleep(rng.exponential(0.5))
    else:
        time.sleep(rng.uniform(0, 5))
    with contextlib.suppress(ProcessLookupError):
        os.kill(fleet.processes[victim].pid, signal.SIGKILL)
    start = time.monotonic()
    fleet.processes[1 - victim].join(PATIENCE)
    return victim, time.monotonic() - start


@pytest.mark.slow
def test_a_kill_of_either_process_ends_both_and_changes_nothing(tmp_path, rng):
    start = time.monotonic()
    assert Fleet(tmp_path, (*_FLAGS, f"--workdir={tmp_path / 'whole'}")).end() == [0, 0]
    expected = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    counts, runs, waits = collections.Counter(), 0, []
    while counts.total() < _KILLS:
        runs += 1
        workdir = tmp_path / f"run{runs}"
        codes, before = None, counts.total()
        while codes != [0, 0]:
            fleet = Fleet(tmp_path, (*_FLAGS, f"--workdir={workdir}"))
            if counts.total() < min(before + _KILLS_OF_A_RUN, _KILLS):
                victim, seconds = _kill_one(fleet, workdir, rng)
            codes = fleet.end()
            if codes != [0, 0]:
                other = 1 - victim
                assert codes[victim] == -signal.SIGKILL, (codes, fleet.errors())
                assert codes[other] == cluster.LOST_CODE, (codes, fleet.errors())
                assert fleet.errors()[other] == [_LOST]
                counts[victim] += 1
                waits.append(seconds)
        assert (workdir / "metrics.jsonl").read_bytes() == expected
        print(f"\nrun {runs}: {counts.total() - before} kills", end="", flush=True)
    print(
        f"\nkills of process 0 and 1: {counts[0]}, {counts[1]} in {runs} runs, all as "
        f"uninterrupted; the other ended after {sorted(waits)[len(waits) // 2]:.2f} s, at most "
        f"{max(waits):.2f} s; {time.monotonic() - start:.0f} s in all"
    )
