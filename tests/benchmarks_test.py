"""The harness of the benchmarks, at tiny sizes and without any peer installed."""

import dataclasses
import functools
import importlib.util
import itertools
import json
import math
import time

import jax
import numpy as np
import oracles
import pytest

from benchmarks import __main__ as binary
from benchmarks import compete, floors, fresh, problems, report, rows, timing
from benchmarks.floors import Rates
from benchmarks.rows import Contestant, Goal
from kernelgrad import drift

GENEROUS = fresh.Limits(gib=8, seconds=60)
N, D = 12, 3


@pytest.fixture(autouse=True)
def strict_promotion():
    """Dense JAX is written as users write it, with promotion."""


def test_rounds_begin_with_another_contestant_each_time():
    order = []

    def calling(name):
        return lambda: (order.append(name), time.sleep(0.03))

    seconds, _ = timing.interleaved(
        {name: calling(name) for name in "abc"}, num_rounds=3, budget_seconds=60
    )
    assert "".join(order[6:]) == "abc" + "bca" + "cab"
    for values in seconds.values():
        assert values.shape == (3,)
        assert np.all((values >= 0.03) & (values < 0.2))


def test_a_slow_contestant_sits_out_and_a_fast_one_repeats():
    calls = {"slow": 0, "fast": 0}

    def calling(name, seconds):
        def call():
            calls[name] += 1
            time.sleep(seconds)
            return name

        return call

    seconds, outputs = timing.interleaved(
        {"slow": calling("slow", 0.1), "fast": calling("fast", 0.001)},
        num_rounds=4,
        budget_seconds=0.25,
    )
    assert calls["slow"] == 2 + 2
    np.testing.assert_array_equal(np.isnan(seconds["slow"]), [False, False, True, True])
    assert calls["fast"] > 8  # without repeats 5; more on quiet cores
    assert np.all(seconds["fast"] < 0.02)
    assert outputs == {"slow": "slow", "fast": "fast"}


def test_floors_are_the_formulas():
    rates = Rates(flops=2e11, exp=4e9, rsqrt=5e9)
    n, d = 5000, 50
    assert floors.svgd(n, d, rates) == pytest.approx(25e-3 + 6.25e-3)
    assert floors.ksd(n, d, rates) == pytest.approx(18.75e-3 + 2.5e-3)
    assert floors.mmd(n, d, rates) == pytest.approx(50e-3 + 40e-3)
    assert floors.stein(n, d, rates) == pytest.approx(0.125e12 / 3 / 2e11 + 37.5e-3)


def test_the_meter_measures_what_this_machine_can_do():
    start = time.perf_counter()
    rates = floors.Meter(product_size=256)()
    elapsed = time.perf_counter() - start
    assert all(1e7 < rate < 1e16 for rate in rates)
    assert 256 * 2**18 / rates.exp < elapsed


def _svgd_oracle(problem):
    x, score, lengthscale = problem

    def term(a, b, s):
        value = oracles.kernel("rbf_mixture", a, b, lengthscale)
        return value * s + oracles.kernel_gradient("rbf_mixture", a, b, lengthscale)

    return np.mean([[term(a, b, s) for b, s in zip(x, score, strict=True)] for a in x], axis=1)


def _stein_gram_by_autodiff(problem):
    x, score, lengthscale = problem

    def k(a, b):
        return 1 / jax.numpy.sqrt(1 + jax.numpy.sum((a - b) ** 2) / lengthscale**2)

    def stein(a, b, s, t):
        trace = jax.numpy.trace(jax.jacfwd(jax.grad(k, 0), 1)(a, b))
        return trace + s @ jax.grad(k, 1)(a, b) + t @ jax.grad(k, 0)(a, b) + s @ t * k(a, b)

    against_all = jax.vmap(stein, (None, 0, None, 0))
    return jax.jit(jax.vmap(against_all, (0, None, 0, None)))(x, x, score, score)


def _mmd_gradient(problem):
    x, y, lengthscales = problem

    def pull(points, at):
        each = [oracles.kernel_gradient("imq_mixture", a, at, lengthscales) for a in points]
        return 2 / len(x) * np.mean(each, axis=0)

    return None, np.array([pull(x, at) - pull(y, at) for at in x])


