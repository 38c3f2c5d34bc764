"""UCI tables, split and standardised."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.dataset import Dataset
from experiments.run import files
from experiments.run.errors import DataError, listed, reason


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
TABLES = {
    "red_wine": _Table("winequality-red.csv", 1599, _WINE, "quality"),
    "white_wine": _Table("winequality-white.csv", 4898, _WINE, "quality"),
    "parkinsons": _Table("parkinsons_updrs.data", 5875, _PARKINSONS, "subject#"),
}


def load(name: str, path: Path, seed: int) -> Dataset:
    """Returns shuffled rows, a tenth each for validation and test, standardised by the rest.

    Wine: 11 features (10 where a copy of the table lacks "density"), label quality >= 6.
    Parkinsons: 21 features, the columns but "subject#"; no label.
    """
    table = TABLES[name]
    columns, values = _read_table(path, table)
    values = np.random.default_rng(seed).permutation(values)
    dropped = columns.index(table.dropped)
    features = np.delete(values, dropped, axis=1)
    labels = (values[:, dropped] >= 6).astype(np.int32) if table.columns is _WINE else None

    num_held_out = len(values) // 10
    train = features[: -2 * num_held_out]
    if np.any(train.std(0) == 0):
        raise DataError(f"{name}: {path} has a constant column among {listed(columns)}")
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
                f"{path} has the columns {listed(columns)}; expected {listed(table.columns)}"
            )
        rows = [line for line in lines[1:] if line.strip()]
        if len(rows) != table.num_rows:
            raise DataError(f"{path} has {len(rows)} rows; expected {table.num_rows}")
        values = np.loadtxt(rows, delimiter=delimiter, comments=None, ndmin=2)
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a table of numbers: {reason(error)}") from error
    if values.shape[1] != len(columns):
        raise DataError(f"{path} has rows of {values.shape[1]} values; expected {len(columns)}")
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise DataError(
            f"{path}, line {row + 2}, column {columns[column]!r}: got {values[row, column]}; "
            "expected a finite number"
        )
    return columns, values
