"""The runs of a page at three scales, one after the other, each once."""

import sys

import pytest

from experiments.papers import runs
from experiments.papers.runs import Run
from experiments.reproduce import Config
from experiments.run.errors import StorageError
from experiments.run.workdirs import Workdir
from experiments.sweeps import children
from experiments.sweeps.children import Ended

TRAIN = Run(
    "train --dataset=mnist --data_dir=data --seed=1 --workdir=runs/gan",
    1,
    smoke="--dataset=digits --width=4",
    full="train --preset=paper003 --data_dir=data --workdir=runs/gan",
    needs=("mnist",),
)
SCORE = Run("classification_score --runs=a=runs/gan,b=runs/gan --workdir=runs/scores", 1)


def test_a_scale_has_its_flags():
    (smoke,) = runs.steps([TRAIN, SCORE], "smoke")
    assert smoke.command == "train --dataset=digits --seed=1 --workdir=runs/gan --width=4"
    cpu, full = (runs.steps([TRAIN, SCORE], scale) for scale in ("cpu", "full"))
    assert [step.command for step in cpu] == [TRAIN.command, SCORE.command]
    assert [step.command for step in full] == [TRAIN.full, SCORE.command]
    assert [step.folder for step in cpu] == ["gan", "scores"]
    assert [step.needs for step in (smoke, *cpu)] == [(), ("mnist",), ()]


def test_folders_are_those_that_are_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, score = runs.steps([TRAIN, SCORE], "cpu")
    folder = f"--workdir={tmp_path}/w/gan"
    given = ["--dataset=mnist", f"--data_dir={tmp_path}/d", "--seed=1", folder]
    assert sorted(train.arguments(tmp_path / "w", "d")) == sorted(given)
    assert train.arguments(tmp_path / "w", None) == ["--dataset=mnist", "--seed=1", folder]
    named = f"--runs=a={tmp_path}/w/gan,b={tmp_path}/w/gan"
    assert score.arguments(tmp_path / "w", "d")[0] == named


class Told(list):
    """Binaries, and the exit codes that some of them are to have."""

    def __init__(self):
        super().__init__()
        self.codes = {}


@pytest.fixture
def told(monkeypatch):
    """Stands in for the processes; a run of a binary in `told.codes` ends with that code."""

    told = Told()

    def run(binary, arguments, look, *, log, environment):
        log.write(b"a line")
        log.close()
        told.append(binary)
        assert environment["JAX_COMPILATION_CACHE_DIR"]
        return Ended(told.codes.get(binary, 0), "the last line")

    monkeypatch.setattr(children, "run", run)
    return told


def test_what_has_finished_is_not_repeated(tmp_path, told):
    steps = runs.steps([TRAIN, SCORE], "cpu")
    with Workdir(tmp_path, Config()) as folder:
        told.codes = {"classification_score": 3}
        failed = runs.perform(folder, steps, None, lambda: None)
        assert failed == {SCORE.command: "exit code 3: the last line"}
        assert runs.finished(folder, steps) == steps[:1]
        told.codes = {}
        assert runs.perform(folder, steps, None, lambda: None) == {}
        assert runs.perform(folder, steps, None, lambda: None) == {}
        assert runs.finished(folder, steps) == steps
    assert told == ["train", "classification_score", "classification_score"]
    assert (tmp_path / "logs" / "01_train.txt").read_text() == "a line"


@pytest.mark.parametrize("content", ["{}", "[", "[1"])
def test_a_damaged_list_of_runs_is_named(tmp_path, content):
    with Workdir(tmp_path, Config()) as folder:
        (tmp_path / "finished.json").write_text(content)
        with pytest.raises(StorageError, match=r"finished\.json: got .*expected a list\. Remove"):
            runs.finished(folder, runs.steps([TRAIN], "cpu"))


def test_a_process_says_how_it_ended(tmp_path, monkeypatch):
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\nshift 2\necho "$@"; sleep 0.05; echo "$VALUE" >&2; exit 3\n')
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(children, "_PAUSE", 0.01)
    looks = []
    with open(tmp_path / "log", "w+b") as log:
        environment = {"VALUE": "a\rb"}
        ended = children.run(
            "toy", ["--x=1"], lambda: looks.append(1), log=log, environment=environment
        )
    assert ended == (3, "b")
    assert looks
    assert (tmp_path / "log").read_bytes() == b"toy --x=1\na\rb\n"
