r"""A target density seen through a generator: the model's samples are found in its latent space.

The energy-based model :math:`e^{-E(x)}\, G(dx)` on top of a generator G is drawn from by drawing
latents from their posterior and generating from them. That needs no density of G, and any sampler
of :mod:`kernelgrad.hmc` and :mod:`kernelgrad.langevin` will do.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _numeric
from kernelgrad.types import Array, LogDensityFn


def latent_log_density(
    generator_fn: Callable[[Array], Array],
    energy_fn: Callable[[Array], Array],
    *,
    inverse_temperature: float | Array = 1.0,
) -> LogDensityFn:
    r"""Returns the log-density of latents whose samples follow the energy-based model.

    .. math:: \log N(z; 0, I) - \beta E(G(z))

    Up to a constant, which at beta = 1 is the model's log-normaliser. Ascending it lowers the
    energy of the sample; at beta = 1 the samples G(z) follow :math:`e^{-E(x)}\, G(dx)`, above that
    they are sharper than the model, towards 0 they become the generator's.

    The energy is one on top of the generator, as KALE learns it, not one on all samples as
    SteinGAN's, whose model does not have the generator in it: there beta sharpens the generator.
    The logit of a discriminator is an estimate of log P/G, so that minus the logit is an energy;
    minus a Wasserstein critic is one up to a factor, which beta has to make up for.

    Latents of another prior are a function of normal ones: :func:`uniform_latents` gives those of
    a generator trained on [-1, 1], with no walls for the sampler to run into::

        density = latent_log_density(lambda u: generator_fn(uniform_latents(u)), energy_fn)

    Args:
      generator_fn: G, a batch of latents (n, l) to samples (n, ...), its parameters held still and
        each sample a function of its own latent: batch statistics of inference.
      energy_fn: E, samples (n, ...) to energies (n,), in nats.
      inverse_temperature: beta > 0, the factor of the energy; shape ().

    Returns:
      Function of one latent, shape (l,), to its log-density, shape (), in at least float32: one
      chain's, to be vmapped.
      It raises ValueError for a latent of another rank or energies of another shape.

    Raises:
      ValueError: a concrete inverse temperature that is not positive.

    Cost: one pass through generator and energy for each evaluation.

    References:
      KALE: When Energy-Based Learning Meets Adversarial Training, abstract (Hamiltonian Monte
      Carlo in the latent space of the generator).
    """
    _checks.shape("inverse_temperature", inverse_temperature, ())
    _checks.positive(inverse_temperature=inverse_temperature)

    def log_density_fn(latent: Array) -> Array:
        (latent,) = _checks.floating(latent=latent)
        _checks.shape("latent", latent, ("l",))
        sample = _checks.call("generator_fn", "(latents) -> samples", generator_fn, latent[None])
        energy = _checks.call("energy_fn", "(samples) -> energies", energy_fn, sample)
        _checks.shape("energy_fn(generator_fn(latents)) of one latent", energy, (1,))
        wide = _numeric.wide(latent)
        energy = _numeric.like(energy[0], wide)
        prior = -(jnp.sum(jnp.square(wide)) + latent.size * math.log(2 * math.pi)) / 2
        return prior - _numeric.like(inverse_temperature, energy) * energy

    return log_density_fn


def uniform_latents(normal_latents: Array) -> Array:
    r"""Returns uniform latents as a smooth function of normal ones.

    .. math:: u_i = 2 \Phi(z_i) - 1

    with Phi the distribution function of N(0, 1): if z ~ N(0, I), then u is uniform on [-1, 1]^l.

    Args:
      normal_latents: z; any shape, floating.

    Returns:
      Latents u of the shape and dtype of z.

    Raises:
      ValueError: latents that are not floating.
    """
    (normal_latents,) = _checks.floating(normal_latents=normal_latents)
    return lax.erf(normal_latents / math.sqrt(2))
