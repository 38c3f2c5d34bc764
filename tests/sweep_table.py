"""One row for every public function: how to call it, on what, and how its values scale."""

import functools
import inspect
import pkgutil
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sweep_rows import TABLE, Setting, given, number, row

import kernelgrad
from kernelgrad import (
    _devices,
    adversarial,
    certificate,
    chains,
    drift,
    energy,
    feature_maps,
    fssd,
    hmc,
    kale,
    kale_rkhs,
    kernel_learning,
    kernels,
    kmm,
    ksd,
    langevin,
    low_rank,
    low_rank_fits,
    median,
    metrics,
    mmd,
    noise,
    objectives,
    pairwise,
    pullback,
    ratio,
    score,
    score_peers,
    selection,
    steingan,
    svgd,
    two_player,
)
from kernelgrad import latent as latents

__all__ = ["ELSEWHERE", "TABLE", "public_functions"]

# Modules and public functions without a row, and why.
ELSEWHERE = {
    **dict.fromkeys(
        [f"kernels.{make.__name__}" for make in kernels.FAMILIES.values()]
        + ["kernels.feature_kernel", "kernels.riesz", "score.default_ridge"]
        + ["_composed.sum_of", "_composed.product_of", "_composed.per_coordinate"]
        + ["kernel_learning.deep_kernel", "energy.random_directions"],
        "takes numbers, no points",
    ),
    **dict.fromkeys(["critic", "train"], "trains networks"),
    "score.score_from_log_density": "takes a function, no points",
    "selection.folds": "takes numbers, no points",
    "_learned_features.adversarial_kernel": "makes its siblings",
    "_players.on_batches": "wraps a function of arrays",
    "_players.of_union": "is in the rows of two_player.mmd_gan and its siblings",
    "_algebra.weighted": "is in the row of through",
    "_sinkhorn.sinkhorn": "needs the solver of an extra",
}


def public_functions():
    """Yields room.function for every public function of the library, its room private or not."""
    for info in pkgutil.iter_modules(kernelgrad.__path__):
        if info.name.startswith("_"):
            continue
        module = import_module(f"kernelgrad.{info.name}")
        for name, value in vars(module).items():
            if not inspect.isfunction(value) or name.startswith("_"):
                continue
            room = value.__module__.removeprefix("kernelgrad.")
            if room == info.name or room.startswith("_"):
                yield f"{room}.{name}"


def makers(module, kind):
    """Yields the public functions of a module that return a kind of objective."""
    for name, value in vars(module).items():
        public = inspect.isfunction(value) and not name.startswith("_")
        if public and inspect.signature(value).return_annotation is kind:
            yield value


# ------------------------------------------------------------------------------ sums and kernels

row(pairwise.squared_distances, 2)
row(
    pairwise.kernel_sum,
    0,
    lambda e, x, y, weights, offset: pairwise.kernel_sum(
        e.kernel, x, y, weights, offsets=(offset, offset), axis_name=e.axis_name
    ),
    spread="rows",
)
row(
    pairwise.gradient_sum,
    -1,
    lambda e, x, y, gradient_weights: pairwise.gradient_sum(
        e.kernel, x, y, gradient_weights, axis_name=e.axis_name
    ),
    spread="rows",
)
row(pairwise.kernel_and_gradient_sum, (0, -1), spread="rows")
row(
    pairwise.stein_sum,
    -1,
    lambda e, x, score, gradient_weights: pairwise.stein_sum(
        e.gaussian, x, None, score, gradient_weights, axis_name=e.axis_name
    ),
    spread="rows",
)
row(kernels.gram)
row(kernels.median_lengthscale, 1, spread="same", smooth=False)
row(kernels.svgd_lengthscale, 1, spread="same", smooth=False, least=2)


def _median_kernel(e, x, y):
    kernel = kernels.median_mixture(kernels.imq_mixture, x, y, axis_name=e.axis_name)
    return _at_a_unit(e, kernel, x, y)


