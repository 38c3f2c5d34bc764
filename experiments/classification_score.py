r"""How much a classifier learns from generated images: the table of paper 003's Figure 2.

    python -m experiments.classification_score --dataset=mnist --data_dir=data \
        --runs=dcgan=runs/dcgan,steingan=runs/steingan --workdir=runs/scores

Every row is a set of labelled images, as large as the real training set: the real one;
"duplicates", a few real images repeated; and draws of conditional runs of experiments.train
(--conditional). Each gets an inception score, by the cached classifier of experiments.evaluate, and
a classification accuracy: that of a small residual network on the real test images, trained from
scratch on the set alone, with the same recipe for all rows. Images that look real one by one give
the former; the latter takes varied ones, true to their labels.

Leaves classification_score.md, classification_score.png (ten images of each class) and
results.json. Run the same command again, also with more runs or seeds, to resume: networks that are
trained are not trained again.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.data import catalog
from experiments.data.dataset import Dataset
from experiments.judges import classifiers, image_metrics, resnet
from experiments.judges.classifiers import Classifier
from experiments.judges.resnet import Recipe
from experiments.pictures import mosaics
from experiments.run import command, fields, files, memory, places, tables, threads
from experiments.run.errors import StorageError, UsageError, short
from experiments.run.tables import format_table
from experiments.run.workdirs import Workdir
from experiments.training import labelled_images, models, trained
from experiments.training.labelled_images import LabelledImages

_DRAWN = 10  # images of each class
_OWN_ROWS = ("real", "duplicates")
_MOST_BYTES, _MOST_VALUES = 2**16, 100  # of a stored accuracy


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the table, but for where it is stored."""

    dataset: str = fields.word("digits", "Images with labels.")
    image_size: int | None = fields.image_size()
    runs: tuple[str, ...] = fields.words(
        (), "Conditional runs of experiments.train on that data set, a row each: name=workdir,..."
    )
    num_images: int | None = fields.integer(
        None,
        1,
        fields.MAX_SIZE,
        "Images of each set; by default as many as the real training set has.",
    )
    num_distinct: int = fields.integer(
        500, 1, fields.MAX_SIZE, "Different images among the duplicates, or all if there are fewer."
    )
    seed: int = fields.seed("Seed of the data, the choice of images, and the generated ones.")
    seeds: tuple[int, ...] = fields.integers(
        (0,), 0, fields.MAX_SEED, "Seeds of the networks that are trained on each set."
    )
    width: int = fields.integer(
        Recipe.width,
        resnet.GROUP_SIZE,
        fields.MAX_SIZE,
        f"Channels of the first stage of these networks, a multiple of {resnet.GROUP_SIZE}.",
    )
    num_blocks: int = fields.integer(
        Recipe.num_blocks, 1, 1000, "Residual blocks in each of the three stages."
    )
    stem_stride: int = fields.integer(
        Recipe.stem_stride, 1, 1000, "Stride of the first convolution; 1 costs four times."
    )
    batch_size: int = fields.integer(Recipe.batch_size, 1, fields.MAX_SIZE, "Images per step.")
    num_steps: int = fields.integer(Recipe.num_steps, 1, fields.MAX_COUNT, "Steps of each network.")
    learning_rate: float = fields.positive(
        Recipe.learning_rate, "Adam's peak, after 5 % of the steps."
    )

    def recipe(self) -> Recipe:
        """Returns how the residual networks are built and trained."""
        names = {field.name for field in dataclasses.fields(Recipe)}
        return Recipe(**{k: v for k, v in dataclasses.asdict(self).items() if k in names})


class Row(NamedTuple):
    """What a set is worth.

    Attributes:
      source: what its images are, in words.
      inception_score: between 1 and the number of classes.
      accuracies: shares of the real test images that networks trained on the set classify right;
        one a seed, in [0, 1].
    """

    source: str
    inception_score: float
    accuracies: tuple[float, ...]

    def summary(self) -> dict[str, float]:
        """Returns mean and, with several seeds, standard deviation of the accuracies."""
        spread = tables.spread(self.accuracies)
        mean = {"accuracy": spread.mean}
        return mean if len(self.accuracies) == 1 else mean | {"deviation": spread.deviation}


