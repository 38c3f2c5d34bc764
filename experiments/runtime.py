"""Everything a run needs to survive: its folder, lock, metrics, checkpoints and signals.

A work folder holds::

    config.json         the config of the run
    metrics.jsonl       one JSON object a line, each with its "step"
    checkpoints/<step>  state/ (Orbax), leaves.json (names, dtypes, shapes) and SHA256SUMS
    samples/            pictures
    lock                pid and host of the process that owns the folder

A loop that resumes bit for bit restores before its first `Workdir.log`, logs step s before it
saves step s, and keeps clock times out of the metrics.
"""

import dataclasses
import fcntl
import json
import math
import os
import pathlib
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from experiments import checkpoints, files, places
from experiments.errors import DivergenceError, StorageError, UsageError
from kernelgrad.types import PyTree

_KEPT_CHECKPOINTS = 3
_MIN_FREE_BYTES = 16 * 2**20
_LOCK_PATIENCE_SECONDS = 1.0  # a killed owner may take a moment to vanish


def _warn(message: str) -> None:
    print("kernelgrad: warning:", message, file=sys.stderr, flush=True)


class Workdir:
    """The folder of one run, owned by one process from creation to `close`.

    With several processes, process 0 alone owns and writes the folder, and all restore from it.

    Attributes:
      path: the folder, absolute.
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
        self._writes = jax.process_index() == 0
        self._lock = -1
        self._changed_config: bytes | None = None
        if self._writes:
            try:
                with files.storage(f"workdir {self.path}"):
                    self._take_over()
                    self._store_config(config, free_fields, allow_config_change)
            except BaseException:
                self.close()
                raise
        multihost_utils.sync_global_devices("workdir")

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
        folder = self.path / "samples"
        with files.storage(str(folder)):
            folder.mkdir(exist_ok=True)
        return folder

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one record to metrics.jsonl; it is on the disk when this returns.

        Args:
          step: the step that the metrics belong to.
          metrics: scalars by name, functions of config and step only; a value that is not
            finite is stored as null.

        Raises:
          StorageError: the record could not be written.
        """
        if self._writes:
            values = {name: float(value) for name, value in metrics.items()}
            finite = {name: x if math.isfinite(x) else None for name, x in values.items()}
            line = json.dumps(dict(step=int(step), **finite), allow_nan=False) + "\n"
            with files.storage(str(self._metrics)), open(self._metrics, "ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())

    def history(self) -> list[dict[str, float]]:
        """Returns every record of metrics.jsonl, oldest first; null becomes nan.

        Raises:
          StorageError: a line that is not the last one is damaged.
        """
        return [
            {name: math.nan if value is None else value for name, value in record.items()}
            for _, record in self._records()
        ]

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
        if self._writes:
            with files.storage(str(target)):
                target.parent.mkdir(parents=True, exist_ok=True)
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
        if not self._writes:
            return
        leaves = checkpoints.named_leaves(state)
        specs = {name: checkpoints.spec(leaf) for name, leaf in leaves.items()}
        arrays = {name: checkpoints.to_host(leaf) for name, leaf in leaves.items()}
        for name, array in arrays.items():
            if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array).all():
                raise self.divergence(step, f"leaf {name} of the state is not finite")
        target = self._checkpoints / str(step)
        newest = max(self._steps(), default=-1)
        if newest > step:
            raise StorageError(
                f"{target}: got a state older than checkpoint {newest}; "
                "expected a run that restores first. Resume it or use another workdir"
            )
        if newest == step:
            if checkpoints.damage(target) is None:
                return
            self._set_aside(step)
        size = sum(array.nbytes for array in arrays.values()) / 1e6
        free = shutil.disk_usage(self.path).free / 1e6
        scratch = self._checkpoints / f"tmp-{step}"
        try:
            with files.storage(f"{target}: could not save {size:.1f} MB with {free:.1f} MB free"):
                checkpoints.write(scratch, specs, arrays)
                os.rename(scratch, target)
                files.sync(self._checkpoints)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        with files.storage(str(self._checkpoints)):
            for old in self._steps()[:-_KEPT_CHECKPOINTS]:
                self._remove(self._checkpoints / str(old))

    def restore(self, abstract_state: PyTree) -> tuple[int, PyTree] | None:
        """Returns the newest checkpoint that verifies, and cuts the metrics back to its step.

        A damaged checkpoint is skipped with a warning and set aside as <step>.damaged.

        Args:
          abstract_state: the expected state, of arrays or `jax.ShapeDtypeStruct`. Leaves come
            back as numpy arrays where it has numpy arrays, else as jax arrays.

        Returns:
          (step, state), or None where no checkpoint was ever finished.

        Raises:
          UsageError: the checkpoint is of another model; the first differing leaf is named.
          StorageError: there are checkpoints and none of them verifies.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self._steps()):
            damage = checkpoints.damage(self._checkpoints / str(step))
            if damage is None:
                break
            damaged[step] = damage
            _warn(f"skipped checkpoint {step}: {damage}")
        else:
            if any(self._checkpoints.glob("[0-9]*")):
                raise StorageError(
                    f"{self._checkpoints}: got no checkpoint that verifies; expected at least one. "
                    "Restore the folder from a copy, or use another workdir to start anew"
                )
            if self._cut_metrics(-1):
                _warn(f"{self.path}: no checkpoint yet, so its metrics start anew")
            return None
        state = checkpoints.read(self._checkpoints / str(step), abstract_state)
        self._settle_config()
        for damaged_step in damaged:
            self._set_aside(damaged_step)
        self._cut_metrics(step)
        return step, state

    def divergence(self, step: int, reason: str) -> DivergenceError:
        """Returns the error that stops a run, with the step and the last good checkpoint."""
        newest = max(self._steps(), default=None)
        last = "none" if newest is None else self._checkpoints / str(newest)
        return DivergenceError(f"step {step}: {reason}. Last good checkpoint: {last}")

    def _take_over(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.path).free
        if free < _MIN_FREE_BYTES:
            raise StorageError(
                f"workdir {self.path}: got {free / 1e6:.1f} MB of free space; "
                f"expected at least {_MIN_FREE_BYTES / 1e6:.0f} MB"
            )
        self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + _LOCK_PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    owner = os.pread(self._lock, 200, 0).decode(errors="replace").strip()
                    raise StorageError(
                        f"workdir {self.path}: got a folder in use by {owner}; "
                        "expected a free one. Stop that process or use another workdir"
                    ) from None
                time.sleep(0.05)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._checkpoints.mkdir(exist_ok=True)
        for leftover in self._checkpoints.glob("tmp-*"):
            shutil.rmtree(leftover)

    def _store_config(self, config: Any, free_fields: Collection[str], allow_change: bool) -> None:
        fields = _as_json(dataclasses.asdict(config))
        content = (json.dumps(fields, indent=2) + "\n").encode()
        file = self.path / "config.json"
        if file.exists():
            try:
                stored = {**_defaults(config), **json.loads(file.read_text())}
            except (ValueError, TypeError) as error:
                raise StorageError(f"{file}: got {error}; expected a JSON object") from error
            changes = [
                f"{name} was {json.dumps(stored.get(name))}, now {json.dumps(fields.get(name))}"
                for name in {**stored, **fields}
                if name not in free_fields and stored.get(name) != fields.get(name)
            ]
            if changes and not allow_change:
                raise UsageError(
                    f"workdir {self.path} holds a run with another config: {'; '.join(changes)}. "
                    "Use the same flags, another workdir, or allow the change of config"
                )
            if changes and self._steps():
                self._changed_config = content  # until a state fits it
                return
        files.replace(file, content)

    def _settle_config(self) -> None:
        if self._changed_config is not None:
            with files.storage(str(self.path / "config.json")):
                files.replace(self.path / "config.json", self._changed_config)
            self._changed_config = None

    def _steps(self) -> list[int]:
        names = [entry.name for entry in self._checkpoints.iterdir()]
        return sorted(int(name) for name in names if name.isdigit())

    def _remove(self, folder: pathlib.Path) -> None:
        doomed = folder.with_name(f"tmp-{folder.name}")
        os.rename(folder, doomed)
        shutil.rmtree(doomed)

    def _set_aside(self, step: int) -> None:
        if self._writes:
            folder = self._checkpoints / str(step)
            grave = folder.with_name(f"{step}.damaged")
            with files.storage(str(folder)):
                if grave.exists():
                    self._remove(grave)
                os.rename(folder, grave)

    def _records(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        with files.storage(str(self._metrics)):
            content = self._metrics.read_bytes() if self._metrics.exists() else b""
        *lines, _ = content.split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                int(record["step"])
            except (ValueError, TypeError, KeyError) as error:
                raise StorageError(
                    f"{self._metrics}:{number}: got {line[:40]!r}; expected a JSON object with a "
                    "step. Delete this line"
                ) from error
            yield line + b"\n", record

    def _cut_metrics(self, step: int) -> int:
        lines = [line for line, record in self._records() if record["step"] <= step]
        with files.storage(str(self._metrics)):
            size = self._metrics.stat().st_size if self._metrics.exists() else 0
            if self._writes and size:
                files.replace(self._metrics, b"".join(lines))
        return size - sum(map(len, lines))


class Signals:
    """Turns the first SIGTERM into a request to stop; a second one exits at once with 143.

    The loop reads `stop` once a step (it may change between two looks); where it is set, it saves
    and raises `Terminated`. A thread hears the signals, so that the second one works during a
    long compilation too. Main thread only.

    Attributes:
      stop: whether SIGTERM has arrived.
    """

    def __init__(self) -> None:
        self.stop = False

    def __enter__(self) -> Self:
        """Starts to listen."""
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        self._old_handler = signal.signal(signal.SIGTERM, lambda *_: None)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the signal back to its earlier handler."""
        signal.signal(signal.SIGTERM, self._old_handler)
        signal.set_wakeup_fd(self._old_fd)
        self._mouth.close()
        self._thread.join()
        self._ear.close()

    def _listen(self) -> None:
        while byte := self._ear.recv(1):
            if byte[0] == signal.SIGTERM:
                if self.stop:
                    os._exit(143)
                self.stop = True


def _as_json(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields as they come back from a file."""
    return dict(json.loads(json.dumps(fields, default=str)))


def _defaults(config: Any) -> dict[str, Any]:
    """Returns the defaults of a config: what a run had in fields that came after it."""
    fields = dataclasses.fields(config)
    known = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    return _as_json(known)
