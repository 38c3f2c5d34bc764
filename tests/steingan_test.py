"""SteinGAN: its fields against float64 loops over autodiff, its loss, its controller."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernelgrad import kernels, steingan, svgd

WEIGHTS = np.array([[0.7, -0.4, 0.2], [0.3, 0.9, -0.5]])


def features(x):
    return jnp.tanh(x @ WEIGHTS.astype(x.dtype))


def critic_fn(points):
    x = points.reshape(points.shape[0], -1)
    return jnp.sum(x**4, axis=1) / 4 + x[:, 0], features(x)


def gradient_of_kernel(h):
    """Returns k and its gradient in the first point, pair by pair."""

    def k(a, b):
        return jnp.exp(-jnp.sum((features(a[None])[0] - features(b[None])[0]) ** 2) / h**2)

    return k, jax.jit(jax.grad(k))


def distances(x):
    e = np.array(features(jnp.asarray(x)))
    return np.linalg.norm(e[:, None] - e[None], axis=2)


def median(x):
    """The number of pairs is odd, so that there is one."""
    return np.median(distances(x)[np.tril_indices(len(x), -1)])


def score(x):
    return -(x**3) - np.array([1.0, 0.0])


def svgd_sums(x, h):
    """The sum of eq. (7) and that of the kernel, at each particle."""
    k, gradient = gradient_of_kernel(h)
    total, weight = np.zeros_like(x), np.zeros((len(x), 1))
    for i in range(len(x)):
        for j in range(len(x)):
            total[i] += float(k(x[j], x[i])) * score(x[j]) + np.asarray(gradient(x[j], x[i]))
            weight[i] += float(k(x[j], x[i]))
    return total, weight


def paper_field(x):
    return svgd_sums(x, median(x) / 2)[0] / len(x)


def row_normalized_field(x):
    total, weight = svgd_sums(x, median(x) / 2)
    return total / weight


def one_pass_field(x):
    """The kernel's gradient in the point that is repelled, with the sign turned."""
    k, gradient = gradient_of_kernel(median(x) / 2)
    total, weight = np.zeros_like(x), np.zeros((len(x), 1))
    for i in range(len(x)):
        for j in range(len(x)):
            total[i] += float(k(x[i], x[j])) * score(x[j]) - np.asarray(gradient(x[i], x[j]))
            weight[i] += float(k(x[i], x[j]))
    return total / weight


def nearest_field(x):
    _, gradient = gradient_of_kernel(median(x) / 2)
    away = distances(x) + np.diag(np.full(len(x), np.inf))
    return np.stack(
        [score(x[i]) + np.asarray(gradient(x[away[i].argmin()], x[i])) / 2 for i in range(len(x))]
    )


def narrow_field(x):
    """The code's exponent 4 log(n + 1) r^2 / median^2."""
    return svgd_sums(x, median(x) / 2 / np.sqrt(np.log(len(x) + 1)))[0] / len(x)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, paper_field),
        ({"field": steingan.row_normalized_direction}, row_normalized_field),
        ({"field": steingan.one_pass_direction}, one_pass_field),
        ({"field": steingan.nearest_direction}, nearest_field),
        ({"lengthscale": steingan.half_svgd}, narrow_field),
    ],
)
def test_direction_is_minus_the_field(key, rng, monkeypatch, options, expected):
    x = rng.normal(size=(6, 2))
    with jax.enable_x64(True):
        objective = steingan.steingan(**options)
        direction, info = jax.jit(lambda x: objective.direction(critic_fn, key, x, x))(
            jnp.asarray(x)
        )
        field = expected(x)
        monkeypatch.setattr(sys.modules[__name__], "score", np.zeros_like)
        repulsion = expected(x)
    np.testing.assert_allclose(direction, -field, rtol=1e-8, atol=1e-12)
    ratio = np.linalg.norm(repulsion) / np.linalg.norm(field - repulsion)
    np.testing.assert_allclose(info["repulsion_ratio"], ratio, rtol=1e-8)


