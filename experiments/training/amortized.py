"""Amortized maximum likelihood of a Boltzmann machine: Algorithm 2 of Wang & Liu 2016.

The directions that the generator can follow are those of :mod:`experiments.rbm`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.networks import generators
from experiments.networks.generators import MLPGenerator
from experiments.run import fields
from experiments.targets import boltzmann
from experiments.targets.boltzmann import RBMParams
from kernelgrad import kernels, pairwise, pullback, steingan
from kernelgrad.types import Array, Key, PyTree

_NUM_SAMPLES = 1000
DirectionFn = Callable[[Array, Array], Array]


def svgd_direction(samples: Array, scores: Array) -> Array:
    """Returns the row-normalised SVGD direction, to be ascended; all shapes (n, d)."""
    kernel = kernels.rbf_mixture(kernels.svgd_lengthscale(samples))
    return steingan.row_normalized_direction(samples, scores, kernel)


def smoothed_score(samples: Array, scores: Array) -> Array:
    """Returns the same without its repulsive term."""
    kernel = kernels.rbf_mixture(kernels.svgd_lengthscale(samples))
    row_sums = pairwise.kernel_sum(kernel, samples, None, jnp.ones((len(samples), 1)))
    return pairwise.kernel_sum(kernel, samples, None, scores) / row_sums


def raw_score(samples: Array, scores: Array) -> Array:
    """Returns the scores: each sample on its own climbs to a mode."""
    del samples
    return scores


DIRECTIONS: dict[str, DirectionFn | None] = {
    "svgd": svgd_direction,
    "score": raw_score,
    "smoothed": smoothed_score,
    "exact": None,
}


class _SigmoidMLP(nn.Module):
    """The generator of points, put into (0, 1)."""

    size: int
    width: int

    @nn.compact
    def __call__(self, latents: Array, train: bool) -> Array:
        return nn.sigmoid(MLPGenerator((self.size,), self.width, depth=2)(latents, train))


GENERATORS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "mlp": lambda image_shape, width: _SigmoidMLP(math.prod(image_shape), width),
    "linear": lambda image_shape, width: MLPGenerator((math.prod(image_shape),), width, 2),
    "dcgan": generators.generator_for,
}
_FOLLOWING = [name for name, follow in DIRECTIONS.items() if follow]
_GENERATOR: dict[str, Any] = {"of": lambda _: _FOLLOWING}


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the runs, but for where they are stored."""

    dataset: str = fields.word("mnist", "Images: mnist, digits, ...")
    image_size: int | None = fields.image_size()
    directions: tuple[str, ...] = fields.choices(
        ("svgd", "score", "smoothed", "exact"), DIRECTIONS, "Directions to compare."
    )
    seeds: tuple[int, ...] = fields.integers(
        (0, 1, 2), 0, fields.MAX_SEED, "Seeds of each direction."
    )
    num_epochs: int = fields.integer(20, 1, 10**6, "Passes over the training images.")
    num_hidden: int = fields.integer(10, 1, boltzmann.MAX_HIDDEN, "Hidden units.")
    generator: str = fields.choice("mlp", GENERATORS, "Its network.", **_GENERATOR)
    width: int = fields.integer(
        512, 1, fields.MAX_SIZE, "Units (mlp) or channels (dcgan).", **_GENERATOR
    )
    observation_noise: bool = fields.switch(
        True,
        "Add N(0, I) to what the network draws, as the machine's samples have it; false: the "
        "generator of the authors' code.",
        before=False,
        **_GENERATOR,
    )
    batch_size: int = fields.integer(100, 2, fields.MAX_SIZE, "Images, and samples, per step.")
    latent_dim: int = fields.integer(
        100, 1, fields.MAX_SIZE, "Dimension of the latents.", **_GENERATOR
    )
    learning_rate: float = fields.positive(3e-4, "Adam's, of both players.")
    b1: float = fields.share(0.5, "Adam's decay of the first moment.")
    weight_decay: float = fields.not_negative(1e-5, "L2 decay of the machine.")
    balance_weight: float = fields.not_negative(
        1.0, "Weight 1 - gamma of the negative phase.", **_GENERATOR
    )


class State(NamedTuple):
    """Both players and their optimizers."""

    machine: RBMParams
    machine_opt: optax.OptState
    generator: PyTree
    batch_stats: PyTree
    generator_opt: optax.OptState


