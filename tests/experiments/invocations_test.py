"""Every binary, called in one process in every wrong way that its settings know of.

A refusal is one line of at most 300 characters that names what is wrong, with exit code 2, or 1 for
a folder that cannot be used; nothing is compiled, and no file or folder appears or changes.
"""

import dataclasses
import importlib
import inspect
import json
import math
import os
import pkgutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import experiments
from experiments.run import command, fields, workdirs
from experiments.training.settings import Config

BINARIES = [
    module.name
    for module in pkgutil.iter_modules(experiments.__path__)
    if not module.ispkg and module.name != "__main__"
]
MODULES = {name: importlib.import_module(f"experiments.{name}") for name in BINARIES}
READERS = [  # of the folder of a run
    name for name, module in MODULES.items() if "trained.opened(" in inspect.getsource(module)
]
HUGE = "9" * 6000
COMPILED = "/jax/core/compile/backend_compile_duration"


def rules_of(binary, monkeypatch):
    """Returns the rules of a binary's settings by flag."""
    found = {}

    def note(_, *config_classes):
        for one in (*config_classes, command.Common):
            found.update({rule.flag or name: rule for name, rule in fields.rules(one).items()})

    with monkeypatch.context() as patch:
        patch.setattr(command, "main", note)
        binary.main()
    return found


def scalars(rule):
    """Yields texts that are no value of a rule, nor an item where it is a list."""
    if rule.kind is bool:
        yield from ("maybe", "2", "none", "")
    elif rule.choices:
        first = next(iter(rule.choices))
        near = first.upper() if first != first.upper() else f"{first}0"
        yield from ("nosuch", near, "x" * 6000, "0")
    elif rule.kind is str:
        yield from ("", " ", "a\0b", "x" * 6000)
    else:
        yield from ("x", "nan", f"-{HUGE}", "None", "1,5;2", "0x10", "true", "[1]")
        yield from ("1.5",) if rule.kind is int else ("-inf",)
        yield repr(rule.kind(rule.low - 1)) if rule.low < 1e29 else ""
        if rule.high < math.inf:
            yield from (HUGE, "inf", repr(rule.kind(rule.high * 1.5) + rule.kind(1)))


def bad_values(rule):
    """Yields texts that a flag must not take."""
    texts = [text for text in scalars(rule) if not (rule.many and "," in text)]
    if not rule.many:
        yield from ("", *texts)
        return
    if rule.choices:
        first = next(iter(rule.choices))
    else:
        first = str(rule.kind(max(rule.low, 1))) if rule.kind is not str else "a=b"
    yield from ("", " ", ",", f"{first},", f"{first},{first}", f"{first}, {first}")
    if rule.kind is not str or rule.choices:
        yield from (f"{first},{text}" for text in texts)


