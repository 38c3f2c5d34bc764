"""What stderr gets."""

import signal

from experiments.run import errors


def test_a_message_is_one_line_whatever_it_holds():
    assert errors.line("error", ValueError("a\n  b\tc")) == "kernelgrad: error: a b c"


def test_who_catches_errors_does_not_catch_the_end():
    assert not issubclass(errors.Terminated, Exception)
    assert errors.Terminated("saved").number == signal.SIGTERM
