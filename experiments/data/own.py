"""A user's own data: a folder of images, an array, or arrays by name.

Nothing is executed: arrays are read without pickles, images by Pillow alone.
"""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from experiments.data import image_sets
from experiments.data.image_sets import Check, Decoding, ImageSet, Split
from experiments.run import files, memory
from experiments.run.errors import DataError, listed, reason

SUFFIXES = (".png", ".jpg", ".jpeg")
SPLITS = ("train", "test")

_MOST_BYTES = 2**36  # of a file of arrays
_MOST_IMAGE_BYTES = 2**28
_CHANNELS = (1, 3, 4)
_GREY = ("1", "L")
_EIGHT_BITS = (*_GREY, "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")


def read(
    path: pathlib.Path,
    image_size: int | None,
    cache: pathlib.Path,
    check: Check = lambda _: None,
) -> ImageSet:
    """Returns the examples behind a path.

    Args:
      path: a folder of images, an .npy or an .npz file.
      image_size: side to which a folder's images are cropped and resized; None: all have one size.
      cache: writable folder where a folder's decoded images are kept.
      check: gets the form of a folder's images before they are decoded, if they have to be.

    Returns:
      The splits "train" and, where it is given, "test": images, uint8, or points, float32 (n, d).

    Raises:
      DataError: something there is not what it should be; the message names it.
    """
    if path.is_dir():
        return read_folder(path, image_size, cache, check)
    if path.suffix not in (".npy", ".npz"):
        raise DataError(f"dataset: got the file {path}; expected a folder, an .npy or an .npz file")
    return read_arrays(path)


# -------------------------------------------------------------------------------------- arrays


def read_arrays(path: pathlib.Path) -> ImageSet:
    """Returns the splits of a file of arrays.

    Args:
      path: an .npy file with the examples; or an .npz file with `train`, and perhaps `test`,
        `train_labels` and `test_labels`, or with one array alone, by any other name.

    Raises:
      DataError: no such file, or an array is not what it should be.
    """
    arrays = _arrays(path)
    known = [f"{split}{ending}" for split in SPLITS for ending in ("", "_labels")]
    if len(arrays) == 1 and not arrays.keys() & set(known):
        arrays = {"train": next(iter(arrays.values()))}
    if "train" not in arrays or not set(arrays) <= set(known):
        raise DataError(
            f"{path}: got the arrays {listed(arrays) or '-'}; expected {', '.join(known)}, of "
            "which train is needed, or one alone of another name"
        )
    splits: dict[str, Split] = {}
    for split in [name for name in SPLITS if name in arrays]:
        examples = _examples(f"{path}: {split}", arrays[split])
        labels = arrays.get(f"{split}_labels")
        if labels is not None:
            labels = _labels(f"{path}: {split}_labels", labels, len(examples))
        splits[split] = Split(examples, labels)
    train, test = splits["train"], splits.get("test", splits["train"])
    if test.images.shape[1:] != train.images.shape[1:] or test.images.dtype != train.images.dtype:
        raise DataError(
            f"{path}: got test examples of {test.images.dtype} and shape {test.images.shape[1:]}; "
            f"expected {train.images.dtype} and {train.images.shape[1:]}, as in train"
        )
    if (test.labels is None) != (train.labels is None):
        raise DataError(f"{path}: got labels of one split; expected them of both, or of none")
    num_classes = 0 if train.labels is None else int(train.labels.max()) + 1
    if test.labels is not None and test.labels.max() >= num_classes:
        raise DataError(
            f"{path}: got {test.labels.max()} in test_labels; expected labels of train_labels, "
            f"0..{num_classes - 1}"
        )
    return ImageSet(splits, num_classes)


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    most = min(_MOST_BYTES, int(memory.of_machine()))
    try:
        with files.opened(path, most, follow=True) as file:
            if path.suffix == ".npz":
                arrays = files.load_arrays(file, most)
            else:
                arrays = {"train": np.load(file, allow_pickle=False)}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("what is inside is no array")
        return arrays
    except Exception as error:  # a damaged header makes numpy raise any type
        said = reason(error)
        raise DataError(f"{path}: cannot be read ({said}); expected arrays of numbers") from error


def _examples(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8 and array.ndim == 3:
        array = array[..., None]
    is_images = array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] in _CHANNELS
    is_points = array.dtype.kind == "f" and array.ndim == 2
    if not (is_images or is_points) or array.size == 0:
        raise DataError(
            f"{name}: got {array.dtype} of shape {array.shape}; expected images, uint8 (n, height, "
            "width) or (n, height, width, channels) of 1, 3 or 4 channels, or points, floating "
            "(n, d)"
        )
    if is_images:
        return array
    with np.errstate(over="ignore"):
        points = array.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(wrong):
        raise DataError(f"{name}: row {wrong[0]} is not finite in float32; expected numbers")
    return points


def _labels(name: str, labels: np.ndarray, count: int) -> np.ndarray:
    whole = labels.dtype.kind in "iu" and labels.shape == (count,)
    if not whole or labels.min() < 0 or labels.max() >= count:
        raise DataError(
            f"{name}: got {labels.dtype} of shape {labels.shape}; expected integers, shape "
            f"({count},), each in 0..{count - 1}"
        )
    return labels.astype(np.int32)


# ------------------------------------------------------------------------------------- a folder


