"""One row for every public function: how to call it, on what, and how its values scale."""

import dataclasses
import inspect
import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import kernelgrad
from kernelgrad import (
    adversarial,
    chains,
    fssd,
    hmc,
    kale,
    kernels,
    kmm,
    ksd,
    langevin,
    median,
    metrics,
    mmd,
    noise,
    objectives,
    pairwise,
    pullback,
    ratio,
    ratio_selection,
    score,
    score_peers,
    steingan,
    svgd,
    two_player,
)
from kernelgrad import latent as latent_module

# What kind of array an argument is, by its name; points if it is not here.
KINDS = {
    **dict.fromkeys(["score", "direction"], "score"),
    **dict.fromkeys(["weights"], "columns"),
    **dict.fromkeys(["gradient_weights", "offset"], "vector"),
    **dict.fromkeys(["real_logits", "fake_logits", "real_values", "fake_values"], "vector"),
    **dict.fromkeys(["energy_data", "energy_base", "energy_chain", "energy_samples"], "vector"),
    **dict.fromkeys(["energy", "log_base"], "vector"),
    **dict.fromkeys(["mean1", "mean2"], "mean"),
    **dict.fromkeys(["cov1", "cov2"], "covariance"),
    **dict.fromkeys(["lengthscales"], "grid"),
    "latent": "latent",
    "place": "place",
    "params": "latent",
    "normal_latents": "unitless",
    "probs": "probabilities",
    "labels": "labels",
}
POWERS = {"points": 1, "place": 1, "score": -1, "mean": 1, "covariance": 2, "grid": 1}  # else 0


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a row is called with besides its arrays."""

    unit: float = 1.0
    number: Callable[[float], Any] = float  # what hyperparameters are made of
    axis_name: str | None = None

    @property
    def key(self):
        return jax.random.key(3)

    @property
    def kernel(self):
        return kernels.imq_mixture(self.number(1.5 * self.unit))

    @property
    def gaussian(self):
        return kernels.rbf_mixture(self.number(1.5 * self.unit))

    def log_density(self, x):
        """A Gaussian's, of any pytree."""
        return sum(-jnp.sum(jnp.square(leaf / self.unit)) / 2 for leaf in jax.tree.leaves(x))


@dataclasses.dataclass(frozen=True)
class Row:
    """A public function.

    Attributes:
      call: of a Setting and the arrays.
      names: of the arrays.
      powers: of the unit of length in the outputs; an int for all, or one for each leaf. None:
        the formula has no unit of length.
      spread: with axis_name, whether outputs are this device's rows or the same on all devices;
        for each leaf, or one for all. None: there is no axis_name.
      smooth: whether there is a gradient in the arrays.
      least: fewest points.
    """

    call: Callable[..., Any]
    names: tuple[str, ...]
    powers: int | tuple[int, ...] | None
    spread: str | tuple[str, ...] | None = None
    smooth: bool = True
    least: int = 1


TABLE: dict[str, Row] = {}


def row(function, names, call, powers=0, **properties):
    """Adds a row."""
    TABLE[function] = Row(call, tuple(names.split()), powers, **properties)


def example(names, rng, *, n=10, d=3, dtype=np.float32, unit=1.0, offset=0.0):
    """Returns float arrays for arguments of these names."""
    arrays = {}
    for name in names:
        kind = KINDS.get(name, "points")
        value = {
            "points": lambda: rng.normal(size=(n, d)) + offset,
            "unitless": lambda: rng.normal(size=(n, d)),
            "score": lambda: rng.normal(size=(n, d)),
            "columns": lambda: rng.normal(size=(n, 2)),
            "vector": lambda: rng.normal(size=n),
            "mean": lambda: rng.normal(size=d),
            "covariance": lambda: np.cov(rng.normal(size=(d, d + 5))).reshape(d, d),
            "grid": lambda: np.array([1.0, 2.0]),
            "latent": lambda: rng.normal(size=d),
            "place": lambda: rng.normal(size=d),
            "probabilities": lambda: rng.dirichlet(np.ones(d), size=n),
            "labels": lambda: rng.integers(0, 4, size=n),
        }[kind]()
        if kind == "labels":
            arrays[name] = value.astype(np.int32)
        else:
            arrays[name] = (value * unit ** POWERS.get(kind, 0)).astype(dtype)
    return arrays


