"""One run over many processes: how they meet, agree and part, and what ends them where one is lost.

Every process runs the same program on devices of its own. Process 0 keeps the work folder, and the
coordination service of JAX, by which all watch each other. Where a process is lost, or never comes,
the service aborts the others (:mod:`experiments.run.aborts`); on a CPU the sums over processes
(gloo) tell of the loss first, by an error.
"""

import contextlib
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.run import aborts, checkpoints, fields, signals
from experiments.run.errors import UsageError
from kernelgrad.types import PyTree

LOST_CODE = 75  # EX_TEMPFAIL: try again
_LOST = "another process of the run is gone; run the same commands to resume"
_PARTING_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Layout:
    """The processes of one run; by default there is one."""

    coordinator: str | None = fields.word(
        None, "Where process 0 is, host:port with a free port, for all processes to meet."
    )
    num_processes: int | None = fields.integer(None, 1, 10**6, "Processes in all.")
    process_id: int | None = fields.integer(
        None, 0, 10**6 - 1, "Which of them this one is; 0 keeps the work folder."
    )
    distributed: bool = fields.switch(
        False, "This is a process of a TPU pod, of Slurm or of Open MPI, which says the rest."
    )
    patience: int = fields.integer(
        100,
        5,
        10**5,
        "Seconds to wait for the other processes: until all have come, and later for a sign of "
        "life from each.",
    )


# ----------------------------------------------------------------------------------- meet and part


def join(layout: Layout, *, debug: bool) -> None:
    """Meets the other processes, where there are to be some; before JAX looks for devices.

    From then on what libraries print is kept out of sight, unless `debug`.

    Raises:
      UsageError: flags that do not go together, or no cluster where JAX is to find it. Where not
        all have come in time, the process ends with exit code 2 and one line.
    """
    given = layout.coordinator, layout.num_processes, layout.process_id
    if not layout.distributed and given == (None, None, None):
        return
    _check(layout)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away
    aborts.mean(
        2,
        f"coordinator: got {layout.coordinator or 'that of the cluster'}; expected all processes "
        f"to meet there in {layout.patience} s, each with a --process_id of its own",
    )
    if not debug:
        aborts.keep_from_sight()
    try:
        jax.distributed.initialize(
            *given,
            cluster_detection_method=None if layout.distributed else "deactivate",
            initialization_timeout=layout.patience,
            heartbeat_timeout_seconds=layout.patience,
            shutdown_timeout_seconds=_PARTING_SECONDS,
        )
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        name, expected = "coordinator", "a port that is free there"
        if layout.distributed:
            name, expected = "distributed", "a TPU pod, Slurm or Open MPI that JAX finds"
        raise UsageError(
            f"{name}: got no cluster ({fields.shown(str(error))}); expected {expected}"
        ) from error
    aborts.mean(LOST_CODE, _LOST)


def _check(layout: Layout) -> None:
    """Raises UsageError for flags that do not go together."""
    for name in ("coordinator", "num_processes", "process_id"):
        if getattr(layout, name) is None and not layout.distributed:
            raise UsageError(
                f"{name}: got nothing; expected --coordinator, --num_processes and --process_id "
                "together, or --distributed"
            )
    if layout.coordinator is not None:
        host, _, port = layout.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
            raise UsageError(
                f"coordinator: got {fields.shown(layout.coordinator)}; expected host:port, with a "
                "port in [1, 65535]"
            )
    count, index = layout.num_processes, layout.process_id
    if count is not None and index is not None and index >= count:
        raise UsageError(
            f"process_id: got {index} of {count} process(es); expected an integer in "
            f"[0, {count - 1}]"
        )


def leave(code: int) -> None:
    """Parts from the others, before this process ends with an exit code.

    Those that end well, or by the same error, come here together. Where some do not, within 10 s,
    the service ends all that are left, and this process with its own code.
    """
    if not jax.distributed.is_initialized():
        return
    error = sys.exception()
    if error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    aborts.mean(code, "")
    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()
    if error is not None:
        os._exit(code)


def end_if_lost(error: Exception) -> None:
    """Ends the process where an error is that of a sum over processes, of which one is gone."""
    if jax.distributed.is_initialized() and "Gloo" in str(error):
        signals.end(_LOST, LOST_CODE)


# ------------------------------------------------------------------------------------------- agree


