"""The pull-backs: definitions, limits in which they meet, numbers, devices, and training."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kernelgrad import kernels, objectives, pullback, score, svgd, train

REGRESSION = functools.partial(
    pullback.regression, optimizer=optax.sgd(0.2), step_size=0.1, num_steps=5
)
GAUSS_NEWTON = functools.partial(pullback.gauss_newton, damping=0.01)
PULL_BACKS = {
    "chain_rule": pullback.chain_rule,
    "regression": REGRESSION,
    "gauss_newton": GAUSS_NEWTON,
}

solve_gauss_newton = jax.jit(
    pullback.gauss_newton, static_argnames=("generator_fn", "tolerance", "max_iterations")
)
compiled_residuals = jax.jit(pullback.residuals, static_argnames="generator_fn")


def _network(params, latents):
    hidden = jnp.tanh(latents @ params["inner"])
    return hidden @ params["outer"]


def _problem(rng, n=6, width=5):
    params = {
        "inner": jnp.asarray(rng.normal(size=(3, width)), jnp.float32),
        "outer": jnp.asarray(rng.normal(size=(width, 2)), jnp.float32),
    }
    latents = jnp.asarray(rng.normal(size=(n, 3)), jnp.float32)
    direction = jnp.asarray(rng.normal(size=(n, 2)), jnp.float32)
    return params, latents, direction


def _in_double(*trees):
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), trees)


def _flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def _jacobian(generator_fn, params):
    """J as a matrix: (n * d, P), columns in the order of :func:`_flat`."""
    jacobian = jax.jit(jax.jacobian(generator_fn))(params)
    rows = np.prod(jax.eval_shape(generator_fn, params).shape)
    return np.concatenate(
        [np.asarray(leaf, np.float64).reshape(rows, -1) for leaf in jax.tree.leaves(jacobian)],
        axis=1,
    )


# ---------------------------------------------------------------------------------- chain rule


def test_chain_rule_is_the_mean_of_jacobian_products(rng):
    params, latents, direction = _problem(rng)
    gradient = pullback.chain_rule(lambda p: _network(p, latents), params, direction)
    expected = jax.tree.map(lambda p: np.zeros(p.shape), params)
    row_jacobian = jax.jit(jax.jacobian(lambda p, z: _network(p, z[None])[0]))
    for i in range(6):
        jacobian = row_jacobian(params, latents[i])
        for name in params:
            expected[name] += np.tensordot(direction[i], jacobian[name], axes=1) / 6
    for name in params:
        np.testing.assert_allclose(gradient[name], expected[name], rtol=2e-5, atol=1e-6)


def test_chain_rule_of_a_gradient_is_the_gradient(rng):
    params, latents, _ = _problem(rng)

    def loss(samples):
        return jnp.mean(jnp.sum(jnp.sin(samples) ** 2, axis=1))

    samples = _network(params, latents)
    direction = samples.shape[0] * jax.grad(loss)(samples)
    pulled = pullback.chain_rule(lambda p: _network(p, latents), params, direction)
    exact = jax.grad(lambda p: loss(_network(p, latents)))(params)
    for name in params:
        np.testing.assert_allclose(pulled[name], exact[name], rtol=2e-5, atol=1e-6)


def test_forward_pass_is_shared_within_one_jit(rng):
    params, latents, _ = _problem(rng)

    def step(params):
        def generator_fn(p):
            return _network(p, latents)

        return pullback.chain_rule(generator_fn, params, jnp.cos(generator_fn(params)))

    def fused(params):
        samples, pull = jax.vjp(lambda p: _network(p, latents), params)
        return pull(jnp.cos(samples) / samples.shape[0])[0]

    dots = [jax.jit(f).lower(params).compile().as_text().count(" dot(") for f in (step, fused)]
    assert dots[0] == dots[1] > 0


def test_one_particle_and_the_chain_rule_learn_to_optimise(rng):
    """With n = 1, eq. (10) on the SVGD direction is stochastic ascent on log p(f(eta; z))."""
    params, latents, _ = _problem(rng, n=1)

    def log_density(x):
        return -jnp.sum((x - 1.0) ** 4)

    x = _network(params, latents)
    ascent = jax.jit(svgd.svgd_direction)(x, jax.grad(log_density)(x), kernels.rbf_mixture(1.0))
    pulled = pullback.chain_rule(lambda p: _network(p, latents), params, -ascent)
    exact = jax.grad(lambda p: -log_density(_network(p, latents)))(params)
    np.testing.assert_allclose(_flat(pulled), _flat(exact), rtol=1e-4)


# ------------------------------------------------------------------------- inner regression


def test_one_gradient_step_of_the_regression_is_the_chain_rule(rng):
    params, latents, direction = _problem(rng)

    def generator_fn(p):
        return _network(p, latents)

    for step_size in (0.3, 1e-6):  # the smaller would drown if parameters were subtracted
        gradient = pullback.regression(
            generator_fn,
            params,
            direction,
            optimizer=optax.sgd(0.5),
            step_size=step_size,
            num_steps=1,
        )
        exact = pullback.chain_rule(generator_fn, params, direction)
        np.testing.assert_allclose(_flat(gradient), _flat(exact), rtol=2e-5, atol=1e-7)


def test_a_step_of_the_regressions_length_lands_on_its_optimum(rng):
    """f linear: the inner optimum is a least squares fit of x - epsilon phi, in closed form."""
    latents = rng.normal(size=(12, 3))
    weights, direction = rng.normal(size=(3, 2)), rng.normal(size=(12, 2))
    step_size = 0.7
    gradient = jax.jit(
        lambda w, phi: pullback.regression(
            lambda w: jnp.float32(latents) @ w,
            w,
            phi,
            optimizer=optax.sgd(0.2),
            step_size=step_size,
            num_steps=300,
        )
    )(jnp.float32(weights), jnp.float32(direction))
    target = latents @ weights - step_size * direction
    expected = np.linalg.lstsq(latents, target, rcond=None)[0]
    np.testing.assert_allclose(weights - step_size * np.asarray(gradient), expected, atol=1e-5)


def test_regression_runs_the_optimizer_by_hand(rng):
    params, latents, direction = _problem(rng)
    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
    target = _network(params, latents) - 0.4 * direction

    def loss(p):
        return jnp.mean(jnp.sum((_network(p, latents) - target) ** 2, axis=1))

    fitted, opt_state = params, optimizer.init(params)
    for _ in range(7):
        updates, opt_state = optimizer.update(jax.grad(loss)(fitted), opt_state, fitted)
        fitted = optax.apply_updates(fitted, updates)
    gradient = pullback.regression(
        lambda p: _network(p, latents),
        params,
        direction,
        optimizer=optimizer,
        step_size=0.4,
        num_steps=7,
    )
    expected = (_flat(params) - _flat(fitted)) / 0.4
    np.testing.assert_allclose(_flat(gradient), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_regression_approaches_gauss_newton_to_first_order(rng):
    """Many inner steps of (8): the distance to (9) falls with epsilon, and so does the update."""
    with jax.enable_x64(True):
        params, latents, direction = _in_double(*_problem(rng, n=4))

        def generator_fn(p):
            return _network(p, latents)

        limit = _flat(
            solve_gauss_newton(
                generator_fn, params, direction, damping=0.0, tolerance=1e-13, max_iterations=400
            )
        )

        @jax.jit
        def fit(step_size):
            return pullback.regression(
                generator_fn,
                params,
                direction,
                optimizer=optax.sgd(0.1, momentum=0.9),
                step_size=step_size,
                num_steps=4000,
            )

        gaps = [np.linalg.norm(_flat(fit(step_size)) - limit) for step_size in (1e-2, 1e-3, 1e-4)]
        gaps /= np.linalg.norm(limit)
    assert gaps[2] < 1e-3
    np.testing.assert_allclose([gaps[0] / gaps[1], gaps[1] / gaps[2]], 10, rtol=0.2)


# ------------------------------------------------------------------------------- Gauss-Newton


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("n", [40, 3])  # more and fewer equations than unknowns
def test_gauss_newton_is_least_squares(rng, n):
    with jax.enable_x64(True):
        params, latents, direction = _in_double(*_problem(rng, n=n, width=4))

        def generator_fn(p):
            return _network(p, latents)

        steps = {
            damping: solve_gauss_newton(
                generator_fn,
                params,
                direction,
                damping=damping,
                tolerance=1e-13,
                max_iterations=500,
            )
            for damping in (0.0, 0.3)
        }
        jacobian = _jacobian(generator_fn, params)
    unknowns = jacobian.shape[1]
    right = np.concatenate([np.ravel(direction) / np.sqrt(n), np.zeros(unknowns)])
    for damping, step in steps.items():
        rows = np.concatenate([jacobian / np.sqrt(n), np.sqrt(damping) * np.eye(unknowns)])
        expected = np.linalg.lstsq(rows, right, rcond=None)[0]  # of least norm if not unique
        np.testing.assert_allclose(_flat(step), expected, atol=1e-8 * np.abs(expected).max())


def test_gauss_newton_of_a_linear_generator_is_a_regression_on_its_latents(rng):
    latents, direction = rng.normal(size=(30, 4)), rng.normal(size=(30, 2))
    with jax.enable_x64(True):
        step = solve_gauss_newton(
            lambda w: jnp.asarray(latents) @ w,
            jnp.asarray(rng.normal(size=(4, 2))),
            jnp.asarray(direction),
            damping=0.0,
            tolerance=1e-14,
        )
    expected = np.linalg.lstsq(latents, direction, rcond=None)[0]
    np.testing.assert_allclose(step, expected, atol=1e-12)


@pytest.mark.thorough
def test_a_wide_network_follows_the_direction_to_first_order(rng):
    params, latents, direction = _problem(rng, n=8, width=200)

    def generator_fn(p):
        return _network(p, latents)

    step = solve_gauss_newton(generator_fn, params, direction, damping=0.0, max_iterations=200)
    found = compiled_residuals(generator_fn, params, direction, step)
    assert found.misfit < 1e-4
    errors = []
    for epsilon in (1e-1, 1e-2):
        moved = generator_fn(jax.tree.map(lambda p, g, e=epsilon: p - e * g, params, step))
        errors.append(float(jnp.linalg.norm(moved - generator_fn(params) + epsilon * direction)))
    np.testing.assert_allclose(errors[0] / errors[1], 100, rtol=0.2)  # second order in epsilon


def test_one_iteration_of_gauss_newton_is_the_chain_rule_at_the_best_length(rng):
    params, latents, direction = _problem(rng, n=20)

    def generator_fn(p):
        return _network(p, latents)

    step = _flat(solve_gauss_newton(generator_fn, params, direction, damping=0.0, max_iterations=1))
    pulled = jax.jit(pullback.chain_rule, static_argnums=0)(generator_fn, params, direction)
    downhill = _flat(pulled)
    pushed = _jacobian(generator_fn, params) @ downhill
    best = 20 * downhill @ downhill / (pushed @ pushed)
    np.testing.assert_allclose(step, best * downhill, rtol=1e-4, atol=1e-6)


@pytest.mark.thorough
def test_gauss_newton_does_not_depend_on_the_parametrisation(rng):
    """Undamped and overdetermined, the samples' first-order motion is that of eta in any scale."""
    with jax.enable_x64(True):
        params, latents, direction = _in_double(*_problem(rng, n=40, width=3))
        scales = {"inner": 10.0, "outer": 0.2}

        def generator_fn(p):
            return _network(p, latents)

        def rescaled(p):
            return generator_fn({name: scales[name] * p[name] for name in p})

        solve = functools.partial(
            solve_gauss_newton, damping=0.0, tolerance=1e-13, max_iterations=2000
        )
        step = solve(generator_fn, params, direction)
        other = solve(rescaled, {name: params[name] / scales[name] for name in params}, direction)
    for name in params:
        other_step = scales[name] * np.asarray(other[name])
        np.testing.assert_allclose(other_step, step[name], rtol=1e-6, atol=1e-9)


