"""How often two-sample tests tell two laws apart, under kernels that were learned or were not.

    python -m experiments.two_sample --workdir=runs/two_sample
    python -m experiments.two_sample --problems=shift --dataset=cifar10_jpeg --data_dir=data \
        --workdir=runs/two_sample_cifar

Every kernel gets the same n samples of either law. The median kernel is tested on all of them; the
learned ones ascend the power of the test on one half and are tested on the other: the lengthscales
of a mixture, or the deep kernel of Liu et al. 2020. Rejections at 5 % are counted over repetitions,
between the two laws ("power") and between two samples of the first ("level"). The table is
two_sample.md, the counts are in two_sample.json; a killed run starts over.
"""

import dataclasses
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from experiments.data import catalog, pairs
from experiments.data.dataset import Dataset
from experiments.data.pairs import Pair
from experiments.networks.critics import MLPCritic
from experiments.run import command, fields, memory, places, unread
from experiments.run.errors import UsageError
from experiments.run.tables import format_table
from experiments.run.workdirs import Workdir
from kernelgrad import kernel_learning, kernels, mmd
from kernelgrad.types import Array, Key

_SHIFT = "shift"
PROBLEMS: dict[str, Callable[[Dataset], Pair]] = {
    "blobs": lambda _: pairs.blobs(),
    "digits_3_8": pairs.threes_and_eights,
    _SHIFT: pairs.shifted_images,
}
_OF_IMAGES = ("digits_3_8", _SHIFT)
_LEVEL = 0.05
_SCALES = (0.01, 0.1, 1.0)  # at the start, squared, in units of the median: from fine to coarse

