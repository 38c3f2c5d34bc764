"""Runs survive kills, signals, damage and bad input, and say so in one line.

Processes that are killed are forks of a server that has imported `experiments.run.workdirs`
already, so that a life costs a fraction of a second. KERNELGRAD_SLOW_TESTS=1 turns on the long kill
tests.
"""

import dataclasses
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from experiments.run import command, errors, signals, workdirs

slow = pytest.mark.skipif(
    os.environ.get("KERNELGRAD_SLOW_TESTS") != "1", reason="set KERNELGRAD_SLOW_TESTS=1"
)
as_root = os.geteuid() == 0


@dataclasses.dataclass(frozen=True)
class Config:
    """The config of a toy run."""

    learning_rate: float = 0.1
    num_steps: int = 10
    widths: tuple[int, ...] = (8, 8)


class TrainState(NamedTuple):
    """One leaf of every kind that a run may keep."""

    params: dict[str, Any]
    optimizer: Any
    key: jax.Array
    step: np.ndarray


def make_state(value: float = 1.0, width: int = 3, dtype: Any = jnp.float32) -> TrainState:
    """Returns a state with Adam's moments, a typed key, and unusual dtypes."""
    params = {"dense": {"kernel": jnp.full((2, width), value, dtype), "bias": jnp.zeros(width)}}
    params["half"] = jnp.arange(5, dtype=jnp.bfloat16) * value
    params["mask"] = jnp.array([True, False])
    params["fortran"] = np.asfortranarray(np.arange(6.0).reshape(2, 3) + value)
    optimizer = optax.adam(1e-3).init(params["dense"])
    return TrainState(params, optimizer, jax.random.key(7), np.asarray(int(value)))


def raw(tree: Any) -> list[tuple[str, bytes]]:
    """Returns dtype and bytes of each leaf."""
    leaves = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(tree)
    ]
    return [(str(leaf.dtype), np.asarray(leaf).tobytes()) for leaf in leaves]


def abstract(tree: Any) -> Any:
    """Returns the shapes and dtypes, numpy arrays kept as they are."""
    return jax.tree.map(
        lambda x: x if isinstance(x, np.ndarray) else jax.ShapeDtypeStruct(x.shape, x.dtype), tree
    )


