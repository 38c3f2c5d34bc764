"""Langevin: exact discrete laws, exact-start invariance, the MALA correction, broken proposals."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from kernelgrad import langevin

CHAINS = 100_000
NUM_STEPS = 10
INVERSE_MASS = np.array([0.5, 1.5])
CORRELATED = np.array([[1.0, 0.8], [0.8, 2.0]])
STEPS = {
    "ula": langevin.ula_step,
    "mala": langevin.mala_step,
    "underdamped": functools.partial(langevin.underdamped_step, friction=1.5),
}


def _normal(x):
    return -0.5 * jnp.sum(x**2)


def _gaussian(precision, x):
    return -0.5 * jnp.dot(x, precision @ x)


def _wall(outside, x):
    """Exp(1), with something else beyond 0."""
    return jnp.where(x > 0, -x, outside)


def _root(_, x):
    """Finite everywhere; its gradient is not finite below 0."""
    return -jnp.sqrt(jnp.maximum(x, 0.0))


def _quartic(unit, x):
    y = x / unit
    return -jnp.sum(y**4) / 4 - y[0] * y[1]


def _start(name, key, position, fn, inverse_mass=None):
    if name == "underdamped":
        return langevin.underdamped_init(key, position, fn, inverse_mass=inverse_mass)
    return langevin.init(position, fn)


def _run(key, positions, name, density, data, **options):
    """Moves every position NUM_STEPS times; returns all states, steps in front, and the infos."""
    num_chains = jax.tree.leaves(positions)[0].shape[0]
    keys = jax.random.split(key, (NUM_STEPS + 1, num_chains))
    return _scan(keys, positions, name, density, data, options)


@functools.partial(jax.jit, static_argnames=("name", "density"))
def _scan(keys, positions, name, density, data, options):
    fn = functools.partial(density, data)

    def move(states, keys):
        states, infos = jax.vmap(lambda k, s: STEPS[name](k, s, fn, **options))(keys, states)
        return states, (states, infos)

    mass = options.get("inverse_mass")
    start = jax.vmap(lambda k, x: _start(name, k, x, fn, mass))(keys[0], positions)
    _, (states, infos) = jax.lax.scan(move, start, keys[1:])
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, states), infos


def _stationary(drift, noise):
    """Solves S = drift S drift^T + noise."""
    size = len(drift)
    system = np.eye(size**2) - np.kron(drift, drift)
    return np.linalg.solve(system, noise.ravel()).reshape(size, size)


# The law of the discrete chain, bias included.


@pytest.mark.thorough
def test_ula_moves_by_its_formula(key):
    """The drift exactly, from two starts under one key; the noise by its variance 2 h / m."""
    step_size, inverse_mass = 0.3, 2.5

    def end(key, x):
        state = langevin.init(x, _normal)
        options = {"step_size": step_size, "inverse_mass": inverse_mass}
        return langevin.ula_step(key, state, _normal, **options)[0].position

    with jax.enable_x64(True):
        noises = jax.jit(jax.vmap(end, (0, None)))(jax.random.split(key, CHAINS), jnp.zeros(1))
        drift = end(key, jnp.ones(1)) - end(key, jnp.zeros(1))
    np.testing.assert_allclose(drift, 1 - step_size * inverse_mass, rtol=1e-12)
    variance = np.array([[2 * step_size * inverse_mass]])
    assert np.abs(oracles.moments_z(noises, variance)).max() < 5


@pytest.mark.thorough(quick=3)
@pytest.mark.parametrize(
    ("covariance", "step_size", "inverse_mass"),
    [
        (np.eye(2), 0.5, (1.0, 1.0)),
        (np.eye(2), 1.2, (1.0, 0.5)),
        (CORRELATED, 0.3, (1.0, 1.0)),
        (CORRELATED, 0.25, (0.5, 2.5)),
    ],
)
def test_ula_keeps_its_own_biased_law(key, rng, covariance, step_size, inverse_mass):
    precision, mass = np.linalg.inv(covariance), np.diag(inverse_mass)
    biased = _stationary(np.eye(2) - step_size * mass @ precision, 2 * step_size * mass)
    if step_size == 0.5:
        np.testing.assert_allclose(biased, np.eye(2) / (1 - step_size / 2), atol=1e-12)
    start = rng.multivariate_normal(np.zeros(2), biased, CHAINS)
    states, infos = _run(
        key,
        jnp.asarray(start, jnp.float32),
        "ula",
        _gaussian,
        jnp.asarray(precision, jnp.float32),
        step_size=step_size,
        inverse_mass=jnp.array(inverse_mass),
    )
    assert np.all(infos.finite)
    assert np.abs(oracles.moments_z(states.position[-1], biased)).max() < 5
    assert np.abs(oracles.moments_z(states.position[-1], covariance)).max() > 8


@pytest.mark.parametrize(("step_size", "friction"), [(0.3, 1.0), (1.2, 0.2), (1.9, 5.0)])
def test_underdamped_solves_its_lyapunov_equation(key, step_size, friction):
    """On N(0, 1) position and velocity have the variances 1 and 1 - h^2 / 4, uncorrelated.

    One key gives one noise xi, so the step is z -> drift z + xi direction. The drift comes out
    exactly, the direction up to the factor xi, and with it the ratio of the variances.
    """

    def end(x, v):
        state = langevin.UnderdampedState(x, _normal(x), -x, v)
        options = {"step_size": step_size, "friction": friction}
        state, _ = langevin.underdamped_step(key, state, _normal, **options)
        return np.array([state.position, state.velocity])

    with jax.enable_x64(True):
        zero, one = jnp.zeros(()), jnp.ones(())
        scaled_direction = end(zero, zero)
        drift = np.stack([end(one, zero), end(zero, one)], axis=1) - scaled_direction[:, None]
    np.testing.assert_allclose(np.linalg.det(drift), np.exp(-friction * step_size), rtol=1e-10)
    law = _stationary(drift, np.outer(scaled_direction, scaled_direction))
    expected = np.diag([1.0, 1 - step_size**2 / 4])
    np.testing.assert_allclose(law / law[0, 0], expected, atol=1e-10)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    ("covariance", "step_size", "inverse_mass"),
    [
        (np.eye(2), 1.5, (1.0, 1.0)),
        (CORRELATED, 0.9, (1.0, 1.0)),
        (CORRELATED, 0.6, (0.5, 2.5)),
    ],
)
def test_underdamped_positions_are_exact_on_a_gaussian(
    key, rng, covariance, step_size, inverse_mass
):
    """Positions exact; momenta M^{1/2} v have the covariance I - (h^2 / 4) M^-1/2 P M^-1/2."""
    precision, root = np.linalg.inv(covariance), np.diag(np.sqrt(inverse_mass))
    law = root @ (np.eye(2) - step_size**2 / 4 * root @ precision @ root) @ root
    start = rng.multivariate_normal(np.zeros(2), covariance, CHAINS)
    velocity = rng.multivariate_normal(np.zeros(2), law, CHAINS)
    mass = jnp.array(inverse_mass)
    fn = functools.partial(_gaussian, jnp.asarray(precision, jnp.float32))

    @jax.jit
    @jax.vmap
    def move(key, x, v):
        state = langevin.UnderdampedState(*langevin.init(x, fn), v)
        options = {"step_size": step_size, "friction": 0.8, "inverse_mass": mass}
        return langevin.underdamped_step(key, state, fn, **options)[0]

    moved = move(
        jax.random.split(key, CHAINS),
        jnp.asarray(start, jnp.float32),
        jnp.asarray(velocity, jnp.float32),
    )
    joint = np.concatenate([moved.position, moved.velocity], axis=1)
    covariance_of_both = np.block([[covariance, np.zeros((2, 2))], [np.zeros((2, 2)), law]])
    assert np.abs(oracles.moments_z(joint, covariance_of_both)).max() < 5


def test_first_velocity_has_the_inverse_mass_as_variance(key):
    inverse_mass = jnp.array([0.5, 4.0])

    @jax.jit
    @jax.vmap
    def first(key):
        return langevin.underdamped_init(key, jnp.ones(2), _normal, inverse_mass=inverse_mass)

    states = first(jax.random.split(key, CHAINS))
    assert np.abs(oracles.moments_z(states.velocity, np.diag(inverse_mass))).max() < 5


# MALA is exact.


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    ("covariance", "step_size", "inverse_mass"),
    [
        (np.eye(2), 0.3, (1.0, 1.0)),
        (np.eye(2), 0.9, (1.0, 0.5)),
        (CORRELATED, 0.4, (1.0, 1.0)),
        (CORRELATED, 0.3, (0.5, 2.5)),
    ],
)
def test_mala_exact_start_stays_exact(key, rng, covariance, step_size, inverse_mass):
    """With err^2 gamma / 4 for err^2 / (4 gamma) in the correction, 0.3 gives variance 1.134."""
    start = rng.multivariate_normal(np.zeros(2), covariance, CHAINS)
    states, infos = _run(
        key,
        jnp.asarray(start, jnp.float32),
        "mala",
        _gaussian,
        jnp.asarray(np.linalg.inv(covariance), jnp.float32),
        step_size=step_size,
        inverse_mass=jnp.array(inverse_mass),
    )
    assert 0.5 < infos.acceptance_probability.mean() < 0.97
    for after in (1, NUM_STEPS):
        assert np.abs(oracles.moments_z(states.position[after], covariance)).max() < 5
    weights = np.exp(-np.asarray(infos.energy_error[0], np.float64))
    assert abs(weights.mean() - 1) < 5 * weights.std() / np.sqrt(CHAINS)


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "step_size"), [("mala", 0.5), ("underdamped", 0.8)])
def test_positions_stay_exact_on_a_pytree(key, rng, name, step_size):
    """Ten steps are enough for velocities to forget that they began at N(0, M^-1)."""
    deviation = {"a": np.float32(0.5), "b": np.float32(2)}
    start = {leaf: jnp.asarray(rng.normal(size=(CHAINS, 2)), jnp.float32) for leaf in "ab"}

    def density(scales, x):
        return -0.5 * sum(jnp.sum((x[leaf] / scales[leaf]) ** 2) for leaf in "ab")

    states, _ = _run(
        key,
        jax.tree.map(jnp.multiply, deviation, start),
        name,
        density,
        deviation,
        step_size=step_size,
        inverse_mass={"a": 0.25, "b": jnp.array([4.0, 4.0])},
    )
    samples = np.concatenate([states.position["a"][-1], states.position["b"][-1]], axis=1)
    assert np.abs(oracles.moments_z(samples, np.diag([0.25, 0.25, 4.0, 4.0]))).max() < 5


def _quartic_run(key, start, name, unit=(1.0, 1.0)):
    """Steps on a quartic of x / unit from unit * start, with an inverse mass in the same unit."""
    unit = np.asarray(unit)
    with jax.enable_x64(True):
        run = _run(
            key,
            jnp.asarray(start * unit),
            name,
            _quartic,
            jnp.asarray(unit),
            step_size=0.25,
            inverse_mass=jnp.asarray(INVERSE_MASS * unit**2),
        )
    return jax.tree.map(np.asarray, run)


@pytest.mark.thorough
@pytest.mark.parametrize("name", STEPS)
def test_inverse_mass_is_a_change_of_units(key, rng, name):
    start, unit = rng.normal(size=(200, 2)), np.array([0.3, 5.0])
    plain, plain_infos = _quartic_run(key, start, name)
    scaled, scaled_infos = _quartic_run(key, start, name, unit)
    np.testing.assert_allclose(scaled.position, plain.position * unit, atol=1e-9)
    chex.assert_trees_all_close(scaled_infos, plain_infos, atol=1e-9)


@pytest.mark.thorough
def test_mala_energy_error_is_the_ratio_of_densities(key, rng):
    """The definition: pi(x) q(x' | x) / (pi(x') q(x | x')) with both Gaussians written out."""
    states, infos = _quartic_run(key, rng.normal(size=(200, 2)), "mala")
    variance = 2 * 0.25 * INVERSE_MASS

    def log_density(x):
        return -(x**4).sum(-1) / 4 - x[..., 0] * x[..., 1]

    def log_q(end, x):
        drift = -(x**3) - x[..., ::-1]
        return -((end - x - variance / 2 * drift) ** 2 / (2 * variance)).sum(-1)

    x, end = states.position[:-1], states.position[1:]
    expected = log_density(x) + log_q(end, x) - log_density(end) - log_q(x, end)
    accepted = infos.accepted
    assert 0.3 < accepted.mean() < 0.95
    np.testing.assert_allclose(infos.energy_error[accepted], expected[accepted], atol=1e-11)
    np.testing.assert_allclose(
        infos.acceptance_probability, np.exp(-np.maximum(infos.energy_error, 0)), atol=1e-12
    )


def test_a_rejected_step_keeps_everything(key, rng):
    states, infos = _quartic_run(key, rng.normal(size=(200, 2)), "mala")
    accepted = infos.accepted
    before, after = (jax.tree.map(cut, states) for cut in (lambda x: x[:-1], lambda x: x[1:]))
    for was, kept in zip(before, after, strict=True):
        np.testing.assert_array_equal(kept[~accepted], was[~accepted])
    x = after.position
    assert np.all(np.any(before.position != x, axis=-1)[accepted])
    np.testing.assert_allclose(after.gradient, -(x**3) - x[..., ::-1], atol=1e-11)
    np.testing.assert_allclose(
        after.log_density, -(x**4).sum(-1) / 4 - x[..., 0] * x[..., 1], atol=1e-11
    )


def test_mala_rejects_by_step_size_to_the_power_three_halves(key, rng):
    start = jnp.asarray(rng.normal(size=CHAINS), jnp.float32)

    @jax.jit
    def rejection(step_size):
        def one(key, x):
            state = langevin.init(x, _normal)
            _, info = langevin.mala_step(key, state, _normal, step_size=step_size)
            return 1 - info.acceptance_probability

        return jnp.mean(jax.vmap(one)(jax.random.split(key, CHAINS), start))

    step_sizes = np.array([0.025, 0.05, 0.1, 0.2])
    rates = [float(rejection(step_size)) for step_size in step_sizes]
    slope = np.polyfit(np.log(step_sizes), np.log(rates), 1)[0]
    assert abs(slope - 1.5) < 0.1


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "step_size"), [("mala", 0.5), ("underdamped", 0.9)])
def test_overdispersed_start_mixes(key, rng, name, step_size):
    """Ten steps of ten: the law at the end is the target's."""
    positions = jnp.asarray(rng.normal(3, 5, size=(CHAINS, 2)), jnp.float32)
    for round_key in jax.random.split(key, 10):
        states, _ = _run(
            round_key,
            positions,
            name,
            _gaussian,
            jnp.asarray(np.linalg.inv(CORRELATED), jnp.float32),
            step_size=step_size,
            inverse_mass=jnp.ones(2),
        )
        positions = states.position[-1]
    assert np.abs(oracles.moments_z(positions, CORRELATED)).max() < 5


