r"""The algebra of directions: seen through features, divided by their size, added up.

Each function takes objectives and returns one, of two players where one of them is, so that they
nest: :math:`\sum_l w_l\, \phi_l / \mathrm{rms}(\phi_l)` of directions in several feature spaces is
``weighted([(w, normalized(through(features, objective))), ...])``.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp

from kernelgrad import _checks, _devices, _numeric
from kernelgrad._players import CriticFn, PlayerFn, TwoPlayer
from kernelgrad.types import Array, Info, Key, Objective

Features = Callable[[Array], Array]
Weight = float | Array

_FEATURES = "(points) -> features"
_ENTRIES = "a function, or a list of (function, weight) or (function, weight, objective)"
_OBJECTIVE = "(key, samples, data, *, axis_name) -> (direction like samples, info)"
_LOSS = "(samples, data) -> ()"


@overload
def through(features: Features, objective: Objective) -> Objective: ...
@overload
def through(features: Features, objective: TwoPlayer) -> TwoPlayer: ...
@overload
def through(
    features: Sequence[tuple[Any, ...]], objective: Objective | TwoPlayer | None = None
) -> Objective | TwoPlayer: ...
def through(
    features: Features | Sequence[tuple[Any, ...]], objective: Objective | TwoPlayer | None = None
) -> Objective | TwoPlayer:
    r"""Returns the objective between features, its direction pulled back to the samples.

    .. math:: d_i = J_i^\top \phi_i(f(x), f(y)), \quad J_i = \partial f(x_i) / \partial x_i

    The sign is that of the objective. This is the gradient of the discrepancy between the features
    of both clouds, and so what a generator with f on top of it would descend. Of several features
    the pulled-back directions are added up, times their weights.

    A :func:`kernelgrad.kernels.feature_kernel` asks another question: there the kernel compares
    features, but the estimate is one in sample space. For MMD^2 both are the same function of the
    samples, and so the same direction. The Stein estimate behind KL[q || p] is not: through
    features it estimates the densities of the features, where they have few dimensions; with a
    feature kernel it estimates the score of the samples, for which each kernel gradient is pulled
    back at the other point of its pair: a backward pass for every feature, or every point.

    Args:
      features: f, (n, ...) -> (n, l), each row on its own, parameters bound; or a list of (f,
        weight) or (f, weight, objective), each with an objective of its own or the common one.
      objective: between the features; of two players: the critic sees them, and only one of
        several features may have a critic. None: each of the features has its own.

    Returns:
      Objective, of two players where one of the objectives is; infos of the objective, or of
      :func:`weighted` for a list.

    Raises:
      ValueError: an entry of another form, a weight that is not finite, or more than one critic.
        Where the objective is called: features of another number of rows, not finite where they
        are concrete, or without a gradient in the samples.

    Cost: that of the objective in l dimensions, a forward and a backward pass of f for the samples
      and a forward pass for the data.

    Example:
      >>> from kernelgrad import objectives
      >>> objective = objectives.through(lambda x: 2.0 * x, objectives.energy_distance())
      >>> direction, _ = objective(jax.random.key(0), jnp.array([[0.0]]), jnp.array([[3.0]]))
      >>> print(direction)  # -2 between the features, times their slope
      [[-4.]]
    """
    if not callable(features):
        if not isinstance(features, Sequence):
            raise ValueError(f"features: got {type(features).__name__}; expected {_ENTRIES}")
        return weighted([_entry(index, one, objective) for index, one in enumerate(features)])
    if objective is None:
        raise ValueError(f"objective: got None; expected {_OBJECTIVE}")
    follow = _direction_of(objective)

    def direction_fn(
        critic_fn: CriticFn,
        key: Key,
        samples: Array,
        data: Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[Array, Info]:
        samples, data = _checks.batches(samples=samples, data=data)
        view = functools.partial(_viewed, features)
        _differentiable(view, samples)
        seen, pull = jax.vjp(view, _devices.own_point(view, samples))
        direction, info = _followed(follow, critic_fn, key, seen, view(data), axis_name)
        direction = _devices.varying(_numeric.like(direction, seen), seen)
        if jax.typeof(direction) != jax.typeof(seen):  # each device's own, of samples of them all
            _, pull = jax.vjp(view, _devices.varying(samples, direction))
        (pulled,) = pull(direction)
        return pulled, info

    return _with_direction(_seeing(features, objective), direction_fn)


@overload
def normalized(objective: Objective) -> Objective: ...
@overload
def normalized(objective: TwoPlayer) -> TwoPlayer: ...
def normalized(objective: Objective | TwoPlayer) -> Objective | TwoPlayer:
    r"""Returns the objective with its direction divided by its size.

    .. math:: d_i = \phi_i \Big/ \sqrt{\tfrac1n \sum_j |\phi_j|^2}

    The samples then move as far while the clouds are close as they do while they are apart. A
    critic's loss stays as it is.

    Args:
      objective: whose direction is divided.

    Returns:
      Objective, of two players where that one is; n counts the union of all devices' samples. A
      direction of zeros stays one. Infos of the objective, and ``rms``, what was divided by, unless
      the objective has an info of that name.

    Example:
      >>> from kernelgrad import objectives
      >>> objective = objectives.normalized(objectives.energy_distance())
      >>> direction, info = objective(jax.random.key(0), jnp.array([[0.0]]), jnp.array([[3.0]]))
      >>> round(float(direction[0, 0]), 3), round(float(info["rms"]), 3)
      (-1.0, 2.0)
    """
    follow = _direction_of(objective)

    def direction_fn(
        critic_fn: CriticFn,
        key: Key,
        samples: Array,
        data: Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[Array, Info]:
        direction, info = _followed(follow, critic_fn, key, samples, data, axis_name)
        unit, rms = _devices.over_rms(_numeric.wide(direction), axis_name)
        return _numeric.like(unit, direction), {"rms": rms, **info}

    return _with_direction(objective, direction_fn)


@overload
def weighted(parts: Sequence[tuple[Weight, Objective]]) -> Objective: ...
@overload
def weighted(
    parts: Sequence[tuple[Weight, Objective | TwoPlayer]],
) -> Objective | TwoPlayer: ...
def weighted(
    parts: Sequence[tuple[Weight, Objective | TwoPlayer]],
) -> Objective | TwoPlayer:
    r"""Returns the objective whose direction is a weighted sum of directions.

    .. math:: d_i = \sum_l w_l \phi_{l, i}

    Args:
      parts: (weight, objective) of each term; a negative weight ascends. At most one objective of
        two players: its critic's loss is the sum's.

    Returns:
      Objective, of two players where one of the parts is. An info of part l is named after that
      of its objective and l: ``mmd/0``. Each part has a random key of its own.

    Raises:
      ValueError: no part, one of another form, a weight that is not finite, or more than one
        critic.

    Example:
      >>> from kernelgrad import objectives
      >>> parts = [(1.0, objectives.energy_distance()), (0.5, objectives.energy_distance())]
      >>> objective = objectives.weighted(parts)
      >>> direction, info = objective(jax.random.key(0), jnp.array([[0.0]]), jnp.array([[3.0]]))
      >>> round(float(direction[0, 0]), 3), sorted(info)  # 1.5 times -2
      (-3.0, ['mmd/0', 'mmd/1'])
    """
    weights, objectives = _parts(parts)
    critics = [one for one in objectives if isinstance(one, TwoPlayer)]
    if len(critics) > 1:
        raise ValueError(
            f"objective: got {len(critics)} with a critic; expected at most one in a sum. One "
            "critic sees several features where one function joins them"
        )
    follows = [_direction_of(one) for one in objectives]

    def direction_fn(
        critic_fn: CriticFn,
        key: Key,
        samples: Array,
        data: Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[Array, Info]:
        infos: Info = {}
        terms = []
        for index, (weight, follow) in enumerate(zip(weights, follows, strict=True)):
            own_key = jax.random.fold_in(key, index)
            direction, info = _followed(follow, critic_fn, own_key, samples, data, axis_name)
            terms.append(_numeric.like(weight, direction) * direction)
            infos |= {f"{name}/{index}": value for name, value in info.items()}
        return functools.reduce(jnp.add, terms), infos

    return _with_direction(critics[0] if critics else objectives[0], direction_fn)


def from_loss(loss: Callable[[Array, Array], Array]) -> Objective:
    r"""Returns the objective that descends any differentiable function of both clouds.

    .. math:: d_i = n \nabla_{x_i} L(x, y)

    n times the gradient, for the pull-back takes a mean over samples where the gradient of a
    function of all of them asks for a sum.

    Args:
      loss: L, (samples (n, ...), data (m, ...)) -> (), such as ``functools.partial(
        mmd.mmd_u_statistic, kernel=kernel)``.

    Returns:
      Objective with info ``loss``. On several devices each takes the gradient of L at the union of
      all samples and data, which L gets in at least float32.

    Raises:
      ValueError: where the objective is called, a loss that does not take that or return a floating
        number.

    Example:
      >>> from kernelgrad import objectives
      >>> objective = objectives.from_loss(lambda x, y: jnp.mean(x**2) - jnp.mean(y**2))
      >>> samples, data = jnp.array([[1.0], [3.0]]), jnp.ones((2, 1))
      >>> direction, info = objective(jax.random.key(0), samples, data)
      >>> print(direction.T, info["loss"])  # n times the gradient, 2 x / n
      [[2. 6.]] 4.0
    """

    def objective(
        key: Key, samples: Array, data: Array, *, axis_name: str | None = None
    ) -> tuple[Array, Info]:
        del key
        samples, data = _checks.batches(samples=samples, data=data)
        everyone, others = (
            _devices.gather(_numeric.wide(points), axis_name) for points in (samples, data)
        )

        def value_at(points: Array) -> Array:
            value = _checks.call("loss", _LOSS, loss, points, others)
            return _numeric.wide(_checks.scalar("loss", value))

        point = _devices.own_point(value_at, everyone)
        value, gradient = jax.value_and_grad(value_at)(point)
        direction = _devices.share(everyone.shape[0] * gradient, axis_name)
        return _numeric.like(direction, samples), {"loss": _devices.agreed(value, axis_name)}

    return objective


# --------------------------------------------------------------------------- objectives of any kind


def _direction_of(objective: Objective | TwoPlayer) -> PlayerFn:
    """Returns the direction of an objective as a function of a critic, if it has one or not."""
    if isinstance(objective, TwoPlayer):
        return objective.direction
    if not callable(objective):
        raise ValueError(f"objective: got {type(objective).__name__}; expected {_OBJECTIVE}")
    return lambda critic_fn, *batch, axis_name=None: _checks.call(
        "objective", _OBJECTIVE, objective, *batch, axis_name=axis_name
    )


def _with_direction(objective: Objective | TwoPlayer, direction: PlayerFn) -> Any:
    """Returns an objective of the same kind with another direction."""
    if isinstance(objective, TwoPlayer):
        return dataclasses.replace(objective, direction=direction)
    return functools.partial(direction, None)  # type: ignore[arg-type]  # there is no critic


def _followed(
    follow: PlayerFn,
    critic_fn: CriticFn,
    key: Key,
    samples: Array,
    data: Array,
    axis_name: str | None,
) -> tuple[Array, Info]:
    """Returns direction and info, of an objective that keeps to its form, at arrays."""
    samples, data = _checks.batches(samples=samples, data=data)
    output = follow(critic_fn, key, samples, data, axis_name=axis_name)
    direction, info = _checks.two_returned("objective", _OBJECTIVE, output)
    (direction,) = _checks.floating(**{"direction of objective": direction})
    if jnp.shape(direction) != samples.shape:
        got = f"shape {jnp.shape(direction)} for {samples.shape}"
        raise ValueError(f"objective: returned {got}; expected {_OBJECTIVE}")
    return direction, info


def _parts(parts: Any) -> tuple[list[Any], list[Any]]:
    """Returns the weights and the objectives of a sum, or raises ValueError."""
    form = "(weight, objective)"
    if not isinstance(parts, Sequence) or not parts:
        got = "none" if isinstance(parts, Sequence) else type(parts).__name__
        raise ValueError(f"parts: got {got}; expected a list of {form}")
    pairs = [_checks.two_returned(f"parts[{i}]", form, part) for i, part in enumerate(parts)]
    for index, (weight, _) in enumerate(pairs):
        _checks.shape(f"parts[{index}] weight", weight, ())
        _checks.in_range(f"parts[{index}] weight", weight, -float("inf"), float("inf"))
    return [weight for weight, _ in pairs], [objective for _, objective in pairs]


# --------------------------------------------------------------------------------------- features


def _entry(index: int, entry: Any, objective: Any) -> tuple[Any, Any]:
    """Returns (weight, objective through the features) of an entry of a list of features."""
    if not isinstance(entry, tuple | list) or len(entry) not in (2, 3) or not callable(entry[0]):
        raise ValueError(f"features[{index}]: got {type(entry).__name__}; expected {_ENTRIES}")
    own = entry[2] if len(entry) == 3 else objective
    return entry[1], through(entry[0], own)


def _seeing(features: Features, objective: Any) -> Any:
    """Returns an objective of two players whose critic learns from features; any other as is."""
    if not isinstance(objective, TwoPlayer):
        return objective

    def critic_loss(
        critic_fn: CriticFn,
        key: Key,
        samples: Array,
        data: Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[Array, Info]:
        samples, data = _checks.batches(samples=samples, data=data)
        seen = [_viewed(features, points) for points in (samples, data)]
        return objective.critic_loss(critic_fn, key, *seen, axis_name=axis_name)

    def view(points: Array) -> Array:
        return objective.view(_viewed(features, points))

    return dataclasses.replace(objective, critic_loss=critic_loss, view=view)


def _viewed(features: Features, points: Array) -> Array:
    """Returns the features of points, from a function that keeps to its form."""
    seen = _checks.call("features", _FEATURES, features, points)
    _checks.rows("features", _FEATURES, seen, points.shape[0])
    (seen,) = _checks.batches(features=seen)
    _checks.finite(features=seen)
    return seen


def _differentiable(view: Features, points: Array) -> None:
    """Raises ValueError where no feature has a derivative in the points, whatever their values."""

    def slope(tangent: Array) -> Array:
        return jax.jvp(view, (points,), (tangent,))[1]

    program = jax.make_jaxpr(slope)(points).jaxpr
    reached = set(program.invars)
    for equation in program.eqns:
        if any(not hasattr(one, "val") and one in reached for one in equation.invars):
            reached |= set(equation.outvars)
    if not any(not hasattr(one, "val") and one in reached for one in program.outvars):
        raise ValueError(
            "features: got a function without a derivative, such as one that stops gradients or "
            "rounds; expected features that change with the points"
        )
