"""The classifier behind inception score and feature distances: trained once, then cached.

Grey images are judged by a perceptron, coloured ones by the small residual network.

A score means something only beside the classifier that gave it, so every classifier has a SHA-256
of its parameters and knows its test accuracy.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import sys
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from tqdm import tqdm

from experiments.data.dataset import Dataset
from experiments.judges import resnet
from experiments.networks import encoders, optimizers
from experiments.run import files, store
from experiments.run.errors import DataError, line
from kernelgrad import _checks
from kernelgrad.train import as_unit_interval
from kernelgrad.types import Array, Key, PyTree


class MLPClassifier(nn.Module):
    """Multilayer perceptron on flattened images in [0, 1].

    Attributes:
      num_classes: number of logits.
      width: units of each of the two hidden layers.
      dropout_rate: share of hidden units dropped in training, in [0, 1).
    """

    num_classes: int
    width: int = 512
    dropout_rate: float = 0.2

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, Array]:
        """Returns logits (n, num_classes) and features (n, width), the last hidden layer.

        Args:
          images: (n, h, w, c) in [0, 1].
          train: drop units; needs ``rngs={"dropout": key}``.
        """
        hidden = images.reshape(images.shape[0], -1)
        for _ in range(2):
            hidden = nn.relu(nn.Dense(self.width)(hidden))
            hidden = nn.Dropout(self.dropout_rate, deterministic=not train)(hidden)
        return nn.Dense(self.num_classes)(hidden), hidden


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """How a perceptron is built and trained: AdamW, cosine schedule, images shifted at random.

    Attributes:
      width: units of each of the two hidden layers.
      dropout_rate: of the hidden units, in [0, 1).
      shift: largest shift of an image along each axis, in pixels.
      batch_size: images a step.
      num_epochs: passes over the data; more where it takes them to make `min_steps` steps.
      min_steps: least number of steps.
      learning_rate: its peak, after 4 % of the steps.
      weight_decay: AdamW's, in units of the learning rate.
    """

    width: int = 512
    dropout_rate: float = 0.1
    shift: int = 1
    batch_size: int = 256
    num_epochs: int = 25
    min_steps: int = 1500
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2

    def network(self, num_classes: int) -> MLPClassifier:
        """Returns the network that is trained."""
        return MLPClassifier(num_classes, self.width, self.dropout_rate)


_Network = MLPClassifier | resnet.ResNet
_MOST_BYTES = 2**30  # of a cached classifier
_JUDGED = 1000  # images at a time


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained classifier.

    Attributes:
      network: its architecture.
      params: its parameters.
      sample_shape: (h, w, c) of the images it takes.
      test_accuracy: share of the test images that it classifies right, in [0, 1].
      sha256: digest of its parameters, in hexadecimal.
    """

    network: _Network
    params: PyTree
    sample_shape: tuple[int, ...]
    test_accuracy: float
    sha256: str

    def probs(self, images: Array) -> Array:
        """Returns the class probabilities (n, num_classes) of images (n, h, w, c) in [0, 1].

        Raises:
          ValueError: the images are not floating or of another shape.
        """
        return self._outputs(images)[0]

    def features(self, images: Array) -> Array:
        """Returns the last hidden layer (n, l) for images (n, h, w, c) in [0, 1].

        Raises:
          ValueError: the images are not floating or of another shape.
        """
        return self._outputs(images)[1]

    def _outputs(self, images: Array) -> tuple[Array, Array]:
        _checks.floating(images=images)
        _checks.shape("images", images, ("n", *self.sample_shape))
        return _probs_and_features(self.network, self.params, jnp.asarray(images))


def train_or_load(
    dataset: Dataset,
    cache_dir: str | os.PathLike[str],
    *,
    seed: int = 0,
    config: ClassifierConfig | resnet.Recipe | None = None,
) -> Classifier:
    """Returns the classifier of a data set: from the cache, else trained and cached.

    A damaged cache file is named on stderr and replaced. Training takes half a minute for MNIST
    on two cores, minutes for CIFAR-10.

    Args:
      dataset: images with labels; of one on the disk, a part is taken (`Dataset.part`).
      cache_dir: folder for the classifiers; created if need be.
      seed: of initialisation, dropout, shifts and order.
      config: architecture and training; by default a perceptron for grey images, the residual
        network for coloured ones.

    Raises:
      DataError: the data are no images or have no labels.
      OSError: the folder cannot be created or written to.
    """
    check(dataset)
    dataset = dataset.part()
    config = config or _usual(dataset)
    network = config.network(dataset.num_classes)
    name = dataset.name.replace("/", "-")
    path = Path(cache_dir) / f"classifier-{name}-{_key(dataset, config, seed)}.npz"
    params = _load(path)
    if params is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"cache folder {path.parent} is not writable")
        params = _train(dataset, network, config, seed)
        _save(path, params)
    params = jax.tree.map(jnp.asarray, params)
    predicted = np.asarray(_probs_and_features(network, params, dataset.test[:])[0]).argmax(axis=1)
    accuracy = float(np.mean(predicted == dataset.test_labels))
    return Classifier(network, params, dataset.sample_shape, accuracy, _digest(params))


def _usual(dataset: Dataset) -> ClassifierConfig | resnet.Recipe:
    return ClassifierConfig() if dataset.sample_shape[-1] == 1 else resnet.Recipe()


