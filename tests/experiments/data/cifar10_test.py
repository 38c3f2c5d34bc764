"""CIFAR-10 as JPEG files: facts of the real one, hostile archives, damage that must not pass."""

import hashlib
import io
import lzma
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.data import catalog, cifar10
from tests.experiments.data.conftest import (
    CLASSES,
    REAL_DATA,
    flipped,
    forms_of,
    jpeg,
    message_of,
    needs_real_data,
)


def write_archive(path, members, extra=()):
    """Writes a .tar.xz of the members, with `extra` (TarInfo, content) before the last of them."""
    with tarfile.open(path, "w:xz", preset=0) as tar:
        for folder in ("train", "train/airplane"):
            info = tarfile.TarInfo(folder)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        for number, (name, content) in enumerate(members.items()):
            if number == len(members) - 1:
                for info, extra_content in extra:
                    tar.addfile(info, io.BytesIO(extra_content))
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("folder", [".", "cifar10"])
def test_cifar_images_and_labels(tmp_path, small_cifar, folder):
    (tmp_path / "cifar10").mkdir()
    write_archive(tmp_path / folder / "cifar10-jpeg.tar.xz", small_cifar)
    for _ in range(2):
        cifar = catalog.load("cifar10_jpeg", str(tmp_path))
        pixels = {name: np.asarray(Image.open(io.BytesIO(c))) for name, c in small_cifar.items()}
        for split, images, labels in (
            ("train", cifar.train, cifar.train_labels),
            ("test", cifar.test, cifar.test_labels),
        ):
            names = {p.tobytes(): n for n, p in pixels.items() if n.startswith(split)}
            found = [names.pop(image.tobytes()) for image in images]
            assert not names
            assert [CLASSES[label] for label in labels] == [n.split("/")[1] for n in found]
            assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        assert (cifar.num_classes, cifar.sample_shape) == (10, (32, 32, 3))


def picture(kind="JPEG"):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, kind)
    return buffer.getvalue()


def entry(name, kind=tarfile.REGTYPE, target="", content=None):
    """A member, by default a good image, with its content."""
    content = picture() if content is None else content
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    return info, content


