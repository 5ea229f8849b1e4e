"""What a call to a language model costs more inside a trial: a model that answers at once, bare and managed."""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import time
import warnings
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

import dspy
from dspy.lm15 import Message, Request, Response, TextPart, Usage

from benchmarks._report import report
from dspex_pipelines.engine.calls.trial_calls import Caller, TrialCalls, begin_trial
from dspex_pipelines.engine.throttling.throttle import Verdict
from dspex_pipelines.worker.dspy_models import TrialModels
from dspex_pipelines.worker.dspy_patches import manage_models
from dspex_pipelines.worker.dspy_settings import TRIAL

ROUNDS = 5
MESSAGES = [{"role": "system", "content": "x" * 800}, {"role": "user", "content": "y" * 200}]
USAGE = Usage(input_tokens=250, output_tokens=10, total_tokens=260)
MESSAGE = Message.assistant([TextPart("[[ ## answer ## ]]\nx\n\n[[ ## completed ## ]]")])
ANSWER = Response(id=None, model="m", message=MESSAGE, finish_reason="stop", usage=USAGE)


class Engine:
    def complete(self, _: Request) -> Response:
        return ANSWER


class AsyncEngine:
    async def complete(self, _: Request) -> Response:
        return ANSWER


class Leave:
    """Leave at once."""

    def __init__(self) -> None:
        self.granted: Future[None] = Future()
        self.granted.set_result(None)

    def ask(self, trial: int, model: str, tokens: int, *, again: bool) -> Leave:
        del trial, model, tokens, again
        return self

    def end(self, verdict: Verdict, *, retry_after_s: float = 0.0, tokens: int = 0) -> None:
        del verdict, retry_after_s, tokens


def timed(call: Callable[[], Any], calls: int) -> float:
    """Microseconds for one call, in the best round."""

    def round_s() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            call()
        return time.perf_counter() - began

    return 1e6 * min(round_s() for _ in range(ROUNDS)) / calls


async def timed_async(call: Callable[[], Awaitable[Any]], calls: int) -> float:
    """The same of a coroutine."""

    async def round_s() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            await call()
        return time.perf_counter() - began

    return 1e6 * min([await round_s() for _ in range(ROUNDS)]) / calls


def main() -> None:
    """Print a line for threads, and one for coroutines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2_000)
    count = parser.parse_args().calls
    warnings.simplefilter("ignore", DeprecationWarning)
    model = dspy.LM("local/instant", engine=Engine(), async_engine=AsyncEngine(), cache=False)
    manage_models()
    calls = TrialCalls(Caller(Leave()))

    def once() -> None:
        model(messages=MESSAGES)
        if calls.calls:
            calls.calls.clear()

    async def once_later() -> None:
        await model.acall(messages=MESSAGES)
        if calls.calls:
            calls.calls.clear()

    def measured() -> tuple[float, float]:
        return timed(once, count), asyncio.run(timed_async(once_later, count // 4))

    def in_trial() -> tuple[float, float]:
        begin_trial(calls)
        with dspy.context(**{TRIAL: TrialModels(calls)}):
            return measured()

    bare, managed = contextvars.Context().run(measured), contextvars.Context().run(in_trial)
    for case, before, after in zip(("thread", "coroutine"), bare, managed, strict=True):
        report(
            benchmark="dspy_calls",
            case=case,
            value=after,
            unit="µs for a call in a trial",
            reference="the same call outside",
            reference_value=before,
        )


if __name__ == "__main__":
    main()
