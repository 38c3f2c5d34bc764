"""Everything a run needs to survive: one-line errors, its folder, its checkpoints, its signals.

A work folder holds::

    config.json         the config of the run
    metrics.jsonl       one JSON object a line, each with its "step"
    checkpoints/<step>  state/ (Orbax), leaves.json (names, dtypes, shapes) and SHA256SUMS
    samples/            pictures
    lock                pid and host of the process that owns the folder

A loop that resumes bit for bit restores before its first `Workdir.log`, logs step s before it
saves step s, and keeps clock times out of the metrics.
"""

import contextlib
import dataclasses
import difflib
import fcntl
import functools
import hashlib
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
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags, logging
from jax.experimental import multihost_utils

from experiments.data import DataError
from kernelgrad.types import PyTree

_DEBUG = flags.DEFINE_bool(
    "debug", False, "Show the traceback of every error and all library logs."
)

_KEPT_CHECKPOINTS = 3
_MIN_FREE_BYTES = 16 * 2**20
_LOCK_PATIENCE_SECONDS = 1.0  # a killed owner may take a moment to vanish
_MANIFEST = "SHA256SUMS"
_LEAVES = "leaves.json"


class UsageError(Exception):
    """A wrong flag, config or data set; exit code 2."""


class StorageError(Exception):
    """A failure of files, lock or checkpoints; exit code 1."""


class DivergenceError(Exception):
    """A state that is not finite; exit code 3."""


class Terminated(Exception):  # noqa: N818 - an order that was obeyed, not an error
    """SIGTERM arrived and the state was saved; exit code 143."""


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
          allow_config_change: let every field differ.

        Raises:
          StorageError: the folder cannot be created or written, has no space, or is in use.
          UsageError: it holds a run with another config.
        """
        self.path = pathlib.Path(path).expanduser().absolute()
        self._checkpoints = self.path / "checkpoints"
        self._metrics = self.path / "metrics.jsonl"
        self._writes = jax.process_index() == 0
        self._lock = -1
        if self._writes:
            try:
                with _storage(f"workdir {self.path}"):
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
        with _storage(str(folder)):
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
            with _storage(str(self._metrics)), open(self._metrics, "ab") as file:
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
            with _storage(str(target)):
                target.parent.mkdir(parents=True, exist_ok=True)
                _replace(target, content)
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
        leaves = _named_leaves(state)
        specs = {name: _spec(leaf) for name, leaf in leaves.items()}
        arrays = {name: _to_host(leaf) for name, leaf in leaves.items()}
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
            if _damage(target) is None:
                return
            self._set_aside(step)
        size = sum(array.nbytes for array in arrays.values()) / 1e6
        free = shutil.disk_usage(self.path).free / 1e6
        scratch = self._checkpoints / f"tmp-{step}"
        try:
            with _storage(f"{target}: could not save {size:.1f} MB with {free:.1f} MB free"):
                _write_checkpoint(scratch, specs, arrays)
                os.rename(scratch, target)
                _sync(self._checkpoints)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        with _storage(str(self._checkpoints)):
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
            damage = _damage(self._checkpoints / str(step))
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
        state = _read_checkpoint(self._checkpoints / str(step), abstract_state)
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
        fields = json.loads(json.dumps(dataclasses.asdict(config), default=str))
        file = self.path / "config.json"
        if file.exists():
            try:
                stored = dict(json.loads(file.read_text()))
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
        _replace(file, (json.dumps(fields, indent=2) + "\n").encode())

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
            with _storage(str(folder)):
                if grave.exists():
                    self._remove(grave)
                os.rename(folder, grave)

    def _records(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        with _storage(str(self._metrics)):
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
        with _storage(str(self._metrics)):
            size = self._metrics.stat().st_size if self._metrics.exists() else 0
            if self._writes and size:
                _replace(self._metrics, b"".join(lines))
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


@contextlib.contextmanager
def _storage(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{place}: {error.strerror or error}") from error


def _replace(target: pathlib.Path, content: bytes) -> None:
    scratch = target.with_name(target.name + ".tmp")
    with open(scratch, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, target)
    _sync(target.parent)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digests(folder: pathlib.Path) -> dict[str, str]:
    digests = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file != folder / _MANIFEST:
            with open(file, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            digests[file.relative_to(folder).as_posix()] = digest
    return digests


def _checkpointer() -> ocp.Checkpointer:
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}
    )
    return ocp.Checkpointer(ocp.StandardCheckpointHandler(), multiprocessing_options=alone)


def _write_checkpoint(
    folder: pathlib.Path, specs: dict[str, str], arrays: dict[str, np.ndarray]
) -> None:
    folder.mkdir()
    try:
        with _checkpointer() as orbax:
            orbax.save(folder / "state", args=ocp.args.StandardSave(arrays))
            stored = orbax.restore(folder / "state")
    except Exception as error:
        raise OSError(_brief(error)) from error
    for name, array in arrays.items():
        if stored[name].dtype != array.dtype or stored[name].tobytes() != array.tobytes():
            raise OSError(f"leaf {name} was read back with another value")
    (folder / _LEAVES).write_text(json.dumps(specs, indent=2) + "\n")
    for entry in folder.rglob("*"):
        _sync(entry)
    _replace(folder / _MANIFEST, _manifest(_digests(folder)))


def _read_checkpoint(folder: pathlib.Path, abstract_state: PyTree) -> PyTree:
    wanted = _named_leaves(abstract_state)
    stored = json.loads((folder / _LEAVES).read_text())
    for name in {**wanted, **stored}:
        found = stored.get(name, "no such leaf")
        expected = _spec(wanted[name]) if name in wanted else "no such leaf"
        if found != expected:
            raise UsageError(
                f"checkpoint {folder} is of another model: leaf {name}: got {found}; expected "
                f"{expected}. Use the flags that the run began with, or another workdir"
            )
    try:
        with _checkpointer() as orbax:
            arrays = orbax.restore(folder / "state")
    except Exception as error:
        raise StorageError(f"checkpoint {folder}: {_brief(error)}") from error
    leaves = [_from_host(arrays[name], like) for name, like in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 170 else f"{text[:60]} ... {text[-100:]}"


def _manifest(digests: dict[str, str]) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()


def _damage(folder: pathlib.Path) -> str | None:
    manifest = folder / _MANIFEST
    try:
        content, actual = manifest.read_bytes(), _digests(folder)
    except OSError as error:
        return f"{manifest}: {error.strerror}"
    if content == _manifest(actual):
        return None
    listed = {line[66:]: line[:64] for line in content.decode(errors="replace").splitlines()}
    for name in sorted(listed.keys() | actual.keys()):
        got, expected = actual.get(name, "no such file"), listed.get(name, "no such file")
        if got != expected:
            return f"{folder / name}: got SHA-256 {got}; expected {expected}"
    return f"{manifest}: got a damaged file; expected a list of SHA-256 digests"


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path) or "state": leaf for path, leaf in leaves}


def _spec(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_host(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _from_host(array: np.ndarray, like: Any) -> Any:
    if _is_key(like):
        impl = jax.random.key_impl(jnp.empty((), like.dtype))
        return jax.random.wrap_key_data(jnp.array(array), impl=impl)
    return array if isinstance(like, np.ndarray | np.generic) else jnp.array(array)
