"""What `dspex pool status` asks the pools that run."""

from __future__ import annotations

import asyncio

from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.bridge.pool_status import ModelStatus
from dspex_pipelines.errors import DspexError

_WITHIN_S = 2.0


def models_of(address: str) -> tuple[ModelStatus, ...]:
    """Return how calls to models go in the pool at *address*; nothing where it does not answer."""
    return asyncio.run(_models_of(address))


async def _models_of(address: str) -> tuple[ModelStatus, ...]:
    try:
        async with PoolClient(address, connect_timeout_s=_WITHIN_S) as client:
            return (await client.status()).models
    except DspexError:
        return ()
