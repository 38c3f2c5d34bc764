"""Encoders of images, and the networks that train them, with labels and without."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from kernelgrad.types import Array, Key

NOISE = 0.3  # standard deviation of what is added to images in [0, 1]


class Encoder(nn.Module):
    """Convolutions of stride 2 and a linear layer; smooth, so that features have slopes everywhere.

    Height and width are halved while both are even and above 4, u times, by convolutions to width,
    2 width, ... 2^(u-1) width channels, gelu after each.

    Attributes:
      width: channels of the first convolution.
      num_features: what comes out.
    """

    width: int
    num_features: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Returns features (n, num_features) of images (n, h, w, c) in [0, 1]."""
        hidden, channels = images, self.width
        while min(hidden.shape[1:3]) > 4 and hidden.shape[1] % 2 == hidden.shape[2] % 2 == 0:
            hidden = nn.gelu(nn.Conv(channels, (4, 4), (2, 2))(hidden))
            channels *= 2
        return nn.Dense(self.num_features)(hidden.reshape(hidden.shape[0], -1))


class DenoisingAutoencoder(nn.Module):
    r"""The squared error of images rebuilt from the features of noisy ones.

    .. math:: E |x - g(f(x + \sigma \varepsilon))|^2, \quad \varepsilon \sim N(0, I)

    Attributes:
      encoder: f; the decoder g is a hidden layer and a sigmoid.

    References:
      Vincent et al. 2010, section 2.3.
    """

    encoder: Encoder

    @nn.compact
    def __call__(self, images: Array, labels: Array) -> Array:
        """Returns the loss (), for images (n, h, w, c) in [0, 1]; needs an rng ``draw``."""
        del labels
        noise = jax.random.normal(self.make_rng("draw"), images.shape)
        features = self.encoder(images + NOISE * noise)
        hidden = nn.gelu(nn.Dense(4 * self.encoder.num_features)(nn.gelu(features)))
        rebuilt = nn.sigmoid(nn.Dense(math.prod(images.shape[1:]))(hidden))
        return jnp.mean(jnp.sum(jnp.square(images.reshape(rebuilt.shape) - rebuilt), axis=1))


class VICReg(nn.Module):
    """Features alike for two views of an image, without collapse: no labels, no negatives.

    A view is the image shifted by up to an eighth of its size, its contrast changed by up to a
    third, with noise. The loss is that of embeddings, a small network's on top of the features.

    Attributes:
      encoder: of the features.

    References:
      Bardes, Ponce & LeCun 2022 (VICReg), section 4.
    """

    encoder: Encoder

    @nn.compact
    def __call__(self, images: Array, labels: Array) -> Array:
        """Returns the loss (), for images (n, h, w, c) in [0, 1]; needs an rng ``draw``."""
        del labels
        size = 2 * self.encoder.num_features
        expand = nn.Sequential([nn.gelu, nn.Dense(size), nn.gelu, nn.Dense(size)])
        keys = jax.random.split(self.make_rng("draw"))
        one, other = (expand(self.encoder(_view(key, images))) for key in keys)
        return vicreg_loss(one, other)


class Classifier(nn.Module):
    """The cross entropy of labels under a linear layer on the features of shifted images.

    Attributes:
      encoder: of the features.
      num_classes: of the labels.
    """

    encoder: Encoder
    num_classes: int

    @nn.compact
    def __call__(self, images: Array, labels: Array) -> Array:
        """Returns the loss (), for images in [0, 1] and labels (n,); needs an rng ``draw``."""
        features = self.encoder(shifted(self.make_rng("draw"), images, 1))
        logits = nn.Dense(self.num_classes)(nn.gelu(features))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def vicreg_loss(
    one: Array,
    other: Array,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Array:
    r"""Returns the loss of embeddings of two views.

    .. math:: \lambda\, s(Z, Z') + \mu\, [v(Z) + v(Z')] + \nu\, [c(Z) + c(Z')], \quad
        s = \frac1n \sum_i |z_i - z'_i|^2, \;
        v = \frac1d \sum_j \max(0, 1 - \sqrt{C_{jj} + 10^{-4}}), \;
        c = \frac1d \sum_{j \ne k} C_{jk}^2

    with the covariance C of a batch, over n - 1.

    Args:
      one: Z; shape (n, d), n > 1.
      other: Z', of the other view of each image; shape (n, d).
      invariance: lambda.
      variance: mu.
      covariance: nu.

    Returns:
      Loss, shape ().

    References:
      Bardes, Ponce & LeCun 2022 (VICReg), eqs. (1) to (6).
    """

    def regularised(z: Array) -> Array:
        centred = z - jnp.mean(z, axis=0)
        matrix = centred.T @ centred / (z.shape[0] - 1)
        own = jnp.diagonal(matrix)
        spread = jnp.mean(jnp.maximum(0, 1 - jnp.sqrt(own + 1e-4)))
        shared = (jnp.sum(jnp.square(matrix)) - jnp.sum(jnp.square(own))) / z.shape[1]
        return variance * spread + covariance * shared

    apart = jnp.mean(jnp.sum(jnp.square(one - other), axis=1))
    return invariance * apart + regularised(one) + regularised(other)


def shifted(key: Key, images: Array, largest: int) -> Array:
    """Returns each image moved by up to `largest` pixels along both axes, filled up with 0."""
    margin = (largest, largest)
    padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)))
    starts = jax.random.randint(key, (len(images), 2), 0, 2 * largest + 1)
    window = images.shape[1:]
    return jax.vmap(lambda image, start: jax.lax.dynamic_slice(image, (*start, 0), window))(
        padded, starts
    )


def _view(key: Key, images: Array) -> Array:
    """Returns a random view of each image."""
    shift_key, contrast_key, noise_key = jax.random.split(key, 3)
    moved = shifted(shift_key, images, max(1, min(images.shape[1:3]) // 8))
    shape = (len(images), 1, 1, 1)
    contrast = jax.random.uniform(contrast_key, shape, minval=2 / 3, maxval=4 / 3)
    return contrast * moved + NOISE / 3 * jax.random.normal(noise_key, images.shape)


# what trains an encoder, by the name of its features; each called with the number of classes
TRAINERS: dict[str, Any] = {
    "autoencoder": lambda encoder, _: DenoisingAutoencoder(encoder),
    "vicreg": lambda encoder, _: VICReg(encoder),
    "classifier": Classifier,
}
LABELLED = frozenset({"classifier"})