Test = Callable[[Key, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to tell apart, and how."""

    problems: tuple[str, ...] = fields.choices(
        ("blobs", "digits_3_8"),
        PROBLEMS,
        "Pairs of laws: two grids of blobs, or two sets of images.",
    )
    dataset: str = fields.word("digits", "Where the images are from.", of=lambda _: _OF_IMAGES)
    image_size: int | None = fields.image_size()
    shifts: tuple[float, ...] = fields.numbers(
        (1.0,),
        0.01,
        2.0,
        "Sizes of the shift; at 2 every pixel is the mean of those around.",
        of=lambda _: [_SHIFT],
    )
    num_samples: tuple[int, ...] = fields.integers(
        (10, 20, 40), 4, 10_000, "Samples of either law; of blobs, for each of the nine."
    )
    num_repetitions: int = fields.integer(100, 1, fields.MAX_SIZE, "Tests behind a share.")
    num_permutations: int = fields.integer(199, 19, fields.MAX_SIZE, "Of a test.")
    num_steps: int = fields.integer(100, 1, fields.MAX_COUNT, "Of the ascent.")
    learning_rate: float = fields.positive(0.02, "Adam's.")
    width: int = fields.integer(32, 1, fields.MAX_SIZE, "Units of the deep kernel's two layers.")
    num_features: int = fields.integer(16, 1, fields.MAX_SIZE, "Features of the deep kernel.")
    seed: int = fields.seed("Seed of everything random.")


def run(
    config: Config, *, workdir: str, data_dir: str | None = None
) -> dict[str, dict[str, float]]:
    """Counts the rejections of every test, and writes the table.

    Args:
      config: the settings.
      workdir: the folder of the results.
      data_dir: where the data set's files are.

    Returns:
      Shares of rejections by column, by problem and number of samples.

    Raises:
      UsageError: a setting out of its range, or a work folder with another run.
      DataError: the data set is unknown, missing or damaged.
      StorageError: the folder cannot be used.
    """
    places.workdir(workdir)
    fields.validate(config)
    dataset = catalog.load(
        config.dataset,
        data_dir,
        seed=config.seed,
        image_size=config.image_size,
        check=lambda dataset: _check(config, dataset),
    )
    problems = {name: PROBLEMS[name](dataset) for name in config.problems if name != _SHIFT}
    if _SHIFT in config.problems:
        shifted = {size: pairs.shifted_images(dataset, size) for size in config.shifts}
        problems |= {f"{_SHIFT} {size:g}": pair for size, pair in shifted.items()}
    sizes = {
        name: [n * (pairs.NUM_BLOBS if pair.most is None else 1) for n in config.num_samples]
        for name, pair in problems.items()
    }
    for name, pair in problems.items():
        if pair.most is not None and max(sizes[name]) > pair.most:
            raise UsageError(
                f"num_samples: got {max(sizes[name])} for {name}; expected at most {pair.most}, "
                f"what {config.dataset} has"
            )
    rows: dict[str, dict[str, float]] = {}
    with Workdir(workdir, config, free_fields=unread.among([config])) as folder:
        for name, pair in problems.items():
            for n in sizes[name]:
                rows[f"{name}, n = {n}"] = _shares(config, pair, n, f"{name}, n = {n}")
        folder.write_bytes("two_sample.json", (json.dumps(rows, indent=2) + "\n").encode())
        folder.write_bytes("two_sample.md", (format_table(rows) + "\n").encode())
    print(format_table(rows))
    return rows


def _check(config: Config, dataset: Dataset) -> None:
    """Raises for a data set without the problems that are asked for, or too little memory."""
    for name in config.problems:
        PROBLEMS[name](dataset)
    inputs = int(np.prod(dataset.sample_shape)) + config.width + config.num_features
    memory.require(config, ("width", "num_features"), 12 * config.width * inputs)


def _shares(config: Config, pair: Pair, n: int, label: str) -> dict[str, float]:
    """Returns the shares of rejections at one size, by kernel and law."""
    shares = {}
    laws = {"power": pair.draw, "level": pair.null}
    for kernel, test in _tests(config).items():
        p_value = jax.jit(test)
        for law, draw in laws.items():
            keys = jax.random.split(jax.random.key(config.seed), config.num_repetitions)
            rejected = 0
            for key in tqdm(keys, desc=f"{label}, {kernel}, {law}", leave=False):
                draw_key, test_key = jax.random.split(key)
                rejected += int(p_value(test_key, *draw(draw_key, n)) <= _LEVEL)
            shares[f"{kernel}, {law}"] = rejected / config.num_repetitions
    return shares


def _tests(config: Config) -> dict[str, Test]:
    """Returns (key, x, y) -> p-value by kernel."""
    optimizer = optax.adam(config.learning_rate)
    network = MLPCritic(config.width, depth=2, num_features=config.num_features)
    options = {"num_steps": config.num_steps, "num_permutations": config.num_permutations}

    def median(key: Key, x: Array, y: Array) -> Array:
        kernel = kernels.rbf_mixture(kernels.median_lengthscale(x, y))
        count = config.num_permutations
        return mmd.two_sample_test(key, x, y, kernel, num_permutations=count).p_value

    def lengthscales(key: Key, x: Array, y: Array) -> Array:
        start = kernels.median_mixture(kernels.rbf_mixture, x, y, scales=_SCALES)
        start = dataclasses.replace(start, weights=jnp.ones(len(_SCALES)))
        return kernel_learning.learned_test(key, x, y, start, optimizer, **options).p_value

    def deep(key: Key, x: Array, y: Array) -> Array:
        init_key, test_key = jax.random.split(key)
        params = network.init(init_key, x, train=False)
        scale = kernels.median_lengthscale(x, y)

        def features(params: dict, points: Array) -> Array:
            return network.apply(params, points / scale, train=False)

        kernel = kernel_learning.deep_kernel(
            features,
            params,
            feature_lengthscale=kernels.median_lengthscale(*(features(params, v) for v in (x, y))),
            lengthscale=scale,
        )
        return kernel_learning.learned_test(test_key, x, y, kernel, optimizer, **options).p_value

    return {"median": median, "learned lengthscales": lengthscales, "deep": deep}


def main() -> None:
    """Parses the flags and tests."""
    command.main_in_workdir(run, Config)


if __name__ == "__main__":
    main()
