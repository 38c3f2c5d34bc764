"""The training step, the ways to feed it, and the only pmap of the repository.

    samples, batch_stats = generator(params, batch_stats, latents)
    direction, info = objective(key, samples, data)                  one vector per sample
    params <- optimizer(pullback(direction))                         chain rule, Optax

An objective of two players has a critic, which makes steps of its own before every step of the
generator, each on fresh samples and data.

Everything random in step t is a function of (key, t): the batch, the latents and the objective's
own noise. A run that stops and resumes therefore continues the very same sequence, and D devices
with n / D samples each make the update of one device with n.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kernelgrad import _average, _checks, _devices, _numeric, noise, pullback
from kernelgrad import critic as critics
from kernelgrad.critic import Critic, CriticState
from kernelgrad.types import Array, Info, Key, Objective, PyTree

AXIS = "devices"

PullBack = Callable[[Callable[[PyTree], Array], PyTree, Array], PyTree]

_GENERATOR = "(params, batch_stats, latents) -> (samples, batch_stats)"
_SAMPLE_LATENTS = "(key, n) -> latents"
_OBJECTIVE = "(key, samples, data, *, axis_name) -> (direction like samples, info)"
_PULL_BACK = "(generator_fn, params, direction) -> gradient like params"


class TrainState(NamedTuple):
    """All that training carries from step to step.

    Attributes:
      step: number of updates made; shape (), int32.
      params: the generator's parameters.
      batch_stats: the generator's running statistics; an empty dict without batch normalisation.
      opt_state: the state of the Optax optimizer.
      critic: the critic's state; None without one.
      ema: moving averages of (params, batch_stats), in at least float32; None without them.
    """

    step: Array
    params: PyTree
    batch_stats: PyTree
    opt_state: optax.OptState
    critic: CriticState | None = None
    ema: tuple[PyTree, PyTree] | None = None


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


class _Batch(NamedTuple):
    """What one step sees: latents and their samples, and both clouds as the objective gets them."""

    latents: Array
    batch_stats: PyTree
    samples: Array
    data: Array


def init(
    params: PyTree,
    batch_stats: PyTree | None = None,
    optimizer: optax.GradientTransformation | None = None,
    critic: CriticState | None = None,
    *,
    ema: bool = False,
) -> TrainState:
    """Returns the state before the first step, such as ``init(params, optimizer=adam)``.

    Args:
      params: the generator's initial parameters.
      batch_stats: the generator's initial running statistics; None: an empty dict.
      optimizer: the Optax optimizer that will be stepped; must be given.
      critic: the critic's initial state, for an objective of two players.
      ema: whether to keep moving averages of the generator, for a step with ``ema_decay``.

    Returns:
      State at step 0, without weak types, which a step would not hand back: it is compiled once.

    Raises:
      ValueError: no optimizer.

    Example:
      >>> from kernelgrad import train
      >>> state = train.init({"shift": jnp.zeros(2)}, optimizer=optax.adam(1e-3))
      >>> int(state.step), state.params["shift"].shape, state.batch_stats, state.ema
      (0, (2,), {}, None)
    """
    if optimizer is None or not hasattr(optimizer, "init"):
        raise ValueError(
            f"optimizer: got {type(optimizer).__name__}; expected an Optax optimizer, as in "
            "init(params, batch_stats, optimizer) or init(params, optimizer=optimizer)"
        )
    batch_stats = {} if batch_stats is None else batch_stats
    step = jnp.zeros((), jnp.int32)
    state = TrainState(step, params, batch_stats, optimizer.init(params), critic)
    state = jax.tree.map(_own_type, state)
    return state._replace(ema=_average.start(_generator_of(state))) if ema else state


def averaged(state: TrainState) -> TrainState:
    """Returns the state with the averages of the generator in place of its newest parameters.

    Args:
      state: of training; one without averages comes back as it is.

    Returns:
      State to draw samples from, params and batch_stats in their own dtypes; not one to train on.

    Example:
      >>> from kernelgrad import objectives, train
      >>> optimizer = optax.sgd(1.0)
      >>> step = train.make_train_step(
      ...     lambda params, stats, z: (params + z, stats),
      ...     objectives.from_loss(lambda x, y: jnp.mean(x)),
      ...     optimizer,
      ...     sample_latents=lambda key, n: jnp.zeros((n, 1)),
      ...     ema_decay=0.5,
      ... )
      >>> state = train.init(jnp.zeros((1, 1)), optimizer=optimizer, ema=True)
      >>> for _ in range(2):  # to -1, then to -2
      ...     state, info = step(state, jax.random.key(0), jnp.zeros((2, 1)))
      >>> print(state.params, train.averaged(state).params)  # (0.5 * -1 + -2) / 1.5
      [[-2.]] [[-1.667]]
    """
    if state.ema is None:
        return state
    params, batch_stats = _average.like(state.ema, _generator_of(state))
    return state._replace(params=params, batch_stats=batch_stats)


def _generator_of(state: TrainState) -> tuple[PyTree, PyTree]:
    return state.params, state.batch_stats


def _own_type(x: Array) -> Array:
    """Returns x in the type that it has, no longer weakly."""
    return x if isinstance(x, np.ndarray) else jnp.asarray(x, jnp.result_type(x))


def make_train_step(
    generator: Generator,
    objective: Objective | Critic,
    optimizer: optax.GradientTransformation,
    *,
    sample_latents: Callable[[Key, int], Array],
    noise_variance: optax.Schedule | None = None,
    axis_name: str | None = None,
    pull_back: PullBack = pullback.chain_rule,
    ema_decay: float | Array | None = None,
    num_updates: int = 1,
) -> TrainStep:
    r"""Returns the training step of any objective.

    .. math:: \eta \leftarrow \mathrm{optimizer}\Big(\frac1n \sum_i J_i^\top \phi(x_i)\Big)

    Args:
      generator: the network in training mode, (params, batch_stats, latents) -> (samples,
        batch_stats); without batch normalisation batch_stats is an empty dict.
      objective: direction phi per sample, to be descended; or a critic, with an objective of two
        players, whose state is in the train state.
      optimizer: any Optax optimizer.
      sample_latents: (key, n) -> n latents, i.i.d. by row.
      noise_variance: step -> variance >= 0 of the Gaussian noise that is added to every coordinate
        of samples and data alike before objective and critic see them; None: no noise.
      axis_name: mapped axis over devices; each passes its own share of the batch and the update is
        that of the whole batch. The networks must synchronise their batch statistics over it.
      pull_back: (generator_fn, params, direction) -> gradient.
      ema_decay: d in [0, 1) of the averages :math:`\sum_s d^{t-s} \eta_s / \sum_s d^{t-s}` of
        parameters and batch statistics over the steps, for a state of ``init(..., ema=True)``;
        :func:`averaged` reads them, the step does not. None: none are kept.
      num_updates: of the generator in a step, each on fresh latents, while data and critic stay;
        static, >= 1. The step counts once.

    Returns:
      train_step(state, key, data) -> (state, info). With a critic data holds ``critic.num_steps``
      batches, row i in batch i modulo their number; the generator's updates see the last one. info
      holds the objective's scalars and ``direction_rms`` (root of the mean squared norm of phi),
      both of the last update, and ``finite`` (whether all new parameters are).

    Raises:
      ValueError: a critic without steps, no update, or a decay out of its range; at trace time, a
        train state without the critic's, or with averages and no decay, or the reverse, rows that
        the critic's steps do not divide, or a function that does not take or return what it should.

    Example:
      >>> from kernelgrad import objectives, train
      >>> mean_gap = objectives.from_loss(lambda x, y: jnp.square(jnp.mean(x) - jnp.mean(y)) / 2)
      >>> step = train.make_train_step(
      ...     lambda params, stats, latents: (params + latents, stats),
      ...     mean_gap,
      ...     optax.sgd(1.0),
      ...     sample_latents=lambda key, n: jnp.zeros((n, 1)),
      ... )
      >>> state = train.init(jnp.zeros((1, 1)), optimizer=optax.sgd(1.0))
      >>> state, info = step(state, jax.random.key(0), jnp.array([[1.0], [4.0]]))
      >>> print(state.params)  # the mean of the data, in one step
      [[2.5]]

    References:
      Goodfellow et al. 2014, algorithm 1; the noise: Arjovsky & Bottou 2017, section 3; several
      updates: Wang & Liu 2016 (learning to draw samples), algorithm 2.
    """
    num_batches = objective.num_steps if isinstance(objective, Critic) else 1
    _checks.at_least("critic.num_steps", num_batches, 1)
    _checks.at_least("num_updates", num_updates, 1)
    if ema_decay is not None:
        _checks.in_range("ema_decay", ema_decay, 0.0, 1.0, closed="l")
    draw = functools.partial(_drawn, generator, sample_latents, noise_variance, axis_name)

    def update(
        state: TrainState, direction_fn: Objective, keys: Sequence[Key], data: Array
    ) -> tuple[TrainState, Info]:
        latent_key, objective_key, noise_key = keys
        batch = draw(state, latent_key, noise_key, data)
        direction, info = _directed(direction_fn, objective_key, batch, axis_name)

        def generator_fn(params: PyTree) -> Array:
            return _generated(generator, params, state.batch_stats, batch.latents)[0]

        gradient = _pulled(pull_back, generator_fn, state.params, direction)
        gradient, batch_stats = _devices.mean((gradient, batch.batch_stats), axis_name)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = state._replace(params=params, batch_stats=batch_stats, opt_state=opt_state)
        return state, {**info, "direction_rms": _rms(direction, axis_name)}

    def train_step(state: TrainState, key: Key, data: Array) -> tuple[TrainState, Info]:
        _checks.one_key("key", key)
        *keys, critic_key = jax.random.split(jax.random.fold_in(key, state.step), 4)
        (data,) = _checks.batches(data=data)
        batches = _deal(data, num_batches)
        state, direction_fn, critic_info = _follow(
            objective, state, critic_key, functools.partial(draw, state), batches, axis_name
        )
        for repeat in range(num_updates):
            own = [jax.random.fold_in(one, repeat) for one in keys] if repeat else keys
            state, info = update(state, direction_fn, own, batches[-1])
        state = _follow_average(state._replace(step=state.step + 1), ema_decay)
        return state, {**critic_info, **info, "finite": _finite(state.params, state.critic)}

    return train_step


def scan_resident(
    train_step: TrainStep, *, batch_size: int, num_steps: int, axis_name: str | None = None
) -> Callable[[TrainState, Key, Array], tuple[TrainState, Info]]:
    """Returns a function that runs many steps on a data set living on the device.

    A batch is one example, drawn uniformly, from each of batch_size equal stretches of the data:
    distinct examples, each as likely as any other, without shuffling anything.

    Args:
      train_step: the step, made with the same axis_name.
      batch_size: rows per step, over all devices; static. An objective of two players needs a batch
        for each step of its critic.
      num_steps: steps per call; static. On a CPU prefer 1: XLA runs convolutions several times
        slower inside a loop there.
      axis_name: mapped axis over devices, each holding the whole data set.

    Returns:
      run(state, key, data) -> (state, info), info with a leading axis of num_steps. data has shape
      (N, ...); uint8 is read as [0, 1].

    Raises:
      ValueError: N < batch_size, or a batch that the devices do not divide (at trace time).

    Example:
      >>> from kernelgrad import objectives, train
      >>> step = train.make_train_step(
      ...     lambda params, stats, latents: (params + latents, stats),
      ...     objectives.from_loss(lambda x, y: jnp.mean(x)),
      ...     optax.sgd(0.1),
      ...     sample_latents=lambda key, n: jnp.zeros((n, 1)),
      ... )
      >>> run = train.scan_resident(step, batch_size=2, num_steps=3)
      >>> state = train.init(jnp.zeros((1, 1)), optimizer=optax.sgd(0.1))
      >>> state, info = run(state, jax.random.key(0), jnp.zeros((8, 1)))
      >>> int(state.step), info["loss"].shape, round(float(state.params[0, 0]), 3)
      (3, (3,), -0.3)
    """
    _checks.at_least("batch_size", batch_size, 1)
    _checks.at_least("num_steps", num_steps, 1)

    def run(state: TrainState, key: Key, data: Array) -> tuple[TrainState, Info]:
        _checks.one_key("key", key)
        data = _checks.array("data", data)
        size, devices = data.shape[0], _devices.num_devices(axis_name)
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
            batch = as_unit_interval(data[_devices.share(chosen, axis_name)])
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

    Example:
      >>> from kernelgrad import objectives, train
      >>> step = train.make_train_step(
      ...     lambda params, stats, latents: (params + latents, stats),
      ...     objectives.from_loss(lambda x, y: jnp.mean(x)),
      ...     optax.sgd(0.1),
      ...     sample_latents=lambda key, n: jnp.zeros((n, 1)),
      ... )
      >>> state = train.init(jnp.zeros((1, 1)), optimizer=optax.sgd(0.1))
      >>> batches = jnp.zeros((3, 2, 1))  # three of two examples
      >>> state, info = train.scan_batches(step)(state, jax.random.key(0), batches)
      >>> int(state.step), info["loss"].shape, round(float(state.params[0, 0]), 3)
      (3, (3,), -0.3)
    """

    def run(state: TrainState, key: Key, batches: Array) -> tuple[TrainState, Info]:
        _checks.one_key("key", key)
        _, step_key = jax.random.split(key)

        def body(state: TrainState, batch: Array) -> tuple[TrainState, Info]:
            return train_step(state, step_key, as_unit_interval(batch))

        return _scan(body, state, batches)

    return run


