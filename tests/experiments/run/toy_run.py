"""A toy run: its config, its states of every kind, its loop, and processes that live through it.

Processes are forks of a server that has imported `experiments.run.workdirs` already, so that a life
costs a fraction of a second.
"""

import dataclasses
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from experiments.run import command, signals, workdirs


@dataclasses.dataclass(frozen=True)
class Config:
    """The config of a toy run."""

    learning_rate: float = 0.1
    num_steps: int = 10
    widths: tuple[int, ...] = (8, 8)


class TrainState(NamedTuple):
    """One leaf of every kind that a run may keep."""

    params: dict[str, Any]
    optimizer: Any
    key: jax.Array
    step: np.ndarray


def make_state(value: float = 1.0, width: int = 3, dtype: Any = jnp.float32) -> TrainState:
    """Returns a state with Adam's moments, a typed key, and unusual dtypes."""
    params = {"dense": {"kernel": jnp.full((2, width), value, dtype), "bias": jnp.zeros(width)}}
    params["half"] = jnp.arange(5, dtype=jnp.bfloat16) * value
    params["mask"] = jnp.array([True, False])
    params["fortran"] = np.asfortranarray(np.arange(6.0).reshape(2, 3) + value)
    optimizer = optax.adam(1e-3).init(params["dense"])
    return TrainState(params, optimizer, jax.random.key(7), np.asarray(int(value)))


def raw(tree: Any) -> list[tuple[str, bytes]]:
    """Returns dtype and bytes of each leaf."""
    leaves = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(tree)
    ]
    return [(str(leaf.dtype), np.asarray(leaf).tobytes()) for leaf in leaves]


def abstract(tree: Any) -> Any:
    """Returns the shapes and dtypes, numpy arrays kept as they are."""
    return jax.tree.map(
        lambda x: x if isinstance(x, np.ndarray) else jax.ShapeDtypeStruct(x.shape, x.dtype), tree
    )


def tree_of(folder: pathlib.Path) -> dict[str, bytes]:
    """Returns the contents of all files below a folder, but for the lock."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


class StopAt:
    """Stands in for signals: one of them is heard at the n-th look, and from then on."""

    def __init__(self, looks: int):
        self.looks = looks

    @property
    def stop(self) -> int | None:
        self.looks -= 1
        return signal.SIGTERM if self.looks < 1 else None


# ---------------------------------------------------------------------- processes

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["experiments.run.workdirs", "optax", "pytest"])


def begin(target: Any, folder: pathlib.Path, arguments: tuple[Any, ...]) -> None:
    """Runs in the child: sends stderr to a file, then does the work."""
    descriptor = os.open(folder / f"stderr-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell's & ignores it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    target(*arguments)


@dataclasses.dataclass
class Child:
    """A process with its stderr and the messages that it sends."""

    process: Any
    messages: Any
    folder: pathlib.Path

    def wait_for(self, kind: str) -> Any:
        """Returns the value of the next message of a kind."""
        while self.messages.poll(30):
            got, value = self.messages.recv()
            if got == kind:
                return value
        raise TimeoutError(f"no message {kind!r}: {self.stderr()}")

    def drain(self) -> list[tuple[str, Any]]:
        """Returns all messages left by a process that has ended."""
        messages = []
        try:
            while self.messages.poll():
                messages.append(self.messages.recv())
        except EOFError:
            pass
        return messages

    def end(self, timeout: float = 30) -> int:
        """Waits for the exit code."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running: {self.stderr()}"
        return self.process.exitcode

    def stderr(self) -> str:
        """Returns what the process has written to stderr."""
        return (self.folder / f"stderr-{self.process.pid}").read_text()


def words_after(step: int) -> np.ndarray:
    """Returns the state of the toy run after a number of steps, in closed form per entry."""
    words = np.arange(2**18, dtype=np.uint32)
    for _ in range(step):
        words = words * np.uint32(1664525) + np.uint32(1013904223)
    return words


def state_of(step: int, words: np.ndarray) -> dict[str, Any]:
    return {
        "words": jnp.asarray(words),
        "unit": jnp.asarray((words[:5] / 2.0**32).astype(np.float32)),
        "key": jax.random.key(step),
    }


def train(send: Any, path: str, num_steps: int, pause: float) -> None:
    """A training loop: restore, then per step advance, log, and save every third step."""
    with workdirs.Workdir(path, Config()) as workdir, signals.Signals() as heard:
        found = workdir.restore(abstract(state_of(0, words_after(0))))
        step, state = (0, state_of(0, words_after(0))) if found is None else found
        send(("restored", (step, raw(state) == raw(state_of(step, words_after(step))))))
        while step < num_steps:
            step += 1
            words = np.asarray(state["words"]) * np.uint32(1664525) + np.uint32(1013904223)
            state = state_of(step, words)
            time.sleep(pause)
            workdir.log(
                step, {"checksum": float(words.sum(dtype=np.uint32)), "unit": state["unit"][3]}
            )
            send(("logged", step))
            stop = heard.stop
            if step % 3 == 0 or step == num_steps or stop:
                workdir.save(step, state)
                send(("announced", step))
            if stop:
                raise signals.terminated(stop, f"saved step {step}")
        send(("finished", step))


def binary(
    sender: Any, path: str, num_steps: int = 10, pause: float = 0.0, marks: bool = False
) -> None:
    """The toy as a binary; with marks, it reports and rests at every stage of a save."""
    if marks:
        _mark_saves(sender)
    sys.argv = ["toy"]
    command.main(lambda _: train(sender.send, path, num_steps, pause))


def _mark_saves(sender: Any) -> None:
    saving = False

    def marked(function):
        def call(*arguments, **options):
            if saving:
                sender.send(("mark", function.__name__))
                time.sleep(0.02)
            return function(*arguments, **options)

        return call

    def save(self, step, state, whole=workdirs.Workdir.save):
        nonlocal saving
        saving = True
        try:
            whole(self, step, state)
        finally:
            saving = False

    workdirs.Workdir.save = save
    os.rename, os.replace, os.fsync = marked(os.rename), marked(os.replace), marked(os.fsync)
    shutil.rmtree = marked(shutil.rmtree)
    ocp.Checkpointer.save = marked(ocp.Checkpointer.save)
    ocp.Checkpointer.restore = marked(ocp.Checkpointer.restore)


def expected_metrics(num_steps: int) -> str:
    lines = []
    for step in range(1, num_steps + 1):
        words = words_after(step)
        checksum, unit = (
            float(int(words.astype(np.uint64).sum()) % 2**32),
            np.float32(words[3] / 2.0**32),
        )
        lines.append(f'{{"step": {step}, "checksum": {checksum}, "unit": {float(unit)}}}\n')
    return "".join(lines)