def tree_of(folder: pathlib.Path) -> dict[str, bytes]:
    """Returns the contents of all files below a folder, but for the lock."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture
def workdir(tmp_path):
    """An open work folder."""
    with workdirs.Workdir(tmp_path / "run", Config()) as opened:
        yield opened


# ---------------------------------------------------------------------- checkpoints


def test_a_state_comes_back_bit_for_bit(workdir):
    state = make_state(1.5)
    workdir.save(4, state)
    step, restored = workdir.restore(abstract(state))
    assert step == 4
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert raw(restored) == raw(state)
    kinds = [type(leaf) for leaf in jax.tree.leaves(state)]
    assert [type(leaf) for leaf in jax.tree.leaves(restored)] == kinds
    draws = [jax.random.normal(s.key, (3,)) for s in (state, restored)]
    np.testing.assert_array_equal(*draws)


def test_a_lone_array_and_a_key_of_another_kind_come_back(tmp_path):
    for name, state in {
        "lone": jnp.arange(3),
        "key": jax.random.split(jax.random.key(1, impl="rbg")),
    }.items():
        with workdirs.Workdir(tmp_path / name, Config()) as workdir:
            workdir.save(1, state)
            _, restored = workdir.restore(abstract(state))
        assert restored.dtype == state.dtype
        assert raw(restored) == raw(state)


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


def test_a_checkpoint_is_announced_only_when_it_reads_back_equal(workdir, monkeypatch):
    save = ocp.Checkpointer.save

    def save_wrong(self, path, args):
        save(self, path, args=ocp.args.StandardSave({name: x * 0 for name, x in args.item.items()}))

    workdir.save(1, make_state(1))
    monkeypatch.setattr(ocp.Checkpointer, "save", save_wrong)
    with pytest.raises(errors.StorageError, match="was read back with another value"):
        workdir.save(2, make_state(2))
    assert os.listdir(workdir.path / "checkpoints") == ["1"]


def test_sha256sum_reads_the_manifest(workdir):
    workdir.save(1, make_state())
    check = [shutil.which("sha256sum") or pytest.skip("no sha256sum here"), "-c", "SHA256SUMS"]
    subprocess.run(check, cwd=workdir.path / "checkpoints/1", check=True, capture_output=True)


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


def _without_bias(state: TrainState) -> TrainState:
    return state._replace(
        params={**state.params, "dense": {"kernel": state.params["dense"]["kernel"]}}
    )


MISMATCHES = {
    "shape": (lambda: make_state(width=4), r"'bias'\]: got float32\[3\]; expected float32\[4\]"),
    "dtype": (
        lambda: make_state(dtype=jnp.bfloat16),
        r"'kernel'\]: got float32\[2,3\]; expected bfloat16\[2,3\]",
    ),
    "absent": (
        lambda: _without_bias(make_state()),
        r"'bias'\]: got float32\[3\]; expected no such leaf",
    ),
    "key": (
        lambda: make_state()._replace(key=jax.random.key(0, impl="rbg")),
        r"leaf .key: got key<fry>\[\]; expected key<rbg>\[\]",
    ),
    "extra": (
        lambda: make_state()._replace(optimizer=optax.sgd(0.1, 0.9).init(jnp.zeros(3))),
        r"trace: got no such leaf; expected float32\[3\]",
    ),
}


@pytest.mark.parametrize("kind", MISMATCHES)
def test_a_checkpoint_of_another_model_is_refused(workdir, kind):
    make_other, message = MISMATCHES[kind]
    other = make_other()
    workdir.log(1, {"loss": 1.0})
    workdir.save(1, make_state())
    workdir.log(2, {"loss": 1.0})
    before = tree_of(workdir.path)
    with pytest.raises(errors.UsageError, match=message):
        workdir.restore(abstract(other))
    assert tree_of(workdir.path) == before


# ---------------------------------------------------------------------- damage


def _flip(content: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
    return bytes(damaged)


DAMAGES = {
    "flip": _flip,
    "flip again": _flip,
    "cut": lambda content, _: content[: len(content) // 2],
    "cut the last byte": lambda content, _: content[:-1],
    "flip a separator": lambda content, _: (
        content[:64] + (b"?" if content[64:65] == b"!" else b"!") + content[65:]
    ),
    "zero": lambda content, _: bytes(len(content)),
    "delete": lambda content, _: None,
}


@pytest.mark.thorough(quick=3)
@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damage_to_every_file_falls_back_with_a_warning(tmp_path, rng, capsys, kind):
    original = tmp_path / "original"
    with workdirs.Workdir(original, Config()) as workdir:
        for step in (1, 2):
            workdir.log(step, {"loss": step})
            workdir.save(step, make_state(step))
    newest = original / "checkpoints/2"
    files = [file.relative_to(original) for file in newest.rglob("*") if file.is_file()]
    assert len(files) >= 8
    for number, file in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(original, copy)
        damaged = DAMAGES[kind]((copy / file).read_bytes(), rng)
        if damaged is None:
            (copy / file).unlink()
        else:
            (copy / file).write_bytes(damaged)
        with workdirs.Workdir(copy, Config()) as workdir:
            step, state = workdir.restore(abstract(make_state()))
            assert (step, raw(state)) == (1, raw(make_state(1))), file
            assert [record["step"] for record in workdir.history()] == [1]
            warning = capsys.readouterr().err
            assert warning.startswith("kernelgrad: warning: skipped checkpoint 2: "), file
            assert warning.count("\n") == 1
            assert str(file) in warning or file.name == "SHA256SUMS"
            workdir.save(2, make_state(2))
            assert workdir.restore(abstract(make_state()))[0] == 2
            assert capsys.readouterr().err == ""
        shutil.rmtree(copy)


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


def test_other_metrics_than_the_checkpoint_was_saved_with_stop_the_run(workdir):
    for step in (1, 2):
        workdir.log(step, {"loss": 1.0})
    workdir.save(2, make_state(2))
    metrics = workdir.path / "metrics.jsonl"
    whole = metrics.read_bytes()
    for damaged in (b"", whole[:-1], whole.replace(b"1.0", b"7.0", 1), None):
        metrics.unlink() if damaged is None else metrics.write_bytes(damaged)
        with pytest.raises(errors.StorageError, match=r"metrics.jsonl: got other records than che"):
            workdir.restore(abstract(make_state()))
        assert workdir.restore(abstract(make_state()), cut_metrics=False)[0] == 2
    metrics.write_bytes(whole + b"anything")
    assert workdir.restore(abstract(make_state()))[0] == 2
    assert metrics.read_bytes() == whole


# ---------------------------------------------------------------------- links


def _use(path: pathlib.Path) -> None:
    """Does all that a run does in its folder."""
    with workdirs.Workdir(path, Config()) as workdir:
        workdir.restore(abstract(make_state()))
        workdir.log(9, {"loss": 1.0})
        for name in ("curves.png", "samples/0009.png"):
            workdir.write_bytes(name, b"picture")
        assert workdir.below("kl/seed0") == path / "kl/seed0"
        workdir.save(9, make_state(9))


FILES = ("lock", "config.json", "run_id", "metrics.jsonl", "curves.png", "samples/0009.png")
FOLDERS = ("checkpoints", "samples", "kl", "kl/seed0")


@pytest.mark.parametrize("is_used", [False, True])
@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_a_link_where_a_run_keeps_its_own_is_refused_by_name(tmp_path, name, is_used):
    run, outside = tmp_path / "run", tmp_path / "outside"
    if is_used:
        _use(run)
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    if name in FOLDERS:
        shutil.rmtree(run / name, ignore_errors=True)
        (outside / "tmp-9").mkdir(parents=True)
        (outside / "tmp-9/mine").write_text("{}")
    else:
        (run / name).unlink(missing_ok=True)
        outside.write_text("{}")
    (run / name).symlink_to(outside)
    before = tree_of(tmp_path / "outside") or outside.read_bytes()
    with pytest.raises(errors.StorageError, match=f"{run / name}: got a symbolic link; expected"):
        _use(run)
    assert (tree_of(tmp_path / "outside") or outside.read_bytes()) == before


@pytest.mark.parametrize("name", FILES)
def test_a_hard_link_is_not_written_through(tmp_path, name):
    run, outside = tmp_path / "run", tmp_path / "outside"
    _use(run)
    shutil.copy(run / name, outside)
    (run / name).unlink()
    os.link(outside, run / name)
    before = outside.read_bytes()
    if name == "lock":
        with pytest.raises(errors.StorageError, match=r"lock: got a file with two names"):
            _use(run)
    else:
        _use(run)
    assert outside.read_bytes() == before


@pytest.mark.parametrize("name", FILES[1:])
def test_temporary_files_follow_no_link(tmp_path, name):
    run, outside = tmp_path / "run", tmp_path / "outside"
    outside.write_text("mine")
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / f"{name}.tmp").symlink_to(outside)
    (run / "checkpoints").mkdir()
    (run / "checkpoints/tmp-3").symlink_to(tmp_path)
    _use(run)
    _use(run)
    assert outside.read_text() == "mine"
    assert not (run / f"{name}.tmp").is_symlink() or name == "metrics.jsonl"
    assert not (run / "checkpoints/tmp-3").is_symlink()


# ---------------------------------------------------------------------- metrics and files


def test_metrics_are_cut_to_the_restored_step(tmp_path, capsys):
    with workdirs.Workdir(tmp_path / "run", Config()) as workdir:
        for step in range(1, 6):
            workdir.log(step, {"loss": np.float32(1 / step), "accuracy": jnp.asarray(0.5)})
            if step == 3:
                kept = (workdir.path / "metrics.jsonl").read_bytes()
                workdir.save(3, make_state(3))
    with open(workdir.path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 6, "lo')
    with workdirs.Workdir(tmp_path / "run", Config()) as workdir:
        assert [record["step"] for record in workdir.history()] == [1, 2, 3, 4, 5]
        workdir.restore(abstract(make_state()))
        assert (workdir.path / "metrics.jsonl").read_bytes() == kept
        assert workdir.history()[2] == {
            "step": 3,
            "loss": float(np.float32(1 / 3)),
            "accuracy": 0.5,
        }
        shutil.rmtree(workdir.path / "checkpoints/3")
        assert capsys.readouterr().err == ""
        assert workdir.restore(abstract(make_state())) is None
        assert workdir.history() == []
        assert "no checkpoint yet, so its metrics start anew" in capsys.readouterr().err


def test_a_metric_that_is_not_finite_stays_json(workdir):
    workdir.log(1, {"a": np.nan, "b": np.inf, "c": 2.0})
    assert (workdir.path / "metrics.jsonl").read_text() == (
        '{"step": 1, "a": null, "b": null, "c": 2.0}\n'
    )
    record = workdir.history()[0]
    assert np.isnan(record["a"])
    assert record["c"] == 2.0


def test_a_metric_may_not_be_called_step(workdir):
    with pytest.raises(TypeError, match="step"):
        workdir.log(1, {"step": 2.0})


@pytest.mark.parametrize("line", [b"\x00\x00", b"{]", b"3", b'{"loss": 1.0}', b'{"step": "x"}'])
def test_a_damaged_line_of_metrics_is_named(workdir, line):
    workdir.log(1, {"loss": 1.0})
    with open(workdir.path / "metrics.jsonl", "ab") as file:
        file.write(line + b"\n")
    workdir.log(2, {"loss": 1.0})
    before = tree_of(workdir.path)
    with pytest.raises(errors.StorageError, match=r"metrics.jsonl:2: got b"):
        workdir.history()
    with pytest.raises(errors.StorageError, match=r"metrics.jsonl:2: got b"):
        workdir.restore(abstract(make_state()))
    assert tree_of(workdir.path) == before


def test_files_are_replaced_in_one_piece(workdir, monkeypatch):
    path = workdir.write_bytes("samples/1.png", b"old")
    assert path == workdir.samples / "1.png"

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(errors.StorageError, match=r"samples/1.png: No space left on device"):
            workdir.write_bytes("samples/1.png", b"new")
        with pytest.raises(errors.StorageError, match=r"metrics.jsonl: No space left on device"):
            workdir.log(1, {})
    assert path.read_bytes() == b"old"
    workdir.write_bytes("samples/1.png", b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(workdir.samples) == ["1.png"]


# ---------------------------------------------------------------------- folder, config, lock


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


# ---------------------------------------------------------------------- processes

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["experiments.run.workdirs", "optax", "pytest"])


def _begin(target: Any, folder: pathlib.Path, arguments: tuple[Any, ...]) -> None:
    """Runs in the child: sends stderr to a file, then does the work."""
    descriptor = os.open(folder / f"stderr-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell's & ignores it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    target(*arguments)


@dataclasses.dataclass
class Child:
    """A process with its stderr and the messages that it sends."""

    process: Any
    messages: Any
    folder: pathlib.Path

    def wait_for(self, kind: str) -> Any:
        """Returns the value of the next message of a kind."""
        while self.messages.poll(30):
            got, value = self.messages.recv()
            if got == kind:
                return value
        raise TimeoutError(f"no message {kind!r}: {self.stderr()}")

    def drain(self) -> list[tuple[str, Any]]:
        """Returns all messages left by a process that has ended."""
        messages = []
        try:
            while self.messages.poll():
                messages.append(self.messages.recv())
        except EOFError:
            pass
        return messages

    def end(self, timeout: float = 30) -> int:
        """Waits for the exit code."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running: {self.stderr()}"
        return self.process.exitcode

    def stderr(self) -> str:
        """Returns what the process has written to stderr."""
        return (self.folder / f"stderr-{self.process.pid}").read_text()