def public_functions():
    """Yields module.function for every public function of the library."""
    for info in pkgutil.iter_modules(kernelgrad.__path__):
        if info.name.startswith("_"):
            continue
        module = import_module(f"kernelgrad.{info.name}")
        for name, value in vars(module).items():
            own = inspect.isfunction(value) and value.__module__ == module.__name__
            if own and not name.startswith("_"):
                yield f"{info.name}.{name}"


# Public functions without a row, and why.
ELSEWHERE = {
    **dict.fromkeys(
        [f"kernels.{make.__name__}" for make in kernels.FAMILIES.values()]
        + ["kernels.feature_kernel", "score.default_ridge"],
        "takes numbers, no points",
    ),
    **dict.fromkeys(
        [f"critic.{n}" for n in ("init", "scale_by_info", "bind", "step", "train")]
        + [f"train.{n}" for n in ("init", "make_train_step", "scan_resident", "scan_batches")]
        + [f"train.{n}" for n in ("pmap_train_step", "replicate", "unreplicate")]
        + ["train.as_unit_interval"],
        "trains networks",
    ),
    "two_player.on_batches": "wraps a function of arrays",
}

# ------------------------------------------------------------------------------ sums and kernels

row("pairwise.squared_distances", "x y", lambda e, x, y: pairwise.squared_distances(x, y), 2)
row(
    "pairwise.kernel_sum",
    "x y weights offset",
    lambda e, x, y, weights, offset: pairwise.kernel_sum(
        e.kernel, x, y, weights, offsets=(offset, offset), axis_name=e.axis_name
    ),
    spread="rows",
)
row(
    "pairwise.gradient_sum",
    "x y gradient_weights",
    lambda e, x, y, gradient_weights: pairwise.gradient_sum(
        e.kernel, x, y, gradient_weights, axis_name=e.axis_name
    ),
    -1,
    spread="rows",
)
row(
    "pairwise.kernel_and_gradient_sum",
    "x y weights gradient_weights",
    lambda e, x, y, weights, gradient_weights: pairwise.kernel_and_gradient_sum(
        e.kernel, x, y, weights, gradient_weights, axis_name=e.axis_name
    ),
    (0, -1),
    spread="rows",
)
row(
    "pairwise.stein_sum",
    "x score gradient_weights",
    lambda e, x, score, gradient_weights: pairwise.stein_sum(
        e.gaussian, x, None, score, gradient_weights, axis_name=e.axis_name
    ),
    -1,
    spread="rows",
)
row("kernels.gram", "x y", lambda e, x, y: kernels.gram(e.kernel, x, y))
row(
    "kernels.median_lengthscale",
    "x y",
    lambda e, x, y: kernels.median_lengthscale(x, y, axis_name=e.axis_name),
    1,
    spread="same",
    smooth=False,
)
row(
    "kernels.svgd_lengthscale",
    "x",
    lambda e, x: kernels.svgd_lengthscale(x, axis_name=e.axis_name),
    1,
    spread="same",
    smooth=False,
    least=2,
)
row(
    "kernels.median_mixture",
    "x y",
    lambda e, x, y: (
        kernels.median_mixture(kernels.imq_mixture, x, y, axis_name=e.axis_name).lengthscales
    ),
    1,
    spread="same",
    smooth=False,
)
row(
    "median.median_squared_distance",
    "x y",
    lambda e, x, y: median.median_squared_distance(x, y, axis_name=e.axis_name),
    2,
    spread="same",
    smooth=False,
)

# --------------------------------------------------------------------------------------- scores

