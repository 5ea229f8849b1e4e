"""What the pool's processes ask of the kernel: their own end, and which process a pid is. Only Linux has any of it."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have this process sent a signal when the thread that started it ends, however that comes about."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, number)


def offer_to_oom_killer(score: int) -> None:
    """Have this process, and what it starts, chosen before others when memory runs out.

    It counts as if it held *score* thousandths of the machine's memory more than it does.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(score), encoding="ascii")


def started_at(pid: int) -> str:
    """Return what tells a process from a later one with its pid; empty when there is none."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    return ""
