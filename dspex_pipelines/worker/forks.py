"""Forks a process for each isolated trial: warm, without gRPC, and gone when its worker is.

The fork parent is itself forked from the worker while that has one thread and has run no program. Its children find
what it has imported, and the directory, import path and environment of the worker's start. It never runs a program, so
it always answers; it ends its children, and what they have started, once nobody wants them or the worker is gone.
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import NoReturn

from dspex_pipelines.wire.processes import die_with_parent, offer_to_oom_killer

OOM_SCORE = 750
"""Above that of the worker itself: a trial that eats all memory loses its own process alone."""
END_S = 2.0
_STATUS = struct.Struct("q")
_NOT_FORKED = 1 << 32
"""Said in place of an exit status, with the system's error number added."""


class ForksLost(Exception):
    """The fork parent is gone; only a new worker has one again."""


class Fork:
    """A process that serves one request over `connection`, until it is closed."""

    def __init__(self, connection: Connection, life: socket.socket) -> None:
        self.connection = connection
        self.life = life
        """Readable once the process has ended."""
        self._lock = threading.Lock()

    def kill(self) -> None:
        """End it, and the processes that it has started; safe from any thread, at any time."""
        with self._lock, contextlib.suppress(OSError):
            self.life.shutdown(socket.SHUT_WR)

    def wait(self) -> int:
        """Return its exit code once it has ended, or the negative number of the signal that ended it.

        Raises `OSError` when it could not be forked, and `ForksLost`.
        """
        said = b""
        with contextlib.suppress(OSError):
            while len(said) < _STATUS.size and (more := self.life.recv(_STATUS.size)):
                said += more
        if len(said) < _STATUS.size:
            raise ForksLost
        status = _STATUS.unpack(said)[0]
        if status >= _NOT_FORKED:
            raise OSError(status - _NOT_FORKED, os.strerror(status - _NOT_FORKED))
        return status

    def close(self) -> None:
        """Let go of it, ending it if it has not."""
        self.kill()
        with self._lock:
            self.connection.close()
            self.life.close()


class Forks:
    """The worker's end of its fork parent."""

    def __init__(self, control: socket.socket, parent: int) -> None:
        self._control = control
        self._parent = parent
        self._lock = threading.Lock()

    @classmethod
    def start(cls, serve: Callable[[Connection], None]) -> Forks:
        """Fork the fork parent off this process, which may have no other thread; its children run *serve* and end."""
        here, there = socket.socketpair()
        worker = os.getpid()
        # Pages that the collector never writes to stay shared.
        gc.collect()
        gc.freeze()
        parent = os.fork()
        if parent == 0:
            try:
                here.close()
                _Parent(there, worker, serve).run()
            finally:
                os._exit(1)
        there.close()
        return cls(here, parent)

    def fork(self) -> Fork:
        """Return a new process; raises `OSError` when there are no descriptors for it, and `ForksLost`."""
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            here, there = Pipe()
            ours.callback(here.close)
            theirs.callback(there.close)
            life, report = socket.socketpair()
            ours.enter_context(life)
            theirs.enter_context(report)
            with self._lock:
                try:
                    socket.send_fds(self._control, [b"f"], [there.fileno(), report.fileno()])
                except OSError as error:
                    raise ForksLost from error
            ours.pop_all()
        return Fork(here, life)

    def end(self) -> None:
        """End the fork parent and all its children; return when they are gone, or after `END_S`."""
        with self._lock, contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        give_up_at = time.monotonic() + END_S
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(self._parent, os.WNOHANG) == (0, 0) and time.monotonic() < give_up_at:
                time.sleep(0.002)


class _Parent:
    """The loop of the fork parent: forks, tells how children ended, and ends them."""

    def __init__(self, control: socket.socket, worker: int, serve: Callable[[Connection], None]) -> None:
        self._control = control
        self._worker = worker
        self._pid = os.getpid()
        self._serve = serve
        self._selector = selectors.DefaultSelector()
        self._reports: dict[int, socket.socket] = {}
        """Child to where its end is told; that the other end closes means that the child is not wanted any more."""
        self._woken, self._waking = os.pipe()

    def run(self) -> NoReturn:
        for descriptor in (self._woken, self._waking):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._waking, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, _ignore)
        # Meant for the worker, which finishes what runs.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        # Not with SIGKILL: there are children to end first. Programs may keep copies of the worker's sockets open.
        die_with_parent(signal.SIGHUP)
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        wanted = True
        while wanted and os.getppid() == self._worker:
            for key, _ in self._selector.select():
                if key.fileobj is self._control:
                    wanted = self._fork()
                elif key.data is None:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._woken, 4096)
                else:
                    self._selector.unregister(key.fileobj)
                    _kill(key.data)
            self._reap()
        for child in self._reports:
            _kill(child)
        while self._reports:
            self._reports.pop(os.waitpid(-1, 0)[0], None)
        os._exit(0)

    def _fork(self) -> bool:
        """Take a request; return whether there may be others."""
        request, descriptors, _, _ = socket.recv_fds(self._control, 1, 2)
        if not request:
            return False
        connection, report = descriptors[0], socket.socket(fileno=descriptors[1])
        try:
            child = os.fork()
        except OSError as error:
            report.send(_STATUS.pack(_NOT_FORKED + (error.errno or 0)))
            report.close()
        else:
            if child == 0:
                self._become_child(connection, report)
            self._reports[child] = report
            self._selector.register(report, selectors.EVENT_READ, child)
        os.close(connection)
        return True

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                child, status = ended
                _kill_started_by(child)
                report = self._reports.pop(child)
                with contextlib.suppress(KeyError):
                    self._selector.unregister(report)
                with contextlib.suppress(OSError):
                    report.send(_STATUS.pack(os.waitstatus_to_exitcode(status)))
                report.close()

    def _become_child(self, connection: int, report: socket.socket) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for open_ in (self._selector, self._control, report, *self._reports.values()):
                open_.close()
            os.close(self._woken)
            os.close(self._waking)
            # What it starts is of its group, and can be ended with it.
            os.setpgid(0, 0)
            die_with_parent()
            offer_to_oom_killer(OOM_SCORE)
            if os.getppid() == self._pid:
                os.set_inheritable(connection, False)  # noqa: FBT003 - it takes no name
                self._serve(Connection(connection))
            code = 0
        except BaseException:  # noqa: BLE001 - told by its exit code
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


def _kill(child: int) -> None:
    """End a child that has not been waited for, and what it has started."""
    os.kill(child, signal.SIGKILL)
    _kill_started_by(child)


def _kill_started_by(child: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)


def _ignore(*_: object) -> None:
    """Unlike SIG_IGN, lets the wake-up happen."""
