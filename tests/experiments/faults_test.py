"""Kills, signals, damage and hostile files, at random: nothing is lost, taken for good or run.

`make test-faults` counts to 300 kills, 1000 damages and 100 hostile files and prints the figures;
`make test` takes a few of the damages and the hostile files.
"""

import collections
import contextlib
import dataclasses
import functools
import importlib
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import classification_score, density_estimation, neural_sampler, toy
from experiments.data import catalog, image_sets
from experiments.judges import classifiers
from experiments.run import records, store, workdirs
from experiments.run.errors import DataError, StorageError, UsageError
from experiments.targets import latent_chains
from experiments.training import trained

LONG = os.environ.get("KERNELGRAD_SLOW_TESTS") == "1"
NUM_DAMAGES = 1000 if LONG else 20

# ------------------------------------------------------------------------------------------ kills

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "experiments.run.workdirs",
        "experiments.pictures.charts",
        "experiments.networks.generators",
        "kernelgrad.train",
    ]
)

_PATIENCE = 900.0  # seconds; a life takes a few, on a machine of one's own


@dataclasses.dataclass(frozen=True)
class Binary:
    """A binary with settings that take seconds.

    Attributes:
      flags: but for the folder.
      kills: in all.
      results: what has to be bit for bit that of an uninterrupted run, beside the metrics.
      small: constants by module that are set to less.
    """

    flags: tuple[str, ...]
    kills: int
    results: tuple[str, ...] = ()
    small: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)


_OF_TRAINING = ("--batch_size=20", "--latent_dim=4", "--width=8", "--dataset=swiss_roll")
_OF_TOY = {
    "reports.toys": {"NUM_EVALUATED": 300, "_GRID": 60, "_FRESH_SETS": 2},
    "toy": {"_NUM_TRAIN": 400, "_NUM_DRAWN": 50, "_LATTICE": 5},
    "run.timing": {"_TIMED_SECONDS": 0.0},
}
_OF_SAMPLER = {
    "neural_sampler": {"_NUM_DRAWN": 50, "_TIMED_STEPS": 2},
    "run.timing": {"_TIMED_SECONDS": 0.0},
    "reports.sampling": {"NUM_EVALUATED": 60, "_CHAINS": 20, "_WARMUP": 40, "_DRAWS": 50},
}
BINARIES = {
    "train": Binary(("--num_steps=400", "--eval_every=20", *_OF_TRAINING), 110),
    "toy": Binary(
        ("--num_steps=120", "--eval_every=10", "--batch_size=16", "--width=8", "--critic_steps=1"),
        50,
        ("frames/0000000.npz", "frames/0000120.npz"),
        _OF_TOY,
    ),
    "neural_sampler": Binary(
        (
            "--target=ring", "--update=all", "--num_steps=40", "--eval_every=5", "--batch_size=20",
            "--latent_dim=2", "--width=8", "--inner_steps=2", "--cg_iterations=2",
        ),
        40,
        (),
        _OF_SAMPLER,
    ),
    "rbm": Binary(
        (
            "--dataset=digits", "--num_epochs=4", "--seeds=0,1", "--num_hidden=2", "--width=8",
            "--generator=mlp", "--batch_size=100",
        ),
        40,
    ),
    "density_estimation": Binary(
        (
            "--datasets=ring", "--methods=kale,dv,kale_newton", "--seeds=0,1", "--num_steps=20",
            "--eval_every=10", "--batch_size=20", "--num_base=20", "--width=8", "--depth=1",
            "--num_normalizer_samples=1000",
        ),
        30,
        ("results.json",),
    ),
    "sample": Binary(
        ("--sampler=ula", "--num_samples=20", "--steps=600"), 30, ("samples_ula/results.json",)
    ),
}  # fmt: skip


def test_what_is_set_to_less_is_there():
    for binary in BINARIES.values():
        for module, constants in binary.small.items():
            found = vars(importlib.import_module(f"experiments.{module}"))
            assert all(value < found[name] for name, value in constants.items()), module


def _life(name: str, arguments: list[str], stderr: str, small: dict[str, dict[str, float]]) -> None:
    """The child: a binary whose stdout and stderr go to a file."""
    descriptor = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell's & ignores it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    binary = importlib.import_module(f"experiments.{name}")
    for module, constants in small.items():
        for constant, value in constants.items():
            setattr(importlib.import_module(f"experiments.{module}"), constant, value)
    sys.argv = [name, *arguments]
    binary.main()


