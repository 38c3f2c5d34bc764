r"""What the machine can do at best, measured in the same run, and the floors that follow.

A floor counts only the matrix products and the transcendental functions that a task cannot do
without, at the rates of this machine: n points in d dimensions cost 2 n^2 d flops for a matrix
product and one exp or rsqrt a pair and kernel; a symmetric task needs half of the pairs.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import timing

Array = jax.Array


class Rates(NamedTuple):
    """The machine's rates.

    Attributes:
      flops: of a square float32 matrix product, in flop/s.
      exp: elementwise exponentials in cache, in elements/s.
      rsqrt: elementwise reciprocal square roots in cache, in elements/s.
    """

    flops: float
    exp: float
    rsqrt: float


Floor = Callable[[int, int, Rates], float]


def svgd(n: int, d: int, rates: Rates) -> float:
    """Seconds of distances and K @ scores, and one exp a pair."""
    return 4 * n**2 * d / rates.flops + n**2 / rates.exp


def ksd(n: int, d: int, rates: Rates) -> float:
    """Seconds of half of x x', s x' + x s' and s s', and one rsqrt for half of the pairs."""
    return 3 * n**2 * d / rates.flops + n**2 / 2 / rates.rsqrt


def mmd(n: int, d: int, rates: Rates) -> float:
    """Seconds of value and gradient, n = m, 4 rsqrt a pair; half of the pairs within a set."""
    return 8 * n**2 * d / rates.flops + 8 * n**2 / rates.rsqrt


def stein(n: int, d: int, rates: Rates) -> float:
    """Seconds of a Cholesky factorisation, the gram, its gradient sum and both solves."""
    return (n**3 / 3 + 6 * n**2 * d) / rates.flops


class Meter:
    """Measures the rates whenever it is called; who multiplies faster, JAX or NumPy, stays."""

    def __init__(self, product_size: int | None = None) -> None:
        """Compiles and warms up; products of `product_size` squared matrices, by device if None."""
        on_cpu = jax.default_backend() == "cpu"
        size = product_size or (2048 if on_cpu else 8192)
        elements, self._chain, loops = (1 << 18, 1, 256) if on_cpu else (1 << 24, 64, 16)
        self._flops = 2.0 * size**3
        self._evaluations = float(elements * self._chain * loops)
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(2, size, size)).astype(np.float32)
        x = jnp.asarray(rng.uniform(1, 2, elements).astype(np.float32))
        product = jax.jit(functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST))
        products: list[timing.Call] = [functools.partial(product, jnp.asarray(a), jnp.asarray(b))]
        if on_cpu:
            products.append(functools.partial(np.matmul, a, b))
        self._exp = functools.partial(self._repeated(lambda v: jnp.exp(-v), loops), x)
        self._rsqrt = functools.partial(self._repeated(lambda v: lax.rsqrt(1 + v), loops), x)
        self._product = min(products, key=_shortest)
        self()

    def __call__(self) -> Rates:
        """Returns the rates of this moment, each the best of three: noise only slows."""
        return Rates(
            self._flops / _shortest(self._product),
            self._evaluations / _shortest(self._exp),
            self._evaluations / _shortest(self._rsqrt),
        )

    def _repeated(self, fn: Callable[[Array], Array], loops: int) -> Callable[[Array], Array]:
        def chain(_: Array, x: Array) -> Array:
            return functools.reduce(lambda value, _: fn(value), range(self._chain), x)

        return jax.jit(lambda x: lax.fori_loop(0, loops, chain, x))


def _shortest(call: timing.Call) -> float:
    return min(timing.seconds_per_call(call) for _ in range(3))