row(
    "score.stein_score",
    "samples",
    lambda e, samples: score.stein_score(
        samples, e.kernel, ridge=e.number(0.5), axis_name=e.axis_name
    ),
    -1,
    spread="rows",
)
row(
    "score.stein_score_at",
    "queries samples",
    lambda e, queries, samples: score.stein_score_at(
        queries, samples, e.kernel, ridge=e.number(0.5), axis_name=e.axis_name
    ),
    -1,
    spread="rows",
)
row(
    "score.rkhs_score_at",
    "queries samples",
    lambda e, queries, samples: score.rkhs_score_at(
        queries, samples, e.kernel, ridge=e.number(0.5)
    ),
    -1,
)
row(
    "score_peers.spectral_score",
    "samples",
    lambda e, samples: score_peers.spectral_score(samples, e.kernel, mass_fraction=e.number(0.9)),
    -1,
)
row(
    "score_peers.spectral_score_at",
    "queries samples",
    lambda e, queries, samples: score_peers.spectral_score_at(
        queries, samples, e.kernel, mass_fraction=e.number(0.9)
    ),
    -1,
)
row(
    "score_peers.nu_method_score",
    "samples",
    lambda e, samples: score_peers.nu_method_score(
        samples, e.kernel, num_steps=3, nu=e.number(1.0)
    ),
    -1,
)
row(
    "score_peers.nu_method_score_at",
    "queries samples",
    lambda e, queries, samples: score_peers.nu_method_score_at(
        queries, samples, e.kernel, num_steps=3, nu=e.number(1.0)
    ),
    -1,
)
row(
    "score_peers.kde_score",
    "samples",
    lambda e, samples: score_peers.kde_score(samples, e.kernel),
    -1,
)
row(
    "score_peers.kde_score_at",
    "queries samples",
    lambda e, queries, samples: score_peers.kde_score_at(queries, samples, e.gaussian),
    -1,
)

# ------------------------------------------------------------------------ discrepancies and tests

row(
    "mmd.mmd_v_statistic",
    "x y",
    lambda e, x, y: mmd.mmd_v_statistic(x, y, e.kernel, axis_name=e.axis_name),
    spread="same",
)
row(
    "mmd.mmd_u_statistic",
    "x y",
    lambda e, x, y: mmd.mmd_u_statistic(x, y, e.kernel, axis_name=e.axis_name),
    spread="same",
    least=2,
)
row(
    "mmd.mmd_gradient",
    "x y",
    lambda e, x, y: mmd.mmd_gradient(x, y, e.kernel, axis_name=e.axis_name),
    -1,
    spread="rows",
)
row(
    "mmd.mmd_value_and_gradient",
    "x y",
    lambda e, x, y: mmd.mmd_value_and_gradient(x, y, e.kernel, axis_name=e.axis_name),
    (0, -1),
    spread=("same", "rows"),
)
row(
    "mmd.two_sample_test",
    "x y",
    lambda e, x, y: mmd.two_sample_test(e.key, x, y, e.kernel, num_permutations=19),
    smooth=False,
)
row(
    "ksd.stein_gram",
    "particles score",
    lambda e, particles, score: ksd.stein_gram(particles, score, e.kernel),
    -2,
)
row(
    "ksd.ksd_v_statistic",
    "particles score",
    lambda e, particles, score: ksd.ksd_v_statistic(
        particles, score, e.kernel, axis_name=e.axis_name
    ),
    -2,
    spread="same",
)
row(
    "ksd.ksd_u_statistic",
    "particles score",
    lambda e, particles, score: ksd.ksd_u_statistic(
        particles, score, e.kernel, axis_name=e.axis_name
    ),
    -2,
    spread="same",
    least=2,
)
row(
    "ksd.ksd_gradient",
    "particles",
    lambda e, particles: ksd.ksd_gradient(particles, lambda x: -x / e.unit / e.unit, e.kernel),
    -3,
)
row(
    "ksd.goodness_of_fit_test",
    "particles score",
    lambda e, particles, score: ksd.goodness_of_fit_test(
        e.key, particles, score, e.kernel, num_bootstrap=19
    ),
    (-2, 0),
    smooth=False,
    least=6,
)
row(
    "ksd.stein_thinning",
    "particles score",
    lambda e, particles, score: ksd.stein_thinning(particles, score, e.kernel, num_points=4),
    smooth=False,
)
row(
    "fssd.fssd_u_statistic",
    "particles score locations",
    lambda e, particles, score, locations: fssd.fssd_u_statistic(
        particles, score, e.kernel, locations
    ),
    -2,
    least=2,
)
row(
    "fssd.goodness_of_fit_test",
    "particles score",
    lambda e, particles, score: fssd.goodness_of_fit_test(
        e.key,
        particles,
        score,
        e.kernel,
        num_locations=1,
        num_starts=2,
        num_steps=2,
        step_size=e.number(0.1),
        num_simulations=19,
    ),
    (-2, 0, 1),
    smooth=False,
    least=10,
)
row(
    "chains.stein_test",
    "positions",
    lambda e, positions: chains.stein_test(
        e.key, positions, e.log_density, e.kernel, num_bootstrap=19
    ),
    (-2, 0, 0),
    smooth=False,
    least=10,
)
row(
    "chains.stein_block_length",
    "particles score",
    lambda e, particles, score: chains.stein_block_length(particles, score),
    smooth=False,
)

