"""Programs that call a provider: without DSPy, where what the throttle does shows alone, and with it."""

from __future__ import annotations

import functools

import aiohttp
import dspy

from dspex_pipelines import call_model_async

MODEL = "openai/gpt-4o-mini"


@functools.cache
def client(base: str) -> aiohttp.ClientSession:
    """Return one for the worker's program loop, where it is first asked for. Hundreds of connections cost it little."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(5.0))


async def post(base: str, content: str) -> dict:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": content}]}
    headers = {"authorization": "Bearer loopback"}
    async with client(base).post(f"{base}/chat/completions", json=body, headers=headers) as response:
        response.raise_for_status()
        return await response.json()


async def asks(question: str, base: str) -> str:
    answer = await call_model_async(f"{MODEL}@{base}", lambda: post(base, question))
    return answer["choices"][0]["message"]["content"]


async def asks_five_times(question: str, base: str) -> list[str]:
    return [await asks(f"{question}, part {part}", base) for part in range(5)]


class Answers(dspy.Module):
    """In threads: it has no `aforward`. A call that hangs for a second is the provider's failure."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str, base: str) -> dspy.Prediction:
        model = dspy.LM(MODEL, api_base=base, api_key="loopback", cache=False, timeout=1.0)
        return self.answer(question=question, lm=model)


class AnswersLater(Answers):
    async def aforward(self, question: str, base: str) -> dspy.Prediction:
        model = dspy.LM(MODEL, api_base=base, api_key="loopback", cache=False, timeout=1.0)
        return await self.answer.acall(question=question, lm=model)


def said_something(example, prediction, trace=None) -> bool:
    return bool(prediction.answer)
