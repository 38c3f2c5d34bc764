"""The table of neural_sampler."""

from experiments.reports import sampling
from experiments.run.tables import Spread


def test_equal_time_is_that_of_the_fastest_rule():
    histories = {
        name: [{"step": s, "ksd2": a * s, "mmd2": 100.0 - s} for s in (0, 50, 100)]
        for name, a in (("quick", 1.0), ("slow", 2.0))
    }
    noise = {"ksd2": Spread(0.0, 1.0), "mmd2": Spread(0.5, 2.0)}
    summary = sampling.Summary(100, histories, {"quick": 20.0, "slow": 80.0}, noise)
    rows = sampling.table(summary, "exact")
    assert rows == {
        "quick, step 100": {"KSD^2": 100.0, "MMD^2": 0.0, "ms per step": 20.0},
        "slow, step 100": {"KSD^2": 200.0, "MMD^2": 0.0, "ms per step": 80.0},
        "quick, 2.0 s": {"KSD^2": 100.0, "MMD^2": 0.0},
        "slow, 2.0 s": {"KSD^2": 50.0, "MMD^2": 75.0},
        "fresh draws, exact": {"KSD^2": "0 ± 1", "MMD^2": "0.5 ± 2"},
    }
