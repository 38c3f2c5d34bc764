"""Amortized likelihood: its directions by loops, what runs leave behind, survival, bad input."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import rbm
from experiments.data.dataset import Dataset
from experiments.reports import machines
from experiments.run.errors import UsageError
from experiments.run.workdirs import Workdir
from experiments.targets import boltzmann
from experiments.training import amortized
from experiments.training.amortized import Config

TINY = Config(
    dataset="digits",
    directions=("svgd", "exact"),
    seeds=(0,),
    num_epochs=2,
    num_hidden=3,
    width=8,
    latent_dim=4,
    learning_rate=1e-2,
)


def directions_by_loops(x, scores):
    """Returns (attraction, repulsion) at each point, both over the sum of the kernel's row."""
    n = len(x)
    sq_dist = np.sum((x[:, None] - x[None]) ** 2, axis=2)
    median = np.median(sq_dist[np.triu_indices(n, 1)])
    square = median / (2 * np.log(n + 1))
    attraction, repulsion = np.zeros_like(x), np.zeros_like(x)
    for i in range(n):
        row = np.exp(-sq_dist[i] / (2 * square))
        for j in range(n):
            attraction[i] += row[j] * scores[j] / row.sum()
            repulsion[i] += row[j] * (x[i] - x[j]) / square / row.sum()
    return attraction, repulsion


def test_directions_are_those_of_the_loops(rng):
    x, scores = rng.normal(size=(2, 7, 3))
    attraction, repulsion = directions_by_loops(x, scores)
    expected = {"svgd": attraction + repulsion, "smoothed": attraction, "score": scores}
    for name, direction in expected.items():
        follow = amortized.DIRECTIONS[name]
        got = follow(jnp.asarray(x, jnp.float32), jnp.asarray(scores, jnp.float32))
        np.testing.assert_allclose(got, direction, rtol=1e-4, atol=1e-5, err_msg=name)


def test_generator_follows_the_direction_uphill(key):
    config = dataclasses.replace(TINY, learning_rate=1e-3)
    trainer = amortized.make_trainer(config, "score", (8, 8, 1))
    state = trainer.initial_state(key)
    frozen = state.machine
    images = jnp.zeros((config.batch_size, 8, 8, 1), jnp.uint8)

    def mean_log_density(state):
        return jnp.mean(boltzmann.unnormalised_log_density(frozen, trainer.samples(state, key)))

    before = mean_log_density(state)
    step = jax.jit(trainer.step)
    for index in range(20):
        state = step(state._replace(machine=frozen), jax.random.fold_in(key, index), images)
    assert mean_log_density(state) > before + 0.1


def test_machine_steps_to_the_data_and_away_from_the_samples(key):
    trainer = amortized.make_trainer(dataclasses.replace(TINY, weight_decay=0.0), "svgd", (8, 8, 1))
    state = trainer.initial_state(key)
    bright = jnp.full((TINY.batch_size, 8, 8, 1), 255, jnp.uint8)
    step = jax.jit(trainer.step)
    moved = step(state, key, bright).machine.visible_bias
    np.testing.assert_allclose(moved, TINY.learning_rate, rtol=1e-3)  # Adam's first step
    dark = step(state, key, jnp.zeros_like(bright)).machine.visible_bias
    np.testing.assert_allclose(dark, -TINY.learning_rate, rtol=1e-3)


def test_anchors_are_gaussians_without_hidden_units(rng):
    images = rng.integers(0, 256, size=(30, 3, 3, 1)).astype(np.uint8)
    train, test = images[:20], images[20:]
    x, y = (part.reshape(-1, 9) / 255 for part in (train, test))
    found = machines.anchors(Dataset("noise", train, test, None, None, 0))
    for name, mean in (("N(0, I)", np.zeros(9)), ("N(mean, I)", x.mean(axis=0))):
        expected = -4.5 * np.log(2 * np.pi) - np.mean(np.sum((y - mean) ** 2, axis=1)) / 2
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)


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
def test_the_binary_reports_one_line(tmp_path):
    command = [sys.executable, "-m", "experiments.rbm", f"--workdir={tmp_path}", "--seeds=a"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "kernelgrad: error: seeds: got 'a'; expected distinct integers in [0, 4294967295]\n"
    )
