"""What programs and metrics call themselves: a model, where DSPy does not do it for them, and what they have used."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from dspex_pipelines.engine.calls.asked import answered_of, asked_of
from dspex_pipelines.engine.calls.trial_calls import NAME_CHARACTERS, Call, T, running_trial
from dspex_pipelines.engine.calls.used import Used, used_by_answer
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.usage import UNTOLD_COPIES


def report_usage(**amounts: float) -> None:
    """Add *amounts* to what the trial that calls this has used: ``tokens``, ``cost_usd``, or names of your own.

    Programs and metrics call it as often as they like, in coroutines too, but not in threads that they start
    themselves; outside a trial it does nothing. Budgets are about ``tokens`` and ``cost_usd`` (US dollars). Raises
    `InvalidValue` for what is no finite number of 0 or more, and for a name that cannot be printed or is taken.
    """
    trial = running_trial()
    for name, amount in amounts.items():
        number = _amount(amount)
        if number is None:
            raise InvalidValue(field=name, value=amount, fix="report a finite number, 0 or more")
        if len(name) > NAME_CHARACTERS or not name.isprintable():
            raise InvalidValue(field="name", value=name, fix=f"use {NAME_CHARACTERS} printable characters at most")
        if name == UNTOLD_COPIES:
            raise InvalidValue(field="name", value=name, fix="hedged trials count that themselves; use another name")
        if trial is not None:
            trial.report({name: number})


def _amount(said: Any) -> float | None:
    """Return a number of any kind as a plain one; None for what is no finite number of 0 or more."""
    if isinstance(said, bool | str):
        return None
    try:
        number = said if type(said) is int else float(said)
        return number if number >= 0 and math.isfinite(number) else None
    except (TypeError, ValueError, OverflowError):
        return None


def call_model(model: str, make: Callable[[], T], *, tokens: int = 0, request: Any = None) -> T:
    """Return what *make* returns, called once the pool's throttle gives leave to call *model*.

    For programs that call a provider without DSPy: ``call_model("openai/gpt-4o-mini", lambda: client.chat(...))``.
    A call that is refused, or at which the provider fails, waits and is made again here, so that finished ones are not
    bought twice; what its answer's `usage` says (in OpenAI's form) is counted. *tokens* is an estimate of what the call
    will use, 0 for none. The trial's trace keeps what *make* returns (in OpenAI's form: its words), and *request*:
    messages, a prompt, or a map of all that is sent, of which keys, tokens and headers are left out. Outside a trial,
    *make* is just called. Raises what *make* raises at last.
    """
    trial = running_trial()
    if trial is None:
        return make()

    def made(call: Call) -> T:
        _asks(call, request)
        answer = make()
        _answers(call, answer)
        return answer

    return trial.call(model, made, tokens=tokens)


async def call_model_async(model: str, make: Callable[[], Awaitable[T]], *, tokens: int = 0, request: Any = None) -> T:
    """Return what *make* returns, as `call_model` does, in a coroutine."""
    trial = running_trial()
    if trial is None:
        return await make()

    async def made(call: Call) -> T:
        _asks(call, request)
        answer = await make()
        _answers(call, answer)
        return answer

    return await trial.acall(model, made, tokens=tokens)


def _asks(call: Call, request: Any) -> None:
    # What cannot be looked at can be sent all the same; its methods may raise a SystemExit too.
    with suppress(BaseException):
        if request is not None:
            call.asked, call.settings = asked_of(request)


def _answers(call: Call, answer: Any) -> None:
    call.used, call.answered = Used(), answer
    # The answer is the program's, whatever comes of looking at it.
    with suppress(BaseException):
        call.answered = answered_of(answer)
        call.used = used_by_answer(answer)
