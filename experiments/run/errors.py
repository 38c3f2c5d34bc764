"""The errors that a user can mend, each with its exit code, and how they are said."""

import signal
from collections.abc import Iterable

_LONGEST_TEXT = 60  # of a text in an error
_LONGEST_LIST = 100
_LONGEST_REASON = 150
_LONGEST_LINE, _LINE_START, _LINE_END = 280, 170, 100


class UsageError(Exception):
    """A wrong flag, config or data set; exit code 2."""


class DataError(ValueError):
    """A data set that cannot be had as asked; exit code 2."""


class StorageError(Exception):
    """A failure of files, lock or checkpoints; exit code 1."""


class DivergenceError(Exception):
    """A state that is not finite; exit code 3."""


class Terminated(BaseException):
    """A signal arrived and what could be saved was; exit code 128 + its number.

    No Exception, lest somebody who catches errors goes on.

    Attributes:
      number: of the signal.
    """

    def __init__(self, message: str, number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.number = number


def short(text: str) -> str:
    """Returns a text as an error shows it: cut, where it is long."""
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_LONGEST_TEXT]}... ({len(text)} characters)"


def listed(items: Iterable[object]) -> str:
    """Returns a list as an error shows it, such as "a, b, c and 1997 more"."""
    texts = [short(str(item)) for item in items]
    length = 0
    for count, text in enumerate(texts):
        length += len(text) + 2
        if count and length > _LONGEST_LIST:
            return f"{', '.join(texts[:count])} and {len(texts) - count} more"
    return ", ".join(texts)


def reason(error: BaseException) -> str:
    """Returns what a library's error says, in one line and cut, where it is long."""
    said = " ".join(str(getattr(error, "strerror", None) or error).split())
    return said[:_LONGEST_REASON] or type(error).__name__


def line(kind: str, message: object) -> str:
    """Returns what stderr gets, such as "kernelgrad: error: ...", whatever the message holds.

    Of a long one, such as with a path of thousands of characters, the middle is left out.
    """
    text = " ".join(str(message).split())
    if len(text) > _LONGEST_LINE:
        text = f"{text[:_LINE_START]} ... {text[-_LINE_END:]}"
    return f"kernelgrad: {kind}: {text}"
