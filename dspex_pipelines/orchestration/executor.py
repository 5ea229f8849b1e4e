"""The executor of evaluations: a process for each step, forked from one in which all that it needs is loaded."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import dagster as dg
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.multiprocess import MultiprocessExecutor  # its options leave out `fork`

from dspex_pipelines.orchestration.step_pools import claim_in_turn

# Where steps cannot fork from the run's own process, they fork from a server that has imported all this.
PRELOADED = [
    "dagster",
    "dagster._core.storage.sqlite_storage",
    "dagster._core.storage.event_log.sqlite.sqlite_event_log",
    "sqlalchemy.dialects.sqlite",
    "alembic.runtime.migration",
    "dspex_pipelines.orchestration.build",
    "dspex_pipelines.orchestration.component.component",
]
_THREADS = {"termination-handler", "QueueFeederThread"}
"""Threads of Dagster's own that a run's process may have: they wait, and hold nothing that a step takes."""
_STANDARD = 3
"""Descriptors below this are the standard streams."""


@cache
def shipped_executor() -> dg.ExecutorDefinition:
    """Return the multiprocess executor over warm processes, one `run_trials` step at a time.

    One at a time makes `max_concurrency` hold for the run; the step itself fills the pool.
    """

    @dg.executor(name="multiprocess", requirements=dg.multiple_process_executor_requirements())
    def multiprocess(context: dg.InitExecutorContext) -> dg.Executor:
        claim_in_turn(context.instance)
        forks = may_fork()
        if forks:
            # What is loaded by now is never looked at by the collector again, which would copy it into each step.
            gc.collect()
            gc.freeze()
        return MultiprocessExecutor(
            max_concurrent=2,
            retries=RetryMode.ENABLED,
            start_method="fork" if forks else "forkserver",
            explicit_forkserver_preload=PRELOADED,
            tag_concurrency_limits=[{"key": "dspex/step", "value": "run_trials", "limit": 1}],
        )

    return multiprocess


def may_fork() -> bool:
    """Return whether a copy of this process is as good as a new one that has loaded the same.

    It is not where the definitions have started threads of Python's, which a copy lacks, or opened sockets, which
    copies would share, or channels of gRPC, told by the names of its own threads. Other native threads, files (a
    connection to SQLite too) and pipes are not seen: definitions must not hold them.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return False
    if any(one.name not in _THREADS for one in threading.enumerate() if one is not threading.main_thread()):
        return False
    if any(_said(name.read_text).startswith("grpc") for name in Path("/proc/self/task").glob("*/comm")):
        return False
    opened = (entry for entry in Path("/proc/self/fd").iterdir() if int(entry.name) >= _STANDARD)
    return not any(_said(entry.readlink).startswith("socket:") for entry in opened)


def _said(read: Callable[[], object]) -> str:
    """Return what a file of the system's says; nothing where thread or descriptor is gone by now."""
    try:
        return str(read())
    except OSError:
        return ""
