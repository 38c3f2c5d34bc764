"""The shell around every binary: flags in, one line an error, an exit code out."""

import contextlib
import dataclasses
import difflib
import inspect
import os
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
from absl import flags, logging

from experiments.run import cluster, fields, places, unread
from experiments.run.errors import (
    DataError,
    DivergenceError,
    StorageError,
    Terminated,
    UsageError,
    line,
)
from experiments.run.signals import Signals

Given = dict[str, Any]
_PLATFORMS = {"cuda": "gpu", "rocm": "gpu"}
_INDENT: dict[str, Any] = {"initial_indent": " " * 6, "subsequent_indent": " " * 6}


@dataclasses.dataclass(frozen=True)
class Common:
    """Flags of every binary."""

    debug: bool = fields.switch(False, "Show the traceback of every error and all library logs.")
    help: bool = fields.switch(False, "Show this help.")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the data are, and where a run is stored."""

    workdir: str = fields.workdir()
    data_dir: str | None = fields.data_dir()


def main(start: Callable[[Given], Any], *config_classes: type) -> NoReturn:
    """Runs an experiment binary: parses the flags, calls `start` with what they say, exits.

    The flags are the settings of the classes (:mod:`experiments.run.fields`), --debug and --help.
    An expected error is one line on stderr, ``kernelgrad: error: ...``. Any other exception is a
    bug and keeps its traceback; with --debug every error shows one.

    Args:
      start: takes the values of the flags that were given, by name, each of them checked on its
        own; its result is ignored.
      config_classes: dataclasses of settings.

    Raises:
      SystemExit: 0 success; 1 StorageError or OSError; 2 UsageError, a bad flag or bad data;
        3 DivergenceError; 75 another process of the run is lost; 129, 130 and 143 SIGHUP, SIGINT
        and SIGTERM. Where a run is not in a loop that saves
        (:class:`experiments.run.signals.Signals`), a signal ends it at once.
    """
    try:
        given = _parse(sys.argv, (*config_classes, Common))
    except UsageError as error:
        sys.exit(_report(error, 2))
    if given.pop("help", False):
        print(_help(sys.modules[start.__module__].__doc__ or "", (*config_classes, Common)))
        sys.exit(0)
    debug = given.pop("debug", False)
    logging.use_absl_handler()
    if not debug:
        logging.set_verbosity(logging.FATAL)  # Orbax logs pages about errors that it also raises
    code = 1
    try:
        code = _run(start, given, debug)
    finally:
        cluster.leave(code)
    sys.exit(code)


def main_in_workdir(run: Callable[..., Any], config_class: type) -> NoReturn:
    """Runs a binary whose `run` takes its config, `workdir` and `data_dir`.

    A flag that nothing reads is refused.

    Args:
      run: run(config, workdir=..., data_dir=...).
      config_class: dataclass of its settings.
    """

    def start(given: Given) -> None:
        place = fields.pick(Place, given)
        config: Any = fields.pick(config_class, given)
        unread.refuse(given, [config])
        run(config, workdir=place.workdir, data_dir=place.data_dir)

    start.__module__ = run.__module__  # whose docstring --help shows
    main(start, config_class, Place)


def parse(arguments: list[str], *config_classes: type) -> Given:
    """Returns the values of the flags that are given, by name of the setting.

    A setting with an environment variable is given by that one too.

    Raises:
      UsageError: an unknown flag, or the value of one is of another type or out of its range.
    """
    return _parse(["", *arguments], config_classes)


class _Parser(flags.ArgumentParser):
    """Reads a flag by the rule of its setting; a UsageError passes through absl as it is."""

    def __init__(self, name: str, rule: fields.Rule) -> None:
        self.parse = lambda text: rule.parse(name, text)


def _parse(argv: list[str], config_classes: tuple[type, ...]) -> Given:
    values = flags.FlagValues()
    rules = {name: rule for one in config_classes for name, rule in fields.rules(one).items()}
    names = {name: rule.flag or name for name, rule in rules.items()}
    for name, rule in rules.items():
        parser = _Parser(name, rule)
        flag = flags.Flag(parser, None, names[name], None, rule.help, boolean=rule.kind is bool)
        flags.DEFINE_flag(flag, values)
    try:
        unknown = values(argv, known_only=True)[1:]
    except flags.Error as error:
        raise UsageError(str(error)) from error
    if unknown and unknown[0].startswith("-"):
        name = unknown[0].lstrip("-").partition("=")[0][:60]
        known = names.get(name)  # of the setting that has another flag
        nearest = known or difflib.get_close_matches(name, list(names.values()), n=1, cutoff=0)[0]
        raise UsageError(f"flag: got --{name}; expected a known flag such as --{nearest}")
    if unknown:
        got = fields.shown(unknown[0])
        raise UsageError(f"argument: got {got}; expected flags only, see --help")
    given = {name: values[flag].value for name, flag in names.items() if values[flag].present}
    for name, rule in rules.items():
        text = os.environ.get(rule.variable or "")
        if name not in given and text:
            given[name] = rule.parse(name, text)
    return given


def _check_environment() -> None:
    """Raises UsageError for a cache that is no path, or platforms that JAX does not run on."""
    places.cache()
    asked = os.environ.get("JAX_PLATFORMS", "")
    try:
        found = jax.default_backend()
    except (RuntimeError, AssertionError):  # the latter where a known platform has no device
        found = ""
    names = [name.strip() for name in asked.split(",") if name.strip()]
    if not found or (names and found not in {_PLATFORMS.get(name, name) for name in names}):
        raise UsageError(
            f"JAX_PLATFORMS: got {fields.shown(asked)}; expected platforms that JAX finds here, "
            f"such as {found or 'cpu'}"
        )


def _help(summary: str, config_classes: tuple[type, ...]) -> str:
    """Returns what a binary is for, and all its flags by group."""
    groups: dict[str, list[str]] = {}
    for one in config_classes:
        title = (inspect.getdoc(one) or one.__name__).splitlines()[0]
        for name, rule in fields.rules(one).items():
            of = f" For {', '.join(rule.of(name))}." if rule.of else ""
            default = f"; {rule.default_text} by default" if rule.default_text else ""
            text = f"{rule.help}{of} Expected: {rule.expected}{default}."
            lines = [f"  --{rule.flag or name}", textwrap.fill(text, 96, **_INDENT)]
            groups.setdefault(rule.group or title, []).extend(lines)
    shown = (line for title, lines in groups.items() for line in ("", title, "", *lines))
    return "\n".join([summary.strip(), *shown])


def _run(start: Callable[[Given], Any], given: Given, debug: bool) -> int:
    if not debug:
        sys.excepthook = _of_main_thread
    try:
        with Signals(at_once=True), _printed():
            cluster.join(fields.pick(cluster.Layout, given), debug=debug)
            _check_environment()
            start(given)
    except Terminated as error:
        return _report(error, 128 + error.number)
    except KeyboardInterrupt:
        return _report("interrupted; run the same command again to resume", 130)
    except Exception as error:
        code = _exit_code(error)
        if debug:
            traceback.print_exc()
        if code is None:
            cluster.end_if_lost(error)
            raise
        return _report(error, code)
    return 0


@contextlib.contextmanager
def _printed() -> Iterator[None]:
    """Raises StorageError where what is printed cannot be written, once and for all."""
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError as error:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, sys.stdout.fileno())  # lest Python tries, and fails, at its end
            raise StorageError(f"stdout: {error.strerror}") from error


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
