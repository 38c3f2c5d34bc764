"""The residual network, and its training."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.judges import resnet
from experiments.judges.resnet import Recipe, ResidualBlock
from experiments.run.errors import DivergenceError
from tests.experiments.conftest import NUM_CLASSES

SMALL = Recipe(8, stem_stride=1, batch_size=50, num_steps=60, learning_rate=1e-2)


def fit(dataset, labels, seed=0):
    return resnet.train(dataset.train, labels, NUM_CLASSES, SMALL, seed=seed, description="ResNet")


def loop_accuracy(predicted, labels):
    right = 0
    for one, other in zip(predicted, labels, strict=True):
        right += int(one) == int(other)
    return right / len(labels)


def grouped(x, epsilon=1e-6):
    """Group normalisation, scale 1 and shift 0, and relu, in float64."""
    n, h, w, c = x.shape
    groups = x.reshape(n, h, w, c // resnet.GROUP_SIZE, resnet.GROUP_SIZE)
    mean = groups.mean(axis=(1, 2, 4), keepdims=True)
    variance = groups.var(axis=(1, 2, 4), keepdims=True)
    return np.maximum(((groups - mean) / np.sqrt(variance + epsilon)).reshape(x.shape), 0)


def convolved(x, kernel):
    """3 x 3 convolution of stride 1, zeros around, in float64."""
    n, h, w, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = np.zeros((n, h, w, kernel.shape[-1]))
    for i in range(3):
        for j in range(3):
            total += padded[:, i : i + h, j : j + w] @ kernel[i, j]
    return total


@pytest.mark.thorough
def test_a_block_adds_its_branch_to_its_input(key, rng):
    inputs = rng.normal(1, 2, size=(3, 5, 6, 16)).astype(np.float32)
    block = ResidualBlock(16)
    variables = jax.jit(block.init)(key, inputs)
    kernels = [
        np.asarray(variables["params"][name]["kernel"], np.float64) for name in ("Conv_0", "Conv_1")
    ]
    expected = inputs + convolved(grouped(convolved(grouped(inputs), kernels[0])), kernels[1])
    np.testing.assert_allclose(block.apply(variables, inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
def test_the_gradient_reaches_the_input_past_a_branch_of_zero(key, rng):
    inputs, weights = rng.normal(size=(2, 2, 4, 4, 8)).astype(np.float32)
    block = ResidualBlock(8)
    params = jax.jit(block.init)(key, inputs)["params"]
    last = jax.tree.map(jnp.zeros_like, params["Conv_1"])

    @jax.jit
    def output_and_gradient(x):
        output, pull = jax.vjp(lambda x: block.apply({"params": params | {"Conv_1": last}}, x), x)
        return output, pull(jnp.asarray(weights))[0]

    output, gradient = output_and_gradient(inputs)
    np.testing.assert_array_equal(output, inputs)
    np.testing.assert_array_equal(gradient, weights)


@pytest.mark.parametrize(
    ("features", "stride", "shape"), [(16, 1, (7, 6)), (8, 2, (4, 3)), (16, 2, (4, 3))]
)
def test_a_block_that_changes_the_shape(key, features, stride, shape):
    block = ResidualBlock(features, stride)
    output, variables = jax.eval_shape(block.init_with_output, key, jnp.ones((2, 7, 6, 8)))
    assert output.shape == (2, *shape, features)
    assert variables["params"]["Conv_2"]["kernel"].shape == (1, 1, 8, features)


@pytest.mark.thorough
def test_it_learns_what_is_easy_to_learn(toy):
    predicted = fit(toy, toy.train_labels)(toy.test)
    assert loop_accuracy(predicted, toy.test_labels) > 0.99


@pytest.mark.thorough
def test_shuffled_labels_teach_nothing(toy, rng):
    """Whatever is learnt, whole classes go astray together: 5 sigma of 10 throws, not of 200."""
    predicted = fit(toy, rng.permutation(toy.train_labels))(toy.test)
    sigma = math.sqrt(0.1 * 0.9 / NUM_CLASSES)
    assert loop_accuracy(predicted, toy.test_labels) < 0.1 + 5 * sigma


@pytest.mark.thorough
def test_training_follows_the_seed(toy, rng):
    noise = rng.integers(256, size=(200, 8, 8, 1)).astype(np.uint8)
    first, same, other = (fit(toy, toy.train_labels, seed)(noise) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert np.any(first != other)


@pytest.mark.thorough
def test_an_image_is_classified_on_its_own(toy, rng):
    """In whatever order and number, and beyond one chunk of prediction."""
    classify = fit(toy, toy.train_labels)
    noise = rng.integers(256, size=(1200, 8, 8, 1)).astype(np.uint8)
    predicted = classify(noise)
    assert predicted.shape == (1200,)
    assert len(np.unique(predicted)) > 1
    np.testing.assert_array_equal(predicted, classify(noise[::-1])[::-1])


def test_every_image_is_taken_once_a_pass():
    batches = resnet._batches(25, 8, seed=0)
    passes = [np.concatenate([next(batches) for _ in range(3)]) for _ in range(3)]
    for indices in passes:
        assert len(set(indices)) == 24
        assert max(indices) < 25
    assert any(passes[0] != passes[1])


@pytest.mark.thorough
def test_a_loss_that_is_not_finite_ends_training(toy, monkeypatch):
    monkeypatch.setattr(resnet, "_step", lambda state, *_: (state, jnp.nan))
    with pytest.raises(DivergenceError, match=r"ResNet: step \d+: the loss is nan"):
        fit(toy, toy.train_labels)
