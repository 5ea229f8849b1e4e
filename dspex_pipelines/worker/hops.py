"""What coroutines hand to threads (`asyncio.to_thread`), and what of it takes less time than the hop.

On a loop that is busy a hop costs milliseconds twice: until the thread has the interpreter, and until it is given back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import uvloop

from dspex_pipelines.worker.forked import lasts

Key = Callable[..., Hashable | None]
"""Of the arguments of a call: what calls have in common that are as quick as each other; None for one that is not."""
_MOST_KNOWN = 1_024
_quick: dict[Any, Key] = {}


def is_quick(function: Callable[..., Any], key: Key) -> None:
    """Have calls of *function* run at once, when one with the same *key* has been run in a thread before.

    The first may have something to load.
    """
    _quick[function] = key


class ProgramLoop(uvloop.Loop):
    """The loop that programs run on; it has as many threads for their hops as they ask for at once, up to *most*."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.set_default_executor(ThreadPoolExecutor(most, thread_name_prefix="hop", initializer=lasts))
        self._known: set[Hashable] = set()

    def run_in_executor(  # pyright: ignore[reportIncompatibleMethodOverride] - uvloop returns a future too
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run *func* in a thread, or here."""
        key = _key_of(func) if executor is None else None
        if key is None or key not in self._known:
            hop = cast("asyncio.Future[Any]", super().run_in_executor(executor, func, *args))
            if key is not None:
                hop.add_done_callback(partial(self._know, key))
            return hop
        # Whoever awaits it goes on at once.
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - whoever awaits it has it
            done.set_exception(error)
        return done

    def _know(self, key: Hashable, hop: asyncio.Future[Any]) -> None:
        if not hop.cancelled() and hop.exception() is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known.add(key)


def _key_of(fn: Callable[..., Any]) -> Hashable | None:
    # `asyncio.to_thread` wraps what it is given once: in the context's run.
    if not isinstance(fn, partial) or not fn.args:
        return None
    function, *args = fn.args
    of = getattr(function, "__func__", None)
    if of is not None:
        function, args = of, [function.__self__, *args]
    key = _quick.get(function) if isinstance(function, Hashable) else None
    if key is None:
        return None
    try:
        found = key(*args)
    except Exception:  # noqa: BLE001 - called otherwise than is known here, it is done as it would be without
        return None
    return None if found is None else (function, found)
