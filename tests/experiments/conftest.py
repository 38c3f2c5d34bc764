"""What tests of several binaries share."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.data import catalog
from experiments.data.dataset import Dataset
from experiments.judges import classifiers
from experiments.pictures import canvas

NUM_CLASSES = 10


def examples(rng, templates, n):
    """Images that are far from each other's classes: a template a class, and some noise."""
    labels = rng.integers(NUM_CLASSES, size=n).astype(np.int32)
    images = 150 * templates[labels] + 100 * rng.random((n, 8, 8, 1))
    return images.astype(np.uint8), labels


@pytest.fixture
def refusal():
    """Calls a binary in a process of its own: refusal("toy", flags...) -> the line of its error."""

    def call(binary, *flags):
        command = [sys.executable, "-m", f"experiments.{binary}", *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("kernelgrad: error: ")
        return line.removeprefix("kernelgrad: error: ")

    return call


@pytest.fixture
def figures(monkeypatch):
    """The figures of a test in turn, which are kept with all that is on them, and not rendered."""
    drawn = []

    def keep(figure):
        drawn.append(figure)
        plt.close(figure)
        return b"a picture"

    monkeypatch.setattr(canvas, "png", keep)
    return drawn


def loading(dataset):
    """What stands in for catalog.load, and checks as that does."""

    def load(name, data_dir=None, *, check=lambda _: None, **_):
        check(dataset)
        return dataset

    return load


@pytest.fixture
def toy(rng):
    """Images of ten classes that are easily told apart."""
    templates = rng.integers(2, size=(NUM_CLASSES, 8, 8, 1))
    images, labels = examples(rng, templates, 300)
    test, test_labels = examples(rng, templates, 200)
    return Dataset("toy", images, test, labels, test_labels, NUM_CLASSES)


@pytest.fixture
def judged(toy, key, monkeypatch):
    """The toy data, under a classifier that was never trained."""
    network = classifiers.MLPClassifier(NUM_CLASSES, 8)
    params = network.init(key, jnp.zeros((1, 8, 8, 1)), train=False)["params"]
    params = jax.tree.map(lambda leaf: 5 * leaf, params)
    classifier = classifiers.Classifier(network, params, (8, 8, 1), 0.5, "ab" * 32)
    monkeypatch.setattr(catalog, "load", loading(toy))
    monkeypatch.setattr(classifiers, "train_or_load", lambda dataset, cache_dir: classifier)
    return classifier
