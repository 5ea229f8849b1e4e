"""The programs of the campaign. Each trial does what its example says: nothing special, or something to its process.

They import nothing of the project, so that its version does not change with it. What the trials did is written to the
file that `CHAOS_CALLS` names.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAUSE_S = 0.05
"""So long a healthy trial takes, as if it waited for a language model."""
HUGE = 20 << 20
LARGE = 2 << 20
FOR_EVER_S = 3_600.0
RECOVERS_AFTER = 2
_WORDS = ("north", "east", "south", "west", "up", "down")


class Unlike:
    """Nothing that can be sent."""


def answer(x: int, k: int) -> dict[str, Any]:
    """Return what a healthy trial returns."""
    return {"x": x, "k": k, "y": x * k, "share": k / (x + 1)}


async def awaited(x: int, act: str, at: int, k: int) -> Any:
    """Run on the program loop."""
    act = act if k == at else ""
    _note("awaited", x, k, act)
    if act == "sleeps":
        await asyncio.sleep(FOR_EVER_S)
    await asyncio.sleep(PAUSE_S)
    return _act("awaited", x, k, act)


def threaded(x: int, act: str, at: int, k: int) -> Any:
    """Run in a thread."""
    act = act if k == at else ""
    _note("threaded", x, k, act)
    time.sleep(FOR_EVER_S if act == "sleeps" else PAUSE_S)
    return _act("threaded", x, k, act)


def alone(x: int, act: str, at: int, k: int) -> Any:
    """Run in a process of its own."""
    act = act if k == at else ""
    _note("alone", x, k, act)
    time.sleep(FOR_EVER_S if act == "sleeps" else PAUSE_S)
    return _act("alone", x, k, act)


def share(example: Any, outputs: Any) -> dict[str, float | bool]:
    """Judge: a number and a boolean."""
    if outputs.get("judge") == "raises":
        raise LookupError("no judgement")
    return {"of": outputs["share"], "right": outputs["y"] == example.labels["y"] * outputs["k"]}


def _act(plan: str, x: int, k: int, act: str) -> Any:
    outputs = answer(x, k)
    if act in RETURNS:
        return RETURNS[act](outputs)
    if act in DOES:
        DOES[act]()
    elif act == "recovers":
        if (tries := _tries(plan, x, k)) <= RECOVERS_AFTER:
            raise ConnectionError(f"try {tries}")
    elif act == "wanders":
        # Another error each time: no fingerprint ends it, only the cap of its type.
        raise ConnectionError(_WORDS[_tries(plan, x, k) % len(_WORDS)])
    elif act in RAISES:
        error = RAISES[act]()
        raise error
    return outputs


def _spin() -> None:
    while True:
        pass


def _hold_computing() -> None:
    """Native code that computes and keeps the interpreter's lock."""
    re.match(r"(a+)+$", "a" * 64 + "b")


def _hold_waiting() -> None:
    """Native code that waits and keeps the interpreter's lock."""
    ctypes.PyDLL(None).sleep(int(FOR_EVER_S))


def _close_descriptors() -> None:
    """Take its sockets from the process too, which does not survive that."""
    os.closerange(3, 4_096)


def _shout() -> None:
    print("x" * (6 << 20), flush=True)


RETURNS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "huge": lambda outputs: {**outputs, "text": "x" * HUGE},
    "large": lambda outputs: {**outputs, "text": "x" * LARGE},
    "unserialisable": lambda outputs: {**outputs, "text": Unlike()},
    "infinite": lambda outputs: {**outputs, "share": float("inf")},
    "metric raises": lambda outputs: {**outputs, "judge": "raises"},
}
RAISES: dict[str, Callable[[], BaseException]] = {
    "raises": lambda: ValueError("not liked"),
    "quits": lambda: SystemExit(4),
    "never recovers": lambda: ConnectionError("never"),
}
DOES: dict[str, Callable[[], object]] = {
    "kills": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfaults": lambda: ctypes.string_at(0),
    "exits": lambda: os._exit(3),
    "spins": _spin,
    "holds computing": _hold_computing,
    "holds waiting": _hold_waiting,
    "moves": lambda: os.chdir("/"),
    "closes descriptors": _close_descriptors,
    "shouts": _shout,
}


def _note(plan: str, x: int, k: int, act: str) -> None:
    _append(Path(os.environ["CHAOS_CALLS"]), f"{plan} {x} {k} {act}\n")


def _tries(plan: str, x: int, k: int) -> int:
    """Count how often this trial came so far, over all processes that it ran in."""
    path = Path(os.environ["CHAOS_CALLS"]).with_name(f"tries-{plan}-{x}-{k}")
    _append(path, ".")
    return path.stat().st_size


def _append(path: Path, text: str) -> None:
    """In one write, which the system does not mix with those of others."""
    for _ in range(3):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        # Another trial of this process may close it at any moment; that is not this one's failure.
        with contextlib.suppress(OSError):
            os.write(descriptor, text.encode())
            os.close(descriptor)
            return
