"""Paper 003 (Wang & Liu 2016): amortized SVGD, machines with exact likelihoods, SteinGAN."""

import pathlib

import numpy as np

from experiments.papers.claims import (
    OURS,
    Claim,
    Paper,
    Part,
    at_least,
    higher,
    histories,
    last,
    lower,
    of_seeds,
    results,
)
from experiments.papers.runs import Run, of_seed

_MNIST, _CIFAR = ("mnist",), ("cifar10_jpeg",)
_TRAINED = ("samples/*[0-9].png", "curves.png")
_SMALL = "--dataset=digits --num_steps=4 --eval_every=4 --width=4 --batch_size=20"
_PRESET = "train --preset=paper003 --data_dir=data"
_SEEDS = (0, 1, 2)
_DCGAN = "--objective=gan_non_saturating --batch_norm --critic_learning_rate=1e-3 "
_PAPERS_FIELD = "--stein_field=svgd --feature_lengthscale=half_median"
_FIELDS = {
    "stein_paper": _PAPERS_FIELD,
    "stein_unfrozen": f"{_PAPERS_FIELD} --freeze_threshold=inf",
    "stein_half_svgd": "--stein_field=svgd",
    "stein_half_median": "--feature_lengthscale=half_median",
}
_SCORED = ("classification_score.md", "classification_score.png")
_RULES = ("regression", "gauss_newton")


def _sampler(target: str, name: str, smoke: str | None = None) -> Run:
    data = " --data_dir=data" if target == "logistic_regression" else ""
    return Run(
        f"neural_sampler --target={target}{data} --workdir=runs/sampler_{name}",
        4,
        ("table.md", "samples.png"),
        smoke,
        needs=("red_wine",),
    )


def _generator(name: str, flags: str, seed: int, minutes: float) -> Run:
    place = f"--seed={seed} --workdir=runs/{of_seed(name, seed)}"
    return Run(
        f"{_PRESET} {flags}--width=8 --num_steps=3000 --eval_every=300 {place}",
        minutes,
        _TRAINED,
        None if seed else _SMALL,
        f"{_PRESET} {flags}{place}",
        _MNIST,
    )


def _on_cifar(name: str, flags: str, minutes: float) -> Run:
    all_flags = f"--dataset=cifar10_jpeg {flags}"
    return Run(
        f"{_PRESET} {all_flags}--width=8 --num_steps=2100 --eval_every=300 --workdir=runs/{name}",
        minutes,
        _TRAINED,
        full=f"{_PRESET} {all_flags}--num_steps={50 * 500} --workdir=runs/{name}",
        needs=_CIFAR,
    )


def _field(name: str, flags: str, length: str = "--num_steps=1800 --eval_every=300") -> Run:
    return Run(
        f"{_PRESET} --width=8 {length} {flags} --workdir=runs/{name}",
        8,
        ("curves.png",),
        needs=_MNIST,
    )


def _scored(seed: int) -> Run:
    rows = ",".join(f"{name}=runs/{of_seed(name, seed)}" for name in ("dcgan", "steingan"))
    return Run(
        f"classification_score --dataset=mnist --data_dir=data --seed={seed} --seeds={seed} "
        f"--runs={rows} --workdir=runs/{of_seed('scores', seed)}",
        20,
        _SCORED,
        None
        if seed
        else "--dataset=digits --num_images=40 --num_distinct=10 --width=8 --num_blocks=1 "
        "--num_steps=2 --batch_size=20",
        needs=_MNIST,
    )


RUNS = (
    _sampler("swiss_roll", "roll", "--num_steps=4 --eval_every=2 --batch_size=20 --width=8"),
    *(_sampler(name, name) for name in ("ring", "banana", "mixture")),
    _sampler("logistic_regression", "wine"),
    Run(
        "rbm --workdir=runs/rbm --data_dir=data --observation_noise=false",
        60,
        ("table.md", "curves.png", "samples.png"),
        "--dataset=digits --seeds=0 --num_epochs=1 --num_hidden=2 --width=16 --batch_size=500",
        needs=_MNIST,
    ),
    Run(
        "rbm --workdir=runs/rbm_dcgan --data_dir=data --observation_noise=false --generator=dcgan "
        "--width=8",
        90,
        ("table.md", "curves.png", "samples.png"),
        needs=_MNIST,
    ),
    Run(
        "rbm --workdir=runs/rbm_noise --data_dir=data --directions=svgd,score,smoothed",
        15,
        ("table.md", "curves.png", "samples.png"),
        needs=_MNIST,
    ),
    Run(
        "svgd_posterior --workdir=runs/svgd --data_dir=data",
        20,
        ("table.md", "curves.png"),
        needs=("red_wine",),
    ),
    Run(
        "train --objective=steingan --conditional --prior=uniform --latent_dim=100 --b1=0.5 "
        "--num_steps=1500 --workdir=runs/steingan_digits",
        3,
        _TRAINED,
    ),
    *(_generator("steingan", "", seed, 8) for seed in _SEEDS),
    Run(
        "latent_walk --workdir=runs/steingan --data_dir=data",
        1,
        ("latent_walk.gif",),
        "--num_frames=2 --steps_per_frame=1",
        needs=_MNIST,
    ),
    *(_field(name, flags) for name, flags in _FIELDS.items()),
    _field(
        "stein_two_sided",
        f"{_PAPERS_FIELD} --freeze=two_sided",
        "--num_steps=240 --eval_every=60",
    ),
    *(_generator("dcgan", _DCGAN, seed, 8) for seed in _SEEDS),
    *(_scored(seed) for seed in _SEEDS),
    _generator("dcgan_plain", _DCGAN.replace("--batch_norm ", ""), 0, 8),
    _on_cifar("cifar_steingan", "--margin=1 ", 24),
    _on_cifar("cifar_dcgan", _DCGAN, 22),
    Run(
        "classification_score --dataset=cifar10_jpeg --data_dir=data --seed=0 --seeds=0 "
        "--runs=dcgan=runs/cifar_dcgan,steingan=runs/cifar_steingan --workdir=runs/cifar_scores",
        20,
        _SCORED,
        needs=_CIFAR,
    ),
)


