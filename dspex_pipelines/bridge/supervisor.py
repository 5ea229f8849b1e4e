"""The local pool's parent: starts a bridge and its workers, replaces whatever dies, ends when unused.

It loads no gRPC, so its children start clean. `python -m dspex_pipelines.bridge.supervisor`.

The bridge says on its standard output, a JSON object per line: `address` once it serves, `quarantine` for how many
workers for suspects it wants, `answered` when a worker is gone for how many trials were answered since it last said
so, and at once for those that were settled by what became of their worker, `retired` for a worker that takes no more
trials, `clients` for whether there are any, `drained` once what it has accepted is answered. It hears on its standard
input `failing`, why the pool gives up, `started` and `ended`, which worker and with what `code`, and `drain`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dspex_pipelines.bridge.addresses import socket_path
from dspex_pipelines.bridge.locks import try_lock
from dspex_pipelines.bridge.worker_processes import MOST_DEATHS, back_off_s, start_worker
from dspex_pipelines.engine.recycling import MAX_RSS_MB, Recycling
from dspex_pipelines.engine.worker_options import MAX_RSS_MB_HELP, MAX_TRIALS_HELP, SLOTS_HELP
from dspex_pipelines.wire.processes import die_with_parent, started_at

READY_S = 30.0
STOP_S = 5.0
MOST_BRIDGES = 5
"""Bridges in a row that end before they have served this long end the pool too."""
SERVED_S = 10.0
LOG_TAIL_BYTES = 2_000
LOG_BYTES = 5_000_000
TICK_S = 0.5
MOST_LEAVING = 4
"""So many workers, or as many as there should be, may be finishing their last trials while others have their places.
A trial without a time limit may hold one for ever; each holds memory."""
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
    """One bridge and *workers* workers in *runtime_dir*, until nobody has used them for *idle_s*.

    Who starts it has this process hold the folder's `pool.lock` for as long as it lives.
    The first signal ends it; where it *drains*, once what was accepted is answered, and the second one at once.
    """

    def __init__(
        self,
        *,
        runtime_dir: Path,
        workers: int,
        slots: int,
        idle_s: float,
        recycling: Recycling | None = None,
        address: str = "",
        drains: bool = False,
    ) -> None:
        self._dir = runtime_dir
        self._workers = workers
        self._slots = slots
        self._idle_s = idle_s
        self._recycling = recycling or Recycling()
        self._address = address or f"unix:{runtime_dir / 'bridge.sock'}"
        self._drains = drains
        self._children: list[Child] = []
        self._quarantine = 0
        self._deaths = 0
        """Workers in a row that died while no trial was answered."""
        self._restart_at = 0.0
        self._held = False
        """Whether there are too many workers that leave for another to be started."""
        self._bridges = 0
        self._said = b""
        self._clients = False
        """Whether anybody's stream is open, which who only has the address holds no lock for."""
        self._served = False
        """Whether a bridge has said that it answers."""
        self._draining = False
        self._stopping = False

    def run(self, tell: Callable[[Mapping[str, object]], None]) -> int:
        """Serve; say by *tell* the `address` once the bridge answers, or the `error`, and when it is `draining`."""
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
                if not self._serves():
                    tell({"error": f"the bridge did not start; see {log.name}"})
                    return 1
                self._announce()
                self._replace_dead(log)
                tell({"address": self._address})
                return self._watch(woken, log, tell)
            finally:
                self._end()

    def _serves(self) -> bool:
        """Return once the bridge says that it answers; False when it does not."""
        give_up_at = time.monotonic() + READY_S
        while not self._served:
            if not _readable(self._bridge, max(0.0, give_up_at - time.monotonic())) or not self._listen():
                return False
        return True

    def _stop(self, *_: object) -> None:
        if self._drains and not self._draining:
            self._draining = True
        else:
            self._stopping = True

    def _watch(self, woken: int, log: IO[bytes], tell: Callable[[Mapping[str, object]], None]) -> int:
        idle_since: float | None = None
        drains = False
        with (self._dir / "clients.lock").open("a") as clients:
            while not self._stopping:
                if self._draining and not drains:
                    drains = True
                    tell({"draining": True})
                    self._tell_bridge({"drain": True})
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
                if self._clients or not try_lock(clients):
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
        self._clients = message.get("clients", self._clients)
        if "address" in message:
            # One that was given any free port keeps it, also when it is started anew.
            self._address, self._served = message["address"], True
        if message.get("drained"):
            self._stopping = True
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
        self._said, self._quarantine, self._clients = b"", 0, False
        self._bridge = self._start_bridge(log)
        if self._draining:
            self._tell_bridge({"drain": True})
        return True

    def _replace_dead(self, log: IO[bytes]) -> bool:
        """Have as many workers of each kind as there should be; return False when they only die."""
        now = time.monotonic()
        for child in [child for child in self._children if child.process.poll() is not None]:
            self._children.remove(child)
            _write(log, f"worker {child.name} ended with {child.process.returncode}")
            self._tell_bridge({"ended": child.name, "code": child.process.returncode})
            if child.process.returncode:
                self._deaths += 1
                self._restart_at = now + back_off_s(self._deaths)
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
        self._tell_bridge({"failing": reason})

    def _tell_bridge(self, message: Mapping[str, object]) -> None:
        assert self._bridge.stdin is not None
        with contextlib.suppress(OSError):
            self._bridge.stdin.write(json.dumps(message).encode() + b"\n")
            self._bridge.stdin.flush()

    def _start_bridge(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        self._bridge_started = time.monotonic()
        return subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "dspex_pipelines.bridge", "--address", self._address, "--supervised"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - this process has one thread
            process_group=0,  # Ctrl-C is for the supervisor, which ends its children in their order
        )

    def _start_worker(self, log: IO[bytes], *, quarantine: bool) -> None:
        try:
            name, process = start_worker(
                self._address, slots=self._slots, recycling=self._recycling, quarantine=quarantine, log=log
            )
        except OSError as error:
            # Programs may have used up what there is of processes.
            _write(log, f"no worker could be started: {error}")
            self._restart_at = time.monotonic() + NO_PROCESS_S
        else:
            self._children.append(Child(name, process, quarantine))
            self._tell_bridge({"started": name})

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
        if path := socket_path(self._address):
            path.unlink(missing_ok=True)


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


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m dspex_pipelines.bridge.supervisor", description=__doc__)
    parser.add_argument("--runtime-dir", type=Path, required=True, help="folder of socket, locks and log")
    parser.add_argument("--workers", type=int, required=True, help="worker processes")
    parser.add_argument("--slots", type=int, required=True, help=SLOTS_HELP)
    parser.add_argument("--max-rss-mb", type=int, default=MAX_RSS_MB, help=MAX_RSS_MB_HELP)
    parser.add_argument("--max-trials", type=int, default=0, help=MAX_TRIALS_HELP)
    parser.add_argument("--idle-s", type=float, required=True, help="end after so long without a client")
    parser.add_argument("--address", default="", help="serve there, and stay until told to end; empty: in that folder")
    parser.add_argument("--ready-fd", type=int, required=True, help="where to say that the pool is up")
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
        address=arguments.address,
        drains=bool(arguments.address),
    )
    ready = os.fdopen(arguments.ready_fd, "w")

    def tell(message: Mapping[str, object]) -> None:
        """The first message is for who has started this; nobody hears those that follow."""
        if not ready.closed:
            with contextlib.suppress(BrokenPipeError), ready:
                ready.write(json.dumps(message) + "\n")

    sys.exit(supervisor.run(tell))


if __name__ == "__main__":
    main()
