import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import catalog
from experiments.judges import classifiers, resnet
from experiments.judges.classifiers import ClassifierConfig, train_or_load
from experiments.run import errors
from kernelgrad import metrics
from tests.experiments.networks.generators_test import evaluate, shapes

QUICK = ClassifierConfig(width=8, num_epochs=1, min_steps=5)


@pytest.fixture(scope="module")
def digits():
    return catalog.load("digits")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(digits, cache):
    return train_or_load(digits, cache)


@pytest.fixture
def trainings(monkeypatch):
    """Counts trainings of a stand-in that is quick."""
    calls = []

    def train(dataset, network, config, seed):
        calls.append(seed)
        images = jnp.zeros((1, *dataset.sample_shape))
        return network.init(jax.random.key(seed), images, train=False)["params"]

    monkeypatch.setattr(classifiers, "_train", train)
    return calls


@pytest.mark.thorough
def test_accuracy_on_digits_is_that_of_a_float64_forward_pass(digits, trained):
    hidden = digits.test.reshape(len(digits.test), -1) / 255
    for name in ("Dense_0", "Dense_1"):
        layer = trained.params[name]
        hidden = np.maximum(hidden @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0)
    last = trained.params["Dense_2"]
    logits = hidden @ np.asarray(last["kernel"]) + np.asarray(last["bias"])
    assert trained.test_accuracy == np.mean(logits.argmax(1) == digits.test_labels)
    assert trained.test_accuracy >= 0.97

    images = jnp.asarray(digits.test / 255, jnp.float32)
    np.testing.assert_allclose(trained.features(images), hidden, rtol=1e-4, atol=1e-4)
    exp = np.exp(logits - logits.max(1, keepdims=True))
    expected = exp / exp.sum(1, keepdims=True)
    np.testing.assert_allclose(trained.probs(images), expected, atol=1e-4)
    assert metrics.inception_score(trained.probs(images)) > 9.3


@pytest.mark.thorough
def test_second_call_loads_the_same_classifier(digits, cache, trained, trainings):
    loaded = train_or_load(digits, str(cache))
    assert not trainings
    assert loaded.sha256 == trained.sha256
    assert len(loaded.sha256) == 64
    assert loaded.test_accuracy == trained.test_accuracy
    images = jnp.asarray(digits.test[:9] / 255, jnp.float32)
    np.testing.assert_array_equal(loaded.probs(images), trained.probs(images))


@pytest.mark.slow
def test_training_is_a_function_of_the_seed(digits, tmp_path):
    runs = [train_or_load(digits, tmp_path / str(i), config=QUICK) for i in range(2)]
    assert runs[0].sha256 == runs[1].sha256
    other = train_or_load(digits, tmp_path / "0", seed=1, config=QUICK)
    assert other.sha256 != runs[0].sha256


@pytest.mark.slow
def test_training_of_fewer_images_than_a_batch(digits, tmp_path):
    few = digits._replace(train=digits.train[:20], train_labels=digits.train_labels[:20])
    config = dataclasses.replace(QUICK, width=64, min_steps=100, shift=0, dropout_rate=0.0)
    trained = train_or_load(few, tmp_path, config=config)
    predicted = np.argmax(trained.probs(jnp.asarray(few.train / 255, jnp.float32)), axis=1)
    np.testing.assert_array_equal(predicted, few.train_labels)


@pytest.mark.thorough
def test_cache_is_keyed_by_data_config_and_seed(digits, tmp_path, trainings):
    changed = digits.train.copy()
    changed[7, 3, 4, 0] ^= 1
    relabelled = digits.test_labels.copy()
    relabelled[0] += 1
    variants = [
        {},
        {"seed": 1},
        {"config": dataclasses.replace(QUICK, weight_decay=0.0)},
        {"dataset": digits._replace(train=changed)},
        {"dataset": digits._replace(test_labels=relabelled)},
        {"dataset": digits._replace(name="copies/digits")},
    ]
    for variant in variants * 2:
        train_or_load(**{"dataset": digits, "cache_dir": tmp_path, "config": QUICK, **variant})
    assert len(trainings) == len(variants)
    assert len(list(tmp_path.glob("classifier-*.npz"))) == len(list(tmp_path.iterdir()))


def test_damaged_file_is_named_and_replaced(digits, tmp_path, trainings, capsys):
    first = train_or_load(digits, tmp_path, config=QUICK)
    (path,) = tmp_path.iterdir()
    intact = path.read_bytes()
    path.write_bytes(intact[:-100])
    capsys.readouterr()
    again = train_or_load(digits, tmp_path, config=QUICK)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(
        f"kernelgrad: warning: {path} is damaged (no arrays: File is not a zip file)"
    )
    assert again.sha256 == first.sha256
    assert path.read_bytes() == intact


