"""Programs that call models of their own making. A gate is a file: who calls waits until nobody holds it locked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from pathlib import Path
from typing import Any

from dspex_pipelines import call_model, call_model_async, report_usage
from tests.bridge.programs import _opened

ANSWER = {"choices": [{"message": {"content": "yes"}}], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}


def _begun(calls: str, x: int) -> None:
    with open(calls, "a") as file:
        file.write(f"{x} {os.getpid()}\n")


async def later(x: int, model: str, gate: str, calls: str) -> int:
    async def answer() -> dict[str, Any]:
        _begun(calls, x)
        if gate:
            await asyncio.wrap_future(_opened(gate))
        return ANSWER

    await call_model_async(model, answer)
    return x


def in_thread(x: int, model: str, gate: str, calls: str) -> int:
    def answer() -> dict[str, Any]:
        _begun(calls, x)
        if gate:
            _opened(gate).result()
        return ANSWER

    call_model(model, answer)
    return x


def says_who(x: int, model: str, gate: str, calls: str) -> int:
    """Tells of its process before it asks."""
    _begun(f"{calls}-to-come", x)
    return in_thread(x, model, gate, calls)


def obstinate(x: int, model: str, gate: str, calls: str) -> int:
    """Goes on when it is told that nobody waits for it any more."""
    for _ in range(3):
        with contextlib.suppress(Exception):
            in_thread(x, model, gate, calls)
    return x


def hangs(x: int, model: str, gate: str, calls: str) -> int:
    """Never comes back from its first call."""

    def answer() -> None:
        _begun(calls, x)
        threading.Event().wait()

    if x == 0:
        call_model(model, answer)
    return in_thread(x, model, "", calls)


class Unspeakable:
    """What a client library that is not well returns."""

    def __init__(self, usage: Any) -> None:
        self.usage = usage

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __repr__(self) -> str:
        raise SystemExit(3)


class Refusal(Exception):
    status_code = 429

    def __init__(self, retry_after: Any) -> None:
        super().__init__("\ud800 too much")
        self.retry_after = retry_after


NO_WAITS = (-1, 0, 1e308, float("nan"), 10**400, "soon", "Mon, 01 Jan 0001 00:00:00 -0000", [1], Path())
NO_USAGES = (2**70, 10**400, 1e300, float("nan"), -1, "5", None, [1], {"a": 1}, True)


def _strange() -> list[Any]:
    itself: list[Any] = []
    itself.extend([itself] * 1_000)
    usages = [{"prompt_tokens": one, "completion_tokens": one, "prompt_tokens_details": one} for one in NO_USAGES]
    answers: list[Any] = [{"usage": one} for one in usages]
    return [*answers, *map(Unspeakable, usages), itself, {"\ud800": itself}, {Unspeakable(None): 1}]


def _odd_names() -> list[str]:
    return ["m\ud800", "m\x1b[0m", "m" * 1_000_000]


def _first_refused(wait: Any, answer: Any) -> Any:
    waits = [wait]

    def make() -> Any:
        if waits:
            raise Refusal(waits.pop())
        return answer

    return make


def strange_in_thread(x: int) -> int:
    report_usage(pages=2**63 - 1)
    for number, one in enumerate(_strange()):
        assert call_model(f"strange/{x}", lambda one=one: one, request={"extra": one}, tokens=2**70) is one
        call_model(f"refusing/{os.getpid()}/{number}", _first_refused(NO_WAITS[number % len(NO_WAITS)], one))
    for name in _odd_names():
        call_model(name, lambda: ANSWER)
    report_usage(pages=2**63 - 1)
    return x


async def strange_later(x: int) -> int:
    report_usage(pages=2**63 - 1)

    async def answered(one: Any) -> Any:
        return one

    for one in _strange():
        assert await call_model_async(f"strange/{x}", lambda one=one: answered(one), request={"extra": one}) is one
    for name in _odd_names():
        await call_model_async(name, lambda: answered(ANSWER))
    report_usage(pages=2**63 - 1)
    return x
