"""The settings of a training run: fields, flags, presets, and what goes together."""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from experiments.data import catalog
from experiments.networks import energies
from experiments.run import fields, unread
from experiments.run.errors import UsageError
from experiments.training import extractors, objectives, optimizers, updates
from experiments.training.choices import Choice
from experiments.training.objectives import OBJECTIVES
from experiments.training.presets import PRESETS
from kernelgrad import drift, kernels
from kernelgrad.objectives import F_DIVERGENCES
from kernelgrad.types import Array

PRIORS: dict[str, Callable[..., Array]] = {
    "normal": jax.random.normal,
    "uniform": functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0),
}

_GENERATOR, _LEARNING, _RUN = "The generator.", "How it learns.", "Looking at it, and memory."
_OPTIMIZER: dict[str, Any] = {"group": _LEARNING, "of": optimizers.reading}
_UPDATE: dict[str, Any] = {"group": _LEARNING, "of": updates.reading}
_SPECIAL: dict[str, Any] = {"group": "What some objectives read.", "of": objectives.reading}
_CRITIC: dict[str, Any] = {"group": "The critic, where there is one.", "of": objectives.reading}
_CRITICS = [name for name, choice in OBJECTIVES.items() if choice.critic_steps]
_MOST_PICTURES = 100_000
_COMMON = ("objective", "dataset", "image_size", "num_steps", "eval_every", "seed")  # of variants
_LONGEST_NAME = 255  # of a folder


