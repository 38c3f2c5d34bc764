"""The definition of a setting: a dataclass field that knows its type, its range and its help.

A config declares each setting once::

    @dataclasses.dataclass(frozen=True)
    class Config:
        num_steps: int = fields.integer(2000, 1, 10**9, "Updates in all.")
        ridge: float | None = fields.number(None, 1e-30, 1e30, "0.1 sqrt(batch) k(0) by default.")
        seeds: tuple[int, ...] = fields.integers((0, 1, 2), 0, fields.MAX_SEED, "Of the runs.")

From that follow its flag and --help (:mod:`experiments.run.command`), what :func:`validate` says of
an instance, and what :func:`checked` makes of values that come from flags or from a file. Where the
default is None, None stands for "not set"; a list has no item twice, and is empty only where its
default is. Every declaration takes `group`, `of`, `beside` and `before` of a :class:`Rule` besides.
"""

import dataclasses
import difflib
import functools
import inspect
import math
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from experiments.run.errors import UsageError, short

MAX_SEED = 2**32 - 1  # jax.random.key takes 32 bits where x64 is off
MAX_COUNT = 10**9  # steps, or pauses between them
MAX_SIZE = 10**8  # rows, samples, units
SMALLEST, LARGEST = 1e-30, 1e30  # of positive numbers: float32 holds them and their products
_LONGEST_TEXT = 4096
_SHOWN = 60  # characters of a value in an error
_LISTED = 140  # of what is expected

_SWITCHES = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}

