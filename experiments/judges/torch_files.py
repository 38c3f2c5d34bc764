"""The tensors of a PyTorch checkpoint, read without PyTorch.

The format is that of ``torch.save`` before its version 1.6, in which the public weights are: five
pickles, of which the fourth is the object and the fifth lists the storages, and then each storage,
its number of items in 8 bytes before them. Nothing is unpickled but dictionaries, tensors and what
they are made of.
"""

import collections
import io
import math
import pickle
from typing import Any, NamedTuple

import numpy as np

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _Storage(NamedTuple):
    """What a tensor's items are in, once they are read."""

    dtype: np.dtype[Any]
    num_items: int
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]


def state_dict(content: bytes) -> dict[str, np.ndarray]:
    """Returns the tensors by their names.

    Args:
      content: of the whole file.

    Raises:
      ValueError: it is in another format, holds other things, or is damaged.
    """
    file = io.BytesIO(content)
    try:
        magic, protocol, _, tensors, keys = (_Unpickler(file).load() for _ in range(5))
        if (magic, protocol) != (_MAGIC, _PROTOCOL):
            raise ValueError("another format than that of torch.save before 1.6")
        kinds = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
        items = {key: _items(file, kinds[key]) for key in keys}
        return {name: _array(tensor, items) for name, tensor in tensors.items()}
    except Exception as error:  # a damaged pickle raises a dozen types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"no tensors: {reason}") from error


class _Unpickler(pickle.Unpickler):
    """Reads dictionaries of tensors, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise ValueError(f"got {module}.{name}; expected tensors of float32 or int64")

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, num_items, _ = pid
        return _Storage(dtype, num_items, key)


def _rebuilt(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> _Tensor:
    expected = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    if strides != expected:
        raise ValueError(f"a tensor of strides {strides}; expected {expected}")
    return _Tensor(storage, offset, shape)


def _items(file: io.BytesIO, storage: _Storage) -> np.ndarray:
    (found,) = np.frombuffer(file.read(8), "<i8")
    if found != storage.num_items:
        raise ValueError(f"a storage of {found} items; expected {storage.num_items}")
    return np.frombuffer(file.read(found * storage.dtype.itemsize), storage.dtype, found)


def _array(tensor: _Tensor, items: dict[str, np.ndarray]) -> np.ndarray:
    end = tensor.offset + math.prod(tensor.shape)
    return items[tensor.storage.key][tensor.offset : end].reshape(tensor.shape)
