"""Bare processes beside the pool: how long so many take that begin together."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def seconds_together(arguments: Sequence[str], *, processes: int) -> float:
    """Run Python with *arguments* in so many processes; return how long they take from "go" to the last "done".

    Each says "ready", reads a line, works, and says "done"; one that does not ends this process.
    """
    command = [sys.executable, *arguments]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for one in running:
        _expect(one, "ready")
    started = time.perf_counter()
    for one in running:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    for one in running:
        _expect(one, "done")
    taken_s = time.perf_counter() - started
    for one in running:
        one.communicate()
    return taken_s


def _expect(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    if process.stdout.readline().strip() != word:
        sys.exit(f"a bare process did not come to say {word}")
