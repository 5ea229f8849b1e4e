"""One timer of a loop, which is only ever set to be earlier."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls *ring* at the earliest of the times that it was set to since it last rang; times are the loop's clock."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._handle: asyncio.Handle | None = None
        # Not asked of the handle: uvloop's has no time where that has passed already.
        self._due = 0.0

    def set(self, due: float | None) -> None:
        """Ring at *due* at the latest; None changes nothing."""
        if due is None or (self._handle is not None and self._due <= due):
            return
        self.cancel()
        self._due = due
        self._handle = asyncio.get_running_loop().call_at(due, self._rings)

    def cancel(self) -> None:
        """Do not ring."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _rings(self) -> None:
        self._handle = None
        self._ring()
