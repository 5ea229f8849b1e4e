"""What a worker's programs find around them, put back after them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import threading

_ABOVE = 64
"""Copies of descriptors lie above those that programs name."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Surroundings:
    """A worker's directory, standard streams and signal handlers, as they were when this was made."""

    def __init__(self) -> None:
        self._folder = os.getcwd()  # noqa: PTH109 - compared again and again, so as plain as it comes
        self._kept = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for number in range(3)]
        self._handlers = [(number, signal.getsignal(number)) for number in _SIGNALS]
        self._lock = threading.Lock()
        self.restore_children()

    def restore(self) -> None:
        """Put back directory and standard streams; a few system calls, from any thread."""
        try:
            moved = os.getcwd() != self._folder  # noqa: PTH109
        except OSError:
            moved = True
        if moved:
            with contextlib.suppress(OSError):
                os.chdir(self._folder)
        for number in (0, 1, 2):
            try:
                # The cheapest question that only an open descriptor answers.
                os.get_inheritable(number)
            except OSError:
                with contextlib.suppress(OSError):
                    os.dup2(self._kept[number], number)
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None or stream.closed:
                self._reopen()

    def restore_handlers(self) -> None:
        """Put back the signal handlers, on the main thread."""
        for number, handler in self._handlers:
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)

    def restore_children(self) -> bool:
        """Put back what is done when a process ends, on the main thread; return whether a program had changed it.

        Ignored, or by a handler that waits for any process, the kernel forgets how one ended: `os.waitpid` fails then,
        and `subprocess` takes every end for a success. What the loop had set for processes of its own is lost.
        """
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL:
            return False
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return True

    def _reopen(self) -> None:
        # A stream that a program has put there for its own is left to it.
        with self._lock:
            for number, name in ((1, "stdout"), (2, "stderr")):
                stream = getattr(sys, name)
                if stream is None or stream.closed:
                    errors = "backslashreplace"
                    stream = os.fdopen(number, "w", encoding="utf-8", errors=errors, closefd=False)
                    setattr(sys, name, stream)
