"""Tables: columns in the order that they come in, four digits, dashes."""

from experiments.run.tables import format_table


def test_numbers_have_four_digits_and_what_is_missing_a_dash():
    rows = {"kl": {"mmd": 0.123456, "note": "best"}, "gan, long": {"mmd": 12345.678, "steps": 7}}
    assert format_table(rows).splitlines() == [
        "|           | mmd       | note | steps |",
        "| --------- | --------- | ---- | ----- |",
        "| kl        | 0.1235    | best | -     |",
        "| gan, long | 1.235e+04 | -    | 7     |",
    ]
