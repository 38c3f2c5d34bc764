"""Settings: what their rules let through, in what type, and how they say no."""

import dataclasses
import json
import math

import pytest

from experiments.run import fields
from experiments.run.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Config:
    """A setting of each sort."""

    workdir: str = fields.workdir()
    count: int = fields.integer(3, 1, 10, "A count.")
    pause: int | None = fields.integer(None, 1, 10, "A count or none.")
    rate: float = fields.positive(0.5, "A rate.")
    lead: float = fields.number(0.5, 0.1, math.inf, "May be infinite.")
    centred: bool = fields.switch(False, "A switch.")
    prior: str = fields.choice("normal", ("normal", "uniform"), "A choice.")
    name: str = fields.word("digits", "A name.")
    seeds: tuple[int, ...] = fields.integers((0, 1), 0, fields.MAX_SEED, "Seeds.")
    scales: tuple[float, ...] = fields.numbers((1.0,), 1e-12, 1e12, "Scales.")
    rules: tuple[str, ...] = fields.choices(("a",), ("a", "b"), "Rules.", flag="rule")
    runs: tuple[str, ...] = fields.words((), "Runs.")


GOOD = Config("w")


def test_a_config_comes_back_from_json():
    config = dataclasses.replace(GOOD, pause=2, lead=math.inf, scales=(0.5, 2.0), runs=("a=b",))
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    assert fields.checked(Config, stored) == config
    assert fields.checked(Config, {"workdir": "w"}) == GOOD
    fields.validate(config)


def test_an_integer_stands_for_a_number_but_comes_as_one():
    found = fields.checked(Config, {"workdir": "w", "rate": 2, "scales": [1, 2]})
    assert (found.rate, found.scales) == (2.0, (1.0, 2.0))
    assert [type(value) for value in (found.rate, *found.scales)] == [float] * 3


BAD = [
    *[("count", value) for value in (0, 11, 10**30, 10**5000, 1.0, True, "3", None, [3], {})],
    *[("pause", value) for value in (0, "", "none", False, math.nan)],
    *[("rate", value) for value in (0.0, -1.0, 1e31, 1e-31, math.inf, math.nan, "1", True, None)],
    *[("lead", value) for value in (0.0, -math.inf, math.nan, 10**400 * -1)],
    *[("centred", value) for value in (0, 1, "true", None, [])],
    *[("prior", value) for value in ("norml", "", None, 3, ["normal"])],
    *[("name", value) for value in ("", "  ", None, 3, [], ["digits"], "a\0b", "x" * 5000)],
    *[("seeds", value) for value in ([], (), None, 3, "0", [0, 0], [-1], [2**32], [1.0], [True])],
    *[("seeds", value) for value in ([[0]], [None], {"0": 1})],
    *[("scales", value) for value in ([], [1.0, 1], [0.0], [1e-300], [1e300], ["1"], [math.nan])],
    *[("rules", value) for value in ([], ["a", "a"], ["c"], ["all"], [["a"]], "a")],
    *[("runs", value) for value in ([""], ["a", "a"], "a", None, [3])],
    *[("workdir", value) for value in ("", " ", None, 3)],
]


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


BAD.append(("count", nested(5000)))


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{i}" for i in range(len(BAD))])
def test_a_value_that_breaks_its_rule_is_one_short_line(name, value):
    shown = "rule" if name == "rules" else name
    for refuse in (
        lambda: fields.checked(Config, {"workdir": "w", name: value}),
        lambda: fields.validate(dataclasses.replace(GOOD, **{name: value})),
    ):
        with pytest.raises(UsageError, match=f"^{shown}: got .*; expected ") as error:
            refuse()
        assert len(str(error.value)) <= 250
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "workdir: got nothing; expected a folder, not blank, by --workdir=..."),
        ({"workdir": "w", "cuont": 3}, "config: got the setting 'cuont'; .* such as count"),
        ([1], r"config: got \[1\]; expected settings by name"),
        ("w", "config: got 'w'"),
        (None, "config: got None"),
    ],
)
def test_what_is_no_config_is_named(values, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        fields.checked(Config, values)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("count", " 7 ", 7),
        ("rate", "1e-3", 1e-3),
        ("lead", "inf", math.inf),
        ("centred", "True", True),
        ("prior", " uniform", "uniform"),
        ("name", "digits", "digits"),
        ("seeds", "2, 1", (2, 1)),
        ("scales", "1,.5", (1.0, 0.5)),
        ("rules", "all", ("a", "b")),
        ("rules", "b", ("b",)),
        ("runs", "a=b, c=d", ("a=b", "c=d")),
    ],
)
def test_a_text_is_read(name, text, value):
    found = fields.rules(Config)[name].parse(name, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *[("count", text) for text in ("", "1.5", "x", "9" * 6000, "-" + "9" * 6000, "1e3", "²")],
        *[("rate", text) for text in ("", "nan", "inf", "9" * 6000, "0x1p3", "1,2")],
        *[("seeds", text) for text in ("", " ", ",", "0,", "0,,1", "0,0", "x", "9" * 6000)],
        *[("scales", text) for text in ("", "1;2", "1,1.0", "nan")],
        *[("rules", text) for text in ("", "a,all", "A", "x" * 6000)],
        *[("runs", text) for text in ("", "a,a", "a,")],
        *[("workdir", text) for text in ("", " ", "\t", "a\0b")],
        ("centred", "maybe"),
        ("prior", ""),
    ],
    ids=lambda x: str(x)[:20],
)
def test_a_text_that_breaks_its_rule_is_one_short_line(name, text):
    with pytest.raises(UsageError, match="^(rule|" + name + "): got .*; expected ") as error:
        fields.rules(Config)[name].parse(name, text)
    assert len(str(error.value)) <= 250
