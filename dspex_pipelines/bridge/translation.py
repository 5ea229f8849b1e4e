"""Which error of ours the bridge meant by a status."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import grpc.aio

from dspex_pipelines.errors import (
    DspexError,
    InvalidValue,
    PoolUnreachable,
    ProgramUnavailable,
    ProtocolMismatch,
    QuotaExceeded,
    UnknownSession,
    VersionConflict,
)
from dspex_pipelines.wire.codec import MESSAGE_LIMIT, PROTOCOL_VERSION


def _mismatch(protocol_version: int) -> ProtocolMismatch:
    return ProtocolMismatch(ours=PROTOCOL_VERSION, theirs=protocol_version)


_MADE_OF_FACTS: Mapping[grpc.StatusCode, Callable[..., DspexError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidValue,
    grpc.StatusCode.RESOURCE_EXHAUSTED: QuotaExceeded,
    grpc.StatusCode.ABORTED: VersionConflict,
    grpc.StatusCode.NOT_FOUND: UnknownSession,
    grpc.StatusCode.PERMISSION_DENIED: ProgramUnavailable,
    grpc.StatusCode.FAILED_PRECONDITION: _mismatch,
}


def translate(error: grpc.aio.AioRpcError, *, address: str, waited_s: float) -> DspexError:
    """Return the error that the bridge made the status of; `PoolUnreachable` for a status that is not its own."""
    details = error.details() or ""
    facts: Any = None
    try:
        facts = json.loads(details)
    except ValueError:
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            # gRPC's own word, of a message that is too large.
            facts = {"field": "message_bytes", "limit": MESSAGE_LIMIT, "fix": f"send less at once ({details})"}
    try:
        return _MADE_OF_FACTS[error.code()](**facts)
    except (KeyError, TypeError):
        return PoolUnreachable(address=address, waited_s=waited_s, reason=f"{error.code().name}: {details}")
