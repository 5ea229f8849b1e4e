"""The local pool's parent: starts a bridge and its workers, replaces dead workers, ends when unused.

It loads no gRPC, so its children start clean. `python -m dspex_pipelines.bridge.supervisor`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

READY_S = 30.0
STOP_S = 5.0
QUICK_S = 10.0
"""A worker that dies younger than this died quickly."""
MOST_QUICK_DEATHS = 10
LOG_BYTES = 5_000_000
TICK_S = 0.5
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Child:
    """A worker process, since when it runs, and what it is called."""

    name: str
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)


class Supervisor:
    """One bridge and *workers* workers in *runtime_dir*, until nobody has used them for *idle_s*."""

    def __init__(
        self,
        *,
        runtime_dir: Path,
        workers: int,
        slots: int,
        idle_s: float,
        bridge_command: Sequence[str] = (sys.executable, "-m", "dspex_pipelines.bridge"),
        worker_command: Sequence[str] = (sys.executable, "-m", "dspex_pipelines.worker"),
    ) -> None:
        self._dir = runtime_dir
        self._workers = workers
        self._slots = slots
        self._idle_s = idle_s
        self._bridge_command = tuple(bridge_command)
        self._worker_command = tuple(worker_command)
        self._address = f"unix:{runtime_dir / 'bridge.sock'}"
        self._children: list[Child] = []
        self._quick_deaths = 0
        self._restart_at = 0.0
        self._stopping = False

    def run(self, ready: IO[str]) -> int:
        """Serve; write one JSON line to *ready* once the bridge answers, or why it never did."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        with (self._dir / "pool.log").open("ab") as log:
            bridge = self._start_bridge(log)
            try:
                line = _line(bridge, READY_S)
                if not line:
                    ready.write(json.dumps({"error": f"the bridge did not start; see {log.name}"}) + "\n")
                    ready.close()
                    return 1
                for _ in range(self._workers):
                    self._start_worker(log)
                self._announce()
                ready.write(json.dumps({"address": self._address}) + "\n")
                ready.close()
                return self._watch(bridge, log)
            finally:
                self._end(bridge)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _watch(self, bridge: subprocess.Popen[bytes], log: IO[bytes]) -> int:
        idle_since: float | None = None
        with (self._dir / "clients.lock").open("a") as clients:
            while not self._stopping and bridge.poll() is None:
                time.sleep(TICK_S)
                if not self._replace_dead(log):
                    return 1
                if log.tell() > LOG_BYTES:
                    log.truncate(0)
                # Clients hold this lock shared for as long as they live, kill -9 included.
                if not _try_lock(clients):
                    idle_since = None
                    continue
                now = time.monotonic()
                idle_since = idle_since or now
                if now - idle_since >= self._idle_s:
                    # Kept until everything is gone: a client that comes now waits, then starts anew.
                    self._end(bridge)
                    return 0
                fcntl.flock(clients, fcntl.LOCK_UN)
        return 0

    def _replace_dead(self, log: IO[bytes]) -> bool:
        """Start a worker for each that ended; return False when they only crash."""
        now = time.monotonic()
        for child in [child for child in self._children if child.process.poll() is not None]:
            self._children.remove(child)
            lived = now - child.started
            self._quick_deaths = self._quick_deaths + 1 if lived < QUICK_S else 0
            log.write(f"worker {child.name} ended with {child.process.returncode} after {lived:.1f} s\n".encode())
            log.flush()
            if self._quick_deaths > 1:
                self._restart_at = now + min(10.0, 0.1 * 2**self._quick_deaths)
        if self._quick_deaths >= MOST_QUICK_DEATHS:
            log.write(f"{self._quick_deaths} workers in a row died at once; the pool gives up\n".encode())
            log.flush()
            return False
        while len(self._children) < self._workers and now >= self._restart_at:
            self._start_worker(log)
        return True

    def _start_bridge(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - our own command
            [*self._bridge_command, "--address", self._address, "--die-with-stdin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has one thread
        )

    def _start_worker(self, log: IO[bytes]) -> None:
        name = f"w-{secrets.token_hex(3)}"
        command = [*self._worker_command, "--address", self._address]
        process = subprocess.Popen(  # noqa: S603
            [*command, "--worker-id", name, "--slots", str(self._slots)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=_die_with_parent,  # noqa: PLW1509
        )
        self._children.append(Child(name, process))

    def _announce(self) -> None:
        document = {"pid": os.getpid(), "started": started_at(os.getpid()), "address": self._address}
        unfinished = self._dir / ".pool.json"
        unfinished.write_text(json.dumps(document))
        unfinished.replace(self._dir / "pool.json")

    def _end(self, bridge: subprocess.Popen[bytes]) -> None:
        """End every child and remove what says that there is a pool; safe to call twice."""
        (self._dir / "pool.json").unlink(missing_ok=True)
        processes = [bridge, *(child.process for child in self._children)]
        if bridge.stdin is not None:
            with contextlib.suppress(OSError):
                bridge.stdin.close()
        for process in processes:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        (self._dir / "bridge.sock").unlink(missing_ok=True)


def started_at(pid: int) -> str:
    """Return what tells a process from a later one with its pid; empty when there is none."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    return ""


def _die_with_parent() -> None:
    """On Linux, let the kernel end this child when the supervisor is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _line(process: subprocess.Popen[bytes], within_s: float) -> bytes:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], within_s)
    return process.stdout.readline() if readable else b""


def _arguments() -> Iterator[tuple[str, dict[str, object]]]:
    yield "--runtime-dir", {"type": Path, "required": True, "help": "folder of socket, locks and log"}
    yield "--workers", {"type": int, "required": True, "help": "worker processes"}
    yield "--slots", {"type": int, "required": True, "help": "trials at once in a worker"}
    yield "--idle-s", {"type": float, "required": True, "help": "end after so long without a client"}
    yield "--ready-fd", {"type": int, "required": True, "help": "where to say that the pool is up"}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m dspex_pipelines.bridge.supervisor", description=__doc__)
    for name, options in _arguments():
        parser.add_argument(name, **options)  # type: ignore[arg-type]
    arguments = parser.parse_args()
    # The starter has ended one child already when the pool ends, and is left no zombie.
    if os.fork():
        os._exit(0)
    supervisor = Supervisor(
        runtime_dir=arguments.runtime_dir,
        workers=arguments.workers,
        slots=arguments.slots,
        idle_s=arguments.idle_s,
    )
    with os.fdopen(arguments.ready_fd, "w") as ready:
        code = supervisor.run(ready)
    sys.exit(code)


if __name__ == "__main__":
    main()
