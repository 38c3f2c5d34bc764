"""The directions of the papers, packaged for the train step.

An objective maps this device's samples and data to one vector per sample, to be descended, and a
dict of scalars worth logging. Pair sums run over the union of all devices' samples. The objectives
with a critic are in :mod:`kernelgrad.two_player`; both kinds are seen :func:`through` features,
:func:`normalized` and :func:`weighted`.
"""

import jax

from kernelgrad import (
    _batch,
    _checks,
    _devices,
    _numeric,
    adversarial,
    kernels,
    mmd,
    noise,
    score,
)
from kernelgrad._algebra import from_loss as from_loss
from kernelgrad._algebra import normalized as normalized
from kernelgrad._algebra import through as through
from kernelgrad._algebra import weighted as weighted
from kernelgrad._fields import F_DIVERGENCES as F_DIVERGENCES
from kernelgrad._fields import conservative_drift as conservative_drift
from kernelgrad._fields import drift as drift
from kernelgrad._fields import f_divergence as f_divergence
from kernelgrad._fields import kale_flow as kale_flow
from kernelgrad._fields import noisy_mmd as noisy_mmd
from kernelgrad._fields import sliced_energy as sliced_energy
from kernelgrad._ratios import density_ratio as density_ratio
from kernelgrad._ratios import ratio_kliep as ratio_kliep
from kernelgrad._ratios import ratio_logistic as ratio_logistic
from kernelgrad._ratios import ratio_rulsif as ratio_rulsif
from kernelgrad._ratios import ratio_ulsif as ratio_ulsif
from kernelgrad._sinkhorn import sinkhorn as sinkhorn
from kernelgrad.types import Array, Info, Kernel, Key
from kernelgrad.types import KernelRule as KernelRule
from kernelgrad.types import MakeKernel as MakeKernel
from kernelgrad.types import Objective as Objective


def kl_direction(
    samples: Array,
    data: Array,
    kernel: Kernel,
    *,
    ridge: float | Array,
    axis_name: str | None = None,
) -> Array:
    r"""Returns the Stein estimate of the KL gradient at each sample.

    .. math:: \phi_i = \hat s_q(x_i) - \hat s_p(x_i) \approx \nabla_x \log \frac{q}{p}(x_i)

    Descend it: a small step against it lowers KL[q || p]. The score of the samples is the
    in-sample estimate, that of the data is evaluated out of sample at each x_i on its own.

    Args:
      samples: x_i ~ q; shape (n, d), floating.
      data: y_j ~ p; shape (m, d), floating.
      kernel: k; its lengthscales are in units of samples.
      ridge: eta > 0 of both estimators, in units of k(0).
      axis_name: if set, both samples are the union over all devices; the rows of this device's
        samples come back.

    Returns:
      Direction, shape (n, d), dtype of samples, in 1/units of samples.

    Raises:
      ValueError: wrong rank, dtype, mismatched dimensions, or ridge <= 0.

    Cost: O((n + m)^3 / 3 + (n + m)^2 d) time, O((n + m)^2) memory.

    Example:
      >>> from kernelgrad import kernels, objectives
      >>> samples, data = jnp.array([[-1.0], [1.0]]), jnp.array([[1.0], [3.0]])
      >>> direction = objectives.kl_direction(samples, data, kernels.rbf_mixture(2.0), ridge=1.0)
      >>> bool(jnp.all(direction < 0))  # to be descended: the samples move up, to the data
      True

    References:
      Li 2017 (approximate KL gradients), eqs. (1), (2), (3).
    """
    samples, data = _checks.points(samples=samples, data=data)
    score_q = score.stein_score(samples, kernel, ridge=ridge, axis_name=axis_name)
    score_p = score.stein_score_at(samples, data, kernel, ridge=ridge, axis_name=axis_name)
    return score_q - score_p


