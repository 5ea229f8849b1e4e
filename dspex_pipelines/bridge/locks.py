"""Locks that are files: held by every process that has one open, and let go of when the last of them has ended."""

from __future__ import annotations

import contextlib
import fcntl
import time
from pathlib import Path
from typing import IO

LOOK_S = 0.05


def try_lock(file: IO[str], *, shared: bool = False, within_s: float = 0.0) -> bool:
    """Take the lock that this file is, unless another has it for *within_s* seconds more; return whether it is taken.

    Others may have a *shared* one too.
    """
    give_up_at = time.monotonic() + within_s
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= give_up_at:
            return False
        time.sleep(LOOK_S)


def is_locked(path: Path) -> bool:
    """Return whether somebody has that lock to himself. For that moment nobody else can."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), path.open() as file:
        return not try_lock(file, shared=True)
    return False
