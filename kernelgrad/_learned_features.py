r"""Objectives under a kernel whose features learn against the generator.

The critic maps points to features phi(x), (n, l). It ascends a criterion of how far a kernel
between features tells samples from data; the generator descends a direction in feature space, such
as that of MMD or of KL, pulled back to the samples by one VJP through phi. The contract names are
those of :mod:`kernelgrad.two_player`.
"""

import functools
from collections.abc import Callable
from typing import Protocol

import jax.numpy as jnp

from kernelgrad import (
    _batch,
    _checks,
    _devices,
    _numeric,
    adversarial,
    kernels,
    mmd,
    objectives,
    pairwise,
)
from kernelgrad._players import CriticFn, TwoPlayer, of_union, on_batches
from kernelgrad.objectives import KernelRule, Objective
from kernelgrad.types import Array, Info, Kernel, Key

PenaltyFn = Callable[[CriticFn, Array], Array]

_CRITERION = "(features, features of data, kernel, *, axis_name) -> ()"
_PENALTY = "(critic_fn, points) -> ()"


class CriterionFn(Protocol):
    """What the features are trained to raise, such as :func:`kernelgrad.mmd.mmd_u_statistic`."""

    def __call__(
        self, x: Array, y: Array, kernel: Kernel, *, axis_name: str | None = None
    ) -> Array:
        """Returns the criterion for features (n, l) of samples and data, the same on all devices.

        Args:
          x: features of the samples.
          y: features of the data.
          kernel: between features.
          axis_name: if set, both are the union over all devices, and the criterion is made of
            statistics of this library.
        """
        ...


def unit_kernel(samples: Array, data: Array, *, axis_name: str | None = None) -> Kernel:
    """Returns the default kernel between features: IMQs whose squared lengthscales are .5 to 4.

    Args:
      samples: features of the samples, which it does not depend on: their unit is learned.
      data: features of the data.
      axis_name: mapped axis over devices.

    Returns:
      The kernel.
    """
    del samples, data, axis_name
    return kernels.imq_mixture([0.5**0.5, 1.0, 2.0**0.5, 2.0])


