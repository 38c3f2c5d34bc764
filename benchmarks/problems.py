"""The inputs of every task, and how far a result is from the truth, in float64 by NumPy."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

_BLOCK = 1024

DRAWS = 999  # permutations, or draws of signs, of a test
CENTERS = 100  # of a density ratio
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # lengthscales of a grid, over the root of twice d
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
NEIGHBOR = 5  # sets the radius of a ball
LINES = 64  # of a sliced distance
FAR = 1e4  # between clusters, in lengthscales
STEP_SIZE, NUM_STEPS = 0.1, 10  # of a trajectory


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


def misfits(n: int, d: int) -> Particles:
    """Returns particles beside the score of a wider normal, which any test of fit refuses."""
    x, score, lengthscale = particles(n, d)
    return Particles(x, score / np.float32(1.44), lengthscale)


def features(n: int, d: int) -> TwoSamples:
    """Returns two sets of numbers >= 0, as features of images are; without lengthscales."""
    x, y, _ = two_samples(n, d)
    return TwoSamples(np.abs(x), np.abs(y), ())


def geometry(name: str) -> Callable[[int, int], TwoSamples]:
    """Returns the maker of :func:`two_samples`, their clouds moved ``FAR`` lengthscales apart.

    Args:
      name: one cloud, two clusters, line of clusters (five), or heavy tails: a sixteenth of the
        points that far out, in directions of their own.
    """

    def make(n: int, d: int) -> TwoSamples:
        x, y, lengthscales = two_samples(n, d)
        rng = np.random.default_rng(2)
        return TwoSamples(moved(x, rng), moved(y, rng), lengthscales)

    def moved(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        step, x = FAR * x.shape[1] ** 0.5, x.astype(np.float64)
        if name == "two clusters":
            x[:, 0] += step * rng.integers(0, 2, size=len(x))
        elif name == "line of clusters":
            x[:, 0] += step / 4 * rng.integers(0, 5, size=len(x))
        elif name == "heavy tails":
            x[rng.uniform(size=len(x)) < 1 / 16] *= FAR
        return x.astype(np.float32)

    return make


def directions(d: int) -> np.ndarray:
    """Returns unit vectors, shape (LINES, d)."""
    normal = np.random.default_rng(3).normal(size=(LINES, d))
    return (normal / np.linalg.norm(normal, axis=1, keepdims=True)).astype(np.float32)


def ratio_grids(problem: TwoSamples) -> tuple[list[float], list[float]]:
    """Returns the lengthscales and ridges among which a density ratio is chosen."""
    unit = (2 * problem.x.shape[1]) ** 0.5
    return [factor * unit for factor in FACTORS], list(RIDGES)


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
            sq_dist = squared_distances(a[rows], b[columns])
            total += sum(np.sum(_imq(sq_dist, l)) for l in problem.lengthscales)
        return total / (len(a) * len(b))

    return relative_difference(value_and_gradient[0], mean(x, x) + mean(y, y) - 2 * mean(x, y))


def gradient_error(problem: TwoSamples, value_and_gradient: tuple[np.ndarray, np.ndarray]) -> float:
    """Returns the error of the gradient of MMD^2 in x, relative to its largest number."""
    x, y = (np.asarray(a, np.float64) for a in problem[:2])
    exact = np.zeros_like(x)
    for sign, others in ((1, x), (-1, y)):
        for index, point in enumerate(x):
            difference = point - others
            sq_dist = np.sum(difference**2, axis=1)
            slope = sum(_imq_derivatives(_imq(sq_dist, l), l)[0] for l in problem.lengthscales)
            exact[index] += 4 * sign / (len(x) * len(others)) * slope @ difference
    return float(np.max(np.abs(value_and_gradient[1] - exact)) / np.max(np.abs(exact)))


def two_sample_error(problem: TwoSamples, result: tuple[np.ndarray, np.ndarray]) -> float:
    """Returns the relative error of a test's statistic, MMD^2 under an RBF kernel."""
    points, signs = pooled(problem)
    total = 0.0
    for rows, columns in _blocks(points, points):
        k = np.exp(-squared_distances(points[rows], points[columns]) / (2 * rbf(problem) ** 2))
        total += signs[rows] @ k @ signs[columns]
    return relative_difference(result[0], total)