@pytest.mark.thorough
def test_images_and_parameters_as_tracers(key, rng):
    images = jnp.asarray(rng.normal(size=(6, 1, 2, 1)), jnp.float32)

    @jax.jit
    def direction(scale, images):
        def scaled(points):
            energy, e = critic_fn(points)
            return scale * energy, e

        return steingan.steingan().direction(scaled, key, images, images)[0]

    flat = jax.jit(lambda x: steingan.steingan().direction(critic_fn, key, x, x)[0])
    np.testing.assert_allclose(
        direction(1.0, images).reshape(6, 2), flat(images.reshape(6, 2)), rtol=1e-5
    )


@pytest.mark.parametrize("discount", [0.0, 0.7])
def test_critic_loss_is_the_discounted_contrast(key, rng, discount):
    samples, data = rng.normal(size=(5, 2)), rng.normal(1.0, 1.0, size=(5, 2))
    with jax.enable_x64(True):
        loss, info = steingan.steingan(discount=discount).critic_loss(
            critic_fn, key, jnp.asarray(samples), jnp.asarray(data)
        )
    of_data, of_samples = (np.mean(np.sum(x**4, axis=1) / 4 + x[:, 0]) for x in (data, samples))
    np.testing.assert_allclose(loss, of_data - (1 - discount) * of_samples, rtol=1e-12)
    np.testing.assert_allclose(info["energy_data"], of_data, rtol=1e-12)
    np.testing.assert_allclose(info["energy_samples"], of_samples, rtol=1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "field",
    [svgd.svgd_direction, steingan.one_pass_direction, steingan.nearest_direction],
)
def test_two_devices_give_the_one_device_direction(key, rng, field):
    x = jnp.asarray(rng.normal(size=(8, 2)), jnp.float32)
    objective = steingan.steingan(field=field)
    alone, info = jax.jit(lambda x: objective.direction(critic_fn, key, x, x))(x)
    spread, infos = jax.pmap(
        lambda x: objective.direction(critic_fn, key, x, x, axis_name="i"), axis_name="i"
    )(x.reshape(2, 4, 2))
    np.testing.assert_allclose(spread.reshape(8, 2), alone, rtol=1e-4, atol=1e-5)
    for ratio in infos["repulsion_ratio"]:
        np.testing.assert_allclose(ratio, info["repulsion_ratio"], rtol=1e-4)


