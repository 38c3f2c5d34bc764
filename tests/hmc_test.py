"""HMC: leapfrog's closed forms, exact-start invariance, rejections, divergence, transforms."""

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import lax

from kernelgrad import _markov, hmc

CHAINS = 100_000
NUM_STEPS = 10
CORRELATED = np.array([[1.0, 0.8], [0.8, 2.0]])


def _normal(x):
    return -0.5 * jnp.sum(x**2)


def _gaussian(precision, x):
    return -0.5 * jnp.dot(x, precision @ x)


def _wall(outside, x):
    """Exp(1), with something else beyond 0."""
    return jnp.where(x > 0, -x, outside)


def _quartic(x):
    return -jnp.sum(x["a"] ** 4) - 0.5 * jnp.sum((x["b"] - x["a"][0]) ** 2)


def _run(key, positions, density, data, **options):
    """Moves every position NUM_STEPS times; returns all states, steps in front, and the infos."""
    num_chains = jax.tree.leaves(positions)[0].shape[0]
    keys = jax.random.split(key, (NUM_STEPS, num_chains))
    return _scan(keys, positions, density, data, options)


@functools.partial(jax.jit, static_argnames="density")
def _scan(keys, positions, density, data, options):
    fn = functools.partial(density, data)

    def move(states, keys):
        states, infos = jax.vmap(lambda k, s: hmc.step(k, s, fn, **options))(keys, states)
        return states, (states, infos)

    start = jax.vmap(lambda x: hmc.init(x, fn))(positions)
    _, (states, infos) = jax.lax.scan(move, start, keys)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, states), infos


# The integrator against its closed forms.


def test_leapfrog_is_reversible(rng):
    with jax.enable_x64(True):
        position = {"a": jnp.asarray(rng.normal(size=2)), "b": jnp.asarray(rng.normal(size=(3, 2)))}
        momentum = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), position)
        go = functools.partial(
            hmc.leapfrog,
            log_density_fn=_quartic,
            step_size=0.2,
            num_leapfrog_steps=20,
            inverse_mass={"a": 0.5, "b": jnp.array([2.0, 0.3])},
        )
        there, end = go(hmc.init(position, _quartic), momentum)
        back, last = go(there, jax.tree.map(jnp.negative, end))
    assert np.abs(there.position["a"] - position["a"]).max() > 0.1
    chex.assert_trees_all_close(back.position, position, rtol=0, atol=1e-12)
    chex.assert_trees_all_close(last, jax.tree.map(jnp.negative, momentum), rtol=0, atol=1e-12)


def test_leapfrog_preserves_volume(rng):
    def density(x):
        return _quartic({"a": x[:1], "b": x[1:]})

    def flow(phase):
        state, momentum = hmc.leapfrog(
            hmc.init(phase[:3], density),
            phase[3:],
            density,
            step_size=0.3,
            num_leapfrog_steps=7,
            inverse_mass=jnp.array([0.5, 1.0, 3.0]),
        )
        return jnp.concatenate([state.position, momentum])

    with jax.enable_x64(True):
        jacobian = jax.jit(jax.jacfwd(flow))(jnp.asarray(rng.normal(size=6)))
        assert np.abs(jacobian - np.eye(6)).max() > 0.1
        assert abs(np.linalg.det(jacobian) - 1) < 1e-12


def _oscillator(step_size, length, x=1.0, p=0.5):
    """Positions and momenta of one trajectory on N(0, 1), every leapfrog step."""

    def move(carry, _):
        carry = hmc.leapfrog(*carry, _normal, step_size=step_size, num_leapfrog_steps=1)
        return carry, (carry[0].position, carry[1])

    start = hmc.init(jnp.asarray(x), _normal), jnp.asarray(p)
    _, (xs, ps) = jax.lax.scan(move, start, length=length)
    return np.asarray(xs), np.asarray(ps)


@pytest.mark.parametrize("step_size", [0.1, 1.2, 1.99])
def test_harmonic_oscillator_conserves_its_ellipse_and_turns_by_its_angle(step_size):
    with jax.enable_x64(True):
        xs, ps = _oscillator(step_size, 200)
    radius = ps**2 + (1 - step_size**2 / 4) * xs**2
    np.testing.assert_allclose(radius, 0.25 + (1 - step_size**2 / 4), rtol=1e-12)
    np.testing.assert_allclose(xs[2:] + xs[:-2], (2 - step_size**2) * xs[1:-1], atol=1e-12)


def test_harmonic_oscillator_is_unstable_above_two():
    with jax.enable_x64(True):
        assert np.abs(_oscillator(2.01, 200)[0]).max() > 1e6