# ------------------------------------------------------------------------------------- particles

row(
    "svgd.svgd_direction",
    "particles score",
    lambda e, particles, score: svgd.svgd_direction(
        particles, score, e.kernel, axis_name=e.axis_name
    ),
    -1,
    spread="rows",
)
row(
    "svgd.kernel_noise",
    "particles",
    lambda e, particles: svgd.kernel_noise(e.key, particles, e.kernel),
)
row(
    "svgd.init", "particles", lambda e, particles: svgd.init(particles, optax.sgd(0.1)).particles, 1
)


def _svgd_step(e, particles):
    optimizer = optax.sgd(0.1 * e.unit * e.unit)
    state = svgd.SVGDState(particles, optimizer.init(particles))
    state, info = svgd.step(
        state, lambda x: -x / e.unit / e.unit, e.kernel, optimizer, axis_name=e.axis_name
    )
    return state.particles, *info


row("svgd.step", "particles", _svgd_step, (1, -1, 0), spread=("rows", "same", "same"))

# ---------------------------------------------------------------------------------------- ratios


for function, power in (
    (ratio.density_ratio, 0),
    (ratio.log_density_ratio, 0),
    (ratio.log_ratio_gradient, -1),
):
    row(
        f"ratio.{function.__name__}",
        "x p q",
        lambda e, x, p, q, f=function: f(ratio.rulsif(p, q, e.kernel, ridge=e.number(0.5)), x),
        power,
    )
for function, options in (
    (ratio.ulsif, {"ridge": 0.5}),
    (ratio.rulsif, {"ridge": 0.5, "alpha": 0.1}),
    (ratio.lsif, {"ridge": 0.5, "tolerance": 1e-4}),
    (ratio.kliep, {"tolerance": 1e-3}),
    (ratio.logistic, {"ridge": 0.5, "tolerance": 1e-6}),
):
    row(
        f"ratio.{function.__name__}",
        "p q centers",
        lambda e, p, q, centers, f=function, options=options: f(
            p,
            q,
            e.kernel,
            centers=centers,
            axis_name=e.axis_name,
            **{k: e.number(v) for k, v in options.items()},
        )[2],
        spread="same",
        smooth=function in (ratio.ulsif, ratio.rulsif),
    )
row(
    "ratio_selection.select",
    "lengthscales",
    lambda e, lengthscales: ratio_selection.select(lambda l: (l / e.unit - 1.9) ** 2, lengthscales),
    (1, 0),
    smooth=False,
)
row(
    "ratio_selection.rulsif_loo",
    "p q centers",
    lambda e, p, q, centers: ratio_selection.rulsif_loo(
        p, q, e.kernel, ridge=e.number(0.5), alpha=e.number(0.1), centers=centers
    ),
    least=2,
)
row(
    "ratio_selection.kliep_cv",
    "p q",
    lambda e, p, q: ratio_selection.kliep_cv(p, q, e.kernel, num_folds=2, tolerance=e.number(1e-3)),
    smooth=False,
    least=2,
)
row(
    "ratio_selection.logistic_cv",
    "p q",
    lambda e, p, q: ratio_selection.logistic_cv(p, q, e.kernel, ridge=e.number(0.5), num_folds=2),
    smooth=False,
    least=2,
)
row(
    "kmm.kernel_mean_matching",
    "p q",
    lambda e, p, q: kmm.kernel_mean_matching(
        p, q, e.kernel, max_weight=e.number(5.0), tolerance=e.number(0.1), num_steps=20
    ),
    smooth=False,
)

# ------------------------------------------------------------------------------ energies and GANs