def pmap_train_step(
    run: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, Info]],
    devices: Sequence[jax.Device] | None = None,
) -> Callable[[PyTree, PyTree, PyTree], tuple[PyTree, Info]]:
    """Returns the function mapped over devices under the axis name ``AXIS``.

    Args:
      run: run(state, key, data), made with axis_name=AXIS; or, with states that are
        :func:`spread`, ``jax.vmap`` of one made without.
      devices: the devices to use; None: all of them.

    Returns:
      Function of a replicated state (donated), one key for all, and data with a leading axis of
      devices; it returns the state and the info, both with that axis. See :func:`replicate`.

    Raises:
      ValueError: a key that is replicated too (at trace time).

    Example:
      >>> from kernelgrad import train
      >>> def run(state, key, data):  # such as train.scan_batches of a step made with axis_name
      ...     return state + jax.lax.pmean(jnp.mean(data), train.AXIS), {}
      >>> device = jax.local_devices()[:1]
      >>> mapped, state = train.pmap_train_step(run, device), train.replicate(jnp.zeros(()), device)
      >>> state, info = mapped(state, jax.random.key(0), jnp.ones((1, 4)))
      >>> print(train.unreplicate(state))
      1.0
    """
    return jax.pmap(run, axis_name=AXIS, in_axes=(0, None, 0), donate_argnums=(0,), devices=devices)


