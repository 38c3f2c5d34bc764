"""Image sets that TFDS has prepared, and the cache of what was decoded.

TensorFlow is never imported, and an image is decoded by Pillow on every machine.
"""

import contextlib
import functools
import hashlib
import io
import math
import re
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from experiments.data.rows import MOST_BYTES, Rows
from experiments.run import files
from experiments.run.errors import DataError, listed, reason, short


class Split(NamedTuple):
    """Examples of one split: images, uint8 (n, h, w, c), and labels, int32 (n,), or None."""

    images: np.ndarray | Rows
    labels: np.ndarray | None


class ImageSet(NamedTuple):
    """Splits by name, and the number of classes, 0 without labels."""

    splits: dict[str, Split]
    num_classes: int


class Decoding(NamedTuple):
    """A set that is still to be decoded.

    Attributes:
      form: its outline.
      examples: by split, each image, uint8 (h, w, c), with its label; where one is negative, the
        split has none.
    """

    form: ImageSet
    examples: dict[str, Iterable[tuple[np.ndarray, int]]]


Check = Callable[[ImageSet], None]  # raises for a set of a form that is not wanted
_Shape = tuple[int | None, int | None, int]
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_BATCH = 4096
_VERIFIED_BYTES = 2**20  # at a time
_LOCAL_HEADER = 30  # bytes before the name of a member of a zip file
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


def decode(encoded: bytes, shape: _Shape, image_size: int | None = None) -> np.ndarray:
    """Returns a PNG or JPEG as uint8 of this shape; None stands for any height or width.

    Args:
      encoded: the content of a file.
      shape: (h, w, c).
      image_size: side to which it is cropped and resized then; None: it is not.

    Raises:
      DataError: no image, damaged, or of another size, which is refused before it is decoded.
    """
    height, width, channels = shape
    with image_of(io.BytesIO(encoded)) as image:
        if height not in (None, image.height) or width not in (None, image.width):
            raise DataError(
                f"got an image of {image.height} x {image.width}; expected {height} x {width}"
            )
        converted = cropped(image.convert(_MODES[channels]), image_size)
    return np.asarray(converted).reshape(converted.height, converted.width, channels)


def cropped(image: Image.Image, side: int | None) -> Image.Image:
    """Returns the square in the middle of an image, resized to a side; None: the image itself."""
    if side is None:
        return image
    return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)


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


def cached(path: Path, build: Callable[[], Decoding]) -> ImageSet:
    """Returns the set kept at `path`, of which the labels alone are in memory.

    If it is missing or damaged, it is decoded there first. The file is an .npz, which holds a
    CRC-32 of each array, and is renamed into place whole.

    Raises:
      DataError: it cannot be written, or there is no room for it.
    """
    found = _read_cached(path)
    if found is None:
        decoding = build()
        try:
            _write(path, decoding)
        except OSError as error:
            raise DataError(
                f"cannot write {path} ({error.strerror or error}); set KERNELGRAD_CACHE to a "
                "writable folder"
            ) from error
        found = _read_cached(path)
    if found is None:
        raise DataError(
            f"{path}: got other bytes than were just written; expected the same. Check the disk, "
            "or set KERNELGRAD_CACHE to a folder on another"
        )
    return found


def _write(path: Path, decoding: Decoding) -> None:
    """Decodes a set into a file, one image at a time."""
    form, examples = decoding
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path, shared=True) as file, zipfile.ZipFile(file, "w") as archive:
        needed = sum(split.images.nbytes for split in form.splits.values())
        free = shutil.disk_usage(path.parent).free  # without what a kill has left
        if needed > free:
            raise DataError(
                f"{path.parent}: got {free / 2**30:.4g} GiB that are free; expected "
                f"{needed / 2**30:.4g} GiB for the decoded images. Make room, or set "
                "KERNELGRAD_CACHE to another folder"
            )

        def member(name: str) -> IO[bytes]:
            return archive.open(f"{name}.npy", "w", force_zip64=True)

        for name, split in form.splits.items():
            labels = []
            head = {"descr": "|u1", "fortran_order": False, "shape": split.images.shape}
            with member(f"{name}.images") as output:
                np.lib.format.write_array_header_1_0(output, head)
                for image, label in examples[name]:
                    output.write(image.tobytes())
                    labels.append(label)
            if form.num_classes and min(labels) >= 0:
                with member(f"{name}.labels") as output:
                    np.lib.format.write_array(output, np.array(labels, np.int32))
        with member("num_classes") as output:
            np.lib.format.write_array(output, np.array(form.num_classes))


