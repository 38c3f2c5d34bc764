"""Error against time of sums over 100 000 points: features, coresets, subsamples and slices.

    python -m benchmarks.past_the_square --workdir=runs/past_the_square
    python -m benchmarks.past_the_square --score_landmarks=256,512,650 --num_points=1000000

The quantity is the gradient of MMD^2 between two Gaussians 0.3 apart in each coordinate, under
imq_mixture with a lengthscale of sqrt(2 d); the error is relative to the exact gradient, in root
mean square over 256 rows. Slices give that of the energy distance, and are compared with its own
exact rows. Times are of one run of the compiled program in seconds of the processor, of all cores
together, as a loaded machine has no other; landmarks are chosen, waves drawn and both samples
thinned within. The exact time is that of 1024 rows times n / 1024.

The second command takes the Stein score of a Gaussian in ten dimensions in place of it, under
rbf_mixture with a lengthscale of sqrt(2 d) and the default ridge, by landmarks; the error is the
bound that comes with the score. Landmarks are chosen, among 20 times as many points, within.
"""

import argparse
import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

from kernelgrad import energy, feature_maps, kernels, low_rank, low_rank_fits, mmd, score
from kernelgrad.types import Array, Kernel

_KEY = jax.random.key(0)
_ROWS = 256
_EXACT_ROWS = 1024
DIMENSIONS = (2, 10, 50)


def main() -> None:
    """Parses the flags, measures, writes the figures and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/past_the_square", help="where to write")
    parser.add_argument("--num_points", type=int, default=100_000, help="n of each sample")
    parser.add_argument("--score_landmarks", default="", help="numbers, by comma: the score alone")
    arguments = parser.parse_args()
    folder = pathlib.Path(arguments.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.score_landmarks:
        sizes = map(int, arguments.score_landmarks.split(","))
        scores = [measure_score(arguments.num_points, size) for size in sizes]
        (folder / "score.json").write_text(json.dumps(scores, indent=1) + "\n")
        return
    results = [entry for d in DIMENSIONS for entry in measure(arguments.num_points, d)]
    (folder / "past_the_square.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, folder / "past_the_square.png")


def measure(n: int, d: int) -> list[dict[str, Any]]:
    """Returns (method, size, d, seconds, error) of every method at one dimension."""
    x = jax.random.normal(jax.random.key(1), (n, d))
    y = jax.random.normal(jax.random.key(2), (n, d)) + 0.3
    kernel = kernels.imq_mixture(math.sqrt(2 * d))

    def exact(rows: Array, x: Array, y: Array, kernel: Kernel = kernel) -> Array:
        return 2 / n * mmd.witness_gradient(rows, x, y, kernel)

    of = {"mmd": kernel, "energy": kernels.riesz()}
    truth = {name: jax.jit(exact)(x[:_ROWS], x, y, k) for name, k in of.items()}

    def waves(size: int) -> Callable[[Array, Array], Array]:
        def gradient(x: Array, y: Array) -> Array:
            feature_map = feature_maps.fourier_map(_KEY, kernel, x[:1000], num_features=size)
            return low_rank.mmd_gradient(_KEY, x, y, feature_map).value

        return gradient

    def landmarks(size: int) -> Callable[[Array, Array], Array]:
        def gradient(x: Array, y: Array) -> Array:
            few = jnp.concatenate([x[: 10 * size], y[: 10 * size]])
            feature_map = feature_maps.landmark_map(_KEY, kernel, few, num_landmarks=size)
            return low_rank.mmd_gradient(_KEY, x, y, feature_map).value

        return gradient

    def coreset(size: int) -> Callable[[Array, Array], Array]:
        def few(points: Array) -> Array:
            return points[mmd.kernel_thinning(_KEY, points, kernel, num_points=size)]

        def gradient(x: Array, y: Array) -> Array:
            few_x, few_y = jax.lax.map(few, jnp.stack([x, y]))
            return 2 / n * mmd.witness_gradient(x, few_x, few_y, kernel)

        return gradient

    def subsample(size: int) -> Callable[[Array, Array], Array]:
        return lambda x, y: 2 / n * mmd.witness_gradient(x, x[-size:], y[-size:], kernel)

    def slices(size: int) -> Callable[[Array, Array], Array]:
        unit = math.sqrt(math.pi) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
        lines = energy.random_directions(_KEY, size, d)
        return lambda x, y: unit * energy.sliced_energy_and_gradient(x, y, lines)[1]

    results = []
    for name, make, sizes, kind in (
        ("waves", waves, (128, 1024), "mmd"),
        ("landmarks", landmarks, (32, 128, 512), "mmd"),
        ("coreset", coreset, (97, 390, 781), "mmd"),
        ("subsample", subsample, (128, 512, 4096), "mmd"),
        ("slices", slices, (8, 64), "energy"),
    ):
        for size in sizes:
            value, seconds = timed(make(size), x, y)
            error = relative(value[:_ROWS], truth[kind])
            results.append(dict(method=name, size=size, d=d, seconds=seconds, error=error))
            print(results[-1], flush=True)
    _, seconds = timed(exact, x[:_EXACT_ROWS], x, y)
    results.append(dict(method="exact", size=n, d=d, seconds=seconds * n / _EXACT_ROWS, error=0.0))
    print(results[-1], flush=True)
    return results


def measure_score(n: int, size: int, d: int = 10) -> dict[str, Any]:
    """Returns seconds of the processor and the clock, and the error, of the Stein score."""
    x = jax.random.normal(jax.random.key(1), (n, d))
    kernel = kernels.rbf_mixture(math.sqrt(2 * d))

    def estimate(x: Array) -> Any:
        few = x[: 20 * size]
        feature_map = feature_maps.landmark_map(_KEY, kernel, few, num_landmarks=size)
        ridge = score.default_ridge(n, kernel)
        return low_rank_fits.stein_score(_KEY, x, feature_map, ridge=ridge)

    start = time.perf_counter()
    (_, error, deviation), seconds = timed(estimate, x)
    result = dict(method="landmarks", size=size, n=n, d=d, seconds=seconds)
    result |= dict(bound=float(error), standard_error=float(deviation))
    print(result, f"clock with compilation: {time.perf_counter() - start:.1f} s", flush=True)
    return result


def timed(function: Callable[..., Any], *arrays: Array) -> tuple[Any, float]:
    """Returns the value, and seconds of the processor that the compiled program took."""
    program = jax.jit(function).lower(*arrays).compile()
    start = time.process_time()
    value = jax.block_until_ready(program(*arrays))
    return value, time.process_time() - start


def relative(value: Array, truth: Array) -> float:
    """Returns the relative error in root mean square."""
    return float(jnp.linalg.norm(value - truth) / jnp.linalg.norm(truth))


def draw(results: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws error against time, one panel for each dimension."""
    figure, axes = plt.subplots(
        1, len(DIMENSIONS), figsize=(11, 3.9), sharey=True, layout="constrained"
    )
    for axis, d in zip(axes, DIMENSIONS, strict=True):
        here = [entry for entry in results if entry["d"] == d]
        for name in ("waves", "landmarks", "coreset", "subsample", "slices"):
            mine = [entry for entry in here if entry["method"] == name]
            axis.plot(
                [entry["seconds"] for entry in mine],
                [entry["error"] for entry in mine],
                marker="o",
                label=name,
            )
        exact = next(entry["seconds"] for entry in here if entry["method"] == "exact")
        axis.axvline(exact, color="0.5", linestyle="--", label="exact")
        axis.set(xscale="log", yscale="log", title=f"d = {d}", xlabel="seconds of the processor")
    axes[0].set_ylabel("relative error of the gradient")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
