"""Extractors: trained once, cached, of one data set, never the judge; and their use in runs."""

import dataclasses
import functools
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import catalog
from experiments.judges import classifiers
from experiments.networks import encoders
from experiments.run.errors import DataError, UsageError
from experiments.run.workdirs import Workdir
from experiments.training import extractors, fit, models, settings
from experiments.training.extractors import Recipe, train_or_load
from experiments.training.objectives import OBJECTIVES
from experiments.training.settings import Config
from kernelgrad import critic, objectives
from tests.experiments.conftest import loading

QUICK = Recipe(width=4, num_features=6, batch_size=8, num_steps=2)
TINY = Config(
    dataset="toy", num_steps=4, eval_every=2, batch_size=8, latent_dim=4, width=4, normalize=True
)


@pytest.fixture
def untrained(monkeypatch, toy):
    """Encoders as they start, in place of trained ones; and the toy data under every name."""

    def load(name, dataset, cache_dir):
        encoder = encoders.Encoder(2, extractors.NUM_FEATURES)
        number = list(encoders.TRAINERS).index(name)
        params = encoder.init(jax.random.key(number), jnp.zeros((1, 8, 8, 1)))["params"]
        return extractors.Extractor(name, "toy", encoder, params, (8, 8, 1), f"{number}" * 64)

    monkeypatch.setattr(extractors, "train_or_load", load)
    monkeypatch.setattr(catalog, "load", loading(toy))
    return load


# ------------------------------------------------------------------------------------- extractors


@pytest.mark.thorough
def test_the_second_call_loads_what_the_first_one_trained(toy, tmp_path, monkeypatch):
    first = train_or_load("autoencoder", toy, tmp_path, recipe=QUICK)
    monkeypatch.setattr(extractors, "_train", None)
    again = train_or_load("autoencoder", toy, tmp_path, recipe=QUICK)
    assert again.sha256 == first.sha256
    images = jnp.asarray(toy.test[:3] / 255, jnp.float32)
    np.testing.assert_array_equal(again(images), first(images))
    assert first(images).shape == (3, 6)


@pytest.fixture
def trainings(monkeypatch):
    """Counts trainings of a stand-in that is quick."""
    calls = []

    def train(name, dataset, recipe, seed):
        calls.append(name)
        encoder = encoders.Encoder(recipe.width, recipe.num_features)
        images = jnp.zeros((1, *dataset.sample_shape))
        return encoder.init(jax.random.key(len(calls)), images)["params"]

    monkeypatch.setattr(extractors, "_train", train)
    return calls


@pytest.mark.thorough
def test_name_data_recipe_and_seed_have_a_file_each(toy, tmp_path, trainings):
    relabelled = toy.train_labels.copy()
    relabelled[0] += 1
    variants = [
        {},
        {"name": "vicreg"},
        {"name": "classifier"},
        {"name": "classifier", "dataset": toy._replace(train_labels=relabelled)},
        {"seed": 1},
        {"recipe": dataclasses.replace(QUICK, num_steps=3)},
        {"dataset": toy._replace(train=toy.train[:-1])},
        {"dataset": toy._replace(name="copies/toy")},
    ]
    for variant in variants * 2:
        arguments = {"name": "autoencoder", "dataset": toy, "recipe": QUICK, **variant}
        train_or_load(cache_dir=tmp_path, **arguments)
    assert len(trainings) == len(variants)
    assert len(list(tmp_path.glob("features-*.npz"))) == len(list(tmp_path.iterdir()))


def test_a_damaged_file_is_named_and_replaced(toy, tmp_path, trainings, capsys):
    train_or_load("vicreg", toy, tmp_path, recipe=QUICK)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    train_or_load("vicreg", toy, tmp_path, recipe=QUICK)
    error = capsys.readouterr().err
    assert error.startswith(f"kernelgrad: warning: {path} is damaged (")
    assert error.endswith("; the vicreg is trained again\n")
    assert len(trainings) == 2


