"""What the exceptions of client libraries say about a provider: the real ones, as rows of a table."""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta
from email.utils import formatdate
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import dspy
import httpx
import litellm
import openai
import pytest
from dspy import lm15
from dspy.utils import exceptions as of_dspy

from dspex_pipelines.engine.calls.provider_faults import provider_fault
from dspex_pipelines.engine.throttling.throttle import Verdict
from dspex_pipelines.errors import NO_KEY, ProviderGivenUp
from dspex_pipelines.model.outcome import ErrorType

REFUSED = (ErrorType.RATE_LIMITED, Verdict.REFUSED, True, False)
OVERLOADED = (ErrorType.PROVIDER_UNAVAILABLE, Verdict.OVERLOADED, True, False)
FAILED = (ErrorType.PROVIDER_UNAVAILABLE, Verdict.FAILED, True, False)
KEY = (ErrorType.PROVIDER_UNAVAILABLE, Verdict.NEUTRAL, False, True)
MODEL = (ErrorType.INVALID_CONFIGURATION, Verdict.NEUTRAL, False, False)
MALFORMED = (ErrorType.MALFORMED_OUTPUT, Verdict.NEUTRAL, True, False)
PROGRAM = (ErrorType.PROGRAM_EXCEPTION, Verdict.NEUTRAL, False, False)
"""Type, verdict for the throttle, whether it passes, whether it ends the run."""

REQUEST = httpx.Request("POST", "https://api.example.com/v1")


def response(status: int, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers=named, request=REQUEST)


def of_openai(kind: type[openai.APIStatusError], status: int, code: str | None = None, **headers: str) -> Exception:
    body = {"code": code, "type": code, "message": "m"} if code else None
    return kind("m", response=response(status, **headers), body=body)


def of_litellm(name: str, **of: Any) -> Exception:
    return getattr(litellm, name)(**{"message": "m", "llm_provider": "openai", "model": "m"} | of)


class APIStatusError(Exception):
    """As Anthropic's client has them."""

    def __init__(self, status: int, kind: str, **headers: str) -> None:
        super().__init__(kind)
        self.status_code = status
        self.response = response(status, **headers)
        self.body = {"type": "error", "error": {"type": kind, "message": "m"}}


class APITimeoutError(Exception):
    """Likewise, without a status."""


class ClientError(Exception):
    """As Google's client has them."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code, self.status = code, "SOME_STATUS"


class BrokenPipe(ConnectionError):
    """A program's own."""


for foreign, library in ((APIStatusError, "anthropic"), (APITimeoutError, "anthropic"), (ClientError, "google.genai")):
    foreign.__module__ = library


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


class Unspeakable(of_dspy.LMError):
    """Raises when it is looked at."""

    @property
    def status(self) -> int:
        raise ZeroDivisionError

    @status.setter
    def status(self, _: object) -> None: ...


