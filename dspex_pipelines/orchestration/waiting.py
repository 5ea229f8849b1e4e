"""Says why no trial ends, where calls to a model are what keeps them: the pool is asked, seldom, and only then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from dspex_pipelines.bridge.pool_status import ModelStatus, PoolStatus
from dspex_pipelines.errors import DspexError

LOOK_S = 3.0
"""Without an outcome for so long, the pool is asked; and then again every so often."""
MOST_MODELS = 3
_WORDS = {
    "given up": "has not answered for so long that its calls fail",
    "down": "is not answering",
    "paused": "has asked to wait",
    "limited": "is rate-limited",
}
"""What the state of a model means for the calls that wait for it, the worst first."""
_WORST_FIRST = {state: place for place, state in enumerate(_WORDS)}
_SILENT = "has not answered yet"


class Waiting:
    """While it is open, *say* is told why nothing moves, and for how many seconds; the words stay while the state does.

    *ask* returns the pool's status. Whoever sees outcomes come in calls `moved`.
    """

    def __init__(self, ask: Callable[[], Awaitable[PoolStatus]], say: Callable[[str, float], None]) -> None:
        self._ask = ask
        self._say = say
        self._moved_at = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Waiting:
        self.moved()
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        # Not the task itself: one's own cancellation would not be told from its.
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    def moved(self) -> None:
        """Outcomes have come in."""
        self._moved_at = time.monotonic()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if time.monotonic() - self._moved_at < LOOK_S:
                continue
            try:
                status = await self._ask()
            except DspexError:
                # Whoever runs trials in it notices, and says more.
                continue
            still_s = time.monotonic() - self._moved_at
            if still_s >= LOOK_S and (why := why_calls_wait(status.models)):
                self._say(why, still_s)


def why_calls_wait(models: Iterable[ModelStatus]) -> str:
    """Return for which models calls wait and why, the worst first; empty where none does."""
    found = sorted(
        (_WORST_FIRST.get(model.state, len(_WORST_FIRST)), f"{model.model} {_words(model)}")
        for model in models
        if model.waiting or model.in_flight
    )
    more = f" and {len(found) - MOST_MODELS} more models" if len(found) > MOST_MODELS else ""
    return "; ".join(words for _, words in found[:MOST_MODELS]) + more


def _words(model: ModelStatus) -> str:
    if not model.waiting and model.state not in ("given up", "down"):
        return _SILENT
    return _WORDS.get(model.state, _SILENT)
