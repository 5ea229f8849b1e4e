"""A signal ends a run: its trials are cancelled in the workers, what is done is kept, nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.client import PoolClient

PROGRAM = """
import asyncio

def note(log, what):
    with open(log, "a") as file:
        file.write(what + "\\n")

async def program(x, k, log):
    note(log, f"started {x} {k}")
    if k == 2 and x >= 12:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            note(log, f"cancelled {x} {k}")
            raise
    return x * k

def right(example, outputs):
    return outputs == example.labels["y"]
"""
DECLARATION = """
from dspex_pipelines import ConfigurationSpace, Dataset, Evaluation, Integer

EVALUATION = Evaluation(
    name="waits",
    dataset=Dataset(
        source=lambda: [{{"x": x, "y": x, "log": {log!r}}} for x in range(20)], inputs=("x", "log"), labels=("y",)
    ),
    program="program:program",
    metrics=("program:right",),
    space=ConfigurationSpace(variables=(Integer(name="k", low=1, high=2, points=(1, 2)),)),
    timeout_s=3600.0,
    max_concurrency=16,
)
"""
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from dspex_pipelines.cli.commands import main; main()", "evaluate"]


@pytest.fixture
def folder(tmp_path: Path, runtime_root: Path) -> Iterator[Path]:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "evaluation.py").write_text(DECLARATION.format(log=str(tmp_path / "log")))
    (tmp_path / "log").touch()
    yield tmp_path
    local_pool.stop(runtime_root=runtime_root / "cancel" / "dspex")


def said(folder: Path, what: str) -> int:
    return sum(line.startswith(what) for line in (folder / "log").read_text().splitlines())


def wait_for(folder: Path, what: str, count: int, process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 90
    while said(folder, what) < count:
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.02)


def kept(folder: Path) -> list[tuple[int, int]]:
    """Status and number of the executions in the journal."""
    path = folder / "home" / "storage" / "dspex" / "journal.sqlite"
    if not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(path)) as journal, contextlib.suppress(sqlite3.OperationalError):
        return journal.execute("SELECT status, count(*) FROM executions GROUP BY status").fetchall()
    return []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_cancels_the_trials_and_keeps_what_is_done(
    folder: Path, runtime_root: Path, number: signal.Signals
) -> None:
    code, errors = ended_by(number, COMMAND, folder, runtime_root)
    if number != signal.SIGKILL:
        assert code == 130, errors
        assert "interrupted; what is done is kept" in errors
        assert "Traceback" not in errors


def test_a_step_in_a_process_of_its_own_ends_with_the_run(folder: Path, runtime_root: Path) -> None:
    (folder / "defs.py").write_text(
        "from evaluation import EVALUATION\nfrom dspex_pipelines import build_evaluation\n\n"
        "defs = build_evaluation(EVALUATION)\n"
    )
    (folder / "home").mkdir()
    job = [sys.executable, "-m", "dagster", "job", "execute", "-f", "defs.py", "-j", "waits_job"]
    ended_by(signal.SIGKILL, [*job, "--tags", '{"dagster/partition": "all"}'], folder, runtime_root)


def ended_by(number: signal.Signals, command: list[str], folder: Path, runtime_root: Path) -> tuple[int, str]:
    """Run a command until eight trials hang, and end it; return its code and what it said, once nothing is left."""
    runtime = runtime_root / "cancel"
    runtime.mkdir(exist_ok=True)
    paths = {"XDG_RUNTIME_DIR": str(runtime), "DAGSTER_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background may have had it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        wait_for(folder, "started", 40, process)
        deadline = time.monotonic() + 30
        while kept(folder) != [(0, 32)]:
            assert time.monotonic() < deadline, "what is done becomes durable while the others hang"
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    wait_for(folder, "cancelled", 8)
    assert kept(folder) == [(0, 32)], "all but the eight that hang"
    (pool,) = local_pool.status(runtime_root=runtime / "dspex")

    async def left() -> tuple[int, int, int]:
        async with PoolClient(pool.address) as client:
            status = await client.status()
            return status.in_flight, status.queue_depth, status.clients

    # Only the client that asks.
    deadline = time.monotonic() + 30
    while (found := asyncio.run(left())) != (0, 0, 1):
        assert time.monotonic() < deadline, found
    return process.returncode, errors
