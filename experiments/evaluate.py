"""Judges the images of a trained generator.

    python -m experiments.evaluate --workdir=runs/digits

Draws samples from the newest checkpoint of a run of experiments.train and prints their scores
beside those of real images; they are written to evaluation.json in the run's folder. The
classifier behind the scores is trained once for a data set and cached, and its SHA-256 is printed.
Its distances are none of the published ones. FID and KID in Inception's features take the weights
of pytorch-fid or torch-fidelity, which are not fetched:

    python -m experiments.evaluate --workdir=runs/cifar10 --inception_weights=<file>
"""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.data.dataset import Dataset
from experiments.judges import classifiers, image_metrics, inception_scores
from experiments.judges.image_metrics import Scores
from experiments.pictures import mosaics
from experiments.run import command, fields, memory, places
from experiments.run.tables import format_table
from experiments.training import settings, trained
from experiments.training.trained import Trained
from kernelgrad.types import Array

_JUDGED_BY_NEIGHBOURS = 500  # as in paper 000


@dataclasses.dataclass(frozen=True)
class Config:
    """What to evaluate."""

    num_samples: int = fields.integer(
        10_000,
        _JUDGED_BY_NEIGHBOURS,
        fields.MAX_SIZE,
        "Samples behind the scores of the classifier, and of Inception.",
    )
    inception_weights: str | None = fields.word(
        None,
        "File with the public weights of Inception, "
        "pt_inception-2015-12-05-6726825d.pth, for FID and KID. Thrice as many images as samples "
        "pass through it, which takes long without an accelerator.",
    )


def run(config: Config, *, workdir: str, data_dir: str | None = None) -> dict[str, Scores]:
    """Scores a run's samples, and real images as if they were samples.

    Args:
      config: the settings.
      workdir: the folder of the run.
      data_dir: where the data set's files are.

    Returns:
      Scores by row: "generated", "real test images" (neighbours in the training set, inception
      score) and "real training images" (inception score, distances to the test images).

    Raises:
      UsageError: no run with a checkpoint there, no images with labels, too few samples, or
        weights that are not those of Inception.
      StorageError: the folder cannot be used.
    """
    fields.validate(config)
    weights = None
    if config.inception_weights is not None:
        weights = inception_scores.load(config.inception_weights)

    def check(_: settings.Config, dataset: Dataset) -> None:
        classifiers.check(dataset)
        image_metrics.check(dataset)
        if weights is not None:
            inception_scores.check(dataset)
        size = 4 * config.num_samples * math.prod(dataset.sample_shape)
        memory.require(config, ("num_samples",), size)

    with trained.opened(workdir, data_dir, check=check) as (folder, run):
        dataset = run.dataset
        classifier = classifiers.train_or_load(dataset, places.cache())
        samples = _draw(run, config.num_samples)
        neighbours = image_metrics.neighbours(dataset)
        inception = image_metrics.inception(classifier)
        distances = image_metrics.feature_distances(dataset, classifier)
        test = image_metrics.as_images(dataset.test[: config.num_samples])
        known = image_metrics.as_images(dataset.train[: config.num_samples])
        rows = {
            "generated": {
                **neighbours(samples[:_JUDGED_BY_NEIGHBOURS]),
                **inception(samples),
                **distances(samples),
            },
            "real test images": {
                **neighbours(test[:_JUDGED_BY_NEIGHBOURS]),
                **inception(test),
            },
            "real training images": {**inception(known), **distances(known)},
        }
        if weights is not None:
            published = inception_scores.scores(dataset, weights, config.num_samples)
            rows["generated"].update(published(samples))
            rows["real training images"].update(published(known))
        report = {
            "num_samples": config.num_samples,
            "classifier_test_accuracy": classifier.test_accuracy,
            "classifier_sha256": classifier.sha256,
            **rows,
        }
        folder.write_bytes("evaluation.json", (json.dumps(report, indent=2) + "\n").encode())
        folder.write_bytes("samples/evaluated.png", mosaics.image_grid(np.asarray(samples[:100])))
    print(format_table(rows))
    print(
        f"classifier: test accuracy {100 * classifier.test_accuracy:.2f} %, "
        f"SHA-256 {classifier.sha256[:16]}; written to {folder.path}/evaluation.json"
    )
    return rows


def _draw(run: Trained, num_samples: int) -> Array:
    batches = run.batches(jax.random.key(run.config.seed), num_samples)
    return jnp.concatenate(list(tqdm(batches, desc=f"Sampling at step {run.step}")))


def main() -> None:
    """Parses the flags and evaluates."""
    command.main_in_workdir(run, Config)


if __name__ == "__main__":
    main()
