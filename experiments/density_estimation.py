"""Density estimation: energies on a Gaussian base by KALE and its peers, in nats per row.

    python -m experiments.density_estimation --datasets=banana --workdir=runs/density
    python -m experiments.density_estimation --workdir=runs/density \
        --data_dir=<the folder that holds uci>

The model is exp(-E(x) - c) g(x) with a small network E and the Gaussian g of the training rows.
Every method of :data:`experiments.training.energy_fits.RULES` fits the same network with the same
budget; validation rows choose when to stop, and test rows are looked at once. Columns that nearly
repeat an earlier one are dropped. The table (density_estimation.md) has the mean and the deviation
over splits; "new rows" are test rows that do not occur among the training rows, which in the tables
of wines every fifth does. Two rows of it fit no energy: the Gaussian alone, and the mixture of it
with the blurred training rows that the normaliser's draws come from. A killed run repeats the fit
it was at.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.data import catalog
from experiments.networks.critics import MLPCritic
from experiments.reports import likelihoods
from experiments.reports.likelihoods import Record
from experiments.run import command, fields, files, memory, places
from experiments.run.errors import StorageError, UsageError
from experiments.run.workdirs import Workdir
from experiments.targets import gaussian_base
from experiments.targets.gaussian_base import Split
from experiments.training import energy_fits
from experiments.training.energy_fits import Look, Settings
from kernelgrad.kale import NormalizerEstimate
from kernelgrad.types import Array, Key

DATASETS = tuple(n for n in catalog.names() if n not in ("digits", "mnist", "cifar10_jpeg"))
_DRAWS_OF_A_LOOK = 20_000
_LEAST_DIMENSION = 2  # of a data set
_MOST_BYTES, _MOST_VALUES = 2**24, 10**6  # of a stored fit

Results = dict[str, dict[str, list[Record]]]


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Everything that decides the runs, but for where the data are and the results go."""

    datasets: tuple[str, ...] = fields.choices(
        ("red_wine", "white_wine", "parkinsons"), DATASETS, "Data sets to fit."
    )
    methods: tuple[str, ...] = fields.choices(
        tuple(energy_fits.RULES), energy_fits.RULES, "Rules of the fit."
    )
    seeds: tuple[int, ...] = fields.integers(
        (0, 1, 2), 0, fields.MAX_SEED, "Seeds of splits and fits."
    )
    width: int = fields.integer(128, 1, fields.MAX_SIZE, "Units of a hidden layer of the energy.")
    depth: int = fields.integer(2, 1, 1000, "Hidden layers of the energy.")
    num_normalizer_samples: int = fields.integer(
        200_000,
        1000,
        fields.MAX_SIZE,
        "Draws behind the normaliser of the test rows; as many others tell whether to trust a fit.",
    )


def run(config: Config, *, workdir: str, data_dir: str | None = None) -> Results:
    """Fits what is not there yet, and writes the table and the pictures.

    Args:
      config: the settings.
      workdir: the folder of all results.
      data_dir: where the tables are; not needed for the 2-D toys.

    Returns:
      Records by data set and method, one a seed.

    Raises:
      UsageError: a setting out of its range, or a work folder with another run.
      DataError: a table is missing or damaged.
      StorageError: the work folder cannot be used.
      DivergenceError: a likelihood is not finite.
    """
    places.workdir(workdir)
    validate(config)
    splits = {name: load_splits(name, config.seeds, data_dir) for name in config.datasets}
    results: Results = {}
    num_fits = len(config.datasets) * len(config.seeds) * len(config.methods)
    total = num_fits * config.num_steps
    with (
        Workdir(workdir, config, free_fields=("datasets", "methods")) as folder,
        tqdm(total=total, unit="step") as bar,
    ):

        def report(method: str, look: Look) -> None:
            bar.set_description(f"{name}, seed {seed}, {method}: {look.gain:+.2f} nats")
            bar.update(config.eval_every if look.step else 0)

        for name, of_seed in splits.items():
            runs: list[dict[str, Record]] = []
            for seed, split in zip(config.seeds, of_seed, strict=True):
                key = jax.random.fold_in(jax.random.key(seed), DATASETS.index(name))
                place = f"fits/{name}_seed{seed}"
                fitted = _fit_all(key, place, split, config, folder, report)
                done = len(config.methods) * (len(runs) + 1 + len(results) * len(config.seeds))
                bar.update(done * config.num_steps - bar.n)  # also for fits that were stored
                runs.append(_baselines(split) | fitted)
            results[name] = {method: [of[method] for of in runs] for method in runs[0]}
        _write(folder, splits, results)
    return results


