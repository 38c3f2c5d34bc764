"""Data sets as plain arrays: embedded digits, 2-D toys, UCI tables, image sets, a user's own.

Image sets are MNIST, CIFAR-10 as JPEG files, and anything TensorFlow Datasets has prepared in the
array_record format; TensorFlow itself is never imported. What has to be decoded or converted is
written below the cache folder, :func:`experiments.run.places.cache`. `data_dir` is only read.
"""

import difflib
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.data import cifar10, hugging_face, image_sets, own, toys, uci
from experiments.data.dataset import Dataset, Examples
from experiments.data.image_sets import Check, ImageSet, Split
from experiments.data.rows import Rows
from experiments.run import cluster, fields, memory, places
from experiments.run.errors import DataError, line, short

_HELD_OUT = 10  # one in so many examples, of a set without a test split
_LEAST_ROWS = 2  # of a split: between fewer there is no distance
_LONGEST_TITLE = 60  # of what a path names


def names() -> tuple[str, ...]:
    """Returns the names that need no data set prepared by TFDS."""
    return ("digits", "mnist", "cifar10_jpeg", *toys.TOYS, *uci.TABLES)


def load(
    name: str,
    data_dir: str | None = None,
    *,
    seed: int = 0,
    image_size: int | None = None,
    most_bytes: float = math.inf,
    check: Callable[[Dataset], None] = lambda _: None,
) -> Dataset:
    """Returns the data set `name`.

    ===================  ======================================================================
    digits               scikit-learn's embedded digits, 8 x 8, 1500 and 297
    mnist                the four official .gz files in data_dir or data_dir/mnist, verified on
                         every call; where there are none, the set as prepared in data_dir or in the
                         cache; else a download
    cifar10_jpeg         cifar10-jpeg.tar.xz in data_dir or data_dir/cifar10
    ring and others of   2-D points, float32, 10 000 for training and 2 000 for testing
    `toys.TOYS`
    red_wine,            UCI tables in data_dir or data_dir/uci, split 80/10/10 and standardised
    white_wine,          with the training rows; label: quality >= 6, none for parkinsons
    parkinsons
    any other name       "set" or "set/config": an image set that TFDS has prepared as array_record
                         in data_dir or in the cache folder's tfds/
    a path               a folder of images, an .npy or an .npz file, as :mod:`experiments.data.own`
                         reads them, or a folder saved by Hugging Face's `save_to_disk`; ./digits
                         is one, digits is not
    ===================  ======================================================================

    Args:
      name: one of `names()`, the name of a prepared image set, or a path.
      data_dir: folder that holds the files; not needed for digits and the 2-D toys.
      seed: draws the 2-D points, the split of a table, and the tenth, but at least two, that is
        held out of a set without test split. The splits of digits, mnist and cifar10_jpeg are
        fixed. Decoded examples that stand class by class come in a mixed, fixed order.
      image_size: side to which the images of a user's folder or of a prepared set are cropped and
        resized; None: they have one size.
      most_bytes: of images in memory; a larger set that had to be decoded stays in the cache, from
        where its images are read as they are asked for.
      check: raises for a set that is not wanted. Where images have to be decoded it gets, before
        that, a set of the same form: all zeros, which take no memory.

    Raises:
      DataError: unknown name, the files are missing, damaged or not what they should be, or an
        image_size for a set whose images are not resized.
    """
    if seed < 0:
        raise DataError(f"seed: got {seed}; expected an integer >= 0")
    if name in names():
        check_size(name, image_size)
    if name == "digits":
        dataset = _digits()
    elif name in toys.TOYS:
        dataset = toys.load(name, seed)
    else:
        root = None if data_dir is None else places.folder("data_dir", data_dir)
        if root is not None and not root.is_dir():
            expected = f"expected the one that holds {short(name)}"
            raise DataError(f"data_dir: {root} is not a folder; {expected}")
        if name in uci.TABLES:
            dataset = uci.load(name, _find(name, root, "uci", uci.TABLES[name].file), seed)
        else:
            title, read = _reader(name, root, image_size)
            dataset = _decoded(title, read, seed, check, most_bytes)
    check(dataset)
    return dataset


def check_size(name: str, image_size: int | None) -> None:
    """Raises DataError where a size is asked for of images that are not resized."""
    if image_size is not None:
        raise DataError(
            f"image_size: got {image_size} for {fields.shown(name)}; expected none, for the images "
            "of a folder or a prepared set alone are resized. Leave it out"
        )


def _reader(
    name: str, root: Path | None, image_size: int | None
) -> tuple[str, Callable[[Check], ImageSet]]:
    """Returns name and reader of a set that is decoded, converted or a user's own."""
    cache = places.cache()
    if name == "cifar10_jpeg":
        archive = _find(name, root, "cifar10", "cifar10-jpeg.tar.xz")
        return name, lambda check: cifar10.read(archive, cache, check)
    if name == "mnist":
        return name, lambda check: image_sets.read_prepared(
            _mnist_directory(root, check), None, cache, check
        )
    path = places.folder("dataset", name) if name.strip() else None
    _note_cached(name, root)
    for place in [cache / "tfds"] if root is None else [root, cache / "tfds"]:
        prepared = image_sets.find_prepared(name, place)
        if prepared is not None:
            return name, functools.partial(image_sets.read_prepared, prepared, image_size, cache)
    if path is None or not path.exists():
        raise DataError(_unknown(name))
    if not path.is_dir():
        check_size(name, image_size)
    title = path.stem[:_LONGEST_TITLE]
    read = hugging_face.read if hugging_face.is_saved(path) else own.read
    return title, functools.partial(read, path, image_size, cache)


