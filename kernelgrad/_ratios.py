"""Objectives whose discriminator is a density ratio, fitted to the batch in place of a network.

:mod:`kernelgrad.objectives` offers them.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _devices, _numeric, ratio, selection
from kernelgrad._batch import flat, kernel_of
from kernelgrad.types import Array, Info, Kernel, KernelRule, Key, Objective

Fit = Callable[..., ratio.RatioModel]
Toll = Callable[[ratio.RatioModel, Array], Array]


def ratio_ulsif(
    make_kernel: KernelRule,
    *,
    ridge: float | Sequence[float] = 0.1,
    lengthscale_factors: Sequence[float] = (1.0,),
) -> Objective:
    """Returns the objective that descends log q / p, with the ratio fitted by least squares.

    The weights are kept from being negative (:func:`ratio.lsif`): while the clouds are apart, the
    logarithm of an unconstrained fit has a gradient that is mostly noise.

    Of several ridges or factors every batch takes the pair whose held-out loss is least, by
    :func:`selection.select`; here that loss is :func:`selection.rulsif_loo` at ``ratio.CHOSEN_AT``,
    which stands for the fit of p / q with the constraint. The key has no part in it.

    Args:
      make_kernel: the kernel of a batch, or what chooses it, centred on the batch's data; k > 0.
      ridge: lambda of :func:`ratio.lsif`, > 0; or a sequence to choose from.
      lengthscale_factors: of the kernel's lengthscales, > 0; several to choose from.

    Returns:
      Objective with info ``log_ratio`` (mean over the samples of log q / p, an estimate of
      KL[q || p] in nats) and, where there is a choice, ``lengthscale_factor`` and ``ridge``.

    Raises:
      ValueError: a ridge or factor <= 0, or none.

    Cost: with a choice, that of a held-out loss for every pair besides, on each device for the
      union of all samples.

    Example:
      >>> from kernelgrad import kernels, objectives
      >>> objective = objectives.ratio_ulsif(kernels.rbf_mixture(1.0))
      >>> direction, _ = objective(jax.random.key(0), jnp.array([[0.0]]), jnp.array([[1.0]]))
      >>> print(direction)  # log p / q = -(x - 1)^2 / 2 + const, the kernel at the one datum
      [[-1.]]

    References:
      Huszar 2016 (an alternative update rule for GANs), alternative M-step #2; Kanamori, Hido &
      Sugiyama 2009, section 3.1.
    """
    loss = functools.partial(selection.rulsif_loo, alpha=ratio.CHOSEN_AT)
    return _objective(make_kernel, _choosing(ratio.lsif, loss, lengthscale_factors, ridge))


def ratio_rulsif(
    make_kernel: KernelRule,
    *,
    alpha: float = 0.5,
    ridge: float | Sequence[float] = 0.1,
    lengthscale_factors: Sequence[float] = (1.0,),
) -> Objective:
    r"""Returns the objective that descends log q / m of the mixture m, by a relative ratio.

    .. math:: \phi = \nabla \log \frac qm = \nabla \log (1 - \alpha r_\alpha), \quad
        m = \alpha p + (1 - \alpha) q, \quad r_\alpha = \frac pm

    The ratio that is fitted is that of the data over the mixture, :func:`ratio.lsif` on the data's
    side; as :math:`\alpha p = \alpha r_\alpha m`, what is left of m is
    :math:`(1 - \alpha) q = (1 - \alpha r_\alpha) m`. Of q over m, fitted by kernels at the samples,
    the logarithm falls without end where neither has mass, and would be followed there.

    It is the direction of the skewed Jensen-Shannon divergence

    .. math:: \mathrm{KL}[q \| m] + \frac\alpha{1 - \alpha} \mathrm{KL}[p \| m]
        = E_p\, h(q / p), \quad h'(u) = \log \frac u{\alpha + (1 - \alpha) u} + \text{const}

    as any f-divergence's is :math:`\nabla h'(q / p)`: at alpha = 1/2 of 2 JSD, by the update
    log Q / (Q + P) of the saturating GAN, whose discriminator is :math:`r_{1/2} / 2`; as alpha
    tends to 1, of KL[q || p]. Like that GAN's it vanishes where the clouds are apart. With n data,
    the logarithm of 1 - alpha r below 1/sqrt(n), the order of the sampling error, is continued by
    its tangent, for the fit may exceed 1 / alpha.

    Args:
      make_kernel: as in :func:`ratio_ulsif`.
      alpha: share of the data in the mixture, in (0, 1).
      ridge: as in :func:`ratio_ulsif`.
      lengthscale_factors: as in :func:`ratio_ulsif`.

    Returns:
      Objective, infos of :func:`ratio_ulsif`; ``log_ratio`` is the mean of log q / m, an estimate
      of KL[q || m] in nats.

    Raises:
      ValueError: alpha out of its range, a ridge or factor <= 0, or none.

    Example:
      >>> from kernelgrad import kernels, objectives
      >>> objective = objectives.ratio_rulsif(kernels.rbf_mixture(1.0), alpha=0.5, ridge=0.1)
      >>> direction, _ = objective(jax.random.key(0), jnp.array([[0.0]]), jnp.array([[1.0]]))
      >>> bool(-1 < direction[0, 0] < 0)  # -r / (2 - r), bounded where ratio_ulsif's -1 is not
      True

    References:
      Yamada et al. 2013, section 2, for the ratio; Huszar 2016 (an alternative update rule for
      GANs) for the updates.
    """
    _checks.in_range("alpha", alpha, 0.0, 1.0)
    fit = functools.partial(ratio.lsif, alpha=alpha)
    loss = functools.partial(selection.rulsif_loo, alpha=alpha)

    def toll(model: ratio.RatioModel, points: Array) -> Array:
        left = 1 - alpha * ratio.density_ratio(model, points)
        floor = 1 / math.sqrt(model.centers.shape[0])
        above = left > floor
        tangent = math.log(floor) + left / floor - 1
        return jnp.where(above, jnp.log(jnp.where(above, left, 1)), tangent) - jnp.log1p(-alpha)

    return _objective(make_kernel, _choosing(fit, loss, lengthscale_factors, ridge), toll)


def ratio_kliep(
    make_kernel: KernelRule, *, lengthscale_factors: Sequence[float] = (1.0,)
) -> Objective:
    """Returns the objective that descends log q / p, with the ratio fitted by KLIEP.

    Args:
      make_kernel: the kernel of a batch, or what chooses it, centred on the batch's data; k > 0.
      lengthscale_factors: as in :func:`ratio_ulsif`, by :func:`selection.kliep_cv`.

    Returns:
      Objective, infos of :func:`ratio_ulsif` but for the ridge.

    Raises:
      ValueError: a factor <= 0, or none.

    Example:
      >>> from kernelgrad import kernels, objectives
      >>> objective = objectives.ratio_kliep(kernels.rbf_mixture(1.0))
      >>> direction, _ = objective(jax.random.key(0), jnp.array([[0.0]]), jnp.array([[1.0]]))
      >>> print(direction)  # log p / q = -(x - 1)^2 / 2 + const, the kernel at the one datum
      [[-1.]]

    References:
      Huszar 2016 (an alternative update rule for GANs), alternative M-step #2; Sugiyama et al.
      2008, section 2.2.
    """
    fit, loss = ratio.kliep, selection.kliep_cv
    return _objective(make_kernel, _choosing(fit, loss, lengthscale_factors))


def ratio_logistic(
    make_kernel: KernelRule,
    *,
    ridge: float | Sequence[float] = 0.1,
    lengthscale_factors: Sequence[float] = (1.0,),
) -> Objective:
    """Returns the objective that descends log q / p, with the ratio fitted by logistic regression.

    It is :func:`two_player.gan_kl` with a kernel's classifier, solved for in every batch.

    Args:
      make_kernel: the kernel of a batch, or what chooses it, centred on its samples and data.
      ridge: lambda of :func:`ratio.logistic`, > 0; or a sequence to choose from.
      lengthscale_factors: as in :func:`ratio_ulsif`, by :func:`selection.logistic_cv`.

    Returns:
      Objective, infos of :func:`ratio_ulsif`.

    Raises:
      ValueError: a ridge or factor <= 0, or none.

    Example:
      >>> from kernelgrad import kernels, objectives
      >>> objective = objectives.ratio_logistic(kernels.rbf_mixture(1.0))
      >>> direction, info = objective(jax.random.key(0), jnp.array([[0.0]]), jnp.array([[1.0]]))
      >>> bool(direction[0, 0] < 0 < info["log_ratio"])  # to the datum; q is above p at the sample
      True

    References:
      Huszar 2016 (an alternative update rule for GANs); Qin 1998.
    """
    fit, loss = ratio.logistic, selection.logistic_cv
    return _objective(make_kernel, _choosing(fit, loss, lengthscale_factors, ridge))


def density_ratio(make_kernel: KernelRule, fit: Fit) -> Objective:
    """Returns the objective that descends log q / p with any estimator of :mod:`kernelgrad.ratio`.

    Args:
      make_kernel: the kernel of a batch, or what chooses it.
      fit: (p, q, kernel, axis_name=) -> model of p / q, such as ``ratio.ulsif`` with its ridge
        bound by ``functools.partial``.

    Returns:
      Objective with info ``log_ratio``, as in :func:`ratio_ulsif`.

    Example:
      >>> from kernelgrad import kernels, objectives, ratio
      >>> objective = objectives.density_ratio(kernels.rbf_mixture(1.0), ratio.kliep)
      >>> direction, _ = objective(jax.random.key(0), jnp.array([[0.0]]), jnp.array([[1.0]]))
      >>> print(direction)  # as objectives.ratio_kliep
      [[-1.]]

    References:
      Huszar 2016 (an alternative update rule for GANs), alternative M-step #2.
    """

    def fitted(p: Array, q: Array, kernel: Kernel, axis_name: str | None) -> _Fitted:
        form = "(p, q, kernel, *, axis_name) -> model"
        return _Fitted(_checks.call("fit", form, fit, p, q, kernel, axis_name=axis_name))

    return _objective(make_kernel, fitted)


# -------------------------------------------------------------------------------- what they share


class _Fitted(NamedTuple):
    """A model of the ratio between points over a factor, and what was chosen for it."""

    model: ratio.RatioModel
    factor: float | Array = 1.0
    chosen: Mapping[str, Array] = {}


def _log_q_over_p(model: ratio.RatioModel, points: Array) -> Array:
    return -ratio.log_density_ratio(model, points)


def _objective(
    make_kernel: KernelRule, fit: Callable[..., _Fitted], toll: Toll = _log_q_over_p
) -> Objective:
    """Returns the objective that descends what a model fitted to the batch charges a point."""

    def objective(
        key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        del key
        x, y = flat(samples, data)
        kernel = kernel_of(make_kernel, x, y, axis_name)
        model, factor, chosen = fit(y, x, kernel, axis_name)

        def charged(points: Array) -> Array:
            return toll(model, _numeric.wide(points) / factor)

        values, pull = jax.vjp(charged, _devices.own_point(charged, x))
        (direction,) = pull(jnp.ones_like(values))
        info = {"log_ratio": _devices.mean(jnp.mean(values), axis_name)}
        return direction.reshape(samples.shape), {**info, **chosen}

    return objective


def _choosing(
    fit: Fit,
    loss: Callable[..., Array],
    lengthscale_factors: Sequence[float],
    ridge: float | Sequence[float] | None = None,
) -> Callable[..., _Fitted]:
    """Returns the fit under the hyperparameters that the held-out loss prefers."""
    grids = {"lengthscale_factors": lengthscale_factors}
    if ridge is not None:
        grids["ridge"] = ridge if isinstance(ridge, Sequence) else (ridge,)
    for name, grid in grids.items():
        _checks.positive(**{name: grid})
        _checks.shape(name, jnp.asarray(grid), ("values",))

    def fitted(p: Array, q: Array, kernel: Kernel, axis_name: str | None) -> _Fitted:
        p, q = _numeric.wide(p), _numeric.wide(q)
        point: list[Any] = [grid[0] for grid in grids.values()]
        chosen: dict[str, Array] = {}
        if any(len(grid) > 1 for grid in grids.values()):
            everyone = lax.stop_gradient([_devices.gather(x, axis_name) for x in (p, q)])

            def score(factor: Array, *ridge: Array) -> Array:
                return loss(*(x / factor for x in everyone), kernel, **_named(ridge))

            axes = [jnp.asarray(grid, p.dtype) for grid in grids.values()]
            values = selection.select(score, *axes).values
            point = _devices.agreed(list(values), axis_name)
            chosen = {"lengthscale_factor": point[0], **_named(point[1:])}
        factor, *rest = point
        model = fit(p / factor, q / factor, kernel, **_named(rest), axis_name=axis_name)
        return _Fitted(model, factor, chosen)

    return fitted


def _named(ridge: Sequence[Any]) -> dict[str, Any]:
    """Returns the ridge, where there is one, as an option."""
    return dict(zip(["ridge"], ridge, strict=False))
