"""What generated images are judged by: their nearest neighbours, and a classifier trained here."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.dataset import Dataset
from experiments.data.rows import Rows
from experiments.judges.classifiers import Classifier
from experiments.run.errors import DataError
from kernelgrad import metrics
from kernelgrad.types import Array

Scores = dict[str, float]

METRICS = (
    "label_entropy",
    "nearest_l1",
    "inception_score",
    "classifier_frechet",
    "classifier_kid",
    "precision",
    "recall",
    "density",
    "coverage",
)
OF_HELD_OUT = frozenset(METRICS[:3])  # which training images would do too well in
_REFERENCE_IMAGES = 10_000
_BLOCK_BYTES = 2**26  # of images that come from the disk
_NEIGHBOURHOOD = 5


def check(dataset: Dataset) -> None:
    """Raises DataError where there are too few images for the distances between features."""
    fewest = min(len(dataset.train), len(dataset.test))
    if fewest <= _NEIGHBOURHOOD:
        raise DataError(
            f"dataset: got {dataset.name}, a split of which has {fewest} images; expected at least "
            f"{_NEIGHBOURHOOD + 1}, for each is judged by its {_NEIGHBOURHOOD} neighbours"
        )


def neighbours(dataset: Dataset) -> Callable[[Array], Scores]:
    """Returns paper 000's two metrics of images in [0, 1], from their l1-nearest training images.

    Args:
      dataset: images with labels.

    Returns:
      Function of images (n, h, w, c) to ``label_entropy``, of the neighbours' labels in nats (at
      most log of the number of classes), and ``nearest_l1``, the mean distance in units of
      intensity summed over pixels.
    """
    images, labels = dataset.train, dataset.train_labels

    @jax.jit
    def score(samples: Array, images: Array, labels: Array) -> dict[str, Array]:
        index, distance = metrics.nearest_neighbors_l1(_flat(samples), images)
        return {
            "label_entropy": metrics.label_entropy(labels[index], dataset.num_classes),
            "nearest_l1": jnp.mean(distance),
        }

    if isinstance(images, Rows):
        return lambda samples: _floats(score(jnp.asarray(samples), *_nearest(samples, dataset)))
    resident = jnp.asarray(_flat(images)), jnp.asarray(labels)
    return lambda samples: _floats(score(jnp.asarray(samples), *resident))


_nearest_of_block = jax.jit(metrics.nearest_neighbors_l1)


def _nearest(samples: Array, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Returns the training images among which samples have their nearest, and their labels.

    They stand as in the set, so that of equally near ones the first is the same.
    """
    samples = _flat(jnp.asarray(samples))
    found, least = np.zeros(len(samples), int), np.full(len(samples), np.inf)
    size = max(1, _BLOCK_BYTES // math.prod(dataset.sample_shape))
    for start in range(0, len(dataset.train), size):
        index, distance = _nearest_of_block(samples, _flat(dataset.train[start : start + size]))
        closer = np.asarray(distance) < least
        found, least = np.where(closer, start + index, found), np.where(closer, distance, least)
    found.sort()
    return _flat(dataset.train[found]), np.asarray(dataset.train_labels)[found]


def inception(classifier: Classifier) -> Callable[[Array], Scores]:
    """Returns the inception score of images in [0, 1] under a classifier.

    Args:
      classifier: trained on the data set's classes.

    Returns:
      Function of images (n, h, w, c) to ``inception_score``, between 1 and the number of classes.
    """
    score = jax.jit(metrics.inception_score)
    return lambda samples: {"inception_score": float(score(classifier.probs(jnp.asarray(samples))))}


def feature_distances(dataset: Dataset, classifier: Classifier) -> Callable[[Array], Scores]:
    """Returns distances between images in [0, 1] and the test images, in the classifier's features.

    Args:
      dataset: images; at most the first 10 000 test images are the reference.
      classifier: trained on the data set's classes.

    Returns:
      Function of images (n, h, w, c), n >= 6, to ``classifier_frechet``, ``classifier_kid``,
      ``precision``, ``recall``, ``density`` and ``coverage`` (5 neighbours). Frechet distances of
      samples of different sizes do not compare: it falls with n.
    """
    real = classifier.features(as_images(dataset.test[:_REFERENCE_IMAGES]))

    @jax.jit
    def score(fake: Array, real: Array) -> dict[str, Array]:
        return {
            "classifier_frechet": frechet_between(fake, real),
            "classifier_kid": metrics.kernel_inception_distance(real, fake),
            **metrics.precision_recall(real, fake, k=_NEIGHBOURHOOD)._asdict(),
        }

    return lambda samples: _floats(score(classifier.features(jnp.asarray(samples)), real))


def frechet(dataset: Dataset, classifier: Classifier) -> Callable[[Array], Scores]:
    """Returns the Frechet distance alone of :func:`feature_distances`, which takes a moment."""
    real = classifier.features(as_images(dataset.test[:_REFERENCE_IMAGES]))
    score = jax.jit(frechet_between)
    return lambda samples: {
        "classifier_frechet": float(score(classifier.features(jnp.asarray(samples)), real))
    }


@jax.default_matmul_precision("highest")  # the covariances, on devices that default to less
def frechet_between(fake: Array, real: Array) -> Array:
    """Returns the Frechet distance between two clouds of features, (n, l) and (m, l)."""
    moments = [
        moment
        for features in (real, fake)
        for moment in (jnp.mean(features, axis=0), jnp.cov(features, rowvar=False))
    ]
    return metrics.frechet_distance(*moments)


def as_images(stored: np.ndarray) -> Array:
    """Returns stored uint8 images as float32 in [0, 1]."""
    return jnp.asarray(stored).astype(jnp.float32) / 255


def _flat(images: Any) -> Any:
    """Returns images as points, (n, h w c)."""
    return images.reshape(len(images), -1)


def _floats(scores: dict[str, Array]) -> Scores:
    return {name: float(value) for name, value in scores.items()}
