"""Discriminators of data without area: perfect, with a gradient that vanishes; noise keeps both."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import toys
from experiments.run.workdirs import Workdir
from experiments.training import manifolds
from experiments.training.settings import Config


def test_the_generator_is_a_shift_of_the_data(key):
    dataset = toys.load("segments", 0)
    lab = manifolds.make_lab(dataset)
    points = lab.model.sample_latents(key, 50)
    known = {tuple(row) for row in dataset.train.tolist()}
    assert all(tuple(row) in known for row in np.asarray(points).tolist())
    moved = lab.model.generate(jnp.array([0.5, 0.0]), {}, points)
    np.testing.assert_array_equal(moved, points + jnp.array([0.5, 0.0]))


def test_trials_are_equally_long_with_and_without_noise():
    plain, noised = manifolds.trials(0.1, 203)
    assert (plain.variances, noised.variances) == ((0.0,), (0.1,))
    assert plain.num_iterations == noised.num_iterations == 200
    assert plain.record_every == 10


@pytest.mark.thorough
def test_jsd_is_log_2_and_the_gradient_vanishes_but_under_noise(tmp_path):
    """Segments half a unit from where they were do not meet themselves."""
    dataset = toys.load("segments", 0)
    lab, ends = manifolds.make_lab(dataset), {}
    for trial in manifolds.trials(0.05, 800):
        with Workdir(tmp_path / trial.name, Config()) as folder:
            key = jax.random.key(1)
            records = manifolds.examine(key, lab, trial, dataset, 0.5, folder)
        norms = [record["saturating_norm"] for record in records]
        ends[trial.name] = (records[-1]["jsd"], records[-1]["accuracy"], norms[-1] / max(norms))
    jsd, accuracy, left = ends["no noise"]
    assert math.log(2) * 0.95 < jsd <= math.log(2)
    assert accuracy == 1
    assert left < 0.1
    jsd, accuracy, left = ends["noise"]
    assert jsd < 0.5
    assert accuracy < 0.98
    assert left > 0.3
