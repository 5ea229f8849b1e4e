"""Programs that hang or kill their process, and healthy neighbours.

`calls` counts in a file who was run; those that hang note in `began` when they begin to (the system's monotonic clock).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import signal
import time


def _note(calls: str, x: int) -> None:
    with open(calls, "a") as file:
        file.write(f"{x}\n")


def _begins(began: str) -> None:
    with open(began, "a") as file:
        file.write(f"{time.monotonic()}\n")


async def healthy(x: int, calls: str) -> int:
    _note(calls, x)
    await asyncio.sleep(0.05)
    return x


def sleeps(x: int, bad: int, began: str) -> int:
    if x == bad:
        _begins(began)
        time.sleep(3600)
    time.sleep(0.1)
    return x


async def sleeps_later(x: int, bad: int, began: str) -> int:
    if x == bad:
        _begins(began)
        await asyncio.sleep(3600)
    await asyncio.sleep(0.1)
    return x


def spins(x: int, bad: int, began: str) -> int:
    if x == bad:
        _begins(began)
        while True:
            pass
    time.sleep(0.1)
    return x


async def spins_later(x: int, bad: int, began: str) -> int:
    """Hold the program loop, which every other coroutine of its worker needs."""
    if x == bad:
        _begins(began)
        while True:
            pass
    await asyncio.sleep(0.1)
    return x


def holds_computing(x: int, bad: int, began: str) -> int:
    """Native code that computes and keeps the interpreter's lock."""
    if x == bad:
        _begins(began)
        re.match(r"(a+)+$", "a" * 64 + "b")
    time.sleep(0.1)
    return x


async def holds_later(x: int, bad: int, began: str) -> int:
    if x == bad:
        _begins(began)
        re.match(r"(a+)+$", "a" * 64 + "b")
    await asyncio.sleep(0.1)
    return x


def holds_waiting(x: int, bad: int, began: str) -> int:
    """Native code that waits and keeps the interpreter's lock."""
    if x == bad:
        _begins(began)
        ctypes.PyDLL(None).sleep(3600)
    time.sleep(0.1)
    return x


HANGS = {"sleeps": sleeps, "spins": spins, "holds_computing": holds_computing, "holds_waiting": holds_waiting}


def hangs_somehow(x: int, how: str, began: str) -> int:
    """Hang in the way of that name; succeed for none."""
    if how:
        HANGS[how](x, x, began)
    time.sleep(0.1)
    return x


def kills(x: int, bad: int) -> int:
    if x == bad:
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(0.05)
    return x


def exits(x: int, bad: int) -> int:
    if x == bad:
        os._exit(3)
    time.sleep(0.05)
    return x


def is_killed(x: int, bad: int) -> int:
    if x == bad:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return x


def always_kills(x: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return x