def test_energy_error_is_of_second_order():
    step_sizes = np.array([0.4, 0.2, 0.1, 0.05])
    with jax.enable_x64(True):
        runs = [_oscillator(step_size, round(12 / step_size)) for step_size in step_sizes]
    errors = [np.abs((xs**2 + ps**2) / 2 - 0.625).max() for xs, ps in runs]
    np.testing.assert_allclose(errors, [0.0199787, 0.0049941, 0.0012497, 0.0003125], atol=5e-8)
    slope = np.polyfit(np.log(step_sizes), np.log(errors), 1)[0]
    assert abs(slope - 2) < 0.01


def test_one_gradient_per_leapfrog_step(key):
    calls = []

    def counting(x):
        jax.debug.callback(lambda: calls.append(1))
        return _normal(x)

    @jax.jit
    def step(key, state):
        return hmc.step(key, state, counting, step_size=0.1, num_leapfrog_steps=5)

    step(key, hmc.init(jnp.ones(2), _normal))
    jax.effects_barrier()
    assert len(calls) == 5


# Stationarity: start from exact samples, move, and look for a change. E exp(-energy error) is 1.


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("covariance", "step_size", "num_leapfrog_steps", "inverse_mass"),
    [
        (np.eye(2), 1.2, 3, (1.0, 1.0)),
        (np.eye(2), 1.6, 2, (1.0, 1.0)),
        (np.eye(2), 0.8, 3, (3.0, 0.5)),
        (CORRELATED, 0.9, 3, (1.0, 1.0)),
        (CORRELATED, 0.8, 3, (0.5, 2.5)),
    ],
)
def test_exact_start_stays_exact(key, rng, covariance, step_size, num_leapfrog_steps, inverse_mass):
    """With the gradient of a rejected proposal kept, 1.6 gives the variance 3.17 instead of 1."""
    start = rng.multivariate_normal(np.zeros(2), covariance, CHAINS)
    states, infos = _run(
        key,
        jnp.asarray(start, jnp.float32),
        _gaussian,
        jnp.asarray(np.linalg.inv(covariance), jnp.float32),
        step_size=step_size,
        num_leapfrog_steps=num_leapfrog_steps,
        inverse_mass=jnp.array(inverse_mass),
    )
    assert 0.5 < infos.acceptance_probability.mean() < 0.95
    for after in (1, NUM_STEPS):
        assert np.abs(oracles.moments_z(states.position[after], covariance)).max() < 5
    weights = np.exp(-np.asarray(infos.energy_error[0], np.float64))
    assert abs(weights.mean() - 1) < 5 * weights.std() / np.sqrt(CHAINS)


def test_overdispersed_start_mixes(key, rng):
    start = rng.normal(3, 5, size=(CHAINS, 2))
    states, _ = _run(
        key,
        jnp.asarray(start, jnp.float32),
        _gaussian,
        jnp.asarray(np.linalg.inv(CORRELATED), jnp.float32),
        step_size=0.4,
        num_leapfrog_steps=4,
        inverse_mass=jnp.ones(2),
    )
    assert np.abs(oracles.moments_z(states.position[-1], CORRELATED)).max() < 5


@pytest.mark.thorough
def test_exact_start_stays_exact_on_a_pytree(key, rng):
    deviation = {"a": np.float32(0.5), "b": np.float32(2)}
    start = {name: jnp.asarray(rng.normal(size=(CHAINS, 2)), jnp.float32) for name in "ab"}

    def density(scales, x):
        return -0.5 * sum(jnp.sum((x[name] / scales[name]) ** 2) for name in "ab")

    states, infos = _run(
        key,
        jax.tree.map(jnp.multiply, deviation, start),
        density,
        deviation,
        step_size=1.1,
        num_leapfrog_steps=2,
        inverse_mass={"a": 0.25, "b": jnp.array([4.0, 3.0])},
    )
    assert 0.5 < infos.acceptance_probability.mean() < 0.95
    samples = np.concatenate([states.position["a"][-1], states.position["b"][-1]], axis=1)
    assert np.abs(oracles.moments_z(samples, np.diag([0.25, 0.25, 4.0, 4.0]))).max() < 5


# One step: its energy, its units, its rejections, its divergence.


def _float64_run(key, start, scale=(1.0, 1.0)):
    """Steps on N(0, diag(scale^2)) with the inverse mass scale^2, from scale * start."""
    scale = jnp.asarray(scale)
    return _run(
        key,
        jnp.asarray(start) * scale[None],
        _gaussian,
        jnp.diag(scale**-2),
        step_size=1.2,
        num_leapfrog_steps=3,
        inverse_mass=scale**2,
    )