def test_residuals_are_those_of_the_dense_problem(rng):
    params, latents, direction = _problem(rng, n=9)

    def generator_fn(p):
        return _network(p, latents)

    gradient = jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), params)
    found = compiled_residuals(generator_fn, params, direction, gradient, damping=0.2)
    jacobian, phi = _jacobian(generator_fn, params), np.ravel(direction)
    miss = jacobian @ _flat(gradient) - phi
    normal = jacobian.T @ miss / 9 + 0.2 * _flat(gradient)
    np.testing.assert_allclose(found.misfit, np.linalg.norm(miss) / np.linalg.norm(phi), rtol=1e-5)
    expected = np.linalg.norm(normal) / np.linalg.norm(jacobian.T @ phi / 9)
    np.testing.assert_allclose(found.normal, expected, rtol=1e-4)
    nothing = jax.tree.map(jnp.zeros_like, params)
    found = compiled_residuals(generator_fn, params, direction, nothing)
    np.testing.assert_allclose(found, [1, 1], rtol=1e-6)


@pytest.mark.thorough
def test_an_unconverged_solve_shows_and_still_points_downhill(rng):
    """A deep float32 network without damping: its singular values span many decades."""
    sizes = (4, 32, 32, 2)
    params = [
        jnp.float32(rng.normal(size=(a, b)) / np.sqrt(a)) for a, b in itertools.pairwise(sizes)
    ]
    latents = jnp.float32(rng.normal(size=(100, 4)))
    direction = jnp.float32(rng.normal(size=(100, 2)))

    def generator_fn(p):
        return jnp.tanh(jnp.tanh(latents @ p[0]) @ p[1]) @ p[2]

    downhill = _flat(pullback.chain_rule(generator_fn, params, direction))
    reports = {}
    for damping, max_iterations in ((0.0, 5), (0.0, 2000), (0.05, 2000)):
        step = solve_gauss_newton(
            generator_fn, params, direction, damping=damping, max_iterations=max_iterations
        )
        reports[damping, max_iterations] = compiled_residuals(
            generator_fn, params, direction, step, damping=damping
        )
        assert np.all(np.isfinite(_flat(step)))
        assert _flat(step) @ downhill > 0
    assert reports[0.0, 5].normal > 1e-2
    assert reports[0.0, 2000].misfit < reports[0.0, 5].misfit < 1
    assert reports[0.05, 2000].normal < 3e-5


