"""Paper 002 (Arjovsky & Bottou 2017): vanishing gradients, noise, a certificate."""

import pathlib
from collections.abc import Sequence

from experiments.papers.claims import (
    Claim,
    Paper,
    Part,
    ahead,
    at_least,
    at_most,
    compared,
    ends,
    higher,
    histories,
    lower,
    results,
)
from experiments.papers.runs import Run

_SEGMENTS = (
    "compare --preset=paper001 --dataset=segments --seeds=0,1,2 --num_steps=600 --eval_every=200 "
    "--objectives=gan_saturating,gan_non_saturating,gan_kl"
)
_SMALL = "--seeds=0 --num_steps=4 --eval_every=4 --objectives=gan_saturating"
RUNS = (
    Run(
        "gan_diagnostics --workdir=runs/diagnostics",
        30,
        ("table.md", "*.png"),
        "--epochs=1 --width=4 --critic_width=8 --batch_size=20 --num_iterations=40 "
        "--annealed_noise=0.3 --annealed_iterations=10",
        "gan_diagnostics --dataset=mnist --data_dir=data --steps_per_epoch=600 --width=64 "
        "--workdir=runs/diagnostics",
        ("mnist",),
    ),
    Run(
        "divergences --workdir=runs/divergences",
        8,
        ("table.md", "certificate.png", "manifolds.png"),
        "--num_points=60 --num_steps=20 --num_repeats=2 --num_seeds=1 --num_iterations=40 "
        "--noise_variances=0.01",
    ),
    Run(f"{_SEGMENTS} --workdir=runs/segments", 5, ("comparison.md", "comparison.png"), _SMALL),
    Run(
        f"{_SEGMENTS} --noise_variance=0.1 --workdir=runs/segments_noise",
        5,
        ("comparison.md", "comparison.png"),
        _SMALL,
    ),
    Run(
        "toy --target=mixture --objectives=f_divergence,kl,gan_kl --divergence=forward_kl "
        "--seeds=0,1,2 --width=4 --batch_size=100 --num_steps=3000 --eval_every=600 "
        "--workdir=runs/covering",
        4,
        ("table.md", "samples.png"),
    ),
)


def _courses(root: pathlib.Path, trial: str, name: str) -> dict[str, list[float]]:
    """Returns a figure of the discriminators of a trial along the way, by epoch."""
    found = results(root / "diagnostics/results.json")["diagnoses"]
    return {
        f"epoch {epoch}": [record[name] for record in one["records"][trial]]
        for epoch, one in found.items()
    }


def _perfect(root: pathlib.Path) -> list[Part]:
    found = _courses(root, "no noise", "accuracy")
    return [at_least(f"{epoch}, accuracy", course[-1:], 0.99) for epoch, course in found.items()]


def _vanishes(root: pathlib.Path) -> list[Part]:
    found = _courses(root, "no noise", "saturating_norm")
    return [
        at_most(f"{epoch}, gradient, end over largest", [course[-1] / max(course)], 0.01)
        for epoch, course in found.items()
    ]


def _noise_keeps(root: pathlib.Path) -> list[Part]:
    plain, noised = (_courses(root, trial, "saturating_norm") for trial in ("no noise", "noise"))
    return [
        at_least(f"{epoch}, gradient, with noise over without", [noised[epoch][-1] / one[-1]], 10)
        for epoch, one in plain.items()
    ]


def _variance(root: pathlib.Path) -> list[Part]:
    found = _courses(root, "no noise", "non_saturating_variance")
    return [
        at_least(f"{epoch}, variance, end over start", [course[-1] / course[0]], 100)
        for epoch, course in found.items()
    ]


