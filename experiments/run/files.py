"""Files that survive a crash, and files that anybody may have put where they are read.

Nothing here waits for a fifo, follows a link below a run's folder, or reads more than it was told.
"""

import contextlib
import errno
import fcntl
import glob
import io
import json
import math
import os
import pathlib
import secrets
import shutil
import socket
import stat
import time
import zipfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from experiments.run.errors import StorageError

_LOCK_PATIENCE_SECONDS = 1.0  # a killed owner may take a moment to vanish
_MOST_DEPTH = 32  # of JSON values within one another
_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextlib.contextmanager
def storage(place: str) -> Iterator[None]:
    """Turns an OSError within into a StorageError that names the place."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{place}: {error.strerror or error}") from error


def kind(path: pathlib.Path) -> str | None:
    """Returns what a path itself is, such as "a symbolic link"; None where there is nothing."""
    try:
        return _KINDS[stat.S_IFMT(os.lstat(path).st_mode)]
    except (FileNotFoundError, NotADirectoryError):
        return None


# --------------------------------------------------------------------------------- what is written


def folder(root: pathlib.Path, name: str = "") -> pathlib.Path:
    """Returns the folder root / name, created if missing; OSError where a link is on the way."""
    path = root
    for part in pathlib.PurePath(name).parts:
        path = path / part
        with contextlib.suppress(FileExistsError):
            path.mkdir()
        if (found := kind(path)) != "a folder":
            raise OSError(errno.ENOTDIR, f"{path}: got {found}; expected a folder. Remove it")
    return path


def replace(target: pathlib.Path, content: bytes, *, shared: bool = False) -> None:
    """Writes a file in one piece; arguments and errors as for :func:`replacing`."""
    with replacing(target, shared=shared) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(target: pathlib.Path, *, shared: bool = False) -> Iterator[IO[bytes]]:
    """Yields a file that takes its name in the end: after a kill there is the old content or it.

    Args:
      target: what is there may only be a regular file.
      shared: whether other processes may write the same file; what those that were killed have
        left is removed.

    Raises:
      OSError: it could not be written, or something else is there.
    """
    if (found := kind(target)) not in (None, "a regular file"):
        raise OSError(errno.EEXIST, f"got {found}; expected a regular file. Remove it")
    scratch = _scratch_of(target) if shared else target.with_name(f"{target.name}.tmp")
    if kind(scratch) == "a folder":
        raise OSError(errno.EISDIR, f"got a folder {scratch}; expected that name free. Remove it")
    descriptor = _created(scratch, lock=shared)
    if shared:
        remove_left(target.parent, glob.escape(target.name))
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
            os.replace(scratch, target)  # while it is locked, so that nobody takes it for left
    finally:
        scratch.unlink(missing_ok=True)
    sync(target.parent)


@contextlib.contextmanager
def replacing_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a folder that takes its name in the end, in place of what is there.

    Other processes may write the same folder. A file beside it is locked while it is written, by
    which :func:`remove_left` knows what a kill has left.

    Args:
      target: the name that it takes.

    Raises:
      OSError: it could not be written.
    """
    scratch = _scratch_of(target)
    descriptor = _created(scratch, lock=True)
    content = _folder_of(scratch)
    try:
        content.mkdir()
        yield content
        if kind(target) is not None:
            remove(target)
        os.rename(content, target)
    finally:
        if kind(content) is not None:
            remove(content)
        scratch.unlink(missing_ok=True)
        os.close(descriptor)
    sync(target.parent)


def _scratch_of(target: pathlib.Path) -> pathlib.Path:
    """Returns where to write what others may write too; their machines number processes alike."""
    return target.with_name(f"{target.name}.{secrets.token_hex(8)}.tmp")


def _folder_of(scratch: pathlib.Path) -> pathlib.Path:
    return scratch.with_name(f"{scratch.name}.d")


def _created(scratch: pathlib.Path, *, lock: bool) -> int:
    """Returns a descriptor of a new file, which is locked until it is closed, also by a kill."""
    while True:
        scratch.unlink(missing_ok=True)  # what a kill has left, or a link: not what it leads to
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(scratch, flags, 0o666)
        if lock:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # another process has removed it before it was locked


