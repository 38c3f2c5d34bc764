"""The objectives: agreement with the papers' formulas, signs, and independence of the devices."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from kernelgrad import (
    _devices,
    adversarial,
    kernels,
    mmd,
    noise,
    objectives,
    ratio,
    score,
    selection,
)

make_imq = functools.partial(kernels.median_mixture, kernels.imq_mixture)


OBJECTIVES = {
    "kl": objectives.kl(make_imq),
    "mmd": objectives.mmd_v(make_imq),
    "noisy_jsd": objectives.noisy_jsd(variance=0.5),
    "ratio_ulsif": objectives.ratio_ulsif(make_imq),
    "ratio_rulsif": objectives.ratio_rulsif(make_imq),
    "ratio_kliep": objectives.ratio_kliep(make_imq),
    "ratio_logistic": objectives.ratio_logistic(make_imq),
    "ratio_selected": objectives.ratio_ulsif(
        make_imq, ridge=(0.01, 0.1), lengthscale_factors=(0.5, 1.0)
    ),
    "density_ratio": objectives.density_ratio(make_imq, functools.partial(ratio.ulsif, ridge=0.1)),
    "drift": objectives.drift((0.1, 0.3, 1.0)),
    "conservative_drift": objectives.conservative_drift(make_imq),
    "energy_distance": objectives.energy_distance(),
    "sliced_energy": objectives.sliced_energy(16),
    "noisy_mmd": objectives.noisy_mmd(make_imq, noise_scale=0.1),
    "f_divergence": objectives.f_divergence("forward_kl", make_imq),
    "kale_flow": objectives.kale_flow(make_imq),
}
STEPS = {"drift": (0.03, 80), "conservative_drift": (1.0, 40)}  # (0.3, 40) for others


def _batch(rng, n=8, m=8, d=3):
    return rng.normal(size=(n, d)), rng.normal(0.6, 1.2, size=(m, d))


def test_kl_direction_matches_paper_000(rng):
    x, y = _batch(rng, n=7, m=5)
    lengthscales, ridge = (0.8, 1.6), 0.7
    with jax.enable_x64(True):
        kernel = kernels.imq_mixture(jnp.array(lengthscales))
        direction = jax.jit(objectives.kl_direction)(
            jnp.asarray(x), jnp.asarray(y), kernel, ridge=ridge
        )
    expected = oracles.stein_score("imq_mixture", x, lengthscales, ridge) - np.array(
        [oracles.stein_score_at("imq_mixture", q, y, lengthscales, ridge) for q in x]
    )
    np.testing.assert_allclose(direction, expected, rtol=1e-9)


@pytest.mark.thorough
def test_kl_objective_uses_the_median_mixture_and_the_default_ridge(key, rng):
    x, y = (jnp.asarray(s, jnp.float32) for s in _batch(rng))
    direction, info = jax.jit(objectives.kl(make_imq))(key, x, y)
    scale = oracles.median_squared_distance(np.concatenate([x, y]))
    lengthscales = np.sqrt(np.array([0.5, 1.0, 2.0, 4.0]) * scale)
    ridge = 0.1 * np.sqrt(8) * 4
    expected = oracles.stein_score("imq_mixture", x, lengthscales, ridge) - np.array(
        [oracles.stein_score_at("imq_mixture", q, y, lengthscales, ridge) for q in np.asarray(x)]
    )
    np.testing.assert_allclose(direction, expected, rtol=1e-4, atol=1e-5)
    discrepancy = oracles.mmd_v("imq_mixture", x, y, lengthscales)
    np.testing.assert_allclose(info["mmd"], discrepancy, rtol=1e-4)


@pytest.mark.thorough
def test_mmd_objective_is_n_times_the_gradient_of_the_loops(key, rng):
    x, y = _batch(rng, n=4, m=5, d=2)
    lengthscale = 1.3
    objective = objectives.mmd_v(lambda *_, axis_name: kernels.rbf_mixture(lengthscale))
    with jax.enable_x64(True):
        direction, _ = objective(key, jnp.asarray(x), jnp.asarray(y))
    step = 1e-5
    for i in range(4):
        for a in range(2):
            bump = np.zeros_like(x)
            bump[i, a] = step
            up = oracles.mmd_v("rbf_mixture", x + bump, y, lengthscale)
            down = oracles.mmd_v("rbf_mixture", x - bump, y, lengthscale)
            np.testing.assert_allclose(direction[i, a], 4 * (up - down) / (2 * step), atol=1e-7)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name == "kl" else name for name in OBJECTIVES],
)
def test_descending_moves_the_samples_to_the_data(key, rng, name):
    x = jnp.asarray(rng.normal(size=(200, 2)), jnp.float32)
    y = jnp.asarray(rng.normal((1.0, -0.5), 1.0, size=(200, 2)), jnp.float32)
    objective = OBJECTIVES[name]
    step_size, num_steps = STEPS.get(name, (0.3, 40))

    @jax.jit
    def move(x):
        return x - step_size * objective(key, x, y)[0]

    start = mmd.mmd_v_statistic(x, y, make_imq(x, y))
    for _ in range(num_steps):
        x = move(x)
    assert mmd.mmd_v_statistic(x, y, make_imq(x, y)) < 0.2 * start
    np.testing.assert_allclose(x.mean(axis=0), y.mean(axis=0), atol=0.25)


@pytest.mark.thorough
def test_kl_direction_estimates_the_difference_of_gaussian_scores(rng):
    x = jnp.asarray(rng.normal(size=(800, 2)), jnp.float32)
    y = jnp.asarray(rng.normal((1.0, 0.0), 1.0, size=(800, 2)), jnp.float32)
    kernel = make_imq(x, y)
    ridge = score.default_ridge(800, kernel)
    direction = jax.jit(objectives.kl_direction)(x, y, kernel, ridge=ridge)
    np.testing.assert_allclose(direction.mean(axis=0), [-1.0, 0.0], atol=0.3)  # s_q - s_p


@pytest.mark.thorough
def test_kl_with_an_infinite_ridge_is_mmd(key, rng):
    """(2 eta / n) times the KL direction tends to that of MMD: G -> -N / eta, g(x) -> -r / eta."""
    x, y = _batch(rng, n=9, m=9)
    lengthscale, ridge = 1.1, 1e7
    with jax.enable_x64(True):
        kernel = kernels.imq_mixture(lengthscale)
        x, y = jnp.asarray(x), jnp.asarray(y)
        kl = jax.jit(objectives.kl_direction)(x, y, kernel, ridge=ridge)
        descent, _ = objectives.mmd_v(lambda *_, axis_name: kernel)(key, x, y)
    np.testing.assert_allclose(2 * ridge / 9 * np.asarray(kl), descent, rtol=1e-5)


@pytest.mark.thorough
def test_ratio_objectives_descend_the_fitted_log_ratio_of_samples_to_data(key, rng):
    x, y = (jnp.asarray(s, jnp.float32) for s in _batch(rng, n=12, m=12))
    model = ratio.kliep(y, x, make_imq(x, y))
    direction, info = jax.jit(OBJECTIVES["ratio_kliep"])(key, x, y)
    np.testing.assert_allclose(direction, -ratio.log_ratio_gradient(model, x), rtol=1e-3, atol=1e-4)
    expected = -jnp.mean(ratio.log_density_ratio(model, x))
    np.testing.assert_allclose(info["log_ratio"], expected, rtol=1e-3, atol=1e-5)
    assert info["log_ratio"] > 0


def _always(kernel):
    return lambda *_, axis_name: kernel


def _loops(x, centers, weights, lengthscale):
    """Returns sum_c w_c k(x, z_c) and its gradient in x, at every x."""
    values = oracles.gram("imq_mixture", x, centers, lengthscale) @ weights
    slopes = [
        sum(
            -w * oracles.kernel_gradient("imq_mixture", a, z, lengthscale)
            for w, z in zip(weights, centers, strict=True)
        )
        for a in x
    ]
    return values, np.array(slopes)


@pytest.mark.thorough
@pytest.mark.parametrize("alpha", [0.97, 0.5])
def test_relative_ratios_descend_what_they_leave_of_the_mixture(key, rng, alpha):
    """The logarithm of 1 - alpha r, or its tangent; at 1/2 the saturating GAN's loss."""
    x, y = _batch(rng, n=6, m=9, d=2)
    with jax.enable_x64(True):
        kernel, x, y = kernels.imq_mixture(0.7), jnp.asarray(x), jnp.asarray(y)
        model = ratio.lsif(y, x, kernel, ridge=0.01, alpha=alpha)
        objective = objectives.ratio_rulsif(_always(kernel), alpha=alpha, ridge=0.01)
        direction, info = objective(key, x, y)

        def gan(points):
            share = ratio.density_ratio(model, points) / 2
            return len(x) * adversarial.saturating_loss(jnp.log(share / (1 - share)))

        of_gan = jax.grad(gan)(x)
    values, slopes = _loops(np.asarray(x), np.asarray(y), np.exp(model.log_weights), 0.7)
    left, floor = 1 - alpha * values, 1 / 3
    assert np.any(left < floor) == (alpha > 0.9)
    expected = -alpha * slopes / np.maximum(left, floor)[:, None]
    np.testing.assert_allclose(direction, expected, rtol=1e-9)
    logs = np.where(left > floor, np.log(np.maximum(left, floor)), np.log(floor) + left / floor - 1)
    np.testing.assert_allclose(info["log_ratio"], np.mean(logs) - np.log(1 - alpha), rtol=1e-9)
    if alpha == 0.5:
        np.testing.assert_allclose(direction, of_gan, rtol=1e-9)


