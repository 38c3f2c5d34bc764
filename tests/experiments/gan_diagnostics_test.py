"""The whole binary on a tiny GAN: what it leaves behind, survival, bad input."""

import dataclasses
import json
import math
import shutil

import pytest

from experiments import gan_diagnostics
from experiments.gan_diagnostics import Config
from experiments.run.errors import StorageError, UsageError

TINY = Config(
    epochs=(1,),
    steps_per_epoch=3,
    batch_size=10,
    latent_dim=4,
    width=4,
    critic_width=4,
    num_iterations=4,
    annealed_noise=(0.3, 0.03),
    annealed_iterations=2,
)
FIGURES = ("jsd_and_accuracy.png", "gradient_norms.png", "gradient_tail.png", "certificate.png")


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Keeps tails and clouds small."""
    monkeypatch.setattr(gan_diagnostics, "_TAIL_GRADIENTS", 40)
    monkeypatch.setattr(gan_diagnostics, "_CLOUD", 200)


@pytest.mark.slow
def test_run_leaves_four_figures_a_table_and_results(tmp_path):
    rows = gan_diagnostics.run(TINY, workdir=str(tmp_path))
    assert list(rows) == ["epoch 1"]
    for name in FIGURES:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "table.md").read_text().count("epoch 1") == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["rows"] == rows
    found = results["diagnoses"]["1"]
    plain, noised, annealed = (found["records"][n] for n in ("no noise", "noise", "annealed"))
    assert [r["variance"] for r in (plain[-1], noised[-1])] == [0.0, TINY.instance_noise]
    assert [r["variance"] for r in annealed] == [0.3, 0.3, 0.03]
    assert [r[-1]["step"] for r in (plain, noised, annealed)] == [4, 4, 4]
    certificate = found["certificate"]
    assert certificate["learned_jsd"] == [r["jsd"] for r in annealed[1:]]
    assert min(certificate["cloud"]) > certificate["distance"] > 0
    assert certificate["diameter"] == 8.0
    assert max(certificate["cloud_jsd"]) <= math.log(2) + 1e-6
    assert set(found["tails"]) == {"one latent", "10 latents", "over steps of D"}


@pytest.mark.slow
def test_finished_run_is_taken_up_and_a_lost_generator_is_an_error(tmp_path):
    config = dataclasses.replace(TINY, epochs=(1, 2))
    rows = gan_diagnostics.run(config, workdir=str(tmp_path))
    assert list(rows) == ["epoch 1", "epoch 2"]
    for epoch in config.epochs:
        (step,) = (tmp_path / f"epoch{epoch}" / "generator" / "checkpoints").iterdir()
        assert step.name == str(epoch * config.steps_per_epoch)
    shutil.rmtree(tmp_path / "epoch2" / "annealed" / "checkpoints")
    assert gan_diagnostics.run(config, workdir=str(tmp_path)) == rows
    shutil.rmtree(tmp_path / "epoch1" / "generator" / "checkpoints")
    with pytest.raises(StorageError, match="got a GAN at step 6; expected 3"):
        gan_diagnostics.run(config, workdir=str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instance_noise": -0.1}, "instance_noise: got -0.1; expected a number in"),
        ({"annealed_noise": (0.1, -1.0)}, "annealed_noise: got -1.0; expected distinct numbers in"),
        ({"annealed_noise": (0.1, 0.2)}, "annealed_noise: got .*; expected falling ones"),
        ({"annealed_noise": ()}, "annealed_noise"),
        ({"epochs": (10, 1)}, "epochs: got .*; expected rising ones"),
        ({"epochs": (0, 1)}, "epochs"),
        ({"num_iterations": 0}, "num_iterations: got 0; expected an integer in"),
        ({"width": 0}, "width: got 0"),
        ({"dataset": "swiss_roll"}, "dataset: got swiss_roll, points; expected images"),
    ],
)
def test_bad_settings_are_usage_errors(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        gan_diagnostics.run(dataclasses.replace(TINY, **changes), workdir=str(tmp_path))


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--instance_noise=-0.1", "instance_noise: got -0.1; expected a number in [1e-30, 1e+30]"),
        pytest.param(
            "--objective=kl",
            "flag: got --objective; expected a known flag such as --epochs",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "--epochs=1,ten",
            "epochs: got 'ten'; expected distinct integers in [1, 1000000]",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_flags_are_one_line(tmp_path, refusal, flag, message):
    assert refusal("gan_diagnostics", f"--workdir={tmp_path}", flag) == message
