"""The table of objectives: what a generator may descend, and all that is special about each.

The functions of a row take what they need by keyword: settings of a run, fields of
:class:`experiments.training.settings.Config`. Nothing else knows an objective by its name.
"""

import functools
import math
import operator
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import optax

from experiments.networks import critics
from experiments.training import choices
from experiments.training.choices import Choice
from kernelgrad import adversarial, critic, kale, kernels, objectives, steingan, svgd, two_player
from kernelgrad.objectives import MakeKernel, Objective
from kernelgrad.two_player import TwoPlayer

PENALTIES = {
    "two_sided": adversarial.gradient_penalty,
    "one_sided": adversarial.one_sided_gradient_penalty,
    "zero_centred": adversarial.zero_centred_gradient_penalty,
}
TRACKS = {"batch": None, "ema": kale.ema_step, "newton": kale.newton_step}
FIELDS: dict[str, steingan.FieldFn] = {
    "svgd": svgd.svgd_direction,
    "row_normalized": steingan.row_normalized_direction,
    "one_pass": steingan.one_pass_direction,
    "nearest": steingan.nearest_direction,
}
FREEZES = {"one_sided": False, "two_sided": True}
FEATURE_LENGTHSCALES: dict[str, steingan.LengthscaleFn] = {
    "half_median": steingan.half_median,
    "half_svgd": steingan.half_svgd,
}

SELECTED_RIDGES = (0.01, 0.1, 1.0)  # of which --select takes the best
UNDER_A_KERNEL = ("kl", "mmd")  # what paper 000 compares


# ------------------------------------------------------------------------------------- directions


def _median(family: str, scales: tuple[float, ...]) -> MakeKernel:
    return functools.partial(kernels.median_mixture, kernels.FAMILIES[family], scales=scales)


def _kl(*, kernel: str, kernel_scales: tuple[float, ...], ridge: float | None) -> Objective:
    return objectives.kl(_median(kernel, kernel_scales), ridge=ridge)


def _mmd(*, kernel: str, kernel_scales: tuple[float, ...]) -> Objective:
    return objectives.mmd_v(_median(kernel, kernel_scales))


def _kernel(*, kernel: str, kernel_scales: tuple[float, ...]) -> MakeKernel:
    return _median(kernel, kernel_scales)


def _noisy_jsd(*, noise_variance: float) -> Objective:
    return objectives.noisy_jsd(variance=noise_variance)


def _ratio(
    make: Callable[..., Objective],
    family: str,
    scales: tuple[float, ...],
    select: bool,
    **options: Any,
) -> Objective:
    """A ratio of the mixture of all scales, or of the one of them that is best for the batch."""
    if not select:
        return make(_median(family, scales), **options)
    factors = _roots(scales)
    return make(_median(family, (1.0,)), lengthscale_factors=factors, **options)


def _ridge(ridge: float | None, select: bool) -> dict[str, Any]:
    return {"ridge": SELECTED_RIDGES} if select and ridge is None else _given(ridge=ridge)


def _ratio_ulsif(
    *, kernel: str, kernel_scales: tuple[float, ...], ridge: float | None, select: bool
) -> Objective:
    make = objectives.ratio_ulsif
    return _ratio(make, kernel, kernel_scales, select, **_ridge(ridge, select))


def _ratio_rulsif(
    *,
    kernel: str,
    kernel_scales: tuple[float, ...],
    ridge: float | None,
    select: bool,
    alpha: float,
) -> Objective:
    make = functools.partial(objectives.ratio_rulsif, alpha=alpha)
    return _ratio(make, kernel, kernel_scales, select, **_ridge(ridge, select))


def _ratio_kliep(*, kernel: str, kernel_scales: tuple[float, ...], select: bool) -> Objective:
    return _ratio(objectives.ratio_kliep, kernel, kernel_scales, select)


def _ratio_logistic(
    *, kernel: str, kernel_scales: tuple[float, ...], ridge: float | None, select: bool
) -> Objective:
    make = objectives.ratio_logistic
    return _ratio(make, kernel, kernel_scales, select, **_ridge(ridge, select))


