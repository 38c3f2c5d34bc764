"""Trace-time contracts: each names the argument, what was got and what was expected.

They are also the one way in for arrays: those that say they return take JAX and NumPy arrays alike,
and bring the arrays of one call to one floating dtype, the widest of theirs.
"""

import inspect
import math
import operator
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernelgrad import _devices, _numeric
from kernelgrad.types import Array, PyTree

_SHOWN_ENTRIES = 8  # of an array in an error

ArrayLike = Array | np.ndarray | np.generic | complex


def array(name: str, value: ArrayLike, kind: type = jnp.number, expected: str = "numbers") -> Array:
    """Returns an array-like as a JAX array; the one way into every public function.

    JAX arrays, traced ones too, come back as they are, but for one that is sharded over explicit
    axes of a mesh, which comes back whole, on every device. NumPy arrays are copied, whatever their
    strides and byte order, in the dtype that JAX has for theirs: float32 for float64 without x64.

    Args:
      name: the argument's name.
      value: JAX or NumPy array, or a scalar of either or of Python.
      kind: of the dtype; a scalar type of JAX.
      expected: the kind in words.

    Raises:
      ValueError: anything else, such as a list, which is a pytree to JAX, or another dtype.
    """
    _admit(name, value)
    got = value if isinstance(value, jax.Array) else np.asarray(value)
    if not jnp.issubdtype(got.dtype, kind):
        raise ValueError(f"{name}: got dtype {got.dtype}; expected {expected}")
    if isinstance(got, jax.Array):
        return _devices.whole(got)
    too_wide = got.dtype.kind == "f" and got.dtype.itemsize > 8
    dtype = np.dtype(np.float64) if too_wide else got.dtype.newbyteorder("=")
    with np.errstate(over="ignore"):  # infinity says it
        return jnp.array(got.astype(jax.dtypes.canonicalize_dtype(dtype)))


def floating(**arrays: ArrayLike) -> tuple[Array, ...]:
    """Returns the arguments as arrays of one dtype, the widest of theirs.

    Where they differ it is at least float32, which the two dtypes of half precision have in common.

    Raises:
      ValueError: for the first that is not floating.
    """
    taken = [array(name, value, jnp.floating, "floating") for name, value in arrays.items()]
    if len({value.dtype for value in taken}) > 1:
        taken = [_numeric.wide(value) for value in taken]
        widest = max((value.dtype for value in taken), key=lambda dtype: dtype.itemsize)
        taken = [value.astype(widest) for value in taken]
    return tuple(taken)


