"""Markov chains of latents, one a sample: side by side, over all devices, and resumable."""

import json
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from experiments.run import files, store
from experiments.run.errors import line
from experiments.run.signals import Signals, terminated
from experiments.run.workdirs import Workdir
from kernelgrad import hmc, langevin
from kernelgrad.types import Array, Key, LogDensityFn, PyTree

_NUM_VISITS = 10
_MOST_BYTES = 2**34  # of unfinished chains
_LEAPFROG_STEPS = 10
_FRICTION = 1.0
_ADAPTATION_RATE = 0.5


class Sampler(NamedTuple):
    """A Markov step of one chain, and how to choose its size.

    Attributes:
      init: (key, position, log_density_fn) -> state.
      step: (key, state, log_density_fn, step_size) -> (state, what `monitor` names).
      step_size: by default; where it is adapted, the first guess.
      monitor: "acceptance", a probability; or "finite", whether the step found a finite density.
      acceptance: to which the step size is adapted; None: it is not.
    """

    init: Callable[[Key, Array, LogDensityFn], Any]
    step: Callable[[Key, Any, LogDensityFn, Array], tuple[Any, Array]]
    step_size: float
    monitor: str
    acceptance: float | None = None


def _hmc_step(
    key: Key, state: hmc.HMCState, log_density_fn: LogDensityFn, step_size: Array
) -> tuple[hmc.HMCState, Array]:
    """Takes a random trajectory, half to full length, lest it ends at its start for ever."""
    shrink_key, move_key = jax.random.split(key)
    shrink = jax.random.uniform(shrink_key, minval=0.5)
    state, info = hmc.step(
        move_key,
        state,
        log_density_fn,
        step_size=shrink * step_size,
        num_leapfrog_steps=_LEAPFROG_STEPS,
    )
    return state, info.acceptance_probability


def _mala_step(
    key: Key, state: langevin.LangevinState, log_density_fn: LogDensityFn, step_size: Array
) -> tuple[langevin.LangevinState, Array]:
    state, info = langevin.mala_step(key, state, log_density_fn, step_size=step_size)
    return state, info.acceptance_probability


def _ula_step(
    key: Key, state: langevin.LangevinState, log_density_fn: LogDensityFn, step_size: Array
) -> tuple[langevin.LangevinState, Array]:
    state, info = langevin.ula_step(key, state, log_density_fn, step_size=step_size)
    return state, info.finite


def _underdamped_step(
    key: Key, state: langevin.UnderdampedState, log_density_fn: LogDensityFn, step_size: Array
) -> tuple[langevin.UnderdampedState, Array]:
    state, info = langevin.underdamped_step(
        key, state, log_density_fn, step_size=step_size, friction=_FRICTION
    )
    return state, info.finite


SAMPLERS = {
    "hmc": Sampler(lambda _, *start: hmc.init(*start), _hmc_step, 0.1, "acceptance", 0.7),
    "mala": Sampler(lambda _, *start: langevin.init(*start), _mala_step, 0.03, "acceptance", 0.574),
    "ula": Sampler(lambda _, *start: langevin.init(*start), _ula_step, 0.01, "finite"),
    "underdamped": Sampler(langevin.underdamped_init, _underdamped_step, 0.1, "finite"),
}


class Walk(NamedTuple):
    """What chains did.

    Attributes:
      latents: where they ended; shape (n, l).
      step_size: after its adaptation; of hmc, that of the longest trajectories.
      monitor: mean over the chains of what the sampler monitors, after each step.
    """

    latents: Array
    step_size: float
    monitor: np.ndarray


