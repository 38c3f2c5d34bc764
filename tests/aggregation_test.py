"""Tests under several kernels: ranks of ranks and FUSE by loops, what must agree, calibration."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from kernelgrad import _resampling, kernels, ksd, mmd

SCALES = (0.1, 1.0, 10.0)
AT_ONCE = 128  # permutations that share a key


def _samples(rng, n=9, m=7, d=2):
    x, y = rng.normal(size=(n, d)), rng.normal(0.4, 1.3, size=(m, d))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def _labels(key, n, m, count):
    """Yields the observed labelling, 0 for x and 1 for y, and those of the test's permutations."""
    yield np.repeat([0, 1], [n, m])
    for batch in jax.random.split(key, -(-count // AT_ONCE)):
        for bits in np.asarray(jax.random.bits(batch, (AT_ONCE, n + m)))[:count]:
            yield (np.argsort(np.argsort(bits)) >= n).astype(int)  # x has the smallest
        count -= AT_ONCE


def _gram(z, lengthscale):
    """The Gaussian kernel between all points, by loops."""
    gram = np.empty((len(z), len(z)))
    for i, a in enumerate(z):
        for j, b in enumerate(z):
            gram[i, j] = math.exp(-((a - b) ** 2).sum() / (2 * lengthscale**2))
    return gram


def _mmd_v(gram, labels):
    x, y = labels == 0, labels == 1
    return gram[x][:, x].mean() + gram[y][:, y].mean() - 2 * gram[x][:, y].mean()


def _mmd_u(gram, labels):
    x, y = labels == 0, labels == 1

    def off(block):
        return (block.sum() - np.trace(block)) / (len(block) * (len(block) - 1))

    return off(gram[x][:, x]) + off(gram[y][:, y]) - 2 * gram[x][:, y].mean()


def _best_of_ranks(statistics, weights):
    """T of every resample, the observed one first, and its p-value, by counting."""
    count = len(statistics[0])
    best, together = [], []
    for b in range(count):
        found, logs = [], 0
        for values, weight in zip(statistics, weights, strict=True):
            as_large = sum(other >= values[b] - 1e-6 for other in values)
            found.append(-math.log(as_large / count / (weight / np.mean(weights))))
            logs -= math.log(as_large)
        best.append(max(found))
        together.append(logs)
    as_large = 0
    for one, mean in zip(best, together, strict=True):
        tie = abs(one - best[0]) < 1e-9
        as_large += one > best[0] + 1e-9 or (tie and mean >= together[0] - 1e-9)
    return best[0], as_large / count


@pytest.mark.parametrize("weights", [None, (3.0, 1.0, 2.0)])
def test_an_aggregated_test_ranks_ranks(key, rng, weights):
    x, y = _samples(rng)
    z, count = np.concatenate([x, y]).astype(float), 150
    grams = [_gram(z, scale) for scale in SCALES]
    statistics = [[_mmd_v(g, one) for one in _labels(key, 9, 7, count)] for g in grams]
    result = mmd.aggregated_test(
        key,
        x,
        y,
        [kernels.rbf_mixture(scale) for scale in SCALES],
        weights=None if weights is None else jnp.array(weights),
        num_permutations=count,
    )
    statistic, p_value = _best_of_ranks(statistics, weights or (1, 1, 1))
    assert float(result.statistic) == pytest.approx(statistic, rel=1e-5)
    assert float(result.p_value) == pytest.approx(p_value, rel=1e-6)


def test_many_kernels_and_few_resamples_can_reject(key):
    """Each of 200 in the place of the observed one: a twentieth is to be rejected at 5 %."""
    count = 200
    values = jax.random.normal(key, (20, count))

    def p_value(place):
        turned = jnp.roll(values, -place, axis=1)
        nothing, fine = jnp.zeros(len(values)), jnp.ones(len(values), bool)
        each = _resampling.Resampled(turned[:, 0], turned[:, 1:], nothing, fine)
        return _resampling.aggregated(each, None).p_value

    p_values = np.asarray(jax.jit(jax.vmap(p_value))(jnp.arange(count)))
    assert np.mean(p_values <= 0.05 + 1e-6) == pytest.approx(0.05)
    assert np.all(np.diff(np.sort(p_values)) < 0.02)


@pytest.mark.thorough
def test_a_fused_test_is_a_soft_maximum_of_standardized_statistics(key, rng):
    x, y = _samples(rng)
    z, count = np.concatenate([x, y]).astype(float), 150
    temperature = math.sqrt(7 * 6)
    fused = []
    for labels in _labels(key, 9, 7, count):
        each = []
        for scale in SCALES:
            gram = _gram(z, scale)
            squares = (gram**2).sum() - np.trace(gram**2)
            each.append(temperature * _mmd_u(gram, labels) / math.sqrt(squares / (7 * 6)))
        fused.append(scipy.special.logsumexp(each, b=1 / 3) / temperature)
    result = mmd.fused_test(
        key, x, y, [kernels.rbf_mixture(scale) for scale in SCALES], num_permutations=count
    )
    assert float(result.statistic) == pytest.approx(fused[0], rel=1e-4)
    expected = sum(one >= fused[0] - 1e-7 for one in fused) / (1 + count)
    assert float(result.p_value) == pytest.approx(expected, rel=1e-6)


@pytest.mark.thorough
def test_of_one_kernel_they_are_the_test_under_it(key, rng):
    x, y = _samples(rng, n=8, m=8)
    kernel = kernels.imq_mixture(jnp.array([0.3, 1.0]))
    expected = mmd.two_sample_test(key, x, y, kernel, num_permutations=99).p_value
    for test in (mmd.aggregated_test, mmd.fused_test):
        for several in ([kernel], [kernel, kernel]):
            found = test(key, x, y, several, num_permutations=99)
            assert float(found.p_value) == pytest.approx(float(expected), rel=1e-6)
    particles, score = x, -x
    alone = ksd.goodness_of_fit_test(key, particles, score, kernel, num_bootstrap=301)
    found = ksd.aggregated_test(key, particles, score, [kernel, kernel], num_bootstrap=301)
    assert float(found.p_value) == pytest.approx(float(alone.p_value), rel=1e-6)
    assert float(found.statistic) == pytest.approx(-math.log(alone.p_value), rel=1e-5)


@pytest.mark.thorough
def test_kernels_of_several_forms_keep_their_order(key, rng):
    """The weight goes to the second, an IMQ between two Gaussians."""
    x, y = _samples(rng, n=8, m=6)
    several = [kernels.rbf_mixture(0.1), kernels.imq_mixture(1.0), kernels.rbf_mixture(9.0)]
    expected = mmd.two_sample_test(key, x, y, several[1], num_permutations=99).p_value
    weights = jnp.array([1e-9, 1.0, 1e-9])
    found = mmd.aggregated_test(key, x, y, several, weights=weights, num_permutations=99)
    assert float(found.p_value) == pytest.approx(float(expected), rel=1e-6)
    score = -x
    expected = ksd.goodness_of_fit_test(key, x, score, several[1], num_bootstrap=99).p_value
    found = ksd.aggregated_test(key, x, score, several, weights=weights, num_bootstrap=99)
    assert float(found.p_value) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("test", [mmd.aggregated_test, mmd.fused_test, ksd.aggregated_test])
def test_all_kernels_share_one_draw(key, rng, test, monkeypatch):
    x, y = _samples(rng, n=8, m=8)
    drawn = []
    for name in ("bits", "rademacher"):
        draw = getattr(jax.random, name)
        monkeypatch.setattr(
            jax.random, name, lambda *args, draw=draw: drawn.append(args) or draw(*args)
        )
    several = [kernels.rbf_mixture(1.0), kernels.imq_mixture(1.0)]  # two programs
    jax.make_jaxpr(lambda x, y: test(key, x, y, several))(x, y)
    assert len(drawn) == 1


@pytest.mark.thorough
@pytest.mark.parametrize("test", [mmd.aggregated_test, mmd.fused_test])
def test_the_level_is_exact_and_the_power_that_of_the_best_kernel(key, test):
    """Twin peaks .4 apart against one Gaussian: the median lengthscale does not see them."""
    repeats, n = 500, 60
    several = [kernels.rbf_mixture(scale) for scale in (0.03, 0.3, 3.0)]

    def p_value(key, gap):
        data_key, side_key, test_key = jax.random.split(key, 3)
        x, y = jax.random.normal(data_key, (2, n, 1))
        sides = jnp.where(jax.random.bernoulli(side_key, shape=(n, 1)), gap, -gap)
        y = jnp.sqrt(1 - gap**2) * y + sides
        return jnp.stack(
            [
                test(test_key, x, y, several, num_permutations=99).p_value,
                mmd.two_sample_test(test_key, x, y, several[2], num_permutations=99).p_value,
            ]
        )

    run = jax.jit(lambda keys, gap: jax.lax.map(lambda key: p_value(key, gap), keys))
    keys = jax.random.split(key, repeats)
    null, split = (np.asarray(run(keys, gap)) for gap in (0.0, 0.95))
    assert abs(np.mean(null[:, 0] <= 0.05) - 0.05) < 4 * math.sqrt(0.05 * 0.95 / repeats)
    powers = (split <= 0.05).mean(axis=0)
    assert powers[0] > 0.9
    assert powers[0] > powers[1] + 0.2


@pytest.mark.thorough
def test_an_aggregated_stein_test_keeps_its_level_and_sees_both_scales(key):
    repeats, n = 300, 60
    several = [kernels.imq_mixture(scale) for scale in (0.1, 1.0, 10.0)]

    def p_value(key, scale):
        data_key, test_key = jax.random.split(key)
        x = scale * jax.random.normal(data_key, (n, 1))
        return ksd.aggregated_test(test_key, x, -x, several, num_bootstrap=99).p_value

    keys = jax.random.split(key, repeats)
    run = jax.jit(lambda k, scale: jax.lax.map(lambda k: p_value(k, scale), k))
    assert 0.01 < np.mean(np.asarray(run(keys, 1.0)) <= 0.05) < 0.09
    assert np.mean(np.asarray(run(keys, 2.0)) <= 0.05) > 0.9


def test_bad_kernels_and_weights_are_named(key, rng):
    x, y = _samples(rng)
    one = [kernels.rbf_mixture(1.0)]
    for test in (mmd.aggregated_test, mmd.fused_test, ksd.aggregated_test):
        with pytest.raises(ValueError, match="number of kernels: got 0; expected"):
            test(key, x, x, [])
    with pytest.raises(ValueError, match=r"weights: got shape \(2,\)"):
        mmd.aggregated_test(key, x, y, one, weights=jnp.ones(2))
    with pytest.raises(ValueError, match="weights: got"):
        mmd.aggregated_test(key, x, y, one, weights=jnp.zeros(1))
    with pytest.raises(ValueError, match="number of samples in x and y: got 1"):
        mmd.fused_test(key, x[:1], y, one)
    with pytest.raises(ValueError, match="x: got 1 non-finite"):
        mmd.fused_test(key, x.at[0, 0].set(jnp.nan), y, one)
    with pytest.raises(ValueError, match="num_bootstrap: got 0"):
        ksd.aggregated_test(key, x, x, one, num_bootstrap=0)
    known = jnp.array([True, False])
    each = _resampling.Resampled(jnp.array([jnp.inf, 1.0]), jnp.ones((2, 9)), jnp.zeros(2), known)
    with pytest.raises(ValueError, match="statistic: got nan; expected a finite number"):
        _resampling.aggregated(each, None)


@pytest.mark.thorough
def test_inside_jit_what_is_not_finite_has_no_p_value(key, rng):
    x, y = _samples(rng)
    several = [kernels.rbf_mixture(1.0), kernels.rbf_mixture(2.0)]
    broken = x.at[0, 0].set(jnp.nan)
    for test in (mmd.aggregated_test, mmd.fused_test):
        result = jax.jit(lambda x, test=test: test(key, x, y, several, num_permutations=9))(broken)
        assert np.isnan(result.p_value)
    result = jax.jit(lambda x: ksd.aggregated_test(key, x, x, several, num_bootstrap=9))(broken)
    assert np.isnan(result.p_value)
