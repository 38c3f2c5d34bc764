"""How far generated points in the plane are from a known density: figures, tables, pictures."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import xlogy

from experiments.pictures import charts, clouds
from experiments.pictures.charts import CurvePanel
from experiments.pictures.clouds import Backdrop, FieldFrame
from experiments.run import tables
from experiments.run.errors import UsageError
from experiments.run.tables import Spread, format_table
from experiments.run.workdirs import Workdir
from experiments.targets.densities import Bounds, Target
from kernelgrad.types import Array, Key, LogDensityFn

NUM_EVALUATED = 10_000

_GRID = 300
_BANDWIDTHS = (0.01, 0.014, 0.02, 0.028, 0.04, 0.056, 0.08)
_FRESH_SETS = 5
_REGION = 0.99  # of the mass of p, in its region of highest density
_REACHED = 0.1  # of p, what q is at least where it covers p
_MODE_REACH, _MODE_SHARE = 3.0, 0.2  # in widths of a mode; of its share of the samples
_FALL = 10  # what KL[Q||P] should be divided by
TITLES = {
    "true_kl": "KL[Q||P]",
    "true_jsd": "JSD",
    "on_data": "on data",
    "coverage": "coverage",
    "modes": "modes",
}

Record = dict[str, float]
Rows = dict[str, dict[str, float | str]]
Measure = Callable[[Array], dict[str, Array]]


class Ruler(NamedTuple):
    """The known density, and what samples are measured with.

    Attributes:
      backdrop: the density, to draw over.
      draw: (key, n) -> exact draws (n, 2); n is static.
      bandwidth: of the kernel density estimate.
      measure: samples (n, 2) -> figures by name.
      floor: how each figure of exact draws spreads.
    """

    backdrop: Backdrop
    draw: Callable[[Key, int], Array]
    bandwidth: float
    measure: Measure
    floor: dict[str, Spread]


class Runs(NamedTuple):
    """What the runs of one objective gave.

    Attributes:
      histories: the records of each seed.
      last: the last frame of the first seed.
      ms_per_step: median time of a step of training.
    """

    histories: list[list[Record]]
    last: FieldFrame
    ms_per_step: float


# -------------------------------------------------------------------------------------- figures


def make_ruler(key: Key, target: Target) -> Ruler:
    """Returns the ruler of a density, its bandwidth that at which exact draws have the least KL.

    Raises:
      UsageError: the target is not a density in the plane with exact draws.
    """
    if target.bounds is None or target.exact_samples is None:
        raise UsageError(
            f"target: got {target.name}; expected a density in the plane with exact draws"
        )
    grid, log_density = _on_grid(target.log_density_fn, target.bounds)
    measure = jax.jit(make_measure(target, grid, log_density))
    draw = jax.jit(target.exact_samples, static_argnums=1)
    first, *fresh = (draw(one, NUM_EVALUATED) for one in jax.random.split(key, 1 + _FRESH_SETS))
    kl = {bandwidth: float(measure(first, bandwidth)["true_kl"]) for bandwidth in _BANDWIDTHS}
    bandwidth = min(_BANDWIDTHS, key=kl.__getitem__)
    records = [measure(draws, bandwidth) for draws in fresh]
    values = {
        name: [float(record[name]) for record in records] for name in TITLES if name in records[0]
    }
    return Ruler(
        Backdrop(target.bounds, ("$x_1$", "$x_2$"), log_density=np.asarray(log_density)),
        draw,
        bandwidth,
        lambda samples: measure(samples, bandwidth),
        {name: tables.spread(found) for name, found in values.items()},
    )


def make_measure(
    target: Target, grid: tuple[Array, Array], log_density: Array
) -> Callable[[Array, Array | float], dict[str, Array]]:
    r"""Returns (samples, bandwidth h) -> figures of q, the density of the samples, against p.

    .. math:: q(x) = \frac1n \sum_i N(x; x_i, h^2 I), \qquad
              KL = \sum_{x \in grid} q \log\frac qp, \qquad
              JSD = \tfrac12 KL[q \| \tfrac{p+q}2] + \tfrac12 KL[p \| \tfrac{p+q}2]

    Both p and q add up to 1 over the grid; samples beyond it count at its edge. Neither has a
    floor: log p is the formula's, however low, and 0 log 0 = 0.

    =========  =====================================================================================
    true_kl    in nats, as true_jsd
    on_data    share of the samples in the region of highest density that holds 99% of p
    coverage   share of p where q >= p / 10
    modes      how many modes have a fifth or more of their share of the samples within 3 widths;
               only for a target with modes
    =========  =====================================================================================

    Args:
      target: whose density p is.
      grid: x_1 (columns,) and x_2 (rows,), equally spaced.
      log_density: log p on the grid; shape (rows, columns).
    """
    log_p = jax.nn.log_softmax(log_density, axis=(0, 1))
    p = jnp.exp(log_p)
    descending = jnp.sort(p, axis=None)[::-1]
    lowest = descending[jnp.searchsorted(jnp.cumsum(descending), _REGION)]
    level = jnp.min(jnp.where(p >= lowest, log_density, jnp.inf))
    log_density_fn = jax.vmap(target.log_density_fn)

    def measure(samples: Array, bandwidth: Array | float) -> dict[str, Array]:
        columns, rows = (
            jnp.exp(-0.5 * jnp.square((axis[:, None] - jnp.clip(x, axis[0], axis[-1])) / bandwidth))
            for axis, x in zip(grid, samples.T, strict=True)
        )
        q = jnp.matmul(rows, columns.T, precision=lax.Precision.HIGHEST)
        q = q / jnp.sum(q)
        middle = (p + q) / 2
        figures = {
            "true_kl": jnp.sum(xlogy(q, q) - q * log_p),
            "true_jsd": jnp.sum((xlogy(p, p) + xlogy(q, q)) / 2 - xlogy(middle, middle)),
            "on_data": jnp.mean(log_density_fn(samples) >= level),
            "coverage": jnp.sum(jnp.where(q >= _REACHED * p, p, 0)),
        }
        if target.modes is not None:
            apart = samples[:, None] - jnp.asarray(target.modes.centres, samples.dtype)
            near = jnp.sum(jnp.square(apart), axis=2) < (_MODE_REACH * target.modes.width) ** 2
            share = jnp.mean(near, axis=0) * len(target.modes.centres)
            figures["modes"] = jnp.sum(share >= _MODE_SHARE)
        return figures

    return measure


def _on_grid(log_density_fn: LogDensityFn, bounds: Bounds) -> tuple[tuple[Array, Array], Array]:
    """Returns the grid's axes and log p on it, shape (rows, columns)."""
    x, y = (jnp.linspace(*side, _GRID) for side in bounds)
    points = jnp.stack(jnp.meshgrid(x, y), axis=-1)
    return (x, y), jax.jit(lambda rows: lax.map(jax.vmap(log_density_fn), rows))(points)