def _refitted(problem):
    """Lengthscale, ridge and ratio at q, by fits without each sample."""
    p, q = (np.asarray(points, np.float64) for points in problem[:2])
    best = math.inf
    for lengthscale, ridge in itertools.product(*problems.ratio_grids(problem)):
        phi_p, phi_q = (oracles.gram("rbf_mixture", x, p, lengthscale) for x in (p, q))

        def ratio(at, phi_p, phi_q, ridge=ridge):
            moment = phi_q.T @ phi_q / len(phi_q) + ridge * np.eye(len(p))
            return np.maximum(at @ np.linalg.solve(moment, phi_p.mean(axis=0)), 0)

        at_p = [ratio(phi, np.delete(phi_p, i, 0), phi_q) for i, phi in enumerate(phi_p)]
        at_q = [ratio(phi, phi_p, np.delete(phi_q, i, 0)) for i, phi in enumerate(phi_q)]
        loss = np.mean(np.square(at_q)) / 2 - np.mean(at_p)
        if loss < best:
            best, chosen = loss, (lengthscale, ridge, ratio(phi_q, phi_p, phi_q))
    return chosen


def _sliced(problem):
    x, y = (np.asarray(points, np.float64) for points in problem[:2])
    lines = np.asarray(problems.directions(x.shape[1]), np.float64)
    each = [oracles.energy_distance(x @ line[:, None], y @ line[:, None]) for line in lines]
    gradients = [slope * line for (_, slope), line in zip(each, lines, strict=True)]
    return np.mean([value for value, _ in each]), np.mean(gradients, axis=0)


DIGITS = tuple(name for name in rows.TASKS if name.startswith("digits"))
TRUTHS = {
    "svgd": _svgd_oracle,
    "median": lambda p: oracles.median_squared_distance(p.x),
    "mmd": lambda p: (oracles.mmd_v("imq_mixture", p.x, p.y, p.lengthscales), None),
    "ksd": lambda p: np.mean(_stein_gram_by_autodiff(p)),
    "stein": lambda p: oracles.stein_score(
        "imq_mixture", p.x, p.lengthscale, problems.ridge(len(p.x))
    ),
    **dict.fromkeys(DIGITS, _mmd_gradient),
    "two_sample_test": lambda p: (
        oracles.mmd_v("rbf_mixture", p.x, p.y, problems.rbf(p)),
        None,
    ),
    "stein_test": lambda p: (np.mean(_stein_gram_by_autodiff(p)), None),
    "kid": lambda p: oracles.kernel_inception_distance(p.x, p.y),
    "precision_recall": lambda p: oracles.precision_recall(p.x, p.y, problems.NEIGHBOR),
    "ulsif": _refitted,
    "drift": lambda p: oracles.drifting_field(
        *(np.asarray(points, np.float64) for points in p[:2]), drift.TEMPERATURES
    ),
    "sliced_energy": _sliced,
}


@pytest.mark.parametrize("task", TRUTHS)
def test_errors_are_measured_against_the_truth(task):
    row = rows.find(f"{task}-{N}x{D}")
    problem = row.problem()
    truth = TRUTHS[task](problem)
    assert row.task.error(problem, truth) < 1e-6
    off = jax.tree.map(lambda value: 1.01 * value, truth)
    assert row.task.error(problem, off) == pytest.approx(0.01, rel=1e-3)


def test_the_truth_of_a_large_problem_is_summed_block_by_block(monkeypatch):
    for task in ("ksd", "mmd", "two_sample_test"):
        row = rows.find(f"{task}-{N}x{D}")
        problem, truth = row.problem(), TRUTHS[task](row.problem())
        monkeypatch.setattr(problems, "_BLOCK", 5)
        assert row.task.error(problem, truth) < 1e-6


@functools.cache
def _result_of(task, index):
    return rows.TASKS[task].contestants[index].build(rows.TASKS[task].problem(N, D))()


@pytest.mark.thorough(quick=5)
@pytest.mark.parametrize(
    ("task", "index"),
    [
        pytest.param(name, index, id=f"{name} {contestant.name} {contestant.variant}".strip())
        for name, task in rows.TASKS.items()
        for index, contestant in enumerate(task.contestants)
        if task.error and not contestant.needs
        if name not in DIGITS or contestant.name == rows.OURS  # where others have none
    ],
)
def test_contestants_that_need_no_peer_are_right(task, index):
    row = rows.find(f"{task}-{N}x{D}")
    assert row.task.error(row.problem(), _result_of(task, index)) < 2e-5


