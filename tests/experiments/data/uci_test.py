"""UCI tables: facts of the real ones, damage that must not pass."""

import numpy as np
import pytest

from experiments.data import catalog
from tests.experiments.data.conftest import REAL_DATA, message_of, needs_real_data

WINE = [
    *("fixed acidity", "volatile acidity", "citric acid", "residual sugar", "chlorides"),
    *("free sulfur dioxide", "total sulfur dioxide", "density", "pH", "sulphates"),
    *("alcohol", "quality"),
]
PARKINSONS = [
    *("subject#", "age", "sex", "test_time", "motor_UPDRS", "total_UPDRS", "Jitter(%)"),
    *("Jitter(Abs)", "Jitter:RAP", "Jitter:PPQ5", "Jitter:DDP", "Shimmer", "Shimmer(dB)"),
    *("Shimmer:APQ3", "Shimmer:APQ5", "Shimmer:APQ11", "Shimmer:DDA", "NHR", "HNR", "RPDE"),
    *("DFA", "PPE"),
]


def write_table(path, columns, values, delimiter=",", quote="", newline="\n"):
    lines = [delimiter.join(f"{quote}{column}{quote}" for column in columns)]
    lines += [delimiter.join(repr(float(value)) for value in row) for row in values]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((newline.join(lines) + newline).encode())


def wine_values(rng, num_rows=1599, num_columns=12):
    """Rows with distinct first column, of very different scales, and qualities 3..8."""
    values = rng.normal(size=(num_rows, num_columns)) * 10.0 ** rng.integers(-3, 4, num_columns)
    values[:, 0] = rng.permutation(num_rows) + 0.5
    values[:, -1] = rng.integers(3, 9, num_rows)
    return values


def assert_standardised(dataset, features):
    """The three splits are one permutation of the rows, in units of the training rows."""
    sizes = [len(dataset.train), len(dataset.valid), len(dataset.test)]
    assert sizes == [len(features) - 2 * (len(features) // 10)] + 2 * [len(features) // 10]
    got = np.concatenate([dataset.train, dataset.valid, dataset.test])
    order = np.empty(len(got), int)
    order[np.argsort(got[:, 0])] = np.argsort(features[:, 0])
    assert not np.array_equal(order, np.arange(len(got)))
    train = features[order[: sizes[0]]].astype(np.float64)
    mean = np.array([sum(column) / len(column) for column in train.T])
    variance = np.array([sum((column - column.mean()) ** 2) / len(column) for column in train.T])
    expected = (features[order] - mean) / np.sqrt(variance)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)
    return order


@pytest.mark.parametrize(
    ("folder", "delimiter", "quote", "newline"),
    [(".", ",", "", "\n"), ("uci", ";", '"', "\n"), ("uci", "\t", "", "\r\n")],
)
def test_wine_is_shuffled_split_and_standardised(tmp_path, rng, folder, delimiter, quote, newline):
    values = wine_values(rng)
    write_table(tmp_path / folder / "winequality-red.csv", WINE, values, delimiter, quote, newline)
    dataset = catalog.load("red_wine", str(tmp_path))
    order = assert_standardised(dataset, values[:, :-1])
    labels = np.concatenate([dataset.train_labels, dataset.valid_labels, dataset.test_labels])
    np.testing.assert_array_equal(labels, values[order, -1] >= 6)
    assert labels.dtype == np.int32
    assert (dataset.num_classes, dataset.sample_shape) == (2, (11,))

    again = catalog.load("red_wine", str(tmp_path))
    other = catalog.load("red_wine", str(tmp_path), seed=1)
    np.testing.assert_array_equal(dataset.train, again.train)
    assert not np.array_equal(dataset.train, other.train)


def test_wine_without_density_has_ten_features(tmp_path, rng):
    values = wine_values(rng, 4898, 11)
    columns = [column for column in WINE if column != "density"]
    write_table(tmp_path / "winequality-white.csv", columns, values)
    dataset = catalog.load("white_wine", str(tmp_path))
    assert_standardised(dataset, values[:, :-1])
    assert dataset.sample_shape == (10,)


def test_parkinsons_leaves_out_the_subject(tmp_path, rng):
    values = rng.normal(size=(5875, 22))
    write_table(tmp_path / "parkinsons_updrs.data", PARKINSONS, values, "\t")
    dataset = catalog.load("parkinsons", str(tmp_path))
    assert_standardised(dataset, values[:, 1:])
    assert (dataset.num_classes, dataset.train_labels, dataset.valid_labels) == (0, None, None)


def swap_columns(text):
    return text.replace("fixed acidity,volatile acidity", "volatile acidity,fixed acidity")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda text: "", "columns"),
        (swap_columns, "columns"),
        (lambda text: text.split("\n", 1)[1], "columns"),
        (lambda text: text[: len(text) // 2].rsplit("\n", 1)[0], "rows; expected 1599"),
        (lambda text: text + text.splitlines()[-1], "1600 rows"),
        (lambda text: text[:-9], "not a table of numbers"),
        (lambda text: text.replace("\n", "\n1,", 1), "not a table of numbers"),
        (lambda text: text.replace("\n", "\nnan,", 1).replace(",", "", 0), "table of numbers"),
        (lambda text: text[:2000] + "x" + text[2000:], "not a table of numbers"),
        (lambda text: text.replace(".", "\x00"), "not a table of numbers"),
    ],
)
def test_damaged_table_is_named(tmp_path, rng, damage, expected):
    path = tmp_path / "winequality-red.csv"
    write_table(path, WINE, wine_values(rng))
    path.write_text(damage(path.read_text()))
    message = message_of(catalog.load, "red_wine", str(tmp_path))
    assert str(path) in message
    assert expected in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_table_entry_that_is_not_finite_is_located(tmp_path, rng, value):
    values = wine_values(rng)
    values[41, 8] = value
    write_table(tmp_path / "winequality-red.csv", WINE, values)
    message = message_of(catalog.load, "red_wine", str(tmp_path))
    assert f"line 43, column 'pH': got {value}" in message


def test_constant_column_is_refused(tmp_path, rng):
    values = wine_values(rng)
    values[:, 3] = 2.5
    write_table(tmp_path / "winequality-red.csv", WINE, values)
    assert "constant column" in message_of(catalog.load, "red_wine", str(tmp_path))


def test_binary_file_is_no_table(tmp_path):
    (tmp_path / "winequality-red.csv").write_bytes(bytes(range(256)))
    assert "table" in message_of(catalog.load, "red_wine", str(tmp_path))


@needs_real_data
@pytest.mark.parametrize(
    ("name", "num_rows", "num_good"),
    [("red_wine", 1599, 855), ("white_wine", 4898, 3258), ("parkinsons", 5875, None)],
)
def test_real_tables(name, num_rows, num_good):
    dataset = catalog.load(name, REAL_DATA)
    assert len(dataset.train) + len(dataset.valid) + len(dataset.test) == num_rows
    np.testing.assert_allclose(dataset.train.mean(0, dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(dataset.train.std(0, dtype=np.float64), 1, atol=1e-6)
    if num_good is None:
        assert dataset.sample_shape == (21,)
    else:
        labels = [dataset.train_labels, dataset.valid_labels, dataset.test_labels]
        assert sum(map(np.sum, labels)) == num_good
