"""Sets of labelled images: real ones, a few of them repeated, and those of a conditional generator.

All are held as uint8, generated images rounded to the 256 intensities that real ones have.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.data.dataset import Dataset
from experiments.training import trained
from kernelgrad.types import Array, Key, PyTree

_BATCH = 500  # generated images at a time


class LabelledImages(NamedTuple):
    """A set to train on.

    Attributes:
      images: uint8, shape (n, h, w, c).
      labels: int32, shape (n,).
      source: what they are, in words.
    """

    images: np.ndarray
    labels: np.ndarray
    source: str


def real(dataset: Dataset, num_images: int, rng: np.random.Generator) -> LabelledImages:
    """Returns training images, drawn uniformly without replacement."""
    chosen = rng.permutation(len(dataset.train))[:num_images]
    return _examples(dataset, chosen, "training images")


def duplicates(
    dataset: Dataset, num_images: int, num_distinct: int, rng: np.random.Generator
) -> LabelledImages:
    """Returns a few training images, drawn uniformly without replacement, over and over.

    Args:
      dataset: images with labels.
      num_images: size of the set.
      num_distinct: different images, fewer where there are fewer; each is there equally often, up
        to one.
      rng: draws them.
    """
    few = rng.permutation(len(dataset.train))[: min(num_distinct, num_images)]
    return _examples(dataset, np.resize(few, num_images), f"{len(few)} training images, repeated")


def _examples(dataset: Dataset, chosen: np.ndarray, source: str) -> LabelledImages:
    labels = np.asarray(dataset.train_labels)
    return LabelledImages(dataset.train[chosen], labels[chosen], source)


def generated(
    workdir: str, num_images: int, *, seed: int, data_dir: str | None = None
) -> LabelledImages:
    """Draws from a conditional generator: labels as often as in the training data, then images.

    Args:
      workdir: the folder of the run.
      num_images: how many to draw.
      seed: of the latents.
      data_dir: where the files of the run's data set are.

    Raises:
      UsageError: there is no run with a checkpoint.
      DataError: the run's data are missing.
      StorageError: the folder cannot be used.
    """
    with trained.opened(workdir, data_dir) as (_, run):
        model, state, num_classes = run.model, run.state, run.dataset.num_classes
    key = jax.random.key(seed)

    @jax.jit
    def draw(params: PyTree, batch_stats: PyTree, key: Key) -> tuple[Array, Array]:
        latents = model.sample_latents(key, _BATCH)
        images = model.generate(params, batch_stats, latents)
        labels = jnp.argmax(latents[:, -num_classes:], axis=1)
        return jnp.rint(255 * images).astype(jnp.uint8), labels.astype(jnp.int32)

    batches = [
        jax.device_get(draw(state.params, state.batch_stats, jax.random.fold_in(key, index)))
        for index in tqdm(range(-(-num_images // _BATCH)), desc=f"Sampling {workdir}")
    ]
    images, labels = (np.concatenate(parts)[:num_images] for parts in zip(*batches, strict=True))
    return LabelledImages(images, labels, f"{run.config.objective}, step {run.step} of {workdir}")


def class_lines(examples: LabelledImages, num_classes: int, num_each: int) -> np.ndarray:
    """Returns the first images of each class, (num_classes, num_each, h, w, c), 0 where few."""
    grid = np.zeros((num_classes, num_each, *examples.images.shape[1:]), np.uint8)
    for label, line in enumerate(grid):
        found = examples.images[np.flatnonzero(examples.labels == label)[:num_each]]
        line[: len(found)] = found
    return grid
