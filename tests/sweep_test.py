"""Every public function over kinds of input: one table, a check for each kind."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweep_rows import KINDS, Setting, example
from sweep_table import ELSEWHERE, TABLE, public_functions

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
    without = {
        name.split(".")[0] if name.split(".")[0] in ELSEWHERE else name
        for name in set(public_functions()) - TABLE.keys()
    }
    assert without == ELSEWHERE.keys()


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
PYTREES = {"latent", "position", "params", "positions"}  # where a list is a pytree of numbers


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


@TAKING_ARRAYS
def test_x64_changes_no_dtype_of_float32_data(name):
    """Under strict promotion, with kernels and numbers in float64; by tracing alone."""
    arrays, row = data(name), TABLE[name]
    usual = jax.eval_shape(row.with_gradient(PLAIN), arrays)
    with jax.enable_x64(True):
        wide = jax.eval_shape(row.with_gradient(Setting(number=jnp.float64)), arrays)
    assert [leaf.dtype for leaf in jax.tree.leaves(wide)] == [
        leaf.dtype for leaf in jax.tree.leaves(usual)
    ]


SEVERAL = [name for name, row in TABLE.items() if len({*row.names} - {"labels"}) > 1]


@pytest.mark.parametrize("wide_first", [False, pytest.param(True, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("name", SEVERAL)
def test_arrays_of_two_dtypes_are_brought_to_the_wider(name, wide_first):
    """Float32 beside float64, with gradients; by tracing alone."""
    arrays, row = data(name), TABLE[name]
    for place, (key, value) in enumerate(arrays.items()):
        arrays[key] = value.astype(np.float64 if wide_first == (place == 0) else np.float32)
    with jax.enable_x64(True):
        outputs, gradient = jax.eval_shape(row.with_gradient(PLAIN), arrays)
    for leaf in jax.tree.leaves(outputs):
        assert leaf.dtype == jnp.float64 or not jnp.issubdtype(leaf.dtype, jnp.floating)
    assert {key: leaf.dtype for key, leaf in gradient.items()} == {
        key: value.dtype for key, value in arrays.items() if gradient
    }


@pytest.mark.parametrize(
    "make",
    [
        *(functools.partial(family, 1.0) for family in kernels.FAMILIES.values()),
        lambda: kernels.rbf_mixture([1.0, 2.0], [0.5, 1.0]),
        lambda: kernels.imq_mixture(1.0, exponent=-0.7),
        lambda: kernels.rational_quadratic(1.0, alpha=2.0),
        lambda: kernels.feature_kernel(kernels.rbf_mixture(1.0), lambda w, x: jnp.tanh(w * x), 2.0),
    ],
)
def test_x64_changes_no_dtype_under_any_kernel(make):
    x = np.ones((4, 3), np.float32)
    with jax.enable_x64(True):
        sums = lambda kernel: pairwise.stein_sum(kernel, x, None, x)  # noqa: E731
        assert jax.eval_shape(sums, make()).dtype == jnp.float32
        jax.eval_shape(jax.grad(lambda kernel: jnp.sum(sums(kernel))), make())


# ------------------------------------------------------------------------------- shapes and values


@TAKING_ARRAYS
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 3), (3, 784), (10, 1)])
def test_few_points_of_any_dimension_are_taken_or_refused_in_one_line(name, shape):
    n, d = shape
    arrays = data(name, n=n, d=d)
    if n >= TABLE[name].least:
        jax.eval_shape(lambda a: call(name, a), arrays)
        return
    with pytest.raises(ValueError, match=r"\A[^\n]+: got .*; expected [^\n]*(\n---|\Z)"):
        jax.eval_shape(lambda a: call(name, a), arrays)


CALLERS = {  # of functions of the row, which compute in the dtype of the points
    *("hmc", "langevin", "latent", "pullback", "two_player", "steingan"),
    "_learned_features",
    *("chains.stein_test", "chains.stein_thinning", "ksd.ksd_gradient", "svgd.step"),
    *(name for name in TABLE if "penalty" in name),
}


def _calls_back(name):
    return name in CALLERS or name.split(".")[0] in CALLERS


@TAKING_ARRAYS
def test_half_precision_comes_back_as_it_is_or_as_float32(name):
    for dtype in (jnp.float16, jnp.bfloat16):
        for leaf in jax.eval_shape(lambda a: call(name, a), data(name, dtype=dtype)):
            assert leaf.dtype in (dtype, jnp.float32, jnp.int32, jnp.bool_)
            of_all = leaf.shape == () and not (_calls_back(name) or name in CHOICES)
            assert leaf.dtype != dtype or not of_all  # statistics and losses are in full


def _traced_number(value):
    return value


def compiled(name):
    """A row of a traced unit and arrays, compiled once for all of its float32 inputs."""

    @jax.jit
    def run(unit, arrays):
        return call(name, arrays, Setting(unit=unit, number=_traced_number))

    return lambda arrays, unit=1.0: [np.asarray(leaf, np.float64) for leaf in run(unit, arrays)]


OF_LENGTHS = [name for name, row in TABLE.items() if row.powers is not None and row.names]
FEW = [
    "pairwise.gradient_sum",
    "score_peers.kde_score_at",
    "fssd.fssd_u_statistic",
    "noise.noisy_logits_and_gradient",
]
# functions of points whose value is not that of the differences between them
AT_A_PLACE = {
    *(
        "ksd.ksd_gradient",
        "chains.stein_test",
        "chains.stein_thinning",
        "svgd.init",
        "svgd.step",
        "adversarial.interpolates",
    ),
    *("noise.instance_noise", "noise.bounded_noise", "fssd.goodness_of_fit_test"),
    *("steingan.steingan", "chains.stein_block_length", "selection.select"),
    *("metrics.frechet_distance", "objectives.noisy_jsd", "_fields.noisy_mmd"),
    *("kernel_learning.halves", "_algebra.through", "selection.hyvarinen_loss"),
    *(name for name in TABLE if "penalty" in name or name.split(".")[0] in ("hmc", "langevin")),
}

CHOICES = {
    *("ksd.stein_thinning", "chains.stein_thinning", "chains.stein_block_length"),
    "selection.select",
}


def check_values(name):
    """Yields what is wrong with the values of a row."""
    run, arrays = compiled(name), data(name)
    base = run(arrays)
    if not all(np.all(np.isfinite(leaf)) for leaf in base):
        yield "is not finite"
    powers = TABLE[name].powers
    powers = [powers] * len(base) if isinstance(powers, int) else powers
    for exponent in (-50, 50):
        unit = 2.0**exponent
        for got, want, power in zip(run(data(name, unit=unit), unit), base, powers, strict=True):
            expected = np.max(np.abs(want), initial=0) * unit**power
            if expected and not 1e-37 < expected < 1e37:
                continue
            scaled = got * unit ** -float(power)
            if not np.allclose(scaled, want, rtol=1e-4, atol=1e-4 * np.abs(want).max(initial=0)):
                yield f"changes with the unit 2^{exponent}: {scaled.ravel()[:3]} {want.ravel()[:3]}"
    if name not in AT_A_PLACE:
        moved = data(name, offset=1e4)
        near = {
            key: value - np.float32(1e4) if KINDS.get(key, "points") == "points" else value
            for key, value in moved.items()
        }
        for got, want in zip(run(moved), run(near), strict=True):
            if not np.allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max(initial=0)):
                yield f"changes with an offset: {got.ravel()[:3]} {want.ravel()[:3]}"
    for key, value in arrays.items():
        if value.dtype.kind == "f":
            bad = value.copy()
            bad.flat[0] = np.nan
            seen = [np.any(np.isnan(leaf)) for leaf in run({**arrays, key: bad})]
            if not (all(seen[:2]) if name.endswith("_test") else any(seen)) and name not in CHOICES:
                yield f"does not see a NaN in {key}"


@pytest.mark.parametrize("name", FEW)
def test_values(name):
    assert list(check_values(name)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_LENGTHS)
def test_values_of_all(name):
    assert list(check_values(name)) == []


def check_gradients(name):
    """Yields where derivatives change with the unit of length, beyond the powers that they have."""
    powers = TABLE[name].powers
    arrays, twice = data(name), data(name, unit=2.0)
    floats = {key for key, value in arrays.items() if value.dtype.kind == "f"}
    of_inputs = {
        key: np.log2(np.abs(twice[key]).max() / np.abs(arrays[key]).max()) for key in floats
    }

    @jax.jit
    def gradient(unit, arrays):
        def loss(own):
            leaves = call(name, {**arrays, **own}, Setting(unit=unit, number=_traced_number))
            each = [powers] * len(leaves) if isinstance(powers, int) else powers
            parts = (
                jnp.sum(leaf * unit ** -float(power))
                for leaf, power in zip(leaves, each, strict=True)
                if jnp.issubdtype(leaf.dtype, jnp.floating)
            )
            return sum(parts, start=jnp.zeros(()))

        return jax.grad(loss)({key: arrays[key] for key in floats})

    base = gradient(1.0, arrays)
    for exponent in (-38, 38):
        unit = 2.0**exponent
        got = gradient(unit, data(name, unit=unit))
        for key, want in base.items():
            scaled = np.asarray(got[key], np.float64) * unit ** of_inputs[key]
            if not np.allclose(scaled, want, rtol=1e-3, atol=1e-3 * np.abs(want).max()):
                sizes = scaled.ravel()[:3], np.ravel(want)[:3]
                yield f"in {key}, with the unit 2^{exponent}: {sizes[0]} {sizes[1]}"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n == "svgd.svgd_direction" else pytest.mark.slow)
        for n in OF_LENGTHS
        if TABLE[n].smooth
    ],
)
def test_derivatives_do_not_depend_on_the_unit(name):
    assert list(check_gradients(name)) == []


# -------------------------------------------------------------------------------- transformations


COINCIDING = {"all arrays alike", "one point many times"}  # where values may be all rounding


def _legal(name):
    """Finite inputs at which derivatives and logarithms have their corners."""
    usual = data(name)
    first: dict = {}

    def alike(key, value):
        return first.setdefault((KINDS.get(key, "points"), value.shape), value)

    def sharp(key, value):
        if KINDS.get(key) == "probabilities":
            return np.eye(value.shape[1], dtype=value.dtype)[np.argmax(value, axis=1)]
        return 300 * value if KINDS.get(key) == "vector" else value

    def one_point(key, value):
        is_points = KINDS.get(key, "points") == "points"
        return np.repeat(value[:1], len(value), axis=0) if is_points else value

    changes = {
        "as it is": lambda key, value: value,
        "all arrays alike": alike,
        "one point many times": one_point,
        "sharp": sharp,
    }
    return {
        kind: {key: change(key, value) for key, value in usual.items()}
        for kind, change in changes.items()
    }


def _near(got, want, tolerance=1e-4):
    """Whether leaves agree to a share of their largest value."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return all(
        np.allclose(
            np.asarray(a, np.float64), b, rtol=0, atol=tolerance * np.abs(b).max(initial=1e-30)
        )
        for a, b in ((a, np.asarray(b, np.float64)) for a, b in pairs)
    )


