"""Outputs as plain values: what a program returns may be predictions, models and dataclasses, in one another.

| what | becomes |
|---|---|
| DSPy's predictions and examples, pydantic models (DSPy's own types among them), dataclasses | maps of their fields |
| enums | their values |
| dates and times | ISO 8601 text; durations: seconds |
| decimals, UUIDs, paths | text |

Everything else is left to `encode`, which carries it exactly or says where it sits; sets, which have no order, too.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, cast
from uuid import UUID

from dspex_pipelines.errors import SerializationError
from dspex_pipelines.model.payload import encode

_SCALARS = frozenset((type(None), str, int, float, bool, bytes))
_PACKED = (dict, list, str, int, float, bool, bytes)
_DEEPEST = 200


def encode_outputs(outputs: Any) -> bytes:
    """Return outputs as they are sent; raises `SerializationError` with the path of what cannot be."""
    if isinstance(outputs, _PACKED):
        try:
            # Nearly all of them are plain, and packing them says so sooner than looking.
            return encode(outputs)
        except SerializationError:
            pass
    return encode(plain(outputs))


def plain(value: Any, path: str = "outputs", depth: int = 0) -> Any:  # noqa: PLR0911 - a case each
    """Return *value* with all that can be told as a plain value told as one, however deep it sits."""
    if type(value) in _SCALARS:
        return value
    if depth > _DEEPEST:
        raise SerializationError(path=path, reason=f"nested deeper than {_DEEPEST} levels")
    match value:
        case Enum():
            return plain(value.value, path, depth + 1)
        case Mapping():
            return _map(cast("Mapping[Any, Any]", value), path, depth)
        case list() | tuple():
            items = cast("list[Any]", value)
            return [plain(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(items)]
        case dt.timedelta():
            return value.total_seconds()
        case dt.datetime() | dt.date() | dt.time():
            return value.isoformat()
        case Decimal() | UUID() | PurePath():
            return str(value)
        case _:
            fields = _fields(value)
            return value if fields is value else plain(fields, path, depth + 1)


def _map(value: Mapping[Any, Any], path: str, depth: int) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for key, item in value.items():
        name = key.value if isinstance(key, Enum) else key
        if name in made:
            raise SerializationError(path=path, reason=f"two keys become {name!r}")
        made[name] = plain(item, f"{path}[{name!r}]", depth + 1)
    return made


def _fields(value: Any) -> Any:
    """Return what an object says of itself, unconverted where it can be had so; itself where it says nothing."""
    if isinstance(value, type):
        return value
    if callable(getattr(value, "toDict", None)):
        store = getattr(value, "_store", None)
        # DSPy's own conversion turns models inside into maps, and leaves the rest of what is in those as it is.
        is_dspys = isinstance(store, dict) and type(value).__module__.partition(".")[0] == "dspy"
        return dict(cast("dict[str, Any]", store)) if is_dspys else value.toDict()
    if callable(getattr(value, "model_dump", None)):
        return value.model_dump()
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value
