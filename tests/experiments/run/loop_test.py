"""When a loop advances, evaluates, logs, saves and stops; what comes back after a cut."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.run import loop
from experiments.run.errors import DivergenceError, Terminated
from experiments.run.loop import Schedule
from experiments.run.workdirs import Workdir
from tests.experiments.run.toy_run import Config, StopAt

GOES_ON = SimpleNamespace(stop=None)


class Run:
    """A state that adds up the numbers of its steps, and what was asked of it."""

    def __init__(self, path, finite=lambda steps: True):
        self.path = path
        self.finite = finite
        self.calls = []
        self.ticks = 0

    def advance(self, state, step, count, tick):
        self.calls.append((step, count))
        self.ticks += count
        tick(count)
        steps = np.arange(step + 1, step + count + 1)
        return state + steps.sum(), {"finite": self.finite(steps), "rate": 1 / steps}

    def __call__(self, schedule, signals=GOES_ON, **options):
        """Returns the end, the steps of the checkpoints in the order of saving, and the records."""
        with Workdir(self.path, Config()) as folder:
            begun = loop.begin(folder, lambda: jnp.zeros(2))
            saved, save = [], folder.save
            folder.save = lambda step, state: (saved.append(step), save(step, state))

            def evaluate(step, state):
                assert step == len(saved) == 0 or state[0] == step * (step + 1) / 2
                return {"total": state[0]}

            end = loop.run(
                folder, signals, begun, self.advance, evaluate, schedule, name="toy", **options
            )
            return end, saved, folder.history()


def test_records_and_checkpoints_are_at_multiples_and_at_the_end(tmp_path):
    run = Run(tmp_path)
    end, saved, records = run(Schedule(7, eval_every=2, save_every=4))
    assert run.calls == [(step, 1) for step in range(7)]
    assert saved == [4, 7]
    assert [record["step"] for record in records] == [0, 2, 4, 6, 7]
    assert [record["total"] for record in records] == [0, 3, 10, 21, 28]
    assert records[0] == {"step": 0, "total": 0}  # no step is behind the start
    assert [record["rate"] for record in records[1:]] == [1 / 2, 1 / 4, 1 / 6, 1 / 7]
    np.testing.assert_array_equal(end, [28, 28])


def test_every_call_leaves_a_record_where_asked(tmp_path):
    pictures = []

    def curves(history):
        pictures.append([record["step"] for record in history])
        return b"picture"

    run = Run(tmp_path)
    _, saved, records = run(Schedule(8, 4, 2, logs_calls=True), curves=curves)
    assert run.calls == [(0, 2), (2, 2), (4, 2), (6, 2)]
    assert saved == [4, 8]
    assert [record["step"] for record in records] == [2, 4, 6, 8]
    assert ["total" in record for record in records] == [False, True, False, True]
    assert pictures == [[2, 4], [2, 4, 6, 8]]
    assert (tmp_path / "curves.png").read_bytes() == b"picture"


def test_the_last_call_is_as_short_as_need_be(tmp_path):
    run = Run(tmp_path)
    assert run(Schedule(7, 3, 3))[1] == [3, 6, 7]
    assert run.calls == [(0, 3), (3, 3), (6, 1)]
    assert run(Schedule(10, 3, 3))[1] == [9, 10]
    assert run.calls[3:] == [(7, 2), (9, 1)]


@pytest.mark.parametrize("looks", [1, 3, 4])
@pytest.mark.parametrize("logs_calls", [False, True])
def test_a_signal_saves_and_the_rest_is_as_uninterrupted(tmp_path, looks, logs_calls):
    schedule = Schedule(8, 4, logs_calls=logs_calls)
    end, _, records = Run(tmp_path / "whole")(schedule)
    with pytest.raises(Terminated, match=f"SIGTERM: saved step {looks} in {tmp_path}/cut; run the"):
        Run(tmp_path / "cut")(schedule, StopAt(looks))
    rest = Run(tmp_path / "cut")
    again, _, resumed = rest(schedule)
    assert rest.calls[0] == (looks, 1)
    assert resumed == records
    np.testing.assert_array_equal(again, end)
    assert Run(tmp_path / "cut")(schedule)[1] == []


@pytest.mark.parametrize(
    ("finite", "step"),
    [(lambda steps: steps < 6, 6), (lambda steps: np.all(steps < 6), 8)],
)
def test_divergence_names_the_step_as_well_as_it_knows(tmp_path, finite, step):
    message = f"step {step}: the state is not finite. Last good checkpoint: .*/checkpoints/4"
    with pytest.raises(DivergenceError, match=message):
        Run(tmp_path, finite)(Schedule(12, 4, 4))


def test_the_state_is_on_every_device_and_saved_without_their_axis(tmp_path):
    with Workdir(tmp_path, Config()) as folder:

        def advance(state, step, count, tick):
            assert state.shape == (len(jax.local_devices()), 3)
            return state + 1, {}

        def evaluate(step, state):
            assert state.shape == (3,)
            return {"first": state[0]}

        begun = loop.begin(folder, lambda: jnp.arange(3.0))
        devices = jax.local_devices()
        end = loop.run(
            folder, GOES_ON, begun, advance, evaluate, Schedule(2), name="toy", devices=devices
        )
        np.testing.assert_array_equal(end, [2, 3, 4])
        step, state = loop.begin(folder, lambda: jnp.arange(3.0))
        assert step == 2
        np.testing.assert_array_equal(state, end)
