"""How a training run is cut into calls and records, and what an evaluation finds."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy.spatial.distance import pdist

from experiments.data import catalog
from experiments.data.dataset import Dataset
from experiments.pictures import clouds
from experiments.run.errors import UsageError
from experiments.training import fit
from experiments.training.settings import Config
from kernelgrad import kernels, train

RING = Config(
    objective="mmd",
    dataset="ring",
    num_steps=4,
    eval_every=2,
    batch_size=4,
    latent_dim=2,
    width=2,
    kernel_scales=(0.5, 2.0),
)


@pytest.mark.parametrize(
    ("num_steps", "eval_every", "start", "expected"),
    [
        (2000, 200, 0, 50),  # the most
        (60, 60, 0, 30),  # the largest divisor up to there
        (2000, 200, 1000, 50),
        (2000, 200, 30, 10),  # begun between evaluations
        (2100, 200, 0, 50),
        (2030, 200, 0, 10),  # the end is met as well
        (7, 3, 0, 1),
        (53, 53, 0, 1),
    ],
)
def test_records_meet_every_evaluation_and_the_end(num_steps, eval_every, start, expected):
    config = Config(num_steps=num_steps, eval_every=eval_every)
    found = fit.steps_per_record(config, start)
    assert found == expected
    for step in (num_steps, eval_every, start):
        assert step % found == 0


def test_images_take_one_step_a_call_on_a_cpu():
    images, points = (catalog.load(name) for name in ("digits", "ring"))
    devices = {name: [types.SimpleNamespace(platform=name)] for name in ("cpu", "gpu")}
    assert fit.steps_per_call(20, images, devices["cpu"]) == 1
    assert fit.steps_per_call(20, images, devices["gpu"]) == 20
    assert fit.steps_per_call(20, points, devices["cpu"]) == 20


def test_calls_add_up_to_the_steps_asked_for_and_keep_every_figure():
    """Two devices, three steps a call: what is kept is the first device's."""
    calls = []

    def advance(state, key):
        calls.append(key)
        steps = state + np.arange(1, 4)
        info = {"loss": [steps / 2, 9 * steps], "step": [steps, steps]}
        return state + 3, {name: jnp.asarray(rows) for name, rows in info.items()}

    ticks = []
    call = fit.make_calls(advance, jax.random.key(5), 3)
    state, info = call(np.array(6), 6, 9, ticks.append)
    assert state == 15
    assert ticks == [3, 3, 3]
    assert calls == 3 * [jax.random.key(5)]
    np.testing.assert_array_equal(info["step"], np.arange(7, 16))
    np.testing.assert_array_equal(info["loss"], np.arange(7, 16) / 2)


def test_a_step_is_timed_from_the_state_given():
    advanced = []

    def advance(state, key):
        advanced.append(key)
        return state + 4, {"loss": 1.0}

    timed = fit.timed(advance, np.array(1), 4)
    assert timed.start == 1
    assert timed.advance(timed.start) == 5
    assert timed.steps == 4
    assert advanced == [jax.random.key(0)]


def test_more_devices_than_there_are_is_refused(tmp_path):
    most = len(jax.local_devices())
    with pytest.raises(UsageError, match=f"num_devices: got {most + 1}; expected at most {most}"):
        fit.run(RING, workdir=str(tmp_path / "run"), num_devices=most + 1)
    assert not (tmp_path / "run").exists()


def test_real_scores_are_those_of_as_many_held_out_images(rng, monkeypatch):
    """Nearest training images by loops over the first of the test images."""
    monkeypatch.setattr(fit, "EVALUATED_SAMPLES", 6)
    train_images, test = (rng.integers(0, 256, (n, 3, 2, 1)).astype(np.uint8) for n in (12, 9))
    labels = rng.integers(3, size=12).astype(np.int32)
    data = Dataset("noise", train_images, test, labels, None, 3)
    least, near = [], []
    for image in test[:6].astype(float) / 255:
        distances = [np.abs(image - one / 255).sum() for one in train_images]
        least.append(min(distances))
        near.append(labels[np.argmin(distances)])
    shares = np.bincount(near)[np.bincount(near) > 0] / 6
    expected = {"nearest_l1": np.mean(least), "label_entropy": -np.sum(shares * np.log(shares))}
    assert fit.real_scores(data) == pytest.approx(expected, rel=1e-5)
    assert fit.real_scores(data._replace(train_labels=None)) == {}


