"""Checkpoints whose content is verified: Orbax arrays under a SHA-256 manifest.

A checkpoint is a folder: state/ (Orbax), leaves.json (names, dtypes, shapes) and SHA256SUMS, which
``sha256sum -c`` reads. The manifest detects accidents, not attackers: it carries no signature.
"""

import hashlib
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments import files
from experiments.errors import StorageError, UsageError
from kernelgrad.types import PyTree

_MANIFEST = "SHA256SUMS"
_LEAVES = "leaves.json"


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


def write(folder: pathlib.Path, specs: dict[str, str], arrays: dict[str, np.ndarray]) -> None:
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
    (folder / _LEAVES).write_text(json.dumps(specs, indent=2) + "\n")
    for entry in folder.rglob("*"):
        files.sync(entry)
    files.replace(folder / _MANIFEST, _manifest(_digests(folder)))


def read(folder: pathlib.Path, abstract_state: PyTree) -> PyTree:
    """Returns the state of a verified folder; UsageError names the first leaf that differs."""
    wanted = named_leaves(abstract_state)
    stored = json.loads((folder / _LEAVES).read_text())
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
    except Exception as error:
        raise StorageError(f"checkpoint {folder}: {_brief(error)}") from error
    leaves = [_from_host(arrays[name], like) for name, like in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 170 else f"{text[:60]} ... {text[-100:]}"


def _manifest(digests: dict[str, str]) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()


def damage(folder: pathlib.Path) -> str | None:
    """Returns what is wrong with a folder, or None if every file has its listed SHA-256."""
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


def _from_host(array: np.ndarray, like: Any) -> Any:
    if _is_key(like):
        impl = jax.random.key_impl(jnp.empty((), like.dtype))
        return jax.random.wrap_key_data(jnp.array(array), impl=impl)
    return array if isinstance(like, np.ndarray | np.generic) else jnp.array(array)
