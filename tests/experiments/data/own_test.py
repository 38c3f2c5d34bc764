"""A user's own data: folders of images, arrays, and what is refused by name."""

import os
import pickle

import numpy as np
import pytest
from PIL import Image

from experiments.data import catalog
from experiments.run import memory
from tests.experiments.data.conftest import forms_of, message_of


def picture(rng, height=6, width=6, channels=3):
    return rng.integers(0, 256, (height, width, channels), np.uint8)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze()).save(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_images_is_a_data_set(tmp_path, rng, channels):
    pixels = np.stack([picture(rng, channels=channels) for _ in range(20)])
    for index, each in enumerate(pixels):
        write(tmp_path / "mine" / f"{index:02d}.PNG", each)
    (tmp_path / "mine" / ".DS_Store").write_text("not an image")
    for _ in range(2):  # decoded, then from the cache
        found = catalog.load(str(tmp_path / "mine"), seed=1)
        assert (found.name, found.num_classes, found.train_labels) == ("mine", 0, None)
        assert (len(found.train), len(found.test)) == (18, 2)
        both = np.concatenate([found.train, found.test])
        np.testing.assert_array_equal(np.sort(both, axis=0), np.sort(pixels, axis=0))


def test_sub_folders_are_classes_and_splits_are_taken_as_they_are(tmp_path, rng):
    for split, count in (("train", 3), ("test", 2)):
        for label in ("cat", "dog"):
            for index in range(count):
                image = np.full((4, 4, 3), 100 * (label == "dog") + index, np.uint8)
                write(tmp_path / "pets" / split / label / f"{index}.png", image)
    found = catalog.load(str(tmp_path / "pets"))
    assert found.num_classes == 2
    firsts = found.train[:, 0, 0, 0]
    assert sorted(firsts) == [0, 1, 2, 100, 101, 102]
    np.testing.assert_array_equal(found.train_labels, firsts >= 100)
    assert sorted(found.test_labels) == [0, 0, 1, 1]


def test_what_stands_class_by_class_is_mixed(tmp_path, rng):
    labels = np.repeat([0, 1, 2, 3], 50).astype(np.int32)
    values = np.arange(200, dtype=np.float32)[:, None] + rng.random((200, 2)).astype(np.float32)
    parts = {"train": values, "train_labels": labels, "test": values, "test_labels": labels}
    np.savez(tmp_path / "sorted.npz", **parts)
    found = catalog.load(str(tmp_path / "sorted.npz"))
    for points, of in ((found.train, found.train_labels), (found.test, found.test_labels)):
        np.testing.assert_array_equal(of, points[:, 0] // 50)
        np.testing.assert_array_equal(np.sort(points, axis=0), np.sort(values, axis=0))
        assert set(of[:40]) == {0, 1, 2, 3}
    again = catalog.load(str(tmp_path / "sorted.npz"), seed=1)
    np.testing.assert_array_equal(again.train, found.train)

    order = rng.permutation(200)
    parts = {name: array[order] for name, array in parts.items()}
    np.savez(tmp_path / "mixed.npz", **parts)
    found = catalog.load(str(tmp_path / "mixed.npz"))
    np.testing.assert_array_equal(found.train, values[order])


def test_mixed_sizes_are_cut_in_the_middle_and_resized(tmp_path):
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 200  # the middle square
    write(tmp_path / "mine" / "a.png", wide)
    for index in range(10):
        write(tmp_path / "mine" / f"b{index}.png", np.full((4, 4, 3), 200, np.uint8))
    message = message_of(catalog.load, str(tmp_path / "mine"))
    assert "b0.png: got 4 x 4; expected 8 x 16" in message
    assert "--image_size" in message
    found = catalog.load(str(tmp_path / "mine"), image_size=4)
    assert found.sample_shape == (4, 4, 3)
    np.testing.assert_allclose(found.train.astype(float), 200, atol=12)  # the filter rings


def test_a_photograph_stands_upright(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    image[0] = 255
    exif = Image.Exif()
    (tmp_path / "mine").mkdir()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    for index in range(10):
        Image.fromarray(image).save(tmp_path / "mine" / f"{index}.png", exif=exif)
    found = catalog.load(str(tmp_path / "mine"))
    np.testing.assert_array_equal(found.train[0, :, 3], 255)
    np.testing.assert_array_equal(found.train[0, :, 0], 0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("000.png", b"\x89PNG\r\n\x1a\n and then nothing"),
        ("notes.txt", b"text"),
        ("cut.png", None),
        ("empty.jpg", b""),
    ],
)
def test_the_wrong_file_is_named(tmp_path, rng, name, content):
    for index in range(12):
        write(tmp_path / "mine" / f"{index}.png", picture(rng))
    if content is None:
        content = (tmp_path / "mine" / "0.png").read_bytes()[:60]
    (tmp_path / "mine" / name).write_bytes(content)
    message = message_of(catalog.load, str(tmp_path / "mine"))
    assert str(tmp_path / "mine" / name) in message


def test_pixels_of_16_bits_are_refused_by_name(tmp_path):
    for index in range(10):
        write(tmp_path / "mine" / f"{index}.png", np.full((4, 4), 30_000, np.uint16))
    message = message_of(catalog.load, str(tmp_path / "mine"))
    assert "0.png: got pixels of mode I;16; expected 8 bits" in message


def test_an_npz_called_npy_is_refused(tmp_path):
    with (tmp_path / "x.npy").open("wb") as file:
        np.savez(file, train=np.zeros((20, 2)))
    assert "no array" in message_of(catalog.load, str(tmp_path / "x.npy"))


def test_folders_that_mean_nothing_are_refused(tmp_path, rng):
    (tmp_path / "mine").mkdir()
    assert "got no files" in message_of(catalog.load, str(tmp_path / "mine"))
    write(tmp_path / "mine" / "a" / "0.png", picture(rng))
    write(tmp_path / "mine" / "0.png", picture(rng))
    assert "beside folders" in message_of(catalog.load, str(tmp_path / "mine"))
    (tmp_path / "mine" / "0.png").unlink()
    (tmp_path / "mine" / "b").mkdir()
    assert "b: got no files" in message_of(catalog.load, str(tmp_path / "mine"))


@pytest.mark.parametrize("shape", [(20, 5, 5), (20, 5, 5, 3)])
def test_an_array_of_images(tmp_path, rng, shape):
    pixels = rng.integers(0, 256, shape, np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    found = catalog.load(str(tmp_path / "x.npy"))
    assert found.sample_shape == (5, 5, 1 if len(shape) == 3 else 3)
    assert found.train.dtype == np.uint8
    assert len(found.train) == 18


def test_arrays_by_name_with_their_labels(tmp_path, rng):
    points, labels = rng.normal(size=(30, 3)), np.arange(30) % 4
    np.savez(
        tmp_path / "x.npz",
        train=points[:20],
        test=points[20:],
        train_labels=labels[:20],
        test_labels=labels[20:],
    )
    found = catalog.load(str(tmp_path / "x.npz"))
    assert found.train.dtype == np.float32
    assert found.num_classes == 4
    np.testing.assert_allclose(found.test, points[20:], rtol=1e-6)
    np.testing.assert_array_equal(found.train_labels, labels[:20])
    np.savez_compressed(tmp_path / "one.npz", points)
    assert len(catalog.load(str(tmp_path / "one.npz")).train) == 27


IMAGES = np.zeros((20, 4, 4, 3), np.uint8)
WRONG = {
    "test alone": (dict(test=IMAGES), "got the arrays test; expected train, train_labels"),
    "labels alone": (dict(train_labels=np.zeros(20, int)), "got the arrays train_labels; expected"),
    "one test row": (dict(train=IMAGES, test=IMAGES[:1]), "got 1 for test; expected at least 2"),
    "one train row": (dict(train=IMAGES[:1], test=IMAGES), "got 1 for train; expected at least 2"),
    "too few": (dict(rows=IMAGES[:9]), "got 9 examples; expected at least 10"),
    "many arrays": (
        {f"{i:04d}" + "x" * 200: np.zeros(1) for i in range(2000)},
        "xxx... (204 characters) and 1999 more; expected train",
    ),
    "integers (4": (dict(train=np.zeros((20, 4), np.int64)), "got int64 of shape (20, 4)"),
    "five channels": (dict(train=np.zeros((20, 4, 4, 5), np.uint8)), "1, 3 or 4 channels"),
    "floating images": (dict(train=np.zeros((20, 4, 4, 3))), "got float64 of shape"),
    "empty": (dict(train=np.zeros((0, 3))), "of shape (0, 3)"),
    "not finite": (dict(train=np.full((20, 2), np.inf)), "row 0 is not finite"),
    "unknown name": (dict(train=IMAGES, y=IMAGES), "got the arrays train, y"),
    "other shape": (dict(train=IMAGES, test=IMAGES[:, :3]), "expected uint8 and (4, 4, 3)"),
    "labels of one": (
        dict(train=IMAGES, test=IMAGES, train_labels=np.zeros(20, int)),
        "got labels of one split",
    ),
    "too few labels": (dict(train=IMAGES, train_labels=np.zeros(19, int)), "shape (20,)"),
    "negative label": (dict(train=IMAGES, train_labels=-np.ones(20, int)), "each in 0..19"),
    "floating labels": (dict(train=IMAGES, train_labels=np.zeros(20)), "expected integers"),
    "new label": (
        dict(
            train=IMAGES,
            test=IMAGES,
            train_labels=np.zeros(20, int),
            test_labels=np.ones(20, int),
        ),
        "got 1 in test_labels",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_are_no_data_are_refused_in_one_line(tmp_path, case):
    arrays, expected = WRONG[case]
    np.savez(tmp_path / "x.npz", **arrays)
    message = message_of(catalog.load, str(tmp_path / "x.npz"))
    assert expected in message
    assert len(message.replace(str(tmp_path), "")) < 300
    named = message.startswith("x: ") if "row" in case or case == "too few" else None
    assert named or str(tmp_path / "x.npz") in message


@pytest.mark.parametrize("count", [10, 12, 19, 20, 30])
def test_a_tenth_but_two_at_least_are_held_out(tmp_path, count):
    np.save(tmp_path / "x.npy", np.arange(count, dtype=float)[:, None])
    found = catalog.load(str(tmp_path / "x.npy"))
    assert len(found.test) == {10: 2, 12: 2, 19: 2, 20: 2, 30: 3}[count]
    both = np.concatenate([found.train, found.test])
    np.testing.assert_array_equal(np.sort(both, axis=0)[:, 0], np.arange(count))


def test_a_size_is_for_the_images_of_a_folder_alone(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    for name in (str(tmp_path / "x.npy"), "digits", "ring", "mnist", "red_wine", "cifar10_jpeg"):
        message = message_of(catalog.load, name, image_size=8)
        assert message.startswith("image_size: got 8 for ")
        assert message.endswith(
            "; expected none, for the images of a folder or a prepared set alone are resized. "
            "Leave it out"
        )
    assert len(message_of(catalog.load, f"{tmp_path}/{'y' * 200}.npy", image_size=8)) < 300


@pytest.mark.parametrize("image_size", [None, 4, 4096])
@pytest.mark.parametrize("splits", [["."], ["train", "test"]])
@pytest.mark.parametrize("classes", [["."], ["cat", "dog"]])
def test_a_folder_is_checked_before_it_is_decoded(
    tmp_path, rng, cache, monkeypatch, image_size, splits, classes
):
    for split in splits:
        for name in classes:
            for index in range(11):
                write(tmp_path / "mine" / split / name / f"{index}.png", picture(rng, 5, 7))

    def load(check):
        return catalog.load(str(tmp_path / "mine"), image_size=image_size, check=check)

    (form,) = forms_of(load)
    assert not cache.exists()
    side = (5, 7) if image_size is None else (image_size, image_size)
    assert form.sample_shape == (*side, 3)
    assert not any(form.train.strides)  # of zeros that take no memory
    assert form.num_classes == len(classes) * (len(classes) > 1)
    if image_size == 4096:
        monkeypatch.setattr(memory, "of_machine", lambda: 2.0**28)
        message = message_of(load, lambda _: None)
        assert "dataset: got mine, whose images take" in message
        assert "expected at most the 0.25 GiB of memory" in message
        assert not cache.exists()
        return
    seen = []
    found = load(seen.append)
    assert [each.train.shape for each in seen] == 2 * [found.train.shape]
    for one, other in zip(seen[0], seen[1], strict=True):
        assert (one is None) == (other is None)
        assert np.shape(one) == np.shape(other)


def test_an_array_that_memory_does_not_hold_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", np.zeros((1000, 1000), np.float32))
    monkeypatch.setattr(memory, "of_machine", lambda: 1e6)
    assert "4000128 bytes unpacked, more than 1000000" in message_of(
        catalog.load, str(tmp_path / "x.npz")
    )


class Harmful:
    """What a pickle would run."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("content", ["pickle", "objects", "noise", "fifo"])
def test_hostile_files_are_refused(tmp_path, rng, suffix, content):
    path = tmp_path / f"x{suffix}"
    if content == "pickle":
        path.write_bytes(pickle.dumps(Harmful()))
    elif content == "objects":
        objects = np.array([Harmful()], object)
        if suffix == ".npy":
            np.save(path, objects, allow_pickle=True)
        else:
            np.savez(path, train=objects)
    elif content == "noise":
        path.write_bytes(rng.bytes(300))
    else:
        os.mkfifo(path)
    message = message_of(catalog.load, str(path))
    assert str(path) in message


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("1,2")
    assert "expected a folder, an .npy or an .npz" in message_of(
        catalog.load, str(tmp_path / "x.csv")
    )
