r"""Bayesian logistic regression on a UCI table: a real posterior whose moments a long chain knows.

.. math:: \log p(\theta \mid X, y) = \sum_i [y_i \eta_i - \log(1 + e^{\eta_i})]
    - \tfrac{\alpha}{2} |\theta|^2 + \mathrm{const}, \quad \eta = X \theta

The prior is N(0, I / alpha) on every coefficient, the intercept's too. A Gamma prior on alpha, as
in Liu & Wang 2016, would add a funnel that none of the questions asked here is about: on
standardised features the data decide, not alpha.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.data import catalog
from experiments.run.errors import DataError
from kernelgrad.types import Array

_SOURCE = "winequality-red.csv is a table of the UCI data set Wine Quality (id 186)"


class Predictive(NamedTuple):
    """How well the mean of the predictions of many parameters does on held-out rows.

    Attributes:
      accuracy: share of labels that the mean probability gets right; shape ().
      log_likelihood: mean over rows of the log of the label's mean probability, in nats; shape ().
    """

    accuracy: Array
    log_likelihood: Array


@dataclass(frozen=True)
class LogisticPosterior:
    """The posterior of a logistic regression, and the rows to judge it by.

    Attributes:
      features: X with a leading column of ones; shape (n, d), float32.
      labels: y, 0 or 1; shape (n,), float32.
      test_features: held-out rows; shape (m, d), float32.
      test_labels: their labels; shape (m,), float32.
      prior_precision: alpha > 0.
    """

    features: Array
    labels: Array
    test_features: Array
    test_labels: Array
    prior_precision: float

    @property
    def dimension(self) -> int:
        """The number d of coefficients, the intercept included."""
        return self.features.shape[1]

    def log_density(self, theta: Array) -> Array:
        """Returns log p(theta | all rows) up to a constant; theta of shape (d,), result ()."""
        return self._log_prior(theta) + _log_likelihood(theta, self.features, self.labels)

    def minibatch_log_density(self, theta: Array, rows: Array) -> Array:
        r"""Returns an estimate of the log density that is unbiased for rows drawn uniformly.

        .. math:: \log p(\theta)
            + \frac{n}{m} \sum_{i \in \mathrm{rows}} \log p(y_i \mid x_i, \theta)

        Args:
          theta: shape (d,).
          rows: indices of training rows, with or without repetition; shape (m,).

        Returns:
          The estimate, shape (); its gradient is unbiased, too.
        """
        batch = _log_likelihood(theta, self.features[rows], self.labels[rows])
        return self._log_prior(theta) + self.features.shape[0] / rows.shape[0] * batch

    def score(self, thetas: Array) -> Array:
        """Returns the gradient of the log density at each of thetas, both of shape (s, d)."""
        return jax.vmap(jax.grad(self.log_density))(thetas)

    def predictive(self, thetas: Array) -> Predictive:
        """Returns what averaging the predictions of thetas (s, d) achieves on the test rows."""
        return predictive(thetas, self.test_features, self.test_labels)

    def _log_prior(self, theta: Array) -> Array:
        return -self.prior_precision / 2 * jnp.sum(jnp.square(theta))


def predictive(thetas: Array, features: Array, labels: Array) -> Predictive:
    r"""Returns accuracy and mean log density of the prediction averaged over parameters.

    .. math:: p(y \mid x) = \frac1S \sum_s \sigma(\pm\, x^\top \theta_s)

    Args:
      thetas: draws or particles; shape (s, d).
      features: rows with a leading one; shape (m, d).
      labels: 0 or 1; shape (m,).

    Returns:
      Both figures; a mean probability of exactly 1/2 counts as label 0.
    """
    logits = jnp.matmul(thetas, features.T, precision=lax.Precision.HIGHEST)
    signs = 2 * labels - 1
    log_p = jax.nn.logsumexp(jax.nn.log_sigmoid(signs * logits), axis=0) - jnp.log(len(thetas))
    guess = jnp.mean(jax.nn.sigmoid(logits), axis=0) > 0.5
    return Predictive(jnp.mean(guess == (labels == 1)), jnp.mean(log_p))


def red_wine(
    data_dir: str | None, *, seed: int = 0, prior_precision: float = 1.0
) -> LogisticPosterior:
    """Returns the posterior of "quality >= 6" for the red wines of UCI's Wine Quality.

    The rows are shuffled by the seed; 4/5 of them train, 1/5 test, and the features are
    standardised by the training rows.

    Args:
      data_dir: folder that holds winequality-red.csv or uci/winequality-red.csv.
      seed: of the split.
      prior_precision: alpha.

    Raises:
      DataError: the file is missing or damaged.
    """
    try:
        dataset = catalog.load("red_wine", data_dir, seed=seed)
    except DataError as error:
        raise DataError(f"{error}. {_SOURCE}") from error
    held_out = (dataset.valid, dataset.test), (dataset.valid_labels, dataset.test_labels)
    test, test_labels = (np.concatenate([np.asarray(part) for part in parts]) for parts in held_out)
    return LogisticPosterior(
        _with_intercept(dataset.train[:]),
        jnp.asarray(dataset.train_labels, jnp.float32),
        _with_intercept(test),
        jnp.asarray(test_labels, jnp.float32),
        prior_precision,
    )


def _with_intercept(features: np.ndarray) -> Array:
    return jnp.asarray(np.insert(features, 0, 1.0, axis=1), jnp.float32)


def _log_likelihood(theta: Array, features: Array, labels: Array) -> Array:
    logits = jnp.matmul(features, theta, precision=lax.Precision.HIGHEST)
    return jnp.sum(jax.nn.log_sigmoid((2 * labels - 1) * logits))
