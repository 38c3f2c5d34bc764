"""The rows of the table: what is timed, against whom, at which sizes and with which goals.

A task says how to make its problem from (n, d), who takes part, its floor and its truth. A row is a
task at a size; ROWS lists those that have goals, and any other size works as well, without goals.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable
from typing import Any, Literal

from benchmarks import floors, ours, peers, problems, training
from benchmarks.timing import Call
from experiments.run import threads

OURS = "kernelgrad"
DENSE = "dense JAX"


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to do a task.

    Attributes:
      name: whose it is. Several variants may share a name: the fastest of them is timed.
      build: from the problem to a call; the first call compiles.
      needs: a package that must be installed.
      variant: tells contestants of one name apart.
    """

    name: str
    build: Callable[[Any], Call]
    needs: str = ""
    variant: str = ""


@dataclasses.dataclass(frozen=True)
class Task:
    """What is computed, apart from its size.

    Attributes:
      title: in words.
      problem: from (n, d) to the inputs.
      contestants: ours first.
      floor: seconds that the machine needs at best.
      error: relative distance of our result from the truth.
      error_limit: the largest n for which the truth takes seconds.
      comparable: whether all contestants compute the same.
      isolated: whether each runs in a fresh process first, which measures its memory.
      one_blas_thread: whether LAPACK runs on one thread.
    """

    title: str
    problem: Callable[[int, int], Any]
    contestants: tuple[Contestant, ...]
    floor: floors.Floor | None = None
    error: Callable[[Any, Any], float] | None = None
    error_limit: int = 1_000_000
    comparable: bool = True
    isolated: bool = True
    one_blas_thread: bool = False


@dataclasses.dataclass(frozen=True)
class Goal:
    """A bound to reach.

    Attributes:
      kind: faster: how often faster than `peer`, at least; slower: our time in units of `peer`'s,
        at most; floor, milliseconds, megabytes (above bare JAX), error, first_seconds and
        recompilations: at most; completes: runs within the limits.
      bound: the number.
      peer: a contestant's name, for faster and slower.
    """

    kind: Literal[
        "faster",
        "slower",
        "floor",
        "milliseconds",
        "megabytes",
        "error",
        "first_seconds",
        "recompilations",
        "completes",
    ]
    bound: float = 0.0
    peer: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A task at a size."""

    name: str
    task: Task
    n: int = 0
    d: int = 0
    goals: tuple[Goal, ...] = ()

    def problem(self) -> Any:
        """Returns the inputs."""
        return self.task.problem(self.n, self.d)

    def threads(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context in which the task runs."""
        return threads.one_for_blas() if self.task.one_blas_thread else contextlib.nullcontext()


def _no_problem(n: int, d: int) -> None:
    del n, d


def _training(title: str, ours_step: Callable[[Any], Call]) -> Task:
    contestants = (
        Contestant(OURS, ours_step),
        Contestant("bare step", training.bare_step),
        Contestant("vmapped MMD", training.vmapped_mmd_step),
    )
    return Task(title, training.images, contestants, comparable=False, one_blas_thread=True)


def _importing(title: str, modules: str) -> Task:
    contestants = (
        Contestant(OURS, training.importing(modules)),
        Contestant("jax, optax", training.importing("jax, optax")),
    )
    return Task(title, _no_problem, contestants, comparable=False, isolated=False)


def _digits(geometry: str) -> Task:
    contestants = (
        Contestant(OURS, ours.mmd_in_closed_form),
        Contestant(DENSE, peers.dense_mmd),
    )
    title = f"MMD^2 and gradient, 4 IMQ, {geometry}"
    error = problems.gradient_error
    return Task(title, problems.geometry(geometry), contestants, error=error, error_limit=5000)


