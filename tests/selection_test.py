"""Held-out scores of density ratios: refits by brute force, folds, and the choice they lead to."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from kernelgrad import _tiles, kernels, pairwise, ratio, score, selection


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("sizes", [(7, 10), (11, 6)])
def test_leave_one_out_is_n_plus_m_refits(rng, alpha, sizes):
    n, m = sizes
    p, q = rng.normal(0.8, 0.7, size=(n, 2)), rng.normal(size=(m, 2))
    at_p, at_q = (oracles.gram("rbf_mixture", x, p[:5], 0.9) for x in (p, q))
    ridge = 0.03

    def g(rows_p, rows_q, at):
        moment = ridge * np.eye(5)
        for i in rows_p:
            moment += alpha / len(rows_p) * np.outer(at_p[i], at_p[i])
        for j in rows_q:
            moment += (1 - alpha) / len(rows_q) * np.outer(at_q[j], at_q[j])
        return max(at @ np.linalg.solve(moment, np.mean(at_p[rows_p], axis=0)), 0)

    all_p, all_q = np.arange(n), np.arange(m)
    r_p = np.array([g(np.delete(all_p, i), all_q, at_p[i]) for i in range(n)])
    r_q = np.array([g(all_p, np.delete(all_q, j), at_q[j]) for j in range(m)])
    expected = np.mean(alpha / 2 * r_p**2 - r_p) + (1 - alpha) / 2 * np.mean(r_q**2)
    with jax.enable_x64(True):
        kernel = kernels.rbf_mixture(0.9)
        fit = jax.jit(selection.rulsif_loo)
        points = (jnp.asarray(x) for x in (p, q))
        loss = fit(*points, kernel, ridge=ridge, alpha=alpha, centers=jnp.asarray(p[:5]))
    np.testing.assert_allclose(loss, expected, rtol=1e-9)


def strided(size, num_folds, fold):
    held = np.arange(fold, size - size % num_folds, num_folds)
    return np.setdiff1d(np.arange(size), held), held


def held_out(rng, p, q, num_folds):
    for fold in range(num_folds):
        (train_p, held_p), (train_q, held_q) = (strided(len(x), num_folds, fold) for x in (p, q))
        yield (p[train_p], q[train_q]), (p[held_p], q[held_q])


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["kliep", "logistic"])
def test_folds_are_refits(rng, name):
    p, q = (jnp.asarray(rng.normal(size=(size, 2)), jnp.float32) for size in (11, 17))
    kernel, losses = kernels.rbf_mixture(1.0), []
    fit = ratio.kliep if name == "kliep" else lambda p, q, k: ratio.logistic(p, q, k, ridge=0.01)
    fit, log_ratio = jax.jit(fit), jax.jit(ratio.log_density_ratio)
    for train, held in held_out(rng, p, q, 3):
        model = fit(*train, kernel)
        log_p, log_q = (np.asarray(log_ratio(model, x), np.float64) for x in held)
        if name == "kliep":
            losses.append(np.log(np.mean(np.exp(log_q))) - np.mean(log_p))
        else:
            odds = math.log(11 / 17)
            wrong = [*np.log1p(np.exp(-log_p - odds)), *np.log1p(np.exp(log_q + odds))]
            losses.append(np.mean(wrong))
    if name == "kliep":
        cv = functools.partial(selection.kliep_cv, num_folds=3)
    else:
        cv = functools.partial(selection.logistic_cv, ridge=0.01, num_folds=3)
    np.testing.assert_allclose(jax.jit(cv)(p, q, kernel), np.mean(losses), rtol=2e-3)


def test_selection_is_the_least_score_that_is_a_number():
    def score(a, b):
        return jnp.where(a == 3, jnp.nan, jnp.square(a - 2) + jnp.square(b - 20))

    chosen = selection.select(score, jnp.array([3.0, 1.0, 2.5]), jnp.array([10.0, 21.0]))
    np.testing.assert_array_equal(chosen.values, (2.5, 21.0))
    expected = [[np.nan, np.nan], [101, 2], [100.25, 1.25]]
    np.testing.assert_allclose(chosen.scores, expected)


SCALES = jnp.array([0.01, 0.03, 0.1, 0.3, 1.0, 3.0])


@pytest.mark.thorough
@pytest.mark.parametrize("same", [True, False])
def test_kliep_is_near_one_for_equal_distributions(rng, same):
    """Twice one sample, or two samples of N((1, 1), I/8), and a grid with very short scales."""
    p, q = (jnp.asarray(rng.normal(1, 8**-0.5, size=(300, 2)), jnp.float32) for _ in range(2))
    q = p if same else q

    @jax.jit
    def run(p, q):
        def score(scale):
            return selection.kliep_cv(p, q, kernels.rbf_mixture(scale))

        chosen = selection.select(score, SCALES)
        model = ratio.kliep(p, q, kernels.rbf_mixture(chosen.values[0]))
        return chosen.values[0], ratio.density_ratio(model, q)

    scale, r = run(p, q)
    assert scale >= 0.3
    assert jnp.sqrt(jnp.mean(jnp.square(r - 1))) < 0.25
    assert jnp.max(jnp.abs(r - 1)) < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rulsif", "logistic"])
def test_choice_is_near_the_best(rng, name):
    """The chosen fit explains most of r, and more of it than half of the grid does."""
    p, q, new = (
        jnp.asarray(rng.normal(mean, scale, size=(size, 1)), jnp.float32)
        for mean, scale, size in ((0.5, 0.8, 150), (0, 1, 150), (0, 1, 1000))
    )
    true = jnp.exp((new**2 - ((new - 0.5) / 0.8) ** 2)[:, 0] / 2) / 0.8
    ridges = jnp.array([1e-3, 1e-2, 1e-1, 1.0])
    if name == "rulsif":
        true = true / (0.1 * true + 0.9)

    def fit(scale, ridge):
        kernel = kernels.rbf_mixture(scale)
        if name == "rulsif":
            return ratio.rulsif(p, q, kernel, ridge=ridge, alpha=0.1)
        return ratio.logistic(p, q, kernel, ridge=ridge, centers=p[:30])

    def loss(scale, ridge):
        kernel = kernels.rbf_mixture(scale)
        if name == "rulsif":
            return selection.rulsif_loo(p, q, kernel, ridge=ridge, alpha=0.1)
        return selection.logistic_cv(p, q, kernel, ridge=ridge)

    def error(scale, ridge):
        return jnp.mean(jnp.square(ratio.density_ratio(fit(scale, ridge), new) - true))

    grids = SCALES[2:], ridges
    chosen = jax.jit(lambda: selection.select(loss, *grids))()
    errors = jax.jit(lambda: selection.select(error, *grids).scores)()
    got = errors[jnp.argmax(grids[0] == chosen.values[0]), jnp.argmax(ridges == chosen.values[1])]
    assert got < 0.2 * jnp.var(true)
    assert got < jnp.median(errors)


def test_errors_name_the_argument():
    x, kernel = jnp.ones((4, 2)), kernels.rbf_mixture(1.0)
    s = selection
    for call, message in (
        (lambda: s.rulsif_loo(x, x, kernel, ridge=0.0), "ridge: got 0"),
        (lambda: s.rulsif_loo(x, x, kernel, ridge=1.0, alpha=1.0), "alpha: got 1"),
        (lambda: s.rulsif_loo(x, x[:1], kernel, ridge=1.0), "number of samples in q: got 1"),
        (lambda: s.rulsif_loo(x, x[:, :1], kernel, ridge=1.0), "q: got shape"),
        (lambda: s.kliep_cv(x, x, kernel, num_folds=1), "num_folds: got 1"),
        (lambda: s.kliep_cv(x[:3], x, kernel, num_folds=4), "number of samples in p: got 3"),
        (lambda: s.logistic_cv(x, x, kernel, ridge=-1.0, num_folds=2), "ridge: got -1"),
        (lambda: s.select(jnp.sum), "number of grids: got 0"),
        (lambda: s.select(jnp.sum, jnp.ones((2, 2))), r"grids\[0\]: got shape"),
        (lambda: s.select(jnp.sum, jnp.arange(3)), r"grids\[0\]: got dtype int32"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.thorough
def test_no_finite_score_chooses_nothing():
    grids = jnp.array([0.5, 1.0]), jnp.array([2.0, 3.0, 4.0])
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        chosen = jax.jit(lambda a, b, bad=bad: selection.select(lambda x, y: bad * x * y, a, b))(
            *grids
        )
        assert np.isnan(chosen.values).all()
        with pytest.raises(ValueError, match="scores: got none of 6 finite"):
            selection.select(lambda x, y, bad=bad: bad * x * y, *grids)
    best = selection.select(lambda x: jnp.where(x < 3, -jnp.inf, x), grids[1])
    assert best.values == (3.0,)


def test_the_hyvarinen_loss_is_that_of_its_formula(rng):
    """For the score A x of N(0, -A^-1): |A x|^2 / 2 + tr A, on average."""
    matrix = -np.array([[2.0, 0.3], [0.3, 1.0]])
    x = rng.normal(size=(7, 2))
    expected = np.mean([0.5 * sum((matrix @ row) ** 2) for row in x]) + np.trace(matrix)
    linear = jnp.asarray(matrix, jnp.float32)
    got = selection.hyvarinen_loss(lambda points: points @ linear, jnp.asarray(x, jnp.float32))
    assert float(got) == pytest.approx(expected, rel=1e-5)

    def bent(points):  # d/dx sin x + d/dy x y = cos x + x
        return jnp.stack([jnp.sin(points[:, 0]), points[:, 0] * points[:, 1]], axis=1)

    values = [(np.sin(a) ** 2 + (a * b) ** 2) / 2 + np.cos(a) + a for a, b in x]
    got = selection.hyvarinen_loss(bent, jnp.asarray(x, jnp.float32))
    assert float(got) == pytest.approx(np.mean(values), rel=1e-5)
    with pytest.raises(ValueError, match="score_fn's values: got shape"):
        selection.hyvarinen_loss(lambda points: points[:, :1], jnp.zeros((3, 2)))


def test_the_hyvarinen_loss_of_many_points_is_that_of_few(rng, monkeypatch):
    """Sums over many pairs go in tiles, which have derivatives in reverse alone."""
    fit, held = (jnp.asarray(rng.normal(size=(n, 2)), jnp.float32) for n in (9, 5))

    def loss(held):
        kernel = kernels.rbf_mixture(1.0)
        return selection.hyvarinen_loss(lambda z: pairwise.kernel_sum(kernel, z, fit, fit), held)

    expected = jax.jit(loss)(held)
    monkeypatch.setattr(_tiles, "DENSE_PAIRS", 0)
    assert float(jax.jit(lambda held: loss(held))(held)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.thorough
def test_a_selected_score_is_that_of_the_least_held_out_loss_and_better_than_the_default(key):
    samples = jax.random.normal(key, (120, 4))
    found = jax.jit(lambda x: score.select(x, factors=(1.0, 2.0), ridge_factors=(0.01, 1.0)))(
        samples
    )
    median = float(kernels.median_lengthscale(samples))
    losses = np.zeros((2, 2))
    for i, factor in enumerate((1.0, 2.0)):
        kernel = kernels.imq_mixture(factor * median)
        for j, share in enumerate((0.01, 1.0)):
            for fold in range(5):
                held = np.arange(fold, 120, 5)
                fitted = samples[np.setdiff1d(np.arange(120), held)]
                ridge = share * score.default_ridge(96, kernel)

                def at(x, fitted=fitted, kernel=kernel, ridge=ridge):
                    return score.stein_score_at(x[None], fitted, kernel, ridge=ridge)[0]

                x = samples[held]
                values, slopes = jax.vmap(at)(x), jax.vmap(jax.jacrev(at))(x)
                traces = np.trace(slopes, axis1=1, axis2=2)
                losses[i, j] += np.mean(np.sum(np.square(values), axis=1) / 2 + traces) / 5
    np.testing.assert_allclose(found.losses, losses, rtol=1e-3, atol=1e-3)
    i, j = np.unravel_index(np.argmin(losses), losses.shape)
    assert float(found.kernel.lengthscales.squeeze()) == pytest.approx(median * (1, 2)[i], rel=1e-5)
    expected = (0.01, 1.0)[j] * score.default_ridge(120, found.kernel)
    assert float(found.ridge) == pytest.approx(float(expected), rel=1e-5)

    def error(kernel, ridge):
        return float(jnp.mean((score.stein_score(samples, kernel, ridge=ridge) + samples) ** 2))

    around = kernels.imq_mixture(median)
    assert error(found.kernel, found.ridge) < error(around, score.default_ridge(120, around))


@pytest.mark.thorough
def test_a_score_chosen_at_the_edge_of_a_grid_is_warned_of(key):
    samples, options = jax.random.normal(key, (20, 1)), {"num_folds": 2, "factors": (1.0,)}
    with pytest.warns(RuntimeWarning, match="score.select: factor of the ridge") as caught:
        score.select(samples, ridge_factors=(0.1, 1.0), **options)
    assert [warning.filename for warning in caught] == [__file__]  # no word of the one lengthscale


def test_bad_numbers_of_folds_and_factors_are_named():
    with pytest.raises(ValueError, match="number of samples: got 9; expected an integer >= 10"):
        score.select(jnp.zeros((9, 2)))
    with pytest.raises(ValueError, match="num_folds: got 1"):
        score.select(jnp.zeros((9, 2)), num_folds=1)
    with pytest.raises(ValueError, match="factors: got"):
        score.select(jnp.zeros((12, 2)), factors=(0.0,))
