"""The objectives: agreement with the papers' formulas, signs, and independence of the devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from kernelgrad import kernels, mmd, objectives, ratio, score

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


def test_bad_ridge_is_named():
    with pytest.raises(ValueError, match=r"ridge: got 0"):
        objectives.kl(make_imq, ridge=0.0)
