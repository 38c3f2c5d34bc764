"""Learned kernels: the deep kernel by loops, ascent, calibration of the held-out test, errors."""

import copy
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

from kernelgrad import kernel_learning, kernels, mmd, pairwise


def _lenient(optimizer):
    """The optimizer, whose own arithmetic may promote dtypes."""

    def update(*args):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(*args)

    return optax.GradientTransformation(optimizer.init, update)


ADAM = _lenient(optax.adam(0.1))


def phi(w, points):
    return jnp.tanh(points @ w)


def _deep(w, **numbers):
    options = {"feature_lengthscale": 0.6, "lengthscale": 1.7, "share": 0.2, **numbers}
    return kernel_learning.deep_kernel(phi, w, **options)


def _deep_loops(w, feature_lengthscale=0.6, lengthscale=1.7, share=0.2):
    """[(1 - e) k0(phi, phi) + e] k1, from the two distances."""

    def kernel_fn(a, b):
        of_features = np.sum((np.tanh(a @ w) - np.tanh(b @ w)) ** 2)
        deep = (1 - share) * math.exp(-of_features / (2 * feature_lengthscale**2)) + share
        return deep * math.exp(-np.sum((a - b) ** 2) / (2 * lengthscale**2))

    return kernel_fn


@pytest.mark.thorough
def test_power_of_a_deep_kernel_is_the_papers_with_its_gradients(rng):
    x, y = rng.normal(size=(6, 2)), rng.normal(0.5, 1.3, size=(6, 2))
    w = rng.normal(size=(2, 3))
    numbers = {"feature_lengthscale": 0.6, "lengthscale": 1.7, "share": 0.2}

    @jax.jit
    @jax.value_and_grad
    def power(values):
        numbers = {name: value for name, value in values.items() if name != "w"}
        return mmd.test_power(jnp.asarray(x), jnp.asarray(y), _deep(values["w"], **numbers))

    with jax.enable_x64(True):
        got, gradient = power(jax.tree.map(jnp.asarray, {**numbers, "w": w}))
    np.testing.assert_allclose(got, oracles.test_power(_deep_loops(w), x, y)[0], rtol=1e-10)
    for name in numbers:
        up, down = (
            oracles.test_power(_deep_loops(w, **{**numbers, name: numbers[name] + s}), x, y)[0]
            for s in (1e-5, -1e-5)
        )
        np.testing.assert_allclose(gradient[name], (up - down) / 2e-5, rtol=1e-5)
    bump = np.zeros_like(w)
    bump[1, 2] = 1e-5
    up, down = (oracles.test_power(_deep_loops(w + s * bump), x, y)[0] for s in (1, -1))
    np.testing.assert_allclose(gradient["w"][1, 2], (up - down) / 2e-5, rtol=1e-5)


@pytest.mark.thorough
def test_two_sample_statistic_of_a_deep_kernel_is_its_mmd(key, rng):
    x, y, w = rng.normal(size=(5, 2)), rng.normal(1.0, 1.0, size=(4, 2)), rng.normal(size=(2, 3))
    kernel_fn = _deep_loops(w)
    means = [
        np.mean([[kernel_fn(a, b) for b in v] for a in u]) for u, v in ((x, x), (y, y), (x, y))
    ]
    with jax.enable_x64(True):
        kernel = _deep(jnp.asarray(w))
        result = mmd.two_sample_test(
            key, jnp.asarray(x), jnp.asarray(y), kernel, num_permutations=9
        )
    np.testing.assert_allclose(result.statistic, means[0] + means[1] - 2 * means[2], rtol=1e-10)


def _shifted(rng, n=30):
    return tuple(jnp.asarray(rng.normal(m, 1, size=(n, 2)), jnp.float32) for m in (0.0, 0.8))


STARTS = {
    "mixture": lambda x, y: kernels.median_mixture(kernels.rbf_mixture, x, y, scales=(0.01, 0.1)),
    "weighted": lambda x, y: kernels.imq_mixture([0.1, 0.5], [0.5, 2.0]),
    "features": lambda x, y: kernels.feature_kernel(
        kernels.rbf_mixture(0.5), phi, jnp.asarray([[1.0, -0.5, 2.0], [0.3, 1.0, -1.0]])
    ),
    "deep": lambda x, y: _deep(jnp.asarray([[1.0, -0.5, 2.0], [0.3, 1.0, -1.0]])),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["mixture", "deep", "weighted", "features"])
def test_learning_raises_the_power_of_what_it_returns(key, rng, name):
    """Everything that is positive stays so, and the powers are those of the kernels on the way."""
    x, y = _shifted(rng)
    start = STARTS[name](x, y)
    learn = jax.jit(lambda x, y: kernel_learning.learn(key, x, y, start, ADAM, num_steps=30))
    learned = learn(x, y)
    np.testing.assert_allclose(learned.powers[0], mmd.test_power(x, y, start), rtol=1e-4)
    assert mmd.test_power(x, y, learned.kernel) > learned.powers[0] + 0.02
    assert jax.tree.structure(learned.kernel) == jax.tree.structure(start)
    base = getattr(learned.kernel, "base", learned.kernel)
    scales = base.lengthscale if name == "deep" else base.lengthscales
    assert np.all(np.asarray(scales) > 0)


def test_halves_deal_every_sample_once(key, rng):
    x, y = (jnp.asarray(rng.normal(size=(n, 2)), jnp.float32) for n in (7, 10))
    train, held_out = kernel_learning.halves(key, x, y)
    for points, parts in ((x, (train[0], held_out[0])), (y, (train[1], held_out[1]))):
        np.testing.assert_array_equal(
            np.sort(np.concatenate(parts), axis=0), np.sort(points, axis=0)
        )
    assert [len(half) for half in (*train, *held_out)] == [3, 5, 4, 5]


