"""The folder of a run: its checkpoints, config and lock; kills, and disks that are full."""

import dataclasses
import os
import pathlib
import resource
import shutil
import signal
import sys
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.run import command, errors, fields, workdirs
from tests.experiments.run import toy_run
from tests.experiments.run.toy_run import Config, abstract, make_state, raw, tree_of

as_root = os.geteuid() == 0


def test_nothing_saved_restores_nothing(workdir):
    assert workdir.restore(abstract(make_state())) is None


def test_the_newest_three_checkpoints_stay(workdir):
    for step in (1, 2, 9, 10, 11):
        workdir.save(step, make_state(step))
    assert sorted(os.listdir(workdir.path / "checkpoints")) == ["10", "11", "9"]
    assert workdir.restore(abstract(make_state()))[0] == 11


def test_a_step_that_is_there_is_kept_and_an_older_one_is_refused(workdir):
    workdir.save(5, make_state(5))
    before = tree_of(workdir.path)
    workdir.save(5, make_state(5))
    assert tree_of(workdir.path) == before
    with pytest.raises(
        errors.StorageError, match=r"checkpoints/4: got a state older than checkpoint 5"
    ):
        workdir.save(4, make_state(4))
    assert tree_of(workdir.path) == before


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(workdir):
    workdir.save(5, make_state(5))
    (workdir.path / "checkpoints/5/SHA256SUMS").unlink()
    for _ in range(2):
        workdir.save(5, make_state(5))
    assert raw(workdir.restore(abstract(make_state()))[1]) == raw(make_state(5))
    assert sorted(os.listdir(workdir.path / "checkpoints")) == ["5", "5.damaged"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_a_state_that_is_not_finite_is_never_saved(workdir, bad, dtype):
    workdir.save(1, {"a": jnp.ones(3), "b": jnp.ones(3, dtype)})
    before = tree_of(workdir.path)
    with pytest.raises(
        errors.DivergenceError, match=r"step 2: leaf \['b'\].*Last good.*checkpoints/1"
    ):
        workdir.save(2, {"a": jnp.ones(3), "b": jnp.ones(3, dtype).at[1].set(bad)})
    assert tree_of(workdir.path) == before


def test_damage_everywhere_stops_the_run(workdir):
    for step in (1, 2):
        workdir.log(step, {"loss": step})
        workdir.save(step, make_state(step))
        (workdir.path / f"checkpoints/{step}/checkpoint.json").write_text("{}")
    before = tree_of(workdir.path)
    with pytest.raises(errors.StorageError, match="no checkpoint that verifies"):
        workdir.restore(abstract(make_state()))
    assert tree_of(workdir.path) == before


def test_a_run_whose_last_good_checkpoint_was_removed_does_not_restart(workdir, capsys):
    workdir.save(1, make_state(1))
    workdir.save(2, make_state(2))
    (workdir.path / "checkpoints/2/SHA256SUMS").unlink()
    assert workdir.restore(abstract(make_state()))[0] == 1
    shutil.rmtree(workdir.path / "checkpoints/1")
    with pytest.raises(errors.StorageError, match="no checkpoint that verifies"):
        workdir.restore(abstract(make_state()))


def test_things_that_only_look_like_checkpoints(workdir, capsys):
    checkpoints = workdir.path / "checkpoints"
    workdir.save(1, make_state(1))
    (checkpoints / "50").mkdir()
    (checkpoints / "60").write_text("a file")
    shutil.copytree(checkpoints / "1", checkpoints / "40")
    (checkpoints / "40/state/stray").write_text("a stray file")
    (checkpoints / "notes.txt").write_text("mine")
    assert workdir.restore(abstract(make_state()))[0] == 1
    warnings = capsys.readouterr().err.splitlines()
    assert [line.split(":")[2] for line in warnings] == [
        f" skipped checkpoint {step}" for step in (60, 50, 40)
    ]
    assert "checkpoints/40/state/stray: got SHA-256" in warnings[2]
    workdir.save(2, make_state(2))
    assert workdir.restore(abstract(make_state()))[0] == 2
    assert capsys.readouterr().err == ""


def test_a_checkpoint_by_another_name_or_of_another_run_is_not_restored(tmp_path, capsys):
    for name in ("one", "two"):
        with workdirs.Workdir(tmp_path / name, Config()) as workdir:
            workdir.save(1, make_state(1))
    checkpoints = tmp_path / "one/checkpoints"
    shutil.copytree(checkpoints / "1", checkpoints / "2")
    shutil.copytree(tmp_path / "two/checkpoints/1", checkpoints / "3")
    with workdirs.Workdir(tmp_path / "one", Config()) as workdir:
        assert workdir.restore(abstract(make_state()))[0] == 1
        warnings = capsys.readouterr().err.splitlines()
        assert [line.split(":")[2] for line in warnings] == [
            " skipped checkpoint 3", " skipped checkpoint 2"
        ]  # fmt: skip
        assert "checkpoint.json: got step 1 of run " in warnings[1]
        assert sorted(os.listdir(checkpoints)) == ["1", "2.damaged", "3.damaged"]


@pytest.mark.parametrize("name", ["²", "007", "\u0661", "1" * 200, "-1"])
def test_names_that_are_no_steps_are_left_alone(workdir, name):
    workdir.save(1, make_state(1))
    (workdir.path / "checkpoints" / name).mkdir()
    assert workdir.restore(abstract(make_state()))[0] == 1
    workdir.save(2, make_state(2))
    assert sorted(os.listdir(workdir.path / "checkpoints")) == sorted(["1", "2", name])


def test_a_metric_may_not_be_called_step(workdir):
    with pytest.raises(TypeError, match="step"):
        workdir.log(1, {"step": 2.0})


def test_a_new_folder_and_its_parents_are_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given, path in {"a/b": tmp_path / "a/b", "~/c": tmp_path / "home/c"}.items():
        with workdirs.Workdir(given, Config()) as workdir:
            workdir.save(1, make_state())
        assert workdir.path == path


def test_a_changed_config_is_refused_field_by_field(tmp_path):
    path = tmp_path / "run"
    with workdirs.Workdir(path, Config()):
        stored = (path / "config.json").read_bytes()
    changed = Config(learning_rate=0.2, num_steps=20, widths=(8, 9))
    with pytest.raises(errors.UsageError) as error:
        workdirs.Workdir(path, changed, free_fields=("num_steps",))
    assert "learning_rate was 0.1, now 0.2; widths was [8, 8], now [8, 9]." in str(error.value)
    assert "num_steps" not in str(error.value)
    assert (path / "config.json").read_bytes() == stored
    with workdirs.Workdir(path, Config(num_steps=20), free_fields=("num_steps",)):
        pass
    with workdirs.Workdir(path, changed, allow_config_change=True):
        pass
    with workdirs.Workdir(path, changed):
        pass


def test_a_field_that_went_is_a_change_and_one_that_came_had_its_default(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Other:
        learning_rate: float = 0.1
        ridge: float = 4.0

    with workdirs.Workdir(tmp_path / "run", Other()):
        pass
    with pytest.raises(errors.UsageError, match=r"another config: ridge was 4.0, now null\. Use"):
        workdirs.Workdir(tmp_path / "run", Config())
    with pytest.raises(errors.UsageError, match=r"num_steps was 10, now 20; ridge was 4.0"):
        workdirs.Workdir(tmp_path / "run", Config(num_steps=20))
    with workdirs.Workdir(tmp_path / "run", Config(), allow_config_change=True):
        pass


def test_a_field_that_came_may_say_what_there_was_before(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Newer(Config):
        normalize: bool | None = fields.switch(None, "Came later.", before=False)

    with workdirs.Workdir(tmp_path / "run", Config()):
        pass
    with pytest.raises(errors.UsageError, match="another config: normalize was false, now null"):
        workdirs.Workdir(tmp_path / "run", Newer())
    with workdirs.Workdir(tmp_path / "run", Newer(normalize=False)):
        pass


@pytest.mark.parametrize("content", ["", "{", "[1]", "3"])
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(errors.StorageError, match=r"config.json: got .*expected a JSON object"):
        workdirs.Workdir(tmp_path, Config())


def test_unusable_folders(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for bad in ("file", "file/below"):
        with pytest.raises(errors.StorageError, match=f"^workdir {tmp_path / bad}: "):
            workdirs.Workdir(tmp_path / bad, Config())
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").write_text("in the way")
    with pytest.raises(
        errors.StorageError, match=r"^workdir .*checkpoints: got a regular file; exp"
    ):
        workdirs.Workdir(tmp_path / "run", Config())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1_500_000))
    with pytest.raises(
        errors.StorageError, match=r"got 1.5 MB of free space; expected at least 17"
    ):
        workdirs.Workdir(tmp_path / "full", Config())


@pytest.mark.skipif(as_root, reason="root may write to read-only folders")
def test_a_read_only_folder(tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(errors.StorageError, match="Permission denied"):
        workdirs.Workdir(tmp_path / "run", Config())


def test_a_folder_in_use_is_refused_quickly_and_free_after_close(workdir):
    start = time.monotonic()
    with pytest.raises(errors.StorageError, match=f"in use by pid {os.getpid()} on "):
        workdirs.Workdir(workdir.path, Config())
    assert time.monotonic() - start < 5
    workdir.close()
    with workdirs.Workdir(workdir.path, Config()):
        pass


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    with workdirs.Workdir(tmp_path, Config()) as workdir:
        workdir.save(1, make_state(1))
    shutil.copytree(tmp_path / "checkpoints/1", tmp_path / "checkpoints/tmp-2")
    with workdirs.Workdir(tmp_path, Config()) as workdir:
        assert os.listdir(tmp_path / "checkpoints") == ["1"]
        assert workdir.restore(abstract(make_state()))[0] == 1


def _starter(sender: Any, path: str, start: float) -> None:
    def hold(_):
        time.sleep(max(0.0, start - time.time()))
        with workdirs.Workdir(path, Config()):
            sender.send(("won", os.getpid()))
            time.sleep(60)

    sys.argv = ["starter"]
    command.main(hold)


def test_of_two_starters_exactly_one_wins(fork, tmp_path):
    for race in range(4):
        start = time.time() + 0.5  # every race after the first finds the lock of a killed winner
        starters = [fork(_starter, str(tmp_path / "run"), start) for _ in range(2)]
        deadline = time.monotonic() + 15
        while all(s.process.is_alive() for s in starters) and time.monotonic() < deadline:
            time.sleep(0.01)
        winner, loser = sorted(starters, key=lambda s: s.process.exitcode is not None)
        assert loser.end() == 1, race
        assert winner.process.is_alive()
        assert winner.drain() == [("won", winner.process.pid)]
        assert loser.drain() == []
        assert f"in use by pid {winner.process.pid} on " in loser.stderr()
        assert loser.stderr().count("\n") == 1
        winner.process.kill()
        winner.end()


def _full_disk(sender: Any, path: str) -> None:
    state = {"noise": np.random.default_rng(0).random(2**18)}  # 2 MB that do not compress

    def run(_):
        with workdirs.Workdir(path, Config()) as workdir:
            workdir.save(1, {"noise": state["noise"][:1000]})
            resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
            workdir.save(2, state)

    sys.argv = ["full"]
    command.main(run)


def test_a_save_that_fails_is_one_line_and_leaves_the_last_good_checkpoint(fork, tmp_path):
    child = fork(_full_disk, str(tmp_path / "run"))
    assert child.end() == 1
    stderr = child.stderr()
    assert stderr.startswith(
        f"kernelgrad: error: {tmp_path / 'run/checkpoints/2'}: could not save 2.1 MB with "
    )
    assert stderr.count("\n") == 1
    assert "File too large" in stderr
    assert len(stderr.replace(str(tmp_path), "")) <= 300
    assert os.listdir(tmp_path / "run/checkpoints") == ["1"]
    with workdirs.Workdir(tmp_path / "run", Config()) as workdir:
        assert workdir.restore({"noise": np.zeros(1000)})[0] == 1


def test_a_changed_config_is_stored_once_a_state_fits_it(tmp_path):
    state = {"weights": np.ones(3)}
    with workdirs.Workdir(tmp_path, Config()) as workdir:
        workdir.save(1, state)
    stored = (tmp_path / "config.json").read_bytes()
    changed = Config(learning_rate=0.2)
    with workdirs.Workdir(tmp_path, changed, allow_config_change=True) as workdir:
        with pytest.raises(errors.UsageError, match="is of another model"):
            workdir.restore({"weights": np.ones(4)})
        assert (tmp_path / "config.json").read_bytes() == stored
    with workdirs.Workdir(tmp_path, Config()) as workdir:
        assert workdir.restore(state)[0] == 1
    with workdirs.Workdir(tmp_path, changed, allow_config_change=True) as workdir:
        assert workdir.restore(state)[0] == 1
    assert b'"learning_rate": 0.2' in (tmp_path / "config.json").read_bytes()


def _survive(fork: Any, path: pathlib.Path, rng: np.random.Generator, kills: int) -> None:
    num_steps, announced, left_halves = 8 * kills, 0, 0
    for kill in range(kills):
        in_save = kill % 2 == 0
        child = fork(toy_run.binary, str(path), num_steps, 0.002, in_save)
        step, exact = child.wait_for("restored")
        assert exact
        assert step >= announced
        for _ in range(rng.integers(1, 45 if in_save else 8)):
            child.wait_for("mark" if in_save else "logged")
        time.sleep(rng.uniform(0, 0.02))
        child.process.kill()
        assert child.end() == -signal.SIGKILL
        announced = max([announced, *(at for kind, at in child.drain() if kind == "announced")])
        left_halves += any((path / "checkpoints").glob("tmp-*"))
    child = fork(toy_run.binary, str(path), num_steps)
    step, exact = child.wait_for("restored")
    assert exact
    assert announced <= step < num_steps
    assert child.end() == 0
    assert (path / "metrics.jsonl").read_text() == toy_run.expected_metrics(num_steps)
    assert left_halves >= kills // 4


@pytest.mark.thorough
def test_six_kills_change_nothing(fork, tmp_path, rng):
    _survive(fork, tmp_path / "run", rng, kills=6)


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(5))
def test_twenty_kills_change_nothing(fork, tmp_path, rng, batch):
    _survive(fork, tmp_path / "run", rng, kills=20)
