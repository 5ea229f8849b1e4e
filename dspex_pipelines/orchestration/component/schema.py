"""The JSON schema of what is written in a `defs.yaml`, made so that its errors say one thing, and where.

Editors, `dg check yaml` and `dg list components` read it. A validator says of an `anyOf` that fails only that nothing
fits; what `if`, `then` and `else` say of the one branch that was meant names the value and what would be accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, cast

from pydantic import BaseModel, GetJsonSchemaHandler, RootModel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

Schema: TypeAlias = dict[str, Any]
_TEMPLATE: Schema = {"type": "string", "pattern": r"\{\{"}
"""A value that is worked out when the file is loaded, such as ``{{ env('MODEL') }}``."""
_ABOUT = frozenset({"default", "description", "examples", "title"})


def as_written(fields: type[BaseModel]) -> type[BaseModel]:
    """Return the model of *fields* before templates are worked out: any map, and the schema of what is meant."""

    class Written(RootModel[dict[str, Any]]):
        """What is written under `attributes`."""

        @classmethod
        def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
            del schema, handler
            return written_schema(fields.model_json_schema())

    Written.__name__ = Written.__qualname__ = f"{fields.__name__}Attributes"
    return Written


def written_schema(schema: Schema) -> Schema:
    """Return pydantic's *schema* with branches that can be told apart, and templates wherever a value may stand."""
    definitions = {name: _inlined(one, {}) for name, one in schema.pop("$defs", {}).items()}
    return _object(_inlined(schema, definitions))


def _inlined(node: Any, definitions: Mapping[str, Schema]) -> Any:
    """Return *node* with its references resolved: a schema that is part of another has no definitions of its own."""
    if isinstance(node, list):
        return [_inlined(one, definitions) for one in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    given = cast("Schema", node)
    if reference := given.get("$ref"):
        name = str(reference).rpartition("/")[2]
        if name in definitions:
            rest = {key: value for key, value in given.items() if key != "$ref"}
            return {**_inlined(definitions[name], definitions), **rest}
    return {key: _inlined(value, definitions) for key, value in given.items()}


def _object(node: Schema) -> Schema:
    properties = {name: one if "const" in one else _or_template(one) for name, one in node["properties"].items()}
    # Two errors for an unknown field: one has its line, the other what there is.
    return {**node, "properties": properties, "propertyNames": {"enum": list(properties)}}


def _or_template(node: Schema) -> Schema:
    about = {key: value for key, value in node.items() if key in _ABOUT}
    meant = _told_apart({key: value for key, value in node.items() if key not in _ABOUT})
    return {**about, **meant} if meant == {"type": "string"} else {**about, "if": _TEMPLATE, "else": meant}


def _told_apart(node: Schema) -> Schema:
    """Return *node* with the branch that is meant chosen by the value's `type`, or by what it is in JSON."""
    branches = [one for one in node.get("anyOf", node.get("oneOf", ())) if one.get("type") != "null"]
    if "discriminator" in node:
        return _by_type_field({str(one["properties"]["type"]["const"]): _told_apart(one) for one in branches})
    if branches and all(set(one) == {"type"} for one in branches):
        return {"type": [one["type"] for one in branches]}
    if branches:
        return _by_json_type([_told_apart(one) for one in branches])
    if "properties" in node:
        return _object(node)
    inner = {
        key: _or_template(node[key]) for key in ("items", "additionalProperties") if isinstance(node.get(key), dict)
    }
    return {**node, **inner}


def _by_type_field(branches: Mapping[str, Schema]) -> Schema:
    chosen = [
        {"if": {"properties": {"type": {"const": name}}, "required": ["type"]}, "then": branch}
        for name, branch in branches.items()
    ]
    types = {"type": "object", "properties": {"type": {"enum": list(branches)}}, "required": ["type"]}
    return {**types, "allOf": chosen}


def _by_json_type(branches: list[Schema]) -> Schema:
    """Return a chain over the branches; words come last, for what is neither a list nor a map."""
    *others, last = sorted(branches, key=lambda one: one.get("type", "string") == "string")
    for branch in reversed(others):
        last = {"if": {"type": branch["type"]}, "then": branch, "else": last}
    return last
