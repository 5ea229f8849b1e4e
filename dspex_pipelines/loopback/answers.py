"""What the stand-in says: values from an answerer, written as the prompt wants them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Protocol

from dspex_pipelines.loopback.behaviour import fraction
from dspex_pipelines.loopback.chat import ChatRequest, OutputField, Prompt, options_of, read_prompt

UNPARSABLE = "I am sorry, but as a stand-in I would rather talk about the weather than fill in forms."
_WORDS = """
    amber basil cedar delta ember fjord grove haven iris jade kelp lilac maple nectar onyx pearl quartz river sage tulip
    umber violet willow xenon yarrow zephyr
""".split()  # noqa: SIM905 - reads better


class Answerer(Protocol):
    """Makes the values of fields; those it leaves out are filled in by their type."""

    def __call__(
        self, request: ChatRequest, fields: Sequence[OutputField], inputs: Mapping[str, str], /
    ) -> Mapping[str, object]:
        """Return values for *fields* by name, decided by *request* alone; *inputs* are what the prompt gives."""
        ...


def hashed(
    request: ChatRequest,  # noqa: ARG001 - an answerer that has nothing to add
    fields: Sequence[OutputField],  # noqa: ARG001
    inputs: Mapping[str, str],  # noqa: ARG001
    /,
) -> Mapping[str, object]:
    """Leave every field to its type: short text, a number, one of the options, by a hash of the request."""
    return {}


def answer(request: ChatRequest, answerer: Answerer, *, choice: int = 0, malformed: bool = False) -> str:
    """Return the text of the *choice*-th answer to *request*, one that no adapter can parse if *malformed*."""
    if malformed:
        return UNPARSABLE
    prompt = read_prompt(request)
    key = request.content if not choice else hashlib.blake2b(request.content + bytes([choice])).digest()
    if prompt.format == "text":
        return _text(key, "answer")
    given = answerer(request, prompt.outputs, prompt.inputs)
    values = {field.name: given.get(field.name, _value(key, field)) for field in prompt.outputs}
    return _written(prompt, values)


def _written(prompt: Prompt, values: Mapping[str, object]) -> str:
    if prompt.format == "json":
        return json.dumps(values)
    fields = [f"[[ ## {name} ## ]]\n{_plain(value)}" for name, value in values.items()]
    return "\n\n".join((*fields, "[[ ## completed ## ]]"))


def _plain(value: object) -> str:
    return json.dumps(value) if isinstance(value, list | dict) or value is None else str(value)


def _value(key: bytes, field: OutputField) -> object:
    if field.name == "reasoning":
        return f"The inputs point to {_text(key, 'reasoning')}, so that is what follows."
    drawn = fraction(key, f"value of {field.name}")
    if options := options_of(field.annotation):
        return options[int(drawn * len(options))]
    match field.annotation.partition("[")[0].lower():
        case "int":
            value: object = int(drawn * 100)
        case "float":
            value = round(drawn, 4)
        case "bool":
            value = drawn < 0.5  # noqa: PLR2004 - a fair coin
        case "list":
            value = [_item(key, field, index) for index in range(2)]
        case "dict":
            value = {}
        case _:
            value = _text(key, field.name)
    return value


def _item(key: bytes, field: OutputField, index: int) -> object:
    inner = field.annotation.partition("[")[2].removesuffix("]") or "str"
    return _value(key, OutputField(name=f"{field.name} {index}", annotation=inner))


def _text(key: bytes, name: str) -> str:
    drawn = hashlib.blake2b(name.encode(), key=key, digest_size=3).digest()
    return " ".join(_WORDS[byte % len(_WORDS)] for byte in drawn)
