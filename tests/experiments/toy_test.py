"""Fields of frames, what runs leave behind, bad input."""

import dataclasses
import io
import itertools
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import toy
from experiments.pictures.clouds import FieldFrame
from experiments.reports import toys
from experiments.run import command, fields, store, timing
from experiments.run.errors import DivergenceError, Terminated, UsageError
from experiments.run.workdirs import Workdir
from experiments.targets import densities
from experiments.training import presets
from experiments.training.choices import Choice
from experiments.training.objectives import OBJECTIVES
from experiments.training.settings import Config

TINY = Config(
    objective="gan_kl",
    dataset="mixture",
    num_steps=6,
    batch_size=16,
    latent_dim=2,
    width=8,
    critic_steps=1,
    eval_every=2,
)


@pytest.fixture(scope="module")
def ruler():
    """Of the mixture, with fewer samples and a coarser grid."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"NUM_EVALUATED": 300, "_GRID": 60, "_FRESH_SETS": 2}.items():
            patch.setattr(toys, name, value)
        yield toys.make_ruler(jax.random.key(0), densities.load("mixture"))


@pytest.fixture
def small(monkeypatch, ruler):
    """Fewer samples and arrows, and the same ruler for all."""
    monkeypatch.setattr(toys, "NUM_EVALUATED", 300)
    monkeypatch.setattr(toys, "make_ruler", lambda *_: ruler)
    for name, value in {"_NUM_TRAIN": 400, "_NUM_DRAWN": 50, "_LATTICE": 5}.items():
        monkeypatch.setattr(toy, name, value)
    monkeypatch.setattr(timing, "_TIMED_SECONDS", 0.0)


def looked(objective, ruler, key):
    lab = toy.make_lab(key, dataclasses.replace(TINY, objective=objective), ruler)
    state = lab.model.initial_state(key)
    _, frame = lab.look(state)
    return lab.model, state, FieldFrame(**jax.device_get(frame))


@pytest.mark.thorough
@pytest.mark.parametrize("objective", ["gan_kl", "gan_saturating"])
def test_arrows_at_the_lattice_raise_the_critic(objective, small, ruler, key):
    model, state, frame = looked(objective, ruler, key)
    assert frame.points.shape == frame.arrows.shape == (25, 2)
    assert frame.samples.shape == (50, 2)
    (left, right), (bottom, top) = densities.load("mixture").bounds
    assert left < frame.points[:, 0].min() < frame.points[:, 0].max() < right
    assert bottom < frame.points[:, 1].min() < frame.points[:, 1].max() < top

    def values(points):
        critic = model.objective
        output, _ = critic.apply(state.critic.params, state.critic.stats, jnp.asarray(points))
        return np.asarray(output, np.float64)

    step = 1e-2 * frame.arrows / np.linalg.norm(frame.arrows, axis=1, keepdims=True)
    assert np.all(values(frame.points + step) > values(frame.points - step))


def pulled_to(centre):
    """Returns an objective without a critic that descends the squared distance to a point."""

    def objective(key, samples, data, *, axis_name=None):
        return 2 * (samples - centre), {}

    return Choice("", lambda: objective)


@pytest.mark.thorough
def test_arrows_at_the_samples_are_minus_the_direction(small, ruler, key, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "mmd", pulled_to(3.0))
    _, _, frame = looked("mmd", ruler, key)
    np.testing.assert_array_equal(frame.points, frame.samples[: TINY.batch_size])
    np.testing.assert_allclose(frame.arrows, 2 * (3 - frame.points), rtol=1e-5)


def records(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.thorough
def test_a_run_leaves_everything_and_resumes_bit_for_bit(
    tmp_path, small, ruler, capsys, monkeypatch
):
    rows = toy.run(toy.Config(TINY), workdir=str(tmp_path))
    assert list(rows)[:2] == ["start", "gan_kl"]
    assert (tmp_path / "table.md").read_text().split("\n", 2)[2].strip() in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text()) == rows
    assert json.loads((tmp_path / "config.json").read_text())["dataset"] == "mixture"
    for picture in ("samples.png", "curves.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    with Image.open(io.BytesIO((tmp_path / "evolution.gif").read_bytes())) as gif:
        assert gif.n_frames == 4
    history = records(tmp_path)
    assert [record["step"] for record in history] == [0, 2, 4, 6]
    assert {"true_kl", "modes", "critic_loss", "direction_rms"} <= history[-1].keys()
    assert rows["gan_kl"]["KL[Q||P]"] == history[-1]["true_kl"]
    moved = [toy.read_frame(tmp_path, record).samples for record in history]
    assert all(np.any(a != b) for a, b in itertools.pairwise(moved))

    monkeypatch.setattr(toy, "time_steps", lambda _: {"gan_kl": 1.0})
    stamp = (tmp_path / "evolution.gif").stat().st_mtime_ns
    toy.run(toy.Config(TINY), workdir=str(tmp_path))
    assert (tmp_path / "evolution.gif").stat().st_mtime_ns == stamp

    (tmp_path / "frames/0000002.npz").write_bytes(b"damaged")
    other = store.packed({"samples": np.zeros(3), "points": 0, "arrows": np.zeros((2, 2))})
    (tmp_path / "frames/0000004.npz").write_bytes(other)
    (tmp_path / "frames/0000006.npz").unlink()
    capsys.readouterr()
    toy.run(toy.Config(TINY), workdir=str(tmp_path))
    said = capsys.readouterr().err
    assert said.count("the frame is drawn anew") == 3
    for record, samples in zip(history, moved, strict=True):
        np.testing.assert_array_equal(toy.read_frame(tmp_path, record).samples, samples)

    stopped = tmp_path / "stopped"
    lab = toy.make_lab(jax.random.split(jax.random.key(0))[0], TINY, ruler)
    with Workdir(stopped, TINY) as folder, pytest.raises(Terminated, match="SIGTERM: saved step 2"):
        toy.train_one(lab, 0, folder, SimpleNamespace(stop=signal.SIGTERM))
    assert records(stopped) == history[:2]
    with Workdir(stopped, TINY) as folder:
        assert toy.train_one(lab, 0, folder, SimpleNamespace(stop=None)) == history
    for record in history:
        for got, expected in zip(
            *(toy.read_frame(p, record) for p in (stopped, tmp_path)), strict=True
        ):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.slow
def test_comparison_starts_all_from_one_network_a_seed(tmp_path, small, monkeypatch):
    for name, centre in (("noisy_jsd", 0.0), ("mmd", 2.0)):
        monkeypatch.setitem(OBJECTIVES, name, pulled_to(centre))
    config = dataclasses.replace(TINY, num_steps=2, learning_rate=0.01)
    compared = toy.Config(config, ("noisy_jsd", "mmd:learning_rate=0.01"), (0, 3))
    assert list(toy.run(compared, workdir=str(tmp_path)))[:3] == ["start", *compared.objectives]
    for picture in ("samples.png", "comparison.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    runs = [tmp_path / name / f"seed{k}" for name in compared.objectives for k in (0, 3)]
    assert all((run / "evolution.gif").exists() for run in runs)
    starts, ends = zip(*map(records, runs), strict=True)
    assert starts[0] == starts[2] != starts[1] == starts[3]
    assert len({end["true_kl"] for end in ends}) == 4
    configs = [json.loads((run / "config.json").read_text()) for run in runs]
    assert [one["seed"] for one in configs] == [0, 3, 0, 3]
    assert [one["noise_variance"] for one in configs] == [0.01, 0.01, 0.0, 0.0]


def test_only_two_objectives_need_settings_of_their_own():
    configs = {name: toy.for_objective(TINY, name) for name in OBJECTIVES}
    assert configs.pop("noisy_jsd").noise_variance > 0
    assert configs.pop("wgan_gp").penalty_weight == 0.1
    for name, config in configs.items():
        assert config == dataclasses.replace(TINY, objective=name)
    asked = dataclasses.replace(TINY, noise_variance=0.5, penalty_weight=2.0)
    for name in OBJECTIVES:
        assert toy.for_objective(asked, name) == dataclasses.replace(asked, objective=name)
    variant = toy.for_objective(TINY, "wgan_gp:penalty_weight=2:learning_rate=0.1")
    changed = {"objective": "wgan_gp", "penalty_weight": 2.0, "learning_rate": 0.1}
    assert variant == dataclasses.replace(TINY, **changed)
    assert toy.for_objective(TINY, "noisy_jsd:noise_variance=0").noise_variance == 0


@pytest.mark.thorough
def test_divergence_names_the_step(tmp_path, small, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "mmd", pulled_to(3.0))
    config = dataclasses.replace(TINY, objective="mmd", learning_rate=1e30)
    with pytest.raises(DivergenceError, match=r"^step [1-6]: the state is not finite"):
        toy.run(toy.Config(config), workdir=str(tmp_path))


@pytest.mark.slow
def test_kl_falls_tenfold_on_the_roll(tmp_path):
    config = dataclasses.replace(
        Config(**presets.PRESETS[toy.PRESET]), num_steps=1000, eval_every=100
    )
    rows = toy.run(toy.Config(config, seeds=(0, 1, 2)), workdir=str(tmp_path))
    assert "never" not in rows["gan_kl"]["KL / 10 at step"]


def parsed(*arguments):
    given = command.parse(["--workdir=w", *arguments], toy.Settings, toy.Options)
    return toy.configured(given, fields.pick(toy.Options, given))


def test_flags_override_the_preset():
    base = Config(**{**presets.PRESETS["paper001"], "dataset": "ring", "seed": 3})
    assert parsed("--target=ring", "--seed=3") == toy.Config(base)
    assert base.objective == "gan_kl"


def test_all_objectives_and_seeds(monkeypatch):
    config = parsed("--objectives=all", "--seeds=0,2")
    assert config.objectives == tuple(OBJECTIVES)
    assert config.seeds == (0, 2)
    absent = OBJECTIVES["sinkhorn"]._replace(extra="no_such_package")
    monkeypatch.setitem(OBJECTIVES, "sinkhorn", absent)
    others = tuple(name for name in OBJECTIVES if name != "sinkhorn")
    assert parsed("--objectives=all").objectives == others


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--objective=kl", "--objectives=mmd"), "objective: got --objective and --objectives"),
        (("--dataset=ring",), "flag: got --dataset; expected a known flag such as --target"),
        (("--seed=1", "--seeds=2"), "seed: got --seed and --seeds"),
        (("--seeds=0,x",), "seeds: got .*; expected distinct integers in"),
    ],
)
def test_flags_that_contradict_are_named(arguments, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        parsed(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "logistic_regression"}, "target: got 'logistic_regression'; expected one of"),
        ({"dataset": "digits"}, "target: got 'digits'; expected one of ring, banana"),
        ({"noise_variance": -1.0}, "noise_variance: got -1.0; expected a number in"),
        ({"batch_size": 6_000, "critic_steps": 2}, "batch_size: got 6000, 12000 rows a step"),
        ({"clip": 0.0}, "clip: got 0.0; expected a number in"),
    ],
)
def test_settings_out_of_range_are_named(tmp_path, changes, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        toy.run(toy.Config(dataclasses.replace(TINY, **changes)), workdir=str(tmp_path))


@pytest.mark.thorough
def test_bad_input_is_one_line(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "experiments.toy", f"--workdir={tmp_path}", "--objectives=gan_k"],
        capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip
    assert process.returncode == 2
    assert "objective: got 'gan_k'; expected one of kl, mmd," in process.stderr
    assert "Did you mean gan_kl?" in process.stderr
    assert process.stderr.count("\n") == 1