def replicate(tree: PyTree, devices: Sequence[jax.Device] | None = None) -> PyTree:
    """Returns a copy of the tree on each device, under a new leading axis.

    Args:
      tree: pytree of arrays, typed random keys among them.
      devices: this process's devices; None: all of them.

    Returns:
      Pytree whose leaves have shape (devices, ...), laid out as :func:`pmap_train_step` returns
      its state, so that the first and the second step share one compilation.

    Example:
      >>> from kernelgrad import train
      >>> tree = train.replicate({"weight": jnp.zeros((3, 2))}, jax.local_devices()[:1])
      >>> tree["weight"].shape  # a leading axis of devices
      (1, 3, 2)
    """
    devices = jax.local_devices() if devices is None else devices
    return _laid_out(tree, devices, lambda leaf: np.broadcast_to(leaf, (len(devices), *leaf.shape)))


def spread(tree: PyTree, devices: Sequence[jax.Device] | None = None) -> PyTree:
    """Returns the tree with its leading axis dealt to the devices, a share each.

    Such as many runs at once: a function of this device's share of states, under ``jax.vmap``, is
    mapped by :func:`pmap_train_step` like one of a state.

    Args:
      tree: pytree of arrays, typed random keys among them; leaves (n, ...).
      devices: this process's devices, whose number divides n; None: all of them.

    Returns:
      Pytree whose leaves have shape (devices, n / devices, ...), in device order, laid out as
      :func:`replicate` does.

    Example:
      >>> from kernelgrad import train
      >>> runs = train.spread({"weight": jnp.zeros((4, 3))}, jax.local_devices()[:1])
      >>> runs["weight"].shape  # four runs, all on the one device
      (1, 4, 3)
    """
    devices = jax.local_devices() if devices is None else devices
    return _laid_out(tree, devices, lambda leaf: leaf.reshape(len(devices), -1, *leaf.shape[1:]))