def _at_a_unit(e, kernel, *points):
    """A kernel's value there: its numbers have the dtype of all numbers, whatever the points."""
    dtype = max((p.dtype for p in points), key=lambda dtype: dtype.itemsize)
    dtype = jax.dtypes.canonicalize_dtype(dtype.newbyteorder("="))
    return kernel.profile(jnp.full(1, e.unit**2, dtype))


row(kernels.median_mixture, 0, _median_kernel, spread="same", smooth=False)
row(median.median_squared_distance, 2, spread="same", smooth=False)

# --------------------------------------------------------------------------------------- scores

row(score.stein_score, -1, ridge=0.5, spread="rows")
row(score.stein_score_at, -1, ridge=0.5, spread="rows")
row(score.rkhs_score_at, -1, ridge=0.5)


def _selected(e, samples):
    options = {"factors": (1.0, 2.0), "ridge_factors": (0.1, 1.0), "num_folds": 2}
    return score.select(samples, family=kernels.rbf_mixture, **options).losses


row(score.select, -2, _selected, smooth=False, least=4)
row(
    selection.hyvarinen_loss,
    -2,
    lambda e, x: selection.hyvarinen_loss(lambda points: -points / e.unit / e.unit, x),
)
row(score_peers.spectral_score, -1, mass_fraction=0.9)
row(score_peers.spectral_score_at, -1, mass_fraction=0.9)
row(score_peers.nu_method_score, -1, num_steps=3, nu=1.0)
row(score_peers.nu_method_score_at, -1, num_steps=3, nu=1.0)
row(score_peers.kde_score, -1, spread="rows")
row(score_peers.kde_score_at, -1, kernel=lambda e: e.gaussian, spread="rows")

# ------------------------------------------------------------------------ discrepancies and tests

row(mmd.mmd_v_statistic, spread="same")
row(mmd.mmd_u_statistic, spread="same", least=2)
row(mmd.mmd_gradient, -1, spread="rows")
row(mmd.witness_gradient, -1, spread="rows")
row(mmd.mmd_value_and_gradient, (0, -1), spread=("same", "rows"))
row(mmd.test_power, spread="same", least=2)
row(mmd.two_sample_test, num_permutations=19, smooth=False)
SEVERAL = {"kernels": lambda e: [e.kernel, e.gaussian], "smooth": False}
row(mmd.aggregated_test, num_permutations=19, **SEVERAL)
row(mmd.incomplete_test, least=3, num_diagonals=1, num_permutations=19, **SEVERAL)
row(mmd.fused_test, num_permutations=19, least=2, **SEVERAL)
row(mmd.kernel_thinning, num_points=2, oversampling=1, smooth=False, least=2)
row(kernel_learning.halves, 1, least=4)
LEARNER = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
LEARNING = {"optimizer": lambda e: LEARNER, "num_steps": 2, "smooth": False}


def _learned(e, x, y):
    learned = kernel_learning.learn(e.key, x, y, e.kernel, LEARNER, num_steps=2)
    return _at_a_unit(e, learned.kernel, x, y), learned.powers


row(kernel_learning.learn, 0, _learned, smooth=False, least=2)
row(kernel_learning.learned_test, num_permutations=19, least=4, **LEARNING)
row(ksd.stein_gram, -2)
row(ksd.ksd_v_statistic, -2, spread="same")
row(ksd.ksd_u_statistic, -2, spread="same", least=2)
row(ksd.ksd_gradient, -3, score_fn=lambda e: lambda x: -x / e.unit / e.unit)
row(ksd.goodness_of_fit_test, (-2, 0), num_bootstrap=19, smooth=False, least=6)
row(ksd.aggregated_test, num_bootstrap=19, least=6, **SEVERAL)
row(ksd.incomplete_test, num_diagonals=2, num_bootstrap=19, least=6, **SEVERAL)
row(ksd.stein_thinning, num_points=4, smooth=False)
row(fssd.fssd_u_statistic, -2, least=2)
row(
    fssd.goodness_of_fit_test,
    (-2, 0, 1),
    num_locations=1,
    num_starts=2,
    num_steps=2,
    step_size=0.1,
    num_simulations=19,
    smooth=False,
    least=10,
)
row(chains.stein_test, (-2, 0, 0), num_bootstrap=19, smooth=False, least=10)
row(chains.stein_thinning, (1, 0, 0), num_points=4, smooth=False, least=10)
row(chains.stein_block_length, smooth=False)

