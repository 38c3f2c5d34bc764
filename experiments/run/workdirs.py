"""Everything a run needs to survive: its folder, lock, metrics and checkpoints.

A work folder holds::

    config.json         the config of the run
    run_id              a random number, by which its checkpoints know the run
    metrics.jsonl       one JSON object a line, each with its "step"
    checkpoints/<step>  see :mod:`experiments.run.checkpoints`
    samples/            pictures
    lock                pid and host of the process that owns the folder

A loop that resumes bit for bit restores before its first `Workdir.log`, logs step s before it
saves step s, and keeps clock times out of the metrics.

Nothing outside of the folder is written or removed: links, fifos and the like where a run keeps its
own files are refused by name.
"""

import hashlib
import itertools
import os
import pathlib
import secrets
import shutil
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

import jax.numpy as jnp
import numpy as np

from experiments.run import checkpoints, cluster, configs, files, places, records
from experiments.run.checkpoints import Origin
from experiments.run.errors import DivergenceError, StorageError, UsageError, line
from kernelgrad.types import PyTree

Watch = Callable[[int, Mapping[str, float]], None]

_KEPT_CHECKPOINTS = 3
_MIN_FREE_BYTES = 16 * 2**20
_RUN_ID = "run_id"


def _warn(message: str) -> None:
    print(line("warning", message), file=sys.stderr, flush=True)