def test_an_extractor_of_another_data_set_is_refused_by_name(toy, tmp_path, trainings):
    other = toy._replace(name="other", train=toy.train[::-1])
    train_or_load("vicreg", other, tmp_path / "other", recipe=QUICK)
    train_or_load("vicreg", toy, tmp_path / "toy", recipe=QUICK)
    (wrong,), (path,) = (tmp_path / "other").iterdir(), (tmp_path / "toy").iterdir()
    path.write_bytes(wrong.read_bytes())
    with pytest.raises(DataError, match=r"the vicreg of other; expected the vicreg of toy. Remove"):
        train_or_load("vicreg", toy, tmp_path / "toy", recipe=QUICK)


@pytest.mark.thorough
def test_the_classifier_is_not_the_one_that_judges(toy, tmp_path, trainings, monkeypatch):
    def start(dataset, network, config, seed):
        images = jnp.zeros((1, *dataset.sample_shape))
        return network.init(jax.random.key(seed), images, train=False)["params"]

    monkeypatch.setattr(classifiers, "_train", start)
    judge = classifiers.train_or_load(toy, tmp_path)
    (file_of_judge,) = tmp_path.iterdir()
    seen = train_or_load("classifier", toy, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert not file_of_judge.name.startswith("features-")
    assert seen.sha256 != judge.sha256
    shapes = [
        {leaf.shape for leaf in jax.tree.leaves(one.params) if leaf.ndim > 1}
        for one in (seen, judge)
    ]
    assert not shapes[0] & shapes[1]
    assert (
        inspect.signature(classifiers.train_or_load).parameters["seed"].default != extractors._SEED
    )


@pytest.mark.parametrize(
    ("names", "changes", "expected"),
    [
        (
            ["pixels", "vicreg"],
            {"train": np.zeros((9, 2))},
            "got vicreg for toy, which holds",
        ),
        (
            ["classifier"],
            {"train_labels": None},
            "got classifier for toy, which has no la",
        ),
    ],
)
def test_data_without_what_a_network_needs_are_refused(toy, names, changes, expected):
    with pytest.raises(DataError, match=f"^features: {expected}"):
        extractors.check(names, toy._replace(**changes))
    extractors.check(["pixels"], toy._replace(**changes))


@pytest.mark.thorough
def test_images_of_another_shape_are_refused(untrained):
    one = untrained("vicreg", None, None)
    features = jax.eval_shape(jax.jit(one), jnp.zeros((2, 8, 8, 1)))
    assert features.shape == (2, extractors.NUM_FEATURES)
    with pytest.raises(ValueError, match=r"images: got shape \(2, 28, 28, 1\); expected \(n, 8"):
        one(jnp.zeros((2, 28, 28, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("name", encoders.TRAINERS)
def test_features_of_digits_tell_them_apart(tmp_path, name):
    """The nearest training digit in features has the label, as often as in pixels or nearly so."""
    digits = catalog.load("digits")
    seen = train_or_load(name, digits, tmp_path)
    train, test = (jax.jit(seen)(jnp.asarray(x / 255, jnp.float32)) for x in digits[1:3])
    nearest = np.argmin(np.linalg.norm(test[:, None] - train[None], axis=-1), axis=1)
    assert np.mean(digits.train_labels[nearest] == digits.test_labels) > 0.93


# ----------------------------------------------------------------------------------- what runs do


def test_a_run_is_held_to_the_extractors_it_began_with(untrained, tmp_path):
    one = untrained("vicreg", None, None)
    with Workdir(tmp_path, TINY) as folder:
        extractors.hold_to(folder, [])
        assert not (tmp_path / "features.json").exists()
        extractors.hold_to(folder, [one])
        extractors.hold_to(folder, [one])
        assert json.loads((tmp_path / "features.json").read_text()) == {"vicreg": one.sha256}
        other = dataclasses.replace(one, sha256="ab" * 32)
        with pytest.raises(UsageError, match="features: got vicreg of SHA-256 abababababab; expec"):
            extractors.hold_to(folder, [other])
        (tmp_path / "features.json").write_text("[]")
        with pytest.raises(UsageError, match="got no digests by name; expected those of a run"):
            extractors.hold_to(folder, [one])


@pytest.mark.thorough
def test_the_flags_build_the_algebra(untrained, toy, key, rng):
    """Features of unit rms each, added up, to unit rms."""
    config = dataclasses.replace(TINY, objective="mmd", features=("pixels", "vicreg"))
    samples, data = (jnp.asarray(rng.uniform(size=(8, 8, 8, 1)), jnp.float32) for _ in range(2))
    direction, info = jax.jit(models.build(config, toy).objective)(key, samples, data)
    plain = OBJECTIVES["mmd"].make(config)
    seen = objectives.through(untrained("vicreg", toy, None), plain)
    one, other = (jax.jit(o)(key, samples, data)[0] for o in (plain, seen))
    total = sum(part / np.sqrt(np.sum(np.square(part)) / 8) for part in (one, other))
    expected = total / np.sqrt(np.sum(np.square(total)) / 8)
    np.testing.assert_allclose(direction, expected, rtol=1e-3, atol=1e-5)
    assert set(info) == {"mmd/0", "rms/0", "mmd/1", "rms/1", "rms"}


@pytest.mark.thorough
def test_by_default_an_objective_is_as_it_was(toy, key, rng):
    config = dataclasses.replace(TINY, objective="mmd", normalize=False)
    samples, data = (jnp.asarray(rng.uniform(size=(8, 8, 8, 1)), jnp.float32) for _ in range(2))
    built, plain = models.build(config, toy).objective, OBJECTIVES["mmd"].make(config)
    np.testing.assert_array_equal(
        jax.jit(built)(key, samples, data)[0], jax.jit(plain)(key, samples, data)[0]
    )


@pytest.mark.thorough
def test_a_critic_sees_all_features_at_once(untrained, toy, key, rng):
    config = dataclasses.replace(TINY, objective="gan_kl", features=("pixels", "vicreg"))
    model = models.build(config, toy)
    state = jax.jit(model.initial_state)(key).critic
    samples = jnp.asarray(rng.uniform(size=(8, 8, 8, 1)), jnp.float32)
    critic_fn = critic.bind(state, model.objective)
    seen = untrained("vicreg", toy, None)(samples)
    together = jnp.concatenate([samples.reshape(8, 64), seen], axis=1)
    view = model.objective.objective.view(samples)
    np.testing.assert_allclose(view, together, rtol=1e-5, atol=1e-6)
    assert critic_fn(view).shape == (8,)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_resumes_with_its_features(untrained, tmp_path, objective):
    config = dataclasses.replace(TINY, objective=objective, features=("pixels", "autoencoder"))
    if "noise_variance" in OBJECTIVES[objective].needs:
        config = dataclasses.replace(config, noise_variance=0.1)
    run = functools.partial(fit.run, num_devices=1)
    run(config, workdir=str(tmp_path / "whole"))
    run(dataclasses.replace(config, num_steps=2), workdir=str(tmp_path / "cut"))
    run(config, workdir=str(tmp_path / "cut"))
    whole, cut = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut"))
    assert cut == whole


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["kl", "gan_kl"])
def test_two_devices_train_like_one_through_features(untrained, tmp_path, objective):
    config = dataclasses.replace(TINY, objective=objective, features=("pixels", "vicreg"))
    alone = fit.run(config, workdir=str(tmp_path / "one"), num_devices=1)
    spread = fit.run(config, workdir=str(tmp_path / "two"), num_devices=2)
    for name, value in alone.items():
        np.testing.assert_allclose(spread[name], value, rtol=1e-3, atol=1e-5)


def test_a_config_from_before_the_features_is_read(tmp_path):
    stored = dataclasses.asdict(TINY)
    for name in ("features", "normalize"):
        stored.pop(name)
    config = settings.fields.checked(Config, stored)
    assert config.features == ("pixels",)
    assert not config.normalize


def test_labels_are_not_seen_through_features():
    config = dataclasses.replace(
        Config(), objective="gan_kl", conditional=True, features=("vicreg",)
    )
    with pytest.raises(UsageError, match=r"^features: got vicreg with --conditional; exp"):
        settings.validate(config, 1)
