"""DSPy modules that ask a provider over HTTP, or a model in this process, and nothing else."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from types import SimpleNamespace
from typing import Any

import dspy

BASE = "DSPEX_BENCHMARK_API_BASE"
LATENCY_S = 0.2


@functools.cache
def provider() -> dspy.LM:
    return dspy.LM("openai/gpt-4o-mini", api_base=os.environ[BASE], api_key="loopback", cache=False)


class InProcess(dspy.BaseLM):
    """Takes 200 ms for an answer and no computing."""

    def __init__(self) -> None:
        super().__init__("local/sleeper", cache=False)

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        time.sleep(LATENCY_S)
        return _answer()

    async def aforward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        await asyncio.sleep(LATENCY_S)
        return _answer()


def _answer() -> Any:
    message = SimpleNamespace(content="[[ ## answer ## ]]\nfine\n\n[[ ## completed ## ]]", tool_calls=None)
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    choice = SimpleNamespace(message=message, finish_reason="stop")
    return SimpleNamespace(choices=[choice], usage=usage, model="local/sleeper")


class AsksInThreads(dspy.Module):
    """One call over HTTP."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        self.set_lm(self.model())

    def model(self) -> dspy.BaseLM:
        return provider()

    def forward(self, question: str) -> dspy.Prediction:
        return self.answer(question=question)


class Asks(AsksInThreads):
    """One call over HTTP, in a coroutine."""

    async def aforward(self, question: str) -> dspy.Prediction:
        return await self.answer.acall(question=question)


class AsksInProcess(Asks):
    """One call of a model that is here."""

    def model(self) -> dspy.BaseLM:
        return InProcess()


def said(example: Any, prediction: Any, trace: Any = None) -> bool:
    return bool(prediction.answer)
