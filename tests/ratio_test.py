"""Density ratios: the papers' problems in float64, known ratios, tails, devices, errors."""

import copy
import functools
import math
import operator
import pickle
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads
from scipy.optimize import minimize, nnls

from kernelgrad import kernels, ratio

FITS = {
    "ulsif": lambda p, q, k, **o: ratio.ulsif(p, q, k, ridge=0.3, **o),
    "rulsif": lambda p, q, k, **o: ratio.rulsif(p, q, k, ridge=0.3, alpha=0.2, **o),
    "lsif": lambda p, q, k, **o: ratio.lsif(p, q, k, ridge=0.1, **o),
    "kliep": lambda p, q, k, **o: ratio.kliep(p, q, k, **o),
    "logistic": lambda p, q, k, **o: ratio.logistic(p, q, k, ridge=0.03, **o),
}
every_fit = pytest.mark.parametrize("name", FITS)
LENGTHSCALES = (0.7, 1.6)


class Fit(NamedTuple):
    model: ratio.RatioModel
    ratio: jax.Array
    log_ratio: jax.Array
    slope: jax.Array


@functools.cache
def compiled(name):
    """A fit and what it says at new points; one compilation a shape and dtype."""

    @jax.jit
    def run(p, q, new, lengthscale):
        model = FITS[name](p, q, kernels.rbf_mixture(lengthscale))
        functions = ratio.density_ratio, ratio.log_density_ratio, ratio.log_ratio_gradient
        return Fit(model, *(fn(model, new) for fn in functions))

    return run


STATIC = dict.fromkeys(("lsif", "kliep", "logistic"), "num_steps")


def jitted(name):
    return jax.jit(getattr(ratio, name), static_argnames=STATIC.get(name))


ulsif, rulsif, lsif, kliep, logistic = (jitted(name) for name in FITS)
density_ratio, log_density_ratio = jitted("density_ratio"), jitted("log_density_ratio")
log_ratio_gradient = jitted("log_ratio_gradient")


def floats(*values):
    return tuple(jnp.asarray(value, jnp.float32) for value in values)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def clouds(rng, n=12, m=15, d=3, shift=0.6):
    return rng.normal(shift, 0.8, size=(n, d)), rng.normal(size=(m, d))


def kernel_and_grams(p, q, centers, family="rbf_mixture"):
    kernel = getattr(kernels, family)(LENGTHSCALES)
    return kernel, *(oracles.gram(family, x, centers, LENGTHSCALES) for x in (p, q))


def moments(at_p, at_q, alpha):
    """H and h, sample by sample."""
    c = at_p.shape[1]
    moment = np.zeros((c, c))
    for phi in at_p:
        moment += alpha / len(at_p) * np.outer(phi, phi)
    for phi in at_q:
        moment += (1 - alpha) / len(at_q) * np.outer(phi, phi)
    return moment, sum(at_p) / len(at_p)


def arrays(*values):
    return tuple(jnp.asarray(value) for value in values)


# ------------------------------------------------------------------------- the papers' problems


@pytest.mark.parametrize("family", ["rbf_mixture", "imq_mixture"])
@pytest.mark.parametrize("alpha", [0.0, 0.35])
def test_least_squares_is_its_closed_form(rng, x64, family, alpha):
    p, q = clouds(rng)
    centers, new = p[:7], rng.normal(size=(5, 3))
    kernel, at_p, at_q = kernel_and_grams(p, q, centers, family)
    moment, mean = moments(at_p, at_q, alpha)
    weights = np.linalg.solve(moment + 0.02 * np.eye(7), mean)
    model = rulsif(*arrays(p, q), kernel, ridge=0.02, alpha=alpha, centers=jnp.asarray(centers))
    np.testing.assert_allclose(model.weights, weights, rtol=1e-8)
    values = oracles.gram(family, new, centers, LENGTHSCALES) @ weights
    np.testing.assert_allclose(
        density_ratio(model, jnp.asarray(new)), np.maximum(values, 0), atol=1e-10
    )
    if alpha == 0:
        chex.assert_trees_all_close(
            ulsif(*arrays(p, q), kernel, ridge=0.02, centers=jnp.asarray(centers)), model
        )


