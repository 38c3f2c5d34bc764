r"""Density ratios :math:`r = p / q` from samples of both, without the densities.

=========== =============================================== ==============================
estimator   fits                                            model
=========== =============================================== ==============================
ulsif       p / q, least squares, closed form               :class:`LinearRatio`
rulsif      p / (alpha p + (1 - alpha) q), closed form      :class:`LinearRatio`
lsif        either, with weights that are not negative      :class:`MixtureRatio`
kliep       p / q, maximum likelihood, mean over q is 1     :class:`MixtureRatio`
logistic    p / q, log-odds of a classifier                 :class:`LogLinearRatio`
=========== =============================================== ==============================

A fitted model is a discriminator: :func:`log_ratio_gradient` points from q to p, and its negative
is the direction to descend for KL[q || p]. Everything is linear in kernels at some centers, whose
number sets the cost. Where no kernel or ridge is given it is chosen by a held-out loss of
:mod:`kernelgrad.selection`, whose functions choose among others, too.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from kernelgrad import _checks, _numeric, _ratio_fits, kernels, selection
from kernelgrad._ratio_models import LinearRatio as LinearRatio
from kernelgrad._ratio_models import LogLinearRatio as LogLinearRatio
from kernelgrad._ratio_models import MixtureRatio as MixtureRatio
from kernelgrad._ratio_models import RatioModel as RatioModel
from kernelgrad._ratio_models import density_ratio as density_ratio
from kernelgrad._ratio_models import kl_divergence as kl_divergence
from kernelgrad._ratio_models import log_density_ratio as log_density_ratio
from kernelgrad._ratio_models import log_ratio_gradient as log_ratio_gradient
from kernelgrad._ratio_models import pearson_divergence as pearson_divergence
from kernelgrad.types import Array, Kernel

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # lengthscales that are tried, over the median distance
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
MOST_CENTERS = 500  # where something is chosen
CHOSEN_AT = 0.5  # least alpha at which a fit by least squares is judged: that ratio is at most 2


# -------------------------------------------------------------------------------- least squares


def ulsif(
    p: Array,
    q: Array,
    kernel: Kernel | None = None,
    *,
    ridge: float | Array | None = None,
    centers: Array | None = None,
    axis_name: str | None = None,
) -> LinearRatio:
    r"""Returns the unconstrained least-squares fit (uLSIF) of p / q: :func:`rulsif` at alpha = 0.

    .. math:: w = (H + \lambda I)^{-1} h, \quad H = \frac1m \sum_j \phi(y_j) \phi(y_j)^\top, \;
        h = \frac1n \sum_i \phi(x_i), \; \phi_c(x) = k(x, z_c)

    Args:
      p: x_i, samples of the numerator; shape (n, d), floating.
      q: y_j, samples of the denominator; shape (m, d).
      kernel: k, as in :func:`rulsif`.
      ridge: lambda > 0, as in :func:`rulsif`.
      centers: z_c, as in :func:`rulsif`; shape (c, d).
      axis_name: as in :func:`rulsif`.

    Returns:
      The model, of p / q.

    Raises:
      ValueError: as :func:`rulsif`.

    Warns:
      RuntimeWarning: as :func:`rulsif`.

    Cost: O((n + m) c (d + c) + c^3) time, O((n + m) c) memory.

    Example:
      >>> from kernelgrad import kernels, ratio
      >>> p, q = jnp.array([[0.0]]), jnp.array([[1.0]])  # H = 1/e, h = 1
      >>> model = ratio.ulsif(p, q, kernels.rbf_mixture(1.0), ridge=1.0)
      >>> print(model.weights)  # 1 / (1/e + 1)
      [0.731]

    References:
      Kanamori, Hido & Sugiyama 2009, section 3.1, with negative values of the ratio set to 0, and
      not negative weights: that spoils the fit where neighbouring weights alternate.
    """
    return _least_squares("ulsif", p, q, kernel, ridge, 0.0, centers, axis_name)


def rulsif(
    p: Array,
    q: Array,
    kernel: Kernel | None = None,
    *,
    ridge: float | Array | None = None,
    alpha: float | Array = 0.1,
    centers: Array | None = None,
    axis_name: str | None = None,
) -> LinearRatio:
    r"""Returns the least-squares fit (RuLSIF) of the relative ratio, which is at most 1/alpha.

    .. math:: r_\alpha = \frac{p}{\alpha p + (1 - \alpha) q}, \quad w = (H + \lambda I)^{-1} h, \;
        H = \frac\alpha n \sum_i \phi(x_i) \phi(x_i)^\top
        + \frac{1 - \alpha}m \sum_j \phi(y_j) \phi(y_j)^\top, \;
        h = \frac1n \sum_i \phi(x_i), \; \phi_c(x) = k(x, z_c)

    w minimises :math:`\frac\alpha2 E_p g^2 + \frac{1 - \alpha}2 E_q g^2 - E_p g + \frac\lambda2
    |w|^2` over :math:`g = w^\top \phi`. The mean of g over p is at most 1/alpha too; single
    values of the estimate may exceed it.

    Args:
      p: x_i, samples of the numerator; shape (n, d), floating.
      q: y_j, samples of the denominator; shape (m, d).
      kernel: k; its lengthscales are in units of p. None: a Gaussian kernel, whose lengthscale
        is that of ``FACTORS`` times the median distance with the least loss by
        :func:`kernelgrad.selection.rulsif_loo`, at alpha or 1/2 if that is larger: the loss at a
        small alpha is carried by the few samples of q where p / q is large, and of 60 samples it
        chose fits with hundreds of times the error.
      ridge: lambda > 0, in units of k^2, 0.01 to 1 as a rule. Keep it above 10 c eps k(0)^2, with
        eps the machine epsilon: below, rounding decides the result. None: one of ``RIDGES``,
        likewise.
      alpha: share of p in the denominator, in [0, 1).
      centers: z_c; shape (c, d). None: all of p; at most ``MOST_CENTERS`` of them where kernel or
        ridge is chosen here.
      axis_name: if set, p, q and centers are the unions over all devices; nothing is chosen then.

    Returns:
      The model, of r_alpha, differentiable in everything; all NaN where the Cholesky factorisation
      fails, which a ridge above the floor rules out for finite samples.

    Raises:
      ValueError: wrong rank, dtype or dimensions, a concrete ridge that is not positive, or alpha
        outside of its range, or nothing to choose by under axis_name.

    Warns:
      RuntimeWarning: a lengthscale or ridge that was chosen is the least or the largest tried;
        outside of jit alone.

    Cost: O((n + m) c (d + c) + c^3) time, O((n + m) c) memory; a choice, that of 25 such fits.

    Example:
      >>> from kernelgrad import kernels, ratio
      >>> p, q = jnp.array([[0.0]]), jnp.array([[1.0]])  # H = (1 + 1/e) / 2, h = 1
      >>> model = ratio.rulsif(p, q, kernels.rbf_mixture(1.0), ridge=1.0, alpha=0.5)
      >>> print(model.weights)  # 1 / (H + 1)
      [0.594]

    References:
      Yamada et al. 2013, section 2.
    """
    return _least_squares("rulsif", p, q, kernel, ridge, alpha, centers, axis_name)


def lsif(
    p: Array,
    q: Array,
    kernel: Kernel | None = None,
    *,
    ridge: float | Array | None = None,
    alpha: float | Array = 0.0,
    centers: Array | None = None,
    num_steps: int = 1000,
    tolerance: float | Array = 1e-4,
    axis_name: str | None = None,
) -> MixtureRatio:
    r"""Returns the least-squares fit of :func:`rulsif` over :math:`w \ge 0`: positive everywhere.

    It costs some steps of accelerated projected gradients instead of one solve. As a
    discriminator it is far better than the fit of :func:`ulsif`, whose logarithm is noise where p
    has next to no samples: there the positive mixture draws a sample to its nearest centers.

    Args:
      p: x_i, samples of the numerator; shape (n, d), floating.
      q: y_j, samples of the denominator; shape (m, d).
      kernel: k > 0; its lengthscales are in units of p. None: chosen as :func:`rulsif` does.
      ridge: lambda > 0, in units of k^2. None: likewise.
      alpha: share of p in the denominator, in [0, 1); 0 stands for p / q.
      centers: z_c; shape (c, d). None: all of p; at most ``MOST_CENTERS`` of them where kernel or
        ridge is chosen here.
      num_steps: greatest number T of steps, at least 1; static.
      tolerance: gap at which to stop before, >= 0.
      axis_name: if set, p, q and centers are the unions over all devices; nothing is chosen then.

    Returns:
      The model, of r_alpha, without a gradient in what it is fitted to.

    Raises:
      ValueError: wrong rank, dtype or dimensions, a kernel without k(0) > 0, a concrete ridge that
        is not positive, alpha outside of its range, num_steps below 1, or a negative tolerance.

    Warns:
      RuntimeWarning: a lengthscale or ridge that was chosen is the least or the largest tried;
        outside of jit alone.

    Cost: O((n + m) c (d + c) + T c^2) time, O((n + m) c) memory.

    Example:
      >>> from kernelgrad import kernels, ratio
      >>> p, q = jnp.array([[0.0]]), jnp.array([[1.0]])
      >>> model = ratio.lsif(p, q, kernels.rbf_mixture(1.0), ridge=1.0)
      >>> print(jnp.exp(model.log_weights))  # that of ulsif, which is positive here
      [0.731]

    References:
      Kanamori, Hido & Sugiyama 2009, section 2.2, with the square of w as penalty for its sum.
    """
    centers = _few(p, kernel, ridge, centers)

    def loss(kernel: Kernel, ridge: float | Array) -> Array:
        judged = _judged_at(alpha)
        return selection.rulsif_loo(p, q, kernel, ridge=ridge, alpha=judged, centers=centers)

    kernel, ridge = _settled("lsif", p, q, kernel, ridge, axis_name, loss)
    return _ratio_fits.lsif(
        p,
        q,
        kernel,
        ridge=ridge,
        alpha=alpha,
        centers=centers,
        num_steps=num_steps,
        tolerance=tolerance,
        axis_name=axis_name,
    )


# --------------------------------------------------------------------------- maximum likelihood


def kliep(
    p: Array,
    q: Array,
    kernel: Kernel | None = None,
    *,
    centers: Array | None = None,
    num_steps: int = 1000,
    tolerance: float | Array = 1e-3,
    axis_name: str | None = None,
) -> MixtureRatio:
    r"""Returns the maximum-likelihood fit (KLIEP) of p / q.

    .. math:: \max_{w \ge 0} \frac1n \sum_i \log r(x_i) \quad \text{with} \quad
        \frac1m \sum_j r(y_j) = 1, \quad r(x) = \sum_c w_c k(x, z_c)

    With :math:`b_c = \frac1m \sum_j k(y_j, z_c)` and :math:`\pi_c = b_c w_c` this is the fit of
    the proportions pi of a mixture, by expectation-maximisation: every step raises the likelihood,
    keeps the constraint, and has no step size; T steps leave a gap of at most log(c) / T nats.

    Args:
      p: x_i, samples of the numerator; shape (n, d), floating.
      q: y_j, samples of the denominator; shape (m, d).
      kernel: k > 0; its lengthscales are in units of p, and the only regulariser. None: a Gaussian
        kernel, whose lengthscale is that of ``FACTORS`` times the median distance with the least
        loss by :func:`kernelgrad.selection.kliep_cv`.
      centers: z_c; shape (c, d). None: all of p; at most ``MOST_CENTERS`` of them where kernel is
        chosen here.
      num_steps: greatest number T of steps, at least 1; static.
      tolerance: gap in nats at which to stop before, >= 0.
      axis_name: if set, p, q and centers are the unions over all devices; nothing is chosen then.

    Returns:
      The model, without a gradient in what it is fitted to.

    Raises:
      ValueError: wrong rank, dtype or dimensions, num_steps below 1, or a negative tolerance.

    Warns:
      RuntimeWarning: a lengthscale or ridge that was chosen is the least or the largest tried;
        outside of jit alone.

    Cost: O((n + m) c d + T n c) time, O((n + m) c) memory.

    Example:
      >>> from kernelgrad import kernels, ratio
      >>> p, q = jnp.array([[0.0]]), jnp.array([[1.0]])
      >>> model = ratio.kliep(p, q, kernels.rbf_mixture(1.0))
      >>> print(ratio.density_ratio(model, jnp.array([[0.0], [1.0]])))  # of mean 1 over q
      [1.649 1.   ]

    References:
      Sugiyama et al. 2008, section 2.2, where projected gradient ascent solves the same problem;
      Csiszar & Tusnady 1984 for the rate.
    """
    centers = _few(p, kernel, _NONE, centers)

    def loss(kernel: Kernel, _: float | Array) -> Array:
        return selection.kliep_cv(
            p, q, kernel, centers=centers, num_steps=num_steps, tolerance=tolerance
        )

    kernel, _ = _settled("kliep", p, q, kernel, _NONE, axis_name, loss)
    return _ratio_fits.kliep(
        p,
        q,
        kernel,
        centers=centers,
        num_steps=num_steps,
        tolerance=tolerance,
        axis_name=axis_name,
    )


# ----------------------------------------------------------------------------- logistic regression


def logistic(
    p: Array,
    q: Array,
    kernel: Kernel | None = None,
    *,
    ridge: float | Array | None = None,
    centers: Array | None = None,
    num_steps: int = 50,
    tolerance: float | Array = 1e-6,
    axis_name: str | None = None,
) -> LogLinearRatio:
    r"""Returns the ratio p / q by logistic regression of which of the two a sample is from.

    .. math:: \min_{b, w} \frac1{n + m} \Big[ \sum_i \sigma_+(-f(x_i) - o) + \sum_j
        \sigma_+(f(y_j) + o) \Big] + \frac\lambda2 (b^2 + |w|^2), \quad
        f(x) = b + \sum_c w_c k(x, z_c) = \log r(x)

    with :math:`\sigma_+(t) = \log(1 + e^t)` and o = log(n / m), the odds before x is seen; by
    Newton's method with step halving. Any ridge is convex and has one solution, even for samples
    that a line separates; a large one means r = 1. The kernel need not be positive, nor a kernel:
    with the profile -u/2 of u = |x - y|^2, f is any b + a.x + c |x|^2, exact for two Gaussians of
    covariances proportional to I; with features in between, for others.

    Args:
      p: x_i, samples of the numerator; shape (n, d), floating.
      q: y_j, samples of the denominator; shape (m, d).
      kernel: k; its lengthscales are in units of p. None: a Gaussian kernel, whose lengthscale is
        that of ``FACTORS`` times the median distance with the least loss by
        :func:`kernelgrad.selection.logistic_cv`.
      ridge: lambda > 0, in units of k^2. Keep it above 10 c eps k(0)^2, with eps the machine
        epsilon: below, rounding decides the result. None: one of ``RIDGES``, likewise.
      centers: z_c; shape (c, d). None: all of p and q; at most ``MOST_CENTERS`` of them where
        kernel or ridge is chosen here.
      num_steps: greatest number T of steps, at least 1; static. Ten are plenty as a rule.
      tolerance: gap in nats at which to stop before, >= 0.
      axis_name: if set, p, q and centers are the unions over all devices; nothing is chosen then.

    Returns:
      The model, without a gradient in what it is fitted to; all NaN where a Cholesky factorisation
      fails, which a ridge above the floor rules out for finite samples.

    Raises:
      ValueError: wrong rank, dtype or dimensions, a concrete ridge that is not positive, num_steps
        below 1, or a negative tolerance.

    Warns:
      RuntimeWarning: a lengthscale or ridge that was chosen is the least or the largest tried;
        outside of jit alone.

    Cost: O((n + m) c d + T ((n + m) c^2 + c^3)) time, O((n + m) c) memory.

    Example:
      >>> from kernelgrad import kernels, ratio
      >>> p, q = jnp.array([[1.0]]), jnp.array([[-1.0]])
      >>> model = ratio.logistic(p, q, kernels.rbf_mixture(1.0), ridge=0.1)
      >>> at_p, at_q = ratio.density_ratio(model, jnp.array([[1.0], [-1.0]]))
      >>> bool(at_p > 1), round(float(at_p * at_q), 3)
      (True, 1.0)

    References:
      Qin 1998; Bickel, Brueckner & Scheffer 2007; Huszar 2016 (an alternative update rule).
    """
    if centers is None:
        centers = _few(jnp.concatenate(_checks.points(p=p, q=q)), kernel, ridge, None)

    def loss(kernel: Kernel, ridge: float | Array) -> Array:
        return selection.logistic_cv(
            p,
            q,
            kernel,
            ridge=ridge,
            centers=centers,
            num_steps=num_steps,
            tolerance=tolerance,
        )

    kernel, ridge = _settled("logistic", p, q, kernel, ridge, axis_name, loss)
    return _ratio_fits.logistic(
        p,
        q,
        kernel,
        ridge=ridge,
        centers=centers,
        num_steps=num_steps,
        tolerance=tolerance,
        axis_name=axis_name,
    )


# ---------------------------------------------------------------------------------- what is chosen

_NONE = 0.0  # ridge, where there is none to choose


def _least_squares(
    name: str,
    p: Array,
    q: Array,
    kernel: Kernel | None,
    ridge: float | Array | None,
    alpha: float | Array,
    centers: Array | None,
    axis_name: str | None,
) -> LinearRatio:
    """Returns the fit of :func:`rulsif`; the name is that of what the caller has called."""
    centers = _few(p, kernel, ridge, centers)

    def loss(kernel: Kernel, ridge: float | Array) -> Array:
        judged = _judged_at(alpha)
        return selection.rulsif_loo(p, q, kernel, ridge=ridge, alpha=judged, centers=centers)

    kernel, ridge = _settled(name, p, q, kernel, ridge, axis_name, loss)
    return _ratio_fits.rulsif(
        p, q, kernel, ridge=ridge, alpha=alpha, centers=centers, axis_name=axis_name
    )


def _judged_at(alpha: float | Array) -> Array:
    """Returns the alpha of the loss by which a fit of this one is chosen."""
    _checks.shape("alpha", alpha, ())
    _checks.in_range("alpha", alpha, 0.0, 1.0, closed="l")
    return jnp.maximum(alpha, CHOSEN_AT)


def _few(
    points: Array, kernel: Kernel | None, ridge: float | Array | None, centers: Array | None
) -> Array | None:
    """Returns the centers, and where there are none and something is chosen, some of the points."""
    if centers is not None or (kernel is not None and ridge is not None):
        return centers
    (points,) = _checks.points(p=points)
    return points[:: -(-points.shape[0] // MOST_CENTERS)]


def _settled(
    name: str,
    p: Array,
    q: Array,
    kernel: Kernel | None,
    ridge: float | Array | None,
    axis_name: str | None,
    loss: Callable[[Kernel, float | Array], Array],
) -> tuple[Kernel, float | Array]:
    """Returns kernel and ridge, each of them that of the least loss where it is None."""
    if kernel is not None and ridge is not None:
        return kernel, ridge
    if axis_name is not None:
        missing = "kernel" if kernel is None else "ridge"
        raise ValueError(
            f"{missing}: got None with axis_name {axis_name!r}; expected one, for none is "
            "chosen over devices. See selection"
        )
    p, q = _checks.points(p=p, q=q)
    dtype = _numeric.wide(p).dtype
    grids: dict[str, Array] = {}
    if kernel is None:
        median = kernels.median_lengthscale(p, q).astype(dtype)
        grids["lengthscale"] = median * jnp.asarray(FACTORS, dtype)
    if ridge is None:
        grids["ridge"] = jnp.asarray(RIDGES, dtype)

    def taken(values: Sequence[Array]) -> tuple[Kernel, float | Array]:
        found = dict(zip(grids, values, strict=True))
        own = kernels.rbf_mixture(found["lengthscale"]) if kernel is None else kernel
        return own, found["ridge"] if ridge is None else ridge

    best = selection.select(lambda *values: loss(*taken(values)), *grids.values()).values
    for label, value in zip(grids, best, strict=True):
        _checks.warn_at_edge(f"ratio.{name}: {label}", value, grids[label])
    return taken(best)