def _start(name: str, workdir: pathlib.Path, stderr: pathlib.Path) -> Any:
    binary = BINARIES[name]
    arguments = [f"--workdir={workdir}", *binary.flags]
    process = FORKS.Process(target=_life, args=(name, arguments, str(stderr), binary.small))
    process.start()
    return process


def _results(name: str, workdir: pathlib.Path) -> dict[str, bytes]:
    """Returns all metrics of a run, and its other results."""
    files = [*workdir.rglob("metrics.jsonl"), *(workdir / file for file in BINARIES[name].results)]
    place = str(workdir).encode()
    return {str(file.relative_to(workdir)): file.read_bytes().replace(place, b"") for file in files}


def _await(process: Any, seconds: float, happened: Any) -> bool:
    """Returns whether something happened in time, before the process ended."""
    deadline = time.monotonic() + seconds
    while process.is_alive() and time.monotonic() < deadline:
        if happened():
            return True
        time.sleep(0.003)
    return False


def _end_a_life(process: Any, workdir: pathlib.Path, rng: np.random.Generator) -> int:
    """Sends a signal at a random moment and returns which; 0 if the run came to its end."""
    number = int(rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]))
    owner = f"pid {process.pid} "
    lock = workdir / "lock"
    _await(process, _PATIENCE, lambda: lock.exists() and lock.read_text().startswith(owner))
    if rng.random() < 0.75:  # when it has come further than it had, at whatever moment then
        before = _times(workdir)
        _await(process, _PATIENCE, lambda: _times(workdir) != before)
        time.sleep(rng.exponential(0.1))
    else:
        time.sleep(rng.uniform(0, 2))
    if process.is_alive():
        os.kill(process.pid, number)
    process.join(_PATIENCE)
    assert process.exitcode is not None, "still running"
    return 0 if process.exitcode == 0 else number


def _times(workdir: pathlib.Path) -> dict[pathlib.Path, int]:
    """Returns when the files of a run were written, but for those that a start writes."""
    times = {}
    for file in workdir.rglob("*"):
        if file.name not in ("lock", "config.json"):
            with contextlib.suppress(FileNotFoundError):
                times[file] = file.stat().st_mtime_ns
    return times


@pytest.mark.slow
@pytest.mark.parametrize("name", BINARIES)
def test_kills_and_signals_change_nothing(name, tmp_path, rng):
    start = time.monotonic()
    template = tmp_path / "template"
    template.mkdir()
    if name == "sample":
        training = [f"--workdir={template}", "--num_steps=2", "--eval_every=2", *_OF_TRAINING]
        arguments = ("train", [*training, "--objective=gan_kl"], str(tmp_path / "stderr"), {})
        process = FORKS.Process(target=_life, args=arguments)
        process.start()
        process.join(_PATIENCE)
        assert process.exitcode == 0, (tmp_path / "stderr").read_text()
    whole = shutil.copytree(template, tmp_path / "whole")
    process = _start(name, whole, tmp_path / "stderr")
    process.join(_PATIENCE)
    assert process.exitcode == 0, (tmp_path / "stderr").read_text()
    expected, counts, runs = _results(name, whole), collections.Counter(), 0
    while counts.total() < BINARIES[name].kills:
        runs += 1
        workdir = shutil.copytree(template, tmp_path / f"run{runs}")
        while True:
            stderr = tmp_path / "stderr"
            process = _start(name, workdir, stderr)
            number = 0
            if counts.total() < BINARIES[name].kills:
                number = _end_a_life(process, workdir, rng)
            process.join(_PATIENCE)
            said = stderr.read_text()
            assert "Traceback" not in said, said
            if not number:
                assert process.exitcode == 0, said
                break
            counts[signal.Signals(number).name] += 1
            code = -number if number == signal.SIGKILL else 128 + number
            assert process.exitcode == code, said
            lines = [line for line in said.splitlines() if line.startswith("kernelgrad: error:")]
            assert len(lines) == (number != signal.SIGKILL), said
            assert all(line.endswith("; run the same command to resume") for line in lines)
        assert _results(name, workdir) == expected
        shutil.rmtree(workdir)
    seconds = time.monotonic() - start
    print(f"\n{name}: {dict(counts)} in {runs} runs, all as uninterrupted, {seconds:.0f} s")