def _laid_out(
    tree: PyTree, devices: Sequence[jax.Device], by_device: Callable[[np.ndarray], np.ndarray]
) -> PyTree:
    """Returns what each leaf becomes by device, each entry on its own one."""
    sharding = NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec(AXIS))

    def put(leaf: Any) -> Array:
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
            )
        return jax.device_put(by_device(np.asarray(leaf)), sharding)

    return jax.tree.map(put, tree)


def unreplicate(tree: PyTree) -> PyTree:
    """Returns the first local device's copy, without the leading axis.

    Args:
      tree: pytree whose leaves have shape (devices, ...).

    Returns:
      Pytree of single-device arrays.

    Example:
      >>> from kernelgrad import train
      >>> copies = train.replicate(jnp.array([1.0, 2.0]), jax.local_devices()[:1])
      >>> print(train.unreplicate(copies))
      [1. 2.]
    """
    return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], tree)


def as_unit_interval(data: Array) -> Array:
    """Returns uint8 data as float32 in [0, 1], anything else as it is.

    Args:
      data: any array.

    Returns:
      Floating array of the same shape.

    Example:
      >>> from kernelgrad import train
      >>> print(train.as_unit_interval(jnp.array([0, 51, 255], jnp.uint8)))
      [0.  0.2 1. ]
    """
    data = _checks.array("data", data)
    return data.astype(jnp.float32) / 255 if data.dtype == jnp.uint8 else data


