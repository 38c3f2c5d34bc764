"""Data sets as plain arrays: embedded digits, 2-D toys, UCI tables, image sets.

Image sets are MNIST, CIFAR-10 as JPEG files, and anything TensorFlow Datasets has prepared in the
array_record format; TensorFlow itself is never imported. What has to be decoded or converted is
written below the cache folder, :func:`experiments.run.places.cache`. `data_dir` is only read.
"""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data import image_sets
from experiments.run import files, places
from experiments.run.errors import DataError


class Dataset(NamedTuple):
    """A data set in memory.

    Attributes:
      name: the name it was asked by.
      train: images, uint8 (n, h, w, c) in 0..255; or points, float32 (n, d).
      test: held-out data of the same kind.
      train_labels: int32 (n,) in 0..num_classes - 1, or None.
      test_labels: the same for `test`.
      num_classes: number of classes; 0 without labels.
      valid: data for model selection, where the set has a split for it.
      valid_labels: the same for `valid`.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    train_labels: np.ndarray | None
    test_labels: np.ndarray | None
    num_classes: int
    valid: np.ndarray | None = None
    valid_labels: np.ndarray | None = None

    @property
    def is_image(self) -> bool:
        """Whether an example is an image, not a point."""
        return self.train.ndim == 4

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one example: (h, w, c) or (d,)."""
        return self.train.shape[1:]


def names() -> tuple[str, ...]:
    """Returns the names that need no data set prepared by TFDS."""
    return ("digits", "mnist", "cifar10_jpeg", *_TOYS, *_TABLES)


def load(name: str, data_dir: str | None = None, *, seed: int = 0) -> Dataset:
    """Returns the data set `name`.

    ===================  ======================================================================
    digits               scikit-learn's embedded digits, 8 x 8, 1500 and 297
    mnist                the four official .gz files in data_dir or data_dir/mnist, verified on
                         every call; where there are none, the set as prepared in data_dir or in the
                         cache; else a download
    cifar10_jpeg         cifar10-jpeg.tar.xz in data_dir or data_dir/cifar10
    swiss_roll, ring,    2-D points, float32, 10 000 for training and 2 000 for testing
    banana, grid,
    eight_gaussians
    red_wine,            UCI tables in data_dir or data_dir/uci, split 80/10/10 and standardised
    white_wine,          with the training rows; label: quality >= 6, none for parkinsons
    parkinsons
    any other name       "set" or "set/config": an image set that TFDS has prepared as array_record
                         in data_dir or in the cache folder's tfds/
    ===================  ======================================================================

    Args:
      name: one of `names()` or the name of a prepared image set.
      data_dir: folder that holds the files; not needed for digits and the 2-D toys.
      seed: draws the 2-D points, the split of a table, and the tenth that is held out of a prepared
        set without test split. The splits of digits, mnist and cifar10_jpeg are fixed.

    Raises:
      DataError: unknown name, or the files are missing, damaged or not what they should be.
    """
    if seed < 0:
        raise DataError(f"seed: got {seed}; expected an integer >= 0")
    if name == "digits":
        return _digits()
    if name in _TOYS:
        return _toy(name, seed)
    root = None if data_dir is None else places.folder("data_dir", data_dir)
    if root is not None and not root.is_dir():
        raise DataError(f"data_dir: {root} is not a folder; expected the one that holds {name}")
    if name in _TABLES:
        return _table(name, _find(name, root, "uci", _TABLES[name].file), seed)
    if name == "cifar10_jpeg":
        archive = _find(name, root, "cifar10", "cifar10-jpeg.tar.xz")
        return _images(name, image_sets.read_cifar10_jpeg(archive, places.cache()), seed)
    if name == "mnist":
        return _images(name, image_sets.read_prepared(_mnist_directory(root), places.cache()), seed)
    for place in [places.cache() / "tfds"] if root is None else [root, places.cache() / "tfds"]:
        directory = image_sets.find_prepared(name, place)
        if directory is not None:
            return _images(name, image_sets.read_prepared(directory, places.cache()), seed)
    raise DataError(_unknown(name, root))


