"""The table and the picture of experiments.spectrum."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.pictures import charts
from experiments.pictures.charts import CurvePanel
from experiments.run.tables import format_table
from experiments.run.workdirs import Workdir
from experiments.training.stein_grams import Spectrum

_LEGEND = """\
K between the samples of a batch, directions not normalised: median over the batches, in brackets
least and largest. Effective dimension: sum of lambda / (lambda + ridge). Damping of the first mode:
(first lambda + ridge) / (median lambda + ridge). Rms: root of the mean squared norm. Common part:
share of the squared norm that all samples have alike; its damping: how much smaller it is beside
the rest in kl than in mmd, as a ratio of norms."""
_ROUNDING = float(np.finfo(np.float32).eps)  # of K, relative to its largest eigenvalue

Spectra = Mapping[str, Mapping[int, Spectrum]]


def write(folder: Workdir, titles: Mapping[str, str], found: Spectra) -> None:
    """Prints the tables, and writes them, results.json and the picture.

    Args:
      folder: where to.
      titles: what each run is, by name.
      found: spectra by name of the run and step.
    """
    titles = {
        name: f"{title}, ridge {next(iter(found[name].values())).ridge:.4g}"
        for name, title in titles.items()
    }
    parts = [f"{title}\n\n{format_table(rows(found[name]))}" for name, title in titles.items()]
    text = "\n\n".join([*parts, _LEGEND])
    results = {
        name: {"title": titles[name], "steps": {step: _result(one) for step, one in own.items()}}
        for name, own in found.items()
    }
    folder.write_bytes("table.md", f"{text}\n".encode())
    folder.write_bytes("results.json", f"{json.dumps(results, indent=2)}\n".encode())
    folder.write_bytes("spectrum.png", charts.curve_panels(panels(found)))
    print(f"{text}\nwritten to {folder.path}: table.md, results.json, spectrum.png")


def rows(by_step: Mapping[int, Spectrum]) -> dict[str, dict[str, str]]:
    """Returns the table of a run, a row a figure and a column a step."""
    names = next(iter(by_step.values())).figures
    return {
        name: {f"step {step}": _cell(one.figures[name]) for step, one in by_step.items()}
        for name in names
    }


def panels(found: Spectra) -> list[list[CurvePanel]]:
    """Returns the panels of each run: its eigenvalues, and the share of each that is kept."""
    return [_row(name, by_step) for name, by_step in found.items()]


def _row(name: str, by_step: Mapping[int, Spectrum]) -> list[CurvePanel]:
    ridge = next(iter(by_step.values())).ridge
    above, kept = dict[str, Any](), dict[str, Any]()
    for step, one in by_step.items():
        ranks = np.arange(1, one.eigenvalues.shape[1] + 1)
        floor = _ROUNDING * one.eigenvalues[:, :1]
        above[f"step {step}"] = ranks, np.maximum(one.eigenvalues, floor)
        kept[f"step {step}"] = ranks, one.kept
    return [
        CurvePanel(
            f"{name}: eigenvalues of K", "rank", above, {f"ridge {ridge:.3g}": ridge}, "log", "log"
        ),
        CurvePanel(f"{name}: lambda / (lambda + ridge)", "rank", kept, {}, "log"),
    ]


def _cell(values: np.ndarray) -> str:
    middle, least, most = np.median(values), values.min(), values.max()
    return f"{middle:.3g} ({least:.3g} to {most:.3g})"


def _result(one: Spectrum) -> dict[str, Any]:
    figures = {
        name: {"median": float(np.median(v)), "least": float(v.min()), "largest": float(v.max())}
        for name, v in one.figures.items()
    }
    middle = np.median(one.eigenvalues, axis=0).tolist()
    return {"ridge": one.ridge, **figures, "eigenvalues": middle}