def run(config: Config, *, workdir: str, data_dir: str | None = None) -> dict[str, Row]:
    """Scores every set; takes what the work folder already holds.

    Args:
      config: the settings.
      workdir: folder of table, picture and accuracies.
      data_dir: where the data set's files are.

    Returns:
      Rows by name: "real", "duplicates", and one a run.

    Raises:
      UsageError: a setting out of its range, a run that is not conditional, has no checkpoint or is
        of another data set, or a work folder with another config.
      DataError: the data set is unknown, missing or damaged, or no images with labels.
      StorageError: a folder cannot be used.
      DivergenceError: the loss of a network is not finite.
    """
    places.workdir(workdir)
    _validate(config)
    runs = _conditional_runs(config)
    dataset = catalog.load(
        config.dataset,
        data_dir,
        seed=config.seed,
        image_size=config.image_size,
        check=lambda dataset: _check(config, runs, dataset),
    )
    num_images = _num_images(config, dataset)
    classifier = classifiers.train_or_load(dataset, places.cache())
    inception = image_metrics.inception(classifier)
    with Workdir(workdir, config, free_fields=("runs", "seeds")) as folder, threads.one_for_blas():
        rng = np.random.default_rng(config.seed)
        sets = {
            "real": labelled_images.real(dataset, num_images, rng),
            "duplicates": labelled_images.duplicates(dataset, num_images, config.num_distinct, rng),
        }
        for name, place in runs.items():
            sets[name] = labelled_images.generated(
                place, num_images, seed=config.seed, data_dir=data_dir
            )
        rows: dict[str, Row] = {}
        for name, examples in sets.items():
            score = inception(image_metrics.as_images(examples.images))["inception_score"]
            accuracies = (
                _accuracy(folder, name, examples, dataset, config.recipe(), seed)
                for seed in config.seeds
            )
            rows[name] = Row(examples.source, score, tuple(accuracies))
        _write(folder, config, classifier, sets, rows)
    return rows


def _conditional_runs(config: Config) -> dict[str, str]:
    """Returns the folder of every run by name, before anything is trained."""
    runs = trained.named(config.runs, _OWN_ROWS)
    for workdir in runs.values():
        stored = trained.stored_config(workdir)
        if stored.dataset != config.dataset:
            own, wanted = (short(one.dataset) for one in (stored, config))
            raise UsageError(f"runs: got {workdir}, a run on {own}; expected one on {wanted}")
        if stored.image_size != config.image_size:
            raise UsageError(
                f"runs: got {workdir}, a run with image_size {stored.image_size}; expected one "
                f"with {config.image_size}, as --image_size says here"
            )
        if not stored.conditional:
            raise UsageError(
                f"runs: got {workdir}, a run without labels; expected one trained with "
                "--conditional"
            )
        trained.require_checkpoint(workdir)
    return runs


def _num_images(config: Config, dataset: Dataset) -> int:
    return len(dataset.train) if config.num_images is None else config.num_images


def _check(config: Config, runs: Mapping[str, str], dataset: Dataset) -> None:
    """Raises for a data set that the config, or a run on it, does not fit."""
    classifiers.check(dataset)
    num_images = _num_images(config, dataset)
    if num_images > len(dataset.train):
        raise UsageError(
            f"num_images: got {num_images}; expected at most the {len(dataset.train)} training "
            f"images of {dataset.name}"
        )
    for place in runs.values():
        models.check(trained.stored_config(place), dataset)
    network = resnet.ResNet(
        dataset.num_classes, config.width, config.num_blocks, config.stem_stride
    )
    batch_size = min(config.batch_size, num_images)
    needed = memory.of_training(network, batch_size, *dataset.sample_shape)
    memory.require(config, ("width", "num_blocks", "batch_size"), needed)


