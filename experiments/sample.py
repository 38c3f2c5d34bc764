"""Draws from the model that a trained critic makes of its generator, by Markov chains of latents.

    python -m experiments.sample --workdir=runs/kale --sampler=hmc --steps=500

Takes generator and critic from the newest checkpoint of a run of experiments.train and holds them
still. One chain a sample walks through the latents, whose density is

    log N(z) - inverse_temperature E(G(z)) + constant,

with E the energy: that of kale and steingan, minus the logit of a discriminator, minus a
Wasserstein or hinge critic. At inverse temperature 1 the samples are those of KALE's model, and of
a discriminator's, whose logit is the log of a density ratio. SteinGAN's model is exp(-E(x)) on
pixels: there, as with the other critics, chains sharpen the generator. Every chain starts at a draw
of the prior, where its sample is the generator's, and keeps its label in a conditional run.
The first half of the steps adapts the step size of hmc and mala. --sampler=rejection and resampling
walk no chains: they choose among --candidates draws of the prior for each sample, by weights
exp(-inverse_temperature E), without and with replacement. --sampler=generator only draws from the
prior and scores; it needs no critic.

A call that was cut off is taken up where it was when typed again.

--format=npz or png only draws from the generator, for other people's metrics, as many samples as
the disk takes and also while the run trains: into exported/<step>.npz, an array arr_0, or
exported/<step>/000000.png and so on. Neither data nor scores are needed then.

Leaves in samples_<sampler>/ of the run's folder: samples.npz (samples, latents, energies, labels),
before_after.png (the same chains at their start, left, and at their end; or draws of the prior and
the chosen), curves.png (the scores along the chains) and results.json. The table has as many real
samples as a last row: what the scores of a perfect model would be. For a run of kale it also prints
KALE on test data, test_kale in results.json: a lower bound of KL[data || generator], which grows as
the generator gets worse; on images it is no likelihood.
"""

import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.dataset import Dataset
from experiments.judges import classifiers, image_metrics
from experiments.judges.image_metrics import Scores
from experiments.pictures import charts, clouds, mosaics
from experiments.pictures.clouds import Backdrop
from experiments.reports import exports
from experiments.run import command, fields, memory, places, threads, unread
from experiments.run.errors import UsageError
from experiments.run.tables import format_table
from experiments.run.workdirs import Workdir
from experiments.targets import latent_chains
from experiments.targets.latent_chains import SAMPLERS, Progress, Unfinished
from experiments.training import fit, latent_model, settings, trained
from experiments.training.latent_model import SELECTORS, Draws
from experiments.training.objectives import OBJECTIVES
from experiments.training.trained import Trained
from kernelgrad import mmd
from kernelgrad.types import Array