def test_no_damage_passes_unseen(digits, tmp_path, rng, trainings, capsys):
    """Bit flips anywhere in the file: it is refused, or the parameters are the same bits."""
    train_or_load(digits, tmp_path, config=QUICK)
    (path,) = tmp_path.iterdir()
    intact = path.read_bytes()
    params = classifiers._load(path)
    refused = 0
    for position in rng.integers(0, len(intact), 300):
        damaged = bytearray(intact)
        damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        loaded = classifiers._load(path)
        refused += loaded is None
        if loaded is not None:
            jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert refused > 100
    assert capsys.readouterr().err.count("\n") == refused


def test_changed_parameters_in_a_sound_file_are_refused(digits, tmp_path, trainings, capsys):
    train_or_load(digits, tmp_path, config=QUICK)
    (path,) = tmp_path.iterdir()
    with np.load(path) as file:
        arrays = dict(file)
    arrays["Dense_1.bias"] = arrays["Dense_1.bias"] + 1
    np.savez(path, **arrays)
    assert classifiers._load(path) is None
    assert "SHA-256" in capsys.readouterr().err


def test_failed_write_leaves_nothing(digits, tmp_path, trainings, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        train_or_load(digits, tmp_path, config=QUICK)
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_errors_name_what_is_wrong(digits, trained, tmp_path):
    with pytest.raises(errors.DataError, match="got swiss_roll; the classifier expects images"):
        train_or_load(catalog.load("swiss_roll"), tmp_path)
    with pytest.raises(errors.DataError, match="got digits; the classifier expects images with"):
        train_or_load(digits._replace(train_labels=None), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        train_or_load(digits, tmp_path / "file")
    with pytest.raises(ValueError, match="images: got dtype uint8; expected floating"):
        trained.probs(digits.test)
    with pytest.raises(ValueError, match=r"images: got shape \(2, 28, 28, 1\)"):
        trained.features(jnp.zeros((2, 28, 28, 1)))


@pytest.mark.skipif(
    "KERNELGRAD_DATA_DIR" not in os.environ or os.environ.get("KERNELGRAD_SLOW_TESTS") != "1",
    reason="trains on MNIST: needs KERNELGRAD_DATA_DIR and KERNELGRAD_SLOW_TESTS=1",
)
def test_mnist_classifier_is_as_good_as_the_papers(tmp_path):
    mnist = catalog.load("mnist", os.environ["KERNELGRAD_DATA_DIR"])
    trained = train_or_load(mnist, tmp_path)
    assert trained.test_accuracy >= 0.9816
    images = jnp.asarray(mnist.test / 255, jnp.float32)
    assert metrics.inception_score(trained.probs(images)) >= 9.7


@pytest.mark.thorough
def test_coloured_images_are_judged_by_the_residual_network(digits, tmp_path, monkeypatch):
    brief = dataclasses.replace(resnet.Recipe(), width=8, num_steps=60, batch_size=64)
    coloured = digits._replace(
        name="coloured", train=digits.train.repeat(3, axis=-1), test=digits.test.repeat(3, axis=-1)
    )
    assert classifiers._usual(coloured) == resnet.Recipe()
    assert classifiers._usual(digits) == ClassifierConfig()
    trained = train_or_load(coloured, tmp_path, config=brief)
    assert isinstance(trained.network, resnet.ResNet)
    assert trained.test_accuracy > 0.5
    images = jnp.asarray(coloured.test) / 255
    right = np.asarray(trained.probs(images)).argmax(axis=1) == coloured.test_labels
    assert right.mean() == pytest.approx(trained.test_accuracy)
    assert trained.features(images[:5]).shape == (5, 32)
    monkeypatch.setattr(resnet, "fit", lambda *_, **__: pytest.fail("it is in the cache"))
    assert train_or_load(coloured, tmp_path, config=brief).sha256 == trained.sha256


def test_mlp_classifier_is_relu_layers_and_a_linear_one(rng):
    network = classifiers.MLPClassifier(10, width=32, dropout_rate=0.5)
    draw = shapes(network, (7, 8, 8, 1))["params"]
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape) / 8, draw)
    images = rng.random((7, 8, 8, 1))
    layers = [params[f"Dense_{i}"] for i in range(3)]
    hidden = images.reshape(7, 64)
    for layer in layers[:2]:
        hidden = np.maximum(hidden @ layer["kernel"] + layer["bias"], 0)
    params, images = jax.tree.map(lambda leaf: leaf.astype("f4"), (params, images))
    logits, features = evaluate(network, {"params": params}, images)
    np.testing.assert_allclose(features, hidden, rtol=1e-4, atol=1e-5)
    expected = hidden @ layers[2]["kernel"] + layers[2]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_mlp_classifier_drops_units_in_training_only(key):
    """With positive parameters every unit is positive unless it is dropped."""
    network = classifiers.MLPClassifier(10, width=400, dropout_rate=0.3)
    images = jnp.ones((50, 4, 4, 1))
    draw = shapes(network, images.shape)["params"]
    variables = {"params": jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01), draw)}
    _, features = network.apply(variables, images, train=True, rngs={"dropout": key})
    dropped = np.mean(np.asarray(features) == 0)
    assert abs(dropped - 0.3) < 5 * np.sqrt(0.3 * 0.7 / features.size)
    assert evaluate(network, variables, images)[1].min() > 0
