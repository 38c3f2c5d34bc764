"""Checkpoints whose content is verified: Orbax arrays under a SHA-256 manifest.

A checkpoint is a folder: state/ (Orbax), checkpoint.json and SHA256SUMS, which ``sha256sum -c``
reads. checkpoint.json says whose it is (the run, the step, its metrics so far), what it holds
(names, dtypes and shapes of the leaves), and how large a file of it may be. The manifest detects
accidents, not attackers: it carries no signature.
"""

import contextlib
import hashlib
import json
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments.run import files
from experiments.run.errors import StorageError, UsageError
from kernelgrad.types import PyTree

_STEP = re.compile("0|[1-9][0-9]{0,17}")
_MANIFEST = "SHA256SUMS"
_ABOUT = "checkpoint.json"
_MOST_BYTES, _MOST_VALUES = 2**24, 10**6  # of these two
_NONE_VERIFIES = "{}: got no checkpoint that verifies; expected at least one"
_LOOKS = 2  # at a folder whose checkpoints come and go


class Origin(NamedTuple):
    """Whose a checkpoint is.

    Attributes:
      run: id of the run.
      step: number of steps behind the state.
      metrics_bytes: length of the run's metrics when it was saved.
      metrics_sha256: digest of them.
    """

    run: str
    step: int
    metrics_bytes: int
    metrics_sha256: str


class _About(NamedTuple):
    """What checkpoint.json holds: the origin, dtypes and shapes by leaf, bytes of the state."""

    origin: Origin
    leaves: dict[str, str]
    state_bytes: int


def _digests(folder: pathlib.Path, most_bytes: int) -> dict[str, str]:
    """Returns the SHA-256 of every file by name, or what is there in place of one."""
    digests = {}
    for file in sorted(folder.rglob("*")):
        found = files.kind(file)
        if file == folder / _MANIFEST or found == "a folder":
            continue
        if found == "a regular file":
            size = file.stat().st_size
            found = f"{size} bytes"
            if size <= most_bytes:
                with files.opened(file, most_bytes) as stream:
                    found = f"SHA-256 {hashlib.file_digest(stream, 'sha256').hexdigest()}"
        digests[file.relative_to(folder).as_posix()] = str(found)
    return digests


def _checkpointer() -> ocp.Checkpointer:
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}
    )
    return ocp.Checkpointer(ocp.StandardCheckpointHandler(), multiprocessing_options=alone)


def write(
    folder: pathlib.Path, origin: Origin, specs: dict[str, str], arrays: dict[str, np.ndarray]
) -> None:
    """Writes a checkpoint to a new folder and reads it back; OSError unless it is equal."""
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
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    about = _About(origin, specs, size)._asdict() | {"origin": origin._asdict()}
    files.replace(folder / _ABOUT, f"{json.dumps(about, indent=2)}\n".encode())
    for entry in folder.rglob("*"):
        files.sync(entry)
    digests = _digests(folder, max(size, _MOST_BYTES))
    files.replace(folder / _MANIFEST, _manifest(digests))


def read(folder: pathlib.Path, abstract_state: PyTree) -> PyTree:
    """Returns the state of a verified folder; UsageError names the first leaf that differs."""
    wanted, stored = named_leaves(abstract_state), _read_about(folder).leaves
    for name in {**wanted, **stored}:
        found = stored.get(name, "no such leaf")
        expected = spec(wanted[name]) if name in wanted else "no such leaf"
        if found != expected:
            raise UsageError(
                f"checkpoint {folder} is of another model: leaf {name}: got {found}; expected "
                f"{expected}. Use the flags that the run began with, or another workdir"
            )
    try:
        with _checkpointer() as orbax:
            arrays = orbax.restore(folder / "state")
        leaves = [from_host(arrays[name], like) for name, like in wanted.items()]
    except Exception as error:
        raise StorageError(f"checkpoint {folder}: {_brief(error)}") from error
    return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)


def steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, in order."""
    names = [entry.name for entry in folder.iterdir()]
    return sorted(int(name) for name in names if _STEP.fullmatch(name))


def newest(folder: pathlib.Path, run: str, abstract_state: PyTree) -> tuple[int, PyTree]:
    """Returns step and state of the newest checkpoint of a run that verifies; nothing is written.

    The run may go on meanwhile: what it removes while it is read is passed over.

    Args:
      folder: of the checkpoints.
      run: id of the run.
      abstract_state: the expected state.

    Raises:
      UsageError: the checkpoint is of another model.
      StorageError: none verifies.
      OSError: the folder cannot be read.
    """
    for _ in range(_LOOKS):
        for step in reversed(steps(folder)):
            with contextlib.suppress(OSError, StorageError):
                if damage(folder / str(step), run, step) is None:
                    return step, read(folder / str(step), abstract_state)
    raise StorageError(_NONE_VERIFIES.format(folder))


def verified(folder: pathlib.Path, run: str, abstract_state: PyTree) -> dict[int, PyTree]:
    """Returns the states of all checkpoints of a run that verify, by step, as :func:`newest` does.

    Raises:
      UsageError: a checkpoint is of another model.
      StorageError: none verifies.
      OSError: the folder cannot be read.
    """
    states = {}
    for step in steps(folder):
        with contextlib.suppress(OSError, StorageError):
            if damage(folder / str(step), run, step) is None:
                states[step] = read(folder / str(step), abstract_state)
    if not states:
        raise StorageError(_NONE_VERIFIES.format(folder))
    return states


def origin_of(folder: pathlib.Path) -> Origin:
    """Returns whose a verified checkpoint is."""
    return _read_about(folder).origin


def _read_about(folder: pathlib.Path) -> _About:
    """Returns the content of checkpoint.json; ValueError or OSError."""
    found = files.parse_json(files.read(folder / _ABOUT, _MOST_BYTES), _MOST_VALUES)
    try:
        about = _About(**{**found, "origin": Origin(**found["origin"])})
        texts = [about.origin.run, about.origin.metrics_sha256, *about.leaves.values()]
        numbers = [about.origin.step, about.origin.metrics_bytes, about.state_bytes]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"got another form ({error}); expected {_About._fields}") from error
    if {*map(type, texts)} != {str} or {*map(type, numbers)} != {int}:
        raise ValueError(f"got values of another type; expected {_About.__annotations__}")
    return about


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 170 else f"{text[:60]} ... {text[-100:]}"


def _manifest(digests: dict[str, str]) -> bytes:
    return "".join(f"{digest[-64:]}  {name}\n" for name, digest in digests.items()).encode()


def damage(folder: pathlib.Path, run: str, step: int) -> str | None:
    """Returns what is wrong with a folder, or None if it is the checkpoint of that run and step.

    Then every file has its listed SHA-256, and there are no others.
    """
    manifest = folder / _MANIFEST
    if (found := files.kind(folder)) != "a folder":
        return f"{folder}: got {found}; expected a folder"
    try:
        content = files.read(manifest, _MOST_BYTES)
    except OSError as error:
        return f"{manifest}: {error.strerror}"
    try:
        about = _read_about(folder)
        actual = _digests(folder, max(about.state_bytes, _MOST_BYTES))
    except (OSError, ValueError) as error:
        return f"{folder / _ABOUT}: {getattr(error, 'strerror', error)}"
    listed = {name[66:]: name[:64] for name in content.decode(errors="replace").splitlines()}
    for name in sorted(listed.keys() | actual.keys()):
        got = actual.get(name, "no such file")
        expected = f"SHA-256 {listed[name]}" if name in listed else "no such file"
        if got != expected:
            return f"{folder / name}: got {got}; expected {expected}"
    if content != _manifest(actual):
        return f"{manifest}: got a damaged file; expected a list of SHA-256 digests"
    if (about.origin.run, about.origin.step) != (run, step):
        return (
            f"{folder / _ABOUT}: got step {about.origin.step} of run {about.origin.run}; expected "
            f"step {step} of run {run}"
        )
    return None


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path) or "state": leaf for path, leaf in leaves}


def spec(leaf: Any) -> str:
    """Returns dtype and shape, such as float32[3,2]."""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_host(leaf: Any) -> np.ndarray:
    """Returns a leaf as it is stored: a typed key as its key data."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def stored_form(leaf: Any) -> Any:
    """Returns dtype and shape of a leaf as it is stored."""
    return jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf


def from_host(array: np.ndarray, like: Any) -> Any:
    """Returns the leaf that is stored as an array: of numpy or of jax, as the one it is like."""
    if _is_key(like):
        impl = jax.random.key_impl(jnp.empty((), like.dtype))
        return jax.random.wrap_key_data(jnp.array(array), impl=impl)
    return array if isinstance(like, np.ndarray | np.generic) else jnp.array(array)
