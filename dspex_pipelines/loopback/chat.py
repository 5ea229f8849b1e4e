"""A request for a chat completion, read from JSON, and what a DSPy prompt in it asks for."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

Format = Literal["chat", "json", "text"]
_MOST_CHOICES = 128
_HOTTEST = 2
_CHAT_ASKS = "Respond with the corresponding output fields, starting with the field "
_JSON_ASKS = "Respond with a JSON object in the following order of fields: "
_ANNOTATED = r"(?: \(must be formatted as a valid Python (.+?)\))?(?=, then|, and then|\.\s|\.$)"
# The mark that ends an answer is written like a field.
_CHAT_FIELD = re.compile(r"`\[\[ ## (?!completed )(\w+) ## \]\]`" + _ANNOTATED)
_JSON_FIELD = re.compile(r"`(\w+)`" + _ANNOTATED)
_HEADER = re.compile(r"^\[\[ ## (\w+) ## \]\]", re.MULTILINE)


class BadRequest(ValueError):
    """The request is none that a provider would take; *param* is what is wrong with it."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of the conversation, its text in one piece."""

    role: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """What is asked of the model. `content` is a digest of model, messages, temperature and seed."""

    model: str
    messages: tuple[Message, ...]
    temperature: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    n: int = 1
    content: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        turns = [[message.role, message.text] for message in self.messages]
        text = json.dumps([self.model, turns, float(self.temperature), self.seed])
        object.__setattr__(self, "content", hashlib.blake2b(text.encode(), digest_size=16).digest())

    @property
    def prompt_tokens(self) -> int:
        """The words of all messages, which are the tokens here."""
        return sum(count_tokens(message.text) for message in self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputField:
    """A field that the prompt wants: its name and the Python type it is written as, such as `list[str]`."""

    name: str
    annotation: str = "str"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the last message asks for: which fields in which format, and the inputs it gives.

    `demos` are earlier answers in the conversation. A prompt that DSPy did not write is of the format `text`, without
    fields.
    """

    format: Format
    outputs: tuple[OutputField, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict[str, str])
    demos: int = 0


def count_tokens(text: str) -> int:
    """Return how many tokens *text* has: its words."""
    return len(text.split())


def read_request(body: bytes) -> ChatRequest:
    """Return the request in *body*; raises `BadRequest` for what a provider would refuse, and for streams."""
    try:
        document: object = json.loads(body)
    except ValueError as error:
        raise BadRequest("We could not parse the JSON body of your request.", param="body") from error
    if not isinstance(document, dict):
        raise BadRequest("The body must be a JSON object.", param="body")
    given = cast("dict[str, Any]", document)
    if given.get("stream"):
        raise BadRequest("This server does not stream; leave out 'stream'.", param="stream")
    model, messages = given.get("model"), given.get("messages")
    if not isinstance(model, str) or not model:
        raise BadRequest("You must provide a model parameter.", param="model")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' must be a list of one or more messages.", param="messages")
    limit = given.get("max_completion_tokens", given.get("max_tokens"))
    return ChatRequest(
        model=model,
        messages=tuple(_message(message) for message in cast("list[object]", messages)),
        temperature=_number(given, "temperature", low=0, high=_HOTTEST, default=1.0),
        seed=None if given.get("seed") is None else _whole(given["seed"], "seed", low=-(2**63), high=2**63),
        max_tokens=None if limit is None else _whole(limit, "max_tokens", low=1, high=2**31),
        n=_whole(1 if given.get("n") is None else given["n"], "n", low=1, high=_MOST_CHOICES),
    )


def read_prompt(request: ChatRequest) -> Prompt:
    """Return what the last message of *request* asks for."""
    text = request.messages[-1].text
    # The inputs come before, and may hold the same sentence.
    chat, as_json = text.rfind(_CHAT_ASKS), text.rfind(_JSON_ASKS)
    start = max(chat, as_json)
    if start < 0:
        return Prompt(format="text")
    pattern = _CHAT_FIELD if chat > as_json else _JSON_FIELD
    outputs = [OutputField(name=name, annotation=kind or "str") for name, kind in pattern.findall(text[start:])]
    parts = _HEADER.split(text[:start])
    return Prompt(
        format="chat" if chat > as_json else "json",
        outputs=tuple(outputs),
        inputs={name: value.strip() for name, value in zip(parts[1::2], parts[2::2], strict=True)},
        demos=sum(message.role == "assistant" for message in request.messages[:-1]),
    )


def options_of(annotation: str) -> tuple[object, ...]:
    """Return the values that a `Literal[...]` allows, none for other types."""
    if not annotation.startswith("Literal["):
        return ()
    try:
        value: object = ast.literal_eval(annotation.removeprefix("Literal"))
    except (ValueError, SyntaxError):
        return ()
    return tuple(cast("list[object]", value)) if isinstance(value, list) else ()


def _message(given: object) -> Message:
    if not isinstance(given, dict):
        raise BadRequest("Every message must be an object.", param="messages")
    message = cast("dict[str, object]", given)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise BadRequest("Every message must have a role.", param="messages")
    if isinstance(content, list):
        parts = [cast("dict[str, object]", part) for part in cast("list[object]", content) if isinstance(part, dict)]
        content = "\n".join(str(part["text"]) for part in parts if "text" in part)
    if content is not None and not isinstance(content, str):
        raise BadRequest("The content of a message must be a string or a list of parts.", param="messages")
    return Message(role=role, text=content or "")


def _number(given: Mapping[str, Any], name: str, *, low: float, high: float, default: float) -> float:
    value: object = default if given.get(name) is None else given[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequest(f"{name!r} must be a number from {low} to {high}.", param=name)
    return float(value)


def _whole(value: object, name: str, *, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadRequest(f"{name!r} must be an integer of {low} or more, at most {high}.", param=name)
    return value
