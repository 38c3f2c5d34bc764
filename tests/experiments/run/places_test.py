"""Folders that a user names, and the one that Matplotlib gets."""

import os
import pathlib
import subprocess
import sys

import pytest

from experiments.run import places
from experiments.run.errors import StorageError, UsageError


def test_every_way_to_name_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for text in (str(tmp_path / "run"), "~/run", "run", "./run", tmp_path / "run"):
        assert places.folder("workdir", text) == tmp_path / "run"
        assert places.workdir(text) == tmp_path / "run"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", " ", "\t", "a\0b", "~nosuchuser/x", "x" * 256, "ä" * 128, "x/" * 2500]
)
def test_what_is_no_folder_is_one_short_line(text):
    for name in (places.workdir, lambda text: places.folder("data_dir", text)):
        with pytest.raises(UsageError, match=r"^(workdir|data_dir): got .*; expected ") as error:
            name(text)
        assert len(str(error.value)) < 200


def test_a_place_that_cannot_hold_a_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in ("file", "file/run", "file/a/b"):
        with pytest.raises(StorageError, match=f"^workdir {tmp_path}/{path}: got .*; expected a f"):
            places.workdir(tmp_path / path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StorageError, match=f"got {tmp_path}, which cannot be written"):
        places.workdir(tmp_path / "run")


def test_the_cache_is_never_relative(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for text, expected in (
        ("", ".cache/kernelgrad"),
        ("~", ""),
        ("~/k", "k"),
        (f"{tmp_path}/k", "k"),
    ):
        monkeypatch.setenv("KERNELGRAD_CACHE", text)
        assert places.cache() == tmp_path / expected
    for text in (".", "k", "./k", "..", " ", "~nosuchuser", "$HOME/k"):
        monkeypatch.setenv("KERNELGRAD_CACHE", text)
        with pytest.raises(UsageError, match=r"^KERNELGRAD_CACHE: got .*; expected "):
            places.cache()
    monkeypatch.delenv("KERNELGRAD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert places.cache() == tmp_path / ".cache" / "kernelgrad"


@pytest.mark.parametrize("name", ["HOME", "MPLCONFIGDIR"])
def test_matplotlib_needs_no_home(name):
    """A user who cannot use its home still gets pictures, without a word on stderr."""
    others = ("HOME", "MPLCONFIGDIR", "XDG_CONFIG_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in others}
    environment |= {name: "/dev/null/x", "PYTHONPATH": os.getcwd()}
    command = "import experiments, matplotlib as m; print(m.get_configdir(), m.rcParams['backend'])"
    found = subprocess.run(
        [sys.executable, "-c", command], env=environment, capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (0, "")
    folder = pathlib.Path(found.stdout.split()[0])
    assert folder.name.startswith("matplotlib-")
    assert not folder.exists()  # gone with the process
