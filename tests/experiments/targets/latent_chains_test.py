"""Chains of latents: step sizes, lengths, interruptions, devices."""

import contextlib
import math
import signal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.run.errors import Terminated
from experiments.targets import latent_chains
from experiments.targets.latent_chains import SAMPLERS


def gaussian(deviations, context):
    return lambda z: -jnp.sum(jnp.square(z / deviations)) / 2


def walk(key, starts, deviations, sampler, num_steps, **options):
    visits = []
    found = latent_chains.walk(
        key,
        starts,
        gaussian,
        jnp.asarray(deviations),
        jnp.zeros((len(starts), 0)),
        sampler=SAMPLERS[sampler],
        num_steps=num_steps,
        visit=lambda *visited: visits.append(visited),
        **options,
    )
    return found, visits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "guess"), [("hmc", 1e-3), pytest.param("mala", 1.0, marks=pytest.mark.slow)]
)
def test_warm_up_finds_the_step_size(key, sampler, guess):
    deviations = jnp.linspace(0.05, 1.0, 10)
    starts = deviations * jax.random.normal(key, (200, 10))
    found, visits = walk(key, starts, deviations, sampler, 120, step_size=guess)
    assert abs(found.monitor[60:].mean() - SAMPLERS[sampler].acceptance) < 0.06
    assert [step for step, *_ in visits] == list(range(12, 121, 12))
    means = [mean for _, _, mean, _ in visits]
    np.testing.assert_allclose(means, found.monitor.reshape(10, 12).mean(1))
    np.testing.assert_array_equal(visits[-1][1], found.latents)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("sampler", ["hmc", pytest.param("underdamped", marks=pytest.mark.slow)])
def test_chains_that_were_cut_off_end_where_they_would_have(key, tmp_path, sampler):
    """Also through a file; the step size is still being adapted at the cut."""
    starts = jax.random.normal(key, (20, 3))
    whole, visits = walk(key, starts, 0.5, sampler, 10)
    path = tmp_path / "chains.npz"
    path.write_bytes(visits[2][3].to_bytes("these"))
    about, progress = latent_chains.read_progress(path)
    assert about == "these"
    rest, later = walk(key, starts, 0.5, sampler, 10, progress=progress)
    assert [step for step, *_ in later] == list(range(4, 11))
    np.testing.assert_array_equal(rest.latents, whole.latents)
    np.testing.assert_array_equal(rest.monitor, whole.monitor)
    assert rest.step_size == whole.step_size
    path.write_bytes(path.read_bytes()[:-100])
    assert latent_chains.read_progress(path) is None
    assert latent_chains.read_progress(tmp_path / "none") is None


def test_chains_that_a_signal_ends_between_visits_are_kept_and_visited_alike(key, monkeypatch):
    class StopAtTheFifthLook(contextlib.nullcontext):
        looks = 0

        def __enter__(self):
            return self

        @property
        def stop(self):
            self.looks += 1
            return signal.SIGHUP if self.looks == 5 else None

    starts = jax.random.normal(key, (20, 3))
    whole, visits = walk(key, starts, 0.5, "hmc", 30)
    kept = []
    with monkeypatch.context() as patch:
        patch.setattr(latent_chains, "Signals", StopAtTheFifthLook)
        with pytest.raises(Terminated, match="SIGHUP: kept the chains after step 5; run the same"):
            walk(key, starts, 0.5, "hmc", 30, keep=kept.append)
    (progress,) = kept
    rest, later = walk(key, starts, 0.5, "hmc", 30, progress=progress)
    assert [step for step, *_ in later] == list(range(6, 31, 3))
    assert [mean for _, _, mean, _ in later] == [mean for _, _, mean, _ in visits[1:]]
    np.testing.assert_array_equal(rest.latents, whole.latents)


class Still(NamedTuple):
    position: jax.Array


def test_only_the_first_half_of_the_steps_moves_the_step_size(key):
    still = latent_chains.Sampler(
        lambda key, position, _: Still(position),
        lambda key, state, _, step_size: (state, jnp.float32(1)),
        step_size=1.0,
        monitor="acceptance",
        acceptance=0.5,
    )
    found = [
        latent_chains.walk(
            key,
            jnp.zeros((4, 2)),
            gaussian,
            1.0,
            jnp.zeros((4, 0)),
            sampler=still,
            num_steps=num_steps,
            step_size=2.0,
            visit=lambda *_: None,
        )
        for num_steps in (1, 2, 3, 4)
    ]
    rises = [math.log(walked.step_size / 2) for walked in found]
    np.testing.assert_allclose(rises, [0, rises[1], rises[1], 2 * rises[1]], rtol=1e-4, atol=1e-6)
    assert rises[1] > 0.01


@pytest.mark.thorough
def test_no_trajectory_length_is_a_period_for_all_chains(key):
    """Ten leapfrog steps of 2 pi / 10 turn a standard normal by a little more than 360 degrees."""
    found, _ = walk(key, jnp.full((4000, 1), 3.0), 1.0, "hmc", 1, step_size=2 * math.pi / 10)
    assert abs(jnp.mean(found.latents)) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["underdamped", pytest.param("hmc", marks=pytest.mark.slow)])
def test_two_devices_walk_like_one(key, monkeypatch, sampler):
    starts = jax.random.normal(key, (12, 3))
    both, _ = walk(key, starts, 0.5, sampler, 4)
    assert len(both.latents.sharding.device_set) == 2
    assert both.latents.addressable_shards[0].data.shape == (6, 3)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    alone, _ = walk(key, starts, 0.5, sampler, 4)
    assert len(alone.latents.sharding.device_set) == 1
    np.testing.assert_allclose(both.latents, alone.latents, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(both.monitor, alone.monitor, rtol=1e-4)
