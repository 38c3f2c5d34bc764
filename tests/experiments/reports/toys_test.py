"""Figures of samples in the plane against loops and closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.pictures.clouds import Backdrop, FieldFrame
from experiments.reports import toys
from experiments.run.errors import UsageError
from experiments.run.tables import Spread
from experiments.targets import densities
from experiments.targets.densities import Modes, Target


def gaussian_target(modes=None):
    return Target(
        "gaussian",
        lambda x: -jnp.sum(jnp.square(x)) / 2 - 3.0,
        2,
        lambda key, n: jax.random.normal(key, (n, 2)),
        ((-6.0, 6.0), (-5.0, 5.0)),
        modes,
    )


def measured(target, samples, bandwidth, columns=80, rows=70):
    (left, right), (bottom, top) = target.bounds
    x, y = jnp.linspace(left, right, columns), jnp.linspace(bottom, top, rows)
    grid = jnp.stack(jnp.meshgrid(x, y), axis=-1)
    log_density = jax.vmap(jax.vmap(target.log_density_fn))(grid)
    measure = jax.jit(toys.make_measure(target, (x, y), log_density))
    figures = measure(jnp.asarray(samples, jnp.float32), bandwidth)
    return {name: float(value) for name, value in figures.items()}


@pytest.mark.thorough
def test_figures_are_those_of_the_loops(rng):
    samples = rng.normal((0.8, -0.3), (0.5, 1.1), (20, 2))
    x, y = np.linspace(-6, 6, 80), np.linspace(-5, 5, 70)
    p, q = np.zeros((2, 70, 80))
    for row in range(70):
        p[row] = stats.norm.pdf(x) * stats.norm.pdf(y[row])
        for a, b in samples:
            q[row] += stats.norm.pdf(x, a, 0.3) * stats.norm.pdf(y[row], b, 0.3)
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    expected = {
        "true_kl": stats.entropy(q.ravel(), p.ravel()),
        "true_jsd": sum(stats.entropy(one.ravel(), middle.ravel()) for one in (p, q)) / 2,
        "on_data": np.mean(np.linalg.norm(samples, axis=1) < math.sqrt(stats.chi2.ppf(0.99, 2))),
        "coverage": p[q >= p / 10].sum(),
    }
    got = measured(gaussian_target(), samples, 0.3)
    assert got == pytest.approx(expected, rel=1e-3)


@pytest.mark.thorough
def test_on_data_is_the_share_in_the_region_of_highest_density():
    """99% of a standard normal in the plane lies within 3.035 of its mean."""
    angle = np.linspace(0, 6, 100)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    inside, outside = (measured(gaussian_target(), r * circle, 0.3, 300, 300) for r in (2.99, 3.08))
    assert inside["on_data"] == 1
    assert outside["on_data"] == 0


def test_kl_of_gaussians_is_the_closed_form(key):
    """The estimate of q is N(m, (s^2 + h^2) I); its noise adds less than 0.01 at 20 000 draws."""
    mean, deviation, bandwidth = np.array([1.0, -0.5]), 0.5, 0.2
    samples = mean + deviation * np.asarray(jax.random.normal(key, (20_000, 2)))
    variance = deviation**2 + bandwidth**2
    expected = variance - 1 + np.sum(mean**2) / 2 - math.log(variance)
    got = measured(gaussian_target(), samples, bandwidth)["true_kl"]
    standard_error = math.sqrt((1 - variance) ** 2 * deviation**4 + 1.25 * deviation**2) / 141
    assert abs(got - expected) < 5 * standard_error + 0.01


def test_samples_beyond_the_grid_count_at_its_edge():
    beyond, edge = np.array([[90.0, 0.0], [7.0, 0.0]]), np.array([[6.0, 0.0], [6.0, 0.0]])
    got = measured(gaussian_target(), beyond, 0.2)
    assert got == measured(gaussian_target(), edge, 0.2)
    assert got["true_jsd"] == pytest.approx(math.log(2), abs=1e-5)
    assert 15 < got["true_kl"] < 22
    assert got["coverage"] < 1e-5


def test_modes_are_those_with_a_fifth_of_their_share():
    """Of four modes and 100 samples a mode needs more than 5, within 3 widths."""
    centres = np.array([[-3.0, 0.0], [3.0, 0.0], [0.0, 3.0], [0.0, -3.0]])
    counts, offsets = (80, 6, 4, 10), (0.0, 0.29, 0.0, 0.31)
    samples = np.concatenate(
        [
            np.tile((centre[0] + offset, centre[1]), (count, 1))
            for centre, count, offset in zip(centres, counts, offsets, strict=True)
        ]
    )
    assert measured(gaussian_target(Modes(centres, 0.1)), samples, 0.1)["modes"] == 2
    assert "modes" not in measured(gaussian_target(), samples, 0.1)


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "num_modes"), [("grid", 25), ("mixture", 8), ("ring", None)])
def test_exact_draws_reach_everything(name, num_modes, key):
    ruler = toys.make_ruler(key, densities.load(name))
    floor = {figure: mean for figure, (mean, _) in ruler.floor.items()}
    assert 0 < floor["true_kl"] < 0.1
    assert 0 < floor["true_jsd"] < 0.03
    assert floor["on_data"] == pytest.approx(0.99, abs=5 * math.sqrt(0.99 * 0.01 / 50_000) + 2e-3)
    assert floor["coverage"] > 0.98
    assert floor.get("modes") == num_modes


def test_a_target_without_draws_is_no_data(key):
    target = gaussian_target()._replace(exact_samples=None)
    with pytest.raises(UsageError, match=r"^target: got gaussian; expected a density in the pla"):
        toys.make_ruler(key, target)


def test_table_holds_the_end_the_fall_and_the_floor():
    floor = {"true_kl": Spread(0.02, 0.001), "true_jsd": Spread(0.01, 0.002)}
    backdrop = Backdrop(((0, 1), (0, 1)), ("a", "b"))
    ruler = toys.Ruler(backdrop, None, 0.04, None, floor)

    def history(*kl):
        return [{"step": 50 * i, "true_kl": k, "true_jsd": k / 20} for i, k in enumerate(kl)]

    frame = FieldFrame(*np.zeros((3, 5, 2)))
    one = toys.table({"kl": toys.Runs([history(8.0, 0.8, 1.2)], frame, 2.5)}, ruler)
    assert one == {
        "start": {"KL[Q||P]": 8.0, "JSD": 0.4},
        "kl": {
            "KL[Q||P]": 1.2,
            "JSD": 0.06,
            "lowest KL": 0.8,
            "KL / 10 at step": "50",
            "ms per step": 2.5,
        },
        "exact draws, bandwidth 0.04": {"KL[Q||P]": "0.02 ± 0.001", "JSD": "0.01 ± 0.002"},
    }
    runs = toys.Runs([history(8.0, 5.0, 1.0), history(9.0, 0.9, 0.5)], frame, 2.5)
    two = toys.table({"kl": runs}, ruler)
    assert two["kl"]["KL / 10 at step"] == "never, 50"
    assert two["kl"]["KL[Q||P]"] == "0.75 ± 0.35"
    assert two["start"]["KL[Q||P]"] == "8.5 ± 0.71"
