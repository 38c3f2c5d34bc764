"""The sets, the residual network, the table and its files, and bad input."""

import dataclasses
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import classification_score
from experiments.classification_score import Config
from experiments.data import catalog
from experiments.data.dataset import Dataset
from experiments.judges import classifiers, resnet
from experiments.judges.resnet import Recipe, ResidualBlock
from experiments.run.errors import DivergenceError, UsageError
from experiments.run.workdirs import Workdir
from experiments.training import labelled_images, models, settings
from kernelgrad import train

NUM_CLASSES = 10
SMALL = Recipe(8, stem_stride=1, batch_size=50, num_steps=60, learning_rate=1e-2)
CONFIG = Config(
    "toy",
    num_distinct=20,
    width=8,
    stem_stride=1,
    batch_size=50,
    num_steps=60,
    learning_rate=1e-2,
)
RUN = settings.Config(
    objective="gan_non_saturating", dataset="digits", conditional=True, latent_dim=4, width=4
)


def examples(rng, templates, n):
    """Images that are far from each other's classes: a template a class, and some noise."""
    labels = rng.integers(NUM_CLASSES, size=n).astype(np.int32)
    images = 150 * templates[labels] + 100 * rng.random((n, 8, 8, 1))
    return images.astype(np.uint8), labels


@pytest.fixture
def toy(rng):
    templates = rng.integers(2, size=(NUM_CLASSES, 8, 8, 1))
    images, labels = examples(rng, templates, 300)
    test, test_labels = examples(rng, templates, 200)
    return Dataset("toy", images, test, labels, test_labels, NUM_CLASSES)


@pytest.fixture
def judged(toy, key, monkeypatch):
    """The toy data, under a classifier that was never trained."""
    network = classifiers.MLPClassifier(NUM_CLASSES, 8)
    params = network.init(key, jnp.zeros((1, 8, 8, 1)), train=False)["params"]
    params = jax.tree.map(lambda leaf: 5 * leaf, params)
    classifier = classifiers.Classifier(network, params, (8, 8, 1), 0.5, "ab" * 32)
    monkeypatch.setattr(catalog, "load", lambda name, data_dir, seed: toy)
    monkeypatch.setattr(classifiers, "train_or_load", lambda dataset, cache_dir: classifier)
    return classifier


def fit(dataset, labels, seed=0):
    return resnet.train(dataset.train, labels, NUM_CLASSES, SMALL, seed=seed, description="ResNet")


def loop_accuracy(predicted, labels):
    right = 0
    for one, other in zip(predicted, labels, strict=True):
        right += int(one) == int(other)
    return right / len(labels)


# ------------------------------------------------------------------------------ the residual block


