"""Data sets that Hugging Face's library saves, where it is installed, and where it is not."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from experiments.data import catalog
from tests.experiments.data.catalog_test import message_of

pytestmark = pytest.mark.filterwarnings("ignore:Cannot (locate reference|pickle)")  # dill


@pytest.fixture
def datasets(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("datasets", reason="the extra hugging_face is not installed")


def pictures(count, *, first=0, size=4, mode="RGB"):
    side = np.arange(size * size, dtype=np.uint8).reshape(size, size)
    return [Image.fromarray(side + first + index).convert(mode) for index in range(count)]


def saved(datasets, folder, splits, *, names=("cat", "dog")):
    """Saves splits of (pictures, labels or None), of one split alone without its name."""
    made = {}
    for name, (images, labels) in splits.items():
        columns = {"image": images, "id": list(range(len(images)))}
        features = {"image": datasets.Image(), "id": datasets.Value("int32")}
        if labels is not None:
            columns["label"], features["label"] = labels, datasets.ClassLabel(names=list(names))
        made[name] = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    (alone,) = made.values() if list(made) == [""] else (datasets.DatasetDict(made),)
    alone.save_to_disk(str(folder))
    return str(folder)


def test_splits_and_classes_are_those_of_the_set(datasets, tmp_path):
    train, test = pictures(4), pictures(3, first=100)
    splits = {"train": (train, [1, 0, 1, 1]), "test": (test, [1, 0, 1]), "extra": (test, [0, 0, 0])}
    path = saved(datasets, tmp_path / "pets", splits)
    for _ in range(2):  # decoded, then from the cache
        found = catalog.load(path)
        assert (found.name, found.num_classes) == ("pets", 2)
        np.testing.assert_array_equal(found.train, np.stack([np.asarray(p) for p in train]))
        np.testing.assert_array_equal(found.test, np.stack([np.asarray(p) for p in test]))
        np.testing.assert_array_equal(found.train_labels, [1, 0, 1, 1])
        np.testing.assert_array_equal(found.test_labels, [1, 0, 1])
        assert found.train_labels.dtype == np.int32


def test_a_set_of_one_split_is_held_out_from(datasets, tmp_path):
    path = saved(datasets, tmp_path / "grey", {"": (pictures(20, mode="L"), None)})
    found = catalog.load(path)
    assert found.train.shape == (18, 4, 4, 1)
    assert found.test.shape == (2, 4, 4, 1)
    assert found.train_labels is None


def test_mixed_sizes_are_resized(datasets, tmp_path):
    path = saved(datasets, tmp_path / "mixed", {"": (pictures(9) + pictures(3, size=8), None)})
    message = message_of(catalog.load, path)
    assert "image 9 of train: got 8 x 8; expected 4 x 4" in message
    assert "--image_size=<side> crops and resizes all" in message
    assert catalog.load(path, image_size=6).sample_shape == (6, 6, 3)


def test_the_form_is_checked_before_anything_is_decoded(datasets, tmp_path):
    path = saved(datasets, tmp_path / "pets", {"train": (pictures(20), [0, 1] * 10)})
    seen = []

    def check(dataset):
        seen.append((dataset.train.shape, dataset.num_classes, dataset.train.strides[0]))
        raise RuntimeError("not this one")

    with pytest.raises(RuntimeError, match="not this one"):
        catalog.load(path, check=check)
    assert seen == [((18, 4, 4, 3), 2, 0)]


def test_what_is_no_set_of_images_is_refused(datasets, tmp_path):
    path = saved(datasets, tmp_path / "unlabelled", {"": (pictures(12), [-1] * 12)})
    assert "image 0 of train: got no label; expected one of 2 classes" in message_of(
        catalog.load, path
    )
    path = saved(datasets, tmp_path / "val", {"validation": (pictures(12), None)})
    assert "got the splits validation; expected train" in message_of(catalog.load, path)
    path = saved(
        datasets, tmp_path / "two", {"train": (pictures(12), [0] * 12), "test": (pictures(3), None)}
    )
    assert "in test; expected some with those of train" in message_of(catalog.load, path)
    numbers = datasets.Dataset.from_dict({"x": [1.0, 2.0]})
    numbers.save_to_disk(str(tmp_path / "numbers"))
    message = message_of(catalog.load, str(tmp_path / "numbers"))
    assert "got 0 columns of images among x; expected one" in message
    broken = datasets.Features({"image": datasets.Value("binary")})
    table = datasets.Dataset.from_dict({"image": [b"no image"] * 12}, features=broken)
    table.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "broken"))
    message = message_of(catalog.load, str(tmp_path / "broken"))
    assert "image 0 of train: not a PNG or JPEG image" in message
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "state.json").write_text("{")
    message = message_of(catalog.load, str(tmp_path / "damaged"))
    assert "cannot be read" in message
    assert "expected a saved data set" in message


def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    message = message_of(catalog.load, str(tmp_path / "set"))
    assert "saved by the library datasets, which is not installed" in message
    assert "install the extra hugging_face" in message
