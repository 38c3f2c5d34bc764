"""The objectives: agreement with the papers' formulas, signs, and independence of the devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from kernelgrad import kernels, mmd, noise, objectives, ratio, score

make_imq = functools.partial(kernels.median_mixture, kernels.imq_mixture)


OBJECTIVES = {
    "kl": objectives.kl(make_imq),
    "mmd": objectives.mmd_v(make_imq),
    "noisy_jsd": objectives.noisy_jsd(variance=0.5),
    "ratio_ulsif": objectives.ratio_ulsif(make_imq),
    "ratio_kliep": objectives.ratio_kliep(make_imq),
    "density_ratio": objectives.density_ratio(
        make_imq, functools.partial(ratio.logistic, ridge=1e-2)
    ),
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
    np.testing.assert_allclose(spread.reshape(24, 5), alone, atol=1e-5 * scale)
    for label, value in alone_info.items():
        np.testing.assert_allclose(spread_info[label], np.full(2, value), rtol=1e-4, atol=1e-6)


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


def test_bad_ridge_is_named():
    with pytest.raises(ValueError, match=r"ridge: got 0"):
        objectives.kl(make_imq, ridge=0.0)
