"""Sweeps by Ray Tune: what a trial reports, and what is left when a node is lost."""

import dataclasses
import json
import pathlib
import sys
import threading
import time

import pytest

from experiments.run.errors import UsageError
from experiments.sweeps import children, runs, tune
from experiments.sweeps.tune import Tuning
from experiments.training import fit
from experiments.training.settings import Config

BASE = Config(
    objective="sliced_energy",
    dataset="ring",
    num_steps=60,
    eval_every=20,
    batch_size=10,
    latent_dim=2,
    width=4,
    num_projections=2,
)


def expand(base=BASE, **grid):
    found = runs.expand(base, grid)
    return found, runs.load(found, None)


@pytest.fixture
def process(tmp_path, monkeypatch):
    """Puts a program in the place of experiments.train; returns the folder of its run."""

    def start(code):
        program = tmp_path / "program"
        program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}'\n")
        program.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(program))
        monkeypatch.setattr(children, "_PAUSE", 0.01)
        (tmp_path / "run").mkdir()
        return tmp_path / "run"

    return start


def write(folder, *steps):
    lines = [json.dumps({"step": step, "test_mmd": step / 10}) for step in steps]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_a_trial_reports_its_evaluations_the_last_once_it_is_saved(process, tmp_path):
    go, gone = tmp_path / "go", tmp_path / "gone"
    wait = f'while not os.path.exists("{go}"): time.sleep(0.01)'
    folder = process(f'import os, time\n{wait}\nopen("{gone}", "w")')
    write(folder, 20, 40, 60)
    told = []

    def report(record):
        told.append((record["step"], gone.exists()))
        if record["step"] == 40:
            go.touch()

    tune.follow([], folder, 60, report)
    assert told == [(20, False), (40, False), (60, True)]


def test_a_trial_that_diverges_leaves_a_note(process):
    folder = process('import sys; print("step 7", file=sys.stderr); sys.exit(3)')
    write(folder, 20)
    told = []
    tune.follow([], folder, 60, told.append)
    assert [record["step"] for record in told] == [20]
    assert (folder / runs.ENDED).read_text() == "diverged: step 7\n"


def test_a_trial_that_fails_says_how(process):
    folder = process('import sys; print("a\\nno space", file=sys.stderr); sys.exit(1)')
    with pytest.raises(RuntimeError, match="exit code 1: no space"):
        tune.follow([], folder, 60, lambda _: None)


def test_a_trial_that_is_told_to_stop_ends_its_process(process, tmp_path):
    folder = process(f'import time; open("{tmp_path}/there", "w"); time.sleep(60)')
    write(folder, 20)

    def stop(_):
        while not (tmp_path / "there").exists():
            time.sleep(0.01)
        raise InterruptedError

    start = time.monotonic()
    with pytest.raises(InterruptedError):
        tune.follow([], folder, 60, stop)
    assert time.monotonic() - start < 30


def test_without_ray_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(tune.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"engine: got ray, which is not .*'\.\[sweep\]'"):
        tune.check(*expand(seed=(0,)), tune.HERE)


def test_a_metric_that_runs_lack_stops_none(monkeypatch):
    monkeypatch.setattr(tune.importlib.util, "find_spec", lambda _: True)
    with pytest.raises(UsageError, match="asha: got label_entropy on ring"):
        tune.check(*expand(seed=(0,)), Tuning(asha="label_entropy"))
    tune.check(*expand(seed=(0,)), Tuning(asha="test_mmd"))
    base = dataclasses.replace(BASE, dataset="digits")
    tune.check(*expand(base, seed=(0,)), Tuning(asha="nearest_l1"))


def test_metrics_to_be_stopped_by_are_those_of_evaluations():
    assert set(tune.GOALS) <= set(fit.METRICS)


@pytest.fixture
def cluster():
    """A cluster of two nodes in this machine, of one processor each."""
    ray = pytest.importorskip("ray", reason="the extra sweep is not installed")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(
        address=cluster.address,
        runtime_env={"env_vars": {"PYTHONPATH": str(pathlib.Path.cwd())}},
        log_to_driver=False,
    )
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_a_node_is_lost_and_nothing_else(tmp_path, cluster):
    base = dataclasses.replace(BASE, num_steps=400, eval_every=100)
    found, _ = expand(base, learning_rate=(1e-3, 1e-2))
    root = tmp_path / "all"
    lost = []

    def lose():
        while not lost and sum(1 for _ in root.glob("*/checkpoints/100")) < 2:
            time.sleep(0.05)
        cluster.remove_node(cluster.second)
        lost.append({run.name: runs.progress_of(root, run).step for run in found})

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    tune.run(root, found, None, tune.HERE)
    thread.join()
    assert max(lost[0].values()) > 0
    assert min(lost[0].values()) < base.num_steps
    assert runs.unfinished(root, found) == []
    for run in found:
        separate = tmp_path / "separate" / run.name
        fit.run(run.config, workdir=str(separate), num_devices=1)
        left = (root / run.name / "metrics.jsonl").read_text()
        assert left == (separate / "metrics.jsonl").read_text()


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_asha_stops_the_hopeless_for_good(tmp_path, cluster):
    base = dataclasses.replace(BASE, num_steps=80, eval_every=20)
    rates = (1e-2, 1e-6, 1e-7, 1e-8)
    found, _ = expand(base, learning_rate=rates)
    tune.run(tmp_path, found, None, Tuning(asha="test_mmd"))
    ends = [runs.progress_of(tmp_path, run) for run in found]
    stopped = [end for end in ends if (end.ended or "").startswith("stopped: step ")]
    assert stopped
    assert all(end.step < 80 for end in stopped)
    assert max(end.step for end in ends) == 80
    assert runs.unfinished(tmp_path, found) == []
