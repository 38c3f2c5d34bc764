"""Directions by loops, what runs leave behind, bad input."""

import dataclasses
import io
import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import neural_sampler
from experiments.neural_sampler import Config
from experiments.reports import sampling
from experiments.run import fields, store, timing
from experiments.run.errors import DivergenceError, UsageError
from experiments.targets import posteriors
from experiments.targets.densities import Target

TINY = Config(
    updates=("chain_rule", "regression"),
    num_steps=4,
    eval_every=2,
    batch_size=20,
    latent_dim=2,
    width=8,
    inner_steps=2,
    cg_iterations=2,
)


@pytest.fixture
def small(monkeypatch):
    """Fewer samples behind every figure."""
    monkeypatch.setattr(neural_sampler, "_NUM_DRAWN", 50)
    monkeypatch.setattr(timing, "_TIMED_SECONDS", 0.0)
    fewer = {"NUM_EVALUATED": 60, "_CHAINS": 20, "_WARMUP": 40, "_DRAWS": 50, "_GRID": 30}
    for name, value in fewer.items():
        monkeypatch.setattr(sampling, name, value)


def gaussian_target(mean, deviation):
    mean = jnp.asarray(mean)
    return Target(
        "gaussian",
        lambda x: -jnp.sum(jnp.square(x - mean)) / (2 * deviation**2),
        2,
        lambda key, n: mean + deviation * jax.random.normal(key, (n, 2)),
        ((-3.0, 3.0), (-3.0, 3.0)),
    )


def descent_by_loops(update, x, score):
    """Returns what lowers KL at points (n, 2): eq. (7), or score of the samples minus score."""
    n = len(x)
    pairs = x[:, None] - x[None]
    square = np.sum(pairs**2, axis=2)
    median = np.median(square[np.triu_indices(n, 1)])
    if update != "stein_score":
        width2 = median / (2 * np.log(n + 1))
        gram = np.exp(-square / (2 * width2))
        return -(gram @ score + np.einsum("ij,ijd->id", gram, pairs) / width2) / n
    gram, repulsion = np.zeros((n, n)), np.zeros((n, 2))
    for scale in (0.01, 0.05, 0.25, 1.0):
        base = 1 + square / (scale * median)
        gram += base**-0.5
        repulsion += np.einsum("ij,ijd->id", base**-1.5, pairs) / (scale * median)
    ridge = 0.02 * 0.1 * math.sqrt(n) * 4
    return -np.linalg.solve(gram + ridge * np.eye(n), repulsion) - score


@pytest.mark.thorough(quick=3)
@pytest.mark.parametrize("update", ["gauss_newton", "stein_score"])
@pytest.mark.parametrize(("step", "factor"), [(0, 0.02), (10, 0.25), (60, 1.0)])
def test_direction_is_that_of_the_loops(update, step, factor, rng):
    config = dataclasses.replace(TINY, num_steps=80, annealing=0.5)
    direction = neural_sampler.make_direction(config, update, gaussian_target([1.0, -1.0], 0.5))
    x = rng.normal(size=(9, 2))
    expected = descent_by_loops(update, x, factor * (np.array([1.0, -1.0]) - x) / 0.25)
    got = jax.jit(direction)(jnp.array(step), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.thorough
@pytest.mark.parametrize("update", neural_sampler.UPDATES)
def test_a_rule_reads_what_it_is_declared_to(update, key):
    """The program of a step is another under another value of such a setting, else the same."""

    def program(config):
        sampler = neural_sampler.make_sampler(
            key, config, update, gaussian_target([1.0, -1.0], 0.7), variance=0.49
        )
        state = jax.eval_shape(sampler.initial_state)
        return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(sampler.advance)(state, 1)))

    start = program(TINY)
    for name, rule in fields.rules(Config).items():
        if rule.of:
            changed = program(dataclasses.replace(TINY, **{name: 3 * getattr(TINY, name)}))
            assert (changed != start) == (update in rule.of(name)), name


@pytest.mark.thorough
@pytest.mark.parametrize(
    "update",
    [
        "regression",
        "stein_score",
        pytest.param("chain_rule", marks=pytest.mark.slow),
        pytest.param("gauss_newton", marks=pytest.mark.slow),
    ],
)
def test_every_rule_moves_the_samples_to_the_target(update, key):
    """Mean and standard deviation come within a quarter; a sign or a scale gone wrong does not."""
    config = Config(
        num_steps=150, batch_size=64, latent_dim=2, width=16, annealing=0.2, learning_rate=1e-2
    )
    sampler = neural_sampler.make_sampler(
        key, config, update, gaussian_target([1.0, -1.0], 0.7), variance=0.49
    )
    state, finite = sampler.advance(sampler.initial_state(), 150)
    samples = np.asarray(sampler.samples(state))
    assert finite
    assert int(state.step) == 150
    np.testing.assert_allclose(samples.mean(axis=0), [1, -1], atol=0.25)
    np.testing.assert_allclose(samples.std(axis=0), 0.7, atol=0.25)


