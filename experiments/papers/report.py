"""report.md: the claims of a page with their verdicts, and its tables and figures, made again."""

import json
import re
from collections.abc import Collection, Sequence

from experiments.papers import claims
from experiments.papers.claims import Claim, Paper
from experiments.papers.runs import Step
from experiments.run import files
from experiments.run.errors import StorageError
from experiments.run.tables import format_table
from experiments.run.workdirs import Workdir

_MOST_BYTES = 2**24
_SEED = re.compile(r"_seed\d+$")  # of a run that is the same under another seed
_LEGEND = """\
A verdict follows from the parts below a claim: holds, if all are so; does not hold here, if none
is; else holds in part. Figures are means and deviations over seeds; lower and higher are meant seed
by seed, in the mean by more than the standard error of the differences."""

Rows = dict[str, dict[str, str]]


def rows(
    folder: Workdir,
    all_claims: Sequence[Claim],
    all_steps: Sequence[Step],
    run: Collection[Step],
    scale: str,
) -> Rows:
    """Returns the table of claims: each, and below it its parts.

    Args:
      folder: of all runs.
      all_claims: of the page.
      all_steps: its runs at this scale.
      run: those that have finished.
      scale: at smoke nothing is decided.

    Raises:
      StorageError: what a run has left is missing or damaged.
    """
    found: Rows = {}
    for number, claim in enumerate(all_claims, start=1):
        behind = [step for step in all_steps if _SEED.sub("", step.folder) in claim.of]
        there = set(claim.of) <= {step.folder for step in behind}
        parts = claim.look(folder.path) if there and all(step in run for step in behind) else ()
        decided = claims.verdict(parts) if parts else claims.NOT_RUN
        verdict = claims.UNDECIDED if scale == "smoke" else decided
        found[f"{number} {claim.says}"] = {"paper": claim.paper, "ours": "", "verdict": verdict}
        for index, part in enumerate(parts, start=1):
            so = "so" if part.holds else "not so"
            row = {"paper": "", "ours": part.ours, "verdict": so}
            found[f"{number}.{index} {part.rule}"] = row
    return found


def write(
    folder: Workdir, paper: Paper, all_steps: Sequence[Step], run: Collection[Step], scale: str
) -> Rows:
    """Writes report.md and claims.json, prints the table of claims, and returns its rows.

    Args:
      folder: of all runs.
      paper: the page.
      all_steps: its runs at this scale.
      run: those that have finished.
      scale: of SCALES.

    Raises:
      StorageError: what a run has left is missing or damaged.
    """
    table = rows(folder, paper.claims, all_steps, run, scale)
    text = format_table(table)
    parts = [f"# {paper.title}", f"At the scale {scale}.", text, _LEGEND]
    for step in all_steps:
        parts.append(f"## {step.folder}")
        parts.append(f"    python -m experiments.{step.command}")
        parts += _left(folder, step) if step in run else ["It did not finish."]
    folder.write_bytes("report.md", ("\n\n".join(parts) + "\n").encode())
    folder.write_bytes("claims.json", (json.dumps(table, indent=2) + "\n").encode())
    print(text)
    print(f"{_LEGEND}\nwritten to {folder.path}/report.md and claims.json")
    return table


def _left(folder: Workdir, step: Step) -> list[str]:
    """Returns what the report shows of a run: its tables, and links to its pictures."""
    shown = []
    for pattern in step.run.leaves:
        paths = sorted((folder.path / step.folder).glob(pattern))
        if not paths:
            raise StorageError(
                f"{folder.path}/{step.folder}/{pattern}: got nothing; expected what the run has "
                "left. Remove finished.json, and run the same command again"
            )
        for path in paths:
            if path.suffix == ".md":
                with files.storage(str(path)):
                    shown.append(files.read(path, _MOST_BYTES).decode(errors="replace").strip())
            else:
                place = path.relative_to(folder.path).as_posix()
                shown.append(f"![{place}]({place})")
    return shown
