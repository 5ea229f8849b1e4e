"""What the resources of a code location say reaches what they open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dspex_pipelines.bridge.local_pool import LocalPoolLease
from dspex_pipelines.engine.recycling import Recycling
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.orchestration import resources


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


def test_an_address_that_nobody_can_be_reached_at_is_refused_before_it_is_dialled() -> None:
    pool = resources.WorkerPoolResource(address="foo")
    with (
        pytest.raises(InvalidValue, match="host:port") as refused,
        pool.yield_for_execution(dg.build_init_resource_context()),
    ):
        pass
    assert (refused.value.field, refused.value.value) == ("worker_pool.address", "foo")