# ------------------------------------------------------------------------------------- particles

row(svgd.svgd_direction, -1, spread="rows")
row(svgd.kernel_noise)
row(svgd.init, 1, optimizer=optax.sgd(0.1))


def _svgd_step(e, particles):
    optimizer = optax.sgd(0.1 * e.unit * e.unit)
    state = svgd.SVGDState(particles, optimizer.init(particles))
    state, info = svgd.step(
        state, lambda x: -x / e.unit / e.unit, e.kernel, optimizer, axis_name=e.axis_name
    )
    return state.particles, *info


row(svgd.step, (1, -1, 0), _svgd_step, spread=("rows", "same", "same"))

# ---------------------------------------------------------------------------------------- ratios


def _evaluated(function):
    return lambda e, x, p, q: function(ratio.rulsif(p, q, e.kernel, ridge=e.number(0.5)), x)


def _fitted(function, **numbers):
    def weights(e, p, q, centers):
        options = given(e, numbers)
        return function(p, q, e.kernel, centers=centers, axis_name=e.axis_name, **options)[2]

    return weights


row(ratio.density_ratio, 0, _evaluated(ratio.density_ratio))
row(ratio.log_density_ratio, 0, _evaluated(ratio.log_density_ratio))
row(ratio.log_ratio_gradient, -1, _evaluated(ratio.log_ratio_gradient))
row(
    ratio.kl_divergence,
    0,
    lambda e, p, q: ratio.kl_divergence(ratio.rulsif(p, q, e.kernel, ridge=e.number(0.5)), p),
)
row(
    ratio.pearson_divergence,
    0,
    lambda e, p, q: ratio.pearson_divergence(
        ratio.rulsif(p, q, e.kernel, ridge=e.number(0.5)), p, q, alpha=e.number(0.1)
    ),
)


def _plugged_in(function, **numbers):
    """The fit at samples of p, which is where gradients run through it over devices."""

    def values(e, p, q, centers):
        options = given(e, numbers)
        model = function(p, q, e.kernel, centers=centers, axis_name=e.axis_name, **options)
        return ratio.density_ratio(model, p)

    return values


row(ratio.ulsif, 0, _plugged_in(ratio.ulsif, ridge=0.5), spread="rows")
row(ratio.rulsif, 0, _plugged_in(ratio.rulsif, ridge=0.5, alpha=0.1), spread="rows")
FIT = {"spread": "same", "smooth": False}
row(ratio.lsif, 0, _fitted(ratio.lsif, ridge=0.5, tolerance=1e-4), **FIT)
row(ratio.kliep, 0, _fitted(ratio.kliep, tolerance=1e-3), **FIT)
row(ratio.logistic, 0, _fitted(ratio.logistic, ridge=0.5, tolerance=1e-6), **FIT)
row(
    kale_rkhs.fit,
    0,
    lambda e, p, q: (
        kale_rkhs.fit(p, q, e.kernel, regularization=e.number(0.5), axis_name=e.axis_name).value
    ),
    **FIT,
)
row(
    selection.select,
    (1, 0),
    lambda e, lengthscales: selection.select(lambda l: (l / e.unit - 1.9) ** 2, lengthscales),
    smooth=False,
)
row(
    selection.rulsif_loo,
    0,
    lambda e, p, q, centers: selection.rulsif_loo(
        p, q, e.kernel, ridge=e.number(0.5), alpha=e.number(0.1), centers=centers
    ),
    least=2,
)
row(selection.kliep_cv, num_folds=2, tolerance=1e-3, smooth=False, least=2)
row(selection.logistic_cv, num_folds=2, ridge=0.5, smooth=False, least=2)
row(kmm.kernel_mean_matching, max_weight=5.0, tolerance=0.1, num_steps=20, smooth=False)