def _scan(
    body: Callable[[TrainState, Array], tuple[TrainState, Info]], state: TrainState, items: Array
) -> tuple[TrainState, Info]:
    """lax.scan, but a single step stays outside of any loop."""
    if items.shape[0] > 1:
        return lax.scan(body, state, items)
    state, info = body(state, items[0])
    return state, jax.tree.map(lambda value: value[None], info)


def _generated(
    generator: Generator, params: PyTree, batch_stats: PyTree, latents: Array
) -> tuple[Array, PyTree]:
    """Returns the samples and statistics of a generator that keeps to its form."""
    output = _checks.call("generator", _GENERATOR, generator, params, batch_stats, latents)
    samples, batch_stats = _checks.two_returned("generator", _GENERATOR, output)
    _checks.rows("samples of generator", _GENERATOR, samples, latents.shape[0])
    return samples, batch_stats


def _drawn(
    generator: Generator,
    sample_latents: Callable[[Key, int], Array],
    noise_variance: optax.Schedule | None,
    axis_name: str | None,
    state: TrainState,
    latent_key: Key,
    noise_key: Key,
    data: Array,
) -> _Batch:
    """Returns this device's latents and samples, with the noise of both clouds added."""
    size = data.shape[0] * _devices.num_devices(axis_name)
    latents = _checks.call("sample_latents", _SAMPLE_LATENTS, sample_latents, latent_key, size)
    _checks.rows("sample_latents", _SAMPLE_LATENTS, latents, size)
    latents = _devices.share(latents, axis_name)
    samples, batch_stats = _generated(generator, state.params, state.batch_stats, latents)
    samples = lax.stop_gradient(samples)
    if noise_variance is not None:
        form = "(step) -> variance"
        variance = _checks.call("noise_variance", form, noise_variance, state.step)
        samples, data = (
            noise.instance_noise(one, points, variance=variance, axis_name=axis_name)
            for one, points in zip(jax.random.split(noise_key), (samples, data), strict=True)
        )
    return _Batch(latents, batch_stats, samples, data)


