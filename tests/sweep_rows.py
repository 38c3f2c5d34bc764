"""What a row of the sweep's table holds, and the arrays that it is called on."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernelgrad import _devices, kernels

# What kind of array an argument is, by its name; points if it is not here.
KINDS = {
    **dict.fromkeys(["score", "direction"], "score"),
    **dict.fromkeys(["weights"], "columns"),
    **dict.fromkeys(["gradient_weights", "offset"], "vector"),
    **dict.fromkeys(["real_logits", "fake_logits", "real_values", "fake_values"], "vector"),
    **dict.fromkeys(["energy_data", "energy_base", "energy_chain", "energy_samples"], "vector"),
    **dict.fromkeys(["energy", "log_base"], "vector"),
    **dict.fromkeys(["mean1", "mean2"], "mean"),
    **dict.fromkeys(["cov1", "cov2"], "covariance"),
    **dict.fromkeys(["lengthscales"], "grid"),
    "latent": "latent",
    "position": "place",
    "params": "latent",
    "normal_latents": "unitless",
    "probs": "probabilities",
    "labels": "labels",
}
POWERS = {"points": 1, "place": 1, "score": -1, "mean": 1, "covariance": 2, "grid": 1}  # else 0


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a row is called with besides its arrays: arguments of these names get these values."""

    unit: float = 1.0
    number: Callable[[float], Any] = float  # what hyperparameters are made of
    axis_name: str | None = None

    @property
    def key(self):
        return jax.random.key(3)

    @property
    def kernel(self):
        return kernels.imq_mixture(self.number(1.5 * self.unit))

    @property
    def gaussian(self):
        return kernels.rbf_mixture(self.number(1.5 * self.unit))

    def log_density_fn(self, x):
        """A Gaussian's, of any pytree."""
        return sum(-jnp.sum(jnp.square(leaf / self.unit)) / 2 for leaf in jax.tree.leaves(x))

    def critic_fn(self, x):
        return self.unit * jnp.sum(jnp.sin(x / self.unit), axis=1)


@dataclasses.dataclass(frozen=True)
class Row:
    """A public function.

    Attributes:
      call: of a Setting and the arrays.
      names: of the arrays.
      powers: of the unit of length in the outputs; an int for all, or one for each leaf. None:
        the formula has no unit of length.
      spread: with axis_name, whether outputs are this device's rows or the same on all devices;
        for each leaf, or one for all. None: there is no axis_name.
      smooth: whether there is a gradient in the arrays.
      least: fewest points.
    """

    call: Callable[..., Any]
    names: tuple[str, ...]
    powers: int | tuple[int, ...] | None
    spread: str | tuple[str, ...] | None = None
    smooth: bool = True
    least: int = 1

    def with_gradient(self, setting):
        """A function of the arrays: outputs, and a gradient of their sum where there is one."""

        def total(arrays):
            outputs = self.call(setting, **arrays)
            leaves = jax.tree.leaves(outputs)
            spread = self.spread
            if isinstance(spread, str | None):
                spread = (spread,) * len(leaves)
            value = 0
            for leaf, place in zip(leaves, spread, strict=True):
                if jnp.issubdtype(leaf.dtype, jnp.floating):
                    term = jnp.sum(jnp.sin(leaf)).astype(jnp.float32)
                    value += self._of_all(term, setting) if place == "rows" else term
            return value, outputs

        def outputs_and_gradient(arrays):
            if not self.smooth:
                return total(arrays)[1], {}
            gradient, outputs = jax.grad(total, has_aux=True)(arrays)
            return outputs, gradient

        return outputs_and_gradient

    def _of_all(self, term, setting):
        """A sum over rows, over those of all devices: one value beside those that are the same."""
        size = _devices.num_devices(setting.axis_name)
        return size * _devices.statistic(term, setting.axis_name)


TABLE: dict[str, Row] = {}


def number(value, power=0):
    """Returns a hyperparameter: a number, in units of length to a power."""
    return lambda e: e.number(value * e.unit**power if power else value)


def given(setting, hyperparameters):
    """Returns the values of hyperparameters: floats are numbers, functions are called."""
    numbers = {
        name: number(value) if isinstance(value, float) else value
        for name, value in hyperparameters.items()
    }
    return {
        name: value(setting) if inspect.isfunction(value) else value
        for name, value in numbers.items()
    }


def row(function, powers=0, call=None, *, spread=None, smooth=True, least=1, **hyperparameters):
    """Adds a row for a function of the library.

    Args:
      function: which one.
      powers: as in Row.
      call: of a Setting and arrays, by the names of its other arguments. None: the function
        itself; its arguments by the names of hyperparameters and of what a Setting has get those,
        and all others that are not keyword-only are arrays.
      spread: as in Row.
      smooth: as in Row.
      least: as in Row.
      **hyperparameters: see `given`.
    """
    if call is None:
        call = functools.partial(_by_name, function, hyperparameters)
        names = [
            name
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            and not (name in hyperparameters or hasattr(Setting, name))
        ]
    else:
        names = list(inspect.signature(call).parameters)[1:]
    name = f"{function.__module__.removeprefix('kernelgrad.')}.{function.__name__}"
    TABLE[name] = Row(call, tuple(names), powers, spread, smooth, least)


def _by_name(function, hyperparameters, setting, **arrays):
    known = inspect.signature(function).parameters
    own = {name: getattr(setting, name) for name in known if hasattr(Setting, name)}
    return function(**{**own, **given(setting, hyperparameters), **arrays})


def example(names, rng, *, n=10, d=3, dtype=np.float32, unit=1.0, offset=0.0):
    """Returns float arrays for arguments of these names."""
    arrays = {}
    for name in names:
        kind = KINDS.get(name, "points")
        value = {
            "points": lambda: rng.normal(size=(n, d)) + offset,
            "unitless": lambda: rng.normal(size=(n, d)),
            "score": lambda: rng.normal(size=(n, d)),
            "columns": lambda: rng.normal(size=(n, 2)),
            "vector": lambda: rng.normal(size=n),
            "mean": lambda: rng.normal(size=d),
            "covariance": lambda: np.cov(rng.normal(size=(d, d + 5))).reshape(d, d),
            "grid": lambda: np.array([1.0, 2.0]),
            "latent": lambda: rng.normal(size=d),
            "place": lambda: rng.normal(size=d),
            "probabilities": lambda: rng.dirichlet(np.ones(d), size=n),
            "labels": lambda: rng.integers(0, 4, size=n),
        }[kind]()
        if kind == "labels":
            arrays[name] = value.astype(np.int32)
        else:
            arrays[name] = (value * unit ** POWERS.get(kind, 0)).astype(dtype)
    return arrays
