"""The errors that a user can mend, each with its exit code, and how they are said."""

import signal


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


def line(kind: str, message: object) -> str:
    """Returns what stderr gets, such as "kernelgrad: error: ...", whatever the message holds."""
    return f"kernelgrad: {kind}: {' '.join(str(message).split())}"
