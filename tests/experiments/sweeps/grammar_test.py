"""The language of grids: what it says, and what it does not."""

import pytest

from experiments.run import fields
from experiments.run.errors import UsageError
from experiments.sweeps import grammar
from experiments.training.settings import Config

RULES = fields.rules(Config)


def parse(text, most=256):
    return grammar.parse(text, RULES, most)


@pytest.mark.parametrize(
    ("text", "grid"),
    [
        ("seed=0..3", {"seed": (0, 1, 2, 3)}),
        (" seed = 0..1, 7 ;", {"seed": (0, 1, 7)}),
        ("learning_rate=1e-4,3e-4", {"learning_rate": (1e-4, 3e-4)}),
        ("ridge=log:0.4..40:5", {"ridge": (0.4, 1.26491, 4.0, 12.6491, 40.0)}),
        ("ridge=1..2:3; seed=5", {"ridge": (1.0, 1.5, 2.0), "seed": (5,)}),
        ("width=log:16..128:4", {"width": (16, 32, 64, 128)}),
        ("ridge=none,1", {"ridge": (None, 1.0)}),
        ("kernel_scales=[1],[0.5,2]", {"kernel_scales": ((1.0,), (0.5, 2.0))}),
        ("objective=kl,mmd;select=true,f", {"objective": ("kl", "mmd"), "select": (True, False)}),
        ("num_steps=5", {"num_steps": (5,)}),
    ],
)
def test_a_grid_is_read(text, grid):
    assert parse(text) == grid
    assert list(parse(text)) == list(grid)
    assert grammar.names(text)[: len(grid)] == list(grid)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "got ''; expected name=values"),
        ("seed", "got 'seed'; expected name=values"),
        ("seed=", "got 'seed='; expected name=values"),
        ("learning_rat=1", "got 'learning_rat'; expected a known setting such as learning_rate"),
        ("seed=0; seed=1", "got 'seed twice'"),
        ("seed=3,3", "got 'seed=3 twice'; expected distinct values"),
        ("width=log:4..5:5", "got 'width=4 twice'"),
        ("seed=7..0", "got 'seed=7..0'; expected a range a..b with a <= b, not an empty one"),
        ("ridge=nan..1:3", "expected a range a..b with a <= b"),
        ("ridge=1..2", "expected the number of points too, such as 1..2:5"),
        ("ridge=1..1:3", "expected two points or more, a < b"),
        ("ridge=1..2:1", "expected two points or more"),
        ("ridge=log:0..2:3", "expected two points or more, > 0, a < b"),
        ("ridge=1..x:3", "expected numbers a..b, a..b:n or log:a..b:n"),
        ("ridge=1..2:x", "expected numbers a..b"),
        (f"seed=0..1{'0' * 400}", "expected numbers a..b"),
        ("ridge=log:3", "expected values such as"),
        ("seed=1,,2", "got 'seed=1,,2'; expected values such as"),
        ("kernel_scales=1,2", "expected lists in brackets, such as kernel_scales=[1]"),
    ],
)
def test_what_is_no_grid_is_named(text, said):
    with pytest.raises(UsageError, match=r"^sweep: ") as caught:
        parse(text)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["seed=0..256", f"seed=0..{'9' * 300}", "seed=0..16;b1=0..0.9:16"])
def test_a_grid_of_too_many_runs_is_never_made(text):
    with pytest.raises(UsageError, match=r"max_runs: got a grid of .* expected at most 256"):
        parse(text)


def test_values_are_spelled_as_in_a_grid():
    values = [0.0001, (0.5, 1.0), None, True, "kl", 3]
    assert [*map(grammar.shown, values)] == ["0.0001", "0.5+1.0", "none", "true", "kl", "3"]