@functools.cache
def _note_cached(name: str, root: Path | None) -> None:
    """Says, once, where a prepared set comes from that is in the cache and not below root."""
    cached = image_sets.find_prepared(name, places.cache() / "tfds")
    here = root is not None and image_sets.find_prepared(name, root)
    if cached is not None and not here and cluster.is_first():
        where = "--data_dir names the folder of another copy" if root is None else f"none in {root}"
        print(line("note", f"{name}: read from the cache, {cached}; {where}"), file=sys.stderr)


def _decoded(
    name: str,
    read: Callable[[Check], ImageSet],
    seed: int,
    check: Callable[[Dataset], None],
    most_bytes: float,
) -> Dataset:
    """Returns what a reader reads, if its form passes the check and memory takes what it has to."""

    def stays(dataset: Dataset) -> bool:
        size, there = dataset.train.nbytes + dataset.test.nbytes, memory.of_machine()
        if there < size <= most_bytes:
            raise DataError(
                f"dataset: got {name}, whose images take {size / 2**30:.4g} GiB; expected at most "
                f"the {there / 2**30:.4g} GiB of memory that there are"
            )
        return size > most_bytes

    def check_form(image_set: ImageSet) -> None:
        dataset = _split(name, image_set, seed)
        check(dataset)
        stays(dataset)

    dataset = _split(name, read(check_form), seed)
    if stays(dataset):
        return dataset
    return dataset._replace(train=dataset.train[:], test=dataset.test[:])


def _unknown(name: str) -> str:
    nearest = difflib.get_close_matches(name, names(), n=1, cutoff=0.5)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    return (
        f"dataset: got {fields.shown(name)}{hint}; expected {', '.join(names())}, a set of TFDS "
        "in --data_dir or a path of data"
    )


def _find(name: str, root: Path | None, folder: str, file: str) -> Path:
    """Returns root/file or root/folder/file, whichever exists."""
    if root is None:
        raise DataError(f"{name}: needs {file}; pass --data_dir=<the folder that holds it>")
    for path in (root / file, root / folder / file):
        if path.is_file():
            return path
    raise DataError(f"{name}: {root / file} is missing, and so is {root / folder / file}")


def _digits() -> Dataset:
    """Returns scikit-learn's 1797 digits: 1500 for training, 297 for testing, 8 x 8 x 1.

    Intensities v = 0..16 become round(255 v / 16); only v = 8 is a tie, 127.5, and becomes 128. Of
    every six images of a class, in scikit-learn's order, the fifth is a test image.
    """
    from sklearn.datasets import load_digits  # takes a second to import

    intensities, labels = load_digits(return_X_y=True)
    images = np.rint(intensities * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        is_test[np.flatnonzero(labels == label)[4::6]] = True
    labels = labels.astype(np.int32)
    return Dataset(
        "digits", images[~is_test], images[is_test], labels[~is_test], labels[is_test], 10
    )


def _mnist_directory(root: Path | None, check: Check) -> Path:
    """Returns a prepared MNIST: from the .gz files in root, as found in root, or from the cache."""
    from experiments.data import mnist  # imports TFDS, half a second

    source = None if root is None else mnist.find_source(root)
    if root is not None and source is None:
        directory = image_sets.find_prepared("mnist", root)
        if directory is not None:
            return directory
    if source is None:
        _note_cached("mnist", root)
    return mnist.prepare(source, places.cache() / "tfds", check)


def _split(name: str, image_set: ImageSet, seed: int) -> Dataset:
    """Returns the splits train and test; without the latter, a part of the former is held out."""
    splits, num_classes = image_set
    images, labels = _mixed(splits["train"])
    if "test" in splits:
        test_images, test_labels = _mixed(splits["test"])
        for split, count in (("train", len(images)), ("test", len(test_images))):
            if count < _LEAST_ROWS:
                raise DataError(
                    f"{name}: got {count} for {split}; expected at least {_LEAST_ROWS} examples"
                )
    else:
        if len(images) < _HELD_OUT:
            raise DataError(f"{name}: got {len(images)} examples; expected at least {_HELD_OUT}")
        num_test = max(_LEAST_ROWS, len(images) // _HELD_OUT)
        order = np.random.default_rng(seed).permutation(len(images))
        held_out, kept = order[:num_test], order[num_test:]
        images, test_images = _taken(images, kept), _taken(images, held_out)
        if labels is None:
            test_labels = None
        else:
            labels, test_labels = labels[kept], labels[held_out]
    return Dataset(name, images, test_images, labels, test_labels, num_classes)


def _mixed(split: Split) -> Split:
    """Returns the examples in an order of no meaning, where they stand class by class.

    For whoever takes the first so many of them, as all judges do, is to get some of every class.
    """
    images, labels = split
    if labels is None or np.any(labels[1:] < labels[:-1]):
        return split
    order = np.random.default_rng(0).permutation(len(labels))
    return Split(_taken(images, order), labels[order])


def _taken(images: Examples, index: np.ndarray) -> Examples:
    """Returns rows; without memory for those on the disk, and of an outline, which are all one."""
    if isinstance(images, Rows):
        return images.of(index)
    return images[: len(index)] if images.strides[0] == 0 else images[index]
