"""Processes of the binaries, each killed when the one that started it ends."""

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NamedTuple

_CHECKOUT = pathlib.Path(__file__).parents[2]
_PROGRAM = """
import ctypes, importlib, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
importlib.import_module(f"experiments.{sys.argv.pop(1)}").main()
"""
_PAUSE = 0.5  # seconds between two looks


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
      code: its exit code.
      said: the last line that it wrote.
    """

    code: int
    said: str


def paths() -> str:
    """Returns the PYTHONPATH by which a process imports from this checkout."""
    return os.pathsep.join(filter(None, [str(_CHECKOUT), os.environ.get("PYTHONPATH", "")]))


def run(
    binary: str,
    arguments: Sequence[str],
    look: Callable[[], Any],
    *,
    log: IO[Any] | None = None,
    here: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Runs a binary to its end; where `look` raises, the process is told to stop and waited for.

    Args:
      binary: such as train.
      arguments: its flags.
      look: is called twice a second.
      log: takes all that it writes; None: its errors alone are read.
      here: folder from which relative paths of the flags start; None: the present one.
      environment: variables that it has besides.
    """
    with log or tempfile.TemporaryFile("w+b") as errors:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", _PROGRAM, binary, *arguments],
            cwd=here,
            env={**os.environ, **(environment or {}), "PYTHONPATH": paths()},
            stdout=errors if log else subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for the one that started it
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(_PAUSE)
                except subprocess.TimeoutExpired:
                    look()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    return Ended(process.returncode, said[-1].strip() if said else "")
