"""How figures spread, and tables of them."""

import math

import numpy as np
import pytest

from experiments.run import tables


def test_the_deviation_is_that_of_a_sample():
    spread = tables.spread([1.0, 2.0, 3.0])
    assert (spread.mean, spread.deviation) == (2.0, 1.0)
    assert spread.text() == "2 ± 1"
    assert tables.spread(np.array([1.0, 2.0])).text(".2f", ".3f") == "1.50 ± 0.707"


def test_a_single_figure_has_no_deviation():
    spread = tables.spread([1.23456])
    assert math.isnan(spread.deviation)
    assert spread.text() == "1.235"


@pytest.mark.filterwarnings("error")
def test_what_is_missing_is_a_dash():
    text = tables.format_table({"one": {"a": 1.23456}, "two": {"b": "x"}})
    assert text.splitlines()[2:] == ["| one | 1.235 | - |", "| two | -     | x |"]
