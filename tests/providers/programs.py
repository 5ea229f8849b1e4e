"""Programs that call a provider: without DSPy, where what the throttle does shows alone, and with it."""

from __future__ import annotations

import functools

import dspy
import httpx

from dspex_pipelines import call_model_async

MODEL = "openai/gpt-4o-mini"


@functools.cache
def client(base: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=base, timeout=httpx.Timeout(5.0), limits=limits, trust_env=False)


async def post(base: str, content: str) -> dict:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": content}]}
    response = await client(base).post("/chat/completions", json=body, headers={"authorization": "Bearer loopback"})
    response.raise_for_status()
    return response.json()


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
