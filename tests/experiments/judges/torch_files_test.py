"""Checkpoints of PyTorch, written here as it writes them, and by itself where it is installed."""

import collections
import io
import os
import pickle
import sys
import types

import numpy as np
import pytest

from experiments.judges import torch_files

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Storage:
    """The items of a tensor."""

    def __init__(self, array):
        self.array, self.kind = array, "LongStorage" if array.dtype == np.int64 else "FloatStorage"


class Tensor:
    """A tensor as its class pickles it."""

    def __init__(self, storage, offset, shape, strides):
        self.args = (storage, offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.args


@pytest.fixture
def named(monkeypatch):
    """Stands in for the modules whose names a checkpoint holds."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*args):
        raise AssertionError("nothing of the file is called")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    for kind in ("FloatStorage", "LongStorage", "HalfStorage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch", "__qualname__": kind}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def written(tensors, *, kinds=None, magic=MAGIC):
    """Returns the file of a dictionary of tensors."""
    storages = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, Storage):
                return None
            if value not in storages:
                storages.append(value)
            kind = getattr(sys.modules["torch"], (kinds or {}).get(value.kind, value.kind))
            return ("storage", kind, str(storages.index(value)), "cpu", value.array.size, None)

    file = io.BytesIO()
    for value in (magic, PROTOCOL, {"little_endian": True}):
        pickle.dump(value, file, protocol=2)
    Pickler(file, protocol=2).dump(collections.OrderedDict(tensors))
    pickle.dump([str(i) for i in range(len(storages))], file, protocol=2)
    for storage in storages:
        file.write(np.int64(storage.array.size).tobytes() + storage.array.tobytes())
    return file.getvalue()


@pytest.fixture
def arrays(rng):
    return {
        "a.weight": rng.normal(size=(3, 2)).astype(np.float32),
        "a.bias": rng.normal(size=(4,)).astype(np.float32),
        "a.count": np.array(7, np.int64),
    }


def whole(array):
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return Tensor(Storage(array.ravel()), 0, array.shape, strides)


@pytest.mark.usefixtures("named")
def test_tensors_come_back_by_their_names(arrays):
    found = torch_files.state_dict(written({name: whole(a) for name, a in arrays.items()}))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.usefixtures("named")
def test_tensors_may_share_a_storage(rng):
    items = rng.normal(size=10).astype(np.float32)
    storage = Storage(items)
    tensors = {"a": Tensor(storage, 0, (2, 2), (2, 1)), "b": Tensor(storage, 4, (6,), (1,))}
    found = torch_files.state_dict(written(tensors))
    np.testing.assert_array_equal(found["a"], items[:4].reshape(2, 2))
    np.testing.assert_array_equal(found["b"], items[4:])


def test_nothing_else_is_unpickled(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    with pytest.raises(
        ValueError, match=r"no tensors: got posix\.mkdir; expected tensors of float32"
    ):
        torch_files.state_dict(pickle.dumps(Harm(), protocol=2))
    assert not (tmp_path / "harm").exists()


@pytest.mark.usefixtures("named")
def test_other_content_is_refused(arrays):
    tensors = {name: whole(array) for name, array in arrays.items()}
    content = written(tensors)
    for damaged in (b"", b"PK\x03\x04" + content, content[:-1], content[:-30], content[:200]):
        with pytest.raises(ValueError, match="no tensors: "):
            torch_files.state_dict(damaged)
    with pytest.raises(ValueError, match=r"another format than that of torch\.save before 1\.6"):
        torch_files.state_dict(written(tensors, magic=1))
    with pytest.raises(ValueError, match=r"got torch\.HalfStorage; expected tensors of float32"):
        torch_files.state_dict(written(tensors, kinds={"FloatStorage": "HalfStorage"}))
    array = arrays["a.weight"]
    turned = Tensor(Storage(array.ravel()), 0, (2, 3), (1, 2))
    with pytest.raises(ValueError, match=r"strides \(1, 2\); expected \(3, 1\)"):
        torch_files.state_dict(written({"a": turned}))


def test_what_pytorch_writes_is_read(arrays):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    file = io.BytesIO()
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    torch.save(tensors, file, _use_new_zipfile_serialization=False)
    found = torch_files.state_dict(file.getvalue())
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
