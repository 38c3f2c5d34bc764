"""Tables for the terminal and for Markdown, and how figures spread."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """Figures of the same kind, such as one a seed, in short.

    Attributes:
      mean: of the figures.
      deviation: their standard deviation, with divisor n - 1; nan for a single one.
    """

    mean: float
    deviation: float

    def text(self, mean: str = ".4g", deviation: str = ".2g") -> str:
        """Returns "mean ± deviation" in these formats; the mean alone for a single figure."""
        spread = "" if math.isnan(self.deviation) else f" ± {self.deviation:{deviation}}"
        return f"{self.mean:{mean}}{spread}"


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    """Returns mean and standard deviation of at least one figure."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else math.nan
    return Spread(float(np.mean(values)), float(deviation))


def format_table(rows: Mapping[str, Mapping[str, float | str]]) -> str:
    """Returns a Markdown table that reads well as plain text, too.

    Args:
      rows: values by column name, by row name; numbers get four significant digits, a missing
        value a dash.

    Returns:
      Lines without a final newline.
    """
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = [["", *columns]]
    for name, row in rows.items():
        cells.append([name, *(_text(row[column]) if column in row else "-" for column in columns)])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    cells.insert(1, ["-" * width for width in widths])
    padded = (
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in cells
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