def floating_leaves(name: str, tree: PyTree) -> PyTree:
    """Returns the pytree with array leaves; raises ValueError for the first not floating."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: floating(**{name + jax.tree_util.keystr(path): leaf})[0], tree
    )


def shape(name: str, array: ArrayLike, expected: Sequence[int | str]) -> None:
    """Raises ValueError unless `array` has the shape; a str entry matches any size >= 1.

    Example:
      >>> from kernelgrad import _checks
      >>> _checks.shape("x", jnp.zeros((3, 2)), ("n", 2))
    """
    _admit(name, array, "a JAX or NumPy array" if expected else "a number")
    got = np.shape(array)
    fits = len(got) == len(expected) and all(
        size >= 1 if isinstance(want, str) else size == want
        for size, want in zip(got, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(want) for want in expected)
        raise ValueError(f"{name}: got shape {got}; expected ({wanted}), no size 0")


def scalar(name: str, value: ArrayLike) -> Array:
    """Returns what a function returned as a floating array of shape (), or raises ValueError."""
    shape(name, value, ())
    return floating(**{name: value})[0]


def number(name: str, value: float | Array) -> Array:
    """Returns a real number of any type, shape (), in at least float32, or raises ValueError."""
    shape(name, value, ())
    _real(name, value)
    taken = array(name, value if hasattr(value, "dtype") else float(value))
    return _numeric.wide(
        taken if jnp.issubdtype(taken.dtype, jnp.floating) else taken.astype(float)
    )


def one_key(name: str, value: Any) -> None:
    """Raises ValueError for several random keys, such as those of :func:`train.replicate`."""
    shape = np.shape(value)
    is_typed = jnp.issubdtype(jnp.result_type(value), jax.dtypes.prng_key)
    if len(shape) != (0 if is_typed else 1):  # an untyped one is a vector of words
        raise ValueError(
            f"{name}: got keys of shape {shape}; expected one, which goes to all devices as it is. "
            "Do not replicate it"
        )


def points(**arrays: ArrayLike) -> tuple[Array, ...]:
    """Returns the arguments as floating (n, d) arrays with one common d, or raises ValueError."""
    names, taken = list(arrays), floating(**arrays)
    for name, value in zip(names, taken, strict=True):
        shape(name, value, ("n", "d"))
    for name, value in zip(names, taken, strict=True):
        if value.shape[1] != taken[0].shape[1]:
            raise ValueError(
                f"{name}: got shape {value.shape}; expected (n, {taken[0].shape[1]}) "
                f"like {names[0]}"
            )
    return taken


def raveled(**trees: PyTree) -> tuple[Array, ...]:
    """Returns arrays or pytrees of points as floating (n, d) arrays, or raises ValueError.

    A tree's leaves are arrays of shape (n, ...), one n for all; a point is what it has in each of
    them, raveled, side by side in the order of the leaves.
    """
    return points(**{name: _joined(name, value) for name, value in trees.items()})


def _joined(name: str, tree: PyTree) -> Any:
    """Returns a pytree of points as one array (n, d); what is none as it is."""
    if not _is_tree(tree):
        return tree
    paths = [
        (name + jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
    leaves = batches(**dict(paths))
    for (path, _), leaf in zip(paths, leaves, strict=True):
        shape(path, leaf, (leaves[0].shape[0], *leaf.shape[1:]))
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


def _is_tree(value: Any) -> bool:
    """Returns whether a value is a pytree of arrays, and neither one array nor a list of them."""
    leaves = jax.tree.leaves(value)
    arrays = all(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves)
    return bool(leaves) and arrays and not isinstance(value, (jax.Array, np.ndarray, list))


def like_points(rows: Array, particles: PyTree) -> PyTree:
    """Returns an array (n, d) in the form of the points that :func:`raveled` made of n points."""
    if not _is_tree(particles):
        return rows
    leaves, form = jax.tree.flatten(particles)
    ends = np.cumsum([math.prod(leaf.shape[1:]) for leaf in leaves])
    parts = jnp.split(rows, ends[:-1], axis=1)
    shaped = [
        part.reshape(rows.shape[0], *leaf.shape[1:]).astype(array("leaf", leaf).dtype)
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(form, shaped)


def pair(x: ArrayLike, y: ArrayLike | None) -> tuple[Array, Array | None]:
    """Returns x and, unless it is None, y as points of one dimension, or raises ValueError."""
    return (*points(x=x), None) if y is None else points(x=x, y=y)  # type: ignore[return-value]


def scored(particles: PyTree, score: PyTree) -> tuple[Array, Array]:
    """Returns points and a floating array of their shape, or raises ValueError.

    Either may be a pytree of points, as of :func:`raveled`; both of one form.
    """
    form, other = (str(jax.tree.structure(tree)) for tree in (particles, score))
    if _is_tree(particles) and other != form:
        raise ValueError(f"score: got {other}; expected the form of particles, {form}")
    (rows,) = raveled(particles=particles)
    rows, scores = floating(particles=rows, score=_joined("score", score))
    shape("score", scores, rows.shape)
    return rows, scores


def vectors(**arrays: ArrayLike) -> tuple[Array, ...]:
    """Returns the arguments as floating (n,) arrays, or raises ValueError."""
    taken = floating(**arrays)
    for name, value in zip(arrays, taken, strict=True):
        shape(name, value, ("n",))
    return taken


def batches(**arrays: ArrayLike) -> tuple[Array, ...]:
    """Returns the arguments as floating (n, ...) arrays, or raises ValueError."""
    taken = floating(**arrays)
    for name, value in zip(arrays, taken, strict=True):
        shape(name, value, ("n", *value.shape[1:]))
    return taken


def features(value: Any, size: int) -> Array:
    """Returns the features of `size` points, floating (n, l), concrete ones finite; or raises."""
    (value,) = floating(features=value)
    shape("features", value, (size, "l"))
    finite(features=value)
    return value


def in_range(
    name: str,
    value: float | Sequence[float | Array] | Array,
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
    _real(name, value)
    array = np.asarray(value)
    above = array >= low if "l" in closed else array > low
    below = array <= high if "r" in closed else array < high
    if not np.all(above & below):
        left, right = "[" if "l" in closed else "(", "]" if "r" in closed else ")"
        expected = f"{left}{low:g}, {high:g}{right}"
        expected = expected.replace("inf)", "infinity)").replace("inf]", "infinity)")
        got = " ".join(np.array2string(array, threshold=_SHOWN_ENTRIES).split())
        raise ValueError(f"{name}: got {got}; expected values in {expected}")


def _real(name: str, value: Any) -> None:
    """Raises ValueError for what holds anything but real numbers; a traced array may, too."""
    array = value if hasattr(value, "dtype") else np.asarray(value)
    if isinstance(value, int) and array.dtype == object:  # as NumPy says of integers of any length
        raise ValueError(
            f"{name}: got an integer of {value.bit_length()} bits; expected a number of at most 64"
        )
    is_number = jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool
    if not is_number or jnp.issubdtype(array.dtype, jnp.complexfloating):
        got = f"dtype {array.dtype}" if hasattr(value, "dtype") else type(value).__name__
        raise ValueError(f"{name}: got {got}; expected real numbers")


def not_negative(**values: float | Sequence[float] | Array) -> None:
    """Raises ValueError for the first argument with a concrete entry that is not in [0, inf)."""
    for name, value in values.items():
        in_range(name, value, 0.0, math.inf, closed="l")


def positive(**values: float | Sequence[float | Array] | Array) -> None:
    """Raises ValueError for the first argument with a concrete entry that is not in (0, inf)."""
    for name, value in values.items():
        in_range(name, value, 0.0, math.inf)


def at_least(name: str, value: int, minimum: int) -> None:
    """Raises ValueError for what is no static integer, or one below `minimum`."""
    try:
        operator.index(value)
    except TypeError as error:
        got = f"{name}: got {type(value).__name__}"
        raise ValueError(f"{got}; expected an integer >= {minimum}") from error
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


def two_returned(name: str, form: str, value: Any) -> tuple[Any, Any]:
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


def warn_at_edge(name: str, value: Array, grid: Array) -> None:
    """Warns, in the caller's line, of a concrete choice that is the least or the largest tried."""
    if isinstance(value, jax.core.Tracer) or grid.size < 2:
        return
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("kernelgrad."):
        level, frame = level + 1, frame.f_back
    for edge, word in ((jnp.min(grid), "least"), (jnp.max(grid), "largest")):
        if value == edge:
            message = f"{name} {float(value):.4g} is the {word} tried; better ones may be beyond"
            warnings.warn(message, RuntimeWarning, stacklevel=level)


def _admit(name: str, value: ArrayLike, expected: str = "a JAX or NumPy array") -> None:
    """Raises ValueError for what is no array and no number."""
    numeric = isinstance(value, (jax.Array, np.ndarray, np.generic, complex, float, int))
    if not numeric or isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"{name}: got {type(value).__name__}; expected {expected}")