@pytest.fixture
def fork(tmp_path):
    """Starts children: fork(function, arguments...)(messages) and kills those that are left."""
    children = []

    def start(target, *arguments):
        receiver, sender = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=_begin, args=(target, tmp_path, (sender, *arguments)))
        process.start()
        sender.close()
        children.append(Child(process, receiver, tmp_path))
        return children[-1]

    yield start
    for child in children:
        child.process.kill()
        child.process.join()
        child.messages.close()


def _words(step: int) -> np.ndarray:
    """Returns the state of the toy run after a number of steps, in closed form per entry."""
    words = np.arange(2**18, dtype=np.uint32)
    for _ in range(step):
        words = words * np.uint32(1664525) + np.uint32(1013904223)
    return words


def _toy_state(step: int, words: np.ndarray) -> dict[str, Any]:
    return {
        "words": jnp.asarray(words),
        "unit": jnp.asarray((words[:5] / 2.0**32).astype(np.float32)),
        "key": jax.random.key(step),
    }


def _toy_loop(send: Any, path: str, num_steps: int, pause: float) -> None:
    """A training loop: restore, then per step advance, log, and save every third step."""
    with workdirs.Workdir(path, Config()) as workdir, signals.Signals() as heard:
        found = workdir.restore(abstract(_toy_state(0, _words(0))))
        step, state = (0, _toy_state(0, _words(0))) if found is None else found
        send(("restored", (step, raw(state) == raw(_toy_state(step, _words(step))))))
        while step < num_steps:
            step += 1
            words = np.asarray(state["words"]) * np.uint32(1664525) + np.uint32(1013904223)
            state = _toy_state(step, words)
            time.sleep(pause)
            workdir.log(
                step, {"checksum": float(words.sum(dtype=np.uint32)), "unit": state["unit"][3]}
            )
            send(("logged", step))
            stop = heard.stop
            if step % 3 == 0 or step == num_steps or stop:
                workdir.save(step, state)
                send(("announced", step))
            if stop:
                raise signals.terminated(stop, f"saved step {step}")
        send(("finished", step))