def grouped(x, epsilon=1e-6):
    """Group normalisation, scale 1 and shift 0, and relu, in float64."""
    n, h, w, c = x.shape
    groups = x.reshape(n, h, w, c // resnet.GROUP_SIZE, resnet.GROUP_SIZE)
    mean = groups.mean(axis=(1, 2, 4), keepdims=True)
    variance = groups.var(axis=(1, 2, 4), keepdims=True)
    return np.maximum(((groups - mean) / np.sqrt(variance + epsilon)).reshape(x.shape), 0)


def convolved(x, kernel):
    """3 x 3 convolution of stride 1, zeros around, in float64."""
    n, h, w, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = np.zeros((n, h, w, kernel.shape[-1]))
    for i in range(3):
        for j in range(3):
            total += padded[:, i : i + h, j : j + w] @ kernel[i, j]
    return total


def test_a_block_adds_its_branch_to_its_input(key, rng):
    inputs = rng.normal(1, 2, size=(3, 5, 6, 16)).astype(np.float32)
    block = ResidualBlock(16)
    variables = jax.jit(block.init)(key, inputs)
    kernels = [
        np.asarray(variables["params"][name]["kernel"], np.float64) for name in ("Conv_0", "Conv_1")
    ]
    expected = inputs + convolved(grouped(convolved(grouped(inputs), kernels[0])), kernels[1])
    np.testing.assert_allclose(block.apply(variables, inputs), expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_reaches_the_input_past_a_branch_of_zero(key, rng):
    inputs, weights = rng.normal(size=(2, 2, 4, 4, 8)).astype(np.float32)
    block = ResidualBlock(8)
    params = jax.jit(block.init)(key, inputs)["params"]
    last = jax.tree.map(jnp.zeros_like, params["Conv_1"])

    @jax.jit
    def output_and_gradient(x):
        output, pull = jax.vjp(lambda x: block.apply({"params": params | {"Conv_1": last}}, x), x)
        return output, pull(jnp.asarray(weights))[0]

    output, gradient = output_and_gradient(inputs)
    np.testing.assert_array_equal(output, inputs)
    np.testing.assert_array_equal(gradient, weights)


@pytest.mark.parametrize(
    ("features", "stride", "shape"), [(16, 1, (7, 6)), (8, 2, (4, 3)), (16, 2, (4, 3))]
)
def test_a_block_that_changes_the_shape(key, features, stride, shape):
    block = ResidualBlock(features, stride)
    output, variables = jax.eval_shape(block.init_with_output, key, jnp.ones((2, 7, 6, 8)))
    assert output.shape == (2, *shape, features)
    assert variables["params"]["Conv_2"]["kernel"].shape == (1, 1, 8, features)


# ----------------------------------------------------------------------------------- its training


def test_it_learns_what_is_easy_to_learn(toy):
    predicted = fit(toy, toy.train_labels)(toy.test)
    assert loop_accuracy(predicted, toy.test_labels) > 0.99


def test_shuffled_labels_teach_nothing(toy, rng):
    """Whatever is learnt, whole classes go astray together: 5 sigma of 10 throws, not of 200."""
    predicted = fit(toy, rng.permutation(toy.train_labels))(toy.test)
    sigma = math.sqrt(0.1 * 0.9 / NUM_CLASSES)
    assert loop_accuracy(predicted, toy.test_labels) < 0.1 + 5 * sigma


def test_training_follows_the_seed(toy, rng):
    noise = rng.integers(256, size=(200, 8, 8, 1)).astype(np.uint8)
    first, same, other = (fit(toy, toy.train_labels, seed)(noise) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert np.any(first != other)


def test_an_image_is_classified_on_its_own(toy, rng):
    """In whatever order and number, and beyond one chunk of prediction."""
    classify = fit(toy, toy.train_labels)
    noise = rng.integers(256, size=(1200, 8, 8, 1)).astype(np.uint8)
    predicted = classify(noise)
    assert predicted.shape == (1200,)
    assert len(np.unique(predicted)) > 1
    np.testing.assert_array_equal(predicted, classify(noise[::-1])[::-1])


def test_every_image_is_taken_once_a_pass():
    batches = resnet._batches(25, 8, seed=0)
    passes = [np.concatenate([next(batches) for _ in range(3)]) for _ in range(3)]
    for indices in passes:
        assert len(set(indices)) == 24
        assert max(indices) < 25
    assert any(passes[0] != passes[1])


def test_a_loss_that_is_not_finite_ends_training(toy, monkeypatch):
    monkeypatch.setattr(resnet, "_step", lambda state, *_: (state, jnp.nan))
    with pytest.raises(DivergenceError, match=r"ResNet: step \d+: the loss is nan"):
        fit(toy, toy.train_labels)


# ---------------------------------------------------------------------------------------- the sets


def index_of(dataset, images):
    """Returns which training image each image is."""
    known = {image.tobytes(): index for index, image in enumerate(dataset.train)}
    assert len(known) == len(dataset.train)
    return np.array([known[image.tobytes()] for image in images])


@pytest.mark.parametrize(
    ("num_images", "num_distinct", "distinct"), [(300, 50, 50), (310, 500, 300), (299, 50, 50)]
)
def test_duplicates_are_few_images_equally_often(toy, rng, num_images, num_distinct, distinct):
    images, labels, source = labelled_images.duplicates(toy, num_images, num_distinct, rng)
    index = index_of(toy, images)
    counts = np.bincount(index, minlength=300)
    assert len(index) == num_images
    assert np.count_nonzero(counts) == distinct
    assert set(counts[counts > 0]) <= {num_images // distinct, -(-num_images // distinct)}
    np.testing.assert_array_equal(labels, toy.train_labels[index])
    assert source == f"{distinct} training images, repeated"
    assert images.dtype == np.uint8


@pytest.mark.parametrize("draw", ["real", "duplicates"])
def test_images_are_drawn_uniformly(toy, rng, draw):
    num_draws = 400
    counts = np.zeros(300)
    for _ in range(num_draws):
        if draw == "real":
            drawn = labelled_images.real(toy, 30, rng)
        else:
            drawn = labelled_images.duplicates(toy, 60, 30, rng)
        counts[np.unique(index_of(toy, drawn.images))] += 1
    sigma = math.sqrt(num_draws * 0.1 * 0.9)
    assert np.all(np.abs(counts - num_draws * 0.1) < 5 * sigma)


def test_the_real_set_is_the_training_set(toy, rng):
    images, labels, _ = labelled_images.real(toy, 300, rng)
    index = index_of(toy, images)
    assert sorted(index) == list(range(300))
    np.testing.assert_array_equal(labels, toy.train_labels[index])


def by_shade(latents):
    """Images whose shade tells the label, and a little more of one latent: no whole 255ths."""
    labels = jnp.argmax(latents[:, -NUM_CLASSES:], axis=1)
    shades = (20 * labels + 0.7 + 0.9 * (latents[:, 0] > 0)) / 255
    return jnp.broadcast_to(shades[:, None, None, None], (len(latents), 8, 8, 1))


def fake_model():
    """A generator that keeps the contract of conditional runs, with a state of its own."""

    def sample_latents(key, n):
        first, second = jax.random.uniform(key, (2, n))
        labels = jax.nn.one_hot(jnp.floor(NUM_CLASSES * second), NUM_CLASSES)
        return jnp.concatenate([first[:, None] - 0.5, labels], axis=1)

    def generate(params, batch_stats, latents):
        return by_shade(latents) * params["scale"] + batch_stats["shift"]

    def initial_state(key):
        state = {"params": {"scale": jnp.ones(())}, "batch_stats": {"shift": jnp.zeros(())}}
        return train.TrainState(**state, opt_state=(), step=jnp.zeros((), jnp.int32), critic=None)

    return models.Model(generate, None, None, None, sample_latents, initial_state)


def test_generated_images_come_with_their_labels(judged, tmp_path, monkeypatch):
    model = fake_model()
    monkeypatch.setattr(models, "build", lambda config, dataset: model)
    with Workdir(tmp_path, RUN) as folder:
        folder.save(7, model.initial_state(None))
    images, labels, source = labelled_images.generated(str(tmp_path), 700, seed=0)
    assert images.dtype == np.uint8
    assert images.shape == (700, 8, 8, 1)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(images[:, 0, 0, 0] // 20, labels)
    assert set(images[:, 0, 0, 0] % 20) == {1, 2}
    assert set(labels) == set(range(NUM_CLASSES))
    assert np.any(labels[:200] != labels[500:])  # each batch is drawn anew
    assert source == f"gan_non_saturating, step 7 of {tmp_path}"
    assert np.any(labelled_images.generated(str(tmp_path), 700, seed=1).labels != labels)


@pytest.mark.slow
def test_a_conditional_run_can_be_drawn_from(tmp_path):
    """The real thing: what the generator makes of a label is what that label gets."""
    dataset = catalog.load("digits")
    model = models.build(RUN, dataset)
    state = jax.jit(model.initial_state)(jax.random.key(3))
    with Workdir(tmp_path, RUN) as folder:
        folder.save(1, state)
    images, labels, _ = labelled_images.generated(str(tmp_path), 60, seed=0)
    assert images.std() > 0
    latents = model.sample_latents(jax.random.fold_in(jax.random.key(0), 0), 500)[:60]
    np.testing.assert_array_equal(np.eye(10)[labels], latents[:, RUN.latent_dim :])
    expected = 255 * model.generate(state.params, state.batch_stats, latents)
    assert np.abs(np.asarray(expected, np.float64) - images).max() < 0.51


def test_images_by_class_are_the_first_of_each(toy):
    few = labelled_images.LabelledImages(toy.train[:40], toy.train_labels[:40] % 7, "")
    grid = labelled_images.class_lines(few, NUM_CLASSES, 3)
    assert grid.shape == (NUM_CLASSES, 3, 8, 8, 1)
    for label in range(NUM_CLASSES):
        expected = [
            image for image, one in zip(few.images, few.labels, strict=True) if one == label
        ]
        for place in range(3):
            wanted = expected[place] if place < len(expected) else np.zeros((8, 8, 1))
            np.testing.assert_array_equal(grid[label, place], wanted)


# ------------------------------------------------------------------------------ table and files


def oracle_inception(probs):
    probs = np.asarray(probs, np.float64)
    marginal = probs.mean(axis=0)
    return math.exp(np.mean([p[p > 0] @ np.log(p[p > 0] / marginal[p > 0]) for p in probs]))


def guess(images, labels, num_classes, recipe, *, seed, description):
    """Stands in for training: what comes out depends on the labels and the seed."""
    rng = np.random.default_rng([*labels, seed])
    return lambda asked: rng.integers(num_classes, size=len(asked))


def test_the_table_and_its_files(judged, toy, tmp_path, monkeypatch, capsys):
    calls = []

    def counted(images, labels, num_classes, recipe, *, seed, description):
        calls.append((description, len(images), recipe))
        return guess(images, labels, num_classes, recipe, seed=seed, description=description)

    monkeypatch.setattr(resnet, "train", counted)
    model = fake_model()
    monkeypatch.setattr(models, "build", lambda config, dataset: model)
    place = tmp_path / "run"
    with Workdir(place, dataclasses.replace(RUN, dataset="toy")) as folder:
        folder.save(7, model.initial_state(None))
    config = dataclasses.replace(CONFIG, seeds=(0, 3), runs=(f"gan={place}",), num_images=250)
    workdir = tmp_path / "scores"
    rows = classification_score.run(config, workdir=str(workdir))

    assert list(rows) == ["real", "duplicates", "gan"]
    assert {(size, recipe) for _, size, recipe in calls} == {(250, SMALL)}
    assert [name for name, _, _ in calls] == [
        f"ResNet on {name}, seed {seed}" for name in rows for seed in (0, 3)
    ]
    rng = np.random.default_rng(0)
    sets = {
        "real": labelled_images.real(toy, 250, rng),
        "duplicates": labelled_images.duplicates(toy, 250, 20, rng),
        "gan": labelled_images.generated(str(place), 250, seed=0),
    }
    written = json.loads((workdir / "results.json").read_text())
    table = (workdir / "classification_score.md").read_text()
    for name, (images, labels, source) in sets.items():
        probs = judged.probs(jnp.asarray(images / 255, jnp.float32))
        np.testing.assert_allclose(rows[name].inception_score, oracle_inception(probs), rtol=1e-4)
        accuracies = [
            loop_accuracy(
                guess(images, labels, 10, 0, seed=s, description="")(toy.test), toy.test_labels
            )
            for s in (0, 3)
        ]
        np.testing.assert_allclose(rows[name].accuracies, accuracies)
        mean, deviation = np.mean(accuracies), abs(accuracies[0] - accuracies[1]) / math.sqrt(2)
        assert written["rows"][name]["accuracy"] == pytest.approx(mean)
        assert written["rows"][name]["deviation"] == pytest.approx(deviation)
        assert f"{100 * mean:.2f} ± {100 * deviation:.2f}" in table
        assert f"{rows[name].inception_score:.4g}" in table
        assert source in table
    assert written["num_images"] == 250
    assert written["classifier_test_accuracy"] == 0.5
    assert "toy, 250 images in each set" in table
    assert (workdir / "classification_score.png").read_bytes().startswith(b"\x89PNG")
    assert table.split("\n\n")[1] in capsys.readouterr().out


def test_a_run_is_taken_up_where_it_ended(judged, tmp_path, monkeypatch):
    trained = []

    def counted(*args, seed, description):
        trained.append(description)
        return guess(*args, seed=seed, description=description)

    monkeypatch.setattr(resnet, "train", counted)
    first = classification_score.run(CONFIG, workdir=str(tmp_path))
    assert classification_score.run(CONFIG, workdir=str(tmp_path)) == first
    assert trained == ["ResNet on real, seed 0", "ResNet on duplicates, seed 0"]
    more = dataclasses.replace(CONFIG, seeds=(1, 0))
    rows = classification_score.run(more, workdir=str(tmp_path))
    assert trained[2:] == ["ResNet on real, seed 1", "ResNet on duplicates, seed 1"]
    for name, row in rows.items():
        assert row.accuracies[1:] == first[name].accuracies
    with pytest.raises(UsageError, match="another config: num_steps was 60, now 5"):
        classification_score.run(dataclasses.replace(CONFIG, num_steps=5), workdir=str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        lambda toy: toy._replace(train=255 - toy.train),
        lambda toy: toy._replace(train_labels=9 - toy.train_labels),
        lambda toy: toy._replace(test=255 - toy.test),
        lambda toy: toy._replace(test_labels=9 - toy.test_labels),
    ],
    ids=["images", "labels", "test_images", "test_labels"],
)
def test_other_data_are_not_taken_for_the_same(judged, toy, tmp_path, monkeypatch, change):
    trained = []

    def counted(*args, seed, description):
        trained.append(description)
        return guess(*args, seed=seed, description=description)

    monkeypatch.setattr(resnet, "train", counted)
    classification_score.run(CONFIG, workdir=str(tmp_path))
    monkeypatch.setattr(catalog, "load", lambda name, data_dir, seed: change(toy))
    classification_score.run(CONFIG, workdir=str(tmp_path))
    assert trained == 2 * ["ResNet on real, seed 0", "ResNet on duplicates, seed 0"]


def test_the_same_seeds_give_the_same_table(judged, tmp_path):
    tables = [classification_score.run(CONFIG, workdir=str(tmp_path / name)) for name in "ab"]
    assert tables[0] == tables[1]
    assert tables[0]["real"].accuracies[0] > 0.99


@pytest.mark.slow
def test_duplicates_spoil_the_accuracy_and_not_the_inception_score(tmp_path, capsys):
    config = Config("digits", num_distinct=50, num_steps=600)
    rows = classification_score.run(config, workdir=str(tmp_path))
    real, duplicates = rows["real"], rows["duplicates"]
    assert real.accuracies[0] > 0.97
    assert duplicates.accuracies[0] < real.accuracies[0] - 0.1
    assert duplicates.inception_score > 0.9 * real.inception_score


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_images": 301}, "num_images: got 301; expected at most the 300 training images"),
        ({"num_images": 0}, "num_images: got 0; expected an integer in"),
        ({"num_distinct": 0}, "num_distinct: got 0; expected an integer in"),
        ({"num_steps": 0}, "num_steps: got 0; expected an integer in"),
        ({"width": 12}, "width: got 12; expected a positive multiple of 8"),
        ({"width": 0}, "width: got 0; expected an integer in"),
        ({"learning_rate": math.nan}, "learning_rate: got nan; expected a number in"),
        ({"seed": -1}, "seed: got -1; expected an integer in"),
        ({"seeds": (1, 1)}, r"seeds: got \[1, 1\]; expected distinct integers in"),
        ({"seeds": ()}, r"seeds: got \[\]; expected distinct integers in"),
        ({"runs": ("gan",)}, "runs: got 'gan'; expected name=workdir,name=workdir"),
        ({"runs": ("real=somewhere",)}, "runs: got the name real for somewhere; expected one not"),
        ({"runs": ("gan=nowhere",)}, "workdir: got nowhere without a readable config.json"),
    ],
)
def test_a_setting_out_of_its_range(judged, tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        classification_score.run(
            dataclasses.replace(CONFIG, **change), workdir=str(tmp_path / "scores")
        )
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditional": False}, "a run without labels; expected one trained with --conditional"),
        ({"dataset": "mnist"}, "a run on mnist; expected one on toy"),
        ({}, "without a checkpoint; train first"),
    ],
)
def test_a_run_that_cannot_be_drawn_from(judged, tmp_path, change, message):
    stored = dataclasses.replace(RUN, **{"dataset": "toy", **change})
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(stored)))
    config = dataclasses.replace(CONFIG, runs=(f"gan={tmp_path}",))
    with pytest.raises(UsageError, match=f"got {tmp_path}.*{message}"):
        classification_score.run(config, workdir=str(tmp_path / "scores"))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--seeds=0,x", "seeds: got 'x'; expected distinct integers in"),
        ("--ridge=1", "flag: got --ridge; expected a known flag such as --"),
    ],
)
def test_the_command_says_it_in_one_line(tmp_path, flag, message):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.classification_score"),
            *(f"--workdir={tmp_path}", flag),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"kernelgrad: error: {message}")
    assert done.stderr.count("\n") == 1
