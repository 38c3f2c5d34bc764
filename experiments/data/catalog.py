"""Data sets as plain arrays: embedded digits, 2-D toys, UCI tables, image sets, a user's own.

Image sets are MNIST, CIFAR-10 as JPEG files, and anything TensorFlow Datasets has prepared in the
array_record format; TensorFlow itself is never imported. What has to be decoded or converted is
written below the cache folder, :func:`experiments.run.places.cache`. `data_dir` is only read.
"""

import difflib
import functools
import sys
from pathlib import Path

import numpy as np

from experiments.data import cifar10, image_sets, own, toys, uci
from experiments.data.dataset import Dataset
from experiments.run import cluster, places
from experiments.run.errors import DataError, line


def names() -> tuple[str, ...]:
    """Returns the names that need no data set prepared by TFDS."""
    return ("digits", "mnist", "cifar10_jpeg", *toys.TOYS, *uci.TABLES)


def load(
    name: str, data_dir: str | None = None, *, seed: int = 0, image_size: int | None = None
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
                         reads them; ./digits is one, digits is not
    ===================  ======================================================================

    Args:
      name: one of `names()`, the name of a prepared image set, or a path.
      data_dir: folder that holds the files; not needed for digits and the 2-D toys.
      seed: draws the 2-D points, the split of a table, and the tenth that is held out of a set
        without test split. The splits of digits, mnist and cifar10_jpeg are fixed.
      image_size: side to which the images of a user's folder are cropped and resized; None: they
        have one size.

    Raises:
      DataError: unknown name, or the files are missing, damaged or not what they should be.
    """
    if seed < 0:
        raise DataError(f"seed: got {seed}; expected an integer >= 0")
    if name == "digits":
        return _digits()
    if name in toys.TOYS:
        return toys.load(name, seed)
    root = None if data_dir is None else places.folder("data_dir", data_dir)
    if root is not None and not root.is_dir():
        raise DataError(f"data_dir: {root} is not a folder; expected the one that holds {name}")
    if name in uci.TABLES:
        return uci.load(name, _find(name, root, "uci", uci.TABLES[name].file), seed)
    if name == "cifar10_jpeg":
        archive = _find(name, root, "cifar10", "cifar10-jpeg.tar.xz")
        return _images(name, cifar10.read(archive, places.cache()), seed)
    if name == "mnist":
        return _images(name, image_sets.read_prepared(_mnist_directory(root), places.cache()), seed)
    _note_cached(name, root)
    for place in [places.cache() / "tfds"] if root is None else [root, places.cache() / "tfds"]:
        directory = image_sets.find_prepared(name, place)
        if directory is not None:
            return _images(name, image_sets.read_prepared(directory, places.cache()), seed)
    if name.strip():
        path = places.folder("dataset", name)
        if path.exists():
            return _images(path.stem, own.read(path, image_size, places.cache()), seed)
    raise DataError(_unknown(name, root))


@functools.cache
def _note_cached(name: str, root: Path | None) -> None:
    """Says, once, where a prepared set comes from that is in the cache and not below root."""
    cached = image_sets.find_prepared(name, places.cache() / "tfds")
    here = root is not None and image_sets.find_prepared(name, root)
    if cached is not None and not here and cluster.is_first():
        where = "--data_dir names the folder of another copy" if root is None else f"none in {root}"
        print(line("note", f"{name}: read from the cache, {cached}; {where}"), file=sys.stderr)


def _unknown(name: str, root: Path | None) -> str:
    nearest = difflib.get_close_matches(name, names(), n=1, cutoff=0.5)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    where = "--data_dir" if root is None else root
    return (
        f"dataset: got {name!r}{hint}; expected one of {', '.join(names())}, "
        f"an image set that TFDS has prepared in {where}, or the path of a folder of images, an "
        ".npy or an .npz file"
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


def _mnist_directory(root: Path | None) -> Path:
    """Returns a prepared MNIST: from the .gz files in root, as found in root, or from the cache."""
    from experiments.data import mnist  # imports TFDS, half a second

    source = None if root is None else mnist.find_source(root)
    if source is None:
        _note_cached("mnist", root)
    if root is not None and source is None:
        directory = image_sets.find_prepared("mnist", root)
        if directory is not None:
            return directory
    return mnist.prepare(source, places.cache() / "tfds")


def _images(name: str, image_set: image_sets.ImageSet, seed: int) -> Dataset:
    """Returns the splits train and test; without the latter, a tenth of the former is held out."""
    splits, num_classes = image_set
    images, labels = splits["train"]
    if "test" in splits:
        test_images, test_labels = splits["test"]
    else:
        num_test = len(images) // 10
        if num_test == 0:
            raise DataError(f"{name}: got {len(images)} examples; expected at least 10")
        order = np.random.default_rng(seed).permutation(len(images))
        images, test_images = images[order[num_test:]], images[order[:num_test]]
        if labels is None:
            test_labels = None
        else:
            labels, test_labels = labels[order[num_test:]], labels[order[:num_test]]
    return Dataset(name, images, test_images, labels, test_labels, num_classes)
