"""The metrics of images against float64 loops over pixels, logits and features."""

import math
from collections import Counter

import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy.special import softmax

from experiments.data.dataset import Dataset
from experiments.judges import image_metrics
from experiments.judges.classifiers import Classifier, MLPClassifier

CLASSES, WIDTH, SHAPE = 3, 4, (2, 3, 1)


@pytest.fixture
def dataset(rng):
    train, test = (rng.integers(0, 256, (n, *SHAPE)).astype(np.uint8) for n in (12, 9))
    labels = [rng.integers(CLASSES, size=n).astype(np.int32) for n in (12, 9)]
    return Dataset("noise", train, test, *labels, CLASSES)


@pytest.fixture
def classifier(rng):
    """A classifier that was never trained: open hidden units, no class at home at grey images."""
    first, second = rng.random((math.prod(SHAPE), WIDTH)), rng.random((WIDTH, WIDTH))
    last = 2 * rng.normal(size=(WIDTH, CLASSES))
    layers = [(first, 0.1), (second, 0.1), (last, -((first.sum(axis=0) / 2 + 0.1) @ second) @ last)]
    params = {
        f"Dense_{i}": {
            "kernel": jnp.asarray(kernel, jnp.float32),
            "bias": jnp.broadcast_to(jnp.asarray(bias, jnp.float32), kernel.shape[1]),
        }
        for i, (kernel, bias) in enumerate(layers)
    }
    return Classifier(MLPClassifier(CLASSES, WIDTH), params, SHAPE, 0.5, "ab" * 32)


@pytest.fixture
def samples(rng):
    return rng.random((10, *SHAPE)).astype(np.float32)


def outputs(classifier, images):
    """Returns probabilities and features in float64."""
    hidden = np.asarray(images, np.float64).reshape(len(images), -1)
    for layer in (classifier.params[f"Dense_{i}"] for i in range(3)):
        features = np.maximum(hidden, 0)
        hidden = features @ np.asarray(layer["kernel"], np.float64) + layer["bias"]
    return softmax(hidden, axis=1), features


def test_neighbours_are_the_training_images_of_least_l1_distance(dataset, samples):
    found = image_metrics.neighbours(dataset)(samples)
    distances, labels = [], []
    for sample in samples.astype(np.float64):
        to_train = [np.abs(sample - image / 255).sum() for image in dataset.train]
        distances.append(min(to_train))
        labels.append(int(dataset.train_labels[np.argmin(to_train)]))
    shares = [count / len(samples) for count in Counter(labels).values()]
    entropy = -sum(share * math.log(share) for share in shares)
    assert found == pytest.approx(
        {"label_entropy": entropy, "nearest_l1": np.mean(distances)}, rel=1e-5
    )
    assert 0 < entropy < math.log(CLASSES)


def test_the_inception_score_is_that_of_the_classifiers_probabilities(classifier, samples):
    found = image_metrics.inception(classifier)(samples)
    expected = oracles.inception_score(outputs(classifier, samples)[0])
    assert found == {"inception_score": pytest.approx(expected, rel=1e-5)}
    assert 1.01 < expected < CLASSES


@pytest.mark.thorough
def test_distances_are_those_of_features_to_those_of_the_first_test_images(
    dataset, classifier, samples, monkeypatch
):
    monkeypatch.setattr(image_metrics, "_REFERENCE_IMAGES", 8)
    found = image_metrics.feature_distances(dataset, classifier)(samples)
    real, fake = (outputs(classifier, x)[1] for x in (dataset.test[:8] / 255, samples))
    moments = [part for one in (real, fake) for part in (one.mean(axis=0), np.cov(one.T))]
    neighbourhoods = oracles.precision_recall(real, fake, 5)
    expected = {
        "classifier_frechet": oracles.frechet_distance(*moments),
        "classifier_kid": oracles.kernel_inception_distance(real, fake),
        **dict(zip(("precision", "recall", "density", "coverage"), neighbourhoods, strict=True)),
    }
    assert found == pytest.approx(expected, rel=1e-3)
    assert expected["classifier_frechet"] > 0.1
    assert len(set(expected.values())) > 3
    others = {"label_entropy", "nearest_l1", "inception_score"}  # of the tests above
    assert set(image_metrics.METRICS) == others | set(expected)


def test_stored_images_become_intensities():
    found = image_metrics.as_images(np.array([0, 51, 255], np.uint8))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [0, 0.2, 1], rtol=1e-6)


@pytest.mark.parametrize("judge", ["inception", "feature_distances"])
def test_images_that_the_classifier_does_not_take_are_named(dataset, classifier, samples, judge):
    judges = {
        "inception": lambda: image_metrics.inception(classifier),
        "feature_distances": lambda: image_metrics.feature_distances(dataset, classifier),
    }
    with pytest.raises(ValueError, match="images: got shape"):
        judges[judge]()(samples[:, 1:])
    with pytest.raises(ValueError, match=r"images: got .*uint8"):
        judges[judge]()(dataset.test)
