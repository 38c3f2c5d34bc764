"""Images that stay on the disk, read as they are asked for."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from experiments.run import files
from experiments.run.errors import StorageError

MOST_BYTES = 2**44  # of a file


class Rows:
    """Images in a file, of which an index reads those that it takes, and gives them as an array.

    They are read and not mapped: mapped pages count as this process's memory until somebody else
    needs it, and a file cut short would be a signal in place of an error.

    Attributes:
      shape: (n, h, w, c).
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, path: Path, start: int, shape: tuple[int, ...], order: np.ndarray | None = None
    ) -> None:
        """Takes images as they stand in a file, or some of them in an order.

        Args:
          path: the file.
          start: position of its first image.
          shape: of all of its images, uint8.
          order: indices of those that are taken; None: all, as they stand.
        """
        self._path, self._start = path, start
        self._order = np.arange(shape[0]) if order is None else order
        self.shape = (len(self._order), *shape[1:])

    def __len__(self) -> int:
        """Returns n."""
        return len(self._order)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of all n images."""
        return math.prod(self.shape)

    def is_same(self, other: "Rows") -> bool:
        """Whether both take the same images of one file, in one order; none is read."""
        mine, theirs = ((rows._path, rows._start, rows.shape) for rows in (self, other))
        return mine == theirs and np.array_equal(self._order, other._order)

    def of(self, order: np.ndarray) -> "Rows":
        """Returns some of the images, without reading them."""
        return Rows(self._path, self._start, self.shape, self._order[order])

    def __getitem__(self, index: Any) -> np.ndarray:
        """Returns images, uint8 (..., h, w, c), of a slice or of an array of indices (...).

        Raises:
          StorageError: the file is gone, or shorter than it was.
        """
        chosen = np.asarray(self._order[index])
        images = np.empty((*chosen.shape, *self.shape[1:]), self.dtype)
        size = math.prod(self.shape[1:])
        rows, blocks = chosen.ravel(), images.reshape(-1, size)
        ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1), len(rows)]  # of those side by side
        try:
            with files.opened(self._path, MOST_BYTES, follow=True) as file:
                for start, end in zip([0, *ends], ends, strict=False):
                    if end > start:
                        place = self._start + int(rows[start]) * size
                        _fill(blocks[start:end], file.fileno(), place)
        except OSError as error:
            raise StorageError(
                f"{self._path}: {error.strerror or error}; expected the decoded images that it "
                "held. Run the same command again"
            ) from error
        return images

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        """Refuses to become an array by accident: whoever wants all images takes `[:]`."""
        raise TypeError(f"got images of {self._path}, {self.shape}; expected an index")


def _fill(block: np.ndarray, descriptor: int, place: int) -> None:
    """Fills an array from a place in a file on; OSError where that ends before."""
    left = block.reshape(-1).data
    while left:
        count = os.preadv(descriptor, [left], place)  # at most 2 GiB
        if not count:
            raise OSError(f"ends at byte {place}")
        left, place = left[count:], place + count