def _scales(choice: Choice) -> str:
    return " ".join(map(str, choice.kernel_scales))


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
        f"One of {', '.join(catalog.names())}, an image set prepared by TFDS in --data_dir, or the "
        "path of a folder of PNG or JPEG images (sub-folders: classes) or of a set that Hugging "
        "Face's save_to_disk wrote, an .npy or an .npz file.",
    )
    image_size: int | None = fields.image_size()
    num_steps: int = fields.integer(2000, 1, fields.MAX_COUNT, "Updates in all.", group=_LEARNING)
    batch_size: int = fields.integer(
        100, 2, fields.MAX_SIZE, "Samples per step, over all devices.", group=_LEARNING
    )
    latent_dim: int = fields.integer(
        50, 1, fields.MAX_SIZE, "Dimension of the latents.", group=_GENERATOR
    )
    width: int = fields.integer(
        32, 1, fields.MAX_SIZE, "Channels (images) or units (points).", group=_GENERATOR
    )
    prior: str = fields.choice("normal", PRIORS, "Prior of the latents.", group=_GENERATOR)
    learning_rate: float = fields.positive(
        1e-3, "Learning rate of the generator, the largest under a schedule.", group=_LEARNING
    )
    optimizer: str = fields.choice(
        "adam",
        optimizers.OPTIMIZERS,
        "Optax's optimizer of that name, of the generator and of a critic.",
        group=_LEARNING,
    )
    b1: float = fields.share(0.9, "Decay of the first moment.", **_OPTIMIZER)
    b2: float = fields.share(0.999, "Decay of the second moment.", **_OPTIMIZER)
    momentum: float | None = fields.share(
        None, "Decay of the momentum; none by default.", **_OPTIMIZER
    )
    weight_decay: float = fields.not_negative(
        1e-4, "Decay of the parameters, in units of the learning rate.", **_OPTIMIZER
    )
    schedule: str = fields.choice(
        "constant",
        optimizers.SCHEDULES,
        "How the learning rates of the generator and of a critic fall to 0 over --num_steps.",
        group=_LEARNING,
    )
    warmup: int | None = fields.integer(
        None,
        1,
        fields.MAX_COUNT,
        "Steps over which both rates rise in equal parts, before they fall; none by default.",
        group=_LEARNING,
    )
    clip_norm: float | None = fields.positive(
        None,
        "Largest norm of the generator's gradient over all its parameters, and of a critic's; "
        "longer ones are shortened to it. By default none are.",
        group=_LEARNING,
    )
    ema: float | None = fields.share(
        None,
        "Decay a step of a moving average of the generator's parameters and batch statistics, "
        "such as 0.999. Samples, pictures and metrics are then those of the average; training "
        "and a critic do not see it. By default there is none.",
        group=_LEARNING,
    )
    update: str = fields.choice(
        "chain_rule",
        updates.UPDATES,
        "How the generator follows a direction of its samples: by eq. (10), (8) or (9) of paper "
        "003. That of gauss_newton is a step already, which --optimizer=sgd takes as it is, times "
        "--learning_rate.",
        group=_LEARNING,
    )
    generator_steps: int = fields.integer(
        1,
        1,
        1000,
        "Updates of the generator in a step, each on fresh latents, while a critic waits.",
        group=_LEARNING,
    )
    step_size: float = fields.positive(
        0.5, "How far the samples are to move, in units of their direction.", **_UPDATE
    )
    inner_steps: int = fields.integer(
        10, 1, fields.MAX_COUNT, "Inner steps that fit them there.", **_UPDATE
    )
    inner_learning_rate: float = fields.positive(
        0.005, "Rate of the inner momentum steps.", **_UPDATE
    )
    damping: float = fields.positive(
        1e-3, "Lambda of the least squares, in units of the squared Jacobian.", **_UPDATE
    )
    cg_iterations: int = fields.integer(
        20, 1, fields.MAX_COUNT, "Most iterations of conjugate gradients.", **_UPDATE
    )
    kernel: str = fields.choice("imq", kernels.FAMILIES, "Family of the mixture.", **_SPECIAL)
    kernel_scales: tuple[float, ...] | None = fields.numbers(
        None,
        1e-12,
        1e12,
        "Squared lengthscales in units of the batch's median squared distance; between learned "
        "features, as they are; by default "
        f"{objectives.in_words(_scales, objectives.reading('kernel_scales'))}.",
        **_SPECIAL,
    )
    ridge: float | None = fields.positive(
        None,
        "kl, kl_adversarial, f_divergence: eta of the Stein estimator, 0.1 sqrt(batch) k(0) by "
        "default; "
        "ratio_ulsif, ratio_rulsif, ratio_logistic: lambda, 0.1.",
        **_SPECIAL,
    )
    select: bool = fields.switch(
        False,
        "Fit each batch's ratio by the one of --kernel_scales, in place of their mixture, and the "
        f"ridge, --ridge or one of {', '.join(map(str, objectives.SELECTED_RIDGES))}, whose "
        "held-out loss is least.",
        **_SPECIAL,
    )
    alpha: float = fields.number(
        0.5,
        1e-3,
        1 - 1e-3,
        "Share of the data in the mixture; 0.5 for the Jensen-Shannon divergence.",
        **_SPECIAL,
    )
    temperatures: tuple[float, ...] = fields.numbers(
        drift.TEMPERATURES,
        1e-6,
        1e6,
        "Of the kernel exp(-|x - y| / temperature), in units of the batch's mean distance.",
        **_SPECIAL,
    )
    num_projections: int = fields.integer(
        64, 1, fields.MAX_COUNT, "Random lines of a step.", **_SPECIAL
    )
    epsilon: float = fields.number(
        0.05,
        1e-4,
        1e4,
        "Weight of the entropy, in units of the batch's mean squared distance.",
        **_SPECIAL,
    )
    noise_scale: float = fields.not_negative(
        0.1, "Of the noise where the gradient of MMD^2 is taken, in units of the data.", **_SPECIAL
    )
    divergence: str = fields.choice(
        "forward_kl",
        F_DIVERGENCES,
        "reverse_kl is KL[q || p], of samples q from data p; chi2 is E_p (q/p - 1)^2.",
        **_SPECIAL,
    )
    regularization: float = fields.number(
        0.1, 1e-4, 1e6, "Lambda of KALE in an RKHS, in units of k(0).", **_SPECIAL
    )
    features: tuple[str, ...] = fields.choices(
        (extractors.PIXELS,),
        extractors.NAMES,
        "What the objective sees: the samples themselves, or features of networks that are trained "
        "on the data set at first use, without labels (autoencoder, vicreg) or with (classifier). "
        "A critic sees all of them at once; other directions are taken in each and added up.",
        group=_LEARNING,
    )
    normalize: bool | None = fields.switch(
        None,
        "Divide the direction by its root mean square over the batch, that in each of several "
        "features and that of their sum; by default "
        f"{objectives.in_words(lambda choice: choice.normalize)}.",
        group=_LEARNING,
        before=False,
    )
    seed: int = fields.seed()
    eval_every: int = fields.integer(
        200, 1, fields.MAX_COUNT, "Steps between pictures, metrics and checkpoints.", group=_RUN
    )
    resident_gib: float = fields.number(
        2.0,
        1e-6,
        1e6,
        "Data sets up to this size live in memory and on the device; larger ones are fed batch by "
        "batch, decoded images from the disk.",
        group=_RUN,
    )
    critic_steps: int | None = fields.integer(
        None,
        1,
        1000,
        "Critic steps per generator step; by default "
        f"{objectives.in_words(lambda choice: choice.critic_steps, _CRITICS)}.",
        **_CRITIC,
    )
    critic_learning_rate: float | None = fields.positive(
        None,
        "Learning rate of the critic; in units of --learning_rate, by default "
        f"{objectives.in_words(lambda choice: choice.critic_rate, _CRITICS)}.",
        **_CRITIC,
    )
    spectral_norm: bool | None = fields.switch(
        None,
        "Spectral normalisation of the critic; by default "
        f"{objectives.in_words(lambda choice: choice.spectral_norm, _CRITICS)}.",
        **_CRITIC,
    )
    num_features: int = fields.integer(
        16, 1, fields.MAX_SIZE, "Features between which the kernel is learned.", **_CRITIC
    )
    clip: float = fields.positive(0.01, "Bound of the critic's parameters.", **_CRITIC)
    penalty: str | None = fields.choice(
        None,
        objectives.PENALTIES,
        "What the critic's slopes should be; by default zero_centred for kale, else two_sided.",
        **_CRITIC,
    )
    penalty_weight: float | None = fields.not_negative(
        None, "Weight of the penalty; by default 10 for wgan_gp, else 1.", **_CRITIC
    )
    noise_variance: float = fields.not_negative(
        0.0,
        "Variance of the noise on samples and data, falling linearly to 0; noisy_jsd: of its "
        "noise.",
        group=_LEARNING,
    )
    noise_steps: int | None = fields.integer(
        None,
        1,
        fields.MAX_COUNT,
        "Steps after which that noise is gone; --num_steps by default.",
        group=_LEARNING,
        beside={"objective": objectives.OWN_NOISE, "noise_variance": (0.0,)},
    )
    discount: float = fields.share(
        0.7, "Gamma, by which the samples' energy counts less.", **_SPECIAL
    )
    leading_discount: float | None = fields.share(
        None,
        "Gamma where the samples' energy is at least the data's, 0.9 in the authors' scripts of "
        "MNIST and CIFAR-10; --discount by default.",
        **_SPECIAL,
    )
    stein_field: str = fields.choice(
        "svgd",
        objectives.FIELDS,
        "What the samples follow: eq. (7) of paper 003; one_pass as in the authors' scripts of "
        "MNIST and CIFAR-10, nearest as in that of LSUN, row_normalized as in that of the "
        "Boltzmann machine.",
        **_SPECIAL,
    )
    feature_lengthscale: str = fields.choice(
        "half_median",
        objectives.FEATURE_LENGTHSCALES,
        "Rule of the kernel on features; half_svgd as in all of the authors' scripts of images.",
        **_SPECIAL,
    )
    energy_norm: str = fields.choice(
        "euclidean",
        energies.NORMS,
        "Norm of the reconstruction's error; root_sum as in the authors' script of LSUN.",
        **_CRITIC,
    )
    batch_norm: bool = fields.switch(
        False,
        "BatchNorm in the critic or the energy's autoencoder, after all layers but the first and "
        "the last. What it says of a sample then depends on the batch.",
        **_CRITIC,
    )
    tied_weights: bool = fields.switch(
        False, "Make the autoencoder's decoder of the transposes of its encoder.", **_CRITIC
    )
    freeze: str = fields.choice(
        "one_sided",
        objectives.FREEZES,
        "When the energy waits: where the samples' exceeds the data's by --freeze_threshold, as in "
        "the authors' scripts of MNIST and CIFAR-10, or for a difference of either sign, as paper "
        "003 reads.",
        beside={"freeze_threshold": (math.inf,)},
        **_CRITIC,
    )
    freeze_threshold: float = fields.number(
        0.5,
        fields.SMALLEST,
        math.inf,
        "Difference of energies that freezes the energy; inf never does, as in the authors' "
        "scripts of CelebA and LSUN.",
        **_CRITIC,
    )
    log_normalizer: str = fields.choice(
        "batch",
        objectives.TRACKS,
        "The best one of each batch, a moving average, or learned by Newton steps.",
        **_SPECIAL,
    )
    log_normalizer_rate: float = fields.number(
        0.1, 1e-6, 1.0, "Rate of ema or newton.", beside={"log_normalizer": ("batch",)}, **_SPECIAL
    )
    conditional: bool = fields.switch(
        False,
        "Generate by class; the critic sees the labels, steingan's by the joint energy of eq. "
        "(15).",
        **_CRITIC,
    )
    margin: float = fields.not_negative(
        0.2,
        "Cross entropy of labels below which nothing is gained.",
        beside={"conditional": (False,)},
        **_CRITIC,
    )


