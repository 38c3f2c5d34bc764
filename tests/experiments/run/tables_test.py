"""Tables: columns in the order that they come in, four digits, dashes; and how figures spread."""

import math

import numpy as np

from experiments.run import tables
from experiments.run.tables import format_table


def test_numbers_have_four_digits_and_what_is_missing_a_dash():
    rows = {"kl": {"mmd": 0.123456, "note": "best"}, "gan, long": {"mmd": 12345.678, "steps": 7}}
    assert format_table(rows).splitlines() == [
        "|           | mmd       | note | steps |",
        "| --------- | --------- | ---- | ----- |",
        "| kl        | 0.1235    | best | -     |",
        "| gan, long | 1.235e+04 | -    | 7     |",
    ]


def test_the_deviation_is_that_of_a_sample():
    spread = tables.spread([1.0, 2.0, 3.0])
    assert (spread.mean, spread.deviation) == (2.0, 1.0)
    assert spread.text() == "2 ± 1"
    assert tables.spread(np.array([1.0, 2.0])).text(".2f", ".3f") == "1.50 ± 0.707"


def test_a_single_figure_has_no_deviation():
    spread = tables.spread([1.23456])
    assert math.isnan(spread.deviation)
    assert spread.text() == "1.235"