TASKS = {
    "svgd": Task(
        "SVGD direction, fixed lengthscale",
        problems.particles,
        (
            Contestant(OURS, ours.svgd_direction),
            Contestant("blackjax", peers.blackjax_direction, "blackjax"),
            Contestant("numpyro", peers.numpyro_direction, "numpyro"),
            Contestant(DENSE, peers.dense_svgd),
        ),
        floors.svgd,
        problems.svgd_error,
    ),
    "svgd_step": Task(
        "SVGD step, exact median lengthscale",
        problems.particles,
        (
            Contestant(OURS, ours.svgd_step),
            Contestant("blackjax", peers.blackjax_step, "blackjax"),
            Contestant(DENSE, peers.dense_step),
        ),
    ),
    "median": Task(
        "exact median of squared distances",
        problems.particles,
        (
            Contestant(OURS, ours.median_squared_distance),
            Contestant(DENSE, peers.dense_median),
            Contestant("SciPy", peers.scipy_median),
        ),
        error=problems.median_error,
        error_limit=20_000,
    ),
    "mmd": Task(
        "MMD^2 and gradient, 4 IMQ",
        problems.two_samples,
        (
            Contestant(OURS, ours.mmd_by_autodiff, variant="value_and_grad"),
            Contestant(OURS, ours.mmd_in_closed_form, variant="mmd_gradient"),
            Contestant("coreax", peers.coreax_mmd, "coreax"),
            Contestant("KeOps", peers.keops_mmd, "pykeops"),
            Contestant(DENSE, peers.dense_mmd),
        ),
        floors.mmd,
        problems.mmd_error,
        10_000,
    ),
    "ksd": Task(
        "KSD^2, V-statistic, IMQ",
        problems.particles,
        (
            Contestant(OURS, ours.stein_discrepancy),
            Contestant("coreax", peers.coreax_ksd(None), "coreax", "whole"),
            Contestant("coreax", peers.coreax_ksd(100), "coreax", "blocks of 100"),
            Contestant("coreax", peers.coreax_ksd(1000), "coreax", "blocks of 1000"),
            Contestant(DENSE, peers.dense_ksd),
        ),
        floors.ksd,
        problems.ksd_error,
        50_000,
    ),
    "stein": Task(
        "Stein score, Cholesky",
        problems.particles,
        (Contestant(OURS, ours.stein_score), Contestant(DENSE, peers.dense_stein)),
        floors.stein,
        problems.stein_error,
        10_000,
    ),
    "digits_one_cloud": _digits("one cloud"),
    "digits_two_clusters": _digits("two clusters"),
    "digits_line_of_clusters": _digits("line of clusters"),
    "digits_heavy_tails": _digits("heavy tails"),
    "two_sample_test": Task(
        "two-sample test, RBF, 999 permutations",
        problems.two_samples,
        (
            Contestant(OURS, ours.two_sample_test),
            Contestant("hyppo", peers.hyppo_test, "hyppo"),
            Contestant(DENSE, peers.dense_two_sample_test),
        ),
        error=problems.two_sample_error,
        error_limit=20_000,
    ),
    "stein_test": Task(
        "goodness-of-fit test, IMQ, 999 bootstraps",
        problems.misfits,
        (Contestant(OURS, ours.goodness_of_fit_test), Contestant(DENSE, peers.dense_fit_test)),
        error=problems.fit_error,
        error_limit=20_000,
    ),
    "kid": Task(
        "kernel inception distance",
        problems.features,
        (
            Contestant(OURS, ours.kernel_inception_distance),
            Contestant("NumPy", peers.numpy_kid),
            Contestant(DENSE, peers.dense_kid),
        ),
        error=problems.kid_error,
        error_limit=10_000,
    ),
    "precision_recall": Task(
        "precision, recall, density, coverage",
        problems.features,
        (
            Contestant(OURS, ours.precision_recall),
            Contestant("prdc", peers.prdc_shares, "prdc"),
            Contestant(DENSE, peers.dense_precision_recall),
        ),
        error=problems.precision_recall_error,
        error_limit=10_000,
    ),
    "ulsif": Task(
        "uLSIF, 100 centers, chosen by leave-one-out among 5 x 5",
        problems.two_samples,
        (
            Contestant(OURS, ours.chosen_ratio),
            Contestant("densratio", peers.densratio_chosen, "densratio"),
        ),
        error=problems.chosen_ratio_error,
        error_limit=20_000,
        one_blas_thread=True,
    ),
    "hmc": Task(
        "HMC step of n chains, 10 leapfrog steps",
        problems.particles,
        (Contestant(OURS, ours.hmc_step), Contestant("blackjax", peers.blackjax_hmc, "blackjax")),
    ),
    "drift": Task(
        "drifting field, 3 temperatures",
        problems.two_samples,
        (Contestant(OURS, ours.drifting_field), Contestant(DENSE, peers.dense_drift)),
        error=problems.drift_error,
        error_limit=10_000,
    ),
    "sliced_energy": Task(
        "sliced energy distance and gradient, 64 lines",
        problems.two_samples,
        (
            Contestant(OURS, ours.sliced_energy),
            Contestant("NumPy", peers.numpy_sliced),
            Contestant(DENSE, peers.dense_sliced),
        ),
        error=problems.sliced_error,
    ),
    "train_kl": _training("training step, KL, batch x width", training.kl_step),
    "train_mmd": _training("training step, MMD, batch x width", training.mmd_step),
    "import": _importing("import kernelgrad", "kernelgrad"),
    "import_all": _importing("import every module", training.every_module()),
    "compile": Task(
        "training step of `make run`",
        _no_problem,
        (Contestant(OURS, training.first_run),),
        comparable=False,
        one_blas_thread=True,
    ),
}