def preset(default: str | None = None) -> Any:
    """Declares the name of a preset."""
    return fields.choice(default, PRESETS, "Settings of a paper; other flags override them.")


def configured(given: Mapping[str, Any], name: str | None) -> Config:
    """Returns the defaults, overridden by a preset, overridden by the values that were given."""
    return fields.pick(Config, {**(PRESETS[name] if name else {}), **given})


def variants(default: tuple[str, ...]) -> Any:
    """Declares a list of objectives to compare, each a :func:`variant`."""
    return fields.words(
        default,
        "Objectives to compare, those of --objective; all: those whose extra is installed. "
        "objective@features, joined by +, is one that sees other --features; "
        "objective:setting=value one with another setting, such as kl:ridge=40.",
        every=objectives.installed,
    )


def variant(base: Config, text: str) -> Config:
    """Returns the settings under another objective, which may bring features and settings.

    Args:
      base: the settings of all that are compared.
      text: objective@features:setting=value:setting=value, but for what is left as it is; features
        and the items of a list are joined by +.

    Raises:
      UsageError: an unknown objective or setting, a value that it may not have, one given twice or
        to an objective that does not read it, or a text too long for the name of a folder.
    """
    first, *changes = text.split(":")
    name, at, features = first.partition("@")
    check_objective(name)
    own = [("objective", name), *map(_setting, changes)]
    if at:
        own.append(("features", tuple(features.split("+"))))
    config = dataclasses.replace(base, **dict(own))
    if len(dict(own)) < len(own):
        raise UsageError(f"objectives: got {fields.shown(text)}; expected each setting once")
    unread.refuse(dict(own), [config])
    if len(text.encode()) > _LONGEST_NAME:
        raise UsageError(
            f"objectives: got {fields.shown(text)}; expected at most {_LONGEST_NAME} bytes, for it "
            "names a folder"
        )
    return config


