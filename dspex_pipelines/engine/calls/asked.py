"""What is kept of a call to a model: what was asked, under which settings, and the words of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from dspex_pipelines.engine.calls.used import field_of
from dspex_pipelines.redaction import is_secret_setting

_ASKED = ("messages", "prompt", "input", "contents")
"""Where the requests of client libraries have what the model is to answer."""
_ELSEWHERE = frozenset({"model", "api_base", "base_url"})
"""What the name of the call says already; an address may have a password in it."""
_DEPTH = 12
_MOST_PARTS = 100_000
"""Of the settings of one call: what leads back to itself in many ways has no end."""


def asked_of(request: Any) -> tuple[Any, Mapping[str, Any] | None]:
    """Return what a request asks, and its settings without secrets.

    A request is messages, a prompt, or a map of all that is sent. Lists are copied: a conversation grows afterwards.
    """
    if not isinstance(request, Mapping):
        return _copied(request), None
    fields = _Open().fields(cast("Mapping[Any, Any]", request), _DEPTH)
    name = next((name for name in _ASKED if fields.get(name) is not None), "")
    if not name:
        return fields, None
    settings = {
        key: value for key, value in fields.items() if key != name and key not in _ELSEWHERE and value is not None
    }
    return _copied(fields[name]), settings


def answered_of(answer: Any) -> Any:
    """Return the words of an answer in OpenAI's form, a list with one for each choice; any other answer as it is."""
    choices = field_of(answer, "choices")
    if not isinstance(choices, list | tuple) or not choices:
        return answer
    said = [field_of(field_of(choice, "message"), "content") for choice in cast("list[Any]", choices)]
    return said if all(isinstance(words, str) for words in said) else answer


class _Open:
    """The parts of a request that are no secrets."""

    def __init__(self) -> None:
        self._left = _MOST_PARTS

    def fields(self, fields: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        return {
            str(name): value if name in _ASKED else self._of(value, depth - 1)
            for name, value in fields.items()
            if not is_secret_setting(str(name))
        }

    def _of(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if depth < 0 or self._left < 0:
            return "…"
        if isinstance(value, Mapping):
            return self.fields(cast("Mapping[Any, Any]", value), depth)
        if isinstance(value, list | tuple):
            return [self._of(one, depth - 1) for one in cast("list[Any]", value)]
        return value


def _copied(asked: Any) -> Any:
    return list(cast("list[Any]", asked)) if isinstance(asked, list) else asked
