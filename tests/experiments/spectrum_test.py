"""What is seen of a trained run: the batches of its training, and files; and bad input."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import spectrum
from experiments.run.errors import UsageError
from experiments.run.workdirs import Workdir
from experiments.spectrum import Config
from experiments.training import fit, objectives, settings, stein_grams, trained

RUN = settings.Config(
    objective="kl",
    kernel_scales=(0.5, 2.0),
    normalize=False,
    num_steps=4,
    eval_every=1,
    batch_size=20,
    latent_dim=4,
    width=4,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of a run of four steps on the digits."""
    path = tmp_path_factory.mktemp("run") / "kl"
    fit.run(RUN, workdir=str(path), num_devices=1)
    return path


@pytest.mark.thorough
def test_batches_are_those_of_the_steps_that_follow(place):
    """The size of the direction is, digit for digit, the one that training has logged."""
    kept = trained.kept(str(place))
    states = kept.states()
    assert list(states) == [0, 2, 3, 4]
    look = stein_grams.watch(kept, objectives.under_a_kernel(RUN))
    records = map(json.loads, (place / "metrics.jsonl").read_text().splitlines())
    logged = {record["step"]: record["direction_rms"] for record in records}
    for step in (0, 2, 3):
        first, second = look(states[step], 2)
        assert stein_grams.rms(first.kl) == pytest.approx(logged[step + 1], rel=1e-5)
        assert np.abs(first.gram - second.gram).max() > 1e-3


@pytest.mark.thorough
def test_a_run_that_goes_on_is_looked_at_and_left_alone(place, tmp_path, capsys):
    def listing():
        return {path: path.stat().st_mtime_ns for path in place.rglob("*")}

    config, before = Config(runs=(f"a={place}",), num_batches=2), listing()
    workdir = tmp_path / "spectrum"
    with Workdir(place, RUN):
        held = listing()
        found = spectrum.run(config, workdir=str(workdir))
        assert listing() == held
    assert list(found["a"]) == [0, 2, 3, 4]
    for one in found["a"].values():
        assert one.ridge == pytest.approx(0.1 * 20**0.5 * 2)
        assert one.eigenvalues.shape == (2, 20)
        np.testing.assert_allclose(one.eigenvalues.sum(axis=1), 20 * 2, rtol=1e-5)  # n k(0)
        assert (np.diff(one.eigenvalues) <= 0).all()
        assert all(np.isfinite(values).all() for values in one.figures.values())
    table = (workdir / "table.md").read_text()
    assert table.startswith(f"a is {place}: kl on digits, batches of 20, ridge 0.8944\n")
    assert table.strip() in capsys.readouterr().out
    assert (workdir / "spectrum.png").read_bytes().startswith(b"\x89PNG")
    assert listing().keys() == before.keys()

    again = spectrum.run(dataclasses.replace(config, num_batches=1), workdir=str(workdir))
    for step, one in again["a"].items():
        np.testing.assert_array_equal(one.eigenvalues, found["a"][step].eigenvalues[:1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "drift"}, "runs: got {place}, a run of drift; expected one of kl or mmd"),
        (
            {"features": ("pixels", "vicreg")},
            "runs: got {place}, a run that sees pixels,vicreg; expected one without features",
        ),
        ({"resident_gib": 1e-6}, "runs: got a run on digits, whose data are larger than its"),
        ({"width": 10**8}, "width, latent_dim, batch_size: got 100000000"),
        ({"seed": 1}, "workdir: got {place} without a checkpoint; train first"),
    ],
)
def test_runs_that_do_not_fit_are_refused(changes, message, tmp_path):
    place = tmp_path / "run"
    (place / "checkpoints" / ("none" if "seed" in changes else "1")).mkdir(parents=True)
    content = dataclasses.asdict(dataclasses.replace(RUN, **changes))
    (place / "config.json").write_text(json.dumps(content))
    with pytest.raises(UsageError) as refused:
        spectrum.run(Config(runs=(f"a={place}",)), workdir=str(tmp_path / "spectrum"))
    assert str(refused.value).startswith(message.format(place=place))
    assert not (tmp_path / "spectrum").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "runs: got none; expected name=workdir,name=workdir"),
        ({"runs": ("a",)}, "runs: got 'a'; expected name=workdir,name=workdir"),
        ({"runs": ("a=x", "a=y")}, "runs: got the name a for y; expected one not yet taken"),
        ({"runs": ("a=nowhere",)}, "workdir: got nowhere without a readable config.json"),
        ({"runs": ("a=x",), "num_batches": 0}, "num_batches: got 0"),
    ],
)
def test_bad_requests_are_usage_errors(changes, message, tmp_path):
    with pytest.raises(UsageError) as refused:
        spectrum.run(Config(**changes), workdir=str(tmp_path / "spectrum"))
    assert str(refused.value).startswith(message)