class Trainer(NamedTuple):
    """What a config, a direction and the images' shape make of training."""

    initial_state: Callable[[Key], State]
    step: Callable[[State, Key, Array], State]
    samples: Callable[[State, Key], Array]
    means: Callable[[State, Key], Array]  # of the same draws, without the noise of observation


def make_trainer(config: Config, direction: str, image_shape: tuple[int, ...]) -> Trainer:
    """Returns start, step and samplers for one direction; images come as uint8 (n, h, w, c)."""
    size = math.prod(image_shape)
    network = GENERATORS[config.generator](image_shape, config.width)
    direction_fn = DIRECTIONS[direction]
    adam = optax.adam(config.learning_rate, b1=config.b1)
    decayed_adam = optax.chain(optax.add_decayed_weights(config.weight_decay), adam)

    def initial_state(key: Key) -> State:
        machine_key, generator_key = jax.random.split(key)
        machine = boltzmann.initial_params(machine_key, size, config.num_hidden)
        params, stats = {}, {}
        if direction_fn is not None:
            variables = network.init(generator_key, _latents(config, key, 2), train=False)
            params, stats = variables["params"], variables.get("batch_stats", {})
        return State(machine, decayed_adam.init(machine), params, stats, adam.init(params))

    def generator(params: PyTree, stats: PyTree, latents: Array) -> tuple[Array, PyTree]:
        variables = {"params": params, "batch_stats": stats}
        images, updated = network.apply(variables, latents, train=True, mutable=["batch_stats"])
        return images.reshape(len(latents), size), updated.get("batch_stats", {})

    def negative_phase(follow: DirectionFn, state: State, key: Key) -> tuple[Array, State]:
        """Returns the generator's samples, and the state after it followed the direction there."""
        latents = _latents(config, key, config.batch_size)
        noise = _noise(config, key, (config.batch_size, size))
        means, stats = generator(state.generator, state.batch_stats, latents)
        samples = means + noise
        ascent = follow(samples, boltzmann.score(state.machine, samples))
        gradient = pullback.chain_rule(
            lambda params: generator(params, state.batch_stats, latents)[0],
            state.generator,
            -ascent,
        )
        updates, opt = adam.update(gradient, state.generator_opt)
        params = optax.apply_updates(state.generator, updates)
        return samples, state._replace(generator=params, batch_stats=stats, generator_opt=opt)

    def step(state: State, key: Key, images: Array) -> State:
        data = as_points(images)
        if direction_fn is None:
            gradient = jax.grad(lambda p: -boltzmann.mean_log_likelihood(p, data))(state.machine)
        else:
            samples, state = negative_phase(direction_fn, state, key)
            gradient = jax.grad(contrast)(state.machine, data, samples, config.balance_weight)
        updates, opt = decayed_adam.update(gradient, state.machine_opt, state.machine)
        return state._replace(machine=optax.apply_updates(state.machine, updates), machine_opt=opt)

    def means(state: State, key: Key) -> Array:
        if direction_fn is None:
            return boltzmann.sample_means(key, state.machine, _NUM_SAMPLES)
        variables = {"params": state.generator, "batch_stats": state.batch_stats}
        images = network.apply(variables, _latents(config, key, _NUM_SAMPLES), train=False)
        return images.reshape(_NUM_SAMPLES, size)

    def samples(state: State, key: Key) -> Array:
        return means(state, key) + _noise(config, key, (_NUM_SAMPLES, size))

    return Trainer(initial_state, step, samples, means)


def _latents(config: Config, key: Key, n: int) -> Array:
    return jax.random.uniform(key, (n, config.latent_dim), minval=-1.0, maxval=1.0)


def _noise(config: Config, key: Key, shape: tuple[int, int]) -> Array:
    """Returns Phi^-1(xi), xi uniform on (0, 1), beside the latents of the same key."""
    if not config.observation_noise:
        return jnp.zeros(shape)
    return jax.random.normal(jax.random.fold_in(key, 1), shape)


def as_points(images: Array) -> Array:
    """Returns uint8 images as points of float32 pixels in [0, 1], shape (n, h w c)."""
    return images.reshape(len(images), -1).astype(jnp.float32) / 255


def contrast(params: RBMParams, data: Array, samples: Array, balance_weight: float) -> Array:
    """Energy of the data minus that of the samples, eqs. (13) and (16); to be descended."""
    positive = jnp.mean(boltzmann.unnormalised_log_density(params, data))
    negative = jnp.mean(boltzmann.unnormalised_log_density(params, samples))
    return balance_weight * negative - positive
