"""A worker's process: its wire is its own, its output is nobody's, and what it starts ends with it."""

from __future__ import annotations

import asyncio
import os
import py_compile
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import psutil
import pytest

from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.bridge.hub import WorkerLink
from dspex_pipelines.bridge.server import Bridge
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.model.trial import Isolation
from tests.worker.conftest import metric, program, spec

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20


class Pool:
    """A bridge in this process, workers in theirs, and a client."""

    def __init__(self, bridge: Bridge, client: PoolClient) -> None:
        self.bridge = bridge
        self.client = client
        self.workers: list[Process] = []

    async def start_worker(self, *extra: str, cwd: Path = ROOT) -> WorkerLink:
        """Start a worker and return the bridge's end of its stream once it has said hello."""
        name = f"w-{len(self.workers)}"
        command = [sys.executable, "-m", "dspex_pipelines.worker", "--address", self.bridge.address]
        options = ["--worker-id", name, "--slots", "4", *extra]
        self.workers.append(await asyncio.create_subprocess_exec(*command, *options, cwd=cwd, stdout=PIPE, stderr=PIPE))
        await until(lambda: name in self.bridge.hub.workers)
        return self.bridge.hub.workers[name]

    async def run(
        self,
        name: str,
        *,
        isolation: Isolation = "shared",
        init: Mapping[str, object] | None = None,
        judge: str = "good",
        **inputs: object,
    ) -> TrialOutcome:
        """Run one trial, with a metric where that can be imported."""
        of = program(name, isolation=isolation, **(init or {}))
        judges = [] if ":" in name or not judge else [metric(judge)]
        session = await self.client.open_session(of, judges, ConfigurationSpace().to_json())
        version = (await self.client.set_variables(session, {})).version
        trial = spec(of, inputs or {"x": 2}, {})
        outcome = await self.client.execute(trial, session_id=session, version=version, timeout_s=0)
        self.client.commit(1)
        return outcome


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.01)


async def soon(answer: Awaitable[TrialOutcome]) -> TrialOutcome:
    return await asyncio.wait_for(answer, PATIENCE_S)


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    with tempfile.TemporaryDirectory(prefix="dspex-t-") as folder:
        async with (
            Bridge(f"unix:{folder}/bridge.sock", heartbeat_timeout_s=PATIENCE_S) as bridge,
            PoolClient(bridge.address) as client,
        ):
            pool = Pool(bridge, client)
            yield pool
            for worker in pool.workers:
                if worker.returncode is None:
                    worker.kill()
                await worker.communicate()


@pytest.fixture
def pipe(tmp_path: Path) -> Callable[[str], str]:
    """`pipe(name)` is what programs wait for until the test opens it."""

    def make(name: str) -> str:
        os.mkfifo(tmp_path / name)
        return str(tmp_path / name)

    return make


def open_gate(pipe: str) -> None:
    os.close(os.open(pipe, os.O_WRONLY))


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_a_program_that_blocks_the_loop_stops_no_heartbeat_and_no_neighbour(
    pool: Pool, pipe: Callable[[str], str], tmp_path: Path
) -> None:
    link = await pool.start_worker()
    pipes = {name: pipe(name) for name in ("threaded", "blocking")}
    started = {name: tmp_path / f"{name}-started" for name in pipes}
    trials = {}
    for name, entry in {"threaded": "waits", "blocking": "blocks"}.items():
        inputs = {"x": 1, "started": str(started[name]), "opened": pipes[name]}
        trials[name] = asyncio.create_task(pool.run(entry, **inputs))
        await until(started[name].exists)
    for _ in range(2):
        seen = link.last_seen
        await until(lambda seen=seen: link.last_seen > seen)
    await asyncio.to_thread(open_gate, pipes["threaded"])
    assert isinstance(await soon(trials["threaded"]), TrialResult)
    assert not trials["blocking"].done()
    await asyncio.to_thread(open_gate, pipes["blocking"])
    assert isinstance(await soon(trials["blocking"]), TrialResult)
    assert pool.bridge.hub.workers_lost == 0


async def test_what_programs_print_goes_to_the_log(pool: Pool) -> None:
    await pool.start_worker()
    assert isinstance(await soon(pool.run("prints")), TrialResult)
    (worker,) = pool.workers
    worker.terminate()
    output, log = await worker.communicate()
    assert output == b""
    assert b"said by a program 2\nwritten by a program\n" in log
    assert worker.returncode == 0


