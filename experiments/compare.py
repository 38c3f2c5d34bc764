"""Trains the same generator under several objectives and compares them, as Figure 2 of paper 000.

    python -m experiments.compare --workdir=runs/compare --objectives=kl,mmd --seeds=0,1,2

Every run lives in workdir/<objective>/seed<k> and resumes like one of experiments.train. The table
(comparison.md) gives each metric at equal steps and at equal training time, with the milliseconds
per step measured in turns in one process; comparison.png shows the metrics along the way.
"""

import dataclasses
import pathlib

import jax
import numpy as np

from experiments.data import catalog
from experiments.data.dataset import Dataset
from experiments.judges import classifiers, image_metrics
from experiments.pictures import charts
from experiments.run import command, fields, files, places, records, timing
from experiments.run.errors import UsageError
from experiments.run.tables import format_table
from experiments.training import fit, models, settings
from kernelgrad import train

_OF_STEPS = {"step", "mmd", "direction_rms", "critic_loss", "jsd", "penalty", "log_ratio"}


@dataclasses.dataclass(frozen=True)
class Options(command.Place):
    """What to compare, and where."""

    preset: str | None = settings.preset()
    objectives: tuple[str, ...] = fields.choices(
        ("kl", "mmd"), settings.OBJECTIVES, "Objectives to compare."
    )
    seeds: tuple[int, ...] = fields.integers(
        (0, 1, 2), 0, fields.MAX_SEED, "Seeds of the runs of each objective."
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare: the settings of a run, whose objective and seed vary."""

    base: settings.Config
    objectives: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Curves:
    """The runs of one objective: steps (t,), metrics (seeds, t) by name, milliseconds per step."""

    steps: np.ndarray
    metrics: dict[str, np.ndarray]
    ms_per_step: float

    def at_time(self, seconds: float) -> dict[str, np.ndarray]:
        """Returns the metrics, one value a seed, interpolated at a training time."""
        step = 1000 * seconds / self.ms_per_step
        return {
            name: np.array([np.interp(step, self.steps, seed) for seed in values])
            for name, values in self.metrics.items()
        }


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
    configs = {
        name: dataclasses.replace(
            config.base, objective=name, ridge=config.base.ridge if name == "kl" else None
        )
        for name in config.objectives
    }
    for one in configs.values():
        settings.validate(one, 1)
    fields.validate(Options(workdir, objectives=config.objectives, seeds=config.seeds))
    dataset = catalog.load(config.base.dataset, data_dir, seed=config.base.seed)
    for one in configs.values():
        models.check(one, dataset)
    scores: list[fit.ScoreFn] = []
    reference: dict[str, float] = {}
    if dataset.is_image and dataset.train_labels is not None:
        classifier = classifiers.train_or_load(dataset, places.cache())
        scores.append(image_metrics.inception(classifier))
        test = image_metrics.as_images(dataset.test)
        reference = {**scores[0](test), **image_metrics.neighbours(dataset)(test[:500])}

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
            )
            histories[name].append(list(records.parsed(folder / "metrics.jsonl")))
    times = time_steps(configs, dataset)
    curves = {name: _curves(runs, times[name]) for name, runs in histories.items()}
    _report(root, config, curves, reference)
    return curves


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


def _curves(runs: list[list[dict[str, float]]], ms_per_step: float) -> Curves:
    evaluated = [[record for record in records if "test_mmd" in record] for records in runs]
    names = [name for name in evaluated[0][0] if name not in _OF_STEPS]
    return Curves(
        np.array([record["step"] for record in evaluated[0]]),
        {
            name: np.array([[record[name] for record in records] for records in evaluated])
            for name in names
        },
        ms_per_step,
    )


def _report(
    root: pathlib.Path, config: Config, curves: dict[str, Curves], reference: dict[str, float]
) -> None:
    last = min(int(c.steps[-1]) for c in curves.values())
    seconds = min(c.steps[-1] * c.ms_per_step / 1000 for c in curves.values())
    rows: dict[str, dict[str, float | str]] = {}
    for name, c in curves.items():
        final = {metric: values[:, c.steps == last][:, 0] for metric, values in c.metrics.items()}
        rows[f"{name}, step {last}"] = {**_spread(final), "ms per step": f"{c.ms_per_step:.1f}"}
    for name, c in curves.items():
        rows[f"{name}, {seconds:.0f} s"] = _spread(c.at_time(seconds))
    if reference:
        rows["real test images"] = dict(reference)
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
    text = f"{title}; mean and standard deviation\n\n{table}\n"
    for name, content in {"comparison.md": text.encode(), "comparison.png": picture}.items():
        with files.storage(str(root / name)):
            files.replace(root / name, content, shared=True)
    print(table)
    print(f"written to {root}/comparison.md and {root}/comparison.png")


def _spread(values: dict[str, np.ndarray]) -> dict[str, float | str]:
    return {name: f"{np.mean(v):.4g} ± {np.std(v):.2g}" for name, v in values.items()}


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
    run(config, workdir=options.workdir, data_dir=options.data_dir)


def main() -> None:
    """Parses the flags and compares."""
    command.main(_start, settings.Config, Options)


if __name__ == "__main__":
    main()
