"""Files that survive a crash."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from experiments.errors import StorageError


@contextlib.contextmanager
def storage(place: str) -> Iterator[None]:
    """Turns an OSError within into a StorageError that names the place."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{place}: {error.strerror or error}") from error


def replace(target: pathlib.Path, content: bytes) -> None:
    """Writes a file in one piece: after a kill there is the old content or the new."""
    scratch = target.with_name(target.name + ".tmp")
    with open(scratch, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, target)
    sync(target.parent)


def sync(path: pathlib.Path) -> None:
    """Returns once a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
