"""Points in the plane, drawn by formula."""

from collections.abc import Callable

import numpy as np

from experiments.data.dataset import Dataset

_NUM_TRAIN, _NUM_TEST = 10_000, 2_000
_Toy = tuple[np.ndarray, np.ndarray | None]


def _swiss_roll(rng: np.random.Generator, n: int) -> _Toy:
    """Points x = t (cos t, sin t) / 10 + 0.05 e; t = 3/2 pi (1 + 2 u), u ~ U(0, 1), e ~ N(0, I)."""
    t = 1.5 * np.pi * (1 + 2 * rng.random(n))
    spiral = np.stack([t * np.cos(t), t * np.sin(t)], axis=1) / 10
    return spiral + 0.05 * rng.standard_normal((n, 2)), None


def _ring(rng: np.random.Generator, n: int) -> _Toy:
    """Points x = r (cos a, sin a); r ~ N(1, 0.1^2), a ~ U(0, 2 pi)."""
    angle = 2 * np.pi * rng.random(n)
    radius = 1 + 0.1 * rng.standard_normal(n)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1), None


def _banana(rng: np.random.Generator, n: int) -> _Toy:
    """Points x = (e_1, (e_1^2 - 1) / 2 + 0.3 e_2); e ~ N(0, I)."""
    e1, e2 = rng.standard_normal((2, n))
    return np.stack([e1, (e1**2 - 1) / 2 + 0.3 * e2], axis=1), None


def _grid(rng: np.random.Generator, n: int) -> _Toy:
    """25 equal Gaussians of standard deviation 0.05; label 5 i + j is centred at (i - 2, j - 2)."""
    labels = rng.integers(25, size=n)
    centres = np.stack([labels // 5 - 2, labels % 5 - 2], axis=1)
    return centres + 0.05 * rng.standard_normal((n, 2)), labels


def _eight_gaussians(rng: np.random.Generator, n: int) -> _Toy:
    """8 equal Gaussians of standard deviation 0.1; label k: centre 2 (cos, sin)(pi k / 4)."""
    labels = rng.integers(8, size=n)
    angle = np.pi / 4 * labels
    centres = 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return centres + 0.1 * rng.standard_normal((n, 2)), labels


def _curve(rng: np.random.Generator, n: int) -> _Toy:
    """Points x = (u, sin(pi u)), u ~ U(-1, 1): on a curve, which has no area."""
    u = 2 * rng.random(n) - 1
    return np.stack([u, np.sin(np.pi * u)], axis=1), None


def _segments(rng: np.random.Generator, n: int) -> _Toy:
    """Points x = (label - 1/2, u), u ~ U(-1, 1): on two parallel segments, which have no area."""
    labels = rng.integers(2, size=n)
    return np.stack([labels - 0.5, 2 * rng.random(n) - 1], axis=1), labels


TOYS: dict[str, tuple[Callable[[np.random.Generator, int], _Toy], int]] = {
    "swiss_roll": (_swiss_roll, 0),
    "ring": (_ring, 0),
    "grid": (_grid, 25),
    "banana": (_banana, 0),
    "eight_gaussians": (_eight_gaussians, 8),
    "curve": (_curve, 0),
    "segments": (_segments, 2),
}


def load(name: str, seed: int) -> Dataset:
    """Returns the set `name`, one of TOYS; the labels number the Gaussians of which it consists."""
    sample, num_classes = TOYS[name]
    points, labels = sample(np.random.default_rng(seed), _NUM_TRAIN + _NUM_TEST)
    train, test = np.split(points.astype(np.float32), [_NUM_TRAIN])
    if labels is None:
        return Dataset(name, train, test, None, None, 0)
    train_labels, test_labels = np.split(labels.astype(np.int32), [_NUM_TRAIN])
    return Dataset(name, train, test, train_labels, test_labels, num_classes)