def _toy(
    sender: Any, path: str, num_steps: int = 10, pause: float = 0.0, marks: bool = False
) -> None:
    """The toy as a binary; with marks, it reports and rests at every stage of a save."""
    if marks:
        _mark_saves(sender)
    sys.argv = ["toy"]
    command.main(lambda _: _toy_loop(sender.send, path, num_steps, pause))


def _mark_saves(sender: Any) -> None:
    saving = False

    def marked(function):
        def call(*arguments, **options):
            if saving:
                sender.send(("mark", function.__name__))
                time.sleep(0.02)
            return function(*arguments, **options)

        return call

    def save(self, step, state, whole=workdirs.Workdir.save):
        nonlocal saving
        saving = True
        try:
            whole(self, step, state)
        finally:
            saving = False

    workdirs.Workdir.save = save
    os.rename, os.replace, os.fsync = marked(os.rename), marked(os.replace), marked(os.fsync)
    shutil.rmtree = marked(shutil.rmtree)
    ocp.Checkpointer.save = marked(ocp.Checkpointer.save)
    ocp.Checkpointer.restore = marked(ocp.Checkpointer.restore)


def _expected_metrics(num_steps: int) -> str:
    lines = []
    for step in range(1, num_steps + 1):
        words = _words(step)
        checksum, unit = (
            float(int(words.astype(np.uint64).sum()) % 2**32),
            np.float32(words[3] / 2.0**32),
        )
        lines.append(f'{{"step": {step}, "checksum": {checksum}, "unit": {float(unit)}}}\n')
    return "".join(lines)