def _directed(
    direction_fn: Objective, key: Key, batch: _Batch, axis_name: str | None
) -> tuple[Array, Info]:
    """Returns the direction and info of an objective that keeps to its form."""
    args = key, batch.samples, batch.data
    output = _checks.call("objective", _OBJECTIVE, direction_fn, *args, axis_name=axis_name)
    direction, info = _checks.two_returned("objective", _OBJECTIVE, output)
    if jnp.shape(direction) != batch.samples.shape or not isinstance(info, dict):
        got = f"shape {jnp.shape(direction)} and {type(info).__name__}"
        raise ValueError(f"objective: returned {got}; expected {_OBJECTIVE}, a dict")
    return direction, info


def _pulled(
    pull_back: PullBack, generator_fn: Callable[[PyTree], Array], params: PyTree, direction: Array
) -> PyTree:
    """Returns the gradient in the parameters from a pull-back that keeps to its form."""
    args = generator_fn, params, direction
    gradient = _checks.call("pull_back", _PULL_BACK, pull_back, *args)
    trees: list[Any] = [jax.tree.structure(tree) for tree in (gradient, params)]
    if trees[0] != trees[1]:
        raise ValueError(f"pull_back: returned another tree; expected {_PULL_BACK}")
    return gradient


def _follow(
    objective: Objective | Critic,
    state: TrainState,
    key: Key,
    draw: Callable[[Key, Key, Array], _Batch],
    batches: Array,
    axis_name: str | None,
) -> tuple[TrainState, Callable[..., tuple[Array, Info]], Info]:
    """Returns the state after the critic's steps, the direction that follows it, and its info."""
    if not isinstance(objective, Critic):
        return state, objective, {}

    def seen(*keys_and_data: Array) -> tuple[Array, Array]:
        batch = draw(*keys_and_data)
        return batch.samples, batch.data

    critic, info = critics.train(key, state.critic, objective, seen, batches, axis_name=axis_name)
    direction_fn = functools.partial(objective.objective.direction, critics.bind(critic, objective))
    return state._replace(critic=critic), direction_fn, info


def _follow_average(state: TrainState, decay: float | Array | None) -> TrainState:
    """Returns the state with its averages, if it keeps them, taken over its own step too."""
    if (state.ema is None) != (decay is None):
        got = "no averages" if state.ema is None else "averages"
        raise ValueError(
            f"state.ema: got {got} with ema_decay={decay}; expected init(..., ema=True) with a "
            "decay, and neither without"
        )
    if decay is None:
        return state
    tree = _generator_of(state)
    return state._replace(ema=_average.step(state.ema, tree, decay=decay, count=state.step))


def _deal(data: Array, num_batches: int) -> Array:
    """Returns the rows of data as batches, row i in batch i modulo their number."""
    if data.shape[0] % num_batches:
        raise ValueError(
            f"data: got {data.shape[0]} rows; expected a multiple of critic.num_steps, "
            f"{num_batches}"
        )
    return data.reshape(-1, num_batches, *data.shape[1:]).swapaxes(0, 1)


def _rms(direction: Array, axis_name: str | None) -> Array:
    mean_square = jnp.sum(jnp.square(_numeric.wide(direction))) / direction.shape[0]
    return jnp.sqrt(_devices.mean(mean_square, axis_name))


def _finite(params: PyTree, critic: CriticState | None) -> Array:
    """Returns whether all parameters are; shape ()."""
    leaves = jax.tree.leaves((params, None if critic is None else critic.params))
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