def _read_cached(path: Path) -> ImageSet | None:
    """Returns the set in a file, or None if it is missing or damaged."""
    try:
        with (
            files.opened(path, MOST_BYTES, follow=True) as file,
            np.load(file, allow_pickle=False) as arrays,
            zipfile.ZipFile(file) as archive,
        ):
            splits = {
                key.removesuffix(".images"): Split(
                    _rows(path, file, archive, f"{key}.npy"),
                    arrays.get(f"{key.removesuffix('.images')}.labels"),
                )
                for key in arrays
                if key.endswith(".images")
            }
            found = ImageSet(splits, int(arrays["num_classes"]))
    except Exception:  # missing, or damaged: a flipped bit makes zipfile and numpy raise any type
        return None
    sound = "train" in splits and all(
        images.ndim == 4
        and (labels is None or (labels.dtype == np.int32 and labels.shape == images.shape[:1]))
        for images, labels in splits.values()
    )
    return found if sound else None


def _rows(path: Path, file: IO[bytes], archive: zipfile.ZipFile, name: str) -> Rows:
    """Returns the images in a member of an .npz, whose CRC-32 is compared.

    Raises:
      Exception: of any type, where they are damaged, packed, or no bytes.
    """
    info = archive.getinfo(name)
    with (
        archive.open(info) as member,
        tqdm(total=info.file_size, desc="Verifying", unit="B", unit_scale=True, delay=1) as bar,
    ):
        np.lib.format.read_magic(member)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
        head = member.tell()
        if is_fortran or dtype != Rows.dtype or info.file_size != head + math.prod(shape):
            raise ValueError(f"got {dtype} of shape {shape}")
        while block := member.read(_VERIFIED_BYTES):
            bar.update(len(block))
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("got packed images")
    file.seek(info.header_offset + _LOCAL_HEADER - 4)  # sizes of the name and of what follows it
    between = sum(struct.unpack("<HH", file.read(4)))
    return Rows(path, info.header_offset + _LOCAL_HEADER + between + head, shape)


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


def read_prepared(
    directory: Path, image_size: int | None, cache: Path, check: Check = lambda _: None
) -> ImageSet:
    """Returns an image set that TFDS has prepared as array_record.

    The decoded arrays are kept in `cache` under the names, sizes and times of the prepared files.

    Args:
      directory: such as ".../mnist/3.0.1".
      image_size: side of the square that is cut out of the middle of each image and resized; None:
        they have one size.
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
    if image_size is not None:
        stamp.update(f"{image_size}".encode())
    name = "-".join((directory.parent.name, directory.name, stamp.hexdigest()[:16]))
    decoding = functools.partial(_decode_prepared, directory, image_size, check)
    return cached(cache / f"{name}.npz", decoding)


def _decode_prepared(directory: Path, image_size: int | None, check: Check) -> Decoding:
    import tensorflow_datasets as tfds  # half a second, which only image sets need

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
        first = decode(sources["train"][0][image], shape, image_size).shape
    form = outline({name: (len(rows), *first) for name, rows in sources.items()}, num_classes)
    check(form)
    if image_size is None:
        shape = first

    def examples(name: str, rows: Any) -> Iterator[tuple[np.ndarray, int]]:
        with _reading(directory):
            for row in _of_source(rows, name):
                label = int(row["label"]) if num_classes else 0  # -1 where there is none
                yield decode(row[image], shape, image_size), label

    return Decoding(form, {name: examples(name, rows) for name, rows in sources.items()})


@contextlib.contextmanager
def _reading(directory: Path) -> Iterator[None]:
    """Turns what goes wrong within a prepared set, which may be anything, into a DataError."""
    try:
        yield
    except Exception as error:
        raise DataError(
            f"cannot read the prepared set {directory} ({reason(error)}); delete it and prepare it "
            "anew, or have images of mixed sizes resized: --image_size=<side>"
        ) from error


def _image_feature(features: Any) -> tuple[str, _Shape]:
    """Returns key and shape of the image feature: "image", else the only one."""
    import tensorflow_datasets as tfds

    images = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
    key = "image" if "image" in images else images[0] if len(images) == 1 else None
    if key is None or features[key].np_dtype != np.uint8 or features[key].shape[-1] not in _MODES:
        raise DataError(f"got the features {listed(features)}; expected one image of 8 bits")
    return key, features[key].shape


def _of_source(rows: Any, name: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a data source, read a batch at a time."""
    with tqdm(total=len(rows), desc=f"Reading {name} split", unit=" images", delay=1) as bar:
        for start in range(0, len(rows), _BATCH):
            batch = rows.__getitems__(range(start, min(start + _BATCH, len(rows))))
            yield from batch
            bar.update(len(batch))
