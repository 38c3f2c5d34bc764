"""Data sets: facts of the real ones, statements about the toys, damage that must not pass."""

import gzip
import hashlib
import http.server
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from experiments.data import catalog, cifar10, image_sets, mnist
from experiments.run import errors, places

REPOSITORY = Path(__file__).parents[3]
REAL_DATA = os.environ.get("KERNELGRAD_DATA_DIR")
needs_real_data = pytest.mark.skipif(
    not REAL_DATA, reason="KERNELGRAD_DATA_DIR is not set: no real data sets here"
)
Z_BOUND = 5.5  # two-sided 4e-8 per check, for about a hundred checks


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder, which no test shares with another or with the user."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("KERNELGRAD_CACHE", str(folder))
    return folder


def message_of(call, *args, **kwargs):
    """The one-line message of the DataError that the call raises."""
    with pytest.raises(errors.DataError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_moment(values, mean):
    """The sample mean is within Z_BOUND standard errors of `mean`."""
    values = np.asarray(values, np.float64)
    z = (values.mean() - mean) / (values.std(ddof=1) / np.sqrt(len(values)))
    assert abs(z) < Z_BOUND, z


# --- front door ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("mnits", "mnist"),
        ("swissroll", "swiss_roll"),
        ("digit", "digits"),
        ("wine_red", "red_wine"),
    ],
)
def test_unknown_name_suggests_the_nearest(tmp_path, wrong, nearest):
    message = message_of(catalog.load, wrong, str(tmp_path))
    assert f"got {wrong!r}" in message
    assert f"did you mean {nearest!r}?" in message
    assert all(name in message for name in catalog.names())


@pytest.mark.parametrize("name", ["", "..", "../secret", "/etc", "a/../../b", "qqqqqqq"])
def test_unknown_name_without_a_neighbour_lists_all(tmp_path, name):
    for data_dir in (None, str(tmp_path)):
        message = message_of(catalog.load, name, data_dir)
        assert "did you mean" not in message
        assert "digits, mnist" in message


@pytest.mark.parametrize("name", ["red_wine", "white_wine", "parkinsons", "cifar10_jpeg"])
def test_missing_file_names_the_path_or_the_flag(tmp_path, name):
    assert "--data_dir" in message_of(catalog.load, name)
    assert str(tmp_path) in message_of(catalog.load, name, str(tmp_path))
    assert "is not a folder" in message_of(catalog.load, name, str(tmp_path / "absent"))


def test_negative_seed_is_refused():
    assert "seed: got -1" in message_of(catalog.load, "ring", seed=-1)


