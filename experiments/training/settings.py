"""The settings of a training run: objectives, fields, flags, presets, ranges."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from experiments.data import catalog
from experiments.networks import energies
from experiments.run import fields
from experiments.run.errors import UsageError
from experiments.training.presets import PRESETS
from kernelgrad import adversarial, kale, kernels, objectives, steingan, svgd, two_player
from kernelgrad.objectives import MakeKernel, Objective
from kernelgrad.two_player import TwoPlayer
from kernelgrad.types import Array

PENALTIES = {
    "two_sided": adversarial.gradient_penalty,
    "one_sided": adversarial.one_sided_gradient_penalty,
    "zero_centred": adversarial.zero_centred_gradient_penalty,
}
PRIORS: dict[str, Callable[..., Array]] = {
    "normal": jax.random.normal,
    "uniform": functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0),
}
TRACKS = {"batch": None, "ema": kale.ema_step, "newton": kale.newton_step}
FIELDS: dict[str, steingan.FieldFn] = {
    "svgd": svgd.svgd_direction,
    "row_normalized": steingan.row_normalized_direction,
    "nearest": steingan.nearest_direction,
}
FEATURE_LENGTHSCALES: dict[str, steingan.LengthscaleFn] = {
    "half_median": steingan.half_median,
    "half_svgd": steingan.half_svgd,
}


_MOST_PICTURES = 100_000


class Choice(NamedTuple):
    """An objective as the flags name it.

    Attributes:
      summary: what the generator descends, in one line.
      make: the objective of a config.
      critic_steps: before each step of the generator, by default; 0 without a critic.
      spectral_norm: whether the critic is normalised by default.
      critic_rate: the critic's learning rate by default, in units of the generator's.
      is_energy: whether the critic is an autoencoder's energy, kept aligned by the controller.
      energy: output of the critic -> energies (n,), low where it sees data; None without a critic.
    """

    summary: str
    make: Callable[[Config], Objective | TwoPlayer]
    critic_steps: int = 0
    spectral_norm: bool = False
    critic_rate: float = 1.0
    is_energy: bool = False
    energy: Callable[[Any], Array] | None = None


def _make_kernel(config: Config) -> MakeKernel:
    return functools.partial(
        kernels.median_mixture, kernels.FAMILIES[config.kernel], scales=config.kernel_scales
    )


def _wgan_gp(config: Config) -> TwoPlayer:
    return two_player.wgan_gp(**_penalty(config, weight="weight"))


def _kale(config: Config) -> TwoPlayer:
    track = TRACKS[config.log_normalizer]
    if track is not None:
        track = functools.partial(track, rate=config.log_normalizer_rate)
    return two_player.kale(**_penalty(config, weight="penalty_weight"), track=track)


def _steingan(config: Config) -> TwoPlayer:
    return steingan.steingan(
        discount=config.discount,
        field=FIELDS[config.stein_field],
        lengthscale=FEATURE_LENGTHSCALES[config.feature_lengthscale],
        threshold=config.freeze_threshold,
    )


def _penalty(config: Config, weight: str) -> dict[str, Any]:
    """Returns what the config asks for; the objective's own defaults stand in for the rest."""
    options: dict[str, Any] = {}
    if config.penalty is not None:
        options["penalty"] = PENALTIES[config.penalty]
    if config.penalty_weight is not None:
        options[weight] = config.penalty_weight
    return options


