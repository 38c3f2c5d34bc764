"""Binaries killed and signalled at random moments: in the end, nothing has been lost.

`make test-faults` counts to 300 of them and prints the figures.
"""

import collections
import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import time
from typing import Any

import jax
import numpy as np
import pytest

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "experiments.run.workdirs",
        "experiments.pictures.charts",
        "experiments.networks.generators",
        "kernelgrad.train",
    ]
)

_PATIENCE = 900.0  # seconds; a life takes a few, on a machine of one's own


@dataclasses.dataclass(frozen=True)
class Binary:
    """A binary with settings that take seconds.

    Attributes:
      flags: but for the folder.
      kills: in all.
      results: what has to be bit for bit that of an uninterrupted run, beside the metrics.
      small: constants by module that are set to less.
    """

    flags: tuple[str, ...]
    kills: int
    results: tuple[str, ...] = ()
    small: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)


_OF_TRAINING = ("--batch_size=20", "--latent_dim=4", "--width=8", "--dataset=swiss_roll")
_OF_TOY = {
    "reports.toys": {"NUM_EVALUATED": 300, "_GRID": 60, "_FRESH_SETS": 2},
    "toy": {"_NUM_TRAIN": 400, "_NUM_DRAWN": 50, "_LATTICE": 5},
    "run.timing": {"_TIMED_SECONDS": 0.0},
}
_OF_SAMPLER = {
    "neural_sampler": {"_NUM_DRAWN": 50, "_TIMED_STEPS": 2},
    "run.timing": {"_TIMED_SECONDS": 0.0},
    "reports.sampling": {"NUM_EVALUATED": 60, "_CHAINS": 20, "_WARMUP": 40, "_DRAWS": 50},
}
BINARIES = {
    "train": Binary(("--num_steps=400", "--eval_every=20", *_OF_TRAINING), 110),
    "toy": Binary(
        ("--num_steps=120", "--eval_every=10", "--batch_size=16", "--width=8", "--critic_steps=1"),
        50,
        ("frames/0000000.npz", "frames/0000120.npz"),
        _OF_TOY,
    ),
    "neural_sampler": Binary(
        (
            "--target=ring", "--update=all", "--num_steps=40", "--eval_every=5", "--batch_size=20",
            "--latent_dim=2", "--width=8", "--inner_steps=2", "--cg_iterations=2",
        ),
        40,
        (),
        _OF_SAMPLER,
    ),
    "rbm": Binary(
        (
            "--dataset=digits", "--num_epochs=4", "--seeds=0,1", "--num_hidden=2", "--width=8",
            "--generator=mlp", "--batch_size=100",
        ),
        40,
    ),
    "density_estimation": Binary(
        (
            "--datasets=ring", "--methods=kale,dv,kale_newton", "--seeds=0,1", "--num_steps=20",
            "--eval_every=10", "--batch_size=20", "--num_base=20", "--width=8", "--depth=1",
            "--num_normalizer_samples=1000",
        ),
        30,
        ("results.json",),
    ),
    "sample": Binary(
        ("--sampler=ula", "--num_samples=20", "--steps=600"), 30, ("samples_ula/results.json",)
    ),
}  # fmt: skip


def test_what_is_set_to_less_is_there():
    for binary in BINARIES.values():
        for module, constants in binary.small.items():
            found = vars(importlib.import_module(f"experiments.{module}"))
            assert all(value < found[name] for name, value in constants.items()), module


def _life(name: str, arguments: list[str], stderr: str, small: dict[str, dict[str, float]]) -> None:
    """The child: a binary whose stdout and stderr go to a file."""
    descriptor = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell's & ignores it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    binary = importlib.import_module(f"experiments.{name}")
    for module, constants in small.items():
        for constant, value in constants.items():
            setattr(importlib.import_module(f"experiments.{module}"), constant, value)
    sys.argv = [name, *arguments]
    binary.main()


def _start(name: str, workdir: pathlib.Path, stderr: pathlib.Path) -> Any:
    binary = BINARIES[name]
    arguments = [f"--workdir={workdir}", *binary.flags]
    process = FORKS.Process(target=_life, args=(name, arguments, str(stderr), binary.small))
    process.start()
    return process


