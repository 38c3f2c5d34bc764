"""The table and its files, and bad input."""

import dataclasses
import json
import math
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import classification_score
from experiments.classification_score import Config
from experiments.data import catalog
from experiments.judges import resnet
from experiments.run.errors import UsageError
from experiments.run.workdirs import Workdir
from experiments.training import labelled_images, models
from tests.experiments.conftest import loading
from tests.experiments.judges.resnet_test import SMALL, loop_accuracy
from tests.experiments.training.labelled_images_test import RUN, fake_model

CONFIG = Config(
    "toy",
    num_distinct=20,
    width=8,
    stem_stride=1,
    batch_size=50,
    num_steps=60,
    learning_rate=1e-2,
)


def oracle_inception(probs):
    probs = np.asarray(probs, np.float64)
    marginal = probs.mean(axis=0)
    return math.exp(np.mean([p[p > 0] @ np.log(p[p > 0] / marginal[p > 0]) for p in probs]))


def guess(images, labels, num_classes, recipe, *, seed, description):
    """Stands in for training: what comes out depends on the labels and the seed."""
    rng = np.random.default_rng([*labels, seed])
    return lambda asked: rng.integers(num_classes, size=len(asked))


@pytest.mark.thorough
def test_the_table_and_its_files(judged, toy, tmp_path, monkeypatch, capsys):
    calls = []

    def counted(images, labels, num_classes, recipe, *, seed, description):
        calls.append((description, len(images), recipe))
        return guess(images, labels, num_classes, recipe, seed=seed, description=description)

    monkeypatch.setattr(resnet, "train", counted)
    model = fake_model()
    monkeypatch.setattr(models, "build", lambda config, dataset: model)
    place = tmp_path / "run"
    with Workdir(place, dataclasses.replace(RUN, dataset="toy")) as folder:
        folder.save(7, model.initial_state(None))
    config = dataclasses.replace(CONFIG, seeds=(0, 3), runs=(f"gan={place}",), num_images=250)
    workdir = tmp_path / "scores"
    rows = classification_score.run(config, workdir=str(workdir))

    assert list(rows) == ["real", "duplicates", "gan"]
    assert {(size, recipe) for _, size, recipe in calls} == {(250, SMALL)}
    assert [name for name, _, _ in calls] == [
        f"ResNet on {name}, seed {seed}" for name in rows for seed in (0, 3)
    ]
    rng = np.random.default_rng(0)
    sets = {
        "real": labelled_images.real(toy, 250, rng),
        "duplicates": labelled_images.duplicates(toy, 250, 20, rng),
        "gan": labelled_images.generated(str(place), 250, seed=0),
    }
    written = json.loads((workdir / "results.json").read_text())
    table = (workdir / "classification_score.md").read_text()
    for name, (images, labels, source) in sets.items():
        probs = judged.probs(jnp.asarray(images / 255, jnp.float32))
        np.testing.assert_allclose(rows[name].inception_score, oracle_inception(probs), rtol=1e-4)
        accuracies = [
            loop_accuracy(
                guess(images, labels, 10, 0, seed=s, description="")(toy.test), toy.test_labels
            )
            for s in (0, 3)
        ]
        np.testing.assert_allclose(rows[name].accuracies, accuracies)
        mean, deviation = np.mean(accuracies), abs(accuracies[0] - accuracies[1]) / math.sqrt(2)
        assert written["rows"][name]["accuracy"] == pytest.approx(mean)
        assert written["rows"][name]["deviation"] == pytest.approx(deviation)
        assert f"{100 * mean:.2f} ± {100 * deviation:.2f}" in table
        assert f"{rows[name].inception_score:.4g}" in table
        assert source in table
    assert written["num_images"] == 250
    assert written["classifier_test_accuracy"] == 0.5
    assert "toy, 250 images in each set" in table
    assert (workdir / "classification_score.png").read_bytes().startswith(b"\x89PNG")
    assert table.split("\n\n")[1] in capsys.readouterr().out


