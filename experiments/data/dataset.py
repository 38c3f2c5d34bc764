"""What a data set is: arrays, and their labels where there are any."""

from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """A data set in memory.

    Attributes:
      name: the name it was asked by.
      train: images, uint8 (n, h, w, c) in 0..255; or points, float32 (n, d).
      test: held-out data of the same kind.
      train_labels: int32 (n,) in 0..num_classes - 1, or None.
      test_labels: the same for `test`.
      num_classes: number of classes; 0 without labels.
      valid: data for model selection, where the set has a split for it.
      valid_labels: the same for `valid`.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    train_labels: np.ndarray | None
    test_labels: np.ndarray | None
    num_classes: int
    valid: np.ndarray | None = None
    valid_labels: np.ndarray | None = None

    @property
    def is_image(self) -> bool:
        """Whether an example is an image, not a point."""
        return self.train.ndim == 4

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one example: (h, w, c) or (d,)."""
        return self.train.shape[1:]
