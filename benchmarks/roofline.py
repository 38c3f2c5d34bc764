r"""Predicts the rows on accelerators from what their programs count. Nothing is run.

    python -m benchmarks.roofline --rows=svgd,mmd-1000x50

A device needs at least the longest of: products and factorisations at their peak, other
arithmetic, functions and roots at theirs, and inputs and outputs once through its memory
(``overlapped``). Where nothing overlaps and all that a product, a factorisation, a sort or a
reduction reads or writes goes through memory, it needs the sum (``in_turn``). Neither knows of
launches, of small sizes, or of units that a tile does not fill.

Of two branches the cheaper counts, which takes products as where no pair is lost, and for the rows
of ``DEAR`` the other. The search of the exact median ends by what it finds: it is taken to
need ``PASSES``, marked by a star.
"""

import argparse
import math
import pathlib
import re
from typing import Any, NamedTuple

import jax

from benchmarks import rows
from benchmarks.counts import Counter, Counts, num_bytes
from experiments.run.tables import format_table

PASSES = {1000: 2, 5000: 3}  # on the data of the rows, by the number of points
DEAR = ("two_clusters", "line_of_clusters")  # whose tiles all lose pairs


class Device(NamedTuple):
    """Peak rates, per second; the sources are in docs/speed.md."""

    name: str
    products: float
    loose: float
    elementwise: float
    functions: float
    roots: float
    bandwidth: float


_HOPPER = (67e12, 494.7e12, 33.5e12, 4.18e12, 4.18e12)
DEVICES = (
    Device("H100", *_HOPPER, 3.35e12),
    Device("H200", *_HOPPER, 4.8e12),
    Device("v5e", 197e12 / 6, 197e12, 6.1e12, 1.5e12, 1.5e12, 819e9),
)
# of 2026-11-30, as in docs/speed.md; half of the products' for other arithmetic, nothing of memory
CORES = Device("two cores", 1.92e11, 1.92e11, 0.96e11, 2.06e9, 6.65e9, math.inf)


def overlapped(counts: Counts, arguments: float, device: Device) -> dict[str, float]:
    """Returns the seconds of what a device can do at the same time, by name.

    Args:
      counts: of the program.
      arguments: bytes of its inputs and outputs.
      device: the device.
    """
    return {
        "products": (counts.products + counts.factored) / device.products
        + counts.loose / device.loose,
        "arithmetic": counts.elementwise / device.elementwise,
        "functions": counts.functions / device.functions + counts.roots / device.roots,
        "memory": arguments / device.bandwidth,
    }


def in_turn(counts: Counts, arguments: float, device: Device) -> float:
    """Returns the seconds where nothing overlaps and all traffic goes through memory."""
    terms = overlapped(counts, max(arguments, counts.traffic), device)
    return sum(terms.values())


class Counted(NamedTuple):
    """A row's program: what it counts, bytes in and out, and whether a loop was assumed."""

    counts: Counts
    arguments: float
    assumed: bool


def program(row: rows.Row) -> Any:
    """Returns the closed jaxpr of kernelgrad's own side of a row."""
    ours = [contestant for contestant in row.task.contestants if contestant.name == rows.OURS]
    call: Any = ours[-1].build(row.problem())
    return jax.make_jaxpr(call.func)(*call.args)


def count(row: rows.Row, closed: Any, platform: str) -> Counted:
    """Returns what the program of a row counts on a platform."""
    dear = any(name in row.name for name in DEAR)
    counter = Counter(passes=PASSES.get(row.n, 1), dear=dear, platform=platform)
    counts = counter.of(closed)
    arrays = (*closed.jaxpr.invars, *closed.jaxpr.outvars)
    return Counted(counts, sum(num_bytes(array.aval) for array in arrays), counter.assumed)


def measured(page: pathlib.Path) -> dict[str, float]:
    """Returns kernelgrad's milliseconds by row from the first table of docs/bench.md."""
    table = page.read_text().partition("\n## ")[0]
    lines = re.findall(rf"^\| (\S+) {rows.OURS}[^|]*\| ([\d.e+]+) /", table, re.MULTILINE)
    return {row: float(median) for row, median in lines}


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.roofline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", default="", help="tasks or rows, comma-separated; all by default")
    parser.add_argument("--measured", default="docs/bench.md", help="of this machine (%(default)s)")
    arguments = parser.parse_args()
    chosen = [row for row in rows.select(arguments.rows) if row.n]
    times = measured(pathlib.Path(arguments.measured))
    predicted: dict[str, dict[str, str]] = {}
    compared: dict[str, dict[str, str]] = {}
    for row in chosen:
        closed = program(row)
        predicted[row.name] = _prediction(count(row, closed, "cuda"))
        if row.name in times:
            compared[row.name] = _comparison(count(row, closed, "cpu"), times[row.name])
    print(format_table(predicted))
    if compared:
        print(f"\n{format_table(compared)}")


def _prediction(counted: Counted) -> dict[str, str]:
    counts, arguments, assumed = counted
    products = counts.products + counts.loose + counts.factored
    cells = {
        "products GF": f"{products / 1e9:.3g}",
        "arithmetic G": f"{counts.elementwise / 1e9:.3g}",
        "functions and roots G": f"{(counts.functions + counts.roots) / 1e9:.3g}",
        "MB in and out / in turn": f"{arguments / 1e6:.3g} / {counts.traffic / 1e6:.3g}",
        "calls": f"{counts.calls:.0f}" + (" *" if assumed else ""),
    }
    bounds = []
    for device in DEVICES:
        terms = overlapped(counts, arguments, device)
        cells[f"{device.name} ms"] = (
            f"{1e3 * max(terms.values()):.2g} to {1e3 * in_turn(counts, arguments, device):.2g}"
        )
        bounds.append(max(terms, key=lambda name: terms[name]))
    cells["bound by"] = bounds[0] if len(set(bounds)) == 1 else " / ".join(bounds)
    return cells


def _comparison(counted: Counted, milliseconds: float) -> dict[str, str]:
    terms = {name: 1e3 * s for name, s in overlapped(*counted[:2], CORES).items()}
    total = sum(terms.values())
    return {
        "products ms": f"{terms['products']:.3g}",
        "arithmetic ms": f"{terms['arithmetic']:.3g}",
        "functions and roots ms": f"{terms['functions']:.3g}",
        "predicted ms": f"{total:.3g}",
        "measured ms": f"{milliseconds:.3g}",
        "predicted / measured": f"{total / milliseconds:.2f}",
    }


if __name__ == "__main__":
    main()
