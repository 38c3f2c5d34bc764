"""Other libraries' side of every task, through their own public functions, and dense JAX.

A builder imports its library when it is called, so that a missing one costs only its own column.
"""

import contextlib
import functools
import io
import types
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks import problems
from benchmarks.ours import call, mean_motion
from benchmarks.problems import Particles, TwoSamples
from benchmarks.timing import Call
from kernelgrad.drift import TEMPERATURES
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


def blackjax_hmc(problem: Particles) -> Call:
    """BlackJAX's HMC kernel."""
    from blackjax.mcmc import hmc

    kernel = hmc.build_kernel()

    def log_density(x: Array) -> Array:
        return -jnp.sum(x**2) / 2

    def step(key: Array, position: Array) -> tuple[Array, Array]:
        state, info = kernel(
            key,
            hmc.init(position, log_density),
            log_density,
            problems.STEP_SIZE,
            jnp.ones_like(position),
            problems.NUM_STEPS,
        )
        return state.position, info.acceptance_rate

    return call(mean_motion(step), problem.x)


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


# ------------------------------------------------------------------- hyppo, prdc and densratio


def hyppo_test(problem: TwoSamples) -> Call:
    """``hyppo.ksample.MMD``, whose statistic is the root of a share of MMD^2."""
    from hyppo.ksample import MMD

    lengthscale = problems.rbf(problem)
    test = MMD(compute_kernel="gaussian", bias=True, gamma=1 / (2 * lengthscale**2))
    points, _ = problems.pooled(problem)
    k = np.exp(-problems.squared_distances(points, points) / (2 * lengthscale**2))
    centred = k - k.mean(axis=0) - k.mean(axis=1, keepdims=True) + k.mean()
    unit = 256 * np.sqrt(np.mean(centred**2))  # of samples of one size

    def both() -> tuple[np.floating, np.floating]:
        with warnings.catch_warnings(action="ignore"):  # that 999 are less than 1000
            found = test.test(problem.x, problem.y, reps=problems.DRAWS, auto=False)
        return unit * found.stat**2, found.pvalue

    return both


def prdc_shares(problem: TwoSamples) -> Call:
    """``prdc.compute_prdc``, which prints."""
    from prdc import compute_prdc

    def shares() -> tuple[Any, ...]:
        with contextlib.redirect_stdout(io.StringIO()):
            found = compute_prdc(problem.x, problem.y, nearest_k=problems.NEIGHBOR)
        return tuple(found[name] for name in ("precision", "recall", "density", "coverage"))

    return shares


def densratio_chosen(problem: TwoSamples) -> Call:
    """``densratio.uLSIF``: leaves out pairs, draws its centers, sets negative weights to 0."""
    from densratio import uLSIF

    lengthscales, ridges = problems.ratio_grids(problem)

    def fit() -> tuple[Any, ...]:
        model = uLSIF(
            problem.x,
            problem.y,
            sigma_range=lengthscales,
            lambda_range=ridges,
            kernel_num=problems.CENTERS,
            verbose=False,
        )
        ratio = model.compute_density_ratio(problem.y)
        return model.kernel_info.sigma, model.lambda_, ratio

    return fit


# --------------------------------------------------------------------------------------- NumPy


def numpy_kid(problem: TwoSamples) -> Call:
    """The formula of torch-fidelity, on all features at once and in their dtype."""

    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> np.floating:
        k = (a @ b.T * np.float32(1 / a.shape[1]) + np.float32(1)) ** 3
        if not same:
            return k.mean()
        return (k.sum() - np.trace(k)) / np.float32(len(a) * (len(a) - 1))

    x, y = problem.x, problem.y
    return lambda: mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def numpy_sliced(problem: TwoSamples) -> Call:
    """A sort of the projections on all lines."""
    lines = problems.directions(problem.x.shape[1])
    return lambda: problems.sliced_energy(problem.x @ lines.T, problem.y @ lines.T, lines)


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
        return jnp.mean(_stein_gram(x, score, lengthscale))

    return call(value, problem.x, problem.score, problem.lengthscale)


def _stein_gram(x: Array, score: Array, lengthscale: Array) -> Array:
    sq_dist = _squared_distances(x, x)
    k = lax.rsqrt(1 + sq_dist / lengthscale**2)
    along = jnp.sum(x * score, axis=1)
    cross = _dot(score, x.T)
    moved = along[:, None] + along[None, :] - cross - cross.T
    slope, curvature = k**3 / lengthscale**2, 3 * k**5 / lengthscale**4
    return _dot(score, score.T) * k + slope * (moved + x.shape[1]) - curvature * sq_dist


def dense_stein(problem: Particles) -> Call:
    """The linear system by ``jnp.linalg.solve``."""

    def score(x: Array, lengthscale: Array, ridge: Array) -> Array:
        k = lax.rsqrt(1 + _squared_distances(x, x) / lengthscale**2)
        slope = -(k**3) / lengthscale**2
        repulsion = _dot(slope, x) - slope.sum(axis=1)[:, None] * x
        return -jnp.linalg.solve(k + ridge * jnp.eye(x.shape[0]), repulsion)

    return call(score, problem.x, problem.lengthscale, problems.ridge(len(problem.x)))


