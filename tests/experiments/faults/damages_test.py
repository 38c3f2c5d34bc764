"""A run's folder damaged at random: what is restored is its own, and nothing outside is touched.

`make test-faults` counts to 1000 damages and prints the figures; other targets take a few.
"""

import collections
import os
import pathlib
import shutil

import numpy as np
import pytest

from experiments.run import workdirs
from experiments.run.errors import StorageError, UsageError
from tests.experiments.faults.small_run import delete, make_run, state_of
from tests.experiments.run.toy_run import Config, abstract, raw

LONG = os.environ.get("KERNELGRAD_SLOW_TESTS") == "1"
NUM_DAMAGES = 1000 if LONG else 20


def _tree(folder: pathlib.Path) -> dict[str, tuple[int, str | bytes]]:
    """Returns kind and content of everything below a folder."""
    found: dict[str, tuple[int, str | bytes]] = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        if path.is_symlink():
            content: str | bytes = os.readlink(path)
        else:
            content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (status.st_mode, content)
    return found


def _flip(path: pathlib.Path, rng: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)


def _cut(path: pathlib.Path, rng: np.random.Generator) -> None:
    os.truncate(path, rng.integers(path.stat().st_size + 1))


def _lengthen(path: pathlib.Path, rng: np.random.Generator) -> None:
    with path.open("ab") as file:
        file.write(rng.bytes(rng.integers(1, 100)))


def _zero(path: pathlib.Path, _: np.random.Generator) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _become_link(path: pathlib.Path, _: np.random.Generator) -> None:
    """What was there lies outside now, with a link to it in its place."""
    outside = next(p for p in path.parents if p.name == "run").with_name("outside")
    os.rename(path, outside / "moved")
    path.symlink_to(outside / "moved")


def _become_fifo(path: pathlib.Path, rng: np.random.Generator) -> None:
    delete(path, rng)
    os.mkfifo(path)


def _become_huge(path: pathlib.Path, _: np.random.Generator) -> None:
    os.truncate(path, 2**40)


OF_FILES = (_flip, _flip, _cut, _lengthen, _zero, delete, _become_link, _become_fifo, _become_huge)
OF_FOLDERS = (delete, _become_link, _become_fifo)


def _damage(run: pathlib.Path, other: pathlib.Path, rng: np.random.Generator) -> str:
    """Damages a run somewhere, and returns how."""
    steps = sorted((run / "checkpoints").iterdir())
    kind = rng.integers(10)
    if kind == 0:  # to another step's name
        step = steps[rng.integers(len(steps))]
        name = str(rng.integers(10))
        if not (run / "checkpoints" / name).exists():
            os.rename(step, step.with_name(name))
            return f"rename {step.name} to {name}"
    if kind == 1:  # as another step, or from another run
        sources = [*steps, *(other / "checkpoints").iterdir()]
        source, target = (
            sources[rng.integers(len(sources))],
            run / f"checkpoints/{rng.integers(10)}",
        )
        if source != target:
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
            return f"copy {source.parent.parent.name}/{source.name} to {target.name}"
    if kind == 2:
        one, two = (steps[index] for index in rng.choice(len(steps), 2, replace=False))
        files = [file for file in one.rglob("*") if file.is_file()]
        file = files[rng.integers(len(files))]
        twin = two / file.relative_to(one) if (two / file.relative_to(one)).is_file() else two
        if twin.is_dir():
            file, twin = one, two
        os.rename(file, run / "held")
        os.rename(twin, file)
        os.rename(run / "held", twin)
        return f"swap {file.relative_to(run)} and {twin.relative_to(run)}"
    if kind == 3:  # something that has no business there
        place = run / ["", "checkpoints", "checkpoints/3"][rng.integers(3)]
        name = ["²", "007", "x", "metrics.jsonl.tmp", "tmp-9", "config.json.tmp"][rng.integers(6)]
        if rng.random() < 0.5:
            (place / name).symlink_to(run.with_name("outside"))
        else:
            (place / name).mkdir()
        return f"stray {name} in {place.name}"
    if kind == 4:
        folders = [path for path in run.rglob("*") if path.is_dir()]
        path, damage = folders[rng.integers(len(folders))], OF_FOLDERS[rng.integers(3)]
    else:
        files = [path for path in run.rglob("*") if path.is_file()]
        path, damage = files[rng.integers(len(files))], OF_FILES[rng.integers(len(OF_FILES))]
    damage(path, rng)
    return f"{damage.__name__} {path.relative_to(run)}"


@pytest.mark.thorough
def test_damage_is_noticed_and_stays_within_the_folder(tmp_path, rng, capsys):
    """What is restored is a state of the run, with its metrics; else an error is one line."""
    original, other = make_run(tmp_path / "original", range(1, 6)), tmp_path / "other"
    make_run(other, range(2, 8))
    records = (original / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    form = abstract(state_of(0))
    counts: collections.Counter[str] = collections.Counter()
    for _ in range(NUM_DAMAGES):
        run, outside = tmp_path / "run", tmp_path / "outside"
        shutil.copytree(original, run)
        outside.mkdir()
        (outside / "precious").write_text("mine")
        how = _damage(run, other, rng)
        before = _tree(outside)
        error = None
        try:
            with workdirs.Workdir(run, Config()) as workdir:
                step, state = workdir.restore(form) or (0, state_of(0))
                assert step or how == "delete checkpoints", how
                assert raw(state) == raw(state_of(step)), how
                assert (run / "metrics.jsonl").read_bytes() == b"".join(records[:step]), how
                assert [record["step"] for record in workdir.history()] == list(range(1, step + 1))
                workdir.log(step + 1, {"loss": 1.0})
                workdir.save(step + 1, state_of(step + 1))
            counts["newest checkpoint" if step == 5 else "an earlier one" if step else "none"] += 1
        except (StorageError, UsageError) as refusal:
            error = str(refusal)
            counts["refused"] += 1
        assert error is None or ("\n" not in error and str(run) in error), (how, error)
        assert _tree(outside) == before, how
        said = capsys.readouterr().err.splitlines()
        assert all(line.startswith("kernelgrad: warning: ") for line in said), how
        shutil.rmtree(run)
        shutil.rmtree(outside)
    with capsys.disabled():
        print(f"\n{NUM_DAMAGES} damages: {dict(counts)}" if LONG else "", end="")
