"""What the pool's processes ask of the kernel, which only Linux answers, and how the end of one is told."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_WHY = {int(signal.SIGKILL): "; out of memory?"}
"""The kernel tells nobody but its own log. Who else has sent it knows that."""
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


def ending(code: int) -> str:
    """Return in words how a process ended: with that exit code, or by minus that signal."""
    if code >= 0:
        return f"ended with exit code {code}"
    told = f"was killed by signal {-code}"
    with contextlib.suppress(ValueError):
        # Of the real-time signals only the first and the last have a name.
        told += f" ({signal.Signals(-code).name}{_WHY.get(-code, '')})"
    return told