def is_first() -> bool:
    """Returns whether this process keeps the work folder; the only one does."""
    return jax.process_index() == 0


def devices(per_process: int | None = None) -> list[jax.Device]:
    """Returns the devices of a run, in the order of the processes.

    Args:
      per_process: how many of each process; None: all.

    Raises:
      UsageError: they have fewer, or not all as many, which pmap does not take.
    """
    owned = [jax.local_devices(process_index=index) for index in range(jax.process_count())]
    fewest, most = (limit(map(len, owned)) for limit in (min, max))
    if fewest < most:
        raise UsageError(
            f"num_devices: got processes of {fewest} and {most} devices; expected as many in each"
        )
    if per_process is not None and per_process > fewest:
        raise UsageError(f"num_devices: got {per_process}; expected at most {fewest}")
    return [device for some in owned for device in some[:per_process]]


def own(devices: list[jax.Device]) -> slice:
    """Returns which of the devices of a run are those of this process."""
    here = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
    return slice(here[0], here[-1] + 1)


def largest(number: int) -> int:
    """Returns the largest of the numbers of all processes, once all have come to ask."""
    return number if jax.process_count() == 1 else int(_maximum(np.array([number], np.int32))[0])


def of_first(make: Callable[[], PyTree], form: PyTree) -> PyTree:
    """Returns what process 0 makes, bit for bit; the others make nothing.

    Args:
      make: returns a pytree of arrays, typed keys among them.
      form: of what it returns: arrays, or `jax.ShapeDtypeStruct` for jax arrays.
    """
    if jax.process_count() == 1:
        return make()
    likes, structure = jax.tree.flatten(form)
    stored = [checkpoints.stored_form(like) for like in likes]
    content = np.zeros(sum(one.size * one.dtype.itemsize for one in stored), np.uint8)
    if is_first():
        arrays = [checkpoints.to_host(leaf) for leaf in jax.tree.leaves(make())]
        content = np.frombuffer(b"".join(array.tobytes() for array in arrays), np.uint8)
    received, leaves, end = _of_first(content).tobytes(), [], 0
    for like, one in zip(likes, stored, strict=True):
        start, end = end, end + one.size * one.dtype.itemsize
        array = np.frombuffer(received[start:end], one.dtype).reshape(one.shape)
        leaves.append(checkpoints.from_host(array, like))
    return jax.tree.unflatten(structure, leaves)


def require_same(values: Mapping[str, Any]) -> None:
    """Raises UsageError in every process where one has another value than process 0.

    Args:
      values: what JSON can hold, by the name that the error gives it.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(values, default=str)
    size = largest(len(text.encode()))
    padded = np.frombuffer(text.encode().ljust(size), np.uint8)
    mine, first = json.loads(text), json.loads(_of_first(padded).tobytes())
    other = [name for name in {**first, **mine} if first.get(name) != mine.get(name)]
    odd = largest(jax.process_index() if other else 0)
    if other:
        name = other[0]
        raise UsageError(
            f"{name}: got {fields.shown(mine.get(name))} in process {jax.process_index()}; "
            f"expected {fields.shown(first.get(name))}, as in process 0"
        )
    if odd:
        raise UsageError(f"flags: got others in process {odd}; expected the same in all processes")


def _of_first(content: np.ndarray) -> np.ndarray:
    return _maximum(content if is_first() else np.zeros_like(content))


def _maximum(integers: np.ndarray) -> np.ndarray:
    """Returns the maximum over processes of each of some integers."""
    sharding, over_devices = _over_devices()
    shards = [jax.device_put(integers[None], device) for device in jax.local_devices()]
    shape = (jax.device_count(), *integers.shape)
    rows = jax.make_array_from_single_device_arrays(shape, sharding, shards)
    return np.asarray(over_devices(rows).addressable_data(0))


@functools.cache
def _over_devices() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    """Returns how an array of a row a device is laid out, and its maximum over the rows.

    All devices take part, as in a training step, so that the group of them, for which gloo waits 30
    s at most, is there before anything is compiled that may take longer in one than in another.
    """
    mesh = Mesh(np.asarray(devices()), ("devices",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    largest = jax.jit(functools.partial(jnp.max, axis=0), out_shardings=everywhere)
    return NamedSharding(mesh, PartitionSpec("devices")), largest
