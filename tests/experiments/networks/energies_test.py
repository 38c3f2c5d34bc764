"""Norms of the error of a reconstruction, and the layers that reconstruct."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks import energies
from tests.experiments.networks.generators_test import random_variables

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


@pytest.mark.parametrize("shape", [(8, 6, 3), (5,)])
def test_a_tied_layer_is_the_transpose_of_the_encoders(key, rng, shape):
    """<K x, y> = <x, K^T y>."""
    layer = nn.Conv(4, (4, 4), (2, 2)) if len(shape) == 3 else nn.Dense(4)
    x = jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)
    outputs, variables = layer.init_with_output(key, x)
    outputs -= variables["params"]["bias"]
    y = jnp.asarray(rng.normal(size=outputs.shape), jnp.float32)
    back = energies._Transposed(shape[-1])
    biases = {"bias": jnp.zeros(shape[-1])}
    transposed = back.apply({"params": biases}, y, variables["params"]["kernel"])
    np.testing.assert_allclose(jnp.vdot(outputs, y), jnp.vdot(x, transposed), rtol=1e-4)


@pytest.mark.parametrize("shape", [(16, 16, 1), (3,)])
def test_a_tied_decoder_has_biases_alone(key, shape):
    points = jax.ShapeDtypeStruct((2, *shape), jnp.float32)

    def kernels(**options):
        network = energies.energy_for(shape, 4, **options)
        params = jax.eval_shape(lambda x: network.init(key, x, train=False), points)["params"]
        return sorted(leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim > 1)

    tied, plain = kernels(tied=True), kernels()
    assert len(plain) == 2 * len(tied)
    assert set(tied) <= set(plain)


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(8, 8, 1), (3,)])
def test_batch_norm_goes_by_the_batch_or_by_the_running_averages(key, rng, shape):
    network = energies.energy_for(shape, 4, batch_norm=True, tied=True)
    points = jnp.asarray(rng.uniform(size=(6, *shape)), jnp.float32)
    variables = network.init(key, points, train=False)
    whole, half = (network.apply(variables, some, train=False)[0] for some in (points, points[:3]))
    np.testing.assert_allclose(half, whole[:3], rtol=1e-5)
    (_, codes), _ = network.apply(variables, points, train=True, mutable=["batch_stats"])
    scale = [n["scale"] for name, n in variables["params"].items() if "BatchNorm" in name]
    scale = next(one for one in scale if one.shape == codes.shape[1:])
    np.testing.assert_allclose(codes.mean(axis=0), 0, atol=1e-4)
    assert np.all(codes.std(axis=0) <= 1.0001 * np.abs(scale))  # epsilon makes it less
