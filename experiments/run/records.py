"""The records of a run: metrics.jsonl, one JSON object of numbers a line, each with its "step"."""

import hashlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping

from experiments.run import files
from experiments.run.checkpoints import Origin
from experiments.run.errors import StorageError

_MOST_BYTES = 2**30
_MOST_LINE_BYTES = 2**16
_MOST_NAMES = 100  # of metrics: each is a panel of curves.png


def line(step: int, metrics: Mapping[str, float]) -> str:
    """Returns the line of a record; what is not finite is null."""
    values = {name: float(value) for name, value in metrics.items()}
    finite = {name: x if math.isfinite(x) else None for name, x in values.items()}
    return json.dumps(dict(step=int(step), **finite), allow_nan=False) + "\n"


def content(file: pathlib.Path) -> bytes:
    """Returns the content of the file, nothing where it is missing.

    Raises:
      StorageError: it is no regular file, or larger than 1 GiB.
    """
    if files.kind(file) is None:
        return b""
    with files.storage(str(file)):
        return files.read(file, _MOST_BYTES)


def parsed(file: pathlib.Path) -> Iterator[dict[str, float]]:
    """Yields the records, oldest first; null becomes nan.

    Raises:
      StorageError: as for :func:`content`, or a line that is not the last one is damaged.
    """
    names: set[str] = set()
    *lines, _ = content(file).split(b"\n")
    for number, text in enumerate(lines, start=1):
        try:
            record = _record(text)
            names |= record.keys()
            if len(names) > _MOST_NAMES:
                raise ValueError(f"more than {_MOST_NAMES} names")
        except ValueError as error:
            raise StorageError(
                f"{file}:{number}: got {text[:40]!r} ({error}); expected a JSON object of numbers "
                "with a step. Delete this line"
            ) from error
        yield record


def until(file: pathlib.Path, origin: Origin) -> bytes:
    """Returns the content as it was when a checkpoint was saved.

    Raises:
      StorageError: as for :func:`content`, or what the checkpoint was saved with is not there.
    """
    kept = content(file)[: origin.metrics_bytes]
    if hashlib.sha256(kept).hexdigest() != origin.metrics_sha256:
        raise StorageError(
            f"{file}: got other records than checkpoint {origin.step} was saved with; expected to "
            f"begin with {origin.metrics_bytes} bytes of SHA-256 {origin.metrics_sha256}. Restore "
            "it from a copy, or use another workdir to start anew"
        )
    return kept


def _record(line: bytes) -> dict[str, float]:
    """Returns the record in a line; ValueError unless it is one."""
    if len(line) > _MOST_LINE_BYTES:
        raise ValueError(f"{len(line)} bytes, more than {_MOST_LINE_BYTES}")
    record = files.parse_json(line, 2 * _MOST_NAMES)
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        raise ValueError("no step")
    for name, value in record.items():
        if value is not None and (type(value) not in (int, float) or abs(value) >= 1e300):
            raise ValueError(f"{name[:40]} is no number")
    return {name: math.nan if value is None else value for name, value in record.items()}
