"""Objectives whose critic is an energy: the generator learns to draw from exp(-energy)."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, adversarial, kernels, svgd
from kernelgrad import kale as kales
from kernelgrad.two_player import CriticFn, TwoPlayer
from kernelgrad.types import Array, Info, Key, PyTree


def steingan(*, discount: float = 0.7, bandwidth: float = 0.5) -> TwoPlayer:
    r"""Returns amortized maximum likelihood of a deep energy model, SteinGAN.

    .. math:: \theta \text{ descends } \frac1n \sum_i E(x_i) - \frac{1 - \gamma}{n} \sum_i
        E(\tilde x_i), \quad \tilde x \text{ follows SVGD towards } p \propto e^{-E}

    The kernel of SVGD is :math:`\exp(-|e - e'|^2 / h^2)` between the critic's features e, with
    h = bandwidth times the median distance between features of the samples; its gradient runs
    through the features to the samples, while the critic's parameters are held still. The critic
    returns (energies (n,), features (n, f)).

    Args:
      discount: gamma of the stabilised update, in [0, 1); 0 is maximum likelihood.
      bandwidth: h in units of the median distance; > 0.

    Returns:
      Objective of two players with info ``critic_loss``, ``energy_data``, ``energy_samples``.

    Raises:
      ValueError: a number out of its range.

    Cost: a backward pass of the critic for every feature, and O(n^2 (d + f)) time.

    References:
      Wang & Liu 2016 (learning to draw samples), algorithm 2, eqs. (7), (14) and (16).
    """
    _checks.in_range("discount", discount, 0.0, 1.0, closed="l")
    _checks.positive(bandwidth=bandwidth)

    def critic_loss(
        critic_fn: CriticFn,
        key: Key,
        samples: Array,
        data: Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[Array, Info]:
        del key, axis_name
        of_data, of_samples = (jnp.mean(critic_fn(points)[0]) for points in (data, samples))
        loss = of_data - (1 - discount) * of_samples
        return loss, {"critic_loss": loss, "energy_data": of_data, "energy_samples": of_samples}

    def direction(
        critic_fn: CriticFn,
        key: Key,
        samples: Array,
        data: Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[Array, Info]:
        del key, data
        flat = samples.reshape(samples.shape[0], -1)

        def shaped(points: Array) -> tuple[Array, Array]:
            return critic_fn(points.reshape(-1, *samples.shape[1:]))

        def features(_: PyTree, points: Array) -> Array:
            return shaped(points)[1]

        score = -jax.grad(lambda points: jnp.sum(shaped(points)[0]))(flat)
        median = kernels.median_lengthscale(shaped(flat)[1], axis_name=axis_name)
        base = kernels.rbf_mixture(bandwidth * median / math.sqrt(2))
        kernel = kernels.feature_kernel(base, features, ())
        ascent = svgd.svgd_direction(flat, score, kernel, axis_name=axis_name)
        return -ascent.reshape(samples.shape), {}

    return TwoPlayer(critic_loss, direction)


def kale(
    *,
    penalty_weight: float = 1.0,
    penalty: Callable[[CriticFn, Array], Array] = adversarial.zero_centred_gradient_penalty,
) -> TwoPlayer:
    r"""Returns the generalised energy-based model: an energy on top of the generator, by KALE.

    .. math:: \theta \text{ ascends } \mathrm{KALE} = 1 - E_P[E + c] - E_G[e^{-(E + c)}], \quad
        \tilde x_j \text{ descends } w_j \nabla E(\tilde x_j), \; w_j = e^{-(E(\tilde x_j) + c)}

    with c the best log-normaliser of the batch in closed form, which nothing has to learn. The
    critic returns energies (n,). The model is :math:`q(x) \propto e^{-E(x)} G(dx)`: draw from it
    in latent space, by :func:`latent.latent_log_density`.

    Args:
      penalty_weight: of the penalty on the energy's slope between samples and data; >= 0.
      penalty: (critic_fn, points) -> (), one of :mod:`kernelgrad.adversarial`.

    Returns:
      Objective of two players with info ``critic_loss`` (-KALE), ``penalty``, ``energy_data`` and
      ``log_normalizer``.

    Raises:
      ValueError: penalty_weight < 0.

    References:
      KALE: When Energy-Based Learning Meets Adversarial Training, abstract; formulas and signs as
      derived in :mod:`kernelgrad.kale`.
    """
    _checks.not_negative(penalty_weight=penalty_weight)

    def critic_loss(
        critic_fn: CriticFn,
        key: Key,
        samples: Array,
        data: Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[Array, Info]:
        of_data, of_samples = critic_fn(data), critic_fn(samples)
        log_normalizer = lax.stop_gradient(
            kales.optimal_log_normalizer(of_samples, axis_name=axis_name)
        )
        loss = -kales.kale(of_data, of_samples, log_normalizer)
        points = adversarial.interpolates(key, data, samples, axis_name=axis_name)
        slope = penalty(critic_fn, points)
        info = {
            "critic_loss": loss,
            "penalty": slope,
            "energy_data": jnp.mean(of_data),
            "log_normalizer": log_normalizer,
        }
        return loss + penalty_weight * slope, info

    def direction(
        critic_fn: CriticFn,
        key: Key,
        samples: Array,
        data: Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[Array, Info]:
        del key, data
        energy, pull = jax.vjp(critic_fn, samples)
        log_normalizer = kales.optimal_log_normalizer(energy, axis_name=axis_name)
        (descent,) = pull(kales.generator_weights(energy, log_normalizer))
        return descent, {}

    return TwoPlayer(critic_loss, direction)


def rate_factor(
    energy_data: Array, energy_samples: Array, *, boost: float = 5.0, threshold: float = 0.5
) -> Array:
    r"""Returns what multiplies the learning rate of an energy, to keep both players aligned.

    The energy is frozen where it is ahead, the samples' energy far above the data's. Read
    literally, the paper freezes it for a difference of either sign: where the data's energy is the
    larger one, as it may be from the start, nothing could ever change that again.

    Args:
      energy_data: mean energy of the batch of data; shape ().
      energy_samples: mean energy of the samples; shape ().
      boost: the factor while the data's energy is the larger one; > 0.
      threshold: of energy_samples - energy_data, beyond which the energy is frozen; > 0, infinity
        never freezes.

    Returns:
      0, 1 or boost; shape ().

    References:
      Wang & Liu 2016 (learning to draw samples), section 5: 5e-4 in place of 1e-4, and 0.5.
    """
    lead = energy_samples - energy_data
    return lax.stop_gradient(jnp.where(lead < 0, boost, jnp.where(lead > threshold, 0.0, 1.0)))
