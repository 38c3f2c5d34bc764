"""Samples that count by weights, such as those of importance sampling."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernelgrad import _checks, _devices, _numeric
from kernelgrad._checks import ArrayLike
from kernelgrad.types import Array


def relative(
    axis_name: str | None, *sides: tuple[str, Array, ArrayLike | None]
) -> list[tuple[Array, Array | None]]:
    r"""Returns points, and their weights over the mean of these, :math:`n w_i / \sum_j w_j`.

    Args:
      axis_name: if set, the mean is that of the union over all devices.
      *sides: name of the weights; points, shape (n, d); weights w_i >= 0, shape (n,), in any unit,
        or None, where all count alike.

    Returns:
      For each side points, all in the widest dtype of points and weights, and weights of mean 1 in
      at least float32, or None; as they came where no side has weights.

    Raises:
      ValueError: weights that are not floating, of another number, negative, not finite or all 0,
        as far as they are concrete.
    """
    if all(weights is None for _, _, weights in sides):
        return [(points, None) for _, points, _ in sides]
    given = {name: weights for name, _, weights in sides if weights is not None}
    alone = {f"points {place}": points for place, (_, points, _) in enumerate(sides)}
    taken = _checks.floating(**alone, **given)
    found = dict(zip(given, taken[len(sides) :], strict=True))
    means: list[Array | None] = []
    for (name, _, weights), points in zip(sides, taken, strict=False):
        if weights is None:
            means.append(None)
            continue
        _check(name, found[name], points.shape[0])
        means.append(_over_mean(_numeric.wide(found[name]), axis_name))
    return list(zip(taken, means, strict=False))


def _check(name: str, weights: Array, size: int) -> None:
    _checks.shape(name, weights, (size,))
    _checks.not_negative(**{name: weights})
    if not isinstance(weights, jax.core.Tracer) and not np.any(np.asarray(weights) > 0):
        raise ValueError(f"{name}: got zeros; expected at least one that is positive")


def _over_mean(weights: Array, axis_name: str | None) -> Array:
    peak = _devices.largest(lax.stop_gradient(jnp.max(weights)), axis_name)
    weights = weights / peak  # whose sum is in range
    mean = _devices.statistic(jnp.mean(weights), axis_name)
    return weights / _devices.copies(mean, axis_name)
