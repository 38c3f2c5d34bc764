"""The whole command: what it says at the start, its report, resumption, bad input; and smoke."""

import json
import pathlib
import re
import signal
import time

import pytest

from experiments import reproduce
from experiments.data import catalog
from experiments.papers import claims, runs
from experiments.papers.claims import Claim, Paper
from experiments.papers.runs import Run
from experiments.reproduce import PAPERS, Config
from experiments.run.errors import DataError, StorageError, Terminated, UsageError
from experiments.sweeps import children
from experiments.sweeps.children import Ended

RUNS = (
    Run("toy --workdir=runs/roll", 2, ("table.md", "*.png"), smoke="--num_steps=1"),
    Run("train --data_dir=data --workdir=runs/gan", 3, needs=("mnist",)),
)


def look(root):
    value = json.loads((root / "roll" / "results.json").read_text())
    return [claims.lower("KL", value, [2.0, 2.0]), claims.at_most("JSD", value, 1)]


PAPER = Paper(
    "Paper 001: a title",
    RUNS,
    (
        Claim("It falls", "to 0.1", ("roll",), look),
        Claim("It beats a GAN", "no figure", ("roll", "gan"), look),
    ),
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(reproduce.PAPERS, "001", PAPER)
    monkeypatch.setattr(catalog, "load", lambda name, data_dir: None)


class Told(list):
    """Flags, and what stands in."""


@pytest.fixture
def processes(monkeypatch):
    """Stands in for the processes, each of which leaves files; a list of their flags."""
    told = Told()
    told.fails = False

    def run(binary, arguments, look, *, log, environment):
        look()
        log.close()
        told.append([binary, *arguments])
        flags = dict(flag.split("=", 1) for flag in arguments)
        folder = pathlib.Path(flags["--workdir"])
        folder.mkdir(exist_ok=True)
        (folder / "results.json").write_text("[1.5, 0.5]")
        (folder / "table.md").write_text("| a table |\n")
        (folder / "roll.png").write_bytes(b"a picture")
        return Ended(3 if told.fails and binary == "train" else 0, "error: step 3")

    monkeypatch.setattr(children, "run", run)
    return told


def test_the_report_has_claims_tables_and_figures(tmp_path, processes, capsys):
    rows = reproduce.run(Config("001"), workdir=str(tmp_path / "w"), data_dir=str(tmp_path))
    said = capsys.readouterr().out
    assert said.startswith("paper 001 at cpu: 2 of 2 runs, about 5 minutes on two cores\n")
    assert "  to run    toy --workdir=runs/roll\n" in said
    assert [row["verdict"] for row in rows.values()] == 2 * ["holds in part", "so", "not so"]
    assert rows["1.1 KL: lower"]["ours"] == "1 ± 0.71 against 2 ± 0"
    text = (tmp_path / "w" / "report.md").read_text()
    assert text.startswith("# Paper 001: a title\n\nAt the scale cpu.\n\n|")
    assert "\n    python -m experiments.toy --workdir=runs/roll\n\n| a table |\n\n![roll/" in text
    for link in re.findall(r"\]\((.*?)\)", text):
        assert (tmp_path / "w" / link).exists()
    assert json.loads((tmp_path / "w" / "claims.json").read_text()) == rows
    assert f"--data_dir={tmp_path}" in processes[1]


def test_it_resumes_and_another_scale_is_refused(tmp_path, processes, capsys):
    workdir = str(tmp_path / "w")
    processes.fails = True
    with pytest.raises(StorageError, match=r"^1 of 2 runs failed, .* exit code 3: error: step 3: "):
        reproduce.run(Config("001"), workdir=workdir)
    rows = json.loads((tmp_path / "w" / "claims.json").read_text())
    assert [rows[name]["verdict"] for name in ("1 It falls", "2 It beats a GAN")] == [
        "holds in part",
        "not run",
    ]
    assert "It did not finish." in (tmp_path / "w" / "report.md").read_text()
    processes.fails = False
    capsys.readouterr()
    reproduce.run(Config("001"), workdir=workdir)
    said = capsys.readouterr().out
    assert said.startswith("paper 001 at cpu: 1 of 2 runs, about 3 minutes on two cores\n")
    assert "  finished  toy --workdir=runs/roll\n" in said
    reproduce.run(Config("001"), workdir=workdir)
    assert [one[0] for one in processes] == ["toy", "train", "train"]
    with pytest.raises(UsageError, match='scale was "cpu", now "smoke"'):
        reproduce.run(Config("001", "smoke"), workdir=workdir)
    (tmp_path / "w" / "roll" / "roll.png").unlink()
    with pytest.raises(StorageError, match=r"roll/\*\.png: got nothing; .* Remove finished\.json"):
        reproduce.run(Config("001"), workdir=workdir)


def test_a_claim_waits_for_every_seed(tmp_path, processes, monkeypatch):
    again = Run("train --workdir=runs/roll_seed1", 1)
    claim = Claim("It falls", "to 0.1", ("roll",), look)
    monkeypatch.setitem(reproduce.PAPERS, "001", Paper("", (RUNS[0], again), (claim,)))
    processes.fails = True
    with pytest.raises(StorageError, match="1 of 2 runs failed"):
        reproduce.run(Config("001"), workdir=str(tmp_path))
    (row,) = json.loads((tmp_path / "claims.json").read_text()).values()
    assert row["verdict"] == claims.NOT_RUN


def test_smoke_needs_no_data_and_decides_nothing(tmp_path, processes):
    rows = reproduce.run(Config("001", "smoke"), workdir=str(tmp_path))
    assert [one[0] for one in processes] == ["toy"]
    assert rows["1 It falls"]["verdict"] == claims.UNDECIDED
    assert rows["1.1 KL: lower"]["verdict"] == "so"
    assert rows["2 It beats a GAN"] == {
        "paper": "no figure",
        "ours": "",
        "verdict": claims.UNDECIDED,
    }


def test_data_that_are_absent_are_said_before_anything(tmp_path, processes, monkeypatch):
    def load(name, data_dir):
        raise DataError(f"{name}: is not there")

    monkeypatch.setattr(catalog, "load", load)
    with pytest.raises(DataError, match="mnist: is not there"):
        reproduce.run(Config("001"), workdir=str(tmp_path / "w"))
    assert processes == []
    assert not (tmp_path / "w").exists()


def test_a_signal_stops_the_run_that_is_going(tmp_path, monkeypatch):
    def run(binary, arguments, look, **_):
        signal.raise_signal(signal.SIGTERM)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            look()

    monkeypatch.setattr(children, "run", run)
    with pytest.raises(Terminated, match=r"SIGTERM: stopped a run of .*; run the same command to"):
        reproduce.run(Config("001"), workdir=str(tmp_path))


SMOKE = [
    pytest.param("001", marks=pytest.mark.thorough),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("000", "002", "003", "004")),
]
WHOLE = dict(PAPERS)  # before the fixture


@pytest.mark.parametrize("name", SMOKE)
def test_smoke_runs_what_stands_behind_a_page(name, tmp_path, monkeypatch):
    monkeypatch.undo()
    rows = reproduce.run(Config(name, "smoke"), workdir=str(tmp_path))
    of_claims = [row["verdict"] for row in rows.values() if row["paper"]]
    assert of_claims == len(WHOLE[name].claims) * [claims.UNDECIDED]
    assert {row["verdict"] for row in rows.values() if not row["paper"]} <= {"so", "not so"}
    shown = re.findall(r"!\[.*?\]\((.*?)\)", (tmp_path / "report.md").read_text())
    assert shown
    assert all((tmp_path / link).stat().st_size for link in shown)
    assert len(runs.steps(WHOLE[name].runs, "smoke")) == len(list((tmp_path / "logs").iterdir()))