def _unknown(name: str, root: Path | None) -> str:
    nearest = difflib.get_close_matches(name, names(), n=1, cutoff=0.5)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    where = "--data_dir" if root is None else root
    return (
        f"dataset: got {name!r}{hint}; expected one of {', '.join(names())}, "
        f"or an image set that TFDS has prepared in {where}"
    )


def _find(name: str, root: Path | None, folder: str, file: str) -> Path:
    """Returns root/file or root/folder/file, whichever exists."""
    if root is None:
        raise DataError(f"{name}: needs {file}; pass --data_dir=<the folder that holds it>")
    for path in (root / file, root / folder / file):
        if path.is_file():
            return path
    raise DataError(f"{name}: {root / file} is missing, and so is {root / folder / file}")


# --- embedded digits and 2-D toys ---------------------------------------------------------------


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


_NUM_TOY_TRAIN, _NUM_TOY_TEST = 10_000, 2_000
_Toy = tuple[np.ndarray, np.ndarray | None]


def _swiss_roll(rng: np.random.Generator, n: int) -> _Toy:
    """Points x = t (cos t, sin t) / 10 + 0.05 e; t = 3/2 pi (1 + 2 u), u ~ U(0, 1), e ~ N(0, I)."""
    t = 1.5 * np.pi * (1 + 2 * rng.random(n))
    spiral = np.stack([t * np.cos(t), t * np.sin(t)], axis=1) / 10
    return spiral + 0.05 * rng.standard_normal((n, 2)), None


def _ring(rng: np.random.Generator, n: int) -> _Toy:
    """Points x = r (cos a, sin a); r ~ N(1, 0.1^2), a ~ U(0, 2 pi)."""
    angle = 2 * np.pi * rng.random(n)
    radius = 1 + 0.1 * rng.standard_normal(n)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1), None


def _banana(rng: np.random.Generator, n: int) -> _Toy:
    """Points x = (e_1, (e_1^2 - 1) / 2 + 0.3 e_2); e ~ N(0, I)."""
    e1, e2 = rng.standard_normal((2, n))
    return np.stack([e1, (e1**2 - 1) / 2 + 0.3 * e2], axis=1), None


