"""Programs and metrics of every shape, for the worker's tests."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@functools.cache
def gate(path: str) -> Future[None]:
    """Done once a writer has opened the pipe at *path*."""
    opened: Future[None] = Future()

    def wait() -> None:
        os.close(os.open(path, os.O_RDONLY))
        opened.set_result(None)

    threading.Thread(target=wait, daemon=True).start()
    return opened


def sync_function(x: int, k: int) -> dict[str, object]:
    return {"x": x, "k": k, "thread": threading.current_thread().name}


async def async_function(x: int, k: int) -> dict[str, object]:
    await asyncio.sleep(0)
    return {"x": x, "k": k, "thread": threading.current_thread().name}


async def learns_a_key(x: str, k: int) -> str:
    """Do as a program does that reads its key when it needs it, and say too much."""
    if k > 1:
        os.environ["LEARNT_API_KEY"] = x
    return f"{k}: {x}"


def seeded(x: int, seed: int) -> list[int]:
    return [x, seed]


class Shared:
    """Variables are arguments of the call: one instance for all configurations."""

    def __init__(self, *, offset: int = 0) -> None:
        self.offset = offset

    def __call__(self, x: int, k: int) -> dict[str, object]:
        return {"sum": x + k + self.offset, "instance": id(self)}


class Constructed:
    """Variables are arguments of the constructor: an instance for each configuration."""

    built: ClassVar[list[int]] = []

    def __init__(self, *, k: int, offset: int = 0) -> None:
        self.k, self.offset = k, offset
        Constructed.built.append(k)

    def __call__(self, x: int) -> dict[str, object]:
        return {"sum": x + self.k + self.offset, "instance": id(self)}


class Configured:
    """Variables go to `configure`: an instance for each configuration."""

    def __init__(self, *, offset: int = 0) -> None:
        self.offset = offset

    def configure(self, variables: Mapping[str, int]) -> None:
        self.k = variables["k"]

    async def __call__(self, x: int) -> dict[str, object]:
        return {"sum": x + self.k + self.offset, "instance": id(self)}


class Unbuildable:
    def __init__(self, *, k: int) -> None:
        raise LookupError(f"nothing for {k}")

    def __call__(self, x: int) -> int:
        return x


class _Awaitable:
    def __call__(self, x: int) -> object:
        return _later(x)


async def _later(x: int) -> int:
    if x < 0:
        raise SystemExit(x)
    return x


awaitable = _Awaitable()


@dataclass
class Point:
    x: int
    y: int


def point(x: int) -> Point:
    return Point(x, x + 1)


def inner(x: int) -> int:
    return 1 // x


def raises(x: int) -> int:
    return inner(x)


async def raises_later(x: int) -> int:
    await asyncio.sleep(0)
    return inner(x)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it cannot be said")


def raises_unspeakable(x: int) -> int:
    raise Unspeakable


def exits(x: int) -> int:
    raise SystemExit(x)


async def exits_later(x: int) -> int:
    raise SystemExit(x)


async def cancels_itself(x: int) -> int:
    raise asyncio.CancelledError


class BadDump:
    def model_dump(self) -> object:
        raise RuntimeError("no dump today")


def bad_dump(x: int) -> object:
    return BadDump()


async def bad_dump_later(x: int) -> object:
    return BadDump()


def an_object(x: int) -> object:
    return {"deep": [1, {"er": object()}]}


def prints(x: int) -> int:
    print("said by a program", x, flush=True)
    os.write(1, b"written by a program\n")
    return x


def pid(x: int) -> int:
    return os.getpid()


def dies(x: int) -> int:
    os._exit(7)


def forks(how: str) -> int:
    """Return the number of a process that it forks off, which does as it is told."""
    child = os.fork()
    return child or _in_fork(how)


async def forks_on_loop(how: str) -> int:
    never = asyncio.get_running_loop().create_future()
    child = os.fork()
    if child == 0 and how == "awaits":
        await never
    return child or _in_fork(how)


async def forks_in_hop(how: str) -> int:
    return await asyncio.to_thread(forks, how)


def forks_and_gives_away(how: str) -> Awaitable[int]:
    """Have what is forked here, or on the loop, awaited."""
    return forks_on_loop(how) if how == "awaits" else _later(forks(how))


class ForksWhenBuilt:
    def __init__(self, *, how: str) -> None:
        self.child = os.fork() or _in_fork(how)

    def __call__(self, x: int) -> int:
        return self.child


def _in_fork(how: str) -> int:
    match how:
        case "raises":
            raise ValueError("in the fork")
        case "exits":
            sys.exit(3)
        case "stays":
            signal.pause()
    return 0


def forks_and_waits(x: int) -> str:
    """Give what it has forked all the time to say something in its place."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return "parent" if child else "child"


