"""Programs that call a provider without DSPy: what the throttle does shows in them alone."""

from __future__ import annotations

import functools

import httpx

from dspex_pipelines import call_model_async


@functools.cache
def client(base: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=base, timeout=httpx.Timeout(2.0), limits=limits, trust_env=False)


async def post(base: str, content: str) -> dict:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": content}]}
    response = await client(base).post("/chat/completions", json=body, headers={"authorization": "Bearer loopback"})
    response.raise_for_status()
    return response.json()


async def asks(question: str, base: str) -> str:
    answer = await call_model_async(f"openai/gpt-4o-mini@{base}", lambda: post(base, question))
    return answer["choices"][0]["message"]["content"]


async def asks_five_times(question: str, base: str) -> list[str]:
    return [await asks(f"{question}, part {part}", base) for part in range(5)]
