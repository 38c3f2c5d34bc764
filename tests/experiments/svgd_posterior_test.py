"""SVGD on the posterior: minibatches, what runs leave behind, survival, bad input."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import svgd_posterior
from experiments.run.errors import UsageError
from experiments.run.workdirs import Workdir
from experiments.svgd_posterior import Config
from experiments.targets import long_chains
from experiments.targets.posteriors import LogisticPosterior
from kernelgrad import svgd
from tests.experiments.targets.posteriors_test import write_wines

TINY = Config(
    num_particles=(20, 30),
    lengthscales=("median",),
    num_steps=120,
    eval_every=60,
    num_chains=8,
    num_warmup=200,
    num_draws=60,
)


@pytest.fixture
def posterior(rng):
    """Forty training and five test rows in three dimensions."""
    features = jnp.asarray(rng.normal(size=(45, 3)), jnp.float32)
    labels = jnp.asarray(rng.random(45) < 0.5, jnp.float32)
    return LogisticPosterior(features[:40], labels[:40], features[40:], labels[40:], 1.0)


@pytest.mark.thorough
def test_a_minibatch_of_all_rows_steps_as_without_minibatches(posterior, key):
    particles = jax.random.normal(key, (8, 3))
    moved = []
    for batch_size in (None, len(posterior.labels)):
        config = Config(lengthscales=("svgd",), batch_size=batch_size, num_steps=10)
        state = svgd.init(particles, svgd_posterior._optimizer(config))
        step = jax.jit(svgd_posterior.make_step(posterior, config))
        moved.append(step(state, key)[1].direction_rms)
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-4)
    assert moved[0] > 0


def _metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _assert_same(found, expected):
    """Equal up to the order in which threads add up a matrix product."""
    assert [record["step"] for record in found] == [record["step"] for record in expected]
    for got, wanted in zip(found, expected, strict=True):
        assert got == pytest.approx(wanted, rel=1e-2)


@pytest.mark.slow
def test_a_run_leaves_its_files_and_an_interrupted_one_ends_the_same(
    tmp_path, rng, monkeypatch, capsys
):
    write_wines(tmp_path, rng)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "blackjax" else find_spec(name)
    )
    chains, draw = [], long_chains.run

    def draw_once(*args, **options):
        chains.append(chains[0] if chains else draw(*args, **options))
        return chains[0]

    monkeypatch.setattr(long_chains, "run", draw_once)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    rows = svgd_posterior.run(TINY, workdir=str(whole), data_dir=str(tmp_path))
    save, saved = Workdir.save, []

    def recorded(self, step, state):
        save(self, step, state)
        saved.append(step)

    def interrupted(self, step, state):
        recorded(self, step, state)
        raise KeyboardInterrupt

    one = dataclasses.replace(TINY, num_particles=(20,))
    monkeypatch.setattr(Workdir, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        svgd_posterior.run(one, workdir=str(cut), data_dir=str(tmp_path))
    monkeypatch.setattr(Workdir, "save", recorded)
    svgd_posterior.run(one, workdir=str(cut), data_dir=str(tmp_path))
    metrics = _metrics(whole / "median/particles20")
    _assert_same(_metrics(cut / "median/particles20"), metrics)
    assert saved == [60, 120]
    assert [record["step"] for record in metrics] == [0, 60, 120]

    assert list(rows) == ["median rule, 20", "median rule, 30", "HMC, 480 draws"]
    first, last = metrics[0], metrics[-1]
    assert last["ksd"] < first["ksd"] / 5
    assert last["mean_error"] < 0.5
    chain = rows["HMC, 480 draws"]
    assert abs(last["test_log_likelihood"] - chain["test_log_likelihood"]) < 0.02
    assert rows["median rule, 20"]["ms, kernelgrad"] > 0
    assert rows["median rule, 20"]["ms, blackjax"] == "not installed"
    for name in ("config.json", "table.md", "curves.png", "median/particles30/curves.png"):
        assert (whole / name).stat().st_size > 0
    stored = json.loads((whole / "results.json").read_text())
    assert stored["svgd"] == rows
    assert stored["chain"]["r_hat"] < 1.2
    assert "| median rule, 20" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_particles": ()}, r"num_particles: got \[\]; expected distinct integers in"),
        ({"num_particles": (1,)}, r"num_particles: got 1; expected distinct integers in"),
        ({"num_particles": (481,)}, "num_particles: got 481; expected at most the 480 draws"),
        ({"lengthscales": ("mean",)}, r"lengthscales: got 'mean'; expected distinct ones of"),
        ({"optimizer": "sgd"}, "optimizer: got 'sgd'; expected one of adam, adagrad"),
        ({"num_steps": 0}, "num_steps: got 0; expected an integer in"),
        ({"num_chains": 1}, "num_chains: got 1; expected an integer in"),
        ({"batch_size": 0}, "batch_size: got 0; expected an integer in"),
        ({"batch_size": 1282}, "batch_size: got 1282; expected at most the 1281 training rows"),
        ({"learning_rate": -1.0}, "learning_rate: got -1.0; expected a number in"),
        ({"prior_precision": 0.0}, "prior_precision: got 0.0; expected a number in"),
    ],
)
def test_bad_settings_are_named(tmp_path, rng, change, message):
    write_wines(tmp_path, rng)
    config = dataclasses.replace(TINY, **change)
    with pytest.raises(UsageError, match=message):
        svgd_posterior.run(config, workdir=str(tmp_path / "run"), data_dir=str(tmp_path))
    assert not (tmp_path / "run").exists()


@pytest.mark.thorough
def test_the_binary_names_the_absent_table(tmp_path, refusal):
    line = refusal("svgd_posterior", f"--workdir={tmp_path}/run", f"--data_dir={tmp_path}")
    assert line.startswith("red_wine: ")
    assert "winequality-red.csv" in line