async def test_an_isolated_trial_has_a_process_of_its_own_and_dies_alone(pool: Pool) -> None:
    link = await pool.start_worker()
    outcomes = [await soon(pool.run("pid", isolation="process")) for _ in range(2)]
    outcomes.append(await soon(pool.run("pid")))
    pids = [outcome.outputs for outcome in outcomes]
    assert len(set(pids)) == 3
    assert pids[2] == link.pid
    assert isinstance(outcomes[0], TrialResult)
    assert outcomes[0].scores == {"good": True}
    dead = await soon(pool.run("dies", isolation="process"))
    assert isinstance(dead, TrialError)
    assert (dead.type, dead.retryable, dead.attempts) == (ErrorType.POISON, False, 2)
    assert "exit code 7" in dead.message
    assert [(attempt.number, attempt.type) for attempt in dead.history] == [(1, ErrorType.WORKER_LOST)]
    raised = await soon(pool.run("raises", isolation="process", x=0))
    assert isinstance(raised, TrialError)
    assert raised.type is ErrorType.PROGRAM_EXCEPTION
    assert "tests/worker/programs.py" in raised.traceback
    assert pool.bridge.hub.workers_lost == 0


@pytest.mark.parametrize("how", ["cancelled", "worker-killed", "worker-drained"])
async def test_an_isolated_trial_leaves_no_process(pool: Pool, tmp_path: Path, how: str) -> None:
    """Not even one that holds its interpreter and has started another."""
    link = await pool.start_worker()
    started = tmp_path / "started"
    trial = asyncio.create_task(pool.run("starts_another_and_holds", isolation="process", started=str(started)))
    await until(started.exists)
    family = psutil.Process(link.pid).children(recursive=True)
    assert {process.pid for process in family} >= set(map(int, started.read_text().split()))
    assert len(family) == 4, "its scribe, its fork parent, the trial, and what that has started"
    if how == "cancelled":
        trial.cancel()
        # Its slot is free again once it has ended.
        await until(lambda: pool.bridge.hub.dispatcher.stats().workers["w-0"].abandoned == 0)
        assert "w-0" in pool.bridge.hub.workers
        assert not gone(family.pop(0).pid)
        assert not gone(family.pop(0).pid)
    elif how == "worker-killed":
        pool.workers[0].kill()
    else:
        await pool.bridge.close()
    await until(lambda: all(gone(process.pid) for process in family))
    trial.cancel()


@pytest.mark.parametrize("name", ["forks", "forks_on_loop", "forks_and_gives_away"])
@pytest.mark.parametrize("how", ["returns", "raises", "exits", "awaits"])
async def test_a_fork_that_comes_back_ends_at_once(pool: Pool, name: str, how: str) -> None:
    await pool.start_worker()
    outcome = await soon(pool.run(name, judge="", how=how))
    assert isinstance(outcome, TrialResult)
    assert outcome.outputs != 0
    await until(lambda: gone(outcome.outputs))
    assert (await soon(pool.run("pid"))).outputs == pool.workers[0].pid


@pytest.mark.parametrize("how", ["returns", "raises"])
async def test_a_constructors_fork_that_comes_back_ends_at_once(pool: Pool, how: str) -> None:
    await pool.start_worker()
    outcome = await soon(pool.run("ForksWhenBuilt", init={"how": how}, judge="", x=1))
    assert isinstance(outcome, TrialResult)
    assert outcome.outputs != 0
    await until(lambda: gone(outcome.outputs))


async def test_a_metrics_fork_that_comes_back_ends_at_once(pool: Pool) -> None:
    await pool.start_worker()
    outcome = await soon(pool.run("returns_nothing", judge="forking", x=1))
    assert isinstance(outcome, TrialResult)
    assert outcome.scores["forking"] != 0
    await until(lambda: gone(int(outcome.scores["forking"])))


@pytest.mark.parametrize("isolation", ["shared", "process"])
async def test_a_fork_has_no_outcome(pool: Pool, isolation: Isolation) -> None:
    await pool.start_worker()
    outcome = await soon(pool.run("forks_and_waits", isolation=isolation, judge="", x=1))
    assert outcome.outputs == "parent"