def rbf(problem: TwoSamples) -> float:
    """Returns the lengthscale of the RBF kernel of a test."""
    return problem.lengthscales[1]


def pooled(problem: TwoSamples) -> tuple[np.ndarray, np.ndarray]:
    """Returns the union, in float64, and the weights whose form under the gram is MMD^2."""
    n, m = len(problem.x), len(problem.y)
    signs = np.concatenate([np.full(n, 1 / n), np.full(m, -1 / m)])
    return np.concatenate([problem.x, problem.y]).astype(np.float64), signs


def fit_error(problem: Particles, result: tuple[np.ndarray, np.ndarray]) -> float:
    """Returns the relative error of the statistic of a test of fit, KSD^2 with an IMQ kernel."""
    return ksd_error(problem, result[0])


def kid_error(problem: TwoSamples, value: np.ndarray) -> float:
    """Returns the relative error of the kernel inception distance."""
    x, y = (np.asarray(a, np.float64) for a in problem[:2])

    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        k = (a @ b.T / a.shape[1] + 1) ** 3
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1)) if same else k.mean()

    return relative_difference(value, mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False))


def precision_recall_error(problem: TwoSamples, shares: Any) -> float:
    """Returns the largest relative error of precision, recall, density and coverage."""
    real, fake = (np.asarray(a, np.float64) for a in problem[:2])

    def sq_radii(x: np.ndarray) -> np.ndarray:
        return np.partition(squared_distances(x, x), NEIGHBOR, axis=1)[:, NEIGHBOR]

    between, of_real = squared_distances(real, fake), sq_radii(real)
    inside = between < of_real[:, None]
    exact = (
        inside.any(axis=0).mean(),
        (between < sq_radii(fake)).any(axis=1).mean(),
        inside.sum() / NEIGHBOR / len(fake),
        (between.min(axis=1) < of_real).mean(),
    )
    return max(map(relative_difference, shares, exact))


def chosen_ratio_error(problem: TwoSamples, chosen: tuple[np.ndarray, ...]) -> float:
    """Returns the largest relative error of the lengthscale, the ridge and the ratio at q."""
    p, q = (np.asarray(a, np.float64) for a in problem[:2])
    centers = p[:CENTERS]
    losses, fits = [], []
    for lengthscale in ratio_grids(problem)[0]:
        at_p, at_q = (np.exp(-squared_distances(x, centers) / (2 * lengthscale**2)) for x in (p, q))
        mean = at_p.mean(axis=0)
        for ridge in RIDGES:
            by_p, by_q = (
                np.linalg.solve(at_q.T @ at_q / size + ridge * np.eye(len(centers)), x.T).T
                for size, x in ((len(q), at_p), (len(q) - 1, at_q))
            )
            without_p = (len(p) * by_p @ mean - np.sum(by_p * at_p, axis=1)) / (len(p) - 1)
            without_q = by_q @ mean / (1 - np.sum(by_q * at_q, axis=1) / (len(q) - 1))
            ratios = np.maximum(without_p, 0), np.maximum(without_q, 0)
            losses.append(np.mean(ratios[1] ** 2) / 2 - np.mean(ratios[0]))
            moment = at_q.T @ at_q / len(q) + ridge * np.eye(len(centers))
            weights = np.linalg.solve(moment, mean)
            fits.append((lengthscale, ridge, np.maximum(at_q @ weights, 0)))
    return max(map(relative_difference, chosen, fits[int(np.argmin(losses))]))