@pytest.mark.thorough
def test_any_scale_of_the_direction_is_solved_alike(rng):
    params, latents, direction = _problem(rng, n=20)
    solve = jax.jit(functools.partial(GAUSS_NEWTON, lambda p: _network(p, latents)))
    expected = _flat(solve(params, direction))
    for scale in (0.0, 1e-30, 1e30):
        step = _flat(solve(params, jnp.float32(scale) * direction))
        np.testing.assert_allclose(step, scale * expected, rtol=1e-3, atol=1e-4 * scale)
    with jax.debug_nans(True):
        GAUSS_NEWTON(lambda p: _network(p, latents), params, 0 * direction)


def test_a_generator_that_ignores_its_parameters_stays(rng):
    params, latents, direction = _problem(rng)

    def constant(p):
        return latents[:, :2] + 0 * jnp.sum(p["outer"])

    for pull_back in PULL_BACKS.values():
        solve = jax.jit(pull_back, static_argnums=0)
        assert np.all(_flat(solve(constant, params, direction)) == 0)
    found = compiled_residuals(constant, params, direction, params)
    np.testing.assert_allclose(found, [1, 0])


def test_no_matrix_is_formed(rng):
    """Peak memory of a solve with 60 000 parameters: some copies of them, not their square."""
    params, latents, direction = _problem(rng, n=32, width=12000)
    solve = jax.jit(functools.partial(GAUSS_NEWTON, lambda p: _network(p, latents)))
    memory = solve.lower(params, direction).compile().memory_analysis()
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    activations = 32 * 12000 * 4
    assert memory.temp_size_in_bytes < 20 * (parameters + activations)