# ----------------------------------------------------------------------------------- finite rank


def _waves(e, x):
    return feature_maps.fourier_map(e.key, e.kernel, x, num_features=8, axis_name=e.axis_name)


def _landmarks(e, x):
    return feature_maps.landmark_map(e.key, e.kernel, x, num_landmarks=2, axis_name=e.axis_name)


def _by_map(function, make, **numbers):
    """A function of a map, which is made of its points."""

    def call(e, first, *others):
        options = {"num_probes": 4, "axis_name": e.axis_name, **given(e, numbers)}
        return tuple(function(e.key, first, *others, make(e, first), **options))

    return call


_mmd_v = _by_map(low_rank.mmd_v_statistic, _waves)
_mmd_u = _by_map(low_rank.mmd_u_statistic, _landmarks)
_mmd_gradient = _by_map(low_rank.mmd_gradient, _waves)
_ksd_v = _by_map(low_rank.ksd_v_statistic, _waves)
_ksd_u = _by_map(low_rank.ksd_u_statistic, _landmarks)
_direction = _by_map(low_rank.svgd_direction, _waves)
_stein_score = _by_map(low_rank_fits.stein_score, _landmarks, ridge=0.5)
ROWS = ("rows", "same", "same")
row(low_rank.mmd_v_statistic, 0, lambda e, x, y: _mmd_v(e, x, y), spread="same")
row(low_rank.mmd_u_statistic, 0, lambda e, x, y: _mmd_u(e, x, y), least=2, spread="same")
row(low_rank.mmd_gradient, (-1, 0, 0), lambda e, x, y: _mmd_gradient(e, x, y), spread=ROWS)
row(
    low_rank.ksd_v_statistic,
    -2,
    lambda e, particles, score: _ksd_v(e, particles, score),
    spread="same",
)
row(
    low_rank.ksd_u_statistic,
    -2,
    lambda e, particles, score: _ksd_u(e, particles, score),
    least=2,
    spread="same",
)
row(
    low_rank.svgd_direction,
    (-1, 0, 0),
    lambda e, particles, score: _direction(e, particles, score),
    spread=ROWS,
)
row(
    low_rank.kernel_sum,
    0,
    lambda e, x, y, weights: tuple(
        low_rank.kernel_sum(e.key, _waves(e, x), x, y, weights, num_probes=4, axis_name=e.axis_name)
    ),
    spread=ROWS,
)
row(
    low_rank.gradient_sum,
    (-1, 0, 0),
    lambda e, x, y, gradient_weights: tuple(
        low_rank.gradient_sum(
            e.key, _waves(e, x), x, y, gradient_weights, num_probes=4, axis_name=e.axis_name
        )
    ),
    spread=ROWS,
)
row(
    low_rank_fits.stein_score,
    (-1, 0, 0),
    lambda e, samples: _stein_score(e, samples),
    spread=ROWS,
    least=2,
)
row(
    low_rank_fits.rkhs_score_at,
    (-1, 0, 0),
    lambda e, queries, samples: tuple(
        low_rank_fits.rkhs_score_at(
            e.key,
            queries,
            samples,
            _landmarks(e, samples),
            ridge=e.number(0.5),
            num_probes=4,
            axis_name=e.axis_name,
        )
    ),
    spread=ROWS,
    least=2,
)


def _landmark_ratio(e, p, q):
    model, *error = low_rank_fits.ulsif(
        e.key, p, q, _landmarks(e, p), ridge=e.number(0.5), num_probes=4, axis_name=e.axis_name
    )
    return ratio.density_ratio(model, p), *error


