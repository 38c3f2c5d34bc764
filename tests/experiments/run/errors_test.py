"""What stderr gets."""

import signal

from experiments.run import errors


def test_a_message_is_one_line_whatever_it_holds():
    assert errors.line("error", ValueError("a\n  b\tc")) == "kernelgrad: error: a b c"


def test_of_long_messages_the_middle_is_left_out():
    message = f"workdir {'x' * 5000}: got a run; expected none. Use another workdir"
    line = errors.line("error", message)
    assert len(line) < 300
    assert line.startswith("kernelgrad: error: workdir xxx")
    assert line.endswith(": got a run; expected none. Use another workdir")
    assert errors.line("error", "x" * 280) == f"kernelgrad: error: {'x' * 280}"


def test_lists_and_names_are_short():
    assert errors.listed([]) == ""
    assert errors.listed(["a"]) == "a"
    assert errors.listed(["a", 2, "c"]) == "a, 2, c"
    assert errors.listed(f"{i}" for i in range(2000)).endswith(", 26 and 1973 more")
    long = "x" * 60 + "... (5000 characters)"
    assert errors.listed(["x" * 5000]) == errors.short("x" * 5000) == long
    assert errors.listed(["x" * 5000, "b"]) == f"{long}, b"
    assert errors.short("x" * 60) == "x" * 60


def test_reasons_are_one_short_line():
    assert errors.reason(OSError(2, "No such file", "x" * 500)) == "No such file"
    assert errors.reason(ValueError("a\nb")) == "a b"
    assert errors.reason(KeyError()) == "KeyError"
    assert len(errors.reason(ValueError("x" * 5000))) <= 150


def test_who_catches_errors_does_not_catch_the_end():
    assert not issubclass(errors.Terminated, Exception)
    assert errors.Terminated("saved").number == signal.SIGTERM
