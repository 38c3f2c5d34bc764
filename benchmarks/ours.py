"""kernelgrad's side of every task: from the problem to a call without arguments."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import problems
from benchmarks.problems import Particles, TwoSamples
from benchmarks.timing import Call
from kernelgrad import (
    drift,
    energy,
    hmc,
    kernels,
    ksd,
    median,
    metrics,
    mmd,
    ratio,
    score,
    selection,
    svgd,
)
from kernelgrad.types import Array, Kernel, Key


def call(fn: Any, *arguments: Any) -> Call:
    """Returns the jitted function with its arguments on the device; the first call compiles."""
    return functools.partial(jax.jit(fn), *jax.tree.map(jnp.asarray, arguments))


def mean_motion(step: Callable[[Key, Array], tuple[Array, Array]]) -> Callable[[Array], Any]:
    """Returns how far chains go in a step, squared, and how probable it is, from their positions.

    Args:
      step: of one chain, from key and position to the next position and its probability.
    """

    def means(positions: Array) -> tuple[Array, Array]:
        keys = jax.random.split(jax.random.key(0), positions.shape[0])
        moved, probabilities = jax.vmap(step)(keys, positions)
        return jnp.mean((moved - positions) ** 2), jnp.mean(probabilities)

    return means


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


def two_sample_test(problem: TwoSamples) -> Call:
    """The permutation test of MMD^2 under an RBF kernel."""

    def test(x: Array, y: Array, kernel: Kernel) -> Any:
        key = jax.random.key(0)
        return mmd.two_sample_test(key, x, y, kernel, num_permutations=problems.DRAWS)

    return call(test, problem.x, problem.y, kernels.rbf_mixture(problems.rbf(problem)))


def goodness_of_fit_test(problem: Particles) -> Call:
    """The wild bootstrap of KSD^2 under an IMQ kernel, independent signs."""

    def test(x: Array, score: Array, kernel: Kernel) -> Any:
        key = jax.random.key(0)
        return ksd.goodness_of_fit_test(key, x, score, kernel, num_bootstrap=problems.DRAWS)

    return call(test, problem.x, problem.score, kernels.imq_mixture(problem.lengthscale))


def kernel_inception_distance(problem: TwoSamples) -> Call:
    """The unbiased estimate from all features."""
    return call(metrics.kernel_inception_distance, problem.x, problem.y)


def precision_recall(problem: TwoSamples) -> Call:
    """Precision, recall, density and coverage."""
    count = functools.partial(metrics.precision_recall, k=problems.NEIGHBOR)
    return call(count, problem.x, problem.y)


def chosen_ratio(problem: TwoSamples) -> Call:
    """The lengthscale and ridge of least leave-one-out loss, and the ratio at q, fitted there."""

    def fit(p: Array, q: Array, lengthscales: Array, ridges: Array) -> Any:
        centers = p[: problems.CENTERS]

        def loss(lengthscale: Array, ridge: Array) -> Array:
            kernel = kernels.rbf_mixture(lengthscale)
            return selection.rulsif_loo(p, q, kernel, ridge=ridge, centers=centers)

        lengthscale, ridge = selection.select(loss, lengthscales, ridges).values
        kernel = kernels.rbf_mixture(lengthscale)
        model = ratio.ulsif(p, q, kernel, ridge=ridge, centers=centers)
        return lengthscale, ridge, ratio.density_ratio(model, q)

    grids = (np.asarray(grid, np.float32) for grid in problems.ratio_grids(problem))
    return call(fit, problem.x, problem.y, *grids)


def hmc_step(problem: Particles) -> Call:
    """A step of n chains in a standard normal, trajectories of ten steps."""

    def log_density(x: Array) -> Array:
        return -jnp.sum(x**2) / 2

    def step(key: Array, position: Array) -> tuple[Array, Array]:
        state, info = hmc.step(
            key,
            hmc.init(position, log_density),
            log_density,
            step_size=problems.STEP_SIZE,
            num_leapfrog_steps=problems.NUM_STEPS,
        )
        return state.position, info.acceptance_probability

    return call(mean_motion(step), problem.x)


def drifting_field(problem: TwoSamples) -> Call:
    """The field of the paper's three temperatures."""
    return call(drift.drift, problem.x, problem.y)


def sliced_energy(problem: TwoSamples) -> Call:
    """The sliced energy distance and its gradient in x."""
    lines = problems.directions(problem.x.shape[1])
    return call(energy.sliced_energy_and_gradient, problem.x, problem.y, lines)
