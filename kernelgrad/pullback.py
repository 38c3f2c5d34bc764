"""From a direction per sample to a gradient in the generator's parameters."""

from collections.abc import Callable

import jax

from kernelgrad import _checks
from kernelgrad.types import Array, PyTree


def chain_rule(generator_fn: Callable[[PyTree], Array], params: PyTree, direction: Array) -> PyTree:
    r"""Returns the mean direction, pulled back through the generator.

    .. math:: g = \frac1n \sum_i J_i^\top \phi_i, \quad J_i = \partial f(\eta; z_i) / \partial \eta

    The sign is that of the direction: where descending :math:`\phi` in sample space lowers a
    discrepancy, Optax descending g lowers it too. The mean, not the paper's sum, keeps the step
    independent of the batch size.

    Args:
      generator_fn: maps params to samples f(eta; z_i) at fixed latents; output shape (n, ...).
        Within one jit its forward pass is shared with the caller's own.
      params: eta; pytree of floating arrays.
      direction: phi_i; same shape as the samples.

    Returns:
      Gradient, a pytree like params.

    Raises:
      ValueError: direction shaped unlike the samples.

    Cost: one forward and one backward pass of the generator.

    References:
      Li 2017 (approximate KL gradients), eq. (1); Wang & Liu 2016 (amortized SVGD), eq. (10).
    """
    samples, pull = jax.vjp(generator_fn, params)
    _checks.shape("direction", direction, samples.shape)
    (gradient,) = pull((direction / samples.shape[0]).astype(samples.dtype))
    return gradient
