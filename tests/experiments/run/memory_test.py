"""Estimates of memory, against what training really allocates."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

from experiments.networks import critics, generators
from experiments.run import memory
from experiments.run.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Config:
    """Two settings."""

    width: int = 3
    batch_size: int = 7


def test_the_bytes_of_a_tree():
    tree = {"a": jnp.zeros((3, 2)), "b": [jnp.zeros(5, jnp.uint8), jax.random.key(0)]}
    assert memory.of(tree) == 24 + 5 + 8
    assert memory.of(jax.eval_shape(lambda: tree)) == 24 + 5 + 8


def test_training_takes_parameters_four_times_the_batch_and_what_the_gradient_needs():
    network = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)])
    parameters = 4 * (5 * 3 + 3 + 3 * 2 + 2)
    expected = 4 * parameters + 4 * 10 * 5 + 4 * 10 * (3 + 2)
    assert memory.of_training(network, 10, 5) == expected


@pytest.mark.parametrize("make", [generators.generator_for, critics.critic_for])
def test_the_estimate_is_below_and_near_what_xla_allocates(make):
    """Of the state, its gradient and the temporaries of a step; images of 8 x 8."""
    network, n = make((8, 8, 1), 64), 32
    shape = (n, 50) if make is generators.generator_for else (n, 8, 8, 1)
    variables = jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros(shape), train=False)
    )
    adam = optax.adam(1e-3)
    opt = jax.eval_shape(adam.init, variables["params"])

    def step(variables, opt, inputs):
        def loss(params):
            return jnp.sum(network.apply({**variables, "params": params}, inputs, train=False) ** 2)

        updates, opt = adam.update(jax.grad(loss)(variables["params"]), opt)
        return optax.apply_updates(variables["params"], updates), opt

    inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
    found = jax.jit(step).lower(variables, opt, inputs).compile().memory_analysis()
    real = found.argument_size_in_bytes + found.temp_size_in_bytes
    assert 0.2 * real < memory.of_training(network, *shape, train=False) < 1.5 * real


def test_what_cannot_fit_is_refused_with_both_figures(monkeypatch):
    monkeypatch.setattr(memory, "total", lambda: 2.0**30)
    memory.require(Config(), ("width",), 2.0**30)
    message = (
        r"^width, batch_size: got 3, 7, for which a run takes 2.5 GiB of memory or more; expected "
        "at most the 1 GiB that the device has$"
    )
    with pytest.raises(UsageError, match=message):
        memory.require(Config(), ("width", "batch_size"), 2.5 * 2**30)


def test_the_machine_has_memory():
    assert 2**28 < memory.total() < 2**50
