"""One pool in a folder at a time: clients that come while one is being started, or ends."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dspex_pipelines.bridge import local_pool, stated_pool
from dspex_pipelines.bridge.pool_status import ask_status
from dspex_pipelines.bridge.stated_pool import StatedPool
from dspex_pipelines.errors import PoolUnreachable
from tests.bridge.test_local_pool import until, workers
from tests.cli.conftest import Shell
from tests.cli.test_stopping import bridge_at, prepare_gate

CLIENT = (
    sys.executable,
    "-c",
    """
import signal, time
from dspex_pipelines.bridge import local_pool

signal.signal(signal.SIGINT, signal.default_int_handler)
sleep, start_supervisor = time.sleep, local_pool.start_supervisor

def wait(for_s):
    print("waits", flush=True)
    sleep(for_s)

def start(*arguments, **options):
    print("starts", flush=True)
    start_supervisor(*arguments, **options)

time.sleep, local_pool.start_supervisor = wait, start
with local_pool.lease(workers=1, slots=1) as lease:
    print(lease.address, flush=True)
    signal.pause()
""",
)


def told(client: subprocess.Popen[str]) -> str:
    assert client.stdout is not None
    return client.stdout.readline().strip()


def told_after_waiting(client: subprocess.Popen[str]) -> str:
    while (line := told(client)) == "waits":
        pass
    return line


def supervisors(root: Path) -> list[int]:
    """The processes that have a pool in one of the folders there."""
    found = {
        process.pid: process.info["ppid"]
        for process in psutil.process_iter(["cmdline", "ppid"])
        if "dspex_pipelines.bridge.supervisor" in (command := process.info["cmdline"] or ())
        and any(part.startswith(str(root)) for part in command)
    }
    # A child has its parent's command line for a moment.
    return [pid for pid, parent in found.items() if parent not in found]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_a_pool_whose_starter_is_gone_is_the_next_ones(shell: Shell, number: signal.Signals) -> None:
    gate = prepare_gate(shell)
    first = shell.start(command=CLIENT)
    assert told(first) == "starts"
    with bridge_at(gate):
        first.send_signal(number)
        first.wait()
        second = shell.start(command=CLIENT)
        assert told(second) == "waits"
    address = told_after_waiting(second)
    (pool,) = local_pool.status(runtime_root=shell.root)
    assert address == pool.address
    assert supervisors(shell.root) == [pool.pid]


def attached(address: str) -> int:
    return len(asyncio.run(ask_status(address, within_s=5)).workers)


def test_a_pool_that_ends_leaves_its_successor_alone(shell: Shell) -> None:
    first = shell.start(command=CLIENT)
    assert told(first) == "starts"
    address = told(first)
    (pool,) = local_pool.status(runtime_root=shell.root)
    until(lambda: attached(address) == 1)
    (worker,) = workers(pool)
    # It is told to end and cannot.
    worker.suspend()
    os.kill(pool.pid, signal.SIGTERM)
    until(lambda: not local_pool.status(runtime_root=shell.root))
    second = shell.start(command=CLIENT)
    assert told(second) == "waits"
    worker.resume()
    assert told_after_waiting(second) == "starts"
    assert told_after_waiting(second) == address
    until(lambda: attached(address) == 1)
    (successor,) = local_pool.status(runtime_root=shell.root)
    assert successor.pid != pool.pid


def test_a_pool_that_neither_serves_nor_ends_is_named(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    with local_pool.lease(workers=1, slots=1, idle_s=0, runtime_root=shell.root) as lease:
        folder = lease.runtime_dir
    until(lambda: not local_pool.status(runtime_root=shell.root))
    waited: list[bool] = []
    with (folder / "pool.lock").open() as held, (folder / "clients.lock").open() as clients:
        fcntl.flock(held, fcntl.LOCK_EX)

        def wait(_: float) -> None:
            # Free: a pool that ends for being idle is not kept from it.
            fcntl.flock(clients, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(clients, fcntl.LOCK_UN)
            waited.append(True)
            monkeypatch.setattr(local_pool, "START_S", 0.0)
            monkeypatch.setattr(time, "monotonic", lambda: float("inf"))

        monkeypatch.setattr(time, "sleep", wait)
        with (
            pytest.raises(PoolUnreachable, match=r"neither serves nor ends; see \S+/pool.log\); end the process that"),
            local_pool.lease(workers=1, slots=1, idle_s=0, runtime_root=shell.root),
        ):
            pass
        monkeypatch.undo()
    assert waited


def test_a_start_goes_on_while_somebody_looks_whether_there_is_a_pool(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Starts(Exception):
        pass

    def starts(*_: object, **__: object) -> None:
        raise Starts

    monkeypatch.setattr(local_pool, "start_supervisor", starts)
    pool = StatedPool(address=f"unix:{shell.folder}/s")
    with pytest.raises(Starts):
        stated_pool.leave_running(pool, runtime_root=shell.root)
    (folder,) = shell.root.iterdir()
    with (folder / "pool.lock").open() as looks:
        fcntl.flock(looks, fcntl.LOCK_SH)
        monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(looks, fcntl.LOCK_UN))
        with pytest.raises(Starts):
            stated_pool.leave_running(pool, runtime_root=shell.root)
        monkeypatch.undo()
