"""One contestant in a process of its own: what it costs beside time, or why it cannot take part.

The child measures its own peak (VmHWM; on an accelerator the device's peak), the seconds of the
first call and the compilations of later ones. The parent watches the child's memory and kills it
above a limit, for an address space limit would count what XLA only reserves.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks import rows, timing

_BARE = "bare"
_POLL_SECONDS = 0.02
_ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a contestant may take: GiB of memory, and seconds from import to the second call."""

    gib: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a contestant in a fresh process.

    Attributes:
      reason: why it cannot take part, or "".
      first_seconds: the first call, compilation included.
      seconds: the fastest later call.
      recompilations: compilations after the first call.
      peak_mb: peak memory of the whole process, or of the device; None where it is not known.
    """

    reason: str = ""
    first_seconds: float | None = None
    seconds: float | None = None
    recompilations: int | None = None
    peak_mb: float | None = None


def bare(limits: Limits) -> Outcome:
    """Returns the outcome of a process that imports JAX and runs one trivial jitted function."""
    return _run([_BARE], limits)


def outcome(row: rows.Row, contestant: rows.Contestant, limits: Limits) -> Outcome:
    """Returns the outcome of a contestant of a row.

    Args:
      row: the row.
      contestant: one of its contestants.
      limits: what it may take.
    """
    if contestant.needs and importlib.util.find_spec(contestant.needs) is None:
        return Outcome(reason="not installed")
    return _run([row.name, str(row.task.contestants.index(contestant))], limits)


def _run(arguments: list[str], limits: Limits) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        report, log = pathlib.Path(folder) / "report.json", pathlib.Path(folder) / "log"
        command = [sys.executable, "-m", "benchmarks.fresh", str(report), *arguments]
        with log.open("wb") as stream:
            process = subprocess.Popen(command, cwd=_ROOT, stdout=stream, stderr=stream)
            try:
                reason = _watch(process, limits)
            finally:
                process.kill()
                process.wait()
        if reason:
            return Outcome(reason=reason)
        if process.returncode == 0:
            return Outcome(**json.loads(report.read_text()))
        lines = log.read_text(errors="replace").split("\n")
        errors = [line for line in lines if "Error" in line[:80] or "RESOURCE_EXHAUSTED" in line]
        if any("RESOURCE_EXHAUSTED" in line for line in errors):
            return Outcome(reason="out of device memory")
        last = errors[-1] if errors else f"exit code {process.returncode}"
        return Outcome(reason=f"failed: {last[:60]}")


def _watch(process: subprocess.Popen[bytes], limits: Limits) -> str:
    """Waits for the process to end and returns the limit that it broke, or ""."""
    deadline = time.monotonic() + limits.seconds
    while process.poll() is None:
        if (_status_mb("VmRSS", process.pid) or 0) > limits.gib * 1024:
            return f"memory > {limits.gib:g} GiB"
        if time.monotonic() > deadline:
            return f"time > {limits.seconds:g} s"
        time.sleep(_POLL_SECONDS)
    return ""


def _status_mb(field: str, pid: int | str = "self") -> float | None:
    """Returns a field of Linux's /proc/<pid>/status in MB, or None where there is none."""
    try:
        text = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    _, found, rest = text.partition(f"{field}:")
    return int(rest.split()[0]) / 1024 if found else None


def _peak_mb() -> float | None:
    import jax

    if jax.default_backend() == "cpu":
        return _status_mb("VmHWM")
    statistics = jax.local_devices()[0].memory_stats() or {}
    peak = statistics.get("peak_bytes_in_use")
    return None if peak is None else peak / 2**20


def _measure(call: timing.Call) -> Outcome:
    import jax

    compilations: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        del duration_secs
        if event.endswith("backend_compile_duration"):
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    first = timing.seconds_per_call(call)
    compilations.clear()
    later = timing.seconds_per_call(call)
    if later < 1:
        later = min(later, timing.seconds_per_call(call, 3))
    return Outcome("", first, later, len(compilations), _peak_mb())


def _child(report: str, name: str, index: str = "") -> None:
    if name == _BARE:
        import jax

        result = _measure(lambda: jax.jit(lambda: jax.numpy.zeros(8) + 1)())
    else:
        row = rows.find(name)
        with row.threads():
            result = _measure(row.task.contestants[int(index)].build(row.problem()))
    pathlib.Path(report).write_text(json.dumps(dataclasses.asdict(result)))
    sys.stdout.flush()
    os._exit(0)  # some libraries' threads outlive the interpreter


if __name__ == "__main__":
    _child(*sys.argv[1:])
