"""Samples for other people's metrics: whole files of what the run draws, and nothing torn."""

import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import sample
from experiments.data.dataset import Dataset
from experiments.reports import exports
from experiments.run import files
from experiments.run.errors import StorageError, UsageError
from experiments.training import trained
from experiments.training.settings import Config
from kernelgrad.train import TrainState


def run_of(*shape):
    """A run whose samples are its latents: uniform images, or points."""
    examples = np.zeros((0, *shape), np.uint8 if len(shape) == 3 else np.float32)
    model = types.SimpleNamespace(
        generate=lambda params, stats, latents: params * latents,
        sample_latents=lambda key, n: jax.random.uniform(key, (n, *shape)),
    )
    state = TrainState(jnp.int32(20), jnp.ones(()), {}, ())
    return trained.Trained(
        Config(), Dataset("few", examples, examples, None, None, 0), model, 20, state
    )


def test_an_npz_holds_what_the_run_draws(tmp_path, key):
    run = run_of(2)
    path = exports.write(tmp_path, run, "npz", key, 1203)  # batches of 500
    assert path == tmp_path / "exported/20.npz"
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays.files == ["arr_0"]
        found = arrays["arr_0"]
    assert (found.dtype, found.shape) == (np.float32, (1203, 2))
    np.testing.assert_array_equal(found, run.generate(key, 1203))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_bytes(tmp_path, key, channels):
    run = run_of(4, 6, channels)
    expected = np.rint(255 * run.generate(key, 7)).astype(np.uint8)
    with np.load(exports.write(tmp_path, run, "npz", key, 7)) as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], expected)
    folder = exports.write(tmp_path, run, "png", key, 9)
    assert exports.write(tmp_path, run, "png", key, 7) == folder == tmp_path / "exported/20"
    images = sorted(folder.iterdir())
    assert [file.name for file in images] == [f"{index:06d}.png" for index in range(7)]
    found = np.stack([np.asarray(Image.open(file)).reshape(4, 6, channels) for file in images])
    np.testing.assert_array_equal(found, expected)
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {"20", "20.npz"}


@pytest.mark.parametrize("kind", exports.FORMATS)
def test_what_fails_half_way_leaves_the_old(tmp_path, key, kind):
    run = run_of(4, 6, 1)
    path = exports.write(tmp_path, run, kind, key, 3)
    before = sorted((one, one.stat().st_mtime_ns) for one in path.parent.rglob("*"))
    broken = types.SimpleNamespace(**vars(run.model) | {"generate": lambda *_: 1 / 0})
    with pytest.raises(ZeroDivisionError):
        exports.write(tmp_path, run._replace(model=broken), kind, key, 3)
    assert sorted((one, one.stat().st_mtime_ns) for one in path.parent.rglob("*")) == before


_KILLED = """
import os, pathlib, sys
from experiments.run import files
target = pathlib.Path(sys.argv[1])
with files.replacing_folder(target / "10") as folder:
    (folder / "000000.png").write_bytes(b"half")
    with files.replacing(target / "10.npz", shared=True):
        os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("kind", exports.FORMATS)
def test_what_a_killed_call_has_left_is_removed_and_no_other(tmp_path, key, kind):
    """Also that of an earlier step, for the run may have gone on; not what another call writes."""
    place = tmp_path / "exported"
    place.mkdir()
    done = subprocess.run([sys.executable, "-c", _KILLED, str(place)], check=False)
    assert done.returncode == -9
    left = {path.name for path in place.iterdir()}
    assert len(left) == 3
    (place / "x.7.tmp").write_bytes(b"not ours")
    with files.replacing_folder(place / "20") as folder:
        at_work = {path.name for path in place.iterdir()} - left - {"x.7.tmp"}
        path = exports.write(tmp_path, run_of(4, 6, 1), kind, key, 3)
        assert {one.name for one in place.iterdir()} == {*at_work, path.name, "x.7.tmp"}
        assert folder.is_dir()


def test_two_machines_may_write_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 7)
    one, other = np.zeros((2, 2, 4, 6, 1), np.uint8)

    def batches():
        yield one
        exports._write_pngs(tmp_path / "20", iter([other]))
        assert len(list((tmp_path / "20").iterdir())) == 2
        yield one

    exports._write_pngs(tmp_path / "20", batches())
    assert [path.name for path in tmp_path.iterdir()] == ["20"]
    assert len(list((tmp_path / "20").iterdir())) == 4


def test_a_link_is_not_followed(tmp_path, key):
    (tmp_path / "exported").symlink_to(tmp_path)
    with pytest.raises(StorageError, match="got a symbolic link; expected a folder"):
        exports.write(tmp_path, run_of(2), "npz", key, 3)


@pytest.mark.parametrize("shape", [(2,), (4, 6, 2)])
def test_what_is_no_picture_is_refused_as_one(tmp_path, key, shape):
    with pytest.raises(UsageError, match=r"^format: got png for samples of shape"):
        exports.write(tmp_path, run_of(*shape), "png", key, 3)
    assert not any(tmp_path.iterdir())


def test_the_binary_writes_samples_and_scores_nothing(tmp_path, monkeypatch, capsys):
    run = run_of(2)
    monkeypatch.setattr(trained, "load", lambda workdir, data_dir: run)
    asked = sample.Config(num_samples=6, format="npz", seed=3)
    assert sample.run(asked, workdir=str(tmp_path)) == {}
    with np.load(tmp_path / "exported/20.npz") as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], run.generate(jax.random.key(3), 6))
    assert "6 samples of step 20; written to " in capsys.readouterr().out


def test_samples_of_a_format_are_the_generators(tmp_path):
    asked = sample.Config(sampler="hmc", format="npz")
    with pytest.raises(UsageError, match=r"^sampler: got hmc with --format=npz; expected generat"):
        sample.run(asked, workdir=str(tmp_path))
