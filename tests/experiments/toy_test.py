"""Figures against loops and closed forms, fields by their effect, what runs leave, bad input."""

import dataclasses
import io
import itertools
import json
import math
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
from scipy import stats

from experiments import toy
from experiments.pictures.clouds import Backdrop, FieldFrame
from experiments.reports import toys
from experiments.run import command, fields, timing
from experiments.run.errors import DivergenceError, Terminated, UsageError
from experiments.run.workdirs import Workdir
from experiments.targets import densities
from experiments.targets.densities import Modes, Target
from experiments.training import presets, settings
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
    monkeypatch.setattr(timing, "_TIMED_STEPS", 2)


# ----------------------------------------------------------------------------------- the figures


def gaussian_target(modes=None):
    return Target(
        "gaussian",
        lambda x: -jnp.sum(jnp.square(x)) / 2 - 3.0,
        2,
        lambda key, n: jax.random.normal(key, (n, 2)),
        ((-6.0, 6.0), (-5.0, 5.0)),
        modes,
    )


def measured(target, samples, bandwidth, columns=80, rows=70):
    (left, right), (bottom, top) = target.bounds
    x, y = jnp.linspace(left, right, columns), jnp.linspace(bottom, top, rows)
    grid = jnp.stack(jnp.meshgrid(x, y), axis=-1)
    log_density = jax.vmap(jax.vmap(target.log_density_fn))(grid)
    measure = jax.jit(toys.make_measure(target, (x, y), log_density))
    figures = measure(jnp.asarray(samples, jnp.float32), bandwidth)
    return {name: float(value) for name, value in figures.items()}


def test_figures_are_those_of_the_loops(rng):
    samples = rng.normal((0.8, -0.3), (0.5, 1.1), (20, 2))
    x, y = np.linspace(-6, 6, 80), np.linspace(-5, 5, 70)
    p, q = np.zeros((2, 70, 80))
    for row in range(70):
        p[row] = stats.norm.pdf(x) * stats.norm.pdf(y[row])
        for a, b in samples:
            q[row] += stats.norm.pdf(x, a, 0.3) * stats.norm.pdf(y[row], b, 0.3)
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    expected = {
        "true_kl": stats.entropy(q.ravel(), p.ravel()),
        "true_jsd": sum(stats.entropy(one.ravel(), middle.ravel()) for one in (p, q)) / 2,
        "on_data": np.mean(np.linalg.norm(samples, axis=1) < math.sqrt(stats.chi2.ppf(0.99, 2))),
        "coverage": p[q >= p / 10].sum(),
    }
    got = measured(gaussian_target(), samples, 0.3)
    assert got == pytest.approx(expected, rel=1e-3)


def test_on_data_is_the_share_in_the_region_of_highest_density():
    """99% of a standard normal in the plane lies within 3.035 of its mean."""
    angle = np.linspace(0, 6, 100)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    inside, outside = (measured(gaussian_target(), r * circle, 0.3, 300, 300) for r in (2.99, 3.08))
    assert inside["on_data"] == 1
    assert outside["on_data"] == 0


def test_kl_of_gaussians_is_the_closed_form(key):
    """The estimate of q is N(m, (s^2 + h^2) I); its noise adds less than 0.01 at 20 000 draws."""
    mean, deviation, bandwidth = np.array([1.0, -0.5]), 0.5, 0.2
    samples = mean + deviation * np.asarray(jax.random.normal(key, (20_000, 2)))
    variance = deviation**2 + bandwidth**2
    expected = variance - 1 + np.sum(mean**2) / 2 - math.log(variance)
    got = measured(gaussian_target(), samples, bandwidth)["true_kl"]
    standard_error = math.sqrt((1 - variance) ** 2 * deviation**4 + 1.25 * deviation**2) / 141
    assert abs(got - expected) < 5 * standard_error + 0.01


def test_samples_beyond_the_grid_count_at_its_edge():
    beyond, edge = np.array([[90.0, 0.0], [7.0, 0.0]]), np.array([[6.0, 0.0], [6.0, 0.0]])
    got = measured(gaussian_target(), beyond, 0.2)
    assert got == measured(gaussian_target(), edge, 0.2)
    assert got["true_jsd"] == pytest.approx(math.log(2), abs=1e-5)
    assert 15 < got["true_kl"] < 22
    assert got["coverage"] < 1e-5


def test_modes_are_those_with_a_fifth_of_their_share():
    """Of four modes and 100 samples a mode needs more than 5, within 3 widths."""
    centres = np.array([[-3.0, 0.0], [3.0, 0.0], [0.0, 3.0], [0.0, -3.0]])
    counts, offsets = (80, 6, 4, 10), (0.0, 0.29, 0.0, 0.31)
    samples = np.concatenate(
        [
            np.tile((centre[0] + offset, centre[1]), (count, 1))
            for centre, count, offset in zip(centres, counts, offsets, strict=True)
        ]
    )
    assert measured(gaussian_target(Modes(centres, 0.1)), samples, 0.1)["modes"] == 2
    assert "modes" not in measured(gaussian_target(), samples, 0.1)


@pytest.mark.parametrize(("name", "num_modes"), [("grid", 25), ("mixture", 8), ("ring", None)])
def test_exact_draws_reach_everything(name, num_modes, key):
    ruler = toys.make_ruler(key, densities.load(name))
    floor = {figure: mean for figure, (mean, _) in ruler.floor.items()}
    assert 0 < floor["true_kl"] < 0.1
    assert 0 < floor["true_jsd"] < 0.03
    assert floor["on_data"] == pytest.approx(0.99, abs=5 * math.sqrt(0.99 * 0.01 / 50_000) + 2e-3)
    assert floor["coverage"] > 0.98
    assert floor.get("modes") == num_modes