def _drift(*, temperatures: tuple[float, ...]) -> Objective:
    return objectives.drift(temperatures)


def _conservative_drift(*, kernel: str, kernel_scales: tuple[float, ...]) -> Objective:
    return objectives.conservative_drift(_median(kernel, kernel_scales))


def _sliced_energy(*, num_projections: int) -> Objective:
    return objectives.sliced_energy(num_projections)


def _sinkhorn(*, epsilon: float) -> Objective:
    return objectives.sinkhorn(epsilon)


def _noisy_mmd(*, kernel: str, kernel_scales: tuple[float, ...], noise_scale: float) -> Objective:
    return objectives.noisy_mmd(_median(kernel, kernel_scales), noise_scale=noise_scale)


def _f_divergence(
    *, kernel: str, kernel_scales: tuple[float, ...], ridge: float | None, divergence: str
) -> Objective:
    return objectives.f_divergence(divergence, _median(kernel, kernel_scales), ridge=ridge)


def _kale_flow(
    *, kernel: str, kernel_scales: tuple[float, ...], regularization: float
) -> Objective:
    return objectives.kale_flow(_median(kernel, kernel_scales), regularization=regularization)


def _wgan_gp(*, penalty: str | None, penalty_weight: float | None) -> TwoPlayer:
    slopes = penalty and PENALTIES[penalty]
    return two_player.wgan_gp(**_given(penalty=slopes, weight=penalty_weight))


def _kale(
    *,
    penalty: str | None,
    penalty_weight: float | None,
    log_normalizer: str,
    log_normalizer_rate: float,
) -> TwoPlayer:
    track = TRACKS[log_normalizer]
    if track is not None:
        track = functools.partial(track, rate=log_normalizer_rate)
    slopes = penalty and PENALTIES[penalty]
    return two_player.kale(**_given(penalty=slopes, penalty_weight=penalty_weight), track=track)


def _steingan(
    *,
    discount: float,
    leading_discount: float | None,
    stein_field: str,
    feature_lengthscale: str,
    freeze: str,
    freeze_threshold: float,
) -> TwoPlayer:
    return steingan.steingan(
        discount=discount,
        leading_discount=leading_discount,
        field=FIELDS[stein_field],
        lengthscale=FEATURE_LENGTHSCALES[feature_lengthscale],
        threshold=freeze_threshold,
        two_sided=FREEZES[freeze],
    )


def _between_features(
    make: Callable[..., TwoPlayer],
    family: str,
    scales: tuple[float, ...],
    penalty: str | None,
    **options: Any,
) -> TwoPlayer:
    """The features' unit is learned, and the scales are those of the kernel as it is."""
    kernel = kernels.FAMILIES[family](_roots(scales))
    slopes = penalty and PENALTIES[penalty]
    return make(make_kernel=lambda x, y, *, axis_name: kernel, **_given(penalty=slopes, **options))


def _mmd_gan(
    *,
    kernel: str,
    kernel_scales: tuple[float, ...],
    penalty: str | None,
    penalty_weight: float | None,
) -> TwoPlayer:
    make = two_player.mmd_gan
    return _between_features(make, kernel, kernel_scales, penalty, penalty_weight=penalty_weight)


def _mmd_power(
    *,
    kernel: str,
    kernel_scales: tuple[float, ...],
    penalty: str | None,
    penalty_weight: float | None,
) -> TwoPlayer:
    make = two_player.mmd_power
    return _between_features(make, kernel, kernel_scales, penalty, penalty_weight=penalty_weight)


def _kl_adversarial(
    *,
    kernel: str,
    kernel_scales: tuple[float, ...],
    ridge: float | None,
    penalty: str | None,
    penalty_weight: float | None,
) -> TwoPlayer:
    return _between_features(
        two_player.kl_adversarial,
        kernel,
        kernel_scales,
        penalty,
        penalty_weight=penalty_weight,
        ridge=ridge,
    )