class Workdir:
    """The folder of one run, owned by one process from creation to `close`.

    Of several processes the first owns it; in the others nothing is read or written there.

    Attributes:
      path: the folder, absolute.
      is_mine: whether this process owns it; else there is no history and nothing to restore.
      run_id: of the run that it holds; blank in other processes.
      watches: what else gets each record that is logged, as (step, metrics).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: Any,
        *,
        free_fields: Collection[str] = (),
        allow_config_change: bool = False,
    ):
        """Creates or takes over the folder, before anything is compiled.

        Args:
          path: the folder; missing parents are created.
          config: dataclass instance of JSON values; stored as config.json.
          free_fields: fields that may differ from those of an earlier run, such as num_steps.
          allow_config_change: let every field differ; config.json follows in `restore`, once the
            state is found to fit the new config.

        Raises:
          StorageError: the folder cannot be created or written, has no space, or is in use.
          UsageError: it holds a run with another config.
        """
        self.path = places.folder("workdir", path)
        self._checkpoints = self.path / "checkpoints"
        self._metrics = self.path / "metrics.jsonl"
        self.is_mine = cluster.is_first()
        self.run_id = ""
        self.watches: list[Watch] = []
        self._lock = -1
        self._changed_config: bytes | None = None
        if not self.is_mine:
            return
        try:
            with files.storage(f"workdir {self.path}"):
                self._take_over()
                self._store_config(config, free_fields, allow_config_change)
        except BaseException:
            self.close()
            raise
        self.run_id = _run_id(self.path)

    def __enter__(self) -> Self:
        """Returns the folder itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the folder back."""
        self.close()

    def close(self) -> None:
        """Releases the lock; the folder may then be taken by another process."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def samples(self) -> pathlib.Path:
        """The folder of pictures."""
        return self.below("samples")

    def below(self, name: str) -> pathlib.Path:
        """Returns the folder of a part of the run, such as "kl/seed0", created if missing.

        Raises:
          StorageError: it cannot be created, or a link is on the way.
        """
        with files.storage(str(self.path / name)):
            return files.folder(self.path, name)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one record to metrics.jsonl; it is on the disk when this returns.

        Args:
          step: the step that the metrics belong to.
          metrics: scalars by name, functions of config and step only; a value that is not
            finite is stored as null.

        Raises:
          StorageError: the record could not be written.
        """
        self.log_all({step: metrics})

    def log_all(self, by_step: Mapping[int, Mapping[str, float]]) -> None:
        """Appends records of several steps, as :meth:`log` does one, at the cost of one."""
        if self.is_mine:
            lines = "".join(records.line(step, metrics) for step, metrics in by_step.items())
            with files.storage(str(self._metrics)):
                files.append(self._metrics, lines.encode())
            for watch, (step, metrics) in itertools.product(self.watches, by_step.items()):
                watch(step, metrics)

    def history(self) -> list[dict[str, float]]:
        """Returns every record of metrics.jsonl, oldest first; null becomes nan.

        Raises:
          StorageError: a line that is not the last one is damaged, or the file is no regular one.
        """
        return list(records.parsed(self._metrics)) if self.is_mine else []

    def write_bytes(self, name: str, content: bytes) -> pathlib.Path:
        """Writes a file in one piece: a reader sees the old content or the new, never a part.

        Args:
          name: path below the folder, such as "samples/000100.png".
          content: the bytes.

        Returns:
          The path of the file.

        Raises:
          StorageError: the file could not be written.
        """
        target = self.path / name
        if self.is_mine:
            with files.storage(str(target)):
                files.folder(self.path, str(pathlib.PurePath(name).parent))
                files.replace(target, content)
        return target

    def save(self, step: int, state: PyTree) -> None:
        """Stores a checkpoint, and returns once it is on the disk, read back and equal.

        The folder checkpoints/<step> appears in one rename, so that a kill leaves a whole
        checkpoint or none. A step that is already there is kept: the state is a function of
        config and step. The newest three checkpoints stay.

        Args:
          step: the number of steps behind this state.
          state: pytree of non-empty jax or numpy arrays, whole on this process and without a
            device axis. Typed keys are stored as their key data.

        Raises:
          DivergenceError: a leaf has an entry that is not finite; nothing is written.
          StorageError: the checkpoint could not be written, or a newer one is there.
        """
        if not self.is_mine:
            return
        leaves = checkpoints.named_leaves(state)
        specs = {name: checkpoints.spec(leaf) for name, leaf in leaves.items()}
        arrays = {name: checkpoints.to_host(leaf) for name, leaf in leaves.items()}
        for name, array in arrays.items():
            if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array).all():
                raise self.divergence(step, f"leaf {name} of the state is not finite")
        target = self._checkpoints / str(step)
        newest = max(checkpoints.steps(self._checkpoints), default=-1)
        if newest > step:
            raise StorageError(
                f"{target}: got a state older than checkpoint {newest}; "
                "expected a run that restores first. Resume it or use another workdir"
            )
        if newest == step:
            if checkpoints.damage(target, self.run_id, step) is None:
                return
            self._set_aside(step)
        size = sum(array.nbytes for array in arrays.values()) / 1e6
        free = shutil.disk_usage(self.path).free / 1e6
        scratch = self._checkpoints / f"tmp-{step}"
        metrics = records.content(self._metrics)
        origin = Origin(self.run_id, step, len(metrics), hashlib.sha256(metrics).hexdigest())
        try:
            with files.storage(f"{target}: could not save {size:.1f} MB with {free:.1f} MB free"):
                checkpoints.write(scratch, origin, specs, arrays)
                os.rename(scratch, target)
                files.sync(self._checkpoints)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        with files.storage(str(self._checkpoints)):
            for old in checkpoints.steps(self._checkpoints)[:-_KEPT_CHECKPOINTS]:
                self._remove(self._checkpoints / str(old))

    def restore(
        self, abstract_state: PyTree, *, cut_metrics: bool = True
    ) -> tuple[int, PyTree] | None:
        """Returns the newest checkpoint that verifies, and cuts the metrics back to its step.

        A damaged checkpoint, or one of another run or step, is skipped with a warning and set aside
        as <step>.damaged.

        Args:
          abstract_state: the expected state, of arrays or `jax.ShapeDtypeStruct`. Leaves come
            back as numpy arrays where it has numpy arrays, else as jax arrays.
          cut_metrics: False for who reads the state alone; the metrics are then not looked at.

        Returns:
          (step, state), or None where no checkpoint was ever finished.

        Raises:
          UsageError: the checkpoint is of another model; the first differing leaf is named.
          StorageError: there are checkpoints and none of them verifies, or the metrics are not
            those that the checkpoint was saved with.
        """
        if not self.is_mine:
            return None
        damaged = []
        for step in reversed(checkpoints.steps(self._checkpoints)):
            damage = checkpoints.damage(self._checkpoints / str(step), self.run_id, step)
            if damage is None:
                break
            damaged.append(step)
            _warn(f"skipped checkpoint {step}: {damage}")
        else:
            if any(self._checkpoints.glob("[0-9]*")):
                raise StorageError(
                    f"{self._checkpoints}: got no checkpoint that verifies; expected at least one. "
                    "Restore the folder from a copy, or use another workdir to start anew"
                )
            if cut_metrics and list(records.parsed(self._metrics)):
                self._replace_metrics(b"")
                _warn(f"{self.path}: no checkpoint yet, so its metrics start anew")
            return None
        newest = self._checkpoints / str(step)
        state = checkpoints.read(newest, abstract_state)
        self._settle_config()
        if cut_metrics:
            self._replace_metrics(records.until(self._metrics, checkpoints.origin_of(newest)))
        for damaged_step in damaged:
            self._set_aside(damaged_step)
        return step, state

    def divergence(self, step: int, reason: str) -> DivergenceError:
        """Returns the error that stops a run, with the step and the last good checkpoint."""
        newest = (
            max(checkpoints.steps(self._checkpoints), default="none")
            if self.is_mine
            else "that of process 0"
        )
        last = newest if isinstance(newest, str) else self._checkpoints / str(newest)
        return DivergenceError(f"step {step}: {reason}. Last good checkpoint: {last}")

    def _take_over(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.path).free
        if free < _MIN_FREE_BYTES:
            raise StorageError(
                f"workdir {self.path}: got {free / 1e6:.1f} MB of free space; "
                f"expected at least {_MIN_FREE_BYTES / 1e6:.0f} MB"
            )
        self._lock = files.lock(self.path)
        files.folder(self.path, self._checkpoints.name)
        for leftover in self._checkpoints.glob("tmp-*"):
            files.remove(leftover)
        if files.kind(self.path / _RUN_ID) is None:
            with files.storage(str(self.path / _RUN_ID)):
                files.replace(self.path / _RUN_ID, f"{secrets.token_hex(8)}\n".encode())

    def _store_config(self, config: Any, free_fields: Collection[str], allow_change: bool) -> None:
        content = configs.content(config)
        file = self.path / "config.json"
        if files.kind(file) is None:
            if checkpoints.steps(self._checkpoints):
                raise StorageError(
                    f"{file}: got no such file beside checkpoints; expected the run's config. "
                    "Restore it from a copy, or use another workdir"
                )
        else:
            with files.storage(str(file)):
                changes = configs.changes(file, config, free_fields)
            if changes and not allow_change:
                raise UsageError(
                    f"workdir {self.path} holds a run with another config: {'; '.join(changes)}. "
                    "Use the same flags, another workdir, or allow the change of config"
                )
            if changes and checkpoints.steps(self._checkpoints):
                self._changed_config = content  # until a state fits it
                return
        with files.storage(str(file)):
            files.replace(file, content)

    def _settle_config(self) -> None:
        if self._changed_config is not None:
            with files.storage(str(self.path / "config.json")):
                files.replace(self.path / "config.json", self._changed_config)
            self._changed_config = None

    def _remove(self, folder: pathlib.Path) -> None:
        doomed = folder.with_name(f"tmp-{folder.name}")
        os.rename(folder, doomed)
        files.remove(doomed)

    def _replace_metrics(self, content: bytes) -> None:
        if files.kind(self._metrics) is not None:
            with files.storage(str(self._metrics)):
                files.replace(self._metrics, content)

    def _set_aside(self, step: int) -> None:
        folder = self._checkpoints / str(step)
        grave = folder.with_name(f"{step}.damaged")
        with files.storage(str(folder)):
            if files.kind(grave) is not None:
                self._remove(grave)
            os.rename(folder, grave)


def read_newest(path: pathlib.Path, abstract_state: PyTree) -> tuple[int, PyTree]:
    """Returns step and state of a run's newest checkpoint that verifies, as `Workdir.restore` does.

    The folder is neither locked nor written, and may belong to a run that goes on.

    Raises:
      UsageError: the checkpoint is of another model.
      StorageError: none verifies, or the folder cannot be read.
    """
    with files.storage(str(path / "checkpoints")):
        return checkpoints.newest(path / "checkpoints", _run_id(path), abstract_state)


def read_verified(path: pathlib.Path, abstract_state: PyTree) -> dict[int, PyTree]:
    """Returns the states of all of a run's checkpoints that verify, by step.

    Nothing is locked or written, as by :func:`read_newest`, whose errors are raised.
    """
    with files.storage(str(path / "checkpoints")):
        return checkpoints.verified(path / "checkpoints", _run_id(path), abstract_state)


def _run_id(path: pathlib.Path) -> str:
    with files.storage(str(path / _RUN_ID)):
        return files.read(path / _RUN_ID, 100).decode(errors="replace").strip()