def _setting(change: str) -> tuple[str, Any]:
    """Returns name and value of a setting that one of several objectives has for itself."""
    name, _, text = change.partition("=")
    rules = {k: v for k, v in fields.rules(Config).items() if k not in _COMMON}
    if name not in rules:
        nearest = difflib.get_close_matches(name, list(rules), n=1, cutoff=0)[0]
        raise UsageError(
            f"objectives: got the setting {fields.shown(name)}; expected one that runs to be "
            f"compared may differ in, such as {nearest}=..."
        )
    return name, rules[name].parse(name, text.replace("+", ",") if rules[name].many else text)


def critic_steps(config: Config) -> int:
    """Returns the critic's steps before each step of the generator; 0 without a critic."""
    default = OBJECTIVES[config.objective].critic_steps
    return config.critic_steps if config.critic_steps and default else default


def rows_per_step(config: Config) -> int:
    """Returns how many examples a step takes: a batch for each step of a critic."""
    return config.batch_size * max(1, critic_steps(config))


def normalizes(config: Config) -> bool:
    """Returns whether the direction is divided by its root mean square."""
    default = OBJECTIVES[config.objective].normalize
    return default if config.normalize is None else config.normalize


def sees_features(config: Config) -> bool:
    """Returns whether the objective sees anything but the samples themselves."""
    return config.features != (extractors.PIXELS,)


def anneals(config: Config) -> bool:
    """Returns whether samples and data get noise, which falls over the steps."""
    return config.noise_variance > 0 and not OBJECTIVES[config.objective].has_own_noise


def resident_bytes(config: Config) -> float:
    """Returns the size up to which a data set lives in memory and on the device."""
    return config.resident_gib * 2**30


def free_fields(*configs: Config) -> tuple[str, ...]:
    """Returns what may differ when runs are resumed.

    That is what none of them reads, and their length, unless something falls over it.
    """
    falls = any(
        (anneals(config) and config.noise_steps is None) or config.schedule != "constant"
        for config in configs
    )
    return (*unread.among(configs), *(() if falls else ("num_steps",)))


def check_objective(name: str) -> None:
    """Raises UsageError for an objective that there is not."""
    fields.rules(Config)["objective"].check("objective", name)


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
    if config.warmup is not None and config.warmup >= config.num_steps:
        raise UsageError(
            f"warmup: got {config.warmup}; expected fewer than the {config.num_steps} of num_steps"
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
    choice = OBJECTIVES[config.objective]
    if not choice.is_installed:
        raise UsageError(
            f"objective: got {config.objective} without the extra {choice.extra}; expected it "
            f"installed. pip install '.[experiments,{choice.extra}]'"
        )
    for name in choice.needs:
        if getattr(config, name) == 0:
            raise UsageError(f"{name}: got 0.0 for {config.objective}; expected a number > 0")
    if config.conditional and not choice.critic_steps:
        known = [name for name, other in OBJECTIVES.items() if other.critic_steps]
        raise UsageError(
            f"conditional: got objective {config.objective}, without a critic to see the labels; "
            f"expected one of {', '.join(known)}"
        )
    if config.conditional and sees_features(config):
        raise UsageError(
            f"features: got {','.join(config.features)} with --conditional; expected "
            f"{extractors.PIXELS} alone, for the networks see no labels"
        )
    if config.conditional and config.noise_variance:
        raise UsageError(
            f"noise_variance: got {config.noise_variance} with --conditional; expected 0, for the "
            "noise would blur the labels"
        )
