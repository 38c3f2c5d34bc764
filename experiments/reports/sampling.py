"""How well networks draw from a density: figures, tables and pictures of their training."""

import json
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pictures import charts, clouds
from experiments.pictures.charts import CurvePanel
from experiments.pictures.clouds import Backdrop
from experiments.run import tables
from experiments.run.tables import Spread, format_table
from experiments.run.workdirs import Workdir
from experiments.targets import long_chains
from experiments.targets.densities import Target
from kernelgrad import kernels, ksd, mmd
from kernelgrad.types import Array, Key

NUM_EVALUATED = 2000

_REFERENCE_SETS = 10
_CHAINS, _WARMUP, _DRAWS = 64, 500, 500
_GRID = 200
_MARGIN = 0.5  # around the draws, where no density can be drawn

_TITLES = {"ksd2": "KSD^2", "mmd2": "MMD^2"}
_PICTURES = ("samples.png", "evolution.gif", "curves.png")

Record = dict[str, float]
Rows = dict[str, dict[str, float | str]]


class Summary(NamedTuple):
    """What the runs of all rules gave.

    Attributes:
      num_steps: of each run.
      histories: the records by rule.
      ms_per_step: by rule.
      noise: how each figure of fresh draws spreads.
    """

    num_steps: int
    histories: dict[str, list[Record]]
    ms_per_step: dict[str, float]
    noise: dict[str, Spread]


class Reference(NamedTuple):
    """What samples are compared with.

    Attributes:
      draws: exact draws or those of a chain; shape (m, d).
      fresh: others of the same kind; shape (sets, m, d).
      kind: "exact" or "HMC".
    """

    draws: Array
    fresh: Array
    kind: str


def make_reference(key: Key, target: Target) -> Reference:
    """Returns draws of the target: exact ones, or those of a long Hamiltonian chain."""
    size, sets = NUM_EVALUATED, _REFERENCE_SETS
    start_key, draw_key = jax.random.split(key)
    if target.exact_samples is not None:
        draws, kind = target.exact_samples(draw_key, size * (1 + sets)), "exact"
    else:
        chains = long_chains.run(
            draw_key,
            jax.random.normal(start_key, (_CHAINS, target.dimension)),
            target.log_density_fn,
            num_warmup=_WARMUP,
            num_draws=_DRAWS,
        )
        pooled = jax.random.permutation(start_key, jnp.asarray(chains.pooled))
        draws, kind = pooled[: size * (1 + sets)], "HMC"
    first, *others = jnp.split(draws, 1 + sets)
    return Reference(first, jnp.stack(others), kind)


def make_measure(target: Target, reference: Reference) -> Callable[[Array], dict[str, Array]]:
    """Returns samples (n, d) -> U-statistics of KSD^2 and MMD^2, under one IMQ kernel."""
    kernel = kernels.imq_mixture(kernels.median_lengthscale(reference.draws))
    score_fn = jax.vmap(jax.grad(target.log_density_fn))

    @jax.jit
    def measure(samples: Array) -> dict[str, Array]:
        return {
            "ksd2": ksd.ksd_u_statistic(samples, score_fn(samples), kernel),
            "mmd2": mmd.mmd_u_statistic(samples, reference.draws, kernel),
        }

    return measure


def spread(reference: Reference, measure: Callable[[Array], dict[str, Array]]) -> dict[str, Spread]:
    """Returns how each figure spreads over fresh draws of the target."""
    records = [measure(draws) for draws in reference.fresh]
    return {name: tables.spread([float(record[name]) for record in records]) for name in records[0]}


def table(summary: Summary, kind: str) -> Rows:
    """Returns each rule at the last step, and when the fastest one was done.

    Args:
      summary: what the runs gave.
      kind: of the fresh draws.
    """
    num_steps, histories, ms_per_step, noise = summary
    rows: Rows = {}
    for name, history in histories.items():
        figures = {_TITLES[metric]: history[-1][metric] for metric in noise}
        rows[f"{name}, step {num_steps}"] = {**figures, "ms per step": ms_per_step[name]}
    seconds = num_steps * min(ms_per_step.values()) / 1000
    for name, history in histories.items():
        steps = [record["step"] for record in history]
        step = 1000 * seconds / ms_per_step[name]
        rows[f"{name}, {seconds:.1f} s"] = {
            _TITLES[metric]: float(np.interp(step, steps, [r[metric] for r in history]))
            for metric in noise
        }
    rows[f"fresh draws, {kind}"] = {
        _TITLES[metric]: spread.text(".2g") for metric, spread in noise.items()
    }
    return rows


def write(folder: Workdir, target: str, rows: Rows, summary: Summary) -> None:
    """Prints and writes the table, and draws the curves."""
    _, histories, ms_per_step, noise = summary
    folder.write_bytes("results.json", (json.dumps(rows, indent=2) + "\n").encode())
    text = format_table(rows)
    folder.write_bytes("table.md", f"{target}\n\n{text}\n".encode())

    def panel(metric: str, xlabel: str) -> CurvePanel:
        curves, lowest = {}, noise[metric].deviation
        for name, history in histories.items():
            steps = np.array([record["step"] for record in history])
            unit = 1 if xlabel == "step" else ms_per_step[name] / 1000
            values = np.array([[max(record[metric], lowest) for record in history]])
            curves[name] = (unit * steps, values)
        references = {"standard deviation of fresh draws; less is drawn there": lowest}
        return CurvePanel(_TITLES[metric], xlabel, curves, references, yscale="log")

    drawn = [[panel(metric, x) for metric in noise] for x in ("step", "training time (s)")]
    folder.write_bytes("curves.png", charts.curve_panels(drawn))
    print(text)
    print(f"written to {folder.path}: results.json, table.md, {', '.join(_PICTURES)}")


def draw(
    folder: Workdir,
    target: Target,
    reference: Reference,
    histories: dict[str, list[Record]],
    frames: dict[str, np.ndarray],
) -> None:
    """Writes samples.png and evolution.gif."""
    backdrop, project = _plane(target, reference)
    moving = {name: project(points) for name, points in frames.items()}
    steps = [int(record["step"]) for record in next(iter(histories.values()))]
    last = {name: points[-1] for name, points in moving.items()}
    folder.write_bytes("samples.png", clouds.sample_panels(last, backdrop))
    folder.write_bytes("evolution.gif", clouds.evolution(moving, steps, backdrop))


def _plane(
    target: Target, reference: Reference
) -> tuple[Backdrop, Callable[[np.ndarray], np.ndarray]]:
    """Returns what to draw over, and the map of points (..., d) into that plane.

    In more than two dimensions it is the plane of the two largest principal components of the
    reference draws.
    """
    if target.bounds is not None:
        axes = [np.linspace(*side, _GRID, dtype=np.float32) for side in target.bounds]
        grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
        values = np.asarray(jax.jit(jax.vmap(target.log_density_fn))(grid))
        backdrop = Backdrop(
            target.bounds, ("$x_1$", "$x_2$"), log_density=values.reshape(_GRID, _GRID)
        )
        return backdrop, lambda points: points
    draws = np.asarray(reference.draws)
    centre = draws.mean(axis=0)
    _, _, components = np.linalg.svd(draws - centre, full_matrices=False)
    flat = (draws - centre) @ components[:2].T
    low, high = flat.min(axis=0), flat.max(axis=0)
    margin = _MARGIN * (high - low)
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    labels = ("principal component 1", "principal component 2")
    backdrop = Backdrop(((left, right), (bottom, top)), labels, draws=flat)
    return backdrop, lambda points: (points - centre) @ components[:2].T