# ---------------------------------------------------------------------------------------- damages


@dataclasses.dataclass(frozen=True)
class Config:
    """The config of a toy run."""

    learning_rate: float = 0.1


def _state(step: int) -> dict[str, Any]:
    return {"params": jnp.arange(6.0) + step, "key": jax.random.key(step), "step": np.array(step)}


def _raw(state: dict[str, Any]) -> list[bytes]:
    host = {**state, "key": jax.random.key_data(state["key"])}
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(host)]


def _make_run(path: pathlib.Path, steps: range) -> pathlib.Path:
    with workdirs.Workdir(path, Config()) as workdir:
        for step in steps:
            workdir.log(step, {"loss": 1 / (1 + step)})
            workdir.save(step, _state(step))
        workdir.log(steps[-1] + 1, {"loss": 0.0})
    return path


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


def _delete(path: pathlib.Path, _: np.random.Generator) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _become_link(path: pathlib.Path, _: np.random.Generator) -> None:
    """What was there lies outside now, with a link to it in its place."""
    outside = next(p for p in path.parents if p.name == "run").with_name("outside")
    os.rename(path, outside / "moved")
    path.symlink_to(outside / "moved")


def _become_fifo(path: pathlib.Path, rng: np.random.Generator) -> None:
    _delete(path, rng)
    os.mkfifo(path)


def _become_huge(path: pathlib.Path, _: np.random.Generator) -> None:
    os.truncate(path, 2**40)


