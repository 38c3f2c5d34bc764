"""Critics and energies: one value each, norms, and the layers behind them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks import critics, energies
from tests.experiments.networks.generators_test import evaluate, random_variables

JUDGES = {
    "conv_critic": (critics.ConvCritic(4), (12, 20, 2)),
    "normed_conv_critic": (critics.ConvCritic(4, spectral_norm=True), (8, 8, 1)),
    "mlp_critic": (critics.MLPCritic(8), (3,)),
    "conv_energy": (energies.ConvEnergy(4), (8, 8, 1)),
    "mlp_energy": (energies.MLPEnergy(8), (3,)),
}


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.parametrize("shape", [(3,), (8, 8, 1)])
def test_features_are_as_many_as_asked_for(key, rng, shape):
    network = critics.critic_for(shape, 4, num_features=5)
    batch = jnp.asarray(rng.uniform(size=(2, *shape)), jnp.float32)
    features, _ = network.init_with_output(key, batch, train=False)
    assert features.shape == (2, 5)


@pytest.mark.parametrize("make", [critics.critic_for, energies.energy_for])
def test_judge_of_no_known_shape_is_named(make):
    with pytest.raises(ValueError, match=r"sample_shape: got \(4, 4\)"):
        make((4, 4), 8)