@pytest.mark.thorough
def test_between_the_points_themselves_one_pass_is_that_of_svgd(rng):
    x, s = (jnp.asarray(rng.normal(size=(7, 3)), jnp.float32) for _ in range(2))
    base = kernels.rbf_mixture(0.7)
    kernel = kernels.feature_kernel(base, lambda _, x: x, ())
    np.testing.assert_allclose(
        steingan.one_pass_direction(x, s, kernel),
        steingan.row_normalized_direction(x, s, base),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.thorough
def test_row_sums_of_two_devices_are_those_of_their_union(rng):
    x, s = (jnp.asarray(rng.normal(size=(8, 2)), jnp.float32) for _ in range(2))
    kernel = kernels.rbf_mixture(0.7)
    alone = steingan.row_normalized_direction(x, s, kernel)
    spread = jax.pmap(
        lambda x, s: steingan.row_normalized_direction(x, s, kernel, axis_name="i"), axis_name="i"
    )(x.reshape(2, 4, 2), s.reshape(2, 4, 2))
    np.testing.assert_allclose(spread.reshape(8, 2), alone, rtol=1e-5, atol=1e-5)


def test_devices_share_one_controller(key):
    """The energy leads on one device and not on the other; the union decides."""
    samples, data = jnp.array([[[0.0], [0.0]], [[4.0], [4.0]]]), jnp.ones((2, 2, 1))

    def critic_fn(points):
        return points[:, 0], points

    info = jax.pmap(
        lambda x, y: steingan.steingan().critic_loss(critic_fn, key, x, y, axis_name="i")[1],
        axis_name="i",
    )(samples, data)
    np.testing.assert_array_equal(info["energy_samples"], [2.0, 2.0])
    np.testing.assert_array_equal(info["rate_factor"], [0.0, 0.0])


@pytest.mark.parametrize("discount", [0.0, 0.7])
def test_stabilized_loss_has_the_gradient_of_eq_16(rng, discount):
    """For E(x) = theta x + theta^2 x^2 / 2 at theta = .4, dE/dtheta = x + theta x^2."""
    data, samples = rng.normal(size=5), rng.normal(size=7)

    def loss(theta):
        def energy(x):
            return theta * x + theta**2 * x**2 / 2

        return steingan.stabilized_loss(energy(data), energy(samples), discount=discount)

    with jax.enable_x64(True):
        got = jax.grad(loss)(0.4)
    expected = np.mean(data + 0.4 * data**2) - (1 - discount) * np.mean(samples + 0.4 * samples**2)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize(("gap", "factor"), [(-0.6, 0), (-0.4, 1), (0.0, 1), (0.4, 5), (0.6, 5)])
def test_controller(gap, factor):
    got = jax.jit(steingan.rate_factor)(jnp.asarray(2.0 + gap), jnp.asarray(2.0))
    assert got == factor
    assert steingan.rate_factor(jnp.asarray(9.0), jnp.asarray(0.0), threshold=np.inf) == 5


@pytest.mark.parametrize(("gap", "factor"), [(-0.6, 0), (-0.4, 1), (0.4, 5), (0.6, 0)])
def test_read_literally_the_controller_freezes_on_both_sides(gap, factor):
    energies = jnp.asarray(2.0 + gap), jnp.asarray(2.0)
    assert steingan.rate_factor(*energies, two_sided=True) == factor


@pytest.mark.parametrize(("energy_data", "discount"), [(2.1, 0.7), (2.0, 0.9), (1.4, 0.9)])
def test_the_discount_is_another_where_the_energy_leads(key, energy_data, discount):
    def critic_fn(points):
        return points[:, 0], points

    samples, data = jnp.full((3, 1), 2.0), jnp.full((3, 1), energy_data)
    objective = steingan.steingan(leading_discount=0.9, two_sided=True)
    loss, info = objective.critic_loss(critic_fn, key, samples, data)
    np.testing.assert_allclose(info["discount"], discount, rtol=1e-6)
    np.testing.assert_allclose(loss, energy_data - (1 - discount) * 2, rtol=1e-5)
    assert info["rate_factor"] == {2.1: 5, 2.0: 1, 1.4: 0}[energy_data]


def test_threshold_reaches_the_controller(key):
    def critic_fn(points):
        return points[:, 0], points

    far, data = jnp.full((3, 1), 9.0), jnp.zeros((3, 1))
    for threshold, factor in ((0.5, 0), (np.inf, 1)):
        objective = steingan.steingan(threshold=threshold)
        assert objective.critic_loss(critic_fn, key, far, data)[1]["rate_factor"] == factor


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discount": 1.0}, "discount: got 1"),
        ({"leading_discount": -0.1}, "leading_discount: got -0.1"),
        ({"threshold": 0.0}, "threshold: got 0"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        steingan.steingan(**options)


def test_a_single_particle_has_no_neighbour():
    kernel = kernels.feature_kernel(kernels.rbf_mixture(1.0), lambda _, x: x, ())
    with pytest.raises(ValueError, match="particles: got 1"):
        steingan.nearest_direction(jnp.ones((1, 2)), jnp.ones((1, 2)), kernel)


def test_energies_that_do_not_compare_have_no_factor():
    assert np.isnan(steingan.rate_factor(jnp.float32(jnp.nan), jnp.float32(0)))
    assert np.isnan(steingan.rate_factor(jnp.float32(jnp.inf), jnp.float32(jnp.inf)))


def test_energies_in_low_precision_are_compared_in_float32():
    """16 bits hold 300.1 and 300.7 as one number; their means are not."""
    data, samples = (jnp.asarray([300.0, a], jnp.bfloat16) for a in (300.0, 302.0))
    assert steingan.stabilized_loss(data, samples, discount=0.0) == -1