@pytest.mark.thorough
def test_batches_are_distinct_samples_of_either_kind(key, rng):
    """No two batches alike, and about the power of the whole in the mean."""
    x, y = _shifted(rng)
    kernel = kernels.rbf_mixture(1.0)
    powers = kernel_learning.learn(
        key, x, y, kernel, optax.sgd(0.0), num_steps=40, batch_size=20
    ).powers
    whole = mmd.test_power(x, y, kernel)
    assert len(np.unique(np.asarray(powers))) == 40
    assert abs(np.mean(powers) - whole) < 5 * np.std(powers) / math.sqrt(40) + 0.1


def _rejections(key, draw, repetitions, n, num_steps):
    """Share of repetitions in which the learned kernel's test rejects at 5 %."""

    def p_value(key):
        x_key, y_key, test_key = jax.random.split(key, 3)
        x, y = draw(x_key, y_key, n)
        start = kernels.median_mixture(kernels.rbf_mixture, x, y, scales=(0.1, 1.0))
        return kernel_learning.learned_test(
            test_key, x, y, start, ADAM, num_steps=num_steps, num_permutations=199
        ).p_value

    keys = jax.random.split(key, repetitions)
    p_values = np.asarray(jax.jit(lambda keys: jax.lax.map(p_value, keys, batch_size=50))(keys))
    return np.mean(p_values <= 0.05)


def _one_law(x_key, y_key, n):
    return jax.random.normal(x_key, (n, 2)), jax.random.normal(y_key, (n, 2))


@pytest.mark.thorough
def test_held_out_test_is_calibrated_and_sees_a_shift(key):
    assert 0.01 < _rejections(key, _one_law, 200, 40, 10) < 0.10  # 5 % and 3 deviations

    def apart(x_key, y_key, n):
        x, y = _one_law(x_key, y_key, n)
        return x, 1.0 + y

    assert _rejections(key, apart, 50, 40, 10) > 0.8


@pytest.mark.slow
def test_held_out_test_rejects_one_law_at_its_level():
    """2000 repetitions: 5 % has a deviation of 0.5 %."""
    rejected = _rejections(jax.random.key(0), _one_law, 2000, 100, 50)
    print(f"rejected {100 * rejected:.2f} % of 2000 at 5 %")
    assert 0.04 <= rejected <= 0.06


def test_a_deep_kernel_is_a_value_and_no_function_of_one_distance(rng):
    w = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    kernel = _deep(w)
    assert kernel == copy.deepcopy(kernel) == pickle.loads(pickle.dumps(kernel))  # noqa: S301
    assert kernel != _deep(w, share=0.3)
    with pytest.raises(ValueError, match="kernel: got a deep kernel of two distances; expected"):
        pairwise.kernel_sum(kernel, jnp.ones((3, 2)), None, jnp.ones((3, 1)))


def test_bad_input_is_named(key, rng):
    x, y = (jnp.asarray(rng.normal(size=(6, 2)), jnp.float32) for _ in range(2))
    kernel, sgd = kernels.rbf_mixture(1.0), optax.sgd(0.1)

    def learn(kernel, x=x, **options):
        return kernel_learning.learn(key, x, y, kernel, sgd, **{"num_steps": 1, **options})

    with pytest.raises(ValueError, match="x: got 3 samples; expected at least 4, two in each half"):
        kernel_learning.learned_test(key, x[:3], y, kernel, sgd, num_steps=1)
    with pytest.raises(ValueError, match="batch_size: got 7; expected at most 6"):
        learn(kernel, batch_size=7)
    with pytest.raises(ValueError, match=r"y: got shape \(6, 2\); expected \(5, 2\)"):
        learn(kernel, x[:5], batch_size=2)
    with pytest.raises(ValueError, match="num_steps: got 0"):
        learn(kernel, num_steps=0)
    with pytest.raises(ValueError, match="x: got 1 non-finite"):
        learn(kernel, x.at[0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match=r"kernel\.weights: got \[0\.\]"):
        learn(kernels.rbf_mixture(1.0, 0.0))
    with pytest.raises(ValueError, match="kernel: got _Odd; expected a mixture, a feature kernel"):
        learn(_Odd())
    with pytest.raises(ValueError, match="kernel: got Riesz; expected a mixture, a feature kernel"):
        learn(kernels.riesz())
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="share: got"):
            kernel_learning.deep_kernel(phi, (), share=share)
    with pytest.raises(ValueError, match="feature_lengthscale: got 0"):
        kernel_learning.deep_kernel(phi, (), feature_lengthscale=0.0)


class _Odd:
    params = ()
    apply_fn = staticmethod(lambda params, x: x)

    def profile(self, sq_dist):
        return sq_dist


FEATURES = {
    "features: got 6 non-finite": lambda w, x: x[:, :1] / 0 * jnp.sum(w),
    "kernel: got features without a gradient in their parameters": lambda w, x: x,
    r"features: got shape \(6,\); expected \(6, l\)": lambda w, x: x[:, 0],
    "features: got dtype int32; expected floating": lambda w, x: x.astype(jnp.int32),
}


@pytest.mark.parametrize("message", FEATURES)
@pytest.mark.parametrize("deep", [False, True])
def test_features_from_which_nothing_can_be_learned_are_named(key, message, deep):
    x = jnp.ones((6, 2))
    apply_fn, w = FEATURES[message], jnp.ones((2, 3))
    if deep:
        kernel = kernel_learning.deep_kernel(apply_fn, w)
    else:
        kernel = kernels.feature_kernel(kernels.rbf_mixture(1.0), apply_fn, w)
    with pytest.raises(ValueError, match=message):
        kernel_learning.learn(key, x, x, kernel, optax.sgd(0.1), num_steps=1)
