r"""How far apart two laws can be, from how well they are told apart: certificates of training.

The chain has two links. A Jensen-Shannon divergence bounds the total variation,
:math:`TV = \sup_A |P(A) - Q(A)|`; and mass TV, moved no farther than the diameter, bounds the
Wasserstein distance. :func:`kernelgrad.adversarial.wasserstein_bound` is the chain as paper 002
has it; the sharper links are below.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad import _checks, _numeric
from kernelgrad.types import Array


def pinsker_total_variation(jsd: float | Array) -> Array:
    r"""Returns the bound on the total variation by Pinsker's inequality.

    .. math:: TV \le \min(1, \sqrt{2\, \mathrm{JSD}})

    With the mixture :math:`M = (P + Q) / 2`: :math:`TV(P, Q) = TV(P, M) + TV(Q, M)`, each at most
    :math:`\sqrt{KL / 2}`, and a mean of roots is at most the root of the mean.

    Args:
      jsd: Jensen-Shannon divergence, in nats; shape (). A negative estimate counts as 0.

    Returns:
      Bound in [0, 1], shape (); at least float32. Its derivative at 0, infinite, counts as 0.

    Raises:
      ValueError: no real scalar.

    Example:
      >>> from kernelgrad import certificate
      >>> round(float(certificate.pinsker_total_variation(0.02)), 3)  # sqrt(0.04)
      0.2

    References:
      Arjovsky & Bottou 2017, proof of Theorem 3.3, which has :math:`2 \sqrt{\mathrm{JSD}}`; the
      factor as derived above.
    """
    return jnp.minimum(1, _numeric.root(2 * _checks.number("jsd", jsd)))


def total_variation_bound(jsd: float | Array) -> Array:
    r"""Returns the largest total variation of two laws with a Jensen-Shannon divergence.

    .. math:: \mathrm{JSD} \ge \log 2 - h\!\left(\tfrac{1 - TV}2\right)
        = TV \operatorname{artanh} TV + \tfrac12 \log(1 - TV^2)

    solved for TV, with :math:`h(p) = -p \log p - (1 - p) \log(1 - p)`. The divergence is what a
    point tells about the fair coin that chose its law, log 2 less the mean of h at the posterior's
    smaller half; h is concave, and the mean of that half is the error of the best guess,
    :math:`(1 - TV) / 2`. Two coins of opposite bias attain it, so no better bound exists; it is
    never above :func:`pinsker_total_variation`.

    Args:
      jsd: Jensen-Shannon divergence, in nats; shape (). A negative estimate counts as 0, one
        above log 2 as log 2.

    Returns:
      Bound in [0, 1], shape (); at least float32. Its derivative, :math:`1 / \operatorname{artanh}
      TV`, counts as 0 where it is infinite, at 0.

    Raises:
      ValueError: no real scalar.

    Example:
      >>> from kernelgrad import certificate
      >>> jsd = 0.5 * jnp.atanh(0.5) + 0.5 * jnp.log(1 - 0.5**2)
      >>> round(float(certificate.total_variation_bound(jsd)), 3)
      0.5
      >>> bool(certificate.total_variation_bound(jsd) <= certificate.pinsker_total_variation(jsd))
      True

    References:
      Lin 1991 (Divergence measures based on the Shannon entropy), for the entropy of a guess;
      derived above.
    """
    return _largest(jnp.clip(_checks.number("jsd", jsd), 0, math.log(2)))


def sharp_wasserstein_bound(
    jsd: float | Array, noise_variance: float | Array, diameter: float | Array
) -> Array:
    r"""Returns the sharper form of :func:`kernelgrad.adversarial.wasserstein_bound`.

    .. math:: W_1(P, Q) \le 2 \sqrt V + C\, TV(P_\epsilon, Q_\epsilon)

    with the total variation by :func:`total_variation_bound`: never above 2 sqrt(V) + C, and its
    second term at most 0.71 of the other's. It holds for the same noises.

    Args:
      jsd: of the noised laws, in nats; shape (). A negative estimate counts as 0.
      noise_variance: V = E|eps|^2, the sum over coordinates, in squared units of the samples;
        shape (), >= 0.
      diameter: C of a ball that holds both noised supports, in units of the samples; shape (),
        >= 0.

    Returns:
      Bound, shape (), in units of the samples.

    Raises:
      ValueError: no real scalar, or a concrete noise_variance or diameter that is negative.

    Example:
      >>> from kernelgrad import certificate
      >>> jsd = jnp.log(2.0)  # of laws that are told apart for certain
      >>> round(float(certificate.sharp_wasserstein_bound(jsd, 0.01, 2.0)), 3)  # 2 * 0.1 + 2
      2.2

    References:
      Arjovsky & Bottou 2017, Theorem 3.3, with the last step of its proof replaced.
    """
    lengths = {"noise_variance": noise_variance, "diameter": diameter}
    total_variation = total_variation_bound(jsd)
    spread, diameter = (
        _numeric.like(_checks.number(name, value), total_variation)
        for name, value in lengths.items()
    )
    _checks.not_negative(**lengths)
    return 2 * _numeric.root(spread) + diameter * total_variation


@jax.custom_jvp
def _largest(jsd: Array) -> Array:
    """The inverse of :func:`_smallest`, by bisection between sqrt(JSD / log 2) and sqrt(2 JSD)."""

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        enough = _smallest(middle) >= jsd
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    bracket = jnp.sqrt(jsd / math.log(2)), jnp.minimum(1, jnp.sqrt(2 * jsd))
    return lax.fori_loop(0, jnp.finfo(jsd.dtype).nmant, halve, bracket)[1]


def _smallest(total_variation: Array) -> Array:
    """The smallest JSD at a total variation, without cancellation at either end."""
    t = total_variation
    inner = jnp.minimum(t, 0.5)
    near_0 = inner * jnp.arctanh(inner) + 0.5 * jnp.log1p(-jnp.square(inner))
    near_1 = 0.5 * ((1 + t) * jnp.log1p(t) + jax.scipy.special.xlog1py(1 - t, -t))
    return jnp.where(t < 0.5, near_0, near_1)


@_largest.defjvp
def _largest_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    ((jsd,), (tangent,)) = primals, tangents
    bound = _largest(jsd)
    slope = jnp.arctanh(jnp.where(bound > 0, bound, 1))
    return bound, tangent / slope