OF_FILES = (_flip, _flip, _cut, _lengthen, _zero, _delete, _become_link, _become_fifo, _become_huge)
OF_FOLDERS = (_delete, _become_link, _become_fifo)


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
    original, other = _make_run(tmp_path / "original", range(1, 6)), tmp_path / "other"
    _make_run(other, range(2, 8))
    records = (original / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    form = jax.eval_shape(lambda: {**_state(0), "step": 0}) | {"step": np.array(0)}
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
                step, state = workdir.restore(form) or (0, _state(0))
                assert step or how == "_delete checkpoints", how
                assert _raw(state) == _raw(_state(step)), how
                assert (run / "metrics.jsonl").read_bytes() == b"".join(records[:step]), how
                assert [record["step"] for record in workdir.history()] == list(range(1, step + 1))
                workdir.log(step + 1, {"loss": 1.0})
                workdir.save(step + 1, _state(step + 1))
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


# ------------------------------------------------------------------------------------ hostile files


@functools.cache
def _many() -> str:
    return json.dumps({"step": 1, **{f"name{index}": 0 for index in range(10**6)}}) + "\n"


class _Bomb:
    """An object whose pickle leaves a file behind when it is read."""

    def __init__(self, trace: pathlib.Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return pathlib.Path.touch, (self.trace,)


def _pickled(path: pathlib.Path, **others: Any) -> None:
    names = ("samples", "about", "monitor", "log_step", "state0", "sha256", "train.images")
    bomb = np.array([_Bomb(path.with_name("executed"))], object)
    with path.open("wb") as file:
        np.savez(file, allow_pickle=True, **dict.fromkeys(names, bomb), **others)


def _arrays(path: pathlib.Path) -> None:
    """Arrays by all the names that anybody asks for, all of another form, with their digest."""
    names = ("samples", "points", "arrows", "about", "monitor", "log_step", "state0")
    others = ("train.images", "train.labels", "num_classes")
    arrays = dict.fromkeys([*names, *others], np.zeros((2, 3), np.int8))
    path.write_bytes(store.packed(arrays))


def _json(text: str) -> Any:
    return lambda path: path.write_text(text + "\n")


HOSTILE = {
    "fifo": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "a sparse terabyte": lambda path: (path.touch(), os.truncate(path, 2**40)),
    "folder": pathlib.Path.mkdir,
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "nothing": pathlib.Path.touch,
    "half an object": _json("{"),
    "list": _json("[1]"),
    "text": _json('{"step": "one", "accuracy": "half", "looks": "none", "width": "wide"}'),
    "null": _json('{"step": null, "accuracy": null, "looks": [null], "width": null}'),
    "depth": lambda path: path.write_text("[" * 10**5 + "\n"),
    "objects within objects": lambda path: path.write_text('{"step":' * 900 + "1" + "}" * 900),
    "a million names": lambda path: path.write_text(_many()),
    "infinity": _json('{"step": 1, "loss": Infinity, "accuracy": NaN, "width": -Infinity}'),
    "more than a float": _json('{"step": 1e999, "loss": 1e999, "accuracy": 1e999, "width": 1e999}'),
    "5000 digits": lambda path: path.write_text('{"step": ' + "9" * 5000 + "}\n"),
    "4000 digits": lambda path: path.write_text('{"step": ' + "9" * 4000 + ', "accuracy": 0}\n'),
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe{\x00\n"),
    "zeros": lambda path: path.write_bytes(bytes(10_000) + b"\n"),
    "pickles": _pickled,
    "other arrays": _arrays,
}

_SHORT = ("fifo", "4000 digits", "pickles")


def _restore(path: pathlib.Path) -> None:
    form = jax.eval_shape(lambda: {**_state(0), "step": 0}) | {"step": np.array(0)}
    run = next(folder for folder in path.parents if folder.name == "run")
    with workdirs.Workdir(run, Config()) as workdir:
        workdir.restore(form)
        workdir.history()


def _read_fit(path: pathlib.Path) -> None:
    split: Any = types.SimpleNamespace(is_new=np.ones(3, bool), test=np.zeros((3, 3)))
    density_estimation._read(path, split, range(3))


READERS = {
    "config.json": _restore,
    "metrics.jsonl": _restore,
    "run_id": _restore,
    "lock": _restore,
    "checkpoints": _restore,
    "checkpoints/2": _restore,
    "checkpoints/2/SHA256SUMS": _restore,
    "checkpoints/2/checkpoint.json": _restore,
    "checkpoints/2/state/_METADATA": _restore,
    "trained/config.json": lambda path: trained.stored_config(str(path.parent)),
    "compared/metrics.jsonl": lambda path: list(records.parsed(path)),
    "frames/0000001.npz": lambda path: toy.read_frame(path.parents[1], {"step": 1.0}),
    "chain_rule/frames/0000001.npz": lambda path: neural_sampler._stored_frame(
        path, jax.ShapeDtypeStruct((5, 2), jnp.float32)
    ),
    "samples_ula/unfinished.npz": latent_chains.read_progress,
    "fits/ring.json": _read_fit,
    "accuracies/0.json": classification_score._stored_accuracy,
    "cache/classifier.npz": classifiers._load,
    "cache/images.npz": image_sets._read_cached,
    "data/winequality-red.csv": lambda path: catalog.load("red_wine", str(path.parent)),
    "data/train-images-idx3-ubyte.gz": lambda path: catalog.load("mnist", str(path.parent)),
    "data/cifar10-jpeg.tar.xz": lambda path: catalog.load("cifar10_jpeg", str(path.parent)),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run with two checkpoints."""
    return _make_run(tmp_path_factory.mktemp("original") / "run", range(1, 3))


@pytest.mark.parametrize(
    "content",
    [
        content if content in _SHORT else pytest.param(content, marks=pytest.mark.slow)
        for content in HOSTILE
    ],
)
def test_hostile_files_are_refused_in_a_line(original, tmp_path, capsys, monkeypatch, content):
    """Whatever lies where a file is read: no hang, no traceback, nothing is executed."""
    monkeypatch.setenv("KERNELGRAD_CACHE", str(tmp_path / "cache"))
    for name, read in READERS.items():
        run = tmp_path / "run"
        shutil.copytree(original, run)
        path = run / name
        if path.exists():
            _delete(path, np.random.default_rng(0))
        path.parent.mkdir(parents=True, exist_ok=True)
        HOSTILE[content](path)
        start, error = time.monotonic(), None
        try:
            read(path)
        except (StorageError, UsageError, DataError) as refusal:
            error = str(refusal)
        assert time.monotonic() - start < 20, name
        assert error is None or str(run) in error, (name, error)
        assert error is None or len(error) < 1000, (name, error)
        assert not list(run.rglob("executed")), name
        said = capsys.readouterr().err.splitlines()
        assert all(line.startswith("kernelgrad: warning: ") for line in said), (name, said)
        shutil.rmtree(run)