@pytest.mark.parametrize("name", ["forks", "forks_on_loop", "forks_and_gives_away", "forks_in_hop"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_fork_outlives_its_trial_and_not_its_worker(pool: Pool, name: str, number: signal.Signals) -> None:
    await pool.start_worker()
    forked = (await soon(pool.run(name, judge="", how="stays"))).outputs
    assert isinstance(forked, int)
    assert (await soon(pool.run("pid"))).outputs == pool.workers[0].pid
    assert not gone(forked)
    pool.workers[0].send_signal(number)
    await until(lambda: gone(forked))


async def test_an_isolated_trial_finds_the_worker_as_it_was_started(pool: Pool) -> None:
    await pool.start_worker()
    (worker,) = pool.workers
    before = await soon(pool.run("finds", isolation="process"))
    for change in ("moves", "finds"):
        assert isinstance(await soon(pool.run(change)), TrialResult)
    after = await soon(pool.run("finds", isolation="process"))
    assert isinstance(before, TrialResult)
    assert before.outputs == after.outputs
    assert before.outputs["folder"] == str(ROOT)
    assert before.outputs["path"][0] == str(ROOT)
    # What libraries are to do without being asked is said after the start.
    assert before.outputs["environment"] == {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        **psutil.Process(worker.pid).environ(),
    }
    assert before.outputs["grpc"] == []
    assert before.outputs["descriptors"] <= 12


async def test_an_isolated_trial_of_a_dspy_module_is_run_and_counted_as_one(pool: Pool) -> None:
    await pool.start_worker()
    outcome = await soon(pool.run("tests.worker.dspy_modules:QA", isolation="process", question="Why?"))
    assert isinstance(outcome, TrialResult), outcome
    assert outcome.usage["calls"] == 1


async def test_a_worker_without_its_fork_parent_is_replaced(pool: Pool) -> None:
    link = await pool.start_worker()
    _, parent = psutil.Process(link.pid).children()
    parent.kill()
    trial = asyncio.create_task(pool.run("pid", isolation="process"))
    assert await asyncio.wait_for(pool.workers[0].wait(), PATIENCE_S) == 70
    await pool.start_worker("--quarantine")
    outcome = await soon(trial)
    assert isinstance(outcome, TrialResult)
    assert (outcome.attempts, outcome.worker) == (2, "w-1")


async def test_what_a_worker_cannot_begin_begins_elsewhere(pool: Pool, tmp_path: Path) -> None:
    """It has at most three threads, for four trials."""
    await pool.start_worker()
    opened = tmp_path / "opened"

    async def wait(x: int) -> TrialOutcome:
        return await pool.run("waits_long", x=x, started=str(tmp_path / f"started-{x}"), opened=str(opened))

    trials = [asyncio.create_task(wait(0))]
    await until((tmp_path / "started-0").exists)
    assert isinstance(await soon(pool.run("exhausts_threads")), TrialResult)
    trials += [asyncio.create_task(wait(x)) for x in (1, 2, 3)]
    await until(lambda: pool.bridge.hub.dispatcher.stats().workers["w-0"].draining)
    await pool.start_worker()
    for x in (1, 2, 3):
        await until((tmp_path / f"started-{x}").exists)
    opened.touch()
    outcomes = [await soon(trial) for trial in trials]
    assert [outcome.outputs for outcome in outcomes] == [0, 1, 2, 3]
    assert (outcomes[0].worker, outcomes[0].attempts) == ("w-0", 1)
    # One that came when it was known already has been sent to the other at once.
    returned = [outcome for outcome in outcomes if outcome.attempts == 2]
    assert returned
    for outcome in returned:
        assert isinstance(outcome, TrialResult)
        assert outcome.worker == "w-1"
        assert [(past.type, past.worker) for past in outcome.history] == [(ErrorType.WORKER_LOST, "w-0")]
    assert await asyncio.wait_for(pool.workers[0].wait(), PATIENCE_S) == 0
    assert pool.bridge.hub.workers_lost == 0
    _, log = await pool.workers[0].communicate()
    assert b"takes no more trials: no thread could be started" in log


async def test_a_program_cannot_keep_its_worker_from_being_told_to_end(pool: Pool) -> None:
    await pool.start_worker()
    assert isinstance(await soon(pool.run("ignores_signals")), TrialResult)
    (worker,) = pool.workers
    status = Path(f"/proc/{worker.pid}/status")

    def ignored() -> int:
        (mask,) = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigIgn")]
        return int(mask, 16) >> (signal.SIGTERM - 1) & 1

    await until(lambda: not ignored())
    worker.terminate()
    assert await asyncio.wait_for(worker.wait(), PATIENCE_S) == 0


async def test_an_edited_program_answers_anew_in_a_pool_that_lives(pool: Pool, project: Callable[..., Path]) -> None:
    text = "def program(x):\n    return {}\n"
    folder = project(edited_live=text.format(1))
    await pool.start_worker(cwd=folder)
    first = program("edited_live:program")
    session = await pool.client.open_session(first, [], ConfigurationSpace().to_json())
    version = (await pool.client.set_variables(session, {})).version

    async def run_first() -> TrialOutcome:
        trial = spec(first, {"x": 1}, {})
        return await soon(pool.client.execute(trial, session_id=session, version=version, timeout_s=0))

    assert (await run_first()).outputs == 1
    project(edited_live=text.format(2))
    assert (await soon(pool.run("edited_live:program"))).outputs == 2
    # Who has loaded the version before may still answer for it; who has not says that it is gone.
    assert (await run_first()).outputs == 1
    pool.workers[0].kill()
    await until(lambda: not pool.bridge.hub.workers)
    await pool.start_worker(cwd=folder)
    late = await run_first()
    assert isinstance(late, TrialError)
    assert late.type is ErrorType.PROGRAM_UNAVAILABLE


@pytest.mark.parametrize("isolation", ["shared", "process"])
async def test_a_fresh_worker_runs_what_is_written_and_not_what_was_compiled_of_an_earlier_source(
    pool: Pool, project: Callable[..., Path], isolation: Isolation
) -> None:
    """Sources of the same size, saved within a second: Python takes what was compiled of the one for the other."""
    imports = "from edited_helper import answer\n\n\n"
    calls = "def program(x):\n    from edited_late import answer as late\n\n    return [{}, answer(), late()]\n"
    answer = "def answer():\n    return {}\n"
    names = ("edited_live", "edited_helper", "edited_late")
    for number in (1, 2):
        texts = (imports + calls.format(number), answer.format(number), answer.format(number))
        folder = project(**dict(zip(names, texts, strict=True)))
        for name in names:
            os.utime(folder / f"{name}.py", (1_700_000_000, 1_700_000_000))
            if number == 1:
                mode = py_compile.PycInvalidationMode.TIMESTAMP
                py_compile.compile(str(folder / f"{name}.py"), doraise=True, invalidation_mode=mode)
    await pool.start_worker(cwd=folder)
    outcome = await soon(pool.run("edited_live:program", isolation=isolation))
    assert outcome.outputs == [2, 2, 2]


async def test_a_worker_told_to_end_finishes_what_it_runs(
    pool: Pool, pipe: Callable[[str], str], tmp_path: Path
) -> None:
    await pool.start_worker()
    started, opened = tmp_path / "started", pipe("opened")
    trial = asyncio.create_task(pool.run("waits", x=3, started=str(started), opened=opened))
    await until(started.exists)
    pool.workers[0].send_signal(signal.SIGTERM)
    await until(lambda: pool.bridge.hub.dispatcher.stats().workers["w-0"].draining)
    await pool.start_worker()
    other = await soon(pool.run("pid"))
    assert other.worker == "w-1"
    await asyncio.to_thread(open_gate, opened)
    outcome = await soon(trial)
    assert (outcome.outputs, outcome.attempts, outcome.worker) == (3, 1, "w-0")
    assert await asyncio.wait_for(pool.workers[0].wait(), PATIENCE_S) == 0


async def test_a_worker_of_another_protocol_says_so_and_ends(pool: Pool) -> None:
    code = (
        "import sys; from dspex_pipelines.worker import __main__ as worker, wire; "
        "wire.PROTOCOL_VERSION += 1; worker.main()"
    )
    options = ["--address", pool.bridge.address, "--worker-id", "later"]
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", code, *options, cwd=ROOT, stderr=PIPE)
    _, log = await asyncio.wait_for(worker.communicate(), PATIENCE_S)
    assert worker.returncode == 3
    assert b"same dspex-pipelines version" in log
    assert not pool.bridge.hub.workers
