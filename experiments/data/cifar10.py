"""CIFAR-10 as an archive of JPEG files, which is never unpacked on the disk."""

import hashlib
import io
import lzma
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from experiments.data import image_sets
from experiments.data.image_sets import Check, Decoding, ImageSet
from experiments.run import files
from experiments.run.errors import DataError, reason, short

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
COUNTS = {"train": 50_000, "test": 10_000}
_SHAPE = (32, 32, 3)
_MEMBER = re.compile(rf"(train|test)/({'|'.join(CLASSES)})/\d+\.jpg")
_FOLDER = re.compile(rf"(train|test)(/({'|'.join(CLASSES)}))?")
_MAX_FILE_BYTES = 64 * 1024
_MAX_ARCHIVE_BYTES = 256 * 1024 * 1024


class _Capped(io.RawIOBase):
    """A readable file that raises DataError once more than `limit` bytes were read."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self._left = file, limit

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise DataError(f"unpacks to more than {_MAX_ARCHIVE_BYTES} bytes")
        return content


def read(archive: Path, cache: Path, check: Check = lambda _: None) -> ImageSet:
    """Returns the 32 x 32 x 3 images of an archive of {train,test}/{class}/{number}.jpg.

    Nothing is extracted. The decoded arrays are kept in `cache` under the archive's sha256.

    Args:
      archive: .tar.xz of 50 000 and 10 000 JPEG files in ten class folders.
      cache: writable folder, created if need be.
      check: gets the form of the set before it is decoded, if it has to be.

    Returns:
      The splits "train" and "test"; labels number the classes alphabetically, as CIFAR-10 does.

    Raises:
      DataError: the archive is damaged, or holds a link, a path or a file that does not belong
        there, files or a total that are too large, or another number of images; or `cache` is not
        writable.
    """
    try:
        with files.opened(archive, _MAX_ARCHIVE_BYTES, follow=True) as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cifar10_jpeg: {archive}: {error.strerror}") from error

    def build() -> Decoding:
        shapes = {split: (n, *_SHAPE) for split, n in COUNTS.items()}
        form = image_sets.outline(shapes, len(CLASSES))
        check(form)
        try:
            return Decoding(form, _decode(archive))
        except Exception as error:  # tarfile takes numbers of any length, and what is none
            raise DataError(
                f"cifar10_jpeg: {archive} (sha256 {digest}): {reason(error)}"
            ) from error

    return image_sets.cached(cache / f"cifar10_jpeg-{digest[:16]}.npz", build)


def _decode(archive: Path) -> dict[str, Iterable[tuple[np.ndarray, int]]]:
    """Returns the images of each split with their labels, all in memory: splits may alternate."""
    images = {split: np.empty((n, *_SHAPE), np.uint8) for split, n in COUNTS.items()}
    labels = {split: np.empty(n, np.int32) for split, n in COUNTS.items()}
    seen: dict[str, set[str]] = {split: set() for split in COUNTS}
    total = sum(COUNTS.values())
    with (
        lzma.open(archive) as stream,
        _Capped(stream, _MAX_ARCHIVE_BYTES) as capped,
        tarfile.open(fileobj=capped, mode="r|") as tar,
        tqdm(total=total, desc=f"Decoding {archive.name}", unit=" images", delay=1) as bar,
    ):
        for member, content in _image_members(tar):
            split, label, _ = member.split("/")
            index = len(seen[split])
            if member in seen[split] or index == COUNTS[split]:
                raise DataError(f"member {member!r} is a duplicate or one too many")
            seen[split].add(member)
            images[split][index] = image_sets.decode(content, _SHAPE)
            labels[split][index] = CLASSES.index(label)
            bar.update()
        while capped.read(2**20):  # xz compares its checksum at the very end
            pass
    for split, members in seen.items():
        if len(members) != COUNTS[split]:
            raise DataError(f"got {len(members)} {split} images; expected {COUNTS[split]}")
    return {split: zip(images[split], labels[split], strict=True) for split in COUNTS}


def _image_members(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of each image; any other member but a class folder is refused."""
    for member in tar:
        if member.isdir() and _FOLDER.fullmatch(member.name):
            continue
        if not (member.isreg() and _MEMBER.fullmatch(member.name)):
            raise DataError(
                f"member {short(member.name)!r} does not belong there; expected regular files "
                "{train,test}/{class}/{number}.jpg"
            )
        if member.size > _MAX_FILE_BYTES:
            raise DataError(
                f"member {short(member.name)!r} has {member.size} bytes; expected at most "
                f"{_MAX_FILE_BYTES}"
            )
        file = tar.extractfile(member)
        yield member.name, file.read() if file else b""
