"""Image sets that Hugging Face's library has saved on this disk, by `save_to_disk`.

The library reads its tables (the extra `hugging_face`); images are decoded by Pillow, as those of
any folder, and nothing is fetched.
"""

import functools
import io
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from experiments.data import image_sets, own
from experiments.data.image_sets import Check, Decoding, ImageSet
from experiments.run.errors import DataError, listed, reason

_MARKS = ("dataset_dict.json", "state.json")  # of several splits, of one


def is_saved(path: pathlib.Path) -> bool:
    """Returns whether a path is a folder that the library has saved."""
    return any((path / mark).is_file() for mark in _MARKS)


def read(
    folder: pathlib.Path,
    image_size: int | None,
    cache: pathlib.Path,
    check: Check = lambda _: None,
) -> ImageSet:
    """Returns the images of a saved data set, and its classes where it has some.

    The decoded images are kept in `cache` under the names, sizes and times of the files.

    Args:
      folder: with one column of images in each split, and perhaps one column of class labels.
      image_size: as in :func:`experiments.data.own.read_folder`.
      cache: writable folder.
      check: gets the form of the images before they are decoded, if they have to be.

    Returns:
      The splits "train" and, if there is one, "test"; a set without splits is the first.

    Raises:
      DataError: the library is missing, the folder is damaged or has no such columns or no split
        train, or one image is none or of another size.
    """
    every = sorted(path for path in folder.rglob("*") if path.is_file())
    kept = own.kept_at(cache, folder, every, image_size)
    return image_sets.cached(kept, lambda: _decode(folder, image_size, check))


def _decode(folder: pathlib.Path, image_size: int | None, check: Check) -> Decoding:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"dataset: got {folder}, saved by the library datasets, which is not installed; "
            "install the extra hugging_face, or save the images as files in folders"
        ) from error
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # a damaged table makes it and Arrow raise any type
        said = reason(error)
        raise DataError(f"{folder}: cannot be read ({said}); expected a saved data set") from error
    splits = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    if "train" not in splits:
        raise DataError(f"{folder}: got the splits {listed(splits) or '-'}; expected train")
    splits = {name: splits[name] for name in own.SPLITS if name in splits}
    image, label = _columns(folder, splits["train"].features, datasets)
    items, num_classes = {}, 0
    for name, split in splits.items():
        if _columns(folder, split.features, datasets) != (image, label) or not len(split):
            raise DataError(
                f"{folder}: got {len(split)} examples with the columns {listed(split.features)} "
                f"in {name}; expected some with those of train"
            )
        encoded = split.cast_column(image, datasets.Image(decode=False))
        labels = [0] * len(split) if label is None else list(split[label])
        num_classes = 0 if label is None else split.features[label].num_classes
        items[name] = [
            own.Item(title, functools.partial(_opened, title, encoded, index, image), value)
            for index, value in enumerate(labels)
            for title in [f"{folder}: image {index} of {name}"]
        ]
        for item in items[name]:
            if item.label is None or item.label < 0:  # as the library has it where there is none
                raise DataError(f"{item.name}: got no label; expected one of {num_classes} classes")
    return own.decode(items, num_classes, image_size, check)


def _columns(folder: pathlib.Path, features: Any, datasets: Any) -> tuple[str, str | None]:
    """Returns the names of the column of images, and of that of class labels, if there is one."""
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(images) != 1:
        raise DataError(
            f"{folder}: got {len(images)} columns of images among {listed(features)}; expected one"
        )
    chosen = [name for name in labels if name == "label"] or labels
    if len(chosen) > 1:
        raise DataError(
            f"{folder}: got the columns of class labels {listed(chosen)}; expected one, or one of "
            "the name label"
        )
    return images[0], chosen[0] if chosen else None


@contextmanager
def _opened(title: str, encoded: Any, index: int, column: str) -> Iterator[Image.Image]:
    content = encoded[index][column]
    if content is None or content["bytes"] is None:
        raise DataError(f"{title}: got no bytes; expected the image itself in the table")
    try:
        with image_sets.image_of(io.BytesIO(content["bytes"])) as image:
            yield image
    except DataError as error:
        raise DataError(f"{title}: {error}") from error