def _tails(root: pathlib.Path) -> list[Part]:
    found = results(root / "diagnostics/results.json")["diagnoses"]
    return [
        lower(
            f"epoch {epoch}, {title}, KS distance of the Cauchy fit against the Gaussian's",
            [tail["cauchy_distance"]],
            [tail["gaussian_distance"]],
        )
        for epoch, one in found.items()
        for title, tail in one["tails"].items()
        if "latents" not in title  # a mean over them is Gaussian: the theorem is on single ones
    ]


def _certificate(root: pathlib.Path) -> list[Part]:
    parts = []
    for epoch, one in results(root / "diagnostics/results.json")["diagnoses"].items():
        found, name = one["certificate"], f"digits, epoch {epoch}: bound"
        least = [min(found["cloud"])]
        parts.append(at_least(f"{name} over W1", [least[0] / found["distance"]], 1))
        parts.append(at_most(f"{name} over the diameter", [least[0] / found["diameter"]], 1))
    for name, row in results(root / "divergences/results.json")["rows"].items():
        bound = row["bound of Theorem 3.3"]
        parts.append(at_least(f"plane, {name}: bound over W1", [bound / row["W1"]], 1))
        parts.append(at_most(f"plane, {name}: bound over diameter", [bound / row["diameter"]], 1))
    return parts


def _manifolds(root: pathlib.Path) -> list[Part]:
    parts = []
    for name, told in results(root / "divergences/results.json")["manifolds"].items():
        norms = {
            trial: [[record["saturating_norm"] for record in run] for run in runs]
            for trial, runs in told.items()
        }
        fallen = [run[-1] / max(run) for run in norms["no noise"]]
        kept = [run[-1] for run in norms["noise"]]
        parts.append(at_least(f"{name}, JSD", [r[-1]["jsd"] for r in told["no noise"]], 0.69))
        parts.append(at_most(f"{name}, gradient, end over largest", fallen, 0.01))
        parts.append(
            higher(f"{name}, gradient with noise", kept, [run[-1] for run in norms["no noise"]])
        )
    return parts


def _instance_noise(root: pathlib.Path) -> Sequence[Part]:
    plain, noised = (compared(root / name) for name in ("segments", "segments_noise"))
    return [
        part
        for name in plain
        for part in ahead(
            {"test_w1": ends(noised, name)["test_w1"]}, ends(plain, name), f", {name}, with noise"
        )
    ]


def _covering(root: pathlib.Path) -> list[Part]:
    modes = {
        name: [run[-1]["modes"] for run in histories(root / "covering" / name)]
        for name in ("f_divergence", "kl")
    }
    return [higher("modes found, forward KL against reverse", modes["f_divergence"], modes["kl"])]


_DIAGNOSTICS, _DIVERGENCES = ("diagnostics",), ("divergences",)
CLAIMS = (
    Claim("A new discriminator becomes perfect", "accuracy 1", _DIAGNOSTICS, _perfect),
    Claim(
        "The gradient of the saturating loss vanishes meanwhile",
        "norm to 0 within 4000 steps",
        _DIAGNOSTICS,
        _vanishes,
    ),
    Claim("Noise brings it back", "statement (Theorem 3.2)", _DIAGNOSTICS, _noise_keeps),
    Claim("The non-saturating gradient grows in variance", "statement", _DIAGNOSTICS, _variance),
    Claim("Its coordinates are Cauchy", "Theorem 2.6", _DIAGNOSTICS, _tails),
    Claim(
        "The noise bounds W1, by less than the diameter",
        "Theorem 3.3",
        _DIAGNOSTICS + _DIVERGENCES,
        _certificate,
    ),
    Claim("Data without area: JSD log 2, no gradient", "Theorem 2.2", _DIVERGENCES, _manifolds),
    Claim(
        "Annealed noise improves a GAN on such data",
        "statement",
        ("segments", "segments_noise"),
        _instance_noise,
    ),
    Claim("Forward KL covers modes that reverse KL drops", "statement", ("covering",), _covering),
)
PAPER = Paper("Paper 002: vanishing gradients, noise, a certificate", RUNS, CLAIMS)
