"""A library that aborts the process: in the words and with the exit code that it means.

JAX's coordination service calls abort() where another process is lost, on a thread of its own and
after pages on stderr. No Python runs then, but a handler of SIGABRT in C does.
"""

import ctypes
import os
import signal
import sys
import tempfile
from typing import IO, NamedTuple

from experiments.run import signals

_OF_JAX = b"JAX distributed service"  # in what its service says before it ends a process
_LAST_BYTES = 2**16  # of what libraries said before


class _Meaning(NamedTuple):
    """What an abort by JAX's service means at present; blank words: nothing is said."""

    code: int
    words: str


_meaning = _Meaning(128 + signal.SIGABRT, "")
_log: IO[bytes] | None = None  # of what libraries print


def mean(code: int, words: str) -> None:
    """Has JAX's service end the process by this exit code and these words, from now on."""
    global _meaning
    _meaning = _Meaning(code, words)
    _signal(signal.SIGABRT, _HANDLER)


def keep_from_sight() -> None:
    """Sends what libraries print to a file without a name; Python prints where it did."""
    global _log
    _log = tempfile.TemporaryFile()  # noqa: SIM115 - until the process ends
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        getattr(sys, name).flush()
        stream = os.fdopen(os.dup(descriptor), "w", buffering=1, errors="backslashreplace")
        setattr(sys, name, stream)
        os.dup2(_log.fileno(), descriptor)


def _aborted(_: int) -> None:
    """Ends the process, on the thread that aborts it; an abort that is not JAX's shows its log."""
    if _log is not None:
        end = os.fstat(_log.fileno()).st_size
        said = os.pread(_log.fileno(), _LAST_BYTES, max(0, end - _LAST_BYTES))
        if _OF_JAX not in said:
            os.write(sys.stderr.fileno(), said)
            os._exit(128 + signal.SIGABRT)
    signals.end(_meaning.words, _meaning.code)


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_HANDLER = _Handler(_aborted)
_signal = ctypes.CDLL(None).signal
_signal.argtypes, _signal.restype = [ctypes.c_int, _Handler], ctypes.c_void_p
