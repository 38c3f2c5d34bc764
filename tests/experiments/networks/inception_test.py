"""Inception-v3 against figures of the network of torch-fidelity 0.4.0, in float64, torch 2.13."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.judges import inception_scores
from experiments.networks.inception import Inception

# of its state_dict, 566 tensors: lines "name shape" of those that are used, sorted, joined
LAYOUT = "d84f693f2abd7fea61cb31c87d3b2f268bf707c1bae1db219afdad3363959cb0"
FEATURES = [
    [0.58968061, 0.0, 0.46643272, 0.0, 0.29759625, 0.47142375],
    [0.61438769, 0.0, 0.45331869, 0.0, 0.31577203, 0.48204219],
]
LOGITS = [
    [-1.79056454, -2.50997305, -0.38725126, -1.4215486, 1.25153053, -1.9064455],
    [-1.82585287, -2.72678375, -0.47988755, -1.53903925, 1.32041836, -2.1745019],
]
MEAN_FEATURE, LOGIT_DEVIATION = 0.17690545712926986, 1.7301124821942453


def shapes():
    """Returns the shapes of a checkpoint's tensors by name, as the network's modules have them."""
    found = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    images = jnp.zeros((1, 299, 299, 3))
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]
    ):
        *modules, last, name = (key.key for key in path)
        if (last, name) == ("conv", "kernel"):
            height, width, inputs, outputs = leaf.shape
            found[".".join((*modules, "conv.weight"))] = (outputs, inputs, height, width)
        elif (last, name) == ("bn", "scale"):
            for part in ("weight", "bias", "running_mean", "running_var"):
                found[".".join((*modules, "bn", part))] = leaf.shape
    return dict(sorted(found.items()))


def tensors():
    """Returns random weights of a scale that keeps the signal, the same on every machine."""
    rng = np.random.default_rng(0)
    found = {}
    for name, shape in shapes().items():
        drawn = rng.standard_normal(shape).astype(np.float32)
        if name.endswith("conv.weight"):
            found[name] = drawn * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        elif name.endswith("bn.weight"):
            found[name] = 1 + drawn / 8
        elif name.endswith("running_var"):
            found[name] = 1 + np.abs(drawn) / 4
        else:
            found[name] = drawn / 8
    return found


def images():
    """Returns two images of 32 x 32."""
    i, j = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    first = (7 * i + 3 * j, i * j, 255 - 5 * j)
    second = (11 * i, 13 * j, i * i + j)
    return np.stack([np.stack([c % 256 for c in image], -1) for image in (first, second)])


def test_the_layout_is_that_of_the_public_checkpoint():
    lines = "\n".join(f"{name} {tuple(shape)}" for name, shape in shapes().items())
    assert hashlib.sha256(lines.encode()).hexdigest() == LAYOUT


@pytest.mark.thorough
def test_the_forward_pass_is_that_of_torch_fidelity(monkeypatch):
    monkeypatch.setattr(inception_scores, "_AT_ONCE", 2)
    weights = inception_scores.variables(tensors())
    features, logits = inception_scores.outputs(weights, jnp.asarray(images() / 255, jnp.float32))
    assert features.shape == (2, 2048)
    assert logits.shape == (2, 1008)
    np.testing.assert_allclose(features[:, ::400], FEATURES, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(logits[:, ::200], LOGITS, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(jnp.mean(features), MEAN_FEATURE, rtol=1e-5)
    np.testing.assert_allclose(jnp.std(logits), LOGIT_DEVIATION, rtol=1e-5)
