r"""Adversarial training: losses of both players, bounds, critics and penalties.

D = sigmoid(l) tells data P from generated Q; at its optimum the logit is l = log P/Q, for as many
real as generated samples. Every loss is to be minimised by its player:

=============  ===================================  ============================================
game           discriminator, critic                generator
=============  ===================================  ============================================
GAN            :func:`discriminator_loss`           :func:`saturating_loss`, descends 2 JSD
..             ..                                   :func:`non_saturating_loss`, KL[Q||P] - 2 JSD
..             ..                                   :func:`kl_loss`, KL[Q||P]
hinge          :func:`hinge_discriminator_loss`     :func:`wasserstein_generator_loss`
Wasserstein    :func:`wasserstein_critic_loss`      :func:`wasserstein_generator_loss`
=============  ===================================  ============================================

Losses and penalties are means over a batch, so the mean of their values or gradients over devices
(pmean) is that of the whole batch; of the rest, what does not commute with it takes an axis_name.
All are computed, and returned, in at least float32.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kernelgrad import _checks, _devices, _numeric
from kernelgrad.types import Array, Key, PyTree

# ----------------------------------------------------------------------------- losses of the GAN


def discriminator_loss(real_logits: Array, fake_logits: Array) -> Array:
    r"""Returns the log loss of the discriminator.

    .. math:: -\frac1n \sum_i \log D(x_i) - \frac1m \sum_j \log(1 - D(\tilde x_j))
        = \frac1n \sum_i \log(1 + e^{-l_i}) + \frac1m \sum_j \log(1 + e^{\tilde l_j})

    The discriminator minimises it; 2 log 2 at l = 0, and not halved.

    Args:
      real_logits: l_i at the data; shape (n,), floating.
      fake_logits: logits at the generated samples; shape (m,).

    Returns:
      Loss, shape (), in nats; value and gradient are finite where the sum of absolute logits is.

    Raises:
      ValueError: wrong rank or dtype.

    Example:
      >>> from kernelgrad import adversarial
      >>> unsure = jnp.zeros(2)
      >>> round(float(adversarial.discriminator_loss(unsure, unsure)), 3)  # 2 log 2
      1.386

    References:
      Arjovsky & Bottou 2017, -L(D, theta); Huszar 2016, D-step.
    """
    real_logits, fake_logits = _wide(real_logits=real_logits, fake_logits=fake_logits)
    return jnp.mean(_softplus(-real_logits)) + jnp.mean(_softplus(fake_logits))


def saturating_loss(fake_logits: Array) -> Array:
    r"""Returns the generator's loss of the original game.

    .. math:: \frac1m \sum_j \log(1 - D(\tilde x_j)) = -\frac1m \sum_j \log(1 + e^{\tilde l_j})

    The generator minimises it. Per sample it weighs :math:`-\nabla l` by D: where the discriminator
    is sure, nothing is left. At the optimal D its gradient is that of 2 JSD.

    Args:
      fake_logits: logits at the generated samples; shape (m,), floating.

    Returns:
      Loss, shape (), in nats.

    Raises:
      ValueError: wrong rank or dtype.

    Example:
      >>> from kernelgrad import adversarial
      >>> logits = jnp.log(jnp.array([3.0]))  # D = 3/4
      >>> round(float(adversarial.saturating_loss(logits)), 3)  # log 1/4
      -1.386

    References:
      Huszar 2016, M-step; Arjovsky & Bottou 2017.
    """
    (fake_logits,) = _wide(fake_logits=fake_logits)
    return -jnp.mean(_softplus(fake_logits))


def non_saturating_loss(fake_logits: Array) -> Array:
    r"""Returns the generator's alternative loss.

    .. math:: -\frac1m \sum_j \log D(\tilde x_j) = \frac1m \sum_j \log(1 + e^{-\tilde l_j})

    The generator minimises it. Per sample it weighs :math:`-\nabla l` by 1 - D. At the optimal D
    its gradient is that of KL[Q||P] - 2 JSD.

    Args:
      fake_logits: logits at the generated samples; shape (m,), floating.

    Returns:
      Loss, shape (), in nats.

    Raises:
      ValueError: wrong rank or dtype.

    Example:
      >>> from kernelgrad import adversarial
      >>> logits = jnp.log(jnp.array([3.0]))  # D = 3/4
      >>> round(float(adversarial.non_saturating_loss(logits)), 3)  # -log 3/4
      0.288

    References:
      Huszar 2016, alternative M-step; Arjovsky & Bottou 2017, alternate update.
    """
    (fake_logits,) = _wide(fake_logits=fake_logits)
    return jnp.mean(_softplus(-fake_logits))


def kl_loss(fake_logits: Array) -> Array:
    r"""Returns the generator's loss that descends KL[Q||P].

    .. math:: \frac1m \sum_j \log \frac{1 - D(\tilde x_j)}{D(\tilde x_j)}
        = -\frac1m \sum_j \tilde l_j

    The generator minimises it. It is :func:`saturating_loss` plus :func:`non_saturating_loss`, in
    value and in gradient: the weights D and 1 - D of a sample add up to 1, float for float.

    Args:
      fake_logits: logits at the generated samples; shape (m,), floating.

    Returns:
      Loss, shape (), in nats; an estimate of KL[Q||P] at the optimal discriminator.

    Raises:
      ValueError: wrong rank or dtype.

    Example:
      >>> from kernelgrad import adversarial
      >>> logits = jnp.log(jnp.array([3.0]))  # D = 3/4
      >>> round(float(adversarial.kl_loss(logits)), 3)  # log 1/3
      -1.099
      >>> both = adversarial.saturating_loss(logits) + adversarial.non_saturating_loss(logits)
      >>> bool(jnp.allclose(adversarial.kl_loss(logits), both))
      True

    References:
      Huszar 2016, alternative M-step #2.
    """
    (fake_logits,) = _wide(fake_logits=fake_logits)
    return -jnp.mean(fake_logits)


@jax.custom_jvp
def _softplus(x: Array) -> Array:
    return jnp.logaddexp(x, jnp.zeros_like(x))


@_softplus.defjvp
def _softplus_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The slopes at x and -x add up to 1 float for float, and the small one has all its digits."""
    (x,), (tangent,) = primals, tangents
    slope = jnp.where(x > 0, 1 - jax.nn.sigmoid(-x), jax.nn.sigmoid(x))
    return _softplus(x), slope * tangent


