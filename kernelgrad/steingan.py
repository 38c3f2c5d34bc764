r"""SteinGAN: a deep energy model and a generator that learns to draw from it, by SVGD.

The energy learns by maximum likelihood with the generator's samples in the place of the model's,
the generator follows SVGD towards exp(-energy). What the scripts of the authors' public code do
otherwise than their paper is an argument each of :func:`steingan`:

=========================  ============================  =======================================
script                     field                         controller
=========================  ============================  =======================================
mnist/mnist_steingan.py,   ``one_pass_direction``,       frozen on one side at 0.5, boosted with
cifar10/                   ``lengthscale=half_svgd``     the other discount:
cifar10_steingan.py                                      ``leading_discount=0.9``
celeba/celeba_steingan.py  the same                      never frozen: ``threshold=math.inf``
celeba/                    ``nearest_direction``,        the same
steingan_celeba.py,        ``lengthscale=half_svgd``
lsun/steingan_lsun.py
mnist/rbm_adv.py           ``row_normalized_direction``  none
=========================  ============================  =======================================

cifar10/steingan_supervised.py follows the nearest neighbour too, switches the discount and has one
rate. The scripts of MNIST and CIFAR-10 compare errors of reconstruction alone, :func:`rate_factor`
whole energies, that of the label included; they let both players take turns, and both rates fall
to 0 over the second half of the epochs. Norms, layers and schedules are the caller's.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import (
    _checks,
    _devices,
    _distances,
    _folds,
    _numeric,
    _tiles,
    kernels,
    pairwise,
    svgd,
)
from kernelgrad._distances import Bare
from kernelgrad.kernels import FeatureKernel
from kernelgrad.two_player import CriticFn, TwoPlayer, on_batches
from kernelgrad.types import Array, Info, Kernel, Key, PyTree

_PAIRS_AT_ONCE = 1 << 20


class FieldFn(Protocol):
    """An ascent direction of particles, which repels by the gradient of the kernel's features.

    Such as :func:`kernelgrad.svgd.svgd_direction`.
    """

    def __call__(
        self,
        particles: Array,
        score: Array,
        kernel: FeatureKernel,
        *,
        axis_name: str | None = None,
    ) -> Array:
        """Returns the directions (n, d) of particles (n, d)."""
        ...


class LengthscaleFn(Protocol):
    """A rule for the lengthscale of the kernel on features."""

    def __call__(self, features: Array, *, axis_name: str | None = None) -> Array:
        """Returns the lengthscale, shape (), for features (n, f)."""
        ...


# -------------------------------------------------------------------------------------- the kernel


def half_median(features: Array, *, axis_name: str | None = None) -> Array:
    r"""Returns the lengthscale of :math:`\exp(-|e - e'|^2 / h^2)`, h half of the median distance.

    Args:
      features: e; shape (n, f), floating.
      axis_name: if set, they are the union over all devices.

    Returns:
      :math:`h / \sqrt 2`, shape (), in units of the features.

    Raises:
      ValueError: wrong rank or dtype, or fewer than two points.

    Example:
      >>> from kernelgrad import steingan
      >>> features = jnp.array([[0.0], [1.0], [3.0]])  # of median distance 2
      >>> round(float(steingan.half_median(features)), 3)  # 1 / sqrt(2)
      0.707

    References:
      Wang & Liu 2016 (learning to draw samples), section 5.
    """
    return kernels.median_lengthscale(features, axis_name=axis_name) / math.sqrt(8)


def half_svgd(features: Array, *, axis_name: str | None = None) -> Array:
    """Returns half of the lengthscale of SVGD's rule, as the authors' public code has it.

    Their median also counts the n distances of points to themselves.

    Args:
      features: e; shape (n, f), floating.
      axis_name: if set, they are the union over all devices.

    Returns:
      Lengthscale, shape (), in units of the features: :func:`half_median` over sqrt(log(n + 1)).

    Raises:
      ValueError: wrong rank or dtype, or fewer than two points.

    Example:
      >>> from kernelgrad import kernels, steingan
      >>> features = jnp.array([[0.0], [1.0], [3.0]])
      >>> half = kernels.svgd_lengthscale(features) / 2
      >>> bool(jnp.allclose(steingan.half_svgd(features), half))
      True

    References:
      The public code of SteinGAN; :func:`kernelgrad.kernels.svgd_lengthscale`.
    """
    return kernels.svgd_lengthscale(features, axis_name=axis_name) / 2


# --------------------------------------------------------------------------------------- the field


def row_normalized_direction(
    particles: Array, score: Array, kernel: Kernel, *, axis_name: str | None = None
) -> Array:
    r"""Returns the SVGD direction with the kernel's row sums in place of n.

    .. math:: \frac{\sum_j [ k(x_j, x_i) s_j + \nabla_{x_j} k(x_j, x_i) ]}{\sum_j k(x_j, x_i)}

    Ascent direction, as :func:`kernelgrad.svgd.svgd_direction`: the score averaged over
    neighbours, however few there are.

    Args:
      particles: x_i; shape (n, d), floating.
      score: s_j = grad log p(x_j), in 1/units of particles; shape (n, d).
      kernel: k.
      axis_name: if set, j runs over the union of all devices' particles.

    Returns:
      Directions, shape (n, d), in 1/units of particles.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes.

    Cost: that of the SVGD direction, and of one more sum of the kernel.

    Example:
      >>> from kernelgrad import kernels, steingan
      >>> x, score = jnp.array([[0.0], [99.0]]), jnp.array([[1.0], [-1.0]])  # no neighbours
      >>> kernel = kernels.rbf_mixture(1.0)
      >>> print(steingan.row_normalized_direction(x, score, kernel).T)  # the score
      [[ 1. -1.]]

    References:
      The public code of SteinGAN, mnist/rbm_adv.py: its kernel is between the points themselves.
    """
    particles, score = _checks.scored(particles, score)
    ascent = svgd.svgd_direction(particles, score, kernel, axis_name=axis_name)
    size = particles.shape[0] * _devices.num_devices(axis_name)
    shares = jnp.full((particles.shape[0], 1), 1 / size, _numeric.wide(particles).dtype)
    means = pairwise.kernel_sum(kernel, particles, None, shares, axis_name=axis_name)
    return _numeric.like(_numeric.wide(ascent) / means, particles)


def one_pass_direction(
    particles: Array, score: Array, kernel: FeatureKernel, *, axis_name: str | None = None
) -> Array:
    r"""Returns the row-normalised direction, the features differentiated where they are repelled.

    .. math:: \frac{\sum_j k(x_j, x_i)\, s_j + J_i^\top \sum_j \nabla_{e_j} k_0(e_j, e_i)}
        {\sum_j k(x_j, x_i)}, \quad J_i = \partial e(x_i) / \partial x_i

    Ascent direction. SVGD has :math:`J_j` within the sum, a backward pass for every feature; this
    is one in all. Its repulsion is :math:`-\nabla_{x_i} \log \sum_j k(x_j, x_i)` with the x_j held
    still: minus the score of a kernel density estimate between features. Where the features are
    the points themselves both are the same.

    Args:
      particles: x_i; shape (n, d), floating.
      score: s_j = grad log p(x_j), in 1/units of particles; shape (n, d).
      kernel: k, of the features e, k_0 between them.
      axis_name: if set, j runs over the union of all devices' particles.

    Returns:
      Directions, shape (n, d), in 1/units of particles.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes.

    Cost: O(n^2 (d + f)) time, one backward pass of the features.

    Example:
      >>> from kernelgrad import kernels, steingan
      >>> base, x = kernels.rbf_mixture(1.0), jnp.array([[0.0], [1.0]])
      >>> points = kernels.feature_kernel(base, lambda params, x: x, ())  # features are the points
      >>> one_pass = steingan.one_pass_direction(x, -x, points)
      >>> bool(jnp.allclose(one_pass, steingan.row_normalized_direction(x, -x, base), atol=1e-5))
      True

    References:
      The public code of SteinGAN, mnist/mnist_steingan.py and cifar10/cifar10_steingan.py.
    """
    particles, score = _checks.scored(particles, score)
    points = _devices.own_point(kernel.features, particles)
    features, pull = jax.vjp(kernel.features, points)
    score, embedded = _numeric.wide(score), _numeric.wide(features)
    terms = jnp.concatenate([score, jnp.ones_like(score[:, :1])], axis=1)
    each = jnp.ones_like(embedded[:, 0])
    sums, apart = pairwise.kernel_and_gradient_sum(
        kernel.base, embedded, None, terms, each, axis_name=axis_name
    )
    (repulsion,) = pull(_numeric.like(apart, features))
    ascent = (sums[:, :-1] + _numeric.like(repulsion, sums)) / sums[:, -1:]
    return _numeric.like(ascent, particles)


def nearest_direction(
    particles: Array, score: Array, kernel: FeatureKernel, *, axis_name: str | None = None
) -> Array:
    r"""Returns the score, with half of the repulsion by the nearest neighbour.

    .. math:: s_i + \tfrac12 \nabla_{x_j} k(x_j, x_i), \quad j = \arg\min_{j \neq i} |e_j - e_i|

    Ascent direction, in which the kernel averages nothing.

    Args:
      particles: x_i; shape (n, d), n >= 2 over all devices, floating.
      score: s_i = grad log p(x_i), in 1/units of particles; shape (n, d).
      kernel: k, of the features e.
      axis_name: if set, j runs over the union of all devices' particles.

    Returns:
      Directions, shape (n, d), in 1/units of particles.

    Raises:
      ValueError: wrong rank, dtype or mismatched shapes, or a single particle.

    Cost: O(n^2 f) time, O(n (d + f)) memory, a backward pass of the features; over devices O(n^2 d)
      time more, each device holds its share, and of many pairs the shares go round a ring.

    Example:
      >>> from kernelgrad import kernels, steingan
      >>> kernel = kernels.feature_kernel(kernels.rbf_mixture(1.0), lambda params, x: x, ())
      >>> x = jnp.array([[0.0], [1.0]])
      >>> print(steingan.nearest_direction(x, jnp.zeros((2, 1)), kernel).T)  # exp(-1/2) / 2 apart
      [[-0.303  0.303]]

    References:
      The public code of SteinGAN, lsun/steingan_lsun.py.
    """
    particles, score = _checks.scored(particles, score)
    _checks.at_least("particles", particles.shape[0] * _devices.num_devices(axis_name), 2)
    features = kernel.features(particles)
    nearest = _others(particles, _nearest(lax.stop_gradient(features), axis_name), axis_name)

    def near(others: Array) -> Array:
        gaps = _numeric.wide(kernel.features(others)) - _numeric.wide(features)
        return jnp.sum(kernel.base.profile(jnp.sum(jnp.square(gaps), axis=1)))

    return _numeric.like(score, particles) + jax.grad(near)(_devices.own_point(near, nearest)) / 2


def _nearest(features: Array, axis_name: str | None) -> Array:
    """Returns how many places after each point its nearest other stands; the first of equals."""
    points, _ = _distances.bare(features)
    centre = _distances.middle(points.raw, axis_name)

    def nearer(
        shift: Any, some: Bare, kept: tuple[Array, Array], others: Bare
    ) -> tuple[Array, Array]:
        rows, cols = (_distances.moved(side, centre) for side in (some, others))
        sq_dist = _distances.between(None, rows, cols, shift)
        known = (others.real[None, :] > 0) & (sq_dist < jnp.inf)
        sq_dist = jnp.where(known, sq_dist, jnp.inf)
        sq_dist = _distances.at_same_point(sq_dist, shift, jnp.inf)
        row = jnp.arange(sq_dist.shape[0], dtype=jnp.int32)
        places = jnp.argmin(sq_dist, axis=1).astype(jnp.int32) - row - shift
        found = jnp.min(sq_dist, axis=1), places
        closer = (found[0] < kept[0]) | ((found[0] == kept[0]) & (found[1] < kept[1]))
        return jax.tree.map(lambda new, old: jnp.where(closer, new, old), found, kept)

    nothing = jnp.full_like(points.real, jnp.inf), jnp.zeros(points.real.shape, jnp.int32)
    kept = _folds.fold(nearer, nothing, points, points, axis_name, pairs_at_once=_PAIRS_AT_ONCE)
    return kept[1]


def _others(points: Array, places: Array, axis_name: str | None) -> Array:
    """Returns the points so many places after each, of all devices."""
    if _devices.num_devices(axis_name) == 1:
        return points[jnp.arange(points.shape[0], dtype=jnp.int32) + places]
    own = _numeric.wide(points)
    rows = places.astype(own.dtype)  # no integer, for it has a cotangent, too
    return _numeric.like(_tiles.stream(_picked, (), rows, own, axis_name).rows, points)


def _picked(_: tuple[()], shift: Any, places: Array, points: Array) -> _tiles.PairSums:
    """The points so many places after each row, where they are among the columns, else 0."""
    row, col = (
        lax.broadcasted_iota(jnp.int32, (places.shape[0], points.shape[0]), axis) for axis in (0, 1)
    )
    is_it = (col - row - shift).astype(places.dtype) == places[:, None]
    points = jnp.where(jnp.isfinite(points), points, 0)  # what is not finite is nobody's nearest
    return _tiles.PairSums(rows=_numeric.dot(is_it.astype(points.dtype), points))


# ------------------------------------------------------------------------------------- the players


def stabilized_loss(
    energy_data: Array, energy_samples: Array, *, discount: float | Array = 0.7
) -> Array:
    r"""Returns the loss of the stabilised update of the energy.

    .. math:: \frac1n \sum_i E(x_i) - \frac{1 - \gamma}{m} \sum_j E(\tilde x_j)

    The energy minimises it. At gamma = 0 and draws of the model its gradient is minus that of the
    log-likelihood; gamma > 0 adds gamma times the log-partition function to the likelihood.

    Args:
      energy_data: E(x_i) at data; shape (n,), floating, in nats.
      energy_samples: E at samples of the generator; shape (m,).
      discount: gamma in [0, 1); shape ().

    Returns:
      Loss, shape (), in nats; at least float32.

    Raises:
      ValueError: a concrete discount outside of [0, 1).

    Example:
      >>> from kernelgrad import steingan
      >>> energy_data, energy_samples = jnp.array([1.0]), jnp.array([2.0, 4.0])
      >>> float(steingan.stabilized_loss(energy_data, energy_samples, discount=0.5))  # 1 - 3 / 2
      -0.5

    References:
      Wang & Liu 2016 (learning to draw samples), eqs. (13) and (16).
    """
    _checks.in_range("discount", discount, 0.0, 1.0, closed="l")
    energy_data, energy_samples = _checks.vectors(
        energy_data=energy_data, energy_samples=energy_samples
    )
    mean_data, mean_samples = (jnp.mean(_numeric.wide(e)) for e in (energy_data, energy_samples))
    return mean_data - (1 - discount) * mean_samples


def rate_factor(
    energy_data: Array,
    energy_samples: Array,
    *,
    boost: float = 5.0,
    threshold: float = 0.5,
    two_sided: bool = False,
) -> Array:
    r"""Returns what multiplies the learning rate of an energy, to keep both players aligned.

    The energy is frozen where it is ahead, the samples' energy far above the data's. Read
    literally, the paper freezes it for a difference of either sign, which is `two_sided`: where
    the data's energy is the larger one by so much, as it may be from the start, the energy waits
    for a generator that lowers the samples' energy still further.

    Args:
      energy_data: mean energy of the batch of data; shape ().
      energy_samples: mean energy of the samples; shape ().
      boost: the factor while the data's energy is the larger one; > 0.
      threshold: of energy_samples - energy_data, beyond which the energy is frozen; > 0, infinity
        never freezes.
      two_sided: whether a difference beyond -threshold freezes it too.

    Returns:
      0, 1 or boost, NaN where the energies do not compare; shape ().

    Example:
      >>> from kernelgrad import steingan
      >>> gaps = jnp.array([-0.1, 0.1, 1.0])  # of the samples' energy over the data's
      >>> [float(steingan.rate_factor(jnp.array(0.0), gap)) for gap in gaps]
      [5.0, 1.0, 0.0]

    References:
      Wang & Liu 2016 (learning to draw samples), section 5: 5e-4 in place of 1e-4, and 0.5.
    """
    lead = _numeric.wide(energy_samples) - _numeric.wide(energy_data)
    distance = jnp.abs(lead) if two_sided else lead
    factor = jnp.where(distance > threshold, 0.0, jnp.where(lead < 0, boost, 1.0))
    return lax.stop_gradient(jnp.where(jnp.isnan(lead), jnp.nan, factor).astype(lead.dtype))


def steingan(
    *,
    discount: float = 0.7,
    leading_discount: float | None = None,
    field: FieldFn = svgd.svgd_direction,
    lengthscale: LengthscaleFn = half_median,
    threshold: float = 0.5,
    two_sided: bool = False,
) -> TwoPlayer:
    r"""Returns amortized maximum likelihood of a deep energy model, SteinGAN.

    .. math:: \theta \text{ descends } \frac1n \sum_i E(x_i) - \frac{1 - \gamma}{n} \sum_i
        E(\tilde x_i), \quad \tilde x \text{ follows SVGD towards } p \propto e^{-E}

    The kernel of SVGD is Gaussian between the critic's features; its gradient runs through the
    features to the samples, while the critic's parameters are held still. The critic returns
    (energies (n,), features (n, f)).

    Args:
      discount: gamma of the stabilised update, in [0, 1); 0 is maximum likelihood.
      leading_discount: gamma where the samples' energy is at least the data's, in [0, 1); None:
        `discount` there too.
      field: what the generator ascends.
      lengthscale: of the kernel, in units of the features.
      threshold: of :func:`rate_factor`; > 0.
      two_sided: of :func:`rate_factor`.

    Returns:
      Objective of two players with info ``critic_loss``, ``energy_data``, ``energy_samples``,
      ``discount`` (the one in use), ``repulsion_ratio`` (what the features' gradient adds to the
      field over the rest of it, root mean squares over samples), and ``rate_factor``, 0 where the
      energy is frozen, by which its learning rate is to be multiplied
      (:func:`kernelgrad.critic.scale_by_info`; behind Adam, whose moments go on while the energy
      is frozen).

    Raises:
      ValueError: a number out of its range.

    Cost: a backward pass of the critic for every feature, and O(n^2 (d + f)) time.

    Example:
      >>> from kernelgrad import kernels, steingan, svgd
      >>> critic_fn = lambda x: (jnp.sum(x**2, axis=1) / 2, x)  # N(0, 1)'s energy, and features
      >>> x = jnp.array([[0.0], [1.0]])
      >>> direction, info = steingan.steingan().direction(critic_fn, jax.random.key(0), x, x)
      >>> kernel = kernels.rbf_mixture(steingan.half_median(x))
      >>> bool(jnp.allclose(direction, -svgd.svgd_direction(x, -x, kernel), atol=1e-5))  # descended
      True

    References:
      Wang & Liu 2016 (learning to draw samples), algorithm 2, eqs. (7), (14) and (16).
    """
    _checks.in_range("discount", discount, 0.0, 1.0, closed="l")
    if leading_discount is not None:
        _checks.in_range("leading_discount", leading_discount, 0.0, 1.0, closed="l")
    _checks.in_range("threshold", threshold, 0.0, math.inf, closed="r")
    rate = functools.partial(rate_factor, threshold=threshold, two_sided=two_sided)

    return TwoPlayer(
        on_batches(functools.partial(_energy_loss, discount, leading_discount, rate)),
        on_batches(functools.partial(_generator_direction, field, lengthscale)),
    )


def _energy_loss(
    behind: float,
    leading: float | None,
    rate: Callable[[Array, Array], Array],
    critic_fn: CriticFn,
    key: Key,
    samples: Array,
    data: Array,
    *,
    axis_name: str | None = None,
) -> tuple[Array, Info]:
    del key
    of_data, of_samples = (_returned(critic_fn(points))[0] for points in (data, samples))
    mean_data, mean_samples = (
        _devices.agreed(jnp.mean(_numeric.wide(energy)), axis_name)
        for energy in (of_data, of_samples)
    )
    discount: float | Array = behind
    if leading is not None:
        discount = jnp.where(mean_samples < mean_data, behind, leading).astype(mean_data.dtype)
    loss = stabilized_loss(of_data, of_samples, discount=discount)
    return loss, {
        "critic_loss": loss,
        "energy_data": mean_data,
        "energy_samples": mean_samples,
        "rate_factor": rate(mean_data, mean_samples),
        "discount": _numeric.like(discount, mean_data),
    }


def _generator_direction(
    field: FieldFn,
    lengthscale: LengthscaleFn,
    critic_fn: CriticFn,
    key: Key,
    samples: Array,
    data: Array,
    *,
    axis_name: str | None = None,
) -> tuple[Array, Info]:
    del key, data
    flat = samples.reshape(samples.shape[0], -1)

    def outputs(points: Array) -> tuple[Array, Array]:
        return _returned(critic_fn(points.reshape(-1, *samples.shape[1:])))

    def features(_: PyTree, points: Array) -> Array:
        return outputs(points)[1]

    flat = _devices.own_point(outputs, flat)
    score = -jax.grad(lambda points: jnp.sum(outputs(points)[0]))(flat)
    base = kernels.rbf_mixture(lengthscale(outputs(flat)[1], axis_name=axis_name))
    kernel, still = (
        kernels.feature_kernel(base, one, ())
        for one in (features, lambda *args: lax.stop_gradient(features(*args)))
    )
    ascent, pulled = (field(flat, score, one, axis_name=axis_name) for one in (kernel, still))
    pushed_rms, pulled_rms = (
        _devices.over_rms(_numeric.wide(part), axis_name)[1] for part in (ascent - pulled, pulled)
    )
    return -ascent.reshape(samples.shape), {"repulsion_ratio": pushed_rms / pulled_rms}


def _returned(output: Any) -> tuple[Array, Array]:
    return _checks.two_returned("critic", "points -> (energies, features)", output)
