"""What a trial's calls were, packed to a bounded size: prompts, answers, times, and what the program made of them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from dspex_pipelines.engine.calls.trial_calls import Call, TrialCalls
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
_MOST_PARTS = 100_000
"""Of all that is shown: what leads back to itself in many ways has no end."""
_LEAST_PARTS = 500
"""Of one prompt, answer or step, however many there are."""
_BITS = 64
T = TypeVar("T")


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
        steps = (calls.steps or [])[:kept]
        parts = max(_LEAST_PARTS, _MOST_PARTS // (len(shown) + len(steps) + 1))
        document: dict[str, Any] = {
            CALLS: [_call(call, characters, parts) for call in shown],
            STEPS: [_Shown(characters, parts).of(step) for step in steps],
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


def _call(call: Call, characters: int, parts: int) -> dict[str, Any]:
    shown = _Shown(characters, parts)
    document: dict[str, Any] = {
        "model": call.model,
        "at_s": call.at_s,
        "run_s": call.run_s,
        "throttled_s": call.throttled_s,
        "asked": shown.of(call.asked),
        "answered": shown.of(call.answered),
    }
    if call.settings:
        document["settings"] = shown.of(call.settings)
    if call.tries > 1:
        document["tries"] = call.tries
    if call.error:
        document["error"] = call.error
    if call.used is not None:
        document["used"] = {name: value for name, value in call.used._asdict().items() if value}
    return document


class _Shown:
    """Values as what a payload can hold, without secrets: texts cut to *characters*, *parts* of all of them at most."""

    def __init__(self, characters: int, parts: int) -> None:
        self._characters = characters
        self._left = parts

    def of(self, value: Any, depth: int = _DEPTH) -> Any:
        """Return what is shown of *value*, which may raise whatever it likes when it is looked at."""
        self._left -= 1
        if self._left < 0:
            return "…"
        if type(value) is str:
            return self._text(value)
        try:
            return self._of(value, depth)
        except BaseException:  # noqa: BLE001 - a SystemExit of its __repr__ is not our end
            return f"a {type(value).__name__}".encode(errors="backslashreplace").decode()

    def _of(self, value: Any, depth: int) -> Any:  # noqa: PLR0911 - a case each
        if isinstance(value, str):
            return self._text(value)
        if value is None or isinstance(value, bool | float) or (isinstance(value, int) and value.bit_length() < _BITS):
            return value
        if depth <= 0:
            return "…"
        if isinstance(value, Mapping):
            return self._fields(cast("Mapping[Any, Any]", value), depth - 1)
        if isinstance(value, list | tuple | set | frozenset):
            first, left_out, last = self._ends(list(cast("list[Any]", value)))
            said = [f"… {left_out:,} items left out …"] if left_out else []
            return [self.of(one, depth - 1) for one in (*first, *said, *last)]
        for method in ("toDict", "model_dump"):
            convert = getattr(value, method, None)
            if callable(convert) and not isinstance(value, type):
                try:
                    return self.of(convert(), depth - 1)
                except Exception:  # noqa: BLE001 - shown as text instead
                    break
        return self._text(repr(value))

    def _text(self, value: str) -> str:
        # Cut after that: half of a secret is not known for one.
        value = redact(value)
        if not value.isascii():
            value = value.encode(errors="backslashreplace").decode()
        if len(value) <= self._characters:
            return value
        half = self._characters // 2
        return f"{value[:half]}… {len(value) - 2 * half:,} characters left out …{value[-half:]}"

    def _fields(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        first, left_out, last = self._ends(list(value.items()))
        fields = {
            (name := self._text(str(key))): self._field(name, one, depth) for part in (first, last) for key, one in part
        }
        if left_out:
            fields["…"] = f"{left_out:,} fields left out"
        return fields

    def _field(self, name: str, value: Any, depth: int) -> Any:
        """Return what is shown of a field: the state of a model has its key, headers have tokens."""
        if isinstance(value, str) and value and is_secret_field(name):
            return UNNAMED
        return self.of(value, depth)

    def _ends(self, items: list[T]) -> tuple[list[T], int, list[T]]:
        """Return *items* without those in the middle, and how many these are: an embedding has thousands of numbers."""
        most = max(_LEAST_ITEMS, self._characters // _CHARACTERS_PER_ITEM)
        half = most // 2
        return (items, 0, []) if len(items) <= most else (items[:half], len(items) - 2 * half, items[-half:])
