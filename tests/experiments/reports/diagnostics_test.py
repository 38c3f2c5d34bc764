"""What gan_diagnostics writes: its table, results and four figures of the discriminators."""

import json
import math

import numpy as np
import pytest
import scipy.stats

from experiments.judges.certificates import Certificate
from experiments.reports import diagnostics
from experiments.reports.diagnostics import Diagnosis
from experiments.run.workdirs import Workdir
from experiments.training.discriminators import Tail
from tests.experiments.run.toy_run import Config

PNG = ("jsd_and_accuracy.png", "gradient_norms.png", "gradient_tail.png", "certificate.png")
NAMES = (
    *("jsd", "jsd_fitted", "accuracy", "saturating_norm", "non_saturating_norm"),
    "non_saturating_variance",
)


def records(scale, variance):
    """Returns records at steps 0, 5 and 10 whose figures all differ, the largest amid."""
    return [
        {
            "step": step,
            **{name: scale * rise * (i + 1) for i, name in enumerate(NAMES)},
            "variance": variance,
        }
        for step, rise in ((0, 1.0), (5, 4.0), (10, 2.0))
    ]


def diagnosis(rng, scale):
    tail = Tail((0.0, 1.0), (0.5, 2.0), -1.0, -2.0, 0.0312, 0.25)
    values = np.append(rng.normal(size=30), [40.0])
    levels = np.array([1.0, 0.1, 0.01])
    certificate = Certificate(
        variances=levels,
        learned_jsd=scale * np.array([0.1, 0.2, 0.3]),
        learned=scale * np.array([5, 7, 6]),
        cloud_jsd=scale * np.array([0.3, 0.4, 0.5]),
        cloud=scale * np.array([12, 14, 10]),
        sharp=scale * np.array([9, 7, 8]),
        gaussian_jsd=scale * np.array([0.15, 0.2, 0.25]),
        distance=3.5,
        diameter=8.0,
    )
    return Diagnosis(
        {"no noise": records(scale, 0.0), "noise": records(2 * scale, 0.3)},
        {"one latent": (values, tail), "minibatches": (2 * values, tail)},
        certificate,
    )


@pytest.fixture
def found(rng):
    return {1: diagnosis(rng, 0.1), 25: diagnosis(rng, 0.3)}


def test_a_row_has_start_largest_and_end_and_the_least_certificate(found):
    table = diagnostics.rows(found, 2.25)
    assert list(table) == ["epoch 1", "epoch 25"]
    assert table["epoch 1"] == {
        "JSD": pytest.approx(0.2),
        "accuracy": pytest.approx(0.6),
        "saturating": "0.4, 1.6, 0.8",
        "with noise": "0.8, 3.2, 1.6",
        "non-saturating": "0.5, 2, 1",
        "its variance": "0.6, 2.4, 1.2",
        "KS, one latent": "0.031, 0.25",
        "KS, minibatches": "0.031, 0.25",
        "W1": 3.5,
        "W1 of real images": 2.25,
        "least certificate": pytest.approx(1.0),
        "at variance": 0.01,
        "sharper": pytest.approx(0.7),
        "diameter": 8.0,
    }


@pytest.fixture
def written(tmp_path, figures, found, capsys):
    """The folder of what was written, its figures by name, and what was printed."""
    with Workdir(tmp_path, Config()) as folder:
        diagnostics.write(folder, found, diagnostics.rows(found, 2.25))
    return tmp_path, dict(zip(PNG, figures, strict=True)), capsys.readouterr().out


def test_table_and_results_are_written_and_printed(written, found):
    folder, _, printed = written
    table, stored = ((folder / name).read_text() for name in ("table.md", "results.json"))
    assert "| epoch 1 " in table
    assert "KS: Kolmogorov-Smirnov" in table
    assert table in printed
    assert all((folder / name).read_bytes() == b"a picture" for name in PNG)
    stored = json.loads(stored)
    assert stored["rows"]["epoch 25"] == diagnostics.rows(found, 2.25)["epoch 25"]
    one = stored["diagnoses"]["25"]
    assert one["records"] == found[25].records
    assert one["tails"]["one latent"]["cauchy_distance"] == 0.0312
    assert one["certificate"]["variances"] == [1.0, 0.1, 0.01]


