"""A small residual network, trained from scratch on a set of labelled images."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from experiments.networks import optimizers
from experiments.run.errors import DivergenceError
from kernelgrad.train import as_unit_interval
from kernelgrad.types import Array, Key, PyTree

GROUP_SIZE = 8  # channels that are normalised together
_STAGES = 3
_PREDICTED = 1000  # images at a time
_SHOWN_EVERY = 25  # steps

Classify = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the network is built and trained: AdamW, cosine schedule, images as they are.

    Attributes:
      width: channels of the first stage, a multiple of `GROUP_SIZE`; the later ones have 2 and 4
        times as many.
      num_blocks: residual blocks in each of the three stages.
      stem_stride: of the first convolution; 2 quarters the cost.
      batch_size: images a step.
      num_steps: number of steps.
      learning_rate: its peak, after 5 % of the steps.
      weight_decay: AdamW's, in units of the learning rate.
    """

    width: int = 16
    num_blocks: int = 1
    stem_stride: int = 2
    batch_size: int = 128
    num_steps: int = 3000
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2

    def optimizer(self) -> optax.GradientTransformation:
        """Returns the optimizer with its schedule."""
        return optimizers.cosine_adamw(
            self.learning_rate,
            self.num_steps,
            num_warmup=self.num_steps // 20,
            weight_decay=self.weight_decay,
        )

    def network(self, num_classes: int) -> "ResNet":
        """Returns the network that is trained."""
        return ResNet(num_classes, self.width, self.num_blocks, self.stem_stride)


class ResidualBlock(nn.Module):
    """Adds to its input two convolutions of it, each after normalisation and relu.

    Where stride or channels change the shape, the input goes through a linear 1 x 1 convolution;
    otherwise nothing stands between it and the sum.

    Attributes:
      features: channels of the output.
      stride: of the first convolution.

    References:
      He et al. 2016 (identity mappings), section 3.
    """

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Returns (n, h / stride, w / stride, features) for (n, h, w, c), sizes rounded up."""
        strides = (self.stride, self.stride)
        active = _norm_relu(inputs)
        hidden = nn.Conv(self.features, (3, 3), strides, use_bias=False)(active)
        branch = nn.Conv(self.features, (3, 3), use_bias=False)(_norm_relu(hidden))
        if branch.shape == inputs.shape:
            return inputs + branch
        return nn.Conv(self.features, (1, 1), strides, use_bias=False)(active) + branch


class ResNet(nn.Module):
    """Residual network: a convolution, three stages of blocks, the mean over pixels, logits.

    Each stage but the first starts with a block of stride 2. Groups of channels are normalised,
    not batches, so that what comes out is a function of the image alone, in training too.

    Attributes:
      num_classes: number of logits.
      width: channels of the first stage.
      num_blocks: blocks a stage.
      stem_stride: of the first convolution.
    """

    num_classes: int
    width: int
    num_blocks: int
    stem_stride: int

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> tuple[Array, Array]:
        """Returns logits (n, num_classes) and features (n, 4 width), the mean over pixels.

        Args:
          images: (n, h, w, c) in [0, 1].
          train: changes nothing, for no unit is dropped.
        """
        strides = (self.stem_stride, self.stem_stride)
        hidden = nn.Conv(self.width, (3, 3), strides, use_bias=False)(images)
        for stage in range(_STAGES):
            for block in range(self.num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                hidden = ResidualBlock(self.width * 2**stage, stride)(hidden)
        features = _norm_relu(hidden).mean(axis=(1, 2))
        return nn.Dense(self.num_classes)(features), features


def _norm_relu(hidden: Array) -> Array:
    return nn.relu(nn.GroupNorm(num_groups=None, group_size=GROUP_SIZE)(hidden))


def train(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    recipe: Recipe,
    *,
    seed: int,
    description: str,
) -> Classify:
    """Trains a network, and returns what it takes an image for.

    Args:
      images: uint8, shape (n, h, w, c).
      labels: in 0..num_classes - 1; shape (n,).
      num_classes: number of classes.
      recipe: architecture and training.
      seed: of initialisation and order.
      description: title of the progress bar.

    Returns:
      Function of images, uint8 (m, h, w, c), to labels (m,).

    Raises:
      DivergenceError: the loss is not finite.
    """
    network = recipe.network(num_classes)
    params = fit(network, images, labels, recipe, seed=seed, description=description)
    return functools.partial(_classify, network, params)


def fit(
    network: ResNet,
    images: np.ndarray,
    labels: np.ndarray,
    recipe: Recipe,
    *,
    seed: int,
    description: str,
) -> PyTree:
    """Returns a network's parameters after training; arguments as in :func:`train`.

    Raises:
      DivergenceError: the loss is not finite.
    """
    key = jax.random.key(seed, impl="rbg")  # an initialisation by threefry compiles 3x longer
    state = _initial_state(key, images[:1], network, recipe)
    resident, targets = jnp.asarray(images), jnp.asarray(labels)
    batches = _batches(len(images), min(recipe.batch_size, len(images)), seed)
    with tqdm(range(recipe.num_steps), desc=description, unit="step") as bar:
        for step in bar:
            state, loss = _step(state, resident, targets, next(batches), network, recipe)
            if step % _SHOWN_EVERY == 0 or step == recipe.num_steps - 1:
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                if not np.isfinite(loss):
                    raise DivergenceError(f"{description}: step {step + 1}: the loss is {loss}")
    return state.params


class _State(NamedTuple):
    params: PyTree
    opt_state: optax.OptState


@functools.partial(jax.jit, static_argnames=("network", "recipe"))
def _initial_state(key: Key, images: Array, network: ResNet, recipe: Recipe) -> _State:
    params = network.init(key, as_unit_interval(images))["params"]
    return _State(params, recipe.optimizer().init(params))


def _batches(n: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Yields indices without end: every pass over the n images has an order of its own."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(n)
        for start in range(0, n - size + 1, size):
            yield order[start : start + size]


@functools.partial(jax.jit, static_argnames=("network", "recipe"), donate_argnames="state")
def _step(
    state: _State, images: Array, labels: Array, chosen: Array, network: ResNet, recipe: Recipe
) -> tuple[_State, Array]:
    """Returns the state after one step, and the loss before it.

    Not scanned over: XLA's loops slow convolutions on a CPU threefold.
    """

    def mean_loss(params: PyTree) -> Array:
        logits, _ = network.apply({"params": params}, as_unit_interval(images[chosen]))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen]).mean()

    loss, grads = jax.value_and_grad(mean_loss)(state.params)
    updates, opt_state = recipe.optimizer().update(grads, state.opt_state, state.params)
    return _State(optax.apply_updates(state.params, updates), opt_state), loss


def _classify(network: ResNet, params: PyTree, images: np.ndarray) -> np.ndarray:
    chunks = range(0, len(images), _PREDICTED)
    return np.concatenate(
        [np.asarray(_predict(params, images[i : i + _PREDICTED], network)) for i in chunks]
    )


@functools.partial(jax.jit, static_argnames="network")
def _predict(params: PyTree, images: Array, network: ResNet) -> Array:
    logits, _ = network.apply({"params": params}, as_unit_interval(images))
    return jnp.argmax(logits, axis=1)
