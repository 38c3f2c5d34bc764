"""The runs of a grid, what they are refused for, and what their folder holds."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.data import catalog
from experiments.data.rows import Rows
from experiments.run.errors import StorageError, UsageError
from experiments.sweeps import runs
from experiments.sweeps.runs import Progress
from experiments.training.settings import Config
from tests.experiments.data.rows_test import write_folder

BASE = Config(dataset="ring", num_steps=4, eval_every=2, batch_size=4)


def expand(base=BASE, **grid):
    return runs.expand(base, grid)


def test_every_combination_is_a_run_the_last_setting_fastest():
    found = expand(ridge=(1.0, None), seed=(0, 1))
    names = ["ridge=1.0,seed=0", "ridge=1.0,seed=1", "ridge=none,seed=0", "ridge=none,seed=1"]
    assert [run.name for run in found] == names
    assert found[1].config == dataclasses.replace(BASE, ridge=1.0, seed=1)
    assert found[2].values == {"ridge": None, "seed": 0}


def test_a_name_is_one_folder():
    assert expand(dataset=("a/b", "c"))[0].name == "dataset=a_b"


def test_runs_have_folders_of_their_own_that_file_systems_take():
    with pytest.raises(UsageError, match=r"sweep: runs 1 and 2 would share the folder dataset=a_b"):
        expand(dataset=("a/b", "a_b"))
    with pytest.raises(UsageError, match=r"sweep: run 2 would have a folder of 308 bytes"):
        expand(dataset=("a", 300 * "b"))


def test_a_value_out_of_range_is_named_with_its_run():
    ridges = tuple(float(36 - index) for index in range(64))
    with pytest.raises(UsageError, match=r"sweep: run 37 of 64: ridge: got 0\.0; expected"):
        runs.validate(expand(ridge=ridges))


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"seed": ("x",)}, "run 1 of 1: seed: got 'x'"),
        ({"width": (8, 8.0)}, "run 2 of 2: width: got 8.0"),
        ({"objective": ("mmd", "noisy_jsd")}, "run 2 of 2: noise_variance: got 0.0 for noisy_jsd"),
    ],
)
def test_what_no_run_can_be_is_refused(grid, said):
    with pytest.raises(UsageError) as caught:
        runs.validate(expand(**grid))
    assert said in str(caught.value)


def test_a_whole_number_becomes_the_type_of_its_setting():
    (checked,) = runs.validate(expand(ridge=(4,)))
    assert type(checked.config.ridge) is type(checked.values["ridge"]) is float


def test_data_that_no_seed_changes_are_held_once():
    data = runs.load(expand(dataset=("digits", "ring"), seed=(0, 1)), None)
    assert data["dataset=digits,seed=0"] is data["dataset=digits,seed=1"]
    ring, other = data["dataset=ring,seed=0"], data["dataset=ring,seed=1"]
    assert not np.array_equal(ring.train, other.train)
    np.testing.assert_array_equal(other.train, catalog.load("ring", seed=1).train)


def test_images_that_stay_on_the_disk_are_not_read_to_be_compared(tmp_path, monkeypatch, rng):
    monkeypatch.setenv("KERNELGRAD_CACHE", str(tmp_path / "cache"))
    for part in ("train", "test"):
        pictures = rng.integers(256, size=(12, 8, 8, 3), dtype=np.uint8)
        split = write_folder(tmp_path / "split" / part, pictures)
        write_folder(tmp_path / "whole", pictures)
    split, whole = str(tmp_path / "split"), str(tmp_path / "whole")
    base = dataclasses.replace(BASE, resident_gib=1e-6, width=4)
    with monkeypatch.context() as patch:
        patch.setattr(Rows, "__getitem__", lambda *_: pytest.fail("read"))
        found = runs.load(expand(base, dataset=(split, whole), seed=(0, 1)), None)
    zero, one, other, another = found.values()
    assert isinstance(zero.train, Rows)
    assert zero is one
    assert other is not another  # each seed holds out others
    inside = runs.load(expand(base, dataset=(split,), resident_gib=(1.0, 2.0)), None)
    assert {type(dataset.train) for dataset in inside.values()} == {np.ndarray}


def test_data_that_do_not_fit_a_run_are_refused():
    with pytest.raises(UsageError, match="run 2 of 2: batch_size: got 20000, 20000 rows a step"):
        runs.load(expand(batch_size=(4, 20_000)), None)


def test_a_folder_is_held_to_its_settings(tmp_path):
    first = expand(seed=(0, 1))
    with runs.held(tmp_path, "seed=0..1", first):
        about = json.loads((tmp_path / "sweep.json").read_text())
        with pytest.raises(StorageError, match="in use by pid"), runs.held(tmp_path, "", first):
            pass
    assert about["sweep"] == "seed=0..1"
    assert about["runs"] == {"seed=0": {"seed": 0}, "seed=1": {"seed": 1}}
    assert "seed" not in about["settings"]
    longer = expand(dataclasses.replace(BASE, num_steps=8), seed=(0, 1, 2))
    with runs.held(tmp_path, "seed=0..2", longer):
        pass
    other = expand(dataclasses.replace(BASE, width=8), seed=(0, 1))
    with (
        pytest.raises(UsageError, match="a sweep with other settings: width was 32, now 8"),
        runs.held(tmp_path, "seed=0..1", other),
    ):
        pass
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(StorageError, match="expected a sweep"), runs.held(tmp_path, "", first):
        pass


def test_progress_is_the_last_evaluation(tmp_path):
    new, begun, done, lost = expand(seed=(0, 1, 2, 3))
    for run, steps in ((begun, [2]), (done, [2, 4]), (lost, [2])):
        (tmp_path / run.name).mkdir()
        lines = [json.dumps({"step": step, "test_mmd": step / 2}) for step in steps]
        lines.append('{"step": 5, "mmd": 1.0}')
        (tmp_path / run.name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / lost.name / runs.ENDED).write_text("diverged: step 3: the state is not finite\n")
    found = [runs.progress_of(tmp_path, run) for run in (new, begun, done, lost)]
    assert found[:3] == [
        Progress(0, {}, None),
        Progress(2, {"test_mmd": 1.0}, None),
        Progress(4, {"test_mmd": 2.0}, None),
    ]
    assert found[3].ended == "diverged: step 3: the state is not finite"
    assert runs.unfinished(tmp_path, [new, begun, done, lost]) == [new, begun]
