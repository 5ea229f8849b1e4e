"""Workers for a bridge that runs elsewhere: as many as are wanted, each replaced when it ends.

What a supervisor is to the workers of its own pool, this is to those that join another: they end with it.
"""

from __future__ import annotations

import math
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial

from dspex_pipelines.bridge.addresses import check_dialled, why_unreachable
from dspex_pipelines.bridge.local_pool import MOST_WORKERS
from dspex_pipelines.bridge.worker_processes import COMMAND, MOST_DEATHS, back_off_s, start_worker
from dspex_pipelines.engine.recycling import Recycling
from dspex_pipelines.engine.worker_options import SLOTS, check_slots
from dspex_pipelines.errors import DspexError, InvalidValue, PoolUnreachable

DIAL_S = 2.0
LOOK_S = 0.1
LIVED_S = 60.0
"""A worker that ends sooner, and not because it was told to, counts towards giving up."""
MISMATCH = 3
"""The exit code of a worker that speaks another version than its bridge."""


class Crew:
    """*count* workers attached to the bridge at *address*, until a signal, or until there is no bridge any more.

    It looks for a bridge for *wait_s* seconds, at first and whenever that is gone. *say* is told what happens.
    Constructing raises `InvalidValue` for an address or a number that cannot be.
    """

    def __init__(
        self,
        address: str,
        *,
        count: int = 1,
        slots: int = SLOTS,
        quarantine: bool = False,
        recycling: Recycling | None = None,
        wait_s: float = 20.0,
        say: Callable[[str], None] = lambda _: None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        check_dialled(address)
        if not 1 <= count <= MOST_WORKERS:
            raise InvalidValue(field="count", value=count, fix=f"give 1 to {MOST_WORKERS:,} workers")
        check_slots(slots)
        if not 0 <= wait_s < math.inf:
            raise InvalidValue(field="wait_s", value=wait_s, fix="give seconds, 0 for not at all")
        self._address = address
        self._count = count
        self._wait_s = wait_s
        self._say = say
        recycling = recycling or Recycling()
        self._start = partial(
            start_worker, address, slots=slots, recycling=recycling, quarantine=quarantine, command=command
        )
        self._workers: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
        """By name: its process, and when it was started."""
        self._deaths = 0
        self._start_at = 0.0
        self._signals = 0

    def run(self) -> None:
        """Serve until the first signal, then until every worker has finished its trials, or until the second.

        Raises `PoolUnreachable` when no bridge answers within *wait_s*, and `DspexError` where workers only die.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told)
        try:
            while not self._signals:
                self._reap()
                self._fill()
                time.sleep(LOOK_S)
            self._drain()
        finally:
            for process, _ in self._workers.values():
                process.kill()
                process.wait()

    def _told(self, *_: object) -> None:
        self._signals += 1

    def _drain(self) -> None:
        if self._workers:
            self._say("no more trials are taken; those that run are finished. Again, and they are not waited for")
        for process, _ in self._workers.values():
            process.terminate()
        while self._signals == 1 and self._workers:
            self._reap()
            time.sleep(LOOK_S)

    def _fill(self) -> None:
        if len(self._workers) == self._count or time.monotonic() < self._start_at or not self._reach():
            return
        while len(self._workers) < self._count:
            name, process = self._start()
            self._workers[name] = process, time.monotonic()
            self._say(f"worker {name} is started for the bridge at {self._address}")

    def _reach(self) -> bool:
        """Return once somebody listens at the address, or False when told to end."""
        give_up_at = time.monotonic() + self._wait_s
        waiting = False
        while why := why_unreachable(self._address, DIAL_S):
            if self._signals:
                return False
            if time.monotonic() >= give_up_at:
                fix = (
                    "give the address of one that runs, wait for it longer (--wait-s), or start one there: "
                    f"`dspex pool start --address {self._address}`"
                )
                raise PoolUnreachable(address=self._address, waited_s=self._wait_s, reason=why, fix=fix)
            if not waiting:
                waiting = True
                self._say(f"there is no bridge at {self._address} ({why}); waiting {self._wait_s:g} s for one")
            time.sleep(LOOK_S)
        return True

    def _reap(self) -> None:
        now = time.monotonic()
        ended = {name: one for name, one in self._workers.items() if one[0].poll() is not None}
        for name, (process, started) in ended.items():
            del self._workers[name]
            if self._signals:
                continue
            self._say(f"worker {name} ended with {process.returncode}")
            if process.returncode == MISMATCH:
                raise DspexError(f"the bridge at {self._address} speaks another version: install the same at both ends")
            self._deaths = self._deaths + 1 if process.returncode and now - started < LIVED_S else 0
            self._start_at = now + back_off_s(self._deaths)
        if self._deaths >= MOST_DEATHS:
            raise DspexError(f"{self._deaths} workers in a row ended soon after their start; what they say is above")
