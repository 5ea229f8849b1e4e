"""What the resources of a code location say reaches what they open."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.local_pool import LocalPoolLease
from dspex_pipelines.engine.recycling import Recycling
from dspex_pipelines.errors import PoolUnreachable
from dspex_pipelines.orchestration import resources
from dspex_pipelines.wire.import_path import add_folder


def test_the_local_pool_is_leased_as_the_resource_says(monkeypatch: pytest.MonkeyPatch) -> None:
    leased: list[dict[str, Any]] = []

    @contextmanager
    def lease(**options: Any) -> Iterator[LocalPoolLease]:
        leased.append(options)
        yield LocalPoolLease(address="unix:/nowhere", runtime_dir=Path("/nowhere"))

    monkeypatch.setattr(resources, "lease", lease)
    given = resources.WorkerPoolResource(workers=3, slots=5, idle_s=7, max_rss_mb=512, max_trials=1_000)
    for resource in (given, resources.WorkerPoolResource()):
        with resource.yield_for_execution(dg.build_init_resource_context()):
            pass
    assert leased[0] == {
        "workers": 3,
        "slots": 5,
        "idle_s": 7.0,
        "recycling": Recycling(max_rss_mb=512, max_trials=1_000),
        "environment": {},
    }
    assert leased[1]["recycling"] == Recycling()


def running() -> set[Path]:
    return {pool.runtime_dir for pool in local_pool.status()}


def test_a_pool_that_is_started_ahead_is_the_one_that_runs_use_and_is_held(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # of which there is no pool yet
    add_folder(tmp_path)
    before = running()
    resource = resources.WorkerPoolResource(workers=1, idle_s=0)
    with resource.ahead():
        for thread in threading.enumerate():
            if thread.name == "pool-ahead":
                thread.join()
        (started,) = running() - before
        with resource.yield_for_execution(dg.build_init_resource_context()) as used:
            assert used._address == f"unix:{started / 'bridge.sock'}"
        with (started / "clients.lock").open("a") as clients, pytest.raises(BlockingIOError):
            fcntl.flock(clients, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (started / "clients.lock").open("a") as clients:
        fcntl.flock(clients, fcntl.LOCK_EX)  # nobody holds it now


@pytest.mark.parametrize("address", ["", "unix:/nowhere"], ids=["local", "at-an-address"])
def test_where_no_pool_can_be_started_ahead_it_is_the_run_that_says_so(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def lease(**_: Any) -> LocalPoolLease:
        asked.append("local")
        raise PoolUnreachable(address="unix:/here", waited_s=0, reason="it is full")

    monkeypatch.setattr(resources, "lease", lease)
    resource = resources.WorkerPoolResource(address=address)
    with resource.ahead():
        pass
    assert asked == ([] if address else ["local"])
    if not address:
        held = resource.yield_for_execution(dg.build_init_resource_context())
        with pytest.raises(PoolUnreachable, match="it is full"), held:
            pass
