"""The training step, the ways to feed it, and the only pmap of the repository.

    samples   = generator(params, latents)
    direction = objective(samples, data)          one vector per sample
    params   <- optimizer(pullback(direction))    chain rule, Optax

Everything random in step t is a function of (key, t): the batch, the latents and the objective's
own noise. A run that stops and resumes therefore continues the very same sequence, and D devices
with n / D samples each make the update of one device with n.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kernelgrad import _checks, pairwise, pullback
from kernelgrad.objectives import Info, Objective
from kernelgrad.types import Array, Key, PyTree

AXIS = "devices"


class TrainState(NamedTuple):
    """All that training carries from step to step.

    Attributes:
      step: number of updates made; shape (), int32.
      params: the generator's parameters.
      batch_stats: the generator's running statistics; an empty dict without batch normalisation.
      opt_state: the state of the Optax optimizer.
    """

    step: Array
    params: PyTree
    batch_stats: PyTree
    opt_state: optax.OptState


class Generator(Protocol):
    """A network in training mode, as a pure function."""

    def __call__(self, params: PyTree, batch_stats: PyTree, latents: Array) -> tuple[Array, PyTree]:
        """Returns (samples, updated batch_stats)."""
        ...


class TrainStep(Protocol):
    """One update from this device's share of a batch."""

    def __call__(self, state: TrainState, key: Key, data: Array) -> tuple[TrainState, Info]:
        """Returns the next state and the scalars of this step."""
        ...


def init(
    params: PyTree, batch_stats: PyTree, optimizer: optax.GradientTransformation
) -> TrainState:
    """Returns the state before the first step.

    Args:
      params: the generator's initial parameters.
      batch_stats: the generator's initial running statistics.
      optimizer: the Optax optimizer that will be stepped.

    Returns:
      State at step 0.
    """
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))


def make_train_step(
    generator: Generator,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    sample_latents: Callable[[Key, int], Array],
    axis_name: str | None = None,
    pull_back: Callable[[Callable[[PyTree], Array], PyTree, Array], PyTree] = pullback.chain_rule,
) -> TrainStep:
    r"""Returns the training step of any objective.

    .. math:: \eta \leftarrow \mathrm{optimizer}\Big(\frac1n \sum_i J_i^\top \phi(x_i)\Big)

    Args:
      generator: the network in training mode.
      objective: direction phi per sample, to be descended.
      optimizer: any Optax optimizer.
      sample_latents: (key, n) -> n latents, i.i.d. by row.
      axis_name: mapped axis over devices; each passes its own share of the batch and the update is
        that of the whole batch. The generator must synchronise its batch statistics over it.
      pull_back: (generator_fn, params, direction) -> gradient.

    Returns:
      train_step(state, key, data) -> (state, info). info holds the objective's scalars and
      ``finite``: whether the direction, the gradient and the new parameters are.
    """

    def train_step(state: TrainState, key: Key, data: Array) -> tuple[TrainState, Info]:
        latent_key, objective_key = jax.random.split(jax.random.fold_in(key, state.step))
        latents = _share(
            sample_latents(latent_key, data.shape[0] * pairwise.num_devices(axis_name)), axis_name
        )
        samples, batch_stats = generator(state.params, state.batch_stats, latents)
        direction, info = objective(
            objective_key, lax.stop_gradient(samples), data, axis_name=axis_name
        )

        def generator_fn(params: PyTree) -> Array:
            return generator(params, state.batch_stats, latents)[0]

        gradient = pull_back(generator_fn, state.params, direction)
        if axis_name is not None:
            gradient, batch_stats = lax.pmean((gradient, batch_stats), axis_name)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        finite = jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)])
        new_state = TrainState(state.step + 1, params, batch_stats, opt_state)
        return new_state, {**info, "finite": jnp.all(finite)}

    return train_step


