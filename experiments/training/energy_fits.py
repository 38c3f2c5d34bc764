r"""Fits of an energy E on the base N(0, I), by the rules of maximum likelihood.

The model is :math:`q(x) = e^{-E(x) - c} N(x; 0, I)`. The rules differ in how they see the gradient
of c: through draws of the base (kale, kale_newton, dv), or through Markov chains of the model (cd,
pcd).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from experiments.run import fields
from experiments.run.errors import DivergenceError
from experiments.targets.gaussian_base import WeightedDraws
from kernelgrad import adversarial, kale, langevin
from kernelgrad.kale import NormalizerEstimate
from kernelgrad.types import Array, Key, PyTree

EnergyFn = Callable[[Array], Array]
_TRACKING, _WITH_CHAINS = ("kale", "kale_newton"), ("cd", "pcd")  # of RULES
LEAST_EFFECTIVE_DRAWS = 30  # behind a likelihood that may choose parameters
_POINTS_AT_ONCE = 5000


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an energy is fitted."""

    num_steps: int = fields.integer(3000, 1, fields.MAX_COUNT, "Updates of the energy.")
    eval_every: int = fields.integer(
        100,
        1,
        fields.MAX_COUNT,
        "Updates between two looks at the validation rows; divides num_steps.",
    )
    batch_size: int = fields.integer(
        256, 2, fields.MAX_SIZE, "Rows of an update, and chains of cd and pcd."
    )
    num_base: int = fields.integer(2048, 2, fields.MAX_SIZE, "Draws of the base of an update.")
    learning_rate: float = fields.positive(1e-3, "First rate of Adam, which decays as a cosine.")
    penalty: float = fields.not_negative(
        0.01, "Weight of the mean squared slope of E, at rows and as many draws of the base."
    )
    normalizer_rate: float = fields.number(
        0.1, 1e-6, 1.0, "Rate of the log-normaliser.", of=lambda _: _TRACKING
    )
    num_chain_steps: int = fields.integer(
        10, 1, 10**6, "MALA steps of an update.", of=lambda _: _WITH_CHAINS
    )
    chain_step_size: float = fields.positive(
        0.02, "Their step size, in whitened units.", of=lambda _: _WITH_CHAINS
    )


class FitState(NamedTuple):
    """Everything that changes during a fit.

    Attributes:
      params: of the energy.
      opt_state: of Adam.
      log_normalizer: c of kale and kale_newton; shape ().
      chains: of pcd; shape (batch_size, d).
    """

    params: PyTree
    opt_state: PyTree
    log_normalizer: Array
    chains: Array


class Batch(NamedTuple):
    """What an update sees: a key, rows (batch_size, d), and draws of the base (num_base, d)."""

    key: Key
    rows: Array
    base: Array


# ----------------------------------------------------------------------------------- the rules

_Update = tuple[Array, Array, Array]  # loss, log_normalizer, chains
_Rule = Callable[[EnergyFn, Batch, FitState, Settings], _Update]


def _tracked(
    track: Callable[..., Array], energy_fn: EnergyFn, batch: Batch, state: FitState, s: Settings
) -> _Update:
    base = energy_fn(batch.base)
    c = track(state.log_normalizer, base, rate=s.normalizer_rate)
    return -kale.kale(energy_fn(batch.rows), base, c), c, state.chains


def _closed_form(energy_fn: EnergyFn, batch: Batch, state: FitState, _: Settings) -> _Update:
    bound = kale.donsker_varadhan(energy_fn(batch.rows), energy_fn(batch.base))
    return -bound, state.log_normalizer, state.chains


def _contrastive(
    persistent: bool, energy_fn: EnergyFn, batch: Batch, state: FitState, s: Settings
) -> _Update:
    starts = state.chains if persistent else batch.rows
    ends = run_chains(batch.key, starts, energy_fn, s)
    loss = kale.contrastive_divergence_loss(energy_fn(batch.rows), energy_fn(ends))
    return loss, state.log_normalizer, ends if persistent else state.chains


RULES: dict[str, _Rule] = {
    "kale": functools.partial(_tracked, kale.ema_step),
    "kale_newton": functools.partial(_tracked, kale.newton_step),
    "dv": _closed_form,
    "cd": functools.partial(_contrastive, False),
    "pcd": functools.partial(_contrastive, True),
}


def run_chains(key: Key, starts: Array, energy_fn: EnergyFn, settings: Settings) -> Array:
    """Returns where MALA in e^-E N(0, I) leads from starts (n, d); no gradient flows."""

    def log_density(x: Array) -> Array:
        return -energy_fn(x[None])[0] - jnp.sum(jnp.square(x)) / 2

    def chain(key: Key, start: Array) -> Array:
        def step(state: langevin.LangevinState, key: Key) -> tuple[langevin.LangevinState, None]:
            size = settings.chain_step_size
            return langevin.mala_step(key, state, log_density, step_size=size)[0], None

        keys = jax.random.split(key, settings.num_chain_steps)
        return lax.scan(step, langevin.init(start, log_density), keys)[0].position

    ends = jax.vmap(chain)(jax.random.split(key, starts.shape[0]), starts)
    return lax.stop_gradient(ends)