def test_a_run_is_taken_up_where_it_ended(judged, tmp_path, monkeypatch):
    trained = []

    def counted(*args, seed, description):
        trained.append(description)
        return guess(*args, seed=seed, description=description)

    monkeypatch.setattr(resnet, "train", counted)
    first = classification_score.run(CONFIG, workdir=str(tmp_path))
    assert classification_score.run(CONFIG, workdir=str(tmp_path)) == first
    assert trained == ["ResNet on real, seed 0", "ResNet on duplicates, seed 0"]
    more = dataclasses.replace(CONFIG, seeds=(1, 0))
    rows = classification_score.run(more, workdir=str(tmp_path))
    assert trained[2:] == ["ResNet on real, seed 1", "ResNet on duplicates, seed 1"]
    for name, row in rows.items():
        assert row.accuracies[1:] == first[name].accuracies
    with pytest.raises(UsageError, match="another config: num_steps was 60, now 5"):
        classification_score.run(dataclasses.replace(CONFIG, num_steps=5), workdir=str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        lambda toy: toy._replace(train=255 - toy.train),
        lambda toy: toy._replace(train_labels=9 - toy.train_labels),
        lambda toy: toy._replace(test=255 - toy.test),
        lambda toy: toy._replace(test_labels=9 - toy.test_labels),
    ],
    ids=["images", "labels", "test_images", "test_labels"],
)
def test_other_data_are_not_taken_for_the_same(judged, toy, tmp_path, monkeypatch, change):
    trained = []

    def counted(*args, seed, description):
        trained.append(description)
        return guess(*args, seed=seed, description=description)

    monkeypatch.setattr(resnet, "train", counted)
    classification_score.run(CONFIG, workdir=str(tmp_path))
    monkeypatch.setattr(catalog, "load", loading(change(toy)))
    classification_score.run(CONFIG, workdir=str(tmp_path))
    assert trained == 2 * ["ResNet on real, seed 0", "ResNet on duplicates, seed 0"]


@pytest.mark.thorough
def test_the_same_seeds_give_the_same_table(judged, tmp_path):
    tables = [classification_score.run(CONFIG, workdir=str(tmp_path / name)) for name in "ab"]
    assert tables[0] == tables[1]
    assert tables[0]["real"].accuracies[0] > 0.99


@pytest.mark.slow
def test_duplicates_spoil_the_accuracy_and_not_the_inception_score(tmp_path, capsys):
    config = Config("digits", num_distinct=50, num_steps=600)
    rows = classification_score.run(config, workdir=str(tmp_path))
    real, duplicates = rows["real"], rows["duplicates"]
    assert real.accuracies[0] > 0.97
    assert duplicates.accuracies[0] < real.accuracies[0] - 0.1
    assert duplicates.inception_score > 0.9 * real.inception_score


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_images": 301}, "num_images: got 301; expected at most the 300 training images"),
        ({"num_images": 0}, "num_images: got 0; expected an integer in"),
        ({"num_distinct": 0}, "num_distinct: got 0; expected an integer in"),
        ({"num_steps": 0}, "num_steps: got 0; expected an integer in"),
        ({"width": 12}, "width: got 12; expected a positive multiple of 8"),
        ({"width": 0}, "width: got 0; expected an integer in"),
        ({"learning_rate": math.nan}, "learning_rate: got nan; expected a number in"),
        ({"seed": -1}, "seed: got -1; expected an integer in"),
        ({"seeds": (1, 1)}, r"seeds: got \[1, 1\]; expected distinct integers in"),
        ({"seeds": ()}, r"seeds: got \[\]; expected distinct integers in"),
        ({"runs": ("gan",)}, "runs: got 'gan'; expected name=workdir,name=workdir"),
        ({"runs": ("real=somewhere",)}, "runs: got the name real for somewhere; expected one not"),
        ({"runs": ("gan=nowhere",)}, "workdir: got nowhere without a readable config.json"),
    ],
)
def test_a_setting_out_of_its_range(judged, tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        classification_score.run(
            dataclasses.replace(CONFIG, **change), workdir=str(tmp_path / "scores")
        )
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditional": False}, "a run without labels; expected one trained with --conditional"),
        ({"dataset": "mnist"}, "a run on mnist; expected one on toy"),
        ({}, "without a checkpoint; train first"),
    ],
)
def test_a_run_that_cannot_be_drawn_from(judged, tmp_path, change, message):
    stored = dataclasses.replace(RUN, **{"dataset": "toy", **change})
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(stored)))
    config = dataclasses.replace(CONFIG, runs=(f"gan={tmp_path}",))
    with pytest.raises(UsageError, match=f"got {tmp_path}.*{message}"):
        classification_score.run(config, workdir=str(tmp_path / "scores"))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--seeds=0,x", "seeds: got 'x'; expected distinct integers in"),
        ("--ridge=1", "flag: got --ridge; expected a known flag such as --"),
    ],
)
def test_the_command_says_it_in_one_line(tmp_path, flag, message):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.classification_score"),
            *(f"--workdir={tmp_path}", flag),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"kernelgrad: error: {message}")
    assert done.stderr.count("\n") == 1