row(low_rank_fits.ulsif, 0, _landmark_ratio, spread=ROWS, least=2)
row(feature_maps.fourier_map, 0, lambda e, x: _waves(e, x).features(x))
row(feature_maps.landmark_map, 0, lambda e, x: _landmarks(e, x).features(x), spread="rows", least=2)
row(feature_maps.second_moment, 0, lambda e, x: feature_maps.second_moment(_waves(e, x), x))
row(  # of waves it is one number
    feature_maps.squared_norms,
    0,
    lambda e, x: feature_maps.squared_norms(_landmarks(e, x), x),
    least=2,
)

# ------------------------------------------------------------------------------ energies and GANs

row(kale.kale, None, log_normalizer=0.2)
row(kale.donsker_varadhan, None, spread="same")
row(kale.generator_weights, None, log_normalizer=0.2, smooth=False)
row(kale.contrastive_divergence_loss, None)
row(
    kale.optimal_log_normalizer,
    None,
    lambda e, energy_base: kale.log_density(
        energy_base, energy_base, kale.optimal_log_normalizer(energy_base, axis_name=e.axis_name)
    ),
    spread="rows",
)
row(kale.ema_step, None, log_normalizer=0.2, rate=0.3, spread="same", smooth=False)
row(kale.newton_step, None, log_normalizer=0.2, rate=0.3, spread="same", smooth=False)
row(kale.log_normalizer_estimate, None, spread="same", least=2)
row(kale.log_density, None, log_normalizer=0.2)
row(adversarial.saturating_loss, None)
row(adversarial.non_saturating_loss, None)
row(adversarial.kl_loss, None)
row(adversarial.discriminator_loss, None)
row(adversarial.hinge_discriminator_loss, None)
row(adversarial.jsd_estimate, None)
row(adversarial.kl_estimate, None, spread="same")
row(adversarial.wasserstein_critic_loss, None)
row(adversarial.wasserstein_generator_loss, None)
row(
    adversarial.wasserstein_bound,
    1,
    jsd=0.2,
    noise_variance=number(0.5, 2),
    diameter=number(3.0, 1),
)
row(certificate.pinsker_total_variation, 0, jsd=0.2)
row(certificate.total_variation_bound, 0, jsd=0.2)
row(
    certificate.sharp_wasserstein_bound,
    1,
    jsd=0.2,
    noise_variance=number(0.5, 2),
    diameter=number(3.0, 1),
)
row(
    adversarial.clip_weights,
    None,
    lambda e, params: adversarial.clip_weights({"w": params}, clip=e.number(0.5)),
)
row(adversarial.interpolates, 1, spread="rows")
row(adversarial.gradient_penalty)
row(adversarial.one_sided_gradient_penalty)
row(adversarial.zero_centred_gradient_penalty)


def _played(make_objective, critic_fn):
    """The loss of one player, over the devices, and the direction of the other."""

    def call(e, samples, data):
        players = make_objective().critic_loss, make_objective().direction
        loss, direction = (
            player(lambda x: critic_fn(e, x), e.key, samples, data, axis_name=e.axis_name)[0]
            for player in players
        )
        return _devices.mean(loss, e.axis_name), direction

    return call


PLAYED = {"spread": ("same", "rows"), "smooth": False}


def _feature_critic(e, x):
    return jnp.asarray(jnp.sin(x / e.unit))


for objective in makers(two_player, two_player.TwoPlayer):
    if objective.__module__ == two_player.__name__:
        row(objective, None, _played(objective, Setting.critic_fn), **PLAYED)
for objective in (two_player.mmd_gan, two_player.mmd_power, two_player.kl_adversarial):
    row(objective, None, _played(objective, _feature_critic), **PLAYED, least=2)
row(steingan.half_median, 1, spread="same", smooth=False, least=2)
row(steingan.half_svgd, 1, spread="same", smooth=False, least=2)
row(steingan.row_normalized_direction, -1, spread="rows")
for field, least in ((steingan.one_pass_direction, 1), (steingan.nearest_direction, 2)):
    row(
        field,
        -1,
        kernel=lambda e: kernels.feature_kernel(e.kernel, lambda _, x: x, ()),
        spread="rows",
        least=least,
    )
