"""What a judged run leaves behind, beside the scores of real images, and bad input."""

import json

import jax
import numpy as np
import pytest

from experiments import evaluate
from experiments.judges import image_metrics, inception_scores
from experiments.run.errors import UsageError
from experiments.run.workdirs import Workdir
from experiments.training import models
from experiments.training.settings import Config

RUN = Config(objective="mmd", dataset="digits", latent_dim=4, width=4)


def start(workdir, dataset):
    """Stores a run as it begins."""
    with Workdir(workdir, RUN) as folder:
        folder.save(1, models.build(RUN, dataset).initial_state(jax.random.key(0)))


@pytest.mark.thorough
def test_a_run_is_judged_beside_real_images(tmp_path, toy, judged, capsys):
    start(tmp_path, toy)
    rows = evaluate.run(evaluate.Config(num_samples=500), workdir=str(tmp_path))
    assert list(rows) == ["generated", "real test images", "real training images"]
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["num_samples"] == 500
    assert report["classifier_sha256"] == judged.sha256
    assert {name: report[name] for name in rows} == rows
    assert judged.sha256[:16] in capsys.readouterr().out
    assert (tmp_path / "samples/evaluated.png").read_bytes().startswith(b"\x89PNG")

    test, known = image_metrics.as_images(toy.test), image_metrics.as_images(toy.train)
    assert rows["real test images"] == {
        **image_metrics.neighbours(toy)(test),
        **image_metrics.inception(judged)(test),
    }
    assert rows["real training images"].items() >= image_metrics.inception(judged)(known).items()
    generated, real = (rows[name] for name in ("generated", "real training images"))
    assert set(generated) == set(image_metrics.METRICS)
    assert generated["nearest_l1"] > rows["real test images"]["nearest_l1"]
    assert generated["classifier_frechet"] > real["classifier_frechet"]
    assert generated["coverage"] < real["coverage"]
    assert all(np.isfinite(value) for row in rows.values() for value in row.values())


@pytest.mark.thorough
def test_published_scores_stand_beside_the_others(tmp_path, toy, judged, capsys, monkeypatch):
    start(tmp_path, toy)
    monkeypatch.setattr(inception_scores, "load", lambda path: path)
    monkeypatch.setattr(
        inception_scores,
        "scores",
        lambda dataset, weights, n: lambda images: {"fid": float(images.shape[0]), weights: n},
    )
    config = evaluate.Config(num_samples=500, inception_weights="file")
    rows = evaluate.run(config, workdir=str(tmp_path))
    known = len(toy.train[:500])
    assert rows["generated"].items() >= {"fid": 500.0, "file": 500}.items()
    assert rows["real training images"].items() >= {"fid": float(known), "file": 500}.items()
    assert "fid" not in rows["real test images"]
    assert "fid" in capsys.readouterr().out
    assert judged.sha256 in (tmp_path / "evaluation.json").read_text()


def test_weights_are_looked_at_before_anything_else(tmp_path):
    config = evaluate.Config(inception_weights=str(tmp_path / "none.pth"))
    with pytest.raises(UsageError, match="inception_weights: got "):
        evaluate.run(config, workdir=str(tmp_path))


def test_too_few_samples_are_refused(tmp_path):
    with pytest.raises(UsageError, match="num_samples: got 499; expected an integer in"):
        evaluate.run(evaluate.Config(num_samples=499), workdir=str(tmp_path))


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    with Workdir(tmp_path, RUN):
        pass
    with pytest.raises(UsageError, match="without a checkpoint; train first"):
        evaluate.run(evaluate.Config(), workdir=str(tmp_path))
