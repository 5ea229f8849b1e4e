"""Worker processes, whoever starts them: a supervisor for its own pool, a crew for one that runs elsewhere."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Sequence
from typing import IO

from dspex_pipelines.engine.recycling import Recycling
from dspex_pipelines.wire.processes import die_with_parent, offer_to_oom_killer

COMMAND = (sys.executable, "-m", "dspex_pipelines.worker")
FEW_DEATHS = 3
"""So many workers in a row may die without an answer to any trial before the next ones have to wait."""
MOST_DEATHS = 16
"""So many end the pool: nothing that it is given will ever run."""
OOM_SCORE = 500
"""When memory runs out, the kernel takes workers first: it is programs that leak, and the bridge and the user's other
processes are to outlive that. For the pool it is the same as `kill -9`."""


def start_worker(
    address: str,
    *,
    slots: int,
    recycling: Recycling,
    quarantine: bool,
    log: IO[bytes] | None = None,
    command: Sequence[str] = COMMAND,
) -> tuple[str, subprocess.Popen[bytes]]:
    """Start a worker that ends with this process; return its name, which no other has, and its process.

    Raises `OSError` where the system has no process to give.
    """
    name = f"{'q' if quarantine else 'w'}-{secrets.token_hex(3)}"
    options = ["--address", address, "--worker-id", name, "--slots", str(slots)]
    options += ["--max-rss-mb", str(recycling.max_rss_mb), "--max-trials", str(recycling.max_trials)]
    process = subprocess.Popen(  # noqa: S603 - our own command
        [*command, *options, *(["--quarantine"] if quarantine else [])],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        preexec_fn=_become_worker,  # noqa: PLW1509 - this process has one thread
        process_group=0,
    )
    return name, process


def _become_worker() -> None:
    die_with_parent()
    offer_to_oom_killer(OOM_SCORE)


def back_off_s(deaths: int) -> float:
    """Return how long to wait after so many deaths in a row."""
    return min(5.0, 0.1 * 2.0 ** (deaths - FEW_DEATHS)) if deaths > FEW_DEATHS else 0.0
