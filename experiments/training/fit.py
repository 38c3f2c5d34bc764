"""A training run: from the newest checkpoint to the last step, record by record."""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import catalog, feed, labelled
from experiments.data.dataset import Dataset
from experiments.judges import image_metrics
from experiments.pictures import charts, clouds, mosaics
from experiments.run import cluster, dashboards, fields, files, loop, places, store, threads
from experiments.run.errors import line
from experiments.run.loop import Schedule
from experiments.run.signals import Signals
from experiments.run.timing import Timed
from experiments.run.workdirs import Workdir
from experiments.training import extractors, models, settings, trained, updates
from experiments.training.settings import Config
from kernelgrad import kernels, mmd, train
from kernelgrad.types import Array, Key, PyTree

ScoreFn = Callable[[Array], dict[str, float]]
METRICS = ("test_mmd", "test_w1", *image_metrics.METRICS)  # of an evaluation; the first of all
EVALUATED_SAMPLES = 500  # of a generator, and as many of the test data at most
GRID_COLUMNS = 10  # of the images that a run shows, and as many rows

_MAX_STEPS_PER_RECORD = 50
_MOST_COMPARED = 2e9  # pairs of pixels, of which a core takes some 5e9 a second
_COMPARED_EXAMPLES = 1000  # of the data that several processes have
_LAYOUT = "devices.txt"
_MOST_LAYOUT_BYTES = 1000