row(
    "kale.kale",
    "energy_data energy_base",
    lambda e, energy_data, energy_base: kale.kale(energy_data, energy_base, e.number(0.2)),
    None,
)
row(
    "kale.donsker_varadhan",
    "energy_data energy_base",
    lambda e, energy_data, energy_base: kale.donsker_varadhan(
        energy_data, energy_base, axis_name=e.axis_name
    ),
    None,
    spread="same",
)
row(
    "kale.generator_weights",
    "energy_base",
    lambda e, energy_base: kale.generator_weights(energy_base, e.number(0.2)),
    None,
    smooth=False,
)
row(
    "kale.contrastive_divergence_loss",
    "energy_data energy_chain",
    lambda e, energy_data, energy_chain: kale.contrastive_divergence_loss(
        energy_data, energy_chain
    ),
    None,
)
row(
    "kale.optimal_log_normalizer",
    "energy_base",
    lambda e, energy_base: kale.optimal_log_normalizer(energy_base, axis_name=e.axis_name),
    None,
    spread="same",
)
for function in (kale.ema_step, kale.newton_step):
    row(
        f"kale.{function.__name__}",
        "energy_base",
        lambda e, energy_base, f=function: f(
            e.number(0.2), energy_base, rate=e.number(0.3), axis_name=e.axis_name
        ),
        None,
        spread="same",
        smooth=False,
    )
row(
    "kale.log_normalizer_estimate",
    "energy_base",
    lambda e, energy_base: kale.log_normalizer_estimate(energy_base, axis_name=e.axis_name),
    None,
    spread="same",
    least=2,
)
row(
    "kale.log_density",
    "energy log_base",
    lambda e, energy, log_base: kale.log_density(energy, log_base, e.number(0.2)),
    None,
)
for function in (adversarial.saturating_loss, adversarial.non_saturating_loss, adversarial.kl_loss):
    row(
        f"adversarial.{function.__name__}",
        "fake_logits",
        lambda e, fake_logits, f=function: f(fake_logits),
        None,
    )
for function in (
    adversarial.discriminator_loss,
    adversarial.hinge_discriminator_loss,
    adversarial.jsd_estimate,
):
    row(
        f"adversarial.{function.__name__}",
        "real_logits fake_logits",
        lambda e, real_logits, fake_logits, f=function: f(real_logits, fake_logits),
        None,
    )
row(
    "adversarial.kl_estimate",
    "real_logits fake_logits",
    lambda e, real_logits, fake_logits: adversarial.kl_estimate(
        real_logits, fake_logits, axis_name=e.axis_name
    ),
    None,
    spread="same",
)
row(
    "adversarial.wasserstein_critic_loss",
    "real_values fake_values",
    lambda e, real_values, fake_values: adversarial.wasserstein_critic_loss(
        real_values, fake_values
    ),
    None,
)
row(
    "adversarial.wasserstein_generator_loss",
    "fake_values",
    lambda e, fake_values: adversarial.wasserstein_generator_loss(fake_values),
    None,
)
row(
    "adversarial.wasserstein_bound",
    "",
    lambda e: adversarial.wasserstein_bound(
        e.number(0.2), e.number(0.5 * e.unit**2), e.number(3.0 * e.unit)
    ),
    1,
)
row(
    "adversarial.clip_weights",
    "params",
    lambda e, params: adversarial.clip_weights({"w": params}, clip=e.number(0.5)),
    None,
)
row(
    "adversarial.interpolates",
    "real fake",
    lambda e, real, fake: adversarial.interpolates(e.key, real, fake, axis_name=e.axis_name),
    1,
    spread="rows",
)
for function in (
    adversarial.gradient_penalty,
    adversarial.one_sided_gradient_penalty,
    adversarial.zero_centred_gradient_penalty,
):
    row(
        f"adversarial.{function.__name__}",
        "points",
        lambda e, points, f=function: f(
            lambda x: jnp.sum(e.unit * jnp.sin(x / e.unit), axis=1), points
        ),
    )
for function in (
    two_player.gan_saturating,
    two_player.gan_non_saturating,
    two_player.gan_kl,
    two_player.hinge,
    two_player.wgan_clip,
    two_player.wgan_gp,
):
    row(
        f"two_player.{function.__name__}",
        "samples data",
        lambda e, samples, data, f=function: (
            f().critic_loss(_critic(e), e.key, samples, data, axis_name=e.axis_name)[0],
            f().direction(_critic(e), e.key, samples, data, axis_name=e.axis_name)[0],
        ),
        None,
        smooth=False,
    )
row(
    "two_player.kale",
    "samples data",
    lambda e, samples, data: (
        two_player.kale().critic_loss(_critic(e), e.key, samples, data, axis_name=e.axis_name)[0],
        two_player.kale().direction(_critic(e), e.key, samples, data, axis_name=e.axis_name)[0],
    ),
    None,
    smooth=False,
)


