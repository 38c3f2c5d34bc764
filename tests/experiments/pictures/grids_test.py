"""Panels over settings: lines, bars, heat maps, axes."""

import math

import numpy as np
import pytest

from experiments.pictures import grids

LABELS = {"test_mmd": "test_mmd (MMD^2, no unit)", "label_entropy": "label_entropy (nats)"}


def points(**settings):
    names = list(settings)
    grid = np.stack(np.meshgrid(*(np.arange(len(v)) for v in settings.values()), indexing="ij"), -1)
    found = []
    for index in grid.reshape(-1, len(names)):
        values = {name: settings[name][i] for name, i in zip(names, index, strict=True)}
        figure = (1.0 + float(sum(index)), 0.25)
        found.append((values, {"test_mmd": figure, "label_entropy": figure}))
    return found


def test_two_settings_have_a_panel_each_and_a_heat_map(figures):
    grids.grid(points(ridge=(40.0, 0.4), learning_rate=(1e-3, 1e-4, 1e-5)), LABELS, "kl on digits")
    (figure,) = figures
    first, second, heat = figure.axes[:3]
    assert figure.get_suptitle() == "kl on digits"
    assert first.get_xlabel() == "ridge"
    assert first.get_ylabel() == LABELS["test_mmd"]
    assert (first.get_xscale(), second.get_xscale()) == ("log", "log")
    names = [text.get_text() for text in first.get_legend().get_texts()]
    assert names == [f"learning_rate {rate}" for rate in ("0.001", "0.0001", "1e-05")]
    np.testing.assert_allclose(first.lines[0].get_xdata(), [0.4, 40])
    np.testing.assert_allclose(first.lines[0].get_ydata(), [2, 1])
    np.testing.assert_allclose(
        heat.images[0].get_array(), [[4, 3, 2], [3, 2, 1]]
    )  # ridges up, rates to the right, both rising
    assert [text.get_text() for text in heat.get_yticklabels()] == ["0.4", "40"]
    assert figure.axes[-1].get_ylabel() == LABELS["label_entropy"]  # of a colour bar


def test_words_are_ticks_and_one_setting_has_no_map(figures):
    grids.grid(points(objective=("kl", "mmd")), LABELS, "")
    panel, _ = figures[0].axes
    assert [text.get_text() for text in panel.get_xticklabels()] == ["kl", "mmd"]


@pytest.mark.parametrize("error", [math.nan, 0.5])
def test_a_single_seed_has_no_bars(figures, error):
    found = [({"seed": seed}, {"test_mmd": (1.0, error)}) for seed in (0, 1)]
    grids.grid(found, {"test_mmd": "test_mmd"}, "")
    (panel,) = figures[0].axes
    assert bool(panel.containers[0].has_yerr) is not math.isnan(error)


def test_many_combinations_are_a_band(figures):
    grids.grid(points(ridge=(1.0, 2.0), width=(8, 16), seed=tuple(range(9))), LABELS, "")
    panel = figures[0].axes[0]
    assert [text.get_text() for text in panel.get_legend().get_texts()] == [
        "mean of 18",
        "least to largest",
    ]
    np.testing.assert_allclose(panel.lines[0].get_ydata(), [5.5, 6.5])