def _chain_rule(root: pathlib.Path) -> list[Part]:
    found = {rule: [last(root / "sampler_roll" / rule)["mmd2"]] for rule in ("chain_rule", *_RULES)}
    return [
        lower(f"MMD^2 of (10) against {rule} on the roll", found["chain_rule"], found[rule])
        for rule in _RULES
    ]


def _likelihoods(root: pathlib.Path, direction: str, name: str = "rbm") -> list[float]:
    return [run[-1]["test_log_likelihood"] for run in histories(root / name / direction)]


def _against(root: pathlib.Path, other: str, name: str = "rbm") -> list[Part]:
    own = _likelihoods(root, "svgd", name)
    return [higher(f"test log-likelihood against {other}", own, _likelihoods(root, other, name))]


def _hidden_units(root: pathlib.Path) -> list[Part]:
    none = float(results(root / "rbm/results.json")["N(0, I)"]["mean"])
    return [
        at_least(
            f"test log-likelihood of {name} over that of N(0, I)", _likelihoods(root, name), none
        )
        for name in ("svgd", "exact")
    ]


def _own_lengthscale(root: pathlib.Path) -> list[Part]:
    rows = results(root / "svgd/results.json")["svgd"]
    ratios = {
        rule: [
            abs(row["variance_ratio"] - 1) for name, row in rows.items() if name.startswith(rule)
        ]
        for rule in ("svgd", "median")
    }
    return [
        higher(f"{name}, error of the variance of svgd's rule against the median's", [one], [other])
        for name, one, other in zip(
            ("fewest particles", "most"),
            (ratios["svgd"][0], ratios["svgd"][-1]),
            (ratios["median"][0], ratios["median"][-1]),
            strict=True,
        )
    ]


def _figure_2(images: str, folder: str) -> tuple[Claim, ...]:
    """Returns the claims on the scores of some images, which runs have left in this folder."""

    def scores(root: pathlib.Path) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Returns the accuracies and the inception scores of each row, one a seed."""
        found = [one["rows"] for one in of_seeds(root, folder, "results.json")]
        return (
            {name: [rows[name]["accuracies"][0] for rows in found] for name in found[0]},
            {name: [rows[name]["inception_score"] for rows in found] for name in found[0]},
        )

    def taught(root: pathlib.Path, other: str) -> list[Part]:
        accuracies, _ = scores(root)
        rule = f"accuracy of a classifier, SteinGAN against {other}"
        return [higher(rule, accuracies["steingan"], accuracies[other])]

    def inception(root: pathlib.Path) -> list[Part]:
        _, seen = scores(root)
        rule = "inception score, DCGAN against SteinGAN"
        return [higher(rule, seen["dcgan"], seen["steingan"])]

    def trap(root: pathlib.Path) -> list[Part]:
        accuracies, seen = scores(root)
        share = np.divide(seen["duplicates"], seen["real"])
        lost = np.subtract(accuracies["real"], accuracies["duplicates"])
        return [
            at_least("inception score over that of real ones", share, 0.97),
            at_least("accuracy lost", lost, 0.2),
        ]

    return (
        Claim(
            f"SteinGAN teaches more than DCGAN, {images}",
            "63.89 against 44.78 % (CIFAR-10)",
            (folder,),
            lambda root: taught(root, "dcgan"),
        ),
        Claim(
            f"DCGAN's inception score is a little higher, {images}",
            "7.193 against 7.065 (CIFAR-10)",
            (folder,),
            inception,
        ),
        Claim(
            f"SteinGAN teaches more than 500 real images repeated, {images}",
            "63.89 against 44.96 % (CIFAR-10)",
            (folder,),
            lambda root: taught(root, "duplicates"),
        ),
        Claim(
            f"The inception score does not see that 500 images are repeated, {images}",
            "9.807 of 9.848; 44.96 of 92.58 % (CIFAR-10)",
            (folder,),
            trap,
        ),
    )


CLAIMS = (
    Claim(
        "One gradient step (10) does as well as (8) and (9)",
        "very effective in practice",
        ("sampler_roll",),
        _chain_rule,
    ),
    Claim(
        "SVGD's direction trains a Boltzmann machine better than the score alone",
        "-771.2 against -989.6 nats (authors' code)",
        ("rbm",),
        lambda root: _against(root, "score"),
    ),
    Claim(
        "The same of a generator with noise of observation",
        OURS,
        ("rbm_noise",),
        lambda root: _against(root, "score", "rbm_noise"),
    ),
    Claim(
        "It is the repulsion that does it",
        OURS,
        ("rbm",),
        lambda root: _against(root, "smoothed"),
    ),
    Claim(
        "Amortized learning beats a machine without hidden units",
        "no figure",
        ("rbm",),
        _hidden_units,
    ),
    Claim("SVGD's own lengthscale loses variance", OURS, ("svgd",), _own_lengthscale),
    *_figure_2("MNIST", "scores"),
    *_figure_2("CIFAR-10", "cifar_scores"),
)
PAPER = Paper("Paper 003: learning to draw samples", RUNS, CLAIMS)
