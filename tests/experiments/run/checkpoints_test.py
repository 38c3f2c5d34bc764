"""States that come back bit for bit, and damage to every file of them that is noticed."""

import os
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from experiments.run import errors, workdirs
from tests.experiments.run.toy_run import Config, TrainState, abstract, make_state, raw, tree_of


def test_a_state_comes_back_bit_for_bit(workdir):
    state = make_state(1.5)
    workdir.save(4, state)
    step, restored = workdir.restore(abstract(state))
    assert step == 4
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert raw(restored) == raw(state)
    kinds = [type(leaf) for leaf in jax.tree.leaves(state)]
    assert [type(leaf) for leaf in jax.tree.leaves(restored)] == kinds
    draws = [jax.random.normal(s.key, (3,)) for s in (state, restored)]
    np.testing.assert_array_equal(*draws)


def test_a_lone_array_and_a_key_of_another_kind_come_back(tmp_path):
    for name, state in {
        "lone": jnp.arange(3),
        "key": jax.random.split(jax.random.key(1, impl="rbg")),
    }.items():
        with workdirs.Workdir(tmp_path / name, Config()) as workdir:
            workdir.save(1, state)
            _, restored = workdir.restore(abstract(state))
        assert restored.dtype == state.dtype
        assert raw(restored) == raw(state)


def test_a_checkpoint_is_announced_only_when_it_reads_back_equal(workdir, monkeypatch):
    save = ocp.Checkpointer.save

    def save_wrong(self, path, args):
        save(self, path, args=ocp.args.StandardSave({name: x * 0 for name, x in args.item.items()}))

    workdir.save(1, make_state(1))
    monkeypatch.setattr(ocp.Checkpointer, "save", save_wrong)
    with pytest.raises(errors.StorageError, match="was read back with another value"):
        workdir.save(2, make_state(2))
    assert os.listdir(workdir.path / "checkpoints") == ["1"]


def test_sha256sum_reads_the_manifest(workdir):
    workdir.save(1, make_state())
    check = [shutil.which("sha256sum") or pytest.skip("no sha256sum here"), "-c", "SHA256SUMS"]
    subprocess.run(check, cwd=workdir.path / "checkpoints/1", check=True, capture_output=True)


def _without_bias(state: TrainState) -> TrainState:
    return state._replace(
        params={**state.params, "dense": {"kernel": state.params["dense"]["kernel"]}}
    )


MISMATCHES = {
    "shape": (lambda: make_state(width=4), r"'bias'\]: got float32\[3\]; expected float32\[4\]"),
    "dtype": (
        lambda: make_state(dtype=jnp.bfloat16),
        r"'kernel'\]: got float32\[2,3\]; expected bfloat16\[2,3\]",
    ),
    "absent": (
        lambda: _without_bias(make_state()),
        r"'bias'\]: got float32\[3\]; expected no such leaf",
    ),
    "key": (
        lambda: make_state()._replace(key=jax.random.key(0, impl="rbg")),
        r"leaf .key: got key<fry>\[\]; expected key<rbg>\[\]",
    ),
    "extra": (
        lambda: make_state()._replace(optimizer=optax.sgd(0.1, 0.9).init(jnp.zeros(3))),
        r"trace: got no such leaf; expected float32\[3\]",
    ),
}


@pytest.mark.parametrize("kind", MISMATCHES)
def test_a_checkpoint_of_another_model_is_refused(workdir, kind):
    make_other, message = MISMATCHES[kind]
    other = make_other()
    workdir.log(1, {"loss": 1.0})
    workdir.save(1, make_state())
    workdir.log(2, {"loss": 1.0})
    before = tree_of(workdir.path)
    with pytest.raises(errors.UsageError, match=message):
        workdir.restore(abstract(other))
    assert tree_of(workdir.path) == before


def _flip(content: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
    return bytes(damaged)


DAMAGES = {
    "flip": _flip,
    "flip again": _flip,
    "cut": lambda content, _: content[: len(content) // 2],
    "cut the last byte": lambda content, _: content[:-1],
    "flip a separator": lambda content, _: (
        content[:64] + (b"?" if content[64:65] == b"!" else b"!") + content[65:]
    ),
    "zero": lambda content, _: bytes(len(content)),
    "delete": lambda content, _: None,
}


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damage_to_every_file_falls_back_with_a_warning(tmp_path, rng, capsys, kind):
    original = tmp_path / "original"
    with workdirs.Workdir(original, Config()) as workdir:
        for step in (1, 2):
            workdir.log(step, {"loss": step})
            workdir.save(step, make_state(step))
    newest = original / "checkpoints/2"
    files = [file.relative_to(original) for file in newest.rglob("*") if file.is_file()]
    assert len(files) >= 8
    for number, file in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(original, copy)
        damaged = DAMAGES[kind]((copy / file).read_bytes(), rng)
        if damaged is None:
            (copy / file).unlink()
        else:
            (copy / file).write_bytes(damaged)
        with workdirs.Workdir(copy, Config()) as workdir:
            step, state = workdir.restore(abstract(make_state()))
            assert (step, raw(state)) == (1, raw(make_state(1))), file
            assert [record["step"] for record in workdir.history()] == [1]
            warning = capsys.readouterr().err
            assert warning.startswith("kernelgrad: warning: skipped checkpoint 2: "), file
            assert warning.count("\n") == 1
            assert str(file) in warning or file.name == "SHA256SUMS"
            workdir.save(2, make_state(2))
            assert workdir.restore(abstract(make_state()))[0] == 2
            assert capsys.readouterr().err == ""
        shutil.rmtree(copy)