# Broken proposals.


@pytest.mark.thorough
@pytest.mark.parametrize("outside", [np.nan, np.inf, -np.inf])
def test_mala_rejects_a_broken_energy_and_lives_on(key, rng, outside):
    num_chains = CHAINS // 5
    start = jnp.asarray(rng.exponential(size=num_chains), jnp.float32)
    states, infos = _run(key, start, "mala", _wall, outside, step_size=0.2)
    diverged = np.asarray(infos.diverged)
    assert 0.05 < diverged.mean() < 0.5
    assert not np.any(infos.accepted & diverged)
    assert np.all(infos.acceptance_probability[diverged] == 0)
    for leaf in (*states, infos.acceptance_probability):
        assert np.all(np.isfinite(leaf))
    x = np.asarray(states.position[-1], np.float64)
    assert abs(x.mean() - 1) * np.sqrt(num_chains) < 5
    assert abs((x**2).mean() - 2) * np.sqrt(num_chains / 20) < 5


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("density", [_wall, _root])
@pytest.mark.parametrize("name", STEPS)
def test_a_broken_proposal_is_flagged_and_the_chain_stays(key, name, density):
    start = jnp.asarray(np.full(CHAINS // 5, 0.3, np.float32))
    states, infos = jax.tree.map(np.asarray, _run(key, start, name, density, np.nan, step_size=0.4))
    tested = hasattr(infos, "diverged")  # by Metropolis
    broken = infos.diverged if tested else ~infos.finite
    assert 0.05 < broken.mean() < 0.95
    for leaf in states:
        assert np.all(np.isfinite(leaf))
    before, after = (jax.tree.map(cut, states) for cut in (lambda x: x[:-1], lambda x: x[1:]))
    for was, kept in zip(before[:3], after[:3], strict=True):
        np.testing.assert_array_equal(kept[broken], was[broken])
    if name == "underdamped":
        np.testing.assert_array_equal(after.velocity[broken], -before.velocity[broken])
    assert np.all((after.position != before.position)[~broken]) or tested


# Transforms, dtypes, errors.


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", STEPS)
def test_jit_and_vmap_equal_eager_and_compile_once(key, rng, name):
    states = jax.vmap(lambda x: _start(name, key, x, _normal))(
        jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)
    )
    keys = jax.random.split(key, 3)

    def step(key, state, step_size):
        return STEPS[name](key, state, _normal, step_size=step_size, inverse_mass=0.7)

    chex.clear_trace_counter()
    compiled = jax.jit(chex.assert_max_traces(step, n=1))
    step_sizes = jnp.array([0.3, 0.05, 1.1])
    chains = [jax.tree.map(lambda x, i=i: x[i], (keys, states, step_sizes)) for i in range(3)]
    eager = [step(*chain) for chain in chains]
    chex.assert_trees_all_close([compiled(*chain) for chain in chains], eager, atol=1e-6)
    together = jax.vmap(compiled)(keys, states, step_sizes)
    chex.assert_trees_all_close(together, jax.tree.map(lambda *x: jnp.stack(x), *eager), atol=1e-6)


@pytest.mark.parametrize("name", STEPS)
def test_every_leaf_keeps_its_dtype(key, name):
    position = {"half": jnp.ones(3, jnp.bfloat16), "single": jnp.ones(2)}

    def density(x):
        return _normal(x["half"].astype(jnp.float32)) + _normal(x["single"])

    state = _start(name, key, position, density)
    options = {"step_size": np.float64(0.1), "inverse_mass": 2.0}
    after, _ = STEPS[name](key, state, density, **options)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_size": 0.0}, r"^step_size: got 0\."),
        ({"step_size": np.inf}, r"^step_size: got inf"),
        ({"inverse_mass": (1.0, -1.0)}, r"^inverse_mass: got -1\.; expected values in \(0,"),
        ({"inverse_mass": jnp.ones((3, 3))}, r"^inverse_mass: got shapes \(3, 3\); expected"),
    ],
)
@pytest.mark.parametrize("name", STEPS)
def test_errors_of_steps_name_the_argument(key, name, change, message):
    state = _start(name, key, jnp.ones(3), _normal)
    with pytest.raises(ValueError, match=message) as error:
        STEPS[name](key, state, _normal, **{"step_size": 0.1, **change})
    assert "\n" not in str(error.value)


def test_friction_must_be_positive(key):
    state = _start("underdamped", key, jnp.ones(3), _normal)
    with pytest.raises(ValueError, match=r"^friction: got 0\.; expected values in \(0, infinity\)"):
        langevin.underdamped_step(key, state, _normal, step_size=0.1, friction=0.0)


@pytest.mark.parametrize("name", STEPS)
def test_errors_of_init_name_the_argument(key, name):
    with pytest.raises(ValueError, match=r"^position\['a'\]: got dtype int32; expected floating"):
        _start(name, key, {"a": jnp.ones(2, int)}, _normal)
    with pytest.raises(ValueError, match=r"^log_density_fn\(position\): got nan"):
        _start(name, key, jnp.full(2, np.nan), _normal)
