"""Trace-time contracts: each names the argument, what was got and what was expected."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernelgrad.types import Array


def floating(**arrays: Array) -> None:
    """Raises ValueError for the first argument whose dtype is not floating."""
    for name, array in arrays.items():
        if not jnp.issubdtype(jnp.asarray(array).dtype, jnp.floating):
            raise ValueError(f"{name}: got dtype {jnp.asarray(array).dtype}; expected floating")


def shape(name: str, array: float | Array, expected: Sequence[int | str]) -> None:
    """Raises ValueError unless `array` has the shape; a str entry matches any size >= 1.

    >>> shape("x", jnp.zeros((3, 2)), ("n", 2))
    """
    got = jnp.shape(array)
    fits = len(got) == len(expected) and all(
        size >= 1 if isinstance(want, str) else size == want
        for size, want in zip(got, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(want) for want in expected)
        raise ValueError(f"{name}: got shape {got}; expected ({wanted}), no size 0")


def points(**arrays: Array) -> None:
    """Raises ValueError unless every argument is a floating (n, d) array with one common d."""
    names = list(arrays)
    floating(**arrays)
    for name in names:
        shape(name, arrays[name], ("n", "d"))
    for name in names[1:]:
        if arrays[name].shape[1] != arrays[names[0]].shape[1]:
            raise ValueError(
                f"{name}: got shape {arrays[name].shape}; expected "
                f"(n, {arrays[names[0]].shape[1]}) like {names[0]}"
            )


def batches(**arrays: Array) -> None:
    """Raises ValueError for the first argument that is not a floating (n, ...) array."""
    floating(**arrays)
    for name, array in arrays.items():
        shape(name, array, ("n", *jnp.shape(array)[1:]))


def in_range(
    name: str,
    value: float | Sequence[float] | Array,
    low: float,
    high: float,
    *,
    closed: str = "",
) -> None:
    """Raises ValueError unless every concrete entry of `value` lies between low and high.

    Args:
      name: the argument's name.
      value: scalar, sequence or array; a traced one passes, for it has no number yet.
      low: lower end.
      high: upper end.
      closed: which ends belong to the range: any of "l", "r", "lr", "".
    """
    if any(isinstance(entry, jax.core.Tracer) for entry in jax.tree.leaves(value)):
        return
    array = np.asarray(value)
    above = array >= low if "l" in closed else array > low
    below = array <= high if "r" in closed else array < high
    if not np.all(above & below):
        left, right = "[" if "l" in closed else "(", "]" if "r" in closed else ")"
        expected = f"{left}{low:g}, {high:g}{right}"
        expected = expected.replace("inf)", "infinity)").replace("inf]", "infinity)")
        raise ValueError(f"{name}: got {np.array2string(array)}; expected values in {expected}")


def not_negative(**values: float | Sequence[float] | Array) -> None:
    """Raises ValueError for the first argument with a concrete entry that is not in [0, inf)."""
    for name, value in values.items():
        in_range(name, value, 0.0, math.inf, closed="l")


def positive(**values: float | Sequence[float] | Array) -> None:
    """Raises ValueError for the first argument with a concrete entry that is not in (0, inf)."""
    for name, value in values.items():
        in_range(name, value, 0.0, math.inf)


def at_least(name: str, value: int, minimum: int) -> None:
    """Raises ValueError for a static integer below `minimum`."""
    if value < minimum:
        raise ValueError(f"{name}: got {value}; expected an integer >= {minimum}")


def finite(**arrays: Array) -> None:
    """Raises ValueError for the first concrete array with an entry that is not finite."""
    for name, array in arrays.items():
        if isinstance(array, jax.core.Tracer):
            continue
        bad = np.argwhere(~np.isfinite(np.asarray(array, np.float64)))
        if len(bad):
            raise ValueError(
                f"{name}: got {len(bad)} non-finite entries, the first at index "
                f"{tuple(bad[0].tolist())}; expected finite values"
            )


def call(name: str, form: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Returns fn(*args, **kwargs); ValueError, with the right form, if it does not take those.

    What goes wrong inside of fn is left as it is.
    """
    try:
        signature = inspect.signature(fn)
    except ValueError:  # some callables do not say
        return fn(*args, **kwargs)
    except TypeError:
        raise ValueError(f"{name}: got {type(fn).__name__}; expected {form}") from None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ValueError(f"{name}: got {signature}: {error}; expected {form}") from None
    return fn(*args, **kwargs)


def pair(name: str, form: str, value: Any) -> tuple[Any, Any]:
    """Returns the two values that a function returned; ValueError, with its form, if not two."""
    values = tuple(value) if isinstance(value, tuple | list) else ()
    if len(values) != 2:
        got = f"{len(values)} values" if values else type(value).__name__
        raise ValueError(f"{name}: returned {got}; expected {form}")
    return values


def rows(name: str, form: str, value: Any, size: int) -> None:
    """Raises ValueError, with the form of the function, unless it returned an array of n rows."""
    shape = getattr(value, "shape", None)
    if shape is None or tuple(shape[:1]) != (size,):
        got = type(value).__name__ if shape is None else f"shape {tuple(shape)}"
        raise ValueError(f"{name}: returned {got}; expected {form}, {size} rows")
