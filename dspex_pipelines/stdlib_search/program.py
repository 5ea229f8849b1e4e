"""The program: full-text search over bodies, signatures and name parts with BM25."""

from __future__ import annotations

import functools
import re

import bm25s
import numpy as np
import Stemmer
from numpy.typing import NDArray

from dspex_pipelines.stdlib_search.corpus import documents

BEST = 10
FIELDS = ("body", "body+signature", "body+signature+name")
_WORD = re.compile(r"[a-z0-9]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_STOP = frozenset(
    ("a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "if", "in", "into", "is", "it", "of", "on")
    + ("or", "s", "that", "the", "this", "to", "was", "with")
)


class StdlibSearch:
    """Finds names by description, with one setting of BM25.

    `k1` and `b` are BM25's saturation and length normalisation (Robertson & Zaragoza, The Probabilistic
    Relevance Framework, 2009), in Lucene's form. `name_boost` is how often the parts of a name count where
    *fields* has names at all. An instance is never changed after it is built, so threads may share it.
    """

    def __init__(self, *, k1: float, b: float, stem: bool, fields: str, name_boost: int) -> None:
        self._stem = stem
        self._names = np.array([document.name for document in documents()])
        self._index = bm25s.BM25(method="lucene", k1=k1, b=b)
        self._index.index(_tokens(stem, fields, name_boost), show_progress=False)
        self._known = self._index.vocab_dict

    def __call__(self, summary: str) -> dict[str, list[str]]:
        """Return the ten best names for *summary*, best first; ties go by name."""
        words = [word for word in words_of(summary, stem=self._stem) if word in self._known]
        if not words:
            return {"names": []}
        scores: NDArray[np.float32] = self._index.get_scores(words)
        worst = np.partition(scores, -BEST)[-BEST]
        candidates = np.flatnonzero(scores >= max(worst, np.finfo(np.float32).tiny))
        order = candidates[np.lexsort((candidates, -scores[candidates]))][:BEST]
        return {"names": [str(self._names[index]) for index in order]}


def words_of(text: str, *, stem: bool) -> list[str]:
    """Return the words of *text* in lower case, without the commonest ones, stemmed if asked for."""
    words = [word for word in _WORD.findall(_CAMEL.sub(" ", text).lower()) if word not in _STOP]
    if not stem:
        return words
    return [_stemmed(word) for word in words]


@functools.lru_cache(maxsize=65_536)
def _stemmed(word: str) -> str:
    # A stemmer is not safe to share between threads; making one costs microseconds and each word is met once.
    return str(Stemmer.Stemmer("english").stemWord(word))


@functools.cache
def _field(field: str, stem: bool) -> tuple[tuple[str, ...], ...]:  # noqa: FBT001 - a cache key
    """Return one field of all documents as words: what no configuration changes is worked out once."""
    texts = {
        "body": lambda document: document.body,
        "signature": lambda document: document.signature,
        "name": lambda document: document.name,
    }
    return tuple(tuple(words_of(texts[field](document), stem=stem)) for document in documents())


def _tokens(stem: bool, fields: str, name_boost: int) -> list[list[str]]:  # noqa: FBT001
    if fields not in FIELDS:
        raise ValueError(f"fields is {fields!r}; give one of {', '.join(FIELDS)}")
    parts = [_field(field, stem) for field in fields.split("+")]
    if "name" in fields.split("+"):
        parts.extend([parts[-1]] * (name_boost - 1))
    return [[word for words in row for word in words] for row in zip(*parts, strict=True)]