_PRIOR, _USUAL = "generator", "hmc"
_MIN_SAMPLES = 6  # of the distances between features
_JUDGED_BY_NEIGHBOURS = 500  # as experiments.evaluate
_DRAWN_COLUMNS = 6  # of images, on each side
_GRID = 120  # points along each axis, of the energy's contours
_CHAINS: dict[str, Any] = {"of": lambda _: tuple(SAMPLERS)}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to draw."""

    sampler: str | None = fields.choice(
        None,
        (_PRIOR, *SELECTORS, *SAMPLERS),
        "The chains; or what chooses among the prior's draws; or neither. By default "
        f"{_USUAL}, with --format {_PRIOR}.",
    )
    num_samples: int = fields.integer(
        1000, _MIN_SAMPLES, fields.MAX_SIZE, "Samples, one chain each."
    )
    steps: int = fields.integer(500, 0, 10**7, "Steps of every chain.", **_CHAINS)
    candidates: int = fields.integer(
        20,
        2,
        10**6,
        "Draws of the prior for each sample, among which to choose.",
        of=lambda _: SELECTORS,
    )
    inverse_temperature: float = fields.positive(
        1.0, "Factor of the energy.", of=lambda _: (*SELECTORS, *SAMPLERS)
    )
    recalibrate: bool = fields.switch(
        False,
        "Take the generator's BatchNorm statistics anew over many large batches, in place of the "
        "running averages of training.",
    )
    step_size: float | None = fields.positive(
        None,
        "Of the sampler, the first guess where it is adapted (hmc and mala); by default "
        + ", ".join(f"{sampler.step_size} for {name}" for name, sampler in SAMPLERS.items())
        + ".",
        **_CHAINS,
    )
    format: str | None = fields.choice(
        None, exports.FORMATS, "Write samples of the generator alone, unscored, into exported/."
    )
    seed: int = fields.seed()


class Found(NamedTuple):
    """What came out.

    Attributes:
      rows: the table.
      history: scores along the chains, the first of their start.
      first: draws of the prior.
      last: draws at the end of the chains, or the chosen; those of the prior where there are none.
    """

    rows: dict[str, Scores]
    history: list[Scores]
    first: Draws
    last: Draws


def run(config: Config, *, workdir: str, data_dir: str | None = None) -> dict[str, Scores]:
    """Draws samples, scores them, and writes them to the run's folder.

    Args:
      config: the sampler and its settings.
      workdir: the folder of the run.
      data_dir: where the data set's files are.

    Returns:
      Scores by row: "generator"; with another sampler, what it gave; and real samples. With a
      format, none.

    Raises:
      UsageError: a setting out of its range, no run with a checkpoint there, or one without a
        critic.
      DataError: the run's data are missing, or they are images without labels.
      StorageError: the folder cannot be used.
      Terminated: a signal came; the chains are kept.
    """
    fields.validate(config)
    config = _with_sampler(config)
    if config.format is not None:
        return _export(config, config.format, workdir, data_dir)
    stored = trained.stored_config(workdir)
    if config.sampler != _PRIOR and not latent_model.energy_of(stored):
        known = [name for name, choice in OBJECTIVES.items() if choice.energy]
        raise UsageError(
            f"workdir: got {workdir}, a run of {stored.objective}, which has no energy; "
            f"expected one of {', '.join(known)}, or --sampler=generator"
        )

    def check(stored: settings.Config, dataset: Dataset) -> None:
        if dataset.is_image:
            classifiers.check(dataset)
            image_metrics.check(dataset)
        selects = config.sampler in SELECTORS
        candidates = config.candidates if selects else 0
        floats = math.prod(dataset.sample_shape) + (1 + candidates) * stored.latent_dim
        names = ("num_samples", "candidates") if selects else ("num_samples",)
        memory.require(config, names, 4 * config.num_samples * floats)

    asked = {"workdir": workdir, "data_dir": data_dir, **dataclasses.asdict(config)}
    del asked["format"]
    opened = trained.opened(workdir, data_dir, check=check)
    with opened as (folder, run), threads.one_for_blas():
        score, scored_by = _make_score(run.dataset)
        results = {"checkpoint": run.step, "request": asked, **scored_by}
        if config.recalibrate:
            run = latent_model.recalibrated(jax.random.key(config.seed), run)
        found = _sample(config, run, score, Unfinished(folder, str(config.sampler), results))
        found.rows["real samples"] = _score_real(score, run.dataset, config.num_samples)
        if OBJECTIVES[stored.objective].fits_kale:
            results["test_kale"] = latent_model.kale_on_test_data(run, found.first)
        place = _write(folder, run, results, found)
    print(format_table(found.rows))
    if "test_kale" in results:
        figures = results["test_kale"]
        print(
            f"KALE on test data, the larger the worse the generator: {figures['nats']:.3f} ± "
            f"{figures['standard_error']:.3f} nats ({figures['effective_draws']:.0f} effective "
            "draws)"
        )
    print(f"{stored.objective} on {stored.dataset}, step {run.step}; written to {place}")
    return found.rows


def _with_sampler(config: Config) -> Config:
    usual = _USUAL if config.format is None else _PRIOR
    return dataclasses.replace(config, sampler=config.sampler or usual)


def _export(config: Config, kind: str, workdir: str, data_dir: str | None) -> dict[str, Scores]:
    """Writes samples of the generator for others to judge."""
    if config.sampler != _PRIOR:
        raise UsageError(
            f"sampler: got {config.sampler} with --format={kind}; expected {_PRIOR}, for samples "
            "in a format of others are the generator's"
        )
    run = trained.load(workdir, data_dir)
    if config.recalibrate:
        run = latent_model.recalibrated(jax.random.key(config.seed), run)
    folder, key = places.folder("workdir", workdir), jax.random.key(config.seed)
    place = exports.write(folder, run, kind, key, config.num_samples)
    print(f"{config.num_samples} samples of step {run.step}; written to {place}")
    return {}


def _sample(
    config: Config,
    run: Trained,
    score: Callable[[np.ndarray], Scores],
    unfinished: Unfinished,
) -> Found:
    """Draws from the prior, and from the model if asked to."""
    start_key, walk_key, label_key = jax.random.split(jax.random.key(config.seed), 3)
    starts = jax.random.normal(start_key, (config.num_samples, run.config.latent_dim))
    labels = latent_model.draw_labels(label_key, run, config.num_samples)
    look = latent_model.make_look(run, labels)

    def scored(draws: Draws) -> tuple[Draws, Scores]:
        mean = {} if draws.energies is None else {"mean_energy": float(draws.energies.mean())}
        return draws, score(draws.samples) | mean

    first, scores = scored(look(starts))
    rows, history = {"generator": scores}, [{"step": 0.0, **scores}]
    if config.sampler in SELECTORS:
        num_candidates = config.candidates * config.num_samples
        chosen = latent_model.select(
            walk_key,
            run,
            config.sampler,
            config.num_samples,
            num_candidates,
            config.inverse_temperature,
        )
        last, scores = scored(latent_model.make_look(run, chosen.labels)(chosen.normal))
        rows[f"{config.sampler} from {num_candidates}"] = {**scores, **chosen.figures}
        return Found(rows, history, first, last)
    if config.sampler == _PRIOR or config.steps == 0:
        return Found(rows, history, first, first)
    sampler = SAMPLERS[str(config.sampler)]
    log_density = latent_model.log_density(run, config.inverse_temperature)
    form = latent_chains.form(starts, log_density, run.state, labels, sampler)
    earlier, progress = unfinished.read(form)
    history = earlier or history

    def visit(step: int, normal: Array, monitor: float, progress: Progress) -> None:
        history.append({"step": float(step), **scored(look(normal))[1], sampler.monitor: monitor})
        unfinished.write(history, progress)

    walk = latent_chains.walk(
        walk_key,
        starts,
        log_density,
        run.state,
        labels,
        sampler=sampler,
        num_steps=config.steps,
        step_size=config.step_size,
        visit=visit,
        keep=lambda progress: unfinished.write(history, progress),
        progress=progress,
    )
    last, scores = scored(look(walk.latents))
    settled = float(walk.monitor[config.steps // 2 :].mean())
    chain = {sampler.monitor: settled, "step_size": walk.step_size}
    rows[f"{config.sampler}, {config.steps} steps"] = {**scores, **chain}
    return Found(rows, history, first, last)


def _make_score(dataset: Dataset) -> tuple[Callable[[np.ndarray], Scores], dict[str, Any]]:
    """Returns samples -> their scores, and what made them."""
    if not dataset.is_image:
        test = jnp.asarray(dataset.test)
        kernel, test_mmd = fit.judging_kernel(test), jax.jit(mmd.mmd_u_statistic)
        return lambda samples: {"test_mmd": float(test_mmd(samples, test, kernel))}, {}
    classifier = classifiers.train_or_load(dataset, places.cache())
    neighbours = image_metrics.neighbours(dataset)
    inception = image_metrics.inception(classifier)
    distances = image_metrics.feature_distances(dataset, classifier)

    def score(samples: np.ndarray) -> Scores:
        images = jnp.asarray(samples)
        near = neighbours(images[:_JUDGED_BY_NEIGHBOURS])
        return {**near, **inception(images), **distances(images)}

    accuracy = {"classifier_test_accuracy": classifier.test_accuracy}
    return score, {**accuracy, "classifier_sha256": classifier.sha256}


def _score_real(
    score: Callable[[np.ndarray], Scores], dataset: Dataset, num_samples: int
) -> Scores:
    """Returns the scores of as many real samples, of each score those that it has not seen.

    Neighbours are among the training images, whose labels the classifier knows, so that these
    scores take test images; distances are to the test data.
    """
    if not dataset.is_image:
        return score(dataset.train[:num_samples])
    known, held_out = (
        score(np.asarray(image_metrics.as_images(images[:num_samples])))
        for images in (dataset.train, dataset.test)
    )
    return {
        **known,
        **{name: held_out[name] for name in image_metrics.OF_HELD_OUT & held_out.keys()},
    }


def _write(folder: Workdir, run: Trained, results: dict[str, Any], found: Found) -> pathlib.Path:
    """Writes samples, scores and pictures, and returns where."""
    rows, history, first, last = found
    arrays = {name: array for name, array in last._asdict().items() if array is not None}
    content = io.BytesIO()
    np.savez(content, **arrays)
    text = json.dumps({**results, "rows": rows, "history": history}, indent=2)
    files = {"samples.npz": content.getvalue(), "results.json": f"{text}\n".encode()}
    if last is first:
        files["samples.png"] = _picture(run, {"generator": first.samples})
    else:
        ends = zip(rows, (first, last), strict=False)  # the real ones are not drawn
        files["before_after.png"] = _picture(run, {name: end.samples for name, end in ends})
    if len(history) > 1:
        files["curves.png"] = charts.learning_curves(history, rows["real samples"])
    for name, file in files.items():
        path = folder.write_bytes(f"samples_{results['request']['sampler']}/{name}", file)
    Unfinished(folder, results["request"]["sampler"], results).clear()
    return path.parent


def _picture(run: Trained, sets: dict[str, np.ndarray]) -> bytes:
    """Draws sets of samples side by side; the same chains at the same places."""
    if run.dataset.sample_shape == (1,):
        return clouds.on_a_line(sets, run.dataset.test[:])
    if not run.dataset.is_image:
        return clouds.sample_panels(sets, _backdrop(run))
    if len(sets) == 1:
        return mosaics.image_grid(next(iter(sets.values()))[:100])
    before, after = sets.values()
    columns = max(k for k in range(1, _DRAWN_COLUMNS + 1) if k * (2 * k + 1) <= len(before))
    rows, shape = 2 * columns + 1, before.shape[1:]
    halves = [half[: rows * columns].reshape(rows, columns, *shape) for half in (before, after)]
    gap = np.ones((rows, 1, *shape))
    return mosaics.image_grid(np.concatenate([halves[0], gap, halves[1]], 1).reshape(-1, *shape))


def _backdrop(run: Trained) -> Backdrop:
    """Returns the plane of the first two coordinates: data, and the energy's contours in 2-D."""
    data = run.dataset.test[:]
    bounds, labels = clouds.bounds(data), ("$x_1$", "$x_2$")
    _, energy = latent_model.generator_and_energy(run, run.state)
    if energy is None or run.config.conditional or run.dataset.sample_shape != (2,):
        return Backdrop(bounds, labels, draws=data)
    axes = [np.linspace(*ends, _GRID) for ends in bounds]
    grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    energies = jax.jit(energy)(jnp.asarray(grid, jnp.float32))
    return Backdrop(bounds, labels, draws=data, energy=np.reshape(energies, (_GRID, _GRID)))


# ----------------------------------------------------------------------------------- the binary


def _start(given: command.Given) -> None:
    place, config = fields.pick(command.Place, given), fields.pick(Config, given)
    unread.refuse(given, [_with_sampler(config)])
    run(config, workdir=place.workdir, data_dir=place.data_dir)


def main() -> None:
    """Parses the flags and samples."""
    command.main(_start, Config, command.Place)


if __name__ == "__main__":
    main()
