"""Every contract says its argument's name, what it got and what it expected, in one line."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernelgrad import _checks

X = np.zeros((3, 2), np.float32)

BAD = {
    "x: got dtype int32; expected floating": lambda: _checks.floating(x=X.astype(np.int32)),
    "z: got dtype uint8; expected floating": lambda: _checks.floating(x=X, z=X.astype(np.uint8)),
    "k: got dtype complex64; expected floating": lambda: _checks.floating(k=X.astype(np.complex64)),
    "w: got shape (3, 2); expected (3), no size 0": lambda: _checks.shape("w", X, (3,)),
    "w: got shape (3, 2); expected (3, 1), no size 0": lambda: _checks.shape("w", X, (3, 1)),
    "w: got shape (0, 2); expected (n, 2), no size 0": lambda: _checks.shape("w", X[:0], ("n", 2)),
    "w: got shape (); expected (n), no size 0": lambda: _checks.shape("w", 1.0, ("n",)),
    "x: got dtype bool; expected floating": lambda: _checks.points(x=X > 0),
    "x: got shape (2,); expected (n, d), no size 0": lambda: _checks.points(x=X[0]),
    "y: got shape (1, 3, 2); expected (n, d), no size 0": lambda: _checks.points(x=X, y=X[None]),
    "z: got shape (3, 1); expected (n, 2) like x": lambda: _checks.points(x=X, y=X, z=X[:, :1]),
    "step: got 0.; expected values in (0, infinity)": lambda: _checks.positive(step=0.0),
    "step: got nan; expected values in (0, infinity)": lambda: _checks.positive(step=math.nan),
    "step: got inf; expected values in (0, infinity)": lambda: _checks.positive(step=jnp.inf),
    "b: got [ 1. -2.]; expected values in (0, infinity)": lambda: _checks.positive(
        a=1.0, b=[1.0, -2.0]
    ),
    "q: got 1.; expected values in (0, 1)": lambda: _checks.in_range("q", 1.0, 0, 1),
    "q: got 0.; expected values in (0, 1]": lambda: _checks.in_range("q", 0.0, 0, 1, closed="r"),
    "q: got 1.; expected values in [0, 1)": lambda: _checks.in_range("q", 1.0, 0, 1, closed="l"),
    "q: got nan; expected values in [0, 1]": lambda: _checks.in_range(
        "q", math.nan, 0, 1, closed="lr"
    ),
    "k: got [-1. -1. -1. ... -1. -1. -1.]; expected values in (0, infinity)": lambda: (
        _checks.positive(k=-np.ones(200))
    ),
    "k: got an integer of 101 bits; expected a number of at most 64": lambda: _checks.positive(
        k=2**100
    ),
    "v: got dtype int32; expected floating": lambda: _checks.scalar("v", np.int32(1)),
    "v: got shape (3,); expected (), no size 0": lambda: _checks.scalar("v", np.zeros(3)),
    "n: got 1; expected an integer >= 2": lambda: _checks.at_least("n", 1, 2),
}


@pytest.mark.parametrize("message", BAD)
def test_messages(message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        BAD[message]()


def test_what_is_allowed_passes():
    _checks.floating(a=1.0, b=X, c=jnp.zeros(2, jnp.bfloat16))
    _checks.shape("x", X, ("n", 2))
    _checks.shape("s", 1.0, ())
    _checks.points(x=X, y=X[:1])
    _checks.positive(a=1e-300, b=[1, 2], c=jnp.ones(3))
    for closed, ends in {"l": [0.0], "r": [1.0], "lr": [0.0, 1.0], "": []}.items():
        for value in [0.5, *ends]:
            _checks.in_range("q", value, 0.0, 1.0, closed=closed)
    _checks.at_least("n", 2, 2)


def test_traced_numbers_pass_and_traced_shapes_do_not():
    @jax.jit
    def traced(x, scale):
        _checks.positive(scale=scale, scales=[scale, 2 * scale])
        _checks.in_range("q", scale, 0.0, 1.0)
        _checks.points(x=x)
        return scale

    assert traced(X, -1.0) == -1
    with pytest.raises(ValueError, match=r"^x: got dtype int32"):
        traced(X.astype(np.int32), 1.0)


def test_concrete_numbers_are_checked_inside_jit():
    with pytest.raises(ValueError, match=r"^scale: got -1"):
        jax.jit(lambda x: _checks.positive(scale=-1.0))(X)


AWKWARD = {
    "strides": X[::-1, ::2],
    "column order": np.asfortranarray(X),
    "byte order": X.astype(">f4"),
    "double": X.astype(np.float64),
    "double, other byte order": X.astype(">f8"),
    "long double": X.astype(np.longdouble),
    "a number": np.float64(0.1),
    "out of range": np.array([1e300, -1e300]),
    "half": X.astype(np.float16),
    "bfloat16": np.asarray(jnp.ones(3, jnp.bfloat16)),
    "Python's": 0.1,
}


@pytest.mark.parametrize("name", AWKWARD)
def test_numpy_arrays_become_jax_arrays_of_their_values(name):
    array = AWKWARD[name] + np.asarray(1, np.asarray(AWKWARD[name]).dtype)
    (taken,) = _checks.floating(x=array)
    assert isinstance(taken, jax.Array)
    assert taken.dtype == (jnp.float32 if np.asarray(array).itemsize > 2 else array.dtype)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(taken, np.asarray(array).astype(taken.dtype))


def test_with_x64_doubles_stay():
    with jax.enable_x64(True):
        assert _checks.floating(x=np.zeros(2))[0].dtype == jnp.float64
        assert _checks.floating(x=np.zeros(2, np.float32))[0].dtype == jnp.float32


def test_jax_arrays_pass_as_they_are_and_numpy_arrays_are_copied():
    ours, theirs = jnp.zeros((64, 2)), np.zeros((64, 2), np.float32)
    x, y = _checks.points(x=ours, y=theirs)
    theirs += 1
    assert x is ours
    assert np.all(y == 0)
    assert _checks.pair(ours, None) == (ours, None)


@pytest.mark.parametrize(
    "value", [[[1.0]], ((1.0,),), None, "x", {}, object(), np.ma.masked_array(X)]
)
def test_anything_else_is_refused_by_one_sentence(value):
    message = f"^x: got {type(value).__name__}; expected a JAX or NumPy array$"
    for front in (_checks.floating, _checks.points, _checks.batches, _checks.vectors):
        with pytest.raises(ValueError, match=message):
            front(x=value)
    with pytest.raises(ValueError, match=message):
        _checks.shape("x", value, ("n", "d"))
    with pytest.raises(ValueError, match=message):
        _checks.pair(value, None)


@pytest.mark.parametrize("value", [None, "0.1", 0.1j, [None], np.ones(2, complex)])
def test_numbers_are_real(value):
    with pytest.raises(ValueError, match=r"^ridge: got .*; expected real numbers$"):
        _checks.positive(ridge=value)
    with pytest.raises(ValueError, match=r"^num_steps: got .*; expected an integer >= 1$"):
        _checks.at_least("num_steps", value, 1)
