"""Table and pictures of rbm, beside the exact likelihoods of machines without hidden units."""

import json

import jax.numpy as jnp
import numpy as np

from experiments.data.dataset import Dataset
from experiments.pictures import charts, mosaics
from experiments.run.tables import format_table
from experiments.run.workdirs import Workdir
from experiments.targets import boltzmann
from experiments.targets.boltzmann import RBMParams
from experiments.training import amortized
from experiments.training.amortized import Config

_NUM_SHOWN = 12
TEST = "test_log_likelihood"
_PUBLISHED = {"svgd": -771.2, "score": -989.6}  # README of the public code; log Z by HAIS


def anchors(dataset: Dataset) -> dict[str, float]:
    """Returns the exact test log-likelihoods of the machines without hidden units.

    Args:
      dataset: images.

    Returns:
      That of N(0, I), and that of N(mean of the training images, I).
    """
    train, test = (
        amortized.as_points(jnp.asarray(images)) for images in (dataset.train, dataset.test)
    )
    zero = jnp.zeros(train.shape[1])
    none = jnp.zeros((train.shape[1], 0))
    machines = {"N(0, I)": zero, "N(mean, I)": jnp.mean(train, axis=0)}
    return {
        name: float(boltzmann.mean_log_likelihood(RBMParams(none, mean, jnp.zeros(0)), test))
        for name, mean in machines.items()
    }


def write(
    folder: Workdir,
    config: Config,
    dataset: Dataset,
    histories: dict[str, list[list[dict[str, float]]]],
    pictures: dict[str, dict[str, np.ndarray]],
) -> None:
    """Writes table and pictures of the seeds that are done."""
    references = anchors(dataset)
    rows: dict[str, dict[str, float | str]] = {}
    for name, runs in histories.items():
        finals = [run[-1] for run in runs]
        rows[name] = {
            f"seed {seed}": f"{final[TEST]:.1f}"
            for seed, final in zip(config.seeds, finals, strict=False)
        }
        rows[name]["mean"] = f"{np.mean([final[TEST] for final in finals]):.1f}"
        for key in ("train_log_likelihood", "sample_variance", "sample_mean_error"):
            if key in finals[0]:
                rows[name][key] = f"{np.mean([final[key] for final in finals]):.1f}"
        if config.dataset == "mnist" and name in _PUBLISHED:
            rows[name]["published"] = f"{_PUBLISHED[name]:.1f}"
    rows |= {name: {"mean": f"{value:.1f}"} for name, value in references.items()}
    table = format_table(rows)
    panel = charts.CurvePanel(
        "exact test log-likelihood (nats)",
        "epoch",
        {
            name: (
                np.array([record["step"] for record in runs[0]]),
                np.array([[record[TEST] for record in run] for run in runs]),
            )
            for name, runs in histories.items()
        },
        references,
    )
    folder.write_bytes("table.md", (table + "\n").encode())
    folder.write_bytes("results.json", (json.dumps(rows, indent=2) + "\n").encode())
    folder.write_bytes("curves.png", charts.curve_panels([[panel]]))
    folder.write_bytes(
        "samples.png",
        mosaics.image_rows(
            {"data": dataset.test[:_NUM_SHOWN] / 255.0}
            | {
                f"{name}: {kind}": images[:_NUM_SHOWN]
                for name, kinds in pictures.items()
                for kind, images in kinds.items()
            }
        ),
    )
    print(table)
    print(f"written to {folder.path}/table.md, curves.png and samples.png")