@pytest.mark.thorough
def test_mmd_gradients_agree():
    contestants = rows.TASKS["mmd"].contestants
    gradients = [_result_of("mmd", i)[1] for i, c in enumerate(contestants) if not c.needs]
    for gradient in gradients[1:]:
        assert problems.relative_difference(gradient, gradients[0]) < 2e-5


def test_svgd_steps_agree():
    contestants = rows.TASKS["svgd_step"].contestants
    mine, dense = (_result_of("svgd_step", i) for i, c in enumerate(contestants) if not c.needs)
    assert problems.relative_difference(dense, mine) < 2e-5


def test_every_listed_row_exists_and_its_goals_name_contestants():
    chosen = rows.select("")
    assert [row.name for row in chosen] == list(rows.ROWS)
    for row in chosen:
        names = [contestant.name for contestant in row.task.contestants]
        assert names[0] == rows.OURS
        assert {goal.peer for goal in row.goals} <= {"", *names}


def test_rows_are_selected_by_task_by_name_and_by_size():
    assert [row.name for row in rows.select("svgd_step")] == [
        "svgd_step-1000x50",
        "svgd_step-5000x50",
    ]
    assert [row.name for row in rows.select("ksd-7x2,import")] == ["ksd-7x2", "import"]
    assert rows.find("ksd-7x2").goals == ()


@pytest.mark.parametrize("name", ["svdg-10x2", "svgd-10", "import-3x3", "svgd-0x2"])
def test_an_unknown_row_is_one_line(monkeypatch, capsys, name):
    monkeypatch.setattr("sys.argv", ["benchmarks", f"--rows={name}"])
    with pytest.raises(SystemExit) as stop:
        binary.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"benchmarks: error: row: got {name!r}; expected")
    assert error.count("\n") == 1


def test_a_fresh_process_reports_its_peak_and_compiles_once():
    bare = fresh.bare(GENEROUS)
    assert bare.reason == ""
    assert bare.first_seconds > bare.seconds > 0
    assert bare.peak_mb is None or 50 < bare.peak_mb < 2000


def test_a_fresh_process_that_takes_too_much_is_stopped_with_the_reason():
    assert fresh.bare(fresh.Limits(gib=8, seconds=0.1)).reason == "time > 0.1 s"
    if fresh._status_mb("VmRSS") is not None:
        assert fresh.bare(fresh.Limits(gib=0.01, seconds=60)).reason == "memory > 0.01 GiB"


def test_a_peer_that_fails_says_why():
    row = rows.find("median-1x2")
    failed = fresh.outcome(row, row.task.contestants[0], GENEROUS)
    assert failed.reason.startswith("failed: ValueError: x: got 1 point")


@pytest.mark.slow
def test_a_row_runs_without_its_peers(monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    missing = {"blackjax", "numpyro"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find_spec(name)
    )
    row = dataclasses.replace(
        rows.find(f"svgd-{N}x{D}"), goals=(Goal("faster", 100, "blackjax"), Goal("error", 1e-5))
    )
    stages = []
    result = compete.run(
        row, floors.Meter(64), GENEROUS, 100.0, num_rounds=2, on_stage=stages.append
    )
    entries = {entry.name: entry for entry in result.entries}
    assert entries["blackjax"].reason == entries["numpyro"].reason == "not installed"
    assert entries[rows.DENSE].difference < 1e-5
    assert entries[rows.DENSE].ratios == pytest.approx(
        np.divide(entries[rows.DENSE].ms, entries[rows.OURS].ms)
    )
    assert len(result.floor_ratios) == len(result.floor_ms) == 2
    assert entries[rows.OURS].alone.recompilations == 0
    assert [v.text for v in result.verdicts] == [
        "100x blackjax: not installed",
        "error at most 1e-05: reached",
    ]
    assert stages[-2:] == ["round 2 of 2", "float64"]

    lines = report.table([result]).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        f"svgd-{N}x{D} {name}"
        for name in ("kernelgrad", "floor", "blackjax", "numpyro", "dense JAX")
    ]
    assert "not installed" in lines[4]
    written = json.dumps(report.to_json([result], {"jax": "0"}), allow_nan=False)
    assert json.loads(written)["rows"][0]["row"] == row.name
    assert report.bar_chart([result], "a title").startswith(b"\x89PNG")


