"""Arrays that come back as they were, or are refused with the reason."""

import hashlib
import os

import numpy as np
import pytest

from experiments.run import store

ARRAYS = {
    "state0": np.arange(6, dtype=np.float32).reshape(2, 3),
    "log_step": np.float32(0.25),
    "about": "{}",
}


@pytest.fixture
def path(tmp_path):
    """A file as it was written."""
    (tmp_path / "store.npz").write_bytes(store.packed(ARRAYS))
    return tmp_path / "store.npz"


def test_arrays_come_back(path):
    found = store.read(path, 10**6)
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == np.asarray(array).dtype
    assert path.read_bytes() == store.packed(ARRAYS)


def test_the_digest_is_that_of_names_types_shapes_and_entries(rng):
    arrays = {"b": rng.normal(size=(2, 3)), "a": np.arange(3)}
    text = b"a int64 (3,)\n" + arrays["a"].tobytes() + b"b float64 (2, 3)\n" + arrays["b"].tobytes()
    assert store.digest(arrays) == hashlib.sha256(text).hexdigest()
    assert store.digest(dict(reversed(arrays.items()))) == store.digest(arrays)
    others = ({"b": arrays["b"]}, arrays | {"a": np.arange(3, dtype=np.uint64)})
    assert store.digest(arrays) not in [store.digest(other) for other in others]


def test_no_flipped_bit_passes_unseen(path, rng):
    intact, refused = path.read_bytes(), 0
    for position in rng.integers(0, len(intact), 200):
        damaged = bytearray(intact)
        damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            found = store.read(path, 10**6)
        except ValueError:
            refused += 1
        else:
            for name, array in ARRAYS.items():
                np.testing.assert_array_equal(found[name], array)
    assert refused > 50


def _changed(path):
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | {"log_step": np.float32(0.5)})


def _linked(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def _fifo(path):
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "missing": (lambda path: path.unlink(), "No such file"),
    "cut": (lambda path: os.truncate(path, 100), "no arrays"),
    "changed": (_changed, "got arrays of SHA-256 .*; expected [0-9a-f]{64}$"),
    "no digest": (lambda path: np.savez(path, **ARRAYS), "got arrays of SHA-256 .*; expected none"),
    "pickles": (lambda path: np.savez(path, a=np.array([None])), "no arrays: .*pickle"),
    "link": (_linked, "got a symbolic link"),
    "fifo": (_fifo, "got a fifo"),
    "large": (lambda path: os.truncate(path, 2**30), "got 1073741824 bytes; expected at most"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_as_it_was_written_is_refused(path, damage):
    make, message = DAMAGES[damage]
    make(path)
    with pytest.raises(ValueError, match=message):
        store.read(path, 10**6)


def test_objects_are_not_written():
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        store.packed({"a": np.array([None])})
