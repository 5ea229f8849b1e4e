"""How the bridge says no: with a status, and the facts in JSON of which the client makes the same error again."""

from __future__ import annotations

import json
import string
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias
from urllib.parse import quote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from dspex_pipelines.errors import (
    DspexError,
    InvalidValue,
    QuotaExceeded,
    SerializationError,
    UnknownSession,
    VersionConflict,
)
from dspex_pipelines.wire.codec import PROTOCOL_VERSION

if TYPE_CHECKING:
    # Generic in the stubs alone.
    _Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    _Interceptor = grpc.aio.ServerInterceptor

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

FACT_CHARACTERS = 1_500
DETAILS_CHARACTERS = 6_000
"""A status is a header, and gRPC takes 8 KiB of headers."""
OURS = "/dspex.v1."
STREAMS = frozenset({"/dspex.v1.ExecutionService/ExecutePrograms", "/dspex.v1.WorkerService/Attach"})
"""Their frames come as bytes: the services parse them, and know their sizes."""


async def refuse(context: Context, error: DspexError) -> NoReturn:
    """End a call with the status and the facts of *error*."""
    match error:
        case InvalidValue():
            code = grpc.StatusCode.INVALID_ARGUMENT
            facts: dict[str, Any] = {"field": error.field, "value": str(error.value), "fix": error.fix}
        case SerializationError():
            code = grpc.StatusCode.INVALID_ARGUMENT
            facts = {"field": error.path, "value": "", "fix": error.reason}
        case QuotaExceeded():
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
            facts = {"field": error.field, "limit": error.limit, "fix": error.fix}
        case VersionConflict():
            code = grpc.StatusCode.ABORTED
            facts = {"session_id": error.session_id, "expected": error.expected, "actual": error.actual}
        case UnknownSession():
            code = grpc.StatusCode.NOT_FOUND
            facts = {"session_id": error.session_id, "version": error.version}
        case _:
            code, facts = grpc.StatusCode.INVALID_ARGUMENT, {"message": str(error)}
    return await refuse_for(context, code, **facts)


async def refuse_for(context: Context, code: grpc.StatusCode, **facts: Any) -> NoReturn:
    """End a call with *code* and *facts*, whose texts are cut to what a status can hold."""
    return await end(context, code, json.dumps({name: _cut(fact) for name, fact in facts.items()}))


async def end(context: Context, code: grpc.StatusCode, details: str) -> NoReturn:
    """End a call with *code* and *details*, without their middle where they are too long for a status."""
    while len(quote(details, safe=string.printable)) > DETAILS_CHARACTERS:
        part = len(details) * 3 // 8
        details = f"{details[:part]} … {details[-part:]}"
    await context.abort(code, details)
    raise AssertionError("abort does not return")


async def check_protocol(context: Context, theirs: int) -> None:
    """End the call when the other end speaks another protocol version."""
    if theirs != PROTOCOL_VERSION:
        await refuse_for(context, grpc.StatusCode.FAILED_PRECONDITION, protocol_version=PROTOCOL_VERSION)


class ParsedRequests(_Interceptor):
    """Ends calls whose request is not the message it should be with INVALID_ARGUMENT; gRPC itself logs a traceback."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the method's handler, which gets its requests as bytes."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(OURS):
            return handler
        if method in STREAMS:
            return handler._replace(request_deserializer=None)
        parse, name = handler.request_deserializer, method.rpartition("/")[2]
        if handler.response_streaming:

            async def stream(data: bytes, context: Context) -> AsyncIterator[Any]:
                async with aclosing(handler.unary_stream(await parsed(context, parse, data, name), context)) as answers:
                    async for answer in answers:
                        yield answer

            return handler._replace(request_deserializer=None, unary_stream=stream)

        async def answer(data: bytes, context: Context) -> Any:
            return await handler.unary_unary(await parsed(context, parse, data, name), context)

        return handler._replace(request_deserializer=None, unary_unary=answer)


async def parsed(context: Context, parse: Callable[[bytes], Any], data: bytes, name: str) -> Any:
    """Return the message of *data*, or end the call of method *name*."""
    try:
        return parse(data)
    except DecodeError as error:
        return await end(context, grpc.StatusCode.INVALID_ARGUMENT, f"not a request of {name}: {error}")


def _cut(fact: Any) -> Any:
    if isinstance(fact, str) and len(json.dumps(fact)) > FACT_CHARACTERS:
        # As JSON, a character takes up to twelve.
        return fact[: FACT_CHARACTERS // 12] + "…"
    return fact
