"""Every public function over kinds of input: one table, a check for each kind."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweep_table import ELSEWHERE, TABLE, Setting, example, public_functions

from kernelgrad import kernels, pairwise

ROWS = pytest.mark.parametrize("name", TABLE)
TAKING_ARRAYS = pytest.mark.parametrize("name", [name for name in TABLE if TABLE[name].names])


PLAIN = Setting()


def data(name, **options):
    """Arguments of a row, the same every time."""
    return example(TABLE[name].names, np.random.default_rng(len(name)), **options)


def on_device(arrays):
    return {name: jnp.array(value) for name, value in arrays.items()}


def call(name, arrays, setting=PLAIN):
    """The outputs of a row as a list of arrays."""
    return jax.tree.leaves(TABLE[name].call(setting, **arrays))


def traced(name, arrays, setting=PLAIN):
    """The numbers and the types of outputs of a row's program, which is not run."""
    program = jax.make_jaxpr(lambda: call(name, arrays, setting))()
    numbers = {(str(c.dtype), c.shape, np.asarray(c).tobytes()) for c in program.consts}
    return numbers, [(aval.shape, aval.dtype) for aval in program.out_avals]


def test_every_public_function_has_a_row():
    assert set(public_functions()) == TABLE.keys() | ELSEWHERE.keys()
    assert not TABLE.keys() & ELSEWHERE.keys()


def _awkward(array):
    """The array as read-only big-endian columns of a larger one in Fortran's order."""
    kind = {"f": ">f8", "i": ">i4"}[array.dtype.kind]
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), kind, order="F")
    wide[..., ::2] = array
    wide.flags.writeable = False
    return wide[..., ::2]


@ROWS
def test_numpy_arrays_are_taken_like_jax_arrays(name):
    """Whatever their strides, byte order and precision, and never with a warning."""
    arrays = data(name)
    awkward = {key: _awkward(value) for key, value in arrays.items()}
    numbers, types = traced(name, on_device(arrays))
    assert traced(name, awkward) == (numbers, types)
    assert traced(name, awkward, Setting(number=np.float64))[1] == types


NO_ARRAYS = {
    "list": lambda a: a.tolist(),
    "tuple": lambda a: tuple(map(tuple, a.reshape(a.shape[0], -1).tolist())),
    "NoneType": lambda a: None,
    "str": lambda a: "points",
    "MaskedArray": lambda a: np.ma.masked_array(a),
}
OPTIONAL = {"y", "centers", "gradient_weights"}  # None is a value of theirs
PYTREES = {"latent", "params", "positions"}  # where a list is a pytree of numbers


@TAKING_ARRAYS
def test_what_is_no_array_is_refused_by_one_sentence(name):
    arrays = on_device(data(name))
    for argument in arrays.keys() - PYTREES:
        for kind, change in NO_ARRAYS.items():
            if kind == "NoneType" and argument in OPTIONAL:
                continue
            with pytest.raises(ValueError, match=r"\A\S+: got .*\Z") as error:
                call(name, {**arrays, argument: change(np.asarray(arrays[argument]))})
            got, _, expected = str(error.value).partition("; expected ")
            assert got.endswith(f": got {kind}")
            assert expected == "a JAX or NumPy array"


@TAKING_ARRAYS
def test_other_dtypes_are_named(name):
    arrays = data(name)
    for argument, value in arrays.items():
        others = [value.astype(complex), value.astype(object), np.full(value.shape, "a")]
        if value.dtype.kind == "f":
            others.append(value.astype(np.int32))
        for other in others:
            with pytest.raises(ValueError, match=re.escape(f": got dtype {other.dtype}; expected")):
                call(name, {**arrays, argument: other})


# ------------------------------------------------------------------------------------------ dtypes


def _types(name, arrays, setting):
    """Dtypes of a row's outputs, and whether a sum of them has a gradient, by tracing alone."""

    def total(arrays):
        floats = [leaf for leaf in call(name, arrays, setting) if leaf.dtype.kind != "i"]
        return sum(jnp.sum(leaf).astype(jnp.float32) for leaf in floats)

    if TABLE[name].smooth and arrays:
        jax.eval_shape(jax.grad(total), arrays)
    return [leaf.dtype for leaf in jax.eval_shape(lambda a: call(name, a, setting), arrays)]


FOLLOWS_THE_FLAG = {"kernels.median_mixture", "adversarial.wasserstein_bound"}  # numbers, no data


@ROWS
def test_x64_changes_no_dtype_of_float32_data(name):
    """Under strict promotion, with kernels and numbers in float64."""
    arrays = data(name)
    usual = _types(name, arrays, PLAIN)
    with jax.enable_x64(True):
        wide = _types(name, arrays, Setting(number=jnp.float64))
    assert wide == usual or name in FOLLOWS_THE_FLAG


@pytest.mark.parametrize(
    "make",
    [
        lambda: kernels.rbf_mixture([1.0, 2.0], [0.5, 1.0]),
        lambda: kernels.imq_mixture(1.0, exponent=-0.7),
        lambda: kernels.rational_quadratic(1.0, alpha=2.0),
        lambda: kernels.matern32(1.0),
        lambda: kernels.matern52(1.0),
        lambda: kernels.laplace(1.0),
        lambda: kernels.feature_kernel(kernels.rbf_mixture(1.0), lambda w, x: jnp.tanh(w * x), 2.0),
    ],
)
def test_x64_changes_no_dtype_under_any_kernel(make):
    x = np.ones((4, 3), np.float32)
    with jax.enable_x64(True):
        sums = lambda kernel: pairwise.stein_sum(kernel, x, None, x)  # noqa: E731
        assert jax.eval_shape(sums, make()).dtype == jnp.float32
        jax.eval_shape(jax.grad(lambda kernel: jnp.sum(sums(kernel))), make())
