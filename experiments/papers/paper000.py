"""Paper 000 (Li 2017): KL by Stein scores against MMD."""

import pathlib
from collections.abc import Mapping

import numpy as np

from experiments.papers.claims import (
    OURS,
    Claim,
    Paper,
    Part,
    ahead,
    at_most,
    compared,
    early,
    ends,
    lower,
    results,
    rising,
)
from experiments.papers.runs import Run

_PAPERS, _LOCAL = "0.5,1,2,4", "0.01,0.03,0.1,0.3"  # scales of the kernel
_SCALES = f"kernel_scales={_LOCAL.replace(',', '+')}"
_LOCALLY = f"normalize=true:{_SCALES}"
_FORGETFUL = ",".join(
    f"{objective}:b2=0.9{scales}" for scales in ("", f":{_SCALES}") for objective in ("kl", "mmd")
)
_RIDGES = ("kl:ridge=0.4", "kl", "kl:ridge=40", "mmd")  # 4 by default; MMD has an infinite one
_THREE_EPOCHS = 1800  # of MNIST, in steps of 100 images
_MEASURES = ("test_mmd", "label_entropy", "nearest_l1", "inception_score")  # of Figure 2
_LEFT = ("comparison.md", "comparison.png")
_DRAWN = (*_LEFT, "kl/seed0/samples/*[0-9].png")
_SMALL = "--dataset=digits --seeds=0 --num_steps=4 --eval_every=4 --width=4"


def _three_epochs(
    name: str,
    flags: str,
    *,
    objectives: str = "kl,mmd",
    seeds: str = "0,1,2",
    scales: str = _PAPERS,
    normalize: str = "--nonormalize",
    minutes: float = 8,
    smoke: str | None = None,
) -> Run:
    return Run(
        f"compare --dataset=mnist --data_dir=data --objectives={objectives} --seeds={seeds} "
        f"--num_steps=1800 --eval_every=600 --width=8 {normalize} --kernel_scales={scales} "
        f"{flags} --workdir=runs/{name}",
        minutes,
        _DRAWN if "kl" in objectives else _LEFT,
        smoke,
        needs=("mnist",),
    )


def _elsewhere(dataset: str, name: str) -> tuple[Run, Run]:
    """Returns the runs on another data set, at the project's defaults and the paper's settings."""
    command = f"compare --dataset={dataset} --objectives=kl,mmd --seeds=0,1,2"
    return (
        Run(f"{command} --workdir=runs/{name}_local", 6, _LEFT),
        Run(
            f"{command} --kernel_scales={_PAPERS} --nonormalize --workdir=runs/{name}_paper",
            6,
            _LEFT,
        ),
    )


def _one_seed(name: str, flags: str) -> Run:
    return _three_epochs(name, flags, seeds="0", minutes=2)


def _ten_epochs(
    name: str, objectives: str, seeds: str, num_steps: int, batch: str, minutes: float
) -> Run:
    """Returns a run over the images of 6000 batches of 100, evaluated ten times."""
    return Run(
        f"compare --dataset=mnist --data_dir=data --objectives={objectives} --seeds={seeds} "
        f"--num_steps={num_steps} --eval_every={num_steps // 10} {batch}--width=8 --nonormalize "
        f"--kernel_scales={_PAPERS} --workdir=runs/{name}",
        minutes,
        _LEFT,
        needs=("mnist",),
    )


RUNS = (
    Run(
        "train --dataset=digits --workdir=runs/digits",
        2,
        ("samples/*[0-9].png", "curves.png"),
        "--num_steps=4 --eval_every=4 --width=4",
    ),
    Run(
        f"compare --dataset=mnist --data_dir=data --objectives=kl,mmd,kl:{_LOCALLY},mmd:{_LOCALLY} "
        "--seeds=0,1,2 --num_steps=18000 --eval_every=1800 --width=8 --kernel_scales=0.5,1,2,4 "
        "--nonormalize --workdir=runs/compare",
        80,
        (*_LEFT, "samples.png"),
        f"{_SMALL} --objectives=kl,mmd",
        f"compare --preset=paper000 --data_dir=data "
        f"--objectives=kl,mmd,kl:{_LOCALLY},mmd:{_LOCALLY} --seeds=0,1,2 --workdir=runs/compare",
        ("mnist",),
    ),
    Run(
        "evaluate --workdir=runs/compare/kl/seed0 --data_dir=data",
        2,
        ("samples/evaluated.png",),
        "--num_samples=500",
        needs=("mnist",),
    ),
    _three_epochs(
        "local",
        "",
        objectives="kl,mmd,drift",
        scales=_LOCAL,
        normalize="--normalize",
        minutes=12,
        smoke=f"{_SMALL} --objectives=kl,mmd",
    ),
    _three_epochs("paper_scales", ""),
    _three_epochs("scales", "", scales=_LOCAL),
    _three_epochs("normalized", "", normalize="--normalize"),
    _three_epochs("memory", "", objectives=_FORGETFUL, minutes=16),
    Run(
        "spectrum --data_dir=data --workdir=runs/spectrum --runs=paper=runs/compare/kl/seed0,"
        f"local=runs/compare/kl:{_LOCALLY}/seed0",
        1,
        ("table.md", "spectrum.png"),
        "--runs=paper=runs/compare/kl/seed0,local=runs/local/kl/seed0 --num_batches=2",
        needs=("mnist",),
    ),
    *_elsewhere("digits", "digits"),
    *_elsewhere("ring", "ring"),
    *_elsewhere("eight_gaussians", "eight_gaussians"),
    _ten_epochs("ridge", ",".join(_RIDGES), "0,1,2", 6000, "", 25),
    _ten_epochs("batch_200", "kl,mmd", "0", 3000, "--batch_size=200 ", 5),
    _ten_epochs("batch_500", "kl,mmd", "0", 1200, "--batch_size=500 ", 6),
    Run(
        "compare --preset=paper000 --data_dir=data --objectives=kl,mmd --seeds=0 --width=8 "
        "--num_steps=120000 --eval_every=6000 --workdir=runs/rate",
        45,
        _LEFT,
        needs=("mnist",),
    ),
    _one_seed("rate_3e-4", "--learning_rate=3e-4"),
    _one_seed("rate_4e-3", "--learning_rate=4e-3"),
    _one_seed("b1_0.5", "--b1=0.5"),
    Run(
        "compare --dataset=cifar10_jpeg --data_dir=data --objectives=kl,mmd --seeds=0,1,2 "
        "--num_steps=1000 --eval_every=500 --width=8 --kernel_scales=0.5,1,2,4 --nonormalize "
        "--workdir=runs/cifar_paper",
        15,
        (*_LEFT, "samples.png"),
        needs=("cifar10_jpeg",),
    ),
)