# -------------------------------------------------------------------------------- table, pictures


def table(runs: Mapping[str, Runs], ruler: Ruler) -> Rows:
    """Returns a row for each objective, one for the start and one for exact draws.

    Args:
      runs: by objective; all of one length, from one start a seed.
      ruler: what they were measured with.
    """
    starts = [history[0] for history in next(iter(runs.values())).histories]
    rows: Rows = {"start": _figures(starts, ruler)}
    for name, (histories, _, ms_per_step) in runs.items():
        figures = _figures([history[-1] for history in histories], ruler)
        lowest = [min(record["true_kl"] for record in history) for history in histories]
        fallen = ", ".join(_fallen(history) for history in histories)
        speed: dict[str, float | str] = {
            f"KL / {_FALL} at step": fallen,
            "ms per step": ms_per_step,
        }
        rows[name] = {**figures, "lowest KL": _spread(lowest), **speed}
    rows[f"exact draws, bandwidth {ruler.bandwidth}"] = {
        TITLES[name]: spread.text(".3g") for name, spread in ruler.floor.items()
    }
    return rows


def _figures(records: Sequence[Record], ruler: Ruler) -> dict[str, float | str]:
    return {TITLES[name]: _spread([record[name] for record in records]) for name in ruler.floor}


def _spread(values: Sequence[float]) -> float | str:
    return values[0] if len(values) == 1 else tables.spread(values).text(".3g")


def _fallen(history: Sequence[Record]) -> str:
    """Returns the first recorded step at which KL is a tenth of its start or less."""
    steps = [int(r["step"]) for r in history if r["true_kl"] <= history[0]["true_kl"] / _FALL]
    return str(steps[0]) if steps else "never"


def write(folder: Workdir, title: str, rows: Rows) -> None:
    """Prints the table and writes results.json and table.md."""
    text = format_table(rows)
    folder.write_bytes("results.json", (json.dumps(rows, indent=2) + "\n").encode())
    folder.write_bytes("table.md", f"{title}\n\n{text}\n".encode())
    print(text)


def draw_run(
    folder: Workdir,
    title: str,
    history: Sequence[Record],
    frames: Sequence[FieldFrame],
    ruler: Ruler,
) -> None:
    """Writes evolution.gif, samples.png and curves.png of one run."""
    steps = [int(record["step"]) for record in history]
    gif = clouds.field_evolution(frames, steps, ruler.backdrop, title)
    folder.write_bytes("evolution.gif", gif)
    panels = {f"{title}, step {steps[-1]}": frames[-1].samples}
    folder.write_bytes("samples.png", clouds.sample_panels(panels, ruler.backdrop))
    folder.write_bytes("curves.png", _curves({title: [list(history)]}, ruler))


def draw_comparison(folder: Workdir, runs: Mapping[str, Runs], ruler: Ruler) -> None:
    """Writes samples.png, the first seed's last samples by objective, and comparison.png."""
    panels = {name: run.last.samples for name, run in runs.items()}
    folder.write_bytes("samples.png", clouds.sample_panels(panels, ruler.backdrop))
    histories = {name: run.histories for name, run in runs.items()}
    folder.write_bytes("comparison.png", _curves(histories, ruler))


def _curves(histories: Mapping[str, list[list[Record]]], ruler: Ruler) -> bytes:
    """Draws KL and JSD over the steps; a line joins the means of the runs, a band spans them."""

    def panel(metric: str) -> CurvePanel:
        curves = {}
        for name, runs in histories.items():
            steps = np.array([record["step"] for record in runs[0]])
            curves[name] = (steps, np.array([[record[metric] for record in run] for run in runs]))
        exact = {"exact draws": ruler.floor[metric].mean}
        title = f"{TITLES[metric]} (nats)"
        return CurvePanel(title, "step", curves, exact, yscale="log")

    return charts.curve_panels([[panel("true_kl"), panel("true_jsd")]])
