"""Trains the same generator under several objectives and compares them, as Figure 2 of paper 000.

    python -m experiments.compare --workdir=runs/compare --objectives=kl,mmd --seeds=0,1,2

An objective may bring features of its own, and other settings: kl@pixels+vicreg, kl:ridge=40,
mmd:normalize=true:kernel_scales=0.1+1 (a list is joined by +). Every run lives in
workdir/<objective, as given>/seed<k> and resumes like one of experiments.train. The table
(comparison.md) gives each metric at equal steps and at equal training time, with the milliseconds
per step measured in turns in one process; comparison.json has all of them along the way,
comparison.png shows them, dashed what real samples have, and samples.png, of images, a row of each
objective. Points are also judged by W1, by assignment.
"""

import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp

from experiments.data import catalog
from experiments.data.dataset import Dataset
from experiments.judges import certificates, classifiers, image_metrics
from experiments.pictures import charts, mosaics
from experiments.reports import comparisons
from experiments.reports.comparisons import Curves
from experiments.run import command, fields, files, places, records, timing, unread
from experiments.run.errors import UsageError, line
from experiments.run.tables import format_table
from experiments.training import fit, models, objectives, settings
from experiments.training.objectives import OBJECTIVES
from kernelgrad import train
from kernelgrad.types import Array

_W1_POINTS = 500  # of which the cheapest assignment takes a moment
_SHOWN = 16  # samples of each objective


