"""The p-value of a statistic that was resampled, and when there is none."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _numeric
from kernelgrad.types import Array, Kernel, TestResult


class Resampled(NamedTuple):
    """A statistic and what it is under resampling; of several kernels, with a leading axis (K,).

    Attributes:
      observed: of the data as they are; shape ().
      null: of the resampled data; shape (B,).
      rounding: a resampled statistic within this of another is a tie; shape ().
      valid: whether what it was computed from is finite; shape (), bool.
    """

    observed: Array
    null: Array
    rounding: Array
    valid: Array


def for_each(resample: Callable[[Kernel], Resampled], kernels: Sequence[Kernel]) -> Resampled:
    """Returns the results of all kernels, in their order, along a leading axis.

    Args:
      resample: kernel -> statistics; called once for all kernels that differ in numbers alone.
      kernels: at least one.

    Raises:
      ValueError: no kernel.
    """
    _checks.at_least("number of kernels", len(kernels), 1)
    alike: dict[object, list[int]] = {}
    for number, kernel in enumerate(kernels):
        leaves, form = jax.tree.flatten(kernel)
        alike.setdefault((form, *map(jnp.shape, leaves)), []).append(number)
    found = []
    for numbers in alike.values():
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *(kernels[number] for number in numbers))
        found.append(lax.map(resample, stacked))
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), *found)
    order = [number for numbers in alike.values() for number in numbers]
    return jax.tree.map(lambda x: x[jnp.argsort(jnp.asarray(order))], joined)


def aggregated(each: Resampled, weights: Array | None) -> TestResult:
    r"""Returns the test by the best of several statistics, T = -min_k log(p_k / w_k).

    Of K kernels up to K resamples are the largest under one each: all have the same T, and if each
    counted as large as the others, K > B / 20 kernels might never reject at 5 %. Among equal T the
    mean of -log p_k decides.

    Args:
      each: statistics under the same resamples; shapes (K,), (K, B), (K,), (K,).
      weights: w_k > 0; shape (K,). None: all alike.

    Returns:
      As :func:`result`, with weights of mean 1.

    Raises:
      ValueError: as :func:`result`, or weights of another shape or, concrete, not positive.
    """
    count = each.observed.shape[0]
    if weights is not None:
        _checks.shape("weights", weights, (count,))
        _checks.positive(weights=weights)
    values = _numeric.wide(jnp.concatenate([each.observed[:, None], each.null], axis=1))
    valid = jnp.all(each.valid) & jnp.all(jnp.isfinite(values))

    def ranks(values: Array, rounding: Array) -> Array:
        below = jnp.searchsorted(jnp.sort(values), values - rounding)
        return values.size - below  # how many are as large

    shares = jnp.ones(count) if weights is None else jnp.asarray(weights)
    shares = _numeric.like(shares / jnp.mean(shares), values)
    counts = _numeric.like(jax.vmap(ranks)(values, _numeric.like(each.rounding, values)), values)
    best = -jnp.log(jnp.min(counts / values.shape[1] / shares[:, None], axis=0))
    together = -jnp.mean(jnp.log(counts), axis=0)
    behind = (best == best[0]) & (together < together[0] - 1e-5)  # of another order: a tie still
    statistic = jnp.where(valid, best[0], jnp.nan)  # ranks are finite whatever is ranked
    return result(statistic, jnp.where(behind, best - 1, best)[1:], 0.0, valid)


def result(statistic: Array, null: Array, rounding: float | Array, valid: Array) -> TestResult:
    """Returns the statistic and (1 + #{null >= statistic}) / (1 + B), in at least float32.

    Args:
      statistic: observed; shape ().
      null: resampled statistics; shape (B,).
      rounding: a resampled statistic within this of the observed one is a tie; shape ().
      valid: whether what they were computed from is finite; shape (), bool.

    Returns:
      Statistic and p-value; NaN, both, where the data or a statistic is not finite.

    Raises:
      ValueError: a concrete statistic that is not finite: finite data whose squares overflow.
    """
    statistic, null = _numeric.wide(statistic), _numeric.wide(null)
    exceeded = jnp.sum(null >= statistic - _numeric.like(rounding, statistic), dtype=jnp.int32)
    p_value = _numeric.like(1 + exceeded, statistic) / (1 + null.shape[0])
    valid = valid & jnp.isfinite(statistic) & jnp.all(jnp.isfinite(null))
    if not isinstance(valid, jax.core.Tracer) and not valid:
        raise ValueError(f"statistic: got {statistic}; expected a finite number. Rescale the data")
    statistic, p_value = (jnp.where(valid, value, jnp.nan) for value in (statistic, p_value))
    return TestResult(statistic, p_value)