OBJECTIVES = {
    "kl": Choice(
        "KL[q || p] by Stein score estimates (paper 000)",
        lambda config: objectives.kl(_make_kernel(config), ridge=config.ridge),
    ),
    "mmd": Choice(
        "MMD^2 (paper 000's baseline)", lambda config: objectives.mmd_v(_make_kernel(config))
    ),
    "gan_saturating": Choice(
        "E log(1 - D): Jensen-Shannon, gradients vanish",
        lambda _: two_player.gan_saturating(),
        1,
        energy=operator.neg,
    ),
    "gan_non_saturating": Choice(
        "-E log D: the usual GAN", lambda _: two_player.gan_non_saturating(), 1, energy=operator.neg
    ),
    "gan_kl": Choice(
        "E log((1 - D) / D): KL[q || p] (paper 001)",
        lambda _: two_player.gan_kl(),
        1,
        energy=operator.neg,
    ),
    "wgan_clip": Choice(
        "Wasserstein, critic with clipped weights",
        lambda config: two_player.wgan_clip(clip=config.clip),
        5,
        energy=operator.neg,
    ),
    "wgan_gp": Choice(
        "Wasserstein, critic with a gradient penalty", _wgan_gp, 5, energy=operator.neg
    ),
    "hinge": Choice(
        "hinge loss, critic with spectral normalisation",
        lambda _: two_player.hinge(),
        1,
        True,
        energy=operator.neg,
    ),
    "steingan": Choice(
        "KL[q || exp(-energy)] by SVGD; the energy, an autoencoder's, by maximum likelihood "
        "(paper 003)",
        _steingan,
        1,
        critic_rate=0.1,
        is_energy=True,
        energy=operator.itemgetter(0),
    ),
    "kale": Choice(
        "KL[data || samples] by KALE, with an energy on top of the generator (paper 004)",
        _kale,
        1,
        energy=lambda output: output[0] if isinstance(output, tuple) else output,
    ),
    "noisy_jsd": Choice(
        "JSD of both clouds under noise, no network (paper 002, Theorem 3.2)",
        lambda config: objectives.noisy_jsd(variance=config.noise_variance),
    ),
    "ratio_ulsif": Choice(
        "log q / p, ratio by least squares (paper 001)",
        lambda config: objectives.ratio_ulsif(
            _make_kernel(config), **({} if config.ridge is None else {"ridge": config.ridge})
        ),
    ),
    "ratio_kliep": Choice(
        "log q / p, ratio by maximum likelihood (paper 001)",
        lambda config: objectives.ratio_kliep(_make_kernel(config)),
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run, but for where it is stored."""

    objective: str = fields.choice(
        "kl",
        OBJECTIVES,
        "What the generator descends. "
        + "; ".join(f"{name}: {choice.summary}" for name, choice in OBJECTIVES.items())
        + ".",
    )
    dataset: str = fields.word(
        "digits",
        f"One of {', '.join(catalog.names())}, or an image set prepared by TFDS in --data_dir.",
    )
    num_steps: int = fields.integer(2000, 1, fields.MAX_COUNT, "Updates in all.")
    batch_size: int = fields.integer(100, 2, fields.MAX_SIZE, "Samples per step, over all devices.")
    latent_dim: int = fields.integer(50, 1, fields.MAX_SIZE, "Dimension of the latents.")
    width: int = fields.integer(32, 1, fields.MAX_SIZE, "Channels (images) or units (points).")
    prior: str = fields.choice("normal", PRIORS, "Prior of the latents.")
    learning_rate: float = fields.positive(1e-3, "Adam's learning rate.")
    b1: float = fields.share(0.9, "Adam's decay of the first moment.")
    kernel: str = fields.choice("imq", kernels.FAMILIES, "Family of the mixture.")
    kernel_scales: tuple[float, ...] = fields.numbers(
        (0.5, 1.0, 2.0, 4.0),
        1e-12,
        1e12,
        "Squared lengthscales in units of the batch's median squared distance.",
    )
    ridge: float | None = fields.positive(
        None,
        "kl: eta of the Stein estimator, 0.1 sqrt(batch) k(0) by default; ratio_ulsif: lambda, "
        "0.1.",
    )
    seed: int = fields.seed()
    eval_every: int = fields.integer(
        200, 1, fields.MAX_COUNT, "Steps between pictures, metrics and checkpoints."
    )
    resident_gib: float = fields.number(
        2.0,
        1e-6,
        1e6,
        "Data sets up to this size live on the device; larger ones are fed batch by batch.",
    )
    critic_steps: int | None = fields.integer(
        None,
        1,
        1000,
        "Critic steps per generator step; 5 for wgan_*, else 1 by default.",
    )
    critic_learning_rate: float | None = fields.positive(
        None,
        "Adam's learning rate of the critic; by default --learning_rate, for steingan a tenth of "
        "it.",
    )
    spectral_norm: bool | None = fields.switch(
        None, "Spectral normalisation of the critic; only for hinge by default."
    )
    clip: float = fields.positive(0.01, "wgan_clip: bound of the critic's parameters.")
    penalty: str | None = fields.choice(
        None,
        PENALTIES,
        "What the critic's slopes should be; two_sided for wgan_gp, zero_centred for kale by "
        "default.",
    )
    penalty_weight: float | None = fields.not_negative(
        None, "Weight of the penalty; 10 for wgan_gp, 1 for kale by default."
    )
    noise_variance: float = fields.not_negative(
        0.0,
        "Variance of the noise on samples and data, falling linearly to 0; noisy_jsd: of its "
        "noise.",
    )
    noise_steps: int | None = fields.integer(
        None, 1, fields.MAX_COUNT, "Steps after which that noise is gone; --num_steps by default."
    )
    discount: float = fields.share(
        0.7, "steingan: gamma, by which the samples' energy counts less."
    )
    stein_field: str = fields.choice(
        "svgd",
        FIELDS,
        "steingan: what the samples follow; row_normalized and nearest as in the authors' code.",
    )
    feature_lengthscale: str = fields.choice(
        "half_median",
        FEATURE_LENGTHSCALES,
        "steingan: rule of the kernel on features; half_svgd as in the authors' code.",
    )
    energy_norm: str = fields.choice(
        "euclidean",
        energies.NORMS,
        "steingan: norm of the reconstruction's error; root_sum as in the authors' code.",
    )
    freeze_threshold: float = fields.number(
        0.5,
        fields.SMALLEST,
        math.inf,
        "steingan: lead of the energy that freezes it; inf, as in the authors' code, never does.",
    )
    log_normalizer: str = fields.choice(
        "batch",
        TRACKS,
        "kale: the best one of each batch, a moving average, or learned by Newton steps.",
    )
    log_normalizer_rate: float = fields.number(0.1, 1e-6, 1.0, "kale: of ema or newton.")
    conditional: bool = fields.switch(
        False,
        "Generate by class; the critic sees the labels, steingan's by the joint energy of eq. "
        "(15).",
    )
    margin: float = fields.not_negative(
        0.2, "steingan: cross entropy of labels below which nothing is gained."
    )


def preset(default: str | None = None) -> Any:
    """Declares the name of a preset."""
    return fields.choice(default, PRESETS, "Settings of a paper; other flags override them.")


def configured(given: Mapping[str, Any], name: str | None) -> Config:
    """Returns the defaults, overridden by a preset, overridden by the values that were given."""
    return fields.pick(Config, {**(PRESETS[name] if name else {}), **given})


def critic_steps(config: Config) -> int:
    """Returns the critic's steps before each step of the generator; 0 without a critic."""
    default = OBJECTIVES[config.objective].critic_steps
    return config.critic_steps if config.critic_steps and default else default


def tracks(config: Config) -> bool:
    """Returns whether the critic keeps a log-normaliser from batch to batch."""
    return config.objective == "kale" and TRACKS[config.log_normalizer] is not None


def rows_per_step(config: Config) -> int:
    """Returns how many examples a step takes: a batch for each step of a critic."""
    return config.batch_size * max(1, critic_steps(config))


def validate(config: Config, num_devices: int) -> None:
    """Raises UsageError for the first setting out of its range, before anything is compiled."""
    fields.validate(config)
    limit_pictures(config, _MOST_PICTURES)
    if config.batch_size % num_devices:
        below = config.batch_size // num_devices * num_devices
        sizes = [size for size in (below, below + num_devices) if size > 0]
        raise UsageError(
            f"batch_size: got {config.batch_size} for {num_devices} devices; expected a multiple, "
            f"such as {' or '.join(map(str, sizes))}"
        )
    _validate_for_objective(config)


def limit_pictures(config: Any, most: int) -> None:
    """Raises UsageError where a config's num_steps and eval_every make too many pictures."""
    count = config.num_steps // config.eval_every
    if count > most:
        raise UsageError(
            f"eval_every: got {config.eval_every}, {count} evaluations in {config.num_steps} steps "
            f"with a picture each; expected at most {most}"
        )


def _validate_for_objective(config: Config) -> None:
    """Raises UsageError for a setting that does not go with the objective, or with labels."""
    if config.objective == "noisy_jsd" and config.noise_variance == 0:
        raise UsageError("noise_variance: got 0.0 for noisy_jsd; expected a number > 0")
    if config.objective == "wgan_gp" and config.penalty_weight == 0:
        raise UsageError("penalty_weight: got 0.0 for wgan_gp; expected a number > 0")
    if config.conditional and not OBJECTIVES[config.objective].critic_steps:
        known = [name for name, choice in OBJECTIVES.items() if choice.critic_steps]
        raise UsageError(
            f"conditional: got objective {config.objective}, without a critic to see the labels; "
            f"expected one of {', '.join(known)}"
        )
    if config.conditional and config.noise_variance:
        raise UsageError(
            f"noise_variance: got {config.noise_variance} with --conditional; expected 0, for the "
            "noise would blur the labels"
        )
