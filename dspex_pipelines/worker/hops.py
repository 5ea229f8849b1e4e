"""What coroutines hand to threads (`asyncio.to_thread`), and what of it takes less time than the hop.

On a loop that is busy a hop costs milliseconds twice: until the thread has the interpreter, and until it is given back.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

Key = Callable[..., Hashable | None]
"""Of the arguments of a call: what calls have in common that are as quick as each other; None for one that is not."""
_quick: dict[Any, Key] = {}


def is_quick(function: Callable[..., Any], key: Key) -> None:
    """Have calls of *function* run at once, when one with the same *key* has been run in a thread before.

    The first may have something to load.
    """
    _quick[function] = key


class HopExecutor(ThreadPoolExecutor):
    """A loop's default executor."""

    def __init__(self, max_workers: int) -> None:
        super().__init__(max_workers, thread_name_prefix="hop")
        self._known: set[Hashable] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run *fn* in a thread, or here."""
        key = _key_of(fn)
        if key is None:
            return super().submit(fn, *args, **kwargs)
        if key in self._known:
            done: Future[Any] = Future()
            try:
                done.set_result(fn(*args, **kwargs))
            except Exception as error:  # noqa: BLE001 - whoever awaits it has it
                done.set_exception(error)
            return done

        def know(done: Future[Any]) -> None:
            if not done.cancelled() and done.exception() is None:
                self._known.add(key)

        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(know)
        return future


def _key_of(fn: Callable[..., Any]) -> Hashable | None:
    # `asyncio.to_thread` wraps what it is given once: in the context's run.
    if not isinstance(fn, partial) or not fn.args:
        return None
    function, *args = fn.args
    of = getattr(function, "__func__", None)
    if of is not None:
        function, args = of, [function.__self__, *args]
    key = _quick.get(function) if isinstance(function, Hashable) else None
    found = key(*args) if key is not None else None
    return None if found is None else (function, found)