def dense_two_sample_test(problem: TwoSamples) -> Call:
    """The gram of the union, against all permutations of the weights at once."""
    points, signs = problems.pooled(problem)

    def test(points: Array, signs: Array, lengthscale: Array) -> tuple[Array, Array]:
        gram = jnp.exp(-_squared_distances(points, points) / (2 * lengthscale**2))
        keys = jax.random.split(jax.random.key(0), problems.DRAWS)
        permuted = jax.vmap(lambda key: jax.random.permutation(key, signs))(keys).T
        return _tested(gram, signs, permuted)

    arguments = (points, signs, problems.rbf(problem))
    return call(test, *(np.asarray(argument, np.float32) for argument in arguments))


def dense_fit_test(problem: Particles) -> Call:
    """The Stein gram, against all draws of signs at once."""

    def test(x: Array, score: Array, lengthscale: Array) -> tuple[Array, Array]:
        n = x.shape[0]
        signs = jax.random.rademacher(jax.random.key(0), (n, problems.DRAWS), x.dtype)
        return _tested(_stein_gram(x, score, lengthscale), jnp.full(n, 1 / n), signs / n)

    return call(test, problem.x, problem.score, problem.lengthscale)


def _tested(gram: Array, weights: Array, drawn: Array) -> tuple[Array, Array]:
    """Returns a quadratic form, and the share of drawn ones that reach it."""
    statistic = weights @ _dot(gram, weights)
    null = jnp.sum(drawn * _dot(gram, drawn), axis=0)
    return statistic, (1 + jnp.sum(null >= statistic)) / (1 + null.shape[0])


def dense_kid(problem: TwoSamples) -> Call:
    """Three cubes of grams."""

    def distance(x: Array, y: Array) -> Array:
        def mean(a: Array, b: Array, same: bool) -> Array:
            k = (_dot(a, b.T) / a.shape[1] + 1) ** 3
            size = float(a.shape[0])
            return (jnp.sum(k) - jnp.trace(k)) / (size * (size - 1)) if same else jnp.mean(k)

        return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)

    return call(distance, problem.x, problem.y)


def dense_precision_recall(problem: TwoSamples) -> Call:
    """Three matrices of distances, and the smallest of each row."""

    def shares(real: Array, fake: Array) -> tuple[Array, ...]:
        def sq_radii(x: Array) -> Array:
            return -lax.top_k(-_squared_distances(x, x), problems.NEIGHBOR + 1)[0][:, -1]

        between, of_real = _squared_distances(real, fake), sq_radii(real)
        inside = between < of_real[:, None]
        return (
            jnp.mean(jnp.any(inside, axis=0)),
            jnp.mean(jnp.any(between < sq_radii(fake), axis=1)),
            jnp.mean(jnp.sum(inside, axis=0)) / problems.NEIGHBOR,
            jnp.mean(jnp.min(between, axis=1) < of_real),
        )

    return call(shares, problem.x, problem.y)


def dense_drift(problem: TwoSamples) -> Call:
    """The matrices of the paper, a temperature after the other."""

    def field(x: Array, y: Array) -> Array:
        n = x.shape[0]
        z = jnp.concatenate([x, y])
        own = jnp.eye(n, z.shape[0], dtype=bool)
        distance = jnp.sqrt(jnp.where(own, 0, _squared_distances(x, z)))
        mean = jnp.sum(distance) / (n * (z.shape[0] - 1.0))
        total = jnp.zeros_like(x)
        for temperature in TEMPERATURES:
            logits = jnp.where(own, -jnp.inf, -distance / (temperature * mean))
            a = jnp.sqrt(jax.nn.softmax(logits, axis=1) * jax.nn.softmax(logits, axis=0))
            fake, real = a[:, :n], a[:, n:]
            pull = jnp.sum(fake, axis=1, keepdims=True) * _dot(real, y)
            pull -= jnp.sum(real, axis=1, keepdims=True) * _dot(fake, x)
            total += pull / jnp.sqrt(jnp.mean(pull**2))
        return total

    return call(field, problem.x, problem.y)


def dense_sliced(problem: TwoSamples) -> Call:
    """All pairs of each line."""

    def both(x: Array, y: Array, lines: Array) -> tuple[Array, Array]:
        def along(line: Array) -> tuple[Array, Array]:
            a, b = _dot(x, line), _dot(y, line)
            across, within = a[:, None] - b, a[:, None] - a
            value = 2 * jnp.mean(jnp.abs(across)) - jnp.mean(jnp.abs(within))
            slopes = jnp.mean(jnp.sign(across), axis=1) - jnp.mean(jnp.sign(within), axis=1)
            return value - jnp.mean(jnp.abs(b[:, None] - b)), 2 / x.shape[0] * slopes

        values, slopes = lax.map(along, lines)
        return jnp.mean(values), _dot(slopes.T, lines) / lines.shape[0]

    return call(both, problem.x, problem.y, problems.directions(problem.x.shape[1]))


def _squared_distances(a: Array, b: Array) -> Array:
    norms = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)[None, :]
    return jnp.maximum(norms - 2 * _dot(a, b.T), 0)
