"""Images that stay on the disk: what is read, what is held in memory, and what is refused."""

import shutil
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from experiments.data import catalog, dataset, feed, image_sets
from experiments.data.dataset import Dataset
from experiments.data.rows import Rows
from experiments.judges import image_metrics
from experiments.run import errors
from tests.experiments.data.conftest import message_of

SHAPE = (30, 5, 4, 3)


def write_folder(folder, pictures, labels=None):
    """Writes images as PNG files, in the order of their names, each in the folder of its class."""
    for index, pixels in enumerate(pictures):
        place = folder / (f"class{labels[index]}" if labels is not None else ".")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.squeeze()).save(place / f"{index:05d}.png")
    return str(folder)


@pytest.fixture
def pictures(rng):
    return rng.integers(256, size=SHAPE, dtype=np.uint8)


@pytest.fixture
def rows(tmp_path, pictures):
    """The same images, in a file of which they are a part."""
    path = tmp_path / "images"
    path.write_bytes(b"before" + pictures.tobytes() + b"behind")
    return Rows(path, 6, SHAPE)


def test_an_index_reads_what_it_reads_of_an_array(rows, pictures, rng):
    assert (rows.shape, rows.ndim, rows.nbytes, rows.dtype, len(rows)) == (
        (SHAPE, 4, pictures.nbytes, pictures.dtype, 30)
    )
    order = rng.permutation(30)[:20]
    some, of = rows.of(order).of(np.arange(19, 0, -2)), pictures[order][19:0:-2]
    for found, expected in ((rows, pictures), (some, of)):
        for index in (slice(None), slice(3, 5), slice(8, 1, -3), slice(2, 2), 4, -1):
            np.testing.assert_array_equal(found[index], expected[index])
        index = rng.integers(len(expected), size=(2, 3, 4))
        np.testing.assert_array_equal(found[index], expected[index])
        assert found[index].dtype == np.uint8
        with pytest.raises(IndexError):
            found[np.array([len(expected)])]


def test_rows_are_the_same_where_all_that_they_read_is(tmp_path, rows, rng):
    order = rng.permutation(30)
    assert rows.is_same(rows.of(np.arange(30)))
    assert rows.of(order).is_same(Rows(tmp_path / "images", 6, SHAPE, order))
    for other in (
        rows.of(order),
        rows.of(np.arange(29)),
        Rows(tmp_path / "images", 5, SHAPE),
        Rows(tmp_path / "other", 6, SHAPE),
        Rows(tmp_path / "images", 6, (30, 4, 5, 3)),
    ):
        assert not rows.is_same(other)


def test_nobody_takes_all_of_them_by_accident(rows):
    for take in (np.asarray, np.sort, lambda images: images + np.zeros(1)):
        with pytest.raises(TypeError, match=r"got images of .*; expected an index"):
            take(rows)


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x")])
def test_a_file_that_is_gone_or_cut_short_is_named(tmp_path, rows, harm):
    harm(tmp_path / "images")
    with pytest.raises(errors.StorageError) as caught:
        rows[np.array([0, 29])]
    assert str(caught.value).startswith(f"{tmp_path}/images: ")
    assert str(caught.value).endswith("Run the same command again")


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("case", ["classes", "classes and splits", "splits", "neither"])
def test_a_set_on_the_disk_is_the_one_in_memory(tmp_path, pictures, case, seed):
    labels = np.sort(np.arange(30) % 4) if "classes" in case else None
    parts = ("train", "test") if "splits" in case else (".",)
    for part in parts:
        some = pictures[::-1] if part == "test" else pictures
        path = write_folder(tmp_path / "mine" / part, some, labels)
    path = str(tmp_path / "mine")
    whole = catalog.load(path, seed=seed)
    size = whole.train.nbytes + whole.test.nbytes
    again = catalog.load(path, seed=seed, most_bytes=size)
    found = catalog.load(path, seed=seed, most_bytes=size - 1)
    assert all(isinstance(part, np.ndarray) for part in (again.train, again.test))
    assert all(isinstance(part, Rows) for part in (found.train, found.test))
    held = found._replace(train=found.train[:], test=found.test[:])
    for one, other, expected in zip(held, again, whole, strict=True):
        np.testing.assert_array_equal(one, expected)
        np.testing.assert_array_equal(other, expected)
    if case == "classes":
        for image, label in zip(found.train, found.train_labels, strict=True):
            (index,) = np.flatnonzero((pictures == image).all(axis=(1, 2, 3)))
            assert labels[index] == label


