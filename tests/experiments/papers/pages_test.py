"""What reproduce runs is what the pages say: they do not drift apart."""

import fnmatch
import importlib
import json
import pathlib
import re
import shlex

import numpy as np
import pytest

from experiments.papers import runs
from experiments.reports import comparisons
from experiments.reports.comparisons import Curves
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
            patch.setattr(command, "main", lambda *called: found.extend(called))  # noqa: B023
            binary = importlib.import_module(f"experiments.{step.binary}")
            patch.setattr(binary, "run", lambda *_, **__: None)
            binary.main()
            start, *classes = found
            given = command.parse(step.arguments(pathlib.Path("w"), "d"), *classes)
            start(given)  # which refuses flags that nothing reads
        read = re.findall(r"=runs/([\w/.-]+)", " ".join(step.flags.values()))
        assert {one.split("/")[0] for one in read} <= {one.split("/")[0] for one in made}
        assert ("data_dir" in given) == bool(step.needs)
        assert scale != "smoke" or not step.needs
    if scale != "smoke":
        assert all(set(claim.of) <= made for claim in PAPERS[name].claims)


def _leave(folder, step):
    """Leaves what the claims read of a run of toy or compare, for its objectives and seeds."""
    flags = {name.lstrip("-"): text.partition("=")[2] for name, text in step.flags.items()}
    objectives = (flags.get("objectives") or flags["objective"]).split(",")
    seeds = [int(seed) for seed in flags.get("seeds", "0").split(",")]
    if step.binary == "compare":
        metrics = ("test_mmd", "label_entropy", "nearest_l1", "inception_score", "test_w1")
        values = {metric: np.array([[seed + 1.0, 1.0] for seed in seeds]) for metric in metrics}
        curves = {name: Curves(np.array([1, 2]), values, 1.0) for name in objectives}
        folder.mkdir(parents=True)
        real = {"inception_score": 9.8}
        (folder / "comparison.json").write_bytes(comparisons.as_json(curves, real))
        return
    for objective in objectives:
        for seed in seeds:
            run = folder / objective / f"seed{seed}"
            run.mkdir(parents=True)
            records = ({"step": step, "true_kl": 3.0 - step, "modes": 8} for step in range(2))
            (run / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))


@pytest.mark.parametrize("scale", runs.SCALES)
@pytest.mark.parametrize("name", PAPERS)
def test_claims_ask_for_what_the_runs_behind_them_leave(name, scale, tmp_path):
    """Of objectives that a scale does not run no claim may ask."""
    left = {}
    for step in runs.steps(PAPERS[name].runs, scale):
        if step.binary in ("compare", "toy"):
            left[step.folder] = step
            _leave(tmp_path / step.folder, step)
    asked = [claim for claim in PAPERS[name].claims if set(claim.of) <= set(left)]
    for claim in asked:
        num_seeds = {left[folder].flags.get("--seeds", "").count(",") + 1 for folder in claim.of}
        parts = claim.look(tmp_path)
        assert parts, claim.says
        assert {part.seeds for part in parts} <= {1, *num_seeds}
    assert asked or name in ("003", "004")
