"""Runs of `dspex evaluate` whose process was killed, so that nobody has said that they ended."""

from __future__ import annotations

import os
import socket

import dagster as dg

from dspex_pipelines.wire.processes import started_at

PROCESS = "dspex/process"
_GOING_ON = (
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)


def process_tags() -> dict[str, str]:
    """Return the run tags that say which process a run lives in."""
    return {PROCESS: f"{socket.gethostname()} {os.getpid()} {started_at(os.getpid())}"}


def end_abandoned_runs(instance: dg.DagsterInstance) -> int:
    """Report the runs of processes that are gone from this machine as failed; return how many.

    They also give back their slots in Dagster's pools, for which every later run would wait: only Dagster's daemon
    would see to that, which need not be running.
    """
    abandoned = [
        run for run in instance.get_runs(dg.RunsFilter(statuses=list(_GOING_ON))) if _is_gone(run.tags.get(PROCESS, ""))
    ]
    for run in abandoned:
        instance.report_run_failed(run, "its process is gone; outcomes so far are kept")
        if instance.event_log_storage.supports_global_concurrency_limits:
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return len(abandoned)


def _is_gone(process: str) -> bool:
    host, _, rest = process.partition(" ")
    pid, _, started = rest.partition(" ")
    return host == socket.gethostname() and pid.isdecimal() and started_at(int(pid)) != started
