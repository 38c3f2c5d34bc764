"""What a sweep has come to, in rows and on disk."""

import math

import numpy as np

from experiments.sweeps import runs, table
from experiments.sweeps.runs import Progress
from experiments.training.settings import Config

BASE = Config(dataset="ring", num_steps=4, eval_every=2)
RUNS = runs.expand(BASE, {"ridge": (1.0, 4.0), "seed": (0, 1, 2)})
ENDS = [
    Progress(4, {"test_mmd": 1.0, "mmd": 9.0}, None),
    Progress(4, {"test_mmd": 3.0}, None),
    Progress(4, {"test_mmd": 5.0}, None),
    Progress(4, {"test_mmd": 0.5}, None),
    Progress(2, {"test_mmd": 100.0}, "diverged: step 3: the state is not finite"),
    Progress(2, {"test_mmd": 100.0}, None),
]
PROGRESS = dict(zip([run.name for run in RUNS], ENDS, strict=True))


def test_a_row_is_over_the_seeds_of_finished_runs():
    first, second = table.rows(RUNS, PROGRESS)
    assert (first.values, second.values) == ({"ridge": 1.0}, {"ridge": 4.0})
    assert (first.runs, second.runs) == ("3", "1, 1 diverged, 1 unfinished")
    assert first.figures.keys() == {"test_mmd"}
    mean, error = first.figures["test_mmd"]
    np.testing.assert_allclose([mean, error], [3, 2 / math.sqrt(3)])
    assert math.isnan(second.figures["test_mmd"].error)


def test_the_report_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "progress_of", lambda root, run: PROGRESS[run.name])
    text = table.report(tmp_path, RUNS)
    assert (tmp_path / "table.md").read_text() == text
    lines = text.splitlines()
    assert lines[0] == "6 runs over ridge, seed; mean ± standard error over seeds"
    assert [cell.strip() for cell in lines[2].split("|")] == ["", "", "test_mmd", "runs", ""]
    assert [cell.strip() for cell in lines[4].split("|")][1:3] == ["ridge 1.0", "3 ± 1.2"]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_finished_is_a_table_without_a_picture(tmp_path):
    text = table.report(tmp_path, runs.expand(BASE, {"seed": (0, 1)}))
    assert "| all | 0, 2 unfinished |" in text
    assert not (tmp_path / "sweep.png").exists()
