"""The published scores: which weights are taken, how images are resized, what is computed."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from experiments.data.dataset import Dataset
from experiments.judges import inception_scores, torch_files
from experiments.run.errors import DataError, UsageError


def test_another_file_than_the_published_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"inception_weights: got .*nothing\.pth \(No such file"):
        inception_scores.load(str(tmp_path / "nothing.pth"))
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    found = hashlib.sha256(b"weights").hexdigest()[:16]
    with pytest.raises(UsageError, match=f"SHA-256 {found}...; expected 6726825d0af5f729...,"):
        inception_scores.load(str(path))


def test_other_tensors_than_those_of_the_network_are_refused(tmp_path, monkeypatch):
    few = {"Conv2d_1a_3x3.conv.weight": np.zeros((32, 3, 3, 3), np.float32)}
    monkeypatch.setattr(torch_files, "state_dict", lambda content: few)
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    with pytest.raises(ValueError, match="other names or shapes; expected those of Inception-v3"):
        inception_scores.load(str(path), hashlib.sha256(b"weights").hexdigest())


def test_images_of_four_channels_are_refused():
    images = np.zeros((6, 8, 8, 4), np.uint8)
    with pytest.raises(DataError, match="got drawn, of 4 channels; Inception expects 1 or 3"):
        inception_scores.check(Dataset("drawn", images, images, None, None, 0))


def test_resizing_is_that_of_tensorflow_1(rng):
    image = rng.random((1, 20, 31, 2)).astype(np.float32)
    found = inception_scores.resized(jnp.asarray(image))
    assert found.shape == (1, 299, 299, 2)
    for i, j in ((0, 0), (298, 298), (17, 200), (150, 3), (290, 289)):
        y, x = i * 20 / 299, j * 31 / 299
        top, left = int(y), int(x)
        below, right = min(top + 1, 19), min(left + 1, 30)
        dy, dx = y - top, x - left
        expected = (1 - dy) * ((1 - dx) * image[0, top, left] + dx * image[0, top, right]) + dy * (
            (1 - dx) * image[0, below, left] + dx * image[0, below, right]
        )
        np.testing.assert_allclose(found[0, i, j], expected, rtol=0, atol=2e-6)


@pytest.fixture
def features(rng):
    """Features of 40 and 50 images in 60 dimensions, so that covariances are singular."""
    return [np.maximum(rng.normal(size=(n, 60)) + 0.3, 0).astype(np.float32) for n in (40, 50)]


def test_fid_is_exact_where_covariances_are_singular(features):
    fake, real = (cloud.astype(np.float64) for cloud in features)
    root = scipy.linalg.sqrtm(np.cov(fake, rowvar=False) @ np.cov(real, rowvar=False) + 0j)
    between = np.sum((fake.mean(axis=0) - real.mean(axis=0)) ** 2)
    traces = np.trace(np.cov(fake, rowvar=False) + np.cov(real, rowvar=False))
    expected = between + traces - 2 * np.trace(root).real
    np.testing.assert_allclose(inception_scores.fid(*features), expected, rtol=1e-7)
    assert jnp.zeros(1).dtype == jnp.float32  # and leaves the precision as it was


@pytest.mark.thorough
def test_scores_are_of_features_and_logits(features, rng, monkeypatch):
    fake, real = features
    logits = rng.normal(size=(len(fake), 7)).astype(np.float32)
    seen = []

    def outputs(weights, images):
        seen.append((weights, images.shape, float(jnp.max(images))))
        return (jnp.asarray(real), None) if len(seen) == 1 else (jnp.asarray(fake), logits)

    monkeypatch.setattr(inception_scores, "outputs", outputs)
    test = np.full((60, 4, 4, 3), 255, np.uint8)
    score = inception_scores.scores(Dataset("white", test, test, None, None, 0), "weights", 50)
    found = score(jnp.zeros((40, 4, 4, 3)))
    assert seen == [("weights", (50, 4, 4, 3), 1.0), ("weights", (40, 4, 4, 3), 0.0)]
    assert list(found) == list(inception_scores.METRICS)
    probs = np.exp(jax.nn.log_softmax(logits.astype(np.float64)))
    ratio = np.log(probs / probs.mean(axis=0))
    np.testing.assert_allclose(
        found["inception_v3_score"], np.exp((probs * ratio).sum(axis=1).mean()), rtol=1e-5
    )

    def cubic(x, y):
        return (x.astype(np.float64) @ y.T / x.shape[1] + 1) ** 3

    m, n = len(real), len(fake)
    expected = (
        (cubic(real, real).sum() - np.trace(cubic(real, real))) / (m * (m - 1))
        + (cubic(fake, fake).sum() - np.trace(cubic(fake, fake))) / (n * (n - 1))
        - 2 * cubic(real, fake).mean()
    )
    np.testing.assert_allclose(found["kid"], expected, rtol=1e-4, atol=1e-6)
    assert found["fid"] == inception_scores.fid(fake, real)
