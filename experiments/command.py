"""The shell around every binary: flags in, one line an error, an exit code out."""

import dataclasses
import difflib
import functools
import sys
import threading
import traceback
from collections.abc import Callable, Collection
from typing import Any, NoReturn

from absl import app, flags, logging

from experiments.data import DataError
from experiments.errors import DivergenceError, StorageError, Terminated, UsageError, line
from experiments.signals import Signals

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
        3 DivergenceError; 129, 130 and 143 SIGHUP, SIGINT and SIGTERM. Where a run is not in a
        loop that saves (:class:`experiments.signals.Signals`), a signal ends it at once.
    """
    sys.exit(app.run(functools.partial(_run, run, make_config), flags_parser=_parse_flags))


def main_in_workdir(run: Callable[..., Any], make_config: Callable[[], Any]) -> NoReturn:
    """Runs a binary whose `run` takes its config, `workdir` and `data_dir`, both of them flags.

    Args:
      run: run(config, workdir=..., data_dir=...).
      make_config: as in :func:`main`.
    """
    flags.mark_flag_as_required("workdir")
    main(
        lambda config: run(config, workdir=flags.FLAGS.workdir, data_dir=flags.FLAGS.data_dir),
        make_config,
    )


def values_of(config_class: type, *, only: Collection[str] = ()) -> dict[str, Any]:
    """Returns the flags named like the fields of a config, lists as tuples.

    Args:
      config_class: a dataclass with a flag for each of its fields. Items of a list are what its
        default has, numbers or strings.
      only: modules whose other flags are not this binary's, although it imports them.

    Raises:
      UsageError: one of those flags was given, or an item of a list is no number.
    """
    fields = {field.name: field.default for field in dataclasses.fields(config_class)}
    modules = flags.FLAGS.flags_by_module_dict()
    for flag in (flag for module in only for flag in modules.get(module, [])):
        if flag.present and flag.name not in {*fields, "workdir", "data_dir"}:
            raise UsageError(f"{flag.name}: got a flag of experiments.train; see --help")
    return {name: _value(name, default) for name, default in fields.items()}


def _value(name: str, default: Any) -> Any:
    value = flags.FLAGS[name].value
    if not isinstance(value, list):
        return value
    kind = type(default[0]) if isinstance(default, tuple) and default else str
    try:
        return tuple(kind(item) for item in value)
    except ValueError:
        numbers = "integers" if kind is int else "numbers"
        example = ",".join(map(str, default))
        raise UsageError(f"{name}: got {value}; expected {numbers} such as {example}") from None


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
    if not _DEBUG.value:
        sys.excepthook = _of_main_thread
    try:
        try:
            config = make_config()
        except ValueError as error:
            raise UsageError(str(error)) from error
        with Signals(at_once=True):
            run(config)
    except Terminated as error:
        return _report(error, 128 + error.number)
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


def _of_main_thread(*error: Any) -> None:
    """Shows an uncaught error, unless it is one of a library's thread.

    Where a disk is full, those of the checkpoint library print tracebacks, late, beside the error
    that is raised and reported.
    """
    if threading.current_thread() is threading.main_thread():
        sys.__excepthook__(*error)


def _exit_code(error: Exception) -> int | None:
    for kinds, code in (
        ((UsageError, DataError), 2),
        ((StorageError, OSError), 1),
        (DivergenceError, 3),
    ):
        if isinstance(error, kinds):
            return code
    return None


def _report(error: BaseException | str, code: int) -> int:
    print(line("error", error), file=sys.stderr, flush=True)
    return code