# ------------------------------------------------------------------------ bounds on f-divergences


def jsd_estimate(real_logits: Array, fake_logits: Array) -> Array:
    r"""Returns the Jensen-Shannon divergence that a discriminator gives evidence of.

    .. math:: \log 2 + \tfrac12 \big[ E_P \log D + E_Q \log(1 - D) \big] \le
        \mathrm{JSD}(P, Q) = \tfrac12 \mathrm{KL}[P \| M] + \tfrac12 \mathrm{KL}[Q \| M],
        \quad M = \tfrac12 (P + Q)

    Equality holds at the optimal discriminator. It is log 2 where the supports are told apart,
    and negative where D does worse than chance.

    Args:
      real_logits: logits of D at draws of P that D was not fitted to; shape (n,), floating.
      fake_logits: logits at draws of Q; shape (m,).

    Returns:
      Estimate, shape (), in nats, at most log 2 = 0.693.

    Raises:
      ValueError: wrong rank or dtype.

    Example:
      >>> from kernelgrad import adversarial
      >>> sure = jnp.array([30.0])
      >>> round(float(adversarial.jsd_estimate(sure, -sure)), 3)  # log 2
      0.693

    References:
      Arjovsky & Bottou 2017, JSD = max_D L / 2 + log 2; the slide that writes it as KL + KL lacks
      the two halves.
    """
    return math.log(2) - discriminator_loss(real_logits, fake_logits) / 2


def kl_estimate(real_logits: Array, fake_logits: Array, *, axis_name: str | None = None) -> Array:
    r"""Returns the Donsker-Varadhan bound on KL[Q||P] with the witness -l.

    .. math:: E_Q[-l] - \log E_P[e^{-l}] \le \mathrm{KL}[Q \| P]

    Q is the generator's law, P that of the data. Equality holds at l = log P/Q + any constant, so
    that unlike :func:`kl_loss` it does not depend on the share of real samples. KL[P||Q] is bounded
    by ``kl_estimate(-fake_logits, -real_logits)``.

    Args:
      real_logits: l at draws of P; shape (n,), floating.
      fake_logits: l at draws of Q; shape (m,).
      axis_name: if set, both are the union over all devices; the logarithm of a mean does not
        commute with pmean.

    Returns:
      Bound, shape (), in nats. Over few draws of P it is biased upwards.

    Raises:
      ValueError: wrong rank or dtype.

    Example:
      >>> from kernelgrad import adversarial
      >>> real, fake = jnp.array([1.0, 1.0]), jnp.array([-1.0])
      >>> [round(float(adversarial.kl_estimate(real + c, fake + c)), 3) for c in (0.0, 5.0)]
      [2.0, 2.0]

    References:
      Donsker & Varadhan 1983; Huszar 2016, connection to KL minimisation.
    """
    real_logits, fake_logits = _wide(real_logits=real_logits, fake_logits=fake_logits)
    real, fake = (_devices.gather(logits, axis_name) for logits in (real_logits, fake_logits))
    bound = math.log(real.shape[0]) - jax.nn.logsumexp(-real) - jnp.mean(fake)
    return _devices.statistic(bound, axis_name)


