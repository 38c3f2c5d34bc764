"""Image sets that TFDS has prepared, read into memory, and the cache of what was decoded.

TensorFlow is never imported, and an image is decoded by Pillow on every machine.
"""

import contextlib
import hashlib
import io
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from experiments.run import files
from experiments.run.errors import DataError, listed, reason, short


class Split(NamedTuple):
    """Examples of one split: images, uint8 (n, h, w, c), and labels, int32 (n,), or None."""

    images: np.ndarray
    labels: np.ndarray | None


class ImageSet(NamedTuple):
    """Splits by name, and the number of classes, 0 without labels."""

    splits: dict[str, Split]
    num_classes: int


Check = Callable[[ImageSet], None]  # raises for a set of a form that is not wanted
_Shape = tuple[int | None, int | None, int]
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_BATCH = 4096
_MOST_CACHED_BYTES = 2**36
_MOST_PREPARED_BYTES = 2**36  # of a file


def outline(shapes: Mapping[str, tuple[int, ...]], num_classes: int) -> ImageSet:
    """Returns a set of zeros that takes no memory: the form of one that is still to be decoded.

    Args:
      shapes: (n, h, w, c) by split.
      num_classes: 0 without labels.
    """
    splits = {}
    for name, shape in shapes.items():
        labels = np.broadcast_to(np.int32(0), shape[:1]) if num_classes else None
        splits[name] = Split(np.broadcast_to(np.uint8(0), shape), labels)
    return ImageSet(splits, num_classes)


def decode(encoded: bytes, shape: _Shape) -> np.ndarray:
    """Returns a PNG or JPEG as uint8 of this shape; None stands for any height or width.

    Raises:
      DataError: no image, damaged, or of another size, which is refused before it is decoded.
    """
    height, width, channels = shape
    with image_of(io.BytesIO(encoded)) as image:
        if height not in (None, image.height) or width not in (None, image.width):
            raise DataError(
                f"got an image of {image.height} x {image.width}; expected {height} x {width}"
            )
        converted = image.convert(_MODES[channels])
    return np.asarray(converted).reshape(converted.height, converted.width, channels)


@contextlib.contextmanager
def opened(path: Path, most_bytes: int) -> Iterator[Image.Image]:
    """Yields a PNG or JPEG file, of which only the head has been read.

    Raises:
      DataError: no image, or damaged, also where it is decoded within; the message names the file.
    """
    try:
        with files.opened(path, most_bytes, follow=True) as file, image_of(file) as image:
            yield image
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


@contextlib.contextmanager
def image_of(file: IO[bytes]) -> Iterator[Image.Image]:
    """Yields a PNG or JPEG that is open, of which only the head has been read.

    Raises:
      DataError: no image, or damaged, also where it is decoded within.
    """
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            yield image
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"not a PNG or JPEG image: {error}") from error


def cached(path: Path, build: Callable[[], ImageSet]) -> ImageSet:
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
        configs = listed(folder.relative_to(root) for folder in sorted(found))
        raise DataError(f"dataset: got {short(name)}; expected one of {configs}")
    (versions,) = found.values()
    return max(versions, key=lambda path: [int(part) for part in path.name.split(".")])


def read_prepared(directory: Path, cache: Path, check: Check = lambda _: None) -> ImageSet:
    """Returns an image set that TFDS has prepared as array_record.

    The decoded arrays are kept in `cache` under the names, sizes and times of the prepared files.

    Args:
      directory: such as ".../mnist/3.0.1".
      cache: writable folder, created if need be.
      check: gets the form of the set before it is decoded, if it has to be.

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
    return cached(cache / f"{name}.npz", lambda: _decode_prepared(directory, check))


def _decode_prepared(directory: Path, check: Check) -> ImageSet:
    import tensorflow_datasets as tfds  # half a second, which only image sets need

    splits: dict[str, Split] = {}
    with _reading(directory):
        builder = tfds.builder_from_directory(directory)
        features, file_format = dict(builder.info.features.items()), builder.info.file_format.value
        if file_format != "array_record":
            raise DataError(f"got the format {file_format}; expected array_record")
        image, shape = _image_feature(features)
        label = features.get("label")
        num_classes = label.num_classes if isinstance(label, tfds.features.ClassLabel) else 0
        if "train" not in builder.info.splits:
            raise DataError(f"got the splits {listed(builder.info.splits)}; expected train")
        sources = {
            name: builder.as_data_source(name, decoders={image: tfds.decode.SkipDecoding()})
            for name in ("train", "test")
            if name in builder.info.splits
        }
        height, width, channels = decode(sources["train"][0][image], shape).shape
    size = (height, width, channels)
    check(outline({name: (len(rows), *size) for name, rows in sources.items()}, num_classes))
    with _reading(directory):
        for name, rows in sources.items():
            splits[name] = _read_rows(rows, name, image, size, num_classes)
    return ImageSet(splits, num_classes)


@contextlib.contextmanager
def _reading(directory: Path) -> Iterator[None]:
    """Turns what goes wrong within a prepared set, which may be anything, into a DataError."""
    try:
        yield
    except Exception as error:
        raise DataError(
            f"cannot read the prepared set {directory} ({reason(error)}); delete it and prepare it "
            "anew"
        ) from error


def _image_feature(features: Any) -> tuple[str, _Shape]:
    """Returns key and shape of the image feature: "image", else the only one."""
    import tensorflow_datasets as tfds

    images = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
    key = "image" if "image" in images else images[0] if len(images) == 1 else None
    if key is None or features[key].np_dtype != np.uint8 or features[key].shape[-1] not in _MODES:
        raise DataError(f"got the features {listed(features)}; expected one image of 8 bits")
    return key, features[key].shape


def _read_rows(
    rows: Any, name: str, image: str, shape: tuple[int, int, int], num_classes: int
) -> Split:
    """Decodes all rows of a data source, a batch at a time."""
    images = np.empty((len(rows), *shape), np.uint8)
    labels = np.empty(len(rows), np.int32) if num_classes else None
    with tqdm(total=len(rows), desc=f"Reading {name} split", unit=" images", delay=1) as bar:
        for start in range(0, len(rows), _BATCH):
            batch = rows.__getitems__(range(start, min(start + _BATCH, len(rows))))
            for index, row in enumerate(batch, start):
                images[index] = decode(row[image], shape)
                if labels is not None:
                    labels[index] = row["label"]
            bar.update(len(batch))
    if labels is not None and labels.min() < 0:  # TFDS writes -1 where there is no label
        labels = None
    return Split(images, labels)