@pytest.mark.slow
def test_a_run_leaves_everything_and_resumes_bit_for_bit(tmp_path, small, capsys):
    config = dataclasses.replace(TINY, updates=("chain_rule", "stein_score"))
    rows = neural_sampler.run(config, workdir=str(tmp_path))
    assert list(rows)[:2] == ["chain_rule, step 4", "stein_score, step 4"]
    assert list(rows)[-1] == "fresh draws, exact"
    assert json.loads((tmp_path / "results.json").read_text()) == rows
    table = (tmp_path / "table.md").read_text().split("\n", 2)[2].strip()
    assert table in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text())["target"] == "ring"
    for picture in ("samples.png", "curves.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    with Image.open(io.BytesIO((tmp_path / "evolution.gif").read_bytes())) as gif:
        assert gif.n_frames == 3
    whole = {}
    for name in config.updates:
        whole[name] = (tmp_path / name / "metrics.jsonl").read_bytes()
        records = [json.loads(line) for line in whole[name].splitlines()]
        assert [record["step"] for record in records] == [0, 2, 4]
        assert records[-1]["ksd2"] == rows[f"{name}, step 4"]["KSD^2"]
        assert _samples(tmp_path / name / "frames" / "0000004.npz").shape == (50, 2)

    shutil.rmtree(tmp_path / "chain_rule" / "checkpoints" / "4")
    frame = tmp_path / "stein_score" / "frames" / "0000002.npz"
    drawn = _samples(frame)
    frame.write_bytes(store.packed({"samples": drawn[:7]}))
    stamps = _frame_stamps(tmp_path)
    neural_sampler.run(config, workdir=str(tmp_path))
    np.testing.assert_array_equal(_samples(frame), drawn)
    for name in config.updates:
        assert (tmp_path / name / "metrics.jsonl").read_bytes() == whole[name]
    changed = {path for path, stamp in _frame_stamps(tmp_path).items() if stamp != stamps[path]}
    assert changed == {tmp_path / "chain_rule" / "frames" / "0000004.npz", frame}


def _samples(frame):
    return store.read(frame, 10**6)["samples"]


def _frame_stamps(workdir):
    return {path: path.stat().st_mtime_ns for path in workdir.glob("*/frames/*.npz")}


@pytest.mark.slow
def test_a_target_without_draws_is_judged_by_a_chain(tmp_path, small, monkeypatch, rng):
    features = jnp.asarray(np.insert(rng.normal(size=(30, 2)), 0, 1, axis=1), jnp.float32)
    labels = jnp.asarray(rng.integers(2, size=30), jnp.float32)
    posterior = posteriors.LogisticPosterior(features, labels, features, labels, 1.0)
    monkeypatch.setattr(posteriors, "red_wine", lambda *_, **__: posterior)
    config = dataclasses.replace(TINY, target="logistic_regression", updates=("chain_rule",))
    rows = neural_sampler.run(config, workdir=str(tmp_path))
    assert list(rows)[-1] == "fresh draws, HMC"
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert _samples(tmp_path / "chain_rule" / "frames" / "0000004.npz").shape == (50, 3)


@pytest.mark.slow
def test_divergence_names_the_rule(tmp_path, small):
    config = dataclasses.replace(TINY, learning_rate=1e30, updates=("chain_rule",))
    with pytest.raises(DivergenceError, match=r"step [24]: chain_rule: the network is not finite"):
        neural_sampler.run(config, workdir=str(tmp_path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target", "rign"),
        ("num_steps", 0),
        ("eval_every", -1),
        ("batch_size", 1),
        ("latent_dim", 0),
        ("width", 0),
        ("inner_steps", 0),
        ("cg_iterations", 0),
        ("seed", -1),
        ("learning_rate", 0.0),
        ("step_size", math.inf),
        ("inner_learning_rate", math.nan),
        ("damping", -1.0),
        ("annealing", 1.5),
    ],
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(UsageError, match=f"^{field}: got "):
        fields.validate(dataclasses.replace(Config(), **{field: value}))


@pytest.mark.parametrize("updates", [(), ("chain_rule", "gauss")])
def test_an_unknown_rule_is_named(updates):
    with pytest.raises(
        UsageError, match=r"^update: got .* expected distinct ones of chain_rule, regressi"
    ):
        fields.validate(dataclasses.replace(Config(), updates=updates))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target=swis_roll"], "target: got 'swis_roll'; expected one of ring, banana, mixture,"),
        (["--num_steps=0"], "num_steps: got 0; expected an integer in [1, 1000000000]"),
    ],
)
def test_bad_input_is_one_line(tmp_path, refusal, arguments, message):
    assert message in refusal("neural_sampler", f"--workdir={tmp_path}", *arguments)