@dataclasses.dataclass(frozen=True)
class Options(command.Place):
    """What to compare, and where."""

    preset: str | None = settings.preset()
    objectives: tuple[str, ...] = settings.variants(("kl", "mmd"))
    seeds: tuple[int, ...] = fields.integers(
        (0, 1, 2), 0, fields.MAX_SEED, "Seeds of the runs of each objective."
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare: the settings of a run, whose objective and seed vary."""

    base: settings.Config
    objectives: tuple[str, ...]
    seeds: tuple[int, ...]


def run(config: Config, *, workdir: str, data_dir: str | None = None) -> dict[str, Curves]:
    """Trains what is missing, times a step of each objective, writes the table and the figure.

    Args:
      config: the settings, the objectives and the seeds.
      workdir: the folder of all runs, and of table and picture.
      data_dir: where the data set's files are.

    Returns:
      Curves by objective.

    Raises:
      UsageError: an unknown objective or a setting out of its range.
      DataError: the data set is unknown, missing or damaged.
      StorageError: a work folder cannot be used.
    """
    root = places.workdir(workdir)
    fields.validate(Options(workdir, objectives=config.objectives, seeds=config.seeds))
    configs = {name: _for_objective(config.base, name) for name in config.objectives}
    for one in configs.values():
        settings.validate(one, 1)
    _check_meanings(config.base, configs)

    def check(dataset: Dataset) -> None:
        for one in configs.values():
            models.check(one, dataset)

    dataset = catalog.load(
        config.base.dataset,
        data_dir,
        seed=config.base.seed,
        image_size=config.base.image_size,
        most_bytes=settings.resident_bytes(config.base),
        check=check,
    )
    scores, reference = _judges(dataset)
    times = time_steps(configs, dataset)
    _warn(*comparisons.too_slow(times, config.base.num_steps, config.base.eval_every))
    histories: dict[str, list[list[dict[str, float]]]] = {}
    for name, one in configs.items():
        histories[name] = []
        for seed in config.seeds:
            with files.storage(str(root)):
                root.mkdir(parents=True, exist_ok=True)
                folder = files.folder(root, f"{name}/seed{seed}")
            fit.run(
                dataclasses.replace(one, seed=seed),
                workdir=str(folder),
                data_dir=data_dir,
                num_devices=1,
                extra_scores=scores,
                reference=reference,
            )
            histories[name].append(list(records.parsed(folder / "metrics.jsonl")))
    curves, warnings = comparisons.gathered(histories, fit.METRICS, times, config.base.num_steps)
    _warn(*warnings)
    _report(root, config, curves, reference)
    if dataset.is_image:
        _show(root, config, dataset)
    return curves


def _judges(dataset: Dataset) -> tuple[list[fit.ScoreFn], dict[str, float]]:
    """Returns what samples are scored by beyond a run's metrics, and what real ones have there.

    Real ones are held-out images, and training points, for W1 is to test points.
    """
    if not dataset.is_image:
        distance = _w1(dataset)
        return [distance], distance(jnp.asarray(dataset.train))
    if dataset.train_labels is None:
        return [], {}
    classifier = classifiers.train_or_load(dataset, places.cache())
    inception = image_metrics.inception(classifier)
    frechet = image_metrics.frechet(dataset, classifier)
    test = image_metrics.as_images(dataset.test[:])
    known = image_metrics.as_images(dataset.train[: fit.EVALUATED_SAMPLES])
    neighbours = fit.real_scores(dataset)
    return [inception, frechet], {**inception(test), **frechet(known), **neighbours}


def _check_meanings(base: settings.Config, configs: dict[str, settings.Config]) -> None:
    """Refuses a setting that is another for each of several objectives, or warns of it.

    Raises:
      UsageError: --ridge, and objectives whose ridges are not in the same units.
    """
    compared = list(dict.fromkeys(one.objective for one in configs.values()))
    ridged = [name for name in compared if name in objectives.reading("ridge")]
    if base.ridge is not None and len(ridged) > 1:
        raise UsageError(
            f"ridge: got {base.ridge} for {' and '.join(ridged)}, to each of which it is "
            "something else; expected one of them, or none given"
        )
    noisy = [name for name in compared if name in objectives.OWN_NOISE]
    if base.noise_variance and 0 < len(noisy) < len(compared):
        _warn(
            f"noise_variance: {base.noise_variance} is the own noise of "
            f"{' and '.join(noisy)}, and for the rest noise on samples and data that falls to 0"
        )


def _warn(*warnings: str) -> None:
    for warning in warnings:
        print(line("warning", warning), file=sys.stderr)


def _for_objective(base: settings.Config, compared: str) -> settings.Config:
    """Returns the settings of a variant, and what only its objective needs where that is 0."""
    needs = OBJECTIVES[settings.variant(base, compared).objective].needs
    own = {name: value for name, value in needs.items() if getattr(base, name) == 0}
    return settings.variant(dataclasses.replace(base, **own), compared)


def time_steps(configs: dict[str, settings.Config], dataset: Dataset) -> dict[str, float]:
    """Returns the median milliseconds per step of each config, timed in turns.

    Args:
      configs: settings by name.
      dataset: the data that they train on.

    Returns:
      Milliseconds by name.
    """
    device = jax.local_devices()[:1]
    runs: dict[str, timing.Timed] = {}
    key = jax.random.key(0)
    for name, config in configs.items():
        model = models.build(config, dataset, train.AXIS)
        per_call = fit.steps_per_call(fit.steps_per_record(config), dataset, device)
        advance = fit.make_advance(config, dataset, model, per_call, 0, device)
        start = train.replicate(model.initial_state(key), device)
        runs[name] = fit.timed(advance, start, per_call)
    return timing.time_in_turns(runs)


def _w1(dataset: Dataset) -> fit.ScoreFn:
    """Returns points (n, d) -> W1 of the first of them and as many test points."""
    test = dataset.test[:_W1_POINTS]

    def score(points: Array) -> dict[str, float]:
        size = min(len(points), len(test))
        return {"test_w1": certificates.assignment_distance(points[:size], test[:size])}

    return score


def _report(
    root: pathlib.Path, config: Config, curves: dict[str, Curves], reference: dict[str, float]
) -> None:
    rows = comparisons.rows(curves)
    if reference:
        rows["real samples"] = dict(reference)
    table = format_table(rows)
    title = f"{config.base.dataset}, width {config.base.width}, {len(config.seeds)} seed(s)"
    picture = charts.comparison(
        {
            metric: {name: (c.steps, c.metrics[metric]) for name, c in curves.items()}
            for metric in next(iter(curves.values())).metrics
        },
        {name: c.ms_per_step / 1000 for name, c in curves.items()},
        reference,
        title,
    )
    over = "" if len(config.seeds) == 1 else "; mean and standard deviation"
    text = f"{title}{over}\n\n{table}\n"
    for name, content in {
        "comparison.md": text.encode(),
        "comparison.json": comparisons.as_json(curves, reference),
        "comparison.png": picture,
    }.items():
        with files.storage(str(root / name)):
            files.replace(root / name, content, shared=True)
    print(table)
    print(f"written to {root}/comparison.md and {root}/comparison.png")


def _show(root: pathlib.Path, config: Config, dataset: Dataset) -> None:
    """Writes a picture of the first seed's last samples of each objective, above real ones."""
    rows = {}
    for name in config.objectives:
        folder = root / name / f"seed{config.seeds[0]}" / "samples"
        last = sorted(folder.glob("[0-9]*.png"))[-1:]
        for path in last:
            with files.storage(str(path)):
                picture = path.read_bytes()
            tiles = mosaics.tiles(picture, dataset.sample_shape, fit.GRID_COLUMNS)
            rows[name] = tiles[:_SHOWN]
    rows["test data"] = dataset.test[:_SHOWN] / 255
    with files.storage(str(root / "samples.png")):
        files.replace(root / "samples.png", mosaics.image_rows(rows), shared=True)


def _start(given: command.Given) -> None:
    """Compares what the flags ask for.

    Raises:
      UsageError: --objective or --seed in place of their plurals.
    """
    for name in ("objective", "seed"):
        if name in given:
            raise UsageError(f"{name}: got --{name}; expected --{name}s, a list to compare")
    options = fields.pick(Options, given)
    base = settings.configured(given, options.preset)
    config = Config(base, options.objectives, options.seeds)
    unread.refuse(given, [_for_objective(base, name) for name in options.objectives])
    run(config, workdir=options.workdir, data_dir=options.data_dir)


def main() -> None:
    """Parses the flags and compares."""
    command.main(_start, settings.Config, Options)


if __name__ == "__main__":
    main()
