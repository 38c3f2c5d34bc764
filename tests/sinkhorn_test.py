"""The Sinkhorn divergence: entropic plans in float64 by loops; without ott-jax, one line."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from kernelgrad import objectives


def _entropic_cost(x, y, epsilon):
    """W of Feydy et al., eq. (1), by its dual: updates of two potentials in turn."""
    cost = np.array([[np.sum((a - b) ** 2) for b in y] for a in x])
    f, g = np.zeros(len(x)), np.zeros(len(y))
    for _ in range(500):
        f = -epsilon * (logsumexp((g[None] - cost) / epsilon, axis=1) - np.log(len(y)))
        g = -epsilon * (logsumexp((f[:, None] - cost) / epsilon, axis=0) - np.log(len(x)))
    return f.mean() + g.mean()


def _divergence(x, y, epsilon):
    half = [_entropic_cost(points, points, epsilon) / 2 for points in (x, y)]
    return _entropic_cost(x, y, epsilon) - sum(half)


@pytest.mark.thorough
def test_the_direction_is_that_of_the_loops(key, rng, loose_promotion):
    pytest.importorskip("ott", reason="ott-jax is an extra: pip install 'kernelgrad[ott]'")
    x, y = rng.normal(size=(6, 2)), rng.normal(0.5, 1.2, size=(6, 2))
    epsilon = 0.3 * np.mean([np.sum((a - b) ** 2) for a in x for b in y])
    objective = objectives.sinkhorn(0.3)
    arrays = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    direction, info = jax.jit(objective)(key, *arrays)
    np.testing.assert_allclose(info["sinkhorn"], _divergence(x, y, epsilon), rtol=5e-3)
    bump = np.zeros_like(x)
    bump[2, 1] = 1e-4
    slope = (_divergence(x + bump, y, epsilon) - _divergence(x - bump, y, epsilon)) / 2e-4
    np.testing.assert_allclose(direction[2, 1], 6 * slope, rtol=2e-2)
    spread, _ = jax.pmap(lambda a, b: objective(key, a, b, axis_name="i"), axis_name="i")(
        *(points.reshape(2, 3, 2) for points in arrays)
    )
    np.testing.assert_allclose(spread.reshape(6, 2), direction, rtol=1e-3, atol=1e-4)


def test_without_ott_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ott", None)
    monkeypatch.setitem(sys.modules, "ott.geometry.pointcloud", None)
    with pytest.raises(ValueError, match=r"^objective: got sinkhorn without ott-jax; .*\[ott\]'$"):
        objectives.sinkhorn()


def test_bad_epsilon_is_named():
    with pytest.raises(ValueError, match=r"^epsilon: got 0[.]; expected values in \(0, inf"):
        objectives.sinkhorn(0.0)
