import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.judges import classifiers
from experiments.networks import critics, energies, generators

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


# --- DCGAN ---------------------------------------------------------------------------------------


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


# --- MLPs and the choice -------------------------------------------------------------------------


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


def test_mlp_classifier_is_relu_layers_and_a_linear_one(rng):
    network = classifiers.MLPClassifier(10, width=32, dropout_rate=0.5)
    draw = shapes(network, (7, 8, 8, 1))["params"]
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape) / 8, draw)
    images = rng.random((7, 8, 8, 1))
    layers = [params[f"Dense_{i}"] for i in range(3)]
    hidden = images.reshape(7, 64)
    for layer in layers[:2]:
        hidden = np.maximum(hidden @ layer["kernel"] + layer["bias"], 0)
    params, images = jax.tree.map(lambda leaf: leaf.astype("f4"), (params, images))
    logits, features = evaluate(network, {"params": params}, images)
    np.testing.assert_allclose(features, hidden, rtol=1e-4, atol=1e-5)
    expected = hidden @ layers[2]["kernel"] + layers[2]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_mlp_classifier_drops_units_in_training_only(key):
    """With positive parameters every unit is positive unless it is dropped."""
    network = classifiers.MLPClassifier(10, width=400, dropout_rate=0.3)
    images = jnp.ones((50, 4, 4, 1))
    draw = shapes(network, images.shape)["params"]
    variables = {"params": jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01), draw)}
    _, features = network.apply(variables, images, train=True, rngs={"dropout": key})
    dropped = np.mean(np.asarray(features) == 0)
    assert abs(dropped - 0.3) < 5 * np.sqrt(0.3 * 0.7 / features.size)
    assert evaluate(network, variables, images)[1].min() > 0


# --- critics and energies ------------------------------------------------------------------------

JUDGES = {
    "conv_critic": (critics.ConvCritic(4), (12, 20, 2)),
    "normed_conv_critic": (critics.ConvCritic(4, spectral_norm=True), (8, 8, 1)),
    "mlp_critic": (critics.MLPCritic(8), (3,)),
    "conv_energy": (energies.ConvEnergy(4), (8, 8, 1)),
    "mlp_energy": (energies.MLPEnergy(8), (3,)),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if "conv_critic" in name else name
        for name in JUDGES
    ],
)
def test_every_value_is_of_its_own_sample(key, rng, name):
    network, shape = JUDGES[name]
    batch = rng.uniform(size=(4, *shape)).astype(np.float32)
    variables = jax.jit(lambda key: network.init(key, batch, train=False))(key)
    together = evaluate(network, variables, batch)
    alone = [evaluate(network, variables, batch[i : i + 1]) for i in range(4)]
    for leaf, rows in zip(
        jax.tree.leaves(together), zip(*map(jax.tree.leaves, alone), strict=True), strict=True
    ):
        np.testing.assert_allclose(leaf, np.concatenate(rows), rtol=1e-4, atol=1e-6)
    values = jax.tree.leaves(together)[0]
    assert values.shape == (4,)
    assert np.std(values) > 0


def test_spectral_norm_bounds_the_slope(key, rng):
    """Every layer has norm 1 and leaky relu has slope 1: |f(x) - f(y)| <= |x - y|."""
    network = critics.MLPCritic(16, spectral_norm=True)
    points = 3 * rng.normal(size=(200, 3)).astype(np.float32)
    variables = jax.jit(lambda key: network.init(key, points, train=False))(key)
    variables = {**variables, "params": jax.tree.map(lambda p: 5 * p, variables["params"])}

    @jax.jit
    def iterate(variables):
        values, updated = network.apply(variables, points, train=True, mutable=["batch_stats"])
        return values, {**variables, **updated}

    for _ in range(60):
        values, variables = iterate(variables)
    gaps = np.abs(values[:, None] - values[None, :])
    distances = np.linalg.norm(points[:, None] - points[None, :], axis=-1)
    off = ~np.eye(200, dtype=bool)
    assert 0.05 < np.max(gaps[off] / distances[off]) < 1.01