row(steingan.stabilized_loss, None)
row(
    steingan.rate_factor,
    None,
    lambda e: steingan.rate_factor(jnp.float32(0.1), jnp.float32(0.3)),
)


def _stein_critic(e, x):
    return jnp.sum(jnp.square(x / e.unit), axis=1), jnp.asarray(x / e.unit)


row(
    steingan.steingan,
    (0, -1),
    _played(steingan.steingan, _stein_critic),
    **PLAYED,
    least=2,
)

# --------------------------------------------------------------------------------- noise, metrics

NOISE = {"variance": number(0.3, 2), "spread": "rows"}
row(noise.instance_noise, 1, **NOISE)
row(noise.bounded_noise, 1, **NOISE)
row(noise.noisy_logits, 0, **NOISE)
row(noise.noisy_logits_and_gradient, (0, -1), **NOISE)
row(noise.noisy_jsd_direction, -1, **NOISE)
row(metrics.inception_score, None)
row(metrics.label_entropy, None, num_classes=4, smooth=False)
row(metrics.frechet_distance, 2)
row(metrics.kernel_inception_distance, None, least=2)
row(metrics.precision_recall, k=2, smooth=False, least=3)
row(metrics.nearest_neighbors_l1, (0, 1), smooth=False)

# ------------------------------------------------------------------------------------ Markov steps


def _stepped(step, start, **hyperparameters):
    """A Markov step from the state at a position."""

    def call(e, position):
        state = start(e, position)
        return step(e.key, state, e.log_density_fn, **given(e, hyperparameters))

    return call


def _hmc_start(e, position):
    return hmc.init(position, e.log_density_fn)


def _langevin_start(e, position):
    return langevin.init(position, e.log_density_fn)


def _underdamped_start(e, position):
    return langevin.underdamped_init(e.key, position, e.log_density_fn)


row(hmc.init, (1, 0, -1))
row(
    hmc.step,
    (1, 0, -1, 0, 0, 0, 0),
    _stepped(hmc.step, _hmc_start, step_size=number(0.3, 1), num_leapfrog_steps=2),
)
row(
    hmc.leapfrog,
    (1, 0, -1, 0),
    lambda e, position: hmc.leapfrog(
        _hmc_start(e, position),
        np.ones(position.shape),
        e.log_density_fn,
        step_size=e.number(0.3 * e.unit),
        num_leapfrog_steps=2,
    ),
)
row(langevin.init, (1, 0, -1))
row(langevin.underdamped_init, (1, 0, -1, 0))
row(
    langevin.ula_step,
    (1, 0, -1, 0),
    _stepped(langevin.ula_step, _langevin_start, step_size=number(0.1, 2)),
)
row(
    langevin.mala_step,
    (1, 0, -1, 0, 0, 0, 0),
    _stepped(langevin.mala_step, _langevin_start, step_size=number(0.1, 2)),
)
row(
    langevin.underdamped_step,
    (1, 0, -1, 0, 0),
    _stepped(
        langevin.underdamped_step,
        _underdamped_start,
        step_size=number(0.3, 1),
        friction=number(1.0, -1),
    ),
)
row(
    latents.latent_log_density,
    None,
    lambda e, latent: latents.latent_log_density(
        lambda z: z, lambda x: jnp.sum(x, axis=1), inverse_temperature=e.number(2.0)
    )(latent),
)
row(latents.uniform_latents, None)
row(latents.reject, None, num_kept=3, inverse_temperature=2.0, smooth=False, least=4)
row(latents.resample, None, num_draws=3, inverse_temperature=2.0, smooth=False)

# ------------------------------------------------------------------------ pull-backs and objectives


def _generator(params):
    return jnp.outer(jnp.arange(1, 5).astype(params.dtype), params)


