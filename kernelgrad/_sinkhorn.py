"""The Sinkhorn divergence as an objective; the solver is ott-jax's, an optional extra."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _devices, _numeric
from kernelgrad._batch import flat
from kernelgrad.types import Array, Info, Key, Objective

_DENSE_PAIRS = 1 << 24
_ROWS_AT_ONCE = 512


def sinkhorn(epsilon: float = 0.05) -> Objective:
    r"""Returns the objective that descends the Sinkhorn divergence of the squared distance.

    .. math:: S = W_\epsilon(q, p) - \tfrac12 W_\epsilon(q, q) - \tfrac12 W_\epsilon(p, p), \quad
        W_\epsilon(q, p) = \min_\pi E_\pi |x - y|^2 + \epsilon\, \mathrm{KL}[\pi \| q \otimes p]

    The direction is n times its gradient, as that of :func:`mmd_v` is. As epsilon grows S tends to
    the squared distance of the means, as it falls to the squared Wasserstein-2 distance.

    Args:
      epsilon: > 0, in units of the mean squared distance between samples and data.

    Returns:
      Objective with info ``sinkhorn`` (S, in squared units of the samples). On several devices each
      solves for the union of all samples, under pmap.

    Raises:
      ValueError: epsilon <= 0, or ott-jax is not installed.

    Cost: O(n m d) time an iteration of Sinkhorn's; beyond 2^24 pairs O((n + m) d) memory.

    Example:
      >>> from kernelgrad import objectives
      >>> samples, data = jnp.array([[0.0]]), jnp.array([[3.0]])
      >>> direction, info = objectives.sinkhorn()(jax.random.key(0), samples, data)
      >>> round(float(direction[0, 0]), 3), round(float(info["sinkhorn"]), 3)  # of |x - y|^2
      (-6.0, 9.0)

    References:
      Feydy et al. 2019 (interpolating between optimal transport and MMD), eq. (3).
    """
    _checks.positive(epsilon=epsilon)
    divergence_of, cloud = _solver()

    def objective(
        key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        del key
        flattened = (_numeric.wide(points) for points in flat(samples, data))
        x, y = (_devices.gather(points, axis_name) for points in flattened)
        between = jnp.sum(jnp.square(jnp.mean(x, axis=0) - jnp.mean(y, axis=0)))
        spread = jnp.sum(jnp.var(x, axis=0)) + jnp.sum(jnp.var(y, axis=0))
        size = epsilon * lax.stop_gradient(between + spread)
        at_once = None if len(x) * len(y) <= _DENSE_PAIRS else _ROWS_AT_ONCE

        def value_at(points: Array) -> Array:
            return divergence_of(cloud, points, y, epsilon=size, batch_size=at_once)[0]

        value, gradient = jax.value_and_grad(value_at)(x)
        direction = _devices.share(x.shape[0] * gradient, axis_name)
        info = {"sinkhorn": _devices.agreed(value, axis_name)}
        return _numeric.like(direction, samples).reshape(samples.shape), info

    return objective


def _solver() -> tuple[Any, Any]:
    try:
        from ott.geometry.pointcloud import PointCloud
        from ott.tools.sinkhorn_divergence import sinkhorn_divergence
    except ImportError:
        raise ValueError(
            "objective: got sinkhorn without ott-jax; expected it installed. "
            "pip install 'kernelgrad[ott]'"
        ) from None
    return sinkhorn_divergence, PointCloud
