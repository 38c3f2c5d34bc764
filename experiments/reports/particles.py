"""Table and curves of svgd_posterior."""

import json

import numpy as np

from experiments.pictures import charts
from experiments.pictures.charts import CurvePanel
from experiments.run.tables import format_table
from experiments.run.workdirs import Workdir
from experiments.targets.long_chains import Chains

Record = dict[str, float]
Histories = dict[tuple[str, int], list[Record]]


def write(
    folder: Workdir,
    rows: dict[str, dict[str, float | str]],
    chains: Chains,
    histories: Histories,
    ksd_of_n: dict[int, float],
) -> None:
    """Writes results.json, table.md and curves.png, and prints the table.

    Args:
      folder: of all runs.
      rows: the table.
      chains: what the particles are compared with.
      histories: records by rule of the lengthscale and number of particles.
      ksd_of_n: discrepancy of as many draws of the chain, by number of particles.
    """
    figures = {name: value for name, value in chains._asdict().items() if name != "draws"}
    results = {"svgd": rows, "chain": figures}
    folder.write_bytes("results.json", (json.dumps(results, indent=2) + "\n").encode())
    table = format_table(rows)
    trust = "HMC: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    folder.write_bytes("table.md", f"{table}\n\n{trust}\n".encode())

    (chain,) = (row for name, row in rows.items() if name.startswith("HMC"))
    likelihood = float(chain["test_log_likelihood"])
    draws = {f"{n} particles": value for n, value in ksd_of_n.items()}

    def panel(rule: str, name: str, title: str, references: Record, yscale: str) -> CurvePanel:
        curves = {
            f"{n} particles": (
                np.array([record["step"] for record in history]),
                np.array([[record[name] for record in history]]),
            )
            for (of, n), history in histories.items()
            if of == rule
        }
        return CurvePanel(f"{rule} rule: {title}", "step", curves, references, yscale=yscale)

    drawn = [
        [
            panel(rule, "ksd", "KSD (dashed: as many draws of HMC)", draws, "log"),
            panel(rule, "variance_ratio", "variance / that of HMC", {"HMC": 1.0}, "log"),
            panel(rule, "test_log_likelihood", "test log-lik.", {"HMC": likelihood}, "linear"),
        ]
        for rule in dict.fromkeys(rule for rule, _ in histories)
    ]
    folder.write_bytes("curves.png", charts.curve_panels(drawn))
    print(table)
    print(trust)
    print(f"written to {folder.path}/results.json, table.md and curves.png")
