"""The spectrum of K beside the ridge in a run, and the directions of KL and MMD^2.

A batch is one of training itself: its latents, samples, noise and data are those of the step.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.dataset import Dataset
from experiments.run.errors import UsageError
from experiments.training import fit, models, settings
from experiments.training.objectives import UnderAKernel
from experiments.training.settings import Config
from experiments.training.trained import Kept
from kernelgrad import kernels, score, train
from kernelgrad.train import TrainState
from kernelgrad.types import Array, Info, Key, Objective


class Seen(NamedTuple):
    """A batch as an objective sees it, on the host or the device.

    Attributes:
      gram: K between the samples; shape (n, n).
      ridge: eta of the run, or that of KL by default; shape ().
      score: of the samples, by the Stein estimator; shape (n, d).
      kl: direction of KL[q || p], not normalised: that score less the data's at the samples.
      mmd: direction of MMD^2.
    """

    gram: Any
    ridge: Any
    score: Any
    kl: Any
    mmd: Any


def check(config: Config, dataset: Dataset) -> None:
    """Refuses a run whose batches are not drawn from data on the device."""
    if models.size_of_rows(config, dataset) > settings.resident_bytes(config):
        raise UsageError(
            f"runs: got a run on {dataset.name}, whose data are larger than its resident_gib, "
            f"{config.resident_gib}; expected one whose data fit"
        )


def watch(run: Kept, terms: UnderAKernel) -> Callable[[TrainState, int], Iterator[Seen]]:
    """Returns (state, k) -> what the next k steps of training from it see.

    All of them see the samples of that state, which is not advanced.

    Args:
      run: one of images or points that :func:`check` lets pass.
      terms: its kernel and directions.
    """
    config, dataset, model, _ = run
    watched = model._replace(objective=_seeing(terms, config.ridge))
    step = fit.make_train_step(config, watched, None, anneals=settings.anneals(config))
    advance = train.scan_resident(step, batch_size=config.batch_size, num_steps=1)

    @jax.jit
    def look(state: TrainState, key: Key, rows: Array) -> Seen:
        _, info = advance(state, key, rows)
        return Seen(*(info[name][0] for name in Seen._fields))

    rows, key = jnp.asarray(models.training_rows(config, dataset)), models.keys(config.seed).train

    def following(state: TrainState, count: int) -> Iterator[Seen]:
        for later in range(count):
            yield jax.device_get(look(state._replace(step=state.step + later), key, rows))

    return following


def _seeing(terms: UnderAKernel, ridge: float | None) -> Objective:
    """Returns an objective that moves nothing and tells what it sees."""

    def objective(
        key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        del axis_name
        x, y = (points.reshape(len(points), -1) for points in (samples, data))
        kernel = terms.make_kernel(x, y, axis_name=None)
        eta = score.default_ridge(len(x), kernel) if ridge is None else jnp.asarray(ridge)
        own = score.stein_score(x, kernel, ridge=eta)
        kl, mmd = (direction(key, x, y)[0] for direction in (terms.kl, terms.mmd))
        return jnp.zeros_like(samples), Seen(kernels.gram(kernel, x), eta, own, kl, mmd)._asdict()

    return objective


class Spectrum(NamedTuple):
    """What several batches of one state have shown.

    Attributes:
      ridge: eta.
      eigenvalues: of K, largest first; shape (batches, n).
      figures: by name, one a batch.
    """

    ridge: float
    eigenvalues: np.ndarray
    figures: dict[str, np.ndarray]

    @property
    def kept(self) -> np.ndarray:
        """The share of each mode that the ridge keeps; shape (batches, n)."""
        return share_kept(self.eigenvalues, self.ridge)


def spectrum(seen: list[Seen]) -> Spectrum:
    """Returns the spectrum of batches, in float64, and its figures."""
    wide = [Seen(*(np.asarray(part, np.float64) for part in one)) for one in seen]
    ridge = float(wide[0].ridge)
    eigenvalues = np.stack([np.linalg.eigvalsh(one.gram)[::-1] for one in wide])
    figures = [
        {**_of_modes(values, ridge), **_of_directions(one)}
        for values, one in zip(eigenvalues, wide, strict=True)
    ]
    by_name = {name: np.array([one[name] for one in figures]) for name in figures[0]}
    return Spectrum(ridge, eigenvalues, by_name)


def _of_modes(values: np.ndarray, ridge: float) -> dict[str, float]:
    """Returns the figures of eigenvalues, largest first."""
    median = np.median(values)
    return {
        "largest eigenvalue": values[0],
        "second eigenvalue": values[1],
        "median eigenvalue": median,
        "eigenvalues above the ridge": np.sum(values > ridge),
        "effective dimension": np.sum(share_kept(values, ridge)),
        "damping of the first mode": (values[0] + ridge) / (median + ridge),
    }


def _of_directions(seen: Seen) -> dict[str, float]:
    """Returns the figures of the directions of a batch."""
    (kl, kl_rest), (mmd, mmd_rest) = (_parted(direction) for direction in (seen.kl, seen.mmd))
    return {
        "rms of kl": rms(seen.kl),
        "rms of mmd": rms(seen.mmd),
        "common part of kl": common_part(seen.kl),
        "common part of mmd": common_part(seen.mmd),
        "common part of the samples' score": common_part(seen.score),
        "common part of the data's score": common_part(seen.score - seen.kl),
        "damping of the common part": rms(kl_rest) / rms(mmd_rest) * rms(mmd) / rms(kl),
        "cosine of kl and mmd": cosine(seen.kl, seen.mmd),
        "cosine of their common parts": cosine(kl, mmd),
        "cosine of the rest": cosine(kl_rest, mmd_rest),
    }


def _parted(direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what all rows have alike, in every row, and the rest."""
    common = np.broadcast_to(direction.mean(axis=0), direction.shape)
    return common, direction - common


def share_kept(eigenvalues: np.ndarray, ridge: float) -> np.ndarray:
    """Returns lambda / (lambda + eta), by which K (K + eta I)^-1 scales each mode."""
    return eigenvalues / (eigenvalues + ridge)


def rms(direction: np.ndarray) -> float:
    """Returns the root of the mean squared norm of directions (n, d), direction_rms of a run."""
    return float(np.sqrt(np.mean(np.sum(direction**2, axis=1))))


def common_part(direction: np.ndarray) -> float:
    """Returns the share of the squared norm that all rows have alike; in [0, 1]."""
    return (rms(_parted(direction)[0]) / rms(direction)) ** 2


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the cosine of the angle between two directions of all samples."""
    return float(np.sum(one * other) / (np.linalg.norm(one) * np.linalg.norm(other)))
