"""How much room there is on a disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from rich.filesize import decimal

from dspex_pipelines.cli.doctor.findings import Finding, warning

LEAST_BYTES = 500_000_000


def room(folder: Path) -> Iterator[Finding]:
    """Warn where little is free."""
    free = shutil.disk_usage(folder).free
    if free < LEAST_BYTES:
        yield warning(f"{decimal(free)} are free at {folder}", "make room: outcomes, logs and results are kept on disk")