def _faster(bound: float, peer: str) -> Goal:
    return Goal("faster", bound, peer)


ROWS: dict[str, tuple[Goal, ...]] = {
    "svgd-1000x50": (_faster(100, "blackjax"), _faster(40, "numpyro")),
    "svgd-5000x50": (_faster(100, "blackjax"), _faster(40, "numpyro"), Goal("floor", 2.3)),
    "svgd-5000x784": (Goal("floor", 1.25),),
    "svgd-20000x50": (Goal("floor", 1.4), Goal("megabytes", 150)),
    "svgd-20000x2": (Goal("floor", 2.3),),
    "svgd-100000x50": (Goal("completes"),),
    "svgd_step-1000x50": (_faster(25, "blackjax"),),
    "svgd_step-5000x50": (_faster(60, "blackjax"),),
    "median-5000x50": (_faster(15, DENSE), Goal("error", 1e-6)),
    "mmd-100x784": (Goal("milliseconds", 1.3),),
    "mmd-1000x50": (_faster(30, "coreax"),),
    "mmd-5000x50": (
        _faster(30, "KeOps"),
        Goal("floor", 2),
        Goal("megabytes", 100),
        Goal("error", 1e-6),
    ),
    "mmd-5000x784": (Goal("floor", 1.3), Goal("error", 1e-6)),
    "ksd-1000x50": (_faster(15, "coreax"),),
    "ksd-5000x50": (_faster(40, "coreax"),),
    "ksd-50000x50": (Goal("floor", 2.2),),
    "stein-1000x50": (Goal("error", 1e-3),),
    "stein-8000x50": (Goal("floor", 2), Goal("error", 1e-3)),
    "digits_one_cloud-1000x50": (Goal("error", 1e-5),),
    "digits_two_clusters-1000x50": (Goal("error", 1e-5),),
    "digits_line_of_clusters-1000x50": (Goal("error", 1e-5),),
    "digits_heavy_tails-1000x50": (Goal("error", 1e-5),),
    "two_sample_test-100x50": (_faster(1, "hyppo"), _faster(1, DENSE)),
    "two_sample_test-2000x50": (_faster(1, "hyppo"), _faster(1, DENSE)),
    "stein_test-2000x50": (_faster(1, DENSE),),
    "kid-5000x512": (_faster(1, "NumPy"), _faster(1, DENSE)),
    "precision_recall-5000x512": (_faster(1, "prdc"), _faster(1, DENSE)),
    "ulsif-1000x10": (_faster(1, "densratio"),),
    "hmc-1000x50": (_faster(1, "blackjax"),),
    "drift-1000x50": (_faster(1, DENSE),),
    "sliced_energy-5000x50": (_faster(1, "NumPy"), _faster(1, DENSE)),
    "train_kl-100x64": (Goal("slower", 1.1, "bare step"),),
    "train_mmd-100x64": (Goal("slower", 1.03, "bare step"),),
    "import": (Goal("slower", 1.15, "jax, optax"),),
    "import_all": (Goal("slower", 1.15, "jax, optax"),),
    "compile": (Goal("first_seconds", 15), Goal("recompilations", 0)),
}


def find(name: str) -> Row:
    """Returns the row of a name such as svgd-1000x50, or of a task without a size.

    Raises:
      ValueError: no such task, or no size where one is needed.
    """
    found = re.fullmatch(r"(\w+)(?:-([1-9]\d*)x([1-9]\d*))?", name)
    task = TASKS.get(found[1]) if found else None
    sized = task is not None and task.problem is not _no_problem
    if found is None or task is None or sized != bool(found[2]):
        known = ", ".join(TASKS)
        raise ValueError(f"row: got {name!r}; expected task-NxD, the task one of {known}")
    n, d = (int(found[2]), int(found[3])) if sized else (0, 0)
    return Row(name, task, n, d, ROWS.get(name, ()))


def select(names: str) -> list[Row]:
    """Returns the rows of a comma-separated list: tasks, all of their sizes, or rows; "": all.

    Raises:
      ValueError: an entry is neither.
    """
    chosen: dict[str, Row] = {}
    for entry in filter(None, names.split(",")) if names else TASKS:
        listed = [name for name in ROWS if name == entry or name.startswith(f"{entry}-")]
        chosen |= {name: find(name) for name in listed or [entry]}
    return list(chosen.values())
