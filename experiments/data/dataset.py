"""What a data set is: arrays, and their labels where there are any."""

from typing import NamedTuple

import numpy as np

from experiments.data.rows import Rows

_PART_BYTES = 2**30  # of a split on the disk, from which networks learn

Examples = np.ndarray | Rows
Index = slice | np.ndarray  # of examples


class Dataset(NamedTuple):
    """A data set in memory, or on the disk where its reader can do with some images at a time.

    Attributes:
      name: the name it was asked by.
      train: images, uint8 (n, h, w, c) in 0..255; or points, float32 (n, d); those of images that
        stay on the disk are :class:`Rows`.
      test: held-out data of the same kind.
      train_labels: int32 (n,) in 0..num_classes - 1, or None.
      test_labels: the same for `test`.
      num_classes: number of classes; 0 without labels.
      valid: data for model selection, where the set has a split for it.
      valid_labels: the same for `valid`.
    """

    name: str
    train: Examples
    test: Examples
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

    def part(self) -> "Dataset":
        """Returns a set in memory for a network to learn from: the same one, if it is there.

        Of one on the disk it is a GiB of each split at most, at equal distances.
        """
        train, train_labels = _some(self.train, self.train_labels)
        test, test_labels = _some(self.test, self.test_labels)
        return self._replace(
            train=train, test=test, train_labels=train_labels, test_labels=test_labels
        )


def _some(examples: Examples, labels: np.ndarray | None) -> tuple[Examples, np.ndarray | None]:
    if isinstance(examples, np.ndarray):
        return examples, labels
    count = min(len(examples), max(1, _PART_BYTES * len(examples) // examples.nbytes))
    chosen = np.arange(count) * len(examples) // count
    return examples[chosen], None if labels is None else labels[chosen]
