"""Features of images, from networks that are trained once on a data set, frozen and cached.

They are for objectives to look through. The network that judges samples
(:mod:`experiments.judges.classifiers`) has another architecture and another seed, and is never one
of them.
"""

import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from experiments.data.dataset import Dataset
from experiments.networks import encoders, optimizers
from experiments.run import cluster, files, store
from experiments.run.errors import DataError, UsageError, line
from experiments.run.workdirs import Workdir
from kernelgrad import _checks
from kernelgrad.types import Array, Key, PyTree

PIXELS = "pixels"  # the samples as they are, images or not
NAMES = (PIXELS, *encoders.TRAINERS)
_SEED = 1_000_003  # the judge's is 0
_MOST_BYTES = 2**30  # of a cached extractor
_RECORD = "features.json"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an encoder is built and trained: AdamW, a cosine schedule, random batches.

    Attributes:
      width: channels of its first convolution.
      num_features: what comes out.
      batch_size: images a step, drawn with replacement.
      num_steps: number of steps.
      learning_rate: its peak, after 5 % of the steps.
      weight_decay: AdamW's, in units of the learning rate.
    """

    width: int = 16
    num_features: int = 128
    batch_size: int = 128
    num_steps: int = 2000
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2

    def optimizer(self) -> optax.GradientTransformation:
        """Returns the optimizer with its schedule."""
        return optimizers.cosine_adamw(
            self.learning_rate,
            self.num_steps,
            num_warmup=self.num_steps // 20,
            weight_decay=self.weight_decay,
        )


DEFAULT = Recipe()
NUM_FEATURES = DEFAULT.num_features


@dataclasses.dataclass(frozen=True, eq=False)
class Extractor:
    """A trained encoder, as a function of images; it equals itself alone, so that jit takes it.

    Attributes:
      name: of the features, one of NAMES.
      dataset: the name of what it was trained on.
      encoder: its architecture.
      params: its parameters.
      sample_shape: (h, w, c) of the images it takes.
      sha256: digest of its parameters, in hexadecimal.
    """

    name: str
    dataset: str
    encoder: encoders.Encoder
    params: PyTree
    sample_shape: tuple[int, ...]
    sha256: str

    def __call__(self, images: Array) -> Array:
        """Returns features (n, l) of images (n, h, w, c) in [0, 1].

        Raises:
          ValueError: the images are not floating or of another shape.
        """
        (images,) = _checks.floating(images=images)
        _checks.shape("images", images, ("n", *self.sample_shape))
        return self.encoder.apply({"params": self.params}, images)


def check(names: Sequence[str], dataset: Dataset) -> None:
    """Refuses features that no network can be trained to see in a data set.

    Raises:
      DataError: the data are no images, or have no labels where those are asked for.
    """
    for name in names:
        if name == PIXELS:
            continue
        if not dataset.is_image:
            raise DataError(
                f"features: got {name} for {dataset.name}, which holds points; expected {PIXELS}"
            )
        if name in encoders.LABELLED and dataset.train_labels is None:
            unlabelled = [one for one in NAMES if one not in encoders.LABELLED]
            raise DataError(
                f"features: got {name} for {dataset.name}, which has no labels; expected some of "
                f"{', '.join(unlabelled)}"
            )


def train_or_load(
    name: str,
    dataset: Dataset,
    cache_dir: str | os.PathLike[str],
    *,
    seed: int = _SEED,
    recipe: Recipe = DEFAULT,
) -> Extractor:
    """Returns an extractor of a data set: from the cache, else trained and cached.

    A damaged cache file is named on stderr and replaced. Training takes seconds for the digits,
    minutes for MNIST on two cores.

    Args:
      name: of the features, one of NAMES but the pixels.
      dataset: what it is trained on, or a part of it (`Dataset.part`); its test data are not
        looked at.
      cache_dir: folder for the extractors; created if need be.
      seed: of initialisation, batches and views.
      recipe: architecture and training.

    Raises:
      DataError: the data are no images or have no labels, or the file in the cache holds the
        extractor of another data set.
      OSError: the folder cannot be created or written to.
    """
    check([name], dataset)
    dataset = dataset.part()
    path = Path(cache_dir) / _file_name(name, dataset, recipe, seed)
    params = _load(path, name, dataset)
    if params is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"cache folder {path.parent} is not writable")
        params = jax.device_get(_train(name, dataset, recipe, seed))
        arrays = flax.traverse_util.flatten_dict(params, sep=".")
        named = {**arrays, "of": np.array(name), "dataset": np.array(dataset.name)}
        files.replace(path, store.packed(named), shared=True)
    digest = store.digest(flax.traverse_util.flatten_dict(params, sep="."))
    encoder = encoders.Encoder(recipe.width, recipe.num_features)
    params = jax.tree.map(jnp.asarray, params)
    return Extractor(name, dataset.name, encoder, params, dataset.sample_shape, digest)


def hold_to(folder: Workdir, extractors: Sequence[Extractor]) -> None:
    """Keeps a run to the extractors that it began with, by their digests in its folder.

    Raises:
      UsageError: one of them is another, there or in another process of the run.
    """
    record = {one.name: one.sha256 for one in extractors}
    path = folder.path / _RECORD
    cluster.require_same({f"features of {name}": digest for name, digest in record.items()})
    if not record or not folder.is_mine:
        return
    if files.kind(path) is None:
        folder.write_bytes(_RECORD, (json.dumps(record, indent=2) + "\n").encode())
        return
    try:
        began = json.loads(files.read(path, _MOST_BYTES))
        changed = [name for name, digest in record.items() if began.get(name) != digest]
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{path}: got no digests by name; expected those of a run") from error
    if changed:
        name = changed[0]
        raise UsageError(
            f"features: got {name} of SHA-256 {record[name]:.12}; expected "
            f"{began.get(name)!s:.12}, with which {folder.path} began. Restore its file in the "
            "cache, or use another workdir"
        )


# --------------------------------------------------------------------------------------- training


def _train(name: str, dataset: Dataset, recipe: Recipe, seed: int) -> PyTree:
    """Returns the parameters of an encoder after training."""
    images = jnp.asarray(dataset.train[:])
    known = dataset.train_labels if name in encoders.LABELLED else None
    labels = jnp.asarray(np.zeros(len(images), np.int32) if known is None else known)
    init_key, key = jax.random.split(jax.random.key(seed))
    trainer = _trainer(name, dataset.num_classes, recipe)
    rngs = dict(zip(("params", "draw"), jax.random.split(init_key), strict=True))
    params = jax.jit(trainer.init)(rngs, images[:2] / 255, labels[:2])["params"]
    state = params, recipe.optimizer().init(params)
    with tqdm(range(recipe.num_steps), desc=f"Training the {name} of {dataset.name}") as bar:
        for step in bar:
            state, loss = _advance(
                state,
                jax.random.fold_in(key, step),
                images,
                labels,
                trainer=trainer,
                recipe=recipe,
            )
            if step % 100 == 0:
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
    return state[0]["encoder"]


def _trainer(name: str, num_classes: int, recipe: Recipe) -> Any:
    return encoders.TRAINERS[name](encoders.Encoder(recipe.width, recipe.num_features), num_classes)


@functools.partial(jax.jit, static_argnames=("trainer", "recipe"), donate_argnames="state")
def _advance(
    state: tuple[PyTree, optax.OptState],
    key: Key,
    images: Array,
    labels: Array,
    *,
    trainer: Any,
    recipe: Recipe,
) -> tuple[tuple[PyTree, optax.OptState], Array]:
    """Returns parameters and optimizer state after one step, and its loss."""
    params, opt_state = state
    chosen_key, draw_key = jax.random.split(key)
    chosen = jax.random.randint(chosen_key, (recipe.batch_size,), 0, len(images))
    batch = images[chosen].astype(jnp.float32) / 255

    def loss_fn(params: PyTree) -> Array:
        return trainer.apply({"params": params}, batch, labels[chosen], rngs={"draw": draw_key})

    loss, gradient = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = recipe.optimizer().update(gradient, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss


# ------------------------------------------------------------------------------------------ cache


def _file_name(name: str, dataset: Dataset, recipe: Recipe, seed: int) -> str:
    """Returns a name that ends in 16 digits of what the data, the recipe and the seed are."""
    content = json.dumps([name, dataclasses.asdict(recipe), seed, dataset.num_classes])
    digest = hashlib.sha256(content.encode())
    store.update(digest, "train", dataset.train)
    if name in encoders.LABELLED:
        store.update(digest, "train_labels", dataset.train_labels)
    return f"features-{name}-{dataset.name.replace('/', '-')}-{digest.hexdigest()[:16]}.npz"


def _load(path: Path, name: str, dataset: Dataset) -> PyTree | None:
    """Returns the parameters in a file, or None if it is missing or damaged."""
    if files.kind(path) is None:
        return None
    try:
        arrays = store.read(path, _MOST_BYTES)
    except ValueError as error:
        message = f"{path} is damaged ({error}); the {name} is trained again"
        print(line("warning", message), file=sys.stderr, flush=True)
        return None
    kind, of = (str(arrays.pop(field, "nothing")) for field in ("of", "dataset"))
    if (kind, of) != (name, dataset.name):
        raise DataError(
            f"features: got {path}, the {kind} of {of:.60}; expected the {name} of {dataset.name}. "
            "Remove the file"
        )
    return flax.traverse_util.unflatten_dict(arrays, sep=".")
