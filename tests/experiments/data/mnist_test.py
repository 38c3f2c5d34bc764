"""MNIST: facts of the real one, races, downloads, damage that must not pass."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments.data import catalog, mnist
from tests.experiments.data.conftest import (
    REAL_DATA,
    flipped,
    forms_of,
    idx,
    message_of,
    needs_real_data,
    publish,
)

REPOSITORY = Path(__file__).parents[3]


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


def test_mnist_is_checked_before_it_is_prepared(small_mnist, cache):
    (form,) = forms_of(lambda check: catalog.load("mnist", str(small_mnist), check=check))
    assert not cache.exists()
    assert (form.train.shape, form.test.shape) == ((60_000, 28, 28, 1), (10_000, 28, 28, 1))
    assert (form.train_labels.shape, form.num_classes) == ((60_000,), 10)


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