def _pulled(pull_back, *more, **hyperparameters):
    """A pull-back of a direction of ones, of which each device has some rows."""

    def call(e, params):
        def generator_fn(params):
            return _devices.share(_generator(params), e.axis_name)

        direction = _devices.share(np.ones((4, params.size), np.float32), e.axis_name)
        options = given(e, hyperparameters)
        if e.axis_name is not None:
            options["axis_name"] = e.axis_name
        return pull_back(generator_fn, params, direction, *(params for _ in more), **options)

    return call


row(pullback.chain_rule, None, _pulled(pullback.chain_rule))
row(
    pullback.regression,
    None,
    _pulled(pullback.regression, optimizer=optax.sgd(0.1), step_size=0.1, num_steps=2),
    spread="same",
)
row(
    pullback.gauss_newton,
    None,
    _pulled(
        pullback.gauss_newton,
        damping=0.1,
        max_iterations=3,
        tolerance=lambda e: 0.1,  # static
    ),
    spread="same",
    smooth=False,
)
row(
    pullback.residuals,
    None,
    _pulled(pullback.residuals, "gradient", damping=0.1),
    spread="same",
)
row(objectives.kl_direction, -1, ridge=0.5, spread="rows")
row(
    drift.drift,
    temperatures=lambda e: (0.05, 0.2, 1.0),  # static
    spread="rows",
    smooth=False,
    least=2,
)
row(
    energy.sliced_energy_and_gradient,
    (1, 0),
    lambda e, x, y: energy.sliced_energy_and_gradient(
        x,
        y,
        energy.random_directions(e.key, 3, (np.shape(x) or np.shape(y))[-1]),
        axis_name=e.axis_name,
    ),
    spread=("same", "rows"),
    smooth=False,
)


# What a function that makes an objective asks for without a default, by the name of the argument.
OF_OBJECTIVES = {
    "make_kernel": lambda e: lambda x, y, axis_name: e.kernel,
    "variance": number(0.3, 2),
    "noise_scale": number(0.3, 1),
    "name": lambda e: "jsd",
    "fit": lambda e: functools.partial(ratio.ulsif, ridge=0.5),
    "loss": lambda e: functools.partial(mmd.mmd_v_statistic, kernel=e.kernel),
}


# Powers of the unit of length in directions, and fewest samples, where not -1 and 1.
POWERS = dict.fromkeys(["drift", "energy_distance", "sliced_energy"], 0)
LEAST = {"drift": 2}


def _directed(make_objective):
    asked = inspect.signature(make_objective).parameters.values()
    options = {one.name: OF_OBJECTIVES[one.name] for one in asked if one.default is one.empty}

    def direction(e, samples, data):
        objective = make_objective(**given(e, options))
        return objective(e.key, samples, data, axis_name=e.axis_name)[0]

    return direction


for objective in makers(objectives, objectives.Objective):
    name = objective.__name__
    if name == "sinkhorn":  # an extra's solver, which keeps to none of this
        continue
    options = {"spread": "rows", "smooth": False, "least": LEAST.get(name, 1)}
    row(objective, POWERS.get(name, -1), _directed(objective), **options)


def _bent(e, x):
    """Features in units of the points."""
    return e.unit * jnp.tanh(x / e.unit)


def _nested(e, samples, data):
    base = objectives.mmd_v(lambda *_, axis_name: e.kernel)
    parts = [(lambda x: _bent(e, x), e.number(1.0)), (lambda x: x, e.number(0.5))]
    return objectives.through(parts, base)(e.key, samples, data, axis_name=e.axis_name)[0]


row(objectives.through, -1, _nested, spread="rows", smooth=False)
row(
    objectives.normalized,
    0,
    lambda e, samples, data: objectives.normalized(
        objectives.from_loss(functools.partial(mmd.mmd_v_statistic, kernel=e.kernel))
    )(e.key, samples, data, axis_name=e.axis_name)[0],
    spread="rows",
    smooth=False,
)
