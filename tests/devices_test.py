"""Values and gradients over devices, under pmap and shard_map, are those of one device.

Run as a script, under four forced devices, it compares the numbers and prints what differs.
"""

import dataclasses
import inspect
import os
import pathlib
import subprocess
import sys
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from sweep_rows import Setting, example
from sweep_table import TABLE, public_functions

from kernelgrad import _tiles

SPREAD = [name for name, row in TABLE.items() if row.spread]
ALONE = [name for name, row in TABLE.items() if not row.spread and row.names]


def data(name, n=16):
    return example(TABLE[name].names, np.random.default_rng(len(name)), n=n)


def mesh(count, kind=AxisType.Auto):
    return Mesh(np.array(jax.devices()[:count]), ("i",), axis_types=(kind,))


def replicated(name):
    """Whether a row's arrays are the same on all devices: parameters, whose gradient is a step."""
    return TABLE[name].names == ("params",)


def function(name, axis_name=None):
    """A row's outputs and, where it is smooth, the gradient of their sum in its points."""
    row = TABLE[name]
    if replicated(name):
        row = dataclasses.replace(row, smooth=False)
    return row.with_gradient(Setting(axis_name=axis_name))


def shard_map(name, count, **options):
    """A row over devices; its outputs are their rows, or the same on all."""
    places = {"rows": P("i"), "same": P()}
    spread = TABLE[name].spread
    outputs = places[spread] if isinstance(spread, str) else tuple(places[s] for s in spread)
    arrays = P() if replicated(name) else P("i")
    specs = {"in_specs": arrays, "out_specs": (outputs, arrays)}
    return jax.shard_map(function(name, "i"), mesh=mesh(count), **specs, **options)


WALKED_ELSEWHERE = {  # what updates networks, in the tests of its own module
    *("critic.step", "critic.train", "train.make_train_step", "train.scan_resident"),
}


def test_every_function_with_an_axis_name_is_walked():
    found = set()
    for name in public_functions():
        module, _, stem = name.rpartition(".")
        made = getattr(import_module(f"kernelgrad.{module}"), stem)
        if "axis_name" in inspect.signature(made).parameters:
            found.add(name)
    within_rows = {"_players.of_union", "feature_maps.fourier_map"}  # of what is made by them
    assert found - set(SPREAD) == WALKED_ELSEWHERE | within_rows


@pytest.fixture
def tiled(monkeypatch):
    monkeypatch.setattr(_tiles, "DENSE_PAIRS", 0)
    monkeypatch.setattr(_tiles, "TILE_ROWS", 8)
    monkeypatch.setattr(_tiles, "TILE_COLS", 8)


@pytest.mark.parametrize("name", SPREAD)
def test_shard_map_takes_an_axis_name(name, tiled):
    """With its default check that what leaves as one value is one; by tracing."""
    jax.eval_shape(shard_map(name, 2), data(name))


@pytest.mark.parametrize("name", ALONE)
def test_shard_map_takes_each_device_for_itself(name, tiled):
    arrays = {key: np.stack([value, value]) for key, value in data(name).items()}

    def own(arrays):
        here = jax.tree.map(lambda a: a[0], arrays)
        return jax.tree.map(lambda a: a[None], function(name)(here))

    jax.eval_shape(jax.shard_map(own, mesh=mesh(2), in_specs=P("i"), out_specs=P("i")), arrays)


OWN = [  # what is each device's own: an array, or the unit of kernel and functions
    ("mmd.mmd_gradient", "y"),
    ("ratio.ulsif", "q"),
    ("score.stein_score_at", "queries"),
    ("adversarial.gradient_penalty", "unit"),
    ("_algebra.through", "data"),
    ("langevin.init", "unit"),
]
FLOATS = [
    (name, own)
    for name in SPREAD + ALONE
    for own in (*TABLE[name].names, "unit")
    if own != "labels" and (name, own) not in OWN
]


@pytest.mark.parametrize(
    ("name", "own"), OWN + [pytest.param(*each, marks=pytest.mark.slow) for each in FLOATS]
)
def test_what_only_one_argument_makes_differ_is_each_devices_own(name, own):
    """Under shard_map's default check, where all others are the same on all devices."""
    arrays = data(name, n=10)

    def call(factor):
        setting = Setting(unit=factor if own == "unit" else 1.0, number=lambda value: value)
        mine = {key: value * factor if key == own else value for key, value in arrays.items()}
        return jax.tree.leaves(TABLE[name].call(setting, **mine))

    def each(factors):
        return [leaf[None] for leaf in call(factors[0])]

    factors = jnp.array([1.0, 1.5])
    mapped = jax.shard_map(each, mesh=mesh(2), in_specs=P("i"), out_specs=P("i"))
    want = [jax.jit(call)(factor) for factor in factors]
    for place, leaf in enumerate(jax.jit(mapped)(factors)):
        alone = np.stack([one[place] for one in want])
        size = np.abs(alone)[np.isfinite(alone)].max(initial=0)
        np.testing.assert_allclose(leaf, alone, rtol=1e-4, atol=1e-5 * size)


@pytest.mark.parametrize("name", SPREAD + ALONE)
def test_arrays_sharded_over_explicit_axes_are_taken_whole(name):
    one = mesh(2, AxisType.Explicit)
    rows = NamedSharding(one, P("i"))
    with jax.set_mesh(one):
        arrays = {
            key: jax.device_put(value, rows) if len(value) % 2 == 0 else jnp.asarray(value)
            for key, value in data(name).items()
        }
        jax.eval_shape(function(name), arrays)


