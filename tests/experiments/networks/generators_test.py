"""Generators: shapes, initialisation, statistics of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks import generators

IMAGE_SHAPES = [(8, 8, 1), (28, 28, 1), (32, 32, 3), (12, 20, 2)]


def shapes(network, inputs=(2, 50)):
    """The variables of a network, as shapes."""
    arguments = jax.random.key(0), jnp.zeros(inputs)
    return jax.eval_shape(lambda key, x: network.init(key, x, train=False), *arguments)


def random_variables(network, rng, inputs=(2, 50)):
    """Variables of the right shapes: parameters N(0, 0.1^2), running averages 0 and 1."""
    draw = shapes(network, inputs)
    params = jax.tree.map(
        lambda leaf: 0.1 * rng.standard_normal(leaf.shape).astype(np.float32), draw["params"]
    )
    stats = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.full(leaf.shape, path[-1].key == "var", np.float32),
        draw.get("batch_stats", {}),
    )
    return {"params": params, "batch_stats": stats}


def evaluate(network, variables, inputs):
    return jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, inputs)


def train(network, variables, inputs):
    def apply(variables, inputs):
        return network.apply(variables, inputs, train=True, mutable=["batch_stats"])

    return jax.jit(apply)(variables, inputs)


@pytest.mark.parametrize("sample_shape", IMAGE_SHAPES)
def test_dcgan_returns_images_in_the_unit_interval(rng, sample_shape):
    network = generators.DCGAN(sample_shape, width=4)
    latents = 100 * rng.standard_normal((3, 50)).astype(np.float32)
    images = evaluate(network, random_variables(network, rng), latents)
    assert images.shape == (3, *sample_shape)
    assert images.dtype == jnp.float32
    assert 0 <= images.min() < images.max() <= 1


def test_dcgan_for_mnist_has_450_000_parameters():
    """Dense 50 7 7 128, BatchNorm 2 128 and 2 64, kernels 16 128 64 and 16 64, one bias."""
    params = shapes(generators.DCGAN((28, 28, 1), width=64))["params"]
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert num_params == 313_600 + 256 + 131_072 + 128 + 1024 + 1


def test_dcgan_halves_the_channels_and_starts_at_four_by_four():
    params = shapes(generators.DCGAN((32, 32, 3), width=8))["params"]
    kernels = {name: layer["kernel"].shape for name, layer in params.items() if "kernel" in layer}
    assert kernels == {
        "Dense_0": (50, 4 * 4 * 32),
        "ConvTranspose_0": (4, 4, 32, 16),
        "ConvTranspose_1": (4, 4, 16, 8),
        "ConvTranspose_2": (4, 4, 8, 3),
    }


@pytest.mark.thorough
def test_dcgan_initialisation(key):
    network = generators.DCGAN((28, 28, 1), width=64)
    init = jax.jit(lambda key: network.init(key, jnp.zeros((2, 50)), train=False))
    params = init(key)["params"]

    def assert_normal(values, mean):
        n = values.size
        assert abs(values.mean() - mean) < 5 * 0.02 / np.sqrt(n)
        assert abs(values.std() - 0.02) < 5 * 0.02 / np.sqrt(2 * n)

    for name in ("Dense_0", "ConvTranspose_0", "ConvTranspose_1"):
        assert_normal(np.asarray(params[name]["kernel"]), 0)
    scales = [params[f"BatchNorm_{i}"]["scale"] for i in (0, 1)]
    assert_normal(np.concatenate(scales), 1)


def test_dcgan_updates_its_running_averages_by_a_tenth(rng):
    network = generators.DCGAN((8, 8, 1), width=4)
    variables = random_variables(network, rng)
    latents = rng.standard_normal((16, 50))
    _, updated = train(network, variables, latents.astype(np.float32))
    channels = (latents @ variables["params"]["Dense_0"]["kernel"]).reshape(-1, 4)
    stats = updated["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], 0.1 * channels.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * channels.var(0), rtol=1e-5)


def test_dcgan_normalises_by_the_running_averages_outside_training(rng):
    network = generators.DCGAN((8, 8, 1), width=4)
    variables = random_variables(network, rng)
    latents = rng.standard_normal((6, 50)).astype(np.float32)
    together = evaluate(network, variables, latents)
    np.testing.assert_allclose(evaluate(network, variables, latents[:1])[0], together[0], rtol=1e-4)
    in_training, _ = train(network, variables, latents)
    assert np.abs(in_training - together).max() > 1e-3


def test_dcgan_on_two_devices_has_the_statistics_of_the_union(rng):
    latents = rng.standard_normal((2, 5, 50)).astype(np.float32)
    latents[1] += 3
    network = generators.DCGAN((28, 28, 1), width=4, axis_name="devices")
    variables = random_variables(network, rng)
    images, updated = jax.pmap(
        lambda v, z: network.apply(v, z, train=True, mutable=["batch_stats"]),
        axis_name="devices",
        in_axes=(None, 0),
    )(variables, latents)
    alone = generators.DCGAN((28, 28, 1), width=4)
    expected_images, expected = train(alone, variables, latents.reshape(10, 50))
    np.testing.assert_allclose(images.reshape(10, 28, 28, 1), expected_images, atol=1e-5)
    for device in (0, 1):
        jax.tree.map(
            lambda got, want, device=device: np.testing.assert_allclose(
                got[device], want, rtol=1e-4, atol=1e-6
            ),
            updated,
            expected,
        )


@pytest.mark.parametrize("sample_shape", [(7, 7, 1), (28, 27, 1), (4, 8, 3)])
def test_dcgan_refuses_sizes_that_it_cannot_double_to(sample_shape):
    with pytest.raises(ValueError, match=r"sample_shape: got .* h and w even and > 4"):
        shapes(generators.DCGAN(sample_shape, width=4))


def test_mlp_generator_is_relu_layers_and_a_linear_one(rng):
    network = generators.MLPGenerator((2,), width=16, depth=3)
    variables = random_variables(network, rng)
    latents = rng.standard_normal((20, 50))
    points, updated = train(network, variables, latents.astype(np.float32))
    layers = [variables["params"][f"Dense_{i}"] for i in range(4)]
    hidden = latents
    for layer in layers[:3]:
        hidden = np.maximum(hidden @ layer["kernel"] + layer["bias"], 0)
    expected = hidden @ layers[3]["kernel"] + layers[3]["bias"]
    np.testing.assert_allclose(points, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(evaluate(network, variables, latents.astype("f4")), points)
    assert not updated.get("batch_stats")


def test_generator_for_picks_by_the_shape():
    images = generators.generator_for((8, 8, 1), 4, "devices")
    assert images == generators.DCGAN((8, 8, 1), 4, "devices")
    points = generators.generator_for([2], 4)
    assert points == generators.MLPGenerator((2,), 4)
    with pytest.raises(ValueError, match=r"sample_shape: got \(3, 3\)"):
        generators.generator_for((3, 3), 4)