def _critic(e):
    return lambda x: jnp.sum(jnp.sin(x / e.unit), axis=1)


for function in (steingan.half_median, steingan.half_svgd):
    row(
        f"steingan.{function.__name__}",
        "features",
        lambda e, features, f=function: f(features, axis_name=e.axis_name),
        1,
        spread="same",
        smooth=False,
        least=2,
    )
row(
    "steingan.row_normalized_direction",
    "particles score",
    lambda e, particles, score: steingan.row_normalized_direction(
        particles, score, e.kernel, axis_name=e.axis_name
    ),
    -1,
    spread="rows",
)
row(
    "steingan.nearest_direction",
    "particles score",
    lambda e, particles, score: steingan.nearest_direction(
        particles,
        score,
        kernels.feature_kernel(e.kernel, lambda _, x: x, ()),
        axis_name=e.axis_name,
    ),
    -1,
    spread="rows",
    least=2,
)
row(
    "steingan.stabilized_loss",
    "energy_data energy_samples",
    lambda e, energy_data, energy_samples: steingan.stabilized_loss(energy_data, energy_samples),
    None,
)
row(
    "steingan.rate_factor",
    "",
    lambda e: steingan.rate_factor(jnp.float32(0.1), jnp.float32(0.3)),
    None,
)
row(
    "steingan.steingan",
    "samples data",
    lambda e, samples, data: (
        steingan.steingan().critic_loss(_stein_critic(e), e.key, samples, data)[0],
        steingan.steingan().direction(
            _stein_critic(e), e.key, samples, data, axis_name=e.axis_name
        )[0],
    ),
    (0, -1),
    smooth=False,
    least=2,
)


def _stein_critic(e):
    return lambda x: (jnp.sum(jnp.square(x / e.unit), axis=1), jnp.asarray(x / e.unit))


# --------------------------------------------------------------------------------- noise, metrics

for function in (noise.instance_noise, noise.bounded_noise):
    row(
        f"noise.{function.__name__}",
        "x",
        lambda e, x, f=function: f(
            e.key, x, variance=e.number(0.3 * e.unit**2), axis_name=e.axis_name
        ),
        1,
        spread="rows",
    )
for function, power in (
    (noise.noisy_logits, 0),
    (noise.noisy_logits_and_gradient, (0, -1)),
    (noise.noisy_jsd_direction, -1),
):
    row(
        f"noise.{function.__name__}",
        "points real fake",
        lambda e, points, real, fake, f=function: f(
            points, real, fake, variance=e.number(0.3 * e.unit**2), axis_name=e.axis_name
        ),
        power,
        spread="rows",
    )
row("metrics.inception_score", "probs", lambda e, probs: metrics.inception_score(probs), None)
row(
    "metrics.label_entropy",
    "labels",
    lambda e, labels: metrics.label_entropy(labels, 4),
    None,
    smooth=False,
)
row(
    "metrics.frechet_distance",
    "mean1 cov1 mean2 cov2",
    lambda e, mean1, cov1, mean2, cov2: metrics.frechet_distance(mean1, cov1, mean2, cov2),
    2,
)
row(
    "metrics.kernel_inception_distance",
    "features1 features2",
    lambda e, features1, features2: metrics.kernel_inception_distance(features1, features2),
    None,
    least=2,
)
row(
    "metrics.precision_recall",
    "real fake",
    lambda e, real, fake: metrics.precision_recall(real, fake, k=2),
    smooth=False,
    least=3,
)
row(
    "metrics.nearest_neighbors_l1",
    "queries data",
    lambda e, queries, data: metrics.nearest_neighbors_l1(queries, data),
    (0, 1),
    smooth=False,
)

# ------------------------------------------------------------------------------------ Markov steps


def _markov_row(function, powers, call):
    row(function, "place", call, powers)


