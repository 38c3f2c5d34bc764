"""Batches for data sets that do not fit on the device: drawn on the host, one call ahead."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


def host_batches(
    rows: Callable[[np.ndarray], np.ndarray],
    num_rows: int,
    seed: int,
    batch_size: int,
    per_call: int,
    start: int,
    num_devices: int,
    own: slice = slice(None),
) -> Iterator[np.ndarray]:
    """Yields batches drawn on the host, from step `start` on.

    Each epoch is a permutation that depends on (seed, epoch) alone, so that a resumed run draws
    the batches of an uninterrupted one.

    Args:
      rows: indices (...) -> examples (..., d_1, d_2, ...), from memory or from the disk.
      num_rows: number of examples.
      seed: seed of the permutations.
      batch_size: size of the whole batch.
      per_call: batches per item.
      start: the first step.
      num_devices: number of devices that share a batch, whatever process they belong to.
      own: those of this process, whose rows alone are read.

    Yields:
      Arrays of shape (own devices, per_call, batch_size / num_devices, ...).
    """
    per_epoch = num_rows // batch_size
    epoch, order = -1, np.empty(0, np.int64)
    step = start
    while True:
        chosen = []
        for _ in range(per_call):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = np.random.default_rng([seed, epoch]).permutation(num_rows)
            first = step % per_epoch * batch_size
            chosen.append(order[first : first + batch_size])
            step += 1
        shares = np.stack(chosen).reshape(per_call, num_devices, -1).swapaxes(0, 1)
        yield rows(shares[own])


def prefetched(items: Iterator[Any]) -> Iterator[Any]:
    """Yields the same items, each prepared in a thread while the one before it is used."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        upcoming = thread.submit(next, items)
        while True:
            item = upcoming.result()
            upcoming = thread.submit(next, items)
            yield item
