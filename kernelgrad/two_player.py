"""Objectives of two players: a critic learns from samples and data, the generator follows it."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _devices, _numeric, adversarial
from kernelgrad import kale as kales
from kernelgrad._learned_features import (
    adversarial_kernel,
    kl_adversarial,
    mmd_gan,
    mmd_power,
)
from kernelgrad._players import CriticFn, PlayerFn, TwoPlayer, of_union, on_batches
from kernelgrad.types import Array, Info, Key

__all__ = [
    "CriticFn",
    "PlayerFn",
    "TrackFn",
    "TwoPlayer",
    "adversarial_kernel",
    "gan_kl",
    "gan_non_saturating",
    "gan_saturating",
    "hinge",
    "kale",
    "kl_adversarial",
    "mmd_gan",
    "mmd_power",
    "of_union",
    "on_batches",
    "wgan_clip",
    "wgan_gp",
]

_PENALTY = "(critic_fn, points) -> ()"
_TRACK = "(log_normalizer, energy_base, *, axis_name) -> ()"


class TrackFn(Protocol):
    """How a log-normaliser follows the energies of batches."""

    def __call__(
        self, log_normalizer: Array, energy_base: Array, *, axis_name: str | None = None
    ) -> Array:
        """Returns the next log-normaliser, shape ()."""
        ...


def gan_saturating() -> TwoPlayer:
    r"""Returns the first GAN: the generator descends E log(1 - D), 2 JSD at the optimal D.

    Returns:
      Objective of two players with info ``critic_loss`` and ``jsd`` (its estimate, in nats).

    Example:
      >>> from kernelgrad import two_player
      >>> x = jnp.log(jnp.array([[3.0]]))  # where the logit x says D = 3/4
      >>> args = (lambda x: x[:, 0]), jax.random.key(0), x, x
      >>> print(two_player.gan_saturating().direction(*args)[0])  # -D
      [[-0.75]]

    References:
      Goodfellow et al. 2014, eq. (1).
    """
    return _gan(adversarial.saturating_loss)


def gan_non_saturating() -> TwoPlayer:
    r"""Returns the usual GAN: the generator descends -E log D, KL[q || p] - 2 JSD at the optimal D.

    Returns:
      Objective of two players, infos of :func:`gan_saturating`.

    Example:
      >>> from kernelgrad import two_player
      >>> x = jnp.log(jnp.array([[3.0]]))  # where the logit x says D = 3/4
      >>> args = (lambda x: x[:, 0]), jax.random.key(0), x, x
      >>> print(two_player.gan_non_saturating().direction(*args)[0])  # D - 1
      [[-0.25]]

    References:
      Goodfellow et al. 2014, section 3; Arjovsky & Bottou 2017, Theorem 2.5.
    """
    return _gan(adversarial.non_saturating_loss)


def gan_kl() -> TwoPlayer:
    r"""Returns the GAN whose generator descends E log((1 - D) / D), KL[q || p] at the optimal D.

    Returns:
      Objective of two players, infos of :func:`gan_saturating`.

    Example:
      >>> from kernelgrad import two_player
      >>> x = jnp.log(jnp.array([[3.0]]))  # where the logit x says D = 3/4
      >>> args = (lambda x: x[:, 0]), jax.random.key(0), x, x
      >>> print(two_player.gan_kl().direction(*args)[0])  # -1, whatever D
      [[-1.]]

    References:
      Huszar 2016 (an alternative update rule for GANs).
    """
    return _gan(adversarial.kl_loss)


def hinge() -> TwoPlayer:
    """Returns the hinge GAN; spectral normalisation of the critic belongs to the network.

    Returns:
      Objective of two players with info ``critic_loss``.

    Example:
      >>> from kernelgrad import two_player
      >>> samples, data = jnp.array([[0.0]]), jnp.array([[0.5]])
      >>> args = (lambda x: x[:, 0]), jax.random.key(0), samples, data
      >>> float(two_player.hinge().critic_loss(*args)[0])  # (1 - 0.5) + (1 + 0)
      1.5
      >>> print(two_player.hinge().direction(*args)[0])
      [[-1.]]

    References:
      Miyato et al. 2018, eqs. (16) and (17).
    """
    return TwoPlayer(
        _critic_loss(adversarial.hinge_discriminator_loss),
        _critic_direction(adversarial.wasserstein_generator_loss),
    )


def wgan_clip(*, clip: float = 0.01) -> TwoPlayer:
    """Returns the Wasserstein GAN with weight clipping.

    Args:
      clip: every parameter of the critic is kept in [-clip, clip]; > 0.

    Returns:
      Objective of two players, infos of :func:`hinge`. -critic_loss estimates W1 up to the
      critic's Lipschitz constant.

    Raises:
      ValueError: clip <= 0.

    Example:
      >>> from kernelgrad import two_player
      >>> samples, data = jnp.array([[1.0]]), jnp.array([[3.0]])
      >>> args = (lambda x: 2.0 * x[:, 0]), jax.random.key(0), samples, data
      >>> float(two_player.wgan_clip().critic_loss(*args)[0])  # 2 - 6
      -4.0
      >>> print(two_player.wgan_clip(clip=0.5).project(jnp.array([-2.0, 0.1])))
      [-0.5  0.1]

    References:
      Arjovsky, Chintala & Bottou 2017, algorithm 1.
    """
    _checks.positive(clip=clip)
    return TwoPlayer(
        _critic_loss(adversarial.wasserstein_critic_loss),
        _critic_direction(adversarial.wasserstein_generator_loss),
        functools.partial(adversarial.clip_weights, clip=clip),
    )


def wgan_gp(
    *,
    weight: float = 10.0,
    penalty: Callable[[CriticFn, Array], Array] = adversarial.gradient_penalty,
) -> TwoPlayer:
    """Returns the Wasserstein GAN with a gradient penalty between samples and data.

    Args:
      weight: of the penalty; > 0.
      penalty: (critic_fn, points) -> (), one of :mod:`kernelgrad.adversarial`.

    Returns:
      Objective of two players, infos of :func:`hinge` and ``penalty``.

    Raises:
      ValueError: weight <= 0.

    Example:
      >>> from kernelgrad import two_player
      >>> samples, data = jnp.array([[0.0]]), jnp.array([[1.0]])
      >>> args = (lambda x: 3.0 * x[:, 0]), jax.random.key(0), samples, data
      >>> loss, info = two_player.wgan_gp(weight=10.0).critic_loss(*args)
      >>> float(loss), float(info["penalty"])  # 0 - 3 + 10 (3 - 1)^2
      (37.0, 4.0)

    References:
      Gulrajani et al. 2017, eq. (3) and algorithm 1.
    """
    _checks.positive(weight=weight)

    @on_batches
    def critic_loss(
        critic_fn: CriticFn,
        key: Key,
        samples: Array,
        data: Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[Array, Info]:
        loss = adversarial.wasserstein_critic_loss(critic_fn(data), critic_fn(samples))
        points = adversarial.interpolates(key, data, samples, axis_name=axis_name)
        value = _checks.scalar(
            "penalty", _checks.call("penalty", _PENALTY, penalty, critic_fn, points)
        )
        return loss + weight * value, {"critic_loss": loss, "penalty": value}

    return TwoPlayer(critic_loss, _critic_direction(adversarial.wasserstein_generator_loss))


def kale(
    *,
    penalty_weight: float = 1.0,
    penalty: Callable[[CriticFn, Array], Array] = adversarial.zero_centred_gradient_penalty,
    track: TrackFn | None = None,
) -> TwoPlayer:
    r"""Returns the generalised energy-based model: an energy on top of the generator, by KALE.

    .. math:: \theta \text{ ascends } \mathrm{KALE} = 1 - E_P[E + c] - E_G[e^{-(E + c)}], \quad
        \tilde x_j \text{ descends } w_j \nabla E(\tilde x_j), \; w_j = e^{-(E(\tilde x_j) + c)}

    The model is :math:`q(x) \propto e^{-E(x)} G(dx)`: draw from it in latent space, by
    :mod:`kernelgrad.latent`. Without `track`, c is the best log-normaliser of each batch, which
    nothing has to learn, and the critic returns energies (n,). With it c outlives the batch: the
    critic returns (energies (n,), c), c a parameter of its own, whose gradient is made to be
    c - track(c, energies). It is to be descended at learning rate 1.

    Args:
      penalty_weight: of the penalty on the energy's slope between samples and data; >= 0.
      penalty: (critic_fn, points) -> (), one of :mod:`kernelgrad.adversarial`.
      track: (c, energies of the samples, axis_name=...) -> next c, such as
        :func:`kernelgrad.kale.ema_step` or :func:`kernelgrad.kale.newton_step` at some rate; None:
        :func:`kernelgrad.kale.optimal_log_normalizer` of the batch.

    Returns:
      Objective of two players with info ``critic_loss`` (-KALE), ``penalty``, ``energy_data`` and
      ``log_normalizer``.

    Raises:
      ValueError: penalty_weight < 0.

    Example:
      >>> from kernelgrad import two_player
      >>> samples, data = jnp.array([[0.0], [0.0]]), jnp.array([[-1.0], [-1.0]])
      >>> args = (lambda x: x[:, 0]), jax.random.key(0), samples, data  # the energy x
      >>> loss, info = two_player.kale().critic_loss(*args)
      >>> [round(float(info[name]), 3) for name in ("critic_loss", "penalty", "energy_data")]
      [-1.0, 1.0, -1.0]
      >>> print(two_player.kale().direction(*args)[0].T)  # weights of mean 1, times the slope
      [[1. 1.]]

    References:
      KALE: When Energy-Based Learning Meets Adversarial Training, abstract; formulas and signs as
      derived in :mod:`kernelgrad.kale`.
    """
    _checks.not_negative(penalty_weight=penalty_weight)
    return TwoPlayer(
        on_batches(functools.partial(_kale_loss, penalty_weight, penalty, track)),
        on_batches(functools.partial(_kale_direction, track)),
    )


def _energies(track: TrackFn | None, output: Any) -> Array:
    form = "critic -> (energies, log_normalizer), as track asks for"
    return output if track is None else _checks.two_returned("critic", form, output)[0]


def _log_normalizer(track: TrackFn | None, output: Any, axis_name: str | None) -> Array:
    if track is None:
        return kales.optimal_log_normalizer(output, axis_name=axis_name)
    return _numeric.wide(output[1])


def _kale_loss(
    penalty_weight: float,
    penalty: Callable[[CriticFn, Array], Array],
    track: TrackFn | None,
    critic_fn: CriticFn,
    key: Key,
    samples: Array,
    data: Array,
    *,
    axis_name: str | None = None,
) -> tuple[Array, Info]:
    def energy_fn(points: Array) -> Array:
        return _energies(track, critic_fn(points))

    output = critic_fn(samples)
    of_data, of_samples = energy_fn(data), _energies(track, output)
    tracked = _log_normalizer(track, output, axis_name)
    log_normalizer = lax.stop_gradient(tracked)
    loss = -kales.kale(of_data, of_samples, log_normalizer)
    points = adversarial.interpolates(key, data, samples, axis_name=axis_name)
    slope = _checks.call("penalty", _PENALTY, penalty, energy_fn, points)
    total = loss + penalty_weight * slope
    if track is not None:  # a term of value 0 and slope c - track(c, energies)
        args = log_normalizer, of_samples
        descent = log_normalizer - _checks.call("track", _TRACK, track, *args, axis_name=axis_name)
        total += (tracked - log_normalizer) * lax.stop_gradient(descent)
    return total, {
        "critic_loss": loss,
        "penalty": slope,
        "energy_data": jnp.mean(_numeric.wide(of_data)),
        "log_normalizer": log_normalizer,
    }


def _kale_direction(
    track: TrackFn | None,
    critic_fn: CriticFn,
    key: Key,
    samples: Array,
    data: Array,
    *,
    axis_name: str | None = None,
) -> tuple[Array, Info]:
    del key, data

    def energy_fn(points: Array) -> tuple[Array, Array]:
        output = critic_fn(points)
        return _energies(track, output), _log_normalizer(track, output, axis_name)

    samples = _devices.own_point(energy_fn, samples)
    energy, pull, log_normalizer = jax.vjp(energy_fn, samples, has_aux=True)
    (descent,) = pull(kales.generator_weights(energy, log_normalizer))
    return descent, {}


def _gan(generator_loss: Callable[[Array], Array]) -> TwoPlayer:
    loss = _critic_loss(adversarial.discriminator_loss, jsd=adversarial.jsd_estimate)
    return TwoPlayer(loss, _critic_direction(generator_loss))


def _critic_loss(
    loss: Callable[[Array, Array], Array], **monitors: Callable[[Array, Array], Array]
) -> PlayerFn:
    """Returns a loss of the values at data and samples, with more functions of them to log."""

    @on_batches
    def critic_loss(
        critic_fn: CriticFn,
        key: Key,
        samples: Array,
        data: Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[Array, Info]:
        del key, axis_name
        real, fake = critic_fn(data), critic_fn(samples)
        value = loss(real, fake)
        info = {name: monitor(real, fake) for name, monitor in monitors.items()}
        return value, {"critic_loss": value, **info}

    return critic_loss


def _critic_direction(loss: Callable[[Array], Array]) -> PlayerFn:
    """Returns the direction of a mean over samples of a function of the critic's values."""

    @on_batches
    def direction_fn(
        critic_fn: CriticFn,
        key: Key,
        samples: Array,
        data: Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[Array, Info]:
        del key, data, axis_name
        samples = _devices.own_point(critic_fn, samples)
        return jax.grad(lambda x: x.shape[0] * loss(critic_fn(x)))(samples), {}

    return direction_fn
