"""Kernel thinning: the papers' algorithms word for word, their symmetry and their rate."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from kernelgrad import _thinning, kernels, mmd

SCALES = [0.7, 2.0]


class Oracle:
    """COMPRESS++ of symmetrised KT-SPLIT and KT-SWAP, on a gram, by the function's own draws."""

    def __init__(self, gram, delta, depth=0, draws=()):
        self.gram, self.delta, self.depth, self.draws = gram, delta, depth, draws

    def halve(self, points, uniforms):
        """KT-SPLIT of one round, then either coreset by a coin."""
        k, first, second, sigma = self.gram, [], [], 0.0
        for x, other, u in zip(points[::2], points[1::2], uniforms, strict=False):
            b = np.sqrt(k[x, x] + k[other, other] - 2 * k[x, other])
            a = max(b * sigma * np.sqrt(2 * np.log(2 / self.delta)), b**2)
            sigma = np.sqrt(sigma**2 + b**2 * max(0, 1 + (b**2 - 2 * a) * sigma**2 / a**2))
            alpha = sum(k[y, x] - k[y, other] for y in first + second)
            alpha -= 2 * sum(k[y, x] - k[y, other] for y in first)
            if u < min(1, 0.5 * max(0, 1 - alpha / a)):
                x, other = other, x
            first.append(x)
            second.append(other)
        return first if uniforms[-1] < 0.5 else second

    def compress(self, points, level, place):
        """COMPRESS: four quarters, each compressed, joined and halved."""
        if level == 0:
            return points
        quarter = len(points) // 4
        parts = [points[i * quarter : (i + 1) * quarter] for i in range(4)]
        joined = [
            index
            for i, part in enumerate(parts)
            for index in self.compress(part, level - 1, 4 * place + i)
        ]
        return self.halve(joined, self.draws[level - 1][place])

    def swap(self, candidates, coreset):
        """KT-SWAP: by the MMD of every exchange."""
        coreset, k = list(coreset), self.gram
        for i in range(len(coreset)):
            trials = [z for z in candidates if z not in coreset or z == coreset[i]]

            def squared(z, i=i):
                trial = [*coreset[:i], z, *coreset[i + 1 :]]
                within = k[np.ix_(trial, trial)].mean()
                return within - 2 * k[np.ix_(trial, candidates)].mean()

            coreset[i] = min(trials, key=squared)
        return coreset

    def thin(self, points):
        candidates = self.compress(points, self.depth, 0)
        coreset = candidates
        for draws in self.draws[self.depth :]:
            coreset = self.halve(coreset, draws[0])
        return self.swap(candidates, coreset)


def test_a_half_is_that_of_the_paper(rng, monkeypatch):
    """Two parts of twenty pairs; blocks of three pairs leave one of them short."""
    monkeypatch.setattr(_thinning, "_PAIRS_AT_ONCE", 3)
    x, parts, uniforms = rng.normal(size=(80, 2)), rng.permutation(80), rng.uniform(size=(2, 21))
    uniforms[:, -1] = [0.3, 0.7]
    with jax.enable_x64(True):
        halve = functools.partial(_thinning._halved, kernels.imq_mixture(SCALES), threshold=1.0)
        halves = jax.jit(halve)(jnp.asarray(x), parts.reshape(2, 40), jnp.ravel(uniforms))
    oracle = Oracle(oracles.fast_gram("imq_mixture", x, x, SCALES), 2 * math.exp(-0.5))
    expected = [oracle.halve(*part) for part in zip(parts.reshape(2, 40), uniforms, strict=True)]
    assert halves.tolist() == expected


