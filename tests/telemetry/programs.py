"""Programs that call a model which is not there: the answers are made here."""

from __future__ import annotations

import os
import sys

from dspex_pipelines import call_model, call_model_async

SECRET = "sk-must-not-be-told"
MODEL = f"openai/gpt-4o-mini@http://user:{SECRET}@127.0.0.1:8123/v1/{SECRET}"


class TooManyRequests(Exception):
    status_code = 429
    retry_after = 0.2


def answer() -> dict:
    return {"content": SECRET, "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


async def asks(x: int) -> int:
    async def make() -> dict:
        return answer()

    await call_model_async(MODEL, make)
    return x


async def is_refused_once(x: int) -> int:
    # A lane of its own: the throttle remembers refusals for minutes.
    lane = MODEL.replace("8123", str(10_000 + os.getpid() % 10_000))
    refusals = [TooManyRequests(f"slow down, {SECRET}")]

    async def make() -> dict:
        if refusals:
            raise refusals.pop()
        return answer()

    await call_model_async(lane, make)
    return x


def asks_in_a_thread(x: int) -> int:
    call_model(MODEL, answer)
    return x


def raises(x: int) -> int:
    raise ValueError(SECRET)


def call_fails(x: int) -> int:
    def make() -> dict:
        raise ValueError(SECRET)

    return call_model(MODEL, make)


def imported(x: int) -> list[str]:
    """Whether there is anything of OpenTelemetry where it runs."""
    return sorted(name for name in sys.modules if name.partition(".")[0] == "opentelemetry")


def ends_its_process(x: int) -> int:
    call_model(MODEL, answer)
    os._exit(1)


def uses_strange_numbers(x: int) -> int:
    strange = {"usage": {"prompt_tokens": 1 << 70, "completion_tokens": 1}}
    call_model(f"openai/gpt{'x' * 5_000}", lambda: strange if x else answer())
    return x
