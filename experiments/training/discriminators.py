"""Discriminators trained from scratch on a generator held still, and what they pass on to it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax import lax
from jax.flatten_util import ravel_pytree

from experiments.run import loop
from experiments.run.loop import Record, Schedule
from experiments.run.signals import Signals
from experiments.run.workdirs import Workdir
from experiments.training.models import Model
from kernelgrad import adversarial, critic, noise, train
from kernelgrad.critic import Critic, CriticState
from kernelgrad.two_player import CriticFn
from kernelgrad.types import Array, Key, PyTree

LOSSES = {
    "saturating": adversarial.saturating_loss,
    "non_saturating": adversarial.non_saturating_loss,
}
_EVALUATED = 1000
_GRADIENTS, _GRADIENT_BATCH = 20, 50
_SAVES = 4  # of a discriminator
_FEWEST_DRAWS = 10  # of a coordinate


class AddNoise(Protocol):
    """Instance noise, Gaussian or bounded."""

    def __call__(self, key: Key, x: Array, *, variance: float | Array) -> Array:
        """Returns noised points."""
        ...


class Frozen(NamedTuple):
    """A generator held still: its parameters and running statistics."""

    params: PyTree
    batch_stats: PyTree


@dataclasses.dataclass(frozen=True)
class Lab:
    """What all discriminators share.

    Attributes:
      model: of the generator.
      critic: network, loss and optimizer of a discriminator.
      fresh_critic: key -> its state before the first step.
      batch_size: real and generated images each in a step.
    """

    model: Model
    critic: Critic
    fresh_critic: Callable[[Key], CriticState]
    batch_size: int

    def generate(self, frozen: Frozen, key: Key, n: int) -> Array:
        """Returns n images of a generator."""
        return self.model.generate(*frozen, self.model.sample_latents(key, n))


class Trial(NamedTuple):
    """How a discriminator is trained.

    Attributes:
      name: of the trial.
      add_noise: to real and generated images alike.
      variances: of the noise in each coordinate, one after the other; 0 for none.
      num_iterations: at each of the variances.
      record_every: iterations between records; divides num_iterations.
    """

    name: str
    add_noise: AddNoise
    variances: tuple[float, ...]
    num_iterations: int
    record_every: int

    def variance(self, step: int) -> float:
        """Returns the variance of the noise in a step, counted from 1."""
        return self.variances[max(step - 1, 0) // self.num_iterations]


# ----------------------------------------------------------------------------------- gradients


def generator_gradients(
    loss_fn: Callable[[Array], Array],
    critic_fn: CriticFn,
    generator_fn: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    latents: PyTree,
    coordinates: Array | None = None,
) -> Array:
    """Returns the gradient of a generator's loss in its parameters, one a minibatch.

    Args:
      loss_fn: logits (n,) -> loss.
      critic_fn: images (n, ...) -> logits (n,).
      generator_fn: (params, one minibatch of latents) -> images.
      params: of the generator.
      latents: b minibatches of whatever generator_fn takes; leaves (b, ...).
      coordinates: indices of the p parameters to return, in the order of ravel_pytree; None: all.

    Returns:
      Gradients, shape (b, p).
    """

    def gradient(batch: PyTree) -> Array:
        loss_gradient = jax.grad(lambda p: loss_fn(critic_fn(generator_fn(p, batch))))
        flat, _ = ravel_pytree(loss_gradient(params))
        return flat if coordinates is None else flat[coordinates]

    return lax.map(gradient, latents)


def spread(gradients: Array) -> tuple[Array, Array]:
    """Returns the norm of the mean of gradients (b, p), and the trace of their covariance."""
    mean = jnp.mean(gradients, axis=0)
    variance = jnp.sum(jnp.square(gradients - mean)) / (gradients.shape[0] - 1)
    return jnp.linalg.norm(mean), variance


@functools.partial(jax.jit, static_argnums=(0, 1, 6, 7))
def minibatch_gradients(
    lab: Lab,
    add_noise: AddNoise,
    frozen: Frozen,
    state: CriticState,
    key: Key,
    variance: float | Array,
    loss: str,
    shape: tuple[int, int],
    coordinates: Array | None = None,
) -> Array:
    """Returns gradients (b, p) that a discriminator passes on.

    Args:
      lab: networks.
      add_noise: to the generated images.
      frozen: the generator.
      state: of the discriminator.
      key: of latents and noise.
      variance: of the noise.
      loss: of :data:`LOSSES`.
      shape: b minibatches of n latents.
      coordinates: indices of the p parameters to return; None: all.

    Returns:
      Gradients of the generator's loss in its parameters, one a minibatch.
    """

    def generator_fn(params: PyTree, batch: tuple[Array, Array]) -> Array:
        latents, noise_key = batch
        images = lab.model.generate(params, frozen.batch_stats, latents)
        return add_noise(noise_key, images, variance=variance)

    latent_key, noise_key = jax.random.split(key)
    latents = lab.model.sample_latents(latent_key, shape[0] * shape[1])
    batches = (latents.reshape(*shape, -1), jax.random.split(noise_key, shape[0]))
    critic_fn = critic.bind(state, lab.critic)
    return generator_gradients(
        LOSSES[loss], critic_fn, generator_fn, frozen.params, batches, coordinates
    )


# ------------------------------------------------------------------------- training and records


def train_discriminator(
    lab: Lab,
    trial: Trial,
    frozen: Frozen,
    images: tuple[np.ndarray, np.ndarray],
    key: Key,
    folder: Workdir,
    signals: Signals,
) -> tuple[list[Record], CriticState]:
    """Trains a discriminator from scratch, resuming what the folder holds.

    Args:
      lab: networks.
      trial: noise and length.
      frozen: the generator.
      images: training and held-out images.
      key: of everything random.
      folder: of this discriminator.
      signals: where a request to stop arrives.

    Returns:
      The records, and the state at the end.

    Raises:
      DivergenceError: a figure is not finite.
      Terminated: a signal came; the state is saved.
    """
    init_key, train_key, judge_key = jax.random.split(key, 3)
    resident = tuple(jnp.asarray(part) for part in images)

    def advance(
        state: CriticState, step: int, count: int, tick: Callable[[int], Any]
    ) -> tuple[CriticState, Record]:
        step_key, variance = jax.random.fold_in(train_key, step), trial.variance(step + 1)
        state = _advance(lab, trial.add_noise, frozen, state, resident[0], step_key, variance)
        tick(count)
        return state, {}

    def evaluate(step: int, state: CriticState) -> Record:
        variance = trial.variance(step)
        figures = _judge(lab, trial.add_noise, frozen, state, resident, judge_key, variance)
        values = {name: float(value) for name, value in figures.items()}
        for name, value in values.items():
            if not np.isfinite(value):
                raise folder.divergence(step, f"{trial.name}: {name} is {value}")
        return values | {"variance": variance}

    total, every = len(trial.variances) * trial.num_iterations, trial.record_every
    schedule = Schedule(total, every, save_every=max(1, total // every // _SAVES) * every)
    begun = loop.begin(folder, functools.partial(jax.jit(lab.fresh_critic), init_key))
    state = loop.run(folder, signals, begun, advance, evaluate, schedule, name=trial.name)
    return folder.history(), state


def keep_training(
    lab: Lab, frozen: Frozen, state: CriticState, data: Array, key: Key, num_steps: int
) -> Iterator[CriticState]:
    """Yields the states of a discriminator after each of some more steps without noise."""
    for step_key in jax.random.split(key, num_steps):
        state = _advance(lab, noise.instance_noise, frozen, state, data, step_key, 0.0)
        yield state


@functools.partial(jax.jit, static_argnums=(0, 1))
def _advance(
    lab: Lab,
    add_noise: AddNoise,
    frozen: Frozen,
    state: CriticState,
    data: Array,
    key: Key,
    variance: float | Array,
) -> CriticState:
    row_key, latent_key, real_key, fake_key, loss_key = jax.random.split(key, 5)
    rows = jax.random.randint(row_key, (lab.batch_size,), 0, len(data))
    fake = lab.generate(frozen, latent_key, lab.batch_size)
    samples = add_noise(fake_key, fake, variance=variance)
    real = add_noise(real_key, train.as_unit_interval(data[rows]), variance=variance)
    return critic.step(loss_key, state, lab.critic, samples, real)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _judge(
    lab: Lab,
    add_noise: AddNoise,
    frozen: Frozen,
    state: CriticState,
    images: tuple[Array, Array],
    key: Key,
    variance: float | Array,
) -> dict[str, Array]:
    """Returns how well the images are told apart, fitted and held out, and the gradients' norms."""
    latent_key, noise_key, gradient_key = jax.random.split(key, 3)
    fitted, held_out = (
        train.as_unit_interval(part[jnp.arange(_EVALUATED) % len(part)]) for part in images
    )
    fake = lab.generate(frozen, latent_key, _EVALUATED)
    critic_fn = critic.bind(state, lab.critic)
    fitted_logits, real_logits, fake_logits = (
        critic_fn(add_noise(one, points, variance=variance))
        for one, points in zip(
            jax.random.split(noise_key, 3), (fitted, held_out, fake), strict=True
        )
    )
    right = jnp.mean(real_logits > 0) + jnp.mean(fake_logits < 0)
    figures = {
        "jsd": adversarial.jsd_estimate(real_logits, fake_logits),
        "jsd_fitted": adversarial.jsd_estimate(fitted_logits, fake_logits),
        "accuracy": right / 2,
    }
    shape = (_GRADIENTS, _GRADIENT_BATCH)
    for loss in LOSSES:
        gradients = minibatch_gradients(
            lab, add_noise, frozen, state, gradient_key, variance, loss, shape
        )
        figures[f"{loss}_norm"], figures[f"{loss}_variance"] = spread(gradients)
    return figures


