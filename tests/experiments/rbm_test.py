"""What runs leave behind, survival, bad input."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import rbm
from experiments.run.errors import UsageError
from experiments.run.workdirs import Workdir
from tests.experiments.training.amortized_test import TINY


def _metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_leaves_its_files_and_an_interrupted_one_ends_the_same(tmp_path, monkeypatch, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    found = rbm.run(TINY, workdir=str(whole))
    save = Workdir.save

    def interrupted(self, step, state):
        save(self, step, state)
        raise KeyboardInterrupt

    one = dataclasses.replace(TINY, directions=("svgd",))
    monkeypatch.setattr(Workdir, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rbm.run(one, workdir=str(cut))
    monkeypatch.undo()
    resumed = rbm.run(one, workdir=str(cut))
    assert resumed == {"svgd": pytest.approx(found["svgd"], rel=1e-4)}
    records = [_metrics(folder / "svgd/seed0") for folder in (whole, cut)]
    for got, wanted in zip(*records, strict=True):  # equal up to the order of threads' sums
        assert got == pytest.approx(wanted, rel=1e-3)
    assert [record["step"] for record in records[1]] == [0, 1, 2]

    assert set(found) == {"svgd", "exact"}
    history = _metrics(whole / "exact/seed0")
    likelihoods = [record["test_log_likelihood"] for record in history]
    assert likelihoods == sorted(likelihoods)
    assert found["exact"] == [likelihoods[-1]]
    for name in ("config.json", "table.md", "curves.png", "samples.png", "svgd/seed0/curves.png"):
        assert (whole / name).stat().st_size > 0
    rows = json.loads((whole / "results.json").read_text())
    assert list(rows) == ["svgd", "exact", "N(0, I)", "N(mean, I)"]
    assert rows["exact"]["seed 0"] == f"{likelihoods[-1]:.1f}"
    assert "published" not in rows["svgd"]  # those figures are MNIST's
    assert "| exact" in capsys.readouterr().out


@pytest.mark.slow
def test_convolutional_generator_runs(tmp_path):
    config = dataclasses.replace(TINY, directions=("score",), generator="dcgan", num_epochs=1)
    found = rbm.run(config, workdir=str(tmp_path))
    assert np.isfinite(found["score"][0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"directions": ("svdg",)},
            "directions: got 'svdg'; expected distinct ones of svgd, score",
        ),
        ({"directions": ()}, r"directions: got \[\]; expected distinct ones"),
        ({"seeds": (1, 1)}, r"seeds: got \[1, 1\]; expected distinct integers in"),
        ({"seeds": (-1,)}, "seeds: got -1; expected distinct integers in"),
        ({"num_epochs": 0}, "num_epochs: got 0; expected an integer in"),
        ({"num_hidden": 17}, r"num_hidden: got 17; expected an integer in \[1, 16\]"),
        ({"batch_size": 1}, "batch_size: got 1; expected an integer in"),
        ({"batch_size": 1501}, "batch_size: got 1501; expected at most the 1500 training images"),
        ({"generator": "gan"}, "generator: got 'gan'; expected one of mlp, linear, dcgan"),
        ({"learning_rate": 0.0}, "learning_rate: got 0.0; expected a number in"),
        ({"b1": 1.0}, r"b1: got 1.0; expected a number in \[0, 0.999999\]"),
        ({"balance_weight": -0.1}, "balance_weight: got -0.1; expected a number in"),
        ({"dataset": "ring"}, "dataset: got ring; expected images"),
    ],
)
def test_bad_settings_are_named(tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        rbm.run(dataclasses.replace(TINY, **change), workdir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_binary_reports_one_line(tmp_path, refusal):
    expected = "seeds: got 'a'; expected distinct integers in [0, 4294967295]"
    assert refusal("rbm", f"--workdir={tmp_path}", "--seeds=a") == expected