def _of_paper(metrics: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns those metrics that the paper has."""
    return {name: values for name, values in metrics.items() if name in _MEASURES}


def _better(root: pathlib.Path, name: str = "compare") -> list[Part]:
    curves = compared(root / name)
    return ahead(_of_paper(ends(curves, "kl")), ends(curves, "mmd"))


def _faster(root: pathlib.Path) -> list[Part]:
    kl, mmd = (compared(root / "compare")[name] for name in ("kl", "mmd"))
    seconds = min(one.steps[-1] * one.ms_per_step for one in (kl, mmd)) / 1000
    at_time = ahead(_of_paper(kl.at_time(seconds)), mmd.at_time(seconds), ", at equal time")
    return [lower("ms per step", [kl.ms_per_step], [mmd.ms_per_step]), *at_time]


def _yardstick(root: pathlib.Path) -> list[Part]:
    score = results(root / "compare/comparison.json")["reference"]["inception_score"]
    return [at_most(f"distance of {score:.4g} to 9.82", [abs(score - 9.82)], 0.1)]


def _local(root: pathlib.Path) -> list[Part]:
    curves = compared(root / "local")
    return ahead(ends(curves, "kl"), ends(curves, "mmd"))


def _forgetful(root: pathlib.Path) -> list[Part]:
    curves = compared(root / "memory")
    return ahead(ends(curves, "kl:b2=0.9"), ends(curves, "mmd:b2=0.9"))


def _against_paper_scales(root: pathlib.Path) -> list[Part]:
    one, other = (compared(root / name) for name in ("local", "paper_scales"))
    return [
        part
        for name in ("kl", "mmd")
        for part in ahead(ends(one, name), ends(other, name), f" of {name}")
    ]


def _poorly(root: pathlib.Path) -> list[Part]:
    real = results(root / "cifar_paper/comparison.json")["reference"]["inception_score"]
    curves = compared(root / "cifar_paper")
    return [
        at_most(
            f"{name}: inception score over that of real images",
            ends(curves, name)["inception_score"] / real,
            0.5,
        )
        for name in ("kl", "mmd")
    ]


def _ridge(root: pathlib.Path) -> list[Part]:
    curves = compared(root / "ridge")
    soon = [early(curves, name, _THREE_EPOCHS) for name in _RIDGES]
    late = [ends(curves, name) for name in _RIDGES]
    return [
        rising(f"{metric} {when}", [metrics[metric] for metrics in along])
        for when, along in (("after 3 epochs", soon), ("at the end", late))
        for metric in ("inception_score", "nearest_l1")
    ]


_COMPARE = ("compare",)
CLAIMS = (
    Claim("KL learns better than MMD", "better in all four measures", _COMPARE, _better),
    Claim(
        "KL learns better than MMD at the paper's own rate",
        "better in all four measures",
        ("rate",),
        lambda root: _better(root, "rate"),
    ),
    Claim("KL learns faster than MMD", "6.84 against 10.77 s an epoch", _COMPARE, _faster),
    Claim("Real test images have a known score", "inception score 9.82", _COMPARE, _yardstick),
    Claim("KL is better than MMD with an Adam that forgets", OURS, ("memory",), _forgetful),
    Claim("At local scales KL is better than MMD", OURS, ("local",), _local),
    Claim(
        "Local scales are better than the paper's",
        OURS,
        ("local", "paper_scales"),
        _against_paper_scales,
    ),
    Claim(
        "On natural images both work poorly under a kernel on pixels",
        "said, no figure",
        ("cifar_paper",),
        _poorly,
    ),
    Claim(
        "The ridge leads from KL to MMD: 0.4, 4, 40, infinity",
        OURS,
        ("ridge",),
        _ridge,
    ),
)
PAPER = Paper("Paper 000: KL against MMD", RUNS, CLAIMS)
