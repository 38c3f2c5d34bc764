"""The settings of a training run: objectives, fields, flags, presets, ranges."""

import dataclasses
import difflib
import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments import data as datasets
from experiments import networks
from experiments.errors import UsageError
from experiments.presets import PRESETS
from kernelgrad import adversarial, kale, kernels, objectives, steingan, svgd, two_player
from kernelgrad.objectives import MakeKernel, Objective
from kernelgrad.two_player import TwoPlayer
from kernelgrad.types import Array

KERNELS = {
    "imq": kernels.imq_mixture,
    "rbf": kernels.rbf_mixture,
    "rational_quadratic": kernels.rational_quadratic,
    "matern32": kernels.matern32,
    "matern52": kernels.matern52,
    "laplace": kernels.laplace,
}
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


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run, but for where it is stored."""

    objective: str = "kl"
    dataset: str = "digits"
    num_steps: int = 2000
    batch_size: int = 100
    latent_dim: int = 50
    width: int = 32
    prior: str = "normal"
    learning_rate: float = 1e-3
    b1: float = 0.9
    kernel: str = "imq"
    kernel_scales: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    ridge: float | None = None
    seed: int = 0
    eval_every: int = 200
    resident_gib: float = 2.0
    critic_steps: int | None = None
    critic_learning_rate: float | None = None
    spectral_norm: bool | None = None
    clip: float = 0.01
    penalty: str | None = None
    penalty_weight: float | None = None
    noise_variance: float = 0.0
    noise_steps: int | None = None
    discount: float = 0.7
    stein_field: str = "svgd"
    feature_lengthscale: str = "half_median"
    energy_norm: str = "euclidean"
    freeze_threshold: float = 0.5
    log_normalizer: str = "batch"
    log_normalizer_rate: float = 0.1
    conditional: bool = False
    margin: float = 0.2


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
        kernels.median_mixture, KERNELS[config.kernel], scales=config.kernel_scales
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


_DEFAULTS = Config()
_PRESET = flags.DEFINE_enum(
    "preset", None, sorted(PRESETS), "Settings of a paper; other flags override them."
)
flags.DEFINE_string(
    "objective",
    _DEFAULTS.objective,
    "What the generator descends. "
    + "; ".join(f"{name}: {choice.summary}" for name, choice in OBJECTIVES.items()),
)
flags.DEFINE_string(
    "dataset",
    _DEFAULTS.dataset,
    f"One of {', '.join(datasets.names())}, or an image set prepared by TFDS in --data_dir.",
)
flags.DEFINE_integer("num_steps", _DEFAULTS.num_steps, "Updates in all.")
flags.DEFINE_integer("batch_size", _DEFAULTS.batch_size, "Samples per step, over all devices.")
flags.DEFINE_integer("latent_dim", _DEFAULTS.latent_dim, "Dimension of the latents.")
flags.DEFINE_integer("width", _DEFAULTS.width, "Channels (images) or units (points).")
flags.DEFINE_enum("prior", _DEFAULTS.prior, sorted(PRIORS), "Prior of the latents.")
flags.DEFINE_float("learning_rate", _DEFAULTS.learning_rate, "Adam's learning rate.")
flags.DEFINE_float("b1", _DEFAULTS.b1, "Adam's decay of the first moment.")
flags.DEFINE_enum("kernel", _DEFAULTS.kernel, sorted(KERNELS), "Family of the mixture.")
flags.DEFINE_list(
    "kernel_scales",
    [str(scale) for scale in _DEFAULTS.kernel_scales],
    "Squared lengthscales in units of the batch's median squared distance.",
)
flags.DEFINE_float(
    "ridge",
    None,
    "kl: eta of the Stein estimator, 0.1 sqrt(batch) k(0) by default; ratio_ulsif: lambda, 0.1.",
)
flags.DEFINE_integer("seed", _DEFAULTS.seed, "Seed of everything random.")
flags.DEFINE_integer(
    "eval_every", _DEFAULTS.eval_every, "Steps between pictures, metrics and checkpoints."
)
flags.DEFINE_float(
    "resident_gib",
    _DEFAULTS.resident_gib,
    "Data sets up to this size live on the device; larger ones are fed batch by batch.",
)
flags.DEFINE_integer(
    "critic_steps", None, "Critic steps per generator step; 5 for wgan_*, else 1 by default."
)
flags.DEFINE_float(
    "critic_learning_rate",
    None,
    "Adam's learning rate of the critic; by default --learning_rate, for steingan a tenth of it.",
)
flags.DEFINE_bool(
    "spectral_norm", None, "Spectral normalisation of the critic; only for hinge by default."
)
flags.DEFINE_float("clip", _DEFAULTS.clip, "wgan_clip: bound of the critic's parameters.")
flags.DEFINE_enum(
    "penalty",
    None,
    sorted(PENALTIES),
    "What the critic's slopes should be; two_sided for wgan_gp, zero_centred for kale by default.",
)
flags.DEFINE_float(
    "penalty_weight", None, "Weight of the penalty; 10 for wgan_gp, 1 for kale by default."
)
flags.DEFINE_float(
    "noise_variance",
    _DEFAULTS.noise_variance,
    "Variance of the noise on samples and data, falling linearly to 0; noisy_jsd: of its noise.",
)
flags.DEFINE_integer(
    "noise_steps", None, "Steps after which that noise is gone; --num_steps by default."
)
flags.DEFINE_float(
    "discount", _DEFAULTS.discount, "steingan: gamma, by which the samples' energy counts less."
)
flags.DEFINE_enum(
    "stein_field",
    _DEFAULTS.stein_field,
    sorted(FIELDS),
    "steingan: what the samples follow; row_normalized and nearest as in the authors' code.",
)
flags.DEFINE_enum(
    "feature_lengthscale",
    _DEFAULTS.feature_lengthscale,
    sorted(FEATURE_LENGTHSCALES),
    "steingan: rule of the kernel on features; half_svgd as in the authors' code.",
)
flags.DEFINE_enum(
    "energy_norm",
    _DEFAULTS.energy_norm,
    sorted(networks.NORMS),
    "steingan: norm of the reconstruction's error; root_sum as in the authors' code.",
)
flags.DEFINE_float(
    "freeze_threshold",
    _DEFAULTS.freeze_threshold,
    "steingan: lead of the energy that freezes it; inf, as in the authors' code, never does.",
)
flags.DEFINE_enum(
    "log_normalizer",
    _DEFAULTS.log_normalizer,
    sorted(TRACKS),
    "kale: the best one of each batch, a moving average, or learned by Newton steps.",
)
flags.DEFINE_float(
    "log_normalizer_rate", _DEFAULTS.log_normalizer_rate, "kale: of ema or newton, in (0, 1]."
)
flags.DEFINE_bool(
    "conditional",
    _DEFAULTS.conditional,
    "Generate by class; the critic sees the labels, steingan's by the joint energy of eq. (15).",
)
flags.DEFINE_float(
    "margin", _DEFAULTS.margin, "steingan: cross entropy of labels below which nothing is gained."
)


def from_flags() -> Config:
    """Returns the defaults, overridden by the preset, overridden by the flags that were given."""
    settings = dict(PRESETS[_PRESET.value]) if _PRESET.value else {}
    for field in dataclasses.fields(Config):
        if flags.FLAGS[field.name].present:
            settings[field.name] = flags.FLAGS[field.name].value
    if "kernel_scales" in settings:
        try:
            settings["kernel_scales"] = tuple(float(s) for s in settings["kernel_scales"])
        except ValueError:
            raise UsageError(
                f"kernel_scales: got {settings['kernel_scales']}; expected numbers such as 0.5,1,2"
            ) from None
    return Config(**settings)


class _Range(NamedTuple):
    holds: Callable[[Any], bool]
    expected: str


_COUNT = _Range(lambda value: value >= 1, "an integer >= 1")
_POSITIVE = _Range(lambda value: 0 < value < math.inf, "a positive, finite number")
_NOT_NEGATIVE = _Range(lambda value: 0 <= value < math.inf, "a finite number >= 0")
_SHARE = _Range(lambda value: 0 <= value < 1, "a number in [0, 1)")
_RANGES = {
    **dict.fromkeys(("num_steps", "latent_dim", "width", "eval_every"), _COUNT),
    **dict.fromkeys(("critic_steps", "noise_steps"), _COUNT),
    "batch_size": _Range(lambda value: value >= 2, "an integer >= 2"),
    **dict.fromkeys(("learning_rate", "critic_learning_rate", "clip"), _POSITIVE),
    **dict.fromkeys(("ridge", "resident_gib", "kernel_scales"), _POSITIVE),
    **dict.fromkeys(("penalty_weight", "noise_variance", "margin"), _NOT_NEGATIVE),
    **dict.fromkeys(("b1", "discount"), _SHARE),
    "log_normalizer_rate": _Range(lambda value: 0 < value <= 1, "a number in (0, 1]"),
    "freeze_threshold": _Range(lambda value: value > 0, "a positive number or inf"),
}


def validate(config: Config, num_devices: int) -> None:
    """Raises UsageError for the first setting out of its range, before anything is compiled."""
    if config.objective not in OBJECTIVES:
        known = list(OBJECTIVES)
        nearest = difflib.get_close_matches(config.objective, known, n=1, cutoff=0)[0]
        raise UsageError(
            f"objective: got {config.objective!r}; expected one of {', '.join(known)}. "
            f"Did you mean {nearest}?"
        )
    for name, (holds, expected) in _RANGES.items():
        setting = getattr(config, name)
        for value in np.atleast_1d(() if setting is None else setting):
            if not holds(value):
                raise UsageError(f"{name}: got {value}; expected {expected}")
    if config.batch_size % num_devices:
        below = config.batch_size // num_devices * num_devices
        sizes = [size for size in (below, below + num_devices) if size > 0]
        raise UsageError(
            f"batch_size: got {config.batch_size} for {num_devices} devices; expected a multiple, "
            f"such as {' or '.join(map(str, sizes))}"
        )
    _validate_for_objective(config)


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