def wasserstein_bound(
    jsd: float | Array, noise_variance: float | Array, diameter: float | Array
) -> Array:
    r"""Returns the bound on the Wasserstein distance between laws seen through noise.

    .. math:: W_1(P, Q) \le 2 \sqrt V + 2 C \sqrt{\mathrm{JSD}(P_\epsilon, Q_\epsilon)}

    with :math:`P_\epsilon, Q_\epsilon` the laws of P and Q plus noise of mean 0. Annealing lowers
    the first term, training with noise the second. It holds for bounded noise alone
    (:func:`noise.bounded_noise`), for a Gaussian has C = infinity, and for the JSD itself, of
    which a discriminator only gives a lower bound (:func:`jsd_estimate`).

    Args:
      jsd: of the noised laws, in nats; shape (). A negative estimate counts as 0.
      noise_variance: V = E|eps|^2, the sum over coordinates (d times the variance of each), in
        squared units of the samples; shape (), >= 0.
      diameter: C of a ball that holds both noised supports, in units of the samples; shape (),
        >= 0. A ball of radius R around P and Q and bounded noise: 2 (R + sqrt(3 V)).

    Returns:
      Bound, shape (), in units of the samples. The derivatives in a variance and a JSD of 0, which
      are infinite, count as 0.

    Raises:
      ValueError: no real scalar, or a concrete noise_variance or diameter that is negative.

    Example:
      >>> from kernelgrad import adversarial
      >>> bound = adversarial.wasserstein_bound(jsd=0.25, noise_variance=0.01, diameter=2.0)
      >>> round(float(bound), 3)  # 2 * 0.1 + 2 * 2 * 0.5
      2.2

    References:
      Arjovsky & Bottou 2017, Theorem 3.3, eq. (6).
    """
    jsd, lengths = (
        _checks.number("jsd", jsd),
        dict(noise_variance=noise_variance, diameter=diameter),
    )
    spread, diameter = (
        _numeric.like(_checks.number(name, value), jsd) for name, value in lengths.items()
    )
    _checks.not_negative(**lengths)
    return 2 * _numeric.root(spread) + 2 * diameter * _numeric.root(jsd)


# --------------------------------------------------------------------------- hinge and Wasserstein


def hinge_discriminator_loss(real_logits: Array, fake_logits: Array) -> Array:
    r"""Returns the hinge loss of the discriminator.

    .. math:: \frac1n \sum_i \max(0, 1 - l_i) + \frac1m \sum_j \max(0, 1 + \tilde l_j)

    The discriminator minimises it; its generator minimises :func:`wasserstein_generator_loss`.

    Args:
      real_logits: l_i at the data; shape (n,), floating.
      fake_logits: logits at the generated samples; shape (m,).

    Returns:
      Loss, shape ().

    Raises:
      ValueError: wrong rank or dtype.

    Example:
      >>> from kernelgrad import adversarial
      >>> real, fake = jnp.array([2.0, 0.0]), jnp.array([-2.0, 1.0])
      >>> float(adversarial.hinge_discriminator_loss(real, fake))  # (0 + 1) / 2 + (0 + 2) / 2
      1.5

    References:
      Lim & Ye 2017; Miyato et al. 2018, eq. (16).
    """
    real_logits, fake_logits = _wide(real_logits=real_logits, fake_logits=fake_logits)
    return jnp.mean(jax.nn.relu(1 - real_logits)) + jnp.mean(jax.nn.relu(1 + fake_logits))