# ----------------------------------------------------------------------------- all of them


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", PULL_BACKS)
def test_jit_is_eager_and_the_direction_enters_linearly(rng, name):
    params, latents, direction = _problem(rng, n=20)
    pull_back = functools.partial(PULL_BACKS[name], lambda p: _network(p, latents))
    eager = _flat(pull_back(params, direction))
    jitted = jax.jit(pull_back)
    np.testing.assert_allclose(_flat(jitted(params, direction)), eager, rtol=1e-3, atol=1e-5)
    if name != "regression":
        doubled = _flat(jitted(params, -2 * direction))
        np.testing.assert_allclose(doubled, -2 * eager, rtol=1e-3, atol=1e-5)


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("name", PULL_BACKS)
def test_a_vmapped_pull_back_is_a_loop(rng, name):
    """Several networks at once, each with its own direction."""
    problems = [_problem(rng, n=20) for _ in range(3)]
    pull_back = PULL_BACKS[name]

    def solve(params, latents, direction):
        return pull_back(lambda p: _network(p, latents), params, direction)

    together = jax.jit(jax.vmap(solve))(*jax.tree.map(lambda *a: jnp.stack(a), *problems))
    solve = jax.jit(solve)
    for i, problem in enumerate(problems):
        alone = solve(*problem)
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        np.testing.assert_allclose(_flat(mine), _flat(alone), rtol=1e-2, atol=1e-4)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", PULL_BACKS)
def test_two_devices_are_one(rng, name):
    params, latents, direction = _problem(rng, n=20)
    pull_back = PULL_BACKS[name]

    def solve(latents, direction, axis_name=None):
        def generator_fn(p):
            return _network(p, latents)

        if name == "chain_rule":
            gradient = pull_back(generator_fn, params, direction)
        else:
            gradient = pull_back(generator_fn, params, direction, axis_name=axis_name)
        found = pullback.residuals(
            generator_fn, params, direction, gradient, damping=0.01, axis_name=axis_name
        )
        if axis_name is not None:
            gradient = jax.lax.pmean(gradient, axis_name)
        return gradient, found

    alone, alone_found = jax.jit(solve)(latents, direction)
    spread = jax.pmap(functools.partial(solve, axis_name="i"), axis_name="i")
    both, found = spread(latents.reshape(2, 10, 3), direction.reshape(2, 10, 2))
    for device in range(2):
        mine = jax.tree.map(lambda leaf, device=device: leaf[device], (both, found))
        np.testing.assert_allclose(_flat(mine[0]), _flat(alone), rtol=1e-3, atol=1e-5)
        if name != "chain_rule":
            np.testing.assert_allclose(mine[1].misfit, alone_found.misfit, rtol=1e-4)
    if name == "gauss_newton":
        assert np.all(np.asarray(found.normal) < 2e-5)