def test_real_scores_are_asked_for_where_they_take_a_moment():
    digits, mnist = (  # a hundredth of a second of a core, and 4.3
        Dataset("of a form", np.broadcast_to(np.uint8(0), shape), np.zeros(0), None, None, 0)
        for shape in ((1500, 8, 8, 1), (60_000, 28, 28, 1))
    )
    assert fit._compares_in_a_moment(digits)
    assert not fit._compares_in_a_moment(mnist)


@pytest.mark.thorough
def test_an_evaluation_measures_the_samples_that_it_draws(monkeypatch, key):
    """The MMD is that of loops over all pairs; extra scores see the samples in the picture."""
    seen, drawn, files = [], [], {}

    def extra(samples):
        seen.append(np.asarray(samples))
        return {"right": float(samples[:, 0].max())}

    model = types.SimpleNamespace(
        generate=lambda params, stats, latents: params * latents,
        sample_latents=lambda key, n: jax.random.normal(key, (n, 2)),
    )
    monkeypatch.setattr(clouds, "points", lambda *args: drawn.append(args) or b"a picture")
    monkeypatch.setattr(fit, "EVALUATED_SAMPLES", 30)
    data, folder = (
        catalog.load("ring"),
        types.SimpleNamespace(is_mine=True, write_bytes=files.__setitem__),
    )
    evaluate = fit._make_evaluate(model, data, folder, key, RING, [extra])
    for step, scale in ((20, 0.5), (40, 2.0)):
        record = evaluate(step, train.TrainState(step, scale, {}, (), None))
        samples, test, title = drawn[-1]
        np.testing.assert_array_equal(samples, seen[-1])
        np.testing.assert_allclose(samples, scale * jax.random.normal(key, (30, 2)), rtol=1e-6)
        np.testing.assert_array_equal(test, data.test)
        assert title == f"mmd on ring, step {step}"
        lengthscales = np.sqrt(np.median(pdist(test[:30]) ** 2) * np.array([0.5, 1.0, 2.0, 4.0]))
        mmd2 = oracles.mmd_u("imq_mixture", samples, test[:30], lengthscales)
        expected = {"test_mmd": mmd2, "right": samples[:, 0].max()}
        assert record == pytest.approx(expected, rel=1e-3)
    assert files == {"samples/0000020.png": b"a picture", "samples/0000040.png": b"a picture"}


def test_samples_are_those_of_the_average_where_there_is_one(key, monkeypatch):
    kernel = kernels.imq_mixture(1.0)  # the median's takes long to compile
    monkeypatch.setattr(fit, "judging_kernel", lambda test: kernel)
    model = types.SimpleNamespace(generate=lambda params, stats, latents: params * latents + stats)
    one, latents = jnp.ones(()), jax.random.normal(key, (5, 2))
    state = train.TrainState(one, 2 * one, 3 * one, (), None, (5 * one, 7 * one))
    samples, _ = jax.jit(fit.make_judge(model))(state, latents, latents)
    np.testing.assert_allclose(samples, 5 * latents + 7, rtol=1e-6)


@pytest.fixture
def fed(monkeypatch):
    """Training by steps that tell the rows that they are given."""

    def scanned(step, **options):
        return lambda state, key, data: (state, {"rows": data})

    monkeypatch.setattr(train, "make_train_step", lambda *args, **options: None)
    monkeypatch.setattr(train, "scan_batches", scanned)
    monkeypatch.setattr(train, "scan_resident", scanned)
    monkeypatch.setattr(train, "pmap_train_step", lambda step, devices: step)


def test_data_that_are_too_large_are_fed_batch_by_batch(fed):
    model = types.SimpleNamespace(
        generator=None, objective=None, optimizer=None, sample_latents=None
    )
    data, devices = catalog.load("ring"), jax.local_devices()[:1]
    whole = fit.make_advance(RING, data, model, 2, 0, devices)
    rows = whole(0, 0)[1]["rows"]
    assert rows.shape == (1, *data.train.shape)
    small = dataclasses.replace(RING, resident_gib=data.train.nbytes / 2**30 * 0.99)
    advance = fit.make_advance(small, data, model, 2, 0, devices)
    batches = [advance(0, 0)[1]["rows"] for _ in range(2)]
    later = fit.make_advance(small, data, model, 2, 2, devices)(0, 0)[1]["rows"]
    np.testing.assert_array_equal(later, batches[1])
    assert batches[0].shape == (1, 2, 4, 2)
    assert (batches[0] != batches[1]).any()