class Progress(NamedTuple):
    """Chains on their way: all that the rest of their steps depends on.

    Attributes:
      monitor: mean over the chains after each step so far; shape (steps,).
      log_step: log of the step size; shape ().
      state: leaves of the sampler's states, each with a leading axis of chains.
    """

    monitor: np.ndarray
    log_step: np.ndarray
    state: tuple[np.ndarray, ...]

    def fits(self, form: Sequence[jax.ShapeDtypeStruct]) -> bool:
        """Returns whether the arrays are such as chains of that form have."""
        forms = [(leaf.shape, leaf.dtype) for leaf in self.state]
        return (
            forms == [(leaf.shape, leaf.dtype) for leaf in form]
            and (self.monitor.ndim, self.monitor.dtype.kind) == (1, "f")
            and (self.log_step.ndim, self.log_step.dtype.kind) == (0, "f")
        )

    def to_bytes(self, about: str) -> bytes:
        """Returns the content of a file, with a text that names what the chains belong to."""
        leaves = {f"state{index}": leaf for index, leaf in enumerate(self.state)}
        others = {"about": about, "monitor": self.monitor, "log_step": self.log_step}
        return store.packed(others | leaves)


def read_progress(path: pathlib.Path) -> tuple[str, Progress] | None:
    """Returns text and chains of a file; None where there is none, or none that can be read."""
    try:
        arrays = store.read(path, _MOST_BYTES)
        about, monitor, log_step = (arrays.pop(name) for name in ("about", "monitor", "log_step"))
        leaves = (arrays[f"state{index}"] for index in range(len(arrays)))
        return str(about), Progress(monitor, log_step, tuple(leaves))
    except (ValueError, KeyError):
        return None


class Unfinished(NamedTuple):
    """Where chains are kept until they are done, lest a kill loses them.

    Attributes:
      folder: of the run.
      sampler: whose chains they are.
      about: what they belong to: the request, the checkpoint and the scores' classifier.
    """

    folder: Workdir
    sampler: str
    about: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the file, below the run's folder."""
        return f"samples_{self.sampler}/unfinished.npz"

    def read(
        self, form: Sequence[jax.ShapeDtypeStruct]
    ) -> tuple[list[dict[str, float]], Progress | None]:
        """Returns the scores along the chains and the chains, as far as an equal call came.

        Args:
          form: of the leaves of the sampler's states.
        """
        path = self.folder.path / self.name
        found = read_progress(path)
        if found is not None:
            try:
                about = json.loads(found[0])
                history = [{str(k): float(v) for k, v in of.items()} for of in about.pop("history")]
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                found = None
        if found is not None and about == json.loads(json.dumps(self.about)):
            if found[1].fits(form):
                return history, found[1]
            found = None
        if found is None and files.kind(path) is not None:
            print(line("warning", f"{path} is damaged; the chains start anew"), file=sys.stderr)
        return [], None

    def write(self, history: list[dict[str, float]], progress: Progress) -> None:
        """Keeps them."""
        about = json.dumps({**self.about, "history": history})
        self.folder.write_bytes(self.name, progress.to_bytes(about))

    def clear(self) -> None:
        """Forgets them."""
        with files.storage(self.name):
            (self.folder.path / self.name).unlink(missing_ok=True)


