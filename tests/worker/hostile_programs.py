"""Programs that do to their worker what no program should, or return what nothing can carry. Each deed has a name."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

MIB = 1 << 20
kept: list[Any] = []


def changes_directory() -> str:
    os.chdir("/")
    return str(Path.cwd())


def loses_directory() -> str:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
    return "gone"


def closes_descriptors() -> str:
    os.closerange(3, 4096)
    return "closed"


def closes_standard_descriptors() -> str:
    os.closerange(0, 3)
    return "closed"


def closes_standard_streams() -> str:
    sys.stdout.close()
    sys.stderr.close()
    return "closed"


def exhausts_threads() -> str:
    """Leave none over: the system refuses every stack from now on, as it does when it has no more threads."""
    threading.stack_size(1 << 46)
    try:
        threading.Thread(target=print).start()
    except RuntimeError as error:
        return str(error)
    return "there are threads"


def exhausts_descriptors() -> str:
    try:
        while True:
            kept.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return type(error).__name__


def prints_a_lot() -> str:
    for _ in range(64):
        print("o" * (MIB // 16))
        sys.stderr.write("e" * (MIB // 16) + "\n")
    return "printed"


def changes_environment() -> str:
    os.environ["DSPEX_HOSTILE"] = "set"
    os.environ.pop("PATH", None)
    return "changed"


def deletes_its_module() -> str:
    sys.modules.pop(__name__, None)
    return "deleted"


def deletes_what_the_worker_uses() -> str:
    for name in [name for name in sys.modules if name.split(".")[0] in ("dspex_pipelines", "dspex")]:
        sys.modules.pop(name, None)
    return "deleted"


def sets_signal_handlers() -> str:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_IGN)
    return "set"


def waits_for_any_process() -> str:
    def reap(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, reap)
    return "set"


def calls_exit() -> None:
    sys.exit(5)


def forks_and_comes_back() -> str:
    """Give what it has forked the time to have an outcome of its own."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return "parent" if child else "child"


def aborts() -> None:
    os.abort()


def raises_interrupt() -> None:
    raise KeyboardInterrupt("by itself")


def raises_generator_exit() -> None:
    raise GeneratorExit("by itself")


def raises_cancelled() -> None:
    raise asyncio.CancelledError("by itself")


def raises_stop_iteration() -> None:
    raise StopIteration("by itself")


def raises_huge() -> None:
    raise ValueError("0x1 " * (16 * MIB))


class Endless(Exception):
    @property
    def __cause__(self) -> BaseException:
        return Endless("another")


def raises_endless_causes() -> None:
    raise Endless("the first")


def raises_itself() -> None:
    error = ValueError("its own cause")
    raise error from error


def raises_long_chain() -> None:
    error: Exception = ValueError("the root")
    for number in range(100_000):
        link = ValueError(f"link {number}")
        link.__cause__ = error
        error = link
    kept.append(error)  # the interpreter frees a chain by recursion
    raise error


class Unlookable(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"not {name}")

    def __str__(self) -> str:
        raise KeyboardInterrupt


def raises_unlookable() -> None:
    raise Unlookable


def raises_wrong_facts() -> None:
    error = ValueError("of another world")
    error.retry_after_s = 10**400  # type: ignore[attr-defined]
    error.retryable = object()  # type: ignore[attr-defined]
    raise error


def raises_deep() -> None:
    raises_deep()


def raises_group() -> None:
    raise ExceptionGroup("many", [ValueError(str(number)) for number in range(5_000)])


def returns_17_mib() -> bytes:
    return bytes(17 * MIB)


def returns_15_mib() -> int:
    """Big, and not too big."""
    return len(bytes(15 * MIB))


def returns_an_object() -> object:
    return {"deep": [object()]}


def returns_a_generator() -> object:
    return (number for number in range(3))


def returns_not_a_number() -> list[float]:
    return [float("nan"), float("inf"), float("-inf")]


def returns_a_lone_surrogate() -> str:
    return "\ud800"


def returns_a_surrogate_key() -> dict[str, int]:
    return {"\udfff" * 10_000: 1}


def returns_a_tuple_key() -> dict[object, int]:
    return {(1, 2): 3}


def returns_nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def returns_nested_a_little() -> list[Any]:
    return returns_nested(100)


def returns_nested_more() -> list[Any]:
    return returns_nested(505)


def returns_nested_deeply() -> list[Any]:
    return returns_nested(100_000)


def returns_itself() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("it cannot be shown")

    def __reduce__(self) -> str:
        raise RuntimeError("it cannot be reduced")

    def __hash__(self) -> int:
        return 1

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        raise KeyboardInterrupt


def returns_the_unshowable() -> object:
    return {"value": Unshowable()}


def returns_the_unshowable_as_key() -> object:
    return {Unshowable(): 1}


class Interrupting:
    def toDict(self) -> object:  # noqa: N802 - DSPy's name
        raise KeyboardInterrupt("while it was read")


def returns_what_interrupts() -> object:
    return Interrupting()


class FalseList(list[int]):
    def __iter__(self):
        raise SystemExit("while it was read")

    def __len__(self) -> int:
        raise SystemExit("while it was read")


def returns_a_false_list() -> object:
    return {"list": FalseList([1])}


def returns_an_integer_too_large() -> int:
    return 2**70


_started, _handled = asyncio.Event(), asyncio.Event()


def _do(deed: str) -> object:
    return globals()[deed]()


def in_thread(x: int, deed: str) -> object:
    return _do(deed) if deed else _neighbour(x)


async def on_loop(x: int, deed: str) -> object:
    await asyncio.sleep(0 if deed else 0.02)
    return _do(deed) if deed else x


async def starts_a_process(x: int) -> int | None:
    """Return its exit code; once the first of them has started, SIGCHLD is handled by another program."""
    process = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
    if not x:
        _started.set()
        await _handled.wait()
    assert process.stdin is not None
    process.stdin.close()
    return await process.wait()


async def handles_children(x: int) -> str:
    await _started.wait()
    _handled.set()
    return waits_for_any_process()


def in_process(x: int, deed: str) -> object:
    return _do(deed) if deed else _neighbour(x)


def _neighbour(x: int) -> int:
    time.sleep(0.02)
    return x


def looks_around(x: int) -> dict[str, object]:
    """Say what a program finds."""
    print("still here", flush=True)
    print("and here", file=sys.stderr, flush=True)
    for number in range(3):
        os.fstat(number)
    told = signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
    return {"x": x, "folder": str(Path.cwd()), "file": Path(__file__).is_file(), "told of children": told}