def _grid(rng: np.random.Generator, n: int) -> _Toy:
    """25 equal Gaussians of standard deviation 0.05; label 5 i + j is centred at (i - 2, j - 2)."""
    labels = rng.integers(25, size=n)
    centres = np.stack([labels // 5 - 2, labels % 5 - 2], axis=1)
    return centres + 0.05 * rng.standard_normal((n, 2)), labels


def _eight_gaussians(rng: np.random.Generator, n: int) -> _Toy:
    """8 equal Gaussians of standard deviation 0.1; label k: centre 2 (cos, sin)(pi k / 4)."""
    labels = rng.integers(8, size=n)
    angle = np.pi / 4 * labels
    centres = 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return centres + 0.1 * rng.standard_normal((n, 2)), labels


_TOYS: dict[str, tuple[Callable[[np.random.Generator, int], _Toy], int]] = {
    "swiss_roll": (_swiss_roll, 0),
    "ring": (_ring, 0),
    "grid": (_grid, 25),
    "banana": (_banana, 0),
    "eight_gaussians": (_eight_gaussians, 8),
}


def _toy(name: str, seed: int) -> Dataset:
    sample, num_classes = _TOYS[name]
    points, labels = sample(np.random.default_rng(seed), _NUM_TOY_TRAIN + _NUM_TOY_TEST)
    train, test = np.split(points.astype(np.float32), [_NUM_TOY_TRAIN])
    if labels is None:
        return Dataset(name, train, test, None, None, 0)
    train_labels, test_labels = np.split(labels.astype(np.int32), [_NUM_TOY_TRAIN])
    return Dataset(name, train, test, train_labels, test_labels, num_classes)


# --- UCI tables ---------------------------------------------------------------------------------


class _Table(NamedTuple):
    """A UCI table: its file, rows, columns, and those that are no features."""

    file: str
    num_rows: int
    columns: tuple[str, ...]
    dropped: str


_MOST_TABLE_BYTES = 2**24
_WINE = (
    "fixed acidity",
    "volatile acidity",
    "citric acid",
    "residual sugar",
    "chlorides",
    "free sulfur dioxide",
    "total sulfur dioxide",
    "density",
    "pH",
    "sulphates",
    "alcohol",
    "quality",
)
_PARKINSONS = (
    "subject#",
    "age",
    "sex",
    "test_time",
    "motor_UPDRS",
    "total_UPDRS",
    "Jitter(%)",
    "Jitter(Abs)",
    "Jitter:RAP",
    "Jitter:PPQ5",
    "Jitter:DDP",
    "Shimmer",
    "Shimmer(dB)",
    "Shimmer:APQ3",
    "Shimmer:APQ5",
    "Shimmer:APQ11",
    "Shimmer:DDA",
    "NHR",
    "HNR",
    "RPDE",
    "DFA",
    "PPE",
)
_TABLES = {
    "red_wine": _Table("winequality-red.csv", 1599, _WINE, "quality"),
    "white_wine": _Table("winequality-white.csv", 4898, _WINE, "quality"),
    "parkinsons": _Table("parkinsons_updrs.data", 5875, _PARKINSONS, "subject#"),
}


def _table(name: str, path: Path, seed: int) -> Dataset:
    """Returns shuffled rows, a tenth each for validation and test, standardised by the rest.

    Wine: 11 features (10 where a copy of the table lacks "density"), label quality >= 6.
    Parkinsons: 21 features, the columns but "subject#"; no label.
    """
    table = _TABLES[name]
    columns, values = _read_table(path, table)
    values = np.random.default_rng(seed).permutation(values)
    dropped = columns.index(table.dropped)
    features = np.delete(values, dropped, axis=1)
    labels = (values[:, dropped] >= 6).astype(np.int32) if table.columns is _WINE else None

    num_held_out = len(values) // 10
    train = features[: -2 * num_held_out]
    if np.any(train.std(0) == 0):
        raise DataError(f"{name}: {path} has a constant column among {', '.join(columns)}")
    features = ((features - train.mean(0)) / train.std(0)).astype(np.float32)
    cuts = [len(train), len(train) + num_held_out]
    train, valid, test = np.split(features, cuts)
    if labels is None:
        return Dataset(name, train, test, None, None, 0, valid)
    train_labels, valid_labels, test_labels = np.split(labels, cuts)
    return Dataset(name, train, test, train_labels, test_labels, 2, valid, valid_labels)


def _read_table(path: Path, table: _Table) -> tuple[list[str], np.ndarray]:
    """Returns the column names and the rows, float64, of a file separated by , ; or tabs."""
    try:
        lines = files.read(path, _MOST_TABLE_BYTES, follow=True).decode().splitlines()
        header = lines[0] if lines else ""
        delimiter = next((mark for mark in ",;\t" if mark in header), ",")
        columns = [column.strip().strip('"') for column in header.split(delimiter)]
        if columns not in (
            list(table.columns),
            [column for column in table.columns if column != "density"],
        ):
            raise DataError(
                f"{path} has the columns {', '.join(columns)[:80]}; expected "
                f"{', '.join(table.columns)}"
            )
        rows = [line for line in lines[1:] if line.strip()]
        if len(rows) != table.num_rows:
            raise DataError(f"{path} has {len(rows)} rows; expected {table.num_rows}")
        values = np.loadtxt(rows, delimiter=delimiter, comments=None, ndmin=2)
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a table of numbers: {error}") from error
    if values.shape[1] != len(columns):
        raise DataError(f"{path} has rows of {values.shape[1]} values; expected {len(columns)}")
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise DataError(
            f"{path}, line {row + 2}, column {columns[column]!r}: got {values[row, column]}; "
            "expected a finite number"
        )
    return columns, values


# --- image sets ---------------------------------------------------------------------------------


def _mnist_directory(root: Path | None) -> Path:
    """Returns a prepared MNIST: from the .gz files in root, as found in root, or from the cache."""
    from experiments.data import mnist  # imports TFDS, half a second

    source = None if root is None else mnist.find_source(root)
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
