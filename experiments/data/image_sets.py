"""Image sets read into memory: whatever TFDS has prepared, and CIFAR-10 as an archive of JPEGs.

TensorFlow is never imported, and an image is decoded by Pillow on every machine.
"""

import contextlib
import hashlib
import io
import lzma
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from experiments.run import files
from experiments.run.errors import DataError


class Split(NamedTuple):
    """Examples of one split: images, uint8 (n, h, w, c), and labels, int32 (n,), or None."""

    images: np.ndarray
    labels: np.ndarray | None


class ImageSet(NamedTuple):
    """Splits by name, and the number of classes, 0 without labels."""

    splits: dict[str, Split]
    num_classes: int


_Shape = tuple[int | None, int | None, int]

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_BATCH = 4096
_MOST_CACHED_BYTES = 2**36
_MOST_PREPARED_BYTES = 2**36  # of a file


def _decode(encoded: bytes, shape: _Shape) -> np.ndarray:
    """Returns a PNG or JPEG as uint8 of this shape; None stands for any height or width.

    Raises:
      DataError: no image, damaged, or of another size, which is refused before it is decoded.
    """
    height, width, channels = shape
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            if height not in (None, image.height) or width not in (None, image.width):
                raise DataError(
                    f"got an image of {image.height} x {image.width}; expected {height} x {width}"
                )
            converted = image.convert(_MODES[channels])
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"not a PNG or JPEG image: {error}") from error
    return np.asarray(converted).reshape(converted.height, converted.width, channels)


def _cached(path: Path, build: Callable[[], ImageSet]) -> ImageSet:
    """Returns the set kept at `path`; if it is missing or damaged, builds and keeps it.

    An .npz holds a CRC-32 of each array, which reading compares; it is renamed into place whole.
    """
    kept_set = _read_cached(path)
    if kept_set is not None:
        return kept_set
    built = build()
    kept = {"num_classes": np.int64(built.num_classes)}
    for name, split in built.splits.items():
        kept |= {
            f"{name}.{field}": array
            for field, array in split._asdict().items()
            if array is not None
        }
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        with partial.open("xb") as output:
            np.savez(output, allow_pickle=False, **kept)
        partial.replace(path)
    except OSError as error:
        raise DataError(
            f"cannot write {path} ({error.strerror}); set KERNELGRAD_CACHE to a writable folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return built


def _read_cached(path: Path) -> ImageSet | None:
    try:
        with (
            files.opened(path, _MOST_CACHED_BYTES, follow=True) as file,
            np.load(file, allow_pickle=False) as arrays,
        ):
            splits = {
                key.removesuffix(".images"): Split(
                    arrays[key], arrays.get(f"{key.removesuffix('.images')}.labels")
                )
                for key in arrays
                if key.endswith(".images")
            }
            found = ImageSet(splits, int(arrays["num_classes"]))
    except Exception:  # missing, or damaged: a flipped bit makes zipfile and numpy raise any type
        return None
    sound = "train" in splits and all(
        images.dtype == np.uint8
        and images.ndim == 4
        and (labels is None or (labels.dtype == np.int32 and labels.shape == images.shape[:1]))
        for images, labels in splits.values()
    )
    return found if sound else None


# --- sets prepared by TFDS ----------------------------------------------------------------------


def find_prepared(name: str, root: Path) -> Path | None:
    """Returns the newest prepared directory of "set" or "set/config" below root, or None.

    Raises:
      DataError: the set has several configurations and none was named.
    """
    if not re.fullmatch(r"\w+(/[\w.+-]*\w)?", name):
        return None
    found: dict[Path, list[Path]] = {}
    for info in [*(root / name).glob("*/features.json"), *(root / name).glob("*/*/features.json")]:
        if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name):
            found.setdefault(info.parent.parent, []).append(info.parent)
    if not found:
        return None
    if len(found) > 1:
        configs = ", ".join(str(folder.relative_to(root)) for folder in sorted(found))
        raise DataError(f"dataset: got {name!r}; expected one of {configs}")
    (versions,) = found.values()
    return max(versions, key=lambda path: [int(part) for part in path.name.split(".")])


def read_prepared(directory: Path, cache: Path) -> ImageSet:
    """Returns an image set that TFDS has prepared as array_record.

    The decoded arrays are kept in `cache` under the names, sizes and times of the prepared files.

    Args:
      directory: such as ".../mnist/3.0.1".
      cache: writable folder, created if need be.

    Returns:
      The splits "train" and, if there is one, "test". Labels are None unless the set has a feature
      "label" that is a ClassLabel and the split is labelled.

    Raises:
      DataError: another file format, no split "train", no image feature of 8 bits, images of
        different sizes, or damaged files; or `cache` is not writable.
    """
    stamp = hashlib.sha256(str(directory.resolve()).encode())
    for file in sorted(directory.iterdir()):
        status = file.stat()
        if stat.S_ISFIFO(status.st_mode) or status.st_size > _MOST_PREPARED_BYTES:
            raise DataError(f"{file}: got a fifo, or {status.st_size} bytes; expected a data file")
        stamp.update(f"{file.name}:{status.st_size}:{status.st_mtime_ns};".encode())
    name = "-".join((directory.parent.name, directory.name, stamp.hexdigest()[:16]))
    return _cached(cache / f"{name}.npz", lambda: _decode_prepared(directory))


