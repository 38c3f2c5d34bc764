"""The table of rbm."""

import numpy as np

from experiments.data.dataset import Dataset
from experiments.reports import machines


def test_anchors_are_gaussians_without_hidden_units(rng):
    images = rng.integers(0, 256, size=(30, 3, 3, 1)).astype(np.uint8)
    train, test = images[:20], images[20:]
    x, y = (part.reshape(-1, 9) / 255 for part in (train, test))
    found = machines.anchors(Dataset("noise", train, test, None, None, 0))
    for name, mean in (("N(0, I)", np.zeros(9)), ("N(mean, I)", x.mean(axis=0))):
        expected = -4.5 * np.log(2 * np.pi) - np.mean(np.sum((y - mean) ** 2, axis=1)) / 2
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)
