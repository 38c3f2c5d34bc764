"""What runs leave behind, and bad input."""

import dataclasses
import json
import math

import numpy as np
import pytest

from experiments import density_estimation
from experiments.data import catalog
from experiments.data.dataset import Dataset
from experiments.density_estimation import Config
from experiments.run.errors import StorageError, UsageError
from experiments.training import energy_fits

TINY = Config(
    num_steps=20,
    eval_every=10,
    batch_size=32,
    num_base=64,
    datasets=("banana",),
    methods=("kale",),
    seeds=(0, 1),
    width=8,
    depth=1,
    num_normalizer_samples=10_000,
)


@pytest.fixture
def small_sets(monkeypatch):
    """Lets every data set be six hundred points of its seed, on a bent line."""

    def load(name, data_dir=None, *, seed):
        x = np.random.default_rng(seed).normal(size=(600, 2)).astype(np.float32)
        x[:, 1] = (x[:, 0] ** 2 - 1) / 2 + 0.3 * x[:, 1]
        return Dataset(name, x[:500], x[500:], None, None, 0)

    monkeypatch.setattr(catalog, "load", load)
    monkeypatch.setattr(density_estimation, "_DRAWS_OF_A_LOOK", 5000)


@pytest.mark.thorough
def test_a_run_leaves_its_files_and_does_no_fit_twice(tmp_path, small_sets, monkeypatch, capsys):
    before = energy_fits.advance._cache_size()
    results = density_estimation.run(TINY, workdir=str(tmp_path))
    assert energy_fits.advance._cache_size() == before + 1  # for both seeds
    for name in ("config.json", "curves.png", "banana.png"):
        assert (tmp_path / name).stat().st_size > 0
    assert json.loads((tmp_path / "results.json").read_text()) == results
    table = (tmp_path / "density_estimation.md").read_text()
    assert "banana: dimension 2; 450 training, 50 validation and 100 test rows, 100%" in table
    assert table in capsys.readouterr().out
    of_method = results["banana"]
    assert list(of_method) == ["gaussian", "kernel mixture", "kale"]
    for method, (first, second) in of_method.items():
        assert first["test"]["value"] != second["test"]["value"]
        values = [first["test"]["value"], second["test"]["value"]]
        spread = f"{np.mean(values):.3f} ± {abs(values[0] - values[1]) / math.sqrt(2):.3f}"
        (line,) = (line for line in table.splitlines() if f"banana, {method} " in line)
        assert line.split("|")[2].strip() == spread
        gain = first["test"]["value"] - of_method["gaussian"][0]["test"]["value"]
        np.testing.assert_allclose(first["test"]["gain"], gain, atol=1e-5)

    one = dataclasses.replace(TINY, seeds=(1,))
    alone = density_estimation.run(one, workdir=str(tmp_path / "alone"))
    assert alone["banana"]["kale"] == of_method["kale"][1:]

    def forbidden(*_):
        raise AssertionError("fitted again")

    monkeypatch.setattr(energy_fits, "fit", forbidden)
    (tmp_path / "fits/banana_seed1_kale.json").write_text("{")
    with pytest.raises(StorageError, match=r"banana_seed1_kale.json: got .*; expected JSON"):
        density_estimation.run(TINY, workdir=str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datasets": ("digits",)}, "datasets: got 'digits'; expected distinct ones of swiss_roll"),
        ({"datasets": ()}, "datasets: got \[\]; expected distinct ones of"),
        ({"methods": ("kale", "ml")}, "methods: got 'ml'; expected distinct ones of kale, "),
        ({"methods": ("dv", "dv")}, "methods: got \['dv', 'dv'\]; expected distinct ones"),
        ({"seeds": (-1,)}, r"seeds: got -1; expected distinct integers in"),
        ({"seeds": (1, 1)}, r"seeds: got \[1, 1\]; expected distinct integers in"),
        ({"num_steps": 0}, "num_steps: got 0; expected an integer in"),
        ({"num_steps": 25}, "num_steps: got 25; expected a multiple of eval_every, 10"),
        ({"num_base": 31}, "num_base: got 31; expected at least batch_size, 32"),
        ({"num_normalizer_samples": 10}, "num_normalizer_samples: got 10; expected an integer in"),
        ({"learning_rate": 0.0}, "learning_rate: got 0.0; expected a number in"),
        ({"chain_step_size": math.nan}, "chain_step_size: got nan; expected a number in"),
        ({"penalty": -1.0}, "penalty: got -1.0; expected a number in"),
        ({"normalizer_rate": 1.5}, r"normalizer_rate: got 1.5; expected a number in"),
    ],
)
def test_bad_settings_are_named(tmp_path, change, message):
    config = dataclasses.replace(TINY, **change)
    with pytest.raises(UsageError, match=message):
        density_estimation.run(config, workdir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.thorough
def test_the_binary_names_the_absent_table(tmp_path, refusal):
    line = refusal("density_estimation", f"--workdir={tmp_path}/run", f"--data_dir={tmp_path}")
    assert line.startswith("red_wine: ")
    assert "winequality-red.csv" in line
