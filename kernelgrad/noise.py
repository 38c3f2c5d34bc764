"""Instance noise, and the optimal discriminator between two clouds under it in closed form.

Gaussian noise gives two clouds densities, sums of kernels, and with them an optimal discriminator
that no network has to learn.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _devices, _distances, _folds, _numeric, _tiles, kernels
from kernelgrad._distances import Bare, Points
from kernelgrad.types import Array, Key

_PAIRS_AT_ONCE = 1 << 21
_FAR = 16  # radii of the clouds, beyond which squared distances round off more than the clouds


# --------------------------------------------------------------------------------- instance noise


def instance_noise(
    key: Key, x: Array, *, variance: float | Array, axis_name: str | None = None
) -> Array:
    r"""Returns points plus Gaussian noise, :math:`x + \sigma \xi,\ \xi \sim N(0, I)`.

    Add it to real and generated samples alike, under two keys, wherever the discriminator sees
    them: in its own loss and in the generator's. Anneal the variance to 0 by an Optax schedule of
    the step.

    Args:
      key: random key of the noise.
      x: points; shape (n, ...), floating.
      variance: sigma^2 >= 0 of each coordinate, in squared units of x; shape ().
      axis_name: if set, all devices have one key and the noise is drawn for the union of their
        points.

    Returns:
      Noised points, shape and dtype of x.

    Raises:
      ValueError: wrong dtype, or a concrete variance that is negative.

    Example:
      >>> from kernelgrad import noise
      >>> key, x = jax.random.key(0), jnp.zeros((3, 1))
      >>> a, b = (noise.instance_noise(key, x, variance=variance) for variance in (1.0, 4.0))
      >>> bool(jnp.allclose(b, 2 * a))  # the variance is the square of the scale
      True

    References:
      Arjovsky & Bottou 2017, section 3.
    """
    (x,) = _checks.batches(x=x)
    scale = _noise_scale(x, variance)
    draws = jax.random.normal(key, _union_shape(x, axis_name), scale.dtype)
    return _numeric.like(_numeric.wide(x) + scale * _devices.share(draws, axis_name), x)


def bounded_noise(
    key: Key, x: Array, *, variance: float | Array, axis_name: str | None = None
) -> Array:
    r"""Returns points plus uniform noise, for :func:`adversarial.wasserstein_bound`.

    .. math:: x + \sqrt 3\, \sigma\, u, \quad u \sim U[-1, 1]^d

    Use it as :func:`instance_noise`.

    Args:
      key: random key of the noise.
      x: points; shape (n, ...), floating.
      variance: sigma^2 >= 0 of each coordinate, in squared units of x; shape ().
      axis_name: if set, all devices have one key and the noise is drawn for the union of their
        points.

    Returns:
      Noised points, shape and dtype of x; no point moves by more than sqrt(3 d) sigma.

    Raises:
      ValueError: wrong dtype, or a concrete variance that is negative.

    Example:
      >>> from kernelgrad import noise
      >>> noised = noise.bounded_noise(jax.random.key(0), jnp.zeros((8, 1)), variance=4.0)
      >>> bool(jnp.all(jnp.abs(noised) <= 2 * 3**0.5))  # sqrt(3) sigma
      True

    References:
      Arjovsky & Bottou 2017, Theorem 3.3.
    """
    (x,) = _checks.batches(x=x)
    scale = math.sqrt(3) * _noise_scale(x, variance)
    draws = jax.random.uniform(key, _union_shape(x, axis_name), scale.dtype, -1, 1)
    return _numeric.like(_numeric.wide(x) + scale * _devices.share(draws, axis_name), x)


def _union_shape(x: Array, axis_name: str | None) -> tuple[int, ...]:
    return (x.shape[0] * _devices.num_devices(axis_name), *x.shape[1:])


def _noise_scale(x: Array, variance: float | Array) -> Array:
    _checks.shape("variance", variance, ())
    _checks.not_negative(variance=variance)
    return _numeric.root(_numeric.like(variance, _numeric.wide(x)))


# ------------------------------------------------------- the optimal discriminator of noised clouds


def noisy_logits(
    points: Array,
    real: Array,
    fake: Array,
    *,
    variance: float | Array,
    axis_name: str | None = None,
) -> Array:
    r"""Returns the logits of the optimal discriminator between two clouds under Gaussian noise.

    .. math:: l(x) = \log \frac1m \sum_j e^{-|x - y_j|^2 / 2 \sigma^2}
        - \log \frac1n \sum_j e^{-|x - \tilde x_j|^2 / 2 \sigma^2}

    the logarithm of the ratio of the two noised densities, in closed form: no network. Summed in
    logarithms, it is finite however far the point, up to the range of the dtype. At points that
    carry fresh noise of the same variance, the logits of real and of generated ones make
    :func:`adversarial.jsd_estimate` an unbiased estimate of the JSD of the two noised clouds.

    Args:
      points: x, noised or not; shape (q, d), floating.
      real: y_j; shape (m, d).
      fake: generated samples; shape (n, d).
      variance: sigma^2 > 0 of each coordinate, in squared units of points; shape ().
      axis_name: if set, the clouds are the union over all devices; points stay apart.

    Returns:
      Logits, shape (q,), dtype of points. Differentiable in points, clouds and variance.

    Raises:
      ValueError: wrong rank, dtype or mismatched dimensions, or a concrete variance <= 0.

    Cost: O(q (m + n) d) time, O((q + m + n) d) memory; over devices as
      :func:`kernelgrad.score_peers.kde_score`.

    Example:
      >>> from kernelgrad import noise
      >>> real, fake = jnp.array([[1.0]]), jnp.array([[-1.0]])  # N(1, 1) and N(-1, 1): 2 x
      >>> points = jnp.array([[1.0], [2.0]])
      >>> print(noise.noisy_logits(points, real, fake, variance=1.0))
      [2. 4.]

    References:
      Arjovsky & Bottou 2017, Theorem 3.2, D*.
    """
    return noisy_logits_and_gradient(points, real, fake, variance=variance, axis_name=axis_name)[0]


def noisy_logits_and_gradient(
    points: Array,
    real: Array,
    fake: Array,
    *,
    variance: float | Array,
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    r"""Returns :func:`noisy_logits` and their gradient in the points, the clouds held fixed.

    .. math:: \nabla l(x) = \frac{\mu_r(x) - \mu_g(x)}{\sigma^2}, \quad
        \mu_r(x) = \frac{\sum_j k_j y_j}{\sum_j k_j}, \quad k_j = e^{-|x - y_j|^2 / 2 \sigma^2}

    and likewise the mean :math:`\mu_g` of the generated samples near x. Ascent moves x towards the
    data near it and away from the generated samples near it; descending the negative is the update
    of :func:`adversarial.kl_loss`.

    Args:
      points: as in :func:`noisy_logits`.
      real: as in :func:`noisy_logits`.
      fake: as in :func:`noisy_logits`.
      variance: as in :func:`noisy_logits`.
      axis_name: as in :func:`noisy_logits`.

    Returns:
      Pair of logits, shape (q,), and gradients, shape (q, d), in 1/units of points.

    Raises:
      ValueError: as :func:`noisy_logits`.

    Cost: O(q (m + n) d) time, O((q + m + n) d) memory; over devices as
      :func:`kernelgrad.score_peers.kde_score`.

    Example:
      >>> from kernelgrad import noise
      >>> real, fake = jnp.array([[1.0]]), jnp.array([[-1.0]])
      >>> points = jnp.array([[1.0], [2.0]])
      >>> logits, gradient = noise.noisy_logits_and_gradient(points, real, fake, variance=1.0)
      >>> print(logits, gradient.T)  # 2 x and its slope
      [2. 4.] [[2. 2.]]

    References:
      Arjovsky & Bottou 2017, Theorem 3.2.
    """
    points, real, fake = _checks.points(points=points, real=real, fake=fake)
    _checks.shape("variance", variance, ())
    _checks.positive(variance=variance)
    rows, real, fake = (_numeric.like(x, _numeric.wide(points)) for x in (points, real, fake))
    width = _numeric.like(variance, rows)
    centre = _distances.middle(jnp.concatenate([real, fake]), axis_name)
    clouds = [_distances.moved(cloud, centre) for cloud in (real, fake)]
    peaks = jnp.stack([jnp.max(jnp.abs(cloud.centred)) for cloud in clouds])
    reach = _FAR * _devices.largest(lax.stop_gradient(jnp.max(peaks)), axis_name)
    apart = _distances.apart(*clouds, least=jnp.sqrt(width))
    exact = _devices.largest(apart, axis_name).astype(rows.dtype)
    shared = _Shared(width, lax.stop_gradient(centre), reach, exact)
    of_real, of_fake = (_cloud(shared, rows, cloud, axis_name) for cloud in (real, fake))
    logits = jnp.log(of_real.mean) - jnp.log(of_fake.mean)
    logits += (of_fake.nearest - of_real.nearest) / (2 * width)
    gradients = (of_real.centre - of_fake.centre) / width
    return _numeric.like(logits, points), _numeric.like(gradients, points)


def noisy_jsd_direction(
    points: Array,
    real: Array,
    fake: Array,
    *,
    variance: float | Array,
    axis_name: str | None = None,
) -> Array:
    r"""Returns the gradient of log(1 - D*) at each point, D* optimal under noise and held fixed.

    .. math:: \nabla_x \log(1 - D^*(x)) = \frac a m \sum_j k_j\, 2 (x - y_j)
        - \frac b n \sum_j \tilde k_j\, 2 (x - \tilde x_j)
        = D^*(x)\, \frac{\mu_g(x) - \mu_r(x)}{\sigma^2}

    with the kernel sums and means of :func:`noisy_logits_and_gradient`, :math:`a = 1 / (2 \sigma^2
    (\bar k + \bar{\tilde k}))` and :math:`b = a\, \bar k / \bar{\tilde k}`. Descend it: points
    move towards the data near them, weighted by D*. At the generated samples themselves it is
    Theorem 3.2; at generated samples plus fresh noise (:func:`instance_noise` of this variance)
    its mean over the noise, pulled back through the generator, is the gradient of 2 JSD between
    the noised clouds.

    Args:
      points: x, the generated samples, noised or not; shape (q, d), floating.
      real: y_j; shape (m, d).
      fake: generated samples without noise; shape (n, d).
      variance: sigma^2 > 0 of each coordinate, in squared units of points; shape ().
      axis_name: if set, the clouds are the union over all devices; points stay apart.

    Returns:
      Directions, shape (q, d), dtype of points, in 1/units of points.

    Raises:
      ValueError: wrong rank, dtype or mismatched dimensions, or a concrete variance <= 0.

    Cost: O(q (m + n) d) time, O((q + m + n) d) memory; over devices as
      :func:`kernelgrad.score_peers.kde_score`.

    Example:
      >>> from kernelgrad import noise
      >>> real, fake = jnp.array([[1.0]]), jnp.array([[-1.0]])
      >>> point = jnp.array([[0.0]])  # where D = 1/2
      >>> print(noise.noisy_jsd_direction(point, real, fake, variance=1.0))  # -2 D
      [[-1.]]

    References:
      Arjovsky & Bottou 2017, Theorem 3.2, eq. (4), whose bracket closes after both integrals.
    """
    logits, gradient = noisy_logits_and_gradient(
        points, real, fake, variance=variance, axis_name=axis_name
    )
    return -jax.nn.sigmoid(logits)[:, None] * gradient


class _Shared(NamedTuple):
    """What all pairs share."""

    variance: Array
    centre: Array  # that is 0 in coordinates
    reach: Array  # largest coordinate that is not far
    exact: Array  # 1 where differences are added up, else 0


class _Cloud(NamedTuple):
    r"""A noised cloud at each x, of weights :math:`e^{-(|x - y_j|^2 - r) / 2 \sigma^2}`."""

    nearest: Array  # r, the least squared distance: no sum underflows; less |x|^2 where x is far
    mean: Array  # of the weights
    centre: Array  # mean of the cloud by them, less a point that both clouds share


def _cloud(shared: _Shared, points: Array, cloud: Array, axis_name: str | None) -> _Cloud:
    """Returns the cloud of all devices at each of this device's points."""
    devices = _devices.num_devices(axis_name)
    if devices == 1:
        nearest, mass, moment = _by_rows(shared, points, cloud)
    else:
        rows, cols = _distances.bare(points, cloud)
        nearest = _nearest(*lax.stop_gradient((shared, rows, cols)), axis_name)
        mass, moment = _tiles.stream(_tile, shared, (rows, nearest), cols, axis_name).rows
    return _Cloud(nearest, mass / (devices * cloud.shape[0]), moment / mass[:, None])


