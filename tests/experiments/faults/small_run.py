"""A run with a checkpoint a step, to be damaged."""

import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.run import workdirs
from tests.experiments.run.toy_run import Config


def state_of(step: int) -> dict[str, Any]:
    """Returns the state after a step."""
    return {"params": jnp.arange(6.0) + step, "key": jax.random.key(step), "step": np.array(step)}


def make_run(path: pathlib.Path, steps: range) -> pathlib.Path:
    """Stores these steps, and logs one more."""
    with workdirs.Workdir(path, Config()) as workdir:
        for step in steps:
            workdir.log(step, {"loss": 1 / (1 + step)})
            workdir.save(step, state_of(step))
        workdir.log(steps[-1] + 1, {"loss": 0.0})
    return path


def delete(path: pathlib.Path, *_: Any) -> None:
    """Removes a file, or a folder with all that it holds."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
