"""Sets of labelled images: real, repeated, generated."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import catalog
from experiments.run.workdirs import Workdir
from experiments.training import labelled_images, models, settings
from kernelgrad import train
from tests.experiments.conftest import NUM_CLASSES

RUN = settings.Config(
    objective="gan_non_saturating", dataset="digits", conditional=True, latent_dim=4, width=4
)


def index_of(dataset, images):
    """Returns which training image each image is."""
    known = {image.tobytes(): index for index, image in enumerate(dataset.train)}
    assert len(known) == len(dataset.train)
    return np.array([known[image.tobytes()] for image in images])


@pytest.mark.parametrize(
    ("num_images", "num_distinct", "distinct"), [(300, 50, 50), (310, 500, 300), (299, 50, 50)]
)
def test_duplicates_are_few_images_equally_often(toy, rng, num_images, num_distinct, distinct):
    images, labels, source = labelled_images.duplicates(toy, num_images, num_distinct, rng)
    index = index_of(toy, images)
    counts = np.bincount(index, minlength=300)
    assert len(index) == num_images
    assert np.count_nonzero(counts) == distinct
    assert set(counts[counts > 0]) <= {num_images // distinct, -(-num_images // distinct)}
    np.testing.assert_array_equal(labels, toy.train_labels[index])
    assert source == f"{distinct} training images, repeated"
    assert images.dtype == np.uint8


@pytest.mark.parametrize("draw", ["real", "duplicates"])
def test_images_are_drawn_uniformly(toy, rng, draw):
    num_draws = 400
    counts = np.zeros(300)
    for _ in range(num_draws):
        if draw == "real":
            drawn = labelled_images.real(toy, 30, rng)
        else:
            drawn = labelled_images.duplicates(toy, 60, 30, rng)
        counts[np.unique(index_of(toy, drawn.images))] += 1
    sigma = math.sqrt(num_draws * 0.1 * 0.9)
    assert np.all(np.abs(counts - num_draws * 0.1) < 5 * sigma)


def test_the_real_set_is_the_training_set(toy, rng):
    images, labels, _ = labelled_images.real(toy, 300, rng)
    index = index_of(toy, images)
    assert sorted(index) == list(range(300))
    np.testing.assert_array_equal(labels, toy.train_labels[index])


def by_shade(latents):
    """Images whose shade tells the label, and a little more of one latent: no whole 255ths."""
    labels = jnp.argmax(latents[:, -NUM_CLASSES:], axis=1)
    shades = (20 * labels + 0.7 + 0.9 * (latents[:, 0] > 0)) / 255
    return jnp.broadcast_to(shades[:, None, None, None], (len(latents), 8, 8, 1))


def fake_model():
    """A generator that keeps the contract of conditional runs, with a state of its own."""

    def sample_latents(key, n):
        first, second = jax.random.uniform(key, (2, n))
        labels = jax.nn.one_hot(jnp.floor(NUM_CLASSES * second), NUM_CLASSES)
        return jnp.concatenate([first[:, None] - 0.5, labels], axis=1)

    def generate(params, batch_stats, latents):
        return by_shade(latents) * params["scale"] + batch_stats["shift"]

    def initial_state(key):
        state = {"params": {"scale": jnp.ones(())}, "batch_stats": {"shift": jnp.zeros(())}}
        return train.TrainState(**state, opt_state=(), step=jnp.zeros((), jnp.int32), critic=None)

    return models.Model(generate, None, None, None, sample_latents, initial_state)


@pytest.mark.thorough
def test_generated_images_come_with_their_labels(judged, tmp_path, monkeypatch):
    model = fake_model()
    monkeypatch.setattr(models, "build", lambda config, dataset: model)
    with Workdir(tmp_path, RUN) as folder:
        folder.save(7, model.initial_state(None))
    images, labels, source = labelled_images.generated(str(tmp_path), 700, seed=0)
    assert images.dtype == np.uint8
    assert images.shape == (700, 8, 8, 1)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(images[:, 0, 0, 0] // 20, labels)
    assert set(images[:, 0, 0, 0] % 20) == {1, 2}
    assert set(labels) == set(range(NUM_CLASSES))
    assert np.any(labels[:200] != labels[500:])  # each batch is drawn anew
    assert source == f"gan_non_saturating, step 7 of {tmp_path}"
    assert np.any(labelled_images.generated(str(tmp_path), 700, seed=1).labels != labels)


@pytest.mark.slow
def test_a_conditional_run_can_be_drawn_from(tmp_path):
    """The real thing: what the generator makes of a label is what that label gets."""
    dataset = catalog.load("digits")
    model = models.build(RUN, dataset)
    state = jax.jit(model.initial_state)(jax.random.key(3))
    with Workdir(tmp_path, RUN) as folder:
        folder.save(1, state)
    images, labels, _ = labelled_images.generated(str(tmp_path), 60, seed=0)
    assert images.std() > 0
    latents = model.sample_latents(jax.random.fold_in(jax.random.key(0), 0), 500)[:60]
    np.testing.assert_array_equal(np.eye(10)[labels], latents[:, RUN.latent_dim :])
    expected = 255 * model.generate(state.params, state.batch_stats, latents)
    assert np.abs(np.asarray(expected, np.float64) - images).max() < 0.51


def test_images_by_class_are_the_first_of_each(toy):
    few = labelled_images.LabelledImages(toy.train[:40], toy.train_labels[:40] % 7, "")
    grid = labelled_images.class_lines(few, NUM_CLASSES, 3)
    assert grid.shape == (NUM_CLASSES, 3, 8, 8, 1)
    for label in range(NUM_CLASSES):
        expected = [
            image for image, one in zip(few.images, few.labels, strict=True) if one == label
        ]
        for place in range(3):
            wanted = expected[place] if place < len(expected) else np.zeros((8, 8, 1))
            np.testing.assert_array_equal(grid[label, place], wanted)
