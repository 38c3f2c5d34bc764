"""The table and the four figures of experiments.gan_diagnostics."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from experiments.judges.certificates import Certificate
from experiments.pictures import charts
from experiments.pictures.charts import CurvePanel
from experiments.run.tables import format_table
from experiments.run.workdirs import Workdir
from experiments.training.discriminators import Record, Tail

_TAIL_LIMIT = 15.0  # median absolute deviations
_LEGEND = """\
JSD in nats (log 2 = 0.693) and accuracy: of the last discriminator without noise, at held-out
images. Three numbers are start, largest and end of a gradient's norm, or the trace of the
covariance of minibatch gradients. KS: Kolmogorov-Smirnov distances of the non-saturating
gradient's normalised coordinates from their Cauchy fit and from their Gaussian fit. W1 and
certificate: of two clouds, real and generated; a bound above the cube's diameter says nothing.
Sharper: the least bound by total variation, at any variance."""
_LEARNED, _CLOUDS = "learned D, an estimate from below", "two clouds, exactly optimal D"
_SHARP = "the same by total variation"
_FIGURES = ("jsd_and_accuracy.png", "gradient_norms.png", "gradient_tail.png", "certificate.png")

Rows = dict[str, dict[str, float | str]]


class Diagnosis(NamedTuple):
    """All that is found out about one generator.

    Attributes:
      records: of the discriminators by trial.
      tails: the law of the non-saturating gradient without noise, by title: normalised values (k,)
        and their fits.
      certificate: over the annealing.
    """

    records: dict[str, list[Record]]
    tails: dict[str, tuple[np.ndarray, Tail]]
    certificate: Certificate


def rows(found: Mapping[int, Diagnosis], reference: float) -> Rows:
    """Returns the table, one row a generator.

    Args:
      found: diagnoses by epoch.
      reference: W1 of two clouds of real images.
    """
    table: Rows = {}
    for epoch, (records, tails, certificate) in found.items():
        plain, noised = records["no noise"], records["noise"]
        best = int(certificate.cloud.argmin())
        table[f"epoch {epoch}"] = {
            "JSD": plain[-1]["jsd"],
            "accuracy": plain[-1]["accuracy"],
            "saturating": _course(plain, "saturating_norm"),
            "with noise": _course(noised, "saturating_norm"),
            "non-saturating": _course(plain, "non_saturating_norm"),
            "its variance": _course(plain, "non_saturating_variance"),
            **{
                f"KS, {title}": f"{tail.cauchy_distance:.2g}, {tail.gaussian_distance:.2g}"
                for title, (_, tail) in tails.items()
            },
            "W1": certificate.distance,
            "W1 of real images": reference,
            "least certificate": float(certificate.cloud[best]),
            "at variance": float(certificate.variances[best]),
            "sharper": float(certificate.sharp.min()),
            "diameter": certificate.diameter,
        }
    return table


def write(folder: Workdir, found: Mapping[int, Diagnosis], table: Rows) -> None:
    """Prints the table, and writes it, results.json and the figures.

    Args:
      folder: where to.
      found: diagnoses by epoch.
      table: of :func:`rows`.
    """
    text = f"{format_table(table)}\n\n{_LEGEND}"
    results = {
        "rows": table,
        "diagnoses": {
            epoch: {
                "records": records,
                "tails": {title: tail._asdict() for title, (_, tail) in tails.items()},
                "certificate": certificate._asdict(),
            }
            for epoch, (records, tails, certificate) in found.items()
        },
    }
    encoded = json.dumps(results, indent=2, default=np.ndarray.tolist)
    folder.write_bytes("table.md", f"{text}\n".encode())
    folder.write_bytes("results.json", f"{encoded}\n".encode())
    pictures = (
        charts.curve_panels(_accuracy_panels(found)),
        charts.curve_panels(_gradient_panels(found)),
        _tail_picture(found),
        charts.curve_panels(_certificate_panels(found)),
    )
    for name, picture in zip(_FIGURES, pictures, strict=True):
        folder.write_bytes(name, picture)
    print(text)
    print(f"written to {folder.path}: table.md, results.json, {', '.join(_FIGURES)}")


def _course(history: list[Record], name: str) -> str:
    values = [record[name] for record in history]
    return f"{values[0]:.2g}, {max(values):.2g}, {values[-1]:.2g}"


def _record_panel(
    title: str,
    histories: Mapping[str, tuple[list[Record], str]],
    references: Mapping[str, float],
    yscale: str = "linear",
) -> CurvePanel:
    """Returns the panel of a figure of each history, by label."""
    curves = {}
    for label, (history, name) in histories.items():
        steps, values = np.array([(record["step"], record[name]) for record in history]).T
        curves[label] = steps, values[None]
    return CurvePanel(title, "iterations of the discriminator", curves, references, yscale=yscale)


def _by_noise(one: Diagnosis, name: str) -> dict[str, tuple[list[Record], str]]:
    plain, noised = one.records["no noise"], one.records["noise"]
    return {
        "no noise": (plain, name),
        f"noise of variance {noised[-1]['variance']:g}": (noised, name),
    }


def _accuracy_panels(found: Mapping[int, Diagnosis]) -> list[list[CurvePanel]]:
    divergences, accuracies = [], []
    for epoch, one in found.items():
        histories = _by_noise(one, "jsd")
        histories["no noise, training images"] = one.records["no noise"], "jsd_fitted"
        divergences.append(
            _record_panel(f"epoch {epoch}: JSD (nats)", histories, {"log 2": math.log(2)})
        )
        accuracies.append(
            _record_panel(f"epoch {epoch}: accuracy", _by_noise(one, "accuracy"), {"1": 1.0})
        )
    return [divergences, accuracies]


def _gradient_panels(found: Mapping[int, Diagnosis]) -> list[list[CurvePanel]]:
    quantities = {
        "saturating_norm": "|gradient|, saturating",
        "non_saturating_norm": "|gradient|, non-saturating",
        "non_saturating_variance": "variance of that gradient",
    }
    return [
        [
            _record_panel(f"epoch {epoch}: {title}", _by_noise(one, name), {}, "log")
            for epoch, one in found.items()
        ]
        for name, title in quantities.items()
    ]


def _tail_picture(found: Mapping[int, Diagnosis]) -> bytes:
    panels: dict[str, dict[str, Any]] = {}
    for epoch, one in found.items():
        for title, (values, tail) in one.tails.items():
            cauchy, gaussian = scipy.stats.cauchy(*tail.cauchy), scipy.stats.norm(*tail.gaussian)
            densities = {
                f"Cauchy, KS {tail.cauchy_distance:.2g}": cauchy.pdf,
                f"Gaussian, KS {tail.gaussian_distance:.2g}": gaussian.pdf,
            }
            panels.setdefault(title, {})[f"epoch {epoch}, {title}"] = values, densities
    xlabel = "coordinate of the non-saturating gradient, in its MADs"
    return charts.histograms(list(panels.values()), xlabel, _TAIL_LIMIT)


def _certificate_panels(found: Mapping[int, Diagnosis]) -> list[list[CurvePanel]]:
    xlabel = "variance of the noise in a pixel, annealed from right to left"
    bounds, divergences = [], []
    for epoch, (_, _, c) in found.items():
        of_bounds = {_LEARNED: c.learned, _CLOUDS: c.cloud, _SHARP: c.sharp}
        of_divergences = {
            _LEARNED: c.learned_jsd,
            _CLOUDS: c.cloud_jsd,
            "these clouds, Gaussian noise": c.gaussian_jsd,
        }
        bounds.append(
            CurvePanel(
                f"epoch {epoch}: bound on W1",
                xlabel,
                {label: (c.variances, values[None]) for label, values in of_bounds.items()},
                {"W1 of these clouds": c.distance, "diameter of the cube": c.diameter},
                "log",
                "log",
            )
        )
        divergences.append(
            CurvePanel(
                f"epoch {epoch}: JSD under the noise (nats)",
                xlabel,
                {label: (c.variances, values[None]) for label, values in of_divergences.items()},
                {"log 2": math.log(2)},
                "log",
            )
        )
    return [bounds, divergences]
