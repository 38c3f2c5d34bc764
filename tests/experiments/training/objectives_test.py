"""The table of objectives: its rows read settings that exist, and nobody else knows their names."""

import ast
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments
from experiments.run import fields
from experiments.run.errors import UsageError
from experiments.training import objectives, optimizers, settings, updates
from experiments.training.objectives import OBJECTIVES
from experiments.training.settings import Config

ROOT = pathlib.Path(experiments.__file__).parent
TABLE = "training/objectives.py"
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in ROOT.rglob("*.py")
    if str(path.relative_to(ROOT)) != TABLE
    and not path.stem.startswith("paper0")  # whose claims are about some of them
}
# Defaults; settings of the papers; and a rule of density_estimation called like one.
NAMED = {
    ("compare.py", "kl"),
    ("compare.py", "mmd"),
    ("gan_diagnostics.py", "gan_non_saturating"),
    ("training/settings.py", "kl"),
    ("training/presets.py", "kl"),
    ("training/presets.py", "gan_kl"),
    ("training/presets.py", "steingan"),
    ("training/presets.py", "kale"),
    ("training/energy_fits.py", "kale"),
    ("training/manifolds.py", "gan_saturating"),
}


def names_in(source):
    """Yields the objectives that are named by a text of their own."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in OBJECTIVES:
            yield node.value


def comparisons(source):
    """Yields the comparisons of an objective's name with texts."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare | ast.MatchValue | ast.Dict):
            parts = ast.walk(node)
            if any(isinstance(part, ast.Constant) and part.value in OBJECTIVES for part in parts):
                yield ast.unparse(node)
        if isinstance(node, ast.Compare):
            sides = (node.left, *node.comparators)
            if any(isinstance(side, ast.Attribute) and side.attr == "objective" for side in sides):
                yield ast.unparse(node)


def test_nobody_else_names_an_objective():
    found = {(path, name) for path, source in SOURCES.items() for name in names_in(source)}
    assert found == NAMED


def test_nobody_else_compares_the_name_of_an_objective():
    tables = ("training/presets.py", "training/energy_fits.py")
    checked = {path: source for path, source in SOURCES.items() if path not in tables}
    assert [line for source in checked.values() for line in comparisons(source)] == []


@pytest.mark.parametrize(
    "source",
    [
        'config.objective == "kl"',
        'name in ("kl", "x")',
        "config.objective != other",
        '{"kale": 1}[name]',
        'match name:\n    case "mmd":\n        pass',
    ],
)
def test_a_comparison_is_seen(source):
    assert list(comparisons(source))


def test_an_objective_without_its_extra_is_refused_in_one_line(monkeypatch):
    absent = OBJECTIVES["sinkhorn"]._replace(extra="no_such_package")
    monkeypatch.setitem(OBJECTIVES, "sinkhorn", absent)
    assert objectives.installed() == tuple(name for name in OBJECTIVES if name != "sinkhorn")
    message = r"^objective: got sinkhorn without the extra no_such_package; .* pip install '[^']+'$"
    with pytest.raises(UsageError, match=message):
        settings.validate(Config(objective="sinkhorn"), 1)


def test_rows_read_settings_that_exist():
    known = {field.name for field in dataclasses.fields(Config)}
    assert set().union(*(choice.settings for choice in OBJECTIVES.values())) <= known
    assert {"kl", "ratio_ulsif"} <= set(objectives.reading("ridge")) < set(OBJECTIVES)
    assert "steingan" in objectives.reading("discount")
    assert objectives.reading("critic_steps") == [
        name for name, choice in OBJECTIVES.items() if choice.critic_steps
    ]


def test_settings_of_few_objectives_say_so():
    """All but what the generator, or the noise on samples and data, need too."""
    shared = {"width", "noise_variance"}
    for name, rule in fields.rules(Config).items():
        some = objectives.reading(name) or updates.reading(name) or optimizers.reading(name)
        assert bool(rule.of) == (bool(some) and name not in shared), name


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("ridge", [None, 0.3])
def test_a_selected_ratio_has_one_of_the_scales_and_a_ridge_of_its_grid(key, ridge):
    config = Config(objective="ratio_ulsif", select=True, kernel_scales=(0.25, 4.0), ridge=ridge)
    objective = OBJECTIVES[config.objective].make(config)
    x, y = jax.random.normal(key, (2, 6, 2))
    info = jax.jit(objective)(key, x, y)[1]
    assert float(info["lengthscale_factor"]) in (0.5, 2.0)
    ridges = objectives.SELECTED_RIDGES if ridge is None else (ridge,)
    assert any(info["ridge"] == jnp.float32(one) for one in ridges)


@pytest.mark.thorough
def test_scales_and_size_are_by_default_those_of_the_row(key):
    x, y = jax.random.normal(key, (2, 6, 2))
    for name, scales, unit in (
        ("kl", (0.01, 0.03, 0.1, 0.3), True),
        ("noisy_mmd", (0.5, 1.0, 2.0, 4.0), False),
    ):
        config = Config(objective=name)
        given = dataclasses.replace(config, kernel_scales=scales)
        found, expected = (OBJECTIVES[name].make(one)(key, x, y)[0] for one in (config, given))
        np.testing.assert_array_equal(found, expected)
        assert settings.normalizes(config) == unit
        assert settings.normalizes(dataclasses.replace(config, normalize=not unit)) != unit


def test_noise_is_the_objectives_own_where_it_reads_the_variance():
    assert OBJECTIVES["noisy_jsd"].has_own_noise
    assert not OBJECTIVES["kl"].has_own_noise


@pytest.mark.parametrize("objective", [name for name, choice in OBJECTIVES.items() if choice.needs])
def test_what_an_objective_needs_is_refused_at_0_alone(objective):
    needs = OBJECTIVES[objective].needs
    config = Config(objective=objective, **needs)
    settings.validate(config, 1)
    for name in needs:
        with pytest.raises(UsageError, match=f"^{name}: got 0.0 for {objective}; expected a"):
            settings.validate(dataclasses.replace(config, **{name: 0.0}), 1)


def test_the_usual_value_of_critics_comes_last():
    critics = [name for name, choice in OBJECTIVES.items() if choice.critic_steps]
    steps = objectives.in_words(lambda choice: choice.critic_steps, critics)
    assert steps == "5 for wgan_clip and wgan_gp, else 1"