@pytest.mark.thorough
def test_logistic_ratios_descend_minus_the_log_odds(key, rng):
    x, y = _batch(rng, n=5, m=7, d=2)
    with jax.enable_x64(True):
        kernel, x, y = kernels.imq_mixture(0.7), jnp.asarray(x), jnp.asarray(y)
        model = ratio.logistic(y, x, kernel, ridge=0.02)
        direction, info = objectives.ratio_logistic(_always(kernel), ridge=0.02)(key, x, y)
    centers = np.concatenate([y, x])
    values, slopes = _loops(np.asarray(x), centers, np.asarray(model.weights), 0.7)
    np.testing.assert_allclose(direction, -slopes, rtol=1e-9)
    np.testing.assert_allclose(
        info["log_ratio"], -np.mean(values) - float(model.intercept), rtol=1e-9
    )


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
def test_the_exact_relative_ratio_leads_down_the_skewed_jensen_shannon(key, monkeypatch, alpha):
    """Between two Gaussians of which one moves: twice JSD at 1/2."""
    z = np.linspace(-12, 12, 20_001)

    def density(mean):
        return np.exp(-((z - mean) ** 2) / 2) / np.sqrt(2 * np.pi)

    def divergence(mean):
        q, p = density(mean), density(0.0)
        m = alpha * p + (1 - alpha) * q
        return np.trapezoid(q * np.log(q / m) + alpha / (1 - alpha) * p * np.log(p / m), z)

    def exact(_, points):
        odds = (1 - alpha) * jnp.exp(mean * points[:, 0] - mean**2 / 2)
        return 1 / (alpha + odds)

    mean, step = 0.8, 1e-4
    unlimited = types.SimpleNamespace(centers=types.SimpleNamespace(shape=(10**24, 1)))
    monkeypatch.setattr(ratio, "lsif", lambda *_, **options: unlimited)
    monkeypatch.setattr(ratio, "density_ratio", exact)
    with jax.enable_x64(True):
        points = jnp.asarray(z)[:, None]
        make = _always(kernels.rbf_mixture(1.0))
        direction, _ = objectives.ratio_rulsif(make, alpha=alpha)(key, points, points)
    got = np.trapezoid(density(mean) * np.asarray(direction)[:, 0], z)
    expected = (divergence(mean + step) - divergence(mean - step)) / (2 * step)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


