"""KALE: golden divergences, moment matching, the log-normaliser three ways, overflow, devices."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from kernelgrad import kale

DEVICES = 2


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def _f32(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


def _nodes(mean, deviation, size=40_000):
    """Equally likely nodes of a Gaussian."""
    return scipy.stats.norm.ppf((np.arange(size) + 0.5) / size, mean, deviation)


def _maximise(features, data, base):
    """Returns the largest KALE of E(x) + c = -params . (1, features), and its parameters."""
    phi = [np.stack([np.ones(len(x)), *features(x)], axis=1) for x in (data, base)]

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        energy_data, energy_base = (-(jnp.asarray(p) @ params) for p in phi)
        return -kale.kale(energy_data, energy_base, 0.0)

    found = scipy.optimize.minimize(
        lambda params: [np.asarray(a) for a in loss(params)],
        np.zeros(phi[0].shape[1]),
        jac=True,
        method="BFGS",
        options={"gtol": 1e-9},
    )
    return -found.fun, found.x


# ------------------------------------------------------------------------------------- the bounds


@pytest.mark.usefixtures("x64")
def test_bounds_are_the_papers_sums(rng):
    data, base, c = rng.normal(size=7), rng.normal(size=5), 0.3
    expected = 1 - sum(e + c for e in data) / 7 - sum(math.exp(-(e + c)) for e in base) / 5
    normalizer = math.log(sum(math.exp(-e) for e in base) / 5)
    got = (
        kale.kale(jnp.asarray(data), jnp.asarray(base), c),
        kale.donsker_varadhan(jnp.asarray(data), jnp.asarray(base)),
        kale.optimal_log_normalizer(jnp.asarray(base)),
        kale.contrastive_divergence_loss(jnp.asarray(data), jnp.asarray(base)),
    )
    expected = (expected, -data.mean() - normalizer, normalizer, data.mean() - base.mean())
    np.testing.assert_allclose(got, expected, rtol=1e-13)


@pytest.mark.usefixtures("x64")
def test_gaussians_in_three_classes():
    """Golden G24: P = N(mu, s^2), G = N(0, 1). E + c is minus the tilt."""
    mean, deviation = 0.8, 0.7
    data, base = _nodes(mean, deviation), _nodes(0, 1)
    value, tilt = _maximise(lambda x: [], data, base)
    np.testing.assert_allclose(value, 0, atol=1e-12)
    np.testing.assert_allclose(tilt, 0, atol=1e-9)
    value, tilt = _maximise(lambda x: [x], data, base)
    np.testing.assert_allclose(value, mean**2 / 2, atol=1e-3)
    np.testing.assert_allclose(tilt, [-(mean**2) / 2, mean], atol=2e-3)
    value, tilt = _maximise(lambda x: [x, x**2], data, base)
    kl = (deviation**2 + mean**2 - 1) / 2 - math.log(deviation)
    constant = -(mean**2) / (2 * deviation**2) - math.log(deviation)
    np.testing.assert_allclose(value, kl, atol=1e-3)
    np.testing.assert_allclose(
        tilt, [constant, mean / deviation**2, (1 - deviation**-2) / 2], atol=5e-3
    )
    value, _ = _maximise(lambda x: [x, x**2], base, base)
    np.testing.assert_allclose(value, 0, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_tables_reach_the_divergence(rng):
    """Golden G24: on finitely many outcomes, counted, E* = log g/p + const and KALE = DV = KL."""
    p_counts, g_counts = np.array([1, 2, 5, 4]), np.array([4, 3, 2, 6])
    p, g = p_counts / 12, g_counts / 15
    kl = np.sum(p * np.log(p / g))
    data, base = (np.repeat(np.arange(4), counts) for counts in (p_counts, g_counts))

    def indicators(outcomes):
        return [outcomes == i for i in range(1, 4)]

    value, tilt = _maximise(indicators, data, base)
    np.testing.assert_allclose(value, kl, rtol=1e-10)
    np.testing.assert_allclose(tilt[0] + np.append(0, tilt[1:]), np.log(p / g), atol=1e-7)
    for _ in range(50):
        energy, c = rng.normal(size=4), rng.normal()
        pair = jnp.asarray(energy[data]), jnp.asarray(energy[base])
        assert kale.kale(*pair, c) < kale.donsker_varadhan(*pair) < kl
        best = kale.optimal_log_normalizer(pair[1])
        np.testing.assert_allclose(kale.kale(*pair, best), kale.donsker_varadhan(*pair), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_exponential_families_match_moments(rng):
    """Golden G24: at the largest KALE the weighted base has the moments of the data."""
    data, base = rng.gamma(3.0, 0.3, size=300), rng.exponential(size=400)

    def features(x):
        return [x, np.log(x)]

    _, tilt = _maximise(features, data, base)
    phi_data, phi_base = (np.stack(features(x), axis=1) for x in (data, base))
    weights = kale.generator_weights(jnp.asarray(-phi_base @ tilt[1:]), -tilt[0])
    np.testing.assert_allclose(np.mean(weights), 1, rtol=1e-7)
    np.testing.assert_allclose(weights @ phi_base / 400, phi_data.mean(0), rtol=1e-7)


@pytest.mark.usefixtures("x64")
def test_contrastive_divergence_climbs_the_likelihood():
    """With chains at the model itself, counted, its gradient is that of minus DV."""
    energy = -np.log(np.array([0.5, 0.3, 0.2]) * 3)  # on a uniform base
    data, base, chain = (np.repeat(np.arange(3), n) for n in ([1, 1, 6], [1, 1, 1], [5, 3, 2]))

    @jax.jit
    def slopes(table):
        cd = jax.grad(lambda e: kale.contrastive_divergence_loss(e[data], e[chain]))(table)
        return cd, jax.grad(lambda e: kale.donsker_varadhan(e[data], e[base]))(table)

    cd, dv = slopes(jnp.asarray(energy))
    np.testing.assert_allclose(cd, -dv, atol=1e-14)
    np.testing.assert_allclose(cd, np.array([1, 1, 6]) / 8 - np.array([5, 3, 2]) / 10, atol=1e-14)


def test_disjoint_supports_are_unbounded():
    """Golden G14."""
    for height in (1.0, 1e2, 1e4):
        pair = _f32(np.full(4, -height), np.full(6, height))
        np.testing.assert_allclose(kale.donsker_varadhan(*pair), 2 * height, rtol=1e-6)
        np.testing.assert_allclose(kale.kale(*pair, -height), 2 * height, rtol=1e-6)


# ---------------------------------------------------------------------------- gradients, both ways


def _energy(x):
    return jnp.sin(x[:, 0]) + x[:, 0] * x[:, 1]


@pytest.mark.usefixtures("x64")
def test_gradient_at_the_best_normaliser_is_that_of_donsker_varadhan(rng):
    """Golden G24; and with any c, the derivative in c is m - 1."""
    data, base = rng.normal(size=(6, 2)), rng.normal(size=(5, 2))
    energy_base = np.sin(base[:, 0]) + base[:, 0] * base[:, 1]

    def bound(x, y, c):
        return kale.kale(_energy(x), _energy(y), c)

    def dv(x, y):
        return kale.donsker_varadhan(_energy(x), _energy(y))

    @jax.jit
    def slopes(x, y):
        best = kale.optimal_log_normalizer(_energy(y))
        gradient = jax.grad(bound, (0, 1, 2))
        return gradient(x, y, best), jax.grad(dv, (0, 1))(x, y), gradient(x, y, 0.4)[2]

    (*at_best, zero), of_dv, slope = slopes(jnp.asarray(data), jnp.asarray(base))
    chex.assert_trees_all_close(tuple(at_best), of_dv, rtol=1e-12)
    assert abs(zero) < 1e-14
    np.testing.assert_allclose(slope, np.mean(np.exp(-energy_base - 0.4)) - 1, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_generator_weights_give_the_gradient_in_the_samples(rng):
    points = rng.normal(size=(5, 2))
    slopes = np.stack([np.cos(points[:, 0]) + points[:, 1], points[:, 0]], axis=1)
    energy = np.sin(points[:, 0]) + points[:, 0] * points[:, 1]

    @jax.jit
    def estimates(x):
        weights = kale.generator_weights(_energy(x), 0.4)
        exact = jax.grad(lambda x: kale.kale(jnp.zeros(3), _energy(x), 0.4))(x)
        surrogate = jax.grad(
            lambda x: jnp.mean(kale.generator_weights(_energy(x), 0.4) * _energy(x))
        )(x)
        best = kale.optimal_log_normalizer(_energy(x))
        return weights, exact, surrogate, kale.generator_weights(_energy(x), best)

    weights, exact, surrogate, normalised = estimates(jnp.asarray(points))
    np.testing.assert_allclose(surrogate, exact, rtol=1e-12)
    np.testing.assert_allclose(weights, np.exp(-energy - 0.4), rtol=1e-13)
    np.testing.assert_allclose(exact, weights[:, None] * slopes / 5, rtol=1e-12)
    np.testing.assert_allclose(normalised, 5 * scipy.special.softmax(-energy), rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("scale", [0.9, 1.5, 2.5])
def test_direction_is_the_gradient_of_the_divergence(scale):
    """P = N(0, 1) and G the law of s z: with E = log g/p, pulled back, it is dKL[P || G]/ds."""
    z = _nodes(0, 1, 400_000)
    curvature = 1 - scale**-2
    energy = jnp.asarray(curvature * (scale * z) ** 2 / 2 - math.log(scale))
    weights = kale.generator_weights(energy, kale.optimal_log_normalizer(energy))
    pulled = np.mean(weights * (curvature * scale * z) * z)
    np.testing.assert_allclose(pulled, 1 / scale - scale**-3, atol=2e-4)
    bound = kale.donsker_varadhan(jnp.asarray(curvature * z**2 / 2 - math.log(scale)), energy)
    np.testing.assert_allclose(bound, math.log(scale) + scale**-2 / 2 - 1 / 2, atol=2e-4)


# --------------------------------------------------------------------------- the log-normaliser


def test_a_constant_moves_from_the_energy_to_the_normaliser(rng):
    data, base = rng.normal(size=6), rng.normal(size=5)
    small = kale.donsker_varadhan(*_f32(data, base))
    for shift in (-1000.0, 1000.0):
        shifted = _f32(data + shift, base + shift)
        best = kale.optimal_log_normalizer(shifted[1])
        expected = np.log(np.mean(np.exp(-base))) - shift
        np.testing.assert_allclose(best, expected, rtol=1e-6)
        np.testing.assert_allclose(kale.donsker_varadhan(*shifted), small, atol=5e-4)
        np.testing.assert_allclose(kale.kale(*shifted, best), small, atol=5e-4)


@pytest.mark.usefixtures("x64")
def test_ema_is_the_log_of_an_average_of_normalisers(rng):
    batches, rate = rng.normal(0, 2, size=(9, 5)), 0.3
    c = kale.optimal_log_normalizer(jnp.asarray(batches[0]))
    expected = np.mean(np.exp(-batches[0]))
    for batch in batches[1:]:
        c = kale.ema_step(c, jnp.asarray(batch), rate=rate)
        expected = (1 - rate) * expected + rate * np.mean(np.exp(-batch))
        np.testing.assert_allclose(c, math.log(expected), rtol=1e-12)
    whole = kale.ema_step(c, jnp.asarray(batches[0]), rate=1.0)
    np.testing.assert_allclose(whole, np.log(np.mean(np.exp(-batches[0]))), rtol=1e-12)
    far = kale.ema_step(0.0, jnp.full(4, -1e4, jnp.float32), rate=0.1)
    np.testing.assert_allclose(far, 1e4 + math.log(0.1), rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_newton_climbs_from_below_as_measured():
    """Eight steps from 0 to c* = 4.758, one nat a step at first and then quadratically (T6)."""
    energy, c = jnp.full(3, -4.758), 0.0
    errors = []
    for _ in range(8):
        c = kale.newton_step(c, energy)
        errors.append(4.758 - c)
    newton, u = [], 4.758
    for _ in range(8):
        u = u - (1 - math.exp(-u))
        newton.append(u)
    np.testing.assert_allclose(errors, newton, atol=1e-12)
    assert errors[-1] < 1e-5 < errors[-2]


@pytest.mark.usefixtures("x64")
def test_newton_does_not_overshoot_from_above():
    """Unbounded, one step from 5 nats above lands 142 below, from 100 at infinity."""
    energy = jnp.full(3, 2.0)
    starts = np.array([0.1, 0.5, math.log(2), 0.8, 5.0, 100.0, 1e4])
    ends = np.array([kale.newton_step(u - 2, energy) + 2 for u in starts])
    np.testing.assert_allclose(
        ends, np.maximum(starts + 1 - np.exp(np.minimum(starts, 9)), starts - 1)
    )
    assert ends.min() >= math.log(2) - 1 - 1e-12
    c = 8.0
    for _ in range(14):
        c = kale.newton_step(c, energy)
    np.testing.assert_allclose(c, -2, atol=1e-12)
    half = kale.newton_step(3.0, energy, rate=0.5)
    np.testing.assert_allclose(half, 2.5)


def test_steps_are_states_through_which_no_gradient_flows(rng):
    (energy,) = _f32(rng.normal(size=5))
    for step in (kale.newton_step, functools.partial(kale.ema_step, rate=0.2)):
        slopes = jax.grad(lambda c, e, step=step: step(c, e), (0, 1))(0.3, energy)
        chex.assert_trees_all_equal(slopes, jax.tree.map(jnp.zeros_like, slopes))


def test_small_batches_bias_the_closed_form_and_not_the_average(rng):
    """T6, for E = -x on N(0, 1): log Z = 1/2; log of a mean is low, the mean itself is not."""
    energy = rng.normal(size=(20_000, 16))
    best = np.asarray(jax.vmap(kale.optimal_log_normalizer)(*_f32(energy)), np.float64)
    for values, truth, low in ((best, 0.5, True), (np.exp(best), math.exp(0.5), False)):
        z = (values.mean() - truth) / (values.std() / math.sqrt(len(values)))
        print(f"z = {z:.2f}")
        assert z < -15 if low else abs(z) < 5


@pytest.mark.usefixtures("x64")
def test_estimate_is_the_delta_method(rng):
    energy = rng.normal(0, 1.5, size=9)
    weights = np.exp(-energy)
    got = kale.log_normalizer_estimate(jnp.asarray(energy))
    expected = (
        np.log(weights.mean()),
        weights.std(ddof=1) / weights.mean() / 3,
        weights.sum() ** 2 / np.sum(weights**2),
    )
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    flat = kale.log_normalizer_estimate(jnp.full(8, 7.0))
    np.testing.assert_allclose(flat, (-7, 0, 8), atol=1e-6)


def test_standard_error_covers_the_truth(rng):
    """E = x / 2 on N(0, 1), log Z = 1/8; 2000 estimates, intervals of 95 %."""
    energy = rng.normal(size=(2000, 1000)) / 2
    value, error, size = jax.vmap(kale.log_normalizer_estimate)(*_f32(energy))
    z = (np.asarray(value, np.float64) + np.asarray(error) ** 2 / 2 - 1 / 8) / error
    print(f"mean {z.mean():.3f}, deviation {z.std():.3f}")
    covered = np.mean(np.abs(z) < 1.96)
    assert abs(covered - 0.95) < 5 * math.sqrt(0.95 * 0.05 / 2000)
    assert abs(z.std() - 1) < 5 / math.sqrt(2 * 2000)
    np.testing.assert_allclose(np.mean(size), 1000 * math.exp(-1 / 4), rtol=0.01)


@pytest.mark.usefixtures("x64")
def test_log_density_is_that_of_the_tilted_gaussian(rng):
    """g = N(0, 1) and E = -a x give q = N(a, 1), with c = a^2 / 2."""
    x, a = rng.normal(size=6), 0.7
    log_base = scipy.stats.norm.logpdf(x)
    got = kale.log_density(jnp.asarray(-a * x), jnp.asarray(log_base), a**2 / 2)
    np.testing.assert_allclose(got, scipy.stats.norm.logpdf(x, a), rtol=1e-12)


# ---------------------------------------------------------------------- overflow, devices, errors


@jax.jit
def _extremes(data, base, c):
    value, slopes = jax.value_and_grad(kale.kale, (0, 1, 2))(data, base, c)
    dv, dv_slopes = jax.value_and_grad(kale.donsker_varadhan, (0, 1))(data, base)
    steps = kale.newton_step(c, base), kale.ema_step(c, base, rate=0.1)
    weights = kale.generator_weights(base, c)
    estimate = kale.log_normalizer_estimate(base)
    return value, dv, slopes, dv_slopes, weights, steps, estimate


@pytest.mark.parametrize("height", [60.0, 88.0, 200.0, 1e4, 1e6])
def test_nothing_overflows(height):
    """Energies far below -c, above, and both, with a log-normaliser that is stale or not."""
    data = jnp.array([0.0, 1.0], jnp.float32)
    for energies in ([-height, 0.0], [-height, height], [height, height], [-height, -height]):
        (base,) = _f32(np.array(energies))
        for c in (0.0, height, -height, kale.optimal_log_normalizer(base)):
            outputs = _extremes(data, base, c)
            value, dv, slopes, _, weights, _, estimate = outputs
            chex.assert_tree_all_finite((outputs, jnp.square(weights)))
            np.testing.assert_allclose(slopes[1], weights / 2, rtol=1e-6)
            assert value <= dv + 1e-6 * height
            assert 1 - 1e-6 <= estimate.effective_sample_size <= 2 + 1e-6


def test_the_tangent_joins_before_the_square_overflows():
    assert np.isfinite(np.float32(math.exp(44)) ** 2)
    top = 44
    data = jnp.zeros(1)

    def exponential(exponent):
        return 1 - kale.kale(data, jnp.full(1, -exponent, jnp.float32), 0.0)

    for exponent in (top - 0.5, top - 0.001, top + 0.001):
        np.testing.assert_allclose(exponential(exponent), math.exp(exponent), rtol=1e-5)
    for beyond in (0.5, 100.0):
        expected = math.exp(top) * (1 + beyond)
        np.testing.assert_allclose(exponential(top + beyond), expected, rtol=1e-4)


def test_two_devices_give_the_one_device_answer(rng):
    data, base = _f32(rng.normal(0, 2, size=8), rng.normal(0, 2, size=6))

    def everything(data, base, axis_name=None):
        def mean(tree):
            return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

        def added_up(parts):
            return parts if axis_name is None else jax.lax.psum(parts, axis_name)

        def dv(scale):
            return kale.donsker_varadhan(scale * data, scale * base, axis_name=axis_name)

        c = kale.optimal_log_normalizer(base, axis_name=axis_name)
        return (
            c,
            dv(1.0),
            added_up(jax.grad(dv)(1.0)),
            mean(kale.kale(data, base, c)),
            kale.ema_step(0.2, base, rate=0.3, axis_name=axis_name),
            kale.newton_step(0.2, base, axis_name=axis_name),
            kale.log_normalizer_estimate(base, axis_name=axis_name),
            mean(jnp.mean(kale.generator_weights(base, c))),
        )

    halves = [array.reshape(DEVICES, -1) for array in (data, base)]
    whole = jax.jit(everything)(data, base)
    spread = jax.pmap(functools.partial(everything, axis_name="i"), axis_name="i")(*halves)
    expected = jax.tree.map(lambda value: jnp.stack([value] * DEVICES), whole)
    chex.assert_trees_all_close(spread, expected, rtol=1e-5)


def test_jit_equals_eager_and_vmap_is_a_loop(rng):
    data, base = _f32(rng.normal(size=(3, 6)), rng.normal(size=(3, 5)))

    def everything(data, base):
        c = kale.newton_step(0.5, base, rate=0.7)
        estimate = kale.log_normalizer_estimate(base)
        return kale.kale(data, base, c), kale.donsker_varadhan(data, base), estimate

    alone = [everything(*pair) for pair in zip(data, base, strict=True)]
    expected = jax.tree.map(lambda *rows: jnp.stack(rows), *alone)
    chex.assert_trees_all_close(jax.jit(jax.vmap(everything))(data, base), expected, rtol=1e-5)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_summed_in_float32(rng, dtype):
    @jax.jit
    def everything(energy, c):
        return (
            kale.kale(energy, energy, c),
            kale.donsker_varadhan(energy, energy),
            kale.contrastive_divergence_loss(energy, energy[:9]),
            kale.ema_step(c, energy, rate=np.float64(0.5)),
            kale.newton_step(c, energy),
            kale.log_density(energy, energy, c),
            kale.log_normalizer_estimate(energy),
        )

    energy, c = jnp.asarray(rng.normal(size=70_000), dtype), jnp.float32(0.5)
    outputs = everything(energy, c)
    chex.assert_trees_all_equal(outputs, everything(energy.astype(jnp.float32), c))
    assert kale.generator_weights(energy, c).dtype == dtype
    weights = np.exp(-np.asarray(energy, np.float64))
    deviation = weights.std(ddof=1) / weights.mean() / math.sqrt(70_000)
    np.testing.assert_allclose(outputs[-1].standard_error, deviation, rtol=1e-4)


def test_low_precision_stays_finite_far_out():
    """float16 holds no exponential of 12: the tangent begins where it fits, gradient included."""
    energy = jnp.full(3, -100, jnp.float16)
    value, slope = jax.value_and_grad(lambda e: kale.kale(e, e, 0.0))(energy)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
    assert np.isfinite(kale.generator_weights(energy, 0.0)).all()


@pytest.mark.thorough
def test_equal_energies_have_an_error_of_zero_and_a_slope():
    error = jax.grad(lambda e: kale.log_normalizer_estimate(e).standard_error)
    np.testing.assert_array_equal(error(jnp.ones(4)), 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: kale.kale(e[:, None], e, 0.0), r"^energy_data: got shape \(4, 1\)"),
        (lambda e: kale.kale(e, e[:0], 0.0), r"^energy_base: got shape \(0,\)"),
        (lambda e: kale.kale(e, e, e), r"^log_normalizer: got shape \(4,\)"),
        (lambda e: kale.donsker_varadhan(e, e.astype(int)), r"^energy_base: got dtype int32"),
        (lambda e: kale.optimal_log_normalizer(e[0]), r"^energy_base: got shape \(\)"),
        (lambda e: kale.generator_weights(e, e), r"^log_normalizer: got shape"),
        (lambda e: kale.contrastive_divergence_loss(e, e[0]), r"^energy_chain: got shape"),
        (lambda e: kale.ema_step(0.0, e, rate=0.0), r"^rate: got 0\.; expected .* \(0, 1\]"),
        (lambda e: kale.newton_step(0.0, e, rate=1.5), r"^rate: got 1\.5"),
        (lambda e: kale.newton_step(e, e), r"^log_normalizer: got shape"),
        (lambda e: kale.log_normalizer_estimate(e[:1]), r"^draws of energy_base: got 1"),
        (lambda e: kale.log_density(e, e[:2], 0.0), r"^log_base: got shape \(2,\); expected \(4\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros(4))
