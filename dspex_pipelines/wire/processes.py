"""What the pool's processes ask of the kernel about their end. Nothing of it is there on other systems than Linux."""

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