def test_unusable_cache_is_named(tmp_path, monkeypatch, small_mnist, small_cifar):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("KERNELGRAD_CACHE", str(tmp_path / "file" / "cache"))
    assert "set KERNELGRAD_CACHE" in message_of(catalog.load, "mnist", str(small_mnist))
    write_archive(tmp_path / "cifar10-jpeg.tar.xz", small_cifar)
    assert "set KERNELGRAD_CACHE" in message_of(catalog.load, "cifar10_jpeg", str(tmp_path))


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("KERNELGRAD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert places.cache() == tmp_path / "xdg" / "kernelgrad"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert places.cache() == tmp_path / "home" / ".cache" / "kernelgrad"


# --- digits -------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_digits():
    digits = catalog.load("digits")
    intensities, labels = load_digits(return_X_y=True)
    rounded = (255 * intensities.astype(np.int64) + 8) // 16  # half up: only 8 is a tie

    images = np.concatenate([digits.train, digits.test])
    got = np.column_stack([images.reshape(1797, 64), [*digits.train_labels, *digits.test_labels]])
    expected = np.column_stack([rounded, labels])
    assert sorted(map(tuple, got.astype(int))) == sorted(map(tuple, expected))
    assert digits.train.shape == (1500, 8, 8, 1)
    assert digits.test.shape == (297, 8, 8, 1)
    assert digits.train.dtype == digits.test.dtype == np.uint8
    assert digits.train_labels.dtype == digits.test_labels.dtype == np.int32
    assert (digits.num_classes, digits.is_image, digits.sample_shape) == (10, True, (8, 8, 1))


def test_digits_are_split_by_class():
    digits = catalog.load("digits")
    total = np.bincount(load_digits().target)
    share = np.bincount(digits.test_labels) - total * 297 / 1797
    assert np.all(np.abs(share) < 1)
    np.testing.assert_array_equal(catalog.load("digits", seed=7).test, digits.test)


# --- toys ---------------------------------------------------------------------------------------


def toy(name, seed=0):
    """All points of a toy in float64, and their labels."""
    dataset = catalog.load(name, seed=seed)
    points = np.concatenate([dataset.train, dataset.test]).astype(np.float64)
    if dataset.train_labels is None:
        return points, None
    return points, np.concatenate([dataset.train_labels, dataset.test_labels])


@pytest.mark.parametrize("name", ["swiss_roll", "ring", "grid", "banana", "eight_gaussians"])
def test_toys_have_their_shapes_and_follow_the_seed(name):
    dataset = catalog.load(name, seed=3)
    assert dataset.name == name
    assert dataset.train.shape == (10_000, 2)
    assert dataset.test.shape == (2_000, 2)
    assert dataset.train.dtype == dataset.test.dtype == np.float32
    assert (dataset.is_image, dataset.sample_shape) == (False, (2,))
    assert (dataset.train_labels is None) == (dataset.test_labels is None)
    assert (dataset.num_classes == 0) == (dataset.train_labels is None)
    np.testing.assert_array_equal(dataset.train, catalog.load(name, seed=3).train)
    assert not np.isin(dataset.train[:, 0], catalog.load(name, seed=4).train[:, 0]).mean() > 0.01
    assert not np.isin(dataset.test[:, 0], dataset.train[:, 0]).mean() > 0.01


def test_ring_radius_and_angle():
    points, _ = toy("ring")
    radius = np.hypot(*points.T)
    assert_moment(radius, 1)
    assert_moment((radius - 1) ** 2, 0.1**2)
    assert_moment((radius - 1) ** 3, 0)
    assert_moment((radius - 1) ** 4, 3 * 0.1**4)
    unit = points / radius[:, None]
    for k in (1, 2, 3, 4, 8):
        wave = (unit[:, 0] + 1j * unit[:, 1]) ** k
        assert_moment(wave.real, 0)
        assert_moment(wave.imag, 0)


GRID_CENTRES = [(x, y) for x in (-2, -1, 0, 1, 2) for y in (-2, -1, 0, 1, 2)]
RING_CENTRES = [
    (2, 0),
    (2**0.5, 2**0.5),
    (0, 2),
    (-(2**0.5), 2**0.5),
    (-2, 0),
    (-(2**0.5), -(2**0.5)),
    (0, -2),
    (2**0.5, -(2**0.5)),
]


@pytest.mark.parametrize(
    ("name", "centres", "deviation"),
    [("grid", GRID_CENTRES, 0.05), ("eight_gaussians", RING_CENTRES, 0.1)],
)
def test_mixtures_scatter_about_their_centres(name, centres, deviation):
    points, labels = toy(name)
    centres = np.array(centres, np.float64)
    assert catalog.load(name).num_classes == len(centres)
    noise = (points - centres[labels]) / deviation
    assert_moment(noise[:, 0] * noise[:, 1], 0)
    for column in noise.T:
        assert_moment(column, 0)
        assert_moment(column**2, 1)
        assert_moment(column**4, 3)
    for label in range(len(centres)):
        assert_moment(labels == label, 1 / len(centres))
        assert_moment(noise[labels == label, 0], 0)
        assert_moment(noise[labels == label, 1], 0)


def test_banana_is_a_bent_gaussian():
    points, _ = toy("banana")
    across = (points[:, 1] - (points[:, 0] ** 2 - 1) / 2) / 0.3
    for column in (points[:, 0], across):
        assert_moment(column, 0)
        assert_moment(column**2, 1)
        assert_moment(column**4, 3)
    assert_moment(points[:, 0] * across, 0)
    assert_moment(points[:, 0] ** 2 * across, 0)
    assert_moment(points[:, 1], 0)
    assert_moment(points[:, 1] ** 2, 0.5 + 0.09)


def test_swiss_roll_has_the_moments_of_its_spiral():
    points, _ = toy("swiss_roll")
    t = np.pi * (1.5 + 3 * (np.arange(200_000) + 0.5) / 200_000)
    x, y = t * np.cos(t) / 10, t * np.sin(t) / 10
    variance = 0.05**2
    assert_moment(points[:, 0], x.mean())
    assert_moment(points[:, 1], y.mean())
    assert_moment(points[:, 0] * points[:, 1], (x * y).mean())
    assert_moment(points[:, 0] ** 2, (x**2).mean() + variance)
    assert_moment(points[:, 1] ** 2, (y**2).mean() + variance)
    assert_moment(points[:, 0] ** 3, (x**3 + 3 * x * variance).mean())
    assert_moment(points[:, 1] ** 3, (y**3 + 3 * y * variance).mean())

    spiral = np.column_stack([x, y])[::200]
    sq_dist = ((points[:3000, None] - spiral) ** 2).sum(2)
    nearest = sq_dist.argmin(1)
    inside = (nearest > 50) & (nearest < len(spiral) - 50)
    assert_moment(sq_dist.min(1)[inside], variance)


# --- UCI tables ---------------------------------------------------------------------------------

WINE = [
    *("fixed acidity", "volatile acidity", "citric acid", "residual sugar", "chlorides"),
    *("free sulfur dioxide", "total sulfur dioxide", "density", "pH", "sulphates"),
    *("alcohol", "quality"),
]
PARKINSONS = [
    *("subject#", "age", "sex", "test_time", "motor_UPDRS", "total_UPDRS", "Jitter(%)"),
    *("Jitter(Abs)", "Jitter:RAP", "Jitter:PPQ5", "Jitter:DDP", "Shimmer", "Shimmer(dB)"),
    *("Shimmer:APQ3", "Shimmer:APQ5", "Shimmer:APQ11", "Shimmer:DDA", "NHR", "HNR", "RPDE"),
    *("DFA", "PPE"),
]


def write_table(path, columns, values, delimiter=",", quote="", newline="\n"):
    lines = [delimiter.join(f"{quote}{column}{quote}" for column in columns)]
    lines += [delimiter.join(repr(float(value)) for value in row) for row in values]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((newline.join(lines) + newline).encode())


def wine_values(rng, num_rows=1599, num_columns=12):
    """Rows with distinct first column, of very different scales, and qualities 3..8."""
    values = rng.normal(size=(num_rows, num_columns)) * 10.0 ** rng.integers(-3, 4, num_columns)
    values[:, 0] = rng.permutation(num_rows) + 0.5
    values[:, -1] = rng.integers(3, 9, num_rows)
    return values


def assert_standardised(dataset, features):
    """The three splits are one permutation of the rows, in units of the training rows."""
    sizes = [len(dataset.train), len(dataset.valid), len(dataset.test)]
    assert sizes == [len(features) - 2 * (len(features) // 10)] + 2 * [len(features) // 10]
    got = np.concatenate([dataset.train, dataset.valid, dataset.test])
    order = np.empty(len(got), int)
    order[np.argsort(got[:, 0])] = np.argsort(features[:, 0])
    assert not np.array_equal(order, np.arange(len(got)))
    train = features[order[: sizes[0]]].astype(np.float64)
    mean = np.array([sum(column) / len(column) for column in train.T])
    variance = np.array([sum((column - column.mean()) ** 2) / len(column) for column in train.T])
    expected = (features[order] - mean) / np.sqrt(variance)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)
    return order


@pytest.mark.parametrize(
    ("folder", "delimiter", "quote", "newline"),
    [(".", ",", "", "\n"), ("uci", ";", '"', "\n"), ("uci", "\t", "", "\r\n")],
)
def test_wine_is_shuffled_split_and_standardised(tmp_path, rng, folder, delimiter, quote, newline):
    values = wine_values(rng)
    write_table(tmp_path / folder / "winequality-red.csv", WINE, values, delimiter, quote, newline)
    dataset = catalog.load("red_wine", str(tmp_path))
    order = assert_standardised(dataset, values[:, :-1])
    labels = np.concatenate([dataset.train_labels, dataset.valid_labels, dataset.test_labels])
    np.testing.assert_array_equal(labels, values[order, -1] >= 6)
    assert labels.dtype == np.int32
    assert (dataset.num_classes, dataset.sample_shape) == (2, (11,))

    again = catalog.load("red_wine", str(tmp_path))
    other = catalog.load("red_wine", str(tmp_path), seed=1)
    np.testing.assert_array_equal(dataset.train, again.train)
    assert not np.array_equal(dataset.train, other.train)


def test_wine_without_density_has_ten_features(tmp_path, rng):
    values = wine_values(rng, 4898, 11)
    columns = [column for column in WINE if column != "density"]
    write_table(tmp_path / "winequality-white.csv", columns, values)
    dataset = catalog.load("white_wine", str(tmp_path))
    assert_standardised(dataset, values[:, :-1])
    assert dataset.sample_shape == (10,)


def test_parkinsons_leaves_out_the_subject(tmp_path, rng):
    values = rng.normal(size=(5875, 22))
    write_table(tmp_path / "parkinsons_updrs.data", PARKINSONS, values, "\t")
    dataset = catalog.load("parkinsons", str(tmp_path))
    assert_standardised(dataset, values[:, 1:])
    assert (dataset.num_classes, dataset.train_labels, dataset.valid_labels) == (0, None, None)


def swap_columns(text):
    return text.replace("fixed acidity,volatile acidity", "volatile acidity,fixed acidity")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda text: "", "columns"),
        (swap_columns, "columns"),
        (lambda text: text.split("\n", 1)[1], "columns"),
        (lambda text: text[: len(text) // 2].rsplit("\n", 1)[0], "rows; expected 1599"),
        (lambda text: text + text.splitlines()[-1], "1600 rows"),
        (lambda text: text[:-9], "not a table of numbers"),
        (lambda text: text.replace("\n", "\n1,", 1), "not a table of numbers"),
        (lambda text: text.replace("\n", "\nnan,", 1).replace(",", "", 0), "table of numbers"),
        (lambda text: text[:2000] + "x" + text[2000:], "not a table of numbers"),
        (lambda text: text.replace(".", "\x00"), "not a table of numbers"),
    ],
)
def test_damaged_table_is_named(tmp_path, rng, damage, expected):
    path = tmp_path / "winequality-red.csv"
    write_table(path, WINE, wine_values(rng))
    path.write_text(damage(path.read_text()))
    message = message_of(catalog.load, "red_wine", str(tmp_path))
    assert str(path) in message
    assert expected in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_table_entry_that_is_not_finite_is_located(tmp_path, rng, value):
    values = wine_values(rng)
    values[41, 8] = value
    write_table(tmp_path / "winequality-red.csv", WINE, values)
    message = message_of(catalog.load, "red_wine", str(tmp_path))
    assert f"line 43, column 'pH': got {value}" in message


def test_constant_column_is_refused(tmp_path, rng):
    values = wine_values(rng)
    values[:, 3] = 2.5
    write_table(tmp_path / "winequality-red.csv", WINE, values)
    assert "constant column" in message_of(catalog.load, "red_wine", str(tmp_path))


def test_binary_file_is_no_table(tmp_path):
    (tmp_path / "winequality-red.csv").write_bytes(bytes(range(256)))
    assert "table" in message_of(catalog.load, "red_wine", str(tmp_path))


@needs_real_data
@pytest.mark.parametrize(
    ("name", "num_rows", "num_good"),
    [("red_wine", 1599, 855), ("white_wine", 4898, 3258), ("parkinsons", 5875, None)],
)
def test_real_tables(name, num_rows, num_good):
    dataset = catalog.load(name, REAL_DATA)
    assert len(dataset.train) + len(dataset.valid) + len(dataset.test) == num_rows
    np.testing.assert_allclose(dataset.train.mean(0, dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(dataset.train.std(0, dtype=np.float64), 1, atol=1e-6)
    if num_good is None:
        assert dataset.sample_shape == (21,)
    else:
        labels = [dataset.train_labels, dataset.valid_labels, dataset.test_labels]
        assert sum(map(np.sum, labels)) == num_good


# --- MNIST --------------------------------------------------------------------------------------


def idx(array):
    """The IDX file of an array of unsigned bytes, by the published description of the format."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


def publish(monkeypatch, folder, contents):
    """Writes gzipped files under the official names and has their checksums published."""
    folder.mkdir(parents=True, exist_ok=True)
    table = []
    for file, content in zip(mnist.FILES, contents, strict=True):
        zipped = gzip.compress(content, mtime=0)
        (folder / file.name).write_bytes(zipped)
        digest = hashlib.sha256(zipped).hexdigest()
        table.append(mnist.SourceFile(file.name, len(zipped), digest))
    monkeypatch.setattr(mnist, "FILES", tuple(table))


@pytest.fixture
def arrays(rng):
    """Images and labels of a small training split, then of a small test split."""
    return [
        rng.integers(256, size=(37, 28, 28), dtype=np.uint8),
        rng.permutation(np.arange(37, dtype=np.uint8) % 10),
        rng.integers(256, size=(12, 28, 28), dtype=np.uint8),
        np.arange(12, dtype=np.uint8)[::-1] % 10,
    ]


@pytest.fixture
def small_mnist(tmp_path, monkeypatch, arrays):
    """A data folder with mnist/, whose four files are small and count as the published ones."""
    publish(monkeypatch, tmp_path / "data" / "mnist", [idx(array) for array in arrays])
    return tmp_path / "data"


def assert_is(dataset, arrays):
    np.testing.assert_array_equal(dataset.train[..., 0], arrays[0])
    np.testing.assert_array_equal(dataset.train_labels, arrays[1])
    np.testing.assert_array_equal(dataset.test[..., 0], arrays[2])
    np.testing.assert_array_equal(dataset.test_labels, arrays[3])
    assert dataset.train.dtype == dataset.test.dtype == np.uint8
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
    assert (dataset.num_classes, dataset.sample_shape) == (10, (28, 28, 1))


@pytest.mark.parametrize("folder", [".", "mnist"])
def test_mnist_round_trip_is_exact_and_in_order(small_mnist, arrays, folder, capfd):
    assert_is(catalog.load("mnist", str(small_mnist / folder)), arrays)
    assert_is(catalog.load("mnist", str(small_mnist / folder)), arrays)
    assert capfd.readouterr().out == ""


def test_prepared_mnist_serves_without_its_sources(small_mnist, arrays, tmp_path):
    catalog.load("mnist", str(small_mnist))
    assert_is(catalog.load("mnist"), arrays)
    (tmp_path / "empty").mkdir()
    assert_is(catalog.load("mnist", str(tmp_path / "empty")), arrays)


def test_prepared_mnist_is_an_ordinary_tfds_directory(small_mnist, arrays, cache):
    catalog.load("mnist", str(small_mnist))
    (root,) = (cache / "tfds").glob("mnist-*")
    rows = tfds.data_source("mnist", split="test", data_dir=str(root), download=False)
    assert [row["label"] for row in rows] == list(arrays[3])
    np.testing.assert_array_equal([row["image"][..., 0] for row in rows], arrays[2])
    assert_is(catalog.load("mnist", str(root)), arrays)


def flipped(content, rng):
    """The content with one bit changed."""
    bad = bytearray(content)
    bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
    return bytes(bad)


def test_every_flipped_bit_of_mnist_is_detected(small_mnist, arrays, rng):
    assert_is(catalog.load("mnist", str(small_mnist)), arrays)  # prepared, and still verified below
    for trial in range(60):
        file = mnist.FILES[trial % 4]
        path = small_mnist / "mnist" / file.name
        good = path.read_bytes()
        bad = flipped(good, rng)
        path.write_bytes(bad)
        message = message_of(catalog.load, "mnist", str(small_mnist))
        assert str(path) in message
        assert file.sha256 in message
        assert hashlib.sha256(bad).hexdigest() in message
        path.write_bytes(good)
    assert_is(catalog.load("mnist", str(small_mnist)), arrays)


@pytest.mark.parametrize("number", range(4))
def test_truncated_swapped_or_missing_mnist_file_is_named(small_mnist, number, cache):
    file = mnist.FILES[number]
    path = small_mnist / "mnist" / file.name
    good = path.read_bytes()
    for bad in (
        b"",
        good[:-1],
        good + b"\0",
        (path.parent / "t10k-labels-idx1-ubyte.gz").read_bytes(),
    ):
        if bad == good:
            continue
        path.write_bytes(bad)
        message = message_of(catalog.load, "mnist", str(small_mnist))
        assert f"{path} is damaged: got {len(bad)} bytes" in message
        assert f"expected {len(good)} bytes, sha256 {file.sha256}" in message
    path.unlink()
    message = message_of(catalog.load, "mnist", str(small_mnist))
    assert f"cannot read {path}" in message
    path.mkdir()
    assert f"cannot read {path}" in message_of(catalog.load, "mnist", str(small_mnist))
    assert not list(cache.glob("**/*.npz"))


def published_but_wrong(arrays):
    """File contents with the right checksum that are not MNIST, and a word of the message each."""
    images, labels, *test = [idx(array) for array in arrays]
    return {
        "magic": [b"\0\0\x09\x03" + images[4:], labels, *test],
        "rank": [images, images, *test],
        "size": [idx(arrays[0][:, :27]), labels, *test],
        "short": [images[:-1], labels, *test],
        "long": [images, labels + b"\0", *test],
        "header": [images[:7], labels, *test],
        "label": [images, labels[:-1] + b"\x0a", *test],
        "count": [images, idx(arrays[1][:-1]), *test],
        "empty": [idx(arrays[0][:0]), idx(arrays[1][:0]), *test],
    }


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("magic", "magic 0x0903"),
        ("rank", "expected 0x0801"),
        ("size", "(37, 27, 28)"),
        ("short", "holds 29007 values; expected 29008"),
        ("long", "holds 38 values; expected 37"),
        ("header", "not a gzipped IDX file"),
        ("label", "label 10 at position 36; expected 0..9"),
        ("count", "37 images"),
        ("empty", "at least 1"),
    ],
)
def test_content_that_is_not_mnist_is_refused(tmp_path, monkeypatch, arrays, cache, case, expected):
    publish(monkeypatch, tmp_path / "data", published_but_wrong(arrays)[case])
    message = message_of(catalog.load, "mnist", str(tmp_path / "data"))
    assert expected in message
    assert str(tmp_path / "data") in message
    assert not list(cache.glob("**/dataset_info.json"))


def test_racing_preparations_do_not_disturb_each_other(small_mnist, arrays, cache, monkeypatch):
    read_split, racer = mnist.read_split, []

    def interrupted(images_path, labels_path):
        if not racer:  # another process prepares the same set while this one is at work
            racer.append(None)
            racer.append(mnist.prepare(small_mnist / "mnist", cache / "tfds"))
        return read_split(images_path, labels_path)

    monkeypatch.setattr(mnist, "read_split", interrupted)
    assert_is(catalog.load("mnist", str(small_mnist)), arrays)
    assert [path.name for path in racer[1].parent.iterdir()] == ["3.0.1"]


def test_damaged_cache_of_arrays_is_made_anew(small_mnist, arrays, cache, rng):
    catalog.load("mnist", str(small_mnist))
    (path,) = cache.glob("*.npz")
    good = path.read_bytes()
    for bad in (b"", good[: len(good) // 2], *(flipped(good, rng) for _ in range(20))):
        path.write_bytes(bad)
        assert_is(catalog.load("mnist", str(small_mnist)), arrays)
    assert [entry.name for entry in cache.glob("*.npz*")] == [path.name]


def test_tensorflow_is_never_imported(small_mnist, arrays, cache):
    code = """
import json, sys
from experiments.data import catalog, mnist
mnist.FILES = tuple(mnist.SourceFile(*row) for row in json.loads(sys.argv[1]))
print(catalog.load("mnist", sys.argv[2]).train.sum(), "tensorflow" in sys.modules)
print("tensorflow_datasets" in sys.modules, any(m.startswith("tensorflow.") for m in sys.modules))
"""
    arguments = [json.dumps(mnist.FILES), str(small_mnist)]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [str(arrays[0].sum()), "False", "True", "False"]


class Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder that a server on this machine publishes as the download address of MNIST."""
    folder = tmp_path / "published"
    folder.mkdir()
    handler = lambda *args: Server(*args, directory=str(folder))  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        address = f"http://127.0.0.1:{running.server_address[1]}/"
        monkeypatch.setattr(mnist, "BASE_URL", address)
        yield folder
        running.shutdown()


def test_mnist_is_downloaded_where_no_files_are_given(server, monkeypatch, arrays):
    publish(monkeypatch, server, [idx(array) for array in arrays])
    assert_is(catalog.load("mnist"), arrays)


def test_damaged_download_is_refused(server, monkeypatch, arrays, cache):
    publish(monkeypatch, server, [idx(array) for array in arrays])
    path = server / mnist.FILES[2].name
    path.write_bytes(path.read_bytes()[:-1])
    message = message_of(catalog.load, "mnist")
    assert mnist.FILES[2].sha256 in message
    assert not list(cache.glob("**/dataset_info.json"))


def test_download_without_network_fails_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(mnist, "BASE_URL", "http://127.0.0.1:9/")
    (tmp_path / "empty").mkdir()
    for data_dir in (None, str(tmp_path / "empty")):
        assert "pass --data_dir" in message_of(catalog.load, "mnist", data_dir)


@needs_real_data
def test_real_mnist():
    dataset = catalog.load("mnist", REAL_DATA)
    assert dataset.train.shape == (60_000, 28, 28, 1)
    assert dataset.test.shape == (10_000, 28, 28, 1)
    assert list(dataset.train_labels[:10]) == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert list(dataset.test_labels[:4]) == [7, 2, 1, 0]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert list(np.bincount(dataset.train_labels)) == counts
    assert list(np.bincount(dataset.test_labels)) == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
    assert abs(dataset.train.mean() - 33.318) < 5e-4


# --- other sets prepared by TFDS ----------------------------------------------------------------


def prepare_set(root, splits, *, feature=None, num_classes=None, name="shapes", config=None):
    """Prepares a set of {split: (images, labels)} with TFDS and returns its directory."""
    feature = feature or tfds.features.Image(shape=(None, None, 3))

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            features = {"picture": feature}
            if num_classes:
                features["label"] = tfds.features.ClassLabel(num_classes=num_classes)
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(*rows) for split, rows in splits.items()}

        def _generate_examples(self, images, labels=None):
            for index, image in enumerate(images):
                label = {"label": int(labels[index])} if num_classes else {}
                yield index, {"picture": Image.fromarray(image)} | label

    Prepared.name = name
    builder = Prepared(data_dir=root, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


@pytest.fixture
def pictures(rng):
    return rng.integers(256, size=(30, 6, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize("in_cache", [False, True])
def test_prepared_set_is_read(tmp_path, cache, rng, pictures, in_cache):
    labels = rng.integers(4, size=30)
    root = cache / "tfds" if in_cache else tmp_path
    splits = {"train": (pictures[:20], labels[:20]), "test": (pictures[20:], labels[20:])}
    prepare_set(root, splits, num_classes=4)
    for _ in range(2):
        dataset = catalog.load("shapes", None if in_cache else str(tmp_path))
        np.testing.assert_array_equal(dataset.train, pictures[:20])
        np.testing.assert_array_equal(dataset.test, pictures[20:])
        np.testing.assert_array_equal(dataset.train_labels, labels[:20])
        np.testing.assert_array_equal(dataset.test_labels, labels[20:])
        assert (dataset.name, dataset.num_classes, dataset.is_image) == ("shapes", 4, True)


@pytest.mark.parametrize("num_classes", [None, 30])
def test_a_tenth_is_held_out_without_test_split(tmp_path, pictures, num_classes):
    prepare_set(tmp_path, {"train": (pictures, np.arange(30))}, num_classes=num_classes)
    dataset = catalog.load("shapes", str(tmp_path))
    assert (len(dataset.train), len(dataset.test)) == (27, 3)
    images = np.concatenate([dataset.train, dataset.test])
    if num_classes:
        labels = np.concatenate([dataset.train_labels, dataset.test_labels])
        assert sorted(labels) == list(range(30))
        np.testing.assert_array_equal(images, pictures[labels])
    else:
        assert (dataset.train_labels, dataset.test_labels, dataset.num_classes) == (None, None, 0)
        assert sorted(map(bytes, images)) == sorted(map(bytes, pictures))
    np.testing.assert_array_equal(catalog.load("shapes", str(tmp_path)).test, dataset.test)
    assert not np.array_equal(catalog.load("shapes", str(tmp_path), seed=1).test, dataset.test)


def test_newest_version_and_configuration_are_found(tmp_path, pictures):
    directory = prepare_set(tmp_path, {"train": (pictures,)}, config="plain")
    assert len(catalog.load("shapes", str(tmp_path)).train) == 27
    assert len(catalog.load("shapes/plain", str(tmp_path)).train) == 27
    for version in ("1.0.9", "1.0.10", "incomplete.AB12_9.0.0"):
        (directory.parent / version).mkdir()
        (directory.parent / version / "features.json").touch()
    assert image_sets.find_prepared("shapes", tmp_path).name == "1.0.10"
    (tmp_path / "shapes" / "other" / "1.0.0").mkdir(parents=True)
    (tmp_path / "shapes" / "other" / "1.0.0" / "features.json").touch()
    message = message_of(catalog.load, "shapes", str(tmp_path))
    assert "expected one of shapes/other, shapes/plain" in message


def test_split_without_labels(tmp_path, pictures):
    splits = {"train": (pictures, np.arange(30)), "test": (pictures, np.full(30, -1))}
    prepare_set(tmp_path, splits | {"extra": (pictures[:2, :3], [0, 1])}, num_classes=30)
    for _ in range(2):
        dataset = catalog.load("shapes", str(tmp_path))
        assert dataset.test_labels is None
        np.testing.assert_array_equal(dataset.train_labels, np.arange(30))


def test_changed_set_is_read_anew(tmp_path, pictures):
    directory = prepare_set(tmp_path, {"train": (pictures,), "test": (pictures,)})
    catalog.load("shapes", str(tmp_path))
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
    prepare_set(tmp_path, {"train": (255 - pictures,), "test": (pictures,)})
    np.testing.assert_array_equal(catalog.load("shapes", str(tmp_path)).train, 255 - pictures)


def unusable_sets(pictures):
    """Arguments of prepare_set and a word of the message each."""
    image = tfds.features.Image
    small = [pictures[0], pictures[1][:4]]
    return {
        "sizes": ([{"train": (small,)}], {}, "4 x 5; expected 6 x 5"),
        "test": (
            [{"train": (pictures,), "test": (pictures[:, :, :4],)}],
            {},
            "6 x 4; expected 6 x 5",
        ),
        "few": ([{"train": (pictures[:9],)}], {}, "got 9 examples; expected at least 10"),
        "split": ([{"validation": (pictures,)}], {}, "got the splits validation"),
        "bits": (
            [{"train": (pictures[..., 0].astype(np.uint16),)}],
            {"feature": image(shape=(6, 5, 1), dtype=np.uint16)},
            "got the features picture; expected one image of 8 bits",
        ),
    }


@pytest.mark.parametrize("case", ["sizes", "test", "few", "split", "bits"])
def test_unusable_set_is_refused(tmp_path, pictures, case):
    arguments, options, expected = unusable_sets(pictures)[case]
    prepare_set(tmp_path, *arguments, **options)
    assert expected in message_of(catalog.load, "shapes", str(tmp_path))


def test_other_format_is_refused(tmp_path, pictures):
    directory = prepare_set(tmp_path, {"train": (pictures,)})
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    message = message_of(catalog.load, "shapes", str(tmp_path))
    assert "got the format tfrecord; expected array_record" in message
    assert str(directory) in message


def test_damaged_set_is_refused_or_read_right(tmp_path, rng, pictures):
    directory = prepare_set(tmp_path, {"train": (pictures,), "test": (pictures,)})
    (records,) = directory.glob("shapes-test.array_record*")
    good, messages = records.read_bytes(), []
    for _ in range(20):
        records.write_bytes(flipped(good, rng))
        try:
            np.testing.assert_array_equal(catalog.load("shapes", str(tmp_path)).test, pictures)
        except errors.DataError as error:
            messages.append(str(error))
    assert messages
    assert all(str(directory) in message for message in messages)
    records.unlink()
    assert str(directory) in message_of(catalog.load, "shapes", str(tmp_path))


# --- CIFAR-10 as JPEG files ---------------------------------------------------------------------

CLASSES = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]


def jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


@pytest.fixture
def small_cifar(rng, monkeypatch):
    """Members of an archive with two training images and one test image a class."""
    monkeypatch.setattr(cifar10, "COUNTS", {"train": 20, "test": 10})
    members = {}
    for split, count in (("train", 2), ("test", 1)):
        for label in CLASSES:
            for number in range(count):
                image = rng.integers(256, size=(32, 32, 3), dtype=np.uint8)
                members[f"{split}/{label}/{number:04d}.jpg"] = jpeg(image)
    return members


def write_archive(path, members, extra=()):
    """Writes a .tar.xz of the members, with `extra` (TarInfo, content) before the last of them."""
    with tarfile.open(path, "w:xz", preset=0) as tar:
        for folder in ("train", "train/airplane"):
            info = tarfile.TarInfo(folder)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        for number, (name, content) in enumerate(members.items()):
            if number == len(members) - 1:
                for info, extra_content in extra:
                    tar.addfile(info, io.BytesIO(extra_content))
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("folder", [".", "cifar10"])
def test_cifar_images_and_labels(tmp_path, small_cifar, folder):
    (tmp_path / "cifar10").mkdir()
    write_archive(tmp_path / folder / "cifar10-jpeg.tar.xz", small_cifar)
    for _ in range(2):
        cifar = catalog.load("cifar10_jpeg", str(tmp_path))
        pixels = {name: np.asarray(Image.open(io.BytesIO(c))) for name, c in small_cifar.items()}
        for split, images, labels in (
            ("train", cifar.train, cifar.train_labels),
            ("test", cifar.test, cifar.test_labels),
        ):
            expected = [name for name in pixels if name.startswith(split)]
            np.testing.assert_array_equal(images, [pixels[name] for name in expected])
            assert [CLASSES[label] for label in labels] == [n.split("/")[1] for n in expected]
            assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        assert (cifar.num_classes, cifar.sample_shape) == (10, (32, 32, 3))


def picture(kind="JPEG"):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, kind)
    return buffer.getvalue()


def entry(name, kind=tarfile.REGTYPE, target="", content=None):
    """A member, by default a good image, with its content."""
    content = picture() if content is None else content
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    return info, content


ALIEN, LARGE, DOUBLE = (
    "does not belong there",
    "expected at most 65536",
    "duplicate or one too many",
)
NEW = "train/airplane/0005.jpg"
HOSTILE = {
    "parent": (entry("../evil.jpg"), ALIEN),
    "parent before": (entry("../train/airplane/0005.jpg"), ALIEN),
    "parent inside": (entry("train/airplane/../../../evil.jpg"), ALIEN),
    "absolute": (entry("/evil.jpg"), ALIEN),
    "dot": (entry("./train/airplane/0005.jpg"), ALIEN),
    "backslash": (entry("train\\airplane\\..\\0005.jpg"), ALIEN),
    "suffix": (entry("train/airplane/0005.jpg.exe"), ALIEN),
    "newline": (entry("train/airplane/0005.jpg\n"), ALIEN),
    "other name": (entry("train/airplane/0005.py"), ALIEN),
    "other class": (entry("train/goose/0005.jpg"), ALIEN),
    "other split": (entry("valid/airplane/0005.jpg"), ALIEN),
    "long name": (entry("train/airplane/" + "a/" * 70_000 + "0.jpg"), ALIEN),
    "folder outside": (entry("../evil", tarfile.DIRTYPE), ALIEN),
    "symlink": (entry(NEW, tarfile.SYMTYPE, "/etc/passwd"), ALIEN),
    "symlink folder": (entry("train/airplane", tarfile.SYMTYPE, "/var"), ALIEN),
    "hard link": (entry(NEW, tarfile.LNKTYPE, "../../etc/passwd"), ALIEN),
    "device": (entry(NEW, tarfile.CHRTYPE), ALIEN),
    "pipe": (entry(NEW, tarfile.FIFOTYPE), ALIEN),
    "large file": (entry(NEW, content=picture() + bytes(65_536)), LARGE),
    "duplicate": (entry("train/airplane/0000.jpg"), DOUBLE),
    "other format": (entry(NEW, content=picture("GIF")), "not a PNG or JPEG"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archive_is_refused_and_writes_nothing(tmp_path, small_cifar, cache, case):
    member, expected = HOSTILE[case]
    folder = tmp_path / "deep" / "data"
    folder.mkdir(parents=True)
    del small_cifar["train/airplane/0001.jpg"]  # so that the hostile one makes the number right
    path = write_archive(folder / "cifar10-jpeg.tar.xz", small_cifar, [member])
    message = message_of(catalog.load, "cifar10_jpeg", str(folder))
    assert expected in message
    assert str(path) in message
    assert hashlib.sha256(path.read_bytes()).hexdigest() in message
    assert [entry for entry in tmp_path.rglob("*") if not entry.is_dir()] == [path]
    assert not cache.exists()
    assert not Path("/evil.jpg").exists()


def pax(records):
    """A member that holds extended headers of the next one."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    return info, records


@pytest.mark.parametrize(
    "records",
    [
        b"x size=1\n",
        b"-5 size=1\n",
        b"9" * 5000 + b" size=1\n",
        b"5012 size=" + b"9" * 5000 + b"\n",
        b"21 GNU.sparse.map=x,y\n",
        b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n25 GNU.sparse.realsize=x\n",
        b"26 GNU.sparse.numblocks=x\n24 GNU.sparse.offset=x\n",
        b"\xff" * 100,
        b"",
    ],
    ids=range(9),
)
def test_hostile_headers_of_an_archive_are_refused(tmp_path, small_cifar, cache, records):
    del small_cifar["train/airplane/0001.jpg"]
    write_archive(tmp_path / "cifar10-jpeg.tar.xz", small_cifar, [pax(records)])
    message = message_of(catalog.load, "cifar10_jpeg", str(tmp_path))
    assert "cifar10-jpeg.tar.xz (sha256 " in message
    assert "\n" not in message
    assert not cache.exists()


@pytest.mark.parametrize("number", range(4))
def test_what_is_no_file_in_the_place_of_mnist_is_refused_at_once(small_mnist, number, tmp_path):
    path = small_mnist / "mnist" / mnist.FILES[number].name
    for make in (
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("nothing"),
        Path.mkdir,
        lambda path: (path.touch(), os.truncate(path, 2**40)),
    ):
        path.unlink()
        make(path)
        assert f"mnist: cannot read {path} (" in message_of(catalog.load, "mnist", str(small_mnist))
        if path.is_dir():
            path.rmdir()
            path.touch()


def test_one_image_too_many_is_refused(tmp_path, small_cifar):
    write_archive(tmp_path / "cifar10-jpeg.tar.xz", small_cifar, [entry(NEW)])
    assert DOUBLE in message_of(catalog.load, "cifar10_jpeg", str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"%PDF", bytes(500)])
def test_member_that_is_no_image_is_refused(tmp_path, small_cifar, content):
    small_cifar["train/cat/0001.jpg"] = content
    write_archive(tmp_path / "cifar10-jpeg.tar.xz", small_cifar)
    assert "not a PNG or JPEG" in message_of(catalog.load, "cifar10_jpeg", str(tmp_path))


def test_image_of_another_size_is_refused_before_it_is_decoded(tmp_path, small_cifar, rng):
    image = jpeg(rng.integers(256, size=(33, 32, 3), dtype=np.uint8))
    small_cifar["train/cat/0001.jpg"] = image
    write_archive(tmp_path / "cifar10-jpeg.tar.xz", small_cifar)
    assert "33 x 32; expected 32 x 32" in message_of(catalog.load, "cifar10_jpeg", str(tmp_path))
    small_cifar["train/cat/0001.jpg"] = image.replace(b"\0\x21\0\x20", b"\xff\xf0\xff\xf0")
    write_archive(tmp_path / "cifar10-jpeg.tar.xz", small_cifar)
    assert "decompression bomb" in message_of(catalog.load, "cifar10_jpeg", str(tmp_path))


def test_archive_without_all_images_is_refused(tmp_path, small_cifar):
    del small_cifar["test/dog/0000.jpg"]
    write_archive(tmp_path / "cifar10-jpeg.tar.xz", small_cifar)
    message = message_of(catalog.load, "cifar10_jpeg", str(tmp_path))
    assert "got 9 test images; expected 10" in message


@pytest.mark.parametrize("kind", ["header", "padding"])
def test_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, small_cifar, kind):
    monkeypatch.setattr(cifar10, "_MAX_ARCHIVE_BYTES", 2**20)
    path = tmp_path / "cifar10-jpeg.tar.xz"
    if kind == "header":
        write_archive(path, small_cifar, [entry("train/airplane/" + "0" * 2**21 + ".jpg")])
    else:
        write_archive(path, small_cifar)
        with lzma.open(path, "ab") as stream:
            stream.write(bytes(2**21))
    assert path.stat().st_size < 2**17
    message = message_of(catalog.load, "cifar10_jpeg", str(tmp_path))
    assert "unpacks to more than 1048576 bytes" in message


def test_every_flipped_bit_of_the_archive_is_detected(tmp_path, small_cifar, rng):
    path = write_archive(tmp_path / "cifar10-jpeg.tar.xz", small_cifar)
    good = path.read_bytes()
    for bad in (b"", good[:-1], good[:100], *(flipped(good, rng) for _ in range(60))):
        path.write_bytes(bad)
        message = message_of(catalog.load, "cifar10_jpeg", str(tmp_path))
        assert hashlib.sha256(bad).hexdigest() in message


@needs_real_data
def test_real_cifar():
    cifar = catalog.load("cifar10_jpeg", REAL_DATA)
    for labels, count in ((cifar.train_labels, 5000), (cifar.test_labels, 1000)):
        assert list(np.bincount(labels)) == [count] * 10
    mean = cifar.train.mean((0, 1, 2))
    np.testing.assert_allclose(mean, [125.3, 123.0, 113.9], atol=1)  # of the original PNGs