def check(dataset: Dataset) -> None:
    """Raises DataError where the data are no images or have no labels."""
    if not dataset.is_image or dataset.train_labels is None or dataset.test_labels is None:
        raise DataError(f"dataset: got {dataset.name}; the classifier expects images with labels")


def _probs_and_features(
    network: _Network, params: PyTree, images: Array | np.ndarray
) -> tuple[Array, Array]:
    """Returns class probabilities (n, c) and features (n, l), some images at a time."""
    chunks = (images[i : i + _JUDGED] for i in range(0, len(images), _JUDGED))
    parts = [_of_some(network, params, as_unit_interval(jnp.asarray(some))) for some in chunks]
    probs, features = zip(*parts, strict=True)
    return jnp.concatenate(probs), jnp.concatenate(features)


@functools.partial(jax.jit, static_argnames="network")
def _of_some(network: _Network, params: PyTree, images: Array) -> tuple[Array, Array]:
    logits, features = network.apply({"params": params}, images, train=False)
    return jax.nn.softmax(logits, axis=1), features


# --- training ------------------------------------------------------------------------------------


def _train(
    dataset: Dataset, network: _Network, config: ClassifierConfig | resnet.Recipe, seed: int
) -> PyTree:
    title = f"Training the classifier of {dataset.name}"
    if isinstance(config, resnet.Recipe):
        named = np.asarray(dataset.train_labels)
        return resnet.fit(network, dataset.train[:], named, config, seed=seed, description=title)
    images, labels = jnp.asarray(dataset.train[:]), jnp.asarray(dataset.train_labels)
    batch_size = min(config.batch_size, len(images))
    epoch_steps = len(images) // batch_size
    num_epochs = max(config.num_epochs, math.ceil(config.min_steps / epoch_steps))
    recipe = _Recipe(network, config, batch_size, num_epochs * epoch_steps)

    init_key, key = jax.random.split(jax.random.key(seed))
    init = jax.jit(network.init, static_argnames="train")
    params = init(init_key, jnp.zeros((1, *dataset.sample_shape)), train=False)["params"]
    carry = params, recipe.optimizer().init(params)
    with tqdm(range(num_epochs), desc=title) as bar:
        for index in bar:
            epoch_key = jax.random.fold_in(key, index)
            carry, loss = _run_epoch(carry, epoch_key, images, labels, recipe=recipe)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
    return carry[0]


class _Recipe(NamedTuple):
    """What a compiled epoch is specialised to."""

    network: MLPClassifier
    config: ClassifierConfig
    batch_size: int
    num_steps: int

    def optimizer(self) -> optax.GradientTransformation:
        return optimizers.cosine_adamw(
            self.config.learning_rate,
            self.num_steps,
            num_warmup=self.num_steps // 25,
            weight_decay=self.config.weight_decay,
        )

    def loss(self, params: PyTree, images: Array, labels: Array, key: Key) -> Array:
        variables, rngs = {"params": params}, {"dropout": key}
        logits, _ = self.network.apply(variables, images, train=True, rngs=rngs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


_Carry = tuple[PyTree, optax.OptState]


@functools.partial(jax.jit, static_argnames="recipe", donate_argnames="carry")
def _run_epoch(
    carry: _Carry, key: Key, images: Array, labels: Array, *, recipe: _Recipe
) -> tuple[_Carry, Array]:
    """Returns parameters and optimizer state after one pass over the images, and its mean loss."""
    order_key, key = jax.random.split(key)
    num_steps = len(images) // recipe.batch_size
    order = jax.random.permutation(order_key, len(images))[: num_steps * recipe.batch_size]
    optimizer = recipe.optimizer()

    def step(carry: _Carry, item: tuple[Array, Key]) -> tuple[_Carry, Array]:
        params, opt_state = carry
        chosen, key = item
        shift_key, dropout_key = jax.random.split(key)
        shifted = encoders.shifted(shift_key, images[chosen], recipe.config.shift)
        batch = shifted.astype(jnp.float32) / 255
        loss, grads = jax.value_and_grad(recipe.loss)(params, batch, labels[chosen], dropout_key)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    items = order.reshape(num_steps, recipe.batch_size), jax.random.split(key, num_steps)
    carry, losses = lax.scan(step, carry, items)
    return carry, losses.mean()


# --- cache ---------------------------------------------------------------------------------------


def _key(dataset: Dataset, config: ClassifierConfig | resnet.Recipe, seed: int) -> str:
    """Returns 16 digits that name the data, the config and the seed."""
    recipe = json.dumps([dataclasses.asdict(config), seed, dataset.num_classes])
    digest = hashlib.sha256(recipe.encode())
    for field in ("train", "train_labels", "test", "test_labels"):
        store.update(digest, field, getattr(dataset, field))
    return digest.hexdigest()[:16]


def _digest(params: PyTree) -> str:
    return store.digest(flax.traverse_util.flatten_dict(params, sep="."))


def _save(path: Path, params: PyTree) -> None:
    arrays = flax.traverse_util.flatten_dict(jax.device_get(params), sep=".")
    files.replace(path, store.packed(arrays), shared=True)


def _load(path: Path) -> PyTree | None:
    """Returns the parameters in a file, or None if it is missing or damaged."""
    if files.kind(path) is None:
        return None
    try:
        return flax.traverse_util.unflatten_dict(store.read(path, _MOST_BYTES), sep=".")
    except ValueError as error:
        message = f"{path} is damaged ({error}); the classifier is trained again"
        print(line("warning", message), file=sys.stderr, flush=True)
        return None
