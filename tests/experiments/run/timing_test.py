"""Turns and milliseconds, on a clock that the tests move."""

import pytest

from experiments.run import timing
from experiments.run.timing import Timed


@pytest.fixture
def now(monkeypatch):
    """The time in seconds, in a list."""
    seconds = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: seconds[0])
    return seconds


def test_milliseconds_are_the_median_of_turns(now, monkeypatch):
    monkeypatch.setattr(timing, "_TIMED_ROUNDS", 3)
    monkeypatch.setattr(timing, "_TIMED_SECONDS", 0.25)
    calls = []

    def advance(name, seconds):
        def call(state):
            if len(calls) in (7, 8):  # something slows the machine down in the second round
                now[0] += 5.0
            calls.append(name)
            now[0] += seconds
            return state + 1

        return call

    runs = {
        "fast": Timed(advance("fast", 0.125), 0, steps=5),
        "slow": Timed(advance("slow", 0.5), 10),
    }
    found = timing.time_in_turns(runs)
    assert found == {"fast": 25.0, "slow": 500.0}
    assert calls[:4] == ["fast", "fast", "slow", "slow"]  # not timed
    assert calls[4:] == ["fast", "fast", "slow", "fast", "slow", "fast", "fast", "slow"]


def test_every_call_gets_the_state_of_the_one_before(now, monkeypatch):
    monkeypatch.setattr(timing, "_TIMED_SECONDS", 0.0)
    seen = []

    def advance(state):
        seen.append(state)
        now[0] += 1.0
        return state + 1

    assert timing.time_in_turns({"one": Timed(advance, 0)}) == {"one": 1000.0}
    assert seen == list(range(2 + timing._TIMED_ROUNDS))
