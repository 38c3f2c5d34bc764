"""What a comparison leaves behind: its runs, their curves, the table."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.optimize
from PIL import Image

from experiments import compare
from experiments.data import catalog
from experiments.pictures import charts, mosaics
from experiments.reports import comparisons
from experiments.run import timing
from experiments.run.errors import UsageError
from experiments.training import objectives, settings
from experiments.training.settings import Config

BASE = Config(
    dataset="ring", num_steps=4, eval_every=2, batch_size=16, latent_dim=2, width=8, ridge=1.0
)
COMPARED = compare.Config(BASE, ("kl", "mmd"), (3,))


@pytest.fixture(autouse=True)
def brief_timing(monkeypatch):
    monkeypatch.setattr(timing, "_TIMED_SECONDS", 0.0)


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.thorough
def test_a_step_takes_time():
    config = dataclasses.replace(BASE, objective="mmd", num_steps=2)
    (ms,) = compare.time_steps({"mmd": config}, catalog.load("ring")).values()
    assert ms > 0


@pytest.mark.thorough
def test_curves_are_those_of_the_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "time_steps", lambda *_: {"kl": 1.0, "mmd": 2.0})
    floors, draw = [], charts.learning_curves
    monkeypatch.setattr(charts, "learning_curves", lambda *a: floors.append(a[1]) or draw(*a))
    curves = compare.run(COMPARED, workdir=str(tmp_path))
    assert list(curves) == ["kl", "mmd"]
    for name, curve in curves.items():
        np.testing.assert_array_equal(curve.steps, [2, 4])
        assert list(curve.metrics) == ["test_mmd", "test_w1"]
        folder = tmp_path / name / "seed3"
        evaluated = [r["test_mmd"] for r in records(folder) if "test_mmd" in r]
        np.testing.assert_array_equal(curve.metrics["test_mmd"], [evaluated])
        stored = json.loads((folder / "config.json").read_text())
        assert (stored["objective"], stored["seed"]) == (name, 3)
        assert curve.ms_per_step == {"kl": 1.0, "mmd": 2.0}[name]
        half_way = curve.at_time(3 * curve.ms_per_step / 1000)["test_mmd"]
        np.testing.assert_allclose(half_way, curve.metrics["test_mmd"].mean(axis=1))
    stored = comparisons.from_json(json.loads((tmp_path / "comparison.json").read_text()))
    assert {name: one.ms_per_step for name, one in stored.items()} == {"kl": 1.0, "mmd": 2.0}
    table = (tmp_path / "comparison.md").read_text()
    assert "ring, width 8, 1 seed(s)" in table
    assert all(f"{name}, step 4" in table for name in curves)
    data = catalog.load("ring")
    costs = np.linalg.norm(data.train[:500, None] - data.test[None, :500], axis=2)
    floor = costs[scipy.optimize.linear_sum_assignment(costs)].mean()
    assert floors == 4 * [{"test_w1": pytest.approx(floor, rel=1e-5)}]  # of each run's own curves
    assert f"{floor:.4g}" in next(line for line in table.splitlines() if "real samples" in line)
    assert table.split("\n", 2)[2].strip() in capsys.readouterr().out
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")

    before = records(tmp_path / "kl/seed3")
    again = compare.run(COMPARED, workdir=str(tmp_path))
    assert records(tmp_path / "kl/seed3") == before
    for name, curve in again.items():
        np.testing.assert_array_equal(curve.metrics["test_mmd"], curves[name].metrics["test_mmd"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectives": ("nosuch",)}, "objective: got 'nosuch'"),
        ({"objectives": ("kl@", "mmd")}, "features: got"),
        ({"objectives": ("kl@pixel",)}, "features: got 'pixel'.*Did you mean pixels"),
        ({"objectives": ("kl:rigde=1",)}, "objectives: got the setting 'rigde'.*such as ridge="),
        ({"objectives": ("kl:seed=1",)}, "objectives: got the setting 'seed'"),
        ({"objectives": ("kl:",)}, "objectives: got the setting ''"),
        ({"objectives": ("kl:ridge",)}, "ridge: got ''; expected a number"),
        ({"objectives": ("kl:ridge=-1",)}, "ridge: got -1.0; expected a number"),
        ({"objectives": ("kl", "kl:width=0")}, "width: got 0; expected an integer"),
        ({"objectives": ("kl:kernel=a/b",)}, "kernel: got 'a/b'; expected one of"),
        (
            {"objectives": ("kl", "mmd:ridge=4")},
            "ridge: got 4.0, which nothing reads with objective mmd",
        ),
        ({"objectives": ("kl:damping=0.1",)}, "damping: got 0.1, .* with gauss_newton"),
        ({"objectives": ("kl:width=4:width=8",)}, "objectives: got 'kl:width.*each setting once"),
        ({"objectives": ("kl@pixels:features=vicreg",)}, "objectives: got .*each setting once"),
        ({"objectives": (f"kl:width={'0' * 246}8",)}, "at most 255 bytes, for it names a folder"),
        ({"seeds": (0, 0)}, "seeds: got"),
        ({"objectives": ("kl", "ratio_ulsif")}, "ridge: got 1.0 for kl and ratio_ulsif, to each"),
        ({"base": dataclasses.replace(BASE, batch_size=1)}, "batch_size: got 1"),
    ],
)
def test_bad_settings_are_named(tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        compare.run(dataclasses.replace(COMPARED, **change), workdir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_objective_may_bring_its_features():
    base = dataclasses.replace(BASE, features=("vicreg",))
    for name, features in {
        "kl": ("vicreg",),
        "kl@pixels": ("pixels",),
        "mmd@pixels+autoencoder": ("pixels", "autoencoder"),
    }.items():
        found = compare._for_objective(base, name)
        assert (found.objective, found.features) == (name.partition("@")[0], features)


def test_an_objective_may_bring_its_settings():
    for name, change in {
        "kl": {},
        "kl:ridge=40": {"ridge": 40.0},
        "kl:kernel_scales=0.1+1:normalize=true": {"kernel_scales": (0.1, 1.0), "normalize": True},
        f"kl:width={'0' * 245}8": {"width": 8},
        "kl:update=gauss_newton:damping=0.1": {"update": "gauss_newton", "damping": 0.1},
        "kl@pixels+vicreg:b2=0.9": {"features": ("pixels", "vicreg"), "b2": 0.9},
    }.items():
        assert compare._for_objective(BASE, name) == dataclasses.replace(BASE, **change)


def test_all_objectives_can_be_compared():
    """What one of them needs and the others have at 0 is given to that one alone."""
    base = Config(dataset="digits")
    configs = {name: compare._for_objective(base, name) for name in objectives.installed()}
    for config in configs.values():
        settings.validate(config, 1)
    assert configs.pop("noisy_jsd").noise_variance > 0
    for name, config in configs.items():
        assert config == dataclasses.replace(base, objective=name)
    asked = dataclasses.replace(base, noise_variance=0.5)
    assert compare._for_objective(asked, "noisy_jsd").noise_variance == 0.5


@pytest.mark.thorough
def test_settings_of_an_objective_are_those_of_its_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "time_steps", lambda configs, _: dict.fromkeys(configs, 1.0))
    names = ("kl", "kl:ridge=1", "kl:ridge=40")
    config = compare.Config(dataclasses.replace(BASE, objective="kl"), names, (3,))
    curves = compare.run(config, workdir=str(tmp_path))
    found = {name: one.metrics["test_mmd"] for name, one in curves.items()}
    np.testing.assert_array_equal(found["kl"], found["kl:ridge=1"])  # BASE's own
    assert abs(found["kl"] - found["kl:ridge=40"]).max() > 1e-6
    stored = json.loads((tmp_path / "kl:ridge=40/seed3/config.json").read_text())
    assert stored["ridge"] == 40


@pytest.mark.thorough
def test_the_last_samples_of_each_objective_are_shown(tmp_path, monkeypatch):
    rows = {}
    monkeypatch.setattr(mosaics, "image_rows", lambda shown: rows.update(shown) or b"a picture")
    monkeypatch.setattr(compare, "time_steps", lambda *_: {"mmd": 1.0, "mmd@pixels": 1.0})
    base = Config(num_steps=4, eval_every=2, batch_size=16, width=4)
    config = compare.Config(base, ("mmd", "mmd@pixels"), (3, 4))
    curves = compare.run(config, workdir=str(tmp_path))
    assert "classifier_frechet" in curves["mmd"].metrics
    assert (tmp_path / "samples.png").read_bytes() == b"a picture"
    assert list(rows) == ["mmd", "mmd@pixels", "test data"]
    drawn = Image.open(tmp_path / "mmd/seed3/samples/0000004.png").convert("L")
    zoom = drawn.size[0] // (10 * 9 - 1)
    first = np.asarray(drawn)[: 8 * zoom : zoom, : 8 * zoom : zoom] / 255
    np.testing.assert_allclose(rows["mmd"][0][..., 0], first, atol=0.01)
    np.testing.assert_array_equal(rows["mmd"], rows["mmd@pixels"])
    assert len(rows["mmd"]) == len(rows["test data"]) == 16


def test_noise_that_is_another_for_each_is_warned_of(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare.catalog, "load", lambda *_, **__: pytest.fail("stop here"))
    noisy = dataclasses.replace(COMPARED.base, noise_variance=0.1)
    for names, warned in {
        ("mmd", "noisy_jsd"): True,
        ("noisy_jsd",): False,
        ("mmd",): False,
    }.items():
        with pytest.raises(pytest.fail.Exception):
            compare.run(compare.Config(noisy, names, (0,)), workdir=str(tmp_path))
        assert ("noise_variance: 0.1 is the own noise" in capsys.readouterr().err) == warned
