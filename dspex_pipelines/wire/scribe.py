"""The log of a process, written by another one that takes secrets out of it.

It is forked from the process, and gets what that and its children write to standard output and error through a pipe. So
what was written by a process that is then killed is in the log too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import NoReturn

from dspex_pipelines import redaction
from dspex_pipelines.wire.processes import offer_to_oom_killer

LINE_BYTES = 1 << 16
"""Of a line that does not end: what there is of it by then is written."""
END_S = 1.0
"""After so long without a word the scribe ends when its process has; others may hold the pipe for ever."""
_PIPE_BYTES = 1 << 20
_READ_BYTES = 1 << 16
_TOLD_BYTES = 1 << 18
_LOOK_S = 1.0
_END = b""


class Scribe:
    """The process that writes this one's log."""

    def __init__(self, pid: int, telling: socket.socket) -> None:
        self._pid = pid
        self._telling = telling

    @classmethod
    def start(cls) -> Scribe:
        """Have standard output and error of this process, which may have no other thread, written by a scribe.

        Both go to where standard error leads now. Secrets that this process or its forks come to know are told to it.
        """
        reading, writing = os.pipe()
        told, telling = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with contextlib.suppress(OSError, AttributeError):
            # Programs that print much wait less often.
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        here = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(writing)
                telling.close()
                _Writer(reading, told, here).run()
            finally:
                os._exit(1)
        os.close(reading)
        told.close()
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        os.close(writing)
        telling.settimeout(0)

        def tell(named: Mapping[str, str]) -> None:
            with contextlib.suppress(OSError):
                telling.send(json.dumps(dict(named)).encode())

        redaction.tell(tell)
        return cls(pid, telling)

    def end(self) -> None:
        """Return when all that was written is in the log, or after `END_S`; nothing else is written from then on."""
        give_up_at = time.monotonic() + END_S
        with contextlib.suppress(OSError):
            self._telling.send(_END)
            while os.waitpid(self._pid, os.WNOHANG) == (0, 0) and time.monotonic() < give_up_at:
                time.sleep(0.002)


class _Writer:
    """The scribe's own loop. Its log is its standard error."""

    def __init__(self, reading: int, told: socket.socket, of: int) -> None:
        self._reading = reading
        self._told = told
        self._of = of
        self._held = b""
        """The beginning of a line."""
        self._ending = False

    def run(self) -> NoReturn:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Meant for the process whose log this is, which may have something to say then.
            signal.signal(number, signal.SIG_IGN)
        offer_to_oom_killer(0)
        self._told.settimeout(0)
        os.set_blocking(self._reading, False)
        selector = selectors.DefaultSelector()
        selector.register(self._reading, selectors.EVENT_READ)
        selector.register(self._told, selectors.EVENT_READ)
        while True:
            ready = selector.select(_LOOK_S)
            if not ready and os.getppid() != self._of:
                break
            # First: what is read now may have been written once it was known.
            self._hear()
            said = self._read()
            if said == b"" or (said is None and self._ending):
                break
            if said:
                self._take(said)
        self._write(self._held)
        os._exit(0)

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while (told := self._told.recv(_TOLD_BYTES)) != _END:
                redaction.learn(json.loads(told))
            self._ending = True

    def _read(self) -> bytes | None:
        """Return what there is to read; empty at its end, None where there is nothing now."""
        try:
            return os.read(self._reading, _READ_BYTES)
        except BlockingIOError:
            return None

    def _take(self, said: bytes) -> None:
        whole, newline, begun = said.rpartition(b"\n")
        if newline:
            self._write(self._held + whole + newline)
            self._held = begun
        else:
            self._held += said
        if len(self._held) > LINE_BYTES:
            # It may end in the middle of a secret, which is then whole in what is kept.
            clean, kept = redacted(self._held), 4 * redaction.longest()
            self._write(clean[: len(clean) - kept])
            self._held = clean[len(clean) - kept :]

    def _write(self, said: bytes) -> None:
        text = memoryview(redacted(said))
        with contextlib.suppress(OSError):
            # A full disk costs the log, and not the program that writes it.
            while text:
                text = text[os.write(2, text) :]


def redacted(said: bytes) -> bytes:
    """Return what was written without secrets; it need not be text."""
    return redaction.redact(said.decode(errors="surrogateescape")).encode(errors="surrogateescape")