def _roots(scales: tuple[float, ...]) -> list[Any]:
    """Returns the roots of numbers, which a sweep may trace."""
    return [math.sqrt(scale) if isinstance(scale, float) else jnp.sqrt(scale) for scale in scales]


def _given(**options: Any) -> dict[str, Any]:
    """Returns what is not None; the library's own defaults stand in for the rest."""
    return {name: value for name, value in options.items() if value is not None}


# ---------------------------------------------------------------------------------------- critics


def _kale_network(
    shape: tuple[int, ...],
    axis_name: str | None = None,
    *,
    width: int,
    spectral_norm: bool,
    conditional: bool,
    log_normalizer: str,
) -> nn.Module:
    network = choices.penalized_network(
        shape, axis_name, width=width, spectral_norm=spectral_norm, conditional=conditional
    )
    return network if TRACKS[log_normalizer] is None else critics.TrackedNormalizer(network)


def _kale_optimizer(
    optimizer: optax.GradientTransformation, *, log_normalizer: str
) -> optax.GradientTransformation:
    """The log-normaliser's gradient is its own next step."""
    if TRACKS[log_normalizer] is None:
        return optimizer
    return optax.partition(
        {"network": optimizer, "log_normalizer": optax.sgd(1.0)},
        lambda params: {name: name for name in params},
    )


