"""Paper 001 (Huszar 2016): the update of a GAN that descends KL[Q || P]."""

import pathlib

from experiments.papers.claims import (
    Claim,
    Paper,
    Part,
    ahead,
    at_most,
    compared,
    ends,
    histories,
    lower,
)
from experiments.papers.runs import Run

_ALL = (
    "gan_kl,gan_non_saturating,gan_saturating,wgan_gp,wgan_clip,hinge,kl,mmd,noisy_jsd,ratio_ulsif,"
    "ratio_kliep"
)
_TUNED = (
    "gan_kl:learning_rate=3e-3:critic_learning_rate=3e-3,"
    "gan_non_saturating:learning_rate=1e-3:critic_learning_rate=1e-3,"
    "ratio_kliep:learning_rate=3e-3:kernel=rbf:select=true,"
    "ratio_logistic:learning_rate=3e-3:kernel=rbf,"
    "ratio_rulsif:learning_rate=3e-3:kernel=rbf:select=true,"
    "ratio_ulsif:learning_rate=3e-3:kernel=rbf:select=true"
)
_SMALL = "--num_steps=4 --eval_every=4"
_FEATURES = "--features=classifier --dataset=digits --num_steps=20 --eval_every=20 --num_devices=1"
RUNS = (
    Run(
        "toy --objective=gan_kl --eval_every=100 --workdir=runs/roll",
        3,
        ("table.md", "evolution.gif", "curves.png"),
    ),
    Run(
        "toy --workdir=runs/toys --seeds=0,1,2 --num_steps=1000 --eval_every=100 "
        f"--objectives={_ALL}",
        20,
        ("table.md", "samples.png", "comparison.png"),
        f"{_SMALL} --seeds=0 --objectives=gan_kl,gan_saturating",
    ),
    Run(
        "toy --workdir=runs/toys10 --seeds=0,1,2 --num_steps=1000 --eval_every=100 "
        "--objectives=wgan_gp --penalty_weight=10",
        3,
        ("table.md", "comparison.png"),
    ),
    Run(
        "toy --workdir=runs/toys_energies --seeds=0,1,2 --num_steps=1000 --eval_every=100 "
        "--objectives=steingan,kale",
        4,
        ("table.md", "samples.png"),
        f"{_SMALL} --seeds=0 --objectives=kale",
    ),
    Run(
        "toy --workdir=runs/toys_tuned --seeds=0,1,2 --num_steps=1000 --eval_every=100 "
        f"--objectives={_TUNED}",
        20,
        ("table.md", "samples.png", "comparison.png"),
        f"{_SMALL} --seeds=0 --objectives=gan_kl:learning_rate=3e-3,"
        "ratio_kliep:learning_rate=3e-3:kernel=rbf:select=true",
    ),
    Run(
        f"train --objective=ratio_ulsif {_FEATURES} --workdir=runs/ratio_features",
        1,
        ("curves.png",),
    ),
    Run(
        f"train --objective=ratio_rulsif --select {_FEATURES} --workdir=runs/ratio_selected",
        1,
        ("curves.png",),
    ),
    Run(
        "compare --dataset=mnist --data_dir=data --seeds=0 --num_steps=1800 "
        "--objectives=kl,mmd,gan_non_saturating,gan_kl,wgan_gp --eval_every=600 --width=8 --b1=0.5 "
        "--kernel_scales=0.5,1,2,4 --nonormalize --workdir=runs/gans",
        20,
        ("comparison.md", "comparison.png"),
        f"{_SMALL} --dataset=ring --width=4 --objectives=mmd,gan_kl,gan_non_saturating",
        "compare --dataset=mnist --data_dir=data --seeds=0,1,2 --num_steps=30000 "
        "--objectives=kl,mmd,gan_non_saturating,gan_kl,wgan_gp --eval_every=3000 --width=64 "
        "--b1=0.5 --kernel_scales=0.5,1,2,4 --nonormalize --workdir=runs/gans",
        ("mnist",),
    ),
)


def _kl(folder: pathlib.Path, record: int = -1) -> list[float]:
    """Returns KL[Q || P] of an objective on the roll, one figure a seed."""
    return [run[record]["true_kl"] for run in histories(folder)]


def _falls(*folders: pathlib.Path) -> list[Part]:
    return [
        at_most(
            f"{folder.name}: KL at the end over KL at the start",
            [last / first for first, last in zip(_kl(folder, 0), _kl(folder), strict=True)],
            0.1,
        )
        for folder in folders
    ]


def _below(root: pathlib.Path) -> list[Part]:
    own = _kl(root / "toys/gan_kl")
    folders = (root / "toys" / name for name in ("gan_non_saturating", "gan_saturating"))
    return [
        lower(f"KL of gan_kl against {folder.name}", own, _kl(folder))
        for folder in folders
        if folder.is_dir()  # at smoke there is one of each kind
    ]


def _on_images(root: pathlib.Path) -> list[Part]:
    curves = compared(root / "gans")
    return ahead(ends(curves, "gan_kl"), ends(curves, "gan_non_saturating"))


CLAIMS = (
    Claim(
        "The update log((1 - D) / D) minimises KL of samples from data",
        "shown on the roll, no figure",
        ("toys",),
        lambda root: _falls(root / "toys/gan_kl"),
    ),
    Claim(
        "It minimises that KL where the other two losses do not",
        "derived, no figure",
        ("toys",),
        _below,
    ),
    Claim(
        "Ratios estimated directly can take the classifier's place",
        "suggested, no figure",
        ("toys_tuned",),
        lambda root: _falls(*sorted((root / "toys_tuned").glob("ratio_*"))),
    ),
    Claim("It is ahead of the usual loss on images", "not tried", ("gans",), _on_images),
)
PAPER = Paper("Paper 001: how to train a generator", RUNS, CLAIMS)
