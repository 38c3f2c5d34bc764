"""The runs behind a page of results: command lines as the page has them, at three scales."""

import json
import os
import pathlib
import shlex
from collections.abc import Callable, Sequence
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from experiments.run import files
from experiments.run.errors import StorageError
from experiments.run.workdirs import Workdir
from experiments.sweeps import children

SCALES = ("smoke", "cpu", "full")
_ROOT, _DATA = "runs/", "--data_dir"  # on a page
_FINISHED, _MOST_BYTES, _MOST_VALUES = "finished.json", 2**20, 10**4


class Run(NamedTuple):
    """One command of a page.

    Attributes:
      command: what follows "python -m experiments." there, with the work folder below runs/.
      minutes: that it takes about, at the scale cpu on two cores.
      leaves: patterns of the tables (.md) and pictures below its folder that the report shows.
      smoke: flags that take the place of its own at that scale, where it needs no data; None: it
        is left out there.
      full: the command at that scale; None: the same as on the page.
      needs: data sets that are not in the checkout, where it takes --data_dir.
    """

    command: str
    minutes: float
    leaves: tuple[str, ...] = ()
    smoke: str | None = None
    full: str | None = None
    needs: tuple[str, ...] = ()


class Step(NamedTuple):
    """A run at one scale.

    Attributes:
      run: what it is.
      binary: its name.
      flags: by name, each whole, such as {"--seed": "--seed=0"}.
    """

    run: Run
    binary: str
    flags: dict[str, str]

    @property
    def command(self) -> str:
        """The command as the page would have it."""
        return shlex.join([self.binary, *self.flags.values()])

    @property
    def folder(self) -> str:
        """The name of its folder, below the work folder."""
        return self.flags["--workdir"].partition(_ROOT)[2]

    @property
    def needs(self) -> tuple[str, ...]:
        """The data sets that it reads from --data_dir."""
        return self.run.needs if _DATA in self.flags else ()

    def arguments(self, root: pathlib.Path, data_dir: str | None) -> list[str]:
        """Returns its flags for a work folder and a folder of data."""
        own = {name: text.replace(f"={_ROOT}", f"={root}/") for name, text in self.flags.items()}
        if own.pop(_DATA, None) and data_dir is not None:
            own[_DATA] = f"{_DATA}={pathlib.Path(data_dir).expanduser().absolute()}"
        return list(own.values())


def of_seed(name: str, seed: int) -> str:
    """Returns the folder of a run that is the same under several seeds, of one of them."""
    return f"{name}_seed{seed}" if seed else name


def steps(runs: Sequence[Run], scale: str) -> list[Step]:
    """Returns the runs of a scale, in their order."""
    found = []
    for run in runs:
        if scale == "smoke" and run.smoke is None:
            continue
        binary, *given = shlex.split(run.full or run.command if scale == "full" else run.command)
        instead = (run.smoke or "").split() if scale == "smoke" else []
        flags = {text.partition("=")[0]: text for text in (*given, *instead)}
        if scale == "smoke":
            flags.pop(_DATA, None)
        found.append(Step(run, binary, flags))
    return found


def finished(folder: Workdir, all_steps: Sequence[Step]) -> list[Step]:
    """Returns the steps that have come to their end in a work folder.

    Raises:
      StorageError: the list of them is damaged.
    """
    path = folder.path / _FINISHED
    if files.kind(path) is None:
        return []
    try:
        with files.storage(str(path)):
            known = files.parse_json(files.read(path, _MOST_BYTES), _MOST_VALUES)
        if not isinstance(known, list):
            raise ValueError(f"a {type(known).__name__}")
    except ValueError as error:
        raise StorageError(f"{path}: got {error}; expected a list. Remove it") from error
    return [step for step in all_steps if step.command in known]


def perform(
    folder: Workdir,
    all_steps: Sequence[Step],
    data_dir: str | None,
    look: Callable[[], Any],
) -> dict[str, str]:
    """Runs what has not finished, one after the other, and returns what failed, with its last line.

    Args:
      folder: of all runs; logs/ below it has what they print.
      all_steps: in an order in which a run comes before its readers.
      data_dir: where the data sets' files are.
      look: is called twice a second; where it raises, the run that is going is stopped.
    """
    done, failed = finished(folder, all_steps), dict[str, str]()
    logs = folder.below("logs")
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(folder.below("compiled")), **os.environ}
    with tqdm(total=len(all_steps), initial=len(done), unit="run") as bar:
        for number, step in enumerate(all_steps, start=1):
            if step in done:
                continue
            bar.set_description(f"{step.binary} {step.folder}")
            with _log(logs / f"{number:02d}_{step.binary}.txt") as log:
                arguments = step.arguments(folder.path, data_dir)
                ended = children.run(step.binary, arguments, look, log=log, environment=compiled)
            if ended.code == 0:
                done.append(step)
                known = json.dumps([step.command for step in done], indent=2)
                folder.write_bytes(_FINISHED, f"{known}\n".encode())
            else:
                failed[step.command] = f"exit code {ended.code}: {ended.said}"
            bar.update()
    return failed


def _log(path: pathlib.Path) -> IO[bytes]:
    with files.storage(str(path)):
        return os.fdopen(files.own(path, os.O_RDWR | os.O_TRUNC), "w+b")
