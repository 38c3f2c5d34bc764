"""The table and the pictures of experiments.divergences."""

import json
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.judges import known_laws
from experiments.pictures import charts
from experiments.pictures.charts import CurvePanel
from experiments.run.tables import format_table
from experiments.run.workdirs import Workdir

_FIGURES = ("point_masses.png", "certificate.png", "rate.png")
_LEGEND = """\
W1 and the least bounds on it over the levels of noise, of clouds in the unit square; a bound above
the diameter says nothing. JSD: of the clouds under the largest noise, in nats."""


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


def write(
    folder: Workdir,
    course: Course,
    slopes: Mapping[str, float],
    bounds: Mapping[str, Bounds],
    rate: tuple[np.ndarray, np.ndarray],
) -> dict[str, dict[str, float]]:
    """Prints the table, and writes it, results.json and the figures.

    Args:
      folder: where to.
      course: of the point masses.
      slopes: the settings "lipschitz" and "noise_variance" of it.
      bounds: by what the clouds are.
      rate: numbers of draws (s,) and root mean squared errors of KALE (s,).

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
    slope = known_laws.rate(*rate)
    text = f"{format_table(rows)}\n\n{_LEGEND}\n\nError of KALE over draws: slope {slope:.3f}."
    results = {
        "rows": rows,
        "point_masses": course._asdict(),
        "bounds": {name: one._asdict() for name, one in bounds.items()},
        "rate": {"sizes": rate[0], "errors": rate[1], "slope": slope},
    }
    encoded = json.dumps(results, indent=2, default=np.ndarray.tolist)
    folder.write_bytes("table.md", f"{text}\n".encode())
    folder.write_bytes("results.json", f"{encoded}\n".encode())
    panels = (
        [_point_masses(course, slopes)],
        [_certificate(name, one) for name, one in bounds.items()],
        [_rate(*rate, slope)],
    )
    for name, row in zip(_FIGURES, panels, strict=True):
        folder.write_bytes(name, charts.curve_panels([row]))
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


def _rate(sizes: np.ndarray, errors: np.ndarray, slope: float) -> CurvePanel:
    ideal = errors[0] * np.sqrt(sizes[0] / sizes)
    return CurvePanel(
        f"error of KALE over linear energies (nats): slope {slope:.2f}",
        "draws of each law",
        {"root mean squared error": (sizes, errors[None]), "slope -1/2": (sizes, ideal[None])},
        {},
        "log",
        "log",
    )
