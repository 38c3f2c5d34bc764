"""Objectives beyond the papers: fields of today, each a formula of another room as an objective.

:mod:`kernelgrad.objectives` offers them.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from kernelgrad import (
    _checks,
    _devices,
    _numeric,
    _traits,
    energy,
    kale_rkhs,
    mmd,
    noise,
    ratio,
    score,
    score_peers,
)
from kernelgrad import drift as _drift
from kernelgrad._batch import flat, kernel_of
from kernelgrad.types import Array, Info, KernelRule, Key, Objective


def drift(temperatures: Sequence[float] = _drift.TEMPERATURES) -> Objective:
    r"""Returns the objective whose descent follows the drifting field.

    The direction is minus :func:`kernelgrad.drift.drift`, so that a step of size 1 is that of the
    loss :math:`|x - \mathrm{sg}(x + V)|^2 / 2` in its paper.

    Args:
      temperatures: R > 0, in units of the batch's mean distance.

    Returns:
      Objective without info.

    Raises:
      ValueError: a temperature <= 0, or none.

    Example:
      >>> from kernelgrad import objectives
      >>> samples, data = jnp.array([[0.0], [1.0]]), jnp.array([[5.0], [6.0]])
      >>> direction, _ = objectives.drift((0.5,))(jax.random.key(0), samples, data)
      >>> bool(jnp.all(direction < 0)), round(float(jnp.mean(direction**2)), 3)
      (True, 1.0)

    References:
      Deng et al. 2026 (generative modeling via drifting), algorithm 2.
    """
    _checks.positive(temperatures=temperatures)
    _checks.shape("temperatures", jnp.asarray(temperatures), ("t",))

    def objective(
        key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        del key
        x, y = flat(samples, data)
        field = _drift.drift(x, y, temperatures, axis_name=axis_name)
        return -field.reshape(samples.shape), {}

    return objective


def conservative_drift(make_kernel: KernelRule) -> Objective:
    r"""Returns the objective that descends log q / p, with both densities sums of kernels.

    .. math:: \phi_i = \nabla_x \log \frac{\sum_j k(x, x_j)}{\sum_j k(x, y_j)} \Big|_{x = x_i}

    It is minus the drifting field in the form that has a potential: where a drift weighs y - x by
    a kernel w and divides by the sum of w, this divides by the sum of the kernel k whose gradient
    is w (y - x). For a Gaussian w they are one kernel but for the factor l^2, and the drift is l^2
    times minus the direction; the k of exp(-r / tau) is ``matern32(sqrt(3) * tau)``.

    Args:
      make_kernel: the kernel k of a batch, or what chooses it; k > 0.

    Returns:
      Objective with info ``mmd`` (the V-statistic of MMD^2 under k, a monitor).

    Example:
      >>> from kernelgrad import kernels, objectives
      >>> objective = objectives.conservative_drift(kernels.rbf_mixture(1.0))
      >>> direction, _ = objective(jax.random.key(0), jnp.array([[0.0]]), jnp.array([[3.0]]))
      >>> print(direction)  # (x - y) / l^2
      [[-3.]]

    References:
      Franz, Hoffmann et al. 2026 (drifting fields are not conservative); Balasubramanian 2026.
    """

    def objective(
        key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        del key
        x, y = flat(samples, data)
        kernel = kernel_of(make_kernel, x, y, axis_name)
        score_q = score_peers.kde_score(x, kernel, axis_name=axis_name)
        score_p = score_peers.kde_score_at(x, y, kernel, axis_name=axis_name)
        value = mmd.mmd_v_statistic(x, y, kernel, axis_name=axis_name)
        return (score_q - score_p).reshape(samples.shape), {"mmd": value}

    return objective


def sliced_energy(num_projections: int = 64) -> Objective:
    r"""Returns the objective that descends the energy distance along random lines, by sorting.

    The direction is n times the gradient of :func:`energy.sliced_energy_and_gradient` along lines
    that are drawn anew from the key at every call; its mean over them is a multiple of that of
    :func:`energy_distance`, at O(n log n) a line.

    Args:
      num_projections: lines a call, >= 1.

    Returns:
      Objective with info ``sliced_energy`` (its value).

    Raises:
      ValueError: num_projections below 1.

    Example:
      >>> from kernelgrad import objectives
      >>> objective = objectives.sliced_energy(num_projections=2)  # in one dimension all are one
      >>> direction, info = objective(jax.random.key(0), jnp.array([[0.0]]), jnp.array([[3.0]]))
      >>> round(float(direction[0, 0]), 3), round(float(info["sliced_energy"]), 3)
      (-2.0, 6.0)

    References:
      Hertrich et al. 2024 (generative sliced MMD flows with Riesz kernels), section 3.
    """
    _checks.at_least("num_projections", num_projections, 1)

    def objective(
        key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        x, y = flat(samples, data)
        lines = energy.random_directions(key, num_projections, x.shape[1])
        value, gradient = energy.sliced_energy_and_gradient(
            _numeric.wide(x), y, lines, axis_name=axis_name
        )
        size = x.shape[0] * _devices.num_devices(axis_name)
        direction = _numeric.like(size * gradient, x)
        return direction.reshape(samples.shape), {"sliced_energy": value}

    return objective


def noisy_mmd(make_kernel: KernelRule, *, noise_scale: float) -> Objective:
    r"""Returns the objective that descends MMD^2 with noise injected into the gradient.

    .. math:: \phi_i = 2 \nabla f(x_i + \beta u_i), \quad u_i \sim N(0, I)

    with the witness f of the samples themselves, without noise: only where its gradient is taken is
    noised, by which Arbel et al. 2019 let the flow out of local minima. With beta = 0 it is
    :func:`mmd_v`. It is not instance noise, which blurs both clouds.

    Args:
      make_kernel: the kernel of a batch, or what chooses it, without noise.
      noise_scale: beta >= 0, in units of the samples.

    Returns:
      Objective with info ``mmd`` (MMD^2 of the samples without noise).

    Raises:
      ValueError: noise_scale < 0.

    Example:
      >>> from kernelgrad import kernels, objectives
      >>> objective = objectives.noisy_mmd(kernels.rbf_mixture(1.0), noise_scale=0.0)
      >>> direction, _ = objective(jax.random.key(0), jnp.array([[0.0]]), jnp.array([[1.0]]))
      >>> print(direction)  # without noise that of mmd_v, -2 exp(-1/2)
      [[-1.213]]

    References:
      Arbel et al. 2019 (MMD gradient flow), section 4, eq. (18).
    """
    _checks.not_negative(noise_scale=noise_scale)

    def objective(
        key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        x, y = flat(samples, data)
        kernel = kernel_of(make_kernel, x, y, axis_name)
        noised = noise.instance_noise(
            key, _numeric.wide(x), variance=noise_scale**2, axis_name=axis_name
        )
        gradient = mmd.witness_gradient(noised, x, y, kernel, axis_name=axis_name)
        value = mmd.mmd_v_statistic(x, y, kernel, axis_name=axis_name)
        return _numeric.like(2 * gradient, x).reshape(samples.shape), {"mmd": value}

    return objective


_RATIO_RIDGE = 1 / 160  # in units of k(0)^2: that of ratio_ulsif for the sum of four kernels

# log r of r = q / p -> h''(r) r, for the divergence E_p h(r)
F_DIVERGENCES: dict[str, Callable[[Array], Array]] = {
    "reverse_kl": jnp.ones_like,  # h = r log r
    "forward_kl": lambda log_ratio: jnp.exp(-log_ratio),  # h = -log r
    "jsd": lambda log_ratio: jax.nn.sigmoid(-log_ratio) / 2,  # h = [r log r - (1 + r) log m] / 2
    "chi2": lambda log_ratio: 2 * jnp.exp(log_ratio),  # h = (r - 1)^2
}


def f_divergence(
    name: str, make_kernel: KernelRule, *, ridge: float | None = None, most: float = 100.0
) -> Objective:
    r"""Returns the objective that descends an f-divergence, from scores and a density ratio.

    .. math:: D_h = E_p\, h(r), \quad r = \frac qp, \quad
        \phi_i = \nabla h'(r)(x_i) = h''(r) r\, (\hat s_q - \hat s_p)(x_i)

    ============== ============================ ==========================
    name           divergence                   h''(r) r
    ============== ============================ ==========================
    reverse_kl     KL[q || p]                   1
    forward_kl     KL[p || q]                   1 / r
    jsd            Jensen-Shannon, in nats      1 / (2 (1 + r))
    chi2           E_p (r - 1)^2                2 r
    ============== ============================ ==========================

    The scores are those of :func:`kl`, of which reverse_kl is the direction; 1 / r is fitted as
    p / q by ``ratio.lsif``, whose values are positive, on the data's side, with ridge k(0)^2 / 160.
    Every weight is positive and finite: r counts as at least 1 / most and at most most, so that
    samples where the ratio is beyond, or is unknown, keep their way but not their size.

    Args:
      name: of the divergence; a key of ``F_DIVERGENCES``.
      make_kernel: the kernel of a batch, or what chooses it, of the scores and, centred on the
        data, of the ratio; k > 0.
      ridge: eta of the scores; None: as in :func:`kl`.
      most: bound of r and 1 / r, > 1.

    Returns:
      Objective with info ``log_ratio`` (mean over the samples of log r, an estimate of KL[q || p]).

    Raises:
      ValueError: an unknown name, ridge <= 0, or most <= 1.

    Cost: that of the scores and of the ratio, which holds matrices of all pairs.

    Example:
      >>> from kernelgrad import kernels, objectives
      >>> samples, data = jnp.array([[-1.0], [1.0]]), jnp.array([[1.0], [3.0]])
      >>> objective = objectives.f_divergence("jsd", kernels.rbf_mixture(2.0), ridge=1.0)
      >>> direction, info = objective(jax.random.key(0), samples, data)
      >>> bool(jnp.all(direction < 0)), sorted(info)
      (True, ['log_ratio'])

    References:
      Nowozin et al. 2016, table 1 for h; Gao et al. 2019 for the flow.
    """
    if name not in F_DIVERGENCES:
        raise ValueError(f"name: got {name!r}; expected one of {', '.join(F_DIVERGENCES)}")
    _checks.in_range("most", most, 1.0, math.inf)
    if ridge is not None:
        _checks.positive(ridge=ridge)

    def objective(
        key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        del key
        x, y = flat(samples, data)
        kernel = kernel_of(make_kernel, x, y, axis_name)
        _traits.check_positive(kernel)
        size = x.shape[0] * _devices.num_devices(axis_name)
        eta = score.default_ridge(size, kernel) if ridge is None else ridge
        score_q = score.stein_score(x, kernel, ridge=eta, axis_name=axis_name)
        score_p = score.stein_score_at(x, y, kernel, ridge=eta, axis_name=axis_name)
        wide = _numeric.wide(x)
        peak = kernel.profile(jnp.zeros((), wide.dtype))
        of_ratio = _RATIO_RIDGE * jnp.square(peak)
        model = ratio.lsif(y, x, kernel, ridge=of_ratio, axis_name=axis_name)
        log_ratio = -ratio.log_density_ratio(model, wide)
        weights = F_DIVERGENCES[name](jnp.clip(log_ratio, -math.log(most), math.log(most)))
        direction = _numeric.like(weights[:, None] * _numeric.wide(score_q - score_p), x)
        info = {"log_ratio": _devices.mean(jnp.mean(log_ratio), axis_name)}
        return direction.reshape(samples.shape), info

    return objective


def kale_flow(make_kernel: KernelRule, *, regularization: float = 0.1) -> Objective:
    r"""Returns the objective that descends KALE[q || p] in an RKHS.

    .. math:: \phi_i = (1 + \lambda) \nabla h(x_i), \quad \lambda = \rho\, k(0)

    with the function h of :func:`kale_rkhs.fit` between samples and data, held still: by the
    envelope theorem n times the gradient of KALE in x_i. A large lambda gives the direction of
    :func:`mmd_v`, but for a factor 2, a small one that of KL.

    Args:
      make_kernel: the kernel of a batch, or what chooses it, positive definite.
      regularization: rho > 0, of which h does not change with the unit of k.

    Returns:
      Objective with info ``kale`` (its value, in nats).

    Raises:
      ValueError: regularization <= 0.

    Example:
      >>> from kernelgrad import kernels, objectives
      >>> objective = objectives.kale_flow(kernels.rbf_mixture(1.0), regularization=1e4)
      >>> direction, _ = objective(jax.random.key(0), jnp.array([[0.0]]), jnp.array([[1.0]]))
      >>> print(direction)  # half of that of mmd_v, as the regularisation grows
      [[-0.607]]

    References:
      Glaser, Arbel & Gretton 2021 (KALE flow), section 3.
    """
    _checks.positive(regularization=regularization)

    def objective(
        key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        del key
        x, y = flat(samples, data)
        kernel = kernel_of(make_kernel, x, y, axis_name)
        _traits.check_positive(kernel)
        size = regularization * kernel.profile(jnp.zeros((), _numeric.wide(x).dtype))
        found = kale_rkhs.fit(x, y, kernel, regularization=size, axis_name=axis_name)
        direction = ratio.log_ratio_gradient(found.model, x)
        direction = _numeric.like((1 + size) * _numeric.wide(direction), x)
        return direction.reshape(samples.shape), {"kale": found.value}

    return objective
