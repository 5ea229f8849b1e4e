"""The local pool's parent: starts a bridge and its workers, replaces whatever dies, ends when unused.

It loads no gRPC, so its children start clean. `python -m dspex_pipelines.bridge.supervisor`.

The bridge says on its standard output, a JSON object per line: `address` once it serves, `quarantine` for how many
workers for suspects it wants, `lost` for a worker that is gone and how many trials were answered since the last one,
`answered` alone for how many were settled by what became of their worker, `retired` for a worker that takes no more
trials. It hears on its standard input `failing`, why the pool gives up.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dspex_pipelines.engine.recycling import MAX_RSS_MB, Recycling
from dspex_pipelines.wire.processes import die_with_parent, offer_to_oom_killer

READY_S = 30.0
STOP_S = 5.0
FEW_DEATHS = 3
"""So many workers in a row may die without an answer to any trial before the next ones have to wait."""
MOST_DEATHS = 16
"""So many end the pool: nothing that it is given will ever run."""
MOST_BRIDGES = 5
"""Bridges in a row that end before they have served this long end the pool too."""
SERVED_S = 10.0
LOG_TAIL_BYTES = 2_000
LOG_BYTES = 5_000_000
TICK_S = 0.5
MOST_LEAVING = 4
"""So many workers, or as many as there should be, may be finishing their last trials while others have their places.
A trial without a time limit may hold one for ever; each holds memory."""
OOM_SCORE = 500
"""When memory runs out, the kernel takes workers first: it is programs that leak, and the bridge and the user's other
processes are to outlive that. For the pool it is the same as `kill -9`."""
NO_PROCESS_S = 1.0
"""After so long it is tried again where the system had no process to give."""


@dataclass(slots=True)
class Child:
    """A worker process, what it is called, and what it is for."""

    name: str
    process: subprocess.Popen[bytes]
    quarantine: bool
    leaving: bool = False
    """Whether it takes no more trials; another has its place."""


class Supervisor:
    """One bridge and *workers* workers in *runtime_dir*, until nobody has used them for *idle_s*."""

    def __init__(
        self,
        *,
        runtime_dir: Path,
        workers: int,
        slots: int,
        idle_s: float,
        recycling: Recycling | None = None,
        bridge_command: Sequence[str] = (sys.executable, "-m", "dspex_pipelines.bridge"),
        worker_command: Sequence[str] = (sys.executable, "-m", "dspex_pipelines.worker"),
    ) -> None:
        self._dir = runtime_dir
        self._workers = workers
        self._slots = slots
        self._idle_s = idle_s
        self._recycling = recycling or Recycling()
        self._bridge_command = tuple(bridge_command)
        self._worker_command = tuple(worker_command)
        self._address = f"unix:{runtime_dir / 'bridge.sock'}"
        self._children: list[Child] = []
        self._quarantine = 0
        self._deaths = 0
        """Workers in a row that died while no trial was answered."""
        self._restart_at = 0.0
        self._held = False
        """Whether there are too many workers that leave for another to be started."""
        self._bridges = 0
        self._said = b""
        self._stopping = False

    def run(self, ready: IO[str]) -> int:
        """Serve; write one JSON line to *ready* once the bridge answers, or why it never did."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        woken, waking = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(waking, False)
        # A child that ends wakes the loop at once.
        signal.signal(signal.SIGCHLD, _ignore)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        with (self._dir / "pool.log").open("ab") as log:
            self._bridge = self._start_bridge(log)
            try:
                if not _readable(self._bridge, READY_S) or not self._listen():
                    ready.write(json.dumps({"error": f"the bridge did not start; see {log.name}"}) + "\n")
                    ready.close()
                    return 1
                self._announce()
                self._replace_dead(log)
                ready.write(json.dumps({"address": self._address}) + "\n")
                ready.close()
                return self._watch(woken, log)
            finally:
                self._end()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _watch(self, woken: int, log: IO[bytes]) -> int:
        idle_since: float | None = None
        with (self._dir / "clients.lock").open("a") as clients:
            while not self._stopping:
                select.select([_stdout(self._bridge), woken], [], [], TICK_S)
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, 4096)
                if not self._listen() and not self._restart_bridge(log):
                    return 1
                if not self._replace_dead(log):
                    self._give_up(log)
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
                    self._end()
                    return 0
                fcntl.flock(clients, fcntl.LOCK_UN)
        return 0

    def _listen(self) -> bool:
        """Take in what the bridge has said; return whether it lives."""
        while _readable(self._bridge, 0) and (said := os.read(_stdout(self._bridge), 65_536)):
            self._said += said
        *lines, self._said = self._said.split(b"\n")
        for line in lines:
            self._heard(json.loads(line))
        return self._bridge.poll() is None

    def _heard(self, message: Mapping[str, Any]) -> None:
        self._quarantine = message.get("quarantine", self._quarantine)
        if message.get("answered"):
            self._deaths = 0
        for child in self._children:
            if child.name == message.get("retired"):
                child.leaving = True

    def _restart_bridge(self, log: IO[bytes]) -> bool:
        """Start the bridge anew at its address; return False when it only ends."""
        lived = time.monotonic() - self._bridge_started
        self._bridges = 1 if lived > SERVED_S else self._bridges + 1
        _write(log, f"the bridge ended with {self._bridge.returncode} after {lived:.1f} s")
        if self._bridges > MOST_BRIDGES:
            _write(log, f"{self._bridges} bridges in a row ended; the pool gives up")
            return False
        time.sleep(min(5.0, 0.1 * 2**self._bridges) if self._bridges > 1 else 0)
        self._said, self._quarantine = b"", 0
        self._bridge = self._start_bridge(log)
        return True

    def _replace_dead(self, log: IO[bytes]) -> bool:
        """Have as many workers of each kind as there should be; return False when they only die."""
        now = time.monotonic()
        for child in [child for child in self._children if child.process.poll() is not None]:
            self._children.remove(child)
            _write(log, f"worker {child.name} ended with {child.process.returncode}")
            if child.process.returncode:
                self._deaths += 1
                self._restart_at = now + _back_off_s(self._deaths)
        if self._deaths >= MOST_DEATHS:
            return False
        for quarantine, wanted in ((False, self._workers), (True, self._quarantine)):
            mine = [child for child in self._children if child.quarantine is quarantine]
            staying = [child for child in mine if not child.leaving]
            for child in staying[wanted:]:
                child.leaving = True
                child.process.terminate()
            missing = max(0, wanted - len(staying))
            room = wanted + max(wanted, MOST_LEAVING) - len(mine)
            if not quarantine:
                self._say_when_held(log, leaving=len(mine) - len(staying), held=missing > room)
            if now >= self._restart_at:
                for _ in range(min(missing, room)):
                    self._start_worker(log, quarantine=quarantine)
        return True

    def _say_when_held(self, log: IO[bytes], *, leaving: int, held: bool) -> None:
        if held and not self._held:
            _write(log, f"{leaving} workers have not finished their last trials; until one has, no other is started")
        self._held = held

    def _give_up(self, log: IO[bytes]) -> None:
        """Tell the clients, by way of the bridge, why there is no pool any more."""
        log.flush()
        path = Path(log.name)
        tail = path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        reason = (
            f"{self._deaths} workers in a row died without answering a trial; something that every trial needs kills "
            f"its process (an import, a library, too little memory). The end of {path}:\n{tail}"
        )
        _write(log, f"{self._deaths} workers in a row died; the pool gives up")
        assert self._bridge.stdin is not None
        with contextlib.suppress(OSError):
            self._bridge.stdin.write(json.dumps({"failing": reason}).encode() + b"\n")
            self._bridge.stdin.flush()

    def _start_bridge(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        self._bridge_started = time.monotonic()
        return subprocess.Popen(  # noqa: S603 - our own command
            [*self._bridge_command, "--address", self._address, "--supervised"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - this process has one thread
        )

    def _start_worker(self, log: IO[bytes], *, quarantine: bool) -> None:
        name = f"{'q' if quarantine else 'w'}-{secrets.token_hex(3)}"
        command = [*self._worker_command, "--address", self._address, "--worker-id", name]
        command += ["--slots", str(self._slots), "--max-rss-mb", str(self._recycling.max_rss_mb)]
        command += ["--max-trials", str(self._recycling.max_trials), *(["--quarantine"] if quarantine else [])]
        try:
            process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_become_worker,  # noqa: PLW1509
            )
        except OSError as error:
            # Programs may have used up what there is of processes.
            _write(log, f"no worker could be started: {error}")
            self._restart_at = time.monotonic() + NO_PROCESS_S
        else:
            self._children.append(Child(name, process, quarantine))

    def _announce(self) -> None:
        document = {"pid": os.getpid(), "started": started_at(os.getpid()), "address": self._address}
        unfinished = self._dir / ".pool.json"
        unfinished.write_text(json.dumps(document))
        unfinished.replace(self._dir / "pool.json")

    def _end(self) -> None:
        """End every child and remove what says that there is a pool; safe to call twice."""
        (self._dir / "pool.json").unlink(missing_ok=True)
        assert self._bridge.stdin is not None
        # That alone ends the bridge: a signal could overtake what it was told last.
        with contextlib.suppress(OSError):
            self._bridge.stdin.close()
        for child in self._children:
            if child.process.poll() is None:
                child.process.terminate()
        processes = [self._bridge, *(child.process for child in self._children)]
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


def _become_worker() -> None:
    die_with_parent()
    offer_to_oom_killer(OOM_SCORE)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _readable(process: subprocess.Popen[bytes], within_s: float) -> bool:
    readable, _, _ = select.select([_stdout(process)], [], [], within_s)
    return bool(readable)


def _stdout(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    return process.stdout.fileno()


def _ignore(*_: object) -> None:
    """Unlike SIG_IGN, lets the wake-up happen."""


def _write(log: IO[bytes], text: str) -> None:
    log.write(f"{text}\n".encode())
    log.flush()


def _back_off_s(deaths: int) -> float:
    return min(5.0, 0.1 * 2.0 ** (deaths - FEW_DEATHS)) if deaths > FEW_DEATHS else 0.0


def _arguments() -> Iterator[tuple[str, dict[str, object]]]:
    yield "--runtime-dir", {"type": Path, "required": True, "help": "folder of socket, locks and log"}
    yield "--workers", {"type": int, "required": True, "help": "worker processes"}
    yield "--slots", {"type": int, "required": True, "help": "trials at once in a worker"}
    yield "--max-rss-mb", {"type": int, "default": MAX_RSS_MB, "help": "memory after which a worker is replaced"}
    yield "--max-trials", {"type": int, "default": 0, "help": "trials after which a worker is replaced"}
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
        recycling=Recycling(max_rss_mb=arguments.max_rss_mb, max_trials=arguments.max_trials),
    )
    with os.fdopen(arguments.ready_fd, "w") as ready:
        code = supervisor.run(ready)
    sys.exit(code)


if __name__ == "__main__":
    main()
