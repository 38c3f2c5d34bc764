"""The errors that a user can mend, each with its exit code."""


class UsageError(Exception):
    """A wrong flag, config or data set; exit code 2."""


class StorageError(Exception):
    """A failure of files, lock or checkpoints; exit code 1."""


class DivergenceError(Exception):
    """A state that is not finite; exit code 3."""


class Terminated(Exception):  # noqa: N818 - an order that was obeyed, not an error
    """SIGTERM arrived and the state was saved; exit code 143."""