def _accuracy(
    folder: Workdir,
    name: str,
    examples: LabelledImages,
    dataset: Dataset,
    recipe: Recipe,
    seed: int,
) -> float:
    """Returns the accuracy of a network trained on a set: stored, else measured and stored.

    It is stored under a digest of all that it follows from.
    """
    digest = hashlib.sha256(json.dumps([dataclasses.asdict(recipe), seed]).encode())
    for array in (examples.images, examples.labels, dataset.test, dataset.test_labels):
        digest.update(np.asarray(array).tobytes())
    file = f"accuracies/{digest.hexdigest()[:16]}.json"
    path = folder.path / file
    if files.kind(path) is not None:
        return _stored_accuracy(path)
    description = f"ResNet on {name}, seed {seed}"
    classify = resnet.train(
        examples.images,
        examples.labels,
        dataset.num_classes,
        recipe,
        seed=seed,
        description=description,
    )
    accuracy = float(np.mean(classify(dataset.test[:]) == dataset.test_labels))
    record = {"accuracy": accuracy, "set": name, "source": examples.source, "seed": seed}
    folder.write_bytes(file, f"{json.dumps(record)}\n".encode())
    return accuracy


def _stored_accuracy(path: pathlib.Path) -> float:
    try:
        with files.storage(str(path)):
            record = files.parse_json(files.read(path, _MOST_BYTES), _MOST_VALUES)
        if not 0 <= record["accuracy"] <= 1:
            raise ValueError(f"the accuracy {record['accuracy']}")
        return float(record["accuracy"])
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"{path}: got {error}; expected an accuracy in [0, 1]. Delete it to measure anew"
        ) from error


def _write(
    folder: Workdir,
    config: Config,
    classifier: Classifier,
    sets: Mapping[str, LabelledImages],
    rows: Mapping[str, Row],
) -> None:
    """Writes and prints the table, and writes results and picture."""
    judge = {
        "classifier_test_accuracy": classifier.test_accuracy,
        "classifier_sha256": classifier.sha256,
    }
    size = len(sets["real"].images)
    results: dict[str, Any] = {"config": dataclasses.asdict(config), "num_images": size, **judge}
    results["rows"] = {name: row._asdict() | row.summary() for name, row in rows.items()}
    table = format_table({name: _cells(row) for name, row in rows.items()})
    title = (
        f"{config.dataset}, {size} images in each set; ResNet of width {config.width}, "
        f"{config.num_steps} steps, seeds {', '.join(map(str, config.seeds))}"
    )
    note = (
        f"inception score: classifier of test accuracy {100 * classifier.test_accuracy:.2f} %, "
        f"SHA-256 {classifier.sha256[:16]}"
    )
    grids = {
        name: labelled_images.class_lines(examples, classifier.network.num_classes, _DRAWN) / 255
        for name, examples in sets.items()
    }
    for name, content in {
        "results.json": f"{json.dumps(results, indent=2)}\n".encode(),
        "classification_score.md": f"{title}\n\n{table}\n\n{note}\n".encode(),
        "classification_score.png": mosaics.class_grids(grids),
    }.items():
        folder.write_bytes(name, content)
    print(f"{title}\n{table}\n{note}; written to {folder.path}")


def _cells(row: Row) -> dict[str, float | str]:
    percent = tables.spread([100 * accuracy for accuracy in row.accuracies])
    return {
        "inception score": row.inception_score,
        "test accuracy (%)": percent.text(".2f", ".2f"),
        "images": row.source,
    }


# ----------------------------------------------------------------------------------- the binary


def _validate(config: Config) -> None:
    """Raises UsageError for the first setting out of its range, before anything is read."""
    fields.validate(config)
    if config.width % resnet.GROUP_SIZE:
        raise UsageError(
            f"width: got {config.width}; expected a positive multiple of {resnet.GROUP_SIZE}"
        )


def main() -> None:
    """Parses the flags and scores."""
    command.main_in_workdir(run, Config)


if __name__ == "__main__":
    main()