def scan_resident(
    train_step: TrainStep, *, batch_size: int, num_steps: int, axis_name: str | None = None
) -> Callable[[TrainState, Key, Array], tuple[TrainState, Info]]:
    """Returns a function that runs many steps on a data set living on the device.

    A batch is one example, drawn uniformly, from each of batch_size equal stretches of the data:
    distinct examples, each as likely as any other, without shuffling anything.

    Args:
      train_step: the step, made with the same axis_name.
      batch_size: size of the whole batch, over all devices; static.
      num_steps: steps per call; static. On a CPU prefer 1: XLA runs convolutions several times
        slower inside a loop there.
      axis_name: mapped axis over devices, each holding the whole data set.

    Returns:
      run(state, key, data) -> (state, info), info with a leading axis of num_steps. data has shape
      (N, ...); uint8 is read as [0, 1].

    Raises:
      ValueError: N < batch_size, or a batch that the devices do not divide (at trace time).
    """
    _checks.at_least("batch_size", batch_size, 1)
    _checks.at_least("num_steps", num_steps, 1)

    def run(state: TrainState, key: Key, data: Array) -> tuple[TrainState, Info]:
        size, devices = data.shape[0], pairwise.num_devices(axis_name)
        if batch_size > size or batch_size % devices:
            raise ValueError(
                f"batch_size: got {batch_size}; expected a multiple of the {devices} device(s), "
                f"at most the {size} examples"
            )
        edges = np.arange(batch_size + 1) * size // batch_size
        low, high = (jnp.asarray(ends, jnp.int32) for ends in (edges[:-1], edges[1:]))
        batch_key, step_key = jax.random.split(key)

        def body(state: TrainState, _: Array) -> tuple[TrainState, Info]:
            draw_key = jax.random.fold_in(batch_key, state.step)
            chosen = jax.random.randint(draw_key, (batch_size,), low, high)
            batch = as_unit_interval(data[_share(chosen, axis_name)])
            return train_step(state, step_key, batch)

        return _scan(body, state, jnp.arange(num_steps))

    return run


def scan_batches(
    train_step: TrainStep,
) -> Callable[[TrainState, Key, Array], tuple[TrainState, Info]]:
    """Returns a function that runs one step on each of the batches that the host sends.

    Args:
      train_step: the step.

    Returns:
      run(state, key, batches) -> (state, info), info with a leading axis of the number of steps.
      batches has shape (num_steps, n, ...), this device's share; uint8 is read as [0, 1].
    """

    def run(state: TrainState, key: Key, batches: Array) -> tuple[TrainState, Info]:
        _, step_key = jax.random.split(key)

        def body(state: TrainState, batch: Array) -> tuple[TrainState, Info]:
            return train_step(state, step_key, as_unit_interval(batch))

        return _scan(body, state, batches)

    return run


def pmap_train_step(
    run: Callable[[TrainState, Key, Array], tuple[TrainState, Info]],
    devices: Sequence[jax.Device] | None = None,
) -> Callable[[TrainState, Key, Array], tuple[TrainState, Info]]:
    """Returns the function mapped over devices under the axis name ``AXIS``.

    Args:
      run: run(state, key, data), made with axis_name=AXIS.
      devices: the devices to use; None: all of them.

    Returns:
      Function of a replicated state (donated), one key for all, and data with a leading axis of
      devices; it returns the state and the info, both with that axis. See :func:`replicate`.
    """
    return jax.pmap(run, axis_name=AXIS, in_axes=(0, None, 0), donate_argnums=(0,), devices=devices)


def replicate(tree: PyTree, devices: Sequence[jax.Device] | None = None) -> PyTree:
    """Returns a copy of the tree on each device, under a new leading axis.

    Args:
      tree: pytree of arrays.
      devices: this process's devices; None: all of them.

    Returns:
      Pytree whose leaves have shape (devices, ...), laid out as :func:`pmap_train_step` returns
      its state, so that the first and the second step share one compilation.
    """
    devices = jax.local_devices() if devices is None else devices
    sharding = NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec(AXIS))

    def copy(leaf: Any) -> Array:
        leaf = np.asarray(leaf)
        return jax.device_put(np.broadcast_to(leaf, (len(devices), *leaf.shape)), sharding)

    return jax.tree.map(copy, tree)


def unreplicate(tree: PyTree) -> PyTree:
    """Returns the first local device's copy, without the leading axis.

    Args:
      tree: pytree whose leaves have shape (devices, ...).

    Returns:
      Pytree of single-device arrays.
    """
    return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], tree)


def as_unit_interval(data: Array) -> Array:
    """Returns uint8 data as float32 in [0, 1], anything else as it is.

    Args:
      data: any array.

    Returns:
      Floating array of the same shape.
    """
    return data.astype(jnp.float32) / 255 if data.dtype == jnp.uint8 else data


def _scan(
    body: Callable[[TrainState, Array], tuple[TrainState, Info]], state: TrainState, items: Array
) -> tuple[TrainState, Info]:
    """lax.scan, but a single step stays outside of any loop."""
    if items.shape[0] > 1:
        return lax.scan(body, state, items)
    state, info = body(state, items[0])
    return state, jax.tree.map(lambda value: value[None], info)


def _share(everything: Array, axis_name: str | None) -> Array:
    """Returns this device's contiguous share of the leading axis."""
    if axis_name is None:
        return everything
    size = everything.shape[0] // pairwise.num_devices(axis_name)
    return lax.dynamic_slice_in_dim(everything, lax.axis_index(axis_name) * size, size)