def adversarial_kernel(
    make_objective: Callable[[KernelRule], Objective],
    criterion: CriterionFn,
    *,
    make_kernel: KernelRule = unit_kernel,
    penalty_weight: float = 1.0,
    penalty: PenaltyFn = adversarial.gradient_penalty,
) -> TwoPlayer:
    r"""Returns any objective of a kernel, under features that are trained against the generator.

    .. math:: \theta \text{ ascends } c(\phi(\tilde x), \phi(y)) - \lambda\, \mathrm{penalty}(f),
        \quad f(x) = \frac1n \sum_i k(\phi(x), \phi(\tilde x_i))
        - \frac1n \sum_j k(\phi(x), \phi(y_j)), \quad
        \tilde x_i \text{ descends } J_\phi(\tilde x_i)^\top d_i

    with d the direction of the objective on the features. The penalty is on the slope of the
    witness f between samples and data; its gradient runs through all of f.

    Args:
      make_objective: rule for the kernel -> objective, such as :func:`kernelgrad.objectives.kl`.
      criterion: (features, features of data, kernel, axis_name=) -> (), ascended by phi.
      make_kernel: the kernel between the features of a batch, or what chooses it.
      penalty_weight: lambda >= 0.
      penalty: (critic_fn, points) -> (), one of :mod:`kernelgrad.adversarial`.

    Returns:
      Objective of two players whose critic returns features (n, l), with info ``critic_loss`` (less
      the criterion), ``penalty`` and those of the objective.

    Raises:
      ValueError: penalty_weight < 0; of the players, features that are not floating (n, l), or
        concrete ones that are not finite.

    Example:
      >>> from kernelgrad import kernels, mmd, objectives, two_player
      >>> objective = two_player.adversarial_kernel(
      ...     objectives.mmd_v, mmd.mmd_u_statistic, make_kernel=kernels.rbf_mixture(1.0)
      ... )  # two_player.mmd_gan
      >>> args = (lambda x: 2.0 * x), jax.random.key(0), jnp.array([[0.0]]), jnp.array([[1.0]])
      >>> direction, info = objective.direction(*args)
      >>> round(float(direction[0, 0]), 3)  # features 0 and 2, of slope 2: -8 exp(-2)
      -1.083

    References:
      Li et al. 2017 (MMD GAN), eq. (2); Binkowski et al. 2018, section 3, for the penalty.
    """
    _checks.not_negative(penalty_weight=penalty_weight)
    loss = functools.partial(_critic_loss, criterion, make_kernel, penalty_weight, penalty)
    objective = make_objective(make_kernel)

    def direction(
        critic_fn: CriticFn,
        key: Key,
        samples: Array,
        data: Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[Array, Info]:
        seen = objectives.through(functools.partial(_features, critic_fn), objective)
        return seen(key, samples, data, axis_name=axis_name)

    return TwoPlayer(on_batches(loss), direction)


def mmd_gan(
    *,
    make_kernel: KernelRule = unit_kernel,
    penalty_weight: float = 1.0,
    penalty: PenaltyFn = adversarial.gradient_penalty,
) -> TwoPlayer:
    """Returns the MMD GAN: features raise the MMD that the generator lowers.

    The gradient penalty on the witness stands where Li et al. clip weights and train a decoder.

    Args:
      make_kernel: as in :func:`adversarial_kernel`.
      penalty_weight: of the penalty on the witness; >= 0.
      penalty: (critic_fn, points) -> (), one of :mod:`kernelgrad.adversarial`.

    Returns:
      Objective of two players with info ``critic_loss`` (-MMD^2, unbiased), ``penalty`` and ``mmd``
      (the V-statistic between features).

    Raises:
      ValueError: penalty_weight < 0.

    Example:
      >>> from kernelgrad import kernels, two_player
      >>> objective = two_player.mmd_gan(make_kernel=kernels.rbf_mixture(1.0))
      >>> args = (lambda x: 2.0 * x), jax.random.key(0), jnp.array([[0.0]]), jnp.array([[1.0]])
      >>> direction, info = objective.direction(*args)
      >>> round(float(direction[0, 0]), 3)  # features 0 and 2, of slope 2: -8 exp(-2)
      -1.083

    References:
      Li et al. 2017 (MMD GAN), eq. (2); Binkowski et al. 2018, section 3.
    """
    return adversarial_kernel(
        objectives.mmd_v,
        mmd.mmd_u_statistic,
        make_kernel=make_kernel,
        penalty_weight=penalty_weight,
        penalty=penalty,
    )


def mmd_power(
    *,
    make_kernel: KernelRule = unit_kernel,
    penalty_weight: float = 1.0,
    penalty: PenaltyFn = adversarial.gradient_penalty,
) -> TwoPlayer:
    """Returns the MMD GAN whose features raise the power of the two-sample test.

    Args:
      make_kernel: as in :func:`adversarial_kernel`.
      penalty_weight: of the penalty on the witness; >= 0.
      penalty: (critic_fn, points) -> (), one of :mod:`kernelgrad.adversarial`.

    Returns:
      Objective of two players with info ``critic_loss`` (less :func:`kernelgrad.mmd.test_power`),
      ``penalty`` and ``mmd``.

    Raises:
      ValueError: penalty_weight < 0.

    Example:
      >>> from kernelgrad import kernels, mmd, two_player
      >>> kernel, x = kernels.rbf_mixture(1.0), jnp.array([[0.0], [1.0], [2.0]])
      >>> args = (lambda x: x), jax.random.key(0), x, x + 2
      >>> loss, info = two_player.mmd_power(make_kernel=kernel).critic_loss(*args)
      >>> bool(jnp.allclose(info["critic_loss"], -mmd.test_power(x, x + 2, kernel), rtol=1e-3))
      True

    References:
      Sutherland et al. 2017; Li 2017 (approximate KL gradients), section 4.
    """
    return adversarial_kernel(
        objectives.mmd_v,
        mmd.test_power,
        make_kernel=make_kernel,
        penalty_weight=penalty_weight,
        penalty=penalty,
    )


def kl_adversarial(
    *,
    ridge: float | None = None,
    make_kernel: KernelRule = unit_kernel,
    penalty_weight: float = 1.0,
    penalty: PenaltyFn = adversarial.gradient_penalty,
) -> TwoPlayer:
    r"""Returns the descent of KL under a kernel whose features are trained against it.

    The direction is the Stein estimate of the gradient of :math:`\log (q / p)`, the densities of
    the features, pulled back to the samples. The features raise the MMD between samples and data.

    Args:
      ridge: eta of :func:`kernelgrad.objectives.kl`; None: its default.
      make_kernel: as in :func:`adversarial_kernel`.
      penalty_weight: of the penalty on the witness; >= 0.
      penalty: (critic_fn, points) -> (), one of :mod:`kernelgrad.adversarial`.

    Returns:
      Objective of two players, infos of :func:`mmd_gan`.

    Raises:
      ValueError: ridge <= 0 or penalty_weight < 0.

    Example:
      >>> from kernelgrad import kernels, two_player
      >>> objective = two_player.kl_adversarial(ridge=1.0, make_kernel=kernels.rbf_mixture(2.0))
      >>> samples, data = jnp.array([[-1.0], [1.0]]), jnp.array([[1.0], [3.0]])
      >>> direction, info = objective.direction(lambda x: x, jax.random.key(0), samples, data)
      >>> bool(jnp.all(direction < 0))  # to be descended: the samples move up, to the data
      True

    References:
      Li 2017 (approximate KL gradients), section 4, where it is proposed.
    """
    return adversarial_kernel(
        functools.partial(objectives.kl, ridge=ridge),
        mmd.mmd_u_statistic,
        make_kernel=make_kernel,
        penalty_weight=penalty_weight,
        penalty=penalty,
    )


def _features(critic_fn: CriticFn, points: Array) -> Array:
    return _checks.features(critic_fn(points), points.shape[0])


def _critic_loss(
    criterion: CriterionFn,
    make_kernel: KernelRule,
    penalty_weight: float,
    penalty: PenaltyFn,
    critic_fn: CriticFn,
    key: Key,
    samples: Array,
    data: Array,
    *,
    axis_name: str | None = None,
) -> tuple[Array, Info]:
    x, y = (_numeric.wide(_features(critic_fn, points)) for points in (samples, data))
    kernel = _batch.kernel_of(make_kernel, x, y, axis_name)
    value = _checks.call("criterion", _CRITERION, criterion, x, y, kernel, axis_name=axis_name)
    value = of_union(_checks.scalar("criterion", value), axis_name=axis_name)

    def witness(points: Array) -> Array:
        embedded = _numeric.wide(_features(critic_fn, points))

        def mean(others: Array) -> Array:
            size = others.shape[0] * _devices.num_devices(axis_name)
            weights = jnp.full((others.shape[0], 1), 1 / size, others.dtype)
            return pairwise.kernel_sum(kernel, embedded, others, weights, axis_name=axis_name)[:, 0]

        return mean(x) - mean(y)

    points = adversarial.interpolates(key, data, samples, axis_name=axis_name)
    slope = _checks.scalar("penalty", _checks.call("penalty", _PENALTY, penalty, witness, points))
    return penalty_weight * slope - value, {"critic_loss": -value, "penalty": slope}
