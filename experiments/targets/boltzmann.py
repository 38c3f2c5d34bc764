r"""The Gaussian-Bernoulli restricted Boltzmann machine, exact where it is small.

With hidden units h in {-1, +1},

.. math:: p(x) \propto \exp(b^\top x - \tfrac12 |x|^2) \prod_k 2 \cosh(B_k^\top x + c_k)
    = \sum_h \exp(b^\top x - \tfrac12 |x|^2 + h^\top (B^\top x + c))

a mixture of 2^k Gaussians N(b + B h, I): for a few hidden units normaliser, samples and likelihood
need no estimate.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernelgrad.types import Array, Key, LogDensityFn

MAX_HIDDEN = 16


class RBMParams(NamedTuple):
    """Parameters of the machine: B (d, k), b (d,) and c (k,)."""

    weights: Array
    visible_bias: Array
    hidden_bias: Array


class Machine(NamedTuple):
    """A machine as a density.

    Attributes:
      log_density_fn: maps x of shape (d,) to log p(x) + log Z, shape ().
      sample: maps a key and a number n to independent exact draws, shape (n, d).
      log_normalizer: log Z, exact; shape ().
    """

    log_density_fn: LogDensityFn
    sample: Callable[[Key, int], Array]
    log_normalizer: Array


def gaussian_bernoulli_rbm(params: RBMParams) -> Machine:
    r"""Returns the density of a machine, its exact normaliser and exact samples.

    .. math:: Z = (2 \pi)^{d/2} \sum_{h \in \{-1, 1\}^k} e^{c^\top h + |b + B h|^2 / 2}

    Args:
      params: B, b and c, with at most 16 hidden units.

    Returns:
      The machine; everything is differentiable in params but the draws' components.

    Raises:
      ValueError: more than 16 hidden units, whose states would not fit into memory.

    Cost: O(2^k k d) time, O(2^k d) memory.
    """
    means, log_weights = _components(params)
    dimension = params.visible_bias.shape[0]
    log_z = jax.nn.logsumexp(log_weights) + dimension / 2 * math.log(2 * math.pi)

    def log_density(x: Array) -> Array:
        return unnormalised_log_density(params, x[None])[0]

    def sample(key: Key, n: int) -> Array:
        mean_key, noise_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (n, dimension), means.dtype)
        return sample_means(mean_key, params, n) + noise

    return Machine(log_density, sample, log_z)


def unnormalised_log_density(params: RBMParams, x: Array) -> Array:
    """Returns log p(x) + log Z at each of the points x (n, d); shape (n,)."""
    inputs = _dot(x, params.weights) + params.hidden_bias
    quadratic = _dot(x, params.visible_bias) - jnp.sum(jnp.square(x), axis=1) / 2
    return quadratic + jnp.sum(jnp.logaddexp(inputs, -inputs), axis=1)


def score(params: RBMParams, x: Array) -> Array:
    """Returns -x + b + B tanh(B^T x + c) at each of the points x (n, d); shape (n, d)."""
    hidden = jnp.tanh(_dot(x, params.weights) + params.hidden_bias)
    return params.visible_bias - x + _dot(hidden, params.weights.T)


def mean_log_likelihood(params: RBMParams, x: Array) -> Array:
    """Returns the mean of log p over the points x (n, d), exact, in nats; shape ()."""
    machine = gaussian_bernoulli_rbm(params)
    return jnp.mean(unnormalised_log_density(params, x)) - machine.log_normalizer


def sample_means(key: Key, params: RBMParams, n: int) -> Array:
    """Returns E[x | h] = b + B h for n independent h ~ p(h): draws without their unit noise."""
    means, log_weights = _components(params)
    return means[jax.random.categorical(key, log_weights, shape=(n,))]


def model_mean(params: RBMParams) -> Array:
    """Returns E_p[x], exact; shape (d,)."""
    means, log_weights = _components(params)
    return _dot(jax.nn.softmax(log_weights), means)


def initial_params(key: Key, dimension: int, num_hidden: int) -> RBMParams:
    """Returns the public code's start: B uniform on +-4 sqrt(6 / (d + k)), no biases."""
    bound = 4 * math.sqrt(6 / (dimension + num_hidden))
    weights = jax.random.uniform(key, (dimension, num_hidden), minval=-bound, maxval=bound)
    return RBMParams(weights, jnp.zeros(dimension), jnp.zeros(num_hidden))


def _components(params: RBMParams) -> tuple[Array, Array]:
    """Returns the means (2^k, d) of the mixture and its log weights (2^k,), not normalised."""
    num_hidden = params.hidden_bias.shape[0]
    if num_hidden > MAX_HIDDEN:
        raise ValueError(f"num_hidden: got {num_hidden}; expected at most {MAX_HIDDEN}")
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=num_hidden)))
    states = jnp.asarray(signs, params.weights.dtype)
    means = params.visible_bias + _dot(states, params.weights.T)
    return means, _dot(states, params.hidden_bias) + jnp.sum(jnp.square(means), axis=1) / 2


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