_RULE = "rule"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a setting may be.

    Attributes:
      kind: int, float, bool or str; of the items, where there are many.
      help: what it means, in a sentence.
      default: its default; `dataclasses.MISSING` where it must be given.
      low: least value of a number.
      high: largest; inf takes inf.
      choices: the words it may be; empty: any.
      every: () -> those that "all" stands for; None: all of the choices.
      many: whether it is a list.
      flag: name of the flag, if it is not that of the field.
      variable: environment variable that stands in for the flag.
      noun: what a text is.
      group: heading of --help under which it stands; its class's own where None.
      of: name of the setting -> those that read it, such as objectives, choices of another
        setting; None: all.
      beside: other settings, each with its values at which this one is not read.
      before: what runs had before there was the setting; None: the default.
    """

    kind: type
    help: str
    default: Any
    low: float = -math.inf
    high: float = math.inf
    choices: Collection[str] = ()
    every: Callable[[], Sequence[str]] | None = None
    many: bool = False
    flag: str | None = None
    variable: str | None = None
    noun: str = "text"
    group: str | None = None
    of: Callable[[str], Sequence[str]] | None = None
    beside: Mapping[str, Collection[Any]] = dataclasses.field(default_factory=dict)
    before: Any = None

    @property
    def expected(self) -> str:
        """What an error and --help say that it should be."""
        if self.kind is bool:
            return "true or false"
        if self.kind is str and not self.choices:
            return f"distinct {self.noun}s, not blank" if self.many else f"a {self.noun}, not blank"
        if self.choices:
            return f"{'distinct ones' if self.many else 'one'} of {', '.join(self.choices)}"
        one, several = {int: ("an integer", "integers"), float: ("a number", "numbers")}[self.kind]
        return (
            f"{f'distinct {several}' if self.many else one} in [{self.low:.12g}, {self.high:.12g}]"
        )

    @property
    def default_text(self) -> str:
        """The default as the flag would be given it; blank where there is none."""
        return "" if self.default is dataclasses.MISSING else self.text(self.default)

    def parse(self, name: str, text: str) -> Any:
        """Returns the value that a flag's text stands for.

        Raises:
          UsageError: the text is no such value, or one out of range.
        """
        if self.kind is str and not (self.many or self.choices):
            return self.check(name, text)
        if not self.many:
            return self.check(name, self.scalar(text))
        items = [self.scalar(item) for item in text.split(",") if text.strip()]
        if items == ["all"] and (self.choices or self.every):
            items = list(self.every() if self.every else self.choices)
        if not items:
            raise self._error(name, items)
        return self.check(name, items)

    def scalar(self, text: str) -> Any:
        """Returns what a text stands for, or the text itself where it is nothing of that kind."""
        if self.kind is bool:
            return _SWITCHES.get(text.strip().lower(), text.strip())
        try:
            return self.kind(text.strip())
        except ValueError:
            return text.strip()

    def text(self, value: Any) -> str:
        """Returns the text that a flag would be given for a value; blank for None."""
        if value is None:
            return ""
        if self.many:
            return ",".join(map(str, value))
        return str(value).lower() if self.kind is bool else str(value)

    def check(self, name: str, value: Any) -> Any:
        """Returns the value in its own type, a list as a tuple.

        Raises:
          UsageError: it is of another type or out of range.
        """
        if value is None and self.default is None:
            return None
        if not self.many:
            return self._item(name, value)
        if not isinstance(value, list | tuple) or (not value and self.default != ()):
            raise self._error(name, value)
        items = tuple(self._item(name, item) for item in value)
        if len(set(items)) < len(items):
            raise self._error(name, list(items))
        return items

    def _item(self, name: str, value: Any) -> Any:
        kinds = (int, float) if self.kind is float else (self.kind,)
        if type(value) not in kinds:
            raise self._error(name, value)
        if self.kind is str:
            fits = bool(value.strip()) and len(value) <= _LONGEST_TEXT and "\0" not in value
            if not fits or (self.choices and value not in self.choices):
                raise self._error(name, value)
        elif self.kind is not bool and not self.low <= value <= self.high:
            raise self._error(name, value)
        return self.kind(value)

    def _error(self, name: str, value: Any) -> UsageError:
        expected = textwrap.shorten(self.expected, _LISTED, placeholder=" ... (see --help)")
        message = f"{self.flag or name}: got {shown(value)}; expected {expected}"
        if self.choices and isinstance(value, str) and value.strip():
            known = list(self.choices)
            nearest = difflib.get_close_matches(value[:_SHOWN], known, n=1, cutoff=0)
            message += f". Did you mean {nearest[0]}?"
        return UsageError(message)


def shown(value: Any) -> str:
    """Returns a value as an error shows it: short, whatever it is."""
    if isinstance(value, tuple):
        value = list(value)
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits, or deeper, than Python prints
        return f"a value of type {type(value).__name__} too large to show"
    return short(text)


# ----------------------------------------------------------------------------------- declarations


def _field(default: Any, kind: type, text: str, **options: Any) -> Any:
    rule = Rule(kind, text, default, **options)
    return dataclasses.field(default=default, metadata={_RULE: rule})


def integer(default: int | None, low: int, high: int, text: str, **options: Any) -> Any:
    """Declares an integer in [low, high]."""
    return _field(default, int, text, low=low, high=high, **options)


def number(default: float | None, low: float, high: float, text: str, **options: Any) -> Any:
    """Declares a number in [low, high]."""
    return _field(default, float, text, low=low, high=high, **options)


def positive(default: float | None, text: str, **options: Any) -> Any:
    """Declares a number > 0 that leaves float32 room on both sides."""
    return number(default, SMALLEST, LARGEST, text, **options)


def not_negative(default: float | None, text: str, **options: Any) -> Any:
    """Declares a number >= 0 that leaves float32 room above."""
    return number(default, 0.0, LARGEST, text, **options)


def share(default: float | None, text: str, **options: Any) -> Any:
    """Declares a number >= 0, and below 1 by so much that float32 sees it."""
    return number(default, 0.0, 1 - 1e-6, text, **options)


def switch(default: bool | None, text: str, **options: Any) -> Any:
    """Declares something to be switched on or off."""
    return _field(default, bool, text, **options)


def choice(
    default: str | None,
    choices: Collection[str],
    text: str,
    *,
    flag: str | None = None,
    **options: Any,
) -> Any:
    """Declares one of the choices."""
    return _field(default, str, text, choices=choices, flag=flag, **options)


def word(default: str | None, text: str, **options: Any) -> Any:
    """Declares a text that is not blank; nothing, where that is the default."""
    return _field(default, str, text, **options)


def integers(default: tuple[int, ...], low: int, high: int, text: str) -> Any:
    """Declares distinct integers in [low, high]."""
    return _field(default, int, text, low=low, high=high, many=True)


def numbers(
    default: tuple[float, ...] | None, low: float, high: float, text: str, **options: Any
) -> Any:
    """Declares distinct numbers in [low, high]."""
    return _field(default, float, text, low=low, high=high, many=True, **options)


def choices(
    default: tuple[str, ...],
    known: Collection[str],
    text: str,
    *,
    flag: str | None = None,
    **options: Any,
) -> Any:
    """Declares distinct ones of those that are known; the flag takes "all" too."""
    return _field(default, str, text, choices=known, many=True, flag=flag, **options)


def words(default: tuple[str, ...], text: str, **options: Any) -> Any:
    """Declares distinct texts; the flag takes "all" too where `every` says what that is."""
    return _field(default, str, text, many=True, **options)


def seed(text: str = "Seed of everything random.") -> Any:
    """Declares a seed, 0 by default."""
    return integer(0, 0, MAX_SEED, text)


def image_size() -> Any:
    """Declares the side of a folder's images, as they are by default."""
    text = "Side to which the images of a folder are cropped and resized; by default all have one."
    return integer(None, 1, 4096, text)