def load_splits(name: str, seeds: Sequence[int], data_dir: str | None) -> list[Split]:
    """Returns the splits of a data set by seed, with the columns that are distinct in all of them.

    A set without validation rows gives up a tenth of its training rows.
    """
    loaded = []
    for seed in seeds:
        dataset = catalog.load(name, data_dir, seed=seed)
        train, valid = dataset.train[:], dataset.valid
        if valid is None:
            order = np.random.default_rng(seed).permutation(len(train))
            valid, train = np.split(train[order], [len(train) // 10])
        loaded.append((train, valid, dataset.test[:]))
    columns = gaussian_base.distinct_columns([train for train, _, _ in loaded])
    return [
        gaussian_base.whitened_split(*(rows[:, columns] for rows in of_seed)) for of_seed in loaded
    ]


# ------------------------------------------------------------------------------------- the fits


def _fit_all(
    key: Key,
    place: str,
    split: Split,
    config: Config,
    folder: Workdir,
    report: Callable[[str, Look], None],
) -> dict[str, Record]:
    """Returns the record of every method on one split; fits and stores those that are missing."""
    look_key, more_key, test_key, fit_key = jax.random.split(key, 4)
    stored = {method: folder.path / f"{place}_{method}.json" for method in config.methods}
    missing = [method for method, file in stored.items() if files.kind(file) is None]
    network = MLPCritic(config.width, config.depth)
    if missing:
        draw = gaussian_base.defensive_draws
        look_draws = draw(look_key, split.train, _DRAWS_OF_A_LOOK)
        n = config.num_normalizer_samples
        more_draws = draw(more_key, split.train, n)
        test_draws = draw(test_key, split.train, n)
    for method in missing:
        fit = energy_fits.fit(
            fit_key,
            network,
            method,
            split.train,
            split.valid,
            look_draws,
            more_draws,
            config,
            functools.partial(report, method),
        )
        energy_fn = functools.partial(energy_fits.energies, network, fit.params)
        normalizer = energy_fits.normalizer(network, fit.params, test_draws)
        record = likelihoods.record(split, energy_fn, normalizer)
        record |= {"best": fit.best._asdict(), "looks": [look._asdict() for look in fit.looks]}
        folder.write_bytes(f"{place}_{method}.json", (json.dumps(record) + "\n").encode())
    steps = range(0, config.num_steps + 1, config.eval_every)
    return {method: _read(file, split, steps) for method, file in stored.items()}


def _read(file: pathlib.Path, split: Split, steps: Sequence[int]) -> Record:
    with files.storage(str(file)):
        content = files.read(file, _MOST_BYTES)
    try:
        return likelihoods.checked(files.parse_json(content, _MOST_VALUES), split, steps)
    except ValueError as error:
        raise StorageError(
            f"{file}: got {error}; expected JSON of a fit. Delete it to fit anew"
        ) from error


def _baselines(split: Split) -> dict[str, Record]:
    """Returns the records of the base alone and of the mixture behind the normaliser's draws."""
    exact = NormalizerEstimate(jnp.asarray(0.0), jnp.asarray(0.0), jnp.asarray(jnp.inf))

    def mixture_energy(points: Array) -> Array:
        return gaussian_base.defensive_log_weights(points, split.train)

    return {
        "gaussian": likelihoods.record(split, lambda points: jnp.zeros(len(points)), exact),
        "kernel mixture": likelihoods.record(split, mixture_energy, exact),
    }


def _write(folder: Workdir, splits: dict[str, list[Split]], results: Results) -> None:
    text = likelihoods.summary(splits, results)
    folder.write_bytes("density_estimation.md", f"{text}\n".encode())
    folder.write_bytes("results.json", (json.dumps(results) + "\n").encode())
    folder.write_bytes("curves.png", likelihoods.curves(results))
    for name, (split, *_) in splits.items():
        if split.test.shape[1] == 2:
            folder.write_bytes(f"{name}.png", likelihoods.contours(split, results[name]))
    print(text)
    print(f"written to {folder.path}: density_estimation.md, results.json and pictures")


# ------------------------------------------------------------------------------------ the binary


def validate(config: Config) -> None:
    """Raises UsageError for the first setting out of its range, before anything is compiled."""
    fields.validate(config)
    if config.num_base < config.batch_size:
        raise UsageError(
            f"num_base: got {config.num_base}; expected at least batch_size, {config.batch_size}"
        )
    if config.num_steps % config.eval_every:
        raise UsageError(
            f"num_steps: got {config.num_steps}; expected a multiple of eval_every, "
            f"{config.eval_every}"
        )
    network, rows = MLPCritic(config.width, config.depth), config.num_base + config.batch_size
    needed = memory.of_training(network, rows, _LEAST_DIMENSION, train=False)
    memory.require(config, ("width", "num_base", "batch_size"), needed)
    draws = 2 * 4 * config.num_normalizer_samples * _LEAST_DIMENSION
    memory.require(config, ("num_normalizer_samples",), draws)


def main() -> None:
    """Parses the flags and fits."""
    command.main_in_workdir(run, Config)


if __name__ == "__main__":
    main()
