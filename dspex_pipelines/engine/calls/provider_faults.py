"""What an exception says about a model's provider, whichever client library raised it.

It goes by what such exceptions have in common (a status, a code, headers), so no library has to be there.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, cast

from dspex_pipelines.engine.throttling.throttle import Verdict
from dspex_pipelines.errors import NO_KEY, ProviderGivenUp
from dspex_pipelines.model.outcome import ErrorType

_LINKS = 4
"""Causes of an exception that are looked at: libraries wrap each other's."""
_STATUSES: dict[str, frozenset[int]] = {
    "refused": frozenset({429}),
    "overloaded": frozenset({503, 529}),
    "failed": frozenset({408, 409, 425, 499}),
    "billing": frozenset({402}),
    "key": frozenset({401, 403}),
    "model": frozenset({404}),
}
_MEANINGS: dict[str, tuple[ErrorType, Verdict, str]] = {
    "refused": (ErrorType.RATE_LIMITED, Verdict.REFUSED, "rate limit"),
    "overloaded": (ErrorType.PROVIDER_UNAVAILABLE, Verdict.OVERLOADED, "overload"),
    "failed": (ErrorType.PROVIDER_UNAVAILABLE, Verdict.FAILED, "provider failed"),
    "key": (ErrorType.PROVIDER_UNAVAILABLE, Verdict.NEUTRAL, "authentication"),
    "no key": (ErrorType.PROVIDER_UNAVAILABLE, Verdict.NEUTRAL, NO_KEY),
    "billing": (ErrorType.PROVIDER_UNAVAILABLE, Verdict.NEUTRAL, "billing"),
    "model": (ErrorType.INVALID_CONFIGURATION, Verdict.NEUTRAL, "unknown model or address"),
    "malformed": (ErrorType.MALFORMED_OUTPUT, Verdict.NEUTRAL, "malformed output"),
    "context": (ErrorType.PROGRAM_EXCEPTION, Verdict.NEUTRAL, "context length"),
    "content": (ErrorType.PROGRAM_EXCEPTION, Verdict.NEUTRAL, "content filter"),
    "request": (ErrorType.PROGRAM_EXCEPTION, Verdict.NEUTRAL, "refused request"),
}
_CODES: dict[str, str] = {
    # DSPy's codes, and those of OpenAI's error bodies.
    "rate_limit": "refused",
    "rate_limit_exceeded": "refused",
    "overloaded": "overloaded",
    "overloaded_error": "overloaded",
    "server": "failed",
    "timeout": "failed",
    "transport": "failed",
    "lock_timeout": "failed",
    "auth": "key",
    "not_configured": "no key",
    "invalid_api_key": "key",
    "billing": "billing",
    "insufficient_quota": "billing",
    "stream_assembly": "failed",
    "invalid_request": "request",
    "unsupported_feature": "request",
    "unsupported_model": "model",
    "model_not_found": "model",
    "unknown_model": "model",
    "context_length": "context",
    "context_window_exceeded": "context",
    "context_length_exceeded": "context",
    "content_filter": "content",
    "content_policy_violation": "content",
    "adapter_parse_error": "malformed",
}
_FIRST = ("malformed", "context", "content", "billing", "key", "no key", "model")
"""Meanings that a code has whatever the status says: no quota left is a 429 too, and will not pass."""
_LIBRARIES = frozenset(
    {"aiohttp", "anthropic", "cohere", "dspy", "google", "httpcore", "httpx", "litellm", "openai", "requests"}
)
_LOST = (
    *("Timeout", "Connection", "ConnectError", "ReadError", "WriteError", "RemoteProtocolError", "TransportError"),
    *("ServerDisconnected", "ClientOSError", "ProxyError", "CloseError", "DecodingError", "ResponseValidationError"),
    "gaierror",
)
"""Parts of the names of what such libraries raise when there is no answer, or none that can be one."""
_NAMED: dict[str, str] = {
    # LiteLLM and OpenAI tell these by the class alone, under a status that says less or otherwise.
    "ContextWindowExceeded": "context",
    "ContentPolicyViolation": "content",
    "ContentFilterFinishReason": "content",
    "BudgetExceeded": "billing",
    "JSONSchemaValidation": "malformed",
    "LengthFinishReason": "malformed",
}
_LONGEST_WAIT_S = 366 * 24 * 3_600.0
"""Who asks for more has said something else: a moment, or nothing that makes sense."""
_MEMBERS = 16
"""Of a group of exceptions, so many are looked at."""


@dataclass(frozen=True, slots=True)
class ProviderFault:
    """How a failed call is told, and what is to be done about it."""

    type: ErrorType
    verdict: Verdict
    what: str
    """In a few words, for people."""
    passes: bool = False
    """Whether the same call may succeed later."""
    retry_after_s: float = 0.0
    ends_run: bool = False
    """Whether no other trial of the evaluation can succeed either."""
    raw: str | None = None
    """What the model said, where that could not be read."""


