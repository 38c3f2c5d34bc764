"""kernelgrad's side of every task: from the problem to a call without arguments."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import problems
from benchmarks.problems import Particles, TwoSamples
from benchmarks.timing import Call
from kernelgrad import kernels, ksd, median, mmd, score, svgd
from kernelgrad.types import Array, Kernel


def call(fn: Any, *arguments: Any) -> Call:
    """Returns the jitted function with its arguments on the device; the first call compiles."""
    return functools.partial(jax.jit(fn), *jax.tree.map(jnp.asarray, arguments))


def svgd_direction(problem: Particles) -> Call:
    """The SVGD direction under a fixed RBF kernel."""
    return call(
        svgd.svgd_direction, problem.x, problem.score, kernels.rbf_mixture(problem.lengthscale)
    )


def svgd_step(problem: Particles) -> Call:
    """A whole SVGD step: exact median lengthscale by BlackJAX's rule, direction, optimizer.

    Returns how far the particles move, as all contestants do, which shows every difference.
    """
    optimizer = optax.sgd(1.0)

    def step(state: Any) -> Array:
        particles = state.particles
        rule = math.sqrt(2 * math.log(particles.shape[0]))
        kernel = kernels.rbf_mixture(kernels.median_lengthscale(particles) / rule)
        return svgd.step(state, jnp.negative, kernel, optimizer)[0].particles - particles

    return call(step, svgd.init(jnp.asarray(problem.x), optimizer))


def median_squared_distance(problem: Particles) -> Call:
    """The exact median of the squared distances over pairs i < j."""
    return call(median.median_squared_distance, problem.x)


def mmd_by_autodiff(problem: TwoSamples) -> Call:
    """MMD^2 and its gradient in x by ``jax.value_and_grad``."""
    kernel = kernels.imq_mixture(problem.lengthscales)
    return call(jax.value_and_grad(mmd.mmd_v_statistic), problem.x, problem.y, kernel)


def mmd_in_closed_form(problem: TwoSamples) -> Call:
    """MMD^2 and its gradient in x by ``mmd_value_and_gradient``."""
    kernel = kernels.imq_mixture(problem.lengthscales)
    return call(mmd.mmd_value_and_gradient, problem.x, problem.y, kernel)


def stein_discrepancy(problem: Particles) -> Call:
    """The V-statistic of KSD^2 under an IMQ kernel."""
    return call(
        ksd.ksd_v_statistic, problem.x, problem.score, kernels.imq_mixture(problem.lengthscale)
    )


def stein_score(problem: Particles) -> Call:
    """The Stein score estimate at its samples, by a Cholesky factorisation."""

    def estimate(x: Array, kernel: Kernel, ridge: Array) -> Array:
        return score.stein_score(x, kernel, ridge=ridge)

    kernel = kernels.imq_mixture(problem.lengthscale)
    return call(estimate, problem.x, kernel, problems.ridge(len(problem.x)))
