"""The processes of a campaign's pool: who they are, and whether any is left."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil

from dspex_pipelines.bridge import local_pool

TOKEN = "CHAOS_TOKEN"
"""An environment variable by which everything that a campaign starts is known, however it was started."""


class PoolProcesses:
    """What runs of the local pool below *root* at the moment of asking."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def supervisor(self) -> psutil.Process | None:
        """Return the pool's parent."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for status in local_pool.status(runtime_root=self._root):
                return psutil.Process(status.pid)
        return None

    def bridge(self) -> psutil.Process | None:
        """Return the bridge."""
        return next(self._children("dspex_pipelines.bridge"), None)

    def workers(self) -> list[psutil.Process]:
        """Return the ordinary workers. Those of the quarantine are spared, so that who dies there has deserved it."""
        return [one for one, command in self._commands("dspex_pipelines.worker") if "--quarantine" not in command]

    def _children(self, module: str) -> Iterator[psutil.Process]:
        return (process for process, _ in self._commands(module))

    def _commands(self, module: str) -> Iterator[tuple[psutil.Process, list[str]]]:
        supervisor = self.supervisor()
        if supervisor is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in supervisor.children():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    command = child.cmdline()
                    if module in command:
                        yield child, command


def send(process: psutil.Process, number: signal.Signals) -> bool:
    """Send a signal; return whether the process was still there."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
        return True
    return False


def of_campaign(token: str) -> list[psutil.Process]:
    """Return every process that has inherited *token*, but this one."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(TOKEN) == token:
                found.append(process)
    return found


def described(process: psutil.Process) -> str:
    """Return what a person needs to know of a process."""
    with contextlib.suppress(psutil.Error):
        parent = process.parent()
        above = parent.pid if parent else 0
        return f"pid {process.pid}, {process.status()}, child of {above}: {' '.join(process.cmdline())}"
    return f"pid {process.pid}, gone by now"
