"""The inputs of every task, and how far a result is from the truth, in float64 by NumPy."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

_BLOCK = 1024


class Particles(NamedTuple):
    """n points of a standard normal, its score there, and a kernel's lengthscale."""

    x: np.ndarray
    score: np.ndarray
    lengthscale: float


class TwoSamples(NamedTuple):
    """Two sets of n points each, and the lengthscales of a mixture of four kernels."""

    x: np.ndarray
    y: np.ndarray
    lengthscales: tuple[float, ...]


def particles(n: int, d: int) -> Particles:
    """Returns points whose squared distances are about twice the squared lengthscale."""
    x = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    return Particles(x, -x, d**0.5)


def two_samples(n: int, d: int) -> TwoSamples:
    """Returns two normals, one shifted and wider, and lengthscales around their median distance."""
    x, y = np.random.default_rng(1).normal(size=(2, n, d))
    scales = tuple((2 * d * scale) ** 0.5 for scale in (0.5, 1.0, 2.0, 4.0))
    return TwoSamples(x.astype(np.float32), (1.1 * y + 0.2).astype(np.float32), scales)


def relative_difference(result: Any, reference: Any) -> float:
    """Returns |result - reference| / |reference|, or 0 where both vanish."""
    reference = np.asarray(reference, np.float64)
    distance = np.linalg.norm(np.asarray(result, np.float64) - reference)
    return float(distance / (np.linalg.norm(reference) or 1.0))


def svgd_error(problem: Particles, direction: np.ndarray) -> float:
    """Returns the relative error of the SVGD direction (RBF) at 8 of the particles."""
    x, score = (np.asarray(a, np.float64) for a in problem[:2])
    chosen = np.linspace(0, len(x) - 1, 8).astype(int)
    exact = []
    for point in x[chosen]:
        difference = point - x
        k = np.exp(-np.sum(difference**2, axis=1) / (2 * problem.lengthscale**2))
        exact.append(k @ score + k @ difference / problem.lengthscale**2)
    return relative_difference(direction[chosen], np.stack(exact) / len(x))


def median_error(problem: Particles, median: np.ndarray) -> float:
    """Returns the relative error of the median squared distance over pairs i < j."""
    x = np.asarray(problem.x, np.float64)
    pairs = np.concatenate(
        [
            np.sum((point - x[index + 1 :]) ** 2, axis=1)  # one row of the upper triangle
            for index, point in enumerate(x)
        ]
    )
    return relative_difference(median, np.median(pairs))


def mmd_error(problem: TwoSamples, value_and_gradient: tuple[np.ndarray, np.ndarray]) -> float:
    """Returns the relative error of the V-statistic of MMD^2 with four IMQ kernels."""
    x, y = (np.asarray(a, np.float64) for a in problem[:2])

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        total = 0.0
        for rows, columns in _blocks(a, b):
            sq_dist = _squared_distances(a[rows], b[columns])
            total += sum(np.sum(_imq(sq_dist, l)) for l in problem.lengthscales)
        return total / (len(a) * len(b))

    return relative_difference(value_and_gradient[0], mean(x, x) + mean(y, y) - 2 * mean(x, y))


def ksd_error(problem: Particles, value: np.ndarray) -> float:
    """Returns the relative error of the V-statistic of KSD^2 with an IMQ kernel."""
    x, score = (np.asarray(a, np.float64) for a in problem[:2])
    along = np.sum(x * score, axis=1)
    total = 0.0
    for i, j in _blocks(x, x):
        if j.start < i.start:
            continue
        sq_dist = _squared_distances(x[i], x[j])
        k = _imq(sq_dist, problem.lengthscale)
        slope, curvature = _imq_derivatives(k, problem.lengthscale)
        moved = along[i, None] + along[j] - score[i] @ x[j].T - x[i] @ score[j].T
        stein = score[i] @ score[j].T * k - 2 * slope * (moved + x.shape[1])
        total += np.sum(stein - 4 * curvature * sq_dist) * (1 if i == j else 2)
    return relative_difference(value, total / len(x) ** 2)


def stein_error(problem: Particles, score: np.ndarray) -> float:
    """Returns the relative error of the Stein score estimate with an IMQ kernel."""
    x = np.asarray(problem.x, np.float64)
    k = _imq(_squared_distances(x, x), problem.lengthscale)
    slope, _ = _imq_derivatives(k, problem.lengthscale)
    repulsion = 2 * (slope @ x - slope.sum(axis=1, keepdims=True) * x)
    k.flat[:: len(x) + 1] += ridge(len(x))
    return relative_difference(score, -scipy.linalg.solve(k, repulsion, assume_a="pos"))


def ridge(n: int) -> float:
    """Returns the library's default ridge for a kernel with k(0) = 1."""
    return 0.1 * n**0.5


def _imq(sq_dist: np.ndarray, lengthscale: float) -> np.ndarray:
    """Returns (1 + r^2 / l^2)^(-1/2)."""
    return 1 / np.sqrt(1 + sq_dist / lengthscale**2)


def _imq_derivatives(k: np.ndarray, lengthscale: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first two derivatives of an IMQ kernel in r^2, from its values."""
    slope = k * k * k / (-2 * lengthscale**2)
    return slope, slope * k * k * (-1.5 / lengthscale**2)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    sq_dist = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1) - 2 * a @ b.T
    return np.maximum(sq_dist, 0)


def _blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, slice]]:
    for row in range(0, len(a), _BLOCK):
        for column in range(0, len(b), _BLOCK):
            yield slice(row, row + _BLOCK), slice(column, column + _BLOCK)
