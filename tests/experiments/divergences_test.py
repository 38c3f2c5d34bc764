"""What a run leaves, and what its figures say."""

import json
import math

import pytest

from experiments import divergences
from experiments.divergences import Config

_TINY = Config(
    num_points=60,
    num_steps=2,
    noise_variances=(0.003, 0.1),
    num_repeats=2,
    learning_rate=0.05,
    num_seeds=2,
    num_iterations=4,
)


@pytest.mark.thorough
def test_a_run_leaves_its_table_and_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(divergences, "_SIZES", divergences._SIZES[:2])
    monkeypatch.setattr(divergences, "_RKHS_SIZES", divergences._RKHS_SIZES[:2])
    monkeypatch.setattr(divergences, "_MANIFOLDS", ("segments",))
    monkeypatch.setattr(divergences, "_DISTANCES", divergences._DISTANCES[::16])
    rows = divergences.run(_TINY, workdir=str(tmp_path))
    assert list(rows) == ["start", "end"]
    for row in rows.values():
        assert row["W1"] <= row["by total variation"] < row["bound of Theorem 3.3"]
        assert row["diameter"] == pytest.approx(math.sqrt(2))
    pictures = ("point_masses.png", "certificate.png", "rate.png", "manifolds.png")
    names = ("table.md", *pictures, "config.json")
    assert all((tmp_path / name).stat().st_size > 0 for name in names)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["point_masses"]["kale"] == pytest.approx([0.0, 1.0, 2.0])
    assert results["bounds"]["end"]["variances"] == [0.1, 0.003]
    assert "Slopes of the error" in capsys.readouterr().out
    assert results["rates"].keys() == {
        "linear energies", "RKHS, log-ratio in it", "RKHS, log-ratio linear"
    }  # fmt: skip
    (trials,) = results["manifolds"].values()
    assert {name: len(runs) for name, runs in trials.items()} == {"no noise": 2, "noise": 2}
    assert [record["step"] for record in trials["noise"][1]] == [0, 1, 2, 3, 4]
    assert f"{trials['noise'][0][-1]['variance']}" == "0.05"
