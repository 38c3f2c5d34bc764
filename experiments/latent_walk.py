"""Shows how the images of a trained generator change while its latents walk at random.

    python -m experiments.latent_walk --workdir=runs/steingan

Every latent starts at the prior and moves by xi <- xi + step_size Uniform[-1, 1] (paper 003,
Figure 3), its label held still where the run is conditional: then each row is a class. Leaves
latent_walk.gif and, of its first, middle and last frames, latent_walk.png in the run's folder.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import trange

from experiments.data import labelled
from experiments.data.dataset import Dataset
from experiments.pictures import mosaics
from experiments.run import command, fields, memory
from experiments.run.errors import UsageError
from experiments.training import settings, trained
from experiments.training.trained import Trained
from kernelgrad.types import Array

_COLUMNS = 8
_ROWS = 4  # without classes
_STILLS = 4  # frames beside each other in the PNG


@dataclasses.dataclass(frozen=True)
class Config:
    """How to walk."""

    num_frames: int = fields.integer(60, 1, 10_000, "Frames of the film.")
    steps_per_frame: int = fields.integer(100, 1, 10**6, "Steps between frames.")
    step_size: float = fields.positive(0.01, "Largest step of each latent.")
    seed: int = fields.seed()


def run(config: Config, *, workdir: str, data_dir: str | None = None) -> np.ndarray:
    """Walks, and draws what the generator makes of the way.

    Args:
      config: the walk.
      workdir: the folder of the run.
      data_dir: where the data set's files are.

    Returns:
      Images, shape (frames, n, h, w, c), in [0, 1].

    Raises:
      UsageError: a setting out of its range, no run with a checkpoint there, or one of points.
      DataError: the run's data are missing.
      StorageError: the folder cannot be used.
    """
    fields.validate(config)

    def check(found: settings.Config, dataset: Dataset) -> None:
        if not dataset.is_image:
            raise UsageError(
                f"workdir: got {workdir}, a run on {found.dataset}, which are points; "
                "expected one on images"
            )
        columns = _COLUMNS * (dataset.num_classes if found.conditional else _ROWS)
        frame = 4 * columns * math.prod(dataset.sample_shape)
        memory.require(config, ("num_frames",), config.num_frames * frame)
        steps = 4 * columns * (found.latent_dim + dataset.num_classes * found.conditional)
        memory.require(config, ("steps_per_frame",), config.steps_per_frame * steps)

    with trained.opened(workdir, data_dir, check=check) as (folder, found):
        frames = _walk(config, found)
        folder.write_bytes("latent_walk.gif", mosaics.image_film(frames, _COLUMNS))
        chosen = np.linspace(0, len(frames) - 1, min(_STILLS, len(frames))).round().astype(int)
        stills = {
            f"step {index * config.steps_per_frame}": frames[index].reshape(
                -1, _COLUMNS, *frames.shape[2:]
            )
            for index in chosen
        }
        folder.write_bytes("latent_walk.png", mosaics.class_grids(stills))
        print(f"written to {folder.path}/latent_walk.gif")
    return frames


def _walk(config: Config, found: Trained) -> np.ndarray:
    start_key, walk_key = jax.random.split(jax.random.key(config.seed))
    latents = _starts(start_key, found)
    free = jnp.arange(latents.shape[1]) < found.config.latent_dim

    @jax.jit
    def move(key: Array, latents: Array) -> Array:
        shape = (config.steps_per_frame, *latents.shape)
        steps = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
        return latents + config.step_size * free * jnp.sum(steps, axis=0)

    generate = jax.jit(found.model.generate)
    frames = []
    for index in trange(config.num_frames, desc="Walking", unit="frame"):
        frames.append(np.asarray(generate(found.state.params, found.state.batch_stats, latents)))
        latents = move(jax.random.fold_in(walk_key, index), latents)
    return np.stack(frames)


def _starts(key: Array, found: Trained) -> Array:
    """Returns draws of the prior, those of a class next to one another."""
    if not found.config.conditional:
        return found.model.sample_latents(key, _ROWS * _COLUMNS)
    num_classes = found.dataset.num_classes
    latents = found.model.sample_latents(key, num_classes * _COLUMNS)
    labels = jnp.eye(num_classes).repeat(_COLUMNS, axis=0)
    return labelled.join(latents[:, : found.config.latent_dim], labels)


def main() -> None:
    """Parses the flags and walks."""
    command.main_in_workdir(run, Config)


if __name__ == "__main__":
    main()
