"""The shell around every binary: flags in, one line an error, an exit code out."""

import difflib
import functools
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags, logging

from experiments.data import DataError
from experiments.errors import DivergenceError, StorageError, Terminated, UsageError

_DEBUG = flags.DEFINE_bool(
    "debug", False, "Show the traceback of every error and all library logs."
)


def main(run: Callable[[Any], Any], make_config: Callable[[], Any]) -> NoReturn:
    """Runs an experiment binary: parses the flags, calls `run(make_config())`, exits.

    An expected error is one line on stderr, ``kernelgrad: error: ...``. Any other exception is a
    bug and keeps its traceback; with --debug every error shows one.

    Args:
      run: the experiment; its result is ignored.
      make_config: reads the absl flags into a frozen dataclass; a ValueError is a usage error.

    Raises:
      SystemExit: 0 success; 1 StorageError or OSError; 2 UsageError, a bad flag or bad data;
        3 DivergenceError; 130 Ctrl-C; 143 Terminated.
    """
    sys.exit(app.run(functools.partial(_run, run, make_config), flags_parser=_parse_flags))


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        positional = flags.FLAGS(argv)[1:]
        if positional:
            raise flags.Error(f"argument: got {positional[0]!r}; expected flags only, see --help")
    except SystemExit:  # --help, which absl ends with 1
        sys.exit(0)
    except flags.UnrecognizedFlagError as error:
        nearest = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1, cutoff=0)[0]
        message = f"flag: got --{error.flagname}; expected a known flag such as --{nearest}"
        sys.exit(_report(message, 2))
    except flags.Error as error:
        sys.exit(_report(error, 2))
    if flags.FLAGS["verbosity"].using_default_value and not _DEBUG.value:
        flags.FLAGS.verbosity = logging.FATAL  # Orbax logs pages about errors that it also raises
    return positional


def _run(run: Callable[[Any], Any], make_config: Callable[[], Any], _: list[str]) -> int:
    try:
        try:
            config = make_config()
        except ValueError as error:
            raise UsageError(str(error)) from error
        run(config)
    except KeyboardInterrupt:
        return _report("interrupted; run the same command again to resume", 130)
    except Exception as error:
        code = _exit_code(error)
        if _DEBUG.value:
            traceback.print_exc()
        if code is None:
            raise
        return _report(error, code)
    return 0


def _exit_code(error: Exception) -> int | None:
    for kinds, code in (
        ((UsageError, DataError), 2),
        ((StorageError, OSError), 1),
        (DivergenceError, 3),
        (Terminated, 143),
    ):
        if isinstance(error, kinds):
            return code
    return None


def _report(error: Exception | str, code: int) -> int:
    print("kernelgrad: error:", " ".join(str(error).split()), file=sys.stderr, flush=True)
    return code
