"""config.json: the fields of a config as JSON values, and in what those of a run differ."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Collection
from typing import Any

from experiments.run import fields, files
from experiments.run.errors import StorageError

_MOST_BYTES, _MOST_VALUES = 2**20, 10_000


def content(config: Any) -> bytes:
    """Returns the content of the file for a config, a dataclass instance of JSON values."""
    return f"{json.dumps(_as_json(dataclasses.asdict(config)), indent=2)}\n".encode()


def changes(file: pathlib.Path, config: Any, free_fields: Collection[str]) -> list[str]:
    """Returns what is otherwise in a stored config, in words; fields that may be are left out.

    Raises:
      StorageError: the file holds no config.
      OSError: it cannot be read.
    """
    given = _as_json(dataclasses.asdict(config))
    try:
        stored = {**_as_json(fields.earlier(type(config))), **stored_fields(file)}
    except ValueError as error:
        raise StorageError(f"{file}: got {error}; expected a JSON object") from error
    return [
        f"{name} was {_shown(stored.get(name))}, now {_shown(given.get(name))}"
        for name in {**stored, **given}
        if name not in free_fields and stored.get(name) != given.get(name)
    ]


def stored_fields(file: pathlib.Path) -> dict[str, Any]:
    """Returns the fields in a config.json, not yet checked; ValueError or OSError."""
    found = files.parse_json(files.read(file, _MOST_BYTES), _MOST_VALUES)
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}")
    return found


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]} ..."


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields as they come back from a file; infinity, which JSON has not, as "inf"."""
    finite = {name: "inf" if value == math.inf else value for name, value in values.items()}
    return dict(json.loads(json.dumps(finite, default=str, allow_nan=False)))
