"""What svgd_posterior writes: table, results, and panels of the records beside the chain."""

import json

import numpy as np
import pytest

from experiments.reports import particles
from experiments.run.workdirs import Workdir
from experiments.targets.long_chains import Chains
from tests.experiments.run.toy_run import Config

CHAINS = Chains(np.zeros((2, 3, 4)), 0.8125, 2, 1.25, 51.5, 0.125)
ROWS = {
    "svgd rule, 20": {"ksd": 2.5, "ms, blackjax": "not installed"},
    "HMC, 6 draws": {"test_log_likelihood": -0.4},
}
DRAWS = {20: 0.75, 50: 0.5}


def history(scale):
    """Returns records at steps 0, 10 and 20."""
    return [
        {
            "step": step,
            "ksd": scale / (1 + step),
            "variance_ratio": scale + step,
            "test_log_likelihood": -scale - step,
            "test_accuracy": 0.5,
        }
        for step in (0, 10, 20)
    ]


HISTORIES = {
    ("svgd", 20): history(2.0),
    ("svgd", 50): history(3.0),
    ("median", 20): history(4.0),
}


@pytest.fixture
def written(tmp_path, figures, capsys):
    """The folder of what was written, the picture's panels, and what was printed."""
    with Workdir(tmp_path, Config()) as folder:
        particles.write(folder, ROWS, CHAINS, HISTORIES, DRAWS)
    (figure,) = figures
    return tmp_path, figure.axes, capsys.readouterr().out


def test_table_and_results_have_the_rows_and_whether_to_trust_the_chain(written):
    folder, _, printed = written
    results = json.loads((folder / "results.json").read_text())
    assert results["svgd"] == ROWS
    figures = {name: value for name, value in CHAINS._asdict().items() if name != "draws"}
    assert results["chain"] == figures
    table = (folder / "table.md").read_text()
    assert "| svgd rule, 20 | 2.5 | not installed | -" in table
    trust = "HMC: acceptance 0.8125, num_divergences 2, r_hat 1.25, effective_draws 51.5, step_size"
    assert trust in table
    assert table.replace("\n\n", "\n") in printed
    assert f"written to {folder}/results.json, table.md and curves.png" in printed
    assert (folder / "curves.png").read_bytes() == b"a picture"


def test_every_rule_has_three_panels_of_its_records(written):
    _, panels, _ = written
    quantities = {
        "ksd": ("KSD (dashed: as many draws of HMC)", "log"),
        "variance_ratio": ("variance / that of HMC", "log"),
        "test_log_likelihood": ("test log-lik.", "linear"),
    }
    expected = [(rule, name) for rule in ("svgd", "median") for name in quantities]
    for axes, (rule, name) in zip(panels, expected, strict=True):
        title, scale = quantities[name]
        assert axes.get_title() == f"{rule} rule: {title}"
        assert (axes.get_xlabel(), axes.get_yscale()) == ("step", scale)
        lines = {line.get_label(): line for line in axes.lines}
        for n in (n for of, n in HISTORIES if of == rule):
            records = [[record["step"], record[name]] for record in HISTORIES[rule, n]]
            np.testing.assert_array_equal(lines[f"{n} particles"].get_xydata(), records)


def test_the_chain_is_in_every_panel(written):
    _, panels, _ = written
    for axes in panels:
        across = [line for line in axes.lines if len(set(line.get_ydata())) == 1]
        levels = [line.get_ydata()[0] for line in across]
        if "KSD" in axes.get_title():
            assert levels == list(DRAWS.values())
            of_20 = next(line for line in axes.lines if line.get_label() == "20 particles")
            assert across[0].get_color() == of_20.get_color()
        else:
            assert levels == [-0.4 if "log-lik" in axes.get_title() else 1.0]
            assert across[0].get_label() == "HMC"


def test_a_table_without_the_chain_is_refused(tmp_path, figures):
    with Workdir(tmp_path, Config()) as folder, pytest.raises(ValueError, match="not enough val"):
        particles.write(folder, {"svgd rule, 20": ROWS["svgd rule, 20"]}, CHAINS, HISTORIES, DRAWS)
