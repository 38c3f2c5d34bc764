"""Paper 004: energies by KALE on top of a generator, and chains over its latents."""

import pathlib
from collections.abc import Callable

import numpy as np

from experiments.papers.claims import (
    OURS,
    Claim,
    Paper,
    Part,
    at_least,
    at_most,
    higher,
    lower,
    of_seeds,
    results,
)
from experiments.papers.runs import Run, of_seed

_MNIST = ("mnist",)
_SCORES = {"classifier_frechet": lower, "classifier_kid": lower, "inception_score": higher}
_SMALL = "--dataset=digits --num_steps=4 --eval_every=4 --width=4 --batch_size=20"
_DRAWN = "--num_samples=20"
_SAMPLERS = {
    "rejection": "--num_samples=500",
    "resampling": "--num_samples=500",
    "hmc": "--num_samples=500 --steps=20",
}


def _model(name: str, flags: str, seed: int, minutes: float, full: str | None = None) -> Run:
    """Returns a run of train on MNIST under one of three seeds."""
    place = f"--workdir=runs/{of_seed(name, seed)}"
    return Run(
        f"train {flags} --dataset=mnist --data_dir=data --width=8 --b1=0.5 --seed={seed} {place}",
        minutes,
        ("curves.png",),
        None if seed else _SMALL,
        full and f"{full} --data_dir=data --seed={seed} {place}",
        _MNIST,
    )


def _samples(name: str, sampler: str, flags: str, seed: int, smoke: str | None = None) -> Run:
    flags = f"--data_dir=data --sampler={sampler} {flags}"
    return Run(
        f"sample --workdir=runs/{of_seed(name, seed)} {flags}",
        3,
        (f"samples_{sampler}/before_after.png",),
        None if seed else smoke,
        needs=_MNIST,
    )


def _under(seed: int) -> list[Run]:
    short = "--critic_steps=2 --batch_size=50 --num_steps=1000 --eval_every=1000"
    return [
        _model(
            "kale",
            "--objective=kale --critic_steps=5 --penalty_weight=0.3 --num_steps=1800",
            seed,
            8,
            "train --preset=paper004",
        ),
        _samples("kale", "hmc", "--steps=40 --num_samples=1000", seed, f"{_DRAWN} --steps=4"),
        _model("kale_short", f"--objective=kale --penalty_weight=0.3 {short}", seed, 3),
        _model("gan_short", f"--objective=gan_non_saturating {short}", seed, 2),
        *(
            _samples(name, sampler, flags, seed, _DRAWN if sampler == "rejection" else None)
            for name in ("kale_short", "gan_short")
            for sampler, flags in _SAMPLERS.items()
        ),
    ]


def _plane(dataset: str, name: str) -> list[Run]:
    return [
        Run(
            f"train --objective=kale --dataset={dataset} --latent_dim=2 --width=64 "
            "--critic_steps=5 --penalty_weight=0.01 --b1=0.5 --batch_size=256 --num_steps=3000 "
            f"--workdir=runs/{name}",
            3,
            ("curves.png",),
        ),
        Run(
            f"sample --workdir=runs/{name} --sampler=hmc --steps=200 --num_samples=2000",
            1,
            ("samples_hmc/before_after.png",),
        ),
    ]


RUNS = (
    *(run for seed in (0, 1, 2) for run in _under(seed)),
    *_plane("eight_gaussians", "kale_plane"),
    *_plane("swiss_roll", "kale_roll"),
    Run(
        "density_estimation --datasets=red_wine,white_wine,parkinsons --seeds=0,1,2 "
        "--data_dir=data --workdir=runs/density",
        21,
        ("density_estimation.md", "curves.png"),
        "--datasets=banana --seeds=0 --methods=kale,pcd --num_steps=20 --eval_every=10 --width=8 "
        "--batch_size=20 --num_base=40 --num_normalizer_samples=1000",
        needs=("red_wine", "white_wine", "parkinsons"),
    ),
    Run(
        "divergences --workdir=runs/divergences",
        8,
        ("table.md", "point_masses.png", "rate.png"),
    ),
)

_Rows = dict[str, dict[str, float]]


def _rows(root: pathlib.Path, name: str, sampler: str) -> list[_Rows]:
    """Returns the rows of `sample` under each seed: generator, model, real samples."""
    found = of_seeds(root, name, f"samples_{sampler}/results.json")
    return [
        dict(zip(("generator", "model"), list(one["rows"].values())[:2], strict=True))
        for one in found
    ]


def _gain(root: pathlib.Path, name: str, sampler: str) -> list[Part]:
    rows = _rows(root, name, sampler)
    return [
        rule(
            f"{score}, model against generator",
            [row["model"][score] for row in rows],
            [row["generator"][score] for row in rows],
        )
        for score, rule in _SCORES.items()
    ]


def _beside_a_gan(root: pathlib.Path) -> list[Part]:
    kale, gan = (_rows(root, name, "rejection") for name in ("kale_short", "gan_short"))
    return [
        rule(
            f"{score}, KALE's model against the GAN's generator",
            [row["model"][score] for row in kale],
            [row["generator"][score] for row in gan],
        )
        for score, rule in _SCORES.items()
    ]


def _likelihood(root: pathlib.Path) -> list[Part]:
    parts = []
    for name, methods in results(root / "density/results.json").items():
        gains = {
            method: [record["test"]["gain"] for record in records]
            for method, records in methods.items()
        }
        parts.append(at_least(f"{name}, nats over the Gaussian", gains["kale"], 0))
        parts.append(higher(f"{name}, nats, KALE against PCD", gains["kale"], gains["pcd"]))
    return parts


def _smooth(root: pathlib.Path) -> list[Part]:
    slope = results(root / "divergences/config.json")["lipschitz"]
    course = results(root / "divergences/results.json")["point_masses"]
    excess = np.subtract(course["kale"], slope * np.array(course["distances"]))
    return [at_most("largest excess over L times the distance", [float(excess.max())], 1e-3)]


def _rate(root: pathlib.Path) -> list[Part]:
    parts = []
    for name, rate in results(root / "divergences/results.json")["rates"].items():
        log_sizes = np.log(rate["sizes"])
        slopes = [np.polyfit(log_sizes, np.log(errors), 1)[0] for errors in rate["errors"]]
        parts.append(at_most(f"{name}, slope of the error", [float(np.mean(slopes))], -0.45))
    return parts


def _of(look: Callable[..., list[Part]], *names: str) -> Callable[[pathlib.Path], list[Part]]:
    return lambda root: look(root, *names)


CLAIMS = (
    Claim(
        "Latent HMC by the energy finds better samples than the generator's",
        "statement",
        ("kale",),
        _of(_gain, "kale", "hmc"),
    ),
    Claim(
        "So does rejection by it",
        OURS,
        ("kale_short",),
        _of(_gain, "kale_short", "rejection"),
    ),
    Claim(
        "Generator and energy together are better than a GAN's generator",
        "statement",
        ("kale_short", "gan_short"),
        _beside_a_gan,
    ),
    Claim(
        "KALE is maximum likelihood: its energies are good densities",
        "statement",
        ("density",),
        _likelihood,
    ),
    Claim("KALE is smooth where KL is infinite", "Lipschitz in W1", ("divergences",), _smooth),
    Claim("KALE's error falls as 1 / sqrt(n)", "slope -1/2", ("divergences",), _rate),
)
PAPER = Paper("Paper 004: energies by KALE", RUNS, CLAIMS)
