"""Critics, and energies where they are alike: a value a sample, slopes, normalisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks import critics, energies
from tests.experiments.networks.generators_test import evaluate

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


def test_batch_norm_follows_all_layers_but_the_first_and_the_last(key, rng):
    """Three hidden layers by hand: the second and third have mean 0 and variance 1, times a scale.

    The running averages start at 0 and 1.
    """
    points = rng.normal(size=(6, 3)).astype(np.float32)
    network = critics.critic_for((3,), 4, batch_norm=True)
    variables = network.init(key, points, train=False)
    params = {name: jax.tree.map(np.float64, value) for name, value in variables["params"].items()}

    def by_hand(normalised):
        hidden = points.astype(np.float64)
        for index in range(3):
            hidden = hidden @ params[f"Dense_{index}"]["kernel"] + params[f"Dense_{index}"]["bias"]
            if index:
                norm = params[f"BatchNorm_{index - 1}"]
                hidden = normalised(hidden) * norm["scale"] + norm["bias"]
            hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
        return (hidden @ params["Dense_3"]["kernel"] + params["Dense_3"]["bias"])[:, 0]

    assert sorted(params) == ["BatchNorm_0", "BatchNorm_1", *(f"Dense_{i}" for i in range(4))]
    values, updated = network.apply(variables, points, train=True, mutable=["batch_stats"])
    of_batch = by_hand(lambda h: (h - h.mean(axis=0)) / np.sqrt(h.var(axis=0) + 1e-5))
    np.testing.assert_allclose(values, of_batch, rtol=1e-4, atol=1e-5)
    running = network.apply(variables, points, train=False)
    start = by_hand(lambda h: h / np.sqrt(1 + 1e-5))
    np.testing.assert_allclose(running, start, rtol=1e-4, atol=1e-5)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(updated["batch_stats"]))


def test_batch_norm_of_images_spares_the_first_and_the_last(key, rng):
    images = jnp.asarray(rng.uniform(size=(3, 16, 16, 1)), jnp.float32)
    network = critics.critic_for(images.shape[1:], 2, batch_norm=True)
    stats = jax.eval_shape(lambda: network.init(key, images, train=False))["batch_stats"]
    assert [leaf["mean"].shape for leaf in stats.values()] == [(4,)]  # of 2 and 4 channels


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
