"""A real pool: one bridge and two workers in processes of their own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.client import PoolClient

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def runtime_root() -> Iterator[Path]:
    """A short folder: a socket's path has few bytes."""
    folder = Path(tempfile.mkdtemp(prefix="dspex-t-"))
    yield folder
    local_pool.stop(runtime_root=folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def pool_address(runtime_root: Path) -> Iterator[str]:
    with local_pool.lease(workers=2, slots=128, idle_s=60, cwd=ROOT, runtime_root=runtime_root) as lease:
        yield lease.address


@pytest.fixture
async def client(pool_address: str) -> AsyncIterator[PoolClient]:
    async with PoolClient(pool_address, connect_timeout_s=30) as opened:
        yield opened
