"""Batches drawn on the host."""

import numpy as np

from experiments.data import feed


def test_host_batches_cover_an_epoch_and_resume(rng):
    data = rng.normal(size=(13, 2)).astype(np.float32)
    stream = feed.host_batches(data.__getitem__, 13, 7, 4, 2, 0, 2)
    first = [next(stream) for _ in range(4)]
    assert first[0].shape == (2, 2, 2, 2)
    epoch = np.concatenate([first[0].swapaxes(0, 1), first[1].swapaxes(0, 1)[:1]]).reshape(-1, 2)
    assert len({tuple(row) for row in epoch}) == 12
    assert {tuple(row) for row in epoch} <= {tuple(row) for row in data}
    resumed = feed.host_batches(data.__getitem__, 13, 7, 4, 2, 4, 2)
    np.testing.assert_array_equal(next(resumed), first[2])
    ahead = feed.prefetched(feed.host_batches(data.__getitem__, 13, 7, 4, 2, 0, 2))
    for batch in first:
        np.testing.assert_array_equal(next(ahead), batch)
