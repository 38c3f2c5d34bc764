"""Other libraries' side of every task, through their own public functions, and dense JAX.

A builder imports its library when it is called, so that a missing one costs only its own column.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks import problems
from benchmarks.ours import call
from benchmarks.problems import Particles, TwoSamples
from benchmarks.timing import Call
from kernelgrad.types import Array

_dot = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)

# ----------------------------------------------------------------------------------- blackjax


def blackjax_direction(problem: Particles) -> Call:
    """The functional gradient of BlackJAX's SVGD kernel, handed on by an idle optimizer."""
    from blackjax.vi import svgd

    idle = optax.GradientTransformation(
        jnp.zeros_like, lambda gradient, state, params: (jnp.zeros_like(gradient), gradient)
    )
    step = svgd.build_kernel(idle)

    def direction(x: Array, length_scale: Array) -> Array:
        state = svgd.init(x, {"length_scale": length_scale}, idle)
        return -step(state, jnp.negative, svgd.rbf_kernel).opt_state

    return call(direction, problem.x, 2 * problem.lengthscale**2)


def blackjax_step(problem: Particles) -> Call:
    """BlackJAX's median heuristic and step; the heuristic first, so that it enters the result."""
    from blackjax.vi import svgd

    optimizer = optax.sgd(1.0)
    step = svgd.build_kernel(optimizer)

    def whole(state: Any) -> Array:
        state = svgd.update_median_heuristic(state)
        return step(state, jnp.negative, svgd.rbf_kernel).particles - state.particles

    return call(whole, svgd.init(jnp.asarray(problem.x), {"length_scale": 1.0}, optimizer))


# ------------------------------------------------------------------------------------ numpyro


def numpyro_direction(problem: Particles) -> Call:
    """The attractive and the repulsive loop of ``SteinVI._svgd_loss_and_grads``.

    Kernel application and kernel gradient are NumPyro's; its RBFKernel computes a median that this
    task does not have, hence the same expression with a fixed bandwidth.
    """
    from numpyro.contrib.einstein import RBFKernel, SteinVI

    stein = types.SimpleNamespace(kernel_fn=RBFKernel())

    def forces(particles: Array, bandwidth: Array) -> Array:
        def kernel(x: Array, y: Array) -> Array:
            return jnp.exp(-jnp.sum((x - y) ** 2) / bandwidth)

        def attraction(y: Array) -> Array:
            def body(force: Array, x: Array) -> tuple[Array, None]:
                return force + SteinVI._apply_kernel(stein, kernel, x, y, jnp.negative(x)), None

            return lax.scan(body, jnp.zeros_like(y), particles)[0] / particles.shape[0]

        def repulsion(y: Array) -> Array:
            return jnp.mean(
                jax.vmap(lambda x: SteinVI._kernel_grad(stein, kernel, x, y))(particles), axis=0
            )

        return jax.vmap(attraction)(particles) + jax.vmap(repulsion)(particles)

    return call(forces, problem.x, 2 * problem.lengthscale**2)


# ------------------------------------------------------------------------------------- coreax


def coreax_mmd(problem: TwoSamples) -> Call:
    """The square of ``coreax.metrics.MMD``, differentiated by JAX."""
    from coreax import Data
    from coreax.metrics import MMD

    metric = MMD(functools.reduce(lambda a, b: a + b, map(_coreax_imq, problem.lengthscales)))

    def squared(x: Array, y: Array) -> Array:
        return jnp.square(metric.compute(Data(x), Data(y)))

    return call(jax.value_and_grad(squared), problem.x, problem.y)


def coreax_ksd(block_size: int | None) -> Callable[[Particles], Call]:
    """The square of ``coreax.metrics.KSD``, whole or in blocks."""

    def build(problem: Particles) -> Call:
        from coreax import Data
        from coreax.kernels import SteinKernel
        from coreax.metrics import KSD

        metric = KSD(SteinKernel(_coreax_imq(problem.lengthscale), jnp.negative))

        def squared(x: Array) -> Array:
            return jnp.square(metric.compute(Data(x), Data(x), block_size=block_size))

        return call(squared, problem.x)

    return build


def _coreax_imq(lengthscale: float) -> Any:
    """(1 + r^2 / l^2)^(-1/2); coreax divides by twice its squared length scale."""
    from coreax.kernels import PCIMQKernel

    return PCIMQKernel(length_scale=lengthscale / 2**0.5)


# -------------------------------------------------------------------------------------- KeOps


