"""An abort: with the code and the words that it means, or, of another library, as it is."""

import ctypes
import os
import signal
import sys
from typing import Any

import pytest

from experiments.run import aborts


def _abort(_: Any, said: str) -> None:
    """The child: a library prints in C, and aborts."""
    aborts.keep_from_sight()
    aborts.mean(75, "somebody is gone")
    print("Python prints as before", file=sys.stderr)
    os.write(2, said.encode())
    ctypes.CDLL(None).abort()


@pytest.mark.parametrize(
    ("said", "code", "shown"),
    [
        ("pages\nof the JAX distributed service\n", 75, "kernelgrad: error: somebody is gone\n"),
        ("Check failed: n > 0\n", 128 + signal.SIGABRT, "Check failed: n > 0\n"),
    ],
)
def test_an_abort_of_the_service_alone_is_put_into_words(fork, said, code, shown):
    child = fork(_abort, said)
    assert child.end() == code
    assert child.stderr() == f"Python prints as before\n{shown}"
