"""Image sets that TFDS has prepared: what is read, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from experiments.data import catalog, image_sets
from experiments.run import errors
from tests.experiments.data.conftest import flipped, forms_of, message_of


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


def test_a_set_is_checked_before_it_is_decoded(tmp_path, cache, pictures):
    prepare_set(tmp_path, {"train": (pictures, np.arange(30) % 4)}, num_classes=4)
    (form,) = forms_of(lambda check: catalog.load("shapes", str(tmp_path), check=check))
    assert not cache.exists()
    assert (form.train.shape, form.test.shape) == ((27, 6, 5, 3), (3, 6, 5, 3))
    assert (form.train_labels.shape, form.num_classes) == ((27,), 4)


def test_split_without_labels(tmp_path, pictures):
    labels = np.arange(30)[::-1]
    splits = {"train": (pictures, labels), "test": (pictures, np.full(30, -1))}
    prepare_set(tmp_path, splits | {"extra": (pictures[:2, :3], [0, 1])}, num_classes=30)
    for _ in range(2):
        dataset = catalog.load("shapes", str(tmp_path))
        assert dataset.test_labels is None
        np.testing.assert_array_equal(dataset.train_labels, labels)


def test_changed_set_is_read_anew(tmp_path, pictures):
    directory = prepare_set(tmp_path, {"train": (pictures,), "test": (pictures,)})
    catalog.load("shapes", str(tmp_path))
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
    prepare_set(tmp_path, {"train": (255 - pictures,), "test": (pictures,)})
    np.testing.assert_array_equal(catalog.load("shapes", str(tmp_path)).train, 255 - pictures)


def test_mixed_sizes_are_cut_in_the_middle_and_resized(tmp_path, rng):
    sizes = [(6, 9), (12, 5), (4, 4), (7, 7)] * 5
    pictures = [rng.integers(256, size=(*size, 3), dtype=np.uint8) for size in sizes]
    prepare_set(tmp_path, {"train": (pictures,), "test": (pictures[:3],)})
    assert "--image_size=<side>" in message_of(catalog.load, "shapes", str(tmp_path))
    for side in (4, 5):  # each is kept by itself
        expected = []
        for picture, (height, width) in zip(pictures, sizes, strict=True):
            short = min(height, width)
            top, left = (height - short) / 2, (width - short) / 2
            box = (left, top, left + short, top + short)
            square = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS, box)
            expected.append(np.asarray(square))
        for _ in range(2):
            dataset = catalog.load("shapes", str(tmp_path), image_size=side)
            np.testing.assert_array_equal(dataset.train, expected)
            np.testing.assert_array_equal(dataset.test, expected[:3])


def unusable_sets(pictures):
    """Arguments of prepare_set and a word of the message each."""
    image = tfds.features.Image
    small = [*pictures[:10], pictures[1][:4]]
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