def form(
    starts: Array,
    log_density: Callable[[PyTree, Array], LogDensityFn],
    params: PyTree,
    contexts: Array,
    sampler: Sampler,
) -> list[jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of the leaves of the chains' states; arguments as for `walk`."""
    init, _ = _make_steps(log_density, sampler)
    return jax.tree.leaves(jax.eval_shape(init, jax.random.key(0), starts, params, contexts))


def walk(
    key: Key,
    starts: Array,
    log_density: Callable[[PyTree, Array], LogDensityFn],
    params: PyTree,
    contexts: Array,
    *,
    sampler: Sampler,
    num_steps: int,
    step_size: float | None = None,
    visit: Callable[[int, Array, float, Progress], None],
    keep: Callable[[Progress], None] = lambda _: None,
    progress: Progress | None = None,
) -> Walk:
    """Moves the chains and shows their progress.

    The first half of the steps moves the step size towards the acceptance that the sampler asks
    for, the same for all chains; the second half keeps it.

    Args:
      key: random key.
      starts: first latents; shape (n, l).
      log_density: (params, context) -> log density of one latent.
      params: arrays, whole on every device.
      contexts: what each chain keeps, such as its label; shape (n, k), k >= 0.
      sampler: one of SAMPLERS.
      num_steps: >= 1.
      step_size: > 0; None: the sampler's.
      visit: called about ten times, the last time at the end, with the number of steps so far, the
        latents, the mean of the monitor since the last call, and the chains' progress.
      keep: called with the chains' progress where a signal ends them between two visits.
      progress: that of an earlier, equal call; None: from the start. The end is the same, bit for
        bit.

    Raises:
      Terminated: a signal came; the chains are kept.
    """
    by_chain, whole = _shardings(len(starts))
    init, advance = _make_steps(log_density, sampler)
    init = jax.jit(init, out_shardings=by_chain)
    advance = jax.jit(advance, out_shardings=(by_chain, whole, whole), donate_argnums=1)
    first = math.log(sampler.step_size if step_size is None else step_size)
    log_step = np.asarray(first, starts.dtype) if progress is None else progress.log_step
    params, log_step = jax.device_put((params, jnp.asarray(log_step)), whole)
    init_key, key = jax.random.split(key)
    starts, contexts = jax.device_put((starts, contexts), by_chain)
    if progress is None:
        state = init(init_key, starts, params, contexts)
    else:
        form = jax.tree.structure(jax.eval_shape(init, init_key, starts, params, contexts))
        state = jax.device_put(jax.tree.unflatten(form, progress.state), by_chain)
    monitor = [] if progress is None else progress.monitor.tolist()
    start = len(monitor)
    visits = {-(-n * num_steps // _NUM_VISITS) for n in range(1, _NUM_VISITS + 1)}
    last = max((step for step in visits if step <= start), default=0)
    bar = tqdm(total=num_steps, initial=start, desc=f"{len(starts)} chains", unit="step")
    with Signals() as signals, bar:
        for step in range(start + 1, num_steps + 1):
            step_key = jax.random.fold_in(key, step)
            adapts = 2 * step <= num_steps
            state, log_step, mean = advance(step_key, state, log_step, params, contexts, adapts)
            monitor.append(float(mean))
            bar.update()
            stop = signals.stop
            if step in visits or stop:
                leaves = tuple(jax.device_get(jax.tree.leaves(state)))
                so_far = Progress(np.array(monitor), jax.device_get(log_step), leaves)
            if step in visits:
                visit(step, state.position, float(np.mean(monitor[last:])), so_far)
                last = step
            elif stop:
                keep(so_far)
            if stop:
                raise terminated(stop, f"kept the chains after step {step}")
    return Walk(state.position, math.exp(log_step), np.array(monitor))


def _shardings(num_chains: int) -> tuple[NamedSharding, NamedSharding]:
    """Returns that of the chains, over the most devices that divide them, and that of the rest."""
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if num_chains % n == 0)
    mesh = Mesh(np.array(devices[:count]), ("chains",))
    return NamedSharding(mesh, PartitionSpec("chains")), NamedSharding(mesh, PartitionSpec())


def _make_steps(
    log_density: Callable[[PyTree, Array], LogDensityFn], sampler: Sampler
) -> tuple[Callable[..., PyTree], Callable[..., tuple[PyTree, Array, Array]]]:
    """Returns the start of all chains, and their step.

    The start is (key, starts, params, contexts) -> state, the step (key, state, log_step, params,
    contexts, adapt) -> (state, log_step, mean of the monitor).
    """

    def init(key: Key, starts: Array, params: PyTree, contexts: Array) -> PyTree:
        def start(key: Key, position: Array, context: Array) -> PyTree:
            return sampler.init(key, position, log_density(params, context))

        return jax.vmap(start)(jax.random.split(key, starts.shape[0]), starts, contexts)

    def advance(
        key: Key, state: PyTree, log_step: Array, params: PyTree, contexts: Array, adapt: Array
    ) -> tuple[PyTree, Array, Array]:
        def move(key: Key, state: PyTree, context: Array) -> tuple[PyTree, Array]:
            return sampler.step(key, state, log_density(params, context), jnp.exp(log_step))

        keys = jax.random.split(key, state.position.shape[0])
        state, monitor = jax.vmap(move)(keys, state, contexts)
        mean = jnp.mean(monitor, dtype=log_step.dtype)
        if sampler.acceptance is not None:
            log_step += adapt * _ADAPTATION_RATE * (mean - sampler.acceptance)
        return state, log_step, mean

    return init, advance
