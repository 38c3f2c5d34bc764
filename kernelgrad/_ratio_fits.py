"""The fits of density ratios under a kernel and a ridge: what :mod:`kernelgrad.ratio` calls.

Arguments, models and errors are those of the functions of the same names there. Over devices
centers are gathered; each device holds its samples against them, and their moments are added up.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _convex, _devices, _numeric, _ratio_models, _solve, _traits, kernels
from kernelgrad._ratio_models import LinearRatio, LogLinearRatio, MixtureRatio
from kernelgrad.types import Array, Kernel


def rulsif(
    p: Array,
    q: Array,
    kernel: Kernel,
    *,
    ridge: float | Array,
    alpha: float | Array = 0.1,
    centers: Array | None = None,
    axis_name: str | None = None,
) -> LinearRatio:
    """Returns the least-squares fit of the relative ratio."""
    centers, moment, mean = _least_squares(p, q, kernel, ridge, alpha, centers, axis_name)
    weights = _solve.dense(moment, _numeric.like(ridge, mean))(mean[:, None])[:, 0]
    size = p.shape[0] * _devices.num_devices(axis_name)
    centers, weights = _devices.agreed((centers, weights), axis_name)
    return LinearRatio(kernel, centers, weights, _numeric.like(1 / math.sqrt(size), mean))


def lsif(
    p: Array,
    q: Array,
    kernel: Kernel,
    *,
    ridge: float | Array,
    alpha: float | Array = 0.0,
    centers: Array | None = None,
    num_steps: int = 1000,
    tolerance: float | Array = 1e-4,
    axis_name: str | None = None,
) -> MixtureRatio:
    """Returns the least-squares fit with weights that are not negative."""
    _traits.check_positive(kernel)
    _check_loop(num_steps, tolerance)
    p, q, centers = _checks.points(p=p, q=q, centers=p if centers is None else centers)
    p, q, kernel, ridge, alpha, centers = lax.stop_gradient((p, q, kernel, ridge, alpha, centers))
    centers, moment, mean = _least_squares(p, q, kernel, ridge, alpha, centers, axis_name)
    size = _numeric.like(ridge, mean)
    weights, residual = _convex.quadratic(
        moment + size * jnp.eye(mean.shape[0], dtype=mean.dtype),
        mean,
        lambda point: jnp.maximum(point, 0),
        jnp.zeros_like(mean),
        num_steps=num_steps,
        tolerance=2 * size * _numeric.like(tolerance, mean),
    )
    fit = _devices.agreed((centers, weights, residual), axis_name)
    return MixtureRatio(kernel, fit[0], jnp.log(fit[1]), fit[2] / (2 * size))


def kliep(
    p: Array,
    q: Array,
    kernel: Kernel,
    *,
    centers: Array | None = None,
    num_steps: int = 1000,
    tolerance: float | Array = 1e-3,
    axis_name: str | None = None,
) -> MixtureRatio:
    """Returns the maximum-likelihood fit."""
    _check_loop(num_steps, tolerance)
    p, q, centers = _shares(p, q, p if centers is None else centers, axis_name)
    kernel, p, q, centers = lax.stop_gradient((kernel, p, q, centers))
    log_sums = jax.nn.logsumexp(_ratio_models.log_gram(kernel, q, centers), axis=0, keepdims=True)
    log_sums = jax.nn.logsumexp(_devices.gather(log_sums, axis_name), axis=0)
    log_mean = log_sums - math.log(q.shape[0] * _devices.num_devices(axis_name))
    log_convex = _ratio_models.log_gram(kernel, p, centers) - log_mean[None, :]
    log_shares, gap = _convex.mixture_shares(
        log_convex,
        num_steps=num_steps,
        tolerance=_numeric.like(tolerance, log_convex),
        axis_name=axis_name,
    )
    fit = _devices.agreed((centers, log_shares - log_mean, gap), axis_name)
    return MixtureRatio(kernel, *fit)


def logistic(
    p: Array,
    q: Array,
    kernel: Kernel,
    *,
    ridge: float | Array,
    centers: Array | None = None,
    num_steps: int = 50,
    tolerance: float | Array = 1e-6,
    axis_name: str | None = None,
) -> LogLinearRatio:
    """Returns the fit by logistic regression."""
    _check_ridge(ridge)
    _check_loop(num_steps, tolerance)
    p, q = _checks.points(p=p, q=q)
    pool = jnp.concatenate([p, q]) if centers is None else centers
    p, q, centers = _shares(p, q, pool, axis_name)
    kernel, p, q, centers = lax.stop_gradient((kernel, p, q, centers))
    n, m = p.shape[0], q.shape[0]
    features = kernels.gram(kernel, jnp.concatenate([p, q]), centers)
    features = jnp.concatenate([jnp.ones_like(features[:, :1]), features], axis=1)
    signs = jnp.concatenate([jnp.ones(n, features.dtype), -jnp.ones(m, features.dtype)])
    weights, gap = _convex.classifier(
        signs[:, None] * features,
        signs * math.log(n / m),
        lax.stop_gradient(_numeric.like(ridge, features)),
        num_steps=num_steps,
        tolerance=_numeric.like(tolerance, features),
        axis_name=axis_name,
    )
    fit = _devices.agreed((centers, weights[1:], weights[0], gap), axis_name)
    return LogLinearRatio(kernel, *fit)


def _least_squares(
    p: Array,
    q: Array,
    kernel: Kernel,
    ridge: float | Array,
    alpha: float | Array,
    centers: Array | None,
    axis_name: str | None,
) -> tuple[Array, Array, Array]:
    """Returns the centers, H and h."""
    _check_ridge(ridge)
    _checks.shape("alpha", alpha, ())
    _checks.in_range("alpha", alpha, 0.0, 1.0, closed="l")
    p, q, centers = _shares(p, q, p if centers is None else centers, axis_name)
    at_p, at_q = kernels.gram(kernel, p, centers), kernels.gram(kernel, q, centers)
    share = _numeric.like(alpha, at_p)
    moment = share * _second_moment(at_p) + (1 - share) * _second_moment(at_q)
    moment, mean = _devices.mean((moment, jnp.mean(at_p, axis=0)), axis_name)
    return centers, moment, mean


def _second_moment(features: Array) -> Array:
    return _numeric.dot(features.T, features) / features.shape[0]


def _shares(
    p: Array, q: Array, centers: Array, axis_name: str | None
) -> tuple[Array, Array, Array]:
    """Returns this device's samples and the centers of all, in at least float32."""
    p, q, centers = (_numeric.wide(x) for x in _checks.points(p=p, q=q, centers=centers))
    return p, q, _devices.gather(centers, axis_name)


def _check_ridge(ridge: float | Array) -> None:
    _checks.shape("ridge", ridge, ())
    _checks.positive(ridge=ridge)


def _check_loop(num_steps: int, tolerance: float | Array) -> None:
    _checks.at_least("num_steps", num_steps, 1)
    _checks.shape("tolerance", tolerance, ())
    _checks.in_range("tolerance", tolerance, 0.0, math.inf, closed="l")
