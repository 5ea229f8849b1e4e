"""A server for the whole module of tests, and requests to it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from dspex_pipelines.loopback.process import Server, serving

KEY = "the-key"
PLAIN: dict[str, Any] = {"latency_s": 0.0, "jitter": 0.0, "requests_per_s": 0.0, "burst": 1, "tokens_per_minute": 0}
PLAIN |= dict.fromkeys(("error_rate", "overload_rate", "hang_rate", "malformed_rate", "drop_rate"), 0.0)
PLAIN |= {"down": False, "context_tokens": 0, "filter": "", "models": "", "seed": 0}


@pytest.fixture(scope="session", autouse=True)
def no_download():
    """DSPy asks the internet for prices when a process first makes a model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "true")
        yield


@pytest.fixture(scope="module")
def started():
    with serving(api_key=KEY) as server:
        yield server


@pytest.fixture
def server(started: Server):
    """A server that behaves, and has counted nothing."""
    started.control(**PLAIN, reset=True)
    return started


@pytest.fixture
def client(server: Server):
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.base_url, headers=headers, trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture
def ask(client: httpx.Client):
    """`ask("text", seed=1)` is the response to a request with that one message."""

    def post(text: str = "Hello there", **changed: Any) -> httpx.Response:
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **changed}
        return client.post("/chat/completions", json=body)

    return post