def lines(axes):
    """Returns what is drawn, by label; what has none is left out."""
    return {
        line.get_label(): line.get_xydata().tolist()
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


def course(one, trial, name):
    return [[record["step"], record[name]] for record in one.records[trial]]


def test_accuracies_and_norms_are_the_records_with_and_without_noise(written, found):
    _, figures, _ = written
    panels = {}
    for figure in (figures["jsd_and_accuracy.png"], figures["gradient_norms.png"]):
        panels |= {axes.get_title(): axes for axes in figure.axes}
    titles = {
        "JSD (nats)": ("jsd", "linear"),
        "accuracy": ("accuracy", "linear"),
        "|gradient|, saturating": ("saturating_norm", "log"),
        "|gradient|, non-saturating": ("non_saturating_norm", "log"),
        "variance of that gradient": ("non_saturating_variance", "log"),
    }
    assert list(panels) == [f"epoch {e}: {title}" for title in titles for e in found]
    for epoch, one in found.items():
        for title, (name, scale) in titles.items():
            axes = panels[f"epoch {epoch}: {title}"]
            assert axes.get_xlabel() == "iterations of the discriminator"
            assert axes.get_yscale() == scale
            drawn = lines(axes)
            assert drawn["no noise"] == course(one, "no noise", name)
            assert drawn["noise of variance 0.3"] == course(one, "noise", name)
    jsd = lines(panels["epoch 1: JSD (nats)"])
    assert jsd["no noise, training images"] == course(found[1], "no noise", "jsd_fitted")
    assert {y for _, y in jsd["log 2"]} == {math.log(2)}
    assert {y for _, y in lines(panels["epoch 1: accuracy"])["1"]} == {1.0}


def test_tails_are_beside_their_fits(written):
    _, figures, _ = written
    panels = figures["gradient_tail.png"].axes
    names = [f"epoch {e}, {title}" for title in ("one latent", "minibatches") for e in (1, 25)]
    assert [axes.get_title().split(";")[0] for axes in panels] == names
    assert panels[0].get_title().endswith("; 3.2% beyond")  # 1 of 31, at 40
    for axes in panels:
        assert axes.get_xlabel() == "coordinate of the non-saturating gradient, in its MADs"
        laws = {
            "Cauchy, KS 0.031": scipy.stats.cauchy(0, 1),
            "Gaussian, KS 0.25": scipy.stats.norm(0.5, 2),
        }
        drawn = lines(axes)
        assert set(drawn) == set(laws)
        for label, law in laws.items():
            x, y = np.transpose(drawn[label])
            assert (x[0], x[-1]) == (-15, 15)
            np.testing.assert_allclose(y, law.pdf(x))


def test_certificates_fall_over_the_noise_beside_the_distance_that_they_bound(written, found):
    _, figures, _ = written
    panels = figures["certificate.png"].axes
    quantities = ["bound on W1", "JSD under the noise (nats)"]
    titles = [f"epoch {epoch}: {quantity}" for quantity in quantities for epoch in found]
    assert [axes.get_title() for axes in panels] == titles
    assert [axes.get_yscale() for axes in panels] == 2 * ["log"] + 2 * ["linear"]
    assert {axes.get_xscale() for axes in panels} == {"log"}
    assert all(axes.get_xlabel().startswith("variance of the noise in a pixel") for axes in panels)
    c = found[25].certificate
    learned, clouds = "learned D, an estimate from below", "two clouds, exactly optimal D"

    def over(values):
        return [list(pair) for pair in zip(c.variances, values, strict=True)]

    bounds, divergences = lines(panels[1]), lines(panels[3])
    assert (bounds[learned], bounds[clouds]) == (over(c.learned), over(c.cloud))
    assert bounds["the same by total variation"] == over(c.sharp)
    assert {y for _, y in bounds["W1 of these clouds"]} == {3.5}
    assert {y for _, y in bounds["diameter of the cube"]} == {8.0}
    assert divergences[learned] == over(c.learned_jsd)
    assert divergences[clouds] == over(c.cloud_jsd)
    assert divergences["these clouds, Gaussian noise"] == over(c.gaussian_jsd)
    assert {y for _, y in divergences["log 2"]} == {math.log(2)}


def test_a_diagnosis_without_noise_beside_it_is_refused(found):
    found[1].records.pop("noise")
    with pytest.raises(KeyError, match="noise"):
        diagnostics.rows(found, 1.0)
