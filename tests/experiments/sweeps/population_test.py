"""Many runs in one program: each is its separate run, whatever befalls the others."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments.run.errors import UsageError
from experiments.sweeps import population, runs
from experiments.training import fit
from experiments.training.settings import Config

BASE = Config(
    objective="mmd",
    dataset="swiss_roll",
    num_steps=4,
    eval_every=2,
    batch_size=10,
    latent_dim=2,
    width=4,
)


def train(root, base=BASE, *, devices=1, **grid):
    found = runs.validate(runs.expand(base, grid))
    data = runs.load(found, None)
    population.check(found, data)
    left = runs.unfinished(root, found)
    population.run(root, left, data, jax.local_devices()[:devices])
    return found


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same(got, expected, rtol=1e-5):
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose([*one.values()], [*other.values()], rtol=rtol, atol=1e-6)


def assert_separate(root, run):
    """A run of a population has left what its separate run leaves, to rounding."""
    separate = root.parent / "separate"
    fit.run(run.config, workdir=str(separate), num_devices=1)
    assert_same(records(root / run.name), records(separate))
    assert runs.progress_of(root, run).step == run.config.num_steps
    assert (root / run.name / "checkpoints" / str(run.config.num_steps)).is_dir()
    assert fit.run(run.config, workdir=str(root / run.name), num_devices=1)["step"] == 4


@pytest.mark.thorough
def test_each_is_its_separate_run(tmp_path):
    base = dataclasses.replace(BASE, objective="sliced_energy", num_projections=4)
    found = train(tmp_path / "all", base, b1=(0.1, 0.9), seed=(0, 3))
    assert_separate(tmp_path / "all", found[-1])


@pytest.mark.thorough
def test_each_goes_on_where_it_was_cut(tmp_path):
    grid = {"learning_rate": (1e-3, 1e-2), "kernel_scales": ((0.5, 2.0),), "seed": (0, 3)}
    cut = dataclasses.replace(BASE, num_steps=2)
    train(tmp_path / "all", cut, devices=2, **grid)
    found = train(tmp_path / "all", devices=2, **grid)
    assert len({path.name for path in (tmp_path / "all").iterdir()}) == 4
    assert_separate(tmp_path / "all", found[-1])


VARIED = {
    "kl": {"ridge": (1.0, 4.0), "b1": (0.5, 0.9), "seed": (0, 1, 2)},
    "gan_kl": {"critic_learning_rate": (None, 1e-2), "noise_variance": (0.0, 0.1, 0.2)},
    "wgan_gp": {"penalty_weight": (0.1, 1.0), "learning_rate": (1e-4, 1e-3)},
    "noisy_jsd": {"noise_variance": (0.1, 0.2), "seed": (0, 1)},
    "ratio_ulsif": {"kernel_scales": ((1.0,), (2.0,)), "select": (False, True)},
    "ratio_rulsif": {"alpha": (0.3, 0.5), "ridge": (0.1, 0.2)},
    "mmd": {"update": ("regression", "gauss_newton"), "step_size": (0.2, 0.5)},
    "drift": {"temperatures": ((0.1, 0.2), (0.3, 0.4))},
    "mmd_gan": {"kernel_scales": ((0.5, 1.0), (1.0, 2.0)), "penalty_weight": (0.5, 1.0)},
    "kale_flow": {"regularization": (0.1, 1.0)},
    "sinkhorn": {"epsilon": (0.05, 0.5)},
    "noisy_mmd": {"noise_scale": (0.0, 0.1)},
    "f_divergence": {"ridge": (1.0, 2.0)},
    "wgan_clip": {"clip": (0.01, 0.1)},
    "energy_distance": {"ema": (0.5, 0.9), "warmup": (1, 2), "clip_norm": (0.01, 1.0)},
    "steingan": {"leading_discount": (0.5, 0.9), "freeze_threshold": (0.5, 1.0)},
    "kale": {"log_normalizer_rate": (0.1, 0.2)},
}


DEAR = {"mmd_gan", "sinkhorn", "steingan"}  # to compile; gan_kl and kale have critics, too


@pytest.mark.thorough
@pytest.mark.parametrize(
    "objective",
    [pytest.param(name, marks=pytest.mark.slow) if name in DEAR else name for name in VARIED],
)
def test_every_number_is_that_of_the_separate_run(tmp_path, objective):
    base = dataclasses.replace(BASE, objective=objective, log_normalizer="ema", batch_size=8)
    if objective == "kale_flow":
        base = dataclasses.replace(base, kernel="rbf")
    found = train(tmp_path / "all", base, devices=2, **VARIED[objective])
    assert_separate(tmp_path / "all", found[-1])


@pytest.mark.thorough
def test_images_of_classes_are_those_of_the_separate_run(tmp_path):
    base = dataclasses.replace(BASE, dataset="digits", objective="gan_kl", conditional=True)
    found = train(tmp_path / "all", base, learning_rate=(1e-3, 1e-2))
    assert_separate(tmp_path / "all", found[-1])


@pytest.mark.thorough
def test_a_run_that_diverges_stops_no_other(tmp_path):
    found = train(tmp_path / "all", learning_rate=(1e-3, 1e30))
    good, lost = (runs.progress_of(tmp_path / "all", run) for run in found)
    assert (good.step, good.ended) == (4, None)
    assert lost.ended in {f"diverged: step {step}: the state is not finite" for step in (1, 2)}
    assert runs.unfinished(tmp_path / "all", found) == []
    assert_separate(tmp_path / "all", found[0])


def test_data_that_do_not_fit_on_the_device_are_refused():
    base = dataclasses.replace(BASE, resident_gib=1e-6)
    found = runs.expand(base, {"seed": (0,)})
    with pytest.raises(UsageError, match=r"resident_gib: got 1e-06 for .* of swiss_roll"):
        population.check(found, runs.load(found, None))


FLAGS = [
    "--sweep=learning_rate=1e-3,1e-2;seed=0..2", "--objective=mmd", "--dataset=ring",
    "--batch_size=10", "--latent_dim=2", "--width=4", "--num_steps=800", "--eval_every=100",
]  # fmt: skip


@pytest.mark.thorough
def test_a_sweep_killed_half_way_ends_in_the_same_table(tmp_path):
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    code = (  # saves at every evaluation, so that a kill finds runs at different steps
        "import sys; from experiments import sweep; from experiments.sweeps import population; "
        "population._SAVE_SECONDS = 0.0; sys.argv = sys.argv[1:]; sweep.main()"
    )

    def start(workdir):
        command = [sys.executable, "-c", code, "sweep", f"--workdir={workdir}", *FLAGS]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait() == 0
    for step in (100, 400):
        cut = start(tmp_path / "cut")
        awaited = f"*/checkpoints/{step}"
        while cut.poll() is None and not any((tmp_path / "cut").glob(awaited)):
            time.sleep(0.01)
        cut.send_signal(signal.SIGKILL)
        assert cut.wait() == -signal.SIGKILL
    assert start(tmp_path / "cut").wait() == 0
    assert (tmp_path / "cut" / "table.md").read_text() == (
        (tmp_path / "whole" / "table.md").read_text()
    )