def test_images_are_samples_too(rng):
    latents = jnp.float32(rng.normal(size=(5, 3)))
    params = jnp.float32(rng.normal(size=(3, 8)))
    direction = jnp.float32(rng.normal(size=(5, 2, 2, 2)))
    for pull_back in PULL_BACKS.values():
        solve = jax.jit(pull_back, static_argnums=0)
        images = solve(lambda w: (latents @ w).reshape(5, 2, 2, 2), params, direction)
        flat = solve(lambda w: latents @ w, params, direction.reshape(5, 8))
        np.testing.assert_allclose(images, flat, rtol=1e-4, atol=1e-6)


# -------------------------------------------------------------------------------- in training


def _affine(params, latents):
    return latents @ params["matrix"] + params["shift"][None]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "labels"), [("smoothed", tuple(PULL_BACKS)), ("direct", ("chain_rule",))]
)
def test_an_affine_sampler_learns_a_gaussian(key, name, labels):
    """The SVGD direction (7) under each of (8), (9), (10), and the direct KL gradient (11)."""
    mean, root = jnp.float32([1.0, -2.0]), jnp.float32([[1.2, 0.0], [0.5, 0.7]])
    covariance = root @ root.T
    precision = jnp.linalg.inv(covariance)
    kernel = kernels.rbf_mixture(2.0)

    def body(pull_back, params, key):
        latents = jax.random.normal(key, (100, 2))
        x = _affine(params, latents)
        scores = -(x - mean[None]) @ precision
        if name == "smoothed":
            direction = -4 * svgd.svgd_direction(x, scores, kernel)
        else:
            direction = score.stein_score(x, kernel, ridge=1.0) - scores
        gradient = pull_back(lambda p: _affine(p, latents), params, direction)
        return jax.tree.map(lambda p, g: p - 0.2 * g, params, gradient), params

    params = {"matrix": 0.5 * jnp.eye(2), "shift": jnp.zeros(2)}
    keys = jax.random.split(key, 300)
    for label in labels:
        run = jax.jit(
            lambda p, b=PULL_BACKS[label]: jax.lax.scan(functools.partial(body, b), p, keys)[1]
        )
        path = {leaf: np.asarray(values[100:]) for leaf, values in run(params).items()}
        covariances = np.einsum("tij,tik->tjk", path["matrix"], path["matrix"])
        np.testing.assert_allclose(path["shift"].mean(axis=0), mean, atol=0.1, err_msg=label)
        np.testing.assert_allclose(covariances.mean(axis=0), covariance, atol=0.2, err_msg=label)


