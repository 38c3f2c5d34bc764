"""Metrics that are cut to a checkpoint, and damaged lines of them."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.run import errors, workdirs
from tests.experiments.run.toy_run import Config, abstract, make_state, tree_of


def test_other_metrics_than_the_checkpoint_was_saved_with_stop_the_run(workdir):
    for step in (1, 2):
        workdir.log(step, {"loss": 1.0})
    workdir.save(2, make_state(2))
    metrics = workdir.path / "metrics.jsonl"
    whole = metrics.read_bytes()
    for damaged in (b"", whole[:-1], whole.replace(b"1.0", b"7.0", 1), None):
        metrics.unlink() if damaged is None else metrics.write_bytes(damaged)
        with pytest.raises(errors.StorageError, match=r"metrics.jsonl: got other records than che"):
            workdir.restore(abstract(make_state()))
        assert workdir.restore(abstract(make_state()), cut_metrics=False)[0] == 2
    metrics.write_bytes(whole + b"anything")
    assert workdir.restore(abstract(make_state()))[0] == 2
    assert metrics.read_bytes() == whole


def test_metrics_are_cut_to_the_restored_step(tmp_path, capsys):
    with workdirs.Workdir(tmp_path / "run", Config()) as workdir:
        for step in range(1, 6):
            workdir.log(step, {"loss": np.float32(1 / step), "accuracy": jnp.asarray(0.5)})
            if step == 3:
                kept = (workdir.path / "metrics.jsonl").read_bytes()
                workdir.save(3, make_state(3))
    with open(workdir.path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 6, "lo')
    with workdirs.Workdir(tmp_path / "run", Config()) as workdir:
        assert [record["step"] for record in workdir.history()] == [1, 2, 3, 4, 5]
        workdir.restore(abstract(make_state()))
        assert (workdir.path / "metrics.jsonl").read_bytes() == kept
        assert workdir.history()[2] == {
            "step": 3,
            "loss": float(np.float32(1 / 3)),
            "accuracy": 0.5,
        }
        shutil.rmtree(workdir.path / "checkpoints/3")
        assert capsys.readouterr().err == ""
        assert workdir.restore(abstract(make_state())) is None
        assert workdir.history() == []
        assert "no checkpoint yet, so its metrics start anew" in capsys.readouterr().err


def test_a_metric_that_is_not_finite_stays_json(workdir):
    workdir.log(1, {"a": np.nan, "b": np.inf, "c": 2.0})
    assert (workdir.path / "metrics.jsonl").read_text() == (
        '{"step": 1, "a": null, "b": null, "c": 2.0}\n'
    )
    record = workdir.history()[0]
    assert np.isnan(record["a"])
    assert record["c"] == 2.0


@pytest.mark.parametrize("line", [b"\x00\x00", b"{]", b"3", b'{"loss": 1.0}', b'{"step": "x"}'])
def test_a_damaged_line_of_metrics_is_named(workdir, line):
    workdir.log(1, {"loss": 1.0})
    with open(workdir.path / "metrics.jsonl", "ab") as file:
        file.write(line + b"\n")
    workdir.log(2, {"loss": 1.0})
    before = tree_of(workdir.path)
    with pytest.raises(errors.StorageError, match=r"metrics.jsonl:2: got b"):
        workdir.history()
    with pytest.raises(errors.StorageError, match=r"metrics.jsonl:2: got b"):
        workdir.restore(abstract(make_state()))
    assert tree_of(workdir.path) == before
