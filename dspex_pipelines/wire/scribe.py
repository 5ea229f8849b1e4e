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
from collections.abc import Generator, Mapping
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
    def start(cls, *, apart: bool = False) -> Scribe:
        """Have standard output and error of this process written by a scribe, forked from it.

        Both go to where standard error leads now, or, *apart*, each to where it leads itself. Secrets that this process
        or its forks come to know are told to the scribe.
        """
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        pipes = {number: os.pipe() for number in ((1, 2) if apart else (2,))}
        told, telling = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        here = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                for _, writing in pipes.values():
                    os.close(writing)
                telling.close()
                _Writer({reading: number for number, (reading, _) in pipes.items()}, told, here).run()
            finally:
                os._exit(1)
        told.close()
        for number in (1, 2):
            os.dup2(pipes.get(number, pipes[2])[1], number)
        for reading, writing in pipes.values():
            with contextlib.suppress(OSError, AttributeError):
                # Programs that print much wait less often.
                fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            os.close(reading)
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
        self._telling.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(self._pid, os.WNOHANG) == (0, 0) and time.monotonic() < give_up_at:
                time.sleep(0.002)


@contextlib.contextmanager
def foreground() -> Generator[None]:
    """Have what is printed within, by whatever is called, go where it would have gone, without secrets."""
    kept = [os.dup(number) for number in (1, 2)]
    scribe = Scribe.start(apart=True)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        scribe.end()


class _Writer:
    """The scribe's own loop: from each pipe to a descriptor."""

    def __init__(self, pipes: Mapping[int, int], told: socket.socket, of: int) -> None:
        self._pipes = dict(pipes)
        self._told = told
        self._of = of
        self._held = dict.fromkeys(pipes, b"")
        """The beginning of a line, by pipe."""
        self._ending = False

    def run(self) -> NoReturn:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Meant for the process whose log this is, which may have something to say then.
            signal.signal(number, signal.SIG_IGN)
        offer_to_oom_killer(0)
        self._told.settimeout(0)
        selector = selectors.DefaultSelector()
        selector.register(self._told, selectors.EVENT_READ)
        for reading in self._pipes:
            os.set_blocking(reading, False)
            selector.register(reading, selectors.EVENT_READ)
        open_ = set(self._pipes)
        while open_:
            ready = selector.select(_LOOK_S)
            if not ready and os.getppid() != self._of:
                break
            # First: what is read now may have been written once it was known.
            self._hear()
            said = {reading: _read(reading) for reading in open_}
            for reading, text in said.items():
                if text:
                    self._take(reading, text)
                elif text is not None:
                    open_.discard(reading)
                    selector.unregister(reading)
            if self._ending and not any(said.values()):
                break
        for reading, held in self._held.items():
            self._write(reading, held)
        os._exit(0)

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while (told := self._told.recv(_TOLD_BYTES)) != _END:
                redaction.learn(json.loads(told))
            self._ending = True

    def _take(self, reading: int, said: bytes) -> None:
        whole, newline, begun = said.rpartition(b"\n")
        if newline:
            self._write(reading, self._held[reading] + whole + newline)
            held = begun
        else:
            held = self._held[reading] + said
        if len(held) > LINE_BYTES:
            # It may end in the middle of a secret, which is then whole in what is kept.
            clean, kept = redacted(held), 4 * redaction.longest()
            self._write(reading, clean[: max(0, len(clean) - kept)])
            held = clean[max(0, len(clean) - kept) :]
        self._held[reading] = held

    def _write(self, reading: int, said: bytes) -> None:
        text = memoryview(redacted(said))
        with contextlib.suppress(OSError):
            # A full disk costs the log, and not the program that writes it.
            while text:
                text = text[os.write(self._pipes[reading], text) :]


def _read(reading: int) -> bytes | None:
    """Return what there is to read; empty at its end, None where there is nothing now."""
    try:
        return os.read(reading, _READ_BYTES)
    except BlockingIOError:
        return None


def redacted(said: bytes) -> bytes:
    """Return what was written without secrets; it need not be text."""
    return redaction.redact(said.decode(errors="surrogateescape")).encode(errors="surrogateescape")
