"""What spectrum writes: a table a run, results, and two panels a run."""

import json

import numpy as np
import pytest

from experiments.reports import spectra
from experiments.run.workdirs import Workdir
from experiments.training.stein_grams import Spectrum
from tests.experiments.run.toy_run import Config


@pytest.fixture
def found():
    """Two batches of three samples at two steps; the last eigenvalue is lost in rounding."""
    one = Spectrum(
        4.0,
        np.array([[12.0, 1.0, 1e-9], [36.0, 4.0, -1e-9]]),
        {"largest eigenvalue": np.array([12.0, 36.0]), "rms of kl": np.array([0.5, 0.25])},
    )
    figures = {name: 2 * values for name, values in one.figures.items()}
    return {"a": {0: one, 600: Spectrum(4.0, 2 * one.eigenvalues, figures)}}


def test_a_cell_is_median_least_and_largest(found):
    assert spectra.rows(found["a"]) == {
        "largest eigenvalue": {"step 0": "24 (12 to 36)", "step 600": "48 (24 to 72)"},
        "rms of kl": {"step 0": "0.375 (0.25 to 0.5)", "step 600": "0.75 (0.5 to 1)"},
    }


def test_a_run_has_a_panel_of_eigenvalues_and_one_of_what_is_kept(found):
    ((values, kept),) = spectra.panels(found)
    assert (values.title, kept.title) == ("a: eigenvalues of K", "a: lambda / (lambda + ridge)")
    assert values.references == {"ridge 4": 4.0}
    assert (values.xscale, values.yscale, kept.yscale) == ("log", "log", "linear")
    assert list(values.curves) == list(kept.curves) == ["step 0", "step 600"]
    ranks, drawn = values.curves["step 0"]
    np.testing.assert_array_equal(ranks, [1, 2, 3])
    np.testing.assert_array_equal(drawn[:, :2], [[12, 1], [36, 4]])
    np.testing.assert_allclose(drawn[:, 2], [12 * 2.0**-23, 36 * 2.0**-23])
    _, shares = kept.curves["step 0"]
    np.testing.assert_allclose(shares, [[12 / 16, 1 / 5, 0], [36 / 40, 1 / 2, 0]], atol=1e-8)


def test_table_results_and_picture_are_left(found, tmp_path, capsys):
    with Workdir(tmp_path, Config()) as folder:
        spectra.write(folder, {"a": "a is runs/x: kl on digits"}, found)
    table = (tmp_path / "table.md").read_text()
    assert table.startswith("a is runs/x: kl on digits, ridge 4\n\n| ")
    assert "| 24 (12 to 36)" in table
    assert table.strip() in capsys.readouterr().out
    step = json.loads((tmp_path / "results.json").read_text())["a"]["steps"]["600"]
    assert step["ridge"] == 4
    assert step["largest eigenvalue"] == {"median": 48, "least": 24, "largest": 72}
    np.testing.assert_allclose(step["eigenvalues"], [48, 5, 0], atol=1e-8)
    assert (tmp_path / "spectrum.png").read_bytes().startswith(b"\x89PNG")