def _controlled(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The controller that keeps the energy aligned scales what the optimizer returns."""
    return optax.chain(optimizer, critic.scale_by_info(lambda info: info["rate_factor"]))


# -------------------------------------------------------------------------------------- the table


OBJECTIVES = {
    "kl": Choice(
        "KL[q || p] by Stein score estimates (paper 000)",
        _kl,
        kernel_scales=choices.LOCAL_SCALES,
        normalize=True,
    ),
    "mmd": Choice(
        "MMD^2 (paper 000's baseline)",
        _mmd,
        kernel_scales=choices.LOCAL_SCALES,
        normalize=True,
    ),
    "gan_saturating": Choice(
        "E log(1 - D): Jensen-Shannon, gradients vanish",
        two_player.gan_saturating,
        critic_steps=1,
        energy=operator.neg,
    ),
    "gan_non_saturating": Choice(
        "-E log D: the usual GAN",
        two_player.gan_non_saturating,
        critic_steps=1,
        energy=operator.neg,
    ),
    "gan_kl": Choice(
        "E log((1 - D) / D): KL[q || p] (paper 001)",
        two_player.gan_kl,
        critic_steps=1,
        energy=operator.neg,
    ),
    "wgan_clip": Choice(
        "Wasserstein, critic with clipped weights",
        two_player.wgan_clip,
        critic_steps=5,
        energy=operator.neg,
    ),
    "wgan_gp": Choice(
        "Wasserstein, critic with a gradient penalty",
        _wgan_gp,
        critic_steps=5,
        network=choices.penalized_network,
        energy=operator.neg,
        needs={"penalty_weight": 0.1},  # as in the toys of Gulrajani et al.; 10 is for images
    ),
    "hinge": Choice(
        "hinge loss, critic with spectral normalisation",
        two_player.hinge,
        critic_steps=1,
        spectral_norm=True,
        energy=operator.neg,
    ),
    "steingan": Choice(
        "KL[q || exp(-energy)] by SVGD; the energy, an autoencoder's, by maximum likelihood "
        "(paper 003)",
        _steingan,
        critic_steps=1,
        critic_rate=0.1,
        network=choices.energy_network,
        optimizer=_controlled,
        energy=operator.itemgetter(0),
        batchwise=True,
    ),
    "kale": Choice(
        "KL[data || samples] by KALE, with an energy on top of the generator (paper 004)",
        _kale,
        critic_steps=1,
        network=_kale_network,
        optimizer=_kale_optimizer,
        energy=lambda output: output[0] if isinstance(output, tuple) else output,
        batchwise=True,
        fits_kale=True,
    ),
    "mmd_gan": Choice(
        "MMD^2 between features that are trained to raise it",
        _mmd_gan,
        critic_steps=1,
        network=choices.feature_network,
        batchwise=True,
    ),
    "mmd_power": Choice(
        "MMD^2 between features that are trained for the power of its test",
        _mmd_power,
        critic_steps=1,
        network=choices.feature_network,
        batchwise=True,
    ),
    "kl_adversarial": Choice(
        "KL[q || p] of features that are trained against it (paper 000, section 4)",
        _kl_adversarial,
        critic_steps=1,
        network=choices.feature_network,
        batchwise=True,
    ),
    "noisy_jsd": Choice(
        "JSD of both clouds under noise, no network (paper 002, Theorem 3.2)",
        _noisy_jsd,
        needs={"noise_variance": 0.01},
    ),
    "ratio_ulsif": Choice("log q / p, ratio by least squares (paper 001)", _ratio_ulsif),
    "ratio_rulsif": Choice(
        "log q / m, m a mixture of p and q, ratio by least squares: Jensen-Shannon (paper 001)",
        _ratio_rulsif,
    ),
    "ratio_kliep": Choice("log q / p, ratio by maximum likelihood (paper 001)", _ratio_kliep),
    "ratio_logistic": Choice(
        "log q / p, ratio by logistic regression (paper 001)", _ratio_logistic
    ),
    "drift": Choice("the drifting field (Deng et al. 2026)", _drift),
    "conservative_drift": Choice(
        "log q / p, both sums of kernels: the drifting field that has a potential",
        _conservative_drift,
    ),
    "energy_distance": Choice("2 E|x - y| - E|x - x'| - E|y - y'|", objectives.energy_distance),
    "sliced_energy": Choice("the energy distance along random lines", _sliced_energy),
    "sinkhorn": Choice(
        "the Sinkhorn divergence of the squared distance (the extra ott)", _sinkhorn, extra="ott"
    ),
    "noisy_mmd": Choice("MMD^2, its gradient taken at noised samples (Arbel et al.)", _noisy_mmd),
    "f_divergence": Choice("a --divergence, from Stein scores and a density ratio", _f_divergence),
    "kale_flow": Choice("KALE in an RKHS, between KL and MMD (Glaser et al. 2021)", _kale_flow),
}


OWN_NOISE = tuple(name for name, choice in OBJECTIVES.items() if choice.has_own_noise)


class UnderAKernel(NamedTuple):
    """Kernel and directions of :data:`UNDER_A_KERNEL`, by the settings of one run.

    Attributes:
      make_kernel: the kernel of a batch.
      kl: the direction of KL[q || p] under it, not normalised.
      mmd: that of MMD^2.
    """

    make_kernel: MakeKernel
    kl: Objective
    mmd: Objective


def under_a_kernel(config: Any) -> UnderAKernel | None:
    """Returns what a run that descends one of the two says of both; None for another run."""
    if config.objective not in UNDER_A_KERNEL:
        return None
    call = OBJECTIVES[config.objective].call
    return UnderAKernel(call(_kernel, config), call(_kl, config), call(_mmd, config))


def installed() -> tuple[str, ...]:
    """Returns the objectives whose extra is there, or that need none."""
    return tuple(name for name, choice in OBJECTIVES.items() if choice.is_installed)


def reading(setting: str) -> list[str]:
    """Returns the objectives that read a setting."""
    return [name for name, choice in OBJECTIVES.items() if setting in choice.settings]


def in_words(of_row: Callable[[Choice], Any], readers: Sequence[str] = tuple(OBJECTIVES)) -> str:
    """Returns what rows of the table say by default, the usual value last, in words."""
    values = {name: of_row(OBJECTIVES[name]) for name in readers}
    usual = statistics.mode(values.values())
    named: dict[Any, list[str]] = {}
    for name, value in values.items():
        named.setdefault(value, []).append(name)
    rare = "".join(f"{v} for {' and '.join(names)}, " for v, names in named.items() if v != usual)
    return f"{rare}else {usual}".lower()
