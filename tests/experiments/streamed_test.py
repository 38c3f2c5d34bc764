"""Runs on images that stay on the disk: they are those of images in memory, which they spare."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import compare, evaluate
from experiments.data import catalog
from experiments.data.rows import Rows
from experiments.judges import classifiers
from experiments.run import timing
from experiments.training import fit
from experiments.training.settings import Config
from tests.experiments.processes import Fleet

SMALL = {
    "objective": "mmd",
    "image_size": 8,
    "batch_size": 8,
    "latent_dim": 2,
    "width": 2,
    "num_steps": 6,
    "eval_every": 2,
    "resident_gib": 1e-6,  # 1074 bytes
}
CLASSES = ("hills", "stars")


def photographs(folder, rng, count, longest=24):
    """Writes images of many sizes: JPEG and PNG, upright and wide, grey and coloured."""
    for index in range(count):
        height, width = rng.integers(longest // 2, longest, 2)
        y, x = np.mgrid[:height, :width]
        waves = 60 * np.sin(x / rng.uniform(2, 9) + y / rng.uniform(2, 9))
        dots = 200.0 * (rng.random((height, width)) < 0.1)
        pattern = (waves, dots)[index % 2][..., None]
        pixels = np.clip(rng.integers(40, 216, 3) + pattern, 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels).convert("L" if index % 7 == 3 else "RGB")
        place = folder / CLASSES[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{index:05d}.{'png' if index % 3 else 'jpg'}")
    return str(folder)


@pytest.fixture
def photos(tmp_path, rng, monkeypatch):
    monkeypatch.setenv("KERNELGRAD_CACHE", str(tmp_path / "cache"))
    return photographs(tmp_path / "photos", rng, 60)


@pytest.fixture
def in_memory(monkeypatch):
    """Has every set in memory, as batches are fed from there too, where it is called."""
    load = catalog.load

    def begin():
        monkeypatch.setattr(
            catalog, "load", lambda *args, most_bytes, **options: load(*args, **options)
        )

    return begin


@pytest.fixture
def fed(monkeypatch):
    """Has a call return the rows that it is given."""
    monkeypatch.setattr(fit, "make_train_step", lambda *args, **options: None)
    monkeypatch.setattr(
        fit.train, "scan_batches", lambda step: lambda state, key, rows: (state, rows)
    )
    monkeypatch.setattr(fit.train, "pmap_train_step", lambda step, devices: step)


@pytest.mark.parametrize("conditional", [False, True])
def test_batches_from_the_disk_are_those_from_memory(photos, fed, conditional):
    config = Config(dataset=photos, conditional=conditional, **SMALL)
    batches = []
    for most_bytes in (1, 1e9):
        dataset = catalog.load(photos, image_size=8, most_bytes=most_bytes)
        assert isinstance(dataset.train, Rows) == (most_bytes == 1)
        for start in (0, 5):
            advance = fit.make_advance(config, dataset, None, 2, start, jax.local_devices()[:2])
            batches.append([advance(None, None)[1] for _ in range(6)])
    of_disk, later, of_memory, later_of_memory = map(np.array, batches)
    size = 8 * 8 * 3
    assert of_disk.shape == (6, 2, 2, 4, *([size + 2] if conditional else [8, 8, 3]))
    np.testing.assert_array_equal(of_disk, of_memory)
    np.testing.assert_array_equal(later, later_of_memory)
    if conditional:
        image, code = np.split(of_disk[0, 1, 0, 3], [size])
        (index,) = np.flatnonzero((dataset.train.reshape(-1, size) == image).all(axis=1))
        np.testing.assert_array_equal(code, 255 * np.eye(2)[dataset.train_labels[index]])


def run(folder, **settings):
    config = Config(**SMALL | settings)
    fit.run(config, workdir=str(folder), num_devices=1)
    return (folder / "metrics.jsonl").read_bytes()


@pytest.mark.thorough
def test_a_run_resumes_and_is_judged_as_one_in_memory(tmp_path, photos, in_memory, monkeypatch):
    recipe = classifiers.resnet.Recipe(width=8, num_steps=5)
    monkeypatch.setattr(classifiers, "_usual", lambda dataset: recipe)
    also = {"dataset": photos, "features": ("pixels", "autoencoder")}
    fewer = dataclasses.replace(fit.extractors.DEFAULT, num_steps=3)
    monkeypatch.setattr(
        fit.extractors.train_or_load, "__kwdefaults__", {"seed": 1, "recipe": fewer}
    )

    def judged(folder):
        evaluate.run(evaluate.Config(num_samples=500), workdir=str(folder))
        return json.loads((folder / "evaluation.json").read_text())

    run(tmp_path / "cut", **also | {"num_steps": 2})
    metrics, scores = run(tmp_path / "cut", **also), judged(tmp_path / "cut")
    in_memory()
    assert run(tmp_path / "whole", **also) == metrics
    assert judged(tmp_path / "whole") == scores


@pytest.mark.thorough
def test_a_comparison_is_that_of_images_in_memory(tmp_path, photos, in_memory, monkeypatch):
    recipe = classifiers.resnet.Recipe(width=8, num_steps=5)
    monkeypatch.setattr(classifiers, "_usual", lambda dataset: recipe)
    monkeypatch.setattr(timing, "_TIMED_SECONDS", 0.0)
    config = compare.Config(Config(dataset=photos, **SMALL), ("mmd",), (0,))

    def compared(name):
        (curves,) = compare.run(config, workdir=str(tmp_path / name)).values()
        return {**curves.metrics}, (tmp_path / name / "samples.png").read_bytes()

    taken = []
    kept = catalog.load

    def load(*args, most_bytes, **options):
        dataset = kept(*args, most_bytes=most_bytes, **options)
        taken.append(type(dataset.train))
        return dataset

    with monkeypatch.context() as patch:
        patch.setattr(catalog, "load", load)
        metrics, picture = compared("on_disk")
    assert set(taken) == {Rows}
    in_memory()
    held, of_memory = compared("held")
    np.testing.assert_equal(metrics, held)
    assert picture == of_memory


@pytest.mark.thorough
def test_two_processes_of_two_devices_read_what_one_reads(tmp_path, photos):
    settings = SMALL | {"dataset": photos}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    for layout in ({"num_processes": 1, "num_devices": 1}, {}):
        folder = tmp_path / f"run{len(layout)}"
        fleet = Fleet(tmp_path, [*flags, f"--workdir={folder}"], **layout)
        assert set(fleet.end()) == {0}
    one, other = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("run2", "run0")
    )
    for record, expected in zip(one, other, strict=True):
        np.testing.assert_allclose(
            list(record.values()), list(expected.values()), rtol=1e-4, atol=1e-5
        )


def peak(config, workdir):
    """Returns the most MB of memory that a process of the binary has held."""
    flags = [f"--{name}={value}" for name, value in config.items()]
    command = [sys.executable, "-m", "experiments.train", *flags, f"--workdir={workdir}"]
    child = subprocess.Popen(
        [*command, "--num_devices=1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = status
    assert status == 0
    return usage.ru_maxrss / 1024


@pytest.mark.slow
def test_resident_memory_has_no_set_that_is_on_the_disk(tmp_path, rng, monkeypatch):
    """1500 images of 160 pixels, cut out of small ones, take 115 MB."""
    monkeypatch.setenv("KERNELGRAD_CACHE", str(tmp_path / "cache"))
    more = photographs(tmp_path / "more", rng, 1500)
    settings = SMALL | {"dataset": more, "image_size": 160, "num_steps": 2, "batch_size": 2}
    on_disk, held = (
        peak(settings | {"resident_gib": gib}, tmp_path / str(gib)) for gib in (1e-6, 2)
    )
    assert on_disk < held - 100, (on_disk, held)
