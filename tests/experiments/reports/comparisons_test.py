"""What runs have in common, and which figures of theirs can be compared."""

import json

import numpy as np
import pytest

from experiments.reports import comparisons
from experiments.run.errors import UsageError

METRICS = ("test_mmd", "label_entropy", "inception_score")


def history(steps, *names, start=0.0):
    """Returns the records of a run that is evaluated at some steps, with scalars of its own."""
    records = [{"step": step, "energy_data": 7.0} for step in range(1, max(steps) + 1)]
    for step in steps:
        records[step - 1] |= {name: start + step for name in ("test_mmd", *names)}
    return records


def gathered(*runs, ms_per_step=(1.0, 1.0), num_steps=8):
    histories = {name: list(of_name) for name, of_name in zip("ab", runs, strict=False)}
    times = dict(zip("ab", ms_per_step, strict=True))
    return comparisons.gathered(histories, METRICS, times, num_steps)


def test_only_metrics_are_compared():
    curves, warnings = gathered([history((4, 8))], [[{"step": 4, "test_mmd": 1.0, "mmd": 3.0}]])
    assert [list(one.metrics) for one in curves.values()] == 2 * [["test_mmd"]]
    assert list(curves["a"].steps) == [4]
    assert warnings == ["evaluations at step 8 are left out: not every run has them"]


def test_what_not_all_runs_have_is_left_out_with_a_warning():
    longer, odd = history((4, 8, 12), "label_entropy"), history((4, 5, 8), "inception_score")
    curves, warnings = gathered([history((4, 8))], [longer, odd])
    assert [list(one.steps) for one in curves.values()] == 2 * [[4, 8]]
    np.testing.assert_array_equal(curves["b"].metrics["test_mmd"], [[4, 8], [4, 8]])
    assert list(curves["b"].metrics) == ["test_mmd"]
    assert warnings == [
        "evaluations at step 5, 12 are left out: not every run has them",
        "label_entropy, inception_score is left out: not every evaluation has it",
    ]


def test_runs_without_a_step_in_common_are_refused():
    with pytest.raises(UsageError, match=r"^workdir: got runs .* no step in common up to 8; expec"):
        gathered([history((3,))], [history((4,))])
    with pytest.raises(UsageError, match="no step in common"):
        gathered([history((12,))], [history((12,))])


def test_the_spread_is_that_of_a_sample_and_none_of_one_seed():
    runs = [history((4, 8), start=start) for start in (0.0, 1.0, 2.0)]
    curves, _ = gathered(runs, runs[:2])
    rows = comparisons.rows(curves)
    assert list(rows) == ["a, step 8", "b, step 8", "a, 0.008 s", "b, 0.008 s"]
    assert rows["a, step 8"] == {"test_mmd": "9 ± 1", "ms per step": "1.0"}
    assert rows["b, step 8"]["test_mmd"] == "8.5 ± 0.71"
    curves, _ = gathered(runs[:1], runs[:1])
    assert comparisons.rows(curves)["a, step 8"]["test_mmd"] == "8"


def test_equal_time_is_that_of_the_fastest_objective():
    runs = [history((4, 8))]
    rows = comparisons.rows(gathered(runs, runs, ms_per_step=(3000.0, 4000.0))[0])
    assert rows["a, 24 s"]["test_mmd"] == "8"
    assert rows["b, 24 s"]["test_mmd"] == "6"


def test_an_objective_that_is_not_evaluated_by_then_has_no_figures():
    runs = [history((4, 8))]
    curves, _ = gathered(runs, runs, ms_per_step=(3000.0, 9000.0))
    assert comparisons.rows(curves)["b, 24 s"] == {}
    assert np.isnan(curves["b"].at_time(24)["test_mmd"]).all()
    times = {"a": 3.0, "b": 9.0}
    (warning,) = comparisons.too_slow(times, 8, 4)
    assert warning.startswith("b: at step 3 of 8 when the fastest objective is done, before its ")
    assert comparisons.too_slow(times, 8, 2) == []


@pytest.mark.parametrize("ms", [0.1, 0.3, 7.7, 1 / 3])
def test_the_end_of_the_fastest_is_in_its_own_reach(ms):
    curves = comparisons.Curves(np.array([7, 2100]), {"m": np.array([[1.0, 2.0]])}, ms)
    assert curves.covers(comparisons.equal_time({"a": 2100}, {"a": ms}))
    assert not curves.covers(2.2 * ms)


def test_curves_come_back_from_their_json():
    metrics = {"test_mmd": np.array([[0.1, np.nan]]), "label_entropy": np.array([[1.5, 2.0]])}
    curves = {"kl": comparisons.Curves(np.array([4, 8]), metrics, 3.5)}
    text = comparisons.as_json(curves, {"label_entropy": 2.3})
    found = json.loads(text)
    assert found["reference"] == {"label_entropy": 2.3}
    assert "NaN" not in text.decode()
    (one,) = comparisons.from_json(found).values()
    assert one.ms_per_step == 3.5
    np.testing.assert_array_equal(one.steps, [4, 8])
    for name, values in metrics.items():
        np.testing.assert_array_equal(one.metrics[name], values)
