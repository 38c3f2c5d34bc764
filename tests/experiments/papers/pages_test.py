"""What reproduce runs is what the pages say: they do not drift apart."""

import fnmatch
import importlib
import pathlib
import re
import shlex

import pytest

from experiments.papers import runs
from experiments.reproduce import PAPERS
from experiments.run import command

ROOT = pathlib.Path(__file__).parents[3]
TEXTS = {name: (ROOT / f"docs/results/paper{name}.md").read_text() for name in PAPERS}
_COMMAND = re.compile(r"python -m experiments\.((?:\\\n|[^\n])*)")


def commands(text):
    """Returns the commands of a page, each as a set of words."""
    return [frozenset(shlex.split(one.replace("\\\n", " "))) for one in _COMMAND.findall(text)]


def made(text):
    """Returns the folders that a page says `reproduce` makes besides."""
    (head,) = (part for part in text.split("\n\n") if "`reproduce`" in part)
    return set(re.findall(r"`(\w[\w.-]*)`", head)) - {"reproduce"}


@pytest.mark.parametrize("name", PAPERS)
def test_every_command_stands_on_its_page(name):
    there, besides = commands(TEXTS[name]), made(TEXTS[name])
    steps = runs.steps(PAPERS[name].runs, "cpu")
    missing = [
        step for step in steps if frozenset([step.binary, *step.flags.values()]) not in there
    ]
    assert [step.command for step in missing if step.folder not in besides] == []
    assert besides == {step.folder for step in missing}
    reproduced = [one for one in there if f"--paper={name}" in one]
    assert any(one >= {"reproduce", f"--workdir=runs/paper{name}"} for one in reproduced)


@pytest.mark.parametrize("name", PAPERS)
def test_every_figure_of_the_page_is_left_by_a_run(name):
    left = [
        f"runs/{step.folder}/{pattern}"
        for step in runs.steps(PAPERS[name].runs, "cpu")
        for pattern in step.run.leaves
    ]
    shown = re.findall(r"`(runs/[\w/]+\.(?:png|gif))`", TEXTS[name])
    assert shown
    assert [one for one in shown if not any(fnmatch.fnmatch(one, path) for path in left)] == []


@pytest.mark.parametrize("scale", runs.SCALES)
@pytest.mark.parametrize("name", PAPERS)
def test_commands_are_taken_by_their_binaries(name, scale, monkeypatch):
    steps = runs.steps(PAPERS[name].runs, scale)
    made = {step.folder for step in steps}
    for step in steps:
        with monkeypatch.context() as patch:
            found = []
            patch.setattr(command, "main", lambda _, *classes: found.extend(classes))  # noqa: B023
            importlib.import_module(f"experiments.{step.binary}").main()
        given = command.parse(step.arguments(pathlib.Path("w"), "d"), *found)
        read = re.findall(r"=runs/([\w/.-]+)", " ".join(step.flags.values()))
        assert {one.split("/")[0] for one in read} <= {one.split("/")[0] for one in made}
        assert ("data_dir" in given) == bool(step.needs)
        assert scale != "smoke" or not step.needs
    if scale != "smoke":
        assert all(set(claim.of) <= made for claim in PAPERS[name].claims)
