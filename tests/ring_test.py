"""Sums over devices by a ring: those of gathered points, in memory of a share.

Run as a script, under four forced devices, it prints what a function takes, ringed and gathered.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from memory import needs_proc

from kernelgrad import (
    _devices,
    _tiles,
    drift,
    kernels,
    ksd,
    median,
    mmd,
    noise,
    pairwise,
    ratio,
    score,
    score_peers,
    steingan,
    svgd,
)

KERNEL = kernels.imq_mixture([1.0, 2.0])
FEATURES = kernels.feature_kernel(kernels.rbf_mixture(1.0), lambda _, x: x, ())
CENTERS = 32  # of a device


def everyone(*arrays):
    return (lax.all_gather(array, "i", tiled=True) for array in arrays)


def own(rows):
    return _devices.share(rows, "i")


def gathered_svgd(x, s):
    points, scores = everyone(x, s)
    return pairwise.stein_sum(KERNEL, x, points, scores) / len(points)


def gathered_mmd(x, y):
    """The gradient of the V-statistic."""
    xs, ys = everyone(x, y)
    within, between = (pairwise.gradient_sum(KERNEL, x, all_of) for all_of in (xs, ys))
    return -2 / len(xs) * (within / len(xs) - between / len(ys))


WAYS = {  # of two arrays: by a ring, and by hand on what was gathered
    "kernel_sum": (
        lambda x, y: pairwise.kernel_sum(KERNEL, x, y, y[:, :1], axis_name="i"),
        lambda x, y: pairwise.kernel_sum(KERNEL, x, *everyone(y, y[:, :1])),
    ),
    "svgd": (lambda x, s: svgd.svgd_direction(x, s, KERNEL, axis_name="i"), gathered_svgd),
    "mmd": (lambda x, y: mmd.mmd_gradient(x, y, KERNEL, axis_name="i"), gathered_mmd),
    "ksd": (
        lambda x, s: ksd.ksd_v_statistic(x, s, KERNEL, axis_name="i"),
        lambda x, s: ksd.ksd_v_statistic(*everyone(x, s), KERNEL),
    ),
    "median": (
        lambda x, y: median.median_squared_distance(x, y, axis_name="i"),
        lambda x, y: median.median_squared_distance(*everyone(x, y)),
    ),
    "kde_score": (
        lambda x, y: score_peers.kde_score(x, KERNEL, axis_name="i"),
        lambda x, y: own(score_peers.kde_score(*everyone(x), KERNEL)),
    ),
    "noise": (
        lambda x, y: noise.noisy_logits_and_gradient(x, y, x, variance=2.0, axis_name="i")[1],
        lambda x, y: noise.noisy_logits_and_gradient(x, *everyone(y, x), variance=2.0)[1],
    ),
    "drift": (
        lambda x, y: drift.drift(x, y, axis_name="i"),
        lambda x, y: own(drift.drift(*everyone(x, y))),
    ),
    "nearest": (
        lambda x, s: steingan.nearest_direction(x, s, FEATURES, axis_name="i"),
        lambda x, s: own(steingan.nearest_direction(*everyone(x, s), FEATURES)),
    ),
    "ulsif": (  # nothing goes round: moments of a share are added up
        lambda x, y: (
            ratio.ulsif(x, y, KERNEL, ridge=0.1, centers=x[:CENTERS], axis_name="i").weights
        ),
        lambda x, y: (
            ratio.ulsif(
                *everyone(x, y), KERNEL, ridge=0.1, centers=next(everyone(x[:CENTERS]))
            ).weights
        ),
    ),
    "logistic": (
        lambda x, y: (
            ratio.logistic(x, y, KERNEL, ridge=0.1, centers=x[:CENTERS], axis_name="i").weights
        ),
        lambda x, y: (
            ratio.logistic(
                *everyone(x, y), KERNEL, ridge=0.1, centers=next(everyone(x[:CENTERS]))
            ).weights
        ),
    ),
    "kliep": (
        lambda x, y: ratio.kliep(x, y, KERNEL, centers=x[:CENTERS], axis_name="i").log_weights,
        lambda x, y: (
            ratio.kliep(*everyone(x, y), KERNEL, centers=next(everyone(x[:CENTERS]))).log_weights
        ),
    ),
    "stein_score": (  # of more than score.DENSE_SAMPLES; to the digits of its iteration alike
        lambda x, y: score.stein_score(x, KERNEL, ridge=30.0, axis_name="i"),
        lambda x, y: own(score.stein_score(*everyone(x), KERNEL, ridge=30.0)),
    ),
    "stein_score_at": (
        lambda x, y: score.stein_score_at(x, y, KERNEL, ridge=30.0, axis_name="i"),
        lambda x, y: score.stein_score_at(x, *everyone(y), KERNEL, ridge=30.0),
    ),
}

FOLDED = ["kde_score", "noise", "drift", "nearest"]


def over_devices(fn, count, order=0):
    """A function of shares, or the gradient of the sum of its values, of whole arrays."""

    def slope(x, y):
        return jax.grad(lambda *shares: jnp.sum(fn(*shares)), (0, 1))(x, y)

    mesh = Mesh(np.array(jax.devices()[:count]), ("i",))
    mapped = slope if order else lambda x, y: jnp.reshape(fn(x, y), (-1, 1))
    return jax.jit(
        jax.shard_map(mapped, mesh=mesh, in_specs=P("i"), out_specs=P("i"), check_vma=False)
    )


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(_tiles, "DENSE_PAIRS", 0)
    monkeypatch.setattr(_tiles, "TILE_ROWS", 8)
    monkeypatch.setattr(_tiles, "TILE_COLS", 8)
    monkeypatch.setattr(median, "_TILE", 8)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", ["svgd", "ksd", "mmd", "kernel_sum", "median", *FOLDED])
def test_a_ring_adds_up_what_gathering_does(name, rng, small_tiles):
    """Shares that no tile divides, one of them far from the middle."""
    x, y = (jnp.asarray(rng.normal(size=(26, 5)), jnp.float32) for _ in range(2))
    x = x.at[:13].add(3.0)
    ring, gathered = (over_devices(fn, 2) for fn in WAYS[name])
    text = str(jax.make_jaxpr(ring)(x, y))
    assert "ppermute" in text
    expected = gathered(x, y)
    np.testing.assert_allclose(ring(x, y), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.thorough
def test_scores_of_far_queries_keep_their_slope(rng, small_tiles):
    """Thousands of lengthscales away: -1/l^2, as on one device, and padding is no sample at 0."""
    kernel = kernels.rbf_mixture(1.0)
    x, y = (jnp.asarray(rng.normal(size=(26, 5)), jnp.float32) for _ in range(2))
    x *= jnp.array([0.0, 3e3, 1e4, 1e5])[jnp.arange(26) % 4, None]
    ring = over_devices(lambda *xy: score_peers.kde_score_at(*xy, kernel, axis_name="i"), 2, 1)
    slopes, _ = ring(x, y + 3e3)
    np.testing.assert_allclose(slopes[jnp.arange(26) % 4 > 1], -1, rtol=1e-5)
    assert np.all(np.isfinite(slopes))


def test_few_pairs_are_gathered():
    x = jnp.ones((8, 3))
    assert "ppermute" not in str(jax.make_jaxpr(over_devices(WAYS["svgd"][0], 2))(x, x))


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "order"), [*((one, 0) for one in WAYS), ("svgd", 1)])
def test_temporaries_of_a_ring_are_those_of_a_share(name, order):
    """Of four devices, by the compiler's count."""
    ring, gathered = (_measured("temporaries", name, order, way) for way in (0, 1))
    # the median holds four copies of a share, two that travel, and two of all that is gathered
    share = 0.55 if name == "median" else 0.35
    assert ring <= share * gathered, (ring, gathered)


