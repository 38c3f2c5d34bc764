r"""A target density seen through a generator: the model's samples are found in its latent space.

The energy-based model :math:`e^{-E(x)}\, G(dx)` on top of a generator G is drawn from by drawing
latents from their posterior and generating from them. That needs no density of G, and any sampler
of :mod:`kernelgrad.hmc` and :mod:`kernelgrad.langevin` will do. Where few draws of the generator
are far from the model, choosing among them does as well: :func:`reject`, :func:`resample`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _devices, _numeric
from kernelgrad.types import Array, Key, LogDensityFn


class Kept(NamedTuple):
    """Draws that rejection kept.

    Attributes:
      indices: of the draws, no two alike; shape (k,), int32.
      num_capped: how many weigh more than the bound and were kept for certain; shape (), int32.
        The kept are draws of the model where it is 0.
    """

    indices: Array
    num_capped: Array


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

    Example:
      >>> from kernelgrad import latent
      >>> density = latent.latent_log_density(lambda z: z, lambda x: jnp.sum(x**2, axis=1) / 2)
      >>> change = density(jnp.array([1.0])) - density(jnp.array([0.0]))
      >>> round(float(change), 3)  # -1/2 of the prior, -1/2 of the energy
      -1.0

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

    Example:
      >>> from kernelgrad import latent
      >>> print(latent.uniform_latents(jnp.array([-1.0, 0.0, 1.0])))  # 68 % within one deviation
      [-0.683  0.     0.683]
    """
    (normal_latents,) = _checks.floating(normal_latents=normal_latents)
    return lax.erf(normal_latents / math.sqrt(2))


# ----------------------------------------------------------------------------- choosing among draws


def reject(
    key: Key, energy_base: Array, *, num_kept: int, inverse_temperature: float | Array = 1.0
) -> Kept:
    r"""Returns draws of the base that rejection keeps under the energy-based model.

    .. math:: P(\text{keep } j) = \min(1, w_j / b), \qquad w_j = e^{-\beta E(x_j)}

    The bound b is the largest under which num_kept draws are kept: with u_j uniform on (0, 1], the
    num_kept largest of w_j / u_j stay, and b is the largest of the others. Where no weight is
    above b, that is rejection sampling, and the kept follow the model; else b cuts the weights, as
    the shift of discriminator rejection sampling does, and the kept lie between base and model.

    Args:
      key: of the draws u_j.
      energy_base: E at i.i.d. draws x_j of the base; shape (m,), floating, in nats.
      num_kept: k, at least 1 and less than m; static.
      inverse_temperature: beta > 0, the factor of the energy; shape ().

    Returns:
      The indices that are kept, from the largest w_j / u_j to the least. A draw whose energy is
      infinite or NaN weighs nothing; -1 where none weighs anything, under jit.

    Raises:
      ValueError: wrong rank or dtype, num_kept out of its range, or a concrete inverse temperature
        that is not positive.

    Cost: O(m log k) time.

    Example:
      >>> from kernelgrad import latent
      >>> energy = jnp.array([0.0, 60.0, 0.0, 60.0])  # weights 1 and next to nothing
      >>> kept = latent.reject(jax.random.key(0), energy, num_kept=2)
      >>> sorted(kept.indices.tolist())
      [0, 2]

    References:
      Azadi et al. 2019 (discriminator rejection sampling), section 3.
    """
    _checks.at_least("num_kept", num_kept, 1)
    log_weights = _log_weights(energy_base, inverse_temperature, num_kept)
    _checks.at_least("draws of energy_base", log_weights.shape[0], num_kept + 1)
    uniform = _uniform(key, log_weights.shape, log_weights.dtype)
    ratios, indices = lax.top_k(log_weights - jnp.log(uniform), num_kept + 1)
    num_capped = jnp.sum(log_weights > ratios[-1], dtype=jnp.int32)
    return Kept(jnp.where(jnp.isfinite(ratios[:-1]), indices[:-1], -1), num_capped)