# ---------------------------------------------------------------------------------- the updates


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def init(key: Key, network: Any, dimension: int, settings: Settings) -> FitState:
    """Returns the state before the first update; the chains of pcd start as draws of the base."""
    param_key, chain_key = jax.random.split(key)
    params = network.init(param_key, jnp.zeros((1, dimension)), False)
    chains = jax.random.normal(chain_key, (settings.batch_size, dimension))
    log_normalizer = kale.optimal_log_normalizer(network.apply(params, chains, False))
    return FitState(params, _optimizer(settings).init(params), log_normalizer, chains)


@functools.partial(jax.jit, static_argnames=("network", "rule", "settings"))
def advance(
    key: Key, state: FitState, rows: Array, *, network: Any, rule: str, settings: Settings
) -> FitState:
    """Makes eval_every updates of the energy.

    Args:
      key: random key.
      state: from :func:`init` or an earlier call.
      rows: whitened training rows; shape (n, d).
      network: Flax module, (points (n, d), train) -> (n,).
      rule: one of RULES.
      settings: the settings.
    """

    def loss(params: PyTree, batch: Batch, state: FitState) -> tuple[Array, tuple[Array, Array]]:
        def energy_fn(points: Array) -> Array:
            return network.apply(params, points, False)

        value, c, chains = RULES[rule](energy_fn, batch, state, settings)
        places = jnp.concatenate([batch.rows, batch.base[: settings.batch_size]])
        slopes = adversarial.zero_centred_gradient_penalty(energy_fn, places)
        return value + settings.penalty * slopes, (c, chains)

    def step(state: FitState, key: Key) -> tuple[FitState, None]:
        row_key, base_key, rule_key = jax.random.split(key, 3)
        chosen = jax.random.randint(row_key, (settings.batch_size,), 0, rows.shape[0])
        base = jax.random.normal(base_key, (settings.num_base, rows.shape[1]))
        batch = Batch(rule_key, rows[chosen], base)
        gradient, (c, chains) = jax.grad(loss, has_aux=True)(state.params, batch, state)
        updates, opt_state = _optimizer(settings).update(gradient, state.opt_state)
        return FitState(optax.apply_updates(state.params, updates), opt_state, c, chains), None

    return lax.scan(step, state, jax.random.split(key, settings.eval_every))[0]


def _optimizer(settings: Settings) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.num_steps))


# --------------------------------------------------------------------------------- the whole fit


@functools.partial(jax.jit, static_argnames="network")
def energies(network: Any, params: PyTree, points: Array) -> Array:
    """Returns E at points (n, d), some at a time; shape (n,)."""

    def energy(point: Array) -> Array:
        return network.apply(params, point[None], False)[0]

    return lax.map(energy, points, batch_size=_POINTS_AT_ONCE)


@functools.partial(jax.jit, static_argnames="network")
def normalizer(network: Any, params: PyTree, draws: WeightedDraws) -> NormalizerEstimate:
    """Returns the log-normaliser over the base, from draws that stand in for it."""
    return kale.log_normalizer_estimate(energies(network, params, draws.points) - draws.log_weights)


class Look(NamedTuple):
    """What a look at the validation rows saw.

    Attributes:
      step: updates so far.
      gain: mean log-likelihood of the rows relative to the base, in nats.
      effective_draws: behind the normaliser in it.
    """

    step: int
    gain: float
    effective_draws: float


class Fit(NamedTuple):
    """A fitted energy: the parameters of the best look, that look, and all looks."""

    params: PyTree
    best: Look
    looks: list[Look]


def fit(
    key: Key,
    network: Any,
    rule: str,
    rows: Array,
    valid: Array,
    draws: WeightedDraws,
    more_draws: WeightedDraws,
    settings: Settings,
    report: Callable[[Look], None],
) -> Fit:
    """Fits an energy and keeps the parameters under which validation rows are likeliest.

    A look is not trusted where its normaliser rests on fewer than 30 effective draws, or would on
    more draws: that normaliser is most often too low, and the look likeliest to win.

    Args:
      key: random key.
      network: Flax module, (points (n, d), train) -> (n,).
      rule: one of RULES.
      rows: whitened training rows; shape (n, d).
      valid: whitened validation rows; shape (k, d).
      draws: for the normaliser of each look.
      more_draws: for the trust in a look that would win.
      settings: the settings.
      report: told of every look.

    Raises:
      DivergenceError: a likelihood is not finite, or none is trusted.
    """
    init_key, step_key = jax.random.split(key)
    state = init(init_key, network, rows.shape[1], settings)
    looks, params_of = [], {}
    for step in range(0, settings.num_steps + 1, settings.eval_every):
        if step:
            state = advance(
                jax.random.fold_in(step_key, step),
                state,
                rows,
                network=network,
                rule=rule,
                settings=settings,
            )
        c = normalizer(network, state.params, draws)
        gain = float(-jnp.mean(energies(network, state.params, valid)) - c.value)
        look = Look(step, gain, float(c.effective_sample_size))
        if not math.isfinite(gain):
            raise DivergenceError(f"{rule}, step {step}: the likelihood is not finite")
        looks.append(look)
        report(look)
        params_of[look] = state.params
    for look in sorted(looks, key=lambda look: look.gain, reverse=True):
        params = params_of[look]
        if look.effective_draws >= LEAST_EFFECTIVE_DRAWS:
            more = normalizer(network, params, more_draws)
            if more.effective_sample_size >= LEAST_EFFECTIVE_DRAWS:
                return Fit(params, look, looks)
    raise DivergenceError(
        f"{rule}: got no normaliser of {LEAST_EFFECTIVE_DRAWS} effective draws; expected one at "
        "least. Raise the penalty or narrow the network"
    )
