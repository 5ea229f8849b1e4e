"""The examples: a summary line is the question, the name it belongs to is the answer."""

from __future__ import annotations

from collections.abc import Iterator

from dspex_pipelines.stdlib_search.corpus import documents


def examples() -> Iterator[dict[str, str]]:
    """Yield a row for each document: its id, its summary (the input), its name (the label), module and topic."""
    for document in documents():
        yield {
            "example_id": document.name,
            "summary": document.summary,
            "name": document.name,
            "module": document.module,
            "topic": document.topic,
        }
