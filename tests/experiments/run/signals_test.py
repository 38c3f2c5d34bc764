"""Signals: what is saved is saved, one line says so, and the exit code is 128 + the number."""

import os
import signal
import sys
import time
from typing import Any

import pytest

from experiments.run import command, errors, signals
from tests.experiments.run import toy_run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_exits_by_its_number(fork, tmp_path, number):
    child = fork(toy_run.binary, str(tmp_path / "run"), 1000, 0.05)
    child.wait_for("announced")
    os.kill(child.process.pid, number)
    assert child.end() == 128 + number
    step = [value for kind, value in child.drain() if kind == "announced"][-1]
    assert child.stderr() == (
        f"kernelgrad: error: {number.name}: saved step {step}; run the same command to resume\n"
    )
    assert fork(toy_run.binary, str(tmp_path / "run"), step).wait_for("restored") == (step, True)
    assert (tmp_path / "run/metrics.jsonl").read_text() == toy_run.expected_metrics(step)


def test_sigterm_during_a_save_is_obeyed_after_it(fork, tmp_path):
    child = fork(toy_run.binary, str(tmp_path / "run"), 1000, 0.0, True)
    child.wait_for("mark")
    child.process.terminate()
    assert child.end() == 143
    assert {value for kind, value in child.drain() if kind == "announced"} <= {3, 4}


def test_a_second_sigterm_exits_at_once(fork, tmp_path):
    child = fork(toy_run.binary, str(tmp_path / "run"), 1000, 60.0)
    child.wait_for("restored")
    child.process.terminate()
    time.sleep(0.2)
    assert child.process.is_alive()
    child.process.terminate()
    assert child.end(timeout=10) == 143


def _hear(number: int) -> None:
    with signals.Signals() as heard:
        assert heard.stop is None
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 5
        while heard.stop is None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert heard.stop == number


def _do_nothing(*_: Any) -> None:
    pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_came_too_late_is_obeyed_and_the_earlier_handler_comes_back(number):
    at_start = signal.signal(number, _do_nothing)  # whoever began the tests may ignore it
    try:
        with pytest.raises(errors.Terminated, match=f"{number.name}: stopped"):
            _hear(number)
        assert signal.getsignal(number) is _do_nothing
    finally:
        signal.signal(number, at_start)
    assert signal.set_wakeup_fd(-1) == -1


def _rest(sender: Any, ignored: bool) -> None:
    """A binary without a loop of its own."""
    if ignored:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def rest(_: Any) -> None:
        sender.send(("resting", None))
        time.sleep(60)

    sys.argv = ["rest"]
    command.main(rest)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_binary_without_a_loop_ends_at_once_with_a_line(fork, number):
    child = fork(_rest, False)
    child.wait_for("resting")
    os.kill(child.process.pid, number)
    assert child.end(timeout=10) == 128 + number
    assert child.stderr() == (
        f"kernelgrad: error: {number.name}: stopped; run the same command to resume\n"
    )


def test_a_hangup_that_was_ignored_at_the_start_stays_ignored(fork):
    child = fork(_rest, True)
    child.wait_for("resting")
    os.kill(child.process.pid, signal.SIGHUP)
    time.sleep(0.2)
    assert child.process.is_alive()
    child.process.terminate()
    assert child.end(timeout=10) == 143
