"""SIGTERM, SIGINT and SIGHUP: what can be saved is saved, and one line says how to go on.

A signal that was ignored at the start, as SIGHUP is under nohup, stays ignored.
"""

import os
import signal
import socket
import sys
import threading
from typing import Any, NoReturn, Self

from tqdm import tqdm

from experiments.run.errors import Terminated, line

_END = threading.Lock()  # for good
_OBEYED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def terminated(number: int, what: str) -> Terminated:
    """Returns the end of a run that a signal asked for, with what was saved, in words."""
    name = signal.Signals(number).name
    return Terminated(f"{name}: {what}; run the same command to resume", number)


def end(words: str, code: int) -> NoReturn:
    """Ends the process at once, on whatever thread, with an error in words; blank: without.

    Of several threads the first is heard.
    """
    _END.acquire()
    if words:
        below = "\n" if getattr(tqdm, "_instances", ()) else ""  # below progress bars
        os.write(sys.stderr.fileno(), f"{below}{line('error', words)}\n".encode())
    os._exit(code)


class Signals:
    """Turns the first signal into a request to stop; a second one ends the process at once.

    A loop reads `stop` once a step (it may change between two looks); where it is set, the loop
    saves and raises :func:`terminated`. A loop that ends in spite of it ends so too. Around code
    that has nothing to save, `at_once` makes the first signal end the process; files are whole at
    every moment, as after a kill. A loop within takes over until it is left. A thread hears the
    signals, so that they work during a long compilation too. Main thread only.

    Attributes:
      stop: the signal that has arrived, or None.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.stop: int | None = None
        self._at_once = at_once

    def __enter__(self) -> Self:
        """Starts to listen."""
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        self._old_handlers = {
            number: signal.signal(number, lambda *_: None)
            for number in _OBEYED
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        """Gives the signals back to their earlier handlers."""
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        self._mouth.close()
        self._thread.join()
        self._ear.close()
        if self.stop is not None and error is None:
            raise terminated(self.stop, "stopped")

    def _listen(self) -> None:
        while byte := self._ear.recv(1):
            number = byte[0]
            if number not in self._old_handlers:
                continue
            if self._at_once or self.stop is not None:
                end(str(terminated(number, "stopped")), 128 + number)
            self.stop = number
