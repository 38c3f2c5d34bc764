"""Posteriors against quadrature, chains over devices, what a run leaves behind, bad input."""

import dataclasses
import json
import math
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import sample
from experiments.data import catalog
from experiments.judges import classifiers
from experiments.networks import critics, generators
from experiments.pictures import mosaics
from experiments.run.errors import UsageError
from experiments.run.workdirs import Workdir
from experiments.targets.latent_chains import SAMPLERS
from experiments.training import fit, models
from experiments.training.latent_model import SELECTORS
from experiments.training.settings import Config

DIGITS = Config(objective="kale", num_steps=10, eval_every=10, batch_size=20, latent_dim=4, width=4)
POINTS = dataclasses.replace(
    DIGITS, dataset="eight_gaussians", num_steps=100, eval_every=100, latent_dim=2, width=16
)
INVERSE_TEMPERATURE = 3.0


def restored(workdir, config):
    built = models.build(config, catalog.load(config.dataset))
    with Workdir(workdir, config) as folder:
        return folder.restore(jax.eval_shape(built.initial_state, jax.random.key(0)))[1]


def start(workdir, config):
    """Leaves a run before its first step."""
    built = models.build(config, catalog.load(config.dataset))
    with Workdir(workdir, config) as folder:
        folder.save(0, jax.jit(built.initial_state)(jax.random.key(0)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    fit.run(POINTS, workdir=str(workdir), num_devices=1)
    return workdir


def generated(config, state, latents):
    """The network in evaluation mode, asked directly."""
    shape = catalog.load(config.dataset).sample_shape
    network = generators.generator_for(shape, config.width)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return network.apply(variables, jnp.asarray(latents, jnp.float32), train=False)


def energies(config, state, samples):
    network = critics.critic_for(samples.shape[1:], config.width)
    return network.apply({"params": state.critic.params}, jnp.asarray(samples), train=False)


def load(workdir, sampler):
    """What a run left, read without pickles."""
    folder = workdir / f"samples_{sampler}"
    with np.load(folder / "samples.npz", allow_pickle=False) as file:
        arrays = dict(file)
    return arrays, json.loads((folder / "results.json").read_text())


def unscored(*_):
    return lambda samples: {}, {}


def quadrature(config, state, inverse_temperature):
    """Returns mean and variance of the energy under the posterior, in the prior's own latents."""
    if config.prior == "uniform":
        axis = np.linspace(-1, 1, 201)[1:] - 1 / 200
        log_prior = np.zeros(200**2)
        latents = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    else:
        axis = np.linspace(-5, 5, 200)
        latents = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
        log_prior = -np.sum(latents**2, axis=1) / 2
    values = np.asarray(energies(config, state, generated(config, state, latents)), np.float64)
    log_weights = log_prior - inverse_temperature * values
    weights = np.exp(log_weights - log_weights.max())
    mean = np.average(values, weights=weights)
    return mean, np.average((values - mean) ** 2, weights=weights)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("sampler", "prior", "steps", "step_size"),
    [
        pytest.param("hmc", "normal", 40, None, marks=pytest.mark.slow),
        ("ula", "uniform", 250, 0.02),
        pytest.param("mala", "uniform", 150, None, marks=pytest.mark.slow),
        pytest.param("underdamped", "normal", 80, 0.2, marks=pytest.mark.slow),
    ],
)
def test_energies_are_those_of_the_posterior(
    trained, tmp_path, monkeypatch, capsys, sampler, prior, steps, step_size
):
    config = dataclasses.replace(POINTS, prior=prior)
    workdir = shutil.copytree(trained, tmp_path / "run")
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    state = restored(workdir, config)
    monkeypatch.setattr(sample, "_make_score", unscored)
    rows = sample.run(
        sample.Config(
            sampler=sampler,
            num_samples=800,
            steps=steps,
            inverse_temperature=INVERSE_TEMPERATURE,
            step_size=step_size,
        ),
        workdir=str(workdir),
    )
    arrays, results = load(workdir, sampler)
    mean, variance = quadrature(config, state, INVERSE_TEMPERATURE)
    before, before_variance = quadrature(config, state, 0.0)
    error = math.sqrt(variance / 800)
    assert before - mean > 10 * error  # so that the generator alone would not pass
    assert abs(arrays["energies"].mean() - mean) < 5 * error
    assert abs(rows["generator"]["mean_energy"] - before) < 5 * math.sqrt(before_variance / 800)

    end = rows[f"{sampler}, {steps} steps"]
    np.testing.assert_allclose(end["mean_energy"], arrays["energies"].mean(), rtol=1e-5)
    samples = generated(config, state, arrays["latents"])
    np.testing.assert_allclose(arrays["samples"], samples, rtol=1e-4, atol=1e-5)
    assert np.abs(arrays["latents"]).max() <= 1 or prior == "normal"
    if SAMPLERS[sampler].acceptance is None:
        assert end["finite"] == 1
        assert end["step_size"] == pytest.approx(step_size)
    else:
        assert abs(end["acceptance"] - SAMPLERS[sampler].acceptance) < 0.12
    assert f"| {sampler}, {steps} steps" in capsys.readouterr().out
    assert results["rows"] == rows
    for name in ("before_after.png", "curves.png"):
        picture = workdir / f"samples_{sampler}" / name
        assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.thorough
@pytest.mark.parametrize("sampler", SELECTORS)
def test_energies_of_the_chosen_are_those_of_the_model(trained, tmp_path, monkeypatch, sampler):
    workdir = shutil.copytree(trained, tmp_path / "run")
    state = restored(workdir, POINTS)
    monkeypatch.setattr(sample, "_make_score", unscored)
    asked = sample.Config(
        sampler=sampler, num_samples=400, candidates=30, inverse_temperature=INVERSE_TEMPERATURE
    )
    rows = sample.run(asked, workdir=str(workdir))
    arrays, _ = load(workdir, sampler)
    mean, variance = quadrature(POINTS, state, INVERSE_TEMPERATURE)
    before, _ = quadrature(POINTS, state, 0.0)
    chosen = rows[f"{sampler} from 12000"]
    error = math.sqrt(variance * (1 / 400 + 1 / chosen["effective_draws"]))
    assert before - mean > 10 * error
    assert abs(arrays["energies"].mean() - mean) < 5 * error
    assert 400 < chosen["effective_draws"] < 12_000
    assert chosen.get("capped") == (0 if sampler == "rejection" else None)
    distinct = len(np.unique(arrays["latents"], axis=0))
    assert distinct == 400 if sampler == "rejection" else distinct < 400
    folder = workdir / f"samples_{sampler}"
    assert {path.name for path in folder.iterdir()} == {
        "samples.npz", "results.json", "before_after.png"
    }  # fmt: skip


@pytest.mark.thorough
def test_chains_of_a_conditional_run_keep_labels_and_follow_its_energy(
    tmp_path, monkeypatch, capsys
):
    """ULA follows z given y, with y as often as in the data; and KALE is that of test data."""
    config = dataclasses.replace(POINTS, conditional=True)
    fit.run(config, workdir=str(tmp_path), num_devices=1)
    state, dataset = restored(tmp_path, config), catalog.load(config.dataset)
    monkeypatch.setattr(sample, "_make_score", unscored)
    drawn = sample.Config(sampler="ula", num_samples=800, steps=150, step_size=0.02)
    sample.run(drawn, workdir=str(tmp_path))
    arrays, results = load(tmp_path, "ula")
    critic = critics.critic_for((10,), config.width)
    params = {"params": state.critic.params["network"]}
    generator = generators.generator_for((2,), config.width)

    def energy(normal, codes):
        latents = np.concatenate([normal, codes], axis=1).astype(np.float32)
        x = generator.apply({"params": state.params}, latents, train=False)
        return np.asarray(
            critic.apply(params, np.concatenate([x, codes], axis=1), train=False), np.float64
        )

    axis = np.linspace(-5, 5, 100)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    means, squares = [], []
    for label in range(8):
        codes = np.tile(np.eye(8, dtype=np.float32)[label], (len(grid), 1))
        values = energy(grid, codes)
        weights = np.exp(-np.sum(grid**2, axis=1) / 2 - values)
        means.append(np.average(values, weights=weights))
        squares.append(np.average(values**2, weights=weights))
    shares = np.bincount(dataset.train_labels) / len(dataset.train_labels)
    mean = shares @ means
    deviation = math.sqrt(shares @ squares - mean**2)
    assert abs(arrays["energies"].mean() - mean) < 5 * deviation / math.sqrt(800)
    z = (arrays["labels"].mean(axis=0) - shares) / np.sqrt(shares * (1 - shares) / 800)
    assert np.abs(z).max() < 5
    np.testing.assert_allclose(
        arrays["energies"], energy(arrays["latents"], arrays["labels"]), rtol=1e-3, atol=1e-4
    )

    codes = np.eye(8, dtype=np.float32)[dataset.test_labels]
    points = np.concatenate([dataset.test, codes], axis=1)
    of_test = np.asarray(critic.apply(params, points, train=False), np.float64)
    normal = np.random.default_rng(0).standard_normal((20_000, 2))
    codes = np.eye(8, dtype=np.float32)[np.random.default_rng(1).choice(8, 20_000, p=shares)]
    weights = np.exp(-energy(normal, codes))
    expected = -of_test.mean() - np.log(weights.mean())
    kale = results["test_kale"]
    said = f"KALE on test data, the larger the worse the generator: {kale['nats']:.3f} ± "
    assert said in capsys.readouterr().out
    assert abs(kale["nats"] - expected) < 5 * kale["standard_error"]
    relative = np.std(weights) / weights.mean()
    np.testing.assert_allclose(kale["effective_draws"], 800 / (1 + relative**2), rtol=0.2)
    error = math.sqrt(of_test.var() / len(of_test) + relative**2 / 800)
    np.testing.assert_allclose(kale["standard_error"], error, rtol=0.2)


@pytest.mark.thorough
def test_a_call_that_was_cut_off_is_taken_up(trained, tmp_path, monkeypatch):
    """And one of other settings is not."""
    scored = []

    def make_score(*_):
        def score(samples):
            scored.append(len(samples))
            if len(scored) == 5:  # the prior's draws, then three visits
                raise KeyboardInterrupt
            return {"mean": float(samples.mean())}

        return score, {}

    monkeypatch.setattr(sample, "_make_score", make_score)
    asked = sample.Config(sampler="ula", num_samples=20, steps=10)
    folders = [str(shutil.copytree(trained, tmp_path / name)) for name in ("whole", "cut")]
    scored.extend([0] * 5)
    sample.run(asked, workdir=folders[0])
    scored.clear()
    with pytest.raises(KeyboardInterrupt):
        sample.run(asked, workdir=folders[1])
    unfinished = tmp_path / "cut" / "samples_ula" / "unfinished.npz"
    kept = unfinished.read_bytes()
    del scored[-1]
    scored.extend([0] * 2)
    before = len(scored)
    sample.run(asked, workdir=folders[1])
    assert len(scored) - before == 1 + 7 + 1 + 1  # and real samples
    assert not unfinished.exists()
    (arrays, results), (others, others_results) = (
        load(tmp_path / name, "ula") for name in ("whole", "cut")
    )
    np.testing.assert_array_equal(arrays["latents"], others["latents"])
    assert results["history"] == others_results["history"]
    unfinished.write_bytes(kept)
    before = len(scored)
    sample.run(dataclasses.replace(asked, seed=1), workdir=folders[1])
    assert len(scored) - before == 1 + 10 + 1 + 1


def untrained(dataset, network, config, seed):
    images = jnp.zeros((1, *dataset.sample_shape))
    return network.init(jax.random.key(seed), images, train=False)["params"]


@pytest.fixture(params=["brightness", pytest.param("all scores", marks=pytest.mark.slow)])
def scores(request, tmp_path, monkeypatch):
    """Names of the scores: a stand-in, or all of them with a classifier that knows nothing."""
    if request.param == "brightness":
        score = lambda samples: {"brightness": float(samples.mean())}  # noqa: E731
        monkeypatch.setattr(sample, "_make_score", lambda *_: (score, {}))
        return {"brightness"}
    monkeypatch.setenv("KERNELGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(classifiers, "_train", untrained)
    return {"inception_score", "classifier_frechet", "classifier_kid", "nearest_l1"}


@pytest.mark.slow
def test_images_are_scored_along_the_chains(tmp_path, scores):
    workdir = tmp_path / "run"
    start(workdir, DIGITS)
    state = restored(workdir, DIGITS)
    rows = sample.run(sample.Config(sampler="mala", num_samples=12, steps=3), workdir=str(workdir))
    arrays, results = load(workdir, "mala")
    assert {k: v.shape for k, v in arrays.items()} == {
        "samples": (12, 8, 8, 1), "latents": (12, 4), "energies": (12,)
    }  # fmt: skip
    alone = [generated(DIGITS, state, arrays["latents"][i : i + 1])[0] for i in range(12)]
    np.testing.assert_allclose(arrays["samples"], np.stack(alone), rtol=1e-4)
    expected = energies(DIGITS, state, arrays["samples"])
    np.testing.assert_allclose(arrays["energies"], expected, rtol=1e-4, atol=1e-6)
    assert [record["step"] for record in results["history"]] == [0, 1, 2, 3]
    for record in results["history"]:
        assert {*scores, "mean_energy"} <= set(record)
    assert "acceptance" not in results["history"][0]
    assert all("acceptance" in record for record in results["history"][1:])
    assert {*scores, "acceptance", "step_size"} <= set(rows["mala, 3 steps"])
    assert results["checkpoint"] == 0
    assert results["request"]["inverse_temperature"] == 1
    for name in ("before_after.png", "curves.png"):
        assert (workdir / "samples_mala" / name).read_bytes().startswith(b"\x89PNG")


def test_real_samples_are_scored_by_what_they_have_not_seen():
    digits = catalog.load("digits")
    names = ("label_entropy", "nearest_l1", "inception_score", "classifier_kid")

    def score(images):
        first = images[0].mean()
        return dict.fromkeys(names, first) | {"count": len(images)}

    found = sample._score_real(score, digits, 7)
    of_train, of_test = (part[0].mean() / 255 for part in (digits.train, digits.test))
    expected = dict.fromkeys(names[:3], of_test) | {"classifier_kid": of_train, "count": 7}
    assert found == pytest.approx(expected)
    points = catalog.load("ring")
    assert (
        sample._score_real(lambda x: {"sum": x.sum()}, points, 9)["sum"] == points.train[:9].sum()
    )


def test_before_and_after_are_side_by_side(monkeypatch):
    drawn = []
    monkeypatch.setattr(mosaics, "image_grid", lambda images: drawn.append(images) or b"")
    before = np.arange(40.0).reshape(40, 1, 1, 1) / 100
    sample._picture(
        types.SimpleNamespace(dataset=catalog.load("digits")),
        {"generator": before, "hmc": before + 0.5},
    )
    grid = drawn[0].reshape(9, 9)  # 9 rows of 4, a gap and 4: 36 of 40 chains
    np.testing.assert_array_equal(grid[:, :4], np.arange(36).reshape(9, 4) / 100)
    np.testing.assert_array_equal(grid[:, 4], 1)
    np.testing.assert_array_equal(grid[:, 5:], grid[:, :4] + 0.5)


def mmd_u_statistic(x, y, scales):
    """MMD^2 in float64, under the sum of inverse multiquadrics at the median of y."""

    def squared(a, b):
        return np.sum((a[:, None] - b[None]).astype(np.float64) ** 2, axis=-1)

    median = np.median(squared(y, y)[np.triu_indices(len(y), 1)])

    def mean(a, b):
        k = sum(1 / np.sqrt(1 + squared(a, b) / (scale * median)) for scale in scales)
        return (k.sum() - (np.trace(k) if a is b else 0)) / (len(a) * (len(b) - (a is b)))

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


@pytest.mark.slow
def test_the_generator_alone_needs_no_critic(tmp_path, monkeypatch):
    config = dataclasses.replace(POINTS, objective="mmd")
    whole = catalog.load(config.dataset)
    few = whole._replace(test=whole.test[:200])
    monkeypatch.setattr(catalog, "load", lambda *_, **__: few)
    start(tmp_path, config)
    asked = sample.Config(sampler="generator", num_samples=100)
    rows = sample.run(asked, workdir=str(tmp_path))
    arrays, _ = load(tmp_path, "generator")
    assert set(arrays) == {"samples", "latents"}
    samples = generated(config, restored(tmp_path, config), arrays["latents"])
    np.testing.assert_allclose(arrays["samples"], samples, rtol=1e-4, atol=1e-5)
    expected = mmd_u_statistic(arrays["samples"], few.test, (0.5, 1.0, 2.0, 4.0))
    floor = mmd_u_statistic(few.train[:100], few.test, (0.5, 1.0, 2.0, 4.0))
    assert rows == {
        "generator": {"test_mmd": pytest.approx(expected, rel=1e-3)},
        "real samples": {"test_mmd": pytest.approx(floor, rel=1e-2, abs=1e-5)},
    }
    assert (tmp_path / "samples_generator" / "samples.png").exists()
    with pytest.raises(UsageError, match=r"a run of mmd, which has no energy; expected one of gan"):
        sample.run(dataclasses.replace(asked, sampler="hmc"), workdir=str(tmp_path))

    monkeypatch.setattr(sample, "_make_score", unscored)
    for seed in (0, 1):
        sample.run(dataclasses.replace(asked, seed=seed), workdir=str(tmp_path))
        again, _ = load(tmp_path, "generator")
        assert np.array_equal(again["latents"], arrays["latents"]) == (seed == 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "hcm"}, r"sampler: got 'hcm'; .*Did you mean hmc\?"),
        ({"steps": -1}, "steps: got -1; expected an integer in"),
        ({"num_samples": 5}, "num_samples: got 5; expected an integer in"),
        ({"inverse_temperature": 0.0}, "inverse_temperature: got 0.0; expected a number in"),
        ({"inverse_temperature": math.nan}, "inverse_temperature: got nan"),
        ({"step_size": -0.1}, "step_size: got -0.1; expected a number in"),
        ({}, "got .* without a checkpoint; train first"),
    ],
)
def test_bad_requests_are_usage_errors(tmp_path, changes, message):
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(DIGITS)))
    with pytest.raises(UsageError, match=message):
        sample.run(sample.Config(**changes), workdir=str(tmp_path))