TABLE: dict[str, tuple[Exception, tuple[ErrorType, Verdict, bool, bool] | None]] = {
    # DSPy, as its boundary raises them
    "dspy-rate-limit": (of_dspy.LMRateLimitError("m", status=429), REFUSED),
    "dspy-rate-limit-no-status": (of_dspy.LMRateLimitError("m"), REFUSED),
    "dspy-quota": (of_dspy.LMRateLimitError("m", status=429, provider_code="insufficient_quota"), KEY),
    "dspy-overloaded": (of_dspy.LMServerError("m", status=529, provider_code="overloaded_error"), OVERLOADED),
    "dspy-unavailable": (of_dspy.LMServerError("m", status=503), OVERLOADED),
    "dspy-server": (of_dspy.LMServerError("m", status=500), FAILED),
    "dspy-server-no-status": (of_dspy.LMServerError("m"), FAILED),
    "dspy-timeout": (of_dspy.LMTimeoutError("m"), FAILED),
    "dspy-transport": (of_dspy.LMTransportError("m"), FAILED),
    "dspy-lock": (of_dspy.LMLockTimeoutError("m"), FAILED),
    "dspy-stream": (of_dspy.LMStreamAssemblyError("m"), FAILED),
    "dspy-auth": (of_dspy.LMAuthError("m", status=401), KEY),
    "dspy-no-key": (of_dspy.LMNotConfiguredError("m"), KEY),
    "dspy-billing": (of_dspy.LMBillingError("m", status=402), KEY),
    "dspy-model": (of_dspy.LMUnsupportedModelError("m", status=404), MODEL),
    "dspy-context": (of_dspy.ContextWindowExceededError(model="m"), PROGRAM),
    "dspy-content": (of_dspy.LMInvalidRequestError("m", status=400, provider_code="content_filter"), PROGRAM),
    "dspy-request": (of_dspy.LMInvalidRequestError("m", status=400), PROGRAM),
    "dspy-request-no-status": (of_dspy.LMInvalidRequestError("m"), PROGRAM),
    "dspy-feature": (of_dspy.LMUnsupportedFeatureError("m"), PROGRAM),
    "dspy-parse": (of_dspy.AdapterParseError("ChatAdapter", dspy.Signature("q -> a"), "raw text"), MALFORMED),
    "dspy-unexpected": (caused(of_dspy.LMUnexpectedError("m"), ValueError("a bug")), None),
    "dspy-unexpected-lost": (caused(of_dspy.LMUnexpectedError("m"), httpx.ReadError("m")), FAILED),
    "dspy-configuration": (of_dspy.LMConfigurationError("m"), None),
    # its engine's own
    "lm15-rate-limit": (lm15.RateLimitError("m"), REFUSED),
    "lm15-server": (lm15.ServerError("m"), FAILED),
    "lm15-timeout": (lm15.TimeoutError("m"), FAILED),
    "lm15-auth": (lm15.AuthError("m"), KEY),
    "lm15-context": (lm15.ContextLengthError("m"), PROGRAM),
    "lm15-model": (lm15.UnknownModelError("m"), MODEL),
    # OpenAI
    "openai-rate-limit": (of_openai(openai.RateLimitError, 429), REFUSED),
    "openai-quota": (of_openai(openai.RateLimitError, 429, "insufficient_quota"), KEY),
    "openai-server": (of_openai(openai.InternalServerError, 500), FAILED),
    "openai-unavailable": (of_openai(openai.InternalServerError, 503), OVERLOADED),
    "openai-conflict": (of_openai(openai.ConflictError, 409), FAILED),
    "openai-auth": (of_openai(openai.AuthenticationError, 401, "invalid_api_key"), KEY),
    "openai-permission": (of_openai(openai.PermissionDeniedError, 403), KEY),
    "openai-model-permission": (of_openai(openai.PermissionDeniedError, 403, "model_not_found"), MODEL),
    "openai-model": (of_openai(openai.NotFoundError, 404, "model_not_found"), MODEL),
    "openai-context": (of_openai(openai.BadRequestError, 400, "context_length_exceeded"), PROGRAM),
    "openai-content": (of_openai(openai.BadRequestError, 400, "content_filter"), PROGRAM),
    "openai-request": (of_openai(openai.BadRequestError, 400), PROGRAM),
    "openai-unprocessable": (of_openai(openai.UnprocessableEntityError, 422), PROGRAM),
    "openai-timeout": (openai.APITimeoutError(REQUEST), FAILED),
    "openai-connection": (openai.APIConnectionError(request=REQUEST), FAILED),
    "openai-no-answer": (openai.APIResponseValidationError(response(200), None), FAILED),
    "openai-content-finish": (openai.ContentFilterFinishReasonError(), PROGRAM),
    # LiteLLM
    "litellm-rate-limit": (of_litellm("RateLimitError"), REFUSED),
    "litellm-server": (of_litellm("InternalServerError"), FAILED),
    "litellm-unavailable": (of_litellm("ServiceUnavailableError"), OVERLOADED),
    "litellm-auth": (of_litellm("AuthenticationError"), KEY),
    "litellm-timeout": (of_litellm("Timeout"), FAILED),
    "litellm-connection": (of_litellm("APIConnectionError"), FAILED),
    "litellm-model": (of_litellm("NotFoundError"), MODEL),
    "litellm-request": (of_litellm("BadRequestError"), PROGRAM),
    "litellm-context": (of_litellm("ContextWindowExceededError"), PROGRAM),
    "litellm-content": (of_litellm("ContentPolicyViolationError"), PROGRAM),
    "litellm-api": (of_litellm("APIError", status_code=502), FAILED),
    "litellm-budget": (litellm.BudgetExceededError(current_cost=2.0, max_budget=1.0), KEY),
    "litellm-schema": (litellm.JSONSchemaValidationError("m", "openai", "raw text", "{}"), MALFORMED),
    # httpx
    "httpx-connect": (httpx.ConnectError("m"), FAILED),
    "httpx-read-timeout": (httpx.ReadTimeout("m"), FAILED),
    "httpx-protocol": (httpx.RemoteProtocolError("m"), FAILED),
    "httpx-proxy": (httpx.ProxyError("m"), FAILED),
    "httpx-decoding": (httpx.DecodingError("m"), FAILED),
    "httpx-status": (httpx.HTTPStatusError("m", request=REQUEST, response=response(429)), REFUSED),
    "httpx-gateway": (httpx.HTTPStatusError("m", request=REQUEST, response=response(502)), FAILED),
    "httpx-url": (httpx.UnsupportedProtocol("m"), None),
    # of the shape of others
    "anthropic-rate-limit": (APIStatusError(429, "rate_limit_error"), REFUSED),
    "anthropic-overloaded": (APIStatusError(529, "overloaded_error"), OVERLOADED),
    "anthropic-request": (APIStatusError(400, "invalid_request_error"), PROGRAM),
    "anthropic-key": (APIStatusError(401, "authentication_error"), KEY),
    "anthropic-timeout": (APITimeoutError("m"), FAILED),
    "google-rate-limit": (ClientError(429), REFUSED),
    "google-overloaded": (ClientError(503), OVERLOADED),
    # in one another
    "wrapped": (caused(RuntimeError("m"), of_dspy.LMRateLimitError("m")), REFUSED),
    "group": (ExceptionGroup("m", [of_dspy.LMRateLimitError("m"), of_dspy.LMTimeoutError("m")]), REFUSED),
    "group-with-a-bug": (ExceptionGroup("m", [of_dspy.LMRateLimitError("m"), ValueError("m")]), None),
    # nobody's
    "bug": (ValueError("m"), None),
    "unspeakable": (Unspeakable("m"), None),
}