NORMS = {
    "euclidean": lambda error: np.sqrt(np.sum(error**2)),
    "root_sum": lambda error: np.sqrt(np.sum(np.abs(error))) + np.sqrt(np.sum(error**2)),
}


@pytest.mark.parametrize("name", energies.NORMS)
def test_norms_have_no_slope_at_zero(rng, name):
    errors = rng.normal(size=(5, 4, 4, 1)).astype(np.float32)
    errors[2] = 0
    values, slopes = jax.vmap(jax.value_and_grad(lambda e: energies.NORMS[name](e[None])[0]))(
        errors
    )
    np.testing.assert_allclose(values, [NORMS[name](error) for error in errors], rtol=1e-6)
    np.testing.assert_array_equal(slopes[2], 0)
    assert np.isfinite(slopes).all()


@pytest.mark.parametrize("shape", [(4, 4, 1), (3,)])
def test_energy_has_the_norm_it_is_asked_for(key, rng, shape):
    """One set of parameters, two norms of one error."""
    points = jnp.asarray(rng.uniform(size=(2, *shape)), jnp.float32)
    plain, rooted = (energies.energy_for(shape, 4, norm) for norm in ("euclidean", "root_sum"))
    params = plain.init(key, points, train=False)
    values = [np.asarray(net.apply(params, points, train=False)[0]) for net in (plain, rooted)]
    size = points[0].size
    absolute = values[1] - values[0]  # |error|_2 <= |error|_1 <= sqrt(d) |error|_2
    assert np.all(absolute**2 >= values[0] * (1 - 1e-5))
    assert np.all(absolute**2 <= np.sqrt(size) * values[0] * (1 + 1e-5))


@pytest.mark.parametrize(("shape", "width"), [((16, 16, 3), 4), ((16, 16, 1), 1), ((32, 32, 2), 1)])
def test_the_decoder_is_relu_layers_and_a_sigmoid(rng, shape, width):
    """Also where inner layers have as many channels as the image."""
    network = energies.ConvEnergy(width)
    images = rng.uniform(size=(3, *shape)).astype(np.float32)
    variables = jax.tree.map(lambda leaf: 2 * leaf, random_variables(network, rng, images.shape))

    @jax.jit
    def look(variables, images):
        return network.apply(
            variables, images, train=False, capture_intermediates=True, mutable=["intermediates"]
        )

    (values, _), seen = look(variables, images)
    layers = sorted(name for name in variables["params"] if "ConvTranspose" in name)
    hidden = seen["intermediates"][layers[0]]["__call__"][0]
    for name in layers[1:]:
        params = variables["params"][name]
        layer = nn.ConvTranspose(params["bias"].size, (4, 4), (2, 2))
        hidden = layer.apply({"params": params}, np.maximum(hidden, 0))
    decoded = 1 / (1 + np.exp(-np.asarray(hidden)))
    expected = [NORMS["euclidean"](error) for error in images - decoded]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_a_tracked_normalizer_starts_at_0_beside_the_critic(key, rng):
    points = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    tracked = critics.TrackedNormalizer(critics.critic_for((3,), 8))
    params = tracked.init(key, points, train=False)["params"]
    assert set(params) == {"network", "log_normalizer"}
    values, log_normalizer = tracked.apply({"params": params}, points, train=True)
    inner = critics.critic_for((3,), 8).apply({"params": params["network"]}, points, train=True)
    np.testing.assert_array_equal(values, inner)
    assert log_normalizer == 0


@pytest.mark.parametrize("make", [critics.critic_for, energies.energy_for])
def test_judge_of_no_known_shape_is_named(make):
    with pytest.raises(ValueError, match=r"sample_shape: got \(4, 4\)"):
        make((4, 4), 8)
