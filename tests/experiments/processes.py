"""Processes of one training run, each on devices of its own, that meet on the loopback.

They are forks of a server that has imported the binary, and keep what they compile.
"""

import multiprocessing
import os
import pathlib
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["experiments.train"])

PATIENCE = 600.0  # seconds, on a machine that others use


def _life(
    main: Callable[[], Any], arguments: list[str], environment: dict[str, str], output: str
) -> None:
    """The child: calls `main` with flags; what it prints goes to a file."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    sys.argv = ["train", *arguments]
    main()


def train() -> None:
    """The binary, whose pictures are not drawn."""
    from experiments import train
    from experiments.pictures import charts, clouds

    clouds.points = charts.learning_curves = lambda *_: b"a picture"
    train.main()


class Fleet:
    """Processes that run the same command, but for which of them each is."""

    def __init__(
        self,
        folder: pathlib.Path,
        flags: Sequence[str],
        *,
        main: Callable[[], Any] = train,
        num_processes: int = 2,
        num_devices: int = 2,
        also: Sequence[Sequence[str]] = ((), ()),
        slurm: bool = False,
        patience: int = 60,
    ):
        """Starts them; process i gets the flags also[i] besides, Slurm's variables or who it is."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes, self._outputs = [], []
        for index in range(num_processes):
            output = folder / f"output{index}"
            meeting = [
                f"--coordinator=127.0.0.1:{port}",
                f"--num_processes={num_processes}",
                f"--process_id={index}",
            ]
            environment = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}"}
            if slurm:
                meeting = ["--distributed"]
                environment |= {
                    "JAX_COORDINATOR_PORT": str(port),
                    "SLURM_JOB_ID": "1",
                    "SLURM_STEP_NODELIST": "127.0.0.1",
                    "SLURM_NTASKS": str(num_processes),
                    "SLURM_PROCID": str(index),
                    "SLURM_LOCALID": str(index),
                }
            meeting = meeting if num_processes > 1 else []
            arguments = [*flags, *meeting, f"--patience={patience}", *also[index]]
            args = (main, arguments, environment, str(output))
            self.processes.append(FORKS.Process(target=_life, args=args))
            self._outputs.append(output)
        for process in self.processes:
            process.start()

    def signal(self, index: int, number: int) -> None:
        """Sends a signal to one of them."""
        os.kill(self.processes[index].pid, number)

    def end(self) -> list[int]:
        """Waits until all have ended, and returns their exit codes."""
        deadline = time.monotonic() + PATIENCE
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        assert None not in codes, f"still running: {codes}, {self.errors()}"
        return codes

    def errors(self) -> list[list[str]]:
        """Returns, of each, all that it has printed but for the progress bar."""
        texts = [output.read_text() for output in self._outputs]
        assert not any("Traceback" in text for text in texts), texts
        lines = [text.replace("\r", "\n").splitlines() for text in texts]
        return [[line for line in some if line.strip() and "%|" not in line] for some in lines]

    def await_records(self, metrics: pathlib.Path, count: int) -> None:
        """Returns once there are so many records, or a process has ended."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and all(one.is_alive() for one in self.processes):
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= count:
                return
            time.sleep(0.01)