def provider_fault(error: BaseException, *, within_call: bool = False) -> ProviderFault | None:
    """Return what *error* says about a provider; None where it says nothing.

    *within_call*: it is known to come out of a call to a model, so that a lost connection or a timeout is the
    provider's. Never raises, whatever the exception makes of being looked at.
    """
    try:
        if isinstance(error, BaseExceptionGroup):
            # Tasks that failed together: it is the provider's fault if none of them is anybody else's.
            members = [provider_fault(one, within_call=within_call) for one in error.exceptions[:_MEMBERS]]
            return members[0] if all(members) else None
        if isinstance(error, ProviderGivenUp):
            return ProviderFault(ErrorType.PROVIDER_UNAVAILABLE, Verdict.NEUTRAL, "given up")
        links = _links(error)
        for link in links:
            meaning = _meaning(link, within_call=within_call)
            if meaning:
                return _fault(meaning, link, links)
    except Exception:  # noqa: BLE001 - an attribute may raise anything
        return None
    return None


def _links(error: BaseException) -> list[BaseException]:
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and len(links) < _LINKS:
        links.append(link)
        link = link.__cause__
    return links


def _meaning(error: BaseException, *, within_call: bool) -> str:
    known = any(base.__module__.partition(".")[0] in _LIBRARIES for base in type(error).__mro__)
    if not known and not within_call:
        return ""
    codes = [meaning for part, meaning in _NAMED.items() if part in type(error).__name__]
    codes += [_CODES[code] for code in _codes(error) if code in _CODES]
    first = next((meaning for meaning in _FIRST if meaning in codes), "")
    status = _status(error)
    return (
        first
        or _meaning_of_status(status)
        or next(iter(codes), "")
        or ("request" if status else _meaning_of_type(error))
    )


def _meaning_of_status(status: int | None) -> str:
    if status is None:
        return ""
    for meaning, statuses in _STATUSES.items():
        if status in statuses:
            return meaning
    return "failed" if status >= 500 else ""  # noqa: PLR2004 - HTTP's server errors


def _meaning_of_type(error: BaseException) -> str:
    lost = isinstance(error, ConnectionError | TimeoutError) or any(part in type(error).__name__ for part in _LOST)
    return "failed" if lost else ""


def _fault(meaning: str, error: BaseException, links: list[BaseException]) -> ProviderFault:
    kind, verdict, what = _MEANINGS[meaning]
    raw = getattr(error, "lm_response", getattr(error, "raw_response", None)) if meaning == "malformed" else None
    passes = verdict is not Verdict.NEUTRAL
    return ProviderFault(
        type=kind,
        verdict=verdict,
        what=what,
        passes=passes or meaning == "malformed",
        retry_after_s=_retry_after_s(links) if passes else 0.0,
        ends_run=meaning in ("key", "no key", "billing"),
        raw=raw if isinstance(raw, str) else None,
    )


def _codes(error: BaseException) -> list[str]:
    codes = [getattr(error, "provider_code", None), getattr(error, "code", None), getattr(error, "type", None)]
    body: Any = getattr(error, "body", None)
    if isinstance(body, dict):
        inner = cast("dict[str, Any]", body).get("error", body)
        if isinstance(inner, dict):
            codes += [cast("dict[str, Any]", inner).get(name) for name in ("code", "type")]
    return [code for code in codes if isinstance(code, str)]


def _status(error: BaseException) -> int | None:
    for holder in (error, getattr(error, "response", None)):
        # Google's clients have the status as the code.
        for name in ("status", "status_code", "http_status", "code"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and not isinstance(status, bool) and 400 <= status < 600:  # noqa: PLR2004
                return int(status)
    return None


def _retry_after_s(links: list[BaseException]) -> float:
    for link in links:
        # What the failure is, is known: a strange header changes nothing about that.
        with suppress(Exception):
            said: Any
            for said in (getattr(link, "retry_after", None), getattr(link, "retry_after_s", None), *_headers(link)):
                seconds = _seconds(said)
                if 0 < seconds <= _LONGEST_WAIT_S:
                    return seconds
    return 0.0


def _headers(error: BaseException) -> list[Any]:
    headers: Any = getattr(getattr(error, "response", None), "headers", None)
    if headers is None:
        return []
    return [_seconds(headers.get("retry-after-ms")) / 1_000, headers.get("retry-after")]


def _seconds(said: Any) -> float:
    """Return a number of seconds, which HTTP may give as the date until when; 0 for what is neither."""
    try:
        return float(said)
    except (TypeError, ValueError, OverflowError):
        pass
    try:
        return parsedate_to_datetime(said).timestamp() - time.time()
    except (AttributeError, TypeError, ValueError, OverflowError):
        return 0.0
