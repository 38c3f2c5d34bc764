"""The shell of a binary: one line an error, the right exit code, help that explains."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import command, errors
from experiments.data import DataError

_STEPS = flags.DEFINE_integer("command_test_steps", 3, "A number for these tests.", lower_bound=1)


@dataclasses.dataclass(frozen=True)
class Config:
    """The config of a toy run."""

    num_steps: int = 10


@pytest.fixture
def call_main(monkeypatch, capsys):
    """Calls main with flags; returns the exit code and stderr."""

    def call(*arguments, run=lambda config: None, make_config=lambda: None):
        monkeypatch.setattr(sys, "argv", ["binary", *arguments])
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as stop:
            command.main(run, make_config)
        return stop.value.code or 0, capsys.readouterr().err

    return call


def _raise(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.UsageError("ridge: got -1;\n expected > 0"), 2, "ridge: got -1; expected > 0"),
        (DataError("no data here"), 2, "no data here"),
        (errors.StorageError("disk gone"), 1, "disk gone"),
        (FileNotFoundError(2, "No such file", "x.npy"), 1, "[Errno 2] No such file: 'x.npy'"),
        (errors.DivergenceError("step 3: nan"), 3, "step 3: nan"),
        (errors.Terminated("saved"), 143, "saved"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to resume"),
    ],
)
def test_each_error_has_its_code_and_one_line(call_main, error, code, line):
    assert call_main(run=lambda _: _raise(error)) == (code, f"kernelgrad: error: {line}\n")


def test_debug_shows_the_traceback_too(call_main):
    code, stderr = call_main("--debug", run=lambda _: _raise(errors.StorageError("disk gone")))
    assert code == 1
    assert "Traceback" in stderr
    assert stderr.endswith("kernelgrad: error: disk gone\n")


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["binary"])
    with flagsaver.flagsaver(), pytest.raises(ZeroDivisionError):
        command.main(lambda _: 1 / 0, lambda: None)
    with flagsaver.flagsaver(), pytest.raises(ValueError, match="shapes"):
        command.main(lambda _: _raise(ValueError("shapes")), lambda: None)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--runtime_test_stepz=4",
            "got --runtime_test_stepz; expected a known flag such as --command_test_steps",
        ),
        ("--command_test_steps=four", "flag --command_test_steps=four: "),
        ("--command_test_steps=0", "flag --command_test_steps=0: "),
        ("--command_test_steps", "Missing value for flag --command_test_steps"),
        ("--debug=perhaps", "flag --debug=perhaps: "),
        ("steps=4", "got 'steps=4'; expected flags only"),
    ],
)
def test_a_bad_flag_exits_2_before_the_run(call_main, argument, message):
    code, stderr = call_main(argument, run=lambda _: pytest.fail("the run was started"))
    assert code == 2
    assert stderr.startswith("kernelgrad: error: ")
    assert message in stderr
    assert stderr.count("\n") == 1


def test_a_value_error_of_the_config_is_a_usage_error(call_main):
    result = call_main(make_config=lambda: _raise(ValueError("batch_size: got 3; expected even")))
    assert result == (2, "kernelgrad: error: batch_size: got 3; expected even\n")


def test_the_config_reaches_the_run(call_main):
    seen = []
    code, stderr = call_main(
        "--command_test_steps=5",
        run=seen.append,
        make_config=lambda: Config(num_steps=_STEPS.value),
    )
    assert (code, stderr, seen) == (0, "", [Config(num_steps=5)])


def test_help_of_a_real_binary_exits_0(tmp_path):
    (tmp_path / "binary.py").write_text(
        "'''Trains a toy.'''\n"
        "from absl import flags\n"
        "from experiments import command\n"
        "flags.DEFINE_float('ridge', 1.0, 'Strength of the ridge.')\n"
        "flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)\n"
        "if __name__ == '__main__':\n"
        "    command.main(print, dict)\n"
    )
    result = subprocess.run(
        [sys.executable, "binary.py", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "Trains a toy." in result.stdout
    assert "Strength of the ridge." in result.stdout