def test_memory_holds_a_few_images_at_a_time(tmp_path, rng):
    """Also while they are decoded and verified, and where all of them are looked at."""
    path = write_folder(tmp_path / "mine", rng.integers(256, size=(1, 70, 66, 3), dtype=np.uint8))
    for index in range(1, 600):
        shutil.copy(tmp_path / "mine" / "00000.png", tmp_path / "mine" / f"{index:05d}.png")
    tracemalloc.start()
    found = catalog.load(path, image_size=64, most_bytes=1e6)
    assert found.train.nbytes > 6e6
    batches = feed.host_batches(found.train.__getitem__, len(found.train), 0, 10, 1, 0, 1)
    for _ in range(len(found.train) // 10):
        next(batches)
    assert tracemalloc.get_traced_memory()[1] < 3e6
    tracemalloc.stop()
    tracemalloc.start()
    assert len(found.train[:]) == len(found.train)  # what is measured would be seen
    assert tracemalloc.get_traced_memory()[1] > 6e6
    tracemalloc.stop()


def test_networks_learn_from_a_part_at_equal_distances(rows, pictures, monkeypatch):
    labels = np.arange(30, dtype=np.int32) % 7
    found = Dataset("mine", rows, rows.of(np.arange(3)), labels, labels[:3], 7)
    whole = found.part()
    np.testing.assert_array_equal(whole.train, pictures)
    np.testing.assert_array_equal(whole.test, pictures[:3])
    assert whole.part() is whole or whole.part().train is whole.train
    monkeypatch.setattr(dataset, "_PART_BYTES", 10 * pictures[0].nbytes)
    part = found.part()
    np.testing.assert_array_equal(part.train, pictures[::3])
    np.testing.assert_array_equal(part.train_labels, labels[::3])
    np.testing.assert_array_equal(part.test, pictures[:3])
    assert found._replace(train_labels=None).part().train_labels is None


def test_nearest_images_of_a_set_on_the_disk_are_those_of_one_in_memory(
    rows, pictures, rng, monkeypatch
):
    """Block by block."""
    order = np.concatenate([np.arange(30), np.arange(30)[::-1]])
    labels = rng.integers(9, size=60).astype(np.int32)
    samples = np.concatenate([pictures[5:9] / 255, rng.random((8, *SHAPE[1:]))]).astype(np.float32)
    samples[-1] = samples[-2]
    whole = Dataset("mine", pictures[order], pictures, labels, labels[:30], 9)
    expected = image_metrics.neighbours(whole)(samples)
    monkeypatch.setattr(image_metrics, "_BLOCK_BYTES", 20 * pictures[0].nbytes)
    on_disk = whole._replace(train=rows.of(order))
    assert image_metrics.neighbours(on_disk)(samples) == expected
    samples[0] = np.nan
    assert np.isnan(image_metrics.neighbours(on_disk)(samples)["nearest_l1"])


def test_of_equally_near_images_the_first_counts(tmp_path):
    """That between both has the label of the first, though the other one is asked for before."""
    (tmp_path / "images").write_bytes(bytes([10, 20]))
    images, labels = Rows(tmp_path / "images", 0, (2, 1, 1, 1)), np.arange(2, dtype=np.int32)
    score = image_metrics.neighbours(Dataset("mine", images, images, labels, labels, 2))
    found = score(np.array([20, 15], np.uint8).reshape(2, 1, 1, 1))
    np.testing.assert_allclose(found["label_entropy"], np.log(2), rtol=1e-6)


def test_a_wrong_image_leaves_nothing_in_the_cache(tmp_path, pictures, cache):
    path = write_folder(tmp_path / "mine", pictures)
    content = (tmp_path / "mine" / "00020.png").read_bytes()
    (tmp_path / "mine" / "00020.png").write_bytes(content[:60])
    message = message_of(catalog.load, path, most_bytes=1)
    assert message.startswith(f"{tmp_path}/mine/00020.png: not a PNG or JPEG image: ")
    assert list(cache.iterdir()) == []


def test_too_little_room_is_said_before_anything_is_decoded(tmp_path, pictures, cache, monkeypatch):
    path = write_folder(tmp_path / "mine", pictures)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=pictures.nbytes - 1))
    message = message_of(catalog.load, path)
    assert message.startswith(f"{cache}: got 1.675e-06 GiB that are free; expected 1.676e-06 GiB")
    assert message.endswith("Make room, or set KERNELGRAD_CACHE to another folder")
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=pictures.nbytes))
    assert len(catalog.load(path).train) == 27