def _results(name: str, workdir: pathlib.Path) -> dict[str, bytes]:
    """Returns all metrics of a run, and its other results."""
    files = [*workdir.rglob("metrics.jsonl"), *(workdir / file for file in BINARIES[name].results)]
    place = str(workdir).encode()
    return {str(file.relative_to(workdir)): file.read_bytes().replace(place, b"") for file in files}


def _await(process: Any, seconds: float, happened: Any) -> bool:
    """Returns whether something happened in time, before the process ended."""
    deadline = time.monotonic() + seconds
    while process.is_alive() and time.monotonic() < deadline:
        if happened():
            return True
        time.sleep(0.003)
    return False


def _end_a_life(process: Any, workdir: pathlib.Path, rng: np.random.Generator) -> int:
    """Sends a signal at a random moment and returns which; 0 if the run came to its end."""
    number = int(rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]))
    owner = f"pid {process.pid} "
    lock = workdir / "lock"
    _await(process, _PATIENCE, lambda: lock.exists() and lock.read_text().startswith(owner))
    if rng.random() < 0.75:  # when it has come further than it had, at whatever moment then
        before = _times(workdir)
        _await(process, _PATIENCE, lambda: _times(workdir) != before)
        time.sleep(rng.exponential(0.1))
    else:
        time.sleep(rng.uniform(0, 2))
    if process.is_alive():
        os.kill(process.pid, number)
    process.join(_PATIENCE)
    assert process.exitcode is not None, "still running"
    return 0 if process.exitcode == 0 else number


def _times(workdir: pathlib.Path) -> dict[pathlib.Path, int]:
    """Returns when the files of a run were written, but for those that a start writes."""
    times = {}
    for file in workdir.rglob("*"):
        if file.name not in ("lock", "config.json"):
            with contextlib.suppress(FileNotFoundError):
                times[file] = file.stat().st_mtime_ns
    return times


@pytest.mark.slow
@pytest.mark.parametrize("name", BINARIES)
def test_kills_and_signals_change_nothing(name, tmp_path, rng):
    start = time.monotonic()
    template = tmp_path / "template"
    template.mkdir()
    if name == "sample":
        training = [f"--workdir={template}", "--num_steps=2", "--eval_every=2", *_OF_TRAINING]
        arguments = ("train", [*training, "--objective=gan_kl"], str(tmp_path / "stderr"), {})
        process = FORKS.Process(target=_life, args=arguments)
        process.start()
        process.join(_PATIENCE)
        assert process.exitcode == 0, (tmp_path / "stderr").read_text()
    whole = shutil.copytree(template, tmp_path / "whole")
    process = _start(name, whole, tmp_path / "stderr")
    process.join(_PATIENCE)
    assert process.exitcode == 0, (tmp_path / "stderr").read_text()
    expected, counts, runs = _results(name, whole), collections.Counter(), 0
    while counts.total() < BINARIES[name].kills:
        runs += 1
        workdir = shutil.copytree(template, tmp_path / f"run{runs}")
        while True:
            stderr = tmp_path / "stderr"
            process = _start(name, workdir, stderr)
            number = 0
            if counts.total() < BINARIES[name].kills:
                number = _end_a_life(process, workdir, rng)
            process.join(_PATIENCE)
            said = stderr.read_text()
            assert "Traceback" not in said, said
            if not number:
                assert process.exitcode == 0, said
                break
            counts[signal.Signals(number).name] += 1
            code = -number if number == signal.SIGKILL else 128 + number
            assert process.exitcode == code, said
            lines = [line for line in said.splitlines() if line.startswith("kernelgrad: error:")]
            assert len(lines) == (number != signal.SIGKILL), said
            assert all(line.endswith("; run the same command to resume") for line in lines)
        assert _results(name, workdir) == expected
        shutil.rmtree(workdir)
    seconds = time.monotonic() - start
    print(f"\n{name}: {dict(counts)} in {runs} runs, all as uninterrupted, {seconds:.0f} s")
