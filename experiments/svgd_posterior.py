"""SVGD on a Bayesian logistic regression, judged by a long Hamiltonian chain.

    python -m experiments.svgd_posterior --workdir=runs/svgd --data_dir=<the folder that holds uci>

The posterior is that of :mod:`experiments.targets.posteriors`: red wine, quality >= 6. For every
number of particles, and two rules for the RBF kernel's lengthscale, the table has the test accuracy
and log-likelihood of the averaged prediction; the kernelized Stein discrepancy, beside that of as
many draws of the chain; the errors of the moments, in units of the posterior's own; and the
milliseconds of a step by SVGD's rule, beside BlackJAX's where it is installed. The runs resume from
their last evaluation.
"""

import dataclasses
import functools
import importlib.util
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import optax

from experiments.judges import agreement
from experiments.judges.agreement import Reference
from experiments.pictures import charts
from experiments.reports import particles
from experiments.reports.particles import Histories, Record
from experiments.run import command, fields, loop, memory, places, timing
from experiments.run.errors import UsageError
from experiments.run.loop import Schedule
from experiments.run.signals import Signals
from experiments.run.timing import Timed
from experiments.run.workdirs import Workdir
from experiments.targets import long_chains, posteriors
from experiments.targets.long_chains import Chains
from experiments.targets.posteriors import LogisticPosterior
from kernelgrad import kernels, svgd
from kernelgrad.svgd import SVGDState
from kernelgrad.types import Array, Key

