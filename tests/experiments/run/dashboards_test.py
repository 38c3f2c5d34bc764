"""Dashboards get what is logged, and what is missing is said before anything else."""

import dataclasses
import importlib.util
import sys
import types

import pytest

from experiments.run import dashboards
from experiments.run.errors import UsageError
from experiments.training import fit
from experiments.training.settings import Config
from tests.experiments.run import toy_run


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_package_that_is_not_there_is_named_with_its_extra(tmp_path, monkeypatch, name, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as error:
        fit.run(Config(), workdir=str(tmp_path / "run"), log=(name,))
    assert str(error.value) == (
        f"log: got {name} without the package {package}; expected it installed: "
        f"pip install '.[experiments,{name}]'"
    )
    assert not (tmp_path / "run").exists()


class _Seen:
    """What stands for a writer of either package."""

    def __init__(self, *args, **options):
        self.opened, self.records, self.is_open = (args, options), [], True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.is_open = False

    def add_scalar(self, name, value, step):
        self.records.append((step, name, value))

    def flush(self):
        pass

    def log(self, metrics, step):
        self.records += [(step, name, value) for name, value in metrics.items()]


@pytest.mark.parametrize("name", dashboards.NAMES)
def test_a_dashboard_gets_every_record_while_it_is_open(workdir, monkeypatch, name):
    writers = []

    def open_one(*args, **options):
        writers.append(_Seen(*args, **options))
        return writers[-1]

    for package, maker in (("tensorboardX", "SummaryWriter"), ("wandb", "init")):
        monkeypatch.setitem(sys.modules, package, types.SimpleNamespace(**{maker: open_one}))
    workdir.log(1, {"mmd": 0.1})
    with dashboards.shown((name,), workdir, toy_run.Config(), 7):
        workdir.log(8, {"mmd": 0.2, "test_mmd": 0.3})
        assert writers[0].is_open
    workdir.log(9, {"mmd": 0.4})
    (seen,) = writers
    assert seen.records == [(8, "mmd", 0.2), (8, "test_mmd", 0.3)]
    assert not seen.is_open
    assert [record["step"] for record in workdir.history()] == [1, 8, 9]
    args, options = seen.opened
    if name == "tensorboard":
        assert (args, options) == ((str(workdir.path / "tensorboard"),), {"purge_step": 8})
    else:
        assert options["id"] == (workdir.path / "run_id").read_text().strip()
        assert options["config"] == dataclasses.asdict(toy_run.Config())


def test_the_process_that_keeps_no_folder_shows_nothing(workdir):
    other = types.SimpleNamespace(is_mine=False)
    with dashboards.shown(dashboards.NAMES, other, toy_run.Config(), 0):
        assert not hasattr(other, "watches")


def test_tensorboard_reads_back_what_was_shown(workdir):
    pytest.importorskip("tensorboardX")
    with dashboards.shown(("tensorboard",), workdir, toy_run.Config(), 0):
        workdir.log(5, {"mmd": 0.25})
    (events,) = (workdir.path / "tensorboard").iterdir()
    assert b"mmd" in events.read_bytes()
