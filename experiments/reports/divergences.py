"""The table and the pictures of experiments.divergences."""

import json
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.judges import known_laws
from experiments.pictures import charts
from experiments.pictures.charts import CurvePanel
from experiments.run import tables
from experiments.run.loop import Record
from experiments.run.tables import Spread, format_table
from experiments.run.workdirs import Workdir

_FIGURES = ("point_masses.png", "certificate.png", "rate.png", "manifolds.png")
_LEGEND = """\
W1 and the least bounds on it over the levels of noise, of clouds in the unit square; a bound above
the diameter says nothing. JSD: of the clouds under the largest noise, in nats."""
_TOLD_LEGEND = """\
Data on a manifold, told from the same moved a little, whose JSD is log 2 = 0.6931 nats: of the last
discriminators, at held-out data, and the norm of the saturating gradient in the shift at its start,
at its largest, and at its end."""
_NORM = "saturating_norm"

Told = dict[str, list[list[Record]]]  # records of each seed, by trial


class Course(NamedTuple):
    """Divergences of point masses over their distance; arrays of shape (t,).

    Attributes:
      distances: theta, which is W1.
      kale: over energies of bounded slope, in nats.
      noised_jsd: in nats.
    """

    distances: np.ndarray
    kale: np.ndarray
    noised_jsd: np.ndarray


class Bounds(NamedTuple):
    """Bounds on W1 of two clouds over the noise; arrays of shape (levels,).

    Attributes:
      variances: of the noise in each coordinate.
      jsd: of the noised clouds, in nats.
      paper: Theorem 3.3.
      sharp: by total variation.
      distance: W1.
    """

    variances: np.ndarray
    jsd: np.ndarray
    paper: np.ndarray
    sharp: np.ndarray
    distance: float


class Rate(NamedTuple):
    """Errors of KALE.

    Attributes:
      sizes: draws of each law; shape (s,).
      errors: root mean squares in nats, by seed; shape (seeds, s).
    """

    sizes: np.ndarray
    errors: np.ndarray

    def slope(self) -> str:
        """Returns the mean of the seeds' slopes, and its standard error."""
        slopes = [known_laws.rate(self.sizes, one) for one in self.errors]
        mean, deviation = tables.spread(slopes)
        return Spread(mean, deviation / math.sqrt(len(slopes))).text(".3f")


def write(
    folder: Workdir,
    course: Course,
    slopes: Mapping[str, float],
    bounds: Mapping[str, Bounds],
    rates: Mapping[str, Rate],
    told: Mapping[str, Told],
) -> dict[str, dict[str, float]]:
    """Prints the tables, and writes them, results.json and the figures.

    Args:
      folder: where to.
      course: of the point masses.
      slopes: the settings "lipschitz" and "noise_variance" of it.
      bounds: by what the clouds are.
      rates: by the energies' family and the laws.
      told: by manifold.

    Returns:
      The rows of the table.
    """
    rows = {
        name: {
            "W1": one.distance,
            "bound of Theorem 3.3": float(one.paper.min()),
            "by total variation": float(one.sharp.min()),
            "diameter": math.sqrt(2),
            "JSD": float(one.jsd[0]),
        }
        for name, one in bounds.items()
    }
    found = {name: rate.slope() for name, rate in rates.items()}
    said = "; ".join(f"{name} {slope}" for name, slope in found.items())
    text = "\n\n".join(
        [
            format_table(rows),
            _LEGEND,
            f"Slopes of the error of KALE over draws, ± standard error: {said}.",
            format_table(_told_rows(told)),
            _TOLD_LEGEND,
        ]
    )
    results = {
        "rows": rows,
        "point_masses": course._asdict(),
        "bounds": {name: one._asdict() for name, one in bounds.items()},
        "rates": {name: rate._asdict() | {"slope": found[name]} for name, rate in rates.items()},
        "manifolds": told,
    }
    encoded = json.dumps(results, indent=2, default=np.ndarray.tolist)
    folder.write_bytes("table.md", f"{text}\n".encode())
    folder.write_bytes("results.json", f"{encoded}\n".encode())
    panels = (
        [_point_masses(course, slopes)],
        [_certificate(name, one) for name, one in bounds.items()],
        [_rate(name, rate, found[name]) for name, rate in rates.items()],
    )
    drawn = [[row] for row in panels] + [[_manifold(name, one) for name, one in told.items()]]
    for name, grid in zip(_FIGURES, drawn, strict=True):
        folder.write_bytes(name, charts.curve_panels(grid))
    print(text)
    print(f"written to {folder.path}: table.md, results.json, {', '.join(_FIGURES)}")
    return rows


def _point_masses(course: Course, slopes: Mapping[str, float]) -> CurvePanel:
    theta = course.distances
    jsd = np.where(theta > 0, math.log(2), np.nan)  # it jumps
    curves = {
        "W1": theta,
        f"KALE, slopes of at most {slopes['lipschitz']:g} (nats)": course.kale,
        "JSD (nats)": jsd,
        f"JSD under noise of variance {slopes['noise_variance']:g} (nats)": course.noised_jsd,
    }
    return CurvePanel(
        "two point masses; KL is infinite wherever they differ",
        "distance of the point masses",
        {label: (theta, values[None]) for label, values in curves.items()},
        {},
    )


def _certificate(name: str, one: Bounds) -> CurvePanel:
    curves = {"Theorem 3.3": one.paper, "by total variation": one.sharp}
    return CurvePanel(
        f"{name}: bound on W1",
        "variance of the noise in a coordinate",
        {label: (one.variances, values[None]) for label, values in curves.items()},
        {"W1": one.distance, "diameter of the square": math.sqrt(2)},
        "log",
        "log",
    )


def _rate(name: str, rate: Rate, slope: str) -> CurvePanel:
    start = rate.errors[:, 0].mean()
    ideal = start * np.sqrt(rate.sizes[0] / rate.sizes)
    return CurvePanel(
        f"{name}: slope {slope}",
        "draws of each law",
        {
            "root mean squared error of KALE (nats)": (rate.sizes, rate.errors),
            "slope -1/2": (rate.sizes, ideal[None]),
        },
        {},
        "log",
        "log",
    )


def _told_rows(told: Mapping[str, Told]) -> dict[str, dict[str, str]]:
    rows = {}
    for manifold, trials in told.items():
        for trial, runs in trials.items():
            norms = np.array([[record[_NORM] for record in run] for run in runs])
            shown = (norms[:, 0], norms.max(axis=1), norms[:, -1])
            last = {
                name: tables.spread([run[-1][name] for run in runs]).text()
                for name in ("jsd", "accuracy")
            }
            gradient = ", ".join(tables.spread(values).text(".2g") for values in shown)
            rows[f"{manifold}, {trial}"] = {**last, "norm of the gradient": gradient}
    return rows


def _manifold(name: str, told: Told) -> list[CurvePanel]:
    def curves(figure: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {
            trial: (
                np.array([record["step"] for record in runs[0]]),
                np.array([[record[figure] for record in run] for run in runs]),
            )
            for trial, runs in told.items()
        }

    label = "step of the discriminator"
    return [
        CurvePanel(f"{name}: JSD (nats)", label, curves("jsd"), {"log 2": math.log(2)}),
        CurvePanel(f"{name}: norm of the gradient", label, curves(_NORM), {}, yscale="log"),
    ]
