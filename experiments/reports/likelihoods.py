"""Records, table and pictures of fitted densities."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.pictures import charts, clouds
from experiments.pictures.charts import CurvePanel
from experiments.pictures.clouds import Backdrop
from experiments.run import tables
from experiments.run.tables import format_table
from experiments.targets import gaussian_base
from experiments.targets.gaussian_base import Likelihood, Split
from experiments.training import energy_fits
from experiments.training.energy_fits import Look
from kernelgrad.kale import NormalizerEstimate
from kernelgrad.types import Array

Record = dict[str, Any]
Records = Mapping[str, Sequence[Record]]
_GRID = 100  # points a side of a density's picture
_DRAWN_ROWS = 1000
_LARGEST = 1e300  # of a stored number


def record(
    split: Split, energy_fn: Callable[[Array], Array], normalizer: NormalizerEstimate
) -> Record:
    """Returns what test rows say about a model, as JSON values.

    Args:
      split: the rows.
      energy_fn: E, whitened points (n, d) -> (n,).
      normalizer: c.

    Returns:
      The fields of :class:`Likelihood` over all test rows ("test") and, if there are two, those
      that do not occur among the training rows ("new_rows"); in the plane the log-density on a grid
      ("log_density").
    """
    energy, volume, new = energy_fn(split.test), split.base.log_volume, split.is_new
    test = gaussian_base.likelihood(energy, split.test, volume, normalizer)
    found: Record = {"test": _json(test)}
    if new.sum() > 1:
        of_new = gaussian_base.likelihood(energy[new], split.test[new], volume, normalizer)
        found["new_rows"] = _json(of_new)
    if split.test.shape[1] == 2:
        points = jnp.asarray(split.base.whiten(_grid(split)))
        log_density = gaussian_base.standard_normal(points) - energy_fn(points)
        found["log_density"] = np.round(log_density - volume - normalizer.value, 3).tolist()
    return found


def checked(found: Any, split: Split, steps: Sequence[int]) -> Record:
    """Returns the stored record of a fit; ValueError unless it has the form of one.

    Args:
      found: JSON values.
      split: the rows.
      steps: of the looks.
    """
    sound = isinstance(found, dict) and isinstance(found.get("looks"), list)
    sound = sound and _has(found.get("best"), Look) and _has(found.get("test"), Likelihood)
    sound = sound and all(_has(look, Look) for look in found["looks"])
    sound = sound and [look["step"] for look in found["looks"]] == list(steps)
    if sound and split.is_new.sum() > 1:
        sound = _has(found.get("new_rows"), Likelihood)
    if sound and split.test.shape[1] == 2:
        grid = found.get("log_density")
        sound = isinstance(grid, list) and len(grid) == _GRID**2 and all(map(_is_number, grid))
    if not sound:
        raise ValueError("another form")
    return dict(found)


def _has(found: Any, kind: type[Likelihood] | type[Look]) -> bool:
    """Returns whether JSON values are numbers by the names of such a tuple's fields."""
    return (
        isinstance(found, dict)
        and found.keys() == set(kind._fields)
        and all(map(_is_number, found.values()))
    )


def _is_number(found: Any) -> bool:
    return type(found) in (int, float) and abs(found) < _LARGEST


def _json(likelihood: Likelihood) -> dict[str, float | None]:
    figures = likelihood._asdict()
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def summary(splits: Mapping[str, Sequence[Split]], results: Mapping[str, Records]) -> str:
    """Returns the table and the sizes of the data sets.

    Args:
      splits: by data set, one a seed.
      results: records by data set and method, one a seed.
    """
    rows = {
        f"{name}, {method}": _row(records)
        for name, of_method in results.items()
        for method, records in of_method.items()
    }
    sizes = []
    for name, of_seed in splits.items():
        train, valid, test = (rows.shape for rows in of_seed[0][1:4])
        new = np.mean([split.is_new.mean() for split in of_seed])
        sizes.append(
            f"{name}: dimension {train[1]}; {train[0]} training, {valid[0]} validation and "
            f"{test[0]} test rows, {new:.0%} of them new"
        )
    return "\n".join([format_table(rows), "", *sizes])


def _row(records: Sequence[Record]) -> dict[str, float | str]:
    def column(kind: str, name: str) -> np.ndarray:
        return np.array([found[kind][name] for found in records])

    row: dict[str, float | str] = {
        "test log-likelihood": _spread(column("test", "value")),
        "s.e. in a split": float(column("test", "standard_error").mean()),
        "gain over gaussian": _spread(column("test", "gain")),
        "s.e. of that": float(column("test", "gain_error").mean()),
    }
    if all("new_rows" in found for found in records):
        row["gain, new rows"] = _spread(column("new_rows", "gain"))
    if "best" in records[0]:
        fewest = column("test", "effective_draws").min()
        doubt = "" if fewest >= energy_fits.LEAST_EFFECTIVE_DRAWS else ": not to trust"
        row["effective draws, fewest"] = f"{fewest:.0f}{doubt}"
        row["best step"] = ", ".join(str(step) for step in column("best", "step"))
    return row


def _spread(values: np.ndarray) -> str:
    return tables.spread(values).text(".3f", ".3f")


def curves(results: Mapping[str, Records]) -> bytes:
    """Draws the gain over the Gaussian on validation rows by step; a gap is a look not trusted."""
    panels = []
    for name, of_method in results.items():
        lines = {
            method: (
                np.array([look["step"] for look in records[0]["looks"]]),
                np.array([[_trusted(look) for look in found["looks"]] for found in records]),
            )
            for method, records in of_method.items()
            if "looks" in records[0]
        }
        panels.append(CurvePanel(f"{name}: gain in nats, validation", "step", lines, {}))
    return charts.curve_panels([panels])


def _trusted(look: Mapping[str, float]) -> float:
    trusted = look["effective_draws"] >= energy_fits.LEAST_EFFECTIVE_DRAWS
    return look["gain"] if trusted else math.nan


def contours(split: Split, of_method: Records) -> bytes:
    """Draws the densities of the first seed in the plane under test rows."""
    x, y = _bounds(split)
    backdrops = {
        f"{method}, {records[0]['test']['value']:.3f} nats": Backdrop(
            (x, y), ("$x_1$", "$x_2$"), np.reshape(records[0]["log_density"], (_GRID, _GRID))
        )
        for method, records in of_method.items()
    }
    return clouds.density_panels(backdrops, _test_rows(split)[:_DRAWN_ROWS])


def _test_rows(split: Split) -> np.ndarray:
    return np.asarray(split.test, np.float64) @ split.base.factor.T + split.base.mean


def _bounds(split: Split) -> tuple[tuple[float, float], tuple[float, float]]:
    rows = _test_rows(split)
    low, high = rows.min(axis=0), rows.max(axis=0)
    margin = 0.15 * (high - low)
    (x0, y0), (x1, y1) = low - margin, high + margin
    return (x0, x1), (y0, y1)


def _grid(split: Split) -> np.ndarray:
    """Returns points (n, 2), row by row from low to high x_2."""
    x, y = (np.linspace(low, high, _GRID) for low, high in _bounds(split))
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
