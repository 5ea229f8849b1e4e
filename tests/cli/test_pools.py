"""`dspex pool status`: what pools tell, and pools that tell nothing."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.local_pool import LocalPoolStatus
from dspex_pipelines.bridge.pool_status import ModelStatus, PoolStatus, WorkerStatus
from dspex_pipelines.cli import pools
from dspex_pipelines.errors import ProtocolMismatch
from tests.cli.conftest import Run

WORKER = WorkerStatus(worker_id="w", pid=7, slots=256, in_flight=3, done=9, draining=False)
STATUS = PoolStatus(
    package_version="0",
    workers=(WORKER, WORKER),
    queue_depth=1_234,
    in_flight=6,
    sessions=1,
    clients=1,
    settled=18,
    workers_lost=0,
    draining=False,
)
LIMITED = ModelStatus(
    model="openai/[gpt]",
    state="limited",
    waiting=40,
    in_flight=3,
    granted=1_200,
    refused=7,
    failed=2,
    window=5.0,
    per_s=8.25,
    paused_for_s=0.0,
)
PAUSED = ModelStatus(
    model="local",
    state="paused",
    waiting=0,
    in_flight=0,
    granted=1,
    refused=0,
    failed=0,
    window=None,
    per_s=None,
    paused_for_s=12.34,
)


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let these pools run: by address, what they answer or raise."""

    def let(**answers: PoolStatus | Exception) -> None:
        found = tuple(
            LocalPoolStatus(pid=number, address=address, runtime_dir=Path(address))
            for number, address in enumerate(answers, start=1)
        )

        async def ask(address: str, *, within_s: float) -> PoolStatus:
            answer = answers[address]
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(pools.local_pool, "status", lambda: found)
        monkeypatch.setattr(pools, "ask_status", ask)

    return let


def test_a_pool_tells_its_work_and_its_models(run: Run, running: Callable[..., None]) -> None:
    running(here=replace(STATUS, models=(LIMITED, PAUSED)))
    done = run("pool", "status")
    assert done.exception is None
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    assert lines == [
        "pid 1 here",
        "2 workers with 512 slots, 6 in flight, 1,234 queued, 18 done",
        "model state in flight waiting per second granted refused failed paused for",
        "openai/[gpt] limited 3 of 5 40 8.25 1,200 7 2",
        "local paused 0 0 1 0 0 12.3 s",
    ]


def test_a_pool_that_called_no_model_has_no_table(run: Run, running: Callable[..., None]) -> None:
    running(here=STATUS)
    assert "model" not in run("pool", "status").output


def test_pools_are_told_as_json(run: Run, running: Callable[..., None]) -> None:
    running(here=replace(STATUS, models=(LIMITED,)), there=ProtocolMismatch(ours=2, theirs=1))
    here, there = json.loads(run("pool", "status", "--json").output)
    assert (here["pid"], here["address"], here["in_flight"], len(here["workers"])) == (1, "here", 6, 2)
    assert here["models"][0]["per_s"] == 8.25
    assert there["pid"] == 2
    assert "protocol" in there["problem"]


def test_no_pool_is_said_as_such(run: Run, running: Callable[..., None]) -> None:
    running()
    assert "No local pool runs" in run("pool", "status").output
    assert json.loads(run("pool", "status", "--json").output) == []


@pytest.mark.parametrize(
    ("arguments", "ended"),
    [
        (["here"], ["here"]),
        (["2"], ["there"]),
        (["--all"], ["here", "there"]),
    ],
)
def test_a_pool_is_ended_by_its_address_or_pid(
    run: Run,
    running: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    ended: list[str],
) -> None:
    running(here=STATUS, there=STATUS)
    given: list[str] = []

    def stop(chosen: Sequence[LocalPoolStatus]) -> int:
        given.extend(one.address for one in chosen)
        return len(chosen)

    monkeypatch.setattr(pools.local_pool, "stop", stop)
    assert run("pool", "stop", *arguments).output == f"{len(ended)} ended\n"
    assert given == ended


@pytest.mark.parametrize("argument", ["", "elsewhere"])
def test_no_pool_is_ended_where_it_is_not_said_which(
    run: Run, running: Callable[..., None], monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    running(here=STATUS, there=STATUS)
    monkeypatch.setattr(pools.local_pool, "stop", lambda *_: pytest.fail("something is ended"))
    told = str(run("pool", "stop", *filter(None, [argument])).exception)
    assert "\n  pid 1  here\n  pid 2  there" in told
    assert ("elsewhere" if argument else "--all") in told


def test_only_the_pools_that_are_named_are_ended(tmp_path: Path) -> None:
    children = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    both = [LocalPoolStatus(pid=one.pid, address=str(one.pid), runtime_dir=tmp_path) for one in children]
    try:
        threading.Thread(target=children[0].wait, daemon=True).start()
        assert local_pool.stop(both[:1]) == 1
        assert children[1].poll() is None
    finally:
        for one in children:
            one.kill()
            one.wait()


@pytest.fixture
def silent() -> Iterator[str]:
    """A socket that is listened to by nobody who answers."""
    with tempfile.TemporaryDirectory(prefix="dspex-t-") as folder, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{folder}/s")
        listening.listen()
        kept: list[socket.socket] = []

        def take() -> None:
            try:
                while True:
                    kept.append(listening.accept()[0])
            except OSError:
                return

        threading.Thread(target=take, daemon=True).start()
        yield f"unix:{folder}/s"
        for one in kept:
            one.close()


def test_pools_that_do_not_answer_cost_two_seconds_together(
    run: Run, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    addresses = (silent, silent, "unix:/nowhere/at/all")
    found = tuple(LocalPoolStatus(pid=9, address=address, runtime_dir=Path("x")) for address in addresses)
    monkeypatch.setattr(pools.local_pool, "status", lambda: found)
    began = time.monotonic()
    done = run("pool", "status")
    assert time.monotonic() - began < pools.ANSWER_S + 2
    assert done.exception is None
    assert done.output.count("it does not answer within 2 s") == 3
