"""Equality by value of what holds arrays: copies of kernels and models are equal to them."""

from typing import Any, TypeVar

import jax
import numpy as np

from kernelgrad.types import PyTree

_Class = TypeVar("_Class", bound=type)
_NUMBERS = (jax.Array, np.ndarray, np.generic, float, complex)
_Pair = tuple[int, int]


def by_value(cls: _Class) -> _Class:
    """Gives a class of pytrees ``==`` and ``!=`` by value, and a hash that agrees with them."""
    setattr(cls, "__eq__", same)  # noqa: B010  # mypy takes no assignment to a method
    setattr(cls, "__ne__", lambda one, other: not same(one, other))  # noqa: B010
    setattr(cls, "__hash__", _hash)  # noqa: B010
    return cls


def same(one: PyTree, other: Any) -> bool:
    """Returns whether two values are of one type and of the same parts.

    Numbers are compared bit for bit, functions as Python does, and of other objects what pickle
    would keep: bound methods and partials of copies are equal. A tracer is the same as itself.
    """
    return _same(one, other, ())


def _same(one: Any, other: Any, above: tuple[_Pair, ...]) -> bool:
    pair = id(one), id(other)
    if one is other or pair in above:  # the latter inside of themselves
        return True
    if isinstance(one, jax.core.Tracer) or isinstance(other, jax.core.Tracer):
        return False
    if isinstance(one, _NUMBERS) and isinstance(other, _NUMBERS):
        return _bits(one) == _bits(other)
    if type(one) is not type(other):
        return False
    within = (*above, pair)
    if isinstance(one, tuple | list):
        parts = zip(one, other, strict=False)
        return len(one) == len(other) and all(_same(*part, within) for part in parts)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k], within) for k in one)
    return _equal(one, other) or _same_pickled(one, other, within)


def _equal(one: Any, other: Any) -> bool:
    """Returns whether Python says so, of what is not compared here."""
    if type(one).__eq__ is same:
        return False
    try:
        return bool(one == other)
    except Exception:  # such as arrays among the fields of a dataclass
        return False


def _same_pickled(one: Any, other: Any, above: tuple[_Pair, ...]) -> bool:
    try:
        kept = one.__reduce_ex__(4), other.__reduce_ex__(4)
    except Exception:  # of functions, and what else is kept by its name, or not at all
        return False
    return _same(*kept, above)


def _bits(number: Any) -> tuple[Any, tuple[int, ...], bytes]:
    """Returns dtype, shape and bytes of an array or a number; of random keys, their words."""
    array = number
    if jax.dtypes.issubdtype(getattr(number, "dtype", None), jax.dtypes.extended):
        array = jax.random.key_data(number)
    array = np.asarray(array)
    return getattr(number, "dtype", array.dtype), array.shape, array.tobytes()


def _hash(tree: PyTree) -> int:
    return hash((type(tree), *(np.shape(leaf) for leaf in jax.tree.leaves(tree))))
