"""The program: full-text search over bodies, signatures and name parts with BM25."""

from __future__ import annotations

import functools
import itertools
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass

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
    """
    a an and are as at be by for from if in into is it of on or s that the this to was with
    """.split()  # noqa: SIM905 - reads better
)


_LEAST_SCORE = np.finfo(np.float32).tiny  # whatever shares a word with the question scores more than nothing
_READING = threading.Lock()


class StdlibSearch:
    """Finds names by description, with one setting of BM25.

    `k1` and `b` are BM25's saturation and length normalisation (Robertson & Zaragoza, The Probabilistic
    Relevance Framework, 2009), in Lucene's form. `stem` has words compared by their stems. `fields` is one of `FIELDS`.
    `name_boost` is how often the parts of a name count where *fields* has names at all. An instance is never changed
    after it is built, so threads may share it.

    Raises ValueError where *fields* is none of `FIELDS` or *name_boost* is less than 1.
    """

    def __init__(self, *, k1: float, b: float, stem: bool, fields: str, name_boost: int) -> None:
        if fields not in FIELDS:
            raise ValueError(f"fields is {fields!r}; give one of {', '.join(FIELDS)}")
        if name_boost < 1:
            raise ValueError(f"name_boost is {name_boost}; give 1 or more")
        words = _words(stem)
        self._stem = stem
        self._names = words.names
        self._vocabulary = words.vocabulary
        self._index = bm25s.BM25(method="lucene", k1=k1, b=b)
        # bm25s adds an empty word to the vocabulary it is given; ours is shared.
        self._index.index((words.of_documents(fields, name_boost), dict(words.vocabulary)), show_progress=False)

    def __call__(self, summary: str) -> dict[str, list[str]]:
        """Return `{"names": the ten best names}` for *summary*, best first; ties go by name.

        There are fewer names where fewer documents share a word with *summary*.
        """
        words = words_of(summary, stem=self._stem)
        ids = [self._vocabulary[word] for word in words if word in self._vocabulary]
        if not ids:
            return {"names": []}
        scores: NDArray[np.float32] = self._index.get_scores_from_ids(ids)
        tenth = np.partition(scores, -BEST)[-BEST]
        candidates = np.flatnonzero(scores >= max(tenth, _LEAST_SCORE))
        order = candidates[np.argsort(-scores[candidates], kind="stable")][:BEST]
        return {"names": [self._names[index] for index in order.tolist()]}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    """All documents as word ids, by field: what no configuration but *stem* changes is worked out once."""

    names: tuple[str, ...]
    vocabulary: Mapping[str, int]
    fields: Mapping[str, list[list[int]]]

    def of_documents(self, fields: str, name_boost: int) -> list[list[int]]:
        """Return the ids of each document's words in *fields*, those of its name *name_boost* times."""
        parts = [self.fields[field] for field in fields.split("+") for _ in range(name_boost if field == "name" else 1)]
        return [list(itertools.chain.from_iterable(row)) for row in zip(*parts, strict=True)]


def _words(stem: bool) -> _Words:  # noqa: FBT001 - the cache's key
    # A cache alone would let all threads that come first do the work.
    with _READING:
        return _read(stem)


@functools.cache
def _read(stem: bool) -> _Words:  # noqa: FBT001 - the cache's key
    vocabulary: dict[str, int] = {}

    def ids(text: str) -> list[int]:
        return [vocabulary.setdefault(word, len(vocabulary)) for word in words_of(text, stem=stem)]

    found = documents()
    return _Words(
        names=tuple(document.name for document in found),
        fields={
            "body": [ids(document.body) for document in found],
            "signature": [ids(document.signature) for document in found],
            "name": [ids(document.name) for document in found],
        },
        vocabulary=vocabulary,
    )
