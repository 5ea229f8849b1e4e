"""The exact encoding of everything a trial carries, and the digests made of it.

Payloads are msgpack. What msgpack carries exactly (``None``, booleans, 64-bit integers, floats with NaN and
infinities, strings, bytes, lists, maps) comes back as it went. Documented conversions: tuples become lists,
numpy scalars become the Python scalar of the same value, numpy arrays become nested lists. Anything else
raises `SerializationError` with the path of the offender; nothing changes silently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NoReturn, cast

import msgpack

from dspex_pipelines.errors import SerializationError

DIGEST_BYTES = 16
_FEW_BYTES = 4_096


def encode(value: object) -> bytes:
    """Return *value* as msgpack; raises `SerializationError` naming the path of what cannot be carried."""
    try:
        # What `msgpack.packb` does, with one call less and a small buffer to begin with: a third of its time.
        packed: bytes = msgpack.Packer(default=_convert, buf_size=_FEW_BYTES).pack(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        _refuse(value, "outputs", depth=0)
        raise SerializationError(path="outputs", reason=str(error)) from error
    return packed


def decode(payload: bytes) -> Any:
    """Return the value that `encode` was given; an empty payload is ``None``.

    Raises `SerializationError` for any other bytes, at a cost that is linear in their number.
    """
    if not payload:
        return None
    try:
        if len(payload) > _FEW_BYTES:
            # Lists are made at the length that they claim, in a list that claims as much, in a list …
            unpacker = msgpack.Unpacker(max_buffer_size=len(payload))
            unpacker.feed(payload)
            unpacker.skip()
        return msgpack.unpackb(payload, strict_map_key=False, ext_hook=_no_extension, max_ext_len=0)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        reason = str(error) or type(error).__name__
        raise SerializationError(path="payload", reason=f"not what this package packs: {reason}") from error


def _no_extension(code: int, data: bytes) -> NoReturn:
    msg = f"an extension of type {code}, {len(data)} bytes long"
    raise ValueError(msg)


def canonical(value: object) -> bytes:
    """Return an encoding in which equal values have equal bytes, whatever the order of their maps.

    Raises `SerializationError`, as `encode` does.
    """
    try:
        return encode(_sorted(value))
    except RecursionError as error:
        raise SerializationError(path="value", reason="nested too deeply") from error


def digest(*parts: bytes) -> bytes:
    """Return the 16-byte BLAKE2b digest of *parts*, each framed by its length."""
    return digest_each(parts)


def digest_each(parts: Iterable[bytes]) -> bytes:
    """Return the `digest` of parts that come one after the other."""
    hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        hasher.update(len(part).to_bytes(8, "big"))
        hasher.update(part)
    return hasher.digest()


def digest_of(value: object) -> bytes:
    """Return the digest of a value's canonical encoding: equal across processes and machines."""
    return digest(canonical(value))


_SCALARS = frozenset((str, int, float, bool, bytes, type(None)))


def _sorted(value: object) -> object:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is dict or isinstance(value, Mapping):
        items = list(cast("Mapping[object, object]", value).items())
        items.sort(key=_encoded_key)
        return {key: _sorted(item) for key, item in items}
    if isinstance(value, list | tuple):
        return [_sorted(item) for item in cast("list[object]", value)]
    return value


def _encoded_key(item: tuple[object, object]) -> bytes:
    key = item[0]
    return _encoded_name(key) if type(key) is str else encode(key)


@lru_cache(1_024)
def _encoded_name(name: str) -> bytes:
    """Return what `encode` does: examples have their names alike."""
    return encode(name)


def _convert(value: object) -> object:
    """Return what msgpack can carry in place of *value*; only numpy's scalars and arrays are known."""
    if type(value).__module__.split(".")[0] == "numpy" and hasattr(value, "tolist"):
        return value.tolist()  # type: ignore[attr-defined]
    if isinstance(value, Mapping):
        return dict(cast("Mapping[object, object]", value))
    msg = f"a {type(value).__module__}.{type(value).__qualname__} cannot be sent"
    raise TypeError(msg)


_DEEPEST = 200
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1


def _refuse(value: object, path: str, *, depth: int) -> None:
    """Raise for the first part of *value* that msgpack refuses, with its path."""
    if depth > _DEEPEST:
        raise SerializationError(path=path, reason=f"nested deeper than {_DEEPEST} levels")
    if isinstance(value, Mapping):
        for key, item in cast("Mapping[object, object]", value).items():
            _refuse(item, f"{path}[{key!r}]", depth=depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(cast("list[object]", value)):
            _refuse(item, f"{path}[{index}]", depth=depth + 1)
    elif isinstance(value, int) and not _INT_MIN <= value <= _INT_MAX:
        raise SerializationError(path=path, reason="the integer does not fit 64 bits; return it as a string")
    elif value is not None and not isinstance(value, bool | int | float | str | bytes):
        try:
            _convert(value)
        except TypeError as error:
            raise SerializationError(
                path=path, reason=f"{error}; return numbers, strings, bytes, lists and maps"
            ) from error
