"""K and both directions of a batch against loops, and figures against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from experiments.training import objectives, stein_grams
from experiments.training.settings import Config
from experiments.training.stein_grams import Seen

SCALES = (0.5, 2.0)


def seen_of(config, x, y):
    """Returns what the objective of a config sees, and the points as it gets them."""
    x, y = (np.asarray(points, np.float32) for points in (x, y))
    objective = stein_grams._seeing(objectives.under_a_kernel(config), config.ridge)
    direction, info = jax.jit(objective)(jax.random.key(0), jnp.asarray(x), jnp.asarray(y))
    assert direction.shape == x.shape
    assert not direction.any()
    return Seen(**jax.device_get(info)), np.float64(x), np.float64(y)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", objectives.UNDER_A_KERNEL)
def test_a_batch_is_seen_under_the_kernel_and_the_ridge_of_the_run(name, rng):
    config = Config(objective=name, kernel_scales=SCALES, ridge=0.7, normalize=True)
    seen, x, y = seen_of(config, rng.normal(size=(6, 3)), 1 + rng.normal(size=(5, 3)))

    median = oracles.median_squared_distance(np.concatenate([x, y]))
    squared = np.sum((x[:, None] - x) ** 2, axis=2)
    gram = sum(1 / np.sqrt(1 + squared / (scale * median)) for scale in SCALES)
    np.testing.assert_allclose(seen.gram, gram, rtol=1e-5)
    eigenvalues = stein_grams.spectrum([seen]).eigenvalues[0]
    np.testing.assert_allclose(eigenvalues, np.linalg.eigvalsh(gram)[::-1], atol=1e-5)
    assert seen.ridge == np.float32(0.7)

    terms = "imq_mixture", np.sqrt(median * np.array(SCALES))
    of_data = [oracles.stein_score_at(terms[0], one, y, terms[1], 0.7) for one in x]
    own = oracles.stein_score(terms[0], x, terms[1], 0.7)
    np.testing.assert_allclose(seen.score, own, rtol=1e-3, atol=1e-4)
    kl = own - np.array(of_data)
    np.testing.assert_allclose(seen.kl, kl, rtol=1e-3, atol=1e-4)
    to_x, to_y = (oracles.gradient_sum(terms[0], x, z, terms[1]) / len(z) for z in (x, y))
    np.testing.assert_allclose(seen.mmd, 2 * (to_y - to_x), rtol=1e-3, atol=1e-5)


@pytest.mark.thorough
def test_what_a_run_leaves_open_is_what_training_takes(rng):
    seen, x, y = seen_of(Config(), rng.normal(size=(9, 2, 2, 1)), rng.normal(size=(9, 2, 2, 1)))
    assert seen.ridge == pytest.approx(0.1 * 3 * 4)  # sqrt(9), and k(0) of four kernels
    points = np.concatenate([x, y]).reshape(18, 4)
    median = oracles.median_squared_distance(points)
    squared = np.sum((points[0] - points[1]) ** 2)
    local = sum(1 / np.sqrt(1 + squared / (c * median)) for c in (0.01, 0.03, 0.1, 0.3))
    assert seen.gram[0, 1] == pytest.approx(local, rel=1e-5)
    assert seen.kl.shape == seen.mmd.shape == (9, 4)


def test_other_objectives_have_no_such_terms():
    assert objectives.under_a_kernel(Config(objective="drift")) is None


def test_figures_of_directions_by_hand():
    assert stein_grams.rms(np.array([[3.0, 4.0], [0.0, 0.0]])) == pytest.approx(12.5**0.5)
    for rows, share in (
        ([[1.0, 2.0], [1.0, 2.0]], 1.0),
        ([[1.0, 2.0], [-1.0, -2.0]], 0.0),
        ([[1.0, 1.0], [1.0, -1.0]], 0.5),
        ([[3.0], [0.0], [0.0]], 1 / 3),
    ):
        assert stein_grams.common_part(np.array(rows)) == pytest.approx(share)
    one = np.eye(2)
    assert stein_grams.cosine(one, 3 * one) == pytest.approx(1)
    assert stein_grams.cosine(one, -one) == pytest.approx(-1)
    assert stein_grams.cosine(one, np.diag([1.0, 0.0])) == pytest.approx(0.5**0.5)
    kept = stein_grams.share_kept(np.array([0.0, 4.0, 396.0]), 4.0)
    np.testing.assert_allclose(kept, [0, 0.5, 0.99])


def test_a_spectrum_by_hand(rng):
    values, ridge = np.array([12.0, 4.0, 1.0, 0.5]), 2.0
    modes = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    gram = modes.T @ np.diag(values) @ modes
    rest = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    kl, mmd = np.array([0.0, 3.0]) + 4 * rest, np.array([0.0, 2.0]) + rest
    score = rng.normal(size=(4, 2))
    found = stein_grams.spectrum([Seen(k, ridge, score, kl, mmd) for k in (gram, 3 * gram)])
    assert found.ridge == ridge
    np.testing.assert_allclose(found.eigenvalues, [values, 3 * values])
    np.testing.assert_allclose(found.kept[0], [12 / 14, 4 / 6, 1 / 3, 0.5 / 2.5])

    by_gram = {
        "largest eigenvalue": (12, 36),
        "second eigenvalue": (4, 12),
        "median eigenvalue": (2.5, 7.5),
        "eigenvalues above the ridge": (2, 3),
        "effective dimension": (12 / 14 + 4 / 6 + 1 / 3 + 0.2, 36 / 38 + 12 / 14 + 0.6 + 1.5 / 3.5),
        "damping of the first mode": (14 / 4.5, 38 / 9.5),
    }
    alike = {
        "rms of kl": (9 + 16 / 2) ** 0.5,
        "rms of mmd": (4 + 1 / 2) ** 0.5,
        "common part of kl": 9 / 17,
        "common part of mmd": 4 / 4.5,
        "common part of the samples' score": stein_grams.common_part(score),
        "common part of the data's score": stein_grams.common_part(score - kl),
        "damping of the common part": (4 / 1) / (3 / 2),
        "cosine of kl and mmd": (4 * 6 + 2 * 4) / (4 * 17 * 4 * 4.5) ** 0.5,
        "cosine of their common parts": 1,
        "cosine of the rest": 1,
    }
    assert list(found.figures) == [*by_gram, *alike]
    for name, wanted in (by_gram | alike).items():
        np.testing.assert_allclose(found.figures[name], wanted, err_msg=name)


def test_common_parts_and_the_rest_have_angles_of_their_own():
    rest = np.array([[1.0, 0.0], [-1.0, 0.0]])
    kl, mmd = np.array([1.0, 0.0]) + rest, np.array([1.0, 1.0]) - rest
    figures = stein_grams.spectrum([Seen(np.eye(2), 1.0, 2 * kl, kl, mmd)]).figures
    assert figures["cosine of their common parts"] == pytest.approx(0.5**0.5)
    assert figures["cosine of the rest"] == pytest.approx(-1)
