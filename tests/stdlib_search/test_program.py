"""The search, held against BM25 written out plainly, and its metrics."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import Stemmer

from dspex_pipelines.stdlib_search.corpus import documents
from dspex_pipelines.stdlib_search.metrics import hit_at_1, hit_at_10, reciprocal_rank
from dspex_pipelines.stdlib_search.program import BEST, FIELDS, StdlibSearch, words_of

DEFAULT: dict[str, Any] = {"k1": 1.5, "b": 0.75, "stem": True, "fields": "body+signature+name", "name_boost": 1}
QUESTIONS = [document.summary for document in documents()[::13]]


def answers(questions: list[str] = QUESTIONS, **changed: Any) -> list[list[str]]:
    search = StdlibSearch(**{**DEFAULT, **changed})
    return [search(question)["names"] for question in questions]


class PlainSearch:
    """BM25 in Lucene's form over the same documents, term by term in Python's own floats."""

    def __init__(self, *, k1: float, b: float, stem: bool, fields: str, name_boost: int) -> None:
        self.k1, self.b = k1, b
        self.stemmer = Stemmer.Stemmer("english") if stem else None
        self.counts: list[Counter[str]] = []
        for document in documents():
            words = self.words(document.body)
            if "signature" in fields:
                words += self.words(document.signature)
            if "name" in fields:
                words += self.words(document.name) * name_boost
            self.counts.append(Counter(words))
        self.lengths = [sum(counts.values()) for counts in self.counts]
        self.mean_length = sum(self.lengths) / len(self.lengths)
        self.frequencies = Counter(word for counts in self.counts for word in counts)

    def words(self, text: str) -> list[str]:
        if self.stemmer is None:
            return words_of(text, stem=False)
        return self.stemmer.stemWords(words_of(text, stem=False))

    def scores(self, question: str) -> dict[str, float]:
        scores = {}
        for document, counts, length in zip(documents(), self.counts, self.lengths, strict=True):
            score = 0.0
            for word in self.words(question):
                if word in counts:
                    found_in = self.frequencies[word]
                    rarity = math.log(1 + (len(self.counts) - found_in + 0.5) / (found_in + 0.5))
                    damping = self.k1 * (1 - self.b + self.b * length / self.mean_length)
                    score += rarity * counts[word] / (counts[word] + damping)
            scores[document.name] = score
        return scores


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({}, id="default"),
        pytest.param({"stem": False, "fields": "body"}, id="plain-bodies"),
        pytest.param({"k1": 0.9, "b": 0.4, "fields": "body+signature"}, id="weak-normalisation"),
        pytest.param({"k1": 3.0, "b": 1.0, "stem": False, "name_boost": 3}, id="boosted-names"),
        pytest.param({"k1": 0.0, "b": 0.0}, id="lower-bounds"),
    ],
)
def test_the_ten_are_the_ten_that_the_formula_ranks_best(changed) -> None:
    plain = PlainSearch(**{**DEFAULT, **changed})
    for question, names in zip(QUESTIONS[:40], answers(QUESTIONS[:40], **changed), strict=True):
        scores = plain.scores(question)
        best = sorted((score for score in scores.values() if score > 0), reverse=True)[:BEST]
        assert len(set(names)) == len(names)
        # Scores and not names: where single precision cannot tell two apart, either order is right.
        assert [scores[name] for name in names] == pytest.approx(best, rel=1e-5), question


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"k1": 0.3}, id="k1"),
        pytest.param({"b": 0.1}, id="b"),
        pytest.param({"stem": False}, id="stem"),
        pytest.param({"fields": "body"}, id="body"),
        pytest.param({"fields": "body+signature"}, id="body+signature"),
        pytest.param({"name_boost": 3}, id="name_boost"),
    ],
)
def test_every_variable_changes_answers(changed) -> None:
    assert answers(**changed) != answers()


@pytest.mark.parametrize("fields", ["body", "body+signature"])
def test_name_boost_means_nothing_without_names(fields) -> None:
    assert answers(fields=fields, name_boost=5) == answers(fields=fields)


def test_it_finds_most_of_what_is_described() -> None:
    questions = {document.name: document.summary for document in documents()}
    found = answers(list(questions.values()))
    share = sum(name in names for name, names in zip(questions, found, strict=True)) / len(questions)
    assert 0.6 < share < 0.95  # neither broken nor trivial


@pytest.mark.parametrize("question", ["", "the of and", "zzyzx qwfpgj", "日本語"])
def test_a_question_without_a_known_word_has_no_answers(question) -> None:
    assert StdlibSearch(**DEFAULT)(question) == {"names": []}


def test_there_are_fewer_than_ten_where_fewer_share_a_word() -> None:
    counts = PlainSearch(**{**DEFAULT, "stem": False}).frequencies
    word = min(word for word, count in counts.items() if count == 3)
    (names,) = answers([word], stem=False)
    assert len(names) == 3


def test_ties_go_by_name() -> None:
    # Both have the same body, word for word; neither signature nor name is searched.
    twins = ["builtins.bytearray.translate", "builtins.bytes.translate"]
    first, second = (document for document in documents() if document.name in twins)
    assert first.body == second.body
    (names,) = answers([first.body], fields="body")
    assert names[:2] == twins


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"fields": "title"}, "fields is 'title'; give one of body, ", id="unknown-fields"),
        pytest.param({"fields": "body+body"}, "fields is 'body\\+body'", id="field-twice"),
        pytest.param({"name_boost": 0}, "name_boost is 0; give 1 or more", id="no-boost"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(changed, message) -> None:
    with pytest.raises(ValueError, match=message):
        StdlibSearch(**{**DEFAULT, **changed})


def test_eight_threads_get_what_one_gets() -> None:
    spaces = [{**DEFAULT, "fields": fields, "stem": stem} for fields in FIELDS for stem in (True, False)]
    searches = [StdlibSearch(**space) for space in spaces]
    asked = [(search, question) for question in QUESTIONS for search in searches]
    alone = [search(question) for search, question in asked]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda pair: pair[0](pair[1]), asked)) == alone
        assert (
            list(threads.map(lambda space: StdlibSearch(**space)(QUESTIONS[5]), spaces * 4))
            == [search(QUESTIONS[5]) for search in searches] * 4
        )


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_answers_the_same(hash_seed) -> None:
    ask = (
        "import sys; from dspex_pipelines.stdlib_search.program import StdlibSearch;"
        f"sys.stdout.write(repr([StdlibSearch(**{DEFAULT!r})(q)['names'] for q in {QUESTIONS[:10]!r}]))"
    )
    answered = subprocess.run(
        [sys.executable, "-c", ask], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
    )
    assert answered.stdout == repr(answers(QUESTIONS[:10]))


@pytest.mark.parametrize(
    ("text", "stem", "words"),
    [
        pytest.param("Return the Running sum", False, ["return", "running", "sum"], id="common-words-go"),
        pytest.param("running runs", True, ["run", "run"], id="stems"),
        pytest.param("json.JSONDecoder.raw_decode", False, ["json", "jsondecoder", "raw", "decode"], id="names"),
        pytest.param("ThreadPoolExecutor", False, ["thread", "pool", "executor"], id="camel-case"),
    ],
)
def test_words(text, stem, words) -> None:
    assert words_of(text, stem=stem) == words
    assert not [word for word in words if re.search(r"[^a-z0-9]", word)]


@pytest.mark.parametrize(
    ("names", "rank", "first", "among"),
    [
        pytest.param(["a", "b"], 1.0, True, True, id="first"),
        pytest.param(["b", "a"], 0.5, False, True, id="second"),
        pytest.param([*"bcdefghij", "a"], 0.1, False, True, id="tenth"),
        pytest.param([*"bcdefghijk"], 0.0, False, False, id="missing"),
        pytest.param([], 0.0, False, False, id="nothing-found"),
    ],
)
def test_metrics(names, rank, first, among) -> None:
    example = SimpleNamespace(inputs={"summary": "?"}, labels={"name": "a"})
    outputs = {"names": names}
    assert reciprocal_rank(example, outputs) == rank
    assert hit_at_1(example, outputs) is first
    assert hit_at_10(example, outputs) is among


@pytest.mark.parametrize("metric", [reciprocal_rank, hit_at_1, hit_at_10])
def test_a_metric_of_something_else_is_an_error_and_no_zero(metric) -> None:
    with pytest.raises(KeyError):
        metric(SimpleNamespace(inputs={}, labels={"name": "a"}), {"found": []})
