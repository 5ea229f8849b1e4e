"""`dspex pool start` and `dspex worker`, as processes that are signalled and killed."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.bridge.pool_status import PoolStatus, ask_status
from dspex_pipelines.engine.program_versions import metric_version, program_version
from dspex_pipelines.errors import PoolUnreachable
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.space import Configuration, ConfigurationSpace
from dspex_pipelines.model.trial import Example, MetricSpec, ProgramSpec, TrialSpec
from tests.bridge.test_local_pool import family, gone, until
from tests.cli.conftest import Shell, line_of

PROGRAM = ProgramSpec(
    entry_point="tests.cli.gated_programs:held", version=program_version("tests.cli.gated_programs:held", {})
)
METRIC = MetricSpec(entry_point="tests.cli.gated_programs:one", version=metric_version("tests.cli.gated_programs:one"))


def serving(process: subprocess.Popen[str]) -> str:
    return line_of(process, "The pool serves at ").rpartition(" ")[2]


def status(address: str) -> PoolStatus | None:
    with contextlib.suppress(PoolUnreachable):
        return asyncio.run(ask_status(address, within_s=5))
    return None


def worker_pids(address: str) -> list[int]:
    told = status(address)
    return [worker.pid for worker in told.workers] if told else []


class Held:
    """A trial that waits for its gate."""

    def __init__(self, folder: Path) -> None:
        self.begun = folder / "begun"
        self.gate = folder / "gate"
        self._locked = self.gate.open("w")
        fcntl.flock(self._locked, fcntl.LOCK_EX)

    def spec(self, number: int = 0) -> TrialSpec:
        example = Example(example_id=str(number), inputs={"begun": str(self.begun), "gate": str(self.gate)})
        return TrialSpec(program=PROGRAM, example=example, configuration=Configuration({}), repeat=0, seed=0)

    def release(self) -> None:
        self._locked.close()


@contextlib.asynccontextmanager
async def session(address: str) -> AsyncIterator[Callable[[TrialSpec], Awaitable[TrialOutcome]]]:
    async with PoolClient(address, connect_timeout_s=30, reconnect_s=0.1) as client:
        opened = await client.open_session(PROGRAM, [METRIC], ConfigurationSpace().to_json())
        version = (await client.set_variables(opened, {})).version
        yield lambda spec: client.execute(spec, session_id=opened, version=version, timeout_s=60)


async def eventually(true: Callable[[], bool]) -> None:
    await asyncio.to_thread(until, true)


def test_a_pool_in_the_foreground_is_listed_and_ends_with_all_that_is_its(shell: Shell) -> None:
    process = shell.start("pool", "start", "--address", "127.0.0.1:0", "--workers", "1", "--slots", "4")
    address = serving(process)
    assert line_of(process, "evaluate") == f"dspex evaluate --pool-address {address}"
    assert f"worker_pool: {{config: {{address: '{address}'}}}}" in line_of(process, "Dagster")
    until(lambda: len(worker_pids(address)) == 1)
    (listed,) = json.loads(shell.run("pool", "status", "--json"))
    assert (listed["pid"], listed["address"], listed["workers"][0]["slots"]) == (process.pid, address, 4)
    processes = family(process.pid)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert told.splitlines()[-1] == "The pool has ended."
    assert all(map(gone, processes))
    assert "No local pool runs" in shell.run("pool", "status")


async def test_the_first_signal_finishes_what_was_accepted_and_takes_no_more(shell: Shell) -> None:
    process = shell.start("pool", "start", "--address", f"unix:{shell.folder}/s", "--workers", "1")
    address = await asyncio.to_thread(serving, process)
    held = Held(shell.folder)
    async with session(address) as execute:
        accepted = asyncio.ensure_future(execute(held.spec()))
        await eventually(held.begun.exists)
        process.send_signal(signal.SIGINT)
        await asyncio.to_thread(line_of, process, "Draining")
        while not (await ask_status(address, within_s=5)).draining:
            await asyncio.sleep(0.01)
        refused = await execute(held.spec(1))
        assert isinstance(refused, TrialError)
        assert refused.type is ErrorType.CANCELLED
        assert process.poll() is None
        held.release()
        outcome = await accepted
        assert isinstance(outcome, TrialResult)
        assert outcome.outputs == "done"
    told, _ = await asyncio.to_thread(process.communicate, None, 30)
    assert (process.returncode, told.splitlines()[-1]) == (0, "The pool has ended.")
    assert not (shell.folder / "s").exists()


async def test_the_second_signal_ends_it_whatever_runs(shell: Shell) -> None:
    process = shell.start("pool", "start", "--address", "127.0.0.1:0", "--workers", "1")
    address = await asyncio.to_thread(serving, process)
    held = Held(shell.folder)
    async with session(address) as execute:
        running = asyncio.ensure_future(execute(held.spec()))
        await eventually(held.begun.exists)
        process.send_signal(signal.SIGINT)
        await asyncio.to_thread(line_of, process, "Draining")
        processes = family(process.pid)
        process.send_signal(signal.SIGINT)
        await asyncio.to_thread(process.communicate, None, 30)
        assert process.returncode == 0
        assert all(map(gone, processes))
        with pytest.raises(Exception, match="interrupted|no worker pool answered"):
            await running


def test_a_killed_pool_leaves_nobody_and_its_address_is_free(shell: Shell) -> None:
    process = shell.start("pool", "start", "--address", f"unix:{shell.folder}/s", "--workers", "1")
    address = serving(process)
    until(lambda: len(worker_pids(address)) == 1)
    processes = family(process.pid)
    process.kill()
    process.wait()
    until(lambda: all(map(gone, processes)))
    assert local_pool.status(runtime_root=shell.root) == ()
    assert serving(shell.start("pool", "start", "--address", address, "--workers", "1")) == address


def test_a_detached_pool_stays_with_its_address_until_it_is_stopped(shell: Shell) -> None:
    told = shell.run("pool", "start", "--detach", "--address", "127.0.0.1:0", "--workers", "1")
    address = re.findall(r"serves at (\S+)", told)[0]
    (pool,) = local_pool.status(runtime_root=shell.root)
    assert f"pid {pool.pid}" in told
    assert pool.address == address
    (bridge,) = [one for one in psutil.Process(pool.pid).children() if "dspex_pipelines.bridge" in one.cmdline()]
    bridge.kill()
    # Another bridge, at the port that the first one was given.
    until(lambda: gone(bridge) and len(worker_pids(address)) == 1)
    processes = [psutil.Process(pool.pid), *family(pool.pid)]
    assert shell.run("pool", "stop") == "1 ended\n"
    assert all(map(gone, processes))


async def test_what_stop_finds_running_has_seconds_and_no_more(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    process = shell.start("pool", "start", "--address", "127.0.0.1:0", "--workers", "1")
    address = await asyncio.to_thread(serving, process)
    held = Held(shell.folder)
    monkeypatch.setattr(local_pool, "DRAIN_S", 0.2)
    async with session(address) as execute:
        running = asyncio.ensure_future(execute(held.spec()))
        await eventually(held.begun.exists)
        assert await asyncio.to_thread(lambda: local_pool.stop(runtime_root=shell.root)) == 1
        with pytest.raises(Exception, match="interrupted|no worker pool answered"):
            await running
    assert "Draining" in (await asyncio.to_thread(process.communicate))[0]


async def test_a_pool_that_may_be_idle_ends_once_its_client_has_gone(shell: Shell) -> None:
    process = shell.start("pool", "start", "--address", "127.0.0.1:0", "--workers", "1", "--idle-s", "2")
    address = await asyncio.to_thread(serving, process)
    held = Held(shell.folder)
    async with session(address) as execute:
        running = asyncio.ensure_future(execute(held.spec()))
        await eventually(held.begun.exists)
        # Longer than it may be idle.
        await asyncio.sleep(3)
        held.release()
        assert isinstance(await running, TrialResult)
    await asyncio.to_thread(process.communicate, None, 30)
    assert process.returncode == 0


def test_an_address_in_use_is_refused_and_its_pool_goes_on(shell: Shell) -> None:
    for given in ("127.0.0.1:0", f"unix:{shell.folder}/s"):
        address = serving(shell.start("pool", "start", "--address", given, "--workers", "1"))
        for more in ([], ["--detach"]):
            told = shell.run("pool", "start", "--address", address, *more, code=2)
            assert re.fullmatch(r"error: address: '\S+' is not accepted; it is in use; .*\n", told)
        assert status(address) is not None
    assert len(local_pool.status(runtime_root=shell.root)) == 2


def test_somebody_elses_port_and_file_are_left_alone(shell: Shell) -> None:
    (shell.folder / "file").write_text("mine")
    with socket.create_server(("127.0.0.1", 0)) as other:
        told = shell.run("pool", "start", "--address", f"127.0.0.1:{other.getsockname()[1]}", code=2)
    assert "it is in use" in told
    assert "a file that is no socket" in shell.run("pool", "start", "--address", f"unix:{shell.folder}/file", code=2)
    assert (shell.folder / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--address", "0.0.0.0:8080"], "address: '0.0.0.0:8080' is not accepted; give unix:/path or a loopback"),
        (["--address", "example.org:80"], "without authentication nothing else is served"),
        (["--address", "127.0.0.1:65536"], "give a port of at most 65,535"),
        (["--address", "8080"], "give unix:/path or a loopback host:port"),
        (["--address", "unix:/nowhere/at/all"], "/nowhere/at is no folder that can be written to"),
        (["--address", f"unix:/{'x' * 107}"], "107 bytes"),
        (["--workers", "-1"], "workers: -1 is not accepted"),
        (["--workers", "1025"], "workers: 1025 is not accepted"),
        (["--slots", "0"], "slots: 0 is not accepted"),
        (["--max-rss-mb", "-1"], "max_rss_mb: -1 is not accepted"),
        (["--max-trials", "-1"], "max_trials: -1 is not accepted"),
        (["--idle-s", "-1"], "idle_s: -1.0 is not accepted"),
        (["--idle-s", "nan"], "idle_s: nan is not accepted"),
    ],
    ids=lambda one: one if isinstance(one, str) else one[-1][:16],
)
def test_what_cannot_be_is_refused_in_a_line(shell: Shell, arguments: list[str], says: str) -> None:
    told = shell.run("pool", "start", *arguments, code=2)
    assert says in told
    assert len(told.splitlines()) == 1
    assert not shell.root.exists()


async def test_workers_join_are_replaced_and_come_back_to_a_new_bridge(shell: Shell) -> None:
    address = f"unix:{shell.folder}/s"
    crew = shell.start("worker", address, "--count", "2", "--slots", "3")
    await asyncio.to_thread(line_of, crew, "there is no bridge")
    bridge = await asyncio.to_thread(shell.bridge, address)
    await eventually(lambda: len(worker_pids(address)) == 2)
    first = await asyncio.to_thread(worker_pids, address)
    os.kill(first[0], signal.SIGKILL)
    await eventually(lambda: first[0] not in (now := worker_pids(address)) and len(now) == 2)
    second = await asyncio.to_thread(worker_pids, address)
    assert first[1] in second
    bridge.kill()
    await asyncio.to_thread(bridge.communicate)
    await asyncio.to_thread(shell.bridge, address)
    await eventually(lambda: len(now := worker_pids(address)) == 2 and not set(now) & set(second))
    held = Held(shell.folder)
    processes = family(crew.pid)
    async with session(address) as execute:
        running = asyncio.ensure_future(execute(held.spec()))
        await eventually(held.begun.exists)
        crew.send_signal(signal.SIGTERM)
        await asyncio.to_thread(line_of, crew, "those that run are finished")
        held.release()
        assert isinstance(await running, TrialResult)
    await asyncio.to_thread(crew.communicate, None, 30)
    assert crew.returncode == 0
    assert all(map(gone, processes))


async def test_a_second_signal_ends_workers_whatever_they_run(shell: Shell) -> None:
    address = f"unix:{shell.folder}/s"
    await asyncio.to_thread(shell.bridge, address)
    crew = shell.start("worker", address)
    held = Held(shell.folder)
    async with session(address) as execute:
        running = asyncio.ensure_future(execute(held.spec()))
        await eventually(held.begun.exists)
        processes = family(crew.pid)
        crew.send_signal(signal.SIGINT)
        await asyncio.to_thread(line_of, crew, "those that run are finished")
        crew.send_signal(signal.SIGINT)
        await asyncio.to_thread(crew.communicate, None, 30)
        await eventually(lambda: all(map(gone, processes)))
        running.cancel()


def test_killed_workers_of_a_killed_crew_are_gone(shell: Shell) -> None:
    address = f"unix:{shell.folder}/s"
    shell.bridge(address)
    crew = shell.start("worker", address)
    until(lambda: len(worker_pids(address)) == 1)
    processes = family(crew.pid)
    crew.kill()
    until(lambda: all(map(gone, processes)))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["unix:/nowhere", "--wait-s", "0"], "no worker pool answered at unix:/nowhere within 0 s (No such file"),
        (["127.0.0.1:1", "--wait-s", "0"], "no worker pool answered at 127.0.0.1:1 within 0 s (Connection refused"),
        (["foo"], "address: 'foo' is not accepted; give unix:/path or host:port"),
        (["unix:/nowhere", "--count", "0"], "count: 0 is not accepted"),
        (["unix:/nowhere", "--slots", "16385"], "slots: 16385 is not accepted"),
        (["unix:/nowhere", "--wait-s", "nan"], "wait_s: nan is not accepted"),
    ],
    ids=["socket", "port", "no-port", "count", "slots", "wait"],
)
def test_workers_without_a_bridge_end_with_its_address(shell: Shell, arguments: list[str], says: str) -> None:
    assert says in shell.run("worker", *arguments, code=2).splitlines()[-1]


def test_workers_without_a_bridge_are_told_what_their_command_takes(shell: Shell) -> None:
    told = shell.run("worker", "unix:/nowhere", "--wait-s", "0", code=2).splitlines()[-1]
    advice, _, other_command = told.partition("; ")[2].partition("`")
    assert "the address" in advice
    named = re.findall(r"--[a-z-]+", advice)
    taken = re.findall(r"--[a-z-]+", shell.run("worker", "--help"))
    assert named
    assert set(named) <= set(taken)
    assert other_command == "dspex pool start --address unix:/nowhere`"


def test_workers_that_only_die_end_the_crew(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from dspex_pipelines.bridge import crew
    from dspex_pipelines.errors import DspexError

    monkeypatch.setattr(crew, "MOST_DEATHS", 3)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    said: list[str] = []
    address = f"unix:{shell.folder}/s"
    shell.bridge(address)
    with pytest.raises(DspexError, match="3 workers in a row ended"):
        crew.Crew(address, say=said.append, command=(sys.executable, "-c", "import sys; sys.exit(70)")).run()
    assert sum("ended with 70" in line for line in said) == 3