def test_what_a_kill_has_left_makes_room(tmp_path, pictures, cache, monkeypatch):
    path = write_folder(tmp_path / "mine", pictures)
    catalog.load(path)
    (kept,) = cache.iterdir()
    kept.replace(left := cache / f"{kept.name}.99.tmp")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: usage._replace(free=0 if left.exists() else 10**9)
    )
    assert len(catalog.load(path).train) == 27
    assert list(cache.iterdir()) == [kept]


def test_a_cache_that_cannot_be_written_is_named(tmp_path, pictures, cache):
    path = write_folder(tmp_path / "mine", pictures)
    cache.write_text("a file")
    message = message_of(catalog.load, path, most_bytes=1)
    assert message.startswith(f"cannot write {cache}/folder-")
    assert message.endswith("set KERNELGRAD_CACHE to a writable folder")


@pytest.mark.parametrize("most_bytes", [1, 1e9])
def test_a_flipped_bit_of_a_cached_set_is_seen(tmp_path, cache, rng, most_bytes):
    pictures = rng.integers(256, size=(30, 20, 15, 3), dtype=np.uint8)
    path = write_folder(tmp_path / "mine", pictures, np.arange(30) % 3)
    catalog.load(path, most_bytes=most_bytes)
    (kept,) = cache.iterdir()
    good, seen = kept.read_bytes(), 0
    for _ in range(30):
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
        kept.write_bytes(bad)
        found = image_sets._read_cached(kept)
        if found is None:
            seen += 1
        else:  # a bit of the zip file's own, of no meaning
            np.testing.assert_array_equal(
                np.sort(found.splits["train"].images[:], axis=0), np.sort(pictures, axis=0)
            )
    assert seen > 20
    kept.write_bytes(good[:-1000])
    assert len(catalog.load(path, most_bytes=most_bytes).train) == 27  # decoded again
    assert kept.read_bytes() == good


def test_a_set_kept_by_an_earlier_version_is_read(tmp_path, pictures):
    labels = (np.arange(30) % 3).astype(np.int32)
    arrays = {"num_classes": np.int64(3), "train.images": pictures, "train.labels": labels}
    for save, is_read in ((np.savez, True), (np.savez_compressed, False)):
        save(tmp_path / "kept.npz", **arrays)
        found = image_sets._read_cached(tmp_path / "kept.npz")
        assert (found is not None) == is_read
        if found is not None:
            np.testing.assert_array_equal(found.splits["train"].images[:], pictures)
            np.testing.assert_array_equal(found.splits["train"].labels, labels)
            assert found.num_classes == 3
