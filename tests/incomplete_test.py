"""Tests from some of the pairs against loops in float64 under the signs that they draw."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernelgrad import kernels, ksd, mmd

SCALES = (0.5, 2.0)


def _signs(key, n, count):
    """Returns the signs of the draws, all of one batch, after a row of ones."""
    drawn = jax.random.rademacher(jax.random.split(key, 1)[0], (n, count), jnp.float32)
    return np.concatenate([np.ones((1, n)), np.asarray(drawn, float).T])


def _p_value(h, signs, num_diagonals):
    """Returns the p-value of the mean of h over pairs (i, i + r), places going round."""
    n = len(h)
    values = [
        sum(
            w[i] * w[(i + r) % n] * h[i, (i + r) % n]
            for r in range(1, num_diagonals + 1)
            for i in range(n)
        )
        for w in signs
    ]
    return sum(value >= values[0] - 1e-6 for value in values) / len(values)


def _rbf(a, b, scale):
    return np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=2) / (2 * scale**2))


def _h_of_samples(x, y, scale):
    return _rbf(x, x, scale) + _rbf(y, y, scale) - _rbf(x, y, scale) - _rbf(x, y, scale).T


def _stein(x, s, lengths):
    """Returns the Stein kernel under exp(-|x / l - y / l|^2 / 2), by its derivatives in loops."""
    n = len(x)
    found = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            step = (x[i] - x[j]) / lengths**2
            k = np.exp(-((x[i] - x[j]) ** 2 / lengths**2).sum() / 2)
            # grad_x k = -step k, grad_y k = step k, tr grad_x grad_y k = (sum l^-2 - |step|^2) k
            trace = (1 / lengths**2).sum() - (step**2).sum()
            found[i, j] = k * (s[i] @ s[j] + s[i] @ step - s[j] @ step + trace)
    return found


def test_two_samples_are_compared_in_some_pairs(key, rng):
    num_diagonals = 2
    x = rng.normal(size=(9, 2)).astype(np.float32)
    y = (rng.normal(size=(9, 2)) + 0.8).astype(np.float32)
    signs = _signs(key, 9, 99)
    alone = [
        _p_value(_h_of_samples(x.astype(float), y.astype(float), scale), signs, num_diagonals)
        for scale in SCALES
    ]
    both = mmd.incomplete_test(
        key,
        x,
        y,
        [kernels.rbf_mixture(scale) for scale in SCALES],
        num_diagonals=num_diagonals,
        num_permutations=99,
    )
    assert float(both.statistic) == pytest.approx(-math.log(min(alone)), rel=1e-5)


def test_particles_are_judged_in_some_pairs(key, rng):
    x = (rng.normal(size=(11, 2)) + 0.4).astype(np.float32)
    lengths, signs = np.array([0.7, 2.0]), _signs(key, 11, 99)
    round_kernel = kernels.rbf_mixture(0.7)
    for kernel, of in (
        (round_kernel, np.array([0.7, 0.7])),
        (kernels.per_coordinate(kernels.rbf_mixture(1.0), lengths), lengths),
    ):
        expected = _p_value(_stein(x.astype(float), -x.astype(float), of), signs, 3)
        found = ksd.incomplete_test(key, x, -x, [kernel], num_diagonals=3, num_bootstrap=99)
        assert float(found.p_value) == pytest.approx(expected, rel=1e-6)


def test_all_diagonals_are_all_pairs(key, rng):
    """The sign-flipped statistics then are those of the complete test, which has the diagonal."""
    n = 13
    x = rng.normal(size=(n, 2)).astype(np.float32)
    y = (rng.normal(size=(n, 2)) + 1).astype(np.float32)
    h = _h_of_samples(x.astype(float), y.astype(float), 1.0)
    signs = _signs(key, n, 99)
    values = np.einsum("ij,bi,bj->b", h - np.diag(np.diag(h)), signs, signs)
    found = mmd.incomplete_test(
        key, x, y, [kernels.rbf_mixture(1.0)], num_diagonals=(n - 1) // 2, num_permutations=99
    )
    assert float(found.p_value) == pytest.approx(np.mean(values >= values[0] - 1e-6), rel=1e-6)


@pytest.mark.thorough
def test_the_level_is_exact_and_more_pairs_see_more(key):
    repeats, n = 500, 60
    several = [kernels.rbf_mixture(scale) for scale in (0.3, 1.0)]

    def p_values(key, gap):
        data_key, test_key = jax.random.split(key)
        x, y = jax.random.normal(data_key, (2, n, 1))
        return jnp.stack(
            [
                mmd.incomplete_test(
                    test_key, x, y + gap, several, num_diagonals=r, num_permutations=99
                ).p_value
                for r in (1, 20)
            ]
        )

    run = jax.jit(lambda keys, gap: jax.lax.map(lambda key: p_values(key, gap), keys))
    keys = jax.random.split(key, repeats)
    null = np.asarray(run(keys, 0.0))
    assert np.all(np.abs(np.mean(null <= 0.05, axis=0) - 0.05) < 4 * math.sqrt(0.0475 / repeats))
    few, many = np.mean(np.asarray(run(keys, 0.6)) <= 0.05, axis=0)
    assert many > few + 0.2


@pytest.mark.thorough
def test_the_stein_test_keeps_its_level(key):
    repeats, n = 500, 100
    several = [kernels.imq_mixture(scale) for scale in (0.5, 2.0)]

    def p_value(key, scale):
        data_key, test_key = jax.random.split(key)
        x = scale * jax.random.normal(data_key, (n, 1))
        return ksd.incomplete_test(
            test_key, x, -x, several, num_diagonals=10, num_bootstrap=99
        ).p_value

    run = jax.jit(lambda keys, scale: jax.lax.map(lambda key: p_value(key, scale), keys))
    keys = jax.random.split(key, repeats)
    level = np.mean(np.asarray(run(keys, 1.0)) <= 0.05)
    assert abs(level - 0.05) < 4 * math.sqrt(0.0475 / repeats)
    assert np.mean(np.asarray(run(keys, 2.0)) <= 0.05) > 0.7


def test_bad_input_is_named(key, rng):
    x, one = jnp.asarray(rng.normal(size=(9, 2)), jnp.float32), [kernels.rbf_mixture(1.0)]
    with pytest.raises(ValueError, match="num_diagonals: got 5 of 9 points; expected at most 4"):
        mmd.incomplete_test(key, x, x, one, num_diagonals=5)
    with pytest.raises(ValueError, match="num_diagonals: got 0; expected"):
        ksd.incomplete_test(key, x, x, one, num_diagonals=0)
    with pytest.raises(ValueError, match=r"y: got shape \(8, 2\); expected \(9, 2\)"):
        mmd.incomplete_test(key, x, x[:8], one, num_diagonals=1)
    with pytest.raises(ValueError, match="number of kernels: got 0; expected"):
        ksd.incomplete_test(key, x, x, [], num_diagonals=1)
    with pytest.raises(ValueError, match="expected a radial kernel"):
        ksd.incomplete_test(
            key, x, x, [kernels.feature_kernel(one[0], lambda a, x: x @ a, jnp.eye(2))]
        )
