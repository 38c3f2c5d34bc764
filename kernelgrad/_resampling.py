"""The p-value of a statistic that was resampled, and when there is none."""

import jax
import jax.numpy as jnp

from kernelgrad import _numeric
from kernelgrad.types import Array, TestResult


def result(
    statistic: Array, null: Array, *, valid: Array, rounding: float | Array = 0.0
) -> TestResult:
    """Returns the statistic and (1 + #{null >= statistic}) / (1 + B), in at least float32.

    Args:
      statistic: observed; shape ().
      null: resampled statistics; shape (B,).
      valid: whether what they were computed from is finite; shape (), bool.
      rounding: a resampled statistic within this of the observed one is a tie; shape ().

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
