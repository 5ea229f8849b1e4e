"""Programs and metrics of the evaluations that these tests materialise."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from uuid import uuid4

import httpx

from dspex_pipelines import call_model, report_usage


def fifth_raises(x: int, k: int) -> int:
    if x % 5 == 0:
        raise ValueError(f"example {x} is not liked")
    return x * k


def always_raises(x: int) -> int:
    raise RuntimeError("never")


def logged(x: int, k: int, log: str) -> int:
    """Leave a line in the file *log*: what really ran can be counted."""
    with open(log, "a") as file:
        file.write(f"{x} {k}\n")
    return x * k


def reads(x: int, prompt: str, edited_at: int) -> str:
    """Return what the file *prompt* says; somebody edits it while example *edited_at* runs."""
    text = Path(prompt).read_text()
    if x == edited_at:
        Path(prompt).write_text("edited")
    return text


def noisy(x: int, seed: int) -> int:
    return x + seed


def plain(x: int) -> int:
    return x


def chosen(x: int, size: int, mix: object) -> str:
    return f"{size} {mix!r}"


async def crowd(x: int, folder: str, least: int) -> int:
    """Wait until *least* trials are in flight at once; return the most that were seen, over all workers."""
    here, full = Path(folder) / str(x), Path(folder).with_suffix(".full")
    here.touch()
    seen = _present(folder)
    while seen < least and not full.exists():
        await asyncio.sleep(0.001)
        seen = max(seen, _present(folder))
    full.touch()
    await asyncio.sleep(0.02)
    seen = max(seen, _present(folder))
    here.unlink()
    return seen


async def hangs_once(x: int, folder: str) -> int:
    """Whoever takes away the file that is called as the example hangs."""
    report_usage(tokens=10)
    try:
        (Path(folder) / str(x)).unlink()
    except FileNotFoundError:
        await asyncio.sleep(0.01)
        return x
    await asyncio.Event().wait()
    return -1


async def held(x: int, folder: str) -> int:
    """Say by a file that it is there, and go on once somebody has taken that away."""
    here = Path(folder) / uuid4().hex
    here.touch()
    while here.exists():
        await asyncio.sleep(0.01)
    return x


def _present(folder: str) -> int:
    return sum(1 for _ in Path(folder).iterdir())


def right(example, outputs) -> bool:
    return outputs == example.labels["y"]


def size(example, outputs) -> float:
    return float(outputs) / 1e9


def parts(example, outputs) -> dict[str, float]:
    return {"zeta": 0.25, "alpha": 0.75}


def raises_and_logs(x: int, k: int, log: str) -> int:
    logged(x, k, log)
    return fifth_raises(x, k)


async def hangs_when_odd(x: int, k: int, log: str) -> int:
    """Answer for every other example, and never for those between."""
    logged(x, k, log)
    if x % 2:
        await asyncio.sleep(3600)
    return x * k


async def costs(x: int, k: int) -> int:
    """Cost ten tokens and a cent each time, half of it before some fail."""
    report_usage(tokens=5)
    await asyncio.sleep(0)
    if x % 5 == 0:
        raise ValueError("costly, and in vain")
    report_usage(tokens=5, cost_usd=0.01)
    return x * k


def costs_in_a_thread(x: int, k: int) -> int:
    report_usage(tokens=10, cost_usd=0.01)
    return x * k


def fifth_raises_otherwise(x: int, k: int) -> int:
    if x % 5 == 0:
        raise ValueError("something else")
    return x * k


MODELS = ("openai/gpt-4o-mini", "local/scribe")


def asks_models(x: int, k: int, base: str) -> int:
    """Ask the server at *base* once as one model, and *k* times as another."""
    for model in (MODELS[0], *(MODELS[1:] * k)):
        call_model(f"{model}@{base}", lambda: _answer(base, f"Example {x}"))
    return x


def _answer(base: str, content: str) -> dict:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": content}]}
    headers = {"authorization": "Bearer loopback"}
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        response = client.post(f"{base}/chat/completions", json=body, headers=headers)
    response.raise_for_status()
    return response.json()


def text_times(x: str, k: int) -> str:
    return str(int(x) * k)


class Fallible:
    """Right for k = 1, but wrong for the first *wrong* examples of every ten; raises for the last *raising*."""

    def __init__(self, *, wrong: int = 0, raising: int = 0) -> None:
        self.wrong = wrong
        self.raising = raising

    def __call__(self, x: int, k: int) -> int:
        if x % 10 >= 10 - self.raising:
            raise ValueError("not today")
        return -1 if x % 10 < self.wrong else x * k


class Drawn:
    """Three answers in four are right; which ones is drawn anew with each *salt*."""

    def __init__(self, *, salt: int) -> None:
        self.salt = salt

    def __call__(self, x: int, k: int) -> int:
        return x if random.Random(f"{self.salt} {k} {x}").random() < 0.75 else -1
