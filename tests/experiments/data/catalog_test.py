"""The front door of the data: names, seeds, caches, and the embedded digits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from experiments.data import catalog, image_sets, mnist
from experiments.run import places
from tests.experiments.data.cifar10_test import write_archive
from tests.experiments.data.conftest import message_of


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


@pytest.mark.parametrize("name", ["", "../secret", "/nowhere", "a/../../b", "qqqqqqq"])
def test_unknown_name_without_a_neighbour_lists_all(tmp_path, name):
    for data_dir in (None, str(tmp_path)):
        message = message_of(catalog.load, name, data_dir)
        assert "did you mean" not in message
        assert "digits, mnist" in message


@pytest.mark.parametrize("name", ["x" * 255, "x/" * 1000, "/nowhere/" + 15 * "folder/" + "a.npz"])
def test_unknown_names_of_any_length_are_one_short_line(tmp_path, name):
    message = message_of(catalog.load, name, str(tmp_path))
    assert "dataset: got " in message
    assert len(message) <= 280


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


def test_a_set_from_the_cache_says_so_once(tmp_path, cache, monkeypatch, capsys):
    images = np.zeros((20, 4, 4, 1), np.uint8)
    found = image_sets.ImageSet({"train": image_sets.Split(images, None)}, 0)
    monkeypatch.setattr(image_sets, "read_prepared", lambda *_: found)
    monkeypatch.setattr(mnist, "prepare", lambda *_: cache / "tfds/mnist/3.0.1")
    catalog._note_cached.cache_clear()
    for place in (cache / "tfds/shapes", cache / "tfds/mnist", tmp_path / "data/shapes"):
        (place / "3.0.1").mkdir(parents=True)
        (place / "3.0.1/features.json").touch()
    there = f"kernelgrad: note: {{}}: read from the cache, {cache}/tfds/{{}}/3.0.1; {{}}\n"
    for name, folder, hint in (
        ("shapes", None, "--data_dir names the folder of another copy"),
        ("mnist", None, "--data_dir names the folder of another copy"),
        ("mnist", tmp_path / "data", f"none in {tmp_path}/data"),
    ):
        for expected in (there.format(name, name, hint), ""):
            catalog.load(name, folder and str(folder))
            assert capsys.readouterr().err == expected
    catalog.load("shapes", str(tmp_path / "data"))
    assert capsys.readouterr().err == ""


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