@pytest.mark.parametrize("name", BINARIES)
def test_every_run_has_one_signature(name):
    config, workdir, data_dir, *rest = inspect.signature(MODULES[name].run).parameters.values()
    assert (config.name, config.kind) == ("config", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert (workdir.name, workdir.kind) == ("workdir", inspect.Parameter.KEYWORD_ONLY)
    assert (data_dir.name, data_dir.default) == ("data_dir", None)
    assert all(each.default is not inspect.Parameter.empty for each in rest)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder that holds everything that a binary might write to."""
    for name in ("home", "cache", "here", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("no folder")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KERNELGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KERNELGRAD_DATA_DIR", raising=False)
    return tmp_path


@pytest.fixture
def refused(place, monkeypatch, capsys):
    """Calls a binary, and returns what is wrong with the way that it refuses."""
    compiled = []

    def listen(event, _, **__):
        if event == COMPILED:
            compiled.append(event)

    def listing():
        return sorted(
            (str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in place.rglob("*")
        )

    def call(name, arguments, start, code=2):
        before = listing()
        compiled.clear()
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        try:
            MODULES[name].main()
            raise AssertionError("main returned")
        except SystemExit as stop:
            got = stop.code
        except Exception as error:
            got = repr(error)[:200]
        out, err = capsys.readouterr()
        faults = {
            f"exit code {got!r}": got != code,
            f"not one line: {err[-300:]!r}": err.count("\n") != 1,
            f"says {err[:200]!r}, not {start}": not err.startswith(f"kernelgrad: error: {start}"),
            f"{len(err)} characters": len(err.replace(str(place), "")) > 300,
            f"prints {out[:100]!r}": bool(out),
            "compiles": bool(compiled),
            "writes": listing() != before,
        }
        wrong = [fault for fault, holds in faults.items() if holds]
        return [f"{name} {' '.join(arguments)[:100]}: {'; '.join(wrong)}"] if wrong else []

    def started(_):
        raise AssertionError("a run was started")

    monkeypatch.setattr(workdirs.secrets, "token_hex", started)
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield call
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.thorough(quick=11)
@pytest.mark.parametrize("name", BINARIES)
def test_a_value_that_breaks_the_rule_of_its_setting(name, place, refused, monkeypatch):
    wrong, count = [], 0
    for flag, rule in rules_of(MODULES[name], monkeypatch).items():
        for text in bad_values(rule):
            workdir = [f"--workdir={place}/run"] if flag != "workdir" else []
            wrong += refused(name, [*workdir, f"--{flag}={text}"], f"{flag}: got ")
            count += 1
    assert wrong == []
    assert count >= 30


@pytest.mark.parametrize("name", BINARIES)
def test_flags_and_folders_that_are_none(name, place, refused, monkeypatch):
    run, code = [f"--workdir={place}/run"], 2 if name in READERS else 1
    wrong = [
        *refused(name, [], "workdir: got nothing"),
        *refused(name, [*run, "--nosuch=3"], "flag: got --nosuch; expected a known flag such as"),
        *refused(name, [*run, f"--{HUGE}"], "flag: got --999"),
        *refused(name, [*run, "seed=3"], "argument: got 'seed=3'; expected flags only"),
        *refused(name, [*run, HUGE], "argument: got '999"),
        *refused(name, [*run, "--debug=perhaps"], "debug: got 'perhaps'"),
        *refused(name, ["--workdir=~nosuchuser/x"], "workdir: got '~nosuchuser/x'; expected"),
        *refused(name, [f"--workdir={'x' * 300}"], "workdir: got 'xxx"),
        *refused(name, [f"--workdir={'x/' * 2500}"], "workdir: got 'x/x"),
    ]
    monkeypatch.setenv("KERNELGRAD_CACHE", ".")
    wrong += refused(name, run, "KERNELGRAD_CACHE: got '.'; expected an absolute path")
    monkeypatch.setenv("KERNELGRAD_CACHE", "~nosuchuser/x")
    wrong += refused(name, run, "KERNELGRAD_CACHE: got '~nosuchuser/x'")
    monkeypatch.setenv("KERNELGRAD_CACHE", str(place / "cache"))
    monkeypatch.setenv("JAX_PLATFORMS", "nosuch")
    wrong += refused(name, run, "JAX_PLATFORMS: got 'nosuch'; expected platforms that JAX finds")
    monkeypatch.delenv("JAX_PLATFORMS")
    known = {"dataset": "--dataset=digits", "datasets": "--datasets=banana"}
    small = [known[flag] for flag in rules_of(MODULES[name], monkeypatch) if flag in known]
    if name != "svgd_posterior":  # which asks for its data first
        wrong += refused(name, [f"--workdir={place}/file/run", *small], "workdir", code)
    assert wrong == []


ORDERS = [
    ("train", ["--dataset=nosuch"], "dataset: got 'nosuch'"),
    ("train", ["--warmup=2000"], "warmup: got 2000; expected fewer than the 2000 of num_steps"),
    ("train", [f"--dataset={'z' * 4000}"], "dataset: got 'zzz"),
    ("train", [f"--dataset={'z' * 256}"], "dataset: got 'zzz"),
    ("train", ["--dataset=red_wine"], "red_wine: needs winequality-red.csv"),
    ("train", ["--batch_size=1502"], "batch_size: got 1502, 1502 rows a step; expected at most"),
    ("train", ["--batch_size=500", "--objective=wgan_gp"], "batch_size: got 500, 2500 rows a step"),
    ("train", ["--conditional"], "conditional: got True, which nothing reads with objective kl;"),
    ("train", ["--objective=mmd", "--ridge=3"], "ridge: got 3.0, which nothing reads with objecti"),
    ("train", ["--preset=paper004", "--ridge=3"], "ridge: got 3.0, which nothing reads with objec"),
    ("train", ["--damping=1"], "damping: got 1.0, which nothing reads with update chain_rule; exp"),
    ("train", ["--optimizer=sgd", "--b1=0.5"], "b1: got 0.5, which nothing reads with optimizer s"),
    (
        "train",
        ["--noise_steps=5"],
        "noise_steps: got 5, which nothing reads with noise_variance=0.0",
    ),
    ("train", ["--conditional", "--objective=gan_kl", "--dataset=ring"], "conditional: got ring"),
    (
        "train",
        ["--features=vicreg", "--dataset=ring"],
        "features: got vicreg for ring, which holds",
    ),
    (
        "train",
        ["--features=vicreg", "--objective=gan_kl", "--conditional"],
        "features: got vicreg with --conditional; expected pixels alone",
    ),
    ("train", ["--objective=noisy_jsd"], "noise_variance: got 0.0 for noisy_jsd"),
    ("train", ["--objective=drift", "--temperatures=0"], "temperatures: got 0.0; expected d"),
    ("train", ["--num_devices=1000"], "num_devices: got 1000; expected at most"),
    ("train", ["--batch_size=21", "--num_devices=2"], "batch_size: got 21 for 2 devices"),
    ("train", ["--width=100000000"], "width, latent_dim, batch_size: got 100000000, 50, 100, for"),
    ("train", ["--latent_dim=100000000"], "width, latent_dim, batch_size: got 32, 100000000, 100"),
    ("train", ["--latent_dim=3000000000"], "latent_dim: got 3000000000; expected an integer in"),
    ("train", ["--width=100000000", "--dataset=ring", "--objective=kale"], "width, latent_dim"),
    ("train", ["--num_steps=3000000000"], "num_steps: got 3000000000"),
    ("train", ["--num_steps=1000000000", "--eval_every=1"], "eval_every: got 1, 1000000000 eval"),
    ("train", ["--kernel_scales=1e-300,1e300"], "kernel_scales: got 1e-300"),
    ("train", ["--learning_rate=1e38"], "learning_rate: got 1e+38"),
    ("train", ["--data_dir=nowhere", "--dataset=mnist"], "data_dir: "),
    ("train", ["--data_dir=~nosuchuser/x", "--dataset=mnist"], "data_dir: got '~nosuchuser/x'"),
    ("train", [f"--data_dir={'x' * 300}", "--dataset=mnist"], "data_dir: got 'xxx"),
    ("sweep", ["--sweep=seed"], "sweep: got 'seed'; expected name=values"),
    ("sweep", ["--sweep=sed=1"], "sweep: got 'sed'; expected a known setting such as seed"),
    ("sweep", ["--sweep=seed=7..0"], "sweep: got 'seed=7..0'; expected a range a..b with a <= b"),
    ("sweep", ["--sweep=seed=1,1"], "sweep: got 'seed=1 twice'"),
    ("sweep", ["--sweep=ridge=0..63:64"], "sweep: run 1 of 64: ridge: got 0.0; expected a number"),
    ("sweep", ["--sweep=b1=0.1..0.9:8; ridge=-4..3:8"], "sweep: run 1 of 64: ridge: got -4.0;"),
    ("sweep", ["--sweep=ridge=1..2:4; b1=0.1..1.1:11"], "sweep: run 10 of 44: b1: got 1.0;"),
    ("sweep", ["--sweep=batch_size=20,2000"], "sweep: run 2 of 2: batch_size: got 2000, 2000 rows"),
    ("sweep", ["--sweep=objective=kl,noisy_jsd"], "sweep: run 2 of 2: noise_variance: got 0.0"),
    ("sweep", ["--sweep=seed=0..7", "--max_runs=7"], "max_runs: got a grid of 8 runs, 8 of seed"),
    ("sweep", ["--sweep=seed=0..7", "--seed=1"], "seed: got --seed and seed in --sweep"),
    (
        "sweep",
        ["--sweep=objective=mmd,drift; ridge=1,2"],
        "ridge: got [1.0, 2.0], which nothing re",
    ),
    ("sweep", ["--objective=mmd", "--sweep=seed=0,1", "--ridge=1"], "ridge: got 1.0, which nothin"),
    ("sweep", ["--resident_gib=1e-6"], "resident_gib: got 1e-06 for"),
    ("sweep", ["--num_devices=1000"], "num_devices: got 1000; expected at most"),
    ("sweep", ["--width=100000000"], "sweep: run 1 of 4: width, latent_dim, batch_size"),
    ("sweep", ["--dataset=nosuch"], "dataset: got 'nosuch'"),
    ("compare", ["--objective=kl"], "objective: got --objective; expected --objectives"),
    ("compare", ["--seed=1"], "seed: got --seed; expected --seeds"),
    ("compare", ["--objectives=mmd,drift", "--ridge=1"], "ridge: got 1.0, which nothing reads"),
    ("sweep", ["--asha=test_mmd"], "asha: got 'test_mmd', which nothing reads with engine populat"),
    ("sweep", ["--engine=commands", "--num_devices=1"], "num_devices: got 1, which nothing reads"),
    ("compare", ["--batch_size=1501"], "batch_size: got 1501"),
    ("compare", ["--objectives=kl,wgan_gp", "--batch_size=500"], "batch_size: got 500, 2500 rows"),
    ("compare", ["--objectives=gan_kl,mmd", "--conditional"], "conditional: got objective mmd"),
    ("compare", ["--objectives=gan_kl", "--conditional", "--dataset=ring"], "conditional: got ri"),
    ("compare", ["--width=100000000"], "width, latent_dim"),
    ("compare", ["--objectives=kl,ratio_ulsif", "--ridge=1"], "ridge: got 1.0 for kl and ratio_u"),
    ("toy", ["--target=digits"], "target: got 'digits'; expected one of ring, banana"),
    ("toy", ["--preset=paper000"], "target: got 'mnist'; expected one of ring, banana"),
    ("toy", ["--dataset=ring"], "flag: got --dataset; expected a known flag such as --target"),
    ("toy", ["--objective=kl", "--objectives=mmd"], "objective: got --objective and --objectives"),
    ("toy", ["--seed=1", "--seeds=2"], "seed: got --seed and --seeds"),
    ("toy", ["--ridge=1"], "ridge: got 1.0, which nothing reads with objective gan_kl; expected"),
    (
        "toy",
        ["--objectives=mmd,drift", "--critic_steps=5"],
        "critic_steps: got 5, which nothing re",
    ),
    ("toy", ["--batch_size=10001"], "batch_size: got 10001"),
    ("toy", ["--num_steps=100000", "--eval_every=1"], "eval_every: got 1, 100000 evaluations"),
    ("toy", ["--num_steps=100000000", "--eval_every=50"], "eval_every: got 50, 2000000 eval"),
    ("toy", ["--width=100000000"], "width, latent_dim"),
    ("toy", ["--features=vicreg"], "features: got vicreg for swiss_roll, which holds points"),
    ("toy", ["--conditional"], "conditional: got swiss_roll, a set without labels"),
    ("gan_diagnostics", ["--dataset=ring"], "dataset: got ring, points; expected images"),
    ("gan_diagnostics", ["--batch_size=1501"], "batch_size: got 1501"),
    ("gan_diagnostics", ["--epochs=3,1"], "epochs: got [3, 1]; expected rising"),
    ("gan_diagnostics", ["--annealed_noise=.1,.2"], "annealed_noise: got [0.1, 0.2]; expected fa"),
    ("gan_diagnostics", ["--width=100000000"], "width, latent_dim"),
    ("gan_diagnostics", ["--critic_width=100000000"], "critic_width, batch_size: got 100000000"),
    ("classification_score", ["--dataset=ring"], "dataset: got ring; the classifier expects"),
    ("classification_score", ["--num_images=1501"], "num_images: got 1501; expected at most"),
    ("classification_score", ["--width=12"], "width: got 12; expected a positive multiple of 8"),
    ("classification_score", ["--width=80000000"], "width, num_blocks, batch_size: got 80000000"),
    ("classification_score", ["--runs=gan"], "runs: got 'gan'; expected name=workdir"),
    ("classification_score", ["--runs=gan=nowhere"], "workdir: got nowhere without a readable"),
    ("classification_score", ["--runs=gan=~nosuchuser/x"], "workdir: got '~nosuchuser/x'"),
    ("classification_score", ["--runs=real=x"], "runs: got the name real for x"),
    ("spectrum", [], "runs: got none; expected name=workdir,name=workdir"),
    ("spectrum", ["--runs=a"], "runs: got 'a'; expected name=workdir"),
    ("spectrum", ["--runs=a=nowhere"], "workdir: got nowhere without a readable"),
    ("spectrum", ["--num_batches=1001"], "num_batches: got 1001; expected an integer in"),
    ("two_sample", ["--dataset=ring"], "dataset: got ring for digits_3_8; expected images of ten"),
    ("two_sample", ["--num_samples=400"], "num_samples: got 400 for digits_3_8; expected at most"),
    ("two_sample", ["--problems=blobs", "--dataset=mnist"], "dataset: got 'mnist', which nothing"),
    ("two_sample", ["--shifts=0.5"], "shifts: got [0.5], which nothing reads with problems blobs,"),
    ("two_sample", ["--width=100000000"], "width, num_features: got 100000000, 16, for"),
    ("density_estimation", [], "red_wine: needs winequality-red.csv"),
    (
        "density_estimation",
        ["--methods=dv,pcd", "--normalizer_rate=0.2"],
        "normalizer_rate: got 0.2, which nothing reads with methods dv,pcd; expected it with kale,",
    ),
    ("density_estimation", ["--num_base=31", "--batch_size=32"], "num_base: got 31"),
    ("density_estimation", ["--num_steps=150"], "num_steps: got 150; expected a multiple of"),
    ("density_estimation", ["--datasets=banana", "--width=100000000"], "width, num_base"),
    (
        "density_estimation",
        ["--datasets=banana", "--num_normalizer_samples=100000000000"],
        "num_normalizer_samples: got 100000000000",
    ),
    ("neural_sampler", ["--target=logistic_regression"], "red_wine: needs winequality-red.csv"),
    ("neural_sampler", ["--target=logistic_regression", "--data_dir=nowhere"], "data_dir: "),
    (
        "neural_sampler",
        ["--update=chain_rule,stein_score", "--damping=1"],
        "damping: got 1.0, which nothing reads with update chain_rule,stein_score; expected it wi",
    ),
    ("neural_sampler", ["--width=100000000"], "width, latent_dim, batch_size: got 100000000, Non"),
    ("neural_sampler", ["--num_steps=100000000"], "eval_every: got 50, 2000000 evaluations"),
    ("svgd_posterior", [], "red_wine: needs winequality-red.csv"),
    ("svgd_posterior", ["--num_particles=100,64001"], "num_particles: got 64001; expected at most"),
    ("rbm", ["--dataset=ring"], "dataset: got ring; expected images"),
    (
        "reproduce",
        ["--paper=5"],
        "paper: got '5'; expected one of 000, 001, 002, 003, 004. Did you",
    ),
    ("reproduce", ["--paper=001", "--data_dir=nowhere"], "data_dir: "),
    ("reproduce", ["--paper=003", "--data_dir=nowhere"], "data_dir: "),
    ("rbm", ["--directions=exact", "--width=8"], "width: got 8, which nothing reads with directi"),
    ("sample", ["--candidates=9"], "candidates: got 9, which nothing reads with sampler hmc; exp"),
    ("sample", ["--format=npz", "--steps=9"], "steps: got 9, which nothing reads with sampler ge"),
    ("rbm", ["--dataset=digits", "--batch_size=1501"], "batch_size: got 1501; expected at most"),
    ("rbm", ["--dataset=digits", "--width=100000000"], "width, latent_dim, batch_size"),
    ("rbm", ["--dataset=digits", "--num_hidden=17"], "num_hidden: got 17; expected an integer in"),
]


@pytest.mark.parametrize("name", dict.fromkeys(name for name, *_ in ORDERS))
def test_what_does_not_go_together_is_refused_before_anything(name, place, refused):
    wrong = []
    for _, arguments, start in (order for order in ORDERS if order[0] == name):
        wrong += refused(name, [f"--workdir={place}/run", *arguments], start)
    assert wrong == []


@pytest.fixture
def own_data(place):
    """A user's data: points, an archive with one test row, photographs, two classes of pets."""
    rng = np.random.default_rng(0)
    np.save(place / "data" / "points.npy", rng.normal(size=(30, 2)))
    np.savez(place / "data" / "one.npz", train=np.ones((30, 2)), test=np.ones((1, 2)))
    np.savez(place / "data" / "many.npz", **{f"{i}{'x' * 200}": np.ones(1) for i in range(2000)})
    for folder in (
        "photos",
        *(f"pets/{split}/{one}" for split in SPLITS for one in ("cat", "dog")),
    ):
        (place / "data" / folder).mkdir(parents=True)
        for index in range(12 if folder == "photos" else 2):
            pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
            Image.fromarray(pixels).save(place / "data" / folder / f"{index}.png")
    return place / "data"


SPLITS = ("train", "test")
PHOTOS = ["--dataset=photos", "--image_size=8"]
OF_OWN_DATA = [
    ("train", ["--dataset=points.npy", "--image_size=8"], "image_size: got 8 for '"),
    ("train", ["--image_size=8"], "image_size: got 8 for 'digits'; expected none, for the images"),
    ("sweep", ["--image_size=8"], "image_size: got 8 for 'digits'"),
    ("compare", ["--image_size=8"], "image_size: got 8 for 'digits'"),
    ("toy", ["--image_size=8"], "image_size: got 8 for 'swiss_roll'"),
    ("gan_diagnostics", ["--image_size=8"], "image_size: got 8 for 'digits'"),
    ("classification_score", ["--image_size=8"], "image_size: got 8 for 'digits'"),
    ("two_sample", ["--image_size=8", "--problems=blobs"], "image_size: got 8 for 'digits'"),
    ("rbm", ["--image_size=8"], "image_size: got 8 for 'mnist'"),
    ("train", ["--dataset=one.npz"], "one: got 1 for test; expected at least 2 examples"),
    ("train", ["--dataset=many.npz"], ""),
    (
        "train",
        ["--dataset=photos", "--batch_size=12"],
        "batch_size: got 12, 12 rows a step; expect",
    ),
    ("train", PHOTOS, "batch_size: got 100, 100 rows a step; expected at most the 10 training"),
    (
        "train",
        ["--dataset=photos", "--image_size=4096", "--batch_size=2"],
        "width, latent_dim, batch_size, image_size: got 32, 50, 2, 4096, for which a run takes",
    ),
    ("train", [*PHOTOS[:1], "--image_size=7", "--batch_size=2"], "dataset: got "),
    ("sweep", PHOTOS, "sweep: run 1 of 4: batch_size: got 100"),
    ("sweep", [*PHOTOS, "--batch_size=2", "--resident_gib=1e-6"], "resident_gib: got 1e-06 for"),
    ("compare", PHOTOS, "batch_size: got 100"),
    ("gan_diagnostics", PHOTOS, "batch_size: got 100"),
    ("classification_score", PHOTOS, "dataset: got photos; the classifier expects images with"),
    ("two_sample", PHOTOS, "dataset: got photos for digits_3_8"),
    ("rbm", PHOTOS, "batch_size: got 100; expected at most the 10 training images of photos"),
    (
        "rbm",
        ["--dataset=photos", "--image_size=7", "--batch_size=2", "--generator=dcgan"],
        "generator: got dcgan for photos: sample_shape: got (7, 7, 3)",
    ),
]


@pytest.mark.parametrize("name", dict.fromkeys(name for name, *_ in OF_OWN_DATA))
def test_data_that_do_not_fit_leave_nothing_behind(name, place, own_data, refused):
    wrong = []
    for _, arguments, start in (one for one in OF_OWN_DATA if one[0] == name):
        given = [text.replace("--dataset=", f"--dataset={own_data}/") for text in arguments]
        wrong += refused(name, [f"--workdir={place}/run", *given], start)
    assert wrong == []


def test_a_run_is_judged_on_images_of_its_size(place, own_data, refused):
    config = Config(
        objective="gan_kl",
        dataset=f"{own_data}/pets",
        image_size=8,
        batch_size=2,
        width=4,
        conditional=True,
    )
    (place / "gan" / "checkpoints" / "10").mkdir(parents=True)
    (place / "gan" / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    run = [f"--workdir={place}/run", f"--dataset={own_data}/pets", f"--runs=gan={place}/gan"]
    few = "dataset: got pets, a split of which has 4 images; expected at least 6, for each is"
    other = f"runs: got {place}/gan, a run with image_size 8; expected one with"
    wrong = [
        *refused("evaluate", [f"--workdir={place}/gan"], few),
        *refused("sample", [f"--workdir={place}/gan"], few),
        *refused("classification_score", run, f"{other} None"),
        *refused("classification_score", [*run, "--image_size=6"], f"{other} 6"),
        *refused("classification_score", [*run, "--image_size=8", "--num_images=5"], "num_images"),
    ]
    assert wrong == []


RUNS = {
    "points": Config(objective="gan_kl", dataset="ring", latent_dim=2, width=4),
    "images": Config(objective="gan_kl", width=4, latent_dim=4),
    "no_critic": Config(width=4, latent_dim=4),
    "huge": Config(width=10**8),
    "odd": Config(objective="noisy_jsd"),
}


def test_runs_that_do_not_fit_their_reader(place, refused):
    for name, config in RUNS.items():
        (place / name / "checkpoints" / "10").mkdir(parents=True)
        (place / name / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    (place / "bare").mkdir()
    (place / "bare" / "config.json").write_text(json.dumps(dataclasses.asdict(RUNS["images"])))
    for name, text in (("text", "width"), ("list", "[1]"), ("cut", '{"width": 3')):
        (place / name).mkdir()
        (place / name / "config.json").write_text(text)
    for field, value in (("width", "4"), ("seed", None), ("prior", "flat"), ("kernel_scales", [])):
        (place / field).mkdir()
        fields_of = dataclasses.asdict(RUNS["images"]) | {field: value}
        (place / field / "config.json").write_text(json.dumps(fields_of))
    wrong = []
    for name in READERS:
        for run in ("nowhere", "text", "cut", "list"):
            wrong += refused(name, [f"--workdir={place}/{run}"], f"workdir: got {place}/{run}")
        for run in ("width", "seed", "prior", "kernel_scales", "odd"):
            wrong += refused(name, [f"--workdir={place}/{run}"], f"{place}/{run}/config.json: ")
        bare = f"workdir: got {place}/bare without a checkpoint"
        wrong += refused(name, [f"--workdir={place}/bare"], bare)
        other = ["--sampler=generator"] if name == "sample" else []
        wrong += refused(name, [f"--workdir={place}/huge", *other], "width, latent_dim, batch_size")
    points, images = f"--workdir={place}/points", f"--workdir={place}/images"
    wrong += refused("evaluate", [points], "dataset: got ring; the classifier expects images")
    wrong += refused("latent_walk", [points], f"workdir: got {place}/points, a run on ring")
    wrong += refused("evaluate", [images, "--num_samples=100000000"], "num_samples: got 100000000")
    wrong += refused("sample", [images, "--num_samples=100000000"], "num_samples: got 100000000")
    wrong += refused("latent_walk", [images, "--num_frames=10001"], "num_frames: got 10001")
    wrong += refused("sample", [f"--workdir={place}/no_critic"], f"workdir: got {place}/no_critic,")
    wrong += refused(
        "classification_score",
        [f"--workdir={place}/run", f"--runs=gan={place}/images"],
        f"runs: got {place}/images, a run without labels",
    )
    for run, said in (
        ("images", f"runs: got {place}/images, a run of gan_kl; expected one of kl or mmd"),
        ("huge", "width, latent_dim, batch_size: got 100000000"),
    ):
        wrong += refused("spectrum", [f"--workdir={place}/run", f"--runs=a={place}/{run}"], said)
    os.chdir(place)
    assert wrong == []
