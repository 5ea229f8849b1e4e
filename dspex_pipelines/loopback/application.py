"""The ASGI application: one completion at a time, answered, refused or dropped as the behaviour has it."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias, cast

from dspex_pipelines.loopback import replies
from dspex_pipelines.loopback.answers import Answerer, answer
from dspex_pipelines.loopback.behaviour import Behaviour, Fault
from dspex_pipelines.loopback.chat import BadRequest, ChatRequest, count_tokens, read_request
from dspex_pipelines.loopback.limits import Bucket
from dspex_pipelines.loopback.replies import Reply
from dspex_pipelines.loopback.tally import Seen, Tally

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
_COMPLETIONS = ("/v1/chat/completions", "/chat/completions")
_SECONDS_PER_MINUTE = 60
_ENDLESS = 1e12
"""What a bucket without a limit gains in a second."""


class Application:
    """Serves chat completions, `GET /stats` and `POST /control`; one for each server.

    *api_key* is the only key that is taken, empty: any is, and none. Changes of the behaviour hold for what arrives
    after them, except that going down closes the connections of requests under way. A limit that changes begins with a
    full bucket, and what was permitted is counted anew.
    """

    def __init__(self, *, behaviour: Behaviour, answerer: Answerer, api_key: str = "") -> None:
        self._behaviour = behaviour
        self._answerer = answerer
        self._expected = f"Bearer {api_key}".encode() if api_key else b""
        self._under_way: set[asyncio.Transport] = set()
        self._cut: set[asyncio.Transport] = set()
        self._tally = Tally()
        self._requests, self._tokens = _buckets(behaviour)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"no {scope['type']} here")
        path: str = scope["path"]
        match scope["method"], path:
            case "POST", _ if path in _COMPLETIONS:
                await self._complete(scope, receive, send)
            case "GET", "/stats":
                await _send(send, replies.as_json(self._stats()))
            case "POST", "/control":
                await _send(send, self._control(await _body(receive)))
            case _:
                await _send(send, replies.not_found(path))

    def _stats(self) -> dict[str, object]:
        limited = self._behaviour.requests_per_s > 0
        return self._tally.summary() | {
            "permitted": self._requests.permitted if limited else None,
            "permitted_tokens": self._tokens.permitted if self._behaviour.tokens_per_minute else None,
        }

    def _control(self, body: bytes) -> Reply:
        """Change the behaviour by the JSON in *body*, all of it or nothing; return the one that holds now."""
        try:
            document: object = json.loads(body or b"{}")
            if not isinstance(document, dict):
                return replies.bad_request("give a JSON object", param="control")
            values = cast("dict[str, object]", document)
            reset = values.pop("reset", False)
            behaviour = self._behaviour.changed(values)
        except (ValueError, TypeError) as error:
            return replies.bad_request(str(error), param="control")
        if reset:
            self._tally = Tally(in_flight=self._tally.in_flight, max_in_flight=self._tally.in_flight)
            self._requests, self._tokens = _buckets(behaviour)
        elif _limits(behaviour) != _limits(self._behaviour):
            self._requests, self._tokens = _buckets(behaviour)
        self._behaviour = behaviour
        if behaviour.down:
            for transport in self._under_way - self._cut:
                self._cut.add(transport)
                self._tally.dropped += 1
                transport.close()
        shown = {name: getattr(behaviour, name) for name in Behaviour.__slots__}
        return replies.as_json(shown)

    async def _complete(self, scope: Message, receive: Receive, send: Send) -> None:
        tally, transport = self._tally, _transport_of(send)
        tally.arrived(time.monotonic())
        self._under_way.add(transport)
        try:
            # Read to its end first: closing before that resets the connection, which clients tell apart.
            body = await _body(receive)
            if self._behaviour.down or transport in self._cut:
                await self._drop(tally, transport, receive)
                return
            outcome = self._admit(scope, body)
            if isinstance(outcome, Reply):
                await self._refuse(tally, outcome, send)
            else:
                request, seen = outcome
                await self._serve(tally, request, seen, transport, receive, send)
        finally:
            self._under_way.discard(transport)
            self._cut.discard(transport)
            self._tally.in_flight -= 1

    async def _refuse(self, tally: Tally, reply: Reply, send: Send) -> None:
        if reply.status == replies.REFUSED:
            tally.refused += 1
        else:
            tally.errors[reply.kind] += 1
        await _send(send, reply)

    def _admit(self, scope: Message, body: bytes) -> Reply | tuple[ChatRequest, Seen]:
        """Return the request and what was seen of its content, or why it is not let through."""
        if self._expected and not hmac.compare_digest(_authorization(scope), self._expected):
            return replies.unauthorized()
        try:
            request = read_request(body)
        except BadRequest as error:
            return replies.bad_request(str(error), param=error.param)
        if refusal := self._reject(request) or self._limit(request):
            return refusal
        return request, self._tally.content(request.content)

    def _reject(self, request: ChatRequest) -> Reply | None:
        """Return why the request will never be let through, if so."""
        behaviour = self._behaviour
        if not behaviour.has(request.model):
            return replies.model_not_found(request.model)
        tokens = request.prompt_tokens + (request.max_tokens or 0)
        if 0 < behaviour.context_tokens < tokens:
            return replies.context_length_exceeded(behaviour.context_tokens, tokens)
        if behaviour.filter and any(behaviour.filter in message.text for message in request.messages):
            return replies.content_filter()
        return None

    def _limit(self, request: ChatRequest) -> Reply | None:
        """Return the refusal where a limit is reached; else take from both, or from none."""
        behaviour, now_s = self._behaviour, time.monotonic()
        if behaviour.requests_per_s:
            wait_s = self._requests.wait_s(1, now_s=now_s)
            if wait_s > 0:
                return replies.rate_limited("requests", wait_s)
        if behaviour.tokens_per_minute:
            tokens = request.prompt_tokens + sum(count_tokens(text) for text in self._texts(request))
            wait_s = self._tokens.wait_s(tokens, now_s=now_s)
            if wait_s > 0:
                return replies.rate_limited("tokens", wait_s)
            self._tokens.take(tokens)
        if behaviour.requests_per_s:
            self._requests.take(1)
        return None

    def _texts(self, request: ChatRequest, *, malformed: bool = False) -> list[str]:
        return [answer(request, self._answerer, choice=index, malformed=malformed) for index in range(request.n)]

    async def _serve(
        self,
        tally: Tally,
        request: ChatRequest,
        seen: Seen,
        transport: asyncio.Transport,
        receive: Receive,
        send: Send,
    ) -> None:
        fault = self._behaviour.fault(request.content, seen.admitted)
        seen.admitted += 1
        match fault:
            case "server_error":
                await self._refuse(tally, replies.server_error(), send)
            case "overloaded":
                await self._refuse(tally, replies.overloaded(503), send)
            case "overloaded_529":
                await self._refuse(tally, replies.overloaded(529), send)
            case "dropped":
                await self._drop(tally, transport, receive)
            case "hung":
                tally.hung += 1
                await _disconnected(receive)
            case None | "malformed":
                await self._answer(tally, request, seen, fault, transport, receive, send)

    async def _answer(
        self,
        tally: Tally,
        request: ChatRequest,
        seen: Seen,
        fault: Fault | None,
        transport: asyncio.Transport,
        receive: Receive,
        send: Send,
    ) -> None:
        reply, tokens = replies.completion(request, self._texts(request, malformed=fault is not None))
        latency_s = self._behaviour.latency_of(request.content)
        if latency_s and await _leaves(receive, latency_s):
            if transport not in self._cut:
                tally.left += 1
            return
        tally.last_answer_s = time.monotonic()
        tally.prompt_tokens += request.prompt_tokens
        tally.completion_tokens += tokens
        if fault is None:
            tally.answered += 1
            seen.answered += 1
        else:
            tally.malformed += 1
        await _send(send, reply)

    async def _drop(self, tally: Tally, transport: asyncio.Transport, receive: Receive) -> None:
        if transport not in self._cut:
            tally.dropped += 1
            transport.close()
        # Whoever returns without an answer before the connection is known to be gone has one sent in its name.
        await _disconnected(receive)


def _limits(behaviour: Behaviour) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return rate in a second and size of the buckets of requests and of tokens."""
    requests = (behaviour.requests_per_s or _ENDLESS, float(behaviour.burst))
    tokens = behaviour.tokens_per_minute
    return requests, (tokens / _SECONDS_PER_MINUTE or _ENDLESS, float(tokens))


def _buckets(behaviour: Behaviour) -> tuple[Bucket, Bucket]:
    requests, tokens = _limits(behaviour)
    return Bucket(per_s=requests[0], size=requests[1]), Bucket(per_s=tokens[0], size=tokens[1])


def _transport_of(send: Send) -> asyncio.Transport:
    """Return the connection under *send*: ASGI has no word for closing one without an answer, uvicorn does."""
    return cast("Any", send).__self__.transport


def _authorization(scope: Message) -> bytes:
    return next((value for name, value in scope["headers"] if name == b"authorization"), b"")


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _leaves(receive: Receive, within_s: float) -> bool:
    """Wait *within_s*, at most until the client has left; return whether it has."""
    try:
        async with asyncio.timeout(within_s):
            await _disconnected(receive)
    except TimeoutError:
        return False
    return True


async def _send(send: Send, reply: Reply) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(reply.body)).encode()),
        *reply.headers,
    ]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
