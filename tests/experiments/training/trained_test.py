"""A run read back: its settings, its newest state, and what is refused untouched."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from experiments.data import catalog
from experiments.data.dataset import Dataset
from experiments.run import checkpoints
from experiments.run.errors import DataError, StorageError, UsageError
from experiments.run.workdirs import Workdir
from experiments.training import models, trained
from experiments.training.settings import Config

RUN = Config(objective="mmd", dataset="ring", latent_dim=2, width=2, batch_size=4, seed=3)


@pytest.fixture(scope="module")
def states():
    """States of the run, by step."""
    initial_state = jax.jit(models.build(RUN, catalog.load("ring", seed=3)).initial_state)
    return {step: initial_state(jax.random.key(step)) for step in (20, 40)}


@pytest.fixture
def workdir(tmp_path, states):
    with Workdir(tmp_path / "run", RUN) as folder:
        for step, state in states.items():
            folder.log(step, {"loss": 1.0})
            folder.save(step, state)
    return tmp_path / "run"


def opened(workdir, **options):
    return trained.opened(str(workdir), **options)


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_what_is_opened_is_the_newest_state_with_its_config_and_data(workdir, states):
    with opened(workdir) as (folder, found):
        assert folder.path == workdir
        assert found.config == RUN
        assert found.step == 40
        jax.tree.map(np.testing.assert_array_equal, found.state, states[40])
        np.testing.assert_array_equal(found.dataset.train, catalog.load("ring", seed=3).train)
        with pytest.raises(StorageError, match="in use"), opened(workdir):
            pass
    with opened(workdir) as (_, again):
        assert again.step == 40


def test_what_is_opened_has_the_averages_where_they_are_kept(tmp_path, states):
    average = jax.tree.map(lambda leaf: leaf + 1, states[20].params)
    with Workdir(tmp_path, dataclasses.replace(RUN, ema=0.9)) as folder:
        folder.save(10, states[20]._replace(ema=(average, {})))
    with opened(tmp_path) as (_, found):
        jax.tree.map(np.testing.assert_array_equal, found.state.params, average)


def test_later_metrics_stay_as_they_are(workdir):
    with Workdir(workdir, RUN) as folder:
        folder.restore(trained_form())
        folder.log(41, {"loss": 2.0})
    before = (workdir / "metrics.jsonl").read_bytes()
    with opened(workdir):
        pass
    assert (workdir / "metrics.jsonl").read_bytes() == before


def trained_form():
    model = models.build(RUN, catalog.load("ring", seed=3))
    return jax.eval_shape(model.initial_state, jax.random.key(0))


def test_a_run_that_is_not_wanted_is_left_untouched(workdir):
    def check(config, dataset):
        assert dataset.name == config.dataset == "ring"
        raise UsageError("dataset: got ring; expected images")

    before = listing(workdir)
    with (
        pytest.raises(UsageError, match="expected images"),
        opened(workdir, check=check),
    ):
        pass
    assert listing(workdir) == before


def test_a_run_without_a_checkpoint_is_refused_untouched(tmp_path):
    with Workdir(tmp_path, RUN):
        pass
    with pytest.raises(UsageError, match=f"^workdir: got {tmp_path} without a checkpoint"):
        trained.require_checkpoint(str(tmp_path))
    before = listing(tmp_path)
    with pytest.raises(UsageError, match="without a checkpoint"), opened(tmp_path):
        pass
    assert listing(tmp_path) == before


def test_a_damaged_checkpoint_is_passed_over(workdir, states, capsys):
    (workdir / "checkpoints/40/SHA256SUMS").write_text("no digest\n")
    with opened(workdir) as (_, found):
        assert found.step == 20
        jax.tree.map(np.testing.assert_array_equal, found.state, states[20])
    assert "skipped checkpoint 40" in capsys.readouterr().err
    (workdir / "checkpoints/20/SHA256SUMS").write_text("no digest\n")
    with pytest.raises(StorageError, match="got no checkpoint that verifies"), opened(workdir):
        pass


def test_all_that_is_kept_is_read_while_the_run_goes_on(workdir, states):
    kept = trained.kept(str(workdir))
    assert kept.config == RUN
    np.testing.assert_array_equal(kept.dataset.train, catalog.load("ring", seed=3).train)
    start = jax.jit(kept.model.initial_state)(jax.random.split(jax.random.key(3), 3)[0])
    with Workdir(workdir, RUN):
        before = listing(workdir)
        found = kept.states()
        assert listing(workdir) == before
    jax.tree.map(np.testing.assert_array_equal, found, {0: start, **states})


def test_damaged_checkpoints_are_not_kept_ones(workdir):
    kept = trained.kept(str(workdir))
    (workdir / "checkpoints/20/SHA256SUMS").write_text("no digest\n")
    assert list(kept.states()) == [0, 40]
    (workdir / "checkpoints/40/SHA256SUMS").write_text("no digest\n")
    with pytest.raises(StorageError, match="got no checkpoint that verifies"):
        kept.states()


def test_runs_are_named():
    assert trained.named(("a=x", "b=c=d/e=1")) == {"a": "x", "b": "c=d/e=1"}
    for runs, message in (
        (("a",), "^runs: got 'a'; expected name=workdir"),
        (("=x",), "^runs: got '=x'; expected name=workdir"),
        (("a=",), "^runs: got 'a='; expected name=workdir"),
        (("a=x", "a=y"), "^runs: got the name a for y; expected one not yet taken"),
        (("real=x",), "^runs: got the name real for x"),
    ):
        with pytest.raises(UsageError, match=message):
            trained.named(runs, ("real",))


def test_the_data_of_a_run_have_to_be_there(tmp_path):
    with Workdir(tmp_path, dataclasses.replace(RUN, dataset="red_wine")) as folder:
        folder.save(1, {"x": np.zeros(1)})
    with pytest.raises(DataError, match="red_wine: needs winequality"), opened(tmp_path):
        pass


def test_a_stored_config_is_the_runs(workdir):
    assert trained.stored_config(str(workdir)) == RUN


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "^workdir: got {run} without a readable config.json .No such file"),
        ("{", "^workdir: got {run} without a readable config.json"),
        ({"width": "wide"}, "^{run}/config.json: width: got 'wide'"),
        ({"objective": "gan_kll"}, "^{run}/config.json: objective: got 'gan_kll'"),
        ({"objective": "noisy_jsd"}, "^{run}/config.json: noise_variance: got 0.0 for noisy_jsd"),
    ],
)
def test_a_config_that_is_none_is_named(tmp_path, content, message):
    if content is not None:
        fields = dataclasses.asdict(RUN)
        text = content if isinstance(content, str) else json.dumps(fields | content)
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match=message.format(run=tmp_path)):
        trained.stored_config(str(tmp_path))


def test_a_run_of_toy_is_not_one_of_train(workdir):
    (workdir / "frames").mkdir()
    with pytest.raises(UsageError, match=r"a run of experiments\.toy, whose targets are not"):
        trained.stored_config(str(workdir))


def test_a_setting_may_be_infinite(tmp_path):
    config = Config(objective="steingan", freeze_threshold=math.inf)
    for _ in range(2):  # made, and gone on with
        with Workdir(tmp_path, config):
            assert trained.stored_config(tmp_path) == config


# ------------------------------------------------------------------------- without data or lock


@pytest.fixture
def no_data(monkeypatch):
    monkeypatch.setattr(catalog, "load", lambda *_, **__: pytest.fail("the data were read"))


@pytest.fixture
def noted(workdir):
    with Workdir(workdir, RUN) as folder:
        trained.note_data(folder, catalog.load("ring", seed=3))
    return workdir


def test_a_run_that_goes_on_is_loaded_without_its_data(noted, states, key, no_data):
    with Workdir(noted, RUN):  # as the process that trains
        before = listing(noted)
        found = trained.load(noted)
        assert listing(noted) == before
    assert (found.config, found.step) == (RUN, 40)
    jax.tree.map(np.testing.assert_array_equal, found.state, states[40])
    few, many = found.generate(key, 3), found.generate(key, 503)
    np.testing.assert_allclose(many[:3], few, rtol=1e-5)
    latents = found.model.sample_latents(jax.random.fold_in(key, 0), 500)[:3]
    expected = found.model.generate(states[40].params, {}, latents)
    np.testing.assert_allclose(few, expected, rtol=1e-5)
    assert many.shape == (503, 2)
    assert found.generate(key, 0).shape == (0, 2)


def test_a_checkpoint_that_vanishes_is_passed_over(noted, states, monkeypatch):
    def read(folder, form, whole=checkpoints.read):
        if folder.name == "40":
            raise StorageError("gone")
        return whole(folder, form)

    monkeypatch.setattr(checkpoints, "read", read)
    assert trained.load(noted).step == 20


def test_a_run_that_has_not_noted_its_data_needs_them(workdir):
    assert trained.load(workdir).dataset.train.shape == (10_000, 2)


@pytest.mark.parametrize("labels", [None, np.array([2, 0, 2, 2], np.int32)])
def test_what_is_noted_is_the_form_of_the_data(tmp_path, labels):
    images = np.zeros((4, 6, 8, 3), np.uint8)
    with Workdir(tmp_path, RUN) as folder:
        trained.note_data(folder, Dataset("few", images, images, labels, labels, 4))
    found = trained._noted_data(tmp_path / "data.json")
    assert (found.name, found.sample_shape, found.is_image) == ("few", (6, 8, 3), True)
    assert found.train.dtype == np.uint8
    if labels is None:
        assert (found.train_labels, found.num_classes) == (None, 0)
    else:
        np.testing.assert_array_equal(np.sort(labels), found.train_labels)
        assert found.num_classes == 4


def test_labels_are_drawn_as_from_the_data(tmp_path, key):
    config = dataclasses.replace(RUN, objective="gan_kl", conditional=True)
    data = catalog.load("eight_gaussians")
    with Workdir(tmp_path, config) as folder:
        trained.note_data(folder, data)
    noted = trained._noted_data(tmp_path / "data.json")
    one, other = (models.build(config, each).sample_latents(key, 9) for each in (data, noted))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"name": "x", "sample_shape": [], "label_counts": null}',
        '{"name": "x", "sample_shape": [2.5], "label_counts": null}',
        '{"name": "x", "sample_shape": [-2], "label_counts": null}',
        '{"name": "x", "sample_shape": [2], "label_counts": [1000000000]}',
        '{"name": "x", "sample_shape": [3, 3, 1], "label_counts": null}',  # no network makes it
    ],
)
def test_damaged_notes_are_refused_by_name(workdir, content, no_data):
    (workdir / "data.json").write_text(content)
    with pytest.raises(StorageError, match=r"data\.json: .*expected the form") as error:
        trained.load(workdir)
    assert "\n" not in str(error.value)