@pytest.mark.parametrize("alpha", [0.0, 0.35])
def test_lsif_is_the_constrained_minimum(rng, x64, alpha):
    p, q = clouds(rng)
    kernel, at_p, at_q = kernel_and_grams(p, q, p)
    moment, mean = moments(at_p, at_q, alpha)
    moment += 0.05 * np.eye(len(p))
    factor = np.linalg.cholesky(moment)
    expected, _ = nnls(factor.T, np.linalg.solve(factor, mean))
    assert 0 < np.sum(expected == 0) < len(p)

    def fit(tolerance):
        options = {"alpha": alpha, "tolerance": tolerance, "num_steps": 5000}
        return lsif(*arrays(p, q), kernel, ridge=0.05, **options)

    exact = fit(1e-16)
    np.testing.assert_allclose(np.exp(exact.log_weights), expected, atol=1e-7)
    assert exact.gap <= 1e-16
    loose, minimum = fit(1e-2), 0.5 * expected @ moment @ expected - mean @ expected
    weights = np.exp(loose.log_weights)
    excess = 0.5 * weights @ moment @ weights - mean @ weights - minimum
    assert 1e-8 < excess <= loose.gap <= 1e-2


def test_kliep_is_the_constrained_maximum(rng, x64):
    p, q = clouds(rng)
    kernel, at_p, at_q = kernel_and_grams(p, q, p)
    found = minimize(
        lambda w: -np.mean(np.log(at_p @ w)),
        np.full(len(p), 1 / np.mean(at_q) / len(p)),
        jac=lambda w: -at_p.T @ (1 / (at_p @ w)) / len(p),
        bounds=[(0, None)] * len(p),
        constraints={"type": "eq", "fun": lambda w: np.mean(at_q @ w) - 1},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert found.success
    model = kliep(*arrays(p, q), kernel, num_steps=20000, tolerance=1e-7)
    assert model.gap <= 1e-7
    weights = np.exp(model.log_weights)
    np.testing.assert_allclose(at_p @ weights, at_p @ found.x, rtol=1e-3)
    np.testing.assert_allclose(np.mean(np.log(at_p @ weights)), -found.fun, atol=1e-7)


@pytest.mark.thorough
def test_kliep_climbs_keeps_its_constraint_and_knows_its_gap(rng, x64):
    p, q = clouds(rng)
    kernel, at_p, at_q = kernel_and_grams(p, q, p)
    normalised = at_p / np.mean(at_q, axis=0)
    first = np.mean(normalised / np.sum(normalised, axis=1, keepdims=True), axis=0)
    step = kliep(*arrays(p, q), kernel, num_steps=1, tolerance=0.0)
    np.testing.assert_allclose(np.exp(step.log_weights) * np.mean(at_q, axis=0), first, rtol=1e-9)
    best, before = None, -np.inf
    for num_steps in (2000, 1, 3, 30):
        model = kliep(*arrays(p, q), kernel, num_steps=num_steps, tolerance=0.0)
        weights = np.exp(model.log_weights)
        np.testing.assert_allclose(np.mean(at_q @ weights), 1, rtol=1e-12)
        likelihood = np.mean(np.log(at_p @ weights))
        if best is None:
            best = likelihood
            continue
        assert likelihood > before
        assert best - likelihood <= model.gap
        assert best - likelihood <= math.log(len(p)) / num_steps
        before = likelihood


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("sizes", [(12, 15), (20, 7)])
def test_logistic_is_the_minimum(rng, x64, sizes):
    p, q = clouds(rng, *sizes)
    kernel, at_p, at_q = kernel_and_grams(p, q, p[:6])
    odds, ridge = math.log(len(p) / len(q)), 1e-3

    def objective(theta):
        log_p, log_q = (theta[0] + at @ theta[1:] + odds for at in (at_p, at_q))
        losses = [math.log1p(math.exp(-t)) for t in log_p] + [
            math.log1p(math.exp(t)) for t in log_q
        ]
        return np.mean(losses) + ridge / 2 * np.sum(theta**2)

    found = minimize(objective, np.zeros(7), method="BFGS", options={"gtol": 1e-7})
    model = logistic(
        *arrays(p, q), kernel, ridge=ridge, centers=jnp.asarray(p[:6]), tolerance=1e-13
    )
    got = np.concatenate([[model.intercept], model.weights])
    np.testing.assert_allclose(got, found.x, atol=2e-3)
    assert objective(got) <= found.fun + 1e-12
    new = rng.normal(size=(4, 3))
    at_new = oracles.gram("rbf_mixture", new, p[:6], LENGTHSCALES)
    np.testing.assert_allclose(
        log_density_ratio(model, jnp.asarray(new)), got[0] + at_new @ got[1:], rtol=1e-9
    )


@pytest.mark.thorough
def test_newton_gap_is_what_a_step_gains(rng, x64):
    p, q = clouds(rng)
    kernel, at_p, at_q = kernel_and_grams(p, q, np.concatenate([p, q]))
    features = np.concatenate([at_p, -at_q])
    ones = np.concatenate([np.ones(len(p)), -np.ones(len(q))])

    def objective(model):
        margins = features @ np.asarray(model.weights) + ones * (
            float(model.intercept) + math.log(len(p) / len(q))
        )
        squares = np.sum(np.square(model.weights)) + float(model.intercept) ** 2
        return np.mean(np.log1p(np.exp(-margins))) + 0.5e-2 * squares

    steps = [
        logistic(*arrays(p, q), kernel, ridge=1e-2, num_steps=t, tolerance=0.0) for t in (2, 3, 50)
    ]
    values = [objective(model) for model in steps]
    assert values == sorted(values, reverse=True)
    np.testing.assert_allclose(steps[1].gap, values[0] - values[2], rtol=0.1)


# --------------------------------------------------------------------------------- known ratios


def log_gaussians(x, mean, scale):
    """log N(mean, scale^2 I) - log N(0, I)."""
    x = np.asarray(x)
    quadratic = np.sum(x**2, axis=1) - np.sum(((x - mean) / scale) ** 2, axis=1)
    return quadratic / 2 - x.shape[1] * math.log(scale)


@pytest.mark.thorough(quick=1)
@every_fit
def test_known_ratio_of_gaussians(rng, name):
    p, q = rng.normal(0.5, 0.8, size=(300, 2)), rng.normal(size=(300, 2))
    new = rng.normal(size=(400, 2))
    fit = compiled(name)(*floats(p, q, new), 1.2)
    r = np.exp(log_gaussians(new, 0.5, 0.8))
    if name == "rulsif":
        r = r / (0.2 * r + 0.8)
    assert fit.ratio.shape == (400,)
    got, expected = (value / (1 + value) for value in (np.asarray(fit.ratio), r))
    assert np.mean((got - expected) ** 2) < 0.15 * np.var(expected)
    slope = np.asarray(fit.slope)
    true = new - (new - 0.5) / 0.64
    likely = log_gaussians(new, 0.5, 0.8) > -1
    alike = np.sum(slope[likely] * true[likely])
    assert alike > 0.85 * np.linalg.norm(slope[likely]) * np.linalg.norm(true[likely])


class HalfSquare(NamedTuple):
    """Not a kernel: its combinations are the quadratics a + b.x + c |x|^2."""

    def profile(self, sq_dist):
        return -sq_dist / 2


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_logistic_with_quadratics_is_exact_for_gaussians(rng, x64, scale):
    """Errors in units of their standard errors, the inverse of Fisher's information."""
    p, q = rng.normal(0.6, scale, size=(3000, 2)), rng.normal(size=(2000, 2))
    centers = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    model = logistic(
        *arrays(p, q), HalfSquare(), ridge=1e-9, centers=jnp.asarray(centers), tolerance=1e-14
    )
    new = rng.normal(size=(50, 2))

    def features(x):
        return np.concatenate([np.ones((len(x), 1)), x, np.sum(x**2, 1, keepdims=True)], axis=1)

    pool = np.concatenate([p, q])
    odds = np.exp(log_gaussians(pool, 0.6, scale)) * 1.5
    information = (features(pool).T * (odds / (1 + odds) ** 2)) @ features(pool)
    spread = np.einsum("ia,ab,ib->i", features(new), np.linalg.inv(information), features(new))
    got = np.asarray(log_density_ratio(model, jnp.asarray(new)))
    error = got - log_gaussians(new, 0.6, scale)
    assert np.max(np.abs(error) / np.sqrt(spread)) < 5


@pytest.mark.thorough(quick=2)
@every_fit
def test_equal_samples_have_ratio_one(rng, name):
    p, q, new = floats(*(rng.normal(size=(size, 2)) for size in (300, 300, 400)))
    errors = compiled(name)(p, q, new, 2.0).ratio - 1
    assert float(jnp.sqrt(jnp.mean(jnp.square(errors)))) < 0.3


@pytest.mark.thorough
def test_relative_ratio_is_bounded(rng, x64):
    """The mean of g over p is at most 1/alpha, whatever the samples; p / q knows no bound."""
    p, q = clouds(rng, 80, 90, 2, shift=3.0)
    kernel = kernels.rbf_mixture(1.0)
    for alpha in (0.1, 0.5, 0.9):
        model = rulsif(*arrays(p, q), kernel, ridge=1e-6, alpha=alpha)
        g = kernels.gram(kernel, jnp.asarray(p), model.centers) @ model.weights
        assert 0.9 / alpha < jnp.mean(g) <= 1 / alpha
        positive = lsif(*arrays(p, q), kernel, ridge=1e-3, alpha=alpha)
        assert 0.8 / alpha < jnp.mean(density_ratio(positive, jnp.asarray(p))) <= 1 / alpha
    free = ulsif(*arrays(p, q), kernel, ridge=1e-6)
    assert jnp.mean(density_ratio(free, jnp.asarray(p))) > 50


@pytest.mark.thorough(quick=2)
@every_fit
def test_moves_turns_and_scales_with_the_samples(rng, name):
    p, q = clouds(rng)
    new = rng.normal(size=(8, 3))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    near = compiled(name)(*floats(p, q, new), 1.3)
    far = compiled(name)(*floats(*(3 * x @ turn + 5 for x in (p, q, new))), 3.9)
    np.testing.assert_allclose(near.log_ratio, far.log_ratio, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(near.slope @ turn, 3 * far.slope, rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------- logarithms and slopes


def models(rng, kernel, d=2):
    """One of each, with a g of both signs."""
    centers, weights = jnp.asarray(rng.normal(size=(5, d))), jnp.asarray(rng.normal(size=5))
    zero = jnp.zeros(())
    return {
        "linear": ratio.LinearRatio(kernel, centers, weights, jnp.asarray(0.1)),
        "mixture": ratio.MixtureRatio(kernel, centers, weights, zero),
        "log_linear": ratio.LogLinearRatio(kernel, centers, weights, jnp.asarray(0.3), zero),
    }


def log_ratio_oracle(model, at_new):
    """The formulas of the three models, from the gram."""
    if isinstance(model, ratio.MixtureRatio):
        return np.log(at_new @ np.exp(model.log_weights))
    value = at_new @ np.asarray(model.weights)
    if isinstance(model, ratio.LogLinearRatio):
        return value + float(model.intercept)
    return np.array([math.log(g) if g > 0.1 else math.log(0.1) + g / 0.1 - 1 for g in value])


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("family", ["rbf_mixture", "laplace", "feature"])
@pytest.mark.parametrize("kind", ["linear", "mixture", "log_linear"])
def test_log_ratio_and_its_gradient_are_the_formulas(rng, x64, kind, family):
    matrix, new = rng.normal(size=(2, 3)), rng.normal(size=(9, 2))
    plain = getattr(kernels, "rbf_mixture" if family == "feature" else family)(LENGTHSCALES)
    kernel = kernels.feature_kernel(plain, lambda w, x: jnp.tanh(x @ w), jnp.asarray(matrix))
    model = models(rng, kernel if family == "feature" else plain)[kind]

    def expected(x):
        points = (x, model.centers)
        if family == "feature":
            points = (np.tanh(y @ matrix) for y in points)
        name = "rbf_mixture" if family == "feature" else family
        return log_ratio_oracle(model, oracles.gram(name, *points, LENGTHSCALES))

    np.testing.assert_allclose(log_density_ratio(model, jnp.asarray(new)), expected(new), rtol=1e-9)
    slope = log_ratio_gradient(model, jnp.asarray(new))
    for axis in range(2):
        bump = 1e-5 * np.eye(2)[axis]
        numeric = (expected(new + bump) - expected(new - bump)) / 2e-5
        np.testing.assert_allclose(slope[:, axis], numeric, rtol=1e-5, atol=1e-6)
    if kind != "linear":
        np.testing.assert_allclose(
            density_ratio(model, jnp.asarray(new)), np.exp(expected(new)), rtol=1e-9
        )


def test_linear_ratio_goes_on_by_its_tangent_below_the_floor(x64):
    """g = w k(x, 0) of falling w, through 0: value, slope and the change between the branches."""
    model = ratio.LinearRatio(
        kernels.rbf_mixture(1.0), jnp.zeros((1, 1)), jnp.zeros(1), jnp.asarray(0.1)
    )
    at = jnp.full((1, 1), 0.5)
    k = math.exp(-0.125)
    for g in (2.0, 0.1 + 1e-9, 0.1 - 1e-9, 0.05, 0.0, -3.0):
        here = model._replace(weights=jnp.array([g / k]))
        log = math.log(g) if g > 0.1 else math.log(0.1) + (g - 0.1) / 0.1
        np.testing.assert_allclose(log_density_ratio(here, at)[0], log, rtol=1e-12)
        slope = -0.5 * g / max(g, 0.1)
        np.testing.assert_allclose(log_ratio_gradient(here, at)[0, 0], slope, atol=1e-8)
        np.testing.assert_allclose(density_ratio(here, at)[0], max(g, 0), atol=1e-15)


@pytest.mark.parametrize("sizes", [(16, 50), (100, 9)])
def test_floor_is_the_sampling_error_of_p(rng, sizes):
    p, q = floats(*clouds(rng, *sizes))
    fit = ulsif(p, q, kernels.rbf_mixture(1.0), ridge=0.1)
    np.testing.assert_allclose(fit.floor, sizes[0] ** -0.5, rtol=1e-6)


@pytest.mark.thorough(quick=2)
@every_fit
def test_finite_far_from_everything(rng, name):
    p, q = floats(*clouds(rng))
    far = jnp.concatenate([p[:3], jnp.full((1, 3), 1e4), jnp.full((1, 3), -300.0), 30 * q[:3]])
    fit = compiled(name)(p, q, far, 0.3)
    chex.assert_tree_all_finite((fit.ratio, fit.log_ratio, fit.slope))


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("kind", ["linear", "mixture", "log_linear"])
def test_finite_where_a_kernel_underflows(rng, kind):
    model = jax.tree.map(jnp.float32, models(rng, kernels.laplace(0.3))[kind])
    far = jnp.array([[0.0, 1e4], [-300.0, 0.0]])
    value, slope = log_density_ratio(model, far), log_ratio_gradient(model, far)
    chex.assert_tree_all_finite((value, slope))


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", ["lsif", "kliep"])
def test_positive_mixture_draws_to_the_nearest_centers(rng, name):
    """Clouds 60 lengthscales apart, where every k underflows, and a fit of them."""
    p, q = floats(*clouds(rng, shift=60.0))
    far = jnp.full((1, 3), -40.0)
    fit = compiled(name)(p, q, jnp.concatenate([jnp.tile(far, (3, 1)), p[:5]]), 1.0)
    steps = p - far
    assert jnp.all(fit.slope[0] >= jnp.min(steps, axis=0) * 0.999)
    assert jnp.all(fit.slope[0] <= jnp.max(steps, axis=0) * 1.001)
    assert fit.model.gap <= 1e-3
    at_q = log_density_ratio(fit.model, q)
    assert jnp.all(jnp.isfinite(at_q))
    if name == "kliep":
        np.testing.assert_allclose(jax.nn.logsumexp(at_q) - math.log(len(q)), 0, atol=2e-3)
        assert jnp.all(fit.log_ratio[3:] > 1000)
        assert jnp.all(jnp.isfinite(fit.ratio))


def test_ratio_beyond_the_range_stops_at_e_to_the_88():
    model = ratio.MixtureRatio(
        kernels.rbf_mixture(1.0), jnp.zeros((1, 2)), jnp.array([200.0]), jnp.zeros(())
    )
    x = jnp.zeros((1, 2))
    np.testing.assert_allclose(density_ratio(model, x), [np.exp(np.float32(88))])
    np.testing.assert_allclose(log_density_ratio(model, x), [200.0])
    np.testing.assert_allclose(log_ratio_gradient(model, x + 1), [[-1.0, -1.0]], rtol=1e-6)


@every_fit
def test_separated_and_repeated_samples(rng, name):
    p, q = floats(*clouds(rng, shift=8.0))
    p, q = jnp.concatenate([p[:4]] * 3), q.at[6:].set(q[0])
    fit = compiled(name)(p, q, jnp.concatenate([p[:4], q[:4]]), 4.0)
    chex.assert_tree_all_finite((fit.log_ratio, fit.slope))
    assert jnp.mean(fit.log_ratio[:4]) > jnp.mean(fit.log_ratio[4:]) + 1


@every_fit
def test_offset_of_the_data_costs_no_digits(rng, name):
    p, q = (np.round(1024 * x) for x in clouds(rng))
    near = compiled(name)(*floats(p, q, q[:8]), 1500.0)
    far = compiled(name)(*floats(p + 1e6, q + 1e6, q[:8] + 1e6), 1500.0)
    np.testing.assert_allclose(far.log_ratio, near.log_ratio, atol=2e-3)


@every_fit
def test_failed_fit_is_visible(rng, name):
    p, q = floats(*clouds(rng))
    fit = compiled(name)(p.at[0, 0].set(jnp.nan), q, q[:8], 1.0)
    assert jnp.all(jnp.isnan(fit.ratio))


# ------------------------------------------------------------------------------------ transforms


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["rulsif", "kliep"])
def test_vmap_over_lengthscales_is_one_by_one(rng, name):
    p, q = floats(*clouds(rng))
    scales = jnp.array([0.8, 2.0])
    got = jax.vmap(compiled(name), (None, None, None, 0))(p, q, q[:8], scales)
    for i in range(2):
        one = compiled(name)(p, q, q[:8], scales[i])
        np.testing.assert_allclose(got.log_ratio[i], one.log_ratio, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(got.slope[i], one.slope, rtol=2e-3, atol=2e-3)


def test_hyperparameters_are_traced():
    x = jnp.ones((4, 2))
    for name, hyper in {
        "ulsif": ("ridge",),
        "rulsif": ("ridge", "alpha"),
        "lsif": ("ridge", "alpha", "tolerance"),
        "kliep": ("tolerance",),
        "logistic": ("ridge", "tolerance"),
    }.items():
        fit = functools.partial(getattr(ratio, name), x, x, kernels.rbf_mixture(1.0))
        jax.eval_shape(lambda hyper, fit=fit: fit(**hyper), dict.fromkeys(hyper, 0.1))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "given"), [*((name, False) for name in FITS), ("rulsif", True), ("logistic", True)]
)
def test_two_devices_are_one(rng, name, given):
    p, q = floats(*clouds(rng, 16, 12))

    @functools.partial(jax.pmap, axis_name="i")
    def halves(p, q, few):
        options = {"centers": few} if given else {}
        model = FITS[name](p, q, kernels.rbf_mixture(1.2), axis_name="i", **options)
        return ratio.log_ratio_gradient(model, q), getattr(model, "floor", jnp.full((), 0.25))

    few = p.reshape(2, 8, 3)[:, :4]
    options = {"centers": few.reshape(8, 3)} if given else {}
    model = jax.jit(functools.partial(FITS[name], **options))(p, q, kernels.rbf_mixture(1.2))
    slope, floor = halves(p.reshape(2, 8, 3), q.reshape(2, 6, 3), few)
    expected = log_ratio_gradient(model, q)
    np.testing.assert_allclose(slope.reshape(12, 3), expected, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(floor, 0.25)


@pytest.mark.thorough
def test_closed_forms_are_differentiable(rng, x64):
    p, q = (jnp.asarray(x) for x in clouds(rng, 5, 6, 2))

    @jax.jit
    def value(p, q, lengthscale, ridge, alpha):
        model = ratio.rulsif(p, q, kernels.rbf_mixture(lengthscale), ridge=ridge, alpha=alpha)
        return ratio.log_density_ratio(model, q)

    check_grads(value, (p, q, jnp.float64(1.1), jnp.float64(0.3), jnp.float64(0.2)), 1, ["rev"])


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("name", ["lsif", "kliep", "logistic"])
def test_iterated_fits_carry_no_gradient(rng, name):
    p, q = floats(*clouds(rng, 5, 6, 2))

    def total(p, lengthscale, x):
        hyper = {} if name == "kliep" else {"ridge": 0.1 * lengthscale}
        model = getattr(ratio, name)(p, q, kernels.rbf_mixture(lengthscale), **hyper)
        return jnp.sum(ratio.log_density_ratio(model, x))

    of_p, of_scale, of_x = jax.jit(jax.grad(total, (0, 1, 2)))(p, jnp.float32(1.0), q)
    np.testing.assert_array_equal(of_p, 0)
    np.testing.assert_array_equal(of_scale, 0)
    assert jnp.all(jnp.any(of_x != 0, axis=1))


@pytest.mark.slow
@every_fit
def test_half_precision_in_and_out(rng, name):
    p, q = (x.astype(jnp.bfloat16) for x in floats(*clouds(rng)))
    shapes = jax.eval_shape(compiled(name), p, q, q[:8], 1.0)
    assert shapes.model.centers.dtype == jnp.float32
    assert {leaf.dtype for leaf in shapes[1:]} == {jnp.dtype(jnp.bfloat16)}
    if name in ("ulsif", "kliep"):
        half, full = compiled(name)(p, q, q[:8], 1.0), compiled(name)(*floats(p, q, q[:8]), 1.0)
        chex.assert_trees_all_close(half.model, full.model, rtol=1e-4, atol=1e-5)
        for got, expected in zip(half[1:], full[1:], strict=True):
            np.testing.assert_allclose(got.astype(jnp.float32), expected, rtol=0.02, atol=0.02)


# ---------------------------------------------------------------------------------------- errors


@every_fit
def test_errors_name_the_argument(name):
    x, kernel = jnp.ones((4, 2)), kernels.rbf_mixture(1.0)
    fit, extra = getattr(ratio, name), {} if name == "kliep" else {"ridge": 0.1}
    for p, q, options, message in (
        (jnp.ones(4), x, {}, "p: got shape"),
        (x, jnp.ones((4, 3)), {}, "q: got shape"),
        (x, jnp.ones((4, 2), jnp.int32), {}, "q: got dtype int32"),
        (jnp.ones((0, 2)), x, {}, "p: got shape"),
        (x, x, {"centers": jnp.ones((4, 3))}, "centers: got shape"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(p, q, kernel, **extra | options)


@pytest.mark.parametrize("kind", ["linear", "mixture", "log_linear"])
def test_errors_of_evaluation_name_the_points(rng, kind):
    model = models(rng, kernels.rbf_mixture(1.0))[kind]
    for fn in (ratio.density_ratio, ratio.log_density_ratio, ratio.log_ratio_gradient):
        with pytest.raises(ValueError, match="got shape"):
            fn(model, jnp.ones((4, 3)))
        with pytest.raises(ValueError, match="x: got dtype int32"):
            fn(model, jnp.ones((4, 2), jnp.int32))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ulsif", {"ridge": 0.0}, "ridge: got 0"),
        ("rulsif", {"ridge": -1.0}, "ridge: got -1"),
        ("rulsif", {"ridge": jnp.ones(2)}, "ridge: got shape"),
        ("lsif", {"ridge": 0.0}, "ridge: got 0"),
        ("logistic", {"ridge": 0.0}, "ridge: got 0"),
        ("rulsif", {"ridge": 1.0, "alpha": 1.0}, r"alpha: got 1.; expected values in \[0, 1\)"),
        ("lsif", {"ridge": 1.0, "alpha": -0.1}, "alpha: got -0.1"),
        ("rulsif", {"ridge": 1.0, "alpha": jnp.ones(2)}, "alpha: got shape"),
        ("kliep", {"num_steps": 0}, "num_steps: got 0"),
        ("kliep", {"tolerance": -1.0}, "tolerance: got -1"),
        ("lsif", {"ridge": 1.0, "num_steps": 0}, "num_steps: got 0"),
        ("logistic", {"ridge": 1.0, "num_steps": 0}, "num_steps: got 0"),
        ("logistic", {"ridge": 1.0, "tolerance": jnp.ones(1)}, "tolerance: got shape"),
    ],
)
def test_errors_name_the_hyperparameter(name, options, message):
    x = jnp.ones((4, 2))
    with pytest.raises(ValueError, match=message):
        getattr(ratio, name)(x, x, kernels.rbf_mixture(1.0), **options)


@pytest.mark.thorough
def test_models_pickle_copy_and_compare_by_value(rng):
    p, q = floats(*clouds(rng))
    kernel = kernels.rbf_mixture(1.0)
    models = [
        ratio.ulsif(p, q, kernel, ridge=0.1),
        ratio.kliep(p, q, kernel, num_steps=1),
        ratio.logistic(p, q, kernel, ridge=0.1, num_steps=1),
    ]
    for model in models:
        again = pickle.loads(pickle.dumps(model))  # noqa: S301  # our own
        for twin in (again, copy.deepcopy(model), copy.copy(model)):
            assert twin == model
            assert not operator.ne(twin, model)
            np.testing.assert_array_equal(
                ratio.density_ratio(twin, q), ratio.density_ratio(model, q)
            )
        assert model != model._replace(centers=model.centers + 1)
        assert model != kernel


@pytest.mark.thorough
@pytest.mark.parametrize("d", [2, 5])
def test_points_however_far_have_finite_ratios_that_point_home(rng, d):
    p, q = (jnp.asarray(rng.normal(size=(8, d)), jnp.float32) for _ in range(2))
    kernel = kernels.rbf_mixture([0.1, 2.0])
    models = [
        ratio.kliep(p, q, kernel, num_steps=3),
        ratio.kliep(p, q, kernels.matern52(1.0), num_steps=3),
        ratio.ulsif(p, q, kernel, ridge=0.1),
        ratio.logistic(p, q, kernels.imq_mixture(1.0), ridge=0.1, num_steps=3),
    ]
    rays = rng.normal(size=(4, d))
    for distance in (3e19, 1e38):
        x = jnp.asarray(distance * rays / np.abs(rays).max(), jnp.float32)
        for model in models:
            for value in (ratio.density_ratio, ratio.log_density_ratio, ratio.log_ratio_gradient):
                assert np.isfinite(value(model, x)).all()
        home = np.asarray(ratio.log_ratio_gradient(models[0], x), np.float64)
        home /= np.linalg.norm(home, axis=1, keepdims=True)
        np.testing.assert_allclose(
            home, -rays / np.linalg.norm(rays, axis=1, keepdims=True), atol=1e-5
        )