def remove_left(place: pathlib.Path, names: str) -> None:
    """Removes what was to become a file or a folder, where nobody writes it any longer.

    Args:
      place: the folder in which it was to be.
      names: the names that it was to have, as a pattern of :mod:`glob`.
    """
    for left in place.glob(f"{names}.*.tmp"):
        with contextlib.suppress(OSError):  # gone meanwhile, still being written, or no file
            descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stat.S_ISREG(os.fstat(descriptor).st_mode) and kind(_folder_of(left)):
                    remove(_folder_of(left))
                left.unlink()
            finally:
                os.close(descriptor)


def append(path: pathlib.Path, content: bytes) -> None:
    """Writes to the end of a file of one's own, and returns once it is on the disk."""
    descriptor = own(path, os.O_WRONLY | os.O_APPEND)
    with open(descriptor, "ab") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def own(path: pathlib.Path, flags: int) -> int:
    """Returns a descriptor of a file to be written in place, created if missing.

    Raises:
      OSError: it is no regular file, or it has another name too, by which it is somebody else's.
    """
    descriptor = _regular(path, flags | os.O_CREAT | os.O_NOFOLLOW)
    if os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EMLINK, "got a file with two names (hard links); expected one. Copy it")
    return descriptor


def lock(path: pathlib.Path) -> int:
    """Returns a descriptor of the file "lock" in a folder, this process's until it is closed.

    Raises:
      StorageError: another process holds it, or it is no file of this folder's own.
    """
    with storage(str(path / "lock")):
        descriptor = own(path / "lock", os.O_RDWR)
    deadline = time.monotonic() + _LOCK_PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
                os.close(descriptor)
                raise StorageError(
                    f"workdir {path}: got a folder in use by {owner}; "
                    "expected a free one. Stop that process or use another workdir"
                ) from None
            time.sleep(0.05)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor


def remove(path: pathlib.Path) -> None:
    """Removes a file, a folder with all that is in it, or a link, but not what it leads to."""
    if kind(path) == "a folder":
        shutil.rmtree(path)
    else:
        path.unlink()


def sync(path: pathlib.Path) -> None:
    """Returns once a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------ what is read


def opened(path: pathlib.Path, most_bytes: int, *, follow: bool = False) -> io.BufferedReader:
    """Returns a regular file of at most so many bytes, open for reading.

    Args:
      path: where it is.
      most_bytes: a larger file is refused before anything is read.
      follow: whether it may be a symbolic link, as the files of a data set may.

    Raises:
      OSError: there is no such file, it is something else, or it is too large.
    """
    descriptor = _regular(path, os.O_RDONLY | (0 if follow else os.O_NOFOLLOW))
    size = os.fstat(descriptor).st_size
    if size > most_bytes:
        os.close(descriptor)
        raise OSError(errno.EFBIG, f"got {size} bytes; expected at most {most_bytes}")
    return open(descriptor, "rb")


def read(path: pathlib.Path, most_bytes: int, *, follow: bool = False) -> bytes:
    """Returns the content of a file; arguments and errors as for :func:`opened`."""
    with opened(path, most_bytes, follow=follow) as file:
        return file.read(most_bytes)


def _regular(path: pathlib.Path, flags: int) -> int:
    """Returns a descriptor without waiting for anybody; OSError unless of a regular file."""
    if flags & os.O_NOFOLLOW and kind(path) == "a symbolic link":
        raise OSError(errno.ELOOP, "got a symbolic link; expected a regular file. Remove it")
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    found = _KINDS[stat.S_IFMT(os.fstat(descriptor).st_mode)]
    if found != "a regular file":
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"got {found}; expected a regular file")
    return descriptor


def parse_json(content: bytes, most_values: int) -> Any:
    """Returns JSON values; ValueError for what is none, deep, large or not finite."""
    try:
        parsed = json.loads(content, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("values too deep within one another") from None
    level, count = [parsed], 1
    for _ in range(_MOST_DEPTH):
        level = [inner for value in level for inner in _inner(value)]
        count += len(level)
        if count > most_values:
            raise ValueError(f"more than {most_values} values")
        if not level:
            return parsed
    raise ValueError("values too deep within one another")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text}, which is not finite")
    return value


def _inner(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def parse_arrays(content: bytes, most_bytes: int) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz; ValueError for what is none, holds objects or is large."""
    return load_arrays(io.BytesIO(content), most_bytes)


def load_arrays(file: IO[bytes], most_bytes: int) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz that is open; errors as for :func:`parse_arrays`."""
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > most_bytes:
            raise ValueError(f"{size} bytes unpacked, more than {most_bytes}")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # a flipped bit makes zipfile and numpy raise a dozen types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"no arrays: {reason}") from error