def returns_nothing(x: int) -> None:
    return None


def forking(example, outputs) -> int:
    return os.fork()


def waits(x: int, started: str, opened: str) -> int:
    """Make the file *started*, then hang until the pipe *opened* has a writer."""
    Path(started).write_text(str(os.getpid()))
    gate(opened).result()
    return x


async def blocks(x: int, started: str, opened: str) -> int:
    """Hold the program loop until the pipe has a writer."""
    open(started, "w").close()  # noqa: ASYNC230 - blocking is what it is for
    gate(opened).result()
    return x


async def waits_politely(x: int, opened: str) -> int:
    await asyncio.shield(asyncio.wrap_future(gate(opened)))
    return x


def good(example, outputs) -> bool:
    return True


async def good_later(example, outputs) -> float:
    await asyncio.sleep(0)
    return 0.5


def parts(example, outputs) -> dict[str, float]:
    return {"precision": 0.5, "found": 1}


def no_parts(example, outputs) -> dict[str, float]:
    return {}


def numpy_scalar(example, outputs) -> object:
    import numpy as np

    return np.float32(0.5)


def raising(example, outputs) -> float:
    raise KeyError("nothing there")


async def raising_later(example, outputs) -> float:
    raise KeyError("nothing there")


def exiting(example, outputs) -> float:
    raise SystemExit


def nan(example, outputs) -> float:
    return float("nan")


def infinite(example, outputs) -> dict[str, float]:
    return {"part": float("inf")}


def text(example, outputs) -> str:
    return "good"


def nothing(example, outputs) -> None:
    return None


def huge(example, outputs) -> int:
    return 2**70


def two_numbers(example, outputs) -> object:
    import numpy as np

    return np.array([0.5, 1.0])


def unnameable(example, outputs) -> dict[str, float]:
    return {"\ud800": 1.0}


leaked: list[bytes] = []


def leaks(x: int, kib: int) -> dict[str, object]:
    leaked.append(b"x" * (kib << 10))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"x": x, "rss_mb": pages * os.sysconf("SC_PAGESIZE") >> 20}


def waits_long(x: int, started: str, opened: str) -> int:
    """Make the file *started*, then wait for the file *opened*."""
    Path(f"{started}-").write_text(str(os.getpid()))
    Path(f"{started}-").rename(started)
    while not Path(opened).exists():
        time.sleep(0.05)
    return x


def starts_another_and_holds(started: str) -> None:
    """Make the file *started* with both processes, then keep the interpreter's lock in native code."""
    other = subprocess.Popen(["sleep", "3600"])
    Path(f"{started}-").write_text(f"{os.getpid()} {other.pid}")
    Path(f"{started}-").rename(started)
    ctypes.PyDLL(None).sleep(3600)


def moves(x: int) -> int:
    """Change what later trials of this process find."""
    os.environ["DSPEX_MOVED"] = str(x)
    sys.path.insert(0, "/moved")
    os.chdir("/")
    return x


def finds(x: int) -> dict[str, object]:
    return {
        "folder": str(Path.cwd()),
        "path": sys.path,
        "environment": dict(os.environ),
        "grpc": [name for name in sys.modules if name.split(".")[0] == "grpc"],
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
    }


def exhausts_threads(x: int) -> int:
    """The system refuses every stack from now on, as it does when it has no more threads."""
    threading.stack_size(1 << 46)
    return x


async def ignores_signals(x: int) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return x
