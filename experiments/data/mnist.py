"""MNIST as a TensorFlow Datasets builder that needs no TensorFlow.

The builder of the same name in TensorFlow Datasets reads its files and encodes its images with
TensorFlow. This one reads the four official files with the standard library, writes PNG bytes into
array_record files, and keeps the official order. What it prepares is an ordinary TFDS directory,
so ``tfds.data_source("mnist", data_dir=..., download=False)`` reads it too.
"""

import contextlib
import gzip
import hashlib
import io
import math
import struct
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums, download_manager

from experiments.data import image_sets
from experiments.data.image_sets import Check
from experiments.run import files
from experiments.run.errors import DataError


class SourceFile(NamedTuple):
    """A published file: its name, its size in bytes and the sha256 of its content."""

    name: str
    size: int
    sha256: str


BASE_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"

FILES = (
    SourceFile(
        "train-images-idx3-ubyte.gz",
        9_912_422,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    SourceFile(
        "train-labels-idx1-ubyte.gz",
        28_881,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    SourceFile(
        "t10k-images-idx3-ubyte.gz",
        1_648_877,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    SourceFile(
        "t10k-labels-idx1-ubyte.gz",
        4_542,
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
)

COUNTS = {"train": 60_000, "test": 10_000}
_SHAPE, _NUM_CLASSES = (28, 28, 1), 10
_CONNECT_SECONDS = 10.0
_MOST_SOURCE_BYTES = 2**24  # of a file, packed
_MOST_IDX_BYTES = 2**26  # and unpacked


def find_source(data_dir: Path) -> Path | None:
    """Returns the folder, data_dir or data_dir/mnist, that holds any of the four files."""
    for folder in (data_dir, data_dir / "mnist"):
        if any(files.kind(folder / file.name) for file in FILES):
            return folder
    return None


def verify(path: Path, file: SourceFile) -> None:
    """Raises DataError unless the file at `path` has the published size and sha256."""
    try:
        with files.opened(path, _MOST_SOURCE_BYTES, follow=True) as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
            size = stream.tell()
    except OSError as error:
        raise DataError(
            f"mnist: cannot read {path} ({error.strerror}); expected the official file of "
            f"{file.size} bytes, sha256 {file.sha256}"
        ) from error
    if (size, actual) != (file.size, file.sha256):
        raise DataError(
            f"mnist: {path} is damaged: got {size} bytes, sha256 {actual}; "
            f"expected {file.size} bytes, sha256 {file.sha256}"
        )


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the bytes of a gzipped IDX file as an array of shape (n, *shape).

    Raises:
      DataError: not gzip, not an IDX file of unsigned bytes, another shape, or another length.
    """
    rank = 1 + len(shape)
    try:
        with (
            files.opened(path, _MOST_SOURCE_BYTES, follow=True) as packed,
            gzip.open(packed) as stream,
        ):
            content = stream.read(_MOST_IDX_BYTES)
        magic, *sizes = struct.unpack_from(f">{1 + rank}I", content)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"mnist: {path} is not a gzipped IDX file: {error}") from error
    if magic != 0x0800 + rank or tuple(sizes[1:]) != shape:
        raise DataError(
            f"mnist: {path} has magic {magic:#06x} and sizes {tuple(sizes)}; "
            f"expected {0x0800 + rank:#06x} and (n, *{shape})"
        )
    header = 4 * (1 + rank)
    if len(content) - header != math.prod(sizes):
        raise DataError(
            f"mnist: {path} holds {len(content) - header} values; expected {math.prod(sizes)}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)


def read_split(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns images (n, 28, 28) and labels (n,) of one split, in the official order.

    Raises:
      DataError: as `read_idx`, no or differing numbers of examples, or a label above 9.
    """
    images, labels = read_idx(images_path, (28, 28)), read_idx(labels_path, ())
    if not 0 < len(images) == len(labels):
        raise DataError(
            f"mnist: {images_path} holds {len(images)} images and {labels_path} {len(labels)} "
            "labels; expected equal numbers, at least 1"
        )
    if labels.max() > 9:
        worst = int(labels.argmax())
        raise DataError(
            f"mnist: {labels_path} has label {labels[worst]} at position {worst}; expected 0..9"
        )
    return images, labels


def _png(image: np.ndarray) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


class MNIST(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The MNIST database of handwritten digits, in the official order.

    It is not registered: the name "mnist" belongs to the builder that TFDS registers.
    """

    VERSION = tfds.core.Version("3.0.1")

    def __init__(self, *, source: Path | None = None, **kwargs: Any) -> None:
        """Reads the four files of the folder `source`, or downloads them if it is None."""
        self._source = source
        super().__init__(**kwargs)

    @property
    def url_infos(self) -> dict[str, checksums.UrlInfo]:
        """The published files by address, for TFDS to verify what it downloads."""
        return {
            BASE_URL + file.name: checksums.UrlInfo(
                size=file.size, checksum=file.sha256, filename=file.name
            )
            for file in FILES
        }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="The MNIST database of handwritten digits.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=_SHAPE),
                    "label": tfds.features.ClassLabel(num_classes=_NUM_CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://yann.lecun.com/exdb/mnist/",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        if self._source is None:
            paths = [Path(path) for path in dl_manager.download(list(self.url_infos))]
        else:
            paths = [self._source / file.name for file in FILES]
        for path, file in zip(paths, FILES, strict=True):
            verify(path, file)
        return {
            "train": self._generate_examples(*paths[:2]),
            "test": self._generate_examples(*paths[2:]),
        }

    def _generate_examples(
        self, images_path: Path, labels_path: Path
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = read_split(images_path, labels_path)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": _png(image), "label": int(label)}


def prepare(source: Path | None, cache: Path, check: Check = lambda _: None) -> Path:
    """Returns the prepared TFDS directory, writing it first where it does not exist yet.

    It lives in a folder of `cache` named by the four published checksums. TFDS writes beside it and
    renames, so processes that prepare at once cannot corrupt each other: the first rename wins.

    Args:
      source: folder with the four files. They are verified on every call, also when the prepared
        directory exists. None: use the prepared directory, or download.
      cache: writable folder, created if need be.
      check: gets the form of the set before it is prepared, if it has to be.

    Raises:
      DataError: a file is missing, damaged or cannot be downloaded, or `cache` is not writable.
    """
    if source is not None:
        for file in FILES:
            verify(source / file.name, file)
    table = "".join(file.sha256 for file in FILES)
    root = cache / f"mnist-{hashlib.sha256(table.encode()).hexdigest()[:12]}"
    directory = root / "mnist" / str(MNIST.VERSION)
    if directory.exists():
        return directory
    shapes = {split: (n, *_SHAPE) for split, n in COUNTS.items()}
    check(image_sets.outline(shapes, _NUM_CLASSES))
    if source is None:
        _require_network()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            builder = MNIST(source=source, data_dir=root, file_format="array_record")
            builder.download_and_prepare(
                download_dir=cache / "downloads",
                download_config=tfds.download.DownloadConfig(force_checksums_validation=True),
            )
    except (download_manager.NonMatchingChecksumError, tfds.download.DownloadError) as error:
        raise DataError(f"mnist: download failed: {' '.join(str(error).split())}") from error
    except OSError as error:
        if not directory.exists():
            raise DataError(
                f"mnist: cannot download the files or write {directory} ({error}); "
                "set KERNELGRAD_CACHE to a writable folder"
            ) from error
    return directory


def _require_network() -> None:
    """Raises DataError within seconds where TFDS would retry for minutes."""
    request = urllib.request.Request(BASE_URL + FILES[0].name, method="HEAD")  # noqa: S310
    try:
        urllib.request.urlopen(request, timeout=_CONNECT_SECONDS).close()  # noqa: S310
    except OSError as error:
        raise DataError(
            f"mnist: no files given and {BASE_URL} cannot be reached ({error}); "
            "pass --data_dir=<folder with the four official .gz files>"
        ) from error