def test_the_exchange_is_that_of_the_paper(rng):
    """Of points of which one's copies are the best exchange for several."""
    x = np.concatenate([rng.normal(size=(30, 2)), np.zeros((1, 2))])
    chosen = rng.permutation(31)[:9]
    with jax.enable_x64(True):
        exchange = jax.jit(functools.partial(_thinning._exchanged, kernels.imq_mixture([3.0])))
        got = exchange(jnp.asarray(x), jnp.asarray(chosen))
    oracle = Oracle(oracles.fast_gram("imq_mixture", x, x, [3.0]), 0.5)
    expected = oracle.swap(list(range(31)), chosen.tolist())
    assert got.tolist() == expected
    assert len({*expected} - {*chosen.tolist()}) > 3


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    ("size", "num_points", "oversampling", "depth", "halvings"),
    [(28, 3, 1, 1, 3), (64, 4, 1, 3, 4), (100, 3, 2, 2, 5), (20, 5, 4, 0, 2), (64, 8, 0, 3, 3)],
)
def test_it_is_the_algorithm_of_the_papers(
    key, rng, monkeypatch, size, num_points, oversampling, depth, halvings
):
    """Level by level; blocks of three pairs leave one of them short in every part."""
    monkeypatch.setattr(_thinning, "_PAIRS_AT_ONCE", 3)
    used = num_points * 2**halvings
    x = rng.normal(size=(size, 2))
    with jax.enable_x64(True):
        kernel = kernels.imq_mixture(SCALES)
        options = {"num_points": num_points, "oversampling": oversampling}
        thin = functools.partial(mmd.kernel_thinning, kernel=kernel, **options)
        got = jax.jit(thin)(key, jnp.asarray(x))
        order_key, sign_key = jax.random.split(key)
        parts = [4 ** max(depth - level - 1, 0) for level in range(halvings)]
        widths = [used // 2 ** (level + 1) // p + 1 for level, p in enumerate(parts)]
        total = sum(p * w for p, w in zip(parts, widths, strict=True))
        uniforms = iter(np.asarray(jax.random.uniform(sign_key, total)))
        draws = [
            [[next(uniforms) for _ in range(w)] for _ in range(p)]
            for p, w in zip(parts, widths, strict=True)
        ]
        places = np.arange(size)
        if used < size:
            places = np.sort(jax.random.permutation(order_key, size)[:used])
    gram = oracles.fast_gram("imq_mixture", x, x, SCALES)
    oracle = Oracle(gram, 0.5 / (used - num_points), depth, draws)
    expected = oracle.thin(places.tolist())
    assert got.tolist() == expected
    assert got.dtype == jnp.int32


def test_a_half_has_one_of_each_pair_and_every_point_as_often(key, rng):
    """Over keys the mean of any function over a half is its mean over all, exactly."""
    x, num_keys = jnp.asarray(rng.normal(size=(12, 2)), jnp.float32), 4000
    kernel = kernels.rbf_mixture(1.0)
    uniforms = jax.random.uniform(key, (num_keys, 7))
    halve = jax.vmap(lambda u: _thinning._halved(kernel, x, jnp.arange(12)[None, :], u, 2.0)[0])
    halves = np.asarray(jax.jit(halve)(uniforms))
    np.testing.assert_array_equal(halves // 2, np.tile(np.arange(6), (num_keys, 1)))
    z = (np.mean(halves % 2, axis=0) - 0.5) / (0.5 / np.sqrt(num_keys))
    assert np.abs(z).max() < 4
    # and yet the halves lean on each other: their distance to all is below that of coins
    gram = oracles.fast_gram("rbf_mixture", *[np.asarray(x, np.float64)] * 2, [1.0])
    signs = np.where(np.arange(12)[None, :] % 2 == 0, 1, -1) * (1 - 2 * (halves % 2)).repeat(2, 1)
    squared = np.einsum("si,ij,sj->s", signs, gram, signs)
    steps = gram[::2, ::2] + gram[1::2, 1::2] - 2 * gram[::2, 1::2]
    assert np.mean(squared) < np.trace(steps) - 5 * np.std(squared) / np.sqrt(num_keys)


def discrepancies(key, x, kernel, num_points, num_keys):
    """MMD to x of coresets, and of as many points drawn at random; shape (num_keys,) each."""

    def both(key):
        places = mmd.kernel_thinning(key, x, kernel, num_points=num_points)
        drawn = jax.random.permutation(key, x.shape[0])[:num_points]
        return [mmd.mmd_v_statistic(x[i], x, kernel) for i in (places, drawn)]

    thin, drawn = jax.lax.map(jax.jit(both), jax.random.split(key, num_keys))
    return np.sqrt(np.stack([thin, drawn]))


@pytest.mark.thorough
def test_its_distance_falls_faster_than_that_of_points_drawn_at_random(key, rng):
    """At the root of n points of n: by 1/2 of a power up to logarithms, in place of 1/4."""
    kernel, sizes, num_keys = kernels.rbf_mixture(1.0), (64, 1024), 12
    logs = []
    for size in sizes:
        x = jnp.asarray(rng.normal(size=(size, 2)), jnp.float32)
        logs.append(np.log(discrepancies(key, x, kernel, math.isqrt(size), num_keys)))
    means, errors = np.mean(logs, axis=2), np.std(logs, axis=2) / math.sqrt(num_keys - 1)
    gap = means[:, 1] - means[:, 0]
    assert (gap > 5 * np.hypot(*errors.T)).all()
    power = (means[0] - means[1]) / math.log(sizes[1] / sizes[0])
    error = np.hypot(*errors) / math.log(sizes[1] / sizes[0])
    assert power[0] - 5 * error[0] > 0.25
    assert abs(power[1] - 0.25) < 5 * error[1]


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize(
    ("size", "num_points", "oversampling"),
    [(9, 9, 4), (45, 7, 1), (45, 7, 0), (45, 7, 9), (30, 1, 0)],
)
def test_its_points_are_all_different(key, rng, size, num_points, oversampling):
    """For any sizes, under any kernel, and where points are no numbers."""
    x = jnp.asarray(rng.normal(size=(size, 3)), jnp.float32)
    options = {"num_points": num_points, "oversampling": oversampling}
    kernel = kernels.feature_kernel(kernels.riesz(), lambda scale, x: scale * x, jnp.array(2.0))
    thin = jax.jit(functools.partial(mmd.kernel_thinning, kernel=kernel, **options))
    for points in (x, x.at[3, 1].set(jnp.nan), jnp.full_like(x, jnp.inf)):
        got = np.sort(thin(key, points))
        assert got.shape == (num_points,)
        assert (np.diff(got) > 0).all()
        assert (got >= 0).all()
        assert (got < size).all()


@pytest.mark.thorough
def test_between_features_it_is_that_of_the_features(key, rng):
    x = jnp.asarray(rng.normal(size=(40, 3)), jnp.float32)
    base = kernels.imq_mixture(SCALES)
    kernel = kernels.feature_kernel(base, lambda scale, x: jnp.sin(scale * x), jnp.array(2.0))
    thin = jax.jit(functools.partial(mmd.kernel_thinning, num_points=5))
    np.testing.assert_array_equal(thin(key, x, kernel), thin(key, jnp.sin(2 * x), base))


@pytest.mark.parametrize(
    ("message", "x", "options"),
    [
        ("num_points: got 0", jnp.zeros((4, 2)), {"num_points": 0}),
        ("num_points: got 5; expected at most 4", jnp.zeros((4, 2)), {"num_points": 5}),
        ("oversampling: got -1", jnp.zeros((4, 2)), {"num_points": 2, "oversampling": -1}),
        ("x: got 8 non-finite", jnp.full((4, 2), jnp.nan), {"num_points": 2}),
    ],
)
def test_errors(key, message, x, options):
    with pytest.raises(ValueError, match=message):
        mmd.kernel_thinning(key, x, kernels.rbf_mixture(1.0), **options)