def kl(make_kernel: KernelRule, *, ridge: float | None = None) -> Objective:
    """Returns the objective that descends the Stein estimate of KL[q || p].

    Args:
      make_kernel: the kernel of a batch, or what chooses it.
      ridge: eta of :func:`kl_direction`; None: ``score.default_ridge`` of the whole batch.

    Returns:
      Objective with info ``mmd`` (the V-statistic of MMD^2, a monitor).

    Raises:
      ValueError: ridge <= 0.

    Example:
      >>> from kernelgrad import kernels, objectives
      >>> samples, data = jnp.array([[-1.0], [1.0]]), jnp.array([[1.0], [3.0]])
      >>> objective = objectives.kl(kernels.rbf_mixture(2.0), ridge=1.0)
      >>> direction, info = objective(jax.random.key(0), samples, data)
      >>> bool(jnp.all(direction < 0)), sorted(info)
      (True, ['mmd'])
    """
    if ridge is not None:
        _checks.positive(ridge=ridge)

    def objective(
        key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        del key
        x, y = _batch.flat(samples, data)
        kernel = _batch.kernel_of(make_kernel, x, y, axis_name)
        size = x.shape[0] * _devices.num_devices(axis_name)
        eta = score.default_ridge(size, kernel) if ridge is None else ridge
        direction = kl_direction(x, y, kernel, ridge=eta, axis_name=axis_name)
        value = mmd.mmd_v_statistic(x, y, kernel, axis_name=axis_name)
        return direction.reshape(samples.shape), {"mmd": value}

    return objective


def mmd_v(make_kernel: KernelRule) -> Objective:
    """Returns the objective that descends the V-statistic of MMD^2, with its closed-form gradient.

    The direction is n times ``mmd.mmd_gradient``: the pull-back takes a mean over samples where
    the gradient of the statistic asks for a sum.

    Args:
      make_kernel: the kernel of a batch, or what chooses it.

    Returns:
      Objective with info ``mmd`` (its value).

    Example:
      >>> from kernelgrad import kernels, objectives
      >>> objective = objectives.mmd_v(kernels.rbf_mixture(1.0))
      >>> samples, data = jnp.array([[0.0]]), jnp.array([[1.0]])
      >>> direction, info = objective(jax.random.key(0), samples, data)
      >>> round(float(direction[0, 0]), 3), round(float(info["mmd"]), 3)
      (-1.213, 0.787)
    """

    def objective(
        key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        del key
        x, y = _batch.flat(samples, data)
        kernel = _batch.kernel_of(make_kernel, x, y, axis_name)
        size = x.shape[0] * _devices.num_devices(axis_name)
        value, gradient = mmd.mmd_value_and_gradient(
            _numeric.wide(x), y, kernel, axis_name=axis_name
        )  # which, of many points, is small
        direction = _numeric.like(size * gradient, x)
        return direction.reshape(samples.shape), {"mmd": value}

    return objective


def energy_distance(exponent: float = 1.0) -> Objective:
    r"""Returns the objective that descends the energy distance: :func:`mmd_v` of a Riesz kernel.

    .. math:: 2 E |x - y|^r - E |x - x'|^r - E |y - y'|^r

    It has no lengthscale to choose.

    Args:
      exponent: r in (0, 2).

    Returns:
      Objective with info ``mmd`` (its value).

    Raises:
      ValueError: an exponent out of its range.

    Example:
      >>> from kernelgrad import objectives
      >>> samples, data = jnp.array([[0.0]]), jnp.array([[3.0]])
      >>> direction, info = objectives.energy_distance()(jax.random.key(0), samples, data)
      >>> round(float(direction[0, 0]), 3), round(float(info["mmd"]), 3)  # of 2 |x - y|
      (-2.0, 6.0)

    References:
      Szekely & Rizzo 2013; Hertrich et al. 2024 (generative sliced MMD flows with Riesz kernels).
    """
    return mmd_v(kernels.riesz(exponent))


def noisy_jsd(*, variance: float) -> Objective:
    """Returns the objective that descends 2 JSD between the noised clouds, without any network.

    The discriminator is the optimal one between both clouds under Gaussian noise, in closed form;
    its direction is taken at the samples plus fresh noise.

    Args:
      variance: of the noise on every coordinate, > 0, in squared units of the samples.

    Returns:
      Objective with info ``jsd`` (its estimate at the noised samples and data, in nats).

    Raises:
      ValueError: variance <= 0.

    Example:
      >>> from kernelgrad import objectives
      >>> samples, data = jnp.array([[0.0]]), jnp.array([[3.0]])
      >>> direction, _ = objectives.noisy_jsd(variance=1.0)(jax.random.key(0), samples, data)
      >>> bool(-3 < direction[0, 0] < 0)  # D times -3, with D in (0, 1)
      True

    References:
      Arjovsky & Bottou 2017, Theorem 3.2.
    """
    _checks.positive(variance=variance)

    def objective(
        key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        x, y = _batch.flat(samples, data)
        noised_x, noised_y = (
            noise.instance_noise(one, points, variance=variance, axis_name=axis_name)
            for one, points in zip(jax.random.split(key), (x, y), strict=True)
        )
        logits = {}
        for name, points in (("fake", noised_x), ("real", noised_y)):
            logits[name] = noise.noisy_logits(points, y, x, variance=variance, axis_name=axis_name)
        jsd = adversarial.jsd_estimate(logits["real"], logits["fake"])
        direction = noise.noisy_jsd_direction(
            noised_x, y, x, variance=variance, axis_name=axis_name
        )
        info = {"jsd": _devices.mean(jsd, axis_name)}
        return direction.reshape(samples.shape), info

    return objective