def _survive(fork: Any, path: pathlib.Path, rng: np.random.Generator, kills: int) -> None:
    num_steps, announced, left_halves = 8 * kills, 0, 0
    for kill in range(kills):
        in_save = kill % 2 == 0
        child = fork(_toy, str(path), num_steps, 0.002, in_save)
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
    child = fork(_toy, str(path), num_steps)
    step, exact = child.wait_for("restored")
    assert exact
    assert announced <= step < num_steps
    assert child.end() == 0
    assert (path / "metrics.jsonl").read_text() == _expected_metrics(num_steps)
    assert left_halves >= kills // 4


def test_six_kills_change_nothing(fork, tmp_path, rng):
    _survive(fork, tmp_path / "run", rng, kills=6)


@slow
@pytest.mark.parametrize("batch", range(5))
def test_twenty_kills_change_nothing(fork, tmp_path, rng, batch):
    _survive(fork, tmp_path / "run", rng, kills=20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_exits_by_its_number(fork, tmp_path, number):
    child = fork(_toy, str(tmp_path / "run"), 1000, 0.05)
    child.wait_for("announced")
    os.kill(child.process.pid, number)
    assert child.end() == 128 + number
    step = [value for kind, value in child.drain() if kind == "announced"][-1]
    assert child.stderr() == (
        f"kernelgrad: error: {number.name}: saved step {step}; run the same command to resume\n"
    )
    assert fork(_toy, str(tmp_path / "run"), step).wait_for("restored") == (step, True)
    assert (tmp_path / "run/metrics.jsonl").read_text() == _expected_metrics(step)


def test_sigterm_during_a_save_is_obeyed_after_it(fork, tmp_path):
    child = fork(_toy, str(tmp_path / "run"), 1000, 0.0, True)
    child.wait_for("mark")
    child.process.terminate()
    assert child.end() == 143
    assert {value for kind, value in child.drain() if kind == "announced"} <= {3, 4}


def test_a_second_sigterm_exits_at_once(fork, tmp_path):
    child = fork(_toy, str(tmp_path / "run"), 1000, 60.0)
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


def _print_much(_: Any, line_buffering: bool) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    sys.stdout.reconfigure(line_buffering=line_buffering)
    sys.argv = ["print"]
    command.main(lambda _: print("table"))


@pytest.mark.parametrize("line_buffering", [False, True])
def test_a_full_disk_behind_stdout_is_one_line(fork, line_buffering):
    child = fork(_print_much, line_buffering)
    assert child.end() == 1
    assert child.stderr().startswith("kernelgrad: error: ")
    assert child.stderr().count("\n") == 1
    assert child.stderr().endswith("No space left on device\n")


def test_a_hangup_that_was_ignored_at_the_start_stays_ignored(fork):
    child = fork(_rest, True)
    child.wait_for("resting")
    os.kill(child.process.pid, signal.SIGHUP)
    time.sleep(0.2)
    assert child.process.is_alive()
    child.process.terminate()
    assert child.end(timeout=10) == 143


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