def _result(**changes):
    ours = compete.Entry(
        rows.OURS,
        ms=(1.2, 1.3, 1.4),
        megabytes=168.0,
        alone=fresh.Outcome("", 20.0, 0.1, 1, 300.0),
    )
    peer = compete.Entry("peer", ms=(30.0, math.nan, 20.0), ratios=(25.0, math.nan, 15.0))
    slow = compete.Entry("slow", reason="time > 120 s")
    entries = (dataclasses.replace(ours, **changes), peer, slow)
    return compete.Result("r", "t", entries, (1.0,) * 3, (1.2, 1.3, 1.4), error=2e-6)


@pytest.mark.parametrize(
    ("goal", "text"),
    [
        (Goal("faster", 15, "peer"), "15x peer: reached"),
        (Goal("faster", 25, "peer"), "25x peer: missed by 25 %"),
        (Goal("faster", 2, "slow"), "2x slow: time > 120 s"),
        (Goal("slower", 0.04, "peer"), "at most 0.04x peer: missed by 25 %"),
        (Goal("floor", 1.3), "at most 1.3x floor: reached"),
        (Goal("floor", 1.25), "at most 1.25x floor: missed by 4 %"),
        (Goal("floor", 1.297), "at most 1.297x floor: missed by 0.2 %"),
        (Goal("milliseconds", 1.3), "at most 1.3 ms: reached"),
        (Goal("megabytes", 150), "at most 150 MB: missed by 12 %"),
        (Goal("error", 1e-6), "error at most 1e-06: missed by 100 %"),
        (Goal("first_seconds", 15), "first call at most 15 s: missed by 33 %"),
        (Goal("recompilations", 0), "compiles once: missed, 1"),
        (Goal("completes"), "completes: reached"),
    ],
)
def test_a_verdict_says_by_how_much(goal, text):
    assert compete.verdict(goal, _result()).text == text


def test_json_has_null_for_a_round_without_a_time():
    written = json.dumps(report.to_json([_result()], {}), allow_nan=False)
    assert json.loads(written)["rows"][0]["entries"][1]["ms"] == [30.0, None, 20.0]


def test_a_verdict_without_our_time_gives_the_reason():
    result = _result(ms=(), reason="memory > 8 GiB")
    assert compete.verdict(Goal("completes"), result).text == "completes: memory > 8 GiB"


def test_of_several_variants_the_fastest_that_ran_is_timed():
    variants = [Contestant("peer", lambda problem: None, variant=v) for v in ("a", "b", "c")]
    seconds = {"a": 2.0, "b": 1.0}
    alone = {
        c: fresh.Outcome(seconds=seconds[c.variant])
        if c.variant in seconds
        else fresh.Outcome("memory > 8 GiB")
        for c in variants
    }
    assert compete._fastest(alone)["peer"].variant == "b"


SHORT = ["svgd-1000x50", "svgd-5000x50", "median-5000x50", "mmd-100x784", "mmd-1000x50"]
SHORT += ["ksd-1000x50", "ksd-5000x50", "stein-1000x50"]
SHORT += [f"{name}-1000x50" for name in (*DIGITS, "drift")]
SHORT += ["two_sample_test-100x50", "stein_test-2000x50", "ulsif-1000x10", "sliced_energy-5000x50"]
LONG = ["svgd-5000x784", "svgd-20000x50", "svgd-20000x2", "mmd-5000x50", "mmd-5000x784"]
LONG += ["ksd-50000x50", "stein-8000x50", "two_sample_test-2000x50", "kid-5000x512"]
LONG += ["precision_recall-5000x512"]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", [*SHORT, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)]
)
def test_results_at_the_benchmarked_sizes_are_those_of_float64(name):
    row = rows.find(name)
    problem = row.problem()
    bound = {"svgd": 2e-5, "median": 1e-6, "mmd": 1e-6}
    bound["sliced_energy"] = 1e-4  # for rounding puts neighbours on a line into another order
    for contestant in row.task.contestants:
        if contestant.name == rows.OURS:
            error = row.task.error(problem, jax.device_get(contestant.build(problem)()))
            assert error < bound.get(name.split("-")[0], 1e-5), contestant.variant
