"""Hostile files where a file is read: no hang, no traceback, nothing executed.

`make test-faults` tries all contents; other targets try three.
"""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import classification_score, density_estimation, neural_sampler, toy
from experiments.data import catalog, image_sets
from experiments.judges import classifiers
from experiments.run import records, store, workdirs
from experiments.run.errors import DataError, StorageError, UsageError
from experiments.targets import latent_chains
from experiments.training import settings, trained
from tests.experiments.faults.small_run import delete, make_run, state_of
from tests.experiments.run.toy_run import Config, abstract


@functools.cache
def _many() -> str:
    return json.dumps({"step": 1, **{f"name{index}": 0 for index in range(10**6)}}) + "\n"


class _Bomb:
    """An object whose pickle leaves a file behind when it is read."""

    def __init__(self, trace: pathlib.Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return pathlib.Path.touch, (self.trace,)


def _pickled(path: pathlib.Path, **others: Any) -> None:
    names = ("samples", "about", "monitor", "log_step", "state0", "sha256", "train.images")
    bomb = np.array([_Bomb(path.with_name("executed"))], object)
    with path.open("wb") as file:
        np.savez(file, allow_pickle=True, **dict.fromkeys(names, bomb), **others)


def _arrays(path: pathlib.Path) -> None:
    """Arrays by all the names that anybody asks for, all of another form, with their digest."""
    names = ("samples", "points", "arrows", "about", "monitor", "log_step", "state0")
    others = ("train.images", "train.labels", "num_classes")
    arrays = dict.fromkeys([*names, *others], np.zeros((2, 3), np.int8))
    path.write_bytes(store.packed(arrays))


def _json(text: str) -> Any:
    return lambda path: path.write_text(text + "\n")


HOSTILE = {
    "fifo": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "a sparse terabyte": lambda path: (path.touch(), os.truncate(path, 2**40)),
    "folder": pathlib.Path.mkdir,
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "nothing": pathlib.Path.touch,
    "half an object": _json("{"),
    "list": _json("[1]"),
    "text": _json('{"step": "one", "accuracy": "half", "looks": "none", "width": "wide"}'),
    "null": _json('{"step": null, "accuracy": null, "looks": [null], "width": null}'),
    "depth": lambda path: path.write_text("[" * 10**5 + "\n"),
    "objects within objects": lambda path: path.write_text('{"step":' * 900 + "1" + "}" * 900),
    "a million names": lambda path: path.write_text(_many()),
    "infinity": _json('{"step": 1, "loss": Infinity, "accuracy": NaN, "width": -Infinity}'),
    "more than a float": _json('{"step": 1e999, "loss": 1e999, "accuracy": 1e999, "width": 1e999}'),
    "5000 digits": lambda path: path.write_text('{"step": ' + "9" * 5000 + "}\n"),
    "4000 digits": lambda path: path.write_text('{"step": ' + "9" * 4000 + ', "accuracy": 0}\n'),
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe{\x00\n"),
    "zeros": lambda path: path.write_bytes(bytes(10_000) + b"\n"),
    "pickles": _pickled,
    "other arrays": _arrays,
}

_SHORT = ("fifo", "4000 digits", "pickles")


def _restore(path: pathlib.Path) -> None:
    run = next(folder for folder in path.parents if folder.name == "run")
    with workdirs.Workdir(run, Config()) as workdir:
        workdir.restore(abstract(state_of(0)))
        workdir.history()


def _read_fit(path: pathlib.Path) -> None:
    split: Any = types.SimpleNamespace(is_new=np.ones(3, bool), test=np.zeros((3, 3)))
    density_estimation._read(path, split, range(3))


def _load(path: pathlib.Path) -> None:
    config = settings.Config(objective="mmd", dataset="ring", width=2, latent_dim=2)
    (path.parent / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    (path.parent / "checkpoints" / "1").mkdir(parents=True)
    trained.load(path.parent)


READERS = {
    "config.json": _restore,
    "metrics.jsonl": _restore,
    "run_id": _restore,
    "lock": _restore,
    "checkpoints": _restore,
    "checkpoints/2": _restore,
    "checkpoints/2/SHA256SUMS": _restore,
    "checkpoints/2/checkpoint.json": _restore,
    "checkpoints/2/state/_METADATA": _restore,
    "trained/config.json": lambda path: trained.stored_config(str(path.parent)),
    "trained/data.json": _load,
    "compared/metrics.jsonl": lambda path: list(records.parsed(path)),
    "frames/0000001.npz": lambda path: toy.read_frame(path.parents[1], {"step": 1.0}),
    "chain_rule/frames/0000001.npz": lambda path: neural_sampler._stored_frame(
        path, jax.ShapeDtypeStruct((5, 2), jnp.float32)
    ),
    "samples_ula/unfinished.npz": latent_chains.read_progress,
    "fits/ring.json": _read_fit,
    "accuracies/0.json": classification_score._stored_accuracy,
    "cache/classifier.npz": classifiers._load,
    "cache/images.npz": image_sets._read_cached,
    "data/winequality-red.csv": lambda path: catalog.load("red_wine", str(path.parent)),
    "data/train-images-idx3-ubyte.gz": lambda path: catalog.load("mnist", str(path.parent)),
    "data/cifar10-jpeg.tar.xz": lambda path: catalog.load("cifar10_jpeg", str(path.parent)),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run with two checkpoints."""
    return make_run(tmp_path_factory.mktemp("original") / "run", range(1, 3))


@pytest.mark.parametrize(
    "content",
    [
        content if content in _SHORT else pytest.param(content, marks=pytest.mark.slow)
        for content in HOSTILE
    ],
)
def test_hostile_files_are_refused_in_a_line(original, tmp_path, capsys, monkeypatch, content):
    """Whatever lies where a file is read: no hang, no traceback, nothing is executed."""
    monkeypatch.setenv("KERNELGRAD_CACHE", str(tmp_path / "cache"))
    for name, read in READERS.items():
        run = tmp_path / "run"
        shutil.copytree(original, run)
        path = run / name
        if path.exists():
            delete(path, np.random.default_rng(0))
        path.parent.mkdir(parents=True, exist_ok=True)
        HOSTILE[content](path)
        start, error = time.monotonic(), None
        try:
            read(path)
        except (StorageError, UsageError, DataError) as refusal:
            error = str(refusal)
        assert time.monotonic() - start < 20, name
        assert error is None or str(run) in error, (name, error)
        assert error is None or len(error) < 1000, (name, error)
        assert not list(run.rglob("executed")), name
        said = capsys.readouterr().err.splitlines()
        assert all(line.startswith("kernelgrad: warning: ") for line in said), (name, said)
        shutil.rmtree(run)