SHARDED = ["svgd.svgd_direction", "median.median_squared_distance", "mmd.mmd_v_statistic"]
SHARDED += ["ksd.ksd_v_statistic", "score.stein_score", "objectives.kl", "kale.donsker_varadhan"]


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("how", ["in one tile", "in tiles"])
@pytest.mark.parametrize("name", SHARDED)
def test_jit_over_sharded_arrays_is_right_without_an_axis_name(name, how, request):
    if how == "in tiles":
        request.getfixturevalue("tiled")
    arrays = data(name)
    rows = NamedSharding(mesh(2), P("i"))
    run = jax.jit(function(name))
    got, want = run(jax.device_put(arrays, rows)), run(arrays)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * np.abs(b).max())


def _run(*arguments):
    """This file as a script with four devices."""
    flags = os.environ.get("XLA_FLAGS", "") + (
        " --xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    )
    root = pathlib.Path(__file__).parent
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": f"{root}:{root.parent}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


QUICK = ["kale.donsker_varadhan", "kale.optimal_log_normalizer", "adversarial.kl_estimate"]
RINGED = ["mmd.mmd_v_statistic", "mmd.test_power", "ksd.ksd_u_statistic", "svgd.step"]
RINGED += ["pairwise.kernel_and_gradient_sum", "kernels.median_mixture"]
RINGED += ["score_peers.kde_score", "score_peers.kde_score_at", "noise.noisy_logits_and_gradient"]
RINGED += ["drift.drift", "steingan.nearest_direction"]
RATIOS = ["ratio.ulsif", "ratio.lsif", "ratio.kliep", "ratio.logistic"]


@pytest.mark.thorough(quick=len(QUICK))
@pytest.mark.parametrize("name", [*QUICK, *(one for one in SPREAD if one not in QUICK)])
def test_two_devices_give_the_values_and_gradients_of_one(name, capsys):
    """Under pmap, and under shard_map with types of what varies and without."""
    _compare(name, 2)
    assert capsys.readouterr().out == ""


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("name", ["kale.donsker_varadhan", "mmd.test_power"])
def test_statistics_have_derivatives_of_both_modes_and_of_second_order(name, check):
    def derivatives(arrays, axis_name=None):
        def value(arrays):
            return TABLE[name].call(Setting(axis_name=axis_name), **arrays)

        def steepness(arrays):
            return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(slope(arrays)))

        slope = jax.grad(value)
        _, forward = jax.jvp(value, (arrays,), (jax.tree.map(jnp.cos, arrays),))
        two = jax.tree.map(lambda a: jnp.stack([a, 2 * a], axis=1), arrays)
        return forward[None], (jax.grad(steepness)(arrays), jax.vmap(slope, 1, 1)(two))

    arrays = jax.tree.map(jnp.asarray, data(name))
    over = {"mesh": mesh(2), "in_specs": P("i"), "out_specs": (P(), P("i")), "check_vma": check}
    mapped = jax.shard_map(lambda arrays: derivatives(arrays, "i"), **over)
    got, want = jax.jit(mapped)(arrays), jax.jit(derivatives)(arrays)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


@pytest.mark.thorough
@pytest.mark.parametrize("name", RINGED)
def test_four_devices_give_them_by_a_ring(name):
    _run("4", name)


@pytest.mark.thorough
def test_four_devices_fit_ratios_as_one():
    _run("4", *RATIOS)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4])
def test_devices_give_the_values_and_gradients_of_one_everywhere(count):
    _run(str(count), *SPREAD)


def _spread_out(name, count):
    """The same by pmap and by both kinds of shard_map, as arrays of the whole."""
    arrays = data(name)
    for check in (True, False):
        mapped = shard_map(name, count, check_vma=check)
        yield f"shard_map, check_vma={check}", jax.jit(mapped)(arrays)
    if replicated(name):
        shares = jax.tree.map(lambda a: np.stack([a] * count), arrays)
    else:
        shares = jax.tree.map(lambda a: a.reshape(count, -1, *a.shape[1:]), arrays)
    mapped = jax.pmap(function(name, "i"), axis_name="i", devices=jax.devices()[:count])
    outputs, gradients = mapped(shares)
    spread = TABLE[name].spread
    leaves = jax.tree.leaves(outputs)
    spread = [spread] * len(leaves) if isinstance(spread, str) else spread
    leaves = [
        leaf[0] if where == "same" else leaf.reshape(-1, *leaf.shape[2:])
        for where, leaf in zip(spread, leaves, strict=True)
    ]
    joined = jax.tree.map(lambda g: g.reshape(-1, *g.shape[2:]), gradients)
    yield "pmap", (leaves, joined)


def _compare(name, count):
    want_values, want_gradients = jax.jit(function(name))(data(name))
    for way, (values, gradients) in _spread_out(name, count):
        for kind, got, want in (
            ("value", values, want_values),
            ("gradient", gradients, want_gradients),
        ):
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                a, b = np.asarray(a), np.asarray(b)
                if not np.allclose(a, b, rtol=2e-4, atol=2e-5 * np.abs(b).max()):
                    print(name, way, kind, np.abs(a - b).max(), np.abs(b).max())


if __name__ == "__main__":
    _tiles.DENSE_PAIRS, _tiles.TILE_ROWS, _tiles.TILE_COLS = 0, 4, 4
    for one in sys.argv[2:]:
        _compare(one, int(sys.argv[1]))
