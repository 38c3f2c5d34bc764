"""The rate over the steps, read off updates of a constant gradient."""

import jax.numpy as jnp
import numpy as np

from experiments.networks import optimizers


def test_the_rate_rises_to_its_peak_and_falls_as_a_cosine():
    optimizer = optimizers.cosine_adamw(0.1, 20, num_warmup=4, weight_decay=0.0)
    params = jnp.ones(())
    state, rates = optimizer.init(params), []
    for _ in range(21):
        update, state = optimizer.update(jnp.ones(()), state, params)
        rates.append(-float(update))  # Adam's own step is 1 under a constant gradient
    expected = [*np.arange(4) / 4, *(1 + np.cos(np.pi * np.arange(17) / 16)) / 2]
    np.testing.assert_allclose(rates, 0.1 * np.array(expected), atol=1e-6)


def test_decay_is_in_units_of_the_rate():
    optimizer = optimizers.cosine_adamw(0.1, 2, num_warmup=0, weight_decay=0.5)
    update, _ = optimizer.update(jnp.zeros(()), optimizer.init(jnp.ones(())), jnp.ones(()))
    np.testing.assert_allclose(update, -0.05, rtol=1e-6)