FACTORS, RIDGES = (0.4, 1.0, 2.5), (0.01, 0.1)
SELECTED = {
    "ulsif": (selection.rulsif_loo, RIDGES, {"alpha": 0.5}),
    "rulsif": (selection.rulsif_loo, RIDGES, {"alpha": 0.5}),
    "kliep": (selection.kliep_cv, None, {}),
    "logistic": (selection.logistic_cv, RIDGES, {}),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", SELECTED)
def test_lengthscale_and_ridge_are_those_of_selection(key, rng, name):
    """Whatever the key, in one compilation for all batches; and the direction is by that pair."""
    loss, ridges, options = SELECTED[name]
    maker = getattr(objectives, f"ratio_{name}")
    given = {} if ridges is None else {"ridge": ridges}
    make, compiled = _always(kernels.imq_mixture(0.9)), []

    @jax.jit
    def run(key, x, y):
        compiled.append(name)
        return maker(make, lengthscale_factors=FACTORS, **given)(key, x, y)

    for shift in (0.6, 3.0):
        x, y = (jnp.asarray(s, jnp.float32) for s in _batch(rng, n=12, m=12, d=2))
        y = y + shift
        direction, info = run(key, x, y)

        def score(factor, *ridge, x=x, y=y):
            of_ridge = {"ridge": ridge[0]} if ridge else {}
            return loss(y, x, kernels.imq_mixture(0.9 * factor), **of_ridge, **options)

        grids = [jnp.asarray(grid) for grid in (FACTORS, ridges) if grid]
        best = jax.jit(lambda score=score, grids=grids: selection.select(score, *grids))()
        got = [info[one] for one in ("lengthscale_factor", "ridge") if one in info]
        np.testing.assert_array_equal(got, best.values)
        chosen = {} if ridges is None else {"ridge": float(got[1])}
        alone = maker(_always(kernels.imq_mixture(0.9 * float(got[0]))), **chosen)
        expected, _ = jax.jit(alone)(key, x, y)
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(direction, expected, atol=1e-3 * scale)
        again = run(jax.random.fold_in(key, 1), x, y)
        jax.tree.map(np.testing.assert_array_equal, again, (direction, info))
    assert len(compiled) == 1


@pytest.mark.slow
def test_images_keep_their_shape(key, rng):
    images = jnp.asarray(rng.uniform(size=(6, 4, 4, 1)), jnp.float32)
    data = jnp.asarray(rng.uniform(size=(6, 4, 4, 1)), jnp.float32)
    for objective in map(jax.jit, OBJECTIVES.values()):
        direction, _ = objective(key, images, data)
        flat, _ = objective(key, images.reshape(6, 16), data.reshape(6, 16))
        assert direction.shape == images.shape
        np.testing.assert_allclose(direction.reshape(6, 16), flat, rtol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_devices_give_the_one_device_direction(key, rng, name):
    x, y = (jnp.asarray(s, jnp.float32) for s in _batch(rng, n=24, m=24, d=5))
    objective = OBJECTIVES[name]
    alone, alone_info = jax.jit(objective)(key, x, y)
    spread, spread_info = jax.pmap(lambda a, b: objective(key, a, b, axis_name="i"), axis_name="i")(
        x.reshape(2, 12, 5), y.reshape(2, 12, 5)
    )
    scale = float(jnp.abs(alone).max())
    # the moments of a ratio's fit are sums over devices, whose rounding the solve magnifies
    digits = 3e-5 if "ratio" in name else 1e-5
    np.testing.assert_allclose(spread.reshape(24, 5), alone, atol=digits * scale)
    for label, value in alone_info.items():
        np.testing.assert_allclose(spread_info[label], np.full(2, value), rtol=1e-4, atol=1e-6)


def test_a_kernel_may_be_given_as_it_is_or_by_a_rule_of_the_union(key, rng):
    x, y = (jnp.asarray(s, jnp.float32) for s in _batch(rng, n=24, m=24, d=5))

    def of_all(a, b):
        return kernels.imq_mixture(jnp.abs(a).mean() + jnp.abs(b).mean())

    def of_a_share(a, b, *, axis_name):
        return of_all(*(_devices.gather(z, axis_name) for z in (a, b)))

    alone, _ = jax.jit(objectives.mmd_v(of_a_share))(key, x, y)
    for given in (of_all(x, y), of_all):
        objective = objectives.mmd_v(given)
        np.testing.assert_allclose(jax.jit(objective)(key, x, y)[0], alone, atol=1e-6)
        spread, _ = jax.pmap(lambda a, b, o=objective: o(key, a, b, axis_name="i"), axis_name="i")(
            x.reshape(2, 12, 5), y.reshape(2, 12, 5)
        )
        np.testing.assert_allclose(spread.reshape(24, 5), alone, atol=1e-6)


@pytest.mark.thorough
def test_mmd_with_noise_of_no_size_is_mmd_and_else_its_gradient_at_noised_samples(key, rng):
    x, y = (jnp.asarray(s, jnp.float32) for s in _batch(rng))
    kernel = kernels.imq_mixture(1.3)
    make = lambda *_, axis_name: kernel  # noqa: E731
    quiet, _ = jax.jit(objectives.noisy_mmd(make, noise_scale=0.0))(key, x, y)
    np.testing.assert_allclose(quiet, objectives.mmd_v(make)(key, x, y)[0], rtol=1e-4, atol=1e-6)
    noisy, _ = jax.jit(objectives.noisy_mmd(make, noise_scale=0.5))(key, x, y)
    z = np.asarray(noise.instance_noise(key, x, variance=0.25))
    expected = [
        2 * sum(oracles.kernel_gradient("imq_mixture", b, a, 1.3) for b in x) / len(x)
        - 2 * sum(oracles.kernel_gradient("imq_mixture", b, a, 1.3) for b in y) / len(y)
        for a in z
    ]
    np.testing.assert_allclose(noisy, expected, rtol=1e-4, atol=1e-5)


# E_p h(q / p), as integrals of two densities
DIVERGENCES = {
    "reverse_kl": lambda q, p: q * np.log(q / p),
    "forward_kl": lambda q, p: p * np.log(p / q),
    "jsd": lambda q, p: (q * np.log(2 * q / (p + q)) + p * np.log(2 * p / (p + q))) / 2,
    "chi2": lambda q, p: (q - p) ** 2 / p,
}


@pytest.mark.parametrize("name", objectives.F_DIVERGENCES)
def test_weights_make_scores_the_gradient_of_the_divergence(name):
    """Between two Gaussians of which one moves, or is stretched, by a velocity field v.

    The divergence changes by the mean over q of v h''(r) r (s_q - s_p).
    """
    z = np.linspace(-12, 12, 20_001)
    p = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)

    def density(mean, scale):
        return np.exp(-(((z - mean) / scale) ** 2) / 2) / (scale * np.sqrt(2 * np.pi))

    def divergence(mean, scale):
        return np.trapezoid(DIVERGENCES[name](density(mean, scale), p), z)

    mean, scale, step = 0.4, 0.8, 1e-5
    q = density(mean, scale)
    scores = -(z - mean) / scale**2 + z
    with jax.enable_x64(True):
        weights = np.asarray(objectives.F_DIVERGENCES[name](jnp.asarray(np.log(q / p))))
    for velocity, (a, b) in ((np.ones_like(z), (1, 0)), ((z - mean) / scale, (0, 1))):
        up = divergence(mean + a * step, scale + b * step)
        down = divergence(mean - a * step, scale - b * step)
        got = np.trapezoid(q * velocity * weights * scores, z)
        np.testing.assert_allclose(got, (up - down) / (2 * step), rtol=1e-6)


@pytest.mark.thorough
def test_reverse_kl_is_kl_and_another_weighs_it_by_the_bounded_ratio(key, rng):
    x, y = (jnp.asarray(s, jnp.float32) for s in _batch(rng))
    kernel = kernels.imq_mixture(1.3)
    make = lambda *_, axis_name: kernel  # noqa: E731

    @jax.jit
    def directions(x, y):
        names = "reverse_kl", "chi2"
        made = [objectives.f_divergence(name, make, most=1.5)(key, x, y)[0] for name in names]
        model = ratio.lsif(y, x, kernel, ridge=1 / 160)
        return objectives.kl(make)(key, x, y)[0], ratio.log_density_ratio(model, x), *made

    kl, log_ratio, reverse, chi2 = directions(x, y)
    np.testing.assert_allclose(reverse, kl, rtol=1e-4, atol=1e-5)
    r = np.clip(np.exp(-log_ratio), 1 / 1.5, 1.5)[:, None]
    assert {r.min(), r.max()} & {np.float32(1.5), np.float32(1 / 1.5)}
    np.testing.assert_allclose(chi2, 2 * r * np.asarray(kl), rtol=1e-3, atol=1e-4)


def test_an_f_divergence_does_not_change_with_the_unit_of_the_kernel(key, rng):
    x, y = (jnp.asarray(s, jnp.float32) for s in _batch(rng))

    @jax.jit
    def direction(weight):
        make = lambda *_, axis_name: kernels.imq_mixture(1.3, weight)  # noqa: E731
        return objectives.f_divergence("forward_kl", make)(key, x, y)[0]

    np.testing.assert_allclose(direction(1e-3), direction(1.0), rtol=1e-3, atol=1e-4)


def test_bad_settings_of_fields_are_named():
    with pytest.raises(ValueError, match=r"^noise_scale: got -1[.]; expected values in \[0, inf"):
        objectives.noisy_mmd(make_imq, noise_scale=-1.0)
    with pytest.raises(ValueError, match=r"^name: got 'kl'; expected one of reverse_kl, "):
        objectives.f_divergence("kl", make_imq)
    with pytest.raises(ValueError, match=r"^most: got 1[.]; expected values in \(1, inf"):
        objectives.f_divergence("jsd", make_imq, most=1.0)
    with pytest.raises(ValueError, match=r"^num_projections: got 0; expected an integer >= 1"):
        objectives.sliced_energy(0)
    with pytest.raises(ValueError, match=r"^exponent: got 2[.]; expected values in \(0, 2"):
        objectives.energy_distance(2.0)


def test_bad_settings_of_ratios_are_named():
    with pytest.raises(ValueError, match=r"^alpha: got 1[.]; expected values in \(0, 1\)"):
        objectives.ratio_rulsif(make_imq, alpha=1.0)
    with pytest.raises(
        ValueError, match=r"^ridge: got \[0[.]1 0[.] \]; expected values in \(0, inf"
    ):
        objectives.ratio_logistic(make_imq, ridge=(0.1, 0.0))
    with pytest.raises(ValueError, match=r"^lengthscale_factors: got shape \(0,\); expected"):
        objectives.ratio_kliep(make_imq, lengthscale_factors=())


def test_bad_ridge_is_named():
    with pytest.raises(ValueError, match=r"ridge: got 0"):
        objectives.kl(make_imq, ridge=0.0)