def _by_rows(shared: _Shared, points: Array, cloud: Array) -> tuple[Array, Array, Array]:
    """Returns the least squared distances and the sums, in one pass over a cloud that is here."""
    rows, cols = (_distances.moved(side, shared.centre) for side in (points, cloud))

    @jax.checkpoint
    def at(row: Points) -> tuple[Array, Array, Array]:
        one = jax.tree.map(lambda a: a[None], row)
        sq_dist = _squares(shared, one, cols)
        nearest = lax.stop_gradient(jnp.min(sq_dist, axis=1))
        mass, moment = _sums(shared, one, cols, _weights(shared, sq_dist, nearest))
        return nearest[0], mass[0], moment[0]

    return lax.map(at, rows, batch_size=max(1, _PAIRS_AT_ONCE // cloud.shape[0]))


def _nearest(shared: _Shared, rows: Bare, cols: Bare, axis_name: str | None) -> Array:
    """Returns the least squared distances to the cloud of all devices."""

    def nearer(_: Array, some: Bare, nearest: Array, cols: Bare) -> Array:
        sq_dist = _squares(
            shared, *(_distances.moved(side, shared.centre) for side in (some, cols))
        )
        sq_dist = jnp.where(cols.real[None, :] > 0, sq_dist, jnp.inf)
        return jnp.minimum(nearest, jnp.min(sq_dist, axis=1))

    nothing = jnp.full_like(rows.real, jnp.inf)
    return _folds.fold(nearer, nothing, rows, cols, axis_name, pairs_at_once=_PAIRS_AT_ONCE)


def _tile(
    shared: _Shared, shift: Array | None, rows: tuple[Bare, Array], cols: Bare
) -> _tiles.PairSums:
    """The sums of one tile."""
    del shift
    points, nearest = rows
    near, cloud = (_distances.moved(side, shared.centre) for side in (points, cols))
    real = cols.real[None, :]
    # of columns that pad, a weight might overflow
    sq_dist = jnp.where(real > 0, _squares(shared, near, cloud), nearest[:, None])
    return _tiles.PairSums(
        rows=_sums(shared, near, cloud, _weights(shared, sq_dist, nearest) * real)
    )


def _squares(shared: _Shared, rows: Points, cloud: Points) -> Array:
    """Returns squared distances to the cloud, less |x|^2 where x is far; shape (rows, cloud)."""
    far = _far(shared, rows)
    # where x is far its squared distances overflow: those of a point of the cloud stand in
    near = jax.tree.map(
        lambda a, others: jnp.where(far if a.ndim == 2 else far[:, 0], others[:1], a), rows, cloud
    )
    kernel = kernels.rbf_mixture(jnp.sqrt(shared.variance))
    beyond = cloud.sq_norms[None, :] - 2 * _numeric.dot(rows.centred, cloud.centred.T)
    return jnp.where(far, beyond, _distances.between(kernel, near, cloud))


def _far(shared: _Shared, rows: Points) -> Array:
    return jnp.max(jnp.abs(rows.centred), axis=1, keepdims=True) > shared.reach


def _weights(shared: _Shared, sq_dist: Array, nearest: Array) -> Array:
    return jnp.exp(_numeric.below(-sq_dist, -nearest[:, None]) / (2 * shared.variance))


def _sums(shared: _Shared, rows: Points, cloud: Points, weights: Array) -> tuple[Array, Array]:
    """Returns sums of the weights, and of the cloud by them, less a point of both clouds."""

    def by_differences() -> Array:
        near = rows._replace(raw=jnp.where(_far(shared, rows), 0, rows.raw))
        return _distances.difference_sums(weights, near, cloud, axis=1)

    def by_products() -> Array:
        return _numeric.dot(weights, cloud.centred)

    moment = _distances.choose(shared.exact, by_differences, by_products)
    return jnp.sum(weights, axis=1), moment