def _generator(params, batch_stats, latents):
    return _affine(params, latents), batch_stats


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("objective", "name"), [*(("kl", name) for name in PULL_BACKS), ("mmd", "gauss_newton")]
)
def test_the_train_step_takes_any_pull_back(key, rng, objective, name):
    data = jnp.float32(rng.normal((1.0, -1.0), 0.5, size=(64, 2)))
    optimizer = optax.sgd(0.2)
    step = train.make_train_step(
        _generator,
        {"kl": objectives.kl, "mmd": objectives.mmd_v}[objective](
            lambda *_, axis_name: kernels.rbf_mixture(1.5)
        ),
        optimizer,
        sample_latents=lambda key, n: jax.random.normal(key, (n, 2)),
        pull_back=PULL_BACKS[name],
    )
    state = train.init({"matrix": jnp.eye(2), "shift": jnp.zeros(2)}, {}, optimizer)
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s, key, data), s, length=60))
    _, info = run(state)
    mmd = np.asarray(info["mmd"])
    assert np.all(np.asarray(info["finite"]))
    assert mmd[-10:].mean() < 0.1 * mmd[0]


# -------------------------------------------------------------------------------------- errors


def test_bad_direction_is_named(rng):
    params, latents, direction = _problem(rng)
    for pull_back in PULL_BACKS.values():
        with pytest.raises(ValueError, match=r"direction: got shape \(5, 2\); expected \(6, 2\)"):
            pull_back(lambda p: _network(p, latents), params, direction[:5])
    with pytest.raises(ValueError, match=r"direction: got shape \(5, 2\); expected \(6, 2\)"):
        pullback.residuals(lambda p: _network(p, latents), params, direction[:5], params)


@pytest.mark.parametrize(
    ("pull_back", "hyperparameters", "message"),
    [
        (REGRESSION, {"step_size": 0.0}, r"step_size: got 0"),
        (REGRESSION, {"step_size": (0.1, 0.2)}, "step_size: got tuple; expected a number"),
        (REGRESSION, {"num_steps": 0}, r"num_steps: got 0; expected an integer >= 1"),
        (GAUSS_NEWTON, {"damping": -1e-3}, r"damping: got -0.001"),
        (GAUSS_NEWTON, {"tolerance": 1e-9}, r"tolerance: got 1.e-09; expected values in \[9.5"),
        (GAUSS_NEWTON, {"max_iterations": 0}, r"max_iterations: got 0"),
    ],
)
def test_bad_hyperparameters_are_named(rng, pull_back, hyperparameters, message):
    params, latents, direction = _problem(rng)
    with pytest.raises(ValueError, match=message):
        pull_back(lambda p: _network(p, latents), params, direction, **hyperparameters)


def test_a_direction_that_is_not_finite_gives_no_step_of_zero():
    def generator(params):
        return jnp.ones((4, 2)) * params

    params = jnp.ones((1, 2))
    for bad in (jnp.nan, jnp.inf):
        direction = jnp.ones((4, 2)).at[1, 0].set(bad)
        got = pullback.gauss_newton(generator, params, direction, damping=0.1)
        assert np.isnan(got).all()


def test_many_samples_in_half_precision_are_counted_in_full():
    """float16 ends at 65504."""
    direction = jnp.full((70000, 1), 0.5, jnp.float16)
    generator = lambda w: jnp.broadcast_to(w[None], (70000, 1))  # noqa: E731
    for pull_back in (
        pullback.chain_rule,
        functools.partial(pullback.gauss_newton, damping=0.0, tolerance=1e-2),
    ):
        gradient = pull_back(generator, jnp.ones(1), direction)
        np.testing.assert_allclose(gradient, 0.5, rtol=1e-3)
