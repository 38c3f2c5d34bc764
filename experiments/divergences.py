"""What divergences see, and what they certify: claims of papers 002 and 004 on laws in the plane.

    python -m experiments.divergences --workdir=runs/divergences

Four pictures come out, and a table (table.md):

    point_masses.png  two point masses: W1 and KALE over energies of bounded slope grow with their
                      distance, JSD jumps, KL is infinite; under noise JSD is smooth
    certificate.png   bounds on W1 of data in the unit square and of particles that descend KL
                      towards them, before and after, over the noise: where they fall below the
                      diameter, they say something
    rate.png          the error of KALE over draws: linear energies between two Gaussians; an RKHS
                      in which the log-ratio is, and the same where it is not
    manifolds.png     data on segments or on a curve, told from the same moved a little, with and
                      without noise: JSD and the gradient in the shift

Only the discriminators of the last one resume; it takes some minutes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from experiments.data import toys
from experiments.judges import certificates, known_laws
from experiments.reports import divergences
from experiments.reports.divergences import Bounds, Course, Rate, Told
from experiments.run import command, fields, places
from experiments.run.workdirs import Workdir
from experiments.training import manifolds
from kernelgrad import kernels, objectives
from kernelgrad.types import Array, Key

_DISTANCES = np.linspace(0, 4, 33)
_SIZES = 4 ** np.arange(3, 8)
_RKHS_SIZES = 4 ** np.arange(2, 6)  # a fit is cubic in them
_SHIFT = 1.0
_MANIFOLDS = ("segments", "curve")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the figures, but for where they are stored."""

    target: str = fields.choice("swiss_roll", toys.TOYS, "Points in the plane.")
    num_points: int = fields.integer(500, 2, 10_000, "Points of a cloud.")
    num_steps: int = fields.integer(300, 1, fields.MAX_COUNT, "Steps of the particles.")
    learning_rate: float = fields.positive(0.01, "Adam's, in sides of the square.")
    noise_variances: tuple[float, ...] = fields.numbers(
        (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001),
        fields.SMALLEST,
        fields.LARGEST,
        "Of the bounded noise in each coordinate, in the unit square.",
    )
    lipschitz: float = fields.positive(0.5, "Largest slope of KALE's energies.")
    jsd_variance: float = fields.positive(0.25, "Of the noise on the point masses.")
    num_repeats: int = fields.integer(8, 2, fields.MAX_SIZE, "Samples behind an error of KALE.")
    num_seeds: int = fields.integer(
        3, 1, fields.MAX_SIZE, "Slopes of that error, and discriminators of data on a manifold."
    )
    shift: float = fields.positive(0.25, "How far the data on a manifold are moved.")
    num_iterations: int = fields.integer(
        800, 1, fields.MAX_COUNT, "Steps of a discriminator of theirs."
    )
    instance_noise: float = fields.positive(
        0.05, "Variance of the noise that brings the gradient back, in each coordinate."
    )
    seed: int = fields.seed()


def run(
    config: Config, *, workdir: str, data_dir: str | None = None
) -> dict[str, dict[str, float]]:
    """Computes the figures and draws them.

    Args:
      config: the settings.
      workdir: the folder of table and pictures.
      data_dir: not needed, all points are drawn by formula.

    Returns:
      The rows of the table.

    Raises:
      UsageError: a setting out of its range, or a work folder with another run.
      StorageError: the work folder cannot be used.
    """
    del data_dir
    root = places.workdir(workdir)
    fields.validate(config)
    keys = jax.random.split(jax.random.key(config.seed), 5)
    with Workdir(root, config) as folder:
        course = Course(
            _DISTANCES,
            known_laws.lipschitz_kale(_DISTANCES, config.lipschitz),
            known_laws.noised_jsd(keys[0], _DISTANCES, config.jsd_variance),
        )
        before, after, data = particles(config, keys[1])
        bounds = {
            name: certify(config, keys[2], data, cloud)
            for name, cloud in (("start", before), ("end", after))
        }
        slopes = {"lipschitz": config.lipschitz, "noise_variance": config.jsd_variance}
        told = {name: tell(config, keys[4], name, folder) for name in _MANIFOLDS}
        return divergences.write(folder, course, slopes, bounds, rates(config, keys[3]), told)


def rates(config: Config, key: Key) -> dict[str, Rate]:
    """Returns the errors of KALE over draws, by the family of its energies and the laws."""
    gaussians = known_laws.gaussian_shift(_SHIFT)
    cases = {
        "linear energies": (known_laws.linear_kale, gaussians, _SIZES),
        "RKHS, log-ratio in it": (known_laws.rkhs_kale, known_laws.two_bumps(), _RKHS_SIZES),
        "RKHS, log-ratio linear": (known_laws.rkhs_kale, gaussians, _RKHS_SIZES),
    }
    found = {}
    for name, (estimate, law, sizes) in cases.items():
        keys = jax.random.split(key, config.num_seeds)
        errors = [
            known_laws.errors(one, estimate, law, sizes, config.num_repeats)
            for one in tqdm(keys, desc=name)
        ]
        found[name] = Rate(sizes, np.array(errors))
    return found


def tell(config: Config, key: Key, name: str, folder: Workdir) -> Told:
    """Returns what discriminators come to that tell a toy from the same moved, by trial."""
    dataset = toys.load(name, config.seed)
    lab = manifolds.make_lab(dataset)
    found: Told = {}
    for trial in manifolds.trials(config.instance_noise, config.num_iterations):
        found[trial.name] = []
        for seed, one in enumerate(jax.random.split(key, config.num_seeds)):
            place = folder.below(f"{name}/{trial.name.replace(' ', '_')}/seed{seed}")
            titled = trial._replace(name=f"{name}, {trial.name}")
            with Workdir(place, config) as own:
                found[trial.name].append(
                    manifolds.examine(one, lab, titled, dataset, config.shift, own)
                )
    return found


def particles(config: Config, key: Key) -> tuple[Array, Array, Array]:
    """Returns particles in the unit square before and after they descend KL, and the data."""
    points = toys.load(config.target, config.seed).train[:]
    low, high = points.min(axis=0), points.max(axis=0)
    data = jnp.asarray((points[: config.num_points] - low) / (high - low).max())
    before = jax.random.uniform(key, data.shape)
    kernel = functools.partial(kernels.median_mixture, kernels.imq_mixture, scales=(0.01, 0.1, 1))
    objective, optimizer = objectives.kl(kernel), optax.adam(config.learning_rate)

    @jax.jit
    def step(cloud: Array, state: optax.OptState) -> tuple[Array, optax.OptState]:
        direction, _ = objective(key, cloud, data)
        updates, state = optimizer.update(direction, state)
        return jnp.clip(optax.apply_updates(cloud, updates), 0, 1), state

    after, state = before, optimizer.init(before)
    for _ in tqdm(range(config.num_steps), desc="particles"):
        after, state = step(after, state)
    return before, after, data


def certify(config: Config, key: Key, data: Array, cloud: Array) -> Bounds:
    """Returns the bounds on W1 of two clouds in the unit square."""
    variances = np.array(sorted(config.noise_variances, reverse=True))
    jsd = np.array(
        [certificates.bounded_jsd(key, data, cloud, float(variance)) for variance in variances]
    )
    return Bounds(
        variances,
        jsd,
        certificates.bounds(jsd, variances, 2),
        certificates.sharp_bounds(jsd, variances, 2),
        certificates.assignment_distance(data, cloud),
    )


def main() -> None:
    """Parses the flags and draws."""
    command.main_in_workdir(run, Config)


if __name__ == "__main__":
    main()
