"""Language models behind HTTP, on this machine: what DSPy's clients make of a refusal and of silence."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dspy
import pytest

from dspex_pipelines.engine.calls.trial_calls import end_trial
from dspex_pipelines.engine.throttling.throttle import Verdict
from dspex_pipelines.worker.dspy_models import TrialOver
from tests.worker.dspy_echo import answered
from tests.worker.dspy_trial import Trials


class Provider(ThreadingHTTPServer):
    """Answers in OpenAI's form, once it has refused, or been silent, as often as it was told to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = 0
        self.refusals = 0
        self.silence = threading.Event()
        self.silence.set()

    def handle_error(self, *_: object) -> None:
        """Clients that give up are what is tested."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Provider

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.requests += 1
        self.server.silence.wait(30)
        if self.server.refusals > 0:
            self.server.refusals -= 1
            self._answer(429, {"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}})
            return
        message = {"role": "assistant", "content": answered(answer="fine")}
        usage = {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini", "usage": usage}
        self._answer(200, {**whole, "choices": [choice]})

    def _answer(self, status: int, body: object) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.silence.set()
        serving.shutdown()
        thread.join()


def model(provider: Provider, engine: str) -> dspy.LM:
    return dspy.LM("openai/gpt-4o-mini", api_base=provider.url, api_key="sk-secret", engine=engine, cache=False)


@pytest.mark.parametrize("engine", ["lm15", "litellm", "auto"])
def test_every_refusal_is_the_throttles_to_see(provider: Provider, engine: str) -> None:
    trials, predictor = Trials("UnderSettings"), dspy.Predict("question -> answer")
    provider.refusals = 2
    calls = trials.begun()
    with trials.around(calls):
        prediction = predictor(question="Which?", lm=model(provider, engine))
    end_trial()
    assert prediction.answer == "fine"
    assert provider.requests == 3
    assert [verdict for verdict, _ in trials.leave.ended] == [Verdict.REFUSED, Verdict.REFUSED, Verdict.OK]
    assert calls.used["tokens"] == 15
    assert calls.calls[0].model == f"openai/gpt-4o-mini@{provider.url}"
    assert calls.used["cost_usd"] > 0
    assert "sk-secret" not in repr(calls.calls)


@pytest.mark.parametrize("engine", ["lm15", "litellm"])
def test_a_silent_provider_keeps_no_thread_longer_than_the_trial(provider: Provider, engine: str) -> None:
    trials, predictor = Trials("UnderSettings"), dspy.Predict("question -> answer")
    model(provider, engine)("What is imported late is now.")
    provider.silence.clear()
    began = time.perf_counter()
    calls = trials.begun(timeout_s=0.3)
    with trials.around(calls), pytest.raises(TrialOver):
        predictor(question="Which?", lm=model(provider, engine))
    end_trial()
    assert time.perf_counter() - began < 5
    assert [verdict for verdict, _ in trials.leave.ended] == [Verdict.FAILED, Verdict.NEUTRAL]