_markov_row("hmc.init", (1, 0, -1), lambda e, place: hmc.init(place, e.log_density))
_markov_row(
    "hmc.step",
    (1, 0, -1, 0, 0, 0, 0),
    lambda e, place: hmc.step(
        e.key,
        hmc.init(place, e.log_density),
        e.log_density,
        step_size=e.number(0.3 * e.unit),
        num_leapfrog_steps=2,
    ),
)
_markov_row(
    "hmc.leapfrog",
    (1, 0, -1, 0),
    lambda e, place: hmc.leapfrog(
        hmc.init(place, e.log_density),
        np.ones(place.shape),
        e.log_density,
        step_size=e.number(0.3 * e.unit),
        num_leapfrog_steps=2,
    ),
)
_markov_row("langevin.init", (1, 0, -1), lambda e, place: langevin.init(place, e.log_density))
_markov_row(
    "langevin.underdamped_init",
    (1, 0, -1, 0),
    lambda e, place: langevin.underdamped_init(e.key, place, e.log_density),
)
for function, extra in ((langevin.ula_step, 1), (langevin.mala_step, 4)):
    _markov_row(
        f"langevin.{function.__name__}",
        (1, 0, -1) + (0,) * extra,
        lambda e, place, f=function: f(
            e.key,
            langevin.init(place, e.log_density),
            e.log_density,
            step_size=e.number(0.1 * e.unit**2),
        ),
    )
_markov_row(
    "langevin.underdamped_step",
    (1, 0, -1, 0, 0),
    lambda e, place: langevin.underdamped_step(
        e.key,
        langevin.underdamped_init(e.key, place, e.log_density),
        e.log_density,
        step_size=e.number(0.3 * e.unit),
        friction=e.number(1.0 / e.unit),
    ),
)
row(
    "latent.latent_log_density",
    "latent",
    lambda e, latent: latent_module.latent_log_density(
        lambda z: z, lambda x: jnp.sum(x, axis=1), inverse_temperature=e.number(2.0)
    )(latent),
    None,
)
row(
    "latent.uniform_latents",
    "normal_latents",
    lambda e, normal_latents: latent_module.uniform_latents(normal_latents),
    None,
)

# ------------------------------------------------------------------------ pull-backs and objectives


def _generator(params):
    return jnp.outer(jnp.arange(1, 5).astype(params.dtype), params)


row(
    "pullback.chain_rule",
    "params",
    lambda e, params: pullback.chain_rule(
        _generator, params, np.ones((4, params.size), np.float32)
    ),
    None,
)
row(
    "pullback.regression",
    "params",
    lambda e, params: pullback.regression(
        _generator,
        params,
        np.ones((4, params.size), np.float32),
        optimizer=optax.sgd(0.1),
        step_size=e.number(0.1),
        num_steps=2,
    ),
    None,
)
row(
    "pullback.gauss_newton",
    "params",
    lambda e, params: pullback.gauss_newton(
        _generator,
        params,
        np.ones((4, params.size), np.float32),
        damping=e.number(0.1),
        max_iterations=3,
        tolerance=0.1,
    ),
    None,
    smooth=False,
)
row(
    "pullback.residuals",
    "params",
    lambda e, params: pullback.residuals(
        _generator,
        params,
        np.ones((4, params.size), np.float32),
        params,
        damping=e.number(0.1),
    ),
    None,
)
row(
    "objectives.kl_direction",
    "samples data",
    lambda e, samples, data: objectives.kl_direction(
        samples, data, e.kernel, ridge=e.number(0.5), axis_name=e.axis_name
    ),
    -1,
    spread="rows",
)


def _direction(e, samples, data, objective):
    direction, _ = objective(e.key, samples, data, axis_name=e.axis_name)
    return direction


def _make_kernel(e):
    return lambda x, y, axis_name: e.kernel


for name, make in {
    "kl": lambda e: objectives.kl(_make_kernel(e)),
    "mmd_v": lambda e: objectives.mmd_v(_make_kernel(e)),
    "noisy_jsd": lambda e: objectives.noisy_jsd(variance=0.3 * e.unit**2),
    "ratio_ulsif": lambda e: objectives.ratio_ulsif(_make_kernel(e)),
    "ratio_kliep": lambda e: objectives.ratio_kliep(_make_kernel(e)),
    "density_ratio": lambda e: objectives.density_ratio(
        _make_kernel(e),
        lambda p, q, k, axis_name: ratio.ulsif(p, q, k, ridge=0.5, axis_name=axis_name),
    ),
}.items():
    row(
        f"objectives.{name}",
        "samples data",
        lambda e, samples, data, make=make: _direction(e, samples, data, make(e)),
        -1,
        spread="rows",
        smooth=False,
    )
