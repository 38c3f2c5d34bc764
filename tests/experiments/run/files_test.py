"""Links that are not followed, files that are whole, and content that is refused."""

import fcntl
import os
import pathlib
import shutil

import numpy as np
import pytest

from experiments.run import errors, files, workdirs
from tests.experiments.run.toy_run import Config, abstract, make_state, tree_of


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


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (pathlib.Path.touch, "a regular file"),
        (pathlib.Path.mkdir, "a folder"),
        (lambda path: path.symlink_to("nothing"), "a symbolic link"),
        (os.mkfifo, "a fifo"),
        (lambda path: None, None),
    ],
)
def test_what_a_path_is(tmp_path, make, kind):
    path = tmp_path / "here"
    make(path)
    assert files.kind(path) == kind
    assert files.kind(path / "below") is None
    if kind != "a regular file":
        with pytest.raises(OSError, match=r"No such file|got a (folder|symbolic link|fifo)"):
            files.read(path, 10)


def test_no_more_is_read_than_asked_for(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert files.read(path, 7) == b"content"
    with pytest.raises(OSError, match="got 7 bytes; expected at most 6"):
        files.read(path, 6)
    (tmp_path / "link").symlink_to(path)
    assert files.read(tmp_path / "link", 7, follow=True) == b"content"


def test_what_is_appended_is_at_the_end(tmp_path):
    for part in (b"one", b"two"):
        files.append(tmp_path / "file", part)
    assert (tmp_path / "file").read_bytes() == b"onetwo"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "Expecting property name"),
        (b"NaN", "NaN, which is not finite"),
        (b"[1e999]", "1e999, which is not finite"),
        (b"[" * 33 + b"]" * 33, "values too deep within one another"),
        (b"[" * 10**5, "values too deep within one another"),
        (b"[1, 2, 3]", "more than 3 values"),
    ],
)
def test_json_that_is_none_or_too_much_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        files.parse_json(content, 3 if content == b"[1, 2, 3]" else 100)


def test_json_comes_back():
    assert files.parse_json(b'{"a": [1, 2.5, null]}', 5) == {"a": [1, 2.5, None]}


def test_arrays_come_back_unless_large_or_objects(tmp_path):
    path = tmp_path / "arrays.npz"
    np.savez(path, a=np.arange(3), b=1.5)
    content = path.read_bytes()
    found = files.parse_arrays(content, 10**4)
    np.testing.assert_array_equal(found["a"], np.arange(3))
    assert found["b"] == 1.5
    with pytest.raises(ValueError, match="bytes unpacked, more than 100"):
        files.parse_arrays(content, 100)
    np.savez(path, a=np.array([None]))
    with pytest.raises(ValueError, match="no arrays: Object arrays cannot be loaded"):
        files.parse_arrays(path.read_bytes(), 10**4)


def test_what_a_killed_writer_has_left_is_removed_and_no_other(tmp_path):
    target, others = tmp_path / "set [1].npz", ["set [1].npz.tmp", "set 1.npz.7.tmp", "x.7.tmp"]
    for name in ("set [1].npz.7.tmp", "set [1].npz.99.tmp", *others):
        (tmp_path / name).write_bytes(b"half")
    at_work = tmp_path / "set [1].npz.8.tmp"
    with at_work.open("xb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as its writer does
        files.replace(target, b"whole", shared=True)
    assert {path.name for path in tmp_path.iterdir()} == {target.name, at_work.name, *others}
    assert target.read_bytes() == b"whole"
    (tmp_path / "set [1].npz.9.tmp").mkdir()  # no file of ours
    files.replace(target, b"anew", shared=True)
    assert not at_work.exists()
    assert target.read_bytes() == b"anew"


def test_writers_of_one_number_on_two_machines_keep_apart(tmp_path, monkeypatch):
    target = tmp_path / "set.npz"
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with files.replacing(target, shared=True) as file:
        file.write(b"the ")
        files.replace(target, b"the first", shared=True)
        assert target.read_bytes() == b"the first"
        file.write(b"last")
    assert target.read_bytes() == b"the last"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_removed_before_it_was_locked_is_begun_anew(tmp_path, monkeypatch):
    """As by another process that takes it for left; and none does between the end and the name."""
    target, lock, removed = tmp_path / "set.npz", fcntl.flock, []

    def late(descriptor, flags):
        if not removed and not flags & fcntl.LOCK_NB:
            (path,) = tmp_path.glob("set.npz.*.tmp")
            path.unlink()
            removed.append(path)
        lock(descriptor, flags)

    def replace(scratch, target, replace=os.replace):
        files.remove_left(tmp_path, "*")
        replace(scratch, target)

    monkeypatch.setattr(fcntl, "flock", late)
    monkeypatch.setattr(os, "replace", replace)
    files.replace(target, b"whole", shared=True)
    assert len(removed) == 1
    assert target.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [target]