def test_a_target_without_draws_is_no_data(key):
    target = gaussian_target()._replace(exact_samples=None)
    with pytest.raises(UsageError, match=r"^dataset: got gaussian; expected a density in the pla"):
        toys.make_ruler(key, target)


def test_table_holds_the_end_the_fall_and_the_floor():
    floor = {"true_kl": (0.02, 0.001), "true_jsd": (0.01, 0.002)}
    backdrop = Backdrop(((0, 1), (0, 1)), ("a", "b"))
    ruler = toys.Ruler(backdrop, None, 0.04, None, floor)

    def history(*kl):
        return [{"step": 50 * i, "true_kl": k, "true_jsd": k / 20} for i, k in enumerate(kl)]

    frame = FieldFrame(*np.zeros((3, 5, 2)))
    one = toys.table({"kl": toys.Runs([history(8.0, 0.8, 1.2)], frame, 2.5)}, ruler)
    assert one == {
        "start": {"KL[Q||P]": 8.0, "JSD": 0.4},
        "kl": {
            "KL[Q||P]": 1.2,
            "JSD": 0.06,
            "lowest KL": 0.8,
            "KL / 10 at step": "50",
            "ms per step": 2.5,
        },
        "exact draws, bandwidth 0.04": {"KL[Q||P]": "0.02 ± 0.001", "JSD": "0.01 ± 0.002"},
    }
    runs = toys.Runs([history(8.0, 5.0, 1.0), history(9.0, 0.9, 0.5)], frame, 2.5)
    two = toys.table({"kl": runs}, ruler)
    assert two["kl"]["KL / 10 at step"] == "never, 50"
    assert two["kl"]["KL[Q||P]"] == "0.75 ± 0.35"
    assert two["start"]["KL[Q||P]"] == "8.5 ± 0.71"


# ------------------------------------------------------------------------------------- the fields


def looked(objective, ruler, key):
    lab = toy.make_lab(key, dataclasses.replace(TINY, objective=objective), ruler)
    state = lab.model.initial_state(key)
    _, frame = lab.look(state)
    return lab.model, state, FieldFrame(**jax.device_get(frame))


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

    return settings.Choice("", lambda _: objective)


def test_arrows_at_the_samples_are_minus_the_direction(small, ruler, key, monkeypatch):
    monkeypatch.setitem(settings.OBJECTIVES, "mmd", pulled_to(3.0))
    _, _, frame = looked("mmd", ruler, key)
    np.testing.assert_array_equal(frame.points, frame.samples[: TINY.batch_size])
    np.testing.assert_allclose(frame.arrows, 2 * (3 - frame.points), rtol=1e-5)


# --------------------------------------------------------------------------------------- the runs


def records(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


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
    np.savez(tmp_path / "frames/0000004.npz", samples=np.zeros(3), points=0, arrows=[[None, 1]])
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
        monkeypatch.setitem(settings.OBJECTIVES, name, pulled_to(centre))
    config = dataclasses.replace(TINY, num_steps=2, learning_rate=0.01)
    compared = toy.Config(config, ("noisy_jsd", "mmd"), (0, 3))
    assert list(toy.run(compared, workdir=str(tmp_path)))[:3] == ["start", "noisy_jsd", "mmd"]
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
    configs = {name: toy.for_objective(TINY, name) for name in settings.OBJECTIVES}
    assert configs.pop("noisy_jsd").noise_variance > 0
    assert configs.pop("wgan_gp").penalty_weight == 0.1
    for name, config in configs.items():
        assert config == dataclasses.replace(TINY, objective=name)
    asked = dataclasses.replace(TINY, noise_variance=0.5, penalty_weight=2.0)
    for name in settings.OBJECTIVES:
        assert toy.for_objective(asked, name) == dataclasses.replace(asked, objective=name)


def test_divergence_names_the_step(tmp_path, small, monkeypatch):
    monkeypatch.setitem(settings.OBJECTIVES, "mmd", pulled_to(3.0))
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


# --------------------------------------------------------------------------------------- bad input


def parsed(*arguments):
    given = command.parse(["--workdir=w", *arguments], Config, toy.Options)
    return toy.configured(given, fields.pick(toy.Options, given))


def test_flags_override_the_preset():
    base = Config(**{**presets.PRESETS["paper001"], "dataset": "ring", "seed": 3})
    assert parsed("--dataset=ring", "--seed=3") == toy.Config(base)
    assert base.objective == "gan_kl"


def test_all_objectives_and_seeds():
    config = parsed("--objectives=all", "--seeds=0,2")
    assert config.objectives == tuple(settings.OBJECTIVES)
    assert config.seeds == (0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--objective=kl", "--objectives=mmd"), "objective: got --objective and --objectives"),
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
        ({"dataset": "logistic_regression"}, "dataset: got 'logistic_regression'; expected one of"),
        ({"dataset": "digits"}, "dataset: got 'digits'; expected one of ring, banana"),
        ({"noise_variance": -1.0}, "noise_variance: got -1.0; expected a number in"),
        ({"batch_size": 6_000, "critic_steps": 2}, "batch_size: got 6000, 12000 rows a step"),
        ({"clip": 0.0}, "clip: got 0.0; expected a number in"),
    ],
)
def test_settings_out_of_range_are_named(tmp_path, changes, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        toy.run(toy.Config(dataclasses.replace(TINY, **changes)), workdir=str(tmp_path))


def test_bad_input_is_one_line(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "experiments.toy", f"--workdir={tmp_path}", "--objectives=gan_k"],
        capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip
    assert process.returncode == 2
    assert "objectives: got 'gan_k'; expected distinct ones of kl, mmd," in process.stderr
    assert "Did you mean gan_kl?" in process.stderr
    assert process.stderr.count("\n") == 1
