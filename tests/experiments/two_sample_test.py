"""The power of two-sample tests: what is drawn, counted, written and refused."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import two_sample
from experiments.data import catalog, pairs
from experiments.run.errors import UsageError

TINY = two_sample.Config(
    num_samples=(4,),
    num_repetitions=2,
    num_permutations=19,
    num_steps=2,
    width=4,
    num_features=2,
)


@pytest.mark.slow
def test_a_run_counts_every_test_and_writes_the_table(tmp_path):
    rows = two_sample.run(TINY, workdir=str(tmp_path))
    assert list(rows) == ["blobs, n = 36", "digits_3_8, n = 4"]
    kernels = ("median", "learned lengthscales", "deep")
    columns = [f"{kernel}, {law}" for kernel in kernels for law in ("power", "level")]
    for row in rows.values():
        assert list(row) == columns
        assert all(share in (0, 0.5, 1) for share in row.values())
    assert json.loads((tmp_path / "two_sample.json").read_text()) == rows
    assert "| blobs, n = 36 " in (tmp_path / "two_sample.md").read_text()


def test_a_folder_is_taken_again_without_what_no_problem_reads(tmp_path, monkeypatch):
    """As one whose command is refused today, which was not when it began."""
    monkeypatch.setattr(two_sample, "_shares", lambda *_: {"median, power": 0.5})
    blobs = dataclasses.replace(TINY, problems=("blobs",))
    two_sample.run(dataclasses.replace(blobs, shifts=(0.5,)), workdir=str(tmp_path))
    two_sample.run(blobs, workdir=str(tmp_path))
    with pytest.raises(UsageError, match="width was 4, now 8"):
        two_sample.run(dataclasses.replace(blobs, width=8), workdir=str(tmp_path))


def test_a_share_is_of_the_rejections_at_5_percent(monkeypatch):
    """Of a test that rejects, at 5 % and no more, where the means of its samples differ."""

    def of_means(key, x, y):
        return jnp.where(jnp.mean(y) - jnp.mean(x) > 0.5, 0.05, 0.0501)

    def zero(key, n):
        return jnp.zeros((n, 2)), jnp.zeros((n, 2))

    def one(key, n):
        return jnp.zeros((n, 2)), jnp.ones((n, 2))

    monkeypatch.setattr(two_sample, "_tests", lambda _: {"mean": of_means})
    shares = two_sample._shares(TINY, pairs.Pair(one, zero), 5, "label")
    assert shares == {"mean, power": 1.0, "mean, level": 0.0}


def test_blobs_differ_in_their_covariance_alone(key):
    pair = pairs.blobs()
    for draw, slope in ((pair.draw, 5 / 7), (pair.null, 0.0)):
        x, y = (np.asarray(points, np.float64) for points in draw(key, 9000))
        for points, expected in ((x, 0.0), (y, slope)):
            cells = np.round(points / 10)
            assert len(np.unique(cells, axis=0)) == 9
            np.testing.assert_allclose(points.mean(axis=0), 10, atol=0.5)
            covariance = np.cov((points - 10 * cells).T)
            np.testing.assert_allclose(covariance, [[1, expected], [expected, 1]], atol=0.06)


def test_every_size_of_a_shift_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(two_sample, "_shares", lambda *_: {"median, power": 1.0})
    config = dataclasses.replace(TINY, problems=("shift", "blobs"), shifts=(0.5, 2.0))
    rows = two_sample.run(config, workdir=str(tmp_path))
    assert set(rows) == {"blobs, n = 36", "shift 0.5, n = 4", "shift 2, n = 4"}


def test_images_are_of_their_digits_and_no_two_are_one(key):
    dataset = catalog.load("digits")
    pair = pairs.threes_and_eights(dataset)
    known = dataset.train.reshape(len(dataset.train), -1) / np.float32(255)
    for draw, digits in ((pair.draw, (3, 8)), (pair.null, (3, 3))):
        for points, digit in zip(draw(key, 40), digits, strict=True):
            of_digit = known[dataset.train_labels == digit]
            nearest = np.abs(np.asarray(points)[:, None] - of_digit[None]).sum(axis=2).min(axis=1)
            np.testing.assert_allclose(nearest, 0, atol=1e-5)
    both = np.concatenate(pair.null(key, pair.most))
    assert len(both) == 2 * pair.most <= (dataset.train_labels == 3).sum()


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("size", [1.0, 0.3])
def test_a_shift_blurs_by_a_box_and_darkens(key, size):
    dataset = catalog.load("digits")
    pair = pairs.shifted_images(dataset, size)
    (x, y), (plain_x, plain_y) = pair.draw(key, 5), pair.null(key, 5)
    np.testing.assert_array_equal(x, plain_x)
    image = np.asarray(plain_y, np.float64)[2].reshape(8, 8)
    edges = np.pad(image, 1, mode="edge")
    means = [[edges[i : i + 3, j : j + 3].mean() for j in range(8)] for i in range(8)]
    blurred = (1 - 0.5 * size) * image + 0.5 * size * np.array(means)
    expected = (1 - 0.05 * size) * blurred
    np.testing.assert_allclose(np.asarray(y)[2].reshape(8, 8), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "ring"}, "dataset: got ring for digits_3_8; expected images of ten digits"),
        ({"dataset": "ring", "problems": ("shift",)}, "dataset: got ring for shift; expected ima"),
        ({"num_samples": (4, 400)}, "num_samples: got 400 for digits_3_8; expected at most"),
    ],
)
def test_what_does_not_go_together_is_named(tmp_path, changes, message):
    config = dataclasses.replace(TINY, **changes)
    with pytest.raises(UsageError, match=message):
        two_sample.run(config, workdir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
