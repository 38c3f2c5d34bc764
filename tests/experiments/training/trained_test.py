"""A run read back: its settings, its newest state, and what is refused untouched."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from experiments.data import catalog
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
