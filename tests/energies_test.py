"""Objectives of energies: SteinGAN against float64 loops over autodiff, its controller."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernelgrad import energies

WEIGHTS = np.array([[0.7, -0.4, 0.2], [0.3, 0.9, -0.5]])


def features(x):
    return jnp.tanh(x @ WEIGHTS.astype(x.dtype))


def critic_fn(points):
    x = points.reshape(points.shape[0], -1)
    return jnp.sum(x**4, axis=1) / 4 + x[:, 0], features(x)


def paper_direction(x, bandwidth):
    """Eq. (7) pair by pair; the number of pairs is odd, so that there is one median."""
    e = np.array(features(jnp.asarray(x)))
    n = len(x)
    h = bandwidth * np.median([np.linalg.norm(e[i] - e[j]) for i in range(n) for j in range(i)])

    def k(a, b):
        return jnp.exp(-jnp.sum((features(a[None])[0] - features(b[None])[0]) ** 2) / h**2)

    gradient = jax.jit(jax.grad(k))
    total = np.zeros_like(x)
    for i in range(n):
        for j in range(n):
            score = -(x[j] ** 3) - np.array([1.0, 0.0])
            total[i] += float(k(x[j], x[i])) * score + np.asarray(gradient(x[j], x[i]))
    return total / n


@pytest.mark.parametrize("bandwidth", [0.5, 1.3])
def test_direction_is_minus_the_papers_field(key, rng, bandwidth):
    x = rng.normal(size=(6, 2))
    with jax.enable_x64(True):
        objective = energies.steingan(bandwidth=bandwidth)
        direction, _ = jax.jit(lambda x: objective.direction(critic_fn, key, x, x))(jnp.asarray(x))
        expected = -paper_direction(x, bandwidth)
    np.testing.assert_allclose(direction, expected, rtol=1e-8)


def test_images_and_parameters_as_tracers(key, rng):
    images = jnp.asarray(rng.normal(size=(6, 1, 2, 1)), jnp.float32)

    @jax.jit
    def direction(scale, images):
        def scaled(points):
            energy, e = critic_fn(points)
            return scale * energy, e

        return energies.steingan().direction(scaled, key, images, images)[0]

    flat = jax.jit(lambda x: energies.steingan().direction(critic_fn, key, x, x)[0])
    np.testing.assert_allclose(
        direction(1.0, images).reshape(6, 2), flat(images.reshape(6, 2)), rtol=1e-5
    )


@pytest.mark.parametrize("discount", [0.0, 0.7])
def test_critic_loss_is_the_discounted_contrast(key, rng, discount):
    samples, data = rng.normal(size=(5, 2)), rng.normal(1.0, 1.0, size=(5, 2))
    with jax.enable_x64(True):
        loss, info = energies.steingan(discount=discount).critic_loss(
            critic_fn, key, jnp.asarray(samples), jnp.asarray(data)
        )
    of_data, of_samples = (np.mean(np.sum(x**4, axis=1) / 4 + x[:, 0]) for x in (data, samples))
    np.testing.assert_allclose(loss, of_data - (1 - discount) * of_samples, rtol=1e-12)
    np.testing.assert_allclose(info["energy_data"], of_data, rtol=1e-12)
    np.testing.assert_allclose(info["energy_samples"], of_samples, rtol=1e-12)


def test_two_devices_give_the_one_device_direction(key, rng):
    x = jnp.asarray(rng.normal(size=(8, 2)), jnp.float32)
    objective = energies.steingan()
    alone = jax.jit(lambda x: objective.direction(critic_fn, key, x, x)[0])(x)
    spread = jax.pmap(
        lambda x: objective.direction(critic_fn, key, x, x, axis_name="i")[0], axis_name="i"
    )(x.reshape(2, 4, 2))
    np.testing.assert_allclose(spread.reshape(8, 2), alone, rtol=1e-4, atol=1e-5)


def energy_fn(points):
    return critic_fn(points)[0]


def test_kale_loss_and_direction_are_the_papers(key, rng):
    """-DV and softmax weights times n, with grad E = x^3 + e_1."""
    samples, data = 0.5 * rng.normal(size=(5, 2)), rng.normal(1.0, 0.5, size=(5, 2))
    with jax.enable_x64(True):
        objective = energies.kale(penalty_weight=0.0)
        loss, info = objective.critic_loss(energy_fn, key, jnp.asarray(samples), jnp.asarray(data))
        direction, _ = objective.direction(energy_fn, key, jnp.asarray(samples), jnp.asarray(data))
    of_data, of_samples = (np.sum(x**4, axis=1) / 4 + x[:, 0] for x in (data, samples))
    bound = -np.mean(of_data) - np.log(np.mean(np.exp(-of_samples)))
    np.testing.assert_allclose(loss, -bound, rtol=1e-12)
    np.testing.assert_allclose(info["log_normalizer"], np.log(np.mean(np.exp(-of_samples))))
    weights = np.exp(-of_samples) / np.mean(np.exp(-of_samples))
    expected = weights[:, None] * (samples**3 + np.array([1.0, 0.0]))
    np.testing.assert_allclose(direction, expected, rtol=1e-10)


def test_kale_direction_is_the_gradient_of_the_bound(key, rng):
    """n times the gradient of Donsker-Varadhan in the samples, by autodiff."""
    samples, data = rng.normal(size=(5, 2)), rng.normal(1.0, 0.5, size=(5, 2))
    with jax.enable_x64(True):
        x, y = jnp.asarray(samples), jnp.asarray(data)

        def bound(x):
            return -jnp.mean(energy_fn(y)) - jnp.log(jnp.mean(jnp.exp(-energy_fn(x))))

        expected = 5 * jax.grad(bound)(x)
        direction, _ = energies.kale().direction(energy_fn, key, x, y)
    np.testing.assert_allclose(direction, expected, rtol=1e-10)


def test_kale_on_two_devices_is_that_of_one(key, rng):
    x, y = (jnp.asarray(rng.normal(size=(8, 2)), jnp.float32) for _ in range(2))
    objective = energies.kale(penalty_weight=0.3)

    def learn(scale, x, y, axis_name=None):
        def scaled(points):
            return scale * energy_fn(points)

        (_, info), slope = jax.value_and_grad(
            lambda s: objective.critic_loss(
                lambda p: s * energy_fn(p), key, x, y, axis_name=axis_name
            ),
            has_aux=True,
        )(scale)
        direction, _ = objective.direction(scaled, key, x, y, axis_name=axis_name)
        if axis_name is not None:
            slope, info = jax.lax.pmean((slope, info), axis_name)
        return direction, slope, info

    alone = jax.jit(learn)(0.7, x, y)
    spread = jax.pmap(lambda x, y: learn(0.7, x, y, axis_name="i"), axis_name="i")(
        x.reshape(2, 4, 2), y.reshape(2, 4, 2)
    )
    np.testing.assert_allclose(spread[0].reshape(8, 2), alone[0], rtol=1e-4, atol=1e-5)
    for got, expected in zip(jax.tree.leaves(spread[1:]), jax.tree.leaves(alone[1:]), strict=True):
        np.testing.assert_allclose(got, np.full(2, expected), rtol=1e-4)


@pytest.mark.parametrize(("gap", "factor"), [(-0.6, 0), (-0.4, 1), (0.0, 1), (0.4, 5), (0.6, 5)])
def test_controller(gap, factor):
    got = jax.jit(energies.rate_factor)(jnp.asarray(2.0 + gap), jnp.asarray(2.0))
    assert got == factor
    assert energies.rate_factor(jnp.asarray(9.0), jnp.asarray(0.0), threshold=np.inf) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [({"discount": 1.0}, "discount: got 1"), ({"bandwidth": 0.0}, "bandwidth: got 0")],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        energies.steingan(**options)
    with pytest.raises(ValueError, match="penalty_weight: got -1"):
        energies.kale(penalty_weight=-1.0)