def wasserstein_critic_loss(real_values: Array, fake_values: Array) -> Array:
    r"""Returns the loss of the Wasserstein critic.

    .. math:: \frac1m \sum_j f(\tilde x_j) - \frac1n \sum_i f(x_i)

    The critic minimises it, held to bounded slopes by :func:`clip_weights`, a penalty below, or
    spectral normalisation. With slopes of at most K, minus the loss is at most K W_1(P, Q).

    Args:
      real_values: f at the data; shape (n,), floating.
      fake_values: f at the generated samples; shape (m,).

    Returns:
      Loss, shape (), in units of f.

    Raises:
      ValueError: wrong rank or dtype.

    Example:
      >>> from kernelgrad import adversarial
      >>> float(adversarial.wasserstein_critic_loss(jnp.array([3.0]), jnp.array([1.0])))
      -2.0

    References:
      Arjovsky, Chintala & Bottou 2017, eq. (2).
    """
    real_values, fake_values = _wide(real_values=real_values, fake_values=fake_values)
    return jnp.mean(fake_values) - jnp.mean(real_values)


def wasserstein_generator_loss(fake_values: Array) -> Array:
    r"""Returns minus the mean critic, the generator's loss in the Wasserstein and hinge games.

    .. math:: -\frac1m \sum_j f(\tilde x_j)

    The generator minimises it. On the logits of a discriminator the same mean is
    :func:`kl_loss`.

    Args:
      fake_values: f at the generated samples; shape (m,), floating.

    Returns:
      Loss, shape (), in units of f.

    Raises:
      ValueError: wrong rank or dtype.

    Example:
      >>> from kernelgrad import adversarial
      >>> float(adversarial.wasserstein_generator_loss(jnp.array([1.0, 3.0])))
      -2.0

    References:
      Arjovsky, Chintala & Bottou 2017, Theorem 3; Miyato et al. 2018, eq. (17).
    """
    (fake_values,) = _wide(fake_values=fake_values)
    return -jnp.mean(fake_values)


def clip_weights(params: PyTree, *, clip: float | Array) -> PyTree:
    """Returns the parameters, each weight brought into [-clip, clip].

    Args:
      params: pytree of floating arrays.
      clip: largest absolute weight, > 0; 0.01 in the reference.

    Returns:
      Pytree like params.

    Raises:
      ValueError: a concrete clip that is not positive, or a leaf that is not floating, by its path.

    Example:
      >>> from kernelgrad import adversarial
      >>> print(adversarial.clip_weights({"weight": jnp.array([-3.0, 0.5])}, clip=1.0)["weight"])
      [-1.   0.5]

    References:
      Arjovsky, Chintala & Bottou 2017, algorithm 1.
    """
    _checks.shape("clip", clip, ())
    _checks.positive(clip=clip)

    def clipped(weight: Array) -> Array:
        bound = _numeric.like(clip, weight)
        return jnp.clip(weight, -bound, bound)

    return jax.tree.map(clipped, _checks.floating_leaves("params", params))


# ------------------------------------------------------------------------------ gradient penalties


def interpolates(key: Key, real: Array, fake: Array, *, axis_name: str | None = None) -> Array:
    r"""Returns points on the segments between real and generated samples.

    .. math:: x_i + u_i (\tilde x_i - x_i), \quad u_i \sim U[0, 1)

    Args:
      key: random key of u, one number a sample.
      real: x_i; shape (n, ...), floating.
      fake: generated samples; shape of real.
      axis_name: if set, all devices have one key and u_i is drawn for the union of their samples.

    Returns:
      Points, shape and dtype of real.

    Raises:
      ValueError: wrong dtype or shapes that differ.

    Example:
      >>> from kernelgrad import adversarial
      >>> points = adversarial.interpolates(jax.random.key(0), jnp.zeros((4, 1)), jnp.ones((4, 1)))
      >>> bool(jnp.all((points >= 0) & (points <= 1))), points.shape
      (True, (4, 1))

    References:
      Gulrajani et al. 2017, algorithm 1.
    """
    real, fake = _checks.batches(real=real, fake=fake)
    _checks.shape("fake", fake, real.shape)
    size = real.shape[0] * _devices.num_devices(axis_name)
    dtype = _numeric.wide(real).dtype
    shares = jax.random.uniform(key, (size,) + (1,) * (real.ndim - 1), dtype)
    shares = _devices.share(shares, axis_name).astype(real.dtype)
    return real + shares * (_numeric.like(fake, real) - real)


