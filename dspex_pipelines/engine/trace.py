"""What a trial's calls were, packed to a bounded size: prompts, answers, times, and what the program made of them."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from typing import Any, cast

from dspex_pipelines.engine.calls import Call, TrialCalls
from dspex_pipelines.errors import SerializationError
from dspex_pipelines.model.payload import decode, encode
from dspex_pipelines.redaction import UNNAMED, is_secret_field, redact

CALLS = "calls"
STEPS = "steps"
LEFT_OUT = "left_out"
_MOST_CHARACTERS = 100_000
"""Of a text, before anything is packed."""
_LEAST_CHARACTERS = 200
_MOST_CALLS = 1_000
_MOST_UNPACKED = 64 << 20
_DEPTH = 12
_CHARACTERS_PER_ITEM = 100
_LEAST_ITEMS = 8


def pack_trace(calls: TrialCalls, most: int) -> bytes:
    """Return the trial's calls and steps in at most *most* bytes; empty when nothing fits.

    Where all of it is too much, texts and lists are cut in their middle, ever shorter, and then calls in the middle are
    left out.
    """
    made = calls.calls or []
    kept = _MOST_CALLS
    characters = _MOST_CHARACTERS
    while True:
        shown = made if len(made) <= kept else [*made[: kept - kept // 2], *made[len(made) - kept // 2 :]]
        document: dict[str, Any] = {
            CALLS: [_call(call, characters) for call in shown],
            STEPS: [_plain(step, characters, _DEPTH) for step in (calls.steps or [])[:kept]],
        }
        if len(shown) < len(made):
            document[LEFT_OUT] = len(made) - len(shown)
        packed = zlib.compress(encode(document))
        if len(packed) <= most:
            return packed
        if characters > _LEAST_CHARACTERS:
            characters //= 4
        elif kept > 1:
            kept = max(1, min(kept, len(made)) // 2)
        else:
            return b""


def unpack_trace(payload: bytes) -> dict[str, Any]:
    """Return what `pack_trace` packed: `calls`, `steps`, and how many calls are `left_out`.

    Raises `SerializationError` for what is none.
    """
    if not payload:
        return {CALLS: [], STEPS: []}
    unpacking = zlib.decompressobj()
    try:
        document = decode(unpacking.decompress(payload, _MOST_UNPACKED))
    except zlib.error as error:
        raise SerializationError(path="trace", reason=str(error)) from error
    if not isinstance(document, dict):
        raise SerializationError(path="trace", reason="not a map of calls and steps")
    return cast("dict[str, Any]", document)


def _call(call: Call, characters: int) -> dict[str, Any]:
    document: dict[str, Any] = {
        "model": call.model,
        "at_s": call.at_s,
        "run_s": call.run_s,
        "throttled_s": call.throttled_s,
        "asked": _plain(call.asked, characters, _DEPTH),
        "answered": _plain(call.answered, characters, _DEPTH),
    }
    if call.settings:
        document["settings"] = _plain(call.settings, characters, _DEPTH)
    if call.tries > 1:
        document["tries"] = call.tries
    if call.error:
        document["error"] = call.error
    if call.used is not None:
        document["used"] = {name: value for name, value in call.used._asdict().items() if value}
    return document


def _plain(value: Any, characters: int, depth: int) -> Any:  # noqa: PLR0911 - a case each
    """Return *value* as what a payload can hold, without secrets, its texts cut to *characters*."""
    if isinstance(value, str):
        # Cut after that: half of a secret is not known for one.
        value = redact(value)
        value = value.encode(errors="backslashreplace").decode()
        if len(value) <= characters:
            return value
        half = characters // 2
        return f"{value[:half]}… {len(value) - 2 * half:,} characters left out …{value[-half:]}"
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and value.bit_length() < 64):  # noqa: PLR2004
        return value
    if depth <= 0:
        return "…"
    if isinstance(value, Mapping):
        items = ((redact(str(name)), one) for name, one in cast("Mapping[Any, Any]", value).items())
        return {name: _shown(name, one, characters, depth - 1) for name, one in items}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one, characters, depth - 1) for one in _shortened(cast("list[Any]", value), characters)]
    for method in ("toDict", "model_dump"):
        convert = getattr(value, method, None)
        if callable(convert) and not isinstance(value, type):
            try:
                return _plain(convert(), characters, depth - 1)
            except Exception:  # noqa: BLE001 - shown as text instead
                break
    try:
        return _plain(repr(value), characters, depth)
    except Exception:  # noqa: BLE001 - a broken __repr__ is not our end
        return f"a {type(value).__name__}"


def _shown(name: str, value: Any, characters: int, depth: int) -> Any:
    """Return what is shown of a field: the state of a model has its key, headers have tokens."""
    if isinstance(value, str) and value and is_secret_field(name):
        return UNNAMED
    return _plain(value, characters, depth)


def _shortened(items: Collection[Any], characters: int) -> Collection[Any]:
    """Return *items* without those in the middle, where they are too many: an embedding has thousands of numbers."""
    most = max(_LEAST_ITEMS, characters // _CHARACTERS_PER_ITEM)
    if len(items) <= most:
        return items
    every, half = list(items), most // 2
    return [*every[:half], f"… {len(every) - 2 * half:,} items left out …", *every[-half:]]
