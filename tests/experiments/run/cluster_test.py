"""One run over processes: they make the run of one, stop together, and none outlives another.

On the loopback, two processes of two forced devices each; the long version is in faults/.
"""

import json
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest

from experiments.pictures import charts
from experiments.run import cluster, command, signals
from experiments.run.cluster import Layout
from experiments.run.errors import UsageError
from experiments.training import fit
from experiments.training.objectives import OBJECTIVES
from experiments.training.settings import Config
from tests.experiments.processes import Fleet

SMALL = {
    "objective": "mmd",
    "dataset": "ring",
    "batch_size": 20,
    "latent_dim": 2,
    "width": 4,
    "num_steps": 12,
    "eval_every": 2,
}
LOST = "kernelgrad: error: another process of the run is gone; run the same commands to resume"


def flags(workdir, **settings):
    return [f"--workdir={workdir}", *(f"--{name}={value}" for name, value in settings.items())]


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_close(found, expected):
    assert [record.keys() for record in found] == [record.keys() for record in expected]
    for record, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            list(record.values()), list(other.values()), rtol=1e-5, atol=1e-5
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of two processes that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    fleet = Fleet(folder, flags(folder / "run", **SMALL))
    assert fleet.end() == [0, 0]
    assert fleet.errors() == [[], []]
    return folder / "run"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run of two steps more on one device."""
    folder = tmp_path_factory.mktemp("alone")
    fit.run(Config(**SMALL | {"num_steps": 14}), workdir=str(folder), num_devices=1)
    return folder


def test_two_processes_of_two_devices_make_the_run_of_one_device(whole, alone):
    assert_close(records(whole), records(alone)[:-1])
    assert {path.name for path in whole.iterdir()} == {path.name for path in alone.iterdir()}
    assert (whole / "devices.txt").read_text() == "4 x cpu in 2 processes\n"


@pytest.mark.thorough
def test_a_signal_to_one_stops_all_and_a_kill_of_one_ends_all(whole, tmp_path):
    """The run is taken up after both, and ends as the one that nothing has interrupted."""
    command, metrics = flags(tmp_path / "run", **SMALL), tmp_path / "run"
    fleet = Fleet(tmp_path, command)
    fleet.await_records(metrics / "metrics.jsonl", 1)
    fleet.signal(1, signal.SIGTERM)
    assert fleet.end() == [143, 143]
    step = records(metrics)[-1]["step"]
    saved = f"kernelgrad: error: SIGTERM: saved step {step} in {metrics}; run the same command to"
    assert [[line[: len(saved)] for line in lines] for lines in fleet.errors()] == 2 * [[saved]]
    assert max(int(path.name) for path in (metrics / "checkpoints").iterdir()) == step < 12

    fleet = Fleet(tmp_path, command)
    fleet.await_records(metrics / "metrics.jsonl", step // 2 + 1)
    fleet.signal(0, signal.SIGKILL)
    assert fleet.end() == [-signal.SIGKILL, cluster.LOST_CODE]
    assert fleet.errors()[1] == [LOST]

    assert Fleet(tmp_path, command).end() == [0, 0]
    assert (metrics / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_checkpoint_goes_on_over_other_devices_to_rounding(whole, alone, tmp_path, capsys):
    resumed = shutil.copytree(whole, tmp_path / "run")
    fit.run(Config(**SMALL | {"num_steps": 14}), workdir=str(resumed), num_devices=1)
    assert capsys.readouterr().err.splitlines()[0] == (
        f"kernelgrad: warning: {resumed}: step 12 is from '4 x cpu in 2 processes', and goes on "
        "with 1 x cpu in 1 process; from here it agrees with an uninterrupted run to rounding only"
    )
    assert_close(records(resumed), records(alone))


@pytest.mark.parametrize("slurm", [False, True])
def test_flags_that_differ_are_named_in_every_process(tmp_path, slurm):
    command = flags(tmp_path / "run", **SMALL)
    fleet = Fleet(tmp_path, command, also=[["--clip_norm=1"], ["--clip_norm=2"]], slurm=slurm)
    assert fleet.end() == [2, 2]
    assert fleet.errors() == [
        ["kernelgrad: error: flags: got others in process 1; expected the same in all processes"],
        ["kernelgrad: error: clip_norm: got 2.0 in process 1; expected 1.0, as in process 0"],
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(coordinator="a:1"), "num_processes: got nothing; expected --coordinator, --num_"),
        (Layout(num_processes=2, process_id=0), "coordinator: got nothing; expected --coordina"),
        (Layout("a", 2, 0), "coordinator: got 'a'; expected host:port, with a port in"),
        (Layout("a:0", 2, 0), "coordinator: got 'a:0'; expected host:port"),
        (Layout("a:70000", 2, 0), "coordinator: got 'a:70000'; expected host:port"),
        (
            Layout("a:1", 2, 2),
            r"process_id: got 2 of 2 process\(es\); expected an integer",
        ),
    ],
)
def test_flags_that_do_not_go_together(layout, message):
    with pytest.raises(UsageError, match=message):
        cluster.join(layout, debug=True)
    assert not jax.distributed.is_initialized()


def test_one_process_agrees_with_itself():
    cluster.join(Layout(), debug=False)
    assert cluster.of_first(lambda: "a state", None) == "a state"
    assert cluster.largest(15) == 15
    cluster.require_same({"seed": 1})
    assert cluster.devices() == jax.local_devices()
    assert cluster.own(cluster.devices()) == slice(0, len(jax.local_devices()))
    cluster.end_if_lost(ValueError("Gloo all-reduce failed"))
    cluster.leave(1)


def test_a_sum_over_processes_that_fails_means_a_loss(monkeypatch):
    ends = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(signals, "end", lambda words, code: ends.append((words, code)))
    cluster.end_if_lost(RuntimeError("INTERNAL: something else"))
    assert ends == []
    cluster.end_if_lost(RuntimeError("INTERNAL: Gloo all-reduce failed"))
    assert ends == [(LOST.removeprefix("kernelgrad: error: "), 75)]


@pytest.mark.thorough
def test_processes_that_do_not_meet_give_up(tmp_path):
    away = ["--coordinator=127.0.0.1:9"]
    fleet = Fleet(tmp_path, flags(tmp_path / "run", **SMALL), also=[[], away], patience=5)
    assert fleet.end() == [2, 2]
    for (line,) in fleet.errors():
        assert line.startswith("kernelgrad: error: coordinator: got 127.0.0.1:")
        assert "expected all processes to meet there in 5 s" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.thorough
def test_the_same_error_in_all_processes_has_its_own_code(tmp_path):
    settings = SMALL | {"batch_size": 22}
    fleet = Fleet(tmp_path, flags(tmp_path / "run", **settings))
    assert fleet.end() == [2, 2]
    (line,), (other,) = fleet.errors()
    assert line == other
    assert "batch_size: got 22 for 4 devices; expected a multiple, such as 20 or 24" in line
    settings = SMALL | {"learning_rate": 1e30}
    fleet = Fleet(tmp_path, flags(tmp_path / "run", **settings))
    assert fleet.end() == [3, 3]
    (line,), (other,) = fleet.errors()
    assert "the state is not finite. Last good checkpoint: none" in line
    assert other.endswith("the state is not finite. Last good checkpoint: that of process 0")


@pytest.mark.thorough
def test_what_stops_process_0_stops_the_other(tmp_path):
    (tmp_path / "file").write_text("no folder")
    fleet = Fleet(tmp_path, flags(tmp_path / "file" / "run", **SMALL))
    assert fleet.end() == [1, cluster.LOST_CODE]
    (line,), lost = fleet.errors()
    assert "expected a folder" in line
    assert lost == [LOST]


@pytest.mark.thorough
def test_four_devices_of_one_process_go_on_as_two_of_two_and_as_one_of_two(tmp_path):
    """Fed by the host besides: each process reads its own rows of the same batches."""
    settings = SMALL | {"resident_gib": 1e-6}
    for folder, num_steps in (("cut", 6), ("whole", 12)):
        command = flags(tmp_path / folder, **settings | {"num_steps": num_steps})
        assert Fleet(tmp_path, command, num_processes=1, num_devices=4).end() == [0]
    for also in ([], ["--num_devices=1"]):
        resumed = shutil.copytree(tmp_path / "cut", tmp_path / f"resumed{len(also)}")
        fleet = Fleet(tmp_path, flags(resumed, **settings), also=[also, also])
        assert fleet.end() == [0, 0]
        (line,), nothing = fleet.errors()
        assert f"step 6 is from '4 x cpu in 1 process', and goes on with {4 >> len(also)} x" in line
        assert nothing == []
        assert_close(records(resumed), records(tmp_path / "whole"))


def of(objective):
    """Two steps, under noise that falls; Adam would blow up what only rounding moves.

    Such is a bias of features or of an energy that objective and loss do not feel.
    """
    few = {"objective": objective, "num_steps": 2, "noise_variance": 0.1, "noise_steps": 4}
    rates = {"optimizer": "sgd", "learning_rate": 0.1, "critic_learning_rate": 0.1}
    return Config(**SMALL | few | rates)


def size_of_parameters(*_):
    """Stands in for an evaluation: all parameters enter into its figures."""

    def evaluate(step, state):
        leaves = jax.tree.leaves((state.params, state.critic))
        return {f"leaf{i}": float(np.linalg.norm(leaf)) for i, leaf in enumerate(leaves)}

    return evaluate


def one_objective():
    """A child: joins the other, and trains under the objective that its folder is called by."""
    fit._make_evaluate = size_of_parameters
    charts.learning_curves = lambda *_: b"a picture"

    def start(given):
        fit.run(of(pathlib.Path(given["workdir"]).name), workdir=given["workdir"])

    command.main(start, command.Place, Layout)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_makes_the_updates_of_one_device(tmp_path, monkeypatch, objective):
    together, alone = tmp_path / "fleet" / objective, tmp_path / "alone"
    fleet = Fleet(tmp_path, [f"--workdir={together}"], main=one_objective)
    assert fleet.end() == [0, 0]
    monkeypatch.setattr(fit, "_make_evaluate", size_of_parameters)
    monkeypatch.setattr(charts, "learning_curves", lambda *_: b"a picture")
    fit.run(of(objective), workdir=str(alone), num_devices=1)
    assert_close(records(together), records(alone))
