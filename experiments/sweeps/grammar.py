"""The language of grids: values of settings, from which every combination is a run.

    learning_rate=1e-4,3e-4,1e-3; ridge=log:0.4..40:5; seed=0..7

Settings are apart by semicolons, their values by commas. ``a..b`` are all integers from a to b,
``a..b:n`` are n numbers from a to b in equal steps, ``log:a..b:n`` in equal ratios, to six digits;
of an integer setting, rounded. A list stands in brackets: ``kernel_scales=[1],[0.5,1,2,4]``. Where
a setting has no default of its own, ``none`` leaves it unset.
"""

import difflib
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments.run import fields
from experiments.run.errors import UsageError
from experiments.run.fields import Rule

Grid = dict[str, tuple[Any, ...]]

_RANGE = re.compile(r"(?P<log>log:)?(?P<low>.+?)\.\.(?P<high>.+?)(:(?P<count>[^:]*))?")
_COMMA = re.compile(r",(?![^\[\]]*\])")  # outside of brackets
_DIGITS = 6


def parse(text: str, rules: Mapping[str, Rule], most: int) -> Grid:
    """Returns the values of each setting that a grid names, in its order.

    What a setting may be is not looked at here, but for its type.

    Args:
      text: the grid.
      rules: of the settings by name.
      most: a grid of more runs is refused before its values are made.

    Raises:
      UsageError: the text is no grid, or names an unknown setting, an empty range, or something
        twice; or the grid is too large.
    """
    texts: dict[str, str] = {}
    for part in filter(str.strip, text.split(";")):
        name, _, values = (piece.strip() for piece in part.partition("="))
        if not values:
            raise _error(part.strip(), "name=values, such as seed=0..7")
        if name not in rules:
            nearest = difflib.get_close_matches(name, list(rules), n=1, cutoff=0)[0]
            raise _error(name, f"a known setting such as {nearest}")
        if name in texts:
            raise _error(f"{name} twice", "each setting once")
        texts[name] = values
    if not texts:
        raise _error(text, "name=values, such as seed=0..7")
    made = {name: _pieces(name, rules[name], values) for name, values in texts.items()}
    _limit({name: sum(piece.size for piece in of) for name, of in made.items()}, most)
    grid = {
        name: tuple(piece.at(index) for piece in of for index in range(piece.size))
        for name, of in made.items()
    }
    for name, found in grid.items():
        twice = [value for index, value in enumerate(found) if value in found[:index]]
        if twice:
            raise _error(f"{name}={shown(twice[0])} twice", "distinct values")
    return grid


def names(text: str) -> list[str]:
    """Returns what a grid says that its settings are called."""
    return [part.partition("=")[0].strip() for part in text.split(";")]


def shown(value: Any) -> str:
    """Returns a value as a grid or the name of a run spells it."""
    if isinstance(value, tuple):
        return "+".join(map(shown, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _error(got: str, expected: str) -> UsageError:
    return UsageError(f"sweep: got {fields.shown(got)}; expected {expected}")


def _limit(counts: Mapping[str, int], most: int) -> None:
    total = math.prod(counts.values())
    if total > most:
        sizes = " x ".join(f"{count} of {name}" for name, count in counts.items())
        raise UsageError(
            f"max_runs: got a grid of {total} runs, {sizes}; expected at most {most}. "
            "Raise --max_runs"
        )


class _Piece(NamedTuple):
    """Some values of a setting: how many, and the one of each index."""

    size: int
    at: Callable[[int], Any]


def _pieces(name: str, rule: Rule, text: str) -> list[_Piece]:
    """Returns what stands between the commas: ranges, and single values."""
    made = []
    for item in map(str.strip, _COMMA.split(text)):
        match = _RANGE.fullmatch(item) if rule.kind in (int, float) and not rule.many else None
        if not item or (item.startswith("log:") and match is None):
            raise _error(f"{name}={text}", "values such as 1,2 or 0..7 or log:0.1..10:3")
        if match is not None:
            made.append(_range(f"{name}={item}", rule.kind, match))
            continue
        if rule.many and item != "none" and not (item.startswith("[") and item.endswith("]")):
            raise _error(f"{name}={item}", f"lists in brackets, such as {name}=[{item}]")
        made.append(_Piece(1, functools.partial(_value, item, rule)))
    return made


def _range(got: str, kind: type, match: re.Match[str]) -> _Piece:
    """Returns the numbers of a range."""
    try:
        ends = [kind(match["low"]), kind(match["high"])]
        count = None if match["count"] is None else int(match["count"])
        finite = all(map(math.isfinite, ends))
    except (ValueError, OverflowError):
        raise _error(got, "numbers a..b, a..b:n or log:a..b:n") from None
    low, high = ends
    if not (finite and low <= high):
        raise _error(got, "a range a..b with a <= b, not an empty one")
    if count is None:
        if kind is float or match["log"]:
            raise _error(got, f"the number of points too, such as {got.partition('=')[2]}:5")
        return _Piece(high - low + 1, lambda index: low + index)
    if count < 2 or low == high or (match["log"] and low <= 0):
        raise _error(got, "two points or more" + (", > 0" if match["log"] else "") + ", a < b")

    def at(index: int) -> Any:
        share = index / (count - 1)
        if index in (0, count - 1):
            return low if index == 0 else high
        inner = low * (high / low) ** share if match["log"] else low + (high - low) * share
        return round(inner) if kind is int else float(f"{inner:.{_DIGITS}g}")

    return _Piece(count, at)


def _value(text: str, rule: Rule, index: int = 0) -> Any:
    """Returns what the text of one value stands for, the only one of its piece."""
    del index
    if text == "none" and rule.default is None:
        return None
    if rule.many:
        return tuple(rule.scalar(item) for item in text[1:-1].split(",") if item.strip())
    return rule.scalar(text)
