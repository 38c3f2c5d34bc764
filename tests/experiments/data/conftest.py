"""What the tests of data share: an empty cache, and small sets that count as the published ones."""

import gzip
import hashlib
import io
import os

import numpy as np
import pytest
from PIL import Image

from experiments.data import cifar10, mnist
from experiments.run import errors

REAL_DATA = os.environ.get("KERNELGRAD_DATA_DIR")
needs_real_data = pytest.mark.skipif(
    not REAL_DATA, reason="KERNELGRAD_DATA_DIR is not set: no real data sets here"
)
Z_BOUND = 5.5  # two-sided 4e-8 per check, for about a hundred checks


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder, which no test shares with another or with the user."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("KERNELGRAD_CACHE", str(folder))
    return folder


def message_of(call, *args, **kwargs):
    """The one-line message of the DataError that the call raises."""
    with pytest.raises(errors.DataError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


class UnwantedError(Exception):
    """What a check raises."""


def forms_of(load):
    """The data sets that a check gets, where it refuses the first of them."""
    forms = []

    def check(dataset):
        forms.append(dataset)
        raise UnwantedError

    with pytest.raises(UnwantedError):
        load(check)
    return forms


def idx(array):
    """The IDX file of an array of unsigned bytes, by the published description of the format."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


def publish(monkeypatch, folder, contents):
    """Writes gzipped files under the official names and has their checksums published."""
    folder.mkdir(parents=True, exist_ok=True)
    table = []
    for file, content in zip(mnist.FILES, contents, strict=True):
        zipped = gzip.compress(content, mtime=0)
        (folder / file.name).write_bytes(zipped)
        digest = hashlib.sha256(zipped).hexdigest()
        table.append(mnist.SourceFile(file.name, len(zipped), digest))
    monkeypatch.setattr(mnist, "FILES", tuple(table))


@pytest.fixture
def arrays(rng):
    """Images and labels of a small training split, then of a small test split."""
    return [
        rng.integers(256, size=(37, 28, 28), dtype=np.uint8),
        rng.permutation(np.arange(37, dtype=np.uint8) % 10),
        rng.integers(256, size=(12, 28, 28), dtype=np.uint8),
        np.arange(12, dtype=np.uint8)[::-1] % 10,
    ]


@pytest.fixture
def small_mnist(tmp_path, monkeypatch, arrays):
    """A data folder with mnist/, whose four files are small and count as the published ones."""
    publish(monkeypatch, tmp_path / "data" / "mnist", [idx(array) for array in arrays])
    return tmp_path / "data"


def flipped(content, rng):
    """The content with one bit changed."""
    bad = bytearray(content)
    bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
    return bytes(bad)


CLASSES = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]


def jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


@pytest.fixture
def small_cifar(rng, monkeypatch):
    """Members of an archive with two training images and one test image a class."""
    monkeypatch.setattr(cifar10, "COUNTS", {"train": 20, "test": 10})
    members = {}
    for split, count in (("train", 2), ("test", 1)):
        for label in CLASSES:
            for number in range(count):
                image = rng.integers(256, size=(32, 32, 3), dtype=np.uint8)
                members[f"{split}/{label}/{number:04d}.jpg"] = jpeg(image)
    return members
