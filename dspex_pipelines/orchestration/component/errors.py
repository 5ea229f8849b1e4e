"""Errors of a `defs.yaml` that name the file, the line and what would be accepted."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from dagster_shared.yaml_utils.source_position import SourcePositionTree
from pydantic import ValidationError

from dspex_pipelines.engine.documents import DocumentPath, InvalidPart
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.redaction import redact


class InvalidDeclaration(dg.DagsterInvalidDefinitionError):
    """A `defs.yaml` declares what cannot be; the message has each place of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where attributes stand: in a file, or nowhere in particular."""

    tree: SourcePositionTree | None
    prefix: tuple[str | int, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder that paths are relative to."""
        return Path(self.tree.position.filename).absolute().parent if self.tree else Path.cwd()

    @contextmanager
    def located(self) -> Generator[None]:
        """Turn what is refused within into an `InvalidDeclaration` that shows the lines."""
        try:
            yield
        except ValidationError as error:
            told = [self._shown(one["loc"], _said(one["loc"], one["input"], one["msg"])) for one in error.errors()]
            raise InvalidDeclaration("\n".join(told)) from None
        except InvalidPart as error:
            raise InvalidDeclaration(self._shown(error.path, str(error))) from None

    def _shown(self, path: DocumentPath, message: str) -> str:
        known = (*self.prefix, *self._known(path))
        name = ".".join(str(part) for part in known)
        if self.tree is None:
            return f"{name}: {message}" if name else message
        source = self.tree.source_error(yaml_path=known, inline_error_message=message, value_error=False)
        return f"{source.file_name}:{source.start_line_no} - {name}: {message}\n{source.snippet}"

    def _known(self, path: DocumentPath) -> Sequence[str | int]:
        """Return the parts of *path* that the file has; pydantic's also name the branch that was taken."""
        tree, known = self.tree, list[str | int]()
        for part in self.prefix:
            tree = tree.children.get(part) if tree else None
        for part in path:
            if tree and part in tree.children:
                tree = tree.children[part]
                known.append(part)
        return known if self.tree else path


def _said(path: DocumentPath, value: object, message: str) -> str:
    if message == "Field required":
        return f"{path[-1]} is missing"
    fix = redact(message[:1].lower() + message[1:])
    return str(InvalidValue(field=str(path[-1]) if path else "attributes", value=value, fix=fix))