def _decode_prepared(directory: Path) -> ImageSet:
    import tensorflow_datasets as tfds  # half a second, which only image sets need

    try:
        builder = tfds.builder_from_directory(directory)
        features, file_format = dict(builder.info.features.items()), builder.info.file_format.value
        if file_format != "array_record":
            raise DataError(f"got the format {file_format}; expected array_record")
        image, shape = _image_feature(features)
        label = features.get("label")
        num_classes = label.num_classes if isinstance(label, tfds.features.ClassLabel) else 0
        if "train" not in builder.info.splits:
            raise DataError(f"got the splits {', '.join(builder.info.splits)}; expected train")
        splits = {}
        for name in ("train", "test"):
            if name in builder.info.splits:
                rows = builder.as_data_source(name, decoders={image: tfds.decode.SkipDecoding()})
                splits[name] = _read_rows(rows, name, image, shape, num_classes)
                shape = splits["train"].images.shape[1:]
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"cannot read the prepared set {directory} ({reason}); delete it and prepare it anew"
        ) from error
    return ImageSet(splits, num_classes)


def _image_feature(features: Any) -> tuple[str, _Shape]:
    """Returns key and shape of the image feature: "image", else the only one."""
    import tensorflow_datasets as tfds

    images = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
    key = "image" if "image" in images else images[0] if len(images) == 1 else None
    if key is None or features[key].np_dtype != np.uint8 or features[key].shape[-1] not in _MODES:
        raise DataError(f"got the features {', '.join(features)}; expected one image of 8 bits")
    return key, features[key].shape


def _read_rows(rows: Any, name: str, image: str, shape: _Shape, num_classes: int) -> Split:
    """Decodes all rows of a data source, a batch at a time."""
    first = _decode(rows[0][image], shape)
    images = np.empty((len(rows), *first.shape), np.uint8)
    labels = np.empty(len(rows), np.int32) if num_classes else None
    with tqdm(total=len(rows), desc=f"Reading {name} split", unit=" images", delay=1) as bar:
        for start in range(0, len(rows), _BATCH):
            batch = rows.__getitems__(range(start, min(start + _BATCH, len(rows))))
            for index, row in enumerate(batch, start):
                images[index] = _decode(row[image], first.shape)
                if labels is not None:
                    labels[index] = row["label"]
            bar.update(len(batch))
    if labels is not None and labels.min() < 0:  # TFDS writes -1 where there is no label
        labels = None
    return Split(images, labels)


# --- CIFAR-10 as JPEG files ---------------------------------------------------------------------

CIFAR10_CLASSES = (
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
CIFAR10_COUNTS = {"train": 50_000, "test": 10_000}

_MEMBER = re.compile(rf"(train|test)/({'|'.join(CIFAR10_CLASSES)})/\d+\.jpg")
_FOLDER = re.compile(rf"(train|test)(/({'|'.join(CIFAR10_CLASSES)}))?")
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


def read_cifar10_jpeg(archive: Path, cache: Path) -> ImageSet:
    """Returns the 32 x 32 x 3 images of an archive of {train,test}/{class}/{number}.jpg.

    Nothing is extracted. The decoded arrays are kept in `cache` under the archive's sha256.

    Args:
      archive: .tar.xz of 50 000 and 10 000 JPEG files in ten class folders.
      cache: writable folder, created if need be.

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

    def build() -> ImageSet:
        try:
            return _decode_cifar10(archive)
        except Exception as error:  # tarfile takes numbers of any length, and what is none
            raise DataError(f"cifar10_jpeg: {archive} (sha256 {digest}): {error}") from error

    return _cached(cache / f"cifar10_jpeg-{digest[:16]}.npz", build)


def _decode_cifar10(archive: Path) -> ImageSet:
    images = {split: np.empty((n, 32, 32, 3), np.uint8) for split, n in CIFAR10_COUNTS.items()}
    labels = {split: np.empty(n, np.int32) for split, n in CIFAR10_COUNTS.items()}
    seen: dict[str, set[str]] = {split: set() for split in CIFAR10_COUNTS}
    total = sum(CIFAR10_COUNTS.values())
    with (
        lzma.open(archive) as stream,
        _Capped(stream, _MAX_ARCHIVE_BYTES) as capped,
        tarfile.open(fileobj=capped, mode="r|") as tar,
        tqdm(total=total, desc=f"Decoding {archive.name}", unit=" images", delay=1) as bar,
    ):
        for member, content in _image_members(tar):
            split, label, _ = member.split("/")
            index = len(seen[split])
            if member in seen[split] or index == CIFAR10_COUNTS[split]:
                raise DataError(f"member {member!r} is a duplicate or one too many")
            seen[split].add(member)
            images[split][index] = _decode(content, (32, 32, 3))
            labels[split][index] = CIFAR10_CLASSES.index(label)
            bar.update()
        while capped.read(2**20):  # xz compares its checksum at the very end
            pass
    for split, members in seen.items():
        if len(members) != CIFAR10_COUNTS[split]:
            raise DataError(f"got {len(members)} {split} images; expected {CIFAR10_COUNTS[split]}")
    splits = {split: Split(images[split], labels[split]) for split in CIFAR10_COUNTS}
    return ImageSet(splits, len(CIFAR10_CLASSES))


def _image_members(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of each image; any other member but a class folder is refused."""
    for member in tar:
        if member.isdir() and _FOLDER.fullmatch(member.name):
            continue
        if not (member.isreg() and _MEMBER.fullmatch(member.name)):
            raise DataError(
                f"member {member.name[:80]!r} does not belong there; expected regular files "
                "{train,test}/{class}/{number}.jpg"
            )
        if member.size > _MAX_FILE_BYTES:
            raise DataError(
                f"member {member.name!r} has {member.size} bytes; expected at most "
                f"{_MAX_FILE_BYTES}"
            )
        file = tar.extractfile(member)
        yield member.name, file.read() if file else b""