def gradient_penalty(critic_fn: Callable[[Array], Array], points: Array) -> Array:
    r"""Returns the two-sided gradient penalty, which asks for slopes of 1.

    .. math:: \frac1n \sum_i (|\nabla f(x_i)| - 1)^2

    The critic minimises it, times a coefficient (10 in the reference), next to its loss.

    Args:
      critic_fn: f, (n, ...) -> (n,), each value a function of its own point: no batch norm.
      points: x_i, :func:`interpolates` in the reference; shape (n, ...), floating.

    Returns:
      Penalty, shape (). A vanishing gradient counts 1 and pulls in no direction.

    Raises:
      ValueError: wrong dtype, or a critic that does not return shape (n,).

    Cost: one backward pass through the critic, and another for the penalty's gradient.

    Example:
      >>> from kernelgrad import adversarial
      >>> points = jnp.array([[0.0, 1.0], [2.0, 3.0]])
      >>> float(adversarial.gradient_penalty(lambda x: 3.0 * x[:, 0], points))  # (3 - 1)^2
      4.0

    References:
      Gulrajani et al. 2017, eq. (3).
    """
    return jnp.mean(jnp.square(_numeric.root(_sq_slopes(critic_fn, points)) - 1))


def one_sided_gradient_penalty(critic_fn: Callable[[Array], Array], points: Array) -> Array:
    r"""Returns the one-sided gradient penalty, which asks for slopes of at most 1.

    .. math:: \frac1n \sum_i \max(0, |\nabla f(x_i)| - 1)^2

    The critic minimises it, times a coefficient, next to its loss.

    Args:
      critic_fn: f, as in :func:`gradient_penalty`.
      points: x_i, as in :func:`gradient_penalty`.

    Returns:
      Penalty, shape ().

    Raises:
      ValueError: as :func:`gradient_penalty`.

    Cost: that of :func:`gradient_penalty`.

    Example:
      >>> from kernelgrad import adversarial
      >>> points = jnp.array([[0.0, 1.0], [2.0, 3.0]])
      >>> fns = [lambda x: 3.0 * x[:, 0], lambda x: 0.5 * x[:, 0]]
      >>> [float(adversarial.one_sided_gradient_penalty(critic_fn, points)) for critic_fn in fns]
      [4.0, 0.0]

    References:
      Gulrajani et al. 2017, section 4; Petzka, Fischer & Lukovnikov 2018, eq. (8).
    """
    return jnp.mean(jnp.square(jax.nn.relu(_numeric.root(_sq_slopes(critic_fn, points)) - 1)))


def zero_centred_gradient_penalty(critic_fn: Callable[[Array], Array], points: Array) -> Array:
    r"""Returns the zero-centred gradient penalty, which asks for flat critics.

    .. math:: \frac1n \sum_i |\nabla f(x_i)|^2

    The critic minimises it, times a coefficient, next to its loss. At real samples and times
    gamma / 2 it is R1, at generated samples R2.

    Args:
      critic_fn: f, as in :func:`gradient_penalty`.
      points: x_i; shape (n, ...), floating.

    Returns:
      Penalty, shape ().

    Raises:
      ValueError: as :func:`gradient_penalty`.

    Cost: that of :func:`gradient_penalty`.

    Example:
      >>> from kernelgrad import adversarial
      >>> points = jnp.array([[0.0, 1.0], [2.0, 3.0]])
      >>> float(adversarial.zero_centred_gradient_penalty(lambda x: 3.0 * x[:, 0], points))  # 3^2
      9.0

    References:
      Mescheder, Geiger & Nowozin 2018, eqs. (9) and (10).
    """
    return jnp.mean(_sq_slopes(critic_fn, points))


def _sq_slopes(critic_fn: Callable[[Array], Array], points: Array) -> Array:
    """Returns the squared norm of the critic's gradient at each point; shape (n,)."""
    (points,) = _checks.batches(points=points)
    values, pull = jax.vjp(critic_fn, _devices.own_point(critic_fn, points))
    _checks.shape("critic_fn(points)", values, points.shape[:1])
    (gradients,) = pull(jnp.ones_like(values))
    return jnp.sum(jnp.square(_numeric.wide(gradients).reshape(points.shape[0], -1)), axis=1)


# --------------------------------------------------------------------------------- what they share


def _wide(**logits: Array) -> list[Array]:
    """Returns them as vectors in at least float32; raises ValueError for a wrong dtype or rank."""
    return [_numeric.wide(values) for values in _checks.vectors(**logits)]
