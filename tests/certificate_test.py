"""Bounds on total variation and W1, on laws where both are known exactly."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.spatial import distance

from kernelgrad import adversarial, certificate, kale


def _divergences(p, q):
    """Total variation and Jensen-Shannon divergence of two discrete laws, in float64."""
    m = (p + q) / 2
    of = [np.sum(law * np.log(np.where(law > 0, law, 1) / m)) for law in (p, q)]
    return np.abs(p - q).sum() / 2, sum(of) / 2


def _cheapest_plan(p, q, costs):
    """W1 by the linear program over couplings."""
    n, m = costs.shape
    rows, cols = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    margins = np.concatenate([p, q])
    return linprog(costs.ravel(), A_eq=np.concatenate([rows, cols]), b_eq=margins).fun


@pytest.mark.thorough
def test_random_laws_keep_both_bounds(key):
    laws = []
    for one in jax.random.split(key, 40):
        rng = np.random.default_rng(np.asarray(jax.random.key_data(one)))
        points = rng.normal(size=(6, 2))
        p, q = rng.dirichlet(np.full(6, rng.choice([0.1, 1, 10])), size=2)
        if rng.random() < 0.5:
            q = 0.95 * p + 0.05 * q  # nearly the same
        costs = distance.cdist(points, points)
        laws.append([*_divergences(p, q), _cheapest_plan(p, q, costs), costs.max()])
    total_variation, jsd, exact, diameter = np.array(laws).T
    sharp, pinsker = (
        jax.vmap(bound)(jsd)
        for bound in (certificate.total_variation_bound, certificate.pinsker_total_variation)
    )
    by_sharp, by_paper = (
        jax.vmap(bound)(jsd, 0 * jsd, diameter)
        for bound in (certificate.sharp_wasserstein_bound, adversarial.wasserstein_bound)
    )
    slack = 1 + 1e-5
    assert np.all(total_variation <= sharp * slack)
    assert np.all(sharp <= pinsker * slack)
    assert np.all(exact <= by_sharp * slack)
    assert np.all(by_sharp <= by_paper / math.sqrt(2) * slack)


@pytest.mark.parametrize("bias", [1e-3, 0.1, 0.6, 0.999, 1.0])
def test_opposite_coins_attain_the_bound(bias):
    total_variation, jsd = _divergences(*np.array([[1 + bias, 1 - bias], [1 - bias, 1 + bias]]) / 2)
    got = certificate.total_variation_bound(jsd)
    np.testing.assert_allclose(got, total_variation, rtol=3e-4 if bias > 0.9 else 1e-5)
    if bias <= 1e-3:  # where Pinsker's is as good
        np.testing.assert_allclose(certificate.pinsker_total_variation(jsd), bias, rtol=1e-5)


@pytest.mark.parametrize("theta", [0.5, 1.0, 3.0])
def test_two_points_under_bounded_noise(theta):
    """Uniform noise on [-1, 1] around 0 and theta: TV = theta / 2, JSD = TV log 2, W1 = theta."""
    total_variation, diameter, noise = min(theta / 2, 1), theta + 2, 2 / math.sqrt(3)
    jsd = total_variation * math.log(2)
    sharp = certificate.sharp_wasserstein_bound(jsd, 1 / 3, diameter)
    paper = adversarial.wasserstein_bound(jsd, 1 / 3, diameter)
    slack = 1 + 1e-6
    assert theta <= noise + diameter * total_variation <= sharp * slack
    assert sharp <= (noise + diameter) * slack < paper * slack or theta == 0.5
    assert sharp < paper


def test_slopes_are_those_of_the_equation(key):
    for jsd in (1e-4, 0.1, 0.4):
        slope = jax.grad(certificate.total_variation_bound)(jsd)
        bound = certificate.total_variation_bound(jsd)
        np.testing.assert_allclose(slope, 1 / np.arctanh(float(bound)), rtol=1e-5)
        step = 1e-3 * jsd
        beside = [certificate.total_variation_bound(jsd + s) for s in (-step, step)]
        np.testing.assert_allclose(slope, (beside[1] - beside[0]) / (2 * step), rtol=0.02)


def test_ends_of_the_range():
    for jsd, expected in ((0.0, 0.0), (-0.3, 0.0), (math.log(2), 1.0), (5.0, 1.0)):
        for bound in (certificate.total_variation_bound, certificate.pinsker_total_variation):
            value, slope = jax.value_and_grad(bound)(jsd)
            assert (value, slope) == (expected, 0.0)
    assert np.isnan(certificate.total_variation_bound(jnp.nan))
    with pytest.raises(ValueError, match="noise_variance"):
        certificate.sharp_wasserstein_bound(0.1, -0.1, 1.0)
    with pytest.raises(ValueError, match="jsd"):
        certificate.sharp_wasserstein_bound(jnp.zeros(2), 0.1, 1.0)


REAL = {"integer": np.int64(0), "Python's": 0, "true": False, "half": np.float16(0.0)}
NOT_REAL = {
    "complex": (1j, "expected real numbers"),
    "NumPy's complex": (np.complex64(1), "got dtype complex64; expected real numbers"),
    "long": (10**400, "got an integer of 1329 bits; expected a number of at most 64"),
    "text": ("0.1", "got str; expected a number"),
    "nothing": (None, "got NoneType; expected a number"),
    "list": ([0.1], "got list; expected a number"),
    "vector": (np.zeros(1), "got shape (1,); expected ()"),
}
OF_JSD = {
    "jsd": certificate.total_variation_bound,
    "jsd ": certificate.pinsker_total_variation,
    "jsd  ": lambda a: adversarial.wasserstein_bound(a, 1.0, 1.0),
    "noise_variance": lambda a: certificate.sharp_wasserstein_bound(0.1, a, 1.0),
    "diameter": lambda a: adversarial.wasserstein_bound(0.1, 1.0, a),
    "log_normalizer": lambda a: kale.kale(jnp.ones(2), jnp.ones(2), a),
}


@pytest.mark.parametrize("name", OF_JSD)
def test_numbers_are_real_scalars_of_any_type(name):
    bound, name = OF_JSD[name], name.strip()
    for value in REAL.values():
        got = bound(value)
        assert (got.dtype, got) == (jnp.float32, bound(0.0))
    for value, message in NOT_REAL.values():
        with pytest.raises(ValueError, match=f"^{name}: .*{re.escape(message)}"):
            bound(value)
