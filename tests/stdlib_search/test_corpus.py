"""The documents: enough of them, good ones, and the same ones everywhere."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
import threading

import pytest

from dspex_pipelines.stdlib_search import corpus
from dspex_pipelines.stdlib_search.corpus import TOPICS, Document, documents
from dspex_pipelines.stdlib_search.dataset import examples

DIGEST = """
import hashlib, importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    sys.unraisablehook = lambda _: None  # as test runners do
from dspex_pipelines.stdlib_search.corpus import documents
sys.stderr.write(hashlib.sha256(repr(documents()).encode()).hexdigest())
"""


def by_name() -> dict[str, Document]:
    return {document.name: document for document in documents()}


def digest_elsewhere(*loaded: str, hash_seed: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DIGEST, *loaded],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )


def test_there_are_enough_for_a_real_question() -> None:
    assert len(documents()) > 1_400


def test_every_topic_has_documents_and_every_document_a_topic() -> None:
    found = collections.Counter(document.topic for document in documents())
    assert set(found) == set(TOPICS) == {"text", "numbers", "data", "files", "network", "runtime"}
    assert min(found.values()) > 100
    assert max(found.values()) < len(documents()) / 2


def test_every_module_has_one_topic() -> None:
    modules = [module for modules in TOPICS.values() for module in modules]
    assert len(modules) == len(set(modules))


def test_names_are_unique_public_and_in_order() -> None:
    names = [document.name for document in documents()]
    assert names == sorted(set(names))
    assert not [name for name in names if any(part.startswith("_") for part in name.split("."))]


def test_everything_of_a_document_but_its_signature_is_written() -> None:
    for document in documents():
        assert all((document.name, document.kind, document.module, document.topic)), document
        assert document.summary == " ".join(document.summary.split()), document
        assert document.body == document.body.strip() != "", document


def test_the_question_is_not_in_what_is_searched() -> None:
    assert not [document.name for document in documents() if document.summary in " ".join(document.body.split())]


@pytest.mark.parametrize(
    ("name", "kind", "topic"),
    [
        pytest.param("textwrap.wrap", "function", "text", id="function"),
        pytest.param("heapq.nsmallest", "function", "data", id="function-in-c-or-python"),
        pytest.param("fractions.Fraction.limit_denominator", "method", "numbers", id="method"),
        pytest.param("builtins.str.split", "method", "data", id="method-in-c"),
        pytest.param("tempfile.TemporaryDirectory", "class", "files", id="class"),
        pytest.param("urllib.parse.urlparse", "function", "network", id="submodule"),
        pytest.param("concurrent.futures.ThreadPoolExecutor.submit", "method", "runtime", id="loaded-when-asked-for"),
    ],
)
def test_what_one_would_look_for_is_there(name, kind, topic) -> None:
    document = by_name()[name]
    assert (document.kind, document.topic, document.module) == (kind, topic, name.partition(".")[0])


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        pytest.param("bisect.bisect", "bisect.bisect_right", id="second-name-of-a-function"),
        pytest.param("xmlrpc.client.Server", "xmlrpc.client.ServerProxy", id="second-name-of-a-class"),
        pytest.param("pdb.Pdb.do_b", "pdb.Pdb.do_break", id="second-name-of-a-method"),
        pytest.param("unittest.TestLoader.suiteClass", "unittest.TestSuite", id="class-kept-as-attribute"),
        pytest.param("asyncio.runners.run", "asyncio.run", id="where-it-is-defined-inside"),
    ],
)
def test_one_object_is_one_document(name, instead) -> None:
    assert name not in by_name()
    assert instead in by_name()


@pytest.mark.parametrize(
    ("docstring", "summary"),
    [
        pytest.param("f(x, /)\n\nReturn x twice.\n\nMore.", "Return x twice.", id="signature"),
        pytest.param("f(x) -> y\nf(x, z) --> y\nReturn x twice.\n\nMore.", "Return x twice.", id="several"),
        pytest.param("f([x]) -> (y,\n        z)\n\nReturn x twice.\n\nMore.", "Return x twice.", id="over-two-lines"),
        pytest.param("Return f(x) twice.\n\nMore.", "Return f(x) twice.", id="call-in-a-sentence"),
        pytest.param("Return x\ntwice.\n\nMore.", "Return x twice.", id="paragraph-becomes-a-line"),
        pytest.param("Return x twice.", None, id="nothing-to-search"),
        pytest.param("Twice.\n\nMore.", None, id="too-short-to-be-a-question"),
        pytest.param("Return x twice.\n\nReturn x\ntwice. More.", None, id="summary-again-in-the-body"),
    ],
)
def test_a_docstring_is_a_question_and_what_is_searched(docstring, summary) -> None:
    def function() -> None: ...

    function.__doc__ = docstring
    found = list(corpus._document("module.function", function, "function", "text"))
    assert [(document.summary, document.body) for document in found] == ([(summary, "More.")] if summary else [])


def test_signatures_hold_nothing_of_this_process() -> None:
    signatures = {document.name: document.signature for document in documents()}
    assert signatures["platform.architecture"] == "(executable=..., bits=..., linkage=...)"
    assert not [signature for signature in signatures.values() if " at 0x" in signature]


def test_another_process_finds_the_same_whatever_it_has_loaded_and_says_nothing() -> None:
    bare = digest_elsewhere(hash_seed=1)
    laden = digest_elsewhere("concurrent.futures.process", "dagster", "grpc", "pytest", hash_seed=2)
    assert len(bare.stderr) == 64, bare.stderr
    assert bare.stderr == laden.stderr
    assert bare.stdout == laden.stdout == ""


def test_what_others_put_into_sys_is_not_the_librarys(monkeypatch) -> None:
    def hook(*_: object) -> None:
        """Report what nobody caught.

        As test runners do.
        """

    hook.__module__ = "_pytest.hooks"
    monkeypatch.setattr(sys, "unraisablehook", hook)
    monkeypatch.setattr(sys, "added_by_a_notebook", hook, raising=False)
    assert corpus._load.__wrapped__() == documents()


def test_a_module_that_does_not_import_is_passed_over(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "textwrap", None)
    found = corpus._load.__wrapped__()
    assert not [document for document in found if document.module == "textwrap"]
    assert len(found) > 1_400


def test_threads_that_come_together_load_it_once(monkeypatch) -> None:
    loads = []
    second_load = threading.Event()

    def load_module(name, topic, seen):
        loads.append(name)
        if loads.count(name) > 1:
            second_load.set()
        if name == TOPICS["text"][0]:
            second_load.wait(0.3)  # long enough for the others to come in, if they may
        return iter(())

    monkeypatch.setattr(corpus, "_module", load_module)
    corpus._load.cache_clear()
    try:
        threads = [threading.Thread(target=documents) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        corpus._load.cache_clear()
    assert not second_load.is_set()
    assert len(loads) == sum(map(len, TOPICS.values()))


def test_an_example_is_a_row_of_plain_text() -> None:
    rows = list(examples())
    assert [row["example_id"] for row in rows] == [document.name for document in documents()]
    document = by_name()["textwrap.wrap"]
    assert next(row for row in rows if row["name"] == "textwrap.wrap") == {
        "example_id": "textwrap.wrap",
        "summary": document.summary,
        "name": "textwrap.wrap",
        "module": "textwrap",
        "topic": "text",
    }
