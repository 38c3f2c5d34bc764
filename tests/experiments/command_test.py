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


@dataclasses.dataclass(frozen=True)
class Lists:
    """A config whose flags are defined below."""

    command_test_counts: tuple[int, ...] = (1, 2)
    command_test_scales: tuple[float, ...] = (0.5,)
    command_test_names: tuple[str, ...] = ()
    command_test_steps: int = 3


flags.DEFINE_list("command_test_counts", ["1", "2"], "Integers for these tests.")
flags.DEFINE_list("command_test_scales", ["0.5"], "Numbers for these tests.")
flags.DEFINE_list("command_test_names", [], "Words for these tests.")
flags.DEFINE_bool("command_test_other", False, "No field of the config.")


def read(*arguments, **options):
    with flagsaver.flagsaver():
        flags.FLAGS(["binary", *arguments])
        return command.values_of(Lists, **options)


def test_flags_have_the_types_of_their_fields():
    assert Lists(**read()) == Lists()
    given = read(
        "--command_test_counts=3,4",
        "--command_test_scales=2,1e-3",
        "--command_test_names=a,b",
        "--command_test_steps=5",
    )
    assert Lists(**given) == Lists((3, 4), (2.0, 0.001), ("a", "b"), 5)
    assert [type(value) for value in given["command_test_scales"]] == [float, float]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--command_test_counts=1.5",
            r"command_test_counts: got \['1.5'\]; expected integers such",
        ),
        ("--command_test_scales=x", r"command_test_scales: got \['x'\]; expected numbers such as"),
        ("--command_test_other", "command_test_other: got a flag of experiments.train"),
    ],
)
def test_flags_that_do_not_fit_are_usage_errors(argument, message):
    with pytest.raises(errors.UsageError, match=message):
        read(argument, only=(__name__,))
