"""Discriminators of a linear toy: gradients and figures by NumPy loops, tails, survival."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from experiments.run.errors import DivergenceError, Terminated
from experiments.run.signals import Signals
from experiments.run.workdirs import Workdir
from experiments.training import discriminators
from experiments.training.discriminators import Frozen, Lab, Trial
from experiments.training.models import Model
from experiments.training.settings import Config
from kernelgrad import critic, noise, two_player
from kernelgrad.critic import Critic
from tests.experiments.run.toy_run import StopAt

_DIMENSION, _LATENTS = 3, 2


def shift(key, x, *, variance):
    """Stands in for noise: moves every coordinate by the variance."""
    del key
    return x + variance


@pytest.fixture(scope="module")
def lab():
    """A linear generator x = z W + b and a linear discriminator l = x . v + c."""

    def generate(params, stats, latents):
        del stats
        return latents @ params["weights"] + params["bias"]

    def apply(params, stats, points):
        return points @ params["v"] + params["c"], stats

    def sample(key, n):
        return jax.random.normal(key, (n, _LATENTS))

    player = Critic(two_player.gan_non_saturating(), apply, optax.adam(0.05))

    def fresh(key):
        params = {"v": jax.random.normal(key, (_DIMENSION,)), "c": jnp.zeros(())}
        return critic.init(params, {}, player)

    model = Model(generate, None, player, None, sample, None)
    return Lab(model, player, fresh, 20)


@pytest.fixture
def frozen(key):
    weights = jax.random.normal(key, (_LATENTS, _DIMENSION))
    return Frozen({"weights": weights, "bias": jnp.full(_DIMENSION, 0.5)}, {})


@pytest.fixture
def images(rng):
    """Training and held-out points, the former more spread out."""
    scales = {50: 4.0, 1000: 1.0}
    return tuple(
        (scale * rng.normal(size=(n, _DIMENSION))).astype(np.float32) for n, scale in scales.items()
    )


def trial(add_noise=noise.instance_noise, variances=(0.0,), num_iterations=8, every=2):
    return Trial("trial", add_noise, variances, num_iterations, every)


def folder(path, name):
    return Workdir(path / name, Config())


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("loss", ["saturating", "non_saturating"])
def test_gradients_are_those_of_the_chain_rule_by_hand(lab, frozen, key, loss):
    state = lab.fresh_critic(key)
    found = discriminators.minibatch_gradients(lab, shift, frozen, state, key, 0.3, loss, (4, 5))

    v = np.asarray(state.params["v"], np.float64)
    weights = np.asarray(frozen.params["weights"], np.float64)
    latents = np.asarray(lab.model.sample_latents(jax.random.split(key)[0], 20), np.float64)
    for gradient, batch in zip(found, latents.reshape(4, 5, _LATENTS), strict=True):
        expected = np.zeros(_DIMENSION + _LATENTS * _DIMENSION)  # bias, then weights
        for z in batch:
            logit = (z @ weights + 0.5 + 0.3) @ v
            d = 1 / (1 + math.exp(-logit))
            slope = -d if loss == "saturating" else d - 1
            expected += slope * np.concatenate([v, np.outer(z, v).ravel()]) / 5
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_chosen_coordinates_are_those_of_the_whole_gradient(lab, frozen, key):
    state = lab.fresh_critic(key)
    args = (lab, shift, frozen, state, key, 0.0, "saturating", (3, 2))
    chosen = jnp.array([7, 0, 4])
    found = discriminators.minibatch_gradients(*args, chosen)
    whole = discriminators.minibatch_gradients(*args)
    np.testing.assert_allclose(found, whole[:, chosen], rtol=1e-6)


def test_spread_is_the_norm_of_the_mean_and_the_trace_of_the_covariance(rng):
    gradients = rng.normal(size=(12, 5)) + 1
    norm, variance = discriminators.spread(jnp.asarray(gradients, jnp.float32))
    np.testing.assert_allclose(norm, np.linalg.norm(gradients.mean(axis=0)), rtol=1e-5)
    np.testing.assert_allclose(variance, np.trace(np.cov(gradients.T)), rtol=1e-5)


@pytest.mark.slow
def test_records_are_the_figures_of_the_discriminator(lab, frozen, images, key, tmp_path):
    state = lab.fresh_critic(jax.random.split(key, 3)[0])  # as train_discriminator starts
    v = np.asarray(state.params["v"], np.float64)
    draws = lab.model.sample_latents(jax.random.key(1), 20_000)
    fake = np.asarray(lab.model.generate(*frozen, draws), np.float64)
    with folder(tmp_path, "one") as own, Signals() as signals:
        records, _ = discriminators.train_discriminator(
            lab, trial(), frozen, images, key, own, signals
        )
    record = records[0]

    def close(name, expected, of_fake):
        error = math.sqrt(np.var(of_fake) / 1000 + np.var(of_fake) / 20_000)
        assert abs(record[name] - expected) < 5 * error / 2, (name, expected)

    of_fake = -np.logaddexp(0, fake @ v)
    for name, real in (("jsd", images[1]), ("jsd_fitted", images[0])):
        of_real = -np.logaddexp(0, -(real @ v))
        expected = math.log(2) + (of_real.mean() + of_fake.mean()) / 2
        close(name, expected, of_fake)
    right, wrong = images[1] @ v > 0, fake @ v < 0
    close("accuracy", (right.mean() + wrong.mean()) / 2, wrong)
    assert [r["step"] for r in records] == [0, 2, 4, 6, 8]


@pytest.mark.slow
def test_discriminator_learns(lab, frozen, images, key, tmp_path):
    with folder(tmp_path, "one") as own, Signals() as signals:
        apart = frozen._replace(params=frozen.params | {"bias": jnp.full(_DIMENSION, 8.0)})
        records, _ = discriminators.train_discriminator(
            lab, trial(num_iterations=400, every=100), apart, images, key, own, signals
        )
    assert records[-1]["jsd"] > 0.6
    assert records[-1]["accuracy"] > 0.98
    assert records[-1]["saturating_norm"] < 0.1 * records[-1]["non_saturating_norm"]


@pytest.mark.slow
def test_noise_anneals_over_the_variances(lab, frozen, images, key, tmp_path):
    annealed = trial(shift, (0.4, 0.1), 3, 3)
    with folder(tmp_path, "one") as own, Signals() as signals:
        records, _ = discriminators.train_discriminator(
            lab, annealed, frozen, images, key, own, signals
        )
    assert [(r["step"], r["variance"]) for r in records] == [(0, 0.4), (3, 0.4), (6, 0.1)]
    assert [annealed.variance(step) for step in range(1, 7)] == [0.4] * 3 + [0.1] * 3


@pytest.mark.thorough
@pytest.mark.parametrize("looks", [1, 6])
def test_stopped_training_resumes_to_the_same_records_and_state(
    lab, frozen, images, key, tmp_path, looks
):
    args = (lab, trial(variances=(0.2,)), frozen, images, key)
    with folder(tmp_path, "whole") as own, Signals() as signals:
        whole, state = discriminators.train_discriminator(*args, own, signals)
    with folder(tmp_path, "cut") as own, pytest.raises(Terminated, match="saved step"):
        discriminators.train_discriminator(*args, own, StopAt(looks))
    with folder(tmp_path, "cut") as own, Signals() as signals:
        resumed, again = discriminators.train_discriminator(*args, own, signals)
    assert resumed == whole
    jax.tree.map(np.testing.assert_array_equal, again, state)


@pytest.mark.thorough
def test_figures_that_are_not_finite_are_an_error(lab, frozen, images, key, tmp_path):
    with folder(tmp_path, "one") as own, Signals() as signals:
        broken = frozen._replace(params=frozen.params | {"bias": jnp.full(_DIMENSION, jnp.nan)})
        with pytest.raises(DivergenceError, match="trial: jsd is nan"):
            discriminators.train_discriminator(lab, trial(), broken, images, key, own, signals)


@pytest.mark.thorough
def test_training_goes_on_from_the_state(lab, frozen, images, key):
    state = lab.fresh_critic(key)
    states = list(discriminators.keep_training(lab, frozen, state, jnp.asarray(images[0]), key, 3))
    counts = [int(s.opt_state[0].count) for s in states]
    assert counts == [1, 2, 3]


def test_normalised_entries_are_free_of_location_scale_and_zeros(rng):
    draws = rng.normal(size=(101, 4))
    moved = draws * np.array([1e-6, 1.0, 5.0, 1e4]) + np.array([1.0, -2.0, 30.0, 7.0])
    centred = draws - np.median(draws, axis=0)
    expected = centred / np.median(np.abs(centred), axis=0)
    np.testing.assert_allclose(discriminators.normalised(moved), expected.T.ravel(), rtol=1e-6)

    shut = np.zeros((200, 3))  # half of one coordinate, all of another, all but nine of the last
    shut[::2, 0] = rng.normal(size=100)
    shut[:9, 2] = rng.normal(size=9)
    assert discriminators.normalised(shut).shape == (100,)
    np.testing.assert_allclose(
        discriminators.normalised(shut), discriminators.normalised(shut[::2, :1])
    )


def test_cauchy_fit_recovers_a_ratio_of_gaussians(rng):
    n = 20_000
    values = 3 + 0.5 * rng.normal(size=n) / rng.normal(size=n)
    tail = discriminators.fit_tail(values)
    error = 0.5 * math.sqrt(2 / n)  # the Fisher information of both is 1 / (2 scale^2)
    assert abs(tail.cauchy[0] - 3) < 5 * error
    assert abs(tail.cauchy[1] - 0.5) < 5 * error
    assert tail.cauchy_distance < 1.95 / math.sqrt(n)
    assert tail.gaussian_distance > 0.2
    assert tail.cauchy_log_likelihood > tail.gaussian_log_likelihood + 1
    entropy = scipy.stats.cauchy(3, 0.5).entropy()
    deviation = math.pi / math.sqrt(3)  # of log(1 + x^2)
    assert abs(tail.cauchy_log_likelihood + entropy) < 5 * deviation / math.sqrt(n)


def test_gaussian_fit_recovers_a_gaussian(rng):
    n = 20_000
    tail = discriminators.fit_tail(rng.normal(-1, 2, size=n))
    assert abs(tail.gaussian[0] + 1) < 10 / math.sqrt(n)
    assert abs(tail.gaussian[1] - 2) < 10 / math.sqrt(2 * n)
    assert tail.gaussian_distance < 1.95 / math.sqrt(n)
    assert tail.cauchy_distance > 0.05
    assert tail.gaussian_log_likelihood > tail.cauchy_log_likelihood + 0.05
