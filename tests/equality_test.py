"""Equality by value: copies of whatever a kernel holds are equal, what differs is not."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernelgrad import kernel_learning, kernels


def scaled(params, x, *, factor=1.0):
    return factor * jnp.broadcast_to(params, x.shape) * x


class Network:
    """A module without an equality of its own."""

    def __init__(self, shift):
        self.shift, self.sizes = shift, {"hidden": [3, 4]}
        self.own = self.apply  # which holds itself

    def apply(self, params, x):
        return params * x + self.shift


class Loud(Network):
    """One whose equality fails, as that of a dataclass of arrays does."""

    def __eq__(self, other):
        raise ValueError("the truth value of an array is ambiguous")

    __hash__ = None


FUNCTIONS = {
    "function": (scaled, np.tanh),
    "bound method": (Network(np.ones(2)).apply, Network(np.ones(3)).apply),
    "method of what does not compare": (Loud(1.0).apply, Loud(2.0).apply),
    "partial": (functools.partial(scaled, factor=2.0), functools.partial(scaled, factor=3.0)),
    "partial of a method": (
        functools.partial(Network(1.0).apply, {"w": np.ones(2)}),
        functools.partial(Network(1.0).apply, {"w": np.zeros(2)}),
    ),
}
PARAMS = {
    "array": (jnp.ones(2), jnp.zeros(2)),
    "minus zero": (jnp.zeros(2), -jnp.zeros(2)),
    "nan": (jnp.full(2, jnp.nan), jnp.ones(2)),
    "typed key": (jax.random.key(0), jax.random.key(1)),
    "keys": ({"rngs": jax.random.split(jax.random.key(0))}, {"rngs": jax.random.key(0)}),
    "keys of another kind": (jax.random.key(0), jax.random.key(0, impl="rbg")),
    "tree": ({"a": [jnp.ones(2), None]}, {"b": [jnp.ones(2), None]}),
    "number": (2.0, jnp.float16(2.0)),
}
COPIES = (
    copy.copy,
    copy.deepcopy,
    lambda kernel: pickle.loads(pickle.dumps(kernel)),  # noqa: S301  # our own
)


def check(kernel, other):
    for again in COPIES:
        twin = again(kernel)
        assert twin == kernel
        assert kernel == twin
        assert not kernel != twin  # noqa: SIM202  # which is a function of its own
        assert hash(twin) == hash(kernel)
        assert twin != other
        assert other != kernel


@pytest.mark.parametrize("name", FUNCTIONS)
def test_copies_of_kernels_of_any_function_are_equal(name):
    one, other = (
        kernels.feature_kernel(kernels.rbf_mixture(1.0), fn, jnp.ones(2)) for fn in FUNCTIONS[name]
    )
    check(one, other)


@pytest.mark.parametrize("name", PARAMS)
def test_copies_of_kernels_of_any_parameters_are_equal(name):
    one, other = (
        kernels.feature_kernel(kernels.rbf_mixture(1.0), scaled, params) for params in PARAMS[name]
    )
    check(one, other)


def test_the_parts_of_a_deep_kernel_go_through_pickle():
    kernel, other = (kernel_learning.deep_kernel(scaled, params) for params in PARAMS["array"])
    twins = pickle.loads(pickle.dumps(kernel.parts))  # noqa: S301  # our own
    assert twins == kernel.parts
    x = jnp.ones((1, 2))
    np.testing.assert_array_equal(twins[0].features(x), kernel.parts[0].features(x))
    pairs = zip(kernel.parts, other.parts, strict=True)
    assert [one == another for one, another in pairs] == [False, True]