@pytest.mark.thorough
def test_energy_error_is_the_difference_of_hamiltonians(key, rng):
    """Squared momenta of the accepted ends come back from the conserved ellipse."""
    with jax.enable_x64(True):
        states, infos = _float64_run(key, rng.normal(size=(200, 2)))
    accepted = np.asarray(infos.accepted)
    square = np.sum(np.asarray(states.position) ** 2, axis=-1)
    expected = 1.2**2 / 8 * (square[1:] - square[:-1])
    np.testing.assert_allclose(infos.energy_error[accepted], expected[accepted], atol=1e-12)
    np.testing.assert_allclose(
        infos.acceptance_probability, np.exp(-np.maximum(infos.energy_error, 0)), atol=1e-12
    )


@pytest.mark.thorough
def test_inverse_mass_is_a_change_of_units(key, rng):
    start, scale = rng.normal(size=(200, 2)), np.array([0.3, 5.0])
    with jax.enable_x64(True):
        plain, plain_infos = _float64_run(key, start)
        scaled, scaled_infos = _float64_run(key, start, scale)
    np.testing.assert_allclose(scaled.position, np.asarray(plain.position) * scale, atol=1e-11)
    chex.assert_trees_all_close(scaled_infos, plain_infos, atol=1e-11)


def test_a_rejected_step_keeps_everything(key, rng):
    with jax.enable_x64(True):
        states, infos = jax.tree.map(np.asarray, _float64_run(key, rng.normal(size=(200, 2))))
    accepted = infos.accepted
    assert 0.1 < accepted.mean() < 0.95
    before, after = (jax.tree.map(cut, states) for cut in (lambda x: x[:-1], lambda x: x[1:]))
    for was, kept in zip(before, after, strict=True):
        np.testing.assert_array_equal(kept[~accepted], was[~accepted])
    assert np.all(np.any(before.position != after.position, axis=-1)[accepted])
    np.testing.assert_allclose(after.gradient, -after.position, atol=1e-12)
    np.testing.assert_allclose(
        after.log_density, -0.5 * np.sum(after.position**2, axis=-1), atol=1e-12
    )


@pytest.mark.thorough
@pytest.mark.parametrize("outside", [np.nan, np.inf, -np.inf])
def test_a_broken_energy_is_rejected_and_the_chain_lives_on(key, rng, outside):
    num_chains = CHAINS // 5
    start = jnp.asarray(rng.exponential(size=num_chains), jnp.float32)
    states, infos = _run(key, start, _wall, outside, step_size=0.3, num_leapfrog_steps=2)
    diverged = np.asarray(infos.diverged)
    assert 0.05 < diverged.mean() < 0.5
    assert not np.any(infos.accepted & diverged)
    assert np.all(infos.acceptance_probability[diverged] == 0)
    assert np.all(np.isposinf(infos.energy_error[diverged]))
    for leaf in (*states, infos.acceptance_probability):
        assert np.all(np.isfinite(leaf))
    x = np.asarray(states.position[-1], np.float64)
    assert abs(x.mean() - 1) * np.sqrt(num_chains) < 5
    assert abs((x**2).mean() - 2) * np.sqrt(num_chains / 20) < 5


