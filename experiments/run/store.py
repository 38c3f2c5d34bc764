"""Arrays in a file that says whether it is still the one that was written.

An .npz with the SHA-256 of its arrays among them, written in one piece, followed through no link
and read without pickles. The digest detects accidents, not attackers.
"""

import hashlib
import io
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.run import files

_DIGEST = "sha256"


def packed(arrays: Mapping[str, Any]) -> bytes:
    """Returns the content of a file, for `Workdir.write_bytes` or `files.replace`.

    Args:
      arrays: arrays, numbers or texts by name; none is called sha256.
    """
    found = {name: np.asarray(array) for name, array in arrays.items()}
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **{_DIGEST: np.array(digest(found))}, **found)
    return content.getvalue()


def read(path: pathlib.Path, most_bytes: int) -> dict[str, np.ndarray]:
    """Returns the arrays of a file.

    Args:
      path: of the file.
      most_bytes: a larger one is refused, packed or unpacked.

    Raises:
      ValueError: it is missing, no regular file, too large, or not as it was written; what it
        says does not name the file.
    """
    try:
        arrays = files.parse_arrays(files.read(path, most_bytes), most_bytes)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    stored, actual = str(arrays.pop(_DIGEST, "none")), digest(arrays)
    if stored != actual:
        raise ValueError(f"got arrays of SHA-256 {actual}; expected {stored:.64}")
    return arrays


def digest(arrays: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of arrays: names, dtypes, shapes and entries, in the order of names."""
    sha256 = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        update(sha256, name, array)
    return sha256.hexdigest()


def update(sha256: "hashlib._Hash", name: str, array: Any) -> None:
    """Adds an array to a digest."""
    sha256.update(f"{name} {array.dtype} {array.shape}\n".encode())
    sha256.update(np.asarray(array).tobytes())
