"""What goes back over HTTP: the bodies and headers that OpenAI's API uses."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dspex_pipelines.loopback.chat import ChatRequest, count_tokens

_CREATED = 1_700_000_000
"""An answer that is the same in every process has no time of its own."""
REFUSED = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A status, a JSON body, and headers beyond the body's own; `kind` is what the statistics call an error."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    kind: str = ""


def as_json(document: object) -> Reply:
    """Return the reply that is *document*."""
    return Reply(status=200, body=json.dumps(document).encode())


def completion(request: ChatRequest, texts: Sequence[str]) -> tuple[Reply, int]:
    """Return the completion of *request* with *texts* as its choices, and the tokens of the latter.

    A text that is longer than `max_tokens` is cut, and says so.
    """
    choices: list[dict[str, object]] = []
    completion_tokens = 0
    for index, text in enumerate(texts):
        tokens, shown = count_tokens(text), text
        cut = request.max_tokens is not None and tokens > request.max_tokens
        if cut:
            shown, tokens = _first_tokens(text, request.max_tokens or 0), request.max_tokens or 0
        completion_tokens += tokens
        choices.append(
            {
                "index": index,
                "message": {"role": "assistant", "content": shown, "refusal": None},
                "logprobs": None,
                "finish_reason": "length" if cut else "stop",
            }
        )
    prompt_tokens = request.prompt_tokens
    document = {
        "id": f"chatcmpl-{request.content.hex()}",
        "object": "chat.completion",
        "created": _CREATED,
        "model": request.model,
        "choices": choices,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
        "system_fingerprint": "fp_loopback",
    }
    return as_json(document), completion_tokens


def error(
    status: int, message: str, *, kind: str, type_: str, code: str | None = None, param: str | None = None
) -> Reply:
    """Return an error with OpenAI's body, counted as *kind*."""
    body = {"error": {"message": message, "type": type_, "param": param, "code": code}}
    return Reply(status=status, body=json.dumps(body).encode(), kind=kind)


def bad_request(message: str, *, param: str) -> Reply:
    """Return the refusal of a request that is malformed itself."""
    return error(400, message, kind="bad_request", type_="invalid_request_error", param=param)


def context_length_exceeded(limit: int, tokens: int) -> Reply:
    """Return the refusal of a prompt that is too long."""
    message = (
        f"This model's maximum context length is {limit} tokens. However, you requested {tokens} tokens. "
        "Please reduce the length of the messages or completion."
    )
    code = "context_length_exceeded"
    return error(400, message, kind=code, type_="invalid_request_error", code=code, param="messages")


def content_filter() -> Reply:
    """Return the refusal of a prompt that the filter does not like."""
    message = "The response was filtered due to the prompt triggering the content management policy."
    code = "content_filter"
    return error(400, message, kind=code, type_="invalid_request_error", code=code, param="prompt")


def rate_limited(of: str, wait_s: float) -> Reply:
    """Return the refusal of a request (*of*: requests or tokens) that may be made again in *wait_s*.

    Like the providers' own, `retry-after` is in whole seconds and at least one; `retry-after-ms` is exact.
    """
    message = f"Rate limit reached on {of}. Please try again in {wait_s:.3f}s."
    reply = error(REFUSED, message, kind="rate_limit_exceeded", type_=of, code="rate_limit_exceeded")
    headers = (
        (b"retry-after", str(max(1, math.ceil(wait_s))).encode()),
        (b"retry-after-ms", str(max(1, math.ceil(wait_s * 1000))).encode()),
    )
    return Reply(status=reply.status, body=reply.body, headers=headers, kind=reply.kind)


def unauthorized() -> Reply:
    """Return the refusal of a key, which it does not repeat."""
    message = "Incorrect API key provided."
    return error(401, message, kind="unauthorized", type_="invalid_request_error", code="invalid_api_key")


def server_error() -> Reply:
    """Return a failure of the server's own."""
    message = "The server had an error while processing your request. Sorry about that!"
    return error(500, message, kind="server_error", type_="server_error")


def overloaded(status: int) -> Reply:
    """Return an overload, with *status* 503 or 529."""
    message = "The model is currently overloaded. Please try again later."
    return error(status, message, kind=f"overloaded_{status}", type_="overloaded_error", code="overloaded")


def model_not_found(model: str) -> Reply:
    """Return that there is no such *model*."""
    message = f"The model `{model}` does not exist or you do not have access to it."
    code = "model_not_found"
    return error(404, message, kind=code, type_="invalid_request_error", code=code, param="model")


def not_found(path: str) -> Reply:
    """Return that there is nothing at *path*."""
    return error(404, f"Unknown request URL: {path}", kind="not_found", type_="invalid_request_error")


def _first_tokens(text: str, count: int) -> str:
    end = 0
    for _ in range(count):
        while text[end].isspace():
            end += 1
        while end < len(text) and not text[end].isspace():
            end += 1
    return text[:end]
