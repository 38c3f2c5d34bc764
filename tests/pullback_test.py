"""The pull-back of a direction through a generator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernelgrad import pullback


def _network(params, latents):
    hidden = jnp.tanh(latents @ params["inner"])
    return hidden @ params["outer"]


def _problem(rng, n=6):
    params = {
        "inner": jnp.asarray(rng.normal(size=(3, 5)), jnp.float32),
        "outer": jnp.asarray(rng.normal(size=(5, 2)), jnp.float32),
    }
    latents = jnp.asarray(rng.normal(size=(n, 3)), jnp.float32)
    direction = jnp.asarray(rng.normal(size=(n, 2)), jnp.float32)
    return params, latents, direction


def test_chain_rule_is_the_mean_of_jacobian_products(rng):
    params, latents, direction = _problem(rng)
    gradient = pullback.chain_rule(lambda p: _network(p, latents), params, direction)
    expected = jax.tree.map(lambda p: np.zeros(p.shape), params)
    for i in range(6):
        jacobian = jax.jacobian(lambda p, i=i: _network(p, latents[i : i + 1])[0])(params)
        for name in params:
            expected[name] += np.tensordot(direction[i], jacobian[name], axes=1) / 6
    for name in params:
        np.testing.assert_allclose(gradient[name], expected[name], rtol=2e-5, atol=1e-6)


def test_chain_rule_of_a_gradient_is_the_gradient(rng):
    params, latents, _ = _problem(rng)

    def loss(samples):
        return jnp.mean(jnp.sum(jnp.sin(samples) ** 2, axis=1))

    samples = _network(params, latents)
    direction = samples.shape[0] * jax.grad(loss)(samples)
    pulled = pullback.chain_rule(lambda p: _network(p, latents), params, direction)
    exact = jax.grad(lambda p: loss(_network(p, latents)))(params)
    for name in params:
        np.testing.assert_allclose(pulled[name], exact[name], rtol=2e-5, atol=1e-6)


def test_forward_pass_is_shared_within_one_jit(rng):
    params, latents, _ = _problem(rng)

    def step(params):
        def generator_fn(p):
            return _network(p, latents)

        return pullback.chain_rule(generator_fn, params, jnp.cos(generator_fn(params)))

    def fused(params):
        samples, pull = jax.vjp(lambda p: _network(p, latents), params)
        return pull(jnp.cos(samples) / samples.shape[0])[0]

    dots = [jax.jit(f).lower(params).compile().as_text().count(" dot(") for f in (step, fused)]
    assert dots[0] == dots[1] > 0


def test_bad_direction_is_named(rng):
    params, latents, direction = _problem(rng)
    with pytest.raises(ValueError, match=r"direction: got shape \(5, 2\); expected \(6, 2\)"):
        pullback.chain_rule(lambda p: _network(p, latents), params, direction[:5])
