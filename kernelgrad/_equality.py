"""Equality by value of what holds arrays: copies of kernels and models are equal to them."""

from typing import Any, TypeVar

import jax
import numpy as np

from kernelgrad.types import PyTree

_Class = TypeVar("_Class", bound=type)


def by_value(cls: _Class) -> _Class:
    """Gives a class of pytrees ``==`` and ``!=`` by value, and a hash that agrees with them."""
    setattr(cls, "__eq__", same)  # noqa: B010  # mypy takes no assignment to a method
    setattr(cls, "__ne__", lambda one, other: not same(one, other))  # noqa: B010
    setattr(cls, "__hash__", lambda tree: hash(jax.tree.structure(tree)))  # noqa: B010
    return cls


def same(one: PyTree, other: Any) -> bool:
    """Returns whether structures agree, and leaves bit for bit; a tracer is the same as itself."""
    structures: list[Any] = [jax.tree.structure(tree) for tree in (one, other)]
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=False)
    return structures[0] == structures[1] and all(_same_leaf(*pair) for pair in leaves)


def _same_leaf(one: Any, other: Any) -> bool:
    if one is other or isinstance(one, jax.core.Tracer) or isinstance(other, jax.core.Tracer):
        return one is other
    one, other = np.asarray(one), np.asarray(other)
    same_kind = one.dtype == other.dtype and one.shape == other.shape
    return same_kind and one.tobytes() == other.tobytes()