def resample(
    key: Key, energy_base: Array, *, num_draws: int, inverse_temperature: float | Array = 1.0
) -> Array:
    r"""Returns draws of the base, drawn again with weights :math:`e^{-\beta E(x_j)}`.

    Sampling by importance and resampling: what comes out follows the model as m grows, but holds
    the same draw again and again where few weigh much;
    :func:`kernelgrad.kale.log_normalizer_estimate` has the effective number of draws.

    Each is drawn on its own, and is j with probability :math:`w_j / \sum_l w_l` up to some epsilons
    of it, however many they are: by halving the draws again and again, with the half of a draw
    chosen by its share of their weight. A sum over all has lost the last digits of each.

    Args:
      key: of the choice.
      energy_base: E at i.i.d. draws x_j of the base; shape (m,), floating, in nats.
      num_draws: how many to draw, at least 1; static.
      inverse_temperature: beta > 0, the factor of the energy; shape ().

    Returns:
      Indices of the draws, with replacement; shape (num_draws,), int32. A draw whose energy is
      infinite or NaN weighs nothing; -1 where none weighs anything, under jit.

    Raises:
      ValueError: wrong rank or dtype, num_draws below 1, or a concrete inverse temperature that is
        not positive.

    Cost: O(m + num_draws log m) time, O(m + num_draws) memory.

    Example:
      >>> from kernelgrad import latent
      >>> energy = jnp.array([60.0, 0.0, 60.0])  # one draw has all the weight
      >>> latent.resample(jax.random.key(0), energy, num_draws=4).tolist()
      [1, 1, 1, 1]

    References:
      Grover et al. 2019 (likelihood-free importance weighting), section 4; Rubin 1988.
    """
    _checks.at_least("num_draws", num_draws, 1)
    log_weights = _log_weights(energy_base, inverse_temperature, 1)
    depth = max(1, (log_weights.shape[0] - 1).bit_length())
    sums = [jnp.pad(jnp.exp(log_weights), (0, 2**depth - log_weights.shape[0]))]
    for _ in range(depth):
        sums.append(sums[-1].reshape(-1, 2).sum(axis=1))
    tree = jnp.concatenate([jnp.zeros_like(sums[-1]), *reversed(sums)])  # of 2 i and 2 i + 1: i

    def descend(node: Array, key: Array) -> tuple[Array, None]:
        left, right = tree[2 * node], tree[2 * node + 1]
        place = _uniform(key, node.shape, tree.dtype) * (left + right)
        lesser = place < jnp.minimum(left, right)  # by its share: a small one keeps its digits
        return 2 * node + (lesser == (right < left)).astype(jnp.int32), None

    keys = jax.random.split(key, depth)
    start = _devices.varying(jnp.ones(num_draws, jnp.int32), tree, jax.random.key_data(keys))
    node, _ = lax.scan(descend, start, keys)
    return jnp.where(tree[1] > 0, node - 2**depth, -1)


def _uniform(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    """Returns draws from (0, 1] that keep all digits of the dtype near 0, down to 2^-64."""
    high, low = (
        jax.random.bits(one, shape, jnp.uint32).astype(dtype) for one in jax.random.split(key)
    )
    return (high + (low + 1) * 2.0**-32) * 2.0**-32


def _log_weights(energy_base: Array, inverse_temperature: float | Array, fewest: int) -> Array:
    """Returns the logarithms of the weights, the largest 0; checks that so many draws have one."""
    (energy_base,) = _checks.vectors(energy_base=energy_base)
    _checks.shape("inverse_temperature", inverse_temperature, ())
    _checks.positive(inverse_temperature=inverse_temperature)
    wide = _numeric.wide(energy_base)
    finite = jnp.isfinite(wide)
    count = jnp.sum(finite, dtype=jnp.int32)
    _checks.in_range("finite entries of energy_base", count, fewest, math.inf, closed="l")
    least = jnp.min(jnp.where(finite, wide, jnp.inf))
    above = jnp.where(finite, wide - jnp.where(finite, least, 0), jnp.inf)
    return lax.stop_gradient(-_numeric.like(inverse_temperature, wide) * above)