class Item(NamedTuple):
    """An encoded image: how errors call it, how it is opened, and its class."""

    name: str
    opened: Callable[[], AbstractContextManager[Image.Image]]
    label: int


def read_folder(
    folder: pathlib.Path,
    image_size: int | None,
    cache: pathlib.Path,
    check: Check = lambda _: None,
) -> ImageSet:
    """Returns the images of a folder; sub-folders, if there are any, are their classes.

    What begins with a dot is left out. Sub-folders train and test, and these alone, are splits.
    The decoded images are kept in `cache` under the names, sizes and times of the files.

    Args:
      folder: of PNG and JPEG files.
      image_size: side of the square that is cut out of the middle of each image and resized; None:
        they are taken as they are.
      cache: writable folder.
      check: gets the form of the images before they are decoded, if they have to be.

    Raises:
      DataError: a file is no image, or one of another size; no images; or folders beside files.
    """
    found = [path.name for path in _visible(folder) if path.is_dir()]
    names = found if set(found) in ({"train"}, set(SPLITS)) else ["."]
    classes = {name: _classes(folder / name) for name in names}
    every = [file for split in classes.values() for paths in split.values() for file in paths]
    kept = kept_at(cache, folder, every, image_size)
    return image_sets.cached(kept, lambda: _decode_folder(classes, image_size, check))


def kept_at(
    cache: pathlib.Path, folder: pathlib.Path, every: list[pathlib.Path], image_size: int | None
) -> pathlib.Path:
    """Returns where the images of these files are kept: by their names, sizes and times."""
    stamp = hashlib.sha256(f"{folder.resolve()}:{image_size};".encode())
    for file in every:
        status = file.stat()
        stamp.update(f"{file}:{status.st_size}:{status.st_mtime_ns};".encode())
    return cache / f"folder-{stamp.hexdigest()[:24]}.npz"


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{folder}: {error.strerror}; expected a folder that can be read"
        ) from error


def _classes(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Returns the images of each class; of "" where there are none."""
    inside = _visible(folder)
    folders = [path for path in inside if path.is_dir()]
    if folders and len(folders) < len(inside):
        other = next(path for path in inside if not path.is_dir())
        raise DataError(f"{other}: got a file beside folders; expected either, in {folder}")
    classes = {path.name: _visible(path) for path in folders} or {"": inside}
    for name, of_class in classes.items():
        if not of_class:
            raise DataError(f"{folder / name}: got no files; expected PNG or JPEG images")
        for file in of_class:
            if file.suffix.lower() not in SUFFIXES or not file.is_file():
                raise DataError(f"{file}: expected a PNG or JPEG image, by its ending. Remove it")
    return classes


def _decode_folder(
    classes: dict[str, dict[str, list[pathlib.Path]]], image_size: int | None, check: Check
) -> Decoding:
    names = list(next(iter(classes.values())))
    for split, of_split in classes.items():
        if list(of_split) != names:
            raise DataError(
                f"{split}: got the classes {listed(of_split)}; expected {listed(names)}, as before"
            )

    def item(file: pathlib.Path, name: str) -> Item:
        opened = functools.partial(image_sets.opened, file, _MOST_IMAGE_BYTES)
        return Item(str(file), opened, names.index(name))

    items = {
        "train" if split == "." else split: [
            item(file, name) for name, of_class in of_split.items() for file in of_class
        ]
        for split, of_split in classes.items()
    }
    return decode(items, 0 if names == [""] else len(names), image_size, check)


def decode(
    items: dict[str, list[Item]], num_classes: int, image_size: int | None, check: Check
) -> Decoding:
    """Returns how encoded images are decoded: to grey where all are, else to three colours.

    Args:
      items: by split, of which there is one at least and none empty.
      num_classes: 0 without labels.
      image_size: as in :func:`read_folder`.
      check: gets their form first.

    Raises:
      DataError: one is no image; or, when it is decoded, of another size.
    """
    every = [item for of_split in items.values() for item in of_split]
    with tqdm(every, desc="Looking for colours", unit=" images", delay=1) as bar:
        channels = 1 if all(_mode(item) in _GREY for item in bar) else 3
    if image_size is None:
        shape = _image(every[0], channels, None).shape
    else:
        shape = (image_size, image_size, channels)
    form = image_sets.outline({name: (len(of), *shape) for name, of in items.items()}, num_classes)
    check(form)

    def examples(of_split: list[Item]) -> Iterator[tuple[np.ndarray, int]]:
        with tqdm(of_split, desc="Reading images", unit=" images", delay=1) as bar:
            for item in bar:
                image = _image(item, channels, image_size)
                if image.shape != shape:
                    raise DataError(
                        f"{item.name}: got {image.shape[0]} x {image.shape[1]}; expected "
                        f"{shape[0]} x {shape[1]} as of the first. --image_size=<side> crops and "
                        "resizes all"
                    )
                yield image, item.label

    return Decoding(form, {name: examples(of_split) for name, of_split in items.items()})


def _mode(item: Item) -> str:
    with item.opened() as image:
        return image.mode


def _image(item: Item, channels: int, image_size: int | None) -> np.ndarray:
    """Returns an image, upright, uint8 (h, w, channels)."""
    with item.opened() as image:
        if image.mode not in _EIGHT_BITS:
            raise DataError(f"got pixels of mode {image.mode}; expected 8 bits a channel")
        upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
        upright = image_sets.cropped(upright, image_size)
        return np.asarray(upright).reshape(upright.height, upright.width, channels)
