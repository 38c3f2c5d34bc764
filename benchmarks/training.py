"""Whole training steps, and what happens around them: imports and compilation."""

import functools
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.ours import call
from benchmarks.timing import Call
from kernelgrad import kernels, objectives, train
from kernelgrad.types import Array, Key, PyTree

_IMAGE = (28, 28, 1)
_LATENT_DIM = 50
_MEDIAN_MIXTURE = functools.partial(kernels.median_mixture, kernels.imq_mixture)


def images(batch_size: int, width: int) -> tuple[np.ndarray, int]:
    """Returns a batch of noise the size of MNIST's images, and the width of the generator."""
    noise = np.random.default_rng(0).uniform(size=(batch_size, *_IMAGE))
    return noise.astype(np.float32), width


def step(objective: objectives.Objective) -> Callable[[tuple[np.ndarray, int]], Call]:
    """Returns the builder of one step of a DCGAN under the objective, always from one state."""

    def build(problem: tuple[np.ndarray, int]) -> Call:
        from experiments.networks import generators

        batch, width = problem
        network = generators.generator_for(_IMAGE, width)
        optimizer = optax.adam(5e-5, b1=0.5)

        def generator(params: PyTree, batch_stats: PyTree, latents: Array) -> tuple[Array, PyTree]:
            variables = {"params": params, "batch_stats": batch_stats}
            samples, updated = network.apply(
                variables, latents, train=True, mutable=["batch_stats"]
            )
            return samples, updated["batch_stats"]

        def sample_latents(key: Key, n: int) -> Array:
            return jax.random.normal(key, (n, _LATENT_DIM))

        key = jax.random.key(0)
        variables = network.init(key, sample_latents(key, 2), train=False)
        state = train.init(variables["params"], variables["batch_stats"], optimizer)
        train_step = train.make_train_step(
            generator, objective, optimizer, sample_latents=sample_latents
        )
        return call(train_step, state, key, batch)

    return build


kl_step = step(objectives.kl(_MEDIAN_MIXTURE))
mmd_step = step(objectives.mmd_v(_MEDIAN_MIXTURE))


def _bare(
    key: Key, samples: Array, data: Array, *, axis_name: str | None = None
) -> tuple[Array, objectives.Info]:
    """The cheapest direction there is: the samples themselves, less the data."""
    del key, axis_name
    return samples - data, {}


def _vmapped_mmd(
    key: Key, samples: Array, data: Array, *, axis_name: str | None = None
) -> tuple[Array, objectives.Info]:
    """MMD^2 written pair by pair and differentiated, as in the footnote of paper 000."""
    del key
    x, y = (points.reshape(len(points), -1) for points in (samples, data))
    scales = _MEDIAN_MIXTURE(x, y, axis_name=axis_name).lengthscales

    def k(a: Array, b: Array) -> Array:
        return jnp.sum((1 + jnp.sum((a - b) ** 2) / scales**2) ** -0.5)

    def mean(a: Array, b: Array) -> Array:
        return jnp.mean(jax.vmap(lambda one: jax.vmap(lambda other: k(one, other))(b))(a))

    def squared(x: Array) -> Array:
        return mean(x, x) + mean(y, y) - 2 * mean(x, y)

    value, gradient = jax.value_and_grad(squared)(x)
    return len(x) * gradient.reshape(samples.shape), {"mmd": value}


bare_step = step(_bare)
vmapped_mmd_step = step(_vmapped_mmd)


def first_run(problem: None) -> Call:
    """The training step of `make run`: the default settings of experiments.train."""
    del problem
    from experiments.data import catalog
    from experiments.training import fit, models, settings

    config, device = settings.Config(), jax.local_devices()[:1]
    dataset = catalog.load(config.dataset, None, seed=config.seed)
    model = models.build(config, dataset, train.AXIS)
    per_call = fit.steps_per_call(fit.steps_per_record(config), dataset, device)
    advance = fit.make_advance(config, dataset, model, per_call, 0, device)
    key = jax.random.key(config.seed)
    state = train.replicate(jax.jit(model.initial_state)(key), device)

    def next_state() -> Any:
        nonlocal state
        state, info = advance(state, key)
        return info

    return next_state


def importing(modules: str) -> Callable[[None], Call]:
    """Returns the builder of an import in a fresh process."""

    def build(problem: None) -> Call:
        del problem
        command = [sys.executable, "-c", f"import {modules}"]
        environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages have their bytecode
        return lambda: subprocess.run(command, check=True, env=environment) and None

    return build


def every_module() -> str:
    """Returns all modules of the package, comma-separated."""
    folder = pathlib.Path(train.__file__).parent
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    return ", ".join(f"kernelgrad.{name}" for name in names)
