"""Folders that a user names: what the text stands for, and what it may not be."""

import atexit
import os
import pathlib
import shutil
import tempfile

from experiments.run import fields
from experiments.run.errors import StorageError, UsageError

_LONGEST_NAME = 255  # bytes, on the common file systems
_LONGEST_PATH = 4000


def folder(name: str, text: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the absolute path that a text stands for, ~ and ~user expanded; nothing is touched.

    Args:
      name: what the error calls it: a flag, or an environment variable.
      text: the path.

    Raises:
      UsageError: it is blank or too long, or its user does not exist.
    """
    given = os.fspath(text)

    def error(expected: str) -> UsageError:
        return UsageError(f"{name}: got {fields.shown(given)}; expected {expected}")

    if not given.strip() or "\0" in given:
        raise error("a folder, not blank")
    try:
        path = pathlib.Path(given).expanduser().absolute()
    except RuntimeError as cause:
        raise error("a folder below the home of a user who exists") from cause
    longest = max(len(os.fsencode(part)) for part in path.parts)
    if longest > _LONGEST_NAME or len(os.fsencode(path)) > _LONGEST_PATH:
        raise error(f"names of at most {_LONGEST_NAME} bytes, {_LONGEST_PATH} in all")
    return path


def workdir(text: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the folder of a run, which may be created later; nothing is touched.

    Raises:
      UsageError: as :func:`folder`.
      StorageError: what is there is no folder, or nothing can be written there.
    """
    path = folder("workdir", text)
    try:
        there = next(place for place in (path, *path.parents) if place.exists())
    except OSError as error:
        raise StorageError(f"workdir {path}: {error.strerror}") from error
    if not there.is_dir():
        raise StorageError(f"workdir {path}: got {there}, a file; expected a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(f"workdir {path}: got {there}, which cannot be written; expected one")
    return path


def cache() -> pathlib.Path:
    """Returns the folder for what was decoded, converted or trained once.

    That is $KERNELGRAD_CACHE, else $XDG_CACHE_HOME/kernelgrad, else ~/.cache/kernelgrad. A relative
    path would mean another folder with every change of directory, and fill the present one: it is
    refused in the first, and no path for the second, by its own rules.

    Raises:
      UsageError: $KERNELGRAD_CACHE is relative, or no such path (:func:`folder`).
    """
    own = os.environ.get("KERNELGRAD_CACHE")
    if own:
        if own.strip() and not os.path.isabs(own) and not own.startswith("~"):
            raise UsageError(
                f"KERNELGRAD_CACHE: got {fields.shown(own)}; expected an absolute path, or one "
                "that starts with ~"
            )
        return folder("KERNELGRAD_CACHE", own)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return folder("HOME", f"{base if os.path.isabs(base) else '~/.cache'}/kernelgrad")


def settle_matplotlib() -> None:
    """Gives Matplotlib a temporary folder where it can neither read nor write its own."""
    try:
        home = os.environ.get("XDG_CONFIG_HOME") or pathlib.Path.home() / ".config"
        own = pathlib.Path(os.environ.get("MPLCONFIGDIR") or pathlib.Path(home, "matplotlib"))
        own.mkdir(parents=True, exist_ok=True)
        settings = own / "matplotlibrc"
        usable = os.access(own, os.R_OK | os.W_OK | os.X_OK)
        usable = usable and (not settings.exists() or os.access(settings, os.R_OK))
    except (OSError, RuntimeError):
        usable = False
    if not usable:
        temporary = tempfile.mkdtemp(prefix="matplotlib-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        os.environ["MPLCONFIGDIR"] = temporary
