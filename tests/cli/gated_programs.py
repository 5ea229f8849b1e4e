"""Programs that a test holds: they say that they have begun, and go on once nobody has the gate locked."""

from __future__ import annotations

import fcntl
from pathlib import Path


def held(begun: str, gate: str) -> str:
    Path(begun).touch()
    with open(gate) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
    return "done"


def one(example, outputs) -> float:
    return 1.0
