"""The table, as text, JSON and a bar chart."""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.compete import Entry, Result, median
from benchmarks.rows import OURS
from experiments.run.tables import format_table


def table(results: Sequence[Result]) -> str:
    """Returns one line a contestant and one a floor, in Markdown; times are median / best."""
    lines: dict[str, Mapping[str, str]] = {}
    for result in results:
        for entry in result.entries:
            variant = f" ({entry.variant})" if entry.variant else ""
            lines[f"{result.row} {entry.name}{variant}"] = _line(entry, result)
            if entry.name == OURS and result.floor_ms:
                lines[f"{result.row} floor"] = {
                    "ms": _pair(result.floor_ms, min),
                    "kernelgrad is": _pair(result.floor_ratios, min, "x slower"),
                    "goal": _goal("floor", result),
                }
    return format_table(lines)


def to_json(results: Sequence[Result], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Returns everything that was measured, with None for what is not a number."""
    rows = [dataclasses.asdict(result) for result in results]
    return _without_nan({"machine": dict(machine), "rows": rows})


def bar_chart(results: Sequence[Result], title: str) -> bytes:
    """Draws how much faster we are than each peer, and how far from the floor.

    Args:
      results: the rows.
      title: title of the figure.

    Returns:
      PNG bytes.
    """
    speedups = [
        (result.row, entry.name, median(entry.ratios))
        for result in results
        for entry in result.entries
        if entry.ratios
    ]
    floors = [(r.row, "floor", median(r.floor_ratios)) for r in results if r.floor_ratios]
    height = 1.2 + 0.22 * max(len(speedups), len(floors), 4)
    figure, axes = plt.subplots(1, 2, figsize=(13, height), layout="constrained")
    figure.suptitle(title)
    _bars(axes[0], speedups, "time over ours (higher is better for us)")
    _bars(axes[1], floors, "our time over the floor (1 is the machine's limit)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def _line(entry: Entry, result: Result) -> dict[str, str]:
    ours = entry.name == OURS
    cells = {
        "ms": _pair(entry.ms, min) if entry.ms else entry.reason,
        "kernelgrad is": "",
        "MB": "" if entry.megabytes is None else f"{entry.megabytes:.0f}",
        "first call s": "",
        "error": "",
        "goal": _goal(entry.name, result),
    }
    if entry.ratios:
        ahead = median(entry.ratios) >= 1
        ratios = entry.ratios if ahead else tuple(1 / ratio for ratio in entry.ratios)
        best = max if ahead else min
        cells["kernelgrad is"] = _pair(ratios, best, "x faster" if ahead else "x slower")
    if entry.alone.first_seconds is not None:
        cells["first call s"] = f"{entry.alone.first_seconds:.1f}"
    error = result.error if ours else entry.difference
    if error is not None:
        cells["error"] = f"{error:.1e}" if ours else f"{error:.1e} from ours"
    return cells


def _goal(against: str, result: Result) -> str:
    return "; ".join(verdict.text for verdict in result.verdicts if verdict.against == against)


def _pair(values: Sequence[float], best: Any, unit: str = "") -> str:
    there = [value for value in values if not math.isnan(value)]
    return f"{median(tuple(there)):.3g} / {best(there):.3g}{unit}" if there else ""


def _bars(axes: Any, bars: Sequence[tuple[str, str, float]], label: str) -> None:
    names = list(dict.fromkeys(name for _, name, _ in bars))
    for name in names:
        chosen = [(y, value) for y, (_, n, value) in enumerate(bars) if n == name]
        positions, values = zip(*chosen, strict=True)
        drawn = axes.barh(positions, [v - 1 for v in values], left=1, label=name)
        axes.bar_label(drawn, [f"{value:.3g}" for value in values], padding=2, fontsize=8)
    axes.set_yticks(range(len(bars)), [row for row, _, _ in bars], fontsize=8)
    axes.set(xscale="log", xlabel=label)
    axes.axvline(1, color="0.3", linewidth=0.8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    if names:
        axes.legend(fontsize=8)


def _without_nan(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_without_nan(value) for value in tree]
    return None if isinstance(tree, float) and math.isnan(tree) else tree
