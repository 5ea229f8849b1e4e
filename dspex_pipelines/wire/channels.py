"""Dialling: a channel to the other end of a wire."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

_FIRST_S = 0.001
_MOST_S = 0.05


class Channel(Protocol):
    """What of gRPC's is looked at."""

    def get_state(self, try_to_connect: bool = False) -> Any:  # noqa: FBT001, FBT002 - as gRPC has it
        """Return how far it is connected."""
        ...


async def connected(channel: Channel, *, within_s: float) -> None:
    """Return once the channel is ready; raises `TimeoutError`.

    By looking, not by `channel_ready`: a look that is given up leaves nothing behind that comes in when the loop is
    closed.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + within_s
    wait_s = _FIRST_S
    while channel.get_state(try_to_connect=True).name != "READY":
        if loop.time() > give_up_at:
            raise TimeoutError
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, _MOST_S)