def workdir(text: str = "Folder of the run; created if missing.") -> Any:
    """Declares the folder of a run, which must be given."""
    return _field(dataclasses.MISSING, str, text, noun="folder")


def data_dir(text: str = "Folder with the data set's files.") -> Any:
    """Declares the folder of the data."""
    variable = "KERNELGRAD_DATA_DIR"
    return _field(None, str, f"{text} ${variable} by default.", variable=variable, noun="folder")


# ----------------------------------------------------------------------------------------- readers


def rules(config_class: type) -> dict[str, Rule]:
    """Returns the rules of a config's fields by name."""
    return {field.name: field.metadata[_RULE] for field in dataclasses.fields(config_class)}


@functools.cache
def read_by(function: Callable[..., Any]) -> tuple[str, ...]:
    """Returns the settings that a function reads: those that it takes by keyword alone."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY)


def earlier(config_class: type) -> dict[str, Any]:
    """Returns what a run has in fields of its config that came after it."""
    values = {field.name: field.default for field in dataclasses.fields(config_class)}
    for field in dataclasses.fields(config_class):
        rule = field.metadata.get(_RULE)
        if rule is not None and rule.before is not None:
            values[field.name] = rule.before
    return {name: value for name, value in values.items() if value is not dataclasses.MISSING}


def validate(config: Any) -> None:
    """Raises UsageError for the first setting of an instance that breaks its rule."""
    for name, rule in rules(type(config)).items():
        rule.check(name, getattr(config, name))


def checked(config_class: type[T], values: Any) -> T:
    """Returns a config of values by name, each of them checked; what is missing has its default.

    Args:
      config_class: a dataclass of settings.
      values: such as what JSON makes of a file: anything at all. The text inf is a number.

    Raises:
      UsageError: no mapping, an unknown name, a missing one without default, a value of another
        type (text for a number, a boolean for an integer, ...) or out of its range.
    """
    known = rules(config_class)
    if not isinstance(values, Mapping):
        raise UsageError(f"config: got {shown(values)}; expected settings by name")
    for name in values:
        if name not in known:
            nearest = difflib.get_close_matches(str(name)[:_SHOWN], list(known), n=1, cutoff=0)[0]
            raise UsageError(
                f"config: got the setting {shown(name)}; expected known ones such as {nearest}"
            )
    for name, rule in known.items():
        if name not in values and rule.default is dataclasses.MISSING:
            raise UsageError(f"{name}: got nothing; expected {rule.expected}, by --{name}=...")
    numbers = {
        name: math.inf if value == "inf" and known[name].kind is float else value
        for name, value in values.items()
    }
    return config_class(**{name: known[name].check(name, value) for name, value in numbers.items()})


def pick(config_class: type[T], values: Mapping[str, Any]) -> T:
    """Returns the config of those values that are its settings, checked."""
    known = rules(config_class)
    return checked(config_class, {name: v for name, v in values.items() if name in known})