def drift_error(problem: TwoSamples, field: np.ndarray) -> float:
    """Returns the relative error of the drifting field at the temperatures of its paper."""
    x, y = (np.asarray(a, np.float64) for a in problem[:2])
    z = np.concatenate([x, y])
    distance = np.sqrt(squared_distances(x, z))
    np.fill_diagonal(distance, 0)
    distance /= distance.sum() / (len(x) * (len(z) - 1))
    exact = np.zeros_like(x)
    for temperature in (0.02, 0.05, 0.2):
        k = np.exp(-distance / temperature)
        np.fill_diagonal(k, 0)
        a = k / np.sqrt(k.sum(axis=1, keepdims=True) * k.sum(axis=0))
        fake, real = a[:, : len(x)], a[:, len(x) :]
        pull = fake.sum(axis=1, keepdims=True) * (real @ y)
        pull -= real.sum(axis=1, keepdims=True) * (fake @ x)
        exact += pull / np.sqrt(np.mean(pull**2))
    return relative_difference(field, exact)


def sliced_error(problem: TwoSamples, value_and_gradient: tuple[np.ndarray, np.ndarray]) -> float:
    """Returns the larger relative error of the sliced energy distance and its gradient."""
    lines = directions(problem.x.shape[1]).astype(np.float64)
    a, b = (np.asarray(points, np.float64) @ lines.T for points in problem[:2])
    return max(map(relative_difference, value_and_gradient, sliced_energy(a, b, lines)))


def sliced_energy(a: np.ndarray, b: np.ndarray, lines: np.ndarray) -> tuple[Any, np.ndarray]:
    """Returns the distance and its gradient in x, from projections, by sorts; without ties.

    Args:
      a: projections of x; shape (n, l).
      b: projections of y; shape (m, l).
      lines: directions; shape (l, d).
    """
    n, m = len(a), len(b)
    both = np.concatenate([a, b])
    order = np.argsort(both, axis=0)
    steps = np.where(order < n, 1 / n, -1 / m)
    excess = np.cumsum(steps, axis=0)  # F - G at and above each point
    gaps = np.diff(np.take_along_axis(both, order, axis=0), axis=0)
    value = 2 * np.sum(excess[:-1] ** 2 * gaps) / len(lines)
    slopes = np.empty_like(both)
    np.put_along_axis(slopes, order, excess - steps / 2, axis=0)  # half of the point itself
    return value, (-4 / (n * len(lines)) * slopes[:n]).astype(a.dtype) @ lines


def ksd_error(problem: Particles, value: np.ndarray) -> float:
    """Returns the relative error of the V-statistic of KSD^2 with an IMQ kernel."""
    x, score = (np.asarray(a, np.float64) for a in problem[:2])
    along = np.sum(x * score, axis=1)
    total = 0.0
    for i, j in _blocks(x, x):
        if j.start < i.start:
            continue
        sq_dist = squared_distances(x[i], x[j])
        k = _imq(sq_dist, problem.lengthscale)
        slope, curvature = _imq_derivatives(k, problem.lengthscale)
        moved = along[i, None] + along[j] - score[i] @ x[j].T - x[i] @ score[j].T
        stein = score[i] @ score[j].T * k - 2 * slope * (moved + x.shape[1])
        total += np.sum(stein - 4 * curvature * sq_dist) * (1 if i == j else 2)
    return relative_difference(value, total / len(x) ** 2)


def stein_error(problem: Particles, score: np.ndarray) -> float:
    """Returns the relative error of the Stein score estimate with an IMQ kernel."""
    x = np.asarray(problem.x, np.float64)
    k = _imq(squared_distances(x, x), problem.lengthscale)
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


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns |a_i - b_j|^2, by products."""
    sq_dist = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1) - 2 * a @ b.T
    return np.maximum(sq_dist, 0)


def _blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, slice]]:
    for row in range(0, len(a), _BLOCK):
        for column in range(0, len(b), _BLOCK):
            yield slice(row, row + _BLOCK), slice(column, column + _BLOCK)
