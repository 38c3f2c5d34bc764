"""The shell of a binary: one line an error, the right exit code, help that explains."""

import dataclasses
import importlib
import os
import pkgutil
import subprocess
import sys
import threading
from typing import Any

import pytest

import experiments
from experiments.run import command, errors, fields
from experiments.run.errors import DataError


@dataclasses.dataclass(frozen=True)
class Config:
    """The config of a toy run."""

    num_steps: int = fields.integer(10, 1, 100, "Steps of the toy.")
    scales: tuple[float, ...] = fields.numbers((0.5,), 0.0, 1.0, "Its scales.")
    updates: tuple[str, ...] = fields.choices(("a",), ("a", "b"), "Its rules.", flag="update")
    centred: bool | None = fields.switch(None, "Whether it is.")


@pytest.fixture
def call_main(monkeypatch, capsys):
    """Calls main with flags; returns the exit code and stderr."""

    def call(*arguments, run=lambda given: None):
        monkeypatch.setattr(sys, "argv", ["binary", *arguments])
        with pytest.raises(SystemExit) as stop:
            command.main(run, Config)
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


def test_only_the_main_thread_shows_an_uncaught_error(call_main, monkeypatch, capsys):
    """Threads of libraries report where a disk is full; the error is raised as well."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    call_main()
    error = (ValueError, ValueError("event loop is closed"), None)
    thread = threading.Thread(target=sys.excepthook, args=error)
    thread.start()
    thread.join()
    assert capsys.readouterr().err == ""
    sys.excepthook(*error)
    assert capsys.readouterr().err == "ValueError: event loop is closed\n"


def test_debug_shows_the_traceback_too(call_main):
    code, stderr = call_main("--debug", run=lambda _: _raise(errors.StorageError("disk gone")))
    assert code == 1
    assert "Traceback" in stderr
    assert stderr.endswith("kernelgrad: error: disk gone\n")


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["binary"])
    with pytest.raises(ZeroDivisionError):
        command.main(lambda _: 1 / 0, Config)
    with pytest.raises(ValueError, match="shapes"):
        command.main(lambda _: _raise(ValueError("shapes")), Config)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--num_stepz=4",
            "flag: got --num_stepz; expected a known flag such as --num_steps",
        ),
        ("--num_steps=four", "num_steps: got 'four'; expected an integer in [1, 100]"),
        ("--num_steps=0", "num_steps: got 0; expected an integer in [1, 100]"),
        ("--num_steps", "Missing value for flag --num_steps"),
        ("--scales=0.5,x", "scales: got 'x'; expected distinct numbers in [0, 1]"),
        ("--update=c", "update: got 'c'; expected distinct ones of a, b. Did you mean "),
        ("--debug=perhaps", "debug: got 'perhaps'; expected true or false"),
        ("steps=4", "got 'steps=4'; expected flags only"),
    ],
)
def test_a_bad_flag_exits_2_before_the_run(call_main, argument, message):
    code, stderr = call_main(argument, run=lambda _: pytest.fail("the run was started"))
    assert code == 2
    assert stderr.startswith("kernelgrad: error: ")
    assert message in stderr
    assert stderr.count("\n") == 1


def test_what_is_given_reaches_the_run_in_its_own_type(call_main):
    seen = []
    arguments = ("--num_steps=5", "--scales= 1, 1e-3", "--update=all", "--nocentred")
    assert call_main(*arguments, run=seen.append) == (0, "")
    assert seen == [
        {"num_steps": 5, "scales": (1.0, 0.001), "updates": ("a", "b"), "centred": False}
    ]
    assert [type(value) for value in seen[0]["scales"]] == [float, float]
    assert call_main(run=seen.append) == (0, "")
    assert seen[1] == {}


def test_the_environment_stands_in_for_the_folder_of_the_data(monkeypatch):
    monkeypatch.setenv("KERNELGRAD_DATA_DIR", "/there")
    assert command.parse([], command.Place) == {"data_dir": "/there"}
    assert command.parse(["--data_dir=/here"], command.Place) == {"data_dir": "/here"}


BINARIES = [
    module.name
    for module in pkgutil.iter_modules(experiments.__path__)
    if not module.ispkg and module.name != "__main__"
]


@pytest.mark.parametrize("name", BINARIES)
def test_help_lists_every_setting_of_every_binary(name, monkeypatch, capsys):
    binary = importlib.import_module(f"experiments.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        binary.main()
    assert stop.value.code == 0
    shown, _ = capsys.readouterr()
    assert shown.startswith(binary.__doc__.strip())
    words = " ".join(shown.split())
    config_classes = []
    monkeypatch.setattr(command, "main", lambda _, *classes: config_classes.extend(classes))
    binary.main()
    rules = {name: rule for one in config_classes for name, rule in fields.rules(one).items()}
    assert fields.rules(command.Place).items() <= rules.items()  # of one meaning in all of them
    for name, rule in rules.items():
        assert f"\n  --{rule.flag or name}\n" in shown
        assert " ".join(rule.help.split()) in words
        assert rule.default_text in words
        assert all(f"\n\n{title}\n\n" in shown for title in (rule.group,) if title)
        assert all(f"For {', '.join(of(name))}." in words for of in (rule.of,) if of)


def test_help_of_a_real_binary_exits_0(tmp_path):
    (tmp_path / "binary.py").write_text(
        "'''Trains a toy.'''\n"
        "import dataclasses\n"
        "from experiments.run import command, fields\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Config(command.Place):\n"
        "    ridge: float = fields.positive(1.0, 'Strength of the ridge.')\n"
        "def start(given):\n"
        "    print(given)\n"
        "if __name__ == '__main__':\n"
        "    command.main(start, Config)\n"
    )
    result = subprocess.run(
        [sys.executable, "binary.py", "--help"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert "Trains a toy." in result.stdout
    assert "Strength of the ridge." in result.stdout


def _print_much(_: Any, line_buffering: bool) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    sys.stdout.reconfigure(line_buffering=line_buffering)
    sys.argv = ["print"]
    command.main(lambda _: print("table"))


@pytest.mark.parametrize("line_buffering", [False, True])
def test_a_full_disk_behind_stdout_is_one_line(fork, line_buffering):
    child = fork(_print_much, line_buffering)
    assert child.end() == 1
    assert child.stderr().startswith("kernelgrad: error: ")
    assert child.stderr().count("\n") == 1
    assert child.stderr().endswith("No space left on device\n")
