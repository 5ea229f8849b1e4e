"""How the workers of this pool's supervisor ended: it knows their exit codes, and the bridge only that a stream has."""

from __future__ import annotations

import asyncio
import contextlib

from dspex_pipelines.wire.processes import ending

TOLD_S = 1.0
"""A worker's end wakes the supervisor, which says how it was within milliseconds. A process may also live on after its
stream."""


class Endings:
    """What the supervisor says of its workers; nothing is known of those that others have started."""

    def __init__(self) -> None:
        self._codes: dict[str, asyncio.Future[int]] = {}

    def begin(self, worker_id: str) -> None:
        """The supervisor has started it."""
        self._codes[worker_id] = asyncio.get_running_loop().create_future()

    def end(self, worker_id: str, code: int) -> None:
        """Its process has ended with that code, or minus the signal that killed it."""
        if (told := self._codes.get(worker_id)) is not None and not told.done():
            told.set_result(code)

    def forget(self, worker_id: str) -> None:
        """Nobody will ask for it."""
        self._codes.pop(worker_id, None)

    def __contains__(self, worker_id: str) -> bool:
        return worker_id in self._codes

    async def of(self, worker_id: str) -> str:
        """Return in words how its process has ended, waiting for that a moment; empty where it is not said."""
        told = self._codes.get(worker_id)
        if told is not None:
            with contextlib.suppress(TimeoutError):
                return f"its process {ending(await asyncio.wait_for(told, TOLD_S))}"
        return ""