@pytest.mark.parametrize(("error", "told"), TABLE.values(), ids=TABLE)
@pytest.mark.parametrize("within_call", [True, False], ids=["in-a-call", "out-of-a-program"])
def test_an_exception_says(
    error: Exception, told: tuple[ErrorType, Verdict, bool, bool] | None, within_call: bool
) -> None:
    fault = provider_fault(error, within_call=within_call)
    if told is None:
        assert fault is None
    else:
        assert fault is not None
        assert (fault.type, fault.verdict, fault.passes, fault.ends_run) == told
        assert fault.what


@pytest.mark.parametrize(
    "error", [ConnectionResetError("m"), TimeoutError(), BrokenPipe("m"), socket.gaierror(-2, "m")], ids=repr
)
def test_what_any_library_raises_is_the_providers_only_in_a_call(error: Exception) -> None:
    fault = provider_fault(error, within_call=True)
    assert fault is not None
    assert (fault.type, fault.verdict) == FAILED[:2]
    assert provider_fault(error) is None


def test_what_was_given_up_says_so() -> None:
    fault = provider_fault(ProviderGivenUp(model="m", reason="r"))
    assert fault is not None
    assert fault.type is ErrorType.PROVIDER_UNAVAILABLE


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        pytest.param(of_dspy.LMRateLimitError("m", retry_after=3), 3, id="attribute"),
        pytest.param(of_openai(openai.RateLimitError, 429, retry_after="7"), 7, id="header"),
        pytest.param(of_openai(openai.RateLimitError, 429, retry_after_ms="1500", retry_after="9"), 1.5, id="ms"),
        pytest.param(of_openai(openai.RateLimitError, 429, retry_after_ms="soon", retry_after="4"), 4, id="no-number"),
        pytest.param(of_openai(openai.RateLimitError, 429, retry_after="soon"), 0, id="nothing"),
        pytest.param(of_openai(openai.RateLimitError, 429, retry_after="-5"), 0, id="negative"),
        pytest.param(of_openai(openai.RateLimitError, 429, retry_after="nan"), 0, id="nan"),
        pytest.param(caused(of_dspy.LMRateLimitError("m"), APIStatusError(429, "x", retry_after="2")), 2, id="cause"),
        pytest.param(of_openai(openai.BadRequestError, 400, retry_after="7"), 0, id="will-not-pass"),
        pytest.param(of_openai(openai.RateLimitError, 429, retry_after="1e308"), 0, id="for-ever"),
        pytest.param(of_openai(openai.RateLimitError, 429, retry_after="1764322000"), 0, id="a-moment"),
        pytest.param(of_openai(openai.RateLimitError, 429, retry_after=formatdate(2e11)), 0, id="far-future"),
        pytest.param(
            of_openai(openai.RateLimitError, 429, retry_after="Mon, 01 Jan 0001 00:00:00 -0000"), 0, id="first-year"
        ),
        pytest.param(of_openai(openai.RateLimitError, 429, retry_after="9" * 5_000), 0, id="digits"),
        pytest.param(of_dspy.LMRateLimitError("m", retry_after=10**400), 0, id="beyond-floats"),
        pytest.param(of_dspy.LMRateLimitError("m", retry_after=[1]), 0, id="a-list"),
        pytest.param(of_dspy.LMRateLimitError("m", retry_after=timedelta(seconds=3)), 0, id="a-duration"),
    ],
)
def test_when_to_ask_again(error: Exception, seconds: float) -> None:
    fault = provider_fault(error)
    assert fault is not None
    assert fault.retry_after_s == seconds


def test_when_to_ask_again_may_be_a_date() -> None:
    until = formatdate(time.time() + 60, usegmt=True)
    fault = provider_fault(of_openai(openai.RateLimitError, 429, retry_after=until))
    assert fault is not None
    assert 50 < fault.retry_after_s <= 60
    past = formatdate(time.time() - 60, usegmt=True)
    fault = provider_fault(of_openai(openai.RateLimitError, 429, retry_after=past))
    assert fault is not None
    assert fault.retry_after_s == 0


@pytest.mark.parametrize("name", ["dspy-parse", "litellm-schema"])
def test_what_the_model_said_in_vain_is_kept(name: str) -> None:
    fault = provider_fault(TABLE[name][0])
    assert fault is not None
    assert fault.raw == "raw text"


def test_a_key_that_is_missing_is_told_apart_from_one_that_is_refused() -> None:
    missing, refused = (provider_fault(TABLE[name][0]) for name in ("dspy-no-key", "dspy-auth"))
    assert missing is not None
    assert refused is not None
    assert (missing.what, refused.what) == (NO_KEY, "authentication")