ALIEN, LARGE, DOUBLE = (
    "does not belong there",
    "expected at most 65536",
    "duplicate or one too many",
)
NEW = "train/airplane/0005.jpg"
HOSTILE = {
    "parent": (entry("../evil.jpg"), ALIEN),
    "parent before": (entry("../train/airplane/0005.jpg"), ALIEN),
    "parent inside": (entry("train/airplane/../../../evil.jpg"), ALIEN),
    "absolute": (entry("/evil.jpg"), ALIEN),
    "dot": (entry("./train/airplane/0005.jpg"), ALIEN),
    "backslash": (entry("train\\airplane\\..\\0005.jpg"), ALIEN),
    "suffix": (entry("train/airplane/0005.jpg.exe"), ALIEN),
    "newline": (entry("train/airplane/0005.jpg\n"), ALIEN),
    "other name": (entry("train/airplane/0005.py"), ALIEN),
    "other class": (entry("train/goose/0005.jpg"), ALIEN),
    "other split": (entry("valid/airplane/0005.jpg"), ALIEN),
    "long name": (entry("train/airplane/" + "a/" * 70_000 + "0.jpg"), ALIEN),
    "folder outside": (entry("../evil", tarfile.DIRTYPE), ALIEN),
    "symlink": (entry(NEW, tarfile.SYMTYPE, "/etc/passwd"), ALIEN),
    "symlink folder": (entry("train/airplane", tarfile.SYMTYPE, "/var"), ALIEN),
    "hard link": (entry(NEW, tarfile.LNKTYPE, "../../etc/passwd"), ALIEN),
    "device": (entry(NEW, tarfile.CHRTYPE), ALIEN),
    "pipe": (entry(NEW, tarfile.FIFOTYPE), ALIEN),
    "large file": (entry(NEW, content=picture() + bytes(65_536)), LARGE),
    "duplicate": (entry("train/airplane/0000.jpg"), DOUBLE),
    "other format": (entry(NEW, content=picture("GIF")), "not a PNG or JPEG"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archive_is_refused_and_writes_nothing(tmp_path, small_cifar, cache, case):
    member, expected = HOSTILE[case]
    folder = tmp_path / "deep" / "data"
    folder.mkdir(parents=True)
    del small_cifar["train/airplane/0001.jpg"]  # so that the hostile one makes the number right
    path = write_archive(folder / "cifar10-jpeg.tar.xz", small_cifar, [member])
    message = message_of(catalog.load, "cifar10_jpeg", str(folder))
    assert expected in message
    assert str(path) in message
    assert hashlib.sha256(path.read_bytes()).hexdigest() in message
    assert [entry for entry in tmp_path.rglob("*") if not entry.is_dir()] == [path]
    assert not cache.exists()
    assert not Path("/evil.jpg").exists()


def pax(records):
    """A member that holds extended headers of the next one."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    return info, records


@pytest.mark.parametrize(
    "records",
    [
        b"x size=1\n",
        b"-5 size=1\n",
        b"9" * 5000 + b" size=1\n",
        b"5012 size=" + b"9" * 5000 + b"\n",
        b"21 GNU.sparse.map=x,y\n",
        b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n25 GNU.sparse.realsize=x\n",
        b"26 GNU.sparse.numblocks=x\n24 GNU.sparse.offset=x\n",
        b"\xff" * 100,
        b"",
    ],
    ids=range(9),
)
def test_hostile_headers_of_an_archive_are_refused(tmp_path, small_cifar, cache, records):
    del small_cifar["train/airplane/0001.jpg"]
    write_archive(tmp_path / "cifar10-jpeg.tar.xz", small_cifar, [pax(records)])
    message = message_of(catalog.load, "cifar10_jpeg", str(tmp_path))
    assert "cifar10-jpeg.tar.xz (sha256 " in message
    assert "\n" not in message
    assert not cache.exists()


def test_an_archive_is_checked_before_it_is_decoded(tmp_path, small_cifar, cache):
    write_archive(tmp_path / "cifar10-jpeg.tar.xz", small_cifar)
    (form,) = forms_of(lambda check: catalog.load("cifar10_jpeg", str(tmp_path), check=check))
    assert not cache.exists()
    assert (form.train.shape, form.test.shape) == ((20, 32, 32, 3), (10, 32, 32, 3))


def test_one_image_too_many_is_refused(tmp_path, small_cifar):
    write_archive(tmp_path / "cifar10-jpeg.tar.xz", small_cifar, [entry(NEW)])
    assert DOUBLE in message_of(catalog.load, "cifar10_jpeg", str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"%PDF", bytes(500)])
def test_member_that_is_no_image_is_refused(tmp_path, small_cifar, content):
    small_cifar["train/cat/0001.jpg"] = content
    write_archive(tmp_path / "cifar10-jpeg.tar.xz", small_cifar)
    assert "not a PNG or JPEG" in message_of(catalog.load, "cifar10_jpeg", str(tmp_path))


def test_image_of_another_size_is_refused_before_it_is_decoded(tmp_path, small_cifar, rng):
    image = jpeg(rng.integers(256, size=(33, 32, 3), dtype=np.uint8))
    small_cifar["train/cat/0001.jpg"] = image
    write_archive(tmp_path / "cifar10-jpeg.tar.xz", small_cifar)
    assert "33 x 32; expected 32 x 32" in message_of(catalog.load, "cifar10_jpeg", str(tmp_path))
    small_cifar["train/cat/0001.jpg"] = image.replace(b"\0\x21\0\x20", b"\xff\xf0\xff\xf0")
    write_archive(tmp_path / "cifar10-jpeg.tar.xz", small_cifar)
    assert "decompression bomb" in message_of(catalog.load, "cifar10_jpeg", str(tmp_path))


def test_archive_without_all_images_is_refused(tmp_path, small_cifar):
    del small_cifar["test/dog/0000.jpg"]
    write_archive(tmp_path / "cifar10-jpeg.tar.xz", small_cifar)
    message = message_of(catalog.load, "cifar10_jpeg", str(tmp_path))
    assert "got 9 test images; expected 10" in message


@pytest.mark.parametrize("kind", ["header", "padding"])
def test_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, small_cifar, kind):
    monkeypatch.setattr(cifar10, "_MAX_ARCHIVE_BYTES", 2**20)
    path = tmp_path / "cifar10-jpeg.tar.xz"
    if kind == "header":
        write_archive(path, small_cifar, [entry("train/airplane/" + "0" * 2**21 + ".jpg")])
    else:
        write_archive(path, small_cifar)
        with lzma.open(path, "ab") as stream:
            stream.write(bytes(2**21))
    assert path.stat().st_size < 2**17
    message = message_of(catalog.load, "cifar10_jpeg", str(tmp_path))
    assert "unpacks to more than 1048576 bytes" in message


def test_every_flipped_bit_of_the_archive_is_detected(tmp_path, small_cifar, rng):
    path = write_archive(tmp_path / "cifar10-jpeg.tar.xz", small_cifar)
    good = path.read_bytes()
    for bad in (b"", good[:-1], good[:100], *(flipped(good, rng) for _ in range(60))):
        path.write_bytes(bad)
        message = message_of(catalog.load, "cifar10_jpeg", str(tmp_path))
        assert hashlib.sha256(bad).hexdigest() in message


@needs_real_data
def test_real_cifar():
    cifar = catalog.load("cifar10_jpeg", REAL_DATA)
    for labels, count in ((cifar.train_labels, 5000), (cifar.test_labels, 1000)):
        assert list(np.bincount(labels)) == [count] * 10
    mean = cifar.train.mean((0, 1, 2))
    np.testing.assert_allclose(mean, [125.3, 123.0, 113.9], atol=1)  # of the original PNGs
