r"""KALE: a variational bound on KL[P || G] whose witness is an energy on top of the generator.

The energy-based model :math:`q(dx) = e^{-E(x) - c}\, G(dx)` has the generator's law G as its base
and c as its log-normaliser. Both players see the same number:

=========  ===========================================  ============================================
player     does                                         and so
=========  ===========================================  ============================================
energy     maximises :func:`kale` or                    fits the model to the data P by maximum
           :func:`donsker_varadhan`                     likelihood
generator  descends :func:`generator_weights` times     lowers the bound on KL[P || G]; descending
           the energy's gradient, at each sample        the energy leads towards the data
=========  ===========================================  ============================================

The log-normaliser of a batch comes in three ways: in closed form (:func:`optimal_log_normalizer`),
as an average over batches (:func:`ema_step`), or learned (:func:`newton_step`).
:func:`log_normalizer_estimate` gives the one of a trained model, with its standard error. All are
summed, and returned, in at least float32.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _devices, _numeric
from kernelgrad.types import Array


class NormalizerEstimate(NamedTuple):
    """A log-normaliser from a sample of the base, and how far to trust it.

    Attributes:
      value: log-normaliser c; shape (), in nats.
      standard_error: of the value; shape (), in nats.
      effective_sample_size: how many equally weighted draws of the model the sample is worth,
        in [1, n]; shape ().
    """

    value: Array
    standard_error: Array
    effective_sample_size: Array


# ------------------------------------------------------------------------------------- the bounds


def kale(energy_data: Array, energy_base: Array, log_normalizer: float | Array) -> Array:
    r"""Returns the KL approximate lower-bound estimate of an energy and a log-normaliser.

    .. math:: 1 - \frac1n \sum_i (E(x_i) + c) - \frac1m \sum_j e^{-(E(\tilde x_j) + c)}
        \le \mathrm{KL}[P \| G]

    The energy maximises it, the generator minimises it. In c it is largest at
    :func:`optimal_log_normalizer`, where it is :func:`donsker_varadhan` with the gradient of that.
    Its derivative in c is m - 1, with m the mean of the exponentials. A mean over samples, it
    commutes with pmean at a c that all devices share.

    From the exponent 44 on in float32 (354 in float64, 5 in float16), where the square of the
    exponential nears the largest float of the energies, its tangent takes over: the value is at
    most that of :func:`donsker_varadhan`, and with the gradient finite up to exponents of 1e19.

    Args:
      energy_data: E(x_i) at draws of P; shape (n,), floating, in nats.
      energy_base: energies at draws of the base G; shape (m,).
      log_normalizer: c; shape (), in nats.

    Returns:
      Bound, shape (), in nats; negative where the energy explains nothing.

    Raises:
      ValueError: wrong rank or dtype.

    Example:
      >>> from kernelgrad import kale
      >>> energy_data, energy_base = jnp.array([-1.0]), jnp.array([0.0, jnp.log(3.0)])
      >>> c = kale.optimal_log_normalizer(energy_base)
      >>> bound = kale.donsker_varadhan(energy_data, energy_base)  # which KALE reaches there
      >>> [round(float(value), 3) for value in (kale.kale(energy_data, energy_base, c), bound)]
      [1.405, 1.405]

    References:
      KALE: When Energy-Based Learning Meets Adversarial Training, abstract; Nguyen, Wainwright &
      Jordan 2010, the dual form of KL.
    """
    energy_data, energy_base = _checks.vectors(energy_data=energy_data, energy_base=energy_base)
    log_normalizer = _checks.number("log_normalizer", log_normalizer)
    top = _top(energy_base)
    energy_data, energy_base = _numeric.wide(energy_data), _numeric.wide(energy_base)
    data = jnp.mean(energy_data + _numeric.like(log_normalizer, energy_data))
    exponents = -(energy_base + _numeric.like(log_normalizer, energy_base))
    return 1 - data - jnp.mean(_exp(exponents, top))


def donsker_varadhan(
    energy_data: Array, energy_base: Array, *, axis_name: str | None = None
) -> Array:
    r"""Returns the Donsker-Varadhan bound, KALE at the best log-normaliser.

    .. math:: -\frac1n \sum_i E(x_i) - \log \frac1m \sum_j e^{-E(\tilde x_j)}
        \le \mathrm{KL}[P \| G]

    The energy maximises it, the generator minimises it. A constant added to E changes nothing. It
    is the mean log-likelihood of the model at the data, relative to that of its base, where the
    base has a density at the data; for a generator of images it is no likelihood.

    Args:
      energy_data: E(x_i) at draws of P; shape (n,), floating, in nats.
      energy_base: energies at draws of the base G; shape (m,).
      axis_name: if set, both are the union over all devices; the logarithm of a mean does not
        commute with pmean.

    Returns:
      Bound, shape (), in nats. Over few draws of G it is biased upwards.

    Raises:
      ValueError: wrong rank or dtype.

    Example:
      >>> from kernelgrad import kale
      >>> energy_data, energy_base = jnp.array([-1.0]), jnp.array([0.0, jnp.log(3.0)])
      >>> round(float(kale.donsker_varadhan(energy_data, energy_base)), 3)  # 1 - log(2/3)
      1.405

    References:
      Donsker & Varadhan 1983.
    """
    energy_data, energy_base = _checks.vectors(energy_data=energy_data, energy_base=energy_base)
    log_normalizer = optimal_log_normalizer(energy_base, axis_name=axis_name)
    energies = _numeric.wide(_devices.gather(energy_data, axis_name))
    return _devices.statistic(-jnp.mean(energies + log_normalizer), axis_name)


def generator_weights(energy_base: Array, log_normalizer: float | Array) -> Array:
    r"""Returns the weight of the energy's gradient in the generator's direction.

    .. math:: w_j = e^{-(E(\tilde x_j) + c)}, \quad
        \nabla_{\tilde x_j} \mathrm{KALE} = \tfrac1m\, w_j \nabla E(\tilde x_j)

    Descend :math:`w_j \nabla E(\tilde x_j)`: with E and c held still, as the envelope theorem has
    it at their optimum, that lowers KALE. The weights are held still too, so that the mean of
    :math:`w_j E(\tilde x_j)` is a loss with this gradient. At :func:`optimal_log_normalizer` they
    are self-normalised, with mean 1 and at most m each.

    Args:
      energy_base: E at the generated samples; shape (m,), floating, in nats.
      log_normalizer: c; shape (), in nats.

    Returns:
      Weights, shape (m,), dtype of the energies, finite: the slopes of the exponentials of
      :func:`kale`.

    Raises:
      ValueError: wrong rank or dtype.

    Example:
      >>> from kernelgrad import kale
      >>> energy_base = jnp.array([0.0, jnp.log(3.0)])
      >>> c = kale.optimal_log_normalizer(energy_base)
      >>> print(kale.generator_weights(energy_base, c))  # (1, 1/3), of mean 1
      [1.5 0.5]

    References:
      KALE: When Energy-Based Learning Meets Adversarial Training, abstract (the discriminator is
      the energy, the generator its base); Milgrom & Segal 2002 for the envelope theorem.
    """
    (energy_base,) = _checks.vectors(energy_base=energy_base)
    log_normalizer = _checks.number("log_normalizer", log_normalizer)
    energy = lax.stop_gradient(_numeric.wide(energy_base))
    exponent = -(energy + lax.stop_gradient(_numeric.like(log_normalizer, energy)))
    return _numeric.like(jnp.exp(jnp.minimum(exponent, _top(energy_base))), energy_base)


def contrastive_divergence_loss(energy_data: Array, energy_chain: Array) -> Array:
    r"""Returns the loss whose gradient is that of minus the log-likelihood, by sampling.

    .. math:: \frac1n \sum_i E(x_i) - \frac1m \sum_j E(\bar x_j)

    The energy minimises it, at draws held still. Its gradient is exact if the chains have reached
    the model; after k steps from the data it is CD-k, with chains kept between updates persistent
    contrastive divergence. The value itself measures nothing.

    Args:
      energy_data: E(x_i) at draws of P; shape (n,), floating, in nats.
      energy_chain: energies at the ends of the chains; shape (m,).

    Returns:
      Loss, shape (), in nats.

    Raises:
      ValueError: wrong rank or dtype.

    Example:
      >>> from kernelgrad import kale
      >>> energy_data, energy_chain = jnp.array([1.0, 2.0]), jnp.array([4.0, 5.0])
      >>> float(kale.contrastive_divergence_loss(energy_data, energy_chain))
      -3.0

    References:
      Hinton 2002, section 3; Tieleman 2008 for persistent chains.
    """
    energy_data, energy_chain = _checks.vectors(energy_data=energy_data, energy_chain=energy_chain)
    return jnp.mean(_numeric.wide(energy_data)) - jnp.mean(_numeric.wide(energy_chain))


# ----------------------------------------------------------------------------- the log-normaliser


def optimal_log_normalizer(energy_base: Array, *, axis_name: str | None = None) -> Array:
    r"""Returns the log-normaliser at which KALE is largest.

    .. math:: c^* = \log \frac1m \sum_j e^{-E(\tilde x_j)}

    Over few draws it is biased downwards, by about half of the squared standard error of
    :func:`log_normalizer_estimate`.

    Args:
      energy_base: E at draws of the base; shape (m,), floating, in nats.
      axis_name: if set, they are the union over all devices.

    Returns:
      Log-normaliser, shape (), in nats; differentiable, with axis_name in what each device's own
      energies make of it.

    Raises:
      ValueError: wrong rank or dtype.

    Example:
      >>> from kernelgrad import kale
      >>> energy_base = jnp.array([0.0, jnp.log(3.0)])
      >>> round(float(kale.optimal_log_normalizer(energy_base)), 3)  # log of the mean of 1 and 1/3
      -0.405
    """
    (energy_base,) = _checks.vectors(energy_base=energy_base)
    energy = _numeric.wide(_devices.gather(energy_base, axis_name))
    return _devices.agreed(jax.nn.logsumexp(-energy) - math.log(energy.shape[0]), axis_name)


def ema_step(
    log_normalizer: float | Array,
    energy_base: Array,
    *,
    rate: float | Array,
    axis_name: str | None = None,
) -> Array:
    r"""Returns the log of a moving average of the normalisers of batches.

    .. math:: c \leftarrow \log\big[ (1 - \rho)\, e^c + \rho\, e^{c^*} \big]

    with c* that of the batch. The average is over :math:`e^{c^*}`, which is unbiased in any batch
    size, and lasts about 1 / rate batches. KALE at the result has the gradient of Donsker-Varadhan
    with the noise of a larger batch.

    Args:
      log_normalizer: c so far, at first :func:`optimal_log_normalizer`; shape (), in nats.
      energy_base: E at draws of the base; shape (m,), floating, in nats.
      rate: rho in (0, 1]; shape ().
      axis_name: if set, the batch is the union over all devices.

    Returns:
      Log-normaliser, shape (), in nats, held still: a state, through which no gradient flows.

    Raises:
      ValueError: wrong rank or dtype, or a concrete rate outside of (0, 1].

    Example:
      >>> from kernelgrad import kale
      >>> energy_base = jnp.array([0.0, jnp.log(3.0)])  # a normaliser of 2/3
      >>> round(float(kale.ema_step(0.0, energy_base, rate=0.5)), 3)  # log of the mean of 1 and 2/3
      -0.182

    References:
      Belghazi et al. 2018 (MINE), section 3.2.
    """
    before, batch, rho = _before_and_batch(log_normalizer, energy_base, rate, axis_name)
    return lax.stop_gradient(jnp.logaddexp(jnp.log1p(-rho) + before, jnp.log(rho) + batch))


def newton_step(
    log_normalizer: float | Array,
    energy_base: Array,
    *,
    rate: float | Array = 1.0,
    axis_name: str | None = None,
) -> Array:
    r"""Returns the log-normaliser after a Newton step up KALE, bounded so that it cannot overshoot.

    .. math:: c \leftarrow c + \rho \max\big(1 - \tfrac1m,\, -1\big), \quad m = e^{c^* - c}

    with c* that of the batch. A far c moves by one nat a step, a near one converges quadratically.
    Newton alone does so from below, but from u nats above lands :math:`e^u - 1 - u` below; bounded,
    it lands at most 0.31 nats below. With noisy batches and a small rate, the fixed point is the
    harmonic mean of their normalisers, less than the mean of :func:`ema_step`.

    Args:
      log_normalizer: c so far; shape (), in nats.
      energy_base: E at draws of the base; shape (m,), floating, in nats.
      rate: rho in (0, 1]; shape ().
      axis_name: if set, the batch is the union over all devices.

    Returns:
      Log-normaliser, shape (), in nats, held still: a state, through which no gradient flows.

    Raises:
      ValueError: wrong rank or dtype, or a concrete rate outside of (0, 1].

    Example:
      >>> from kernelgrad import kale
      >>> energy_base = jnp.array([0.0, jnp.log(3.0)])  # log(2/3) = -0.405 is the optimum
      >>> step = kale.newton_step(0.0, energy_base)  # by 1 - 3/2
      >>> round(float(step), 3), round(float(kale.newton_step(step, energy_base)), 3)
      (-0.5, -0.41)
    """
    before, batch, rho = _before_and_batch(log_normalizer, energy_base, rate, axis_name)
    step = -jnp.expm1(jnp.minimum(before - batch, math.log(2)))
    return lax.stop_gradient(before + rho * step)


def log_normalizer_estimate(
    energy_base: Array, *, axis_name: str | None = None
) -> NormalizerEstimate:
    r"""Returns the log-normaliser of a model from a large sample of its base, with its error.

    .. math:: \hat c = \log \bar w, \quad w_j = e^{-E(\tilde x_j)}, \quad
        \mathrm{se}^2 = \frac{1}{m (m - 1)} \sum_j (w_j / \bar w - 1)^2, \quad
        \mathrm{ess} = \frac{(\sum_j w_j)^2}{\sum_j w_j^2}

    The standard error is that of the delta method. Where the effective sample size is a handful,
    draws that would matter are missing: c is too low and its error too small, and densities too
    high.

    Args:
      energy_base: E at i.i.d. draws of the base; shape (m,), m >= 2, floating, in nats.
      axis_name: if set, they are the union over all devices.

    Returns:
      Value, standard error and effective sample size.

    Raises:
      ValueError: wrong rank or dtype, or a single draw.

    Example:
      >>> from kernelgrad import kale
      >>> energy_base = jnp.array([0.0, jnp.log(3.0)])
      >>> estimate = kale.log_normalizer_estimate(energy_base)  # value, error, effective size
      >>> [round(float(value), 3) for value in estimate]
      [-0.405, 0.5, 1.6]
    """
    (energy_base,) = _checks.vectors(energy_base=energy_base)
    value = optimal_log_normalizer(energy_base, axis_name=axis_name)
    energy = _numeric.wide(_devices.gather(energy_base, axis_name))
    _checks.at_least("draws of energy_base", energy.shape[0], 2)
    weights = energy.size * jax.nn.softmax(-energy)
    standard_error = _numeric.root(jnp.var(weights, ddof=1) / weights.size)
    effective = weights.size / jnp.mean(jnp.square(weights))
    return NormalizerEstimate(*_devices.statistic((value, standard_error, effective), axis_name))


def log_density(energy: Array, log_base: Array, log_normalizer: float | Array) -> Array:
    r"""Returns the log-density of the energy-based model.

    .. math:: \log q(x_i) = \log g(x_i) - E(x_i) - c

    Its error is that of c, the same at all points: a mean log-likelihood comes with the standard
    error of :func:`log_normalizer_estimate` on top of its own.

    Args:
      energy: E(x_i); shape (n,), floating, in nats.
      log_base: log g(x_i), the density of the base; shape (n,).
      log_normalizer: c; shape (), in nats.

    Returns:
      Log-densities, shape (n,), in nats.

    Raises:
      ValueError: wrong rank or dtype, or shapes that differ.

    Example:
      >>> from kernelgrad import kale
      >>> energy, log_base = jnp.array([1.0, 2.0]), jnp.array([-1.0, -1.0])
      >>> print(kale.log_density(energy, log_base, 0.5))  # log g - E - c
      [-2.5 -3.5]
    """
    energy, log_base = _checks.vectors(energy=energy, log_base=log_base)
    _checks.shape("log_base", log_base, energy.shape)
    log_normalizer = _checks.number("log_normalizer", log_normalizer)
    energy = _numeric.wide(energy)
    return _numeric.like(log_base, energy) - (energy + _numeric.like(log_normalizer, energy))


def _before_and_batch(
    log_normalizer: float | Array, energy_base: Array, rate: float | Array, axis_name: str | None
) -> tuple[Array, Array, Array]:
    """Returns c so far, c* of the batch, and the rate, of one dtype."""
    log_normalizer = _checks.number("log_normalizer", log_normalizer)
    _checks.shape("rate", rate, ())
    _checks.in_range("rate", rate, 0, 1, closed="r")
    batch = optimal_log_normalizer(energy_base, axis_name=axis_name)
    return _numeric.like(log_normalizer, batch), batch, _numeric.like(rate, batch)


def _exp(x: Array, top: int) -> Array:
    """Returns exp(x), and its tangent at `top` above that."""
    return jnp.exp(jnp.minimum(x, top)) * (1 + jnp.maximum(x - top, 0))


def _top(x: Array) -> int:
    """Returns the largest integer exponent whose exponential has a finite square."""
    return math.floor(math.log(float(jnp.finfo(x.dtype).max)) / 2)