def run(
    config: Config,
    *,
    workdir: str,
    data_dir: str | None = None,
    num_devices: int | None = None,
    allow_config_change: bool = False,
    log: Sequence[str] = (),
    extra_scores: Sequence[ScoreFn] = (),
    reference: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Trains to num_steps, resuming what the work folder holds.

    Args:
      config: the settings.
      workdir: the folder of the run; of several processes the first alone touches it.
      data_dir: where the data set's files are.
      num_devices: devices to use, of each process; None: all.
      allow_config_change: resume although settings differ.
      log: dashboards that show the metrics too.
      extra_scores: functions of generated samples to metrics, added at every evaluation.
      reference: what real samples have of the metrics, drawn in curves.png; None: what is known of
        that in a moment.

    Returns:
      The last record of the metrics; nothing where another process keeps them.

    Raises:
      UsageError: a setting out of its range, or not the same in all processes, or a work folder
        with another run.
      DataError: the data set is unknown, missing or damaged.
      StorageError: the work folder cannot be used.
      DivergenceError: a state is not finite.
      Terminated: a signal came; the state is saved.
    """
    cluster.require_same({**dataclasses.asdict(config), "num_devices": num_devices})
    if cluster.is_first():
        places.workdir(workdir)
        dashboards.require(log)
    devices = cluster.devices(num_devices)
    settings.validate(config, len(devices))
    dataset = catalog.load(
        config.dataset,
        data_dir,
        seed=config.seed,
        image_size=config.image_size,
        most_bytes=settings.resident_bytes(config),
        check=lambda dataset: models.check(config, dataset, len(devices)),
    )
    some = store.digest({"train": dataset.train[:_COMPARED_EXAMPLES]})
    cluster.require_same({"data": f"{len(dataset.train)} examples of SHA-256 {some:.12} ..."})
    with (
        Workdir(
            workdir,
            config,
            free_fields=settings.free_fields(config),
            allow_config_change=allow_config_change,
        ) as folder,
        threads.one_for_blas(),
    ):
        return _train(config, dataset, folder, devices, log, extra_scores, reference)


def _train(
    config: Config,
    dataset: Dataset,
    folder: Workdir,
    devices: list[jax.Device],
    log: Sequence[str],
    extra_scores: Sequence[ScoreFn],
    reference: Mapping[str, float] | None,
) -> dict[str, float]:
    model = models.build(config, dataset, train.AXIS)
    extractors.hold_to(folder, model.extractors)
    trained.note_data(folder, dataset)
    keys = models.keys(config.seed)
    step, start = loop.begin(folder, functools.partial(jax.jit(model.initial_state), keys.init))
    if step >= config.num_steps:
        if folder.is_mine:
            print(f"{folder.path}: already at step {step} of {config.num_steps}, nothing to do")
        return _last(folder)

    _note_layout(folder, step, devices)
    per_record = steps_per_record(config, step)
    per_call = steps_per_call(per_record, dataset, devices)
    advance = make_advance(config, dataset, model, per_call, step, devices)
    if reference is None:
        is_known = folder.is_mine and _compares_in_a_moment(dataset)
        reference = real_scores(dataset) if is_known else {}
    with Signals() as signals, dashboards.shown(log, folder, config, step):
        loop.run(
            folder,
            signals,
            (step, start),
            make_calls(advance, keys.train, per_call),
            _make_evaluate(model, dataset, folder, keys.evaluate, config, extra_scores),
            Schedule(config.num_steps, config.eval_every, per_record, logs_calls=True),
            name=f"{config.objective} on {config.dataset}",
            devices=devices[cluster.own(devices)],
            curves=lambda history: charts.learning_curves(history, reference),
        )
    return _last(folder)


def _last(folder: Workdir) -> dict[str, float]:
    return folder.history()[-1] if folder.is_mine else {}


def _note_layout(folder: Workdir, step: int, devices: list[jax.Device]) -> None:
    """Notes over which devices a run goes on, and says so where they are others than before."""
    if not folder.is_mine:
        return
    count, processes = len(devices), jax.process_count()
    now = f"{count} x {devices[0].device_kind} in {processes} process{'es' * (processes > 1)}"
    path = folder.path / _LAYOUT
    if step > 0 and files.kind(path) is not None:
        with files.storage(str(path)):
            before = files.read(path, _MOST_LAYOUT_BYTES).decode(errors="replace").strip()
        if before != now:
            message = (
                f"{folder.path}: step {step} is from {fields.shown(before)}, and goes on with "
                f"{now}; from here it agrees with an uninterrupted run to rounding only"
            )
            print(line("warning", message), file=sys.stderr, flush=True)
    folder.write_bytes(_LAYOUT, f"{now}\n".encode())


def steps_per_record(config: Config, start: int = 0) -> int:
    """Returns the largest number of steps between records that meets every evaluation exactly."""
    common = math.gcd(config.num_steps, config.eval_every, start)
    return max(n for n in range(1, _MAX_STEPS_PER_RECORD + 1) if common % n == 0)


def steps_per_call(per_record: int, dataset: Dataset, devices: list[jax.Device]) -> int:
    """Returns the steps of one call: 1 for images on a CPU, where loops slow convolutions."""
    return 1 if dataset.is_image and devices[0].platform == "cpu" else per_record


def make_advance(
    config: Config,
    dataset: Dataset,
    model: models.Model,
    per_call: int,
    start: int,
    devices: list[jax.Device],
) -> Callable[[PyTree, Key], tuple[PyTree, PyTree]]:
    """Returns (state, key) -> (state, info), `per_call` steps on all devices, of all processes."""
    train_step = make_train_step(config, model, train.AXIS, anneals=settings.anneals(config))
    own = cluster.own(devices)
    batch, num_rows = settings.rows_per_step(config), len(dataset.train)
    rows = functools.partial(models.training_rows, config, dataset)
    if models.size_of_rows(config, dataset) <= settings.resident_bytes(config):
        scan = train.scan_resident(
            train_step, batch_size=batch, num_steps=per_call, axis_name=train.AXIS
        )
        mapped = train.pmap_train_step(scan, devices)
        resident = train.replicate(rows(), devices[own])
        return lambda state, key: mapped(state, key, resident)

    mapped = train.pmap_train_step(train.scan_batches(train_step), devices)
    batches = feed.prefetched(
        feed.host_batches(rows, num_rows, config.seed, batch, per_call, start, len(devices), own)
    )
    return lambda state, key: mapped(state, key, next(batches))


def make_train_step(
    config: Config, model: models.Model, axis_name: str | None, *, anneals: bool
) -> train.TrainStep:
    """Returns the training step of a config, whose numbers may be traced.

    Args:
      config: the settings.
      model: built from them.
      axis_name: mapped axis over devices.
      anneals: whether samples and data get noise (`settings.anneals`).
    """
    fall = config.noise_steps or config.num_steps
    noise = optax.linear_schedule(config.noise_variance, 0.0, fall)
    return train.make_train_step(
        model.generator,
        model.objective,
        model.optimizer,
        sample_latents=model.sample_latents,
        noise_variance=noise if anneals else None,
        axis_name=axis_name,
        pull_back=updates.make(config, axis_name),
        ema_decay=config.ema,
        num_updates=config.generator_steps,
    )


def make_judge(
    model: models.Model,
) -> Callable[[train.TrainState, Array, Array], tuple[Array, Array]]:
    """Returns (state, latents, test points (n, d)) -> (samples, the metric test_mmd).

    Args:
      model: built from settings, whose numbers may be traced.
    """

    def judge(state: train.TrainState, latents: Array, test: Array) -> tuple[Array, Array]:
        state = train.averaged(state)
        samples = model.generate(state.params, state.batch_stats, latents)
        flat = samples.reshape(samples.shape[0], -1)
        return samples, mmd.mmd_u_statistic(flat, test, judging_kernel(test))

    return judge


def judging_kernel(test: Array) -> kernels.Kernel:
    """Returns the kernel of test_mmd, whatever kernel a run is trained with: test points (n, d)."""
    return kernels.median_mixture(kernels.imq_mixture, test)


def held_out(dataset: Dataset) -> Array:
    """Returns the test data that samples are judged by, as points (n, d)."""
    test = np.asarray(train.as_unit_interval(jnp.asarray(dataset.test[:EVALUATED_SAMPLES])))
    return jnp.asarray(test.reshape(len(test), -1))


def has_neighbours(dataset: Dataset) -> bool:
    """Returns whether samples are judged by their neighbours too, as labelled images are."""
    return dataset.is_image and dataset.train_labels is not None


def image_scores(dataset: Dataset) -> list[ScoreFn]:
    """Returns what labelled images are judged by without a classifier; nothing for others."""
    return [image_metrics.neighbours(dataset)] if has_neighbours(dataset) else []


def real_scores(dataset: Dataset) -> dict[str, float]:
    """Returns what as many held-out images as samples have of :func:`image_scores`."""
    images = image_metrics.as_images(dataset.test[:EVALUATED_SAMPLES])
    return {name: value for score in image_scores(dataset) for name, value in score(images).items()}


def _compares_in_a_moment(dataset: Dataset) -> bool:
    """Returns whether an evaluation's images are held against all others in half a second."""
    num_pixels = math.prod(dataset.sample_shape)
    return EVALUATED_SAMPLES * len(dataset.train) * num_pixels <= _MOST_COMPARED


def timed(
    advance: Callable[[PyTree, Key], tuple[PyTree, PyTree]], state: PyTree, per_call: int
) -> Timed:
    """Returns what `advance` does to a state that is replicated, to be timed."""
    key = jax.random.key(0)
    return Timed(lambda state: advance(state, key)[0], state, per_call)


def make_calls(
    advance: Callable[[PyTree, Key], tuple[PyTree, PyTree]], key: Key, per_call: int
) -> loop.Advance:
    """Returns what the loop advances by: calls of so many steps on all devices."""

    def make(
        state: PyTree, step: int, count: int, tick: Callable[[int], Any]
    ) -> tuple[PyTree, dict[str, np.ndarray]]:
        infos = []
        for _ in range(count // per_call):
            state, info = advance(state, key)
            infos.append(train.unreplicate(jax.block_until_ready(info)))
            tick(per_call)
        return state, {name: np.concatenate([info[name] for info in infos]) for name in infos[0]}

    return make


def _make_evaluate(
    model: models.Model,
    dataset: Dataset,
    folder: Workdir,
    key: Key,
    config: Config,
    extra_scores: Sequence[ScoreFn],
) -> Callable[[int, train.TrainState], dict[str, float]]:
    """Returns a function that draws samples, writes their picture and returns their metrics."""
    if not folder.is_mine:
        return lambda *_: {}
    scores = [*image_scores(dataset), *extra_scores]
    latents = model.sample_latents(key, EVALUATED_SAMPLES)
    shown = np.arange(GRID_COLUMNS**2)
    if config.conditional:
        shown = labelled.by_class(latents[:, config.latent_dim :], GRID_COLUMNS)
    test, judge = held_out(dataset), jax.jit(make_judge(model))

    def evaluate(step: int, state: train.TrainState) -> dict[str, float]:
        samples, test_mmd = jax.device_get(judge(state, latents, test))
        record = {METRICS[0]: float(test_mmd)}
        for score in scores:
            record |= score(samples)
        if dataset.is_image:
            picture = mosaics.image_grid(samples[shown])
        else:
            title = f"{config.objective} on {config.dataset}, step {step}"
            picture = clouds.points(samples, dataset.test[:], title)
        folder.write_bytes(f"samples/{step:07d}.png", picture)
        return record

    return evaluate