def check_transformations(name):
    """Yields what is wrong with values and gradient op by op, under jit, debug_nans and vmap."""
    plain = TABLE[name].with_gradient(PLAIN)
    run, inputs = jax.jit(plain), _legal(name)
    single = {}
    for kind, arrays in inputs.items():
        try:
            with jax.debug_nans(True):
                single[kind] = run(arrays)
                eager = plain(on_device(arrays))
        except FloatingPointError as error:
            yield f"trips debug_nans, {kind}: {error}"
            continue
        if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(single[kind])):
            yield f"is not finite, {kind}"
        if kind not in COINCIDING and not _near(eager, single[kind]):
            yield f"changes under jit, {kind}: {eager} {single[kind]}"
    stacked = jax.tree.map(lambda *a: np.stack(a), *(inputs[kind] for kind in single))
    at_once = jax.jit(jax.vmap(plain))(stacked)
    for row, (kind, want) in enumerate(single.items()):
        got = jax.tree.map(lambda a, row=row: a[row], at_once)
        if kind not in COINCIDING and not _near(got, want):
            yield f"changes under vmap, {kind}: {got} {want}"


def check_half_precision(name):
    """Yields where halves give other values than the same numbers in full precision."""
    draws = "random_" in str(jax.make_jaxpr(lambda a: call(name, a))(data(name)))
    for dtype in (jnp.float16, jnp.bfloat16):
        halves = data(name, dtype=dtype)
        got = jax.jit(lambda a: call(name, a))(halves)
        with jax.enable_x64(not draws):  # whose draws are others in float64
            full = np.float32 if draws else np.float64
            wide = {
                key: value.astype(full) if value.dtype.kind != "i" else value
                for key, value in halves.items()
            }
            want = jax.jit(lambda a: call(name, a))(wide)
        for a, b in zip(got, want, strict=True):
            kind = dtype if _calls_back(name) else a.dtype
            rounding = 4 * float(jnp.finfo(kind).eps) if a.dtype.kind != "i" else 0
            # a difference of what the caller's function, or an optimizer of halves, has rounded
            size = 16 / max(np.abs(b).max(initial=0), 1e-30) if name in DIFFERENCES else 1
            if not _near(a, b, 1e-4 + rounding * max(size, 1)):
                yield f"{dtype.dtype}: {np.ravel(a)[:3]} {np.ravel(b)[:3]}"


DIFFERENCES = {"hmc.step", "langevin.mala_step", "pullback.regression"}
A_FEW = ["kale.log_normalizer_estimate", "metrics.inception_score", "adversarial.gradient_penalty"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in A_FEW else pytest.mark.slow)
        for n in TABLE
        if TABLE[n].names
    ],
)
def test_eager_compiled_and_mapped_values_are_one_and_nothing_is_nan(name):
    assert list(check_transformations(name)) == []


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in A_FEW else pytest.mark.slow)
        for n in TABLE
        if TABLE[n].names
    ],
)
def test_half_precision_computes_in_full(name):
    assert list(check_half_precision(name)) == []
