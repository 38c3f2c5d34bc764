"""The settings of a training run: fields, flags, presets, ranges."""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import data as datasets
from experiments.errors import UsageError
from kernelgrad import kernels, objectives
from kernelgrad.types import Array

KERNELS = {
    "imq": kernels.imq_mixture,
    "rbf": kernels.rbf_mixture,
    "rational_quadratic": kernels.rational_quadratic,
    "matern32": kernels.matern32,
    "matern52": kernels.matern52,
    "laplace": kernels.laplace,
}
PRIORS: dict[str, Callable[..., Array]] = {
    "normal": jax.random.normal,
    "uniform": functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0),
}
PRESETS: dict[str, dict[str, Any]] = {
    "paper000": {
        "objective": "kl",
        "dataset": "mnist",
        "batch_size": 100,
        "latent_dim": 50,
        "width": 64,
        "learning_rate": 5e-5,
        "kernel": "imq",
        "kernel_scales": (0.5, 1.0, 2.0, 4.0),
        "num_steps": 300 * 600,
        "eval_every": 50 * 600,
    }
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run, but for where it is stored."""

    objective: str = "kl"
    dataset: str = "digits"
    num_steps: int = 2000
    batch_size: int = 100
    latent_dim: int = 50
    width: int = 32
    prior: str = "normal"
    learning_rate: float = 1e-3
    b1: float = 0.9
    kernel: str = "imq"
    kernel_scales: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    ridge: float | None = None
    seed: int = 0
    eval_every: int = 200
    resident_gib: float = 2.0


_DEFAULTS = Config()
_PRESET = flags.DEFINE_enum(
    "preset", None, sorted(PRESETS), "Settings of a paper; other flags override them."
)
flags.DEFINE_string(
    "objective", _DEFAULTS.objective, "The direction to descend: kl (Stein) or mmd."
)
flags.DEFINE_string(
    "dataset",
    _DEFAULTS.dataset,
    f"One of {', '.join(datasets.names())}, or an image set prepared by TFDS in --data_dir.",
)
flags.DEFINE_integer("num_steps", _DEFAULTS.num_steps, "Updates in all.")
flags.DEFINE_integer("batch_size", _DEFAULTS.batch_size, "Samples per step, over all devices.")
flags.DEFINE_integer("latent_dim", _DEFAULTS.latent_dim, "Dimension of the latents.")
flags.DEFINE_integer("width", _DEFAULTS.width, "Channels (images) or units (points).")
flags.DEFINE_enum("prior", _DEFAULTS.prior, sorted(PRIORS), "Prior of the latents.")
flags.DEFINE_float("learning_rate", _DEFAULTS.learning_rate, "Adam's learning rate.")
flags.DEFINE_float("b1", _DEFAULTS.b1, "Adam's decay of the first moment.")
flags.DEFINE_enum("kernel", _DEFAULTS.kernel, sorted(KERNELS), "Family of the mixture.")
flags.DEFINE_list(
    "kernel_scales",
    [str(scale) for scale in _DEFAULTS.kernel_scales],
    "Squared lengthscales in units of the batch's median squared distance.",
)
flags.DEFINE_float(
    "ridge", None, "eta of the Stein estimator; 0.1 sqrt(batch) k(0) by default. Only for kl."
)
flags.DEFINE_integer("seed", _DEFAULTS.seed, "Seed of everything random.")
flags.DEFINE_integer(
    "eval_every", _DEFAULTS.eval_every, "Steps between pictures, metrics and checkpoints."
)
flags.DEFINE_float(
    "resident_gib",
    _DEFAULTS.resident_gib,
    "Data sets up to this size live on the device; larger ones are fed batch by batch.",
)


def from_flags() -> Config:
    """Returns the defaults, overridden by the preset, overridden by the flags that were given."""
    settings = dict(PRESETS[_PRESET.value]) if _PRESET.value else {}
    for field in dataclasses.fields(Config):
        if flags.FLAGS[field.name].present:
            settings[field.name] = flags.FLAGS[field.name].value
    if "kernel_scales" in settings:
        try:
            settings["kernel_scales"] = tuple(float(s) for s in settings["kernel_scales"])
        except ValueError:
            raise UsageError(
                f"kernel_scales: got {settings['kernel_scales']}; expected numbers such as 0.5,1,2"
            ) from None
    return Config(**settings)


def validate(config: Config, num_devices: int) -> None:
    """Raises UsageError for the first setting out of its range, before anything is compiled."""
    if config.objective not in objectives.OBJECTIVES:
        known = list(objectives.OBJECTIVES)
        nearest = difflib.get_close_matches(config.objective, known, n=1, cutoff=0)[0]
        raise UsageError(
            f"objective: got {config.objective!r}; expected one of {', '.join(known)}. "
            f"Did you mean {nearest}?"
        )
    for name in ("num_steps", "batch_size", "latent_dim", "width", "eval_every"):
        if getattr(config, name) < 1:
            raise UsageError(f"{name}: got {getattr(config, name)}; expected an integer >= 1")
    for name in ("learning_rate", "ridge", "resident_gib", "kernel_scales"):
        setting = getattr(config, name)
        for value in np.atleast_1d(() if setting is None else setting):
            if not 0 < value < math.inf:
                raise UsageError(f"{name}: got {value}; expected a positive, finite number")
    if not 0 <= config.b1 < 1:
        raise UsageError(f"b1: got {config.b1}; expected a number in [0, 1)")
    if config.batch_size % num_devices:
        below = config.batch_size // num_devices * num_devices
        sizes = [size for size in (below, below + num_devices) if size > 0]
        raise UsageError(
            f"batch_size: got {config.batch_size} for {num_devices} devices; expected a multiple, "
            f"such as {' or '.join(map(str, sizes))}"
        )
