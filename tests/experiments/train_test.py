"""The training binary: what a run leaves behind, survival, devices, bad input."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.data import catalog
from experiments.pictures import charts
from experiments.run.errors import DataError, DivergenceError, UsageError
from experiments.training import fit
from experiments.training.objectives import OBJECTIVES
from experiments.training.settings import Config

TINY = Config(num_steps=20, eval_every=10, batch_size=20, latent_dim=4, width=4)
POINTS = dataclasses.replace(TINY, dataset="swiss_roll", width=8)
TINY_FLAGS = ["--batch_size=20", "--latent_dim=4", "--width=4"]
SLOW = os.environ.get("KERNELGRAD_SLOW_TESTS") == "1"


def _run(config, workdir, **options):
    return fit.run(config, workdir=str(workdir), num_devices=1, **options)


def _metrics(workdir):
    return (workdir / "metrics.jsonl").read_text()


@pytest.mark.thorough
def test_a_run_leaves_pictures_metrics_and_checkpoints(tmp_path, monkeypatch):
    floors, draw = [], charts.learning_curves
    monkeypatch.setattr(charts, "learning_curves", lambda *a: floors.append(a[1]) or draw(*a))
    last = _run(TINY, tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.json", "metrics.jsonl", "curves.png", "samples", "checkpoints"} <= names
    for picture in ("curves.png", "samples/0000010.png", "samples/0000020.png"):
        assert (tmp_path / "run" / picture).read_bytes().startswith(b"\x89PNG")
    records = [json.loads(line) for line in _metrics(tmp_path / "run").splitlines()]
    assert [record["step"] for record in records] == [10, 20]
    measured = {"test_mmd", "label_entropy", "nearest_l1"}
    assert measured | {"mmd", "direction_rms"} <= set(records[-1])
    assert measured == set(fit.METRICS) & set(records[-1])
    assert records[-1] == last
    assert floors == 2 * [fit.real_scores(catalog.load("digits"))]
    assert floors[0].keys() == measured - {"test_mmd"}


@pytest.mark.slow
def test_a_resumed_run_fed_by_the_host_is_bit_identical(tmp_path):
    """The runs that are killed below have their data on the device."""
    config = dataclasses.replace(POINTS, resident_gib=1e-9)
    _run(config, tmp_path / "whole")
    _run(dataclasses.replace(config, num_steps=10), tmp_path / "cut")
    _run(config, tmp_path / "cut")
    assert _metrics(tmp_path / "cut") == _metrics(tmp_path / "whole")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(name, marks=pytest.mark.slow) if name != "gan_kl" else name
        for name in OBJECTIVES
    ],
)
def test_every_objective_resumes_with_its_critic(tmp_path, objective):
    config = dataclasses.replace(
        POINTS,
        objective=objective,
        num_steps=4,
        eval_every=2,
        noise_variance=0.1,
        noise_steps=4,
    )
    _run(config, tmp_path / "whole")
    _run(dataclasses.replace(config, num_steps=2), tmp_path / "cut")
    _run(config, tmp_path / "cut")
    assert _metrics(tmp_path / "cut") == _metrics(tmp_path / "whole")


@pytest.mark.thorough
def test_averages_and_warmed_up_optimizers_resume_bit_for_bit(tmp_path):
    config = dataclasses.replace(
        POINTS,
        objective="sliced_energy",
        num_projections=4,
        num_steps=4,
        eval_every=2,
        optimizer="rmsprop",
        momentum=0.5,
        warmup=1,
        clip_norm=0.1,
        ema=0.9,
    )
    _run(config, tmp_path / "whole")
    _run(dataclasses.replace(config, num_steps=2), tmp_path / "cut")
    _run(config, tmp_path / "cut")
    assert _metrics(tmp_path / "cut") == _metrics(tmp_path / "whole")
    leaves = json.loads((tmp_path / "cut/checkpoints/4/checkpoint.json").read_text())["leaves"]
    kept = [name.removeprefix(".ema[0]") for name in leaves if name.startswith(".ema[0]")]
    assert kept == [name.removeprefix(".params") for name in leaves if name.startswith(".params")]


@pytest.mark.thorough
def test_a_finished_run_is_left_alone(tmp_path, capsys):
    first = _run(POINTS, tmp_path)
    assert _run(POINTS, tmp_path) == first
    assert "already at step 20 of 20" in capsys.readouterr().out


@pytest.mark.slow
def test_two_devices_train_like_one(tmp_path):
    config = dataclasses.replace(TINY, num_steps=10)
    alone = _run(config, tmp_path / "one")
    spread = fit.run(config, workdir=str(tmp_path / "two"), num_devices=2)
    for name in ("mmd", "direction_rms", "test_mmd"):
        np.testing.assert_allclose(spread[name], alone[name], rtol=1e-3)


@pytest.mark.thorough
def test_divergence_names_the_step_and_keeps_the_last_good_state(tmp_path):
    config = dataclasses.replace(POINTS, learning_rate=1e30, num_steps=40)
    with pytest.raises(DivergenceError, match=r"step [12]: the state is not finite"):
        _run(config, tmp_path)
    assert not any((tmp_path / "checkpoints").iterdir())


def _command(workdir, *extra):
    return [
        sys.executable, "-m", "experiments.train", f"--workdir={workdir}", "--num_devices=1",
        *TINY_FLAGS, *extra,
    ]  # fmt: skip


def _environment(tmp_path):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path.parent / "compiled")}
    return {**os.environ, **cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}


@pytest.mark.slow
def test_kills_lose_nothing(tmp_path, rng):
    """kill -9 at random moments; the metrics in the end are those of an uninterrupted run."""
    kills, every = (20, 50) if SLOW else (2, 50)
    steps = [f"--num_steps={every * (kills + 2)}", f"--eval_every={every}"]
    environment = _environment(tmp_path)
    whole = subprocess.run(
        _command(tmp_path / "whole", *steps), env=environment, capture_output=True, check=False
    )
    assert whole.returncode == 0, whole.stderr
    checkpoints = tmp_path / "cut" / "checkpoints"
    for kill in range(kills + 1):
        process = subprocess.Popen(
            _command(tmp_path / "cut", *steps),
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        if kill < kills:
            target = checkpoints / str(every * (kill + 1))
            saving = target.with_name(f"tmp-{target.name}")
            awaited = (target, saving) if kill % 2 else (target,)
            while process.poll() is None and not any(path.exists() for path in awaited):
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.05 if kill % 2 else 0.2))
            process.kill()
        _, errors = process.communicate()
        assert process.returncode == (-signal.SIGKILL if kill < kills else 0), errors
    assert _metrics(tmp_path / "cut") == _metrics(tmp_path / "whole")


@pytest.mark.thorough
def test_sigterm_saves_and_exits_143(tmp_path):
    environment = _environment(tmp_path)
    steps = ["--num_steps=100000", "--eval_every=1000"]
    process = subprocess.Popen(
        _command(tmp_path / "run", *steps),
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not metrics.exists():
        time.sleep(0.05)
    process.terminate()
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, errors
    assert "SIGTERM: saved step" in errors
    saved = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == saved


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--objective=gan_kll"], 2, "objective: got 'gan_kll'; expected one of kl, mmd, gan_"),
        (
            ["--objective=noisy_jsd"],
            2,
            "noise_variance: got 0.0 for noisy_jsd; expected a number > 0",
        ),
        (["--wdith=3"], 2, "flag: got --wdith; expected a known flag such as --width"),
        (["--batch_size=21", "--num_devices=2"], 2, "expected a multiple, such as 20 or 22"),
        (["--workdir=/dev/null"], 1, "/dev/null"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, code, message):
    process = subprocess.run(
        _command(tmp_path / "run", *arguments),
        capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip
    assert process.returncode == code
    assert message in process.stderr
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize("value", ["digts", "mnist"])
def test_data_that_is_not_there_is_named(tmp_path, value, monkeypatch):
    monkeypatch.setenv("KERNELGRAD_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=value):
        _run(dataclasses.replace(TINY, dataset=value), tmp_path, data_dir=str(tmp_path))


@pytest.mark.slow
def test_another_config_is_refused(tmp_path):
    _run(dataclasses.replace(POINTS, num_steps=10), tmp_path)
    with pytest.raises(UsageError, match="width was 8, now 16"):
        _run(dataclasses.replace(POINTS, width=16), tmp_path)
    with pytest.raises(UsageError, match="is of another model"):
        _run(dataclasses.replace(POINTS, width=16), tmp_path, allow_config_change=True)