def test_a_start_outside_the_support_finds_it(key):
    start = jnp.asarray(np.full(CHAINS // 5, -0.2, np.float32))
    states, infos = _run(key, start, _wall, -np.inf, step_size=0.3, num_leapfrog_steps=2)
    inside = np.asarray(states.position) > 0
    assert inside[-1].mean() > 0.9
    assert np.all(inside[1:] >= inside[:-1])
    assert np.all(np.isfinite(infos.acceptance_probability))


@pytest.mark.thorough
def test_a_broken_gradient_is_rejected(key):
    def density(_, x):
        return -jnp.sqrt(jnp.maximum(x, 0.0))

    states, infos = _run(key, jnp.full(50, 0.1), density, 0, step_size=1.0, num_leapfrog_steps=3)
    assert 0 < np.sum(infos.diverged) < 500
    assert np.all(np.isfinite(states.gradient))


def test_a_huge_finite_energy_error_is_flagged(key):
    state = hmc.init(jnp.ones(2), _normal)
    kept, info = hmc.step(key, state, _normal, step_size=30.0, num_leapfrog_steps=2)
    assert np.isfinite(info.energy_error)
    assert info.diverged
    assert info.acceptance_probability == 0
    chex.assert_trees_all_equal(kept, state)


# Transforms, dtypes, errors.


def test_a_pytree_moves_like_its_flat_array(rng):
    flat = jnp.asarray(rng.normal(size=5), jnp.float32)
    momentum = jnp.asarray(rng.normal(size=5), jnp.float32)
    mass = jnp.asarray(rng.uniform(0.5, 2, size=5), jnp.float32)

    def tree(x):
        return {"a": x[:2], "b": x[2:]}

    def density(x):
        return _quartic(tree(x))

    options = {"step_size": 0.2, "num_leapfrog_steps": 4}
    one, end = hmc.leapfrog(
        hmc.init(flat, density), momentum, density, inverse_mass=mass, **options
    )
    two, tree_end = hmc.leapfrog(
        hmc.init(tree(flat), _quartic), tree(momentum), _quartic, inverse_mass=tree(mass), **options
    )
    chex.assert_trees_all_close(two.position, tree(one.position), atol=1e-6)
    chex.assert_trees_all_close(two.gradient, tree(one.gradient), atol=1e-5)
    chex.assert_trees_all_close(tree_end, tree(end), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_what_has_next_to_no_probability_is_never_accepted(key, monkeypatch, dtype):
    """exp(-60), even where the uniform is the least that is ever drawn; and exp(0) always."""
    here = jnp.zeros((), dtype)

    def accepted(key, energy_error):
        error = jnp.asarray(energy_error, dtype)
        return _markov.metropolis(key, error, here + 1, here, finite=jnp.bool_(True))[1].accepted

    keys = jax.random.split(key, 4000)
    assert not jax.vmap(lambda k: accepted(k, 60.0))(keys).any()
    assert jax.vmap(lambda k: accepted(k, 0.0))(keys).all()
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.zeros(shape, dtype))
    assert not accepted(key, 60.0)
    assert accepted(key, 0.0)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_keeps_the_target(key, dtype):
    """N(0, 1): the acceptance and the energies are counted in float32, whatever the position."""

    def chain(key):
        state = hmc.init(jnp.zeros(1, dtype), _normal)

        def step(state, key):
            state, info = hmc.step(key, state, _normal, step_size=0.6, num_leapfrog_steps=4)
            return state, (state.position[0].astype(jnp.float32), info)

        return lax.scan(step, state, jax.random.split(key, 100))[1]

    x, info = jax.jit(jax.vmap(chain))(jax.random.split(key, 500))
    assert info.energy_error.dtype == info.acceptance_probability.dtype == jnp.float32
    squares = np.square(np.asarray(x[:, 10:], np.float64)).mean(axis=1)
    # rounding to 8 bits moves the variance by less than 2 %
    assert abs(squares.mean() - 1) < 0.02 + 5 * squares.std() / math.sqrt(500)


def test_a_state_of_no_density_is_left_at_once(key):
    state = hmc.HMCState(jnp.ones(()), jnp.float32(-jnp.inf), jnp.zeros(()))
    after, info = hmc.step(key, state, _normal, step_size=0.1, num_leapfrog_steps=1)
    assert info.energy_error == -jnp.inf
    assert info.acceptance_probability == 1
    assert info.accepted
    assert not info.diverged
    assert jnp.isfinite(after.log_density)


def test_every_leaf_keeps_its_dtype(key):
    position = {"half": jnp.ones(3, jnp.bfloat16), "single": jnp.ones(2)}

    def density(x):
        return _normal(x["half"].astype(jnp.float32)) + _normal(x["single"])

    state = hmc.init(position, density)
    options = {"step_size": np.float64(0.1), "num_leapfrog_steps": 2, "inverse_mass": 2.0}
    after, info = hmc.step(key, state, density, **options)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert info.energy_error.dtype == jnp.float32


def test_jit_equals_eager_and_compiles_once(key):
    state = hmc.init(jnp.ones(3), _normal)

    def step(key, state, step_size, num_leapfrog_steps):
        return hmc.step(
            key, state, _normal, step_size=step_size, num_leapfrog_steps=num_leapfrog_steps
        )

    chex.clear_trace_counter()
    compiled = jax.jit(chex.assert_max_traces(step, n=1))
    for step_size, length in ((0.3, 4), (1.1, 2)):
        eager = step(key, state, step_size, length)
        chex.assert_trees_all_close(compiled(key, state, step_size, length), eager, atol=1e-6)


@pytest.mark.thorough
def test_vmapped_chains_of_different_lengths_equal_single_chains(key, rng):
    starts = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)
    keys = jax.random.split(key, 4)
    lengths = jnp.array([1, 5, 2, 9])

    @jax.jit
    def one(key, start, length):
        state = hmc.init(start, _normal)
        return hmc.step(key, state, _normal, step_size=0.4, num_leapfrog_steps=length)

    together = jax.vmap(one)(keys, starts, lengths)
    alone = [one(*chain) for chain in zip(keys, starts, lengths, strict=True)]
    chex.assert_trees_all_close(together, jax.tree.map(lambda *x: jnp.stack(x), *alone), atol=1e-6)


def test_static_lengths_are_differentiable(key):
    def end(step_size):
        state = hmc.init(jnp.ones(2), _normal)
        state, _ = hmc.leapfrog(
            state, jnp.ones(2), _normal, step_size=step_size, num_leapfrog_steps=3
        )
        return jnp.sum(state.position)

    with jax.enable_x64(True):
        numeric = (end(0.4 + 1e-6) - end(0.4 - 1e-6)) / 2e-6
        np.testing.assert_allclose(jax.grad(end)(0.4), numeric, rtol=1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_size": 0.0}, r"^step_size: got 0\."),
        ({"step_size": np.nan}, r"^step_size: got nan"),
        ({"num_leapfrog_steps": 0}, r"^num_leapfrog_steps: got 0; expected values in \[1,"),
        ({"inverse_mass": -1.0}, r"^inverse_mass: got -1\.; expected values in \(0,"),
        ({"inverse_mass": jnp.ones((3, 3))}, r"^inverse_mass: got shapes \(3, 3\); expected"),
        ({"inverse_mass": jnp.ones(2)}, r"^inverse_mass: got shapes \(2,\); expected"),
        ({"inverse_mass": {"a": 1.0}}, r"^inverse_mass: got shapes {'a': \(\)}; expected"),
    ],
)
def test_errors_of_step_name_the_argument(key, change, message):
    state = hmc.init(jnp.ones(3), _normal)
    with pytest.raises(ValueError, match=message) as error:
        hmc.step(key, state, _normal, **{"step_size": 0.1, "num_leapfrog_steps": 1, **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("position", "density", "message"),
    [
        ({"a": [jnp.ones(2, int)]}, lambda x: 0.0, r"^position\['a'\]\[0\]: got dtype int32"),
        (jnp.ones((4, 2)), lambda x: jnp.sum(x, 1), r"\(position\): got shape \(4,\); .* vmap"),
        (jnp.zeros(2), lambda x: jnp.sum(jnp.log(x)), r"^log_density_fn\(position\): got -inf"),
        (jnp.full(2, np.nan), _normal, r"^log_density_fn\(position\): got nan"),
    ],
)
def test_errors_of_init_name_the_argument(position, density, message):
    with pytest.raises(ValueError, match=message) as error:
        hmc.init(position, density)
    assert "\n" not in str(error.value)


def test_blackjax_window_adaptation_tunes_our_step(key):
    """Another library's warm-up finds step size and inverse mass for this step."""
    blackjax = pytest.importorskip("blackjax")
    deviations = np.array([0.1, 1.0, 10.0], np.float32)

    class Info(NamedTuple):
        acceptance_rate: jax.Array

    class Ours:
        @staticmethod
        def init(position, log_density_fn):
            return blackjax.mcmc.hmc.HMCState(*hmc.init(position, log_density_fn))

        @staticmethod
        def build_kernel():
            def kernel(key, state, fn, step_size, inverse_mass_matrix, num_leapfrog_steps):
                state, info = hmc.step(
                    key,
                    hmc.HMCState(*state),
                    fn,
                    step_size=step_size,
                    num_leapfrog_steps=num_leapfrog_steps,
                    inverse_mass=inverse_mass_matrix,
                )
                adapted = blackjax.mcmc.hmc.HMCState(*state)
                return adapted, Info(info.acceptance_probability)

            return kernel

    def density(x):
        return _normal(x / deviations)

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        warmup = blackjax.window_adaptation(Ours, density, num_leapfrog_steps=8)
        result, _ = warmup.run(key, jnp.zeros(3), num_steps=1000)
        inverse_mass = result.parameters["inverse_mass_matrix"]
        _, infos = _run(
            key,
            jnp.asarray(deviations) * jax.random.normal(key, (200, 3)),
            _gaussian,
            jnp.diag(deviations**-2),
            step_size=result.parameters["step_size"],
            num_leapfrog_steps=8,
            inverse_mass=inverse_mass,
        )
    np.testing.assert_allclose(np.log(inverse_mass), 2 * np.log(deviations), atol=1.0)
    assert 0.6 < infos.acceptance_probability.mean() < 0.98
