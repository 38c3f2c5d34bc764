"""Why GANs are hard to train, and what noise changes: the figures of paper 002.

    python -m experiments.gan_diagnostics --workdir=runs/diagnostics

Trains a DCGAN by the usual loss and holds its generator still after each of --epochs. A new
discriminator is then trained on each: without noise; with Gaussian noise on real and generated
images; and with bounded noise, annealed. Four figures come out, and a table (table.md):

    jsd_and_accuracy.png  the discriminator tells real from generated: JSD to log 2, accuracy to 1
    gradient_norms.png    what the generator then gets from both losses, without and with noise
    gradient_tail.png     the law of its gradient, with a Cauchy and a Gaussian fit
    certificate.png       Theorem 3.3's bound on the Wasserstein distance while noise is annealed

A discriminator's JSD is a lower bound (and its certificate an estimate); the exact JSD of two
clouds of images, from the optimal discriminator in closed form, is drawn beside it.
Run the same command again to resume.
"""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.data import catalog
from experiments.data.dataset import Dataset
from experiments.judges import certificates
from experiments.networks import critics
from experiments.reports import diagnostics
from experiments.reports.diagnostics import Diagnosis, Rows
from experiments.run import command, fields, memory, places
from experiments.run.errors import StorageError, UsageError
from experiments.run.signals import Signals
from experiments.run.workdirs import Workdir
from experiments.training import discriminators, fit, models, settings
from experiments.training.discriminators import Frozen, Lab, Tail, Trial
from kernelgrad import noise, train
from kernelgrad.critic import Critic, CriticState
from kernelgrad.types import Array, Key

