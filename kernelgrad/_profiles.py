"""The families of :mod:`kernelgrad.kernels`: a function of u = |x - y|^2 / l^2 each, f(0) = 1.

Functions of the module, which pickle and copy by reference: a kernel's copy is of its family.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from kernelgrad.types import Array

_FARTHEST = 1e4  # lengthscales: a root distance, whose exponential is 0 in float64, too


def _closed_form(*forms: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Returns forms[0], differentiated by the closed forms of its derivatives that follow it."""
    if len(forms) == 1:
        return forms[0]
    value, slope = jax.custom_jvp(forms[0]), _closed_form(*forms[1:])
    value.defjvp(lambda u, du: (value(*u), slope(*u) * du[0]))
    return value


def _root(u: Array, scale: float) -> Array:
    """Returns sqrt(scale u), with derivative 0 at 0."""
    return _unless_zero(u, lambda s: s, scale)


def _unless_zero(
    u: Array, fn: Callable[[Array], Array], scale: float, farthest: float = _FARTHEST
) -> Array:
    """Returns fn(sqrt(scale u)), 0 at u = 0; the root stops where its exponential is long 0."""
    root = math.sqrt(scale) * jnp.sqrt(jnp.where(u <= 0, 1, u))
    return jnp.where(u <= 0, 0, fn(jnp.minimum(root, farthest)))


def _whole_root(u: Array, scale: float) -> Array:
    """Returns sqrt(scale u) for a logarithm, with derivative 0 at 0."""
    return _unless_zero(u, lambda s: s, scale, math.inf)


def rbf(u: Array) -> Array:
    return jnp.exp(-u / 2)


def power(u: Array, exponent: Array) -> Array:
    return jnp.exp(exponent * jnp.log1p(u))


_imq_forms = _closed_form(
    lambda u: lax.rsqrt(1 + u),
    lambda u: -0.5 * lax.rsqrt(1 + u) ** 3,
    lambda u: 0.75 * lax.rsqrt(1 + u) ** 5,
)
_matern32_forms = _closed_form(
    lambda u: (1 + _root(u, 3)) * jnp.exp(-_root(u, 3)),
    lambda u: -1.5 * jnp.exp(-_root(u, 3)),
    lambda u: _unless_zero(u, lambda s: 2.25 * jnp.exp(-s) / s, 3),
)
_matern52_forms = _closed_form(
    lambda u: (1 + _root(u, 5) + _root(u, 5) ** 2 / 3) * jnp.exp(-_root(u, 5)),
    lambda u: -5 / 6 * (1 + _root(u, 5)) * jnp.exp(-_root(u, 5)),
    lambda u: 25 / 12 * jnp.exp(-_root(u, 5)),
)
_matern72_forms = _closed_form(
    lambda u: _matern72_polynomial(_root(u, 7)) * jnp.exp(-_root(u, 7)),
    lambda u: -0.7 * (1 + _root(u, 7) + _root(u, 7) ** 2 / 3) * jnp.exp(-_root(u, 7)),
    lambda u: 49 / 60 * (1 + _root(u, 7)) * jnp.exp(-_root(u, 7)),
    lambda u: -343 / 120 * jnp.exp(-_root(u, 7)),
)
_laplace_forms = _closed_form(
    lambda u: jnp.exp(-_root(u, 1)),
    lambda u: _unless_zero(u, lambda s: -jnp.exp(-s) / (2 * s), 1),
    lambda u: _unless_zero(u, lambda s: jnp.exp(-s) * (s + 1) / (4 * s**3), 1),
)


def _matern72_polynomial(s: Array) -> Array:
    return 1 + s + 0.4 * s**2 + s**3 / 15


def imq(u: Array) -> Array:
    return _imq_forms(u)


def matern32(u: Array) -> Array:
    return _matern32_forms(u)


def matern52(u: Array) -> Array:
    return _matern52_forms(u)


def matern72(u: Array) -> Array:
    return _matern72_forms(u)


def laplace(u: Array) -> Array:
    return _laplace_forms(u)


# ------------------------------------------------------------------------------ and its logarithm

_log_matern32 = _closed_form(
    lambda u: jnp.log(1 + _whole_root(u, 3)) - _whole_root(u, 3),
    lambda u: -1.5 / (1 + _whole_root(u, 3)),
    lambda u: _unless_zero(u, lambda s: 2.25 / s / jnp.square(1 + s), 3, math.inf),
)


def _matern52_bend(s: Array) -> Array:
    """Returns (1 + s + s^2 / 3) / (1 + s) - 1, by way of no square."""
    return s / 3 * (s / (1 + s))


_log_matern52 = _closed_form(
    lambda u: (
        jnp.log(1 + _whole_root(u, 5))
        + jnp.log(1 + _matern52_bend(_whole_root(u, 5)))
        - _whole_root(u, 5)
    ),
    lambda u: -5 / 6 / (1 + _matern52_bend(_whole_root(u, 5))),
    lambda u: (
        25
        / 36
        * ((2 + _whole_root(u, 5)) / jnp.square(1 + _whole_root(u, 5)))
        / jnp.square(1 + _matern52_bend(_whole_root(u, 5)))
    ),
)


def _matern72_bend(s: Array) -> Array:
    """Returns the polynomial of matern72 over that of matern52's form, less 1, by no square."""
    return s / 15 * (s / (1 + _matern52_bend(s)))


_log_matern72 = _closed_form(
    lambda u: (
        jnp.log(1 + _whole_root(u, 7))
        + jnp.log(1 + _matern52_bend(_whole_root(u, 7)))
        + jnp.log(1 + _matern72_bend(_whole_root(u, 7)))
        - _whole_root(u, 7)
    ),
    lambda u: -0.7 / (1 + _matern72_bend(_whole_root(u, 7))),
    lambda u: (
        49
        / 900
        * _matern72_log_curvature(_whole_root(u, 7))
        / (1 + _matern52_bend(_whole_root(u, 7)))
        / jnp.square(1 + _matern72_bend(_whole_root(u, 7)))
    ),
)


def _matern72_log_curvature(s: Array) -> Array:
    """Returns (6 + 12 s + 6 s^2 + s^3) / ((1 + s) (1 + s + s^2 / 3)), by no square."""
    share = s / (1 + s)
    return 6 - share * (share * ((2 + s) / (1 + _matern52_bend(s))))


_log_laplace = _closed_form(
    lambda u: -_whole_root(u, 1),
    lambda u: _unless_zero(u, lambda s: -0.5 / s, 1, math.inf),
    lambda u: _unless_zero(u, lambda s: 0.25 / s / s / s, 1, math.inf),
)

LOGARITHMS: dict[Callable[..., Array], Callable[..., Array]] = {
    rbf: lambda u: -u / 2,
    power: lambda u, exponent: exponent * jnp.log1p(u),
    matern32: _log_matern32,
    matern52: _log_matern52,
    matern72: _log_matern72,
    laplace: _log_laplace,
}