# ----------------------------------------------------------------------------- tails of gradients


class Tail(NamedTuple):
    """A Cauchy and a Gaussian law fitted to values by maximum likelihood.

    Attributes:
      cauchy: location and scale.
      gaussian: mean and standard deviation.
      cauchy_log_likelihood: per value, in nats.
      gaussian_log_likelihood: per value, in nats.
      cauchy_distance: Kolmogorov-Smirnov, in [0, 1].
      gaussian_distance: Kolmogorov-Smirnov, in [0, 1].
    """

    cauchy: tuple[float, float]
    gaussian: tuple[float, float]
    cauchy_log_likelihood: float
    gaussian_log_likelihood: float
    cauchy_distance: float
    gaussian_distance: float


def normalised(gradients: np.ndarray) -> np.ndarray:
    """Returns the entries of gradients (b, p), each less its coordinate's median, over its MAD.

    MAD is the median absolute deviation of a coordinate's draws, so that coordinates of different
    scale are comparable and none looks heavy-tailed for a mixture of scales. Zeros, where a relu
    shuts, are left out, and so are coordinates of fewer than 10 draws or with MAD 0; the result
    has shape (k,).
    """
    kept = []
    for draws in gradients.T:
        open_draws = draws[draws != 0]
        if len(open_draws) >= _FEWEST_DRAWS:
            centred = open_draws - np.median(open_draws)
            scale = np.median(np.abs(centred))
            kept.append(centred / scale if scale > 0 else centred[:0])
    return np.concatenate(kept)


def fit_tail(values: np.ndarray) -> Tail:
    """Returns the fits of both laws to values (k,)."""
    cauchy, gaussian = scipy.stats.cauchy.fit(values), scipy.stats.norm.fit(values)
    return Tail(
        (float(cauchy[0]), float(cauchy[1])),
        (float(gaussian[0]), float(gaussian[1])),
        float(np.mean(scipy.stats.cauchy.logpdf(values, *cauchy))),
        float(np.mean(scipy.stats.norm.logpdf(values, *gaussian))),
        float(scipy.stats.kstest(values, "cauchy", cauchy).statistic),
        float(scipy.stats.kstest(values, "norm", gaussian).statistic),
    )
