"""The model that a critic makes of a trained generator: a density of normal latents.

With label codes (n, k) in a conditional run, of which other runs have none, (n, 0).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.data import labelled
from experiments.judges.image_metrics import Scores
from experiments.training.objectives import OBJECTIVES
from experiments.training.settings import Config
from experiments.training.trained import Trained
from kernelgrad import kale, latent
from kernelgrad.critic import Critic
from kernelgrad.train import TrainState, as_unit_interval
from kernelgrad.types import Array, Key, LogDensityFn, PyTree

_BATCH = 1000  # of test data, of draws to choose among, and behind statistics taken anew
_BLOCK = 10_000  # of test images in memory, where they stay on the disk
_STATISTICS_BATCHES = 100  # the running averages forget all but the last twenty or so

FROM_NORMAL: dict[str, Callable[[Array], Array]] = {
    "normal": lambda latents: latents,
    "uniform": latent.uniform_latents,
}


class Draws(NamedTuple):
    """Samples of normal latents.

    Attributes:
      samples: shape (n, ...).
      latents: what the generator took, without labels; shape (n, l).
      energies: of the samples; shape (n,), None without a critic.
      labels: their codes, shape (n, k); None but for a conditional run.
    """

    samples: np.ndarray
    latents: np.ndarray
    energies: np.ndarray | None
    labels: np.ndarray | None


def generator_and_energy(
    run: Trained, state: TrainState
) -> tuple[Callable[[Array, Array], Array], Callable[[Array], Array] | None]:
    """Returns (normal latents, labels) -> points, and points -> energies, None without a critic.

    Points are samples; in a conditional run, samples and the codes (n, k) of their labels, of which
    other runs have none, (n, 0). Both functions hold the state still, and each point and energy is
    a function of its own latent: batch normalisation goes by the running averages.
    """
    config = run.config

    def generate(normal: Array, labels: Array) -> Array:
        latents = labelled.join(FROM_NORMAL[config.prior](normal), labels)
        samples = run.model.generate(state.params, state.batch_stats, latents)
        return labelled.join(samples, labels) if config.conditional else samples

    of_output = energy_of(config)
    if of_output is None:
        return generate, None
    player = cast(Critic, run.model.objective)
    values = functools.partial(cast(Any, run.model.values), state.critic)
    return generate, lambda points: of_output(values(player.objective.view(points)))


def energy_of(config: Config) -> Callable[[Any], Array] | None:
    """Returns output of the critic -> energies (n,); None without a critic."""
    return OBJECTIVES[config.objective].energy


def draw_labels(key: Key, run: Trained, n: int) -> Array:
    """Returns codes (n, k) of labels as frequent as in the data; (n, 0) without labels."""
    return (
        labelled.draw_labels(key, n, run.dataset) if run.config.conditional else jnp.zeros((n, 0))
    )


def make_look(run: Trained, labels: Array) -> Callable[[Array], Draws]:
    """Returns normal latents (n, l) -> what the run makes of them and of labels (n, k)."""

    @jax.jit
    def look(state: TrainState, normal: Array) -> tuple[Array, Array, Array | None]:
        generate, energy = generator_and_energy(run, state)
        points = samples = generate(normal, labels)
        if run.config.conditional:
            samples, _ = labelled.part(points, run.dataset.sample_shape)
        return samples, FROM_NORMAL[run.config.prior](normal), energy and energy(points)

    codes = np.asarray(labels) if run.config.conditional else None

    def draws(normal: Array) -> Draws:
        samples, latents, energies = jax.device_get(look(run.state, jax.device_get(normal)))
        return Draws(samples, latents, energies, codes)

    return draws


class Selection(NamedTuple):
    """Some of the prior's draws, chosen by their energies.

    Attributes:
      normal: latents, shape (n, l).
      labels: codes (n, k); (n, 0) without labels.
      figures: effective_draws, those of the model that all of them are worth; capped, the share of
        the chosen whose weights were cut, where rejection chose.
    """

    normal: Array
    labels: Array
    figures: Scores


SELECTORS = ("rejection", "resampling")


def select(
    key: Key,
    run: Trained,
    selector: str,
    num_samples: int,
    num_candidates: int,
    inverse_temperature: float,
) -> Selection:
    """Chooses among draws of the prior, and of labels in a conditional run.

    Args:
      key: random key.
      run: with a critic.
      selector: of SELECTORS.
      num_samples: how many to choose.
      num_candidates: among how many.
      inverse_temperature: the factor of the energy.
    """
    draw_key, label_key, choice_key = jax.random.split(key, 3)
    normal = jax.random.normal(draw_key, (num_candidates, run.config.latent_dim))
    labels = draw_labels(label_key, run, num_candidates)

    @jax.jit
    def energies(state: TrainState, normal: Array, labels: Array) -> Array:
        generate, energy = generator_and_energy(run, state)
        of_points = cast(Callable[[Array], Array], energy)
        each = lambda pair: of_points(generate(*(part[None] for part in pair)))[0]  # noqa: E731
        return lax.map(each, (normal, labels), batch_size=_BATCH)

    base = energies(run.state, normal, labels)
    worth = kale.log_normalizer_estimate(inverse_temperature * base).effective_sample_size
    figures = {"effective_draws": float(worth)}
    if selector == "rejection":
        kept = latent.reject(
            choice_key, base, num_kept=num_samples, inverse_temperature=inverse_temperature
        )
        chosen, figures["capped"] = kept.indices, float(kept.num_capped) / num_samples
    else:
        chosen = latent.resample(
            choice_key, base, num_draws=num_samples, inverse_temperature=inverse_temperature
        )
    return Selection(normal[chosen], labels[chosen], figures)


def recalibrated(key: Key, run: Trained) -> Trained:
    """Returns the run with the generator's statistics of batches taken anew, at its last weights.

    The running averages of training lag behind the weights; these are averages over the last of
    many large batches of latents.
    """

    @jax.jit
    def statistics(state: TrainState) -> PyTree:
        def visit(stats: PyTree, key: Key) -> tuple[PyTree, None]:
            latents = run.model.sample_latents(key, _BATCH)
            return run.model.generator(state.params, stats, latents)[1], None

        keys = jax.random.split(key, _STATISTICS_BATCHES)
        return lax.scan(visit, state.batch_stats, keys)[0]

    return run._replace(state=run.state._replace(batch_stats=statistics(run.state)))


def log_density(
    run: Trained, inverse_temperature: float
) -> Callable[[TrainState, Array], LogDensityFn]:
    """Returns (state, code of a label (k,)) -> log density of one normal latent (l,)."""

    def of_label(state: TrainState, label: Array) -> LogDensityFn:
        generate, energy = generator_and_energy(run, state)
        return latent.latent_log_density(
            lambda normal: generate(normal, label[None]),
            cast(Callable[[Array], Array], energy),
            inverse_temperature=inverse_temperature,
        )

    return of_label


def kale_on_test_data(run: Trained, prior: Draws) -> Scores:
    """Returns KALE between test data and generator under the run's energy, in nats.

    It is -E_data[E] - log E_generator[exp(-E)], a lower bound of KL[data || generator]: it grows
    as the generator gets worse, and is no likelihood. Where no sample of the generator is a datum,
    as with images, the model has no density there, and KL is infinite.

    With the log-normaliser from the prior's draws, its standard error and effective draws.
    """
    _, energy = generator_and_energy(run, run.state)
    of_energies = kale.log_normalizer_estimate(jnp.asarray(prior.energies))
    of_one = cast(Callable[[Array], Array], energy)
    of_points = jax.jit(
        lambda points: lax.map(lambda x: of_one(x[None])[0], points, batch_size=_BATCH)
    )

    def of_block(start: int) -> Array:
        block = slice(start, start + _BLOCK)
        points = as_unit_interval(jnp.asarray(run.dataset.test[block]))
        if run.config.conditional:
            labels = jnp.asarray(np.asarray(run.dataset.test_labels)[block])
            points = labelled.join(points, jax.nn.one_hot(labels, run.dataset.num_classes))
        return of_points(points)

    starts = range(0, len(run.dataset.test), _BLOCK)
    energies = jnp.concatenate([of_block(start) for start in starts])
    error = jnp.hypot(
        jnp.std(energies, ddof=1) / math.sqrt(len(energies)), of_energies.standard_error
    )
    figures = {"nats": -jnp.mean(energies) - of_energies.value, "standard_error": error}
    return {
        name: float(value)
        for name, value in {**figures, "log_normalizer": of_energies.value}.items()
    } | {"effective_draws": float(of_energies.effective_sample_size)}
