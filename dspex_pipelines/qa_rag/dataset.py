"""The examples: a question made of a summary line, and the name it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from dspex_pipelines.stdlib_search.corpus import Document, documents

EXAMPLES = 200
DEMOS = 4
_QUESTION = "Which function, class or method does this: {summary}"


def examples() -> Iterator[dict[str, str]]:
    """Yield 200 rows: an id, the question (the input), the qualified name (the label `answer`) and its module."""
    for document in _picked()[:EXAMPLES]:
        yield {
            "example_id": document.name,
            "question": question_about(document),
            "answer": document.name,
            "module": document.module,
        }


def demonstrated() -> tuple[Document, ...]:
    """Return the four documents that demonstrations are made of; none of them is in an example."""
    return _picked()[EXAMPLES : EXAMPLES + DEMOS]


def question_about(document: Document) -> str:
    """Return the question whose answer is the document's name."""
    return _QUESTION.format(summary=document.summary)


def _picked() -> tuple[Document, ...]:
    """Return the documents in an order that is nobody's, so that the first of them are of all modules.

    What a version of Python adds to its library moves none of the others.
    """
    return tuple(sorted(documents(), key=lambda document: hashlib.blake2b(document.name.encode()).digest()))
