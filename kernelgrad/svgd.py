r"""Stein variational gradient descent: particles that move together towards a density.

.. math:: \phi(x_i) = \frac1n \sum_j [ k(x_j, x_i)\, s_p(x_j) + \nabla_{x_j} k(x_j, x_i) ]

The first term carries every particle uphill on log p, the second keeps them apart. One particle
alone ascends log p, k(0) times as fast. Variants are compositions, with s = score_fn(x):

- Annealed: ``svgd_direction(x, gamma * s, kernel)``, gamma(t) rising to 1, repulsion unscaled.
- Minibatch: ``step(state, lambda x: score_fn(x, batch), kernel, optimizer)``.
- Networks, or whatever else is a pytree: leaves have the particles first, as ``jax.vmap`` of an
  ``init`` leaves them; the kernel sees each particle raveled to a vector.
- A lengthscale that follows the particles:
  ``step(state, score_fn, rbf_mixture(svgd_lengthscale(state.particles)), optimizer)``.
- Stochastic: ``x + epsilon * svgd_direction(x, s, kernel)
  + sqrt(2 * epsilon / n) * kernel_noise(key, x, kernel)``.
- Matrix kernel :math:`Q^{-1} k(|Q^{1/2} (x - y)|^2)` with a constant Q: with R the symmetric root
  of Q, ``solve(R, svgd_direction(x @ R, solve(R, s.T).T, kernel).T).T``.

In many dimensions particles have less spread than p (Ba et al. 2022): the outputs of fifty networks
of 21 weights had a third of what draws of NUTS have.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from kernelgrad import _checks, _devices, _numeric, _traits, _weights, kernels, pairwise
from kernelgrad.types import Array, Kernel, Key, PyTree, ScoreFn


class SVGDState(NamedTuple):
    """The particles and what moves them.

    Attributes:
      particles: x_i; shape (n, d), or a pytree of arrays (n, ...).
      opt_state: the state of the Optax optimizer.
    """

    particles: PyTree
    opt_state: optax.OptState


class SVGDInfo(NamedTuple):
    """What one step did.

    Attributes:
      direction_rms: root mean square over particles of the norm of phi; shape (), in 1/units of
        particles. It falls to 0 at a fixed point.
      finite: whether phi and the new particles are finite, on all devices; shape (), bool.
    """

    direction_rms: Array
    finite: Array


def svgd_direction(
    particles: PyTree,
    score: PyTree,
    kernel: Kernel,
    *,
    weights: Array | None = None,
    axis_name: str | None = None,
) -> PyTree:
    r"""Returns the SVGD direction at each particle.

    .. math:: \phi(x_i) = \frac1n \sum_j [ k(x_j, x_i) s_j + \nabla_{x_j} k(x_j, x_i) ]

    Ascent direction: a small step along it lowers KL(q || p). Negate it before handing it to
    Optax or to a pull-back. A feature kernel repels through its features. With weights, over their
    sum, w_j stands in place of 1/n: the direction for q as the weighted particles have it.

    Args:
      particles: x_i; shape (n, d), floating, or a pytree of floating arrays (n, ...).
      score: s_j = grad log p(x_j), in 1/units of particles; shaped like particles.
      kernel: k, of particles raveled to vectors; its lengthscales are in units of particles.
      weights: w_i >= 0 of the particles, in any unit; shape (n,). They are divided by their sum,
        over all devices. None: all count alike.
      axis_name: if set, j runs over the union of all devices' particles.

    Returns:
      Directions, shaped and typed like particles, in 1/units of particles.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes, a kernel without k(0) > 0, or weights
        that are negative or all 0.

    Cost: O(n^2 d) time, O(n d) memory; with a feature kernel as
      :func:`kernelgrad.pairwise.gradient_sum`.

    Example:
      >>> from kernelgrad import kernels, svgd
      >>> x = jnp.array([[0.0], [1.0]])
      >>> still = jnp.zeros((2, 1))  # a flat density: what is left is repulsion, exp(-1/2) / 2
      >>> print(svgd.svgd_direction(x, still, kernels.rbf_mixture(1.0)))
      [[-0.303]
       [ 0.303]]

    References:
      Wang & Liu 2016, eq. (7); Liu & Wang 2016, eq. (8).
    """
    rows, score = _checks.scored(particles, score)
    (rows, relative), (score, _) = _weights.relative(
        axis_name, ("weights", rows, weights), ("", score, None)
    )
    _traits.check_positive(kernel)
    size = rows.shape[0] * _devices.num_devices(axis_name)
    narrow = _traits.is_feature_kernel(kernel) and _traits.coordinate_lengthscales(kernel) is None
    points = rows if narrow else _numeric.wide(rows)
    if relative is not None:
        relative = _numeric.like(relative, points)
        score = _numeric.like(score, points) * relative[:, None]
    sums = pairwise.stein_sum(kernel, points, None, score, relative, axis_name=axis_name)
    return _checks.like_points(_numeric.like(_numeric.wide(sums) / size, rows), particles)


def kernel_noise(key: Key, particles: PyTree, kernel: Kernel) -> PyTree:
    r"""Returns Gaussian noise that is correlated between particles as the kernel is.

    .. math:: \zeta = L \xi, \quad L L^\top = K + n \epsilon\, k(0) I, \quad \xi_{ia} \sim N(0, 1)

    with the machine epsilon, which keeps the Cholesky factor real where particles coincide.
    Columns are independent. The step :math:`x + \varepsilon \phi + \sqrt{2 \varepsilon / n}\,
    \zeta` is stochastic SVGD: Langevin dynamics of all particles jointly, preconditioned by K / n,
    whose time average is unbiased for any n as epsilon goes to 0.

    Args:
      key: random key.
      particles: x_i; shape (n, d), floating, or a pytree of floating arrays (n, ...).
      kernel: k, of particles raveled to vectors; its lengthscales are in units of particles.

    Returns:
      Noise, shaped and typed like particles, in units of sqrt(k).

    Raises:
      ValueError: wrong rank or dtype, or a kernel without k(0) > 0.

    Cost: O(n^3 / 3 + n^2 d) time, O(n^2) memory.

    Example:
      >>> from kernelgrad import kernels, svgd
      >>> x = jnp.array([[0.0], [0.0], [9.0]])  # two that coincide
      >>> noise = svgd.kernel_noise(jax.random.key(0), x, kernels.rbf_mixture(1.0))
      >>> bool(jnp.abs(noise[0, 0] - noise[1, 0]) < 0.01), noise.shape
      (True, (3, 1))

    References:
      Gallego & Rios Insua 2018, Stochastic gradient MCMC with repulsive forces.
    """
    (rows,) = _checks.raveled(particles=particles)
    _traits.check_positive(kernel)
    gram = kernels.gram(kernel, rows)
    jitter = rows.shape[0] * jnp.finfo(gram.dtype).eps * jnp.diagonal(gram)
    factor = jnp.linalg.cholesky(gram + jnp.diag(jitter))
    noise = jax.random.normal(key, rows.shape, gram.dtype)
    return _checks.like_points(_numeric.dot(factor, noise).astype(rows.dtype), particles)


def init(particles: PyTree, optimizer: optax.GradientTransformation) -> SVGDState:
    """Returns the state before the first step.

    Args:
      particles: x_i; shape (n, d), floating, or a pytree of floating arrays (n, ...).
      optimizer: the Optax optimizer that will be stepped.

    Returns:
      The state; under axis_name, that of this device's particles.

    Raises:
      ValueError: wrong rank or dtype, or concrete particles that are not finite.

    Example:
      >>> from kernelgrad import svgd
      >>> networks = {"weight": jnp.zeros((5, 3, 2)), "bias": jnp.zeros((5, 2))}  # five of them
      >>> state = svgd.init(networks, optax.adam(0.1))
      >>> jax.tree.map(jnp.shape, state.particles)
      {'bias': (5, 2), 'weight': (5, 3, 2)}
    """
    (rows,) = _checks.raveled(particles=particles)
    _checks.finite(particles=rows)
    particles = _checks.like_points(rows, particles)
    return SVGDState(particles, optimizer.init(particles))


def step(
    state: SVGDState,
    score_fn: ScoreFn,
    kernel: Kernel,
    optimizer: optax.GradientTransformation,
    *,
    weights: Array | None = None,
    axis_name: str | None = None,
) -> tuple[SVGDState, SVGDInfo]:
    r"""Moves the particles by one optimizer step along :func:`svgd_direction`.

    .. math:: x \leftarrow x + \mathrm{optimizer}(-\phi(x))

    The sign is taken care of: the optimizer descends, phi is to be ascended.

    Args:
      state: the particles and the optimizer's state.
      score_fn: maps all particles to grad log p at each of them, shaped like them; exact, such as
        :func:`kernelgrad.score.score_from_log_density`, or a minibatch estimate closed over its
        batch or key.
      kernel: k, of particles raveled to vectors; its lengthscales are in units of particles.
      optimizer: any Optax optimizer, the one of :func:`init`. Transformations that look at the
        whole gradient (global norms) see one device's particles at a time.
      weights: w_i of the particles, as in :func:`svgd_direction`; shape (n,). They stay as they
        are.
      axis_name: if set, the particles are the union over all devices.

    Returns:
      The next state and the info. One score that is not finite spreads to all particles through
      the sum, and ``info.finite`` says so.

    Raises:
      ValueError: wrong dtype, a score shaped unlike the particles, or what
        :func:`svgd_direction` refuses.

    Cost: one call of score_fn, and that of :func:`svgd_direction`.

    Example:
      >>> from kernelgrad import kernels, svgd
      >>> optimizer = optax.sgd(0.1)
      >>> state = svgd.init(jnp.array([[2.0]]), optimizer)
      >>> state, info = svgd.step(state, lambda x: -x, kernels.rbf_mixture(1.0), optimizer)
      >>> print(state.particles)  # one particle ascends the density: 2 + 0.1 * (-2)
      [[1.8]]

    References:
      Wang & Liu 2016, eqs. (1), (7).
    """
    (rows,) = _checks.raveled(**{"state.particles": state.particles})
    particles = _checks.like_points(rows, state.particles)
    score = _checks.call("score_fn", "(particles) -> scores", score_fn, particles)
    direction = svgd_direction(particles, score, kernel, weights=weights, axis_name=axis_name)
    descent = jax.tree.map(lambda d, x: -d.astype(x.dtype), direction, particles)
    updates, opt_state = optimizer.update(descent, state.opt_state, particles)
    particles = optax.apply_updates(particles, updates)
    steps, places = _checks.raveled(direction=direction, particles=particles)
    mean_square = jnp.mean(jnp.sum(jnp.square(_numeric.wide(steps)), axis=1))
    mean_square = _devices.statistic(mean_square, axis_name)
    finite = jnp.all(jnp.isfinite(steps) & jnp.isfinite(places))
    if axis_name is not None:
        finite = lax.pmin(finite.astype(jnp.int32), axis_name) == 1
    return SVGDState(particles, opt_state), SVGDInfo(_numeric.root(mean_square), finite)