OPTIMIZERS = {"adam": optax.adam, "adagrad": optax.adagrad}
LENGTHSCALES = {"svgd": kernels.svgd_lengthscale, "median": kernels.median_lengthscale}
_MOST_PEER_PARTICLES = 2000  # BlackJAX holds several (n, n, d) arrays


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the runs, but for where they are stored."""

    num_particles: tuple[int, ...] = fields.integers(
        (100, 500, 2000, 5000), 2, fields.MAX_SIZE, "Set sizes."
    )
    lengthscales: tuple[str, ...] = fields.choices(
        ("svgd", "median"),
        LENGTHSCALES,
        "Rules of the RBF's lengthscale: svgd, median / (2 log(n + 1)), or median; both squared.",
    )
    num_steps: int = fields.integer(300, 1, fields.MAX_COUNT, "Steps of SVGD in all.")
    eval_every: int = fields.integer(20, 1, fields.MAX_COUNT, "Steps between evaluations.")
    optimizer: str = fields.choice("adam", OPTIMIZERS, "Optax optimizer.")
    learning_rate: float = fields.positive(0.3, "Its first rate, which decays as a cosine.")
    batch_size: int | None = fields.integer(
        None, 1, fields.MAX_SIZE, "Rows behind a score; all of them by default."
    )
    prior_precision: float = fields.positive(1.0, "alpha of N(0, I / alpha).")
    num_chains: int = fields.integer(64, 2, fields.MAX_SIZE, "Chains of HMC.")
    num_warmup: int = fields.integer(500, 2, fields.MAX_SIZE, "Their steps thrown away.")
    num_draws: int = fields.integer(1000, 4, fields.MAX_SIZE, "Their steps kept.")
    seed: int = fields.seed("Seed of the split and of everything random.")


def run(
    config: Config, *, workdir: str, data_dir: str | None = None
) -> dict[str, dict[str, float | str]]:
    """Draws the chain, moves each number of particles, and compares; resumes what is there.

    Args:
      config: the settings.
      workdir: the folder of all runs, and of table and pictures.
      data_dir: where the table of wines is.

    Returns:
      The rows of the table.

    Raises:
      UsageError: a setting out of its range, or a work folder with another run.
      DataError: the table is missing or damaged.
      StorageError: the work folder cannot be used.
      DivergenceError: particles are not finite.
      Terminated: a signal came; the state is saved.
    """
    root = places.workdir(workdir)
    validate(config)
    posterior = posteriors.red_wine(
        data_dir, seed=config.seed, prior_precision=config.prior_precision
    )
    if config.batch_size is not None and config.batch_size > len(posterior.labels):
        raise UsageError(
            f"batch_size: got {config.batch_size}; expected at most the {len(posterior.labels)} "
            "training rows"
        )
    start_key, chain_key, subset_key = jax.random.split(jax.random.key(config.seed), 3)
    draws = 4 * config.num_chains * config.num_draws * posterior.dimension
    memory.require(config, ("num_chains", "num_draws"), 2 * draws)
    with Workdir(root, config, free_fields=("num_particles", "lengthscales")) as folder:
        starts = _prior_draws(start_key, config, config.num_chains, posterior.dimension)
        chains = long_chains.run(
            chain_key,
            starts,
            posterior.log_density,
            num_warmup=config.num_warmup,
            num_draws=config.num_draws,
        )
        reference = agreement.make_reference(chains.pooled)
        histories: Histories = {}
        for rule, n in itertools.product(config.lengthscales, config.num_particles):
            one = dataclasses.replace(config, lengthscales=(rule,), num_particles=(n,))
            with Workdir(folder.below(f"{rule}/particles{n}"), one) as own, Signals() as signals:
                histories[rule, n] = _move(one, posterior, reference, own, signals)
        ksd_of_n = {
            n: agreement.ksd_of_draws(subset_key, posterior, reference, n)
            for n in config.num_particles
        }
        rows = _rows(config, posterior, chains, reference, histories, ksd_of_n)
        particles.write(folder, rows, chains, histories, ksd_of_n)
    return rows


def make_step(
    posterior: LogisticPosterior, config: Config
) -> Callable[[SVGDState, Key], tuple[SVGDState, svgd.SVGDInfo]]:
    """Returns (state, key) -> (state, info) for the one rule of the lengthscale in a config."""
    (rule,) = config.lengthscales
    optimizer = _optimizer(config)

    def score_fn(particles: Array, key: Key) -> Array:
        if config.batch_size is None:
            return posterior.score(particles)
        rows = jax.random.choice(key, len(posterior.labels), (config.batch_size,), replace=False)
        return jax.vmap(jax.grad(posterior.minibatch_log_density), (0, None))(particles, rows)

    def step(state: SVGDState, key: Key) -> tuple[SVGDState, svgd.SVGDInfo]:
        kernel = kernels.rbf_mixture(LENGTHSCALES[rule](state.particles))
        return svgd.step(state, lambda particles: score_fn(particles, key), kernel, optimizer)

    return step


def _optimizer(config: Config) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
    return OPTIMIZERS[config.optimizer](schedule)


def _move(
    config: Config,
    posterior: LogisticPosterior,
    reference: Reference,
    folder: Workdir,
    signals: Signals,
) -> list[Record]:
    """Moves particles from the prior, of one number by one rule, and returns the records."""
    (rule,), (n,) = config.lengthscales, config.num_particles
    start_key, step_key = jax.random.split(jax.random.key(config.seed))

    def start(key: Key) -> SVGDState:
        particles = _prior_draws(key, config, n, posterior.dimension)
        return svgd.init(particles, _optimizer(config))

    move = jax.jit(make_step(posterior, config))
    judge = jax.jit(functools.partial(agreement.measure, posterior, reference))

    def advance(
        state: SVGDState, step: int, count: int, tick: Callable[[int], Any]
    ) -> tuple[SVGDState, dict[str, Array]]:
        state, info = move(state, jax.random.fold_in(step_key, step))
        tick(count)
        return state, {"finite": info.finite}

    def evaluate(step: int, state: SVGDState) -> Record:
        return {name: float(value) for name, value in judge(state.particles).items()}

    loop.run(
        folder,
        signals,
        loop.begin(folder, functools.partial(start, start_key)),
        advance,
        evaluate,
        Schedule(config.num_steps, config.eval_every),
        name=f"{rule} rule, {n} particles",
        curves=charts.learning_curves,
    )
    return folder.history()


def _prior_draws(key: Key, config: Config, n: int, dimension: int) -> Array:
    return jax.random.normal(key, (n, dimension)) / math.sqrt(config.prior_precision)


def time_steps(posterior: LogisticPosterior, config: Config, n: int) -> dict[str, float | str]:
    """Returns the milliseconds of a step with n particles, SVGD's rule and full score included.

    Both libraries step in turns, from the same particles by plain gradient ascent.

    Args:
      posterior: what is sampled.
      config: for prior and seed.
      n: number of particles.

    Returns:
      Milliseconds by library, or why there are none.
    """
    particles = _prior_draws(jax.random.key(config.seed), config, n, posterior.dimension) / 10
    runs: dict[str, Timed] = {}
    times: dict[str, float | str] = {}
    optimizer = optax.sgd(1e-6)

    @jax.jit
    def ours(state: SVGDState) -> SVGDState:
        kernel = kernels.rbf_mixture(kernels.svgd_lengthscale(state.particles))
        return svgd.step(state, posterior.score, kernel, optimizer)[0]

    runs["kernelgrad"] = Timed(ours, svgd.init(particles, optimizer))
    if importlib.util.find_spec("blackjax") is None:
        times["blackjax"] = "not installed"
    elif n > _MOST_PEER_PARTICLES:
        times["blackjax"] = "not timed: O(n^2 d) memory"
    else:
        runs["blackjax"] = _blackjax(posterior, particles, optimizer)
    return timing.time_in_turns(runs) | times


def _blackjax(
    posterior: LogisticPosterior, particles: Array, optimizer: optax.GradientTransformation
) -> Timed:
    from blackjax.vi import svgd as peer

    move = peer.build_kernel(optimizer)
    gradient = jax.grad(posterior.log_density)

    @jax.jit
    def step(state: Any) -> Any:
        return move(peer.update_median_heuristic(state), gradient, peer.rbf_kernel)

    return Timed(step, peer.init(particles, {"length_scale": 1.0}, optimizer))


def _rows(
    config: Config,
    posterior: LogisticPosterior,
    chains: Chains,
    reference: Reference,
    histories: Histories,
    ksd_of_n: dict[int, float],
) -> dict[str, dict[str, float | str]]:
    rows: dict[str, dict[str, float | str]] = {}
    times = {n: time_steps(posterior, config, n) for n in config.num_particles}
    for (rule, n), history in histories.items():
        figures = {name: value for name, value in history[-1].items() if name != "step"}
        rows[f"{rule} rule, {n}"] = {
            **figures,
            "ksd of n draws": ksd_of_n[n],
            **{f"ms, {name}": value for name, value in times[n].items()},
        }
    chain = posterior.predictive(reference.draws)
    rows[f"HMC, {len(reference.draws)} draws"] = {
        "test_accuracy": float(chain.accuracy),
        "test_log_likelihood": float(chain.log_likelihood),
        "mean_error": f"{chains.effective_draws**-0.5:.2g} (expected)",
    }
    return rows


def validate(config: Config) -> None:
    """Raises UsageError for the first setting out of its range, before anything is compiled."""
    fields.validate(config)
    largest, most = max(config.num_particles), config.num_chains * config.num_draws
    if largest > most:
        raise UsageError(
            f"num_particles: got {largest}; expected at most the {most} draws of the chains, "
            "num_chains x num_draws"
        )


def main() -> None:
    """Parses the flags and compares."""
    command.main_in_workdir(run, Config)


if __name__ == "__main__":
    main()