def test_a_folder_without_a_run_is_a_usage_error():
    with pytest.raises(UsageError, match=r"got /nowhere without a readable config.json"):
        sample.run(sample.Config(), workdir="/nowhere")


def test_a_folder_of_toy_is_a_usage_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(DIGITS)))
    (tmp_path / "frames").mkdir()
    with pytest.raises(UsageError, match=r"got .*, a run of experiments.toy, whose targets are"):
        sample.run(sample.Config(), workdir=str(tmp_path))


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--inverse_temperature=-1", "inverse_temperature: got -1.0; expected a number in"),
        pytest.param(
            "--num_steps=9",
            "flag: got --num_steps; expected a known flag such as --num_samples",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_flags_are_one_line(tmp_path, refusal, flag, message):
    assert refusal("sample", f"--workdir={tmp_path}", flag).startswith(message)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["spread", "one place"])
def test_numbers_are_trained_on_and_sampled(tmp_path, rng, kind):
    """Twelve of them, in one column, two of which are held out."""
    rows = rng.normal(size=(12, 1)) if kind == "spread" else np.full((12, 1), 3.0)
    np.save(tmp_path / "rows.npy", rows)
    config = Config(
        objective="mmd",
        dataset=str(tmp_path / "rows.npy"),
        num_steps=2,
        eval_every=2,
        batch_size=4,
        latent_dim=2,
        width=4,
    )
    run = tmp_path / "run"
    last = fit.run(config, workdir=str(run), num_devices=1)
    assert np.isfinite(last["test_mmd"])
    assert (run / "samples" / "0000002.png").read_bytes().startswith(b"\x89PNG")
    rows = sample.run(sample.Config(sampler="generator", num_samples=6), workdir=str(run))
    assert np.isfinite(rows["generator"]["test_mmd"])
    assert (run / "samples_generator" / "samples.png").read_bytes().startswith(b"\x89PNG")