_RECORDS = 40  # of a discriminator
_CLOUD = 1000  # most images of a cloud
_TAIL_GRADIENTS, _TAIL_COORDINATES = 400, 200
_TAIL_CHUNKS = 20
_GAN_FIELDS = (
    *("dataset", "image_size", "batch_size", "latent_dim", "width", "learning_rate", "b1"),
    "seed",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the runs, but for where they are stored."""

    dataset: str = fields.word("digits", "Images: digits, mnist, ...")
    image_size: int | None = fields.image_size()
    epochs: tuple[int, ...] = fields.integers(
        (1, 10, 25), 1, 10**6, "Rising epochs of the GAN after which it is examined."
    )
    steps_per_epoch: int = fields.integer(15, 1, 10**6, "Steps of the GAN in an epoch.")
    batch_size: int = fields.integer(100, 2, fields.MAX_SIZE, "Images, and samples, per step.")
    latent_dim: int = fields.integer(50, 1, fields.MAX_SIZE, "Dimension of the latents.")
    width: int = fields.integer(32, 1, fields.MAX_SIZE, "Channels of the GAN's networks.")
    learning_rate: float = fields.positive(1e-3, "Adam's learning rate, of every network.")
    b1: float = fields.share(0.5, "Adam's decay of the first moment.")
    seed: int = fields.seed()
    critic_width: int = fields.integer(
        256, 1, fields.MAX_SIZE, "Channels of the discriminators made anew."
    )
    num_iterations: int = fields.integer(
        4000, 1, fields.MAX_COUNT, "Steps of each of them, as in the paper."
    )
    instance_noise: float = fields.positive(
        0.3,
        "Variance per pixel, images in [0, 1], of the Gaussian noise that brings gradients back.",
    )
    annealed_noise: tuple[float, ...] = fields.numbers(
        (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003),
        fields.SMALLEST,
        fields.LARGEST,
        "Falling variances per pixel of the bounded noise of the certificate.",
    )
    annealed_iterations: int = fields.integer(
        300, 1, fields.MAX_COUNT, "Steps at each of these variances."
    )


def gan_config(config: Config, epoch: int) -> settings.Config:
    """Returns the settings of the GAN up to an epoch."""
    return settings.Config(
        objective="gan_non_saturating",
        num_steps=epoch * config.steps_per_epoch,
        eval_every=config.epochs[-1] * config.steps_per_epoch,
        **{name: getattr(config, name) for name in _GAN_FIELDS},
    )


def trials(config: Config) -> tuple[Trial, Trial, Trial]:
    """Returns the three trials that every generator is put to."""
    most = max(1, config.num_iterations // _RECORDS)
    every = next(n for n in range(most, 0, -1) if config.num_iterations % n == 0)
    plain = Trial("no noise", noise.instance_noise, (0.0,), config.num_iterations, every)
    return (
        plain,
        plain._replace(name="noise", variances=(config.instance_noise,)),
        Trial(
            "annealed",
            noise.bounded_noise,
            config.annealed_noise,
            config.annealed_iterations,
            config.annealed_iterations,
        ),
    )


def run(config: Config, *, workdir: str, data_dir: str | None = None) -> Rows:
    """Trains the GAN, then the discriminators, and draws; resumes what the work folder holds.

    Args:
      config: the settings.
      workdir: the folder of all runs, and of table and pictures.
      data_dir: where the data set's files are.

    Returns:
      The rows of the table.

    Raises:
      UsageError: a setting out of its range, or a work folder with another run.
      DataError: the data set is unknown, missing or damaged.
      StorageError: the work folder cannot be used.
      DivergenceError: a state or a figure is not finite.
      Terminated: a signal came; the state is saved.
    """
    places.workdir(workdir)
    validate(config)
    dataset = catalog.load(
        config.dataset,
        data_dir,
        seed=config.seed,
        image_size=config.image_size,
        check=lambda dataset: _check(config, dataset),
    )
    lab = make_lab(config, dataset)
    with Workdir(workdir, config) as folder:
        found = {}
        for epoch in config.epochs:
            frozen = _generator(config, lab, epoch, folder, data_dir)
            found[epoch] = diagnose(config, lab, dataset, epoch, frozen, folder)
        real, test = (_flat(part[:_CLOUD]) for part in (dataset.train, dataset.test))
        size = min(len(real), len(test))
        reference = certificates.assignment_distance(real[:size], test[:size])
        rows = diagnostics.rows(found, reference)
        diagnostics.write(folder, found, rows)
    return rows


def _check(config: Config, dataset: Dataset) -> None:
    """Raises for a data set that the config does not fit, or too little memory."""
    if not dataset.is_image:
        raise UsageError(f"dataset: got {dataset.name}, points; expected images such as digits")
    models.check(gan_config(config, config.epochs[-1]), dataset)
    judge = critics.critic_for(dataset.sample_shape, config.critic_width)
    needed = memory.of_training(judge, config.batch_size, *dataset.sample_shape, train=False)
    memory.require(config, ("critic_width", "batch_size"), needed)


def make_lab(config: Config, dataset: Dataset) -> Lab:
    """Returns the GAN's generator and a discriminator of its own width."""
    gan = gan_config(config, config.epochs[-1])
    judge = models.build(dataclasses.replace(gan, width=config.critic_width), dataset)

    def fresh_critic(key: Key) -> CriticState:
        return cast(CriticState, judge.initial_state(key).critic)

    return Lab(
        models.build(gan, dataset, train.AXIS),
        cast(Critic, judge.objective),
        fresh_critic,
        config.batch_size,
    )


def _generator(config: Config, lab: Lab, epoch: int, root: Workdir, data_dir: str | None) -> Frozen:
    """Returns the generator after so many epochs, as stored or trained up to there."""
    abstract = jax.eval_shape(lab.model.initial_state, jax.random.key(0))
    with Workdir(root.below(f"epoch{epoch}/generator"), config) as folder:
        restored = folder.restore(Frozen(abstract.params, abstract.batch_stats))
        if restored:
            return restored[1]
        gan, place = gan_config(config, epoch), root.below("gan")
        fit.run(gan, workdir=str(place), data_dir=data_dir, num_devices=1)
        with Workdir(place, gan, free_fields=("num_steps",)) as trained:
            step, state = trained.restore(abstract) or (0, None)
        if state is None or step != gan.num_steps:
            raise StorageError(
                f"{place}: got a GAN at step {step}; expected {gan.num_steps}, for epoch "
                f"{epoch} has no stored generator. Use another workdir"
            )
        frozen = Frozen(state.params, state.batch_stats)
        folder.save(gan.num_steps, frozen)
        return frozen


def diagnose(
    config: Config,
    lab: Lab,
    dataset: Dataset,
    epoch: int,
    frozen: Frozen,
    root: Workdir,
) -> Diagnosis:
    """Puts a generator to the trials, and returns what they and its clouds show."""
    key = jax.random.fold_in(jax.random.key(config.seed), epoch)
    *trial_keys, tail_key, cloud_key = jax.random.split(key, 5)
    records, states = {}, {}
    for trial, trial_key in zip(trials(config), trial_keys, strict=True):
        place = root.below(f"epoch{epoch}/{trial.name.replace(' ', '_')}")
        with Workdir(place, config) as own, Signals() as signals:
            titled = trial._replace(name=f"epoch {epoch}, {trial.name}")
            records[trial.name], states[trial.name] = discriminators.train_discriminator(
                lab, titled, frozen, (dataset.train[:], dataset.test[:]), trial_key, own, signals
            )
    tails = _tails(config, lab, dataset, frozen, states["no noise"], tail_key)
    real = _flat(dataset.train[:_CLOUD])
    fake = _flat(lab.generate(frozen, jax.random.fold_in(cloud_key, 0), len(real)))
    learned = [(r["variance"], r["jsd"]) for r in records["annealed"][1:]]
    certificate = certificates.certify(cloud_key, np.array(learned), real, fake)
    return Diagnosis(records, tails, certificate)


def _tails(
    config: Config, lab: Lab, dataset: Dataset, frozen: Frozen, state: CriticState, key: Key
) -> dict[str, tuple[np.ndarray, Tail]]:
    """Returns the law of the gradient over latents and over the steps of D, in some coordinates."""
    coordinate_key, latent_key, walk_key = jax.random.split(key, 3)
    count = sum(leaf.size for leaf in jax.tree.leaves(frozen.params))
    coordinates = jax.random.permutation(coordinate_key, count)[:_TAIL_COORDINATES]

    def over_latents(key: Key, state: CriticState, shape: tuple[int, int]) -> np.ndarray:
        return np.asarray(
            discriminators.minibatch_gradients(
                lab,
                noise.instance_noise,
                frozen,
                state,
                key,
                0.0,
                "non_saturating",
                shape,
                coordinates,
            ),
            np.float64,
        )

    size, chunk = config.batch_size, _TAIL_GRADIENTS // _TAIL_CHUNKS
    draws: dict[str, list[np.ndarray]] = {"one latent": [], f"{size} latents": []}
    for chunk_key in tqdm(
        jax.random.split(latent_key, _TAIL_CHUNKS), desc="gradients over latents"
    ):
        for part, n in zip(draws.values(), (1, size), strict=True):
            part.append(over_latents(chunk_key, state, (chunk, n)))
    walk = discriminators.keep_training(
        lab, frozen, state, jnp.asarray(dataset.train), walk_key, _TAIL_GRADIENTS
    )
    progress = tqdm(walk, total=_TAIL_GRADIENTS, desc="gradients over steps of D")
    steps = [over_latents(latent_key, step, (1, size)) for step in progress]
    gradients = {name: np.concatenate(parts) for name, parts in draws.items()}
    gradients["over steps of D"] = np.diff(np.concatenate(steps), axis=0)
    values = {title: discriminators.normalised(draws) for title, draws in gradients.items()}
    return {title: (some, discriminators.fit_tail(some)) for title, some in values.items()}


def _flat(images: np.ndarray | Array) -> Array:
    images = train.as_unit_interval(jnp.asarray(images))
    return images.reshape(images.shape[0], -1)


# ----------------------------------------------------------------------------------- the binary


def validate(config: Config) -> None:
    """Raises UsageError for the first setting out of its range, before anything is compiled."""
    fields.validate(config)
    for name, rising in (("epochs", True), ("annealed_noise", False)):
        values = list(getattr(config, name))
        if sorted(values, reverse=not rising) != values:
            order = "rising" if rising else "falling"
            raise UsageError(f"{name}: got {fields.shown(values)}; expected {order} ones")
    settings.validate(gan_config(config, config.epochs[-1]), 1)


def main() -> None:
    """Parses the flags and diagnoses."""
    command.main_in_workdir(run, Config)


if __name__ == "__main__":
    main()