def keops_mmd(problem: TwoSamples) -> Call:
    """Values and gradients of MMD^2 in one reduction a pair of sets, of LazyTensors."""
    import pykeops

    pykeops.set_verbose(False)
    from pykeops.numpy import LazyTensor

    options = {"backend": "CPU"} if jax.default_backend() == "cpu" else {}
    n, d = problem.x.shape
    y = problem.y

    def sums(a: np.ndarray, b: np.ndarray, with_gradient: bool) -> np.ndarray:
        difference = LazyTensor(a[:, None, :]) - LazyTensor(b[None, :, :])
        sq_dist = (difference**2).sum(-1)
        roots = [(1 + sq_dist / float(l) ** 2).rsqrt() for l in problem.lengthscales]
        value = sum(roots[1:], roots[0])
        if not with_gradient:
            return value.sum(dim=1, **options)
        cubes = [
            r**3 * (-1 / float(l) ** 2) for r, l in zip(roots, problem.lengthscales, strict=True)
        ]
        slope = sum(cubes[1:], cubes[0])
        return value.concat(slope * difference).sum(dim=1, **options)

    def both() -> tuple[np.floating, np.ndarray]:
        within, between = sums(problem.x, problem.x, True), sums(problem.x, y, True)
        total = within[:, 0].mean() + sums(y, y, False).mean() - 2 * between[:, 0].mean()
        return total / n, 2 / n**2 * (within[:, 1 : d + 1] - between[:, 1 : d + 1])

    return both


# --------------------------------------------------------------------------------------- SciPy


def scipy_median(problem: Particles) -> Call:
    """``numpy.median`` (a partition, not a sort) of SciPy's distances over pairs i < j."""
    from scipy.spatial import distance

    return lambda: np.median(distance.pdist(problem.x, "sqeuclidean"))


# ----------------------------------------------------------------------------------- dense JAX


def dense_svgd(problem: Particles) -> Call:
    """The direction by way of the gram."""

    def direction(x: Array, score: Array, lengthscale: Array) -> Array:
        gram = jnp.exp(-_squared_distances(x, x) / (2 * lengthscale**2))
        repulsion = gram.sum(axis=1)[:, None] * x - _dot(gram, x)
        return (_dot(gram, score) + repulsion / lengthscale**2) / x.shape[0]

    return call(direction, problem.x, problem.score, problem.lengthscale)


def dense_step(problem: Particles) -> Call:
    """The gram's step, with the median by a sort."""
    optimizer = optax.sgd(1.0)
    n = len(problem.x)
    upper = np.triu_indices(n, 1)

    def step(x: Array, opt_state: Any, rows: Array, columns: Array) -> Array:
        sq_dist = _squared_distances(x, x)
        bandwidth = jnp.median(sq_dist[rows, columns]) / jnp.log(float(n))
        gram = jnp.exp(-sq_dist / bandwidth)
        repulsion = gram.sum(axis=1)[:, None] * x - _dot(gram, x)
        direction = (_dot(gram, -x) + 2 * repulsion / bandwidth) / n
        updates, _ = optimizer.update(-direction, opt_state)
        return optax.apply_updates(x, updates) - x

    return call(step, problem.x, optimizer.init(jnp.asarray(problem.x)), *upper)


def dense_median(problem: Particles) -> Call:
    """``jnp.median``, a sort, of the upper triangle."""
    upper = np.triu_indices(len(problem.x), 1)

    def median(x: Array, rows: Array, columns: Array) -> Array:
        return jnp.median(_squared_distances(x, x)[rows, columns])

    return call(median, problem.x, *upper)


def dense_mmd(problem: TwoSamples) -> Call:
    """MMD^2 by way of three grams, differentiated by JAX."""

    def squared(x: Array, y: Array, lengthscales: Array) -> Array:
        def mean(a: Array, b: Array) -> Array:
            sq_dist = _squared_distances(a, b)
            return jnp.sum(
                jnp.stack([jnp.mean(lax.rsqrt(1 + sq_dist / l**2)) for l in lengthscales])
            )

        return mean(x, x) + mean(y, y) - 2 * mean(x, y)

    return call(
        jax.value_and_grad(squared),
        problem.x,
        problem.y,
        np.asarray(problem.lengthscales, np.float32),
    )


def dense_ksd(problem: Particles) -> Call:
    """KSD^2 by way of the Stein gram."""

    def value(x: Array, score: Array, lengthscale: Array) -> Array:
        sq_dist = _squared_distances(x, x)
        k = lax.rsqrt(1 + sq_dist / lengthscale**2)
        along = jnp.sum(x * score, axis=1)
        cross = _dot(score, x.T)
        moved = along[:, None] + along[None, :] - cross - cross.T
        slope, curvature = k**3 / lengthscale**2, 3 * k**5 / lengthscale**4
        stein = _dot(score, score.T) * k + slope * (moved + x.shape[1]) - curvature * sq_dist
        return jnp.mean(stein)

    return call(value, problem.x, problem.score, problem.lengthscale)


def dense_stein(problem: Particles) -> Call:
    """The linear system by ``jnp.linalg.solve``."""

    def score(x: Array, lengthscale: Array, ridge: Array) -> Array:
        k = lax.rsqrt(1 + _squared_distances(x, x) / lengthscale**2)
        slope = -(k**3) / lengthscale**2
        repulsion = _dot(slope, x) - slope.sum(axis=1)[:, None] * x
        return -jnp.linalg.solve(k + ridge * jnp.eye(x.shape[0]), repulsion)

    return call(score, problem.x, problem.lengthscale, problems.ridge(len(problem.x)))


def _squared_distances(a: Array, b: Array) -> Array:
    norms = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)[None, :]
    return jnp.maximum(norms - 2 * _dot(a, b.T), 0)