@needs_proc
@pytest.mark.thorough
def test_resident_memory_of_a_ring_is_that_of_a_share():
    """Of four devices, each way in a process of its own."""
    ring, gathered = (_measured("resident", "svgd", 0, way) for way in (0, 1))
    assert ring <= 0.35 * gathered, (ring, gathered)


def _measured(kind, name, order, way):
    """Megabytes, by this file as a script."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    root = pathlib.Path(__file__).parent
    done = subprocess.run(
        [sys.executable, __file__, kind, name, str(order), str(way)],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": f"{root}:{root.parent}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _temporaries(fn):
    """What the compiled program keeps on a device, of 131072 points."""
    points = jax.ShapeDtypeStruct((1 << 17, 32), jnp.float32)
    return fn.lower(points, points).compile().memory_analysis().temp_size_in_bytes / 2**20


def _peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def _resident(fn):
    """What running it adds to the process, with 8192 wide points, beside which tiles are small."""
    _tiles.TILE_ROWS = _tiles.TILE_COLS = 64
    points = np.random.default_rng(0).normal(size=(2, 8192, 512)).astype(np.float32)
    rows = NamedSharding(Mesh(np.array(jax.devices()), ("i",)), P("i"))
    arrays = [jax.device_put(one, rows) for one in points]
    compiled = fn.lower(*arrays).compile()
    before = _peak()
    jax.block_until_ready(compiled(*arrays))
    return _peak() - before


if __name__ == "__main__":
    chosen, one, derivative, how = sys.argv[1:]
    measure = {"temporaries": _temporaries, "resident": _resident}[chosen]
    print(measure(over_devices(WAYS[one][int(how)], 4, int(derivative))))
